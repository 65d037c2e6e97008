"""How layers are picked from a profile: the array core of `interp.selection.select`, on plain
arrays.

A picker reads mean profiles, shape (profile, layer), and gives for each the picked layers, a mask
of the same shape, and the strength of the pick, shape (profile,): the statistic that the pick
maximises. Everything else (bootstrap, test, interval) is the same for every picker: `choose` picks
from the mean over rules, and from halves of the rules.

============  ===========================================  =========================================
picker        picks                                        strength
============  ===========================================  =========================================
`window_of`   the contiguous window with the largest mean  that mean
`mass_of`     the fewest layers that hold a share of the   the whole positive effect
              positive effect, contiguous or not
`segment_of`  the segment between two change points        square root of the fall in squared error
============  ===========================================  =========================================

Units: effects are in the profile's unit; strengths too, but for `segment_of`, where they scale with
√layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Literal

import numpy as np

from interp.selection.profiles import resample_counts
from interp.tracing.windows import window

Picker = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
Agreement = Literal["same", "overlap"]
EXHAUSTIVE_RULES = 10
"""Up to this many rules every choice of signs is tried: 1024 of them."""
ROUNDING = 1e-9
PUBLISHED_BLOCK, PUBLISHED_DEPTH = (4, 5, 6, 7, 8), 30
"""Layers of MEMIT and AlphaEdit for LLaMA-3-8B and Qwen2.5-7B (EasyEdit), which have 28 to 32
blocks."""


@dataclass(frozen=True)
class Choice:
    """Picked layers with the evidence over rules."""

    layers: tuple[int, ...]
    """Indices along the profile's layer axis."""
    score: float
    """Mean effect over rules and picked layers."""
    draws: np.ndarray
    """The same in each bootstrap resample of the rules, shape (draw,)."""
    stability: float
    """How alike the picks of two disjoint halves of the rules are, mean over splits: 0 to 1 (see
    `agreement`)."""


def windows(n_layers: int, width: int) -> np.ndarray:
    """Every contiguous window as a row of averaging weights, shape (n_layers - width + 1,
    n_layers).

    >>> windows(3, 2)
    array([[0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]])
    """
    out = np.zeros((n_layers - width + 1, n_layers))
    for start in range(len(out)):
        out[start, start : start + width] = 1 / width
    return out


def block_shares(n_layers: int, restored: int, first: int = 0) -> np.ndarray:
    """Weights that credit an effect to the blocks whose outputs were restored, shape (block,
    layer).

    The effect at a layer is that of a window of `restored` blocks around it, so one block shows in
    as many layers, and not evenly on both sides of itself where the window is even. A block gets
    the sum of the effects of the n windows that hold it / √(n · restored): their mean, where none
    is missing. This is a matched filter: of a single block that carries everything it is largest
    there (Cauchy and Schwarz), also near the ends, where windows are missing or cut.

    Args:
        n_layers: Depth of the profile.
        restored: Blocks restored together; 1 gives the identity.
        first: Windows around earlier layers are left out. A block that no window holds then has
            weights of zero.

    >>> block_shares(4, 2, 1).round(2)
    array([[0.  , 0.71, 0.  , 0.  ],
           [0.  , 0.5 , 0.5 , 0.  ],
           [0.  , 0.  , 0.5 , 0.5 ],
           [0.  , 0.  , 0.  , 0.71]])
    """
    holds = np.zeros((n_layers, n_layers))
    for layer in range(first, n_layers):
        holds[window(layer, restored, n_layers), layer] = 1
    return holds / np.sqrt(np.maximum(holds.sum(1, keepdims=True), 1) * restored)


def combined(sources: Sequence[np.ndarray]) -> np.ndarray:
    """Several measures of the same rules and layers as one, shape (rule, layer), all with the same
    weight.

    Of each source the rule's mean over layers is taken off, and what is left is divided by the
    standard deviation over layers of its mean over rules: what all rules share over depth has size
    one, and a rule that says more says more. A source that is flat over layers says nothing, and
    adds nothing.

    >>> combined([np.array([[1.0, 3.0]]), np.array([[5.0, 5.0]])])
    array([[-0.5,  0.5]])
    """
    scaled = []
    for source in sources:
        own = source - source.mean(1, keepdims=True)
        spread = float(own.mean(0).std())
        scaled.append(
            own / spread if spread > ROUNDING * float(np.abs(source).max()) else np.zeros_like(own)
        )
    return np.mean(scaled, axis=0)


