"""Specifications of rules: what a rule says, without the sentences that are made from it.

A specification file is YAML: `domain`, `topic`, and a list of `rules`, each with the fields of
`RuleSpec`.
"""

import itertools
import math
import re
from fractions import Fraction
from pathlib import Path
from string import Formatter
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from interp.errors import InputError
from interp.rules.agreement import agree
from interp.rules.expressions import ExpressionError, names, tree
from interp.rules.meaning import parse
from interp.rules.rendering import exact
from interp.rules.schema import RuleError
from interp.rules.units import UnitError, check_dimensions, measure
from interp.settings.plain_yaml import YamlError, read_yaml_file
from interp.settings.section import clipped, short

MAX_CHOICES = 50_000
MAX_RULES = 5000
"""Rules of one specification file."""
MAX_RANGE_LENGTH = 2000
"""Characters of a symbol's range or list of numbers."""
_SYMBOL = re.compile(r"(?P<range>[^\[\]]*?)\s*(?:\[(?P<unit>[^\[\]]+)\])?")
# Up to 12 digits, and 6 decimals: what `decimal` writes without loss.
_DECIMAL = r"\d{1,12}(?:\.\d{1,6})?"
_RANGE = re.compile(
    rf"(?P<low>{_DECIMAL})\s*\.\.\s*(?P<high>{_DECIMAL})(?:\s+step\s+(?P<step>{_DECIMAL}))?"
)
# Domains whose rules are about physical quantities: their expressions must be dimensionally
# consistent.
DIMENSIONAL = ("physics", "chemistry")


class SymbolSpec(BaseModel):
    """A quantity of a rule: the numbers that its instances may use, and its unit."""

    model_config = ConfigDict(frozen=True)

    values: tuple[Fraction, ...] = ()
    unit: str = ""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, text: Any) -> Any:
        """Read "3..9", "0.5..3 step 0.5 [s]", "2, 4, 8 [kg]" or "[N]"."""
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise InputError(
                f"{short(text)} is not a range with an optional unit, such as '3..9', '2, 4 [kg]'"
                " or '[N]'"
            )
        if len(str(text)) > MAX_RANGE_LENGTH:
            raise InputError(f"{short(text)} has more than {MAX_RANGE_LENGTH} characters")
        found = _SYMBOL.fullmatch(str(text).strip())
        if not found:
            raise InputError(
                f"{text!r} is not a range with an optional unit, such as '3..9', '2, 4 [kg]' or"
                " '[N]'"
            )
        return {"values": _numbers(found["range"]), "unit": found["unit"] or ""}

    @field_validator("unit")
    @classmethod
    def _known(cls, unit: str) -> str:
        measure(unit)
        return unit


