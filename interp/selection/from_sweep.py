"""Layers chosen by what edits achieve there: the strategy ``sweep``.

A sweep (`dmle sweep`, file ``sweep.nc``: dims ``group rule window``, data ``score``) has edited
rules at every window. The window with the largest mean score over rules is chosen for each group,
with the same evidence as for profiles (`interp.selection.select`): an interval over rules, a test
against chance on scores less each rule's mean over windows, and stability over halves of the rules.
It asks for edits rather than traces, and is the strategy to use where tracing does not rank windows
as edits do (`dmle regret` says whether it does).
"""

import numpy as np
import xarray as xr

from interp.config import SelectConfig
from interp.errors import InputError
from interp.selection.select import CONFIDENCE, SCHEMA, LayerGroup, LayerSelection, objections
from interp.selection.strategies import chance, choose, window_of

SWEEP_SCHEMA = "dmle.sweep/1"


def select_from_sweep(swept: xr.Dataset, config: SelectConfig) -> LayerSelection:
    """The best window of each group of a sweep.

    Args:
        swept: A sweep; rules without a score at every window within the bounds are left out.
        config: Bounds (`first`, `last`), level, stability and resamples. Groups and width are the
            sweep's.

    Raises:
        ValueError: The dataset is no sweep, no window lies within the bounds, or no rule has all
            scores.
    """
    if swept.attrs.get("schema") != SWEEP_SCHEMA:
        raise InputError(
            f"expected a sweep ({SWEEP_SCHEMA}), got {swept.attrs.get('schema')!r}; `dmle sweep`"
            " makes one"
        )
    n_layers = int(swept.attrs["n_layers"])
    last = n_layers - 1 if config.last is None else config.last
    ends = swept["start"] + swept["width"] - 1
    within = swept.isel(window=((swept["start"] >= config.first) & (ends <= last)).values)
    if not within.sizes["window"]:
        raise InputError(
            f"no window of the sweep lies within layers {config.first} to {last}; widen"
            " select.first and select.last"
        )
    return LayerSelection(
        schema=SCHEMA,
        strategy="sweep",
        component="mlp",
        role="",
        width=int(within["width"].max()),
        n_layers=n_layers,
        first_layer=config.first,
        last_layer=None if last >= n_layers - 1 else last,
        groups=tuple(_group(within, str(name), config) for name in within["group"].values),
        provenance={
            name: str(swept.attrs[name])
            for name in ("model", "weight_hash", "metrics", "mode")
            if name in swept.attrs
        },
    )


def _group(swept: xr.Dataset, name: str, config: SelectConfig) -> LayerGroup:
    scores = swept["score"].sel(group=name).transpose("rule", "window").values
    scores = scores[~np.isnan(scores).any(1)]
    if not len(scores):
        raise InputError(
            f"no rule of the sweep has a score of {name} at every window; run `dmle sweep` to"
            " its end"
        )
    pick = window_of(1)  # what is chosen from is windows, not layers
    choice = choose(scores, pick, draws=config.bootstrap, seed=config.seed)
    p_value = 1.0
    if scores.shape[1] > 1:
        level = scores.mean(1, keepdims=True)
        p_value = chance(scores - level, pick, draws=config.bootstrap, seed=config.seed)
    best = swept.isel(window=choice.layers[0])
    lower, upper = (
        float(v)
        for v in np.percentile(choice.draws, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    )
    against = objections(choice, len(scores), config, p_value=p_value)
    said = (
        f"highest mean edit score of {scores.shape[1]} windows over {len(scores)} rules:"
        f" {choice.score:.3f} ({CONFIDENCE:.0%} interval {lower:.3f} to {upper:.3f}), mean of all"
        f" windows {scores.mean():.3f}; two halves of the rules pick the same window in"
        f" {choice.stability:.0%} of splits; as strong by chance in {p_value:.1%} of cases"
    )
    start, width = int(best["start"]), int(best["width"])
    return LayerGroup(
        name=name,
        forms=tuple(name.split("+")),
        layers=tuple(range(start, start + width)),
        score=choice.score,
        lower=lower,
        upper=upper,
        stability=choice.stability,
        p_value=p_value,
        n_rules=len(scores),
        supported=not against,
        reason=f"not supported by the sweep ({'; '.join(against)}): {said}" if against else said,
    )
