"""Edit success by layer, measured: the oracle that layer selection is held against.

Every group of forms is edited alone, in every window of layers, and scored on its own questions:
that is DMLE's stage without the other. Two groups in different layers touch each other little, so
that the success of a pair of windows is close to what its parts say; whole pairs are what `dmle
compare` runs.

The success of an edit is the plain mean of some metrics (`sweep.metrics`), each the mean over the
group's forms. The oracle is the window with the best mean over rules. It is chosen on the rules
that it is scored on, so regret against it is a little too large for every strategy that did not see
them; a window chosen on all other rules (leave one out) says by how much.

Array core: scores have shape (rule, window), NaN where a cell is missing; a rule with a missing
cell is left out of what is compared, and counted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.results.intervals import interval_of, mean_interval, resample_counts
from interp.selection.from_sweep import SWEEP_SCHEMA


@dataclass(frozen=True)
class Regret:
    """How far a choice of layers is from the oracle window, over the rules with all cells.

    `score`, `oracle` and `regret` = oracle − score are means over rules, `lower` and `upper` the
    bootstrap interval of the regret (NaN with fewer than two rules); `rank` is 1 + the number of
    windows whose mean is above the choice's.
    """

    score: float
    oracle: float
    regret: float
    lower: float
    upper: float
    rank: int
    n_windows: int
    n_rules: int


def windows(n_layers: int, width: int, step: int) -> list[tuple[int, ...]]:
    """Windows of `width` layers, every `step`-th from the first, and the last one that fits.

    >>> windows(8, 3, 2)
    [(0, 1, 2), (2, 3, 4), (4, 5, 6), (5, 6, 7)]

    Raises:
        ValueError: No window fits.
    """
    last = n_layers - width
    if last < 0:
        raise InputError(f"sweep.width is {width}, but the model has {n_layers} layers; lower it")
    starts = list(range(0, last + 1, step))
    return [
        tuple(range(start, start + width))
        for start in (starts if starts[-1] == last else [*starts, last])
    ]


def layers_text(layers: Sequence[int]) -> str:
    """Layers as the settings write them.

    >>> layers_text((4, 5, 6)), layers_text((7,)), layers_text((1, 4, 5))
    ('4-6', '7', '1,4,5')
    """
    if len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def success(
    scores: xr.Dataset, forms: Sequence[str], metrics: Sequence[str], mode: str
) -> xr.DataArray:
    """Success of every arm: mean over forms, then over metrics; dims editor rule.

    NaN where an arm has no score in one of the metrics that any arm has for the rule: a mean of
    fewer metrics would be a mean of other things.
    """
    after = (
        scores["score"]
        .sel(form=list(forms), metric=list(metrics), mode=mode, phase="post")
        .mean("form", skipna=True)
    )
    asked = after.notnull().any("editor")
    whole = (after.notnull() | ~asked).all("metric") & asked.any("metric")
    return after.mean("metric", skipna=True).where(whole).transpose("editor", "rule")


def regret_of(
    windows: np.ndarray,
    chosen: np.ndarray,
    *,
    resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Regret:
    """Regret of a choice (see `Regret`).

    Args:
        windows: Success, shape (rule, window).
        chosen: Success at the chosen layers, shape (rule,); they need not be one of the windows.
        resamples: Bootstrap resamples of rules; the oracle window stays the one of all rules.
        confidence: Coverage of the interval.
        seed: Seed of the resampling.

    Raises:
        ValueError: No rule has all cells.
    """
    whole = ~np.isnan(windows).any(1) & ~np.isnan(chosen)
    if not whole.any():
        raise InputError(
            "no rule has a score at every window and at the chosen layers; run `dmle sweep` to"
            " its end"
        )
    windows, chosen = windows[whole], chosen[whole]
    means = windows.mean(0)
    best = int(means.argmax())
    gap = windows[:, best] - chosen
    lower, upper = mean_interval(gap, draws=resamples, confidence=confidence, seed=seed)
    return Regret(
        score=float(chosen.mean()),
        oracle=float(means[best]),
        regret=float(gap.mean()),
        lower=lower,
        upper=upper,
        # A choice that is one of the windows is not above itself by rounding.
        rank=1 + int((means > chosen.mean() + 1e-12).sum()),
        n_windows=len(means),
        n_rules=len(chosen),
    )


def left_out(windows: np.ndarray) -> np.ndarray:
    """Success of each rule at the window that is best for all other rules, shape (rule,); NaN with
    fewer than two.

    Args:
        windows: Success, shape (rule, window), no NaN.
    """
    n = len(windows)
    if n < 2:
        return np.full(n, np.nan)
    others = (windows.sum(0) - windows) / (n - 1)
    return windows[np.arange(n), others.argmax(1)]


def rank_correlation(
    profile: np.ndarray, windows: np.ndarray, *, resamples: int, confidence: float, seed: int
) -> tuple[float, float, float]:
    """Spearman's correlation of a profile with mean edit success over windows, and its interval
    over rules.

    Args:
        profile: Mean effect of each window, shape (window,).
        windows: Success, shape (rule, window), no NaN.
        resamples: Bootstrap resamples of the edited rules; the profile stays.
        confidence: Coverage.
        seed: Seed.
    """
    known = ~np.isnan(profile)
    if known.sum() < 3:
        return float("nan"), float("nan"), float("nan")
    profile, windows = profile[known], windows[:, known]
    draws = resample_counts(len(windows), resamples, seed) @ windows
    found = _correlation(_ranks(profile)[None], _ranks(draws))
    value = float(_correlation(_ranks(profile)[None], _ranks(windows.mean(0)[None]))[0])
    if len(windows) < 2:
        return value, float("nan"), float("nan")
    return value, *interval_of(found, confidence)


def window_effects(effect: np.ndarray, spans: Sequence[Sequence[int]]) -> np.ndarray:
    """Mean effect of each window from a profile over layers, shape (window,)."""
    return np.array([effect[list(span)].mean() for span in spans])


def sweep_dataset(
    by_group: Mapping[str, np.ndarray], rules: Sequence[str], spans: Sequence[Sequence[int]]
) -> xr.Dataset:
    """The measured success with labels.

    Args:
        by_group: For each group, success of shape (rule, window).
        rules: Ids.
        spans: Layers of each window.

    Returns:
        Dims ``group rule window``: ``score``; coords ``start`` and ``width`` of each window.
    """
    return xr.Dataset(
        {"score": (("group", "rule", "window"), np.stack(list(by_group.values())))},
        coords={
            "group": np.array(list(by_group), dtype=object),
            "rule": np.array(list(rules), dtype=object),
            "window": np.array([layers_text(span) for span in spans], dtype=object),
            "start": ("window", [span[0] for span in spans]),
            "width": ("window", [len(span) for span in spans]),
        },
        attrs={"schema": SWEEP_SCHEMA},
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, ties shared."""
    less = (values[..., None, :] < values[..., :, None]).sum(-1)
    same = (values[..., None, :] == values[..., :, None]).sum(-1)
    return less + (same - 1) / 2


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
