"""Layers chosen by what edits achieve there: strategies that read a sweep, such as ``sweep``.

A sweep (`dmle sweep`, file ``sweep.nc``: dims ``group rule window``, data ``score``) has edited
rules at every window. The window with the largest mean score over rules is chosen for each group,
with the same evidence as for profiles (`interp.selection.select`): an interval over rules, a test
against chance on scores less each rule's mean over windows, and stability over halves of the rules.
It asks for edits rather than traces, and is the strategy to use where tracing does not rank windows
as edits do (`dmle regret` says whether it does).
"""

from dataclasses import replace

import numpy as np
import xarray as xr

from interp.config import SelectConfig
from interp.errors import InputError
from interp.selection import strategies
from interp.selection.layers import SCHEMA, LayerGroup, LayerSelection
from interp.selection.reasons import Finding
from interp.selection.select import Grounds, judged_group
from interp.selection.strategy import Strategy
from interp.selection.support import chance, choose

SWEEP_SCHEMA = "dmle.sweep/1"


def select_from_sweep(swept: xr.Dataset, config: SelectConfig) -> LayerSelection:
    """The best window of each group of a sweep.

    Args:
        swept: A sweep; rules without a score at every window within the bounds are left out.
        config: Strategy (`sweep`, if it is none that reads a sweep), bounds (`first`, `last`),
            level, stability and resamples. Groups and width are the sweep's.

    Raises:
        InputError: The dataset is no sweep, no window lies within the bounds, or no rule has all
            scores.
    """
    within = _within_bounds(swept, config)
    n_layers = int(swept.attrs["n_layers"])
    strategy = strategies.get(config.strategy)
    if "sweep" not in strategy.reads:
        strategy = strategies.get("sweep")
    last = n_layers - 1 if config.last is None else config.last
    return LayerSelection(
        schema=SCHEMA,
        strategy=strategy.name,
        component="mlp",
        role="",
        width=int(within["width"].max()),
        n_layers=n_layers,
        first_layer=config.first,
        last_layer=None if last >= n_layers - 1 else last,
        groups=tuple(
            _group(within, str(name), config, strategy) for name in within["group"].values
        ),
        provenance={
            name: str(swept.attrs[name])
            for name in ("model", "weight_hash", "metrics", "mode")
            if name in swept.attrs
        },
    )


def _within_bounds(swept: xr.Dataset, config: SelectConfig) -> xr.Dataset:
    """The windows of a sweep that lie within the bounds."""
    if swept.attrs.get("schema") != SWEEP_SCHEMA:
        raise InputError(
            f"expected a sweep ({SWEEP_SCHEMA}), got {swept.attrs.get('schema')!r}; `dmle sweep`"
            " makes one"
        )
    last = int(swept.attrs["n_layers"]) - 1 if config.last is None else config.last
    ends = swept["start"] + swept["width"] - 1
    within = swept.isel(window=((swept["start"] >= config.first) & (ends <= last)).values)
    if not within.sizes["window"]:
        raise InputError(
            f"no window of the sweep lies within layers {config.first} to {last}; widen"
            " select.first and select.last"
        )
    return within


def _group(swept: xr.Dataset, name: str, config: SelectConfig, strategy: Strategy) -> LayerGroup:
    scores = swept["score"].sel(group=name).transpose("rule", "window").values
    scores = scores[~np.isnan(scores).any(1)]
    n_rules = len(scores)
    if not n_rules:
        raise InputError(
            f"no rule of the sweep has a score of {name} at every window; run `dmle sweep` to"
            " its end"
        )
    pick = strategy.picker(config)
    draws, seed = config.bootstrap, config.seed
    choice = choose(scores, pick, draws=draws, seed=seed, agreement=strategy.agreement)
    p_value = 1.0
    if scores.shape[1] > 1:
        level = scores.mean(1, keepdims=True)
        p_value = chance(scores - level, pick, draws=draws, seed=seed)
    best = swept.isel(window=choice.layers[0])
    layers = tuple(range(int(best["start"]), int(best["start"]) + int(best["width"])))
    finding = replace(Finding.of(choice, scores, config, first=0, unit=""), layers=layers)
    grounds = Grounds(finding, choice.stability, p_value, n_rules)
    return judged_group(strategy, tuple(name.split("+")), grounds)
