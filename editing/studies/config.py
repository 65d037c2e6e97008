"""Settings of studies: comparisons, sweeps over layers, tuning."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from editing.names import known_editor
from interp.config import Resamples, Section, Seed
from interp.errors import InputError
from interp.vocabulary import RuleForm, Split


class CompareConfig(Section):
    """A comparison of arms (see `editing.studies.comparison`)."""

    neutral: ClassVar[frozenset[str]] = frozenset({"reference", "resamples", "confidence"})

    seeds: tuple[Seed, ...] = Field(default=(0,), min_length=1)
    """Each rule is edited once with each; scores are means over them."""
    reference: str | None = None
    """Arm that the others are compared with in pairs; the first, if none is named."""
    few: tuple[str, ...] = ()
    """Arms that are run on the first `few_rules` rules only."""
    few_rules: int = Field(default=6, ge=1)
    resamples: Resamples = Field(default=10_000, ge=100)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    bystanders: int = Field(default=2, ge=0, le=10_000)
    """Other rules whose answers are compared before and after each edit; 0 leaves side effects
    and fluency out."""

    @model_validator(mode="after")
    def _seeds_differ(self) -> "CompareConfig":
        if len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"compare.seeds names a seed twice: {list(self.seeds)}")
        return self


class SweepConfig(Section):
    """Edits at every window of layers, one group of forms at a time (see
    `editing.studies.layer_sweep`).
    """

    neutral: ClassVar[frozenset[str]] = frozenset({"splits", "limit", "resamples", "confidence"})

    width: int = Field(default=3, ge=1)
    """Layers of a window."""
    step: int = Field(default=2, ge=1)
    """Layers from one window to the next."""
    groups: tuple[tuple[RuleForm, ...], ...] = Field(
        default=(("formula", "description"), ("instance",)), min_length=1
    )
    """Forms that are edited together."""
    splits: tuple[Split, ...] = ("validation",)
    """Splits that are edited, among rules with a split: neither those that select layers nor
    those that test edits."""
    limit: int | None = Field(default=8, ge=1)
    """Edit only the first rules."""
    mode: Literal["token_accuracy", "exact"] = "token_accuracy"
    metrics: tuple[str, ...] = Field(
        default=("reliability", "generality", "instance_portability", "locality"), min_length=1
    )
    """The success of an edit is the mean of these."""
    resamples: Resamples = Field(default=10_000, ge=100)
    confidence: float = Field(default=0.95, gt=0, lt=1)


class TuneConfig(Section):
    """One editor's settings, tried on training rules."""

    editor: str = "dmle"
    grid: dict[str, tuple[Any, ...]] | tuple[dict[str, tuple[Any, ...]], ...] = Field(
        default_factory=lambda: {"ridge": (0.03, 0.1, 0.3, 1.0)}, min_length=1
    )
    """Settings of the editor, each with the values to try; every combination is tried. Or a list
    of such grids."""
    mode: Literal["token_accuracy", "exact", "greedy_exact", "greedy_prefix"] = "token_accuracy"
    metrics: tuple[str, ...] = (
        "reliability",
        "generality",
        "instance_portability",
        "rule_understanding_paraphrase",
        "locality",
    )
    """The setting with the highest mean of these is chosen."""
    floors: dict[str, float] = Field(default_factory=dict)
    """What a setting must reach to be chosen, such as `{locality: 0.9}`: least mean of some of
    `metrics`. If none reaches them all, the one that lacks least in sum is chosen, and `tuned.yaml`
    says so."""

    @property
    def grids(self) -> tuple[dict[str, tuple[Any, ...]], ...]:
        """The grids, one or several."""
        return (self.grid,) if isinstance(self.grid, dict) else self.grid

    @field_validator("editor")
    @classmethod
    def _is_editor(cls, value: str) -> str:
        return known_editor(value)

    @model_validator(mode="after")
    def _values(self) -> "TuneConfig":
        for name, values in (item for grid in self.grids for item in grid.items()):
            if not values:
                raise InputError(f"tune.grid.{name} has no values")
        if wrong := [name for name in self.floors if name not in self.metrics]:
            raise InputError(
                f"tune.floors names {', '.join(wrong)}; tune.metrics are {', '.join(self.metrics)}"
            )
        return self
