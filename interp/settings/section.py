"""What a section of settings is, and how its values are read: as a person means them.

A truth value is never a number or a name. A number is a name where a name is needed ("block: 6"), a
number written as text is a number where a number is needed ("1e-3", which YAML takes for text), and
one value is a list of one where a list is needed ("editors: memit"). `as_meant` does this for every
field of every section from its annotation.
"""

import difflib
import math
import re
import reprlib
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from pydantic_core import PydanticCustomError

from interp.errors import DmleError

MAX_INTEGER = 2**63 - 1
"""Largest integer of a setting: NetCDF, PyTorch and NumPy take no larger ones."""
_SHOWN = 80
"""Characters of a value that a message repeats."""
_NUMBER = re.compile(r"[+-]?(?:\d+(?:_\d+)*(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_LEADING_ZERO = re.compile(r"[+-]?0\d")


class ConfigError(DmleError):
    """A setting is unknown or out of range; the message names it and what is valid."""


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys are errors, and values are read as a person
    means them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    neutral: ClassVar[frozenset[str]] = frozenset()
    """Settings that results do not depend on: of memory and speed, or of which rules there are
    results."""

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: Any) -> Any:
        return as_meant(cls.model_fields[str(info.field_name)].annotation, value)


SomeSection = TypeVar("SomeSection", bound=Section)


class _Kinds(NamedTuple):
    """What an annotation takes."""

    anything: bool = False
    truth: bool = False
    integer: bool = False
    decimal: bool = False
    text: bool = False
    words: frozenset[str] = frozenset()
    """Values of Literals."""
    item: Any = None
    """Annotation of the items, if it takes lists."""
    value: Any = None
    """Annotation of the values, if it takes mappings from text."""
    section: "type[Section] | None" = None

    @property
    def number(self) -> bool:
        """Whether it takes numbers."""
        return self.integer or self.decimal


def as_meant(annotation: Any, value: Any) -> Any:
    """A value as a setting of this annotation means it; what fits in no way is left for the check
    of the type.

    Raises:
        PydanticCustomError: A truth value, a control character, or a number that has no one
            meaning.
    """
    kinds = _kinds(annotation)
    if value is None:
        return value
    if isinstance(value, str):
        _check_text(value)
        return value if kinds.anything else _of_text(kinds, value)
    if isinstance(value, Mapping):
        return _of_mapping(kinds, value)
    if isinstance(value, list | tuple):
        return value if kinds.item is None else tuple(as_meant(kinds.item, each) for each in value)
    if kinds.anything:
        return value
    if isinstance(value, bool):
        return (
            value
            if kinds.truth
            else _refuse(
                f"yes, no, on, off, true and false are truth values in YAML, and {_needed(kinds)}"
                " is needed here; write it in quotes if it is text"
            )
        )
    return _of_number(kinds, value) if isinstance(value, int | float) else value


def _of_number(kinds: _Kinds, value: int | float) -> Any:
    if value not in (math.inf, -math.inf) and abs(value) > MAX_INTEGER and not kinds.decimal:
        _refuse(f"integers from {-MAX_INTEGER} to {MAX_INTEGER} are taken")
    if kinds.number or kinds.truth:
        return value
    written = str(value) if isinstance(value, int) else repr(value)
    if kinds.text or written in kinds.words or (kinds.words and kinds.item is None):
        return written
    return value if kinds.item is None else (as_meant(kinds.item, value),)


def _of_text(kinds: _Kinds, value: str) -> Any:
    if kinds.text or value in kinds.words:
        return value
    if kinds.number:
        return _number_of(kinds, value)
    if kinds.item is not None:
        parts = (
            [value] if _kinds(kinds.item).anything else [part.strip() for part in value.split(",")]
        )
        return tuple(as_meant(kinds.item, part) for part in parts)
    return value


def _number_of(kinds: _Kinds, text: str) -> Any:
    """The number that a text writes, or the text."""
    plain = text.strip()
    if not _NUMBER.fullmatch(plain) or len(plain) > _SHOWN:
        return text
    if _LEADING_ZERO.match(plain):
        _refuse(
            "a number that begins with 0 is octal for YAML and decimal for people; leave the 0 out"
        )
    whole = re.fullmatch(r"[+-]?[\d_]+", plain)
    return _of_number(kinds, int(plain) if whole else float(plain))


