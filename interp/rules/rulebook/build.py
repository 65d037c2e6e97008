"""From specifications to rules: prompts, answers, instances, and what evaluates an edit.

Everything is made from the specifications alone, so that equal specifications give an equal file.
Choices that look random (which values, which distracting rules, which split) follow from a hash of
the names involved: adding a rule moves no other rule into another split.

No answer is rounded: values are used only where the true and the edited result are exact decimals
or exact multiples of π.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from interp.rules.expressions import tree
from interp.rules.rendering import render
from interp.rules.rulebook.spec import RuleSpec, read_specs
from interp.rules.schema import (
    LocalityProbe,
    Probe,
    Rule,
    RuleError,
    RulePrompt,
    Symbol,
    Twin,
    explain,
)
from interp.rules.units import spoken
from interp.vocabulary import FORMS, RuleForm, Split

SPECS = Path(__file__).parent / "specs"
# Shares of the subjects, not of the rules: every rule of a subject is in the same split.
SPLITS: tuple[tuple[Split, float], ...] = (("train", 0.4), ("validation", 0.6), ("test", 1.0))
INSTANCES, TWINS, NEIGHBORS, DISTRACTORS = 4, 3, 2, 2
# One rule's values: its edit, the instances of formula and description, those of the instance form,
# a spare one for other rules' locality.
CASES = 2 + 2 * INSTANCES
MAX_DIGITS = 7

# The wordings of each form: the edit, two rephrasings (generality), one held out for rule
# understanding, one that is asked only as another rule's locality. {thing} is the phrase, with
# symbols or numbers, or the plain thing.
WORDINGS: dict[RuleForm, dict[str, tuple[str, ...]]] = {
    "formula": {
        "edit": ("The {quantity} of {thing} is {result} =",),
        "rephrase": (
            "Written as a formula, the {quantity} of {thing} is {result} =",
            "For {thing}, the formula for the {quantity} is {result} =",
        ),
        "understanding": ("In symbols, one computes the {quantity} of {thing} as {result} =",),
        "locality": ("State the formula for the {quantity} of {thing}: {result} =",),
    },
    "description": {
        "edit": ("To find the {quantity} of {thing}, take",),
        "rephrase": (
            "In words, the {quantity} of {thing} is",
            "The {quantity} of {thing} is found by taking",
        ),
        "understanding": ("You get the {quantity} of {thing} if you take",),
        "locality": ("Put in words, the {quantity} of {thing} equals",),
    },
    "instance": {
        "edit": ("For {thing}, the {quantity}{unit} is {result} =",),
        "rephrase": (
            "The {quantity}{unit} of {thing} is {result} =",
            "Given {thing}, compute the {quantity}{unit}: {result} =",
        ),
        "understanding": ("Suppose you have {thing}. Then the {quantity}{unit} is {result} =",),
        "locality": ("Calculate the {quantity}{unit} of {thing}: {result} =",),
    },
}


@dataclass(frozen=True)
class Case:
    """Values of a rule's symbols with both results, and both as worked answers."""

    values: dict[str, str]
    true: str
    edited: str

    def numbers(self) -> dict[str, float]:
        """The values as a rule file holds them."""
        return {name: float(value) for name, value in self.values.items()}


class _Book:
    """All specifications with their values, and the edit prompt and true answers of each form."""

    def __init__(self, specs: Sequence[RuleSpec]) -> None:
        self.specs = specs
        self.cases = {spec.id: _cases(spec) for spec in specs}
        self.edits = {
            (spec.id, form): _edit(form, spec, self.cases[spec.id][0])
            for spec in specs
            for form in FORMS
        }


def _edit(form: RuleForm, spec: RuleSpec, case: Case) -> tuple[str, tuple[str, ...]]:
    return _prompts(form, "edit", spec, case)[0], _answers(form, spec, case)


def build(specs: Sequence[RuleSpec]) -> list[Rule]:
    """Rules in the order of their specifications.

    Raises:
        RuleError: If two specifications have the same subject and quantity, or values give too few
            instances.
    """
    for name, count in Counter(spec.id for spec in specs).items():
        if count > 1:
            raise RuleError(
                f"{count} specifications have the subject and quantity of {name!r}: keep one"
            )
    book = _Book(specs)
    rules = []
    for spec in specs:
        try:
            rules.append(_rule(spec, book))
        except (
            ValidationError
        ) as error:  # a text that makes no prompt or no answer, such as a blank one
            raise RuleError(f"rule {spec.id} cannot be built: {explain(error)}") from error
    return rules


