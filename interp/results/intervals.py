"""Intervals over rules: percentile bootstrap, with the same draws for all that is compared.

Rules are the unit of sampling: prompts of one rule are not independent, and count once. A resample
draws as many rules as there are, with replacement. What shares a seed shares its draws, so that
differences are paired.
"""

import numpy as np


def resample_counts(n: int, draws: int, seed: int) -> np.ndarray:
    """How often each of `n` rules is drawn in each bootstrap resample, shape (draws, n)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(float)


def resampled_means(values: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """Mean over rules in each resample, shape (draw, ...).

    Args:
        values: Shape (rule, ...), no NaN.
        draws: Number of resamples.
        seed: Seed of the resampling.
    """
    return resample_counts(len(values), draws, seed) @ values / len(values)


def percentile_interval(
    draws: np.ndarray, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the first axis: the middle of the draws, without as much on both
    sides.

    Args:
        draws: Shape (draw, ...). NaN are left out; a column of nothing else gives NaN.
        confidence: Coverage, such as 0.95.

    Returns:
        lower and upper, each of shape (...).

    >>> lower, upper = percentile_interval(np.arange(101.0), 0.5)
    >>> float(lower), float(upper)
    (25.0, 75.0)
    """
    tail = 100 * (1 - confidence) / 2
    flat = draws.reshape(len(draws), -1)
    ends = np.full((2, flat.shape[1]), np.nan)
    known = ~np.isnan(flat).all(0)
    if known.any():
        ends[:, known] = np.nanpercentile(flat[:, known], [tail, 100 - tail], axis=0)
    lower, upper = ends.reshape(2, *draws.shape[1:])
    return np.asarray(lower), np.asarray(upper)


def interval_of(draws: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The same for the draws of one number, shape (draw,)."""
    lower, upper = percentile_interval(draws, confidence)
    return float(lower), float(upper)


def mean_interval(
    values: np.ndarray, *, draws: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Percentile-bootstrap interval of a mean over rules; NaN with fewer than two.

    Args:
        values: Shape (rule,), no NaN.
        draws: Number of resamples.
        confidence: Coverage.
        seed: Seed of the resampling.
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    return interval_of(resampled_means(values, draws=draws, seed=seed), confidence)


def bootstrap_mean(
    values: np.ndarray, *, draws: int, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over the first axis (rules) and its percentile-bootstrap interval, ignoring NaN.

    Args:
        values: Shape (rule, ...).
        draws: Number of resamples of rules; all trailing entries share them.
        confidence: Coverage of the interval, such as 0.95.
        seed: Seed of the resampling.

    Returns:
        mean, lower, upper, each of shape (...). With fewer than two rules the interval is NaN.
    """
    weights = resample_counts(len(values), draws, seed)
    flat = values.reshape(len(values), -1)
    present = ~np.isnan(flat)
    sums = weights @ np.where(present, flat, 0.0)
    counts = weights @ present.astype(float)
    with np.errstate(invalid="ignore"):
        means = np.where(counts > 0, sums / counts, np.nan)
    few = (present.sum(0) < 2).reshape(values.shape[1:])
    ends = percentile_interval(means.reshape(draws, *values.shape[1:]), confidence)
    lower, upper = (np.where(few, np.nan, end) for end in ends)
    return mean_of_known(values, 0), lower, upper


def mean_of_known(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean of what is there; NaN, without a warning, where nothing is."""
    present = ~np.isnan(values)
    count = present.sum(axis)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, np.where(present, values, 0.0).sum(axis) / count, np.nan)
