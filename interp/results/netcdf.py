"""Labelled arrays on the disk: NetCDF4 files with a checksum behind them.

The checksum is that of `interp.results.checksums`. xarray, h5py and every other reader of HDF5 open
them as they are: what stands behind the end of HDF5's own data is passed over. A file is opened
here only if its checksum fits, and if it was written here or has passed `foreign_files.check`: of
another one the C library can make other numbers, an endless loop or a crash. Datasets from
elsewhere are read by xarray, and saved by `save`.

HDF5 does not survive a failed write, and crashes the process. So files are made in memory, or by
way of `Growing`, which never fails; errors of the disk are Python's.
"""

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from interp.results import foreign_files
from interp.results.checksums import check_seal, damaged, write_sealed
from interp.results.scores import PHASES
from interp.results.sequences import MEASURES
from interp.vocabulary import COMPONENTS, FORMS, LOOKUP, RANKINGS, ROLES


@dataclass(frozen=True)
class Kind:
    """What a file of some name must hold for its readers to work."""

    what: str
    schema: str
    dims: frozenset[str] = frozenset()
    variables: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    """Dims that a file of another kind has."""
    whole: frozenset[str] = frozenset()
    """Dims along which every label of `LABELS` is needed."""


def _kind(
    what: str, schema: str, dims: str, variables: str, without: str = "", whole: str = ""
) -> Kind:
    sets = (frozenset(names.split()) for names in (dims, variables, without, whole))
    return Kind(what, schema, *sets)


