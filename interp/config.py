"""Settings of the `interp` steps, checked before any work starts.

A configuration file is YAML with one mapping per section; every setting has a default. Sections of
other packages are registered beside these by their steps (see `interp.app.steps`).
"""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from interp.errors import InputError
from interp.rules.scripts import needed
from interp.settings.plain_yaml import YamlError, read_yaml_file
from interp.settings.registered import Registered
from interp.settings.section import MAX_INTEGER, ConfigError, Section, nearest, parse_section
from interp.settings.sizes import parse_size
from interp.vocabulary import (
    RANKINGS,
    Component,
    CorruptedSpan,
    Direction,
    Lookup,
    Ranking,
    Role,
    Split,
)

__all__ = [
    "AtlasConfig",
    "ConfigError",
    "ExecutorConfig",
    "FaithfulnessConfig",
    "ModelConfig",
    "ProfileConfig",
    "RulesConfig",
    "Section",
    "SelectConfig",
    "TraceConfig",
    "nearest",
    "parse_section",
    "read_yaml",
]

Seed = Annotated[int, Field(ge=0, le=MAX_INTEGER)]
"""What every generator of random numbers takes, and every file holds."""
Resamples = Annotated[int, Field(le=100_000)]
"""Draws of a bootstrap or a test: each is a row of an array in memory."""

NOISE_RULE = r"([esut]?\d+(\.\d+)?|m)"
"""How noise rules are written (see `interp.tracing.corruption`)."""


def _metrics() -> dict[str, str]:
    from interp.tracing.metrics import METRICS  # which imports torch

    first_lines = {
        name: (each.function.__doc__ or "").split(".")[0] for name, each in METRICS.items()
    }
    return {name: " ".join(line.split()) for name, line in first_lines.items()}


def _contrasts() -> set[str]:
    """Metrics that compare with the answer to a counterfactual prompt."""
    from interp.tracing.metrics import METRICS

    return {name for name, each in METRICS.items() if each.needs_alternative}


def _strategies() -> dict[str, str]:
    from interp.selection import strategies

    return {strategy.name: strategy.summary for strategy in strategies.every()}


METRIC = "mean_log_prob"
MetricName = Annotated[str, Registered("metric", _metrics, default=METRIC)]
StrategyName = Annotated[str, Registered("strategy", _strategies, default="changepoint")]


class ModelConfig(Section):
    """Which model, where, and in which number format."""

    neutral: ClassVar[frozenset[str]] = frozenset({"device"})

    name: str = "smollm2-135m"
    """"smollm2-135m" (embedded), a Hugging Face folder, a GGUF file, or a hub name such as
    "meta-llama/Meta-Llama-3-8B"."""
    device: str = "auto"
    dtype: str = "float32"


class ExecutorConfig(Section):
    """Who runs the tasks of a step: prompts that are traced, rules that are edited. Results do not
    depend on it.
    """

    neutral: ClassVar[frozenset[str]] = frozenset({"kind", "workers", "address"})

    kind: Literal["serial", "processes", "ray"] = "serial"
    """`serial`: this process; `processes`: worker processes of this machine; `ray`: a Ray
    cluster."""
    workers: int | None = Field(default=None, ge=1, le=10_000)
    """Default: one a core, or one an accelerator; on a Ray cluster with an address, one a core of
    the cluster."""
    address: str | None = None
    """Of a Ray cluster that runs already, such as auto or 10.0.0.1:6379. Default: one of this
    machine is started."""

    @model_validator(mode="after")
    def _belongs(self) -> "ExecutorConfig":
        if self.kind == "serial" and (self.workers or self.address):
            raise InputError(
                "executor.workers and executor.address are of workers, and executor.kind is serial:"
                " give --executor processes, or --executor ray"
            )
        if self.kind == "processes" and self.address:
            raise InputError(
                "executor.address is of a Ray cluster, and executor.kind is processes: give"
                " --executor ray"
            )
        return self


class RulesConfig(Section):
    """Which rules."""

    # Results hold fingerprints of the rules that they are of.
    neutral: ClassVar[frozenset[str]] = frozenset({"source", "limit", "ids", "split"})

    source: str = "embedded"
    """"embedded", a rules.json, or a RuleEdit folder or zip."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rules, this many of each split."""
    ids: tuple[str, ...] | None = None
    split: Split | None = None