def _of_mapping(kinds: _Kinds, value: Mapping[Any, Any]) -> Any:
    """Keys are text; the values of sections are checked by the section itself."""
    for key in value:
        if not isinstance(key, str | int | float) or isinstance(key, bool):
            _refuse(
                f"the key {key!r} is no text (YAML takes yes, no, on and off for truth values);"
                " write it in quotes"
            )
    read = {key if isinstance(key, str) else str(key): each for key, each in value.items()}
    for key in read:
        _check_text(key)
    if kinds.section is None and kinds.value is not None:
        return {key: as_meant(kinds.value, each) for key, each in read.items()}
    return read


def _check_text(text: str) -> None:
    if odd := [
        char for char in text if unicodedata.category(char) in ("Cc", "Cs") and char not in "\n\t"
    ]:
        _refuse(
            f"the text has the character U+{ord(odd[0]):04X}, which cannot be written; take it out"
        )


def _refuse(said: str) -> NoReturn:
    raise PydanticCustomError("setting", "{said}", {"said": said})


def _needed(kinds: _Kinds) -> str:
    """The kinds in words, for a message."""
    words = ", ".join(sorted(kinds.words)) if kinds.words else ""
    found = [
        "a number" if kinds.number else "",
        "text" if kinds.text else "",
        f"one of {words}" if words else "",
        "a list" if kinds.item is not None else "",
        "a mapping" if kinds.value is not None or kinds.section else "",
    ]
    return " or ".join(filter(None, found))


@lru_cache(maxsize=1024)
def _kinds(annotation: Any) -> _Kinds:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _kinds(get_args(annotation)[0])
    if annotation is Any:
        return _Kinds(anything=True)
    if origin in (Union, UnionType):
        return _joined(_kinds(part) for part in get_args(annotation) if part is not NoneType)
    if origin is Literal:
        return _Kinds(
            words=frozenset(word for word in get_args(annotation) if isinstance(word, str))
        )
    if origin in (tuple, list):
        return _Kinds(item=get_args(annotation)[0])
    if origin is dict:
        return _Kinds(value=get_args(annotation)[1])
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return _Kinds(section=annotation)
    return _SIMPLE.get(annotation, _Kinds())


_SIMPLE = {
    bool: _Kinds(truth=True),
    int: _Kinds(integer=True),
    float: _Kinds(decimal=True),
    str: _Kinds(text=True),
}


def _joined(parts: Iterable[_Kinds]) -> _Kinds:
    """What one of several annotations takes."""
    found = list(parts)
    return _Kinds(
        anything=any(kinds.anything for kinds in found),
        truth=any(kinds.truth for kinds in found),
        integer=any(kinds.integer for kinds in found),
        decimal=any(kinds.decimal for kinds in found),
        text=any(kinds.text for kinds in found),
        words=frozenset[str]().union(*(kinds.words for kinds in found)),
        item=next((kinds.item for kinds in found if kinds.item is not None), None),
        value=next((kinds.value for kinds in found if kinds.value is not None), None),
        section=next((kinds.section for kinds in found if kinds.section is not None), None),
    )


# -- sections as a whole -------------------------------------------------------------------------


def nested_section(section: type[Section], name: str) -> "type[Section] | None":
    """The section that a setting holds, if it holds one."""
    field = section.model_fields.get(name)
    return None if field is None else _kinds(field.annotation).section


def is_mapping(section: type[Section], name: str) -> bool:
    """Whether a setting maps names of the user's own to values."""
    field = section.model_fields.get(name)
    return field is not None and _kinds(field.annotation).value is not None


def holds_mappings(section: type[Section], name: str) -> bool:
    """Whether a setting maps names of the user's own to mappings."""
    field = section.model_fields.get(name)
    return field is not None and _kinds(_kinds(field.annotation).value).value is not None


