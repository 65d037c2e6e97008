"""Settings from several sources into one mapping, unchecked: a run's own, a file's, flags, and
`--set`.

Later sources win, setting by setting, also inside a setting that is a section itself (`edit.ft`).
Null takes a setting back to its default. Mappings with names of the user's own (`edit.arms`,
`tune.grid`) are values: a later one takes the place of the earlier, and `--set
edit.arms.mine.ridge=1` changes one part.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from interp.settings.plain_yaml import YamlError, load_yaml
from interp.settings.section import (
    ConfigError,
    Section,
    clipped,
    holds_mappings,
    is_mapping,
    nested_section,
    short,
    unknown_setting,
)

Sections = Mapping[str, type[Section]]


def merge(raw: dict[str, Any], source: Mapping[str, Any], known: Sections) -> None:
    """Put a source's settings on top of `raw`, in place; a section of which it says nothing
    stays.
    """
    for name, values in source.items():
        if isinstance(values, Mapping) and name in known:
            held = raw.get(name)
            raw[name] = _merged(held if isinstance(held, Mapping) else {}, values, known[name])
        elif values is not None or name not in known:
            raw[name] = copy.deepcopy(values)


def _merged(
    held: Mapping[str, Any], values: Mapping[Any, Any], section: type[Section]
) -> dict[str, Any]:
    found = dict(held)
    for name, value in values.items():
        inner = nested_section(section, name) if isinstance(name, str) else None
        if value is None and name in section.model_fields:
            found.pop(name, None)
        elif inner is not None and isinstance(value, Mapping):
            before = found.get(name)
            found[name] = _merged(before if isinstance(before, Mapping) else {}, value, inner)
        else:
            found[name] = copy.deepcopy(value)
    return found


def read_assignment(text: str) -> tuple[str, Any]:
    """Key and value of `--set section.key=value`.

    Raises:
        ConfigError: It has not this form, or the value is not YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")) or "." not in key:
        raise ConfigError(
            f"--set {clipped(text)}: section.key=value is needed, such as --set trace.samples=4"
        )
    try:
        return key.strip(), load_yaml(value)
    except YamlError as error:
        raise ConfigError(
            f"--set {clipped(text)}: {short(value)} is not a YAML value ({error}); quote it if it"
            " is text"
        ) from error


def assign(raw: dict[str, Any], key: str, value: Any, known: Sections) -> None:
    """Set one setting by its path, in place; None takes it back to its default.

    Raises:
        ConfigError: The path leads through something that has no parts, or that is not there.
    """
    name, *path = key.split(".")
    held = raw.get(name)
    if held is not None and not isinstance(held, dict):
        return  # the section itself is wrong, which its check says
    if name not in known:
        raw[name] = {".".join(path): value}  # as well
        return
    raw[name] = _assigned(
        held or {}, tuple(path), value, known[name], _Place(name, known[name], tuple(path))
    )


class _Place(NamedTuple):
    """Where an assignment begins, for messages."""

    name: str
    section: type[Section]
    path: tuple[str, ...]


def _assigned(
    held: Mapping[str, Any],
    path: tuple[str, ...],
    value: Any,
    section: type[Section],
    place: _Place,
) -> dict[str, Any]:
    """A copy of the settings of a section with one changed."""
    found, (name, *rest) = dict(held), path
    if name not in section.model_fields:
        raise ConfigError(unknown_setting(*place))
    if not rest:
        if value is None:
            found.pop(name, None)
        else:
            found[name] = value
        return found
    inner, before = nested_section(section, name), found.get(name)
    if inner is not None:
        found[name] = _assigned(
            before if isinstance(before, Mapping) else {}, tuple(rest), value, inner, place
        )
    elif is_mapping(section, name) and (before is None or isinstance(before, Mapping)):
        found[name] = _put(before or {}, rest, value, deep=holds_mappings(section, name))
    else:
        where = ".".join([place.name, *place.path[: len(place.path) - len(rest)]])
        raise ConfigError(f"{where} has no part {'.'.join(rest)!r}; set {where} as a whole")
    return found


def _put(held: Mapping[str, Any], path: list[str], value: Any, *, deep: bool) -> dict[str, Any]:
    """A copy of a mapping with names of the user's own with one value changed.

    Args:
        held: The mapping.
        path: A name, which may have dots if it is there already, and what follows it.
        value: The new value; None takes it out.
        deep: Whether the values are mappings; otherwise all of the path is the name.
    """
    found = dict(held)
    ends = [end for end in range(len(path), 0, -1) if ".".join(path[:end]) in held]
    end = ends[0] if ends else 1 if deep else len(path)
    name, rest = ".".join(path[:end]), path[end:]
    if rest:
        inside = found.get(name)
        found[name] = _put(inside if isinstance(inside, Mapping) else {}, rest, value, deep=deep)
    elif value is None:
        found.pop(name, None)
    else:
        found[name] = value
    return found
