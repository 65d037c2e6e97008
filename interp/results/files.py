"""Files, written whole or not at all: the one place that writes.

A file is written beside its target under a name of its own, brought to the disk, and renamed.
Readers see the old content or the new, never a part, also after a crash. Several processes may
write one target; the last one wins. What a killed process left is removed when its folder is
written next. A full disk, a folder that cannot be written, a folder in the way are a `WriteError`
that names the file.

    write_text(path, text); write_bytes(path, content)
    with atomic(path) as partial: …          # for libraries that want a path
    with writing(path) as file: …            # a binary file

Results have checksums: `interp.results.checksums` writes those, and reads them.
"""

import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from interp.errors import DmleError, WriteError

PARTIAL_SUFFIX = ".partial"
PARTIAL = re.compile(r"\..*\.dmle-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.partial", re.DOTALL)
"""Names of files that are being written: which machine, which process."""
ABANDONED_SECONDS = 24 * 3600.0
"""A partial file of another machine that nobody wrote to for so long has no owner any more."""
NAME_BYTES = 160
"""Of the target's name in a partial name: both fit into the 255 bytes that file systems take."""


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to inside a `with` block, which becomes `path` on leaving it, or vanishes
    with an exception.

    The block makes a file, or a folder where nothing is yet.

    Raises:
        WriteError: The block, or what follows it, cannot write: the disk is full, the folder
            read-only, ….
    """
    partial = partial_path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        try:
            yield partial
            _to_disk(partial)
            sweep(path.parent, partial)
            partial.replace(path)
        finally:
            _remove(partial)


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A new binary file inside a `with` block (it can be read, too), which becomes `path` as
    `atomic` says.
    """
    with atomic(path) as partial, partial.open("x+b") as file:
        yield file


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with writing(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8, the line ends of the text)."""
    write_bytes(path, text.encode())


def partial_path(path: Path) -> Path:
    """A name beside `path` that no other process and no other thread takes, and that `sweep`
    knows.
    """
    name = path.name.encode(errors="surrogateescape")[:NAME_BYTES].decode(errors="ignore")
    return path.with_name(
        f".{name}.dmle-{_machine()}-{os.getpid()}-{uuid4().hex[:8]}{PARTIAL_SUFFIX}"
    )


def sweep(folder: Path, newest: Path | None = None) -> None:
    """Remove what killed processes left half-written in a folder; never what a living process is
    at.

    Of this machine, those of processes that are gone; of other machines (the folder may be shared),
    those that nobody wrote to for a day, by the clock of the file system.

    Args:
        folder: The folder.
        newest: A file there that was written just now, to tell the time by; without one, other
            machines' are left.
    """
    with suppress(OSError):
        now = newest.stat().st_mtime if newest is not None else 0.0
        for entry in os.scandir(folder):
            found = PARTIAL.fullmatch(entry.name)
            if found is None or entry.is_symlink():
                continue
            machine, process = found[1], int(found[2])
            here = machine == _machine()
            if here and process == os.getpid():
                continue  # perhaps another thread's
            if (here and not _alive(process)) or now - _touched(entry) > ABANDONED_SECONDS:
                _remove(Path(entry.path))


def _to_disk(path: Path) -> None:
    """Nothing replaces a file before it is on the disk: networks say only now that there is no
    room.
    """
    if path.is_dir():
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _touched(entry: os.DirEntry[str]) -> float:
    """When a file, or anything in a folder, was last written."""
    times = [entry.stat(follow_symlinks=False).st_mtime]
    if entry.is_dir(follow_symlinks=False):
        times += [path.lstat().st_mtime for path in Path(entry.path).rglob("*")]
    return max(times)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@cache
def _machine() -> str:
    """Eight hex digits for where process ids mean the same: a machine since it was started, or a
    container.
    """
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"))
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _alive(process: int) -> bool:
    if os.name == "nt":  # there os.kill ends the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


_ADVICE = {
    errno.ENOSPC: "make room there, or give another folder; then run the same command again",
    errno.EDQUOT: (
        "your quota there is used up: make room, or give another folder; then run the same command"
        " again"
    ),
    errno.EFBIG: (
        "files there may not be so large (see `ulimit -f`): raise the limit, or give another folder"
    ),
    errno.EROFS: "nothing can be written there: give another folder",
    errno.EACCES: (
        "you may not write there: change the folder's permissions (`chmod u+w`), or give another"
        " folder"
    ),
    errno.EPERM: (
        "you may not write there: change the folder's permissions (`chmod u+w`), or give another"
        " folder"
    ),
    errno.ENAMETOOLONG: "the name is too long for the file system: give a shorter one",
    errno.EISDIR: "a folder of that name is in the way: remove or rename it",
    errno.ENOTEMPTY: "a folder of that name is in the way: remove or rename it",
    errno.ENOTDIR: "a file is in the place of one of its folders: remove or rename it",
    errno.EEXIST: "a file is in the place of one of its folders: remove or rename it",
    errno.ENOENT: "its folder was removed meanwhile: run the same command again",
}


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error of the system inside the block, as one that names the file and what to do."""
    try:
        yield
    except DmleError:  # of what the block reads
        raise
    except OSError as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError) -> WriteError:
    """What to say of a file that cannot be written."""
    advice = _ADVICE.get(error.errno or 0, "see that the folder can be written, or give another")
    if error.errno == errno.EISDIR or (error.errno == errno.EACCES and path.is_dir()):
        advice = _ADVICE[errno.EISDIR]
    return WriteError(f"cannot write {path}: {error.strerror or error}; {advice}")
