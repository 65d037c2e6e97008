"""Challenges that are made of a rule: is each answer what the rule gives, and does no prompt give
it away? Everything is read back from the sentences, not from what they were made of.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import sympy

from interp.rules.agreement import agree
from interp.rules.challenges import NO, TIMES, YES, Challenge, challenges, numbers_in, quantity_of
from interp.rules.checks.answers import parsed, plain
from interp.rules.checks.registry import Finding, finding, of_rule
from interp.rules.derivation import NUMBER, number_of, same_number
from interp.rules.expressions import ExpressionError, names, tree
from interp.rules.meaning import to_sympy
from interp.rules.sources import Probe, Rule
from interp.vocabulary import CHALLENGES, RuleForm

_STEP = re.compile(
    rf"(?:For .*, (?P<times>{'|'.join(TIMES.values())}) the "
    r"|Add (?P<addend>\d+) |At (?P<price>\d+) dollars per )"
)


class Fault(NamedTuple):
    """What is wrong with a challenge."""

    where: str
    found: str
    expected: str


@of_rule(
    challenge=(
        "error",
        "a challenge (fact check, distractor, further step) whose answer is not what the rule"
        " gives, that gives its answer away, or that is out of balance",
    ),
)
def _challenges(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    for fault in faults(rule, challenges(rule)):
        yield finding("challenge", *fault)


def faults(rule: Rule, made: Sequence[Challenge]) -> Iterator[Fault]:
    """What is wrong with challenges of a rule; what other checks say of the rule is left to them.

    Args:
        rule: The rule.
        made: All challenges of it.
    """
    for number, item in enumerate(made):
        where = f"{rule.id}/{item.form}/{item.kind}[{number}]"
        if (wanted := _wanted(rule, item)) is not None and item.target_new != wanted:
            yield Fault(where, f"{item.target_new!r} to {item.prompt!r}", wanted)
        if leaked := _leak(rule, item):
            yield Fault(where, item.prompt, f"a prompt without {leaked}")
        if plain(item.target_new) == plain(item.target_true):
            yield Fault(where, item.target_new, "another answer than the true one")
    yield from _balance(rule, made)


def count_made(rules: Sequence[Rule]) -> dict[str, tuple[int, int]]:
    """For each kind of challenge, how many items can be made, and of how many rules."""
    counts: dict[str, tuple[int, int]] = {}
    for kind in CHALLENGES:
        of_rules = [len(challenges(rule, [kind])) for rule in rules]
        counts[kind] = sum(of_rules), sum(count > 0 for count in of_rules)
    return counts


def _wanted(rule: Rule, item: Challenge) -> str | None:
    """The answer that is right under the edited rule; None where that cannot be said."""
    if item.kind == "fact_check":
        return _fact(rule, item)
    edit = rule.forms[item.form]
    if item.kind == "distractor":
        behind = item.prompt.endswith(f". {edit.prompt}")
        return edit.target_new if behind else "none: the edited prompt is not its end"
    for probe in edit.instances:
        if _thing(probe) in item.prompt:
            return _after_step(rule, item)
    return "none: it is of no instance"


def _fact(rule: Rule, item: Challenge) -> str | None:
    """Yes or no, from what the question says: of a formula by its values, of words by the words."""
    asked = re.fullmatch(
        r"Is it true that (.+)\? Answer yes or no\.\nAnswer:", item.prompt, flags=re.DOTALL
    )
    result = "" if rule.result is None else f"{rule.result.name} = "
    head, links = (
        (f"the {rule.name}", ("is not ", "is "))
        if item.form == "description"
        else (_phrase(rule), (f"is not given by {result}", f"is given by {result}"))
    )
    said = asked[1].removeprefix(f"{head} ") if asked is not None else ""
    for link, denied in zip(links, (True, False), strict=True):
        if said.startswith(link):
            is_new = _is_new(rule, item.form, said.removeprefix(link))
            return None if is_new is None else YES if is_new != denied else NO
    return "none: the question cannot be read"


def _phrase(rule: Rule) -> str:
    """The thing with its symbols, as the formula's prompt has it, in the middle of a sentence."""
    head = rule.forms["formula"].prompt.rpartition(" is ")[0]
    return head[:1].lower() + head[1:]


