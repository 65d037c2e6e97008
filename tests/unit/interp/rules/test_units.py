"""Units: what they measure beside SymPy's own table, how they are read aloud, and what may not
be added."""

from fractions import Fraction
from typing import Any

import pytest
import sympy
from sympy.physics import units as si

from interp.rules.expressions import tree
from interp.rules.sources import load_rules
from interp.rules.units import _BASE, _UNITS, Measure, UnitError, check_dimensions, measure, spoken

# Money and bits are no dimensions of SymPy's.
SYMPY_BASE = ("m", "kg", "s", "A", "K", "mol", "cd")
SYMPY_UNITS = {
    "m": si.meter,
    "kg": si.kilogram,
    "s": si.second,
    "A": si.ampere,
    "K": si.kelvin,
    "mol": si.mole,
    "cd": si.candela,
    "cm": si.centimeter,
    "mm": si.millimeter,
    "km": si.kilometer,
    "g": si.gram,
    "h": si.hour,
    "min": si.minute,
    "L": si.liter,
    "mL": si.milliliter,
    "N": si.newton,
    "J": si.joule,
    "W": si.watt,
    "kWh": 1000 * si.watt * si.hour,
    "kW": 1000 * si.watt,
    "Pa": si.pascal,
    "Hz": si.hertz,
    "C": si.coulomb,
    "V": si.volt,
    "Ω": si.ohm,
    "F": si.farad,
    "H": si.henry,
    "T": si.tesla,
    "Wb": si.weber,
    "S": si.siemens,
    "D": si.dioptre,
    "lx": si.lux,
    "Bq": si.becquerel,
    "Gy": si.gray,
}
SPOKEN = {
    "m": ("meters", "meter"),
    "kg": ("kilograms", "kilogram"),
    "s": ("seconds", "second"),
    "A": ("amperes", "ampere"),
    "K": ("kelvins", "kelvin"),
    "mol": ("moles", "mole"),
    "cd": ("candelas", "candela"),
    "dollar": ("dollars", "dollar"),
    "bit": ("bits", "bit"),
    "cm": ("centimeters", "centimeter"),
    "mm": ("millimeters", "millimeter"),
    "km": ("kilometers", "kilometer"),
    "g": ("grams", "gram"),
    "h": ("hours", "hour"),
    "min": ("minutes", "minute"),
    "year": ("years", "year"),
    "L": ("liters", "liter"),
    "mL": ("milliliters", "milliliter"),
    "N": ("newtons", "newton"),
    "J": ("joules", "joule"),
    "W": ("watts", "watt"),
    "kWh": ("kilowatt-hours", "kilowatt-hour"),
    "kW": ("kilowatts", "kilowatt"),
    "Pa": ("pascals", "pascal"),
    "Hz": ("hertz", "hertz"),
    "C": ("coulombs", "coulomb"),
    "V": ("volts", "volt"),
    "Ω": ("ohms", "ohm"),
    "F": ("farads", "farad"),
    "H": ("henries", "henry"),
    "T": ("teslas", "tesla"),
    "Wb": ("webers", "weber"),
    "S": ("siemens", "siemens"),
    "D": ("diopters", "diopter"),
    "rad": ("radians", "radian"),
    "%": ("percent", "percent"),
    "lm": ("lumens", "lumen"),
    "lx": ("lux", "lux"),
    "Bq": ("becquerels", "becquerel"),
    "Gy": ("grays", "gray"),
}


def powers(**given: int | Fraction) -> tuple[Fraction, ...]:
    """Powers of the base units, by name."""
    assert given.keys() <= set(_BASE)
    return tuple(Fraction(given.get(name, 0)) for name in _BASE)


# What a unit measures.


@pytest.mark.parametrize("symbol", SYMPY_UNITS)
def test_unit_has_the_dimension_and_size_of_sympys(symbol: str) -> None:
    theirs: Any = si.convert_to(SYMPY_UNITS[symbol], [SYMPY_UNITS[name] for name in SYMPY_BASE])
    factors = theirs.as_powers_dict()
    named = {name: Fraction(int(factors.pop(SYMPY_UNITS[name], 0))) for name in SYMPY_BASE}
    assert measure(symbol).powers == powers(**named)
    assert measure(symbol).scale == sympy.nsimplify(
        sympy.Mul(*(base**power for base, power in factors.items()))
    )


