"""How firmly layers are picked, on plain arrays: resamples, stability, and a test against chance.

All of it is the same for every picker (`interp.selection.pickers`): `choose` picks from the mean
over rules, and from halves of the rules; `chance` picks again after the signs of rules are flipped.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, product

import numpy as np

from interp.results.intervals import resampled_means
from interp.selection.pickers import ROUNDING, Picker

Agreement = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""How alike two picks are, from 0 to 1, shape (profile,), from masks of shape (profile, layer)."""
EXHAUSTIVE_RULES = 10
"""Up to this many rules every choice of signs is tried: 1024 of them."""


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


def choose(
    effect: np.ndarray, pick: Picker, *, draws: int, seed: int, agreement: Agreement
) -> Choice:
    """Pick layers from the mean over rules, and see how firmly.

    Args:
        effect: Shape (rule, layer), no NaN; candidates only.
        pick: The picker.
        draws: Bootstrap resamples of the rules, and splits into halves.
        seed: Seed of both; the same draws for every picker and group (paired).
        agreement: How the picks of two halves are compared: `same` or `overlap`.
    """
    mean = effect.mean(0)
    chosen = pick(mean[None])[0][0]
    resampled = resampled_means(effect, draws=draws, seed=seed)
    stability = 0.0  # what one rule says has not been seen again
    if len(effect) > 1:
        one, two = (pick(weights @ effect)[0] for weights in halves(len(effect), draws, seed))
        stability = agreement(one, two).mean()
    layers = np.flatnonzero(chosen)
    return Choice(
        tuple(int(layer) for layer in layers),
        float(mean[layers].mean()),
        resampled[:, layers].mean(1),
        float(stability),
    )


def same(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Whether picks are equal, 1 or 0, shape (profile,).

    Args:
        one: Picks as masks, shape (profile, layer).
        two: Others.
    """
    return (one == two).all(1).astype(float)


def overlap(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Jaccard index of picks, common layers / layers of either, shape (profile,).

    Args:
        one: Picks as masks, shape (profile, layer).
        two: Others.
    """
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


def rules_needed(level: float, *, draws: int, seed: int) -> int | None:
    """The least number of rules with which `chance` can be as low as a level, whatever the effects.

    Only the unchanged signs are sure to be as strong as what was seen, so the least p-value is
    their share of all flips that are tried: 2⁻ⁿ for few rules, and 1 / (draws + 1) where random
    flips are drawn, if none of these is the unchanged one again.

    Args:
        level: Level of the test.
        draws: Random flips, where there are too many to try all.
        seed: Seed of these.

    Returns:
        The number, or None if no number of rules is enough: more draws are needed then.

    >>> rules_needed(0.05, draws=1000, seed=0), rules_needed(1e-6, draws=1000, seed=0)
    (5, None)
    """
    for n in range(1, EXHAUSTIVE_RULES + 1):
        if 0.5**n <= level:
            return n
    if 1 / (draws + 1) > level:
        return None
    # A drawn flip is the unchanged one in 2⁻ⁿ of cases: soon none is.
    larger = count(EXHAUSTIVE_RULES + 1)
    return next(n for n in larger if (signs(n, draws, seed) > 0).all(1).mean() <= level)
