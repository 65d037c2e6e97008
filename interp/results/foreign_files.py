"""NetCDF files that this user did not write are first read whole in a process of their own, within
limits.

HDF5 trusts what it reads: on a file that somebody altered on purpose it can loop for ever, take all
memory or crash. A checksum does not help, since whoever alters a file can write its checksum, too.
So the checksums of files that this user's own commands wrote are kept in the user's cache, and a
file with another one is tried where it can be stopped. What passes is remembered: a run folder from
a colleague costs about two seconds once, one's own files nothing.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from interp.errors import DmleError, InputError
from interp.results.cache import cache_dir
from interp.results.checksums import check_seal, damaged

if TYPE_CHECKING:
    import xarray as xr

SECONDS = 5.0
"""Time of the processor for one file; a healthy one of a megabyte takes 0.05 seconds."""
BYTES_PER_SECOND = 10_000_000
"""Further time for large files."""
MEMORY = 4 << 30
"""What reading may take beyond what the process has before it, in bytes."""
PIECE = 1 << 26
"""Bytes of a variable that are read at a time."""
BUCKET_BYTES = 1 << 16
"""A file of the cache that grows beyond this is begun anew; what it held is checked again when
it is needed."""
WALL_FACTOR = 20
"""The clock of the wall is given so many times as long: other processes may have the processor."""


def remember(sha256: str) -> None:
    """Note the checksum of a file that was written here, or passed `check`.

    Nothing is said if the cache cannot be written: the file is then checked each time.
    """
    bucket = _bucket(sha256)
    with suppress(OSError):
        bucket.parent.mkdir(parents=True, exist_ok=True)
        large = bucket.exists() and bucket.stat().st_size > BUCKET_BYTES
        with bucket.open("wb" if large else "ab", buffering=0) as file:
            file.write(f"{sha256}\n".encode())  # one write: processes do not mix their lines


def is_known(sha256: str) -> bool:
    """Whether a checksum was remembered."""
    try:
        return sha256.encode() in _bucket(sha256).read_bytes().split(b"\n")
    except OSError:
        return False


def check(path: Path, sha256: str, what: str) -> None:
    """See that a file can be read whole within the limits, unless it is known.

    The unknown files beside it are tried in the same process, since a command reads them next.

    Args:
        path: A NetCDF file whose checksum fits.
        sha256: That checksum.
        what: What it should be, for the error: "effect map".

    Raises:
        DamagedError: Reading did not end in time, took too much memory, or crashed; or it is no
            NetCDF file.
    """
    if is_known(sha256):
        return
    files = {path: sha256}
    for other in sorted(path.parent.glob("*.nc")):
        # Compared here, too: who may choose the checksum that is remembered could choose another
        # file's.
        with suppress(DmleError):
            if other != path and not is_known(found := check_seal(other, "NetCDF file").sha256):
                files[other] = found
    passed, said = _read_in_child(list(files))
    for file in passed:
        remember(files[file])
    if path not in passed:
        raise damaged(path, what, said)


def too_large(dataset: "xr.Dataset") -> str:
    """Why a dataset cannot be read whole, if so: it asks for more than the memory of this
    machine.
    """
    try:
        most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # the system does not say
        return ""
    return (
        f"it asks for {dataset.nbytes} bytes, more than the {most} there are"
        if dataset.nbytes > most
        else ""
    )


def _bucket(sha256: str) -> Path:
    return cache_dir() / "known-files" / sha256[:2]


def _seconds(path: Path) -> float:
    return SECONDS + path.stat().st_size / BYTES_PER_SECOND


def _read_in_child(paths: Sequence[Path]) -> tuple[list[Path], str]:
    """Read files in a new process, in order, up to the first that fails.

    Returns:
        Those that could be read; and what the first other did.
    """
    wall = 60 + WALL_FACTOR * sum(map(_seconds, paths))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "interp.results.foreign_files"],
            input="\0".join(f"{_seconds(path)} {path.absolute()}" for path in paths).encode(
                errors="surrogateescape"
            ),
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "OMP_NUM_THREADS": "1",
            },
            capture_output=True,
            timeout=wall,
            check=False,
        )
        lines, code = done.stdout.decode(errors="replace").splitlines(), done.returncode
    except subprocess.TimeoutExpired as stopped:
        lines, code = (stopped.stdout or b"").decode(errors="replace").splitlines(), None
    passed = [path for path in paths if f"read {paths.index(path)}" in lines]
    told = [line.removeprefix("failed ") for line in lines if line.startswith("failed ")]
    if told:
        return passed, told[0]
    how = (
        "ran out of time"
        if code is None or code < 0
        else f"ended the process that read it (code {code})"
    )
    return passed, f"HDF5 {how}: it is damaged, or was altered on purpose"


def _limit(seconds: float) -> None:
    """Let this process run for so long from now."""
    with suppress(ImportError):  # Windows has none; the clock of the parent ends the process
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime + seconds) + 1
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (most, hard))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_memory() -> None:
    with suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _read(path: Path) -> None:
    import xarray as xr

    with xr.open_dataset(path, engine="h5netcdf") as dataset:
        if reason := too_large(dataset):
            raise InputError(reason)
        for name in dataset.variables:
            variable = dataset.variables[name]
            if not variable.ndim:
                variable.load()
                continue
            rows = len(variable) and max(1, PIECE // max(variable.nbytes // len(variable), 1))
            for start in range(0, len(variable), rows or 1):
                variable[start : start + rows].load()


def _main() -> int:
    tasks = sys.stdin.buffer.read().decode(errors="surrogateescape").split("\0")
    import_module("xarray")  # its seconds are not the file's
    _limit_memory()
    for at, task in enumerate(tasks):
        seconds, _, path = task.partition(" ")
        _limit(float(seconds))
        try:
            _read(Path(path))
        except InputError as error:
            sys.stdout.write(f"failed {error}\n")
            return 1
        # Whole, but no NetCDF: h5py, h5netcdf and xarray raise errors of any class then.
        except Exception as error:
            sys.stdout.write(
                f"failed {type(error).__name__}: {' '.join(str(error).split())[:300]}\n"
            )
            return 1
        sys.stdout.write(f"read {at}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(_main())
