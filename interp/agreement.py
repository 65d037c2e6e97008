"""Whether two expressions are the same everywhere, found by computing both at random points, not by rewriting.

Rewriting (`simplify`) takes as long as it likes on a product of powers; a value takes milliseconds. If the difference
of two formulas is a quotient of polynomials of degree d, it vanishes at one point with probability at most d/2^24
(Schwartz and Zippel), at all of them with at most (d/2^24)^POINTS, below 1e-29 for d = 100.
"""

import random

import sympy

POINTS = 6
DIGITS = 30
"""Decimal digits that are computed."""
AGREEMENT = 20
"""Decimal digits that must agree."""


def agree(first: sympy.Expr, second: sympy.Expr) -> bool:
    """Whether two expressions have the same value, whatever positive numbers their symbols are.

    What has no finite value at a point agrees with nothing.

    >>> x, y = sympy.symbols("x y", positive=True)
    >>> agree(2 * (x + y), 2 * x + 2 * y), agree(x * y, x + y), agree(sympy.sqrt(8), 2 * sympy.sqrt(2))
    (True, False, True)
    """
    if first.is_Rational and second.is_Rational:
        return bool(first == second)
    symbols = sorted(first.free_symbols | second.free_symbols, key=str)
    for point in range(POINTS if symbols else 1):
        draw = random.Random(point)
        values = {symbol: sympy.Rational(1, 2) + sympy.Rational(draw.randrange(3 * 2**23), 2**24) for symbol in symbols}
        a, b = _value(first, values), _value(second, values)
        if a is None or b is None or abs(a - b) > sympy.Float(10) ** -AGREEMENT * max(abs(a), abs(b)):
            return False
    return True


def _value(expression: sympy.Expr, values: dict[sympy.Basic, sympy.Rational]) -> sympy.Expr | None:
    try:
        found = expression.evalf(DIGITS, subs=values)
    except (ArithmeticError, ValueError, TypeError, RecursionError):
        return None
    return found if found.is_number and found.is_finite else None
