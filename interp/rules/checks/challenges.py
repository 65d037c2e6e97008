"""Challenges that are made of a rule: is each answer what the rule gives, and does no prompt give
it away? Everything is read back from the sentences, not from what they were made of.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from interp.rules.agreement import agree
from interp.rules.challenges import NO, TIMES, YES, Challenge, challenges, numbers_in
from interp.rules.checks.answers import parsed, plain
from interp.rules.checks.registry import Finding, finding, of_rule
from interp.rules.derivation import number_of, same_number
from interp.rules.expressions import ExpressionError, tree
from interp.rules.sources import Probe, Rule
from interp.vocabulary import CHALLENGES, RuleForm

_STEP = re.compile(
    rf"(?:For .*, (?P<times>{'|'.join(TIMES.values())}) the "
    r"|Add (?P<addend>\d+) |At (?P<price>\d+) dollars per )"
)


@of_rule(
    challenge_answer=("error", "a challenge whose answer is not what the edited rule gives"),
    challenge_leak=("warning", "a challenge whose prompt holds the number that is asked for"),
    challenge_balance=(
        "error",
        "fact checks of which not half are to be answered with yes, under either rule",
    ),
    challenge_shown=("error", "a challenge that an edit need not change"),
)
def _challenges(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    made = challenges(rule)
    for number, item in enumerate(made):
        where = f"{rule.id}/{item.form}/{item.kind}[{number}]"
        if (wanted := _wanted(rule, item)) is not None and item.target_new not in wanted:
            yield finding("challenge_answer", where, item.target_new, " or ".join(wanted))
        if leaked := _leak(rule, item):
            yield finding("challenge_leak", where, item.prompt, f"a prompt without {leaked}")
        if plain(item.target_new) == plain(item.target_true):
            yield finding("challenge_shown", where, item.target_new, "another answer than the true")
    yield from _balance(rule, made)


def count_made(rules: Sequence[Rule]) -> dict[str, tuple[int, int]]:
    """For each kind of challenge, how many items can be made, and of how many rules."""
    counts: dict[str, tuple[int, int]] = {}
    for kind in CHALLENGES:
        of_rules = [len(challenges(rule, [kind])) for rule in rules]
        counts[kind] = sum(of_rules), sum(count > 0 for count in of_rules)
    return counts


def _wanted(rule: Rule, item: Challenge) -> tuple[str, ...] | None:
    """Answers that are right under the edited rule; None where that cannot be said."""
    if item.kind == "fact_check":
        return _fact(rule, item)
    edit = rule.forms[item.form]
    if item.kind == "distractor":
        behind = item.prompt.endswith(f". {edit.prompt}")
        return (edit.target_new,) if behind else ("nothing: the edited prompt is not its end",)
    for probe in edit.instances:
        if _thing(probe) in item.prompt:
            return _after_step(item, probe)
    return ("nothing: it is of no instance",)


def _fact(rule: Rule, item: Challenge) -> tuple[str, ...]:
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
            if is_new is not None:
                return (YES,) if is_new != denied else (NO,)
    return ("nothing: the question cannot be read",)


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


def _after_step(item: Challenge, probe: Probe) -> tuple[str, ...]:
    """The answer, from the instance's own result and the words of the step."""
    step, result, said = (
        _STEP.match(item.prompt),
        *map(number_of, (probe.target_new, item.target_new)),
    )
    if step is None or result is None or said is None:
        return ("nothing: the step cannot be read",)
    times = {words: number for number, words in TIMES.items()}
    factor = times[step["times"]] if step["times"] else int(step["price"] or 1)
    wanted = factor * result + int(step["addend"] or 0)
    return (item.target_new,) if same_number(said, wanted) else (str(wanted),)


def _leak(rule: Rule, item: Challenge) -> str:
    """The number that is asked for, where a prompt holds it; "" elsewhere."""
    if item.kind == "fact_check" or (item.kind == "distractor" and item.form != "instance"):
        return ""
    result = item.target_new.rpartition("=")[2].strip()
    shown = item.prompt.removesuffix(rule.forms[item.form].prompt)
    return result if result.lstrip("-") in numbers_in(shown) else ""


def _balance(rule: Rule, made: Sequence[Challenge]) -> Iterator[Finding]:
    for form in rule.forms:
        asked = [item for item in made if (item.kind, item.form) == ("fact_check", form)]
        for name, answers in (
            ("edited", Counter(item.target_new for item in asked)),
            ("true", Counter(item.target_true for item in asked)),
        ):
            if answers[YES] != answers[NO] or len(asked) != 2 * answers[YES]:
                yield finding(
                    "challenge_balance",
                    f"{rule.id}/{form}/fact_check",
                    f"{answers[YES]} yes and {answers[NO]} no under the {name} rule",
                    "as many of both",
                )
