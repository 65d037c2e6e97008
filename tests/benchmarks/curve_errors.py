"""How wrong a map of effects is, and how a cheap map is corrected by a few exact effects.

Arrays only: effects have shape (site,) or (component, position, layer), those of noise samples one
axis more, at the end.
"""

from collections.abc import Sequence

import numpy as np

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 10: 2.262}
"""By number of samples: the 97.5 % quantile of Student's t with one degree of freedom less."""
ROUNDING = 1e-4
"""Half width of an interval, in nats, below which it is rounding (as in the last blocks)."""


def share_wrong(guess: np.ndarray, exact: np.ndarray) -> float:
    """Summed absolute error as a share of the summed absolute exact effects."""
    return float(np.abs(guess - exact).sum() / np.abs(exact).sum())


def share_uncertain(samples: np.ndarray) -> float:
    """Summed standard errors of the means over noise samples, as a share of their summed absolute
    values: how far the exact map itself may be from that of endless samples.

    Args:
        samples: Effects by noise sample, shape (…, sample).
    """
    error = samples.std(-1, ddof=1) / samples.shape[-1] ** 0.5
    return float(error.sum() / np.abs(samples.mean(-1)).sum())


def profile(effects: np.ndarray, at_lookup: np.ndarray) -> np.ndarray:
    """Mean over the lookup tokens, shape (component, layer, …).

    Args:
        effects: Shape (component, position, layer, …).
        at_lookup: Which positions are lookup tokens, shape (position,).
    """
    return effects[:, at_lookup].mean(1)


def share_within(guess: np.ndarray, samples: np.ndarray) -> float:
    """Share of layers whose guess lies in the 95 % interval of the exact mean over noise samples
    (Student's t).

    Args:
        guess: Shape (layer,).
        samples: Exact effects, shape (layer, sample).
    """
    n = samples.shape[-1]
    half = STUDENT[n] * samples.std(-1, ddof=1) / n**0.5
    return float((np.abs(guess - samples.mean(-1)) <= np.maximum(half, ROUNDING)).mean())


def corrected(
    cheap: np.ndarray,
    sites: Sequence[int],
    exact: np.ndarray,
    components: np.ndarray,
    *,
    regress: bool,
) -> np.ndarray:
    """A cheap map as control variate: what exact effects of some sites differ from it by is added
    to all sites of the component; the sites themselves get their exact effects.

    Args:
        cheap: Effects of all sites, shape (site,).
        sites: Which were run exactly.
        exact: Their effects, in that order.
        components: Component of every site, shape (site,).
        regress: Add a line over the cheap effect (least squares) in place of the mean difference;
            of fewer than three sites, or of equal effects, the mean all the same.
    """
    out = cheap.astype(float).copy()
    chosen = np.asarray(sites, dtype=int)
    for component in np.unique(components):
        own = components[chosen] == component
        if not own.any():
            continue
        at, there = chosen[own], components == component
        gap = exact[own] - cheap[at]
        slope = 0.0
        if regress and len(at) > 2 and (spread := cheap[at] - cheap[at].mean()).any():
            slope = float(spread @ gap / (spread @ spread))
        out[there] += gap.mean() + slope * (cheap[there] - cheap[at].mean())
        out[at] = exact[own]
    return out


def summed(singles: np.ndarray, parts: Sequence[Sequence[int]]) -> np.ndarray:
    """Effects of windows as if their blocks did not act on one another: sums of single effects.

    Args:
        singles: Effects of single sites, shape (single, …).
        parts: Of each window, its singles.
    """
    return np.stack([singles[list(part)].sum(0) for part in parts])


def errors_of(
    guess: np.ndarray, exact: np.ndarray, at_lookup: np.ndarray, components: Sequence[str]
) -> dict[str, float]:
    """Every measure by component.

    Args:
        guess: Effects of all sites, shape (site,): component, then position, then layer.
        exact: The same by noise sample, shape (site, sample).
        at_lookup: Which positions are lookup tokens, shape (position,).
        components: Names.
    """
    shape = (len(components), len(at_lookup), -1)
    maps, samples = guess.reshape(shape), exact.reshape(*shape[:2], -1, exact.shape[1])
    profiles = profile(maps, at_lookup), profile(samples, at_lookup)
    out: dict[str, float] = {}
    for i, component in enumerate(components):
        own, of_profile = samples[i], profiles[1][i]
        out |= {
            f"map_{component}": share_wrong(maps[i], own.mean(-1)),
            f"profile_{component}": share_wrong(profiles[0][i], of_profile.mean(-1)),
            f"within_{component}": share_within(profiles[0][i], of_profile),
            f"noise_{component}": share_uncertain(own),
            f"profile_noise_{component}": share_uncertain(of_profile),
        }
    return out
