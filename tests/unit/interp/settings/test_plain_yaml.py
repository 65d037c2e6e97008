"""YAML: what a value becomes, what is refused, and that nothing small becomes large."""

import time
from pathlib import Path
from typing import Any

import pytest

from interp.settings.plain_yaml import (
    MAX_DEPTH,
    MAX_LENGTH,
    MAX_VALUES,
    YamlError,
    load_yaml,
    read_yaml_file,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("-3", -3),
        ("0", 0),
        ("0.5", 0.5),
        ("-1.25", -1.25),
        ("yes", True),
        ("Off", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("{a: [1, b]}", {"a": [1, "b"]}),
        ("1: x", {1: "x"}),
        # Two readings: what was written stays.
        ("010", "010"),
        ("0x1F", "0x1F"),
        ("1e-3", "1e-3"),
        ("1.10", "1.10"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        (".inf", ".inf"),
        ("-0", "-0"),
        ("+5", "+5"),
        ("9" * 30, "9" * 30),
        ("=", "="),
        # Words that begin like something else.
        ("name", "name"),
        ("nullify", "nullify"),
        ("yesterday", "yesterday"),
        ("none", "none"),
        ("5 apples", "5 apples"),
        ("a: &x {k: 1}\nb: {<<: *x, c: 2}", {"a": {"k": 1}, "b": {"k": 1, "c": 2}}),
    ],
)
def test_a_value_is_what_was_written(text: str, value: Any) -> None:
    found = load_yaml(text)
    assert found == value and type(found) is type(value)


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a: 1, b: 2, a: 3}", "the key 'a' stands twice in one mapping .line 1, column 14."),
        ("a:\n  b: 1\n  b: 1\n", "the key 'b' stands twice .* .line 3, column 3."),
        ("!!binary aGk=", "tag .*binary is not read here"),
        (
            "!!python/object/apply:os.system ['true']",
            "tag .*python/object/apply:os.system is not read",
        ),
        ("!!bool maybe", "is not read here"),
        ("? [1]\n: 2", "a list or mapping as a key"),
        ("&a [*a]", "an alias stands inside what it repeats"),
        (BOMB, f"more than {MAX_VALUES} values, with what aliases repeat"),
        (
            BOMB.replace("[*", "{<<: [*")
            .replace("]\n", "]}\n")
            .replace("[x,x,x,x,x,x,x,x,x]}", "{x: 1}"),
            "more than",
        ),
        ("[" * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("- " * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("{a: " * 100_000, f"nested more than {MAX_DEPTH} deep"),
        ("[" + "1," * (MAX_VALUES + 1) + "]", f"more than {MAX_VALUES} values"),
        ("a" * (MAX_LENGTH + 1), f"more than {MAX_LENGTH} characters"),
        ("[", "while parsing"),
        ("\udcff", "surrogates not allowed"),
        ("a\x00b", "null byte|control characters|not allowed|special characters"),
    ],
    ids=range(17),
)
def test_what_is_no_plain_value_is_refused_at_once(text: str, message: str) -> None:
    started = time.monotonic()
    with pytest.raises(YamlError, match=message):
        load_yaml(text)
    assert time.monotonic() - started < 5


def test_files_are_utf8_and_no_larger_than_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("é: 1".encode("utf-8-sig"))
    assert read_yaml_file(path) == {"é": 1}
    path.write_bytes(b"a: \xff")
    with pytest.raises(YamlError, match="byte 3 is not UTF-8 text"):
        read_yaml_file(path)
    path.write_bytes(b"#" * (MAX_LENGTH + 1))
    with pytest.raises(YamlError, match="more than"):
        read_yaml_file(path)
