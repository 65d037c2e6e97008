"""The questions that evaluate a rule's edit."""

from collections.abc import Sequence
from dataclasses import dataclass

from editing.evaluation.scoring import Question
from interp.errors import InputError
from interp.rules.challenges import challenges
from interp.rules.sources import Probe, Rule
from interp.vocabulary import ChallengeKind, RuleForm


@dataclass(frozen=True)
class Item:
    """One question of one metric. For locality the target is the gold answer."""

    form: RuleForm
    metric: str
    question: Question
    target_true: str


def items_of(rule: Rule, kinds: Sequence[ChallengeKind] = ()) -> list[Item]:
    """Every question that evaluates a rule's edit, in all its forms; those of some kinds of
    challenges come last.
    """
    edited = {prompt.prompt for prompt in rule.forms.values()}
    items: list[Item] = []
    for form, p in rule.forms.items():
        truth = p.target_true[0] if p.target_true else ""

        def add(metric: str, question: Question, true: str, form: RuleForm = form) -> None:
            items.append(Item(form, metric, question, true))

        add("reliability", Question(p.prompt, p.target_new, p.space), truth)
        for prompt in p.rephrasings:
            add("generality", Question(prompt, p.target_new, p.space), truth)
        for probe in p.instances:
            add("instance_portability", _question(probe), _first(probe.target_true))
        for probe in p.understanding:
            wording = "verbatim" if probe.prompt in edited else "paraphrase"
            add(f"rule_understanding_{wording}", _question(probe), _first(probe.target_true))
        for metric in ("locality", "locality_correctness"):
            for other in (*p.neighborhood, *p.distracting):
                add(metric, Question(other.prompt, other.answer, other.space), other.answer)
    for each in challenges(rule, kinds):
        question = Question(each.prompt, each.target_new, each.space)
        items.append(Item(each.form, each.kind, question, each.target_true))
    return items


def check_challenges(rules: Sequence[Rule], kinds: Sequence[ChallengeKind]) -> None:
    """See that some rule has items of each kind that is asked for.

    Raises:
        InputError: None has.
    """
    for kind in kinds:
        if not any(challenges(rule, [kind]) for rule in rules):
            raise InputError(
                f"evaluate.challenges asks for {kind}, and none of the {len(rules)} rules has such"
                " items: they are made of the rulebook's wordings (embedded, or `dmle rules build`)"
                " alone; take it out of evaluate.challenges"
            )


def _question(probe: Probe) -> Question:
    return Question(probe.prompt, probe.target_new, probe.space)


def _first(texts: Sequence[str]) -> str:
    return texts[0] if texts else ""
