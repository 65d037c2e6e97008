"""Datasets with a right checksum that hold text where numbers are read, or lack a phase."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from interp.errors import DamagedError
from interp.results import netcdf

PROFILE = Path(__file__).parents[4] / "docs" / "data" / "profile-smollm2.nc"


@pytest.fixture
def profile() -> xr.Dataset:
    return xr.load_dataset(PROFILE, engine="h5netcdf")


def scores() -> xr.Dataset:
    dims = {
        "editor": ["memit"],
        "rule": ["square"],
        "form": ["formula"],
        "metric": ["reliability"],
        "mode": ["exact"],
        "phase": ["pre", "post"],
    }
    values = np.zeros([len(labels) for labels in dims.values()])
    return xr.Dataset({"score": (tuple(dims), values)}, dims, {"schema": "dmle.scores/1"})


def test_numbers_that_are_texts_are_refused_by_name(tmp_path: Path, profile: xr.Dataset) -> None:
    path = tmp_path / "profile.nc"
    netcdf.save(profile, path)
    assert netcdf.load(path).identical(netcdf.load(path))
    for broken, said in (
        (profile.assign(te=profile["te"].astype(str)), "te is .*, numbers are needed"),
        (profile.assign_attrs(window=np.array([1, 2])), "attribute window is .*, a whole number"),
        (profile.assign_attrs(window="3"), "attribute window is '3', a whole number"),
    ):
        netcdf.save(broken, path)
        with pytest.raises(DamagedError, match=said):
            netcdf.load(path)


@pytest.mark.parametrize("phases", [["pre", "later"], ["post", "before"]])
def test_scores_need_both_phases(tmp_path: Path, phases: list[str]) -> None:
    path = tmp_path / "scores.nc"
    netcdf.save(scores(), path)
    assert netcdf.load(path).sizes["phase"] == 2
    netcdf.save(scores().assign_coords(phase=phases), path)
    with pytest.raises(DamagedError, match="lacks the label"):
        netcdf.load(path)
