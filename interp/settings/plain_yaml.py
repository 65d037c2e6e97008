"""YAML as a person means it, read within bounds.

What differs from PyYAML's defaults, which follow YAML 1.1:

- Only plain decimal numbers become numbers. Everything that could be read in two ways (``010``,
  ``0x1F``, ``1e-3``, ``1.10``, ``12:30``, ``2020-01-01``) stays the text that was written; a
  setting that needs a number takes ``1e-3`` from there (see `interp.settings.section`), a setting
  that needs a name keeps ``1.10``.
- ``yes``, ``no``, ``on``, ``off``, ``true`` and ``false`` are truth values, as ever.
- A key that stands twice in one mapping is an error; so is a tag other than those of plain values.
- Size, depth and the number of values are bounded, counted with what aliases repeat. A small text
  cannot become a large value.
"""

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from interp.errors import DmleError

MAX_LENGTH = 2**20
MAX_DEPTH = 32
MAX_VALUES = 50_000
"""Scalars, lists and mappings, each as often as aliases repeat it."""
_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"(?:0|-?[1-9][0-9]{0,17})\Z")
_DECIMAL = re.compile(r"-?[0-9]+\.[0-9]+\Z")
_TRUTH = re.compile(
    r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)\Z"
)


class YamlError(DmleError):
    """A text is not YAML that is read here; says where and why."""


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C where there is one


class _Loader(_Base):
    """Constructs null, truth values, numbers, text, lists and mappings; nothing else has a
    constructor.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}
    yaml_constructors: ClassVar[dict[str, Any]] = {}


def _constructed_number(loader: Any, node: Any) -> int | float | str:
    text = loader.construct_scalar(node)
    if _INTEGER.fullmatch(text):
        return int(text)
    # A number that would be written differently may be a name: "1.10" is not 1.1.
    return float(text) if _DECIMAL.fullmatch(text) and repr(float(text)) == text else text


def _constructed_truth(loader: Any, node: Any) -> bool:
    text = loader.construct_scalar(node)
    return text.lower() in ("yes", "true", "on") if _TRUTH.match(text) else _refused(loader, node)


def _constructed_list(loader: Any, node: Any) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


def _constructed_mapping(loader: Any, node: Any) -> dict[Any, Any]:
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


def _refused(loader: Any, node: Any) -> Any:
    raise yaml.constructor.ConstructorError(
        None, None, f"the tag {node.tag} is not read here", node.start_mark
    )


_Loader.add_implicit_resolver(f"{_TAG}bool", _TRUTH, list("yYnNtTfFoO"))
_Loader.add_implicit_resolver(f"{_TAG}int", _INTEGER, list("-0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _DECIMAL, list("-0123456789"))
_Loader.add_implicit_resolver(
    f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""]
)
_Loader.add_implicit_resolver(f"{_TAG}merge", re.compile(r"<<\Z"), ["<"])
_Loader.add_constructor(f"{_TAG}null", lambda loader, node: None)
_Loader.add_constructor(f"{_TAG}bool", _constructed_truth)
_Loader.add_constructor(f"{_TAG}int", _constructed_number)
_Loader.add_constructor(f"{_TAG}float", _constructed_number)
_Loader.add_constructor(f"{_TAG}str", lambda loader, node: loader.construct_scalar(node))
_Loader.add_constructor(f"{_TAG}seq", _constructed_list)
_Loader.add_constructor(f"{_TAG}map", _constructed_mapping)
_Loader.add_constructor(None, _refused)


def load_yaml(text: str, *, max_length: int = MAX_LENGTH) -> Any:
    """The value of a YAML document.

    Raises:
        YamlError: It is not YAML, names a key twice, or is larger or deeper than is read.
    """
    if len(text) > max_length:
        raise YamlError(f"more than {max_length} characters, the most that is read")
    try:
        _check_depth(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {}, set())
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except (yaml.YAMLError, UnicodeError, RecursionError, TypeError) as error:
        said = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
        raise YamlError(said or type(error).__name__) from error


def read_yaml_file(path: Path, *, max_length: int = MAX_LENGTH) -> Any:
    """The value of a YAML file (UTF-8).

    Raises:
        OSError: The file cannot be read.
        YamlError: Its content cannot.
    """
    with path.open(encoding="utf-8-sig") as file:
        try:
            text = file.read(max_length + 1)
        except UnicodeDecodeError as error:
            raise YamlError(
                f"byte {error.start} is not UTF-8 text; save the file as UTF-8"
            ) from error
    return load_yaml(text, max_length=max_length)


def _check_depth(text: str) -> None:
    """Refuse deep nesting before anything recurses over it; events come one by one."""
    depth = count = 0
    for event in yaml.parse(text, Loader=_Loader):
        count += isinstance(event, yaml.NodeEvent)
        if count > MAX_VALUES:
            raise YamlError(f"more than {MAX_VALUES} values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise YamlError(f"lists and mappings are nested more than {MAX_DEPTH} deep")


def _count(node: Any, counted: dict[int, int], above: set[int]) -> int:
    """How many values a node becomes, aliases written out; keys that stand twice are errors.

    Depth is bounded by `_check_depth` except through aliases, which `above` keeps from running in
    circles.
    """
    if id(node) in above or len(above) > MAX_DEPTH:
        raise YamlError("an alias stands inside what it repeats, or aliases are nested too deeply")
    if id(node) in counted:
        return counted[id(node)]
    parts: list[Any] = []
    if isinstance(node, yaml.SequenceNode):
        parts = list(node.value)
    elif isinstance(node, yaml.MappingNode):
        _check_keys(node)
        parts = [part for pair in node.value for part in pair]
    total = 1
    for part in parts:
        total += _count(part, counted, above | {id(node)})
        if total > MAX_VALUES:
            raise YamlError(f"more than {MAX_VALUES} values, with what aliases repeat")
    counted[id(node)] = total
    return total


def _check_keys(node: Any) -> None:
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        where = f"line {key.start_mark.line + 1}, column {key.start_mark.column + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise YamlError(f"a list or mapping as a key ({where}); a word is needed")
        if (key.tag, key.value) in seen:
            raise YamlError(
                f"the key {key.value!r} stands twice in one mapping ({where}); keep one of the two"
            )
        seen.add((key.tag, key.value))
