"""A run folder from Python: the steps of `dmle run`, all or one by one.

For example:

    run = Run("runs/mine", settings={"rules.limit": 3, "trace.samples": 2})
    run("trace", "profile")            # what each step says, by name; run() is the whole chain
    profile = run.load("profile.nc")

Settings come from the folder's `run.yaml`, then a configuration file, then `settings`; later ones
win, and all of them are checked at once. Nothing here prints or ends the process: what is wrong
with the settings, the folder, the rules or the model is a `DmleError`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from interp.app.steps import (
    CHAIN,
    COMMON,
    Context,
    Step,
    checked_steps,
    known_sections,
    load_steps,
    parse_settings,
)
from interp.config import ConfigError, read_yaml
from interp.results.provenance import versions
from interp.results.run_folder import RunFolder
from interp.rules.sources import RuleSet, dump_rules
from interp.settings.assignments import assign, merge
from interp.settings.plain_yaml import YamlError, load_yaml

if TYPE_CHECKING:
    import xarray as xr

    from interp.models.loading import LanguageModel
    from interp.planning.plan import Plan
    from interp.selection.layers import LayerSelection

Assignments = Mapping[str, Any] | Sequence[tuple[str, Any]]
"""Values by ``section.key``; a section may also be given as a whole. None is the default."""
SHORT_FLAGS = {
    "model.name": "--model",
    "rules.source": "--rules",
    "rules.limit": "--limit",
    "model.device": "--device",
}
"""Settings that have a flag in every command."""


class Run:
    """A run folder, the settings in force, and the steps that fill it.

    Results are kept in the folder. A step that was stopped goes on, one that is done is not done
    again, and one whose input was made with other settings refuses to run. The model is loaded
    once, when a step first needs it.

    Args:
        folder: The run folder; made when the first step runs.
        config: A YAML file of settings.
        settings: Further settings: ``{"trace.samples": 2}``, ``{"trace": {"samples": 2}}``, or
            pairs of key and value.
        overwrite: Replace results of other settings.
        progress: Makes progress bars, such as `tqdm.notebook.tqdm`; None shows none.
        tell: Called with a line when the run waits for another process.

    Attributes:
        context: The folder, the settings, the rules and the model, as steps get them.

    Raises:
        ConfigError: A setting is unknown or wrong, or the file cannot be read.
        RunError: The folder's record of settings is damaged or missing.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        config: Path | str | None = None,
        settings: Assignments = (),
        overwrite: bool = False,
        progress: Callable[..., Any] | None = tqdm,
        tell: Callable[[str], object] = lambda line: None,
    ) -> None:
        run, pairs = RunFolder(Path(folder)), flat(settings)
        file = None if config is None else Path(config)
        kept = {} if overwrite and not run.known else run.settings
        given = raw_settings(kept, config=file, settings=pairs)
        self.context = Context(
            run,
            parse_settings(load_steps(), given),
            overwrite,
            given,
            options(file, pairs),
            partial(tqdm, disable=True) if progress is None else progress,
        )
        self.context.lock.tell = tell

    @property
    def folder(self) -> Path:
        """Where the results are."""
        return self.context.run.path

    @property
    def rules(self) -> RuleSet:
        """The run's rules, with what was mended in them and what was refused."""
        return self.context.rules

    @property
    def model(self) -> "LanguageModel":
        """The run's model."""
        return self.context.model

    def __call__(self, *names: str) -> dict[str, str]:
        """Check everything, then run steps in order; what is done stays when a later one fails.

        Args:
            names: The steps; the whole chain (`CHAIN`) if none is named.

        Returns:
            What each step says, by its name.

        Raises:
            DmleError: A setting, the rules, the model or a result that a step reads is not what
                it needs.
            OSError: The system refuses something.
        """
        wanted = names or CHAIN
        self.check(*wanted)
        return {name: self.step(name) for name in wanted}

    def check(self, *names: str) -> None:
        """See that steps can be run, before any work: the folder can be written, the rules are
        read, and the model is loaded if a step needs it.

        Raises:
            DmleError: As when they are run.
        """
        steps = checked_steps(names)
        self.context.run.create()
        for step in steps:
            step.check(self.context)
        if any(step.needs_model for step in steps):
            _ = self.context.model

    def plan(self, *names: str, timed: bool = True) -> "Plan":
        """What steps will take on this machine: tasks, runs, time, memory and disk. No weight is
        loaded, and nothing is written.

        Args:
            names: The steps; the whole chain (`CHAIN`) if none is named.
            timed: Whether the machine is timed; the plan has no times otherwise.

        Raises:
            InputError: None of the steps has a plan.
            DmleError: Settings, rules or the model's configuration are not what a step needs.
        """
        from interp.app.plans import planned

        return planned(self.context, names or CHAIN, " ".join(names) or "run", timed=timed)

    def step(self, name: str) -> str:
        """Run one step, alone in the run folder unless it shares the work, and keep `run.yaml`
        and `rules.json` true; what it says.

        Raises:
            DmleError: See `__call__`.
        """
        (step,) = checked_steps([name])
        context, run = self.context, self.context.run
        run.create()
        resolved = {key: value.model_dump(mode="json") for key, value in context.sections.items()}
        with nullcontext() if step.shares else context.lock:
            step.fresh(context)
            with run.making(
                name, _settled(step), context.given, resolved, versions(), context.lock
            ):
                report = step.run(context)
                with context.lock:
                    dump_rules(context.rules.rules, run.path / "rules.json", sealed=True)
        return report

    def load(self, name: str) -> "xr.Dataset":
        """A result of the run, such as `profile.nc`.

        Raises:
            RunError: It is not there; names the command that makes it.
            DamagedError: The file is damaged.
        """
        from interp.app.freshness import MAKERS
        from interp.results import effects

        return effects.load(self.context.run.need(name, MAKERS.get(name, "run")))

    @property
    def selection(self) -> "LayerSelection":
        """The layers that the run selected.

        Raises:
            RunError: None are selected yet.
            DamagedError: The file is damaged.
        """
        from interp.selection.layers import LayerSelection

        return LayerSelection.load(self.context.run.need("selection.json", "select"))


