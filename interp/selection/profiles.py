"""Layer profiles: how much each layer carries, per rule form, component and token role, over many
rules.

The array core works on plain arrays with rules on the first axis and NaN where a rule has no value;
the xarray wrapper takes effect maps (`interp.results.effects`) and gives a labelled profile:

dims ``form component role layer rule``

- ``effect`` (rule form component role layer): indirect effect of one rule, mean over noise samples
  and over the tokens that have the role; NaN if the rule's prompt is not traceable or has no such
  token.
- ``aie`` ``lower`` ``upper`` (form component role layer): mean over rules with a bootstrap
  interval.
- ``n`` (form component role): rules in the mean. Untraceable prompts are left out, and counted by
  ``traceable`` (rule form).
- ``total_effect`` (rule form), ``te`` ``te_lower`` ``te_upper`` (form).

Besides the token roles there is the role ``lookup``: the mean over the roles where editors look a
rule up. The bootstrap resamples rules, the same draws for every form and layer (paired).
"""

from typing import Any

import numpy as np
import xarray as xr

from interp.config import ProfileConfig
from interp.results import effects as effect_maps
from interp.results.intervals import bootstrap_mean, mean_of_known
from interp.vocabulary import LOOKUP, ROLES

SCHEMA = "dmle.profile/1"


def mean_by_role(effect: np.ndarray, roles: np.ndarray, names: list[tuple[str, ...]]) -> np.ndarray:
    """Mean over tokens of each set of roles.

    Args:
        effect: Shape (..., pos); NaN where a position was not traced.
        roles: Role of each token, shape (pos,).
        names: For each output, the roles that are pooled.

    Returns:
        Shape (..., len(names)); NaN where no traced token has such a role.
    """
    return np.stack(
        [mean_of_known(effect[..., np.isin(roles, wanted)], -1) for wanted in names], axis=-1
    )


def layer_profile(maps: xr.Dataset, config: ProfileConfig | None = None) -> xr.Dataset:
    """Profile of joined effect maps (see the module).

    Args:
        maps: Result of `interp.results.effects.concat`, in memory or opened from a file: one rule
            at a time is read.
        config: Metric, lookup roles and bootstrap.

    Returns:
        The labelled profile.
    """
    config = config or ProfileConfig()
    maps = effect_maps.choose_metric(maps, config.metric)
    te = effect_maps.total_effect(maps)
    traced = maps["n_tokens"] > 0
    traceable = te["traceable"] & traced
    names: list[tuple[str, ...]] = [*((role,) for role in ROLES), config.lookup_roles]
    effect = _effects_by_role(maps, traceable.transpose("rule", "form").values, names)
    options = {"draws": config.bootstrap, "confidence": config.confidence, "seed": config.seed}
    aie, lower, upper = bootstrap_mean(effect, **options)
    kept = te["total_effect"].where(traceable).transpose("rule", "form").values
    te_mean, te_lower, te_upper = bootstrap_mean(kept, **options)
    dims = ("form", "component", "role", "layer")
    return xr.Dataset(
        {
            "aie": (dims, aie),
            "lower": (dims, lower),
            "upper": (dims, upper),
            "n": (dims[:-1], (~np.isnan(effect[..., 0])).sum(0)),
            "effect": (("rule", *dims), effect),
            "total_effect": (("rule", "form"), te["total_effect"].transpose("rule", "form").values),
            "traceable": (("rule", "form"), traceable.transpose("rule", "form").values),
            "te": (("form",), te_mean),
            "te_lower": (("form",), te_lower),
            "te_upper": (("form",), te_upper),
        },
        coords={
            "rule": maps["rule"].values,
            "form": maps["form"].values,
            "component": maps["component"].values,
            "role": np.array([*ROLES, LOOKUP], dtype=object),
            "layer": maps["layer"].values,
        },
        attrs={
            **_attributes(maps, config),
            "n_untraceable": int((traced & ~traceable).sum()),
            "n_prompts": int(traced.sum()),
        },
    )


def _attributes(maps: xr.Dataset, config: ProfileConfig) -> dict[str, Any]:
    """Where the maps come from, and how they are averaged."""
    return {
        **{name: value for name, value in maps.attrs.items() if name != "schema"},
        "schema": SCHEMA,
        "lookup_roles": " ".join(config.lookup_roles),
        "confidence": config.confidence,
        "bootstrap": config.bootstrap,
        "bootstrap_seed": config.seed,
    }


def _effects_by_role(
    maps: xr.Dataset, traceable: np.ndarray, names: list[tuple[str, ...]]
) -> np.ndarray:
    """Shape (rule, form, component, role, layer), NaN for prompts that are not traceable."""
    roles = maps["role"].transpose("rule", "form", "pos").values
    rules, forms, components, layers = (
        maps.sizes[dim] for dim in ("rule", "form", "component", "layer")
    )
    out = np.full((rules, forms, components, len(names), layers), np.nan)
    for rule in np.flatnonzero(traceable.any(1)):
        ie = (
            effect_maps.indirect_effect(maps.isel(rule=rule))
            .transpose("form", "component", "layer", "pos")
            .values
        )
        for form in np.flatnonzero(traceable[rule]):
            out[rule, form] = mean_by_role(ie[form], roles[rule, form], names).transpose(0, 2, 1)
    return out
