"""Entries of the atlas: what is known of a model's layers, read when it is asked for.

For example:

    interp.atlas()  # the names
    known = interp.atlas("smollm2-135m")
    known.profile, known.selection, known.about
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp.errors import DamagedError, InputError, MissingFileError
from interp.results.checksums import read_json, remedy, write_json
from interp.rules.schema import explain
from interp.selection.layers import LayerSelection

if TYPE_CHECKING:
    import xarray as xr

SCHEMA = "dmle.atlas/1"
ENTRIES = Path(__file__).with_name("entries")
"""The entries of this package."""
ABOUT, PROFILE, SELECTION = "about.json", "profile.nc", "selection.json"
FORM_ORDER, REGRET = "form_order.csv", "regret.csv"
NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
T = TypeVar("T")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GroupRegret(_Frozen):
    """What the selected layers of a group of forms lose against the best window of a sweep."""

    group: str
    regret: float
    lower: float
    upper: float
    n_rules: int = Field(ge=1)


class About(_Frozen):
    """Where an entry comes from."""

    schema_: Literal["dmle.atlas/1"] = Field(default=SCHEMA, alias="schema")
    name: str = Field(pattern=f"^{NAME}$")
    model: str = Field(min_length=1, max_length=200)
    """Name by which `dmle --model` finds the model: embedded, of a package, or on the hub."""
    weight_hash: str = Field(pattern=r"^[0-9a-f]{16}$")
    """Identity of weights, configuration and tokenizer (`interp.models.identity`)."""
    dtype: str = Field(min_length=1)
    weights: str = Field(min_length=1, max_length=500)
    """Which files the weights and the tokenizer are of, and how they were dequantised."""
    n_blocks: int = Field(ge=1)
    rules: str = Field(min_length=1, max_length=500)
    """Which rules were traced, in words."""
    n_rules: int = Field(ge=1)
    n_prompts: int = Field(ge=1)
    traced: dict[str, int]
    """Traceable prompts of each form."""
    samples: int = Field(ge=1)
    """Noise samples of a prompt."""
    method: str = Field(min_length=1)
    version: str = Field(min_length=1)
    """Version of dmle."""
    commands: tuple[str, ...] = Field(min_length=1)
    """What makes the profile again."""
    select: dict[str, Any]
    """Settings of the selection (`SelectConfig`)."""
    regret: tuple[GroupRegret, ...] = ()
    """Empty: no sweep was made."""

    def save(self, path: Path) -> None:
        """Write JSON with a checksum."""
        write_json(path, self.model_dump(mode="json", by_alias=True), indent=1)


@dataclass(frozen=True)
class AtlasEntry:
    """A model of the atlas; its files are read when they are first asked for.

    Attributes:
        folder: Where the files are.
        name: What it is called.
    """

    folder: Path
    name: str

    @cached_property
    def about(self) -> About:
        """Where it comes from.

        Raises:
            DamagedError: The file is not as it was written.
        """
        content = self._read(ABOUT, lambda path: read_json(path, "atlas entry", schema=SCHEMA))
        try:
            return About.model_validate(content)
        except (ValidationError, RecursionError) as error:
            raise self._damaged(explain(error)) from error

    @cached_property
    def profile(self) -> "xr.Dataset":
        """The layer profile (`interp.selection.profiles`).

        Raises:
            DamagedError: The file is not as it was written.
        """
        from interp.results.effects import load

        return self._read(PROFILE, load)

    @cached_property
    def selection(self) -> LayerSelection:
        """The layers chosen from the profile.

        Raises:
            DamagedError: The file is not as it was written.
        """
        return self._read(SELECTION, LayerSelection.load)

    def _read(self, name: str, read: Callable[[Path], T]) -> T:
        path = self.folder / name
        try:
            return read(path)
        except MissingFileError as error:
            raise self._damaged(f"it lacks {name}") from error
        except DamagedError as error:
            # A run folder's advice does not hold here.
            raise self._damaged(str(error).removesuffix(f"; {remedy(path)}")) from error

    def _damaged(self, reason: str) -> DamagedError:
        mend = "install dmle again" if self.folder.parent == ENTRIES else "run `dmle atlas add`"
        return DamagedError(f"the atlas entry {self.name} is damaged: {reason}; {mend}")


@overload
def atlas() -> tuple[str, ...]: ...
@overload
def atlas(name: str | Path) -> AtlasEntry: ...
def atlas(name: str | Path | None = None) -> tuple[str, ...] | AtlasEntry:
    """An entry of the atlas, or the names of all.

    Args:
        name: An entry of this package, or the folder of one; None: the names.

    Returns:
        The entry, of which nothing is read yet. Without a name, the names in alphabetical order.

    Raises:
        InputError: There is no such entry; names those that there are.
    """
    if name is None:
        return tuple(sorted(path.parent.name for path in ENTRIES.glob(f"*/{ABOUT}")))
    known = {each: ENTRIES / each for each in atlas()}
    folder = known.get(str(name), Path(name).resolve())
    if not (folder / ABOUT).is_file():
        raise InputError(f"the atlas has no entry {str(name)!r}; {listed()}")
    return AtlasEntry(folder, folder.name)


def entries() -> Mapping[str, AtlasEntry]:
    """All entries of this package by name."""
    return {name: atlas(name) for name in atlas()}


def listed() -> str:
    """The names, and what to do without an entry, for errors."""
    return (
        f"it has {', '.join(atlas()) or 'none'}; trace the model yourself (`dmle trace`, `dmle"
        " profile`, `dmle select`), or give the folder of an entry of yours"
    )


def entry_of(model: str, weight_hash: str) -> AtlasEntry:
    """The entry of a model: of its weights, else of its name.

    Args:
        model: Name of the model.
        weight_hash: Its identity.

    Raises:
        InputError: There is none.
    """
    known = entries()
    for entry in known.values():
        if entry.about.weight_hash == weight_hash:
            return entry
    for entry in known.values():
        if model in (entry.name, entry.about.model):
            return entry
    raise InputError(f"the atlas has no entry of {model} ({weight_hash}); {listed()}")