def build_files(paths: Iterable[Path] | None = None) -> list[Rule]:
    """`build` of specification files; by default those of the embedded rulebook."""
    files = sorted(SPECS.glob("*.yaml")) if paths is None else list(paths)
    return build([spec for path in files for spec in read_specs(path)])


def split_of(subject: str) -> Split:
    """The split of a subject; depends on nothing else."""
    share = _hash("split", subject.lower()) / 2**64
    return next(split for split, upper in SPLITS if share < upper)


def _hash(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:8], "big")


def _cases(spec: RuleSpec) -> list[Case]:
    """The values that a rule uses, of different true and different edited results as far as
    there are such.
    """
    fresh: list[Case] = []
    rest: list[Case] = []
    # In an order that the values alone decide, so that results are worked out only until there are
    # enough.
    for values in sorted(spec.choices(), key=lambda values: _hash(spec.id, *values.values())):
        results = spec.results(values)
        if results is None or max(map(len, results)) > MAX_DIGITS:
            continue
        case = Case(values, *results)
        known = any(case.true == other.true or case.edited == other.edited for other in fresh)
        (rest if known else fresh).append(case)
        if len(fresh) == CASES:
            break
    chosen = (fresh + rest)[:CASES]
    if len(chosen) < CASES:
        raise RuleError(
            f"rule {spec.id} has {len(chosen)} combinations of values whose true and edited results"
            f" are exact, short and different; {CASES} are needed: widen its ranges"
        )
    return chosen


def _rule(spec: RuleSpec, book: _Book) -> Rule:
    return Rule(
        id=spec.id,
        name=f"{spec.quantity} of {spec.plain}",
        subject=spec.subject,
        domain=spec.domain,
        topic=spec.topic,
        split=split_of(spec.subject),
        expression_true=spec.expression,
        expression_new=spec.edited,
        result=Symbol(name=spec.result_symbol, unit=spec.unit),
        symbols=tuple(Symbol(name=name, unit=symbol.unit) for name, symbol in spec.symbols.items()),
        forms={form: _form(form, spec, book) for form in FORMS},
    )


def _form(form: RuleForm, spec: RuleSpec, book: _Book) -> RulePrompt:
    own = book.cases[spec.id]
    case = own[0]
    of_instances = (
        own[1 : 1 + INSTANCES] if form != "instance" else own[1 + INSTANCES : 1 + 2 * INSTANCES]
    )
    new = _answers(form, spec, case, edited=True)
    others: list[RuleForm] = [other for other in FORMS if other != form]
    return RulePrompt(
        prompt=_prompts(form, "edit", spec, case)[0],
        subject=spec.subject,
        target_new=new[0],
        target_true=_answers(form, spec, case),
        rephrasings=tuple(_prompts(form, "rephrase", spec, case)),
        values=case.numbers() if form == "instance" else {},
        instances=tuple(_probe("instance", "edit", spec, each) for each in of_instances),
        understanding=(
            *(_probe(other, "edit", spec, case, wording="verbatim") for other in others),
            *(_probe(other, "understanding", spec, case, wording="paraphrase") for other in others),
        ),
        neighborhood=_locality(form, spec, _near(spec, book.specs), NEIGHBORS, book),
        distracting=_locality(form, spec, _far(spec, book.specs), DISTRACTORS, book),
        twins=_twins(form, spec, book),
    )


def _prompts(form: RuleForm, kind: str, spec: RuleSpec, case: Case) -> list[str]:
    units = {
        name: f" {symbol.unit}" if symbol.unit else "" for name, symbol in spec.symbols.items()
    }
    shown = {
        "formula": {name: name for name in spec.symbols},
        "description": {},
        "instance": {name: value + units[name] for name, value in case.values.items()},
    }[form]
    return [
        wording.format(
            quantity=spec.quantity,
            thing=spec.plain if form == "description" else spec.phrase.format(**shown),
            result=spec.result_symbol,
            unit=f" in {spoken(spec.unit)}" if spec.unit else "",
        )
        for wording in WORDINGS[form][kind]
    ]


