"""NetCDF files of others: read where they can be stopped; one's own, and what has passed, as
they are."""

import hashlib
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from interp.errors import DamagedError
from interp.results import checksums, foreign_files, netcdf

# A dataset of two variables, one byte of which (offset 451: 1 → 164) was changed before it was
# sealed again.
ENDLESS = Path(__file__).parents[3] / "data" / "endless.nc"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Nothing is known at first."""
    monkeypatch.setenv("DMLE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def some(start: float = 0.0) -> xr.Dataset:
    """A small dataset."""
    return xr.Dataset(
        {"a": (("x", "y"), np.arange(6.0).reshape(2, 3) + start), "t": ("x", ["p", "q"]), "s": 1.5}
    )


def foreign(path: Path, content: bytes) -> Path:
    """A file that somebody else wrote: a correct checksum that this cache does not hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        content + checksums.SEAL + hashlib.sha256(content).hexdigest().encode() + b"\n"
    )
    return path


def refuse_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any further process is a failure."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(foreign_files.subprocess, "run", never)


@pytest.mark.golden
def test_an_endless_loop_of_hdf5_ends_in_seconds_and_is_told() -> None:
    start = time.monotonic()
    with pytest.raises(
        DamagedError,
        match=r"HDF5 ran out of time: it is damaged, or was altered on purpose; delete",
    ):
        netcdf.load(ENDLESS)
    assert time.monotonic() - start < 60


def test_own_files_are_read_without_a_further_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netcdf.save(some(), tmp_path / "a.nc")
    refuse_children(monkeypatch)
    xr.testing.assert_identical(netcdf.load(tmp_path / "a.nc"), some())
    with netcdf.opened(tmp_path / "a.nc") as dataset:
        assert dataset["a"].values[1, 2] == 5.0


def test_what_passed_is_known_from_then_on_with_its_neighbours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    paths = [foreign(folder / f"{i}.nc", bytes(netcdf.content_of(some(i)))) for i in range(3)]
    xr.testing.assert_identical(netcdf.load(paths[1]), some(1))
    refuse_children(monkeypatch)
    for i, path in enumerate(paths):
        xr.testing.assert_identical(netcdf.load(path), some(i))


@pytest.mark.golden
def test_a_bad_neighbour_does_no_harm_and_is_refused_itself(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(foreign_files, "SECONDS", 1.0)
    folder = tmp_path / "run"
    good = [
        foreign(folder / name, bytes(netcdf.content_of(some(at))))
        for at, name in enumerate(("a.nc", "z.nc"))
    ]
    shutil.copy(ENDLESS, folder / "m.nc")
    for at, path in enumerate(good):
        xr.testing.assert_identical(netcdf.load(path), some(at))
    with pytest.raises(DamagedError, match="ran out of time"):
        netcdf.load(folder / "m.nc")


def test_a_neighbour_that_claims_the_checksum_of_another_file_does_not_make_it_known(
    tmp_path: Path,
) -> None:
    """A harmless file beside, with the endless file's checksum behind it, would otherwise vouch
    for that one."""
    folder = tmp_path / "run"
    wanted = foreign(folder / "a.nc", bytes(netcdf.content_of(some())))
    line = ENDLESS.read_bytes()[-checksums.SEAL_BYTES :]
    (folder / "b.nc").write_bytes(bytes(netcdf.content_of(some(1))) + line)
    netcdf.load(wanted)
    assert not foreign_files.is_known(line[len(checksums.SEAL) : -1].decode())


@pytest.mark.parametrize("content", [b"", b"CDF\x01", b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_no_hdf5_at_all_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DamagedError, match="is not a readable NetCDF file"):
        netcdf.load(foreign(tmp_path / "a.nc", content))


def test_a_cache_that_cannot_be_written_costs_time_only(own_cache: Path, tmp_path: Path) -> None:
    own_cache.write_text("a file in the place of the folder", encoding="utf-8")
    netcdf.save(some(), tmp_path / "a.nc")
    for _ in range(2):
        xr.testing.assert_identical(netcdf.load(tmp_path / "a.nc"), some())


def test_the_cache_does_not_grow_without_bound(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setattr(foreign_files, "BUCKET_BYTES", 200)
    sums = [f"ab{at:062d}" for at in range(50)]
    for each in sums:
        foreign_files.remember(each)
    (bucket,) = (own_cache / "known-files").iterdir()
    assert bucket.stat().st_size <= 200 + 2 * 65
    assert foreign_files.is_known(sums[-1]) and not foreign_files.is_known(sums[0])
