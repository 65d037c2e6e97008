"""Specifications of rules: what a rule says, without the sentences that are made from it.

A specification file is YAML: `domain`, `topic`, and a list of `rules`, each with the fields of `RuleSpec`.
"""

import itertools
import math
import re
from fractions import Fraction
from pathlib import Path
from string import Formatter
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from interp.expressions import ExpressionError, exact, names, parse, tree
from interp.schema import RuleError
from interp.units import UnitError, check_dimensions, measure

MAX_CHOICES = 50_000
_SYMBOL = re.compile(r"(?P<range>[^\[\]]*?)\s*(?:\[(?P<unit>[^\[\]]+)\])?")
_RANGE = re.compile(r"(?P<low>[\d.]+?)\s*\.\.\s*(?P<high>[\d.]+)(?:\s+step\s+(?P<step>[\d.]+))?")
# Domains whose rules are about physical quantities: their expressions must be dimensionally consistent.
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
        if not isinstance(text, str | int | float):
            return text
        found = _SYMBOL.fullmatch(str(text).strip())
        if not found:
            raise ValueError(f"{text!r} is not a range with an optional unit, such as '3..9', '2, 4 [kg]' or '[N]'")
        return {"values": _numbers(found["range"]), "unit": found["unit"] or ""}

    @field_validator("unit")
    @classmethod
    def _known(cls, unit: str) -> str:
        measure(unit)
        return unit


class RuleSpec(BaseModel):
    """A rule: `quantity` of a `subject` follows from its symbols by `expression`; an edit wants `edited`."""

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
        slug = "-".join(re.findall(r"[a-z0-9]+", f"{subject} {quantity}".lower()))
        return {"plain": f"{article(subject)} {subject}", "id": slug, **fields}

    @model_validator(mode="after")
    def _consistent(self) -> "RuleSpec":
        for text in (self.phrase, self.plain):
            if len(re.findall(rf"(?<!\w){re.escape(self.subject)}(?!\w)", text)) != 1:
                raise ValueError(f"the subject {self.subject!r} must be in {text!r} once, as a word of its own")
        used = [name for _, name, _, _ in Formatter().parse(self.phrase) if name is not None]
        if sorted(used) != sorted(self.symbols):
            raise ValueError(f"phrase has the symbols {used}, and symbols are {list(self.symbols)}: name each once")
        if not self.result_symbol or self.result_symbol in self.symbols:
            raise ValueError(f"result {self.result!r} needs a symbol of its own, such as 'E [J]'")
        if self.words == self.edited_words:
            raise ValueError(f"words and edited_words are both {self.words!r}")
        for name, symbol in self.symbols.items():
            if not symbol.values:
                raise ValueError(f"symbol {name} has no values; give a range such as '2..9' or a list")
        for field in ("expression", "edited"):
            unknown = set(names(tree(getattr(self, field), self.names))) - self.names
            if unknown:
                raise ValueError(f"{field} has the unknown symbols {sorted(unknown)}; symbols are {list(self.symbols)}")
        true = parse(self.expression, self.names)
        if (true - parse(self.edited, self.names)).simplify() == 0:
            raise ValueError(f"edited {self.edited!r} says the same as the expression {self.expression!r}")
        for text in self.also:
            if (true - parse(text, self.names)).simplify() != 0:
                raise ValueError(f"also: {text!r} differs from the expression {self.expression!r}")
        if self.domain in DIMENSIONAL:
            units = {name: symbol.unit for name, symbol in self.symbols.items()}
            check_dimensions(tree(self.expression, self.names), units, self.unit)
        measure(self.unit)
        return self

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
            raise RuleError(f"rule {self.id} has {total} combinations of values; narrow its ranges to {MAX_CHOICES}")
        texts = [[decimal(value) for value in symbol.values] for symbol in self.symbols.values()]
        return [dict(zip(self.symbols, each, strict=True)) for each in itertools.product(*texts)]

    def results(self, values: dict[str, str]) -> tuple[str, str] | None:
        """The true and the edited result, if both are exact, non-zero and different."""
        try:
            true, edited = (exact(parse(text, self.names, values)) for text in (self.expression, self.edited))
        except ExpressionError:
            return None
        return (true, edited) if true and edited and true != edited and "0" not in (true, edited) else None


def article(noun: str) -> str:
    """The indefinite article: a rectangle, an ellipse.

    By the first letter, which is wrong for "hour" and "unit"; such specifications give `plain`.
    """
    return "an" if noun[:1].lower() in "aeiou" else "a"


def decimal(number: Fraction) -> str:
    """A fraction with a finite decimal form, as text: 2.5."""
    text = exact(parse(f"{number.numerator}/{number.denominator}"), places=6)
    if text is None:
        raise ValueError(f"{number} has no short decimal form")
    return text


def read_specs(path: Path) -> list[RuleSpec]:
    """Read a specification file.

    Raises:
        RuleError: If it is not YAML, or a rule in it contradicts itself; names the rule and the field.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise RuleError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("rules"), list):
        raise RuleError(f"{path} is not a specification file: 'domain', 'topic' and a list 'rules' are needed")
    shared = {key: content.get(key, "") for key in ("domain", "topic")}
    specs: list[RuleSpec] = []
    for at, fields in enumerate(content["rules"]):
        try:
            specs.append(RuleSpec.model_validate({**shared, **fields}))
        except (ValidationError, UnitError, ExpressionError, TypeError) as error:
            named = f"{fields.get('subject')}, {fields.get('quantity')}" if isinstance(fields, dict) else str(fields)
            said = "; ".join(_said(e) for e in error.errors()) if isinstance(error, ValidationError) else str(error)
            raise RuleError(f"{path}, rule {at + 1} ({named}): {said}") from error
    return specs


def _said(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"])
    return f"{field}: {error['msg']}" if field else error["msg"].removeprefix("Value error, ")


def _decimal_fraction(text: str) -> Fraction:
    number = Fraction(text)
    decimal(number)
    return number


def _numbers(text: str) -> list[Fraction]:
    text = text.strip()
    if not text:
        return []
    found = _RANGE.fullmatch(text)
    if not found:
        try:
            return [_decimal_fraction(part.strip()) for part in text.split(",")]
        except (ValueError, ZeroDivisionError) as error:
            raise ValueError(f"{text!r} is not a list of decimal numbers") from error
    low, high, step = Fraction(found["low"]), Fraction(found["high"]), Fraction(found["step"] or 1)
    if high < low or step <= 0:
        raise ValueError(f"the range {text!r} is empty")
    return [low + step * at for at in range(int((high - low) / step) + 1)]
