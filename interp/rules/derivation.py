"""The true answer of an instance whose data give only the edited one, derived from the rule's
formulas.

RuleEdit's instances say what an edit wants ("P = 3 + 14 = 17."), not what is true. The edited
formula ("P = x + y.") and the instance give the numbers of the symbols; the true formula gives the
answer. The numbers are taken from the worked answer, from the prompt ("x = 3"), or from where the
formula's prompt has symbols ("a length of x"), and are used only if the edited formula gives the
instance's own result with them.
"""

import ast
import difflib
import math
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import sympy

from interp.rules.expressions import ExpressionError, names, tree
from interp.rules.meaning import MAX_CALLS, to_sympy
from interp.rules.rendering import exact, render
from interp.rules.work_limit import WorkOver, work_limit

NUMBER = r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
# Results are written to two or three decimals; more than this apart, relative to the number, is
# another number.
TOLERANCE = 6e-3


class Derived(NamedTuple):
    """A true answer that was worked out."""

    answers: tuple[str, ...]
    """As the data would write it ("P = 2 * (3 + 14) = 34."), and the bare result."""
    values: dict[str, float]
    """The numbers of the formula's symbols."""


def sides(text: str) -> list[str]:
    """The sides of an equation without the full stop: "P = 3 + 14 = 17." has three."""
    return [side.strip() for side in re.split(r"(?<![<>!])=", text.strip().rstrip(".").strip())]


def expression_of(text: str) -> ast.expr | None:
    """The right-hand side of a formula, if it is one that can be read; ± and a constant "+ C"
    are left out.
    """
    try:
        return tree(re.sub(r"^±|\+\s*C$", "", sides(text)[-1]).strip())
    except ExpressionError:
        return None


@lru_cache(maxsize=16384)
def number_of(text: str) -> sympy.Expr | None:
    """The number that an answer ends with, if its last side is one."""
    try:
        value = to_sympy(tree(sides(text)[-1].removeprefix("±")))
    except ExpressionError:
        return None
    return value if value.is_number else None


def close(first: sympy.Expr, second: sympy.Expr) -> bool:
    """Whether two numbers are the same up to the decimals that answers are written with."""
    try:
        with work_limit(MAX_CALLS):
            a, b = complex(first.evalf()), complex(second.evalf())
        difference, size = abs(a - b), abs(b)
    except (
        OverflowError,
        TypeError,
        ValueError,
        WorkOver,
    ):  # beyond what floats hold, or undefined
        return bool(first == second)
    # Two decimals are all that a number near one has; a tiny one is not zero for that.
    return difference <= TOLERANCE * (max(1.0, size) if size > 0.05 else size)


def same_number(first: sympy.Expr, second: sympy.Expr) -> bool:
    """Whether two numbers are the same: fractions exactly, others in their first 20 digits."""
    if first.is_Rational and second.is_Rational:
        return bool(first == second)
    try:
        with work_limit(MAX_CALLS):
            a, b = first.evalf(30), second.evalf(30)
            return bool(abs(a - b) <= sympy.Float(10) ** -20 * max(abs(a), abs(b)))
    except (ArithmeticError, TypeError, ValueError, RecursionError, WorkOver):
        return bool(first == second)


def instance_truth(
    formula_prompt: str, formula_new: str, formula_true: Sequence[str], prompt: str, target_new: str
) -> Derived | None:
    """The true answer of an instance, or None if it cannot be worked out with certainty."""
    edited = expression_of(formula_new)
    truths = [
        found
        for text in formula_true
        if (found := expression_of(text)) is not None and names(found)
    ]
    result = number_of(target_new)
    if edited is None or not truths or result is None:
        return None
    true = truths[0]
    for values in candidate_values(edited, true, formula_prompt, prompt, target_new):
        if not set(names(edited)) | set(names(true)) <= set(values):
            continue
        try:
            got, truth = to_sympy(edited, values), to_sympy(true, values)
        except ExpressionError:
            continue
        if close(got, result) and (written := _number_text(truth)) is not None:
            return Derived(
                _written(true, values, written, target_new),
                {k: float(v) for k, v in values.items()},
            )
    return None