class RuleSpec(BaseModel):
    """A rule: `quantity` of a `subject` follows from its symbols by `expression`; an edit wants
    `edited`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: str = Field(min_length=1)
    """The thing, as it stands in `phrase` and `plain`: "rectangle"."""
    quantity: str = Field(min_length=1)
    """What is asked of it: "perimeter"."""
    phrase: str
    """The thing with its symbols in braces: "a rectangle with length {l} and width {w}"."""
    plain: str = ""
    """The thing without them; the article and the subject if not given: "a rectangle"."""
    result: str
    """The symbol of the quantity, with its unit if it has one: "P", "E [J]"."""
    symbols: dict[str, SymbolSpec] = Field(min_length=1)
    expression: str
    edited: str
    words: str = Field(min_length=1)
    """The expression in words, after "take": "twice the sum of its length and width"."""
    edited_words: str = Field(min_length=1)
    also: tuple[str, ...] = ()
    """Other ways to write the true expression that are accepted as an answer."""
    id: str = Field(default="", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", validate_default=True)
    domain: str = ""
    topic: str = ""

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        subject, quantity = fields.get("subject", ""), fields.get("quantity", "")
        if not isinstance(subject, str):  # said below, of the field
            return fields
        slug = "-".join(re.findall(r"[a-z0-9]+", f"{subject} {quantity}".lower()))
        return {"plain": f"{article(subject)} {subject}", "id": slug, **fields}

    @model_validator(mode="after")
    def _consistent(self) -> "RuleSpec":
        self._check_sentences()
        self._check_symbols()
        self._check_expressions()
        return self

    def _check_sentences(self) -> None:
        for text in (self.phrase, self.plain):
            if len(re.findall(rf"(?<!\w){re.escape(self.subject)}(?!\w)", text)) != 1:
                raise InputError(
                    f"the subject {self.subject!r} must be in {text!r} once, as a word of its own"
                )
        parts = [
            (name, how, kind)
            for _, name, how, kind in Formatter().parse(self.phrase)
            if name is not None
        ]
        used = [name for name, _, _ in parts]
        if odd := [f"{{{name}}}" for name, how, kind in parts if how or kind]:
            raise InputError(
                f"phrase has a format behind a symbol at {', '.join(odd)}; a symbol stands alone in"
                " braces"
            )
        if sorted(used) != sorted(self.symbols):
            raise InputError(
                f"phrase has the symbols {used}, and symbols are {list(self.symbols)}: name each"
                " once"
            )

    def _check_symbols(self) -> None:
        if not self.result_symbol or self.result_symbol in self.symbols:
            raise InputError(f"result {self.result!r} needs a symbol of its own, such as 'E [J]'")
        if self.words == self.edited_words:
            raise InputError(f"words and edited_words are both {self.words!r}")
        for name, symbol in self.symbols.items():
            if not symbol.values:
                raise InputError(
                    f"symbol {name} has no values; give a range such as '2..9' or a list"
                )

    def _check_expressions(self) -> None:
        for field in ("expression", "edited"):
            unknown = set(names(tree(getattr(self, field), self.names))) - self.names
            if unknown:
                raise InputError(
                    f"{field} has the unknown symbols {sorted(unknown)}; symbols are"
                    f" {list(self.symbols)}"
                )
            parse(getattr(self, field), self.names)  # a division by zero, a number too large
        true = tree(self.expression, self.names)
        if agree(true, tree(self.edited, self.names)):
            raise InputError(
                f"edited {self.edited!r} says the same as the expression {self.expression!r}"
            )
        for text in self.also:
            if not agree(true, tree(text, self.names)):
                raise InputError(f"also: {text!r} differs from the expression {self.expression!r}")
        if self.domain in DIMENSIONAL:
            units = {name: symbol.unit for name, symbol in self.symbols.items()}
            check_dimensions(tree(self.expression, self.names), units, self.unit)
        measure(self.unit)

    @property
    def names(self) -> frozenset[str]:
        """The symbols of the expressions."""
        return frozenset(self.symbols)

    @property
    def result_symbol(self) -> str:
        """The symbol of the quantity: "E" of "E [J]"."""
        return self.result.partition("[")[0].strip()

    @property
    def unit(self) -> str:
        """The unit of the quantity: "J" of "E [J]"; empty for a pure number."""
        return self.result.partition("[")[2].rstrip("] ")

    def choices(self) -> list[dict[str, str]]:
        """All combinations of the symbols' values.

        Raises:
            RuleError: If there are too many.
        """
        total = math.prod(len(symbol.values) for symbol in self.symbols.values())
        if total > MAX_CHOICES:
            raise RuleError(
                f"rule {self.id} has {total} combinations of values; narrow its ranges to"
                f" {MAX_CHOICES}"
            )
        texts = [[decimal(value) for value in symbol.values] for symbol in self.symbols.values()]
        return [dict(zip(self.symbols, each, strict=True)) for each in itertools.product(*texts)]

    def results(self, values: dict[str, str]) -> tuple[str, str] | None:
        """The true and the edited result, if both are exact, non-zero and different."""
        try:
            true, edited = (
                exact(parse(text, self.names, values)) for text in (self.expression, self.edited)
            )
        except ExpressionError:
            return None
        return (
            (true, edited)
            if true and edited and true != edited and "0" not in (true, edited)
            else None
        )


def article(noun: str) -> str:
    """The indefinite article: a rectangle, an ellipse.

    By the first letter, which is wrong for "hour" and "unit"; such specifications give `plain`.
    """
    return "an" if noun[:1].lower() in "aeiou" else "a"


def decimal(number: Fraction) -> str:
    """A fraction with a finite decimal form, as text: 2.5."""
    text = exact(parse(f"{number.numerator}/{number.denominator}"), places=6)
    if text is None:
        raise InputError(f"{number} has no short decimal form")
    return text


def read_specs(path: Path) -> list[RuleSpec]:
    """Read a specification file.

    Raises:
        RuleError: If it is not YAML, or a rule in it contradicts itself; names the rule and the
            field.
    """
    try:
        content = read_yaml_file(path)
    except (OSError, YamlError) as error:
        raise RuleError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("rules"), list):
        raise RuleError(
            f"{path} is not a specification file: 'domain', 'topic' and a list 'rules' are needed"
        )
    if len(content["rules"]) > MAX_RULES:
        raise RuleError(
            f"{path} has {len(content['rules'])} rules; at most {MAX_RULES} are read from one file"
        )
    shared = {key: content.get(key, "") for key in ("domain", "topic")}
    specs: list[RuleSpec] = []
    for number, fields in enumerate(content["rules"], start=1):
        is_mapping = isinstance(fields, dict)
        try:
            specs.append(RuleSpec.model_validate({**shared, **fields} if is_mapping else fields))
        except (ValidationError, UnitError, ExpressionError, TypeError) as error:
            name = f"{fields.get('subject')}, {fields.get('quantity')}" if is_mapping else fields
            raise RuleError(
                f"{path}, rule {number} ({clipped(str(name))}): {_reason(error)}"
            ) from error
    return specs


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(_fault(each) for each in error.errors())


def _fault(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"])
    return f"{field}: {error['msg']}" if field else error["msg"].removeprefix("Value error, ")


def _decimal_fraction(text: str) -> Fraction:
    if not re.fullmatch(
        rf"[+-]?(?:{_DECIMAL}|\.\d{{1,6}}|\d{{1,12}}\.|\d{{1,12}}/\d{{1,12}})", text
    ):
        raise InputError(
            f"{short(text)} is not a decimal number of at most 12 digits and 6 decimals"
        )
    number = Fraction(text)
    decimal(number)
    return number


def _numbers(text: str) -> list[Fraction]:
    text = text.strip()
    if not text:
        return []
    ends = _RANGE.fullmatch(text)
    if not ends:
        try:
            return [_decimal_fraction(part.strip()) for part in text.split(",")]
        except (ValueError, ZeroDivisionError) as error:
            raise InputError(f"{text!r} is not a list of decimal numbers") from error
    low, high, step = Fraction(ends["low"]), Fraction(ends["high"]), Fraction(ends["step"] or 1)
    if high < low or step <= 0:
        raise InputError(f"the range {text!r} is empty")
    if (count := int((high - low) / step) + 1) > MAX_CHOICES:
        raise InputError(f"the range {text!r} has {count} numbers; narrow it to {MAX_CHOICES}")
    return [low + step * n for n in range(count)]