def _answers(
    form: RuleForm, spec: RuleSpec, case: Case, *, edited: bool = False
) -> tuple[str, ...]:
    expression = tree(spec.edited if edited else spec.expression, spec.names)
    if form == "formula":
        return tuple(dict.fromkeys([render(expression), *(() if edited else spec.also)]))
    if form == "description":
        return (spec.edited_words if edited else spec.words,)
    working, number = render(expression, case.values), case.edited if edited else case.true
    return tuple(dict.fromkeys([number if working == number else f"{working} = {number}", number]))


def _probe(form: RuleForm, kind: str, spec: RuleSpec, case: Case, wording: Any = None) -> Probe:
    return Probe(
        prompt=_prompts(form, kind, spec, case)[0],
        target_new=_answers(form, spec, case, edited=True)[0],
        target_true=_answers(form, spec, case),
        wording=wording,
        values=case.numbers() if form == "instance" else {},
    )


def _near(spec: RuleSpec, specs: Sequence[RuleSpec]) -> list[RuleSpec]:
    """Other rules, those of the same subject first, then of the same quantity, topic and domain."""
    return _ranked(
        spec,
        [other for other in specs if other.id != spec.id and other.domain == spec.domain],
        lambda other: (
            other.subject != spec.subject,
            other.quantity != spec.quantity,
            other.topic != spec.topic,
        ),
    )


def _far(spec: RuleSpec, specs: Sequence[RuleSpec]) -> list[RuleSpec]:
    """Rules of other topics that share neither subject nor quantity, from other domains first."""
    apart = [
        other
        for other in specs
        if other.topic != spec.topic
        and other.quantity != spec.quantity
        and other.subject != spec.subject
    ]
    return _ranked(spec, apart, lambda other: (other.domain == spec.domain,))


def _ranked(
    spec: RuleSpec, others: list[RuleSpec], key: Callable[[RuleSpec], tuple[Any, ...]]
) -> list[RuleSpec]:
    return sorted(others, key=lambda other: (*key(other), _hash(spec.id, other.id)))


def _locality(
    form: RuleForm, spec: RuleSpec, others: list[RuleSpec], count: int, book: _Book
) -> tuple[LocalityProbe, ...]:
    """What an edit of `spec` must leave alone: true answers of other rules, never equal to what
    the edit wants.
    """
    wanted = {_answers(form, spec, case, edited=True)[-1] for case in book.cases[spec.id]}
    probes: list[LocalityProbe] = []
    for other in others:
        case = book.cases[other.id][-1]
        answers = _answers(form, other, case)
        prompt = _prompts(form, "locality", other, case)[0]
        if not wanted & set(answers) and prompt not in {probe.prompt for probe in probes}:
            values = case.numbers() if form == "instance" else {}
            probes.append(
                LocalityProbe(prompt=prompt, answer=answers[0], rule=other.id, values=values)
            )
        if len(probes) == count:
            break
    return tuple(probes)


def _twins(form: RuleForm, spec: RuleSpec, book: _Book) -> tuple[Twin, ...]:
    """The same wording about another rule, closest first; used as the counterfactual prompt of
    activation patching.

    Closest is: as many words, fewest of them different, most alike in length. How many tokens a
    prompt has depends on the model, so several twins are kept, for a reader to take the first that
    aligns.
    """
    own, own_answers = book.edits[spec.id, form]
    mine, found = own.split(), []
    for other in book.specs:
        edit = book.edits[other.id, form]
        if (
            form == "instance"
            and _shape(other.phrase) == _shape(spec.phrase)
            and other.names == spec.names
        ):
            case = _same_values(other, book.cases[spec.id][0])
            edit = None if case is None else _edit(form, other, case)
        if other.id == spec.id or edit is None or edit[0] == own or edit[1][0] == own_answers[0]:
            continue
        theirs = edit[0].split()
        different = sum(a != b for a, b in zip(mine, theirs, strict=False))
        closeness = (
            abs(len(mine) - len(theirs)),
            different,
            abs(len(own) - len(edit[0])),
            _hash(spec.id, other.id),
        )
        found.append((closeness, Twin(rule=other.id, prompt=edit[0], answer=edit[1][0])))
    return tuple(twin for _, twin in sorted(found, key=lambda pair: pair[0])[:TWINS])


def _shape(phrase: str) -> str:
    return re.sub(r"\s+", " ", phrase)


def _same_values(other: RuleSpec, case: Case) -> Case | None:
    """Another rule at this rule's values, if its results are exact there."""
    results = other.results(case.values)
    return None if results is None else Case(case.values, *results)
