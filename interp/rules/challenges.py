"""Challenges: items that whoever merely repeats an edited answer fails. Made from a rule, when
they are asked for.

==============  ================================================================================
``fact_check``  is the old rule true, is the new one, is it not true? Yes or no
``distractor``  the edited prompts behind a sentence that states the old rule
``multi_step``  an instance whose result goes into one further step
==============  ================================================================================

They are read off the sentences that `interp.rules.rulebook.build` writes: a rule of other wordings
(RuleEdit's) has none. A rule file holds none of them, so that rules are what they were before.

Fact checks come in fours: two statements, each affirmed and denied. Under either rule two of the
four are to be answered with yes. So who always says yes is right in half of them.

The numbers of a further step are chosen so that the answer is exact, is neither the edited nor the
true result of the instance, and does not stand in the prompt.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sympy

from interp.rules.expressions import ExpressionError
from interp.rules.meaning import parse
from interp.rules.rendering import exact
from interp.rules.schema import Probe, Rule, RulePrompt, Space
from interp.rules.units import UnitError, spoken
from interp.vocabulary import CHALLENGES, ChallengeKind, RuleForm

YES, NO = "Yes", "No"
QUESTION = "Is it true that {statement}? Answer yes or no.\nAnswer:"
STEPS = 2
"""Items with a further step for each form."""
MAX_DIGITS = 9
_SAID: tuple[RuleForm, ...] = ("formula", "description")
"""Forms in which a rule is stated, that which is tried first before the other."""
TIMES = {
    3: "three times",
    4: "four times",
    5: "five times",
    2: "twice",
    6: "six times",
    7: "seven times",
    8: "eight times",
    9: "nine times",
}
ADDENDS = (10, 20, 5, 50, 100, 30, 40, 200)
PRICES = (3, 4, 5, 2, 6, 7, 8, 9)
_BOUGHT = {"J": "joule", "kWh": "kilowatt-hour", "L": "liter"}
"""Units that have a price, and one of each."""
_MEASURED = (
    ("area", "square unit"),
    ("volume", "cubic unit"),
    ("perimeter", "unit of length"),
    ("circumference", "unit of length"),
    ("length", "unit of length"),
)
"""Last words of quantities without a unit that have a price, and one of their units."""


@dataclass(frozen=True)
class Challenge:
    """One item."""

    kind: ChallengeKind
    form: RuleForm
    prompt: str
    target_new: str
    """The answer under the edited rule."""
    target_true: str
    """The answer under the true rule; of a distractor, that of the edited prompt."""
    space: Space = None


@dataclass(frozen=True)
class _Step:
    """A further calculation with the result of an instance."""

    text: str
    """The prompt, in which {thing} is the thing with its numbers."""
    factor: int = 1
    addend: int = 0

    def of(self, value: sympy.Expr) -> str | None:
        """What it gives as text, if that is exact and short."""
        text = exact(self.factor * value + self.addend)
        return text if text is not None and len(text) <= MAX_DIGITS else None


def challenges(rule: Rule, kinds: Sequence[ChallengeKind] = CHALLENGES) -> list[Challenge]:
    """The items of some kinds that can be made of a rule, kind by kind.

    >>> from interp.rules.sources import load_rules
    >>> (rule,) = load_rules(ids=["square-area"])
    >>> [each.target_new for each in challenges(rule, ["fact_check"])]
    ['No', 'Yes', 'Yes', 'No', 'No', 'Yes', 'Yes', 'No']
    >>> challenges(rule, ["multi_step"])[0].prompt
    'For a square with side length 9, seven times the area is'
    """
    made = {"fact_check": _fact_checks, "distractor": _distractors, "multi_step": _multi_steps}
    return [item for kind in kinds for item in made[kind](rule)]


def numbers_in(text: str) -> list[str]:
    """The numbers that stand in a text, without their signs.

    >>> numbers_in("a circle with radius 2.5 and area 12π at -3")
    ['2.5', '12π', '3']
    """
    return re.findall(r"\d+(?:\.\d+)?π?", text)


# -- fact checks ---------------------------------------------------------------------------------


def _fact_checks(rule: Rule) -> Iterator[Challenge]:
    for form, links in (
        ("formula", ("is given by", "is not given by")),
        ("description", ("is", "is not")),
    ):
        prompt, kind = rule.forms.get(form), form
        head = None if prompt is None else _head(rule, kind)
        if prompt is None or head is None or not _shows(prompt):
            continue
        name = f"{rule.result.name} = " if form == "formula" and rule.result else ""
        for said, is_new in ((prompt.target_true[0], False), (prompt.target_new, True)):
            for link, affirmed in zip(links, (True, False), strict=True):
                statement = f"{head} {link} {name}{said.strip().rstrip('.')}"
                answers = (NO, YES) if is_new != affirmed else (YES, NO)
                yield Challenge("fact_check", form, QUESTION.format(statement=statement), *answers)


def _shows(prompt: RulePrompt) -> bool:
    """Whether the true answer is known, and an edit wants another."""
    texts = [
        " ".join(text.casefold().split()).rstrip(".")
        for text in (prompt.target_new, *prompt.target_true)
    ]
    return len(texts) > 1 and texts[0] not in texts[1:]


def _head(rule: Rule, form: RuleForm) -> str | None:
    """What a statement about a rule begins with: "the area of a square with side s"; None if the
    prompt of the form is not the rulebook's.
    """
    prompt = rule.forms[form].prompt
    if form == "description":
        return f"the {rule.name}" if prompt == f"To find the {rule.name}, take" else None
    return (
        None
        if rule.result is None
        else _between(prompt, "The ", f" is {rule.result.name} =", "the ")
    )


def _between(text: str, before: str, after: str, put: str = "") -> str | None:
    if not (text.startswith(before) and text.endswith(after)):
        return None
    return put + text[len(before) : len(text) - len(after)]


# -- distractors ---------------------------------------------------------------------------------


def _distractors(rule: Rule) -> Iterator[Challenge]:
    for form, prompt in rule.forms.items():
        if not _shows(prompt):
            continue
        ways: list[RuleForm] = ["description"] if form == "description" else [*_SAID]
        for said in ways:
            sentence = _old_rule(rule, said)
            if sentence is None or (form == "instance" and _gives_away(sentence, prompt)):
                continue
            text = f"{sentence} {prompt.prompt}"
            truth = prompt.target_true[0]
            yield Challenge("distractor", form, text, prompt.target_new, truth, prompt.space)
            break


def _old_rule(rule: Rule, form: RuleForm) -> str | None:
    """A sentence that states the true rule."""
    prompt = rule.forms.get(form)
    head = None if prompt is None else _head(rule, form)
    if prompt is None or head is None or not prompt.target_true:
        return None
    name = f"{rule.result.name} = " if form == "formula" and rule.result else ""
    said = prompt.target_true[0].strip().rstrip(".")
    return f"T{head[1:]} is usually given as {name}{said}."


def _gives_away(sentence: str, prompt: RulePrompt) -> bool:
    """Whether the result that an edit wants stands in a sentence."""
    result = prompt.target_new.rpartition("=")[2].strip()
    return result.lstrip("-") in numbers_in(sentence)


# -- further steps -------------------------------------------------------------------------------


def _multi_steps(rule: Rule) -> Iterator[Challenge]:
    quantity, unit = quantity_of(rule)
    if not quantity:
        return
    first, second = _steps(rule, quantity, unit)
    for form, prompt in rule.forms.items():
        made = 0
        for probe in prompt.instances:
            if made == STEPS:
                break
            item = _with_step(rule, form, probe, quantity, unit, second if made else first)
            if item is not None:
                made += 1
                yield item


def quantity_of(rule: Rule) -> tuple[str, str]:
    """What is asked of the thing, and its unit in words (" in joules"), as the prompt of the
    instance has them; "" if that is not the rulebook's.
    """
    prompt = rule.forms.get("instance")
    if prompt is None or rule.result is None:
        return "", ""
    try:
        unit = f" in {spoken(rule.result.unit)}" if rule.result.unit else ""
    except UnitError:
        return "", ""
    body = _between(prompt.prompt, "For ", f"{unit} is {rule.result.name} =") or ""
    quantity = body.rpartition(", the ")[2]
    return (quantity, unit) if quantity and rule.name.startswith(f"{quantity} of ") else ("", "")


def _steps(rule: Rule, quantity: str, unit: str) -> tuple[list[_Step], list[_Step]]:
    """Steps to try, for the first item of a form and for the others; rules begin at different
    numbers.
    """
    turn = zlib.crc32(rule.id.encode())
    times = [
        _Step(f"For {{thing}}, {TIMES[n]} the {quantity}{unit} is", factor=n)
        for n in _turned(tuple(TIMES), turn)
    ]
    named = unit.removeprefix(" in ")
    amount, answer = (f" {named}", f"In {named}, the result is") if unit else ("", "The result is")
    sums = [
        _Step(f"Add {n}{amount} to the {quantity} of {{thing}}. {answer}", addend=n)
        for n in _turned(ADDENDS, turn)
    ]
    if (piece := _piece(rule, quantity)) is not None:
        sums = [
            _Step(
                f"At {n} dollars per {piece}, the price in dollars for the {quantity} of"
                f" {{thing}} is",
                factor=n,
            )
            for n in _turned(PRICES, turn)
        ]
    return times, [*sums, *reversed(times)]


def _turned(values: Sequence[int], turn: int) -> list[int]:
    start = turn % len(values)
    return [*values[start:], *values[:start]]


def _piece(rule: Rule, quantity: str) -> str | None:
    """What of a quantity has a price; None if nothing has."""
    unit = rule.result.unit if rule.result is not None else ""
    if unit or rule.domain != "mathematics":
        return _BOUGHT.get(unit)
    last = quantity.split()[-1]
    return next((piece for word, piece in _MEASURED if word == last), None)


def _with_step(
    rule: Rule, form: RuleForm, probe: Probe, quantity: str, unit: str, steps: Sequence[_Step]
) -> Challenge | None:
    """An instance with the first of some steps whose answer shows that both were done."""
    results = _results(rule, probe)
    name = "" if rule.result is None else rule.result.name
    thing = _between(probe.prompt, "For ", f", the {quantity}{unit} is {name} =")
    if results is None or thing is None:
        return None
    single = {exact(value) for value in results}
    for step in steps:
        true, new = (step.of(value) for value in results)
        prompt = step.text.format(thing=thing)
        if true is None or new is None or true == new or {true, new} & {*single, "0"}:
            continue
        if {true.lstrip("-"), new.lstrip("-")} & set(numbers_in(prompt)):
            continue
        return Challenge("multi_step", form, prompt, new, true, probe.space)
    return None


def _results(rule: Rule, probe: Probe) -> tuple[sympy.Expr, sympy.Expr] | None:
    """The true and the edited result of an instance, in the arithmetic of the rulebook."""
    if not probe.values or rule.expression_true is None or rule.expression_new is None:
        return None
    values = {name: f"{value:.12g}" for name, value in probe.values.items()}
    symbols = [symbol.name for symbol in rule.symbols]
    try:
        return (
            parse(rule.expression_true, symbols, values),
            parse(rule.expression_new, symbols, values),
        )
    except ExpressionError:
        return None
