"""Which forms share layers: forms whose profiles do not differ are merged, on plain arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from interp.results.intervals import mean_of_known
from interp.selection.pickers import ROUNDING
from interp.selection.support import signs


@dataclass(frozen=True)
class Comparison:
    """Two groups of forms compared: whether their profiles differ."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    correlation: float
    """Of the mean profiles, over layers; NaN without a rule in common, or for a flat profile."""
    p_value: float
    n_rules: int
    merged: bool


def normalised(effect: np.ndarray) -> np.ndarray:
    """Each rule's profile as shares of its own positive effect, shape (..., layer); NaN where it
    has none.
    """
    total = np.clip(effect, 0, None).sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, effect / total, np.nan)


def merge_forms(
    effect: np.ndarray, *, level: float, draws: int, seed: int
) -> tuple[list[tuple[int, ...]], list[Comparison]]:
    """Which forms have the same profile.

    Greedy: of the pairs of groups that may still be merged, the one with the most similar mean
    profiles (correlation) is compared first, and merged unless the profiles differ. The profile of
    a rule in a group is the mean over the group's forms of its normalised profiles, so strong rules
    and strong forms do not outweigh others.

    The test is paired: if two groups have the same profile, a rule's difference is as likely as its
    negative, and the statistic is the squared length of the mean difference. Rules that have both
    are compared.

    Args:
        effect: Shape (form, rule, layer); NaN where a form of a rule is not traceable.
        level: Level of the test.
        draws: Random flips of the test, where there are too many to try all.
        seed: Seed of these.

    Returns:
        Groups of form indices, ordered by their first form, and the comparisons in the order they
        were made.
    """
    shares = normalised(effect)
    groups: list[tuple[int, ...]] = [(form,) for form in range(len(effect))]
    differ: set[frozenset[int]] = set()
    made: list[Comparison] = []
    while True:
        pairs = [(a, b) for a, b in combinations(groups, 2) if frozenset(a + b) not in differ]
        if not pairs:
            return sorted(groups), made
        compared = [_compare(shares, a, b, draws=draws, seed=seed) for a, b in pairs]
        first = max(compared, key=lambda c: -np.inf if np.isnan(c[0]) else c[0])
        a, b = pairs[compared.index(first)]
        made.append(Comparison(a, b, *first, merged=first[1] > level))
        if made[-1].merged:
            groups = [group for group in groups if group not in (a, b)] + [tuple(sorted(a + b))]
        else:
            differ.add(frozenset(a + b))


def _compare(
    shares: np.ndarray, a: Sequence[int], b: Sequence[int], *, draws: int, seed: int
) -> tuple[float, float, int]:
    """Correlation of the mean profiles, p-value that they are the same, and rules in common."""
    first, second = (mean_of_known(shares[list(forms)], 0) for forms in (a, b))
    both = ~(np.isnan(first).any(1) | np.isnan(second).any(1))
    first, second = first[both], second[both]
    if not len(first):
        return float("nan"), 1.0, 0
    means = np.stack([first.mean(0), second.mean(0)])
    flat = (np.ptp(means, axis=1) == 0).any()
    correlation = float("nan") if flat else float(np.corrcoef(means)[0, 1])
    n_rules = len(first)
    length = ((signs(n_rules, draws, seed) @ (first - second) / n_rules) ** 2).sum(1)
    # No difference at all is not an extreme one.
    p_value = float((length >= length[0] * (1 - ROUNDING)).mean())
    return correlation, p_value, n_rules
