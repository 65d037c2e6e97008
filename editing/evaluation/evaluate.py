"""Evaluation of edited rules: five metrics, each before and after the edit, with every raw answer
kept.

============================  ======================================================================
``reliability``               the edited prompts give the new answer
``generality``                rephrasings of them do
``instance_portability``      new instances of the rule follow the edited rule (IP)
``rule_understanding_*``      asked for another form of the rule, the edited rule is given (RU):
                              ``verbatim`` prompts are ones that are edited in the same run,
                              ``paraphrase`` prompts are not, so only these are held out
``locality``                  other prompts are answered as the *unedited* model answers them
``locality_correctness``      other prompts are answered correctly
============================  ======================================================================

Modes, all but the last two between 0 and 1:

==================  ===============================================================================
``token_accuracy``  teacher-forced share of right tokens, EasyEdit's metric
``exact``           all of them right: the greedy answer starts with the target's tokens
``greedy_exact``    the first sentence of the greedy answer is the target, but for case and spacing
``greedy_prefix``   the greedy answer begins with the target, likewise
``equivalent``      it states the number or the formula of the target
                    (`editing.evaluation.equivalence`)
``log_prob``        log-probability of the target, nats per token
``kl``              KL(unedited ‖ edited), nats per token; locality alone
==================  ===============================================================================

``equivalent`` is not asked where the target has neither number nor formula: such items count
neither in the score nor in ``n_items``. For locality the target of the greedy modes is the first
sentence of the unedited model's answer, and locality before the edit is 1 (and KL 0) by definition.

Greedy answers have ``answer_tokens`` tokens, or as many as the longest target of the prompt and
`MARGIN` more where that is longer and fits into the model's context.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from editing.config import EvaluateConfig
from editing.edits.protocol import Edit, View
from editing.evaluation.equivalence import equivalent
from editing.evaluation.greedy import greedy_exact, greedy_ids, greedy_prefix
from editing.evaluation.scoring import (
    Forced,
    Question,
    agreement,
    divergence,
    in_own_tokens,
    teacher_forced,
)
from editing.evaluation.statements import first_sentences
from interp.models.loading import LanguageModel
from interp.results.scores import ANSWER_COLUMNS, ANSWER_NUMBERS, METRICS, MODES, PHASES
from interp.rules.sources import Probe, Rule
from interp.vocabulary import FORMS, RuleForm

SCHEMA = "dmle.scores/1"
MARGIN = 8
"""Tokens that a greedy answer may have beyond its target: to end the sentence, or to say it in
more words."""
COLUMNS = (*ANSWER_COLUMNS, "answer_before", "answer_after", *ANSWER_NUMBERS)
"""Columns of the table of raw answers.

`answer_before` and `answer_after` are the greedy answers that are scored, `before` and `after`
their first `answer_tokens` tokens, or as many as the longest target of the prompt has, to be shown.
"""


@dataclass(frozen=True)
class _Answer:
    """A model's greedy answer to a prompt, whole and as it is shown."""

    text: str
    shown: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Item:
    """One question of one metric. For locality the target is the gold answer."""

    form: RuleForm
    metric: str
    question: Question
    target_true: str


def items_of(rule: Rule) -> list[Item]:
    """Every question that evaluates a rule's edit, in all its forms."""
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
    return items


def evaluate(
    model: LanguageModel,
    rules: Sequence[Rule],
    deltas: Mapping[str, Mapping[str, Edit]],
    config: EvaluateConfig,
    *,
    advance: Callable[[int], object] = lambda n: None,
) -> tuple[xr.Dataset, list[dict[str, Any]]]:
    """Score every editor's edit of every rule, each alone on the unedited model.

    Args:
        model: The unedited model; unedited again on return.
        rules: The edited rules.
        deltas: Editor → rule id → edit. A rule that an editor has no edit for is NaN there.
        config: Batch size, and the length of shown answers, which is the least length of any.
        advance: Called with 1 for each pass over a rule's questions.

    Returns:
        EditScores (dims editor rule form metric mode phase: ``score`` and ``n_items``), and the raw
        answers, one row per question and editor (`COLUMNS`).
    """
    answers: list[dict[str, Any]] = []
    for rule in rules:
        floor = unedited(model, rule, config)
        advance(1)
        for editor in deltas:
            if (edit := deltas[editor].get(rule.id)) is not None:
                answers += evaluate_edit(model, editor, rule, edit, floor, config)
                advance(1)
    return edit_scores(answers, list(deltas), [rule.id for rule in rules], model), answers


@dataclass(frozen=True)
class Unedited:
    """A rule's questions as the unedited model answers them: the floor of every editor, run once
    for all.
    """

    items: Sequence[Item]
    forced: Mapping[Question, Forced]
    said: Mapping[str, _Answer]

    def of(self, forms: Sequence[RuleForm]) -> "Unedited":
        """The questions of some forms."""
        return replace(self, items=[item for item in self.items if item.form in forms])


def unedited(model: LanguageModel, rule: Rule, config: EvaluateConfig) -> Unedited:
    """Ask the unedited model all of a rule's questions."""
    items = items_of(rule)
    forced, said = answers_to(model, items, config)
    if config.greedy:
        own = {q: in_own_tokens(model, q, said[q.prompt].ids) for q in forced}
        items = [replace(item, question=own[item.question]) for item in items]
        forced = {own[q]: result for q, result in forced.items()}
        others = [q for q in forced if q.ids]
        forced |= zip(
            others, teacher_forced(model, others, batch_size=config.batch_size), strict=True
        )
    return Unedited(items, forced, said)


