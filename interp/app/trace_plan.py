"""What `dmle trace` will do."""

from collections.abc import Callable, Sequence
from pathlib import Path

from interp.app.steps import Context
from interp.config import ModelConfig, TraceConfig
from interp.errors import DmleError
from interp.planning.plan import Costs, Work
from interp.planning.sampling import spread_out
from interp.results import effects
from interp.rules.sources import Rule
from interp.tracing.counting import count_trace
from interp.tracing.fingerprint import config_text
from interp.tracing.trace import prompts, trace_path
from interp.vocabulary import RuleForm

MOST = 150
"""Prompts that are counted; of more, so many that are spread over all."""
MAP_BYTES = 60_000
"""Bytes of an effect map beside its scores: texts, settings, and what the file format takes."""


def plan_trace(
    context: Context, costs: Costs, note: Callable[[str], object], rules: Sequence[Rule]
) -> list[Work]:
    """The prompts that are not traced yet."""
    config, outline = context.settings(TraceConfig), costs.outline
    every, folder = prompts(rules), context.run.path / "traces"
    left = [each for each in every if not _is_there(context, folder, *each)]
    some = spread_out(left, MOST)
    if len(some) < len(left):
        note(f"trace: counted on {len(some)} of {len(left)} prompts")
    outline.work_bytes = 0
    count = count_trace(outline, rules, some, config)
    if count.skipped:
        note(f"trace: {count.skipped} of {len(some)} prompts cannot be traced")
    scale = len(left) / len(some) if some else 1.0
    exact = config.method != "screen" or config.samples <= 4
    if config.answer != "truth":
        note("trace: the model's own answers are counted with trace.answer_tokens tokens")
    size = outline.dtype.itemsize
    samples = 1 if config.corruption == "counterfactual" else config.samples
    scores = 4 * count.sites * samples * len(config.metrics)
    return [
        costs.work(
            f"trace ({config.method})",
            count.passes,
            scale=scale,
            tasks=len(left),
            unit="prompt",
            done=len(every) - len(left),
            at_most=not exact,
            memory={"batches": outline.work_bytes, "states of the two runs": count.states * size},
            files=len(left) + 1,
            disk=round(2 * scale * (scores + MAP_BYTES * count.prompts)),
        )
    ]


def _is_there(context: Context, folder: Path, rule: Rule, form: RuleForm) -> bool:
    """Whether a prompt is traced with these settings, as far as its file tells without weights."""
    path = trace_path(folder, rule.id, form)
    if not path.is_file():
        return False
    try:
        with effects.opened(path) as item:
            found = dict(item.attrs)
    except DmleError:
        return False
    wanted = config_text(context.settings(TraceConfig))
    name = context.settings(ModelConfig).name
    return (found.get("config"), found.get("model")) == (wanted, name)
