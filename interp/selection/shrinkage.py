"""Rule by rule: each rule's profile moved towards the mean over rules by how noisy it is, on plain
arrays.
"""

import numpy as np

from interp.selection.pickers import ROUNDING


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
