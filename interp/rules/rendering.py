"""Mathematical expressions and numbers, written as people do."""

import ast
import re
from collections.abc import Mapping

import sympy

from interp.rules.expressions import CONSTANTS, FUNCTIONS, ExpressionError


def render(node: ast.expr, values: Mapping[str, str] | None = None) -> str:
    """Write a tree as mathematical text; with `values`, numbers take the places of the names.

    >>> from interp.rules.expressions import tree
    >>> render(tree("1/2*m*v**2")), render(tree("2*(l + w)"))
    ('(1/2)mv^2', '2(l + w)')
    >>> render(tree("2*(l + w)"), {"l": "5", "w": "4"})
    '2 × (5 + 4)'
    """
    return _render(node, values)[0]


def exact(value: sympy.Expr, places: int = 3) -> str | None:
    """A number as text if that loses nothing: an integer, a decimal of few places, or such a
    multiple of π.

    >>> exact(sympy.Rational(5, 2)), exact(9 * sympy.pi)
    ('2.5', '9π')
    >>> exact(sympy.Rational(1, 3)), exact(sympy.sqrt(2))
    (None, None)
    """
    value = sympy.nsimplify(value) if value.is_Float else value
    over_pi = value / sympy.pi
    if over_pi.is_Rational and not value.is_zero:
        factor = exact(over_pi, places)
        return None if factor is None else {"1": "π", "-1": "-π"}.get(factor, f"{factor}π")
    if not value.is_Rational or not (value * 10**places).is_Integer:
        return None
    digits = str(abs(value * 10**places)).rjust(places + 1, "0")
    return ("-" if value < 0 else "") + f"{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(
        "."
    )


# Writing. Every part comes with how tightly it binds, so that brackets stand where they are needed.

_SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(5)
_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-"}


def _render(node: ast.expr, values: Mapping[str, str] | None) -> tuple[str, int]:
    match node:
        case ast.Constant(value=value):
            return str(value), _ATOM
        case ast.Name(id=name):
            text = "π" if name == "pi" else (values or {}).get(name, name)
            return text, _SIGN if text.startswith("-") else _ATOM
        case ast.UnaryOp(operand=operand):
            return "-" + _bracketed(operand, values, _POWER), _SIGN
        case ast.Call(func=ast.Name(id="factorial"), args=[argument]):
            return _bracketed(argument, values, _ATOM) + "!", _ATOM
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return f"{name}({_render(argument, values)[0]})", _ATOM
        case ast.BinOp(left, ast.Add() | ast.Sub() as sign, right):
            before, after = _bracketed(left, values, _SUM), _bracketed(right, values, _PRODUCT)
            return f"{before} {_SIGNS[type(sign)]} {after}", _SUM
        case ast.BinOp(left, ast.Mult(), right):
            return _product(left, right, values), _PRODUCT
        case ast.BinOp(left, ast.Div(), right):
            above, below = _bracketed(left, values, _PRODUCT), _bracketed(right, values, _POWER)
            slash = "/" if values is None or _is_fraction(left, right) else " / "
            return f"{above}{slash}{below}", _PRODUCT
        case ast.BinOp(left, ast.Pow(), right):
            return f"{_bracketed(left, values, _ATOM)}^{_bracketed(right, values, _ATOM)}", _POWER
    raise ExpressionError(f"{ast.unparse(node)!r} cannot be written")


def _is_fraction(left: ast.expr, right: ast.expr) -> bool:
    """Whether a quotient is of two numbers, as 1/2."""
    return isinstance(left, ast.Constant) and isinstance(right, ast.Constant)


def _bracketed(node: ast.expr, values: Mapping[str, str] | None, least: int) -> str:
    text, binds = _render(node, values)
    return text if binds >= least else f"({text})"


def _product(left: ast.expr, right: ast.expr, values: Mapping[str, str] | None) -> str:
    before, after = _bracketed(left, values, _PRODUCT), _bracketed(right, values, _SIGN + 1)
    if values is not None:
        return f"{before} × {after}"
    if isinstance(left, ast.BinOp) and isinstance(left.op, ast.Div):
        before = f"({before})"  # (1/2)mv^2: without brackets the m would seem to stand below
    if after[0].isdigit():
        return f"{before} × {after}"
    # A function name must not run into the symbol before it: r sin(θ).
    named = isinstance(right, ast.Call) and right.func.id != "factorial"  # type: ignore[union-attr]
    return (
        f"{before} {after}"
        if (named and before[-1].isalpha()) or _runs_together(before, after)
        else before + after
    )


def _runs_together(before: str, after: str) -> bool:
    """Whether two texts side by side would be read as something else: p and i as pi, 2 and e1 as
    20.
    """
    if before[-1].isdigit() and re.match(r"[eE]\d", after):
        return True
    head, tail = re.search(r"[^\W\d_]*$", before), re.match(r"[^\W\d_]*", after)
    run, at = (head[0] if head else "") + (tail[0] if tail else ""), len(head[0] if head else "")
    words = [*FUNCTIONS, *CONSTANTS]
    return any(
        start < at < start + len(word)
        for word in words
        for start in range(len(run))
        if run.startswith(word, start)
    )