_MAP = "score clean corrupted token role is_corrupted prompt answer"
_SCORES = _kind(
    "scores file", "dmle.scores/", "editor rule form metric mode phase", "score", whole="phase"
)
KINDS: Mapping[str, Kind] = {
    "effects.nc": _kind(
        "effect map of rules",
        "dmle.effects/",
        "rule form component layer pos sample",
        f"{_MAP} n_tokens",
    ),
    "faithfulness.nc": _kind(
        "file of curves",
        "dmle.faithfulness/",
        "rule form component ranking share",
        "recovered area linear_area k n_sites clean corrupted",
    ),
    "profile.nc": _kind(
        "layer profile",
        "dmle.profile/",
        "form component role layer rule",
        "aie lower upper n effect total_effect traceable te te_lower te_upper",
        whole="role",
    ),
    "scores.nc": _SCORES,
    "tuning.nc": _SCORES,
    "evidence.nc": _kind("evidence file", "dmle.evidence/", "rule form layer", ""),
    "sweep.nc": _kind(
        "sweep",
        "dmle.sweep/",
        "group rule window",
        "score start width arm_score arm_group arm_layers",
    ),
    "sequence.nc": _kind(
        "sequence of edits",
        "dmle.sequence/",
        "arm order edits rule metric mode measure",
        "score effect failed",
        whole="measure",
    ),
}
"""By the name that a file has in a run folder."""
UNLABELLED = frozenset(("pos", "sample", "share"))
"""Dims that are counted; all others have labels, by which they are read."""
NUMBERED = frozenset(("layer", "edits"))
"""Labels that are numbers; all others are texts."""
NUMBERS = frozenset(("n_tokens", "is_corrupted", "share", "start", "width"))
"""Coordinates that are numbers; of the kinds above, variables that are no coordinates all are."""
WHOLE_NUMBERS = ("window",)
"""Attributes that are whole numbers, where they are."""
LABELS: Mapping[str, tuple[str, ...]] = {
    "form": FORMS,
    "component": COMPONENTS,
    "ranking": RANKINGS,
    "role": (*ROLES, LOOKUP),
    "phase": PHASES,
    "measure": MEASURES,
}
"""What labels there can be, by dim; others are free."""
_OF_FOLDERS: Mapping[str, Kind] = {
    "traces": _kind("effect map", "dmle.effects/", "component layer pos sample", _MAP, "rule form"),
    "evidence": KINDS["evidence.nc"],
    "faithfulness": KINDS["faithfulness.nc"],
}


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write NetCDF4 atomically: a killed run leaves the old file or the new one, never a torn one.

    Raises:
        WriteError: The disk is full, the folder cannot be written, ….
    """
    foreign_files.remember(write_sealed(path, content_of(dataset)))


def load(path: Path) -> xr.Dataset:
    """Read a dataset written by `save` fully into memory.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It does not hold what was written, or is larger than the memory of this
            machine.
    """
    with opened(path) as dataset:
        if reason := foreign_files.too_large(dataset):
            raise damaged(path, _kind_of(path).what, reason)
        try:
            return dataset.load()
        except Exception as error:  # as in `opened`
            raise damaged(path, _kind_of(path).what, error) from error


@contextmanager
def opened(path: Path) -> Iterator[xr.Dataset]:
    """A dataset written by `save` or `interp.results.effects.join`, read from the disk piece by
    piece as it is used.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It does not hold what was written.
    """
    kind = _kind_of(path)
    foreign_files.check(path, check_seal(path, kind.what).sha256, kind.what)
    try:
        dataset = xr.open_dataset(path, engine="h5netcdf")
    except (
        Exception
    ) as error:  # whole, but no NetCDF: h5py, h5netcdf and xarray raise errors of any class then
        raise damaged(path, kind.what, error) from error
    with dataset:
        _check_kind(path, dataset, kind)
        yield dataset


def attribute(path: Path, name: str) -> Any:
    """An attribute of a dataset written by `save`, None if it has none of that name.

    Nothing else is read: to open a dataset takes many times as long.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It does not hold what was written.
    """
    kind = _kind_of(path)
    foreign_files.check(path, check_seal(path, kind.what).sha256, kind.what)
    try:
        with h5py.File(path, "r") as file:
            return file.attrs.get(name)
    except Exception as error:  # as in `opened`
        raise damaged(path, kind.what, error) from error


def content_of(dataset: xr.Dataset) -> memoryview | bytes:
    """A dataset as the bytes of a NetCDF4 file."""
    encoding = {
        str(name): {"zlib": True, "complevel": 4}
        for name, data in dataset.data_vars.items()
        if data.ndim and data.dtype.kind in "fiub"
    }
    return dataset.to_netcdf(engine="h5netcdf", encoding=encoding)


class Growing(io.RawIOBase):
    """A file that HDF5 writes piece by piece, and in which no write fails.

    After the first failure pieces are kept in memory, so that HDF5 can come to an end; `check` then
    says what was.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self._at = 0
        self._size = os.fstat(file.fileno()).st_size
        self._kept: list[tuple[int, bytes]] = []
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise what a write met, if one failed.

        Raises:
            OSError: The disk is full, ….
        """
        if self._error is not None:
            raise self._error

    def readable(self) -> bool:
        """It is."""
        return True

    def writable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Where the next piece is read or written."""
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move there."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = start + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read what was written, wherever it is."""
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self._size - self._at))
        view[:wanted] = bytes(wanted)
        self._file.seek(self._at)
        done = 0
        while done < wanted and (got := self._file.readinto(view[done:wanted])):
            done += got
        for start, piece in self._kept:
            first, last = max(start, self._at), min(start + len(piece), self._at + wanted)
            if first < last:
                view[first - self._at : last - self._at] = piece[first - start : last - start]
        self._at += wanted
        return wanted

    def write(self, piece: Any) -> int:
        """Write to the disk, or keep it."""
        view = memoryview(piece).cast("B")
        done = 0
        try:
            self.check()
            self._file.seek(self._at)
            while done < len(view):
                done += self._file.write(view[done:]) or 0
        except OSError as error:
            self._error = error
            self._kept.append((self._at + done, bytes(view[done:])))
        self._at += len(view)
        self._size = max(self._size, self._at)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Change the size; what is added reads as zeros."""
        self._size = self._at if size is None else size
        if self._error is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self._error = error
        return self._size


def _kind_of(path: Path) -> Kind:
    return KINDS.get(path.name) or _OF_FOLDERS.get(path.parent.name) or Kind("NetCDF file", "")


def _check_kind(path: Path, dataset: xr.Dataset, kind: Kind) -> None:
    if reason := _fault(dataset, kind):
        raise damaged(path, kind.what, reason)


def _fault(dataset: xr.Dataset, kind: Kind) -> str:
    """What a dataset lacks to be read as of a kind; "" if nothing."""
    schema = str(dataset.attrs.get("schema", kind.schema))
    if not schema.startswith(kind.schema):
        return f"its schema is {schema}, {kind.schema}… is needed"
    dims = set(map(str, dataset.dims))
    labels = kind.dims & dims - UNLABELLED
    needed = kind.variables | labels
    if missing := sorted((kind.dims - dims) | (needed - set(map(str, dataset.variables)))):
        return f"it lacks {', '.join(missing)}"
    if kind.without & dims:
        return "it is a joined file of many"
    if empty := [dim for dim in sorted(kind.dims) if not dataset.sizes[dim]]:
        return f"it holds nothing along {empty[0]}"
    if fault := _index_fault(dataset, kind):
        return fault
    faults = (_label_fault(dataset[name]) for name in sorted(labels))
    return next(filter(None, faults), "") or (_number_fault(dataset) if kind.dims else "")


def _index_fault(dataset: xr.Dataset, kind: Kind) -> str:
    """Which label is missing or there twice; "" if none."""
    for name in sorted(kind.whole):
        if lacking := [label for label in LABELS[name] if label not in dataset[name].values]:
            return f"it lacks the label {lacking[0]!r} of {name}"
    for name in map(str, dataset.indexes):
        if not dataset.indexes[name].is_unique:
            return f"two labels of {name} are the same"
    return ""


def _number_fault(dataset: xr.Dataset) -> str:
    """Which text or list stands where a number should be; "" if none."""
    for name in sorted({*map(str, dataset.data_vars)} | (NUMBERS & {*map(str, dataset.coords)})):
        if dataset[name].dtype.kind not in "fiub":
            return f"{name} is {dataset[name].dtype}, numbers are needed"
    for name in WHOLE_NUMBERS:
        value = dataset.attrs.get(name, 1)
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            return f"its attribute {name} is {value!r}, a whole number is needed"
    return ""


def _label_fault(labels: xr.DataArray) -> str:
    """What is wrong with the labels of a dim; "" if nothing."""
    name, kind = str(labels.name), labels.dtype.kind
    if name in NUMBERED and kind not in "iu":
        return f"the labels of {name} are {labels.dtype}, whole numbers are needed"
    if name not in NUMBERED and kind not in "OUS":
        return f"the labels of {name} are {labels.dtype}, texts are needed"
    values = labels.values.tolist()
    if unknown := [value for value in values if value not in LABELS.get(name, values)]:
        return f"{unknown[0]!r} is no label of {name}"
    return ""
