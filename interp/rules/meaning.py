"""The meaning of a mathematical expression: a SymPy expression or number, of bounded size."""

import ast
import re
import unicodedata
from collections.abc import Collection, Mapping

import sympy

from interp.rules.expressions import (
    ARITHMETIC,
    CONSTANTS,
    FUNCTIONS,
    MAX_LENGTH,
    ExpressionError,
    tree,
)
from interp.rules.work_limit import WorkOver, work_limit

MAX_EXPONENT = 64
MAX_FACTORIAL = 170
MAX_BITS = 4096
MAX_ROOT_BITS, MAX_ROOT = 256, 1000
"""Binary digits of a number of which a root is taken, and largest part of a fractional exponent."""
MAX_CALLS = 500_000
"""Calls of functions for the meaning of one expression: about a second; ordinary ones take a
thousandth of it."""


def to_sympy(node: ast.expr, values: Mapping[str, object] | None = None) -> sympy.Expr:
    """The meaning of a tree; names in `values` are replaced, others are positive real symbols.

    Raises:
        ExpressionError: If the result is too large to write out, or undefined.
    """
    known = {unicodedata.normalize("NFKC", name): value for name, value in (values or {}).items()}
    try:
        if _is_plain(node):
            return _meaning(node, known)
        with work_limit(MAX_CALLS):
            return _meaning(node, known)
    except ExpressionError:
        raise
    except WorkOver as error:
        raise ExpressionError(
            f"{ast.unparse(node)!r} takes more steps to compute than are done here"
        ) from error
    except (TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{ast.unparse(node)!r} cannot be computed ({error})") from error


def parse(
    text: str, symbols: Collection[str] | None = None, values: Mapping[str, object] | None = None
) -> sympy.Expr:
    """`to_sympy` of `tree`.

    >>> parse("2(l + w)")
    2*l + 2*w
    >>> parse("2(l + w)", values={"l": 5, "w": 4})
    18
    >>> from interp.rules.expressions import ExpressionError
    >>> try:
    ...     parse("__import__('os')")
    ... except ExpressionError as error:
    ...     print(error)
    "__import__('os')" has '_' where a number, a name or an operator is read
    """
    return to_sympy(tree(text, None if symbols is None else frozenset(symbols)), values)


def _is_plain(node: ast.expr) -> bool:
    """Whether it has so few functions and roots that its meaning cannot take long, as those of
    almost all rules.
    """
    odd = [
        part
        for part in ast.walk(node)
        if isinstance(part, ast.Call)
        or (
            isinstance(part, ast.BinOp)
            and isinstance(part.op, ast.Pow)
            and not _is_whole(part.right)
        )
    ]
    return len(odd) <= 2


def _is_whole(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


def _meaning(node: ast.expr, values: Mapping[str, object]) -> sympy.Expr:
    match node:
        case ast.Constant(value=value):
            return _number(str(value))
        case ast.Name(id=name):
            if name in CONSTANTS:
                return CONSTANTS[name]
            return (
                _number(str(values[name])) if name in values else sympy.Symbol(name, positive=True)
            )
        case ast.UnaryOp(operand=operand):
            return -_meaning(operand, values)
        case ast.Call(func=ast.Name(id=name), args=[inner]):
            return _applied(name, _meaning(inner, values))
    assert isinstance(node, ast.BinOp)
    return _bounded(_combined(node.op, _meaning(node.left, values), _meaning(node.right, values)))


def _applied(name: str, argument: sympy.Expr) -> sympy.Expr:
    """A function of a value, unless the result would be too large to write out."""
    counted = name == "factorial" and argument.is_number
    if counted and not (argument.is_real and 0 <= argument <= MAX_FACTORIAL):
        raise ExpressionError(f"factorial of {argument}; 0 to {MAX_FACTORIAL} are computed")
    if name == "exp" and _is_too_large(argument):
        raise ExpressionError(f"exp of {argument}; exponents up to {MAX_EXPONENT} are computed")
    if name == "sqrt":
        _check_root(argument, sympy.Rational(1, 2))
    return _bounded(FUNCTIONS[name](argument))


def _combined(sign: ast.operator, left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    if isinstance(sign, ast.Div) and right.is_zero:
        raise ExpressionError("division by zero")
    if type(sign) in ARITHMETIC:
        return ARITHMETIC[type(sign)](left, right)
    if _is_too_large(right):
        raise ExpressionError(f"a power of {right}; exponents up to {MAX_EXPONENT} are computed")
    if left.is_zero and right.is_number and right < 0:
        raise ExpressionError("division by zero")
    _check_root(left, right)
    return left**right


def _is_too_large(exponent: sympy.Expr) -> bool:
    """Whether an exponent is a number that no power is computed of; one with symbols is not."""
    return exponent.is_number and not (exponent.is_real and abs(exponent) <= MAX_EXPONENT)


def _check_root(left: sympy.Expr, right: sympy.Expr) -> None:
    """Refuse a root of a number that SymPy would take apart for long: it looks for factors, and
    writes out powers.
    """
    if not isinstance(right, sympy.Rational) or right.is_Integer:
        return
    bits = max((max(abs(n.p), n.q).bit_length() for n in left.atoms(sympy.Rational)), default=1)
    if bits > MAX_ROOT_BITS or max(abs(right.p), right.q) > MAX_ROOT:
        raise ExpressionError(
            f"a power of {right} of a number of {bits} binary digits; smaller ones are computed"
        )


def _number(text: str) -> sympy.Expr:
    found = re.fullmatch(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?", text)
    if not found or abs(int(found[1] or 0)) > MAX_LENGTH or len(text) > MAX_LENGTH:
        raise ExpressionError(f"{text[:40]!r} is not a number of ordinary size")
    return sympy.Rational(text)


def _bounded(value: sympy.Expr) -> sympy.Expr:
    """The value, unless it is undefined or so large that going on would take for ever."""
    if value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        raise ExpressionError("a value is undefined")
    if any(max(abs(n.p), n.q).bit_length() > MAX_BITS for n in value.atoms(sympy.Rational)):
        raise ExpressionError(f"a number of more than {MAX_BITS} binary digits")
    return value
