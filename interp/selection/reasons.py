"""Why layers were chosen, and what speaks against the choice, in plain sentences.

A reason has one idea a sentence: what the layers are (a sentence of the strategy), how stable the
choice is, and whether it is significant. If it is not, the sentence says what it takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from interp.config import SelectConfig
from interp.results.intervals import interval_of
from interp.selection.merging import Comparison
from interp.selection.published import PUBLISHED_BLOCK
from interp.selection.support import Choice, rules_needed

CONFIDENCE = 0.95
NEGLIGIBLE = 0.01
"""Share of the total effect below which an effect is taken for none: rounding can look
significant."""
DEFAULT_LEVEL = 0.05
EFFECTS = {
    "mlp": "MLP",
    "attn": "attention",
    "resid": "residual-stream",
    "mlp_single": "single-MLP",
    "attn_single": "single-attention",
    "resid_mlp_frozen": "residual-stream (MLPs frozen)",
    "resid_attn_frozen": "residual-stream (attention frozen)",
}
"""What an effect of a component is called."""


@dataclass(frozen=True)
class Finding:
    """What there is to say of chosen layers."""

    layers: tuple[int, ...]
    component: str
    unit: str
    """Of the numbers below."""
    score: float
    """Mean over rules and chosen layers."""
    lower: float
    upper: float
    outside: float | None
    """Mean over the candidates that were not chosen; None if there are none."""
    mean: float
    """Mean over all candidates."""
    share: float
    """Share of the positive effect that the layers hold."""
    candidates: int
    """How many there were to choose from."""
    config: SelectConfig

    @classmethod
    def of(
        cls, choice: Choice, effect: np.ndarray, config: SelectConfig, *, first: int, unit: str
    ) -> "Finding":
        """What there is to say of a choice.

        Args:
            choice: The choice.
            effect: What was picked from, shape (rule, candidate).
            config: The settings.
            first: Layer of the first candidate.
            unit: Unit of the effects.
        """
        mean, picked = effect.mean(0), list(choice.layers)
        positive = np.clip(mean, 0, None)
        outside = np.delete(mean, picked)
        lower, upper = interval_of(choice.draws)
        return cls(
            layers=tuple(first + layer for layer in picked),
            component=config.component,
            unit=unit,
            score=choice.score,
            lower=lower,
            upper=upper,
            outside=float(outside.mean()) if len(outside) else None,
            mean=float(mean.mean()),
            share=float(positive[picked].sum() / positive.sum()) if positive.any() else 0.0,
            candidates=len(mean),
            config=config,
        )

    @property
    def names(self) -> str:
        """The layers in words, at the start of a sentence."""
        return layer_names(self.layers).capitalize()

    @property
    def effect(self) -> str:
        """The effect in words."""
        return f"mean {EFFECTS.get(self.component, self.component)} effect"

    @property
    def measured(self) -> str:
        """The score with its unit and interval."""
        return measured(self.score, self.lower, self.upper, self.unit)


def measured(score: float, lower: float, upper: float, unit: str = "") -> str:
    """A mean with its unit and interval.

    >>> measured(0.375, 0.315, 0.435, "nats per answer token"), measured(0.1, -0.2, 0.4)
    ('0.375 nats per token, 95 % CI 0.315–0.435', '0.100, 95 % CI −0.200 to 0.400')
    """
    of = f" {unit.replace('answer token', 'token')}" if unit else ""
    if lower == upper:  # one rule resamples to itself
        return f"{number(score)}{of}"
    to = " to " if lower < 0 else "–"
    return f"{number(score)}{of}, {percent(CONFIDENCE)} CI {number(lower)}{to}{number(upper)}"


def layer_names(layers: Sequence[int]) -> str:
    """Layers in words.

    >>> layer_names([3, 4, 5]), layer_names([7]), layer_names([1, 2, 9])
    ('layers 3–5', 'layer 7', 'layers 1–2, 9')
    """
    names = [str(first) if first == last else f"{first}–{last}" for first, last in runs(layers)]
    return f"layer{'s' if len(set(layers)) != 1 else ''} {', '.join(names) or 'none'}"


def runs(layers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last layer of each unbroken run.

    >>> runs([3, 4, 5, 9])
    [(3, 5), (9, 9)]
    """
    ordered = sorted(set(layers))
    breaks = [(a, b) for a, b in pairwise(ordered) if b != a + 1]
    firsts, lasts = [b for _, b in breaks], [a for a, _ in breaks]
    return list(zip(ordered[:1] + firsts, lasts + ordered[-1:], strict=True))


def highest_window(finding: Finding, measure: str = "") -> str:
    """The first sentence of a choice of windows: how high the effect is inside and outside, or the
    measure of these words.
    """
    width = len(finding.layers)
    one = width == 1
    kind = "single layer" if one else f"window of {width} layers"
    beside = "" if finding.outside is None else f" The other layers have {number(finding.outside)}."
    return (
        f"{finding.names} {'is' if one else 'are'} the {kind} with the highest"
        f" {measure or finding.effect} ({finding.measured}).{beside}"
    )