def test_every_unit_is_checked_against_sympy_or_by_hand() -> None:
    by_hand = {
        "dollar": Measure(powers(dollar=1)),
        "bit": Measure(powers(bit=1)),
        "year": Measure(powers(s=1), sympy.Integer(365 * 86400 + 6 * 3600)),
        "rad": Measure(),
        "%": Measure(),
        "lm": Measure(powers(cd=1)),  # cd sr, and a steradian is a pure number
    }
    assert by_hand.keys() | SYMPY_UNITS.keys() == _UNITS.keys()
    assert {symbol: measure(symbol) for symbol in by_hand} == by_hand


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("", Measure()),
        ("m/s^2", Measure(powers(m=1, s=-2))),
        ("kg*m/s", Measure(powers(kg=1, m=1, s=-1))),
        ("J/(kg*K)", Measure(powers(m=2, s=-2, K=-1))),
        ("km/h", Measure(powers(m=1, s=-1), sympy.Rational(5, 18))),
        ("g/cm^3", Measure(powers(kg=1, m=-3), sympy.Integer(1000))),
        ("cm^2", Measure(powers(m=2), sympy.Rational(1, 10_000))),
        ("mol/L", Measure(powers(mol=1, m=-3), sympy.Integer(1000))),
        ("1/s", Measure(powers(s=-1))),
        ("m^(1/2)", Measure(powers(m=Fraction(1, 2)))),
        ("m^-2", Measure(powers(m=-2))),
        ("m/s/s", Measure(powers(m=1, s=-2))),
        ("dollar/kWh", Measure(powers(dollar=1, kg=-1, m=-2, s=2), sympy.Rational(1, 3_600_000))),
        ("kW", Measure(powers(kg=1, m=2, s=-3), sympy.Integer(1000))),
        ("m²", Measure(powers(m=2))),
    ],
)
def test_compound_unit_is_worked_out(unit: str, expected: Measure) -> None:
    assert measure(unit) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("J", "N*m"),
        ("J", "W*s"),
        ("J", "C*V"),
        ("Pa", "N/m^2"),
        ("V", "J/C"),
        ("Ω", "V/A"),
        ("S", "1/Ω"),
        ("F", "C/V"),
        ("H", "Wb/A"),
        ("T", "Wb/m^2"),
        ("Wb", "V*s"),
        ("Gy", "J/kg"),
        ("lx", "lm/m^2"),
        ("Hz", "Bq"),
        ("L", "1000*mL"),
        ("kWh", "kW*h"),
        ("h", "60*min"),
    ],
)
def test_units_of_one_quantity_are_equal(one: str, other: str) -> None:
    assert measure(one) == measure(other)


def test_measure_says_what_it_is() -> None:
    assert str(measure("km/h")) == "5/18 m s^-1"
    assert str(measure("N")) == "m kg s^-2"
    assert str(measure("rad")) == "a pure number"


@pytest.mark.parametrize(
    "unit", ["furlong", "m+s", "m - m", "-m", "m^s", "m!", "sin(m)", "m**", "__import__('os')", " "]
)
def test_what_is_no_unit_is_refused(unit: str) -> None:
    with pytest.raises(UnitError):
        measure(unit)


def test_refusal_names_the_unit_and_lists_those_that_are_known() -> None:
    with pytest.raises(
        UnitError, match=r"the unit 'furlong' is not known .*units are made of m, kg, s, A"
    ):
        measure("furlong")


# Known faults; the mark goes when the code refuses these.


def fault(unit: str, reason: str) -> object:
    return pytest.param(unit)


@pytest.mark.parametrize(
    "unit",
    [
        fault("mA", "read as meter ampere"),
        fault("ms", "read as meter second"),
        fault("mg", "read as meter gram"),
        fault("dollars", "read as dollar second"),
        fault("pi", "KeyError"),
        fault("2*pi", "KeyError"),
        fault("m^(1/0)", "ZeroDivisionError"),
        fault("m^1e400", "ValueError"),
    ],
)
def test_what_looks_like_a_unit_is_refused(unit: str) -> None:
    with pytest.raises(UnitError):
        measure(unit)


@pytest.mark.parametrize(
    "unit",
    [
        fault("", "KeyError"),
        fault("m/s/s", "KeyError"),
        fault("(m/s)^2", "KeyError"),
        fault("1000*kg", "KeyError"),
    ],
)
def test_unit_that_is_measured_is_spoken_or_refused(unit: str) -> None:
    measure(unit)
    try:
        spoken(unit)
    except UnitError:
        return


# Reading aloud.


def test_every_unit_is_spoken() -> None:
    assert SPOKEN.keys() == _UNITS.keys()
    assert {unit: spoken(unit) for unit in _UNITS} == {
        unit: plural for unit, (plural, _) in SPOKEN.items()
    }
    assert {unit: spoken(f"1/{unit}") for unit in _UNITS} == {
        unit: f"per {one}" for unit, (_, one) in SPOKEN.items()
    }


@pytest.mark.parametrize(
    ("unit", "words"),
    [
        ("m^2", "square meters"),
        ("cm^3", "cubic centimeters"),
        ("m/s", "meters per second"),
        ("m/s^2", "meters per second squared"),
        ("kg/m^3", "kilograms per cubic meter"),
        ("m^3/s", "cubic meters per second"),
        ("N*m", "newton meters"),
        ("kg*m/s", "kilogram meters per second"),
        ("kg*m^2", "kilogram square meters"),
        ("J/(kg*K)", "joules per kilogram per kelvin"),
        ("W/(m^2*K)", "watts per square meter per kelvin"),
        ("1/(m*s)", "per meter per second"),
        ("A*h", "ampere hours"),
        ("H/m", "henries per meter"),
        ("m/H", "meters per henry"),
        ("S/m", "siemens per meter"),
        ("s^3", "seconds cubed"),
        ("m/s^3", "meters per second cubed"),
        ("W/K^4", "watts per kelvin to the power 4"),
        ("m^4", "meters to the power 4"),
        ("dollar/kWh", "dollars per kilowatt-hour"),
        ("%/year", "percent per year"),
    ],
)
def test_compound_unit_is_spoken_as_people_do(unit: str, words: str) -> None:
    assert spoken(unit) == words


