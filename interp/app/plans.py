"""Plans of steps: what they will take, without loading weights."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from interp.app.steps import Context, Planner, checked_steps
from interp.config import ExecutorConfig, ModelConfig
from interp.errors import InputError, ModelError

if TYPE_CHECKING:
    from interp.planning.plan import Plan

PAGE = 4096
ASSUMED = (
    "the self-check is taken to allow the fast route, and loading is not counted",
    "what is done already is known by its files and settings; the weights are not compared",
)
MANY = "a worker is a process of its own: {0} of them take {0} times the memory, and share the time"


def planned(context: Context, names: Sequence[str], title: str, *, timed: bool = True) -> "Plan":
    """The plan of some steps; those without a model take seconds, and are left out.

    Args:
        context: The run and its settings. No model is loaded.
        names: The steps.
        title: What the plan is called.
        timed: Whether the machine is timed; the plan has no times otherwise.

    Raises:
        InputError: No step has a plan.
        DmleError: Settings, rules or the model's configuration are not what a step needs.
    """
    steps = [step for step in checked_steps(names) if step.plan is not None]
    if not steps:
        raise InputError(
            f"there is no plan of {', '.join(names)}: it takes seconds, or needs no model; plans"
            f" are of {', '.join(with_plans())}"
        )
    for step in steps:
        step.check(context)
    makers = [step.plan for step in steps if step.plan is not None]
    return plan_of(context, makers, title, timed=timed)


def with_plans() -> list[str]:
    """Steps that have a plan."""
    from interp.app.steps import load_steps

    return [name for name, step in load_steps().items() if step.plan is not None]


def plan_of(context: Context, makers: Sequence[Planner], title: str, *, timed: bool) -> "Plan":
    """The plan of works that are made by functions."""
    from interp.models.outline import outline
    from interp.planning.advice import advice
    from interp.planning.machine import Machine
    from interp.planning.plan import Costs, Plan
    from interp.planning.speed import measured

    model = context.settings(ModelConfig)
    drawn = outline(model.name, device=model.device, dtype=model.dtype)
    gc.collect()
    base = {"weights": drawn.shape.parameters * drawn.dtype.itemsize}
    if drawn.place.type == "cpu":
        base = {"libraries": _resident(), **base}
    machine, notes = Machine.here(drawn.place, context.run.path), list(ASSUMED)
    try:
        speed = measured(drawn) if timed else None
    except ModelError as error:
        speed, notes = None, [*notes, f"no time: {error}"]
    costs, outlined = Costs(drawn, speed, machine), context.outlined(drawn)
    works = tuple(work for make in makers for work in make(outlined, costs, notes.append))
    if (kind := context.settings(ExecutorConfig)).kind != "serial":
        notes.append(MANY.format(kind.workers or "several"))
    lines = advice(base, works, machine, drawn.dtype.itemsize, REMEDIES)
    return Plan(title, works, base, machine, tuple(lines), tuple(notes))


REMEDIES = {
    "batches": "--set trace.memory=64MiB, edit.memory=256MiB or a smaller evaluate.batch_size",
    "statistics of keys": "fewer blocks at once: narrower edit.layers and edit.block",
    "states of the two runs": "fewer --samples",
}


def _resident() -> int:
    """Bytes of memory that this process has now."""
    file = Path("/proc/self/statm")
    if file.is_file():
        return int(file.read_text().split()[1]) * PAGE
    from interp.planning.machine import peak_rss

    return peak_rss()
