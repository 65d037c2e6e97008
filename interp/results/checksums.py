"""Results read back only as they were written: files with a checksum of their content.

The checksum is compared before anything is made of a file. What does not fit is a `DamagedError`
that names the file and the command that makes it again.

    write_json(path, {"schema": …, …}); read_json(path, "cell", schema="dmle.cell/1")
    write_marked(path, text); read_marked(path, "settings of a run")  # YAML: in a comment
    write_sealed(path, content); check_seal(path, "effect map")  # any bytes, and a checksum line
"""

import hashlib
import json
import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from interp.errors import DamagedError, MissingFileError
from interp.results.files import write_bytes, write_text, writing

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


def regular(path: Path, what: str, mend: str | None = None) -> BinaryIO:
    """Open a file for reading, if it is one: folders, pipes and devices are refused, and never
    waited for.

    Raises:
        MissingFileError: There is nothing.
        DamagedError: It is no regular file, or cannot be read.
    """
    try:
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        )
    except FileNotFoundError as error:
        raise MissingFileError(f"{path} does not exist; {_maker(path)} first") from error
    except (OSError, ValueError) as error:
        if path.is_dir():  # which Windows does not open
            raise damaged(path, what, "it is a folder", mend) from error
        raise damaged(path, what, getattr(error, "strerror", None) or str(error), mend) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise damaged(
            path, what, "it is a folder" if stat.S_ISDIR(mode) else "it is a pipe or a device", mend
        )
    return os.fdopen(descriptor, "rb")


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
    text = " ".join(str(reason).split())
    return DamagedError(f"{path} is not a readable {what}: {text[:300]}; {mend or remedy(path)}")


_MADE_BY = {
    "effects.nc": "trace",
    "faithfulness.nc": "faithfulness",
    "profile.nc": "profile",
    "selection.json": "select",
    "selection-rules.json": "select",
    "scores.nc": "evaluate",
    "answers.json": "evaluate",
    "evidence.nc": "evidence",
    "sweep.nc": "sweep",
    "regret.nc": "regret",
    "sequence.nc": "sequence",
    "tuning.nc": "tune",
}
_FOLDERS_MADE_BY = {
    "traces": "trace",
    "faithfulness": "faithfulness",
    "deltas": "edit",
    "covariance": "edit",
    "cells": "compare",
    "evidence": "evidence",
    "sequence": "sequence",
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


# Checksums.


def digest(file: BinaryIO, size: int = -1) -> str:
    """SHA-256 of the next `size` bytes (all) of a file, read in pieces: 64 hexadecimal digits."""
    sha256 = hashlib.sha256()
    while size and (block := file.read(BLOCK if size < 0 else min(BLOCK, size))):
        sha256.update(block)
        size -= len(block) if size > 0 else 0
    return sha256.hexdigest()


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
    sha256 = digest(file)
    file.seek(0, os.SEEK_END)
    line = memoryview(SEAL + sha256.encode() + b"\n")
    while line:  # an unbuffered file may take a part only, when the disk is nearly full
        line = line[file.write(line) or 0 :]
    return sha256


def write_sealed(path: Path, content: bytes | memoryview) -> str:
    """Write bytes with their checksum behind them, atomically; return it."""
    sha256 = hashlib.sha256(content).hexdigest()
    with writing(path) as file:
        file.write(content)
        file.write(SEAL + sha256.encode() + b"\n")
    return sha256


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
            sha256 = digest(file, size)
            if SEAL + sha256.encode() + b"\n" != line:
                raise damaged(path, what, "its content does not fit its checksum", mend)
        except OSError as error:
            raise damaged(path, what, error.strerror or str(error), mend) from error
    return Sealed(size, sha256)


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of what a JSON object says, however it is laid out; its own entry `checksum`
    apart.
    """
    entries = {name: value for name, value in content.items() if name != CHECKSUM}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write a JSON object with its checksum, atomically. It must hold what JSON can: text,
    numbers, lists, objects.
    """
    # As it will be read: tuples are lists, keys are text.
    entries = json.loads(json.dumps(dict(content)))
    text = json.dumps({**entries, CHECKSUM: checksum(entries)}, ensure_ascii=False, indent=indent)
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
        entries = json.loads(content.decode(), object_pairs_hook=unique_keys)
        if not isinstance(entries, dict):
            raise ValueError("it is no JSON object")
        if schema is not None and entries.get("schema") != schema:
            raise ValueError(f"its schema is {entries.get('schema')!r}, {schema!r} is needed")
        if not isinstance(written := entries.pop(CHECKSUM, None), str):
            raise ValueError("it has no checksum: it was not written by this version of dmle")
        if written != checksum(entries):
            raise ValueError("its content does not fit its checksum")
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise damaged(path, what, reason, mend) from error
    return entries


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
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return entries