def test_unknown_unit_is_not_spoken() -> None:
    with pytest.raises(UnitError, match="'furlong' is not known"):
        spoken("furlong")


def test_every_unit_of_the_rulebook_is_spoken_and_no_two_alike() -> None:
    rules = load_rules().rules
    used = {
        symbol.unit
        for rule in rules
        for symbol in (*rule.symbols, rule.result)
        if symbol and symbol.unit
    }
    assert len(used) > 30
    words = {unit: spoken(unit) for unit in used}
    assert len(set(words.values())) == len(used)
    assert not any(set(text) & set("*/^()") for text in words.values())


# Dimensions of expressions.


@pytest.mark.parametrize(
    ("expression", "units", "result"),
    [
        ("m*a", {"m": "kg", "a": "m/s^2"}, "N"),
        ("1/2*m*v^2", {"m": "kg", "v": "m/s"}, "J"),
        ("v + a*t", {"v": "m/s", "a": "m/s^2", "t": "s"}, "m/s"),
        ("v^2 - 2*a*s", {"v": "m/s", "a": "m/s^2", "s": "m"}, "m^2/s^2"),
        ("2*pi*sqrt(l/g)", {"l": "m", "g": "m/s^2"}, "s"),
        ("(l/g)^(1/2)", {"l": "m", "g": "m/s^2"}, "s"),
        ("d^-1", {"d": "m"}, "D"),
        ("A*exp(-k*t)", {"A": "V", "k": "1/s", "t": "s"}, "V"),
        ("r*sin(w*t)", {"r": "m", "w": "rad/s", "t": "s"}, "m"),
        ("P*(1 + r)^n", {"P": "dollar", "r": "%"}, "dollar"),
        ("abs(x - y)", {"x": "K", "y": "K"}, "K"),
        ("-x", {"x": "m"}, "m"),
        ("R*S/(R + S)", {"R": "Ω", "S": "Ω"}, "Ω"),
        ("x/y", {"x": "cm", "y": "cm"}, ""),
        ("n!", {}, ""),
        ("W/t", {"W": "kWh", "t": "h"}, "kW"),
    ],
)
def test_consistent_expression_is_accepted(
    expression: str, units: dict[str, str], result: str
) -> None:
    check_dimensions(tree(expression), units, result)


@pytest.mark.parametrize(
    ("expression", "units", "result", "said"),
    [
        ("m + a", {"m": "kg", "a": "m/s^2"}, "N", r"m is kg, a is m s\^-2: no sum of them"),
        ("m - a", {"m": "kg", "a": "m/s^2"}, "N", "no sum of them"),
        ("x + 1", {"x": "m"}, "m", "x is m, 1 is a pure number: no sum of them"),
        ("x + y", {"x": "m", "y": "cm"}, "m", "y is 1/100 m: no sum of them"),
        ("x*y + x", {"x": "m", "y": "m"}, "m", r"x \* y is m\^2, x is m"),
        ("m*a", {"m": "kg", "a": "m/s^2"}, "J", r"gives m kg s\^-2, and J is m\^2 kg s\^-2"),
        ("x/t", {"x": "km", "t": "h"}, "m/s", r"gives 5/18 m s\^-1, and m/s is m s\^-1"),
        ("x*y", {"x": "m", "y": "m"}, "", r"gives m\^2, and the result is a pure number"),
        ("sin(t)", {"t": "s"}, "", "sin of t, which is s"),
        ("ln(x)", {"x": "m"}, "", "ln of x, which is m"),
        ("exp(k*t)", {"k": "1/s"}, "", r"exp of k \* t, which is s\^-1"),
        ("n!", {"n": "mol"}, "", "factorial of n, which is mol"),
        ("2^t", {"t": "s"}, "", "the exponent t is s"),
        ("x^n", {"x": "m"}, "m", "the exponent n of a quantity with a unit is not a number"),
        ("sqrt(x)", {"x": "m"}, "m", r"gives m\^1/2, and m is m"),
        ("x*y", {"x": "m", "y": "furlong"}, "m", "the unit 'furlong' is not known"),
        ("x", {"x": "m"}, "parsec", "the unit 'parsec' is not known"),
    ],
)
def test_inconsistent_expression_is_refused(
    expression: str, units: dict[str, str], result: str, said: str
) -> None:
    with pytest.raises(UnitError, match=said):
        check_dimensions(tree(expression), units, result)