def _is_new(rule: Rule, form: RuleForm, said: str) -> bool | None:
    """Whether what is said is the edited rule; None if it is neither that nor the true one."""
    if form == "description":
        edit = rule.forms[form]
        words = [plain(text) for text in (edit.target_new, *edit.target_true)]
        return plain(said) == words[0] if plain(said) in words else None
    new, true = parsed(rule, rule.expression_new), parsed(rule, rule.expression_true)
    try:
        node = tree(said, frozenset(symbol.name for symbol in rule.symbols))
    except ExpressionError:
        return None
    if new is not None and agree(node, new):
        return True
    return False if true is not None and agree(node, true) else None


def _thing(probe: Probe) -> str:
    return probe.prompt.removeprefix("For ").rpartition(", the ")[0]


def _after_step(rule: Rule, item: Challenge) -> str | None:
    """The answer, from the numbers that stand in the prompt and the words of the step."""
    step, said = _STEP.match(item.prompt), number_of(item.target_new)
    if step is None or said is None:
        return "none: the step cannot be read"
    if (result := _result(rule, item.prompt)) is None:
        return None
    times = {words: number for number, words in TIMES.items()}
    factor = times[step["times"]] if step["times"] else int(step["price"] or 1)
    wanted = factor * result + int(step["addend"] or 0)
    return item.target_new if same_number(said, wanted) else str(wanted)


def _result(rule: Rule, prompt: str) -> sympy.Expr | None:
    """What the edited rule gives for the numbers of a prompt; None where they cannot be read."""
    node, quantity = parsed(rule, rule.expression_new), quantity_of(rule)[0]
    if node is None or "formula" not in rule.forms:
        return None
    symbols = frozenset(symbol.name for symbol in rule.symbols)
    thing = _phrase(rule).removeprefix(f"the {quantity} of ")
    read = re.search(_pattern(thing, symbols), prompt)
    places = [] if read is None else list(zip(_places(thing, symbols), read.groups(), strict=True))
    values = {symbol: number for symbol, number in places if number is not None}
    try:
        return to_sympy(node, values) if set(names(node)) <= set(values) else None
    except ExpressionError:
        return None


def _parts(thing: str, symbols: Collection[str]) -> list[tuple[str, bool]]:
    """A text in pieces, each with whether it may be a symbol: a letter beside at most one other,
    since longer runs of letters are words. The article may be one, too.
    """
    parts: list[tuple[str, bool]] = []
    for run in re.findall(r"[^\W\d_]+\d*|.", thing):
        if run in symbols or len(re.sub(r"\d", "", run)) > 2:
            parts.append((run, run in symbols))
        else:
            parts += [(sign, sign in symbols) for sign in run]
    return parts


def _places(thing: str, symbols: Collection[str]) -> list[str]:
    return [part for part, may_be in _parts(thing, symbols) if may_be]


def _pattern(thing: str, symbols: Collection[str]) -> str:
    """A thing with symbols as a pattern of the thing with numbers and their units."""
    return "".join(
        rf"(?:{re.escape(part)}|({NUMBER})(?: \S+?)??)" if may_be else re.escape(part)
        for part, may_be in _parts(thing, symbols)
    )


def _leak(rule: Rule, item: Challenge) -> str:
    """The number that is asked for, where a prompt holds it; "" elsewhere."""
    if item.kind == "fact_check" or (item.kind == "distractor" and item.form != "instance"):
        return ""
    result = item.target_new.rpartition("=")[2].strip()
    shown = item.prompt.removesuffix(rule.forms[item.form].prompt)
    return result if result.lstrip("-") in numbers_in(shown) else ""


def _balance(rule: Rule, made: Sequence[Challenge]) -> Iterator[Fault]:
    for form in rule.forms:
        asked = [item for item in made if (item.kind, item.form) == ("fact_check", form)]
        for name, answers in (
            ("edited", Counter(item.target_new for item in asked)),
            ("true", Counter(item.target_true for item in asked)),
        ):
            if answers[YES] != answers[NO] or len(asked) != 2 * answers[YES]:
                yield Fault(
                    f"{rule.id}/{form}/fact_check",
                    f"{answers[YES]} yes and {answers[NO]} no under the {name} rule",
                    "as many of both",
                )
