"""Units of measurement: how they are read aloud, and what they measure.

A unit is written with the symbols below, `*`, `/` and `^`: "m/s^2", "J/(kg*K)".
"""

import ast
import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import sympy

from interp.errors import DmleError
from interp.rules.expressions import ExpressionError, tree

# symbol: (plural, base units it is made of). Scale and dimension follow from the second.
_UNITS: dict[str, tuple[str, str]] = {
    "m": ("meters", "m"),
    "kg": ("kilograms", "kg"),
    "s": ("seconds", "s"),
    "A": ("amperes", "A"),
    "K": ("kelvins", "K"),
    "mol": ("moles", "mol"),
    "cd": ("candelas", "cd"),
    "dollar": ("dollars", "dollar"),
    "bit": ("bits", "bit"),
    "cm": ("centimeters", "m/100"),
    "mm": ("millimeters", "m/1000"),
    "km": ("kilometers", "1000*m"),
    "g": ("grams", "kg/1000"),
    "h": ("hours", "3600*s"),
    "min": ("minutes", "60*s"),
    "year": ("years", "31557600*s"),
    "L": ("liters", "m^3/1000"),
    "mL": ("milliliters", "m^3/1000000"),
    "N": ("newtons", "kg*m/s^2"),
    "J": ("joules", "kg*m^2/s^2"),
    "W": ("watts", "kg*m^2/s^3"),
    "kWh": ("kilowatt-hours", "3600000*kg*m^2/s^2"),
    "kW": ("kilowatts", "1000*kg*m^2/s^3"),
    "Pa": ("pascals", "kg/(m*s^2)"),
    "Hz": ("hertz", "1/s"),
    "C": ("coulombs", "A*s"),
    "V": ("volts", "kg*m^2/(A*s^3)"),
    "Ω": ("ohms", "kg*m^2/(A^2*s^3)"),
    "F": ("farads", "A^2*s^4/(kg*m^2)"),
    "H": ("henries", "kg*m^2/(A^2*s^2)"),
    "T": ("teslas", "kg/(A*s^2)"),
    "Wb": ("webers", "kg*m^2/(A*s^2)"),
    "S": ("siemens", "A^2*s^3/(kg*m^2)"),
    "D": ("diopters", "1/m"),
    "rad": ("radians", "1"),
    "%": ("percent", "1"),
    "lm": ("lumens", "cd"),
    "lx": ("lux", "cd/m^2"),
    "Bq": ("becquerels", "1/s"),
    "Gy": ("grays", "m^2/s^2"),
}
MAX_EXPONENT = 24
"""Largest power of a unit, and largest denominator of one."""
_BASE = ("m", "kg", "s", "A", "K", "mol", "cd", "dollar", "bit")


class UnitError(DmleError):
    """A unit is not known, or quantities do not fit together; says which and why."""


@dataclass(frozen=True)
class Measure:
    """What a unit measures: powers of the base units, and how many of those it is."""

    powers: tuple[Fraction, ...] = (Fraction(0),) * len(_BASE)
    scale: sympy.Expr = sympy.S.One

    def __mul__(self, other: "Measure") -> "Measure":
        powers = tuple(a + b for a, b in zip(self.powers, other.powers, strict=True))
        return Measure(powers, self.scale * other.scale)

    def __pow__(self, exponent: Fraction) -> "Measure":
        power = sympy.Rational(exponent.numerator, exponent.denominator)
        return Measure(tuple(a * exponent for a in self.powers), self.scale**power)

    def __str__(self) -> str:
        named = [f"{u}^{p}" if p != 1 else u for u, p in zip(_BASE, self.powers, strict=True) if p]
        return " ".join(([str(self.scale)] if self.scale != 1 else []) + named) or "a pure number"


@lru_cache(maxsize=4096)
def measure(unit: str) -> Measure:
    """What a unit measures; an empty unit is that of a pure number.

    Raises:
        UnitError: If a symbol in it is not known.
    """
    if not unit:
        return Measure()
    replaced = unit.replace("%", "rad")
    try:
        if unknown := [
            word for word in re.findall(r"[^\W\d_⁰¹²³⁴⁵⁶⁷⁸⁹]+", replaced) if word not in _UNITS
        ]:
            raise ExpressionError(f"{unknown[0]!r} is no unit")
        return _measure(tree(replaced, frozenset(_UNITS)))
    except (ExpressionError, ArithmeticError, ValueError) as error:
        raise UnitError(
            f"the unit {unit!r} is not known ({error}); units are made of {', '.join(_UNITS)}"
        ) from error


@lru_cache(maxsize=4096)
def spoken(unit: str) -> str:
    """A unit in words, as after a number above one.

    >>> spoken("kg*m/s^2"), spoken("m^3"), spoken("J/(kg*K)")
    ('kilogram meters per second squared', 'cubic meters', 'joules per kilogram per kelvin')

    Raises:
        UnitError: If a symbol in it is not known, or it is not one product over another.
    """
    measure(unit)
    above, _, below = unit.partition("/")
    try:
        words = [_one(part) for part in above.split("*")] if above not in ("", "1") else []
        named = [*(_singular(word) for word in words[:-1]), *words[-1:]]
        for part in below.strip("()").split("*") if below else []:
            named += ["per", _singular(_one(part))]
    except KeyError as error:
        raise UnitError(
            f"the unit {unit!r} cannot be read aloud; write it as 'a*b/(c*d)' with powers"
        ) from error
    return " ".join(named)


