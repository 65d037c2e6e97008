"""Which file of a run's figures and tables came from which data: ``figures/manifest.json``.

For each part (figures that are drawn together from the same inputs) it holds the SHA-256 of every
input and output, the settings, and the version of what drew them: a hash over the drawing code, and
the versions of the libraries. A part is current if all of these are as recorded and its outputs are
still there, bit for bit; then it is not drawn again.
"""

import hashlib
import logging
from collections.abc import Iterable
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp.errors import DmleError
from interp.results.checksums import read_json, write_json
from interp.results.paths import inside

log = logging.getLogger(__name__)

NAME = "figures/manifest.json"
SCHEMA = "dmle.figures/1"
OUTPUT_FOLDERS = ("figures", "tables")
LIBRARIES = ("matplotlib", "seaborn", "numpy", "pandas", "xarray")
READ_ROOMS = ("results", "selection")
"""Rooms of `interp` whose code decides, with that of `figures`, what a figure shows."""


class Record(BaseModel):
    """How one part was drawn: SHA-256 by path relative to the run folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: dict[str, str]
    settings: dict[str, int | float | str]
    version: dict[str, str]
    outputs: dict[str, str] = Field(default_factory=dict)

    def current(self, wanted: "Record", run: Path) -> bool:
        """Whether drawing `wanted`, which has no outputs yet, would give the recorded outputs,
        which are all there.
        """
        same = (self.inputs, self.settings, self.version) == (
            wanted.inputs,
            wanted.settings,
            wanted.version,
        )
        return same and all(holds(run / name, digest) for name, digest in self.outputs.items())


class Manifest(BaseModel):
    """The records of all parts by name."""

    model_config = ConfigDict(extra="forbid")

    schema_: str = Field(default=SCHEMA, alias="schema")
    parts: dict[str, Record] = Field(default_factory=dict)

    @classmethod
    def load(cls, run: Path) -> "Manifest":
        """The manifest of a run folder; an empty one if there is none, or none that can be read."""
        path = run / NAME
        try:
            found = cls.model_validate(read_json(path, "manifest of figures", schema=SCHEMA))
            for record in found.parts.values():
                for name in record.outputs:
                    output(run, name)
        except FileNotFoundError:
            return cls()
        except (DmleError, ValidationError) as error:
            log.warning(
                "%s cannot be used, so everything is drawn anew: %s",
                path,
                " ".join(str(error).split()),
            )
            return cls()
        return found

    def save(self, run: Path) -> None:
        """Write it atomically, with a checksum."""
        write_json(run / NAME, self.model_dump(mode="json", by_alias=True), indent=2)


def output(run: Path, name: str) -> Path:
    """The path of a figure or table that a manifest names; a manifest may come from somebody else.

    Raises:
        DmleError: It is none below the run's `figures` and `tables`.
    """
    folder, _, rest = name.partition("/")
    if folder not in OUTPUT_FOLDERS:
        raise DmleError(f"{name!r} is no file of the folders {' and '.join(OUTPUT_FOLDERS)}")
    _ = inside(run, folder, "*")  # the folder itself may be a link
    return inside(run / folder, rest)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(run: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files by their path relative to the run folder."""
    return {name: digest_of(run / name) for name in names}


def holds(path: Path, digest: str) -> bool:
    """Whether there is a file with this SHA-256."""
    return path.is_file() and digest_of(path) == digest


@lru_cache(maxsize=1)
def drawing_version() -> dict[str, str]:
    """Hash over the code that draws and reads (the reports apart), and the versions of the
    libraries.
    """
    here = Path(__file__).parent
    files = [path for path in sorted(here.glob("*.py")) if not path.name.startswith("report")]
    for room in READ_ROOMS:
        files += sorted((here.parent / "interp" / room).rglob("*.py"))
    code = hashlib.sha256()
    for path in files:
        code.update(f"{path.parent.name}/{path.name}\n".encode())
        # Line ends differ between checkouts.
        code.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return {"code": code.hexdigest(), **{name: version(name) for name in LIBRARIES}}
