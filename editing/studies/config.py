"""Settings of studies: comparisons, sweeps over layers, tuning."""

from itertools import pairwise
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from editing.names import known_editor
from interp.config import Resamples, Section, Seed
from interp.errors import InputError
from interp.results.scores import METRICS
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


class SequenceConfig(Section):
    """Many rules edited into one model (see `editing.studies.sequence`)."""

    neutral: ClassVar[frozenset[str]] = frozenset({"without_batch"})

    orders: tuple[Literal["sequence", "batch"], ...] = Field(
        default=("sequence", "batch"), min_length=1
    )
    """One rule after the other, each on the model as the earlier ones left it; all in one edit."""
    without_batch: tuple[str, ...] = ()
    """Arms that edit in sequence alone, as where all rules at once take too much memory."""
    checkpoints: tuple[int, ...] = Field(default=(1, 10, 25, 50, 100), min_length=1)
    """The model is scored after so many rules of a sequence, and after the last."""
    metrics: tuple[str, ...] = (
        "generality",
        "instance_portability",
        "rule_understanding_paraphrase",
        "locality",
    )
    """Scored on a sample of the rules edited so far; reliability is scored on all of them."""
    sample: int = Field(default=12, ge=1)
    """Rules of that sample, fewer where fewer are edited."""
    bystanders: int = Field(default=20, ge=0, le=10_000)
    """Rules of the embedded rulebook that are not edited, and whose answers are compared."""
    corpus: str = "embedded"
    """Plain text whose perplexity is measured: "embedded", or a text file with one paragraph per
    line. Paragraphs that the statistics of keys were measured on are left out."""
    text_tokens: int = Field(default=5000, ge=0, le=10**9)
    """Tokens of that text, from its end; 0 measures no perplexity."""
    seed: Seed = 0
    """Draws the order in which rules are edited, and the sample."""

    @field_validator("metrics")
    @classmethod
    def _are_metrics(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [name for name in value if name not in METRICS]:
            raise InputError(
                f"sequence.metrics names {', '.join(wrong)}; there are {', '.join(METRICS)}"
            )
        return value

    @field_validator("checkpoints")
    @classmethod
    def _ascend(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value[0] < 1 or any(a >= b for a, b in pairwise(value)):
            raise InputError(f"sequence.checkpoints are {list(value)}; they start at 1 and ascend")
        return value


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