def window_of(width: int) -> Picker:
    """Picks the contiguous window of `width` layers with the largest mean; the first of equal
    ones.
    """

    def pick(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        every = windows(means.shape[1], width)
        scores = means @ every.T
        best = scores.argmax(1)
        return every[best] > 0, scores[np.arange(len(means)), best]

    return pick


def mass_of(share: float, smallest: int = 1, largest: int | None = None) -> Picker:
    """Picks the fewest layers that hold a share of a profile's positive effect.

    The largest layers, taken one by one, are the smallest such set. The bounds on their number win
    over the share. A profile without a positive effect gives its largest layers, `smallest` of
    them.
    """

    def pick(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(-means, axis=1, kind="stable")
        held = np.cumsum(np.clip(np.take_along_axis(means, order, 1), 0, None), axis=1)
        total = held[:, -1]
        # Rounding must not ask for one layer more than the share does.
        count = 1 + (held >= (share * (1 - ROUNDING) * total)[:, None]).argmax(1)
        count = np.clip(count, smallest, largest or means.shape[1])
        rank = np.argsort(order, axis=1)
        return rank < count[:, None], total

    return pick


def segment_of(smallest: int = 1, largest: int | None = None) -> Picker:
    """Picks the segment whose elevation explains a profile best: one level inside, a lower one
    outside.

    For a segment of m of the n layers, with mean `inside` and mean `outside` of the rest, the
    squared error falls by (inside - outside)² m (n - m) / n against one level for all. Every
    segment within the bounds is tried, O(n²), so the fit is the best there is. Change points at an
    end of the profile count: the segment then has one neighbour.
    """

    def pick(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n = means.shape[1]
        if n == 1:  # nothing to compare with
            return np.ones_like(means, dtype=bool), means[:, 0]
        widths = range(smallest, min(largest or n, n - 1) + 1)
        every = _segments(n, widths)
        size = every.sum(1)
        lift = means @ every.T - means.sum(1)[:, None] * size / n
        strength = lift * np.sqrt(n / (size * (n - size)))
        best = strength.argmax(1)
        return every[best], strength[np.arange(len(means)), best]

    return pick


def choose(
    effect: np.ndarray, pick: Picker, *, draws: int, seed: int, agreement: Agreement = "same"
) -> Choice:
    """Pick layers from the mean over rules, and see how firmly.

    Args:
        effect: Shape (rule, layer), no NaN; candidates only.
        pick: The picker.
        draws: Bootstrap resamples of the rules, and splits into halves.
        seed: Seed of both; the same draws for every picker and group (paired).
        agreement: How the picks of two halves are compared, see `agreement_of`.
    """
    mean = effect.mean(0)
    chosen = pick(mean[None])[0][0]
    resampled = resample_counts(len(effect), draws, seed) @ effect / len(effect)
    stability = 0.0  # what one rule says has not been seen again
    if len(effect) > 1:
        one, two = (pick(weights @ effect)[0] for weights in halves(len(effect), draws, seed))
        stability = agreement_of(one, two, agreement).mean()
    layers = np.flatnonzero(chosen)
    return Choice(
        tuple(int(layer) for layer in layers),
        float(mean[layers].mean()),
        resampled[:, layers].mean(1),
        float(stability),
    )


def agreement_of(one: np.ndarray, two: np.ndarray, agreement: Agreement) -> np.ndarray:
    """How alike picks are, from 0 to 1, shape (profile,).

    Args:
        one: Picks as masks, shape (profile, layer).
        two: Others.
        agreement: `same`: 1 if they are equal, else 0; `overlap`: Jaccard index, common layers /
            layers of either.
    """
    if agreement == "same":
        return (one == two).all(1).astype(float)
    return (one & two).sum(1) / (one | two).sum(1)


def halves(n: int, draws: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random splits of rules into disjoint halves, each resampled; averaging weights of both,
    shapes (draw, n).

    The resample within a half makes up for all splits being of the same rules, which agree better
    than two samples of other rules would (see `interp.selection.select`). With an odd number the
    second half has one more.
    """
    half, rng = n // 2, np.random.default_rng([seed, 3])
    order = rng.random((draws, n)).argsort(1)
    first = np.zeros((draws, n))
    np.put_along_axis(first, order[:, :half], 1.0, axis=1)
    sizes = (half, n - half)
    one, two = (
        rng.multinomial(size, side / size)
        for size, side in zip(sizes, (first, 1 - first), strict=True)
    )
    return one / half, two / (n - half)


def signs(n: int, draws: int, seed: int) -> np.ndarray:
    """Signs for a sign-flip test, the unchanged ones first, shape (flip, n).

    All of them for few rules; else `draws` random ones.
    """
    if n <= EXHAUSTIVE_RULES:
        return np.array(list(product((1.0, -1.0), repeat=n)))
    drawn = np.random.default_rng([seed, 1]).choice((1.0, -1.0), size=(draws, n))
    return np.concatenate([np.ones((1, n)), drawn])


def chance(effect: np.ndarray, pick: Picker, *, draws: int, seed: int) -> float:
    """How often the best pick is as strong if every rule's whole profile had a random sign
    (p-value).

    Without an effect a rule's profile is as likely as its negative. The best pick of each flipped
    profile is compared, so that having looked at many picks is paid for, whatever the correlation
    of layers. The least p-value with n rules is 2⁻ⁿ: below five rules nothing reaches 5 %.

    Args:
        effect: Shape (rule, layer), no NaN.
        pick: The picker.
        draws: Random flips, where there are too many to try all.
        seed: Seed of these.
    """
    strength = pick(signs(len(effect), draws, seed) @ effect / len(effect))[1]
    if strength[0] <= 0:
        return 1.0
    return float((strength >= strength[0] * (1 - ROUNDING)).mean())


# -- which forms share layers --------------------------------------------------------------------


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
        merged = first[1] > level
        made.append(Comparison(a, b, *first, merged))
        if merged:
            groups = [group for group in groups if group not in (a, b)] + [tuple(sorted(a + b))]
        else:
            differ.add(frozenset(a + b))


def _compare(
    shares: np.ndarray, a: Sequence[int], b: Sequence[int], *, draws: int, seed: int
) -> tuple[float, float, int]:
    """Correlation of the mean profiles, p-value that they are the same, and rules in common."""
    one, two = _mean_of(shares, a), _mean_of(shares, b)
    both = ~(np.isnan(one).any(1) | np.isnan(two).any(1))
    one, two = one[both], two[both]
    if not len(one):
        return float("nan"), 1.0, 0
    means = np.stack([one.mean(0), two.mean(0)])
    flat = (np.ptp(means, axis=1) == 0).any()
    correlation = float("nan") if flat else float(np.corrcoef(means)[0, 1])
    length = ((signs(len(one), draws, seed) @ (one - two) / len(one)) ** 2).sum(1)
    # No difference at all is not an extreme one.
    p_value = float((length >= length[0] * (1 - ROUNDING)).mean())
    return correlation, p_value, len(one)


def _mean_of(shares: np.ndarray, forms: Sequence[int]) -> np.ndarray:
    """Mean over forms of what is there, shape (rule, layer)."""
    part = shares[list(forms)]
    present = ~np.isnan(part)
    count = present.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, np.where(present, part, 0.0).sum(0) / count, np.nan)


# -- rule by rule --------------------------------------------------------------------------------


def roughness_variance(effect: np.ndarray) -> np.ndarray:
    """Variance of the noise in each rule's profile, estimated from how rough it is over layers,
    shape (rule,).

    Second differences of what is left after the mean over rules is taken off have six times the
    noise's variance where the rule's own deviation is smooth; their median size is used, so that a
    few steps do not count as noise. Noise that layers share (overlapping windows, the same noise
    samples) is smooth and is missed. With fewer than three layers or two rules there is nothing to
    go by, and the result is infinite.

    Args:
        effect: Shape (rule, layer), no NaN.
    """
    if effect.shape[1] < 3 or len(effect) < 2:
        return np.full(len(effect), np.inf)
    rough = np.diff(effect - effect.mean(0), n=2, axis=1)
    return (
        np.median(np.abs(rough), axis=1) / 0.6745
    ) ** 2 / 6  # 0.6745: median size of a standard normal value


def shrink(effect: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each rule's profile moved towards the mean over rules by how noisy it is (empirical Bayes).

    A rule's own deviation from the mean is kept by the factor between / (between + variance), where
    `between` is the variance between rules that noise does not explain: with it, squared deviations
    (mean over layers) are on average as large as between + variance says, each in that unit (Paule
    and Mandel 1982), so that one noisy rule does not hide that others differ. Without noise a rule
    keeps its own profile; with infinite noise, or where rules do not differ, it gets the mean.

    Args:
        effect: Shape (rule, layer), no NaN.
        variance: Variance of the noise in each rule's effects, shape (rule,).

    Returns:
        The shrunk profiles, shape (rule, layer), and the factors, shape (rule,).
    """
    mean = effect.mean(0)
    n = len(effect)
    finite = np.isfinite(variance)
    between = 0.0
    if n > 1 and finite.any():
        spread = ((effect - mean) ** 2).mean(1)[finite] * n / (n - 1)
        between = _between(spread, variance[finite])
    factor = between / (between + variance) if between > 0 else np.zeros(n)
    return mean + factor[:, None] * (effect - mean), factor


def _between(spread: np.ndarray, variance: np.ndarray) -> float:
    """The variance t that solves mean(spread / (t + variance)) = 1, or 0 if noise explains the
    spread; by bisection.
    """
    low, high = 0.0, float(spread.max())
    if high == 0:
        return 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (spread / (middle + variance)).mean() > 1 else (low, middle)
    # The least value that was tried is not zero, but for the purpose it is.
    return high if high > ROUNDING * float(spread.max()) else 0.0


# -- layers without a profile --------------------------------------------------------------------


def published_block(n_layers: int) -> tuple[int, ...]:
    """The published layers 4-8 of models of 28 to 32 blocks, their place scaled to the depth, their
    number kept.

    >>> published_block(30), published_block(48), published_block(5)
    ((4, 5, 6, 7, 8), (6, 7, 8, 9, 10), (1, 2, 3, 4))
    """
    first = min(round(PUBLISHED_BLOCK[0] * n_layers / PUBLISHED_DEPTH), n_layers - 1)
    return tuple(range(first, min(first + len(PUBLISHED_BLOCK), n_layers)))


def _segments(n: int, widths: range) -> np.ndarray:
    """Every segment of some widths as a mask, shape (segment, n)."""
    at = np.arange(n)
    return np.array(
        [(at >= start) & (at < start + width) for width in widths for start in range(n - width + 1)]
    )