def flat(settings: Assignments) -> list[tuple[str, Any]]:
    """Settings as pairs of ``section.key`` and value.

    >>> flat({"trace": {"samples": 2}, "rules.limit": 1})
    [('trace.samples', 2), ('rules.limit', 1)]

    Raises:
        ConfigError: A section is no mapping.
    """
    given = settings.items() if isinstance(settings, Mapping) else settings
    pairs: list[tuple[str, Any]] = []
    for key, value in list(given):
        if "." in key:
            pairs.append((key, value))
        elif isinstance(value, Mapping):
            pairs += [(f"{key}.{name}", each) for name, each in value.items()]
        else:
            raise ConfigError(f"section {key!r} holds {value!r}; a mapping of settings is needed")
    return pairs


def raw_settings(
    kept: Mapping[str, Any],
    *,
    config: Path | None = None,
    settings: Iterable[tuple[str, Any]] = (),
) -> dict[str, Any]:
    """Settings by section, unchecked: the run's own, then the file's, then single ones (see
    `interp.settings.assignments`).

    Raises:
        ConfigError: The file cannot be read, or a path leads nowhere.
    """
    known, raw = known_sections(load_steps()), {}
    merge(raw, kept, known)
    merge(raw, read_yaml(config) if config else {}, known)
    for key, value in settings:
        assign(raw, key, value, known)
    return raw


def options(config: Path | None, settings: Iterable[tuple[str, Any]]) -> list[tuple[str, str]]:
    """Flags that give a configuration file and settings on a command line."""
    flags = [] if config is None else [("--config", str(config))]
    for key, value in settings:
        if key in SHORT_FLAGS and value is not None:
            flags.append((SHORT_FLAGS[key], str(value)))
        else:
            flags.append(("--set", f"{key}={_as_yaml(value)}"))
    return flags


def _settled(step: Step) -> set[str]:
    """Sections that the results of a step are made with."""
    own = step.sections if step.settles is None else step.settles
    return {*(COMMON if step.needs_model else ()), *own}


def _as_yaml(value: Any) -> str:
    """A value as `--set` reads it back: plain where that is the same."""
    if isinstance(value, str):
        try:
            if load_yaml(value) == value:
                return value
        except YamlError:
            pass
    return json.dumps(value, default=str)
