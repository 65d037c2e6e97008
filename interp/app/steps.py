"""Steps that fill a run folder: what each reads, does and says. Packages register theirs as entry
points `dmle.steps`.

A step declares the settings it reads (by section) and a function from a `Context` to a short
report. Nothing here loads a model: `Context.model` does, once, when a step first asks for it.
`interp.app.run` runs steps; the commands `dmle STEP` are entry points `dmle.commands`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from interp.config import (
    ConfigError,
    ExecutorConfig,
    ModelConfig,
    RulesConfig,
    Section,
    nearest,
    parse_section,
)
from interp.errors import InputError
from interp.results.run_folder import RunFolder, RunLock
from interp.rules.sources import Rule, RuleSet, load_rules
from interp.vocabulary import Split

if TYPE_CHECKING:
    from interp.models.loading import LanguageModel
    from interp.models.outline import Outline

S = TypeVar("S", bound=Section)
COMMON: dict[str, type[Section]] = {"model": ModelConfig, "rules": RulesConfig}
EXECUTOR: dict[str, type[Section]] = {"executor": ExecutorConfig}
"""What a step reads whose tasks may run elsewhere."""
Planner = Callable[..., Sequence[Any]]
"""Says what a step will do (`interp.planning.plan.Work`): a function of a context with the model's
outline, of `interp.planning.plan.Costs`, and of what takes a line about what was taken for granted.
"""
CHAIN = ("trace", "profile", "select", "edit", "evaluate", "figures", "report")


@dataclass
class Context:
    """What a step works with: the run folder, the settings, and lazily the rules and the model."""

    run: RunFolder
    sections: Mapping[str, Section]
    overwrite: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    """Settings that were given for this run, by section; all others are defaults."""
    options: Sequence[tuple[str, str]] = ()
    """Flags that give these settings, for the command lines that errors advise."""
    progress: Callable[..., Any] = tqdm
    """Makes a progress bar, with the arguments and methods of `tqdm.tqdm`."""

    def settings(self, section: type[S]) -> S:
        """The checked settings of a section, by its class."""
        for value in self.sections.values():
            if isinstance(value, section):
                return value
        raise KeyError(section.__name__)

    @cached_property
    def rules(self) -> RuleSet:
        """The run's rules; `rules.limit` counts within each split."""
        config = self.settings(RulesConfig)
        source = load_rules(config.source, ids=config.ids, split=config.split)
        seen: Counter[str | None] = Counter()
        kept = []
        for rule in source.rules:
            seen[rule.split] += 1
            if config.limit is None or seen[rule.split] <= config.limit:
                kept.append(rule)
        return replace(source, rules=tuple(kept))

    def rules_of(self, splits: Sequence[Split], setting: str) -> list[Rule]:
        """Rules of some splits, and all rules without one.

        Raises:
            ValueError: There is none; `setting` is named as what to change.
        """
        rules = [rule for rule in self.rules.rules if rule.split is None or rule.split in splits]
        if not rules:
            have = sorted({str(rule.split) for rule in self.rules.rules})
            raise InputError(
                f"no rule left: {setting} is {', '.join(splits)}, but the run's rules are of split"
                f" {', '.join(have)}"
            )
        return rules

    @cached_property
    def model(self) -> "LanguageModel":
        """The run's model, loaded on first use."""
        from interp.models.loading import load  # takes seconds to import

        config = self.settings(ModelConfig)
        return load(config.name, device=config.device, dtype=config.dtype)

    def outlined(self, outline: "Outline") -> "Context":
        """The same with a model's outline in place of the model, for plans."""
        other = replace(self)
        other.__dict__["model"] = outline
        return other

    @cached_property
    def lock(self) -> RunLock:
        """Held by whoever writes results of the run; may be entered again by who holds it."""
        return self.run.lock()


@dataclass(frozen=True)
class Step:
    """One command of the chain."""

    name: str
    run: Callable[[Context], str]
    """Does the work and returns a few lines that say what was done and where it is."""
    sections: Mapping[str, type[Section]] = field(default_factory=dict)
    needs_model: bool = False
    check: Callable[[Context], object] = lambda context: None
    """Raises if the settings and rules leave the step nothing to do; called before any work."""
    fresh: Callable[[Context], object] = lambda context: None
    """Raises if what the step reads was made with other settings, rules or model; called right
    before it runs."""
    settles: tuple[str, ...] | None = None
    """Sections that its results were made with, all that it reads if not given: `run.yaml` keeps
    them as they were then, until other results are made."""
    shares: bool = False
    """Several processes may run it in one run folder at once; it takes the run's lock itself
    where it has to."""
    worker: Callable[[Context], Callable[[str], Any]] | None = None
    """Gets ready for the step's tasks in a process of its own, and returns what runs one of them
    by its name (`interp.app.workers`)."""
    plan: Planner | None = None
    """Says what it will do, without weights; None: it takes seconds."""


def load_steps() -> dict[str, Step]:
    """All registered steps, in the order of the chain."""
    points = {point.name: point for point in entry_points(group="dmle.steps")}
    return {name: points[name].load() for name in sorted(points, key=_place)}


def known_sections(steps: Mapping[str, Step]) -> dict[str, type[Section]]:
    """All sections of a configuration by name."""
    return {
        **COMMON,
        **{name: cls for step in steps.values() for name, cls in step.sections.items()},
    }


def parse_settings(steps: Mapping[str, Step], raw: Mapping[str, Any]) -> dict[str, Section]:
    """Check a whole configuration; sections that are not given take their defaults.

    Raises:
        ConfigError: A section or setting is unknown or wrong.
    """
    known = known_sections(steps)
    for name in raw:
        if name not in known:
            raise ConfigError(f"unknown section {name!r}: {nearest(name, list(known))}")
    return {name: parse_section(name, cls, raw.get(name)) for name, cls in known.items()}


def checked_steps(names: Sequence[str]) -> list[Step]:
    """Registered steps by name.

    Raises:
        InputError: There is no such step.
    """
    steps = load_steps()
    if wrong := [name for name in names if name not in steps]:
        raise InputError(f"there is no step {wrong[0]!r}: {nearest(wrong[0], list(steps))}")
    return [steps[name] for name in names]


def _place(name: str) -> tuple[int, str]:
    return (CHAIN.index(name) if name in CHAIN else len(CHAIN), name)
