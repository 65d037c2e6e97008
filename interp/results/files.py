"""Files, written whole or not at all and read back only as they were written: the one place that
does both.

Writing: a file is written beside its target under a name of its own, brought to the disk, and
renamed. Readers see the old content or the new, never a part, also after a crash. Several processes
may write one target; the last one wins. What a killed process left is removed when its folder is
written next. A full disk, a folder that cannot be written, a folder in the way are a `WriteError`
that names the file.

    write_text(path, text); write_bytes(path, content)
    with atomic(path) as partial: …          # for libraries that want a path
    with writing(path) as file: …            # a binary file

Reading: results carry a checksum of their content, which is compared before anything is made of it,
and what does not fit is a `DamagedError` that names the file and the command that makes it again.

    write_json(path, {"schema": …, …}); read_json(path, "cell", schema="dmle.cell/1")
    write_marked(path, text); read_marked(path, "settings of a run")  # YAML: in a comment
    write_sealed(path, content); check_seal(path, "effect map")  # any bytes, and a checksum line

Paths: `inside(folder, name)` is the path of a name that somebody else chose, and refuses what
leaves the folder.
"""

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple
from uuid import uuid4

from interp.errors import DamagedError, DmleError, MissingFileError, WriteError

PARTIAL_SUFFIX = ".partial"
PARTIAL = re.compile(r"\..*\.dmle-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.partial", re.DOTALL)
"""Names of files that are being written: which machine, which process."""
ABANDONED_SECONDS = 24 * 3600.0
"""A partial file of another machine that nobody wrote to for so long has no owner any more."""
NAME_BYTES = 160
"""Of the target's name in a partial name: both fit into the 255 bytes that file systems take."""
JSON_BYTES = 1 << 30
"""Larger JSON files are refused: ours are far smaller, and reading takes some times as much
memory."""
TEXT_BYTES = 1 << 24
"""The same of texts that people write."""
CHECKSUM = "checksum"
MARK = "# Written by dmle, not to be changed by hand; sha256 "
SEAL = b"\n#dmle-sha256:"
SEAL_BYTES = len(SEAL) + 64 + 1
BLOCK = 1 << 20


# -- writing -------------------------------------------------------------------------------------


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
    with _told(path):
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
def _told(path: Path) -> Iterator[None]:
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


# -- reading -------------------------------------------------------------------------------------


def regular(path: Path, what: str, mend: str | None = None) -> BinaryIO:
    """Open a file for reading, if it is one: folders, pipes and devices are refused, and never
    waited for.

    Raises:
        MissingFileError: There is nothing.
        DamagedError: It is no regular file, or cannot be read.
    """
    try:
        held = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist; {_maker(path)} first") from error
    except (OSError, ValueError) as error:
        if path.is_dir():  # which Windows does not open
            raise damaged(path, what, "it is a folder", mend) from error
        raise damaged(path, what, getattr(error, "strerror", None) or str(error), mend) from error
    mode = os.fstat(held).st_mode
    if not stat.S_ISREG(mode):
        os.close(held)
        raise damaged(
            path, what, "it is a folder" if stat.S_ISDIR(mode) else "it is a pipe or a device", mend
        )
    return os.fdopen(held, "rb")