def candidate_values(
    edited: ast.expr, true: ast.expr, formula_prompt: str, prompt: str, target_new: str
) -> Iterator[dict[str, str]]:
    """Numbers for the symbols of a formula, from each place where an instance may have them."""
    symbols = list(dict.fromkeys([*names(edited), *names(true)]))
    named, replaced = _named(prompt, symbols), _replaced(formula_prompt, prompt, symbols)
    for side in sides(target_new):
        try:
            found = unify(edited, tree(side))
        except ExpressionError:
            continue
        if found is not None:
            yield {**replaced, **named, **found}
    yield named
    yield {**replaced, **named}


def unify(
    pattern: ast.expr, worked: ast.expr, found: dict[str, str] | None = None
) -> dict[str, str] | None:
    """The numbers that make a formula this worked expression, or None if none do.

    >>> unify(tree("2*(x + y)"), tree("2 * (3 + 14)"))
    {'x': '3', 'y': '14'}
    """
    found = {} if found is None else found
    if isinstance(pattern, ast.Name) and pattern.id != "pi":
        number = _literal(worked)
        if number is None or found.setdefault(pattern.id, number) != number:
            return None
        return found
    match pattern, worked:
        case (ast.Constant(value=a), ast.Constant(value=b)) | (ast.Name(id=a), ast.Name(id=b)):
            return found if a == b else None
        case ast.BinOp(), ast.BinOp():
            if (
                type(pattern.op) is not type(worked.op)
                or unify(pattern.left, worked.left, found) is None
            ):
                return None
            return unify(pattern.right, worked.right, found)
        case ast.UnaryOp(), ast.UnaryOp():
            return unify(pattern.operand, worked.operand, found)
        case ast.Call(func=ast.Name(id=a), args=[x]), ast.Call(func=ast.Name(id=b), args=[y]):
            return unify(x, y, found) if a == b else None
    return None


def _literal(node: ast.expr) -> str | None:
    if isinstance(node, ast.UnaryOp):
        inner = _literal(node.operand)
        return None if inner is None else inner[1:] if inner.startswith("-") else f"-{inner}"
    return str(node.value) if isinstance(node, ast.Constant) else None


def _named(prompt: str, symbols: Sequence[str]) -> dict[str, str]:
    """Numbers that the prompt gives by name: "μ=0.4", "a = 5"."""
    written = rf"\s*=\s*({NUMBER})(?:\s*[*×]\s*10\^(-?\d+))?"
    found = {
        symbol: set(re.findall(rf"{_start(symbol)}{re.escape(symbol)}{written}", prompt))
        for symbol in symbols
    }
    single = {symbol: next(iter(numbers)) for symbol, numbers in found.items() if len(numbers) == 1}
    return {
        symbol: f"{number}e{power}" if power else number
        for symbol, (number, power) in single.items()
    }


def _start(symbol: str) -> str:
    """What may not stand before a symbol; one with an index (R1) may run into a word before it
    ("ofR1=5").
    """
    return r"(?<![A-Z\d])" if re.fullmatch(r"[A-Z]\d+", symbol) else r"(?<!\w)"


def _replaced(formula_prompt: str, prompt: str, symbols: Sequence[str]) -> dict[str, str]:
    """Numbers that stand where the formula's prompt has symbols."""
    before, after = (re.findall(rf"{NUMBER}|\w+", text) for text in (formula_prompt, prompt))
    found: dict[str, str] = {}
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(
        None, before, after, autojunk=False
    ).get_opcodes():
        if kind == "replace" and a1 - a0 == b1 - b0:
            for symbol, number in zip(before[a0:a1], after[b0:b1], strict=True):
                if symbol in symbols and re.fullmatch(NUMBER, number):
                    found.setdefault(symbol, number)
    return found


def _number_text(value: sympy.Expr) -> str | None:
    """A result as the data write it: exact if it is short, else to two decimals, small ones to
    three digits.
    """
    if not value.is_number or not value.is_real:
        return None
    number = float(value)
    if not math.isfinite(number):
        return None
    return exact(value) or (
        f"{number:.2f}".rstrip("0").rstrip(".") if abs(number) >= 0.1 else f"{number:.3g}"
    )


def _written(true: ast.expr, values: dict[str, str], result: str, like: str) -> tuple[str, ...]:
    parts, stop = sides(like), "." if like.strip().endswith(".") else ""
    if len(parts) == 1:
        return (result + stop, result)
    head = [parts[0]] if number_of(parts[0]) is None else []
    worked = render(true, values).replace("×", "*")
    return (" = ".join([*head, *([worked] if worked != result else []), result]) + stop, result)
