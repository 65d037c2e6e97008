"""What the commands of `dmle` share: their options, how they run steps, and what they print.

A command turns its flags into settings and calls a library function. What goes wrong is raised
from there; `interp.app.commands.main` alone makes it a line and an exit code.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import Parameter

from interp.app.run import Run
from interp.app.steps import CHAIN
from interp.config import ConfigError
from interp.results.printing import command, heading, say
from interp.rules.sources import counted
from interp.settings.assignments import read_assignment
from interp.vocabulary import CorruptedSpan

if TYPE_CHECKING:
    from interp.planning.plan import Plan

DEFAULT_RUN = Path("runs/default")
TEXT = Parameter(allow_leading_hyphen=True)
"""Flags whose value is text, which may begin with a hyphen: --prompt "-5 + 2 ="."""
LAYERS_HELP = (
    "Layers of dmle: auto (as selected), adaptive (as selected for each rule), a file of either, or"
    " 3,4,5/12,13,14 (formula and description/instances)."
)


class Stopped(KeyboardInterrupt):
    """Ctrl-C, with what to say about the work that was stopped."""


@Parameter(name="*")
@dataclass(frozen=True)
class ModelOptions:
    """Options of every command that takes settings."""

    config: Annotated[
        Path | None, Parameter(help="YAML file of settings, one mapping per section.")
    ] = None
    model: Annotated[
        str | None,
        Parameter(help="smollm2-135m, a Hugging Face folder, a GGUF file, or a hub name."),
    ] = None
    device: Annotated[str | None, Parameter(help="'auto', or a torch device.")] = None
    set: Annotated[
        tuple[str, ...],
        Parameter(
            help="Any setting: --set section.key=value (null: its default). May be repeated.",
            negative=(),
        ),
    ] = ()
    overwrite: Annotated[
        bool, Parameter(help="Replace results made with other settings.", negative=())
    ] = False

    def settings(self, flags: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """The settings of a command line: those of flags that are given, then those of `--set`.

        Raises:
            ConfigError: An assignment has not the form section.key=value.
        """
        flags = {"model.name": self.model, "model.device": self.device, **flags}
        given = [(key, value) for key, value in flags.items() if value is not None]
        return [*given, *map(read_assignment, self.set)]


@Parameter(name="*")
@dataclass(frozen=True)
class Common(ModelOptions):
    """Options that every step has."""

    run: Annotated[Path, Parameter(help="Run folder that every step reads and writes.")] = (
        DEFAULT_RUN
    )
    rules: Annotated[
        str | None, Parameter(help="'embedded', a rules.json, or a RuleEdit folder or zip.")
    ] = None
    limit: Annotated[int | None, Parameter(help="Use only the first INT rules of each split.")] = (
        None
    )
    dry_run: Annotated[
        bool,
        Parameter(help="Say what it will take, and do nothing: see `dmle plan`.", negative=()),
    ] = False
    json: Annotated[
        bool, Parameter(help="With --dry-run: the plan as JSON, on stdout.", negative=())
    ] = False

    def settings(self, flags: Mapping[str, Any]) -> list[tuple[str, Any]]:
        """See `ModelOptions.settings`."""
        own = {"rules.source": self.rules, "rules.limit": self.limit}
        return super().settings({**own, **flags})


@Parameter(name="*")
@dataclass(frozen=True)
class TraceOptions:
    """How rules or a prompt are traced."""

    samples: Annotated[int | None, Parameter(help="Noise samples per prompt.")] = None
    positions: Annotated[
        str | None, Parameter(help="'all', or token roles (commas), such as subject_last,last.")
    ] = None
    span: Annotated[
        str | None,
        TEXT,
        Parameter(
            help="What to corrupt: subject, subject+rule, numbers, content, or words (commas)."
        ),
    ] = None
    metrics: Annotated[
        str | None, Parameter(help="Scores, separated by commas: mean_log_prob, negative_kl, …")
    ] = None
    method: Annotated[
        str | None, Parameter(help="exact, attribution (gradients) or screen (both).")
    ] = None
    memory: Annotated[str | None, Parameter(help="Most memory of a batch, such as 4GiB.")] = None

    def settings(self) -> dict[str, Any]:
        """By ``section.key``; None where no flag is given."""
        whole = (None, *get_args(CorruptedSpan))
        return {
            "trace.samples": self.samples,
            "trace.positions": self.positions if self.positions == "all" else split(self.positions),
            "trace.span": self.span if self.span in whole else split(self.span),
            "trace.metrics": split(self.metrics),
            "trace.method": self.method,
            "trace.memory": self.memory,
        }


@Parameter(name="*")
@dataclass(frozen=True)
class ExecutorOptions:
    """Who does the work."""

    executor: Annotated[
        str | None,
        Parameter(help="serial (default), processes of this machine, or ray (a cluster)."),
    ] = None
    workers: Annotated[int | None, Parameter(help="How many workers; default: one a core.")] = None
    ray_address: Annotated[
        str | None, Parameter(help="A Ray cluster that runs, such as auto or 10.0.0.1:6379.")
    ] = None

    def settings(self) -> dict[str, Any]:
        """By ``section.key``; None where no flag is given."""
        return {
            "executor.kind": self.executor,
            "executor.workers": self.workers,
            "executor.address": self.ray_address,
        }


def split(text: str | None) -> list[str] | None:
    """Names separated by commas; None if none is given."""
    return None if text is None else text.split(",")


def execute(
    names: Sequence[str], common: Common | None, settings: Mapping[str, Any] | None = None
) -> Run:
    """Run steps for a command, and print what they say.

    Args:
        names: The steps, in order.
        common: The options that every step has.
        settings: Settings of the command's own flags, by ``section.key``; None is not given.

    Raises:
        DmleError: See `Run`.
        Stopped: Ctrl-C; says how to continue.
    """
    common, current = common or Common(), "set-up"
    try:
        pairs = common.settings(settings or {})
        run = Run(
            common.run,
            config=common.config,
            settings=pairs,
            overwrite=common.overwrite,
            tell=lambda line: say(line, style="yellow"),
        )
        if common.json and not common.dry_run:
            raise ConfigError("--json writes a plan: give --dry-run, too, or use `dmle plan`")
        if common.dry_run:
            say_plan(run.plan(*names), as_json=common.json)
            return run
        run.check(*names)
        for refusal in run.rules.refused:
            say(f"rule refused, {refusal.where}: {refusal.reason}")
        if run.rules.repairs:
            say(f"rules mended: {counted(run.rules.repairs)}")
        for current in names:
            heading(current)
            say(run.step(current))
    except KeyboardInterrupt as stop:
        raise Stopped(f"stopped in {current}; run the same command again to continue") from stop
    say(_next(names[-1], common.run), style="bold")
    return run


def say_plan(plan: "Plan", *, as_json: bool) -> None:
    """Print a plan: a table, or JSON."""
    text = json.dumps(plan.record(), indent=2) if as_json else plan.text()
    say(text, to_stdout=True)


def _next(name: str, folder: Path) -> str:
    if name not in CHAIN:
        return f"Done. Look at {folder}."
    if name == CHAIN[-1]:
        return f"Done. Open {folder / 'report.html'}; figures and tables are beside it."
    return f"Done. Next: {command('dmle', CHAIN[CHAIN.index(name) + 1], '--run', folder)}"