def own_window(finding: Finding, *, n_rules: int, kept: float, source: str) -> str:
    """The first sentences of a choice for one rule.

    Args:
        finding: The rule's.
        n_rules: Rules in the mean that the rule's profile was moved towards.
        kept: Share of the rule's deviation from that mean that is believed.
        source: What of the rule's profile says so.
    """
    one = len(finding.layers) == 1
    return (
        f"{finding.names} {'has' if one else 'have'} the highest {finding.effect} of this rule"
        f" ({finding.measured}). Of its deviation from the mean over {rules_in_words(n_rules)},"
        f" {percent(kept)} is kept. The rest is taken for noise, by its {source}."
    )


def judged(
    against: Sequence[str],
    stability: float,
    n_rules: int,
    config: SelectConfig,
    *,
    p_value: float,
) -> str:
    """How stable and how significant a choice is, and what else speaks against it."""
    # Below the least stability that is asked for, the objection says how stable it is.
    compared = n_rules > 1 and stability >= config.min_stability
    stable = f"Stability {stability:.2f}." if compared else ""
    tested = "" if p_value > config.level else significance(p_value, n_rules, config)
    return sentences(stable, tested, *against)


def bounds_in_words(first: int, last: int) -> str:
    """Which layers could be chosen."""
    return f"Only {layer_names(range(first, last + 1))} could be chosen."


def significance(p_value: float, n_rules: int, config: SelectConfig) -> str:
    """Whether a choice is stronger than by chance, and how many rules it takes if it cannot be.

    >>> significance(0.125, 4, SelectConfig())
    'Not significant: p = 0.125 with 4 rules (at least 5 needed).'
    >>> significance(0.03125, 5, SelectConfig())
    'Significant: p = 0.031 with 5 rules.'
    """
    shown = "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
    said = f"{shown} with {rules_in_words(n_rules)}"
    if config.level >= 1:
        return f"Not tested (select.level = 1): {said}."
    level = "" if config.level == DEFAULT_LEVEL else f" at level {config.level:g}"
    if p_value <= config.level:
        return f"Significant{level}: {said}."
    needed = rules_needed(config.level, draws=config.bootstrap, seed=config.seed)
    if needed is None:
        return f"Not significant{level}: {said} (more draws needed: raise select.bootstrap)."
    few = f" (at least {needed} needed)" if needed > n_rules else ""
    return f"Not significant{level}: {said}{few}."


def objections(
    *,
    n_rules: int,
    stability: float,
    config: SelectConfig,
    min_rules: int = 2,
    lower: float | None = None,
    floor: float = 0.0,
    p_value: float | None = None,
) -> tuple[str, ...]:
    """What speaks against a choice, a sentence each.

    Args:
        n_rules: Rules that it was made from.
        stability: Its stability.
        config: Stability and level that are asked for.
        min_rules: Rules that the strategy asks for.
        lower: Lower end of the interval, if it must lie above something.
        floor: What it must lie above: 0, or a share of the total effect.
        p_value: How often the choice would be as strong by chance, if that was tested.
    """
    against = []
    if n_rules < min_rules:
        against.append(
            "There is only one rule."
            if n_rules == 1
            else f"There are only {n_rules} rules, and {min_rules} are needed."
        )
    if lower is not None and not lower > floor:
        none = f"{percent(NEGLIGIBLE)} of the total effect" if lower > 0 else "zero"
        against.append(f"The interval reaches {none}.")
    if stability < config.min_stability:
        against.append(
            f"Stability {stability:.2f} is below select.min_stability = {config.min_stability:g}."
        )
    if p_value is not None and p_value > config.level:
        against.append(significance(p_value, n_rules, config))
    return tuple(against)


def fallback_in_words(n_layers: int, chosen: str) -> str:
    """Why the published layers are taken.

    Args:
        n_layers: Depth of the model.
        chosen: The reason of the choice that is not supported.
    """
    first, last = PUBLISHED_BLOCK[0], PUBLISHED_BLOCK[-1]
    return (
        f"These are the published layers {first}–{last} of models with 28 to 32 blocks, scaled to"
        f" {n_layers} blocks (select.fallback). The choice from the profile is not supported:"
        f" {chosen}"
    )


def grouping_in_words(first: Sequence[str], second: Sequence[str], made: Comparison) -> str:
    """Why two groups of forms share layers, or do not."""
    names = " and ".join("+".join(forms) for forms in (first, second))
    alike = f"{made.correlation:.2f}".replace("-", "−")
    verdict = (
        "share their layers, since their profiles do not differ"
        if made.merged
        else "have layers of their own, since their profiles differ"
    )
    shown = "p < 0.001" if made.p_value < 0.001 else f"p = {made.p_value:.3f}"
    return (
        f"The forms {names} {verdict} ({shown}, correlation {alike},"
        f" {rules_in_words(made.n_rules)})."
    )


def sentences(*parts: str) -> str:
    """Sentences as one text; empty ones are left out."""
    return " ".join(part for part in parts if part)


def rules_in_words(n: int) -> str:
    """A number of rules."""
    return f"{n} rule{'' if n == 1 else 's'}"


def percent(share: float) -> str:
    """A share of a sentence."""
    return f"{100 * share:.0f} %"


def number(value: float) -> str:
    """A number of a sentence, with three decimals."""
    return f"{value:.3f}".replace("-", "−") if np.isfinite(value) else "not known"
