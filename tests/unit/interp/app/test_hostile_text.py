"""Small hostile texts end soon, with one line: formulas, units, specifications, rule files,
answers of a model."""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sympy

from editing.evaluation.equivalence import equivalent
from interp.rules.agreement import agree
from interp.rules.derivation import close, number_of, same_number
from interp.rules.expressions import tree
from interp.rules.schema import MAX_VALUES, parse_json
from interp.rules.units import UnitError, measure
from interp.rules.work_limit import WorkOver, work_limit
from interp.settings.sizes import parse_size

SECONDS = 20
"""For what takes a fraction of one, on a machine with other work."""
PARTS = [
    "0",
    "1",
    "2",
    "9",
    "999999",
    "1e99",
    "1e-99",
    ".5",
    "+",
    "-",
    "*",
    "/",
    "^",
    "!",
    "(",
    ")",
    "[",
    "]",
    "sqrt(",
    "sin(",
    "exp(",
    "ln(",
    "factorial(",
    "pi",
    "x",
    "y",
    " ",
    "=",
    "^(1/3)",
    "^64",
    "^-64",
    "|",
    "{",
    "}",
    "√",
    "²",
    "½",
    ",",
    "e",
    "±",
    "\\frac{",
]


def test_no_answer_of_a_model_is_slow() -> None:
    draw = random.Random(17)
    worst = 0.0
    for _ in range(2000):
        text = "".join(draw.choice(PARTS) for _ in range(draw.randint(1, 60)))
        started = time.process_time()
        equivalent(text, "P = 2(l + w)")
        equivalent(text, "15")
        worst = max(worst, time.process_time() - started)
    assert worst < 1


@pytest.mark.parametrize(
    "text",
    [
        "(factorial(170)/factorial(100))^(0.123456789)",
        "2^0.123456789",
        "((1e99+0.3)*10^64)^(63/64)",
        "sin(" * 50 + "1" + ")" * 50,
        "((((((2^(1/3)+3^(1/5))^(1/7)+5^(1/9))^(1/11)+7)^64)^64)^64)",
        "*".join(f"({97 - n}^(1/{n}))" for n in range(3, 30)),
        "1e999999999",
        "9" * 300,
        "10^10^10",
        "factorial(10^9)",
        "exp(exp(exp(exp(9))))",
    ],
)
def test_no_number_is_slow(text: str) -> None:
    started = time.process_time()
    value = number_of(text)
    assert value is None or (close(value, value) and same_number(value, value))
    assert time.process_time() - started < SECONDS


def test_work_is_limited_by_calls_and_the_limit_ends_with_the_block() -> None:
    with pytest.raises(WorkOver), work_limit(1000):
        sympy.simplify(sympy.sympify("(x**(1/3)*y**(2/7)*z)**(5/3) * (x*y)**(1/9)"))
    with work_limit(10_000_000):
        assert sympy.sqrt(8) == 2 * sympy.sqrt(2)
    assert sum(map(abs, range(-2000, 0))) == 2001000


def test_formulas_agree_where_their_values_do() -> None:
    same = [
        ("2(l + w)", "2l + 2w"),
        ("x^2 - y^2", "(x + y)(x - y)"),
        ("sqrt(x^2)", "x"),
        ("x^(1/3) * x^(2/3)", "x"),
        ("√8", "2√2"),
    ]
    other = [
        ("x^2", "x^3"),
        ("x + y", "x * y"),
        ("1/3", "0.333"),
        ("x", "x + 0.000001"),
        ("1/(x - x)", "1/(x - x)"),
    ]
    assert all(agree(tree(a), tree(b)) for a, b in same)
    assert not any(agree(tree(a), tree(b)) for a, b in other)


@pytest.mark.parametrize(
    "unit", ["m^999999999", "2^99999", "m^(1/0)", "km^0.00001", "1e99*m", "0*m", "m^(1/99)"]
)
def test_units_are_of_ordinary_powers(unit: str) -> None:
    with pytest.raises(UnitError):
        measure(unit)


def test_json_is_bounded_and_a_repeated_key_is_found_at_once() -> None:
    started = time.process_time()
    with pytest.raises(ValueError, match="'a' occurs twice"):
        parse_json(b"{" + b'"a":1,' * 200_000 + b'"b":1}')
    with pytest.raises(ValueError, match="more than"):
        parse_json(b"[" + b"0," * (MAX_VALUES + 1) + b"0]")
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize("size", ["9" * 400 + "G", "1e999GiB", "0", "-1G", "inf", "1" * 19])
def test_sizes_are_of_ordinary_length(size: str) -> None:
    with pytest.raises(ValueError, match="a size such as 4GiB"):
        parse_size(size)


SPECIFICATION = {
    "subject": "sled",
    "quantity": "weight",
    "phrase": "a sled with x {x}",
    "result": "W",
    "symbols": {"x": "2..9"},
    "expression": "2*x",
    "edited": "3*x",
    "words": "twice x",
    "edited_words": "three times x",
}


@pytest.mark.parametrize(
    "change",
    [
        {"symbols": {"x": "2..99999999999"}},
        {"symbols": {"x": "2..9 step 0.000001"}},
        {"symbols": {"x": "1e999999999"}},
        {"symbols": {"x": "1,1e99"}},
        {"symbols": {"x": True}},
        {"symbols": {"x": "9" * 5000}},
        {"symbols": {"x": "1/0"}},
        {"phrase": "a sled with x {x:>9999999999}"},
        {"phrase": "a sled with x {x!r}"},
        {"phrase": "a sled with {x.__class__}"},
        {"phrase": "a sled with x {x"},
        {"expression": "x^(x^(x^x))", "edited": "x^(x^(x^x))"},
        {"result": "W [m^99999999]"},
        {"expression": "*".join(["(x+1)^64"] * 20), "edited": "*".join(["(1+x)^64"] * 20)},
        {"subject": 5},
        {"words": None},
    ],
)
def test_a_hostile_specification_ends_in_one_line(
    change: dict[str, object], tmp_path: Path, dmle: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "s.yaml").write_text(
        json.dumps({"domain": "physics", "rules": [{**SPECIFICATION, **change}]})
    )
    started = time.process_time()
    code, said = dmle("rules", "build", tmp_path / "s.yaml", "--out", tmp_path / "r.json")
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert time.process_time() - started < SECONDS


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"schema": "dmle.rules/1", "rules": 1e999999999}',
        '{"schema": "dmle.rules/1", "rules": ' + "9" * 9999 + "}",
        "{" + '"a":1,' * 100_000 + '"b":1}',
        '{"schema": "dmle.rules/1", "rules": [' + "{}," * 20_000 + "{}]}",
        "NaN",
        "",
    ],
    ids=range(8),
)
def test_a_hostile_rule_file_ends_in_one_line(
    content: str, tmp_path: Path, dmle: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "r.json").write_text(content)
    started = time.process_time()
    code, said = dmle("rules", "check", tmp_path / "r.json")
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1 and len(said) < 2000
    assert time.process_time() - started < SECONDS