def read_bytes(path: Path, what: str, mend: str | None = None, *, limit: int = JSON_BYTES) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        MissingFileError: There is nothing.
        DamagedError: It is no regular file, too large, or cannot be read.
    """
    with regular(path, what, mend) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise damaged(
                path, what, f"it has {size} bytes, more than the {limit} that are read", mend
            )
        try:
            return file.read()
        except OSError as error:
            raise damaged(path, what, error.strerror or str(error), mend) from error


def damaged(path: Path, what: str, reason: object, mend: str | None = None) -> DamagedError:
    """The error for a file that does not hold what was written.

    Args:
        path: The file.
        what: What it should be: "effect map".
        reason: What was found.
        mend: What to do; by default what `remedy` says.
    """
    said = " ".join(str(reason).split())
    return DamagedError(f"{path} is not a readable {what}: {said[:300]}; {mend or remedy(path)}")


_MADE_BY = {
    "effects.nc": "trace",
    "profile.nc": "profile",
    "selection.json": "select",
    "selection-rules.json": "select",
    "scores.nc": "evaluate",
    "answers.json": "evaluate",
    "evidence.nc": "evidence",
    "sweep.nc": "sweep",
    "regret.nc": "regret",
    "tuning.nc": "tune",
}
_FOLDERS_MADE_BY = {
    "traces": "trace",
    "deltas": "edit",
    "covariance": "edit",
    "cells": "compare",
    "evidence": "evidence",
}


def remedy(path: Path) -> str:
    """How to make a file of a run folder again: delete it, and the command."""
    return f"delete it and {_maker(path)} again"


def _maker(path: Path) -> str:
    """The command that writes a file, as an order."""
    run, command = path.parent, _MADE_BY.get(path.name)
    if command is None:
        for folder in path.parents:
            if folder.name in _FOLDERS_MADE_BY:
                run, command = folder.parent, _FOLDERS_MADE_BY[folder.name]
                break
    if command is None:
        return "run the command that writes it"
    return f"run `dmle {command} --run {shlex.quote(str(run))}`"


# -- checksums -----------------------------------------------------------------------------------


def digest(file: BinaryIO, size: int = -1) -> str:
    """SHA-256 of the next `size` bytes (all) of a file, read in pieces: 64 hexadecimal digits."""
    found = hashlib.sha256()
    while size and (block := file.read(BLOCK if size < 0 else min(BLOCK, size))):
        found.update(block)
        size -= len(block) if size > 0 else 0
    return found.hexdigest()


class Sealed(NamedTuple):
    """Content with its checksum behind it: bytes without that line, and the checksum, 64
    hexadecimal digits.
    """

    size: int
    sha256: str


def seal(file: BinaryIO) -> str:
    """Write the checksum of a file's content behind it: one line, which readers of HDF5 pass
    over; return it.
    """
    file.seek(0)
    found = digest(file)
    file.seek(0, os.SEEK_END)
    line = memoryview(SEAL + found.encode() + b"\n")
    while line:  # an unbuffered file may take a part only, when the disk is nearly full
        line = line[file.write(line) or 0 :]
    return found


def write_sealed(path: Path, content: bytes | memoryview) -> str:
    """Write bytes with their checksum behind them, atomically; return it."""
    found = hashlib.sha256(content).hexdigest()
    with writing(path) as file:
        file.write(content)
        file.write(SEAL + found.encode() + b"\n")
    return found


def check_seal(path: Path, what: str, mend: str | None = None) -> Sealed:
    """Compare a file with the checksum behind it.

    Returns:
        Its size without the checksum, and that.

    Raises:
        MissingFileError: There is nothing.
        DamagedError: It differs, or has none.
    """
    with regular(path, what, mend) as file:
        try:
            size = os.fstat(file.fileno()).st_size - SEAL_BYTES
            if size < 0:
                raise damaged(path, what, f"it has {size + SEAL_BYTES} bytes and no checksum", mend)
            file.seek(size)
            line = file.read()
            file.seek(0)
            if not line.startswith(SEAL):
                reason = (
                    "it has no checksum: it was cut short, or not written by this version of dmle"
                )
                raise damaged(path, what, reason, mend)
            found = digest(file, size)
            if SEAL + found.encode() + b"\n" != line:
                raise damaged(path, what, "its content does not fit its checksum", mend)
        except OSError as error:
            raise damaged(path, what, error.strerror or str(error), mend) from error
    return Sealed(size, found)


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON object says, however it is laid out; its own entry `checksum`
    apart.
    """
    held = {name: value for name, value in content.items() if name != CHECKSUM}
    text = json.dumps(held, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write a JSON object with its checksum, atomically. It must hold what JSON can: text,
    numbers, lists, objects.
    """
    # As it will be read: tuples are lists, keys are text.
    held = json.loads(json.dumps(dict(content)))
    text = json.dumps({**held, CHECKSUM: checksum(held)}, ensure_ascii=False, indent=indent)
    # Half of a character pair is no UTF-8; escaped it is JSON.
    write_bytes(path, text.encode(errors="backslashreplace") + b"\n")


def read_json(
    path: Path, what: str, *, schema: str | None = None, mend: str | None = None
) -> dict[str, Any]:
    """A JSON object that `write_json` wrote, without its checksum.

    Args:
        path: The file.
        what: What it should be, for the error.
        schema: What its entry `schema` must be.
        mend: What to do if it is damaged; by default what `remedy` says.

    Raises:
        MissingFileError: There is nothing.
        DamagedError: It is of another kind, or not as it was written.
    """
    content = read_bytes(path, what, mend)
    try:
        held = json.loads(content.decode(), object_pairs_hook=unique_keys)
        if not isinstance(held, dict):
            raise ValueError("it is no JSON object")
        if schema is not None and held.get("schema") != schema:
            raise ValueError(f"its schema is {held.get('schema')!r}, {schema!r} is needed")
        if not isinstance(said := held.pop(CHECKSUM, None), str):
            raise ValueError("it has no checksum: it was not written by this version of dmle")
        if said != checksum(held):
            raise ValueError("its content does not fit its checksum")
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise damaged(path, what, reason, mend) from error
    return held


def write_marked(path: Path, text: str) -> None:
    """Write a text that people read, too (YAML), with its checksum in a comment on the first
    line, atomically.
    """
    write_text(path, f"{MARK}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def read_marked(path: Path, what: str, mend: str | None = None) -> str:
    """A text that `write_marked` wrote, with the comment; or one that somebody wrote by hand,
    without.

    Raises:
        MissingFileError: There is nothing.
        DamagedError: It differs from its checksum, is empty, or is no text.
    """
    try:
        text = read_bytes(path, what, mend, limit=TEXT_BYTES).decode()
    except UnicodeDecodeError as error:
        raise damaged(path, what, error, mend) from error
    first, _, rest = text.partition("\n")
    if not text.strip("\0 \n"):
        raise damaged(path, what, "it is empty", mend)
    if first.startswith(MARK) and first != MARK + hashlib.sha256(rest.encode()).hexdigest():
        raise damaged(path, what, "its content does not fit the checksum on its first line", mend)
    return text


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Hook of `json.loads` that refuses an object in which a key occurs twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return found


# -- paths ---------------------------------------------------------------------------------------


def inside(folder: Path, *names: str | PurePath) -> Path:
    """The path of a name below a folder, which may have been chosen by somebody else.

    Raises:
        DmleError: It leaves the folder: absolute, with "..", or through a link; or it is no name.
    """
    said = "/".join(str(name) for name in names)
    for name in names:
        part = PurePath(str(name))
        if (
            not part.parts
            or part.anchor
            or ".." in part.parts
            or "\0" in str(name)
            or "\\" in str(name)
        ):
            raise DmleError(
                f"{said!r} is no name of a file below {folder}; use a name without '..', '/' in"
                " front and '\\'"
            )
    path = folder.joinpath(*names)
    if not path.parent.resolve().is_relative_to(folder.resolve()):
        raise DmleError(
            f"{path} leads out of {folder} through a link; replace the link by a folder"
        )
    return path


def check_links(folder: Path) -> None:
    """See that no link inside a folder leads what is written there to a place outside.

    Raises:
        DmleError: A link to a folder, or of a lock, does; nothing was written.
    """
    root = folder.resolve()
    for where, folders, names in os.walk(folder):
        # Other files are replaced, not written into; a lock is opened as it is.
        for name in (*folders, *(name for name in names if name.endswith(".lock"))):
            path = Path(where, name)
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise DmleError(
                    f"{path} is a link to {path.resolve()}, outside the run folder, where nothing"
                    " is written; put what it leads to in its place, or delete the link"
                )