class TraceConfig(Section):
    """Causal tracing. Source of the defaults: ROME, except where said. Sized for a CPU."""

    neutral: ClassVar[frozenset[str]] = frozenset({"splits", "memory", "batch_size", "route"})

    splits: tuple[Split, ...] = ("train", "validation")
    """Splits that are traced, among rules that have a split: layers are not chosen on rules that
    test edits."""
    components: tuple[Component, ...] = ("resid", "mlp", "attn")
    positions: Literal["all"] | tuple[Role, ...] = (
        "subject_first",
        "subject_middle",
        "subject_last",
        "rule_word",
        "last",
    )
    """Tokens with these roles, or "all" from the first corrupted one on (several times the
    cost)."""
    window: int | None = Field(default=None, ge=1)
    """Blocks restored together for mlp and attn. Default: ROME's 10 of 48, scaled to the model's
    depth."""
    corruption: Literal["noise", "counterfactual"] = "noise"
    """Noise on embeddings, or the same wording about another rule (a twin of the rule, with as
    many tokens)."""
    direction: Direction = "denoise"
    """`denoise`: clean states into the corrupted run; `noise`: corrupted states into the clean
    run."""
    span: CorruptedSpan | tuple[str, ...] = "subject+rule"
    """Which tokens noise corrupts: subject, subject+rule, numbers, content, or a list of words of
    the prompt. The subject alone (ROME) hardly moves a rule, which its rule words name too."""
    noise: str = Field(default="e3", pattern=rf"^{NOISE_RULE}$")
    """Noise rule: e3 (3 standard deviations of all embeddings), s3 (of the subjects'), 0.1, m,
    t5 or u2."""
    noise_replaces: bool = False
    """Noise takes the place of the embedding instead of being added."""
    samples: int = Field(default=4, ge=2, le=10_000)
    """Noise samples. ROME uses 10; the cost is proportional. A counterfactual prompt is one
    sample."""
    seed: Seed = 0
    answer: Literal["auto", "truth", "greedy"] = "auto"
    """What is scored: the rule's true answer, the model's own greedy answer, or the former where
    there is one."""
    answer_tokens: int = Field(default=8, ge=1, le=4096)
    """Length of a greedy answer."""
    metrics: tuple[MetricName, ...] = Field(default=(METRIC,), min_length=1)
    """Scores of one sweep; profiles read the first, if they are not told otherwise."""
    method: Literal["exact", "attribution", "screen"] = "exact"
    """`attribution`: the map from gradients; `screen`: gradients first, then exact where it
    matters."""
    gradient_steps: int = Field(default=1, ge=1, le=10_000)
    """Integrated-gradient steps of attribution and screen."""
    screen_share: float = Field(default=0.3, gt=0, le=1)
    """Screen: share of the sites that is run exactly."""
    tolerance: float = Field(default=0.01, gt=0)
    """Screen: standard error of a site up to which a few noise samples are enough, as a share of
    the total effect."""
    memory: str | None = None
    """Memory that a batch may take, such as 4GiB. Default: half of an accelerator's, or what is
    best on a CPU."""
    batch_size: int | None = Field(default=None, ge=1, le=1_000_000)
    """Rows run together, whatever the memory; changes memory and speed only."""
    route: Literal["auto", "fast", "generic"] = "auto"
    """How sites are run (see `interp.tracing.patching`); the numbers are the same."""

    @field_validator("noise", mode="before")
    @classmethod
    def _number_is_rule(cls, value: Any) -> Any:
        # YAML reads a bare standard deviation as a number, and one with an exponent as text.
        if isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?[eE]-?\d{1,3}", value):
            value = float(value)
        if isinstance(value, bool):
            return value
        return f"{value:.12f}".rstrip("0").rstrip(".") if isinstance(value, int | float) else value

    @field_validator("span")
    @classmethod
    def _phrases(cls, value: Any) -> Any:
        if isinstance(value, str):
            return value
        return tuple(needed(phrase, "a phrase of trace.span").strip() for phrase in value)

    @field_validator("memory")
    @classmethod
    def _is_size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_size(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> "TraceConfig":
        if len(set(self.metrics)) < len(self.metrics) or len(set(self.components)) < len(
            self.components
        ):
            raise InputError("metrics and components may each be named once")
        others = set(self.metrics) - {METRIC}
        if self.corruption == "noise" and others and (wrong := others & _contrasts()):
            raise InputError(
                f"metrics {sorted(wrong)} compare with the answer to a counterfactual prompt; set"
                " corruption: counterfactual (--set trace.corruption=counterfactual), or choose"
                " other metrics"
            )
        return self


class FaithfulnessConfig(Section):
    """What a map's best sites bring back together. Corruption, samples, positions and the first
    metric are those of `trace`.
    """

    components: tuple[Component, ...] = Field(default=("resid", "mlp", "attn"), min_length=1)
    """Ranked and restored each by itself; none of the frozen ones, which keep states of the
    corrupted run."""
    methods: tuple[Ranking, ...] = Field(default=RANKINGS, min_length=1)
    """What sites are ranked by; each ranking is evaluated by real runs."""
    shares: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    """Shares of the sites that are restored together, ascending; none and all are always run."""
    seeds: tuple[Seed, ...] = Field(default=(0, 1, 2), min_length=1)
    """Of the random rankings, whose mean is taken."""

    @model_validator(mode="after")
    def _fits(self) -> "FaithfulnessConfig":
        for name in ("components", "methods", "seeds"):
            if len(set(values := getattr(self, name))) < len(values):
                raise InputError(f"{name} may each be named once")
        if list(self.shares) != sorted(set(self.shares)):
            raise InputError(f"shares are {self.shares}; give ascending ones")
        if frozen := [name for name in self.components if name.endswith("_frozen")]:
            raise InputError(
                f"components {frozen} keep states of the corrupted run behind each site, which"
                " several sites at once cannot; choose others"
            )
        return self


class ProfileConfig(Section):
    """Layer profiles: averages over rules with bootstrap intervals."""

    metric: MetricName | None = None
    """Which of the traced metrics; the first, if none is named."""
    lookup_roles: tuple[Role, ...] = ("subject_last", "rule_word")
    """Roles averaged into the profile that the selection reads: where editors look a rule up."""
    bootstrap: Resamples = Field(default=1000, ge=10)
    confidence: float = Field(default=0.95, gt=0, lt=1)
    seed: Seed = 0


class AtlasConfig(Section):
    """Which entry of the atlas of models is used in place of a trace of one's own."""

    # The profile of a run holds the weights that it is of.
    neutral: ClassVar[frozenset[str]] = frozenset({"entry"})

    entry: str = Field(default="auto", min_length=1)
    """auto (the entry of the run's model), a name that `dmle atlas` lists, or the folder of an
    entry."""


class SelectConfig(Section):
    """Which layers to edit (see `interp.selection.select`)."""

    strategy: StrategyName = "changepoint"
    """How layers are chosen: a file of `interp/selection/strategies`."""
    editor: str = Field(default="dmle", min_length=1)
    """Strategy `auto`: the editor that the layers are for; the solver, where DMLE has one that is
    no closed form."""
    lookup: Lookup = "subject_last"
    """Strategy `auto`: the token at which that editor looks rules up (its edit.lookup)."""
    component: Component = "mlp"
    """The place that editors write is the MLP."""
    width: int = Field(default=3, ge=1)
    """Layers per group of forms (DMLE's example has 3) of window, groups, adaptive, combined, reach
    and lga, and of auto where it takes one of these."""
    share: float = Field(default=0.5, gt=0, le=1)
    """Share of the positive mean effect that `mass` covers."""
    min_width: int = Field(default=1, ge=1)
    """Fewest layers of mass and changepoint."""
    max_width: int | None = Field(default=None, ge=1)
    """Most layers of mass and changepoint; as many as there are, if not given."""
    first: int = Field(default=0, ge=0)
    """First layer that may be chosen."""
    last: int | None = Field(default=None, ge=0)
    """Last layer that may be chosen; the model's last, if not given."""
    identity_blocks: int = Field(default=1, ge=0)
    """Effects that restore one of the first blocks are left out: there the clean value brings the
    corrupted word itself back, which is not where the rule is kept."""
    groups: tuple[tuple[Literal["formula", "description", "instance"], ...], ...] = (
        ("formula", "description"),
        ("instance",),
    )
    """Forms that share layers: the paper's grouping. The strategy `groups` takes the forms, and
    groups them anew."""
    level: float = Field(default=0.05, gt=0, le=1)
    """Level of the tests: that there is an effect (1 leaves this one out), and that forms
    differ."""
    min_stability: float = Field(default=0.0, ge=0, le=1)
    """A choice that is less stable is not supported; 0 leaves this out."""
    fallback: Literal["none", "published"] = "none"
    """Layers of a group that the profile does not support: still the strategy's best guess, or the
    published 4-8 of 28 to 32 blocks, scaled to the depth, whatever the bounds. They are marked as
    not supported either way."""
    bootstrap: Resamples = Field(default=1000, ge=10)
    seed: Seed = 0

    @model_validator(mode="after")
    def _ordered(self) -> "SelectConfig":
        for low, high in (("min_width", "max_width"), ("first", "last")):
            if (bound := getattr(self, high)) is not None and getattr(self, low) > bound:
                raise InputError(f"{low} is {getattr(self, low)}, above {high} = {bound}; lower it")
        return self


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file, as `interp.settings.plain_yaml` reads it.

    Raises:
        ConfigError: The file is missing, not YAML, or not a mapping.
    """
    try:
        content = read_yaml_file(path)
    except (OSError, YamlError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}; a mapping of sections is needed")
    return {str(name): values for name, values in (content or {}).items()}
