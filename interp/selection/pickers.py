"""How layers are picked from a profile, on plain arrays.

A picker reads mean profiles, shape (profile, layer), and gives for each the picked layers, a mask
of the same shape, and the strength of the pick, shape (profile,): the statistic that the pick
maximises. Everything else (bootstrap, test, interval) is the same for every picker: see
`interp.selection.support`.

==============  ========================================  ========================================
picker          picks                                     strength
==============  ========================================  ========================================
`window_of`     the contiguous window with the largest    that mean
                mean
`mass_of`       the fewest layers that hold a share of    the whole positive effect
                the positive effect, contiguous or not
`segment_of`    the segment between two change points     square root of the fall in squared error
==============  ========================================  ========================================

Units: effects are in the profile's unit; strengths too, but for `segment_of`, where they scale with
√layers.
"""

from collections.abc import Callable

import numpy as np

from interp.tracing.windows import window

Picker = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Mean profiles, shape (profile, layer), to picks of the same shape and strengths, shape
(profile,)."""
ROUNDING = 1e-9


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


def _segments(n: int, widths: range) -> np.ndarray:
    """Every segment of some widths as a mask, shape (segment, n)."""
    at = np.arange(n)
    return np.array(
        [(at >= start) & (at < start + width) for width in widths for start in range(n - width + 1)]
    )
