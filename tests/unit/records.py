"""Records of hand-made results, as the steps write them."""

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp.app.freshness import RECORD, Made, settings_of
from interp.app.steps import load_steps, parse_settings
from interp.results.netcdf import KINDS, LABELS, NUMBERED, UNLABELLED, Kind
from interp.results.provenance import VERSIONS
from interp.selection.layers import LayerGroup, LayerSelection


def record(step: str, *sections: str, settings: dict[str, Any] | None = None, **more: Any) -> Made:
    """The record of a result of a step, whose numbers depend on some sections, and on no rules
    and model."""
    parsed = parse_settings(load_steps(), settings or {})
    values = {
        key: value for name in sections for key, value in settings_of(name, parsed[name]).items()
    }
    return Made(step=step, version=VERSIONS[step], settings=values, sections=sections, **more)


def recorded(data: xr.Dataset, step: str, *sections: str, **more: Any) -> xr.Dataset:
    """A dataset with a record (see `record`)."""
    return data.assign_attrs({RECORD: record(step, *sections, **more).text()})


def window_selection(n_layers: int, *groups: Any) -> LayerSelection:
    """Layers that windows of two mlps were selected for, by group of forms."""
    return LayerSelection(
        schema="dmle.selection/1",
        strategy="window",
        component="mlp",
        role="lookup",
        width=2,
        n_layers=n_layers,
        groups=tuple(LayerGroup.model_validate(group) for group in groups),
    )


def known(run: Path) -> None:
    """Make a folder one whose settings are known: the defaults."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.yaml").write_text("settings: {}\n", encoding="utf-8")


def with_means(profile: xr.Dataset) -> xr.Dataset:
    """A profile with the means of its effects, as it is written; its intervals have no width."""
    mean = profile["effect"].mean("rule")
    number = profile["effect"].isel(layer=0, drop=True).notnull().sum("rule")
    te = profile["te"]
    return profile.assign(aie=mean, lower=mean, upper=mean, n=number, te_lower=te, te_upper=te)


def smallest(name: str) -> xr.Dataset:
    """The smallest dataset that readers take for the file of that name: one of everything."""
    if (kind := KINDS.get(name)) is None:
        return xr.Dataset({"x": ("y", np.zeros(1))})
    labels = {dim: _labels(dim, kind) for dim in kind.dims - UNLABELLED}
    dims = sorted(kind.dims)
    shape = [len(labels.get(dim, [0])) for dim in dims]
    values = {variable: (dims, np.zeros(shape)) for variable in kind.variables}
    return xr.Dataset(values, coords=labels)


def _labels(dim: str, kind: Kind) -> list[int] | np.ndarray:
    if dim in NUMBERED:
        return [0]
    known = LABELS.get(dim, ("a",))
    return np.array(known if dim in kind.whole else known[:1], dtype=object)
