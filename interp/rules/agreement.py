"""Whether two formulas are the same everywhere, found by computing both at random points, not by
rewriting.

Rewriting (`simplify`) takes as long as it likes on a product of powers. Here every operation is one
of floating point and takes constant time, whatever the formula: none can make this slow.

If the difference of two formulas is a quotient of polynomials of degree d, it vanishes at one point
with probability at most d/2^24 (Schwartz and Zippel), at all of them with at most (d/2^24)^POINTS,
below 1e-29 for d = 100. Formulas whose values differ by less than `PRECISION` relative to their
size everywhere count as the same. Symbols stand for positive numbers, so sqrt(x^2) is x. Values are
complex, because sqrt(1 - x) is the same formula as itself where x > 1.
"""

import ast
import cmath
import math
import random
from collections.abc import Mapping

from interp.rules.expressions import ARITHMETIC, names

POINTS = 6
PRECISION = 1e-9
"""Relative difference up to which two computed values are the same."""


def agree(first: ast.expr, second: ast.expr) -> bool:
    """Whether two trees (see `interp.rules.expressions.tree`) have the same value, whatever
    positive numbers symbols are.

    A formula that has no value somewhere, or none that a float holds, agrees with nothing.

    >>> from interp.rules.expressions import tree
    >>> agree(tree("2(x + y)"), tree("2x + 2y")), agree(tree("x + y"), tree("x * y"))
    (True, False)
    >>> agree(tree("√8"), tree("2√2"))
    True
    """
    symbols = frozenset(names(first)) | frozenset(names(second))
    try:
        for point in range(POINTS):
            values = point_of(symbols, point)
            a, b = value_of(first, values), value_of(second, values)
            if abs(a - b) > PRECISION * max(abs(a), abs(b)):
                return False
    except (ArithmeticError, ValueError, RecursionError):
        return False
    return True


def point_of(symbols: frozenset[str], seed: int) -> dict[str, complex]:
    """Rational numbers between 1/2 and 2, out of 2^24 for each symbol; always the same for the
    same symbols.
    """
    draw = random.Random(seed)
    return {name: complex(0.5 + 1.5 * draw.randrange(2**24) / 2**24) for name in sorted(symbols)}


def value_of(node: ast.expr, values: Mapping[str, complex]) -> complex:
    """The value of a tree.

    Raises:
        ArithmeticError: It is undefined, or too large for a float.
        ValueError: A function is undefined there.
    """
    value = _computed(node, values)
    if not cmath.isfinite(value):
        raise ArithmeticError("not finite")
    return value


def _computed(node: ast.expr, values: Mapping[str, complex]) -> complex:
    match node:
        case ast.Constant(value=int() | float() as number):
            return complex(float(number))
        case ast.Name(id="pi"):
            return complex(math.pi)
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(operand=operand):
            return -value_of(operand, values)
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return _called(name, value_of(argument, values))
        case ast.BinOp(left=left, op=op, right=right):
            return _combined(op, value_of(left, values), value_of(right, values))
    raise ValueError("not arithmetic")


def _combined(op: ast.operator, left: complex, right: complex) -> complex:
    if type(op) in ARITHMETIC:
        return ARITHMETIC[type(op)](left, right)
    if left.imag == right.imag == 0 and (left.real >= 0 or right.real.is_integer()):
        return complex(left.real**right.real)  # more exact than the complex power
    return left**right


def _called(name: str, argument: complex) -> complex:
    real = argument.imag == 0
    match name:
        case "sqrt":
            return (
                complex(math.sqrt(argument.real))
                if real and argument.real >= 0
                else cmath.sqrt(argument)
            )
        case "abs":
            return complex(abs(argument))
        case "factorial":
            if not real:
                raise ValueError("factorial of a complex number")
            return complex(math.gamma(argument.real + 1))
        case "ln":
            return cmath.log(argument)
        case "log":
            return cmath.log10(argument)
        case "cot":
            return 1 / cmath.tan(argument)
        case "sec":
            return 1 / cmath.cos(argument)
        case "csc":
            return 1 / cmath.sin(argument)
    plain = {"arcsin": "asin", "arccos": "acos", "arctan": "atan"}.get(name, name)
    return getattr(cmath, plain)(argument)