def evaluate_edit(
    model: LanguageModel,
    editor: str,
    rule: Rule,
    edit: Edit,
    floor: Unedited,
    config: EvaluateConfig,
) -> list[dict[str, Any]]:
    """One edit against the floor: a row for every question (`COLUMNS`)."""
    with edit.edited(model) as view:
        after, said_after = answers_to(view, floor.items, config)
    rows = []
    for item in floor.items:
        q = item.question
        was, first, now = floor.forced[q], floor.said[q.prompt], said_after[q.prompt]
        values = {"pre": _score(item, was, was), "post": _score(item, was, after[q])}
        if config.greedy:
            values["pre"] |= _judge(item, first.text, first.text)
            values["post"] |= _judge(item, first.text, now.text)
        rows.append(_row(editor, rule.id, item, first, now, values))
    return rows


def edit_scores(
    answers: Sequence[Mapping[str, Any]],
    editors: Sequence[str],
    rules: Sequence[str],
    model: LanguageModel,
) -> xr.Dataset:
    """EditScores of raw answers (see `evaluate`): the mean over the items of each form and
    metric.
    """
    labels = (editors, rules, FORMS, METRICS, MODES, PHASES)
    places = [{name: i for i, name in enumerate(each)} for each in labels]
    sums = np.zeros([len(each) for each in labels])
    counts = np.zeros(sums.shape, dtype=np.int64)
    for row in answers:
        where = tuple(
            places[i][row[key]] for i, key in enumerate(("editor", "rule", "form", "metric"))
        )
        for m, mode in enumerate(MODES):
            for p, when in enumerate(("before", "after")):
                if (value := row[f"{mode}_{when}"]) != "":
                    sums[(*where, m, p)] += value
                    counts[(*where, m, p)] += 1
    with np.errstate(invalid="ignore"):
        score = np.where(counts > 0, sums / counts, np.nan)
    dims = ("editor", "rule", "form", "metric", "mode", "phase")
    return xr.Dataset(
        {"score": (dims, score), "n_items": (dims, counts)},
        coords={
            dim: np.array(list(names), dtype=object)
            for dim, names in zip(dims, labels, strict=True)
        },
        attrs={"schema": SCHEMA, "model": model.name, "weight_hash": model.weight_hash},
    )


def answers_to(
    model: LanguageModel | View, items: Sequence[Item], config: EvaluateConfig
) -> tuple[dict[Question, Forced], dict[str, _Answer]]:
    """Teacher-forced results and greedy answers to some questions; the same one is run once."""
    questions = list(dict.fromkeys(item.question for item in items))
    forced = dict(
        zip(questions, teacher_forced(model, questions, batch_size=config.batch_size), strict=True)
    )
    view = View.of(model)
    if not config.greedy:
        return forced, {q.prompt: _Answer("", "") for q in questions}
    lengths: dict[str, int] = {}
    shown: dict[str, int] = {}
    for question, result in forced.items():
        # In-context edits leave less room, but never less than the shown answer: that is refused.
        room = view.model.context_length + 1 - len(view.encode(question.prompt))
        wanted = max(config.answer_tokens, min(len(result.target) + MARGIN, room))
        lengths[question.prompt] = max(wanted, lengths.get(question.prompt, 0))
        # Cut before its end, a right answer looks wrong.
        shown[question.prompt] = max(
            config.answer_tokens, len(result.target), shown.get(question.prompt, 0)
        )
    said = greedy_ids(view, list(lengths), list(lengths.values()), batch_size=config.batch_size)
    decode = view.model.decode_continuation
    return forced, {
        prompt: _Answer(decode(ids), decode(ids[: shown[prompt]]), ids)
        for prompt, ids in zip(lengths, said, strict=True)
    }


def _score(item: Item, unedited: Forced, now: Forced) -> dict[str, float]:
    if item.metric == "locality":
        same = agreement(unedited, now)
        return {"token_accuracy": same, "exact": float(same == 1), "kl": divergence(unedited, now)}
    return {"token_accuracy": now.token_accuracy, "exact": now.exact, "log_prob": now.log_prob}


def _judge(item: Item, unedited: str, now: str) -> dict[str, float]:
    """The modes of a greedy answer; one that does not apply is left out."""
    target = first_sentences(unedited) if item.metric == "locality" else item.question.target
    judged = {
        "greedy_exact": greedy_exact(now, target),
        "greedy_prefix": greedy_prefix(now, target),
        "equivalent": equivalent(now, target),
    }
    return {mode: float(value) for mode, value in judged.items() if value is not None}


def _row(
    editor: str,
    rule: str,
    item: Item,
    before: _Answer,
    after: _Answer,
    values: dict[str, dict[str, float]],
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "editor": editor,
        "rule": rule,
        "form": item.form,
        "metric": item.metric,
        "prompt": item.question.prompt,
        "target_new": item.question.target,
        "target_true": item.target_true,
        "before": before.shown,
        "after": after.shown,
        "answer_before": before.text,
        "answer_after": after.text,
    }
    for phase, when in zip(PHASES, ("before", "after"), strict=True):
        row |= {f"{mode}_{when}": values[phase].get(mode, "") for mode in MODES}
    return row


def _question(probe: Probe) -> Question:
    return Question(probe.prompt, probe.target_new, probe.space)


def _first(texts: Sequence[str]) -> str:
    return texts[0] if texts else ""