def parse_section(name: str, section: type[Section], values: Any) -> Section:
    """Check one section's values.

    Raises:
        ConfigError: Naming each wrong key with the nearest valid one, or each wrong value with what
            is allowed.
    """
    if values is not None and not isinstance(values, dict):
        raise ConfigError(
            f"section {name!r} holds {short(values)}; a mapping of settings is needed"
        )
    try:
        return section.model_validate(values or {})
    except ValidationError as error:
        raise ConfigError(explained(name, section, error)) from error


def with_settings(
    name: str, section: type[SomeSection], base: SomeSection | None, settings: Mapping[str, Any]
) -> SomeSection:
    """A section with single settings in place of those of a base (by default: of the defaults).

    Raises:
        ConfigError: There is no such setting, or it has no such value.
    """
    values = {} if base is None else base.model_dump()
    made = parse_section(name, section, {**values, **settings})
    assert isinstance(made, section)
    return made


def explained(name: str, section: type[Section], error: ValidationError) -> str:
    """What is wrong with the values of a section, each fault with its place.

    Args:
        name: Where the section stands: "edit", "edit.arms.mine".
        section: The section that was checked.
        error: What its check found.
    """
    found = error.errors(include_url=False)
    more = [f"and {len(found) - _FAULTS} more"] if len(found) > _FAULTS else []
    return "; ".join([*(_explain(name, section, item) for item in found[:_FAULTS]), *more])


def nearest(word: str, known: list[str]) -> str:
    """A hint naming the closest of the known words, or all of them.

    >>> nearest("lyers", ["layers", "seed"])
    "did you mean 'layers'?"
    """
    close = difflib.get_close_matches(word[:_SHOWN], known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid are {', '.join(known)}"


def unknown_setting(name: str, section: type[Section], path: tuple[str, ...]) -> str:
    """A message for a setting that is not there, with the nearest that is.

    The nearest is looked for at the level of the first part that is not there; failing that, the
    same name may be at another level. A setting of the section itself is named by its key, one
    further in by its whole path.
    """
    level, at = section, 0
    while at < len(path) - 1 and (inner := nested_section(level, path[at])) is not None:
        level, at = inner, at + 1
    said = f"unknown setting {'.'.join([name, *path])!r}"
    known, rest = list(level.model_fields), path[at + 1 :]
    close = difflib.get_close_matches(path[at][:_SHOWN], known, n=1)
    elsewhere = None if close else _elsewhere(section, path[-1])
    if elsewhere:
        return f"{said}: did you mean {f'{name}.{elsewhere}'!r}?"
    whole = at > 0 or rest or "." in name
    prefix = ".".join([name, *path[:at], ""]) if whole else ""
    if not close:
        return f"{said}: valid are {', '.join(prefix + key for key in known)}"
    inner = nested_section(level, close[0])
    after = [rest[0]] if rest and inner is not None and rest[0] in inner.model_fields else []
    return f"{said}: did you mean {prefix + '.'.join([*close, *after])!r}?"


def _elsewhere(section: type[Section], word: str) -> str | None:
    """The path of a setting of this very name in the section or in one that it holds."""
    if word in section.model_fields:
        return word
    for key in section.model_fields:
        inner = nested_section(section, key)
        if inner is not None and word in inner.model_fields:
            return f"{key}.{word}"
    return None


_FAULTS = 8
"""Faults that one message tells."""


def _explain(name: str, section: type[Section], item: Any) -> str:
    where = ".".join([name, *(str(part) for part in item["loc"])])
    if item["type"] == "extra_forbidden":
        return unknown_setting(name, section, tuple(str(part) for part in item["loc"]))
    said = item["msg"].removeprefix("Value error, ")
    # A fault of settings together: they are named in the message, the whole section would only be
    # in the way.
    if not item["loc"]:
        named = said.startswith((f"{name}.", f"{name}:", "unknown setting"))
        return said if named else f"{name}: {said}"
    return f"{where} = {short(item['input'])}: {said}"


def short(value: Any) -> str:
    """A value for a message, however large it is."""
    return clipped(_REPR.repr(value))


def clipped(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 3, _SHOWN, _SHOWN, 40