def check_dimensions(node: ast.expr, units: dict[str, str], result: str) -> None:
    """See that an expression gives the unit of its result when each symbol has the given unit.

    Raises:
        UnitError: If terms of different units are added, a function or exponent has a unit, or the
            result's unit differs.
    """
    found, wanted = (
        _quantity(node, {name: measure(unit) for name, unit in units.items()}),
        measure(result),
    )
    if found != wanted:
        raise UnitError(f"the expression gives {found}, and {result or 'the result'} is {wanted}")


def _measure(node: ast.expr) -> Measure:
    match node:
        case ast.Name(id=name):
            base = _UNITS[name][1]
            if base == name:
                return Measure(tuple(Fraction(int(unit == name)) for unit in _BASE))
            return _measure(tree(base, frozenset(_UNITS)))
        case ast.Constant(value=value):
            if not re.fullmatch(r"\d{1,12}(?:\.\d{1,6})?", str(value)) or not value:
                raise ExpressionError(f"{str(value)[:40]} is no size of a unit")
            return Measure(scale=sympy.Rational(str(value)))
        case ast.BinOp(left, ast.Mult(), right):
            return _measure(left) * _measure(right)
        case ast.BinOp(left, ast.Div(), right):
            return _measure(left) * _measure(right) ** Fraction(-1)
        case ast.BinOp(left, ast.Pow(), right):
            return _measure(left) ** _exponent(right)
    raise ExpressionError(f"{ast.unparse(node)!r} is not a product of powers")


def _exponent(node: ast.expr) -> Fraction:
    sign, node = (-1, node.operand) if isinstance(node, ast.UnaryOp) else (1, node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        above, below = _exponent(node.left), _exponent(node.right)
        if not below:
            raise UnitError(f"the exponent {ast.unparse(node)} divides by zero")
        return _small(sign * above / below)
    if not isinstance(node, ast.Constant):
        raise UnitError(
            f"the exponent {ast.unparse(node)} of a quantity with a unit is not a number"
        )
    text = str(node.value)
    if not re.fullmatch(r"\d{1,4}(?:\.\d{1,4})?", text):
        raise UnitError(
            f"the exponent {text[:40]} of a quantity with a unit is not a number from 0 to"
            f" {MAX_EXPONENT}"
        )
    return _small(sign * Fraction(text))


def _small(exponent: Fraction) -> Fraction:
    if abs(exponent) > MAX_EXPONENT or exponent.denominator > MAX_EXPONENT:
        raise UnitError(
            f"the exponent {exponent} of a quantity with a unit; at most {MAX_EXPONENT} is read"
        )
    return exponent


def _quantity(node: ast.expr, units: dict[str, Measure]) -> Measure:
    """The measure of an expression; a bare number is pure."""
    pure = Measure()
    match node:
        case ast.Constant():
            return pure
        case ast.Name(id=name):
            return units.get(name, pure)
        case ast.UnaryOp(operand=operand):
            return _quantity(operand, units)
        case ast.Call(args=[argument], func=ast.Name(id="sqrt")):
            return _quantity(argument, units) ** Fraction(1, 2)
        case ast.Call(args=[argument], func=ast.Name(id="abs")):
            return _quantity(argument, units)
        case ast.Call(args=[argument], func=ast.Name(id=name)):
            if (inside := _quantity(argument, units)) != pure:
                raise UnitError(f"{name} of {ast.unparse(argument)}, which is {inside}")
            return pure
        case ast.BinOp(left, ast.Mult(), right):
            return _quantity(left, units) * _quantity(right, units)
        case ast.BinOp(left, ast.Div(), right):
            return _quantity(left, units) * _quantity(right, units) ** Fraction(-1)
        case ast.BinOp(left, ast.Pow(), right):
            base, exponent = _quantity(left, units), _quantity(right, units)
            if exponent != pure:
                raise UnitError(f"the exponent {ast.unparse(right)} is {exponent}")
            return pure if base == pure else base ** _exponent(right)
        case ast.BinOp(left, _, right):
            terms = _quantity(left, units), _quantity(right, units)
            if terms[0] != terms[1]:
                raise UnitError(
                    f"{ast.unparse(left)} is {terms[0]}, {ast.unparse(right)} is {terms[1]}: no sum"
                    " of them"
                )
            return terms[0]
    raise UnitError(f"{ast.unparse(node)!r} is not arithmetic")


def _one(part: str) -> str:
    symbol, _, power = part.strip("() ").partition("^")
    word = _UNITS[symbol][0]
    if not power:
        return word
    name = {"2": "square", "3": "cubic"}.get(power)
    if symbol in ("m", "cm", "mm", "km") and name:
        return f"{name} {word}"
    behind = {"2": "squared", "3": "cubed"}.get(power, f"to the power {power}")
    return f"{word} {behind}"


def _singular(words: str) -> str:
    fixed = {
        "henries": "henry",
        "hertz": "hertz",
        "siemens": "siemens",
        "lux": "lux",
        "percent": "percent",
    }
    return " ".join(fixed.get(w, re.sub(r"s$", "", w)) for w in words.split(" "))
