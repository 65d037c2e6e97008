"""Effect maps: the labelled result of causal tracing, in memory and on disk.

An effect map of one prompt has dims ``component layer pos sample``:

=============  ===================  ==============================================================
``score``      component layer pos  score of the answer in the *restored* run: corrupted, with the
               sample               clean value at (layer, pos); NaN where the site was not traced
``clean``      (scalar)             score of the clean run
``corrupted``  sample               score of the corrupted run
``exact``      component layer pos  only in maps that were not traced exactly throughout: whether
               sample               that score was run, or estimated from gradients
=============  ===================  ==============================================================

with coords ``token`` (text), ``role`` and ``is_corrupted`` along ``pos``. ``component`` is one of
`COMPONENTS`; ``layer`` is the 0-based block whose output is restored (the centre of the window for
`mlp` and `attn`). Scores are in the unit of ``attrs["unit"]`` (nats per answer token by default). A
trace of several metrics has a leading dim ``metric`` with a coord ``unit``; `choose_metric` gives
the map of one of them.

Many prompts (`concat`) add leading dims ``rule form``; shorter prompts are padded with NaN and an
empty token, ``n_tokens`` says how long each is (0: no map for that rule and form), and nothing is
cut.

Signs: total effect TE = clean - corrupted, indirect effect IE = restored - corrupted. Both are
positive when the clean value helps the answer (denoising). Averaged over rules, IE is the average
indirect effect (AIE). Where ``attrs["direction"]`` is `noise`, the score is that of the clean run
with the corrupted value, and IE = clean - score: positive, again, where the clean value helps.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.results.joined_effects import SITE, concat, join, select_map
from interp.results.netcdf import load, opened, save
from interp.vocabulary import COMPONENTS, ROLES

__all__ = [
    "COMPONENTS",
    "ROLES",
    "SCHEMA",
    "TRACEABLE_STANDARD_ERRORS",
    "choose_metric",
    "concat",
    "effect_map",
    "indirect_effect",
    "join",
    "load",
    "normalised_recovery",
    "opened",
    "save",
    "select_map",
    "total_effect",
]
SCHEMA = "dmle.effects/2"
TRACEABLE_STANDARD_ERRORS = 2.0


def effect_map(
    score: np.ndarray,
    clean: float | np.ndarray,
    corrupted: np.ndarray,
    *,
    components: Sequence[str],
    tokens: Sequence[str],
    roles: Sequence[str],
    is_corrupted: Sequence[bool],
    prompt: str,
    answer: str,
    attrs: Mapping[str, str | int | float] | None = None,
    metrics: Mapping[str, str] | None = None,
    exact: np.ndarray | None = None,
) -> xr.Dataset:
    """Label the arrays of one traced prompt.

    Args:
        score: Restored scores, shape (component, layer, pos, sample); with a leading axis if there
            are `metrics`.
        clean: Score of the clean run; one of each metric.
        corrupted: Scores of the corrupted run, shape (sample,) or (metric, sample).
        components: Names along the first axis, from `COMPONENTS`.
        tokens: Token texts, one per position.
        roles: Token roles, one per position, from `ROLES`.
        is_corrupted: Whether the corruption changes the token.
        prompt: The prompt's text.
        answer: The scored answer's text.
        attrs: Provenance; plain numbers and strings only, so that NetCDF can hold them.
        metrics: Names and units of several metrics, in the order of the leading axis.
        exact: Which scores were run, not estimated, shape (component, layer, pos, sample).

    Raises:
        ValueError: The lengths disagree, or a name is unknown.
    """
    lead = () if metrics is None else ("metric",)
    n_layers = score.shape[len(lead) + 1]
    n_metrics = () if metrics is None else (len(metrics),)
    sizes = (*n_metrics, len(components), n_layers, len(tokens), corrupted.shape[-1])
    _check_shape(score, dict(zip((*lead, *SITE), sizes, strict=True)))
    _check_labels(components, tokens, roles, is_corrupted)
    data: dict[str, Any] = {
        "score": ((*lead, *SITE), score.astype(np.float32)),
        "clean": (lead, np.float32(clean)),
        "corrupted": ((*lead, "sample"), corrupted.astype(np.float32)),
    }
    if exact is not None:
        data["exact"] = (SITE, exact)
    coords = {
        **_site_coords(components, n_layers, tokens, roles, is_corrupted),
        **{"prompt": ((), prompt), "answer": ((), answer)},
        **_metric_coords(metrics),
    }
    sign = "positive = restoring the clean value helps"
    return xr.Dataset(
        data, coords, {"schema": SCHEMA, "sign": sign, "unit": "nats", **(attrs or {})}
    )


def _check_shape(score: np.ndarray, sizes: Mapping[str, int]) -> None:
    expected = tuple(sizes.values())
    if score.shape != expected:
        raise InputError(
            f"score has shape {score.shape}, but the labels give ({', '.join(sizes)}) = {expected}"
        )


def _check_labels(
    components: Sequence[str],
    tokens: Sequence[str],
    roles: Sequence[str],
    is_corrupted: Sequence[bool],
) -> None:
    if not len(tokens) == len(roles) == len(is_corrupted):
        raise InputError(
            f"got {len(tokens)} tokens, {len(roles)} roles, {len(is_corrupted)} corruption flags; "
            "need one of each per position"
        )
    for labels, known in ((components, COMPONENTS), (roles, ROLES)):
        if unknown := set(labels) - set(known):
            raise InputError(f"unknown label {sorted(unknown)}; known are {known}")


def _site_coords(
    components: Sequence[str],
    n_layers: int,
    tokens: Sequence[str],
    roles: Sequence[str],
    is_corrupted: Sequence[bool],
) -> dict[str, Any]:
    """Labels along the axes of the sites."""
    return {
        "component": np.array(components, dtype=object),
        "layer": np.arange(n_layers),
        "token": ("pos", np.array(tokens, dtype=object)),
        "role": ("pos", np.array(roles, dtype=object)),
        "is_corrupted": ("pos", np.array(is_corrupted, dtype=bool)),
    }


def _metric_coords(metrics: Mapping[str, str] | None) -> dict[str, Any]:
    """Names and units along the axis of several metrics; nothing for one."""
    if metrics is None:
        return {}
    return {
        "metric": np.array(list(metrics), dtype=object),
        "unit": ("metric", np.array(list(metrics.values()), dtype=object)),
    }


def choose_metric(effects: xr.Dataset, metric: str | None = None) -> xr.Dataset:
    """The map of one metric; the first, if none is named.

    Raises:
        ValueError: The map has no such metric.
    """
    have = (
        [str(m) for m in effects["metric"].values]
        if "metric" in effects.dims
        else [effects.attrs.get("metric")]
    )
    name = have[0] if metric is None else metric
    if name not in have:
        raise InputError(
            f"the effect map has no metric {name!r}, only {have}; trace it with trace.metrics"
        )
    if "metric" not in effects.dims:
        return effects
    one = effects.sel(metric=name)
    return one.drop_vars(["metric", "unit"]).assign_attrs(metric=name, unit=str(one["unit"].item()))


def indirect_effect(effects: xr.Dataset) -> xr.DataArray:
    """IE averaged over noise samples, positive where the clean value helps (see the module); NaN
    where not traced.
    """
    if effects.attrs.get("direction") == "noise":
        effect = (effects["clean"] - effects["score"]).mean("sample", skipna=False)
    else:
        effect = (effects["score"] - effects["corrupted"]).mean("sample", skipna=False)
    return effect.rename("indirect_effect").assign_attrs(
        unit=effects.attrs["unit"], long_name="indirect effect"
    )


def total_effect(effects: xr.Dataset) -> xr.Dataset:
    """TE = clean - corrupted with its standard error over noise samples, and whether it stands out.

    Returns:
        Dataset of ``total_effect``, ``standard_error`` and ``traceable``: TE is positive and above
        `TRACEABLE_STANDARD_ERRORS` standard errors. A map of a prompt that is not traceable means
        nothing. One sample (a counterfactual prompt) has no error.
    """
    samples = effects.sizes["sample"]
    te = (effects["clean"] - effects["corrupted"]).mean("sample", skipna=False)
    se = effects["corrupted"].std("sample", ddof=min(1, samples - 1), skipna=False) / np.sqrt(
        samples
    )
    traceable = (te > 0) & (te > TRACEABLE_STANDARD_ERRORS * se)
    return xr.Dataset(
        {"total_effect": te, "standard_error": se, "traceable": traceable}, attrs=effects.attrs
    )


def normalised_recovery(effects: xr.Dataset) -> xr.DataArray:
    """IE / TE: 0 = as corrupted, 1 = as clean. NaN where the prompt is not traceable."""
    te = total_effect(effects)
    recovery = indirect_effect(effects) / te["total_effect"]
    return (
        recovery.where(te["traceable"])
        .rename("normalised_recovery")
        .assign_attrs(unit="fraction of total effect", long_name="normalised recovery")
    )
