"""Writing files whole or not at all: the one place that does.

A file is written beside its target under a name of its own, brought to the disk, and renamed: readers see the old
content or the new, never a part, also after a crash. Several processes may write one target; the last one wins.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

PARTIAL_SUFFIX = ".partial"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A path to write to inside a `with` block, which becomes `path` on leaving it, or vanishes with an exception."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{uuid4().hex[:8]}{PARTIAL_SUFFIX}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically (UTF-8, the line ends of the text)."""
    write_bytes(path, text.encode())
