"""Evaluation of edited rules: metrics, each before and after the edit, with every raw answer kept.

============================  ======================================================================
``reliability``               the edited prompts give the new answer
``generality``                rephrasings of them do
``instance_portability``      new instances of the rule follow the edited rule (IP)
``rule_understanding_*``      asked for another form of the rule, the edited rule is given (RU):
                              ``verbatim`` prompts are ones that are edited in the same run,
                              ``paraphrase`` prompts are not, so only these are held out
``locality``                  other prompts are answered as the *unedited* model answers them
``locality_correctness``      other prompts are answered correctly
``fact_check``                asked whether the old or the new rule is true or is not, yes and no
                              are as the edited rule has it
``distractor``                the edited prompts give the new answer behind a sentence with the old
                              rule
``multi_step``                an instance with one further step gives what follows from the edited
                              rule
============================  ======================================================================

The last three are there where `evaluate.challenges` names them (`interp.rules.challenges`).

Modes, all but `log_prob`, `kl` and `free_gap` between 0 and 1:

==================  ===============================================================================
``token_accuracy``  teacher-forced share of right tokens, EasyEdit's metric
``exact``           all of them right: the greedy answer starts with the target's tokens
``greedy_exact``    the first sentence of the greedy answer is the target, but for case and spacing
``greedy_prefix``   the greedy answer begins with the target, likewise
``equivalent``      it states the number or the formula of the target
                    (`editing.evaluation.equivalence`)
``log_prob``        log-probability of the target, nats per token
``kl``              KL(unedited ‖ edited), nats per token; locality alone
``yes_no``          of yes and no the right one is likelier; fact checks alone, which have none of
                    the other teacher-forced modes
``free``            the free answer, which ends where the model ends it, says what the target says
                    (`editing.evaluation.free`)
``free_gap``        ``token_accuracy``, or else ``yes_no``, minus ``free``
``top_5, top_10``   share of the most likely tokens that stay; locality alone, where
                    ``token_accuracy`` is that of the most likely one
==================  ===============================================================================

The modes from ``yes_no`` on are there where `evaluate.challenges`, `evaluate.free_tokens` and
`evaluate.overlap` ask for them.

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
from editing.evaluation.free import FreeAnswer, free_answers
from editing.evaluation.greedy import greedy_ids
from editing.evaluation.judging import forced_modes, free_modes, greedy_modes, modes_of
from editing.evaluation.scoring import (
    Forced,
    Question,
    in_own_tokens,
    teacher_forced,
)
from editing.evaluation.statements import sentence_count
from editing.evaluation.yes_no import YesNo, yes_no_of
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.results.scores import (
    ADDED_ANSWER_COLUMNS,
    ADDED_METRICS,
    ADDED_MODES,
    ANSWER_COLUMNS,
    ANSWER_NUMBERS,
    METRICS,
    MODES,
    PHASES,
)
from interp.rules.challenges import challenges
from interp.rules.sources import Probe, Rule
from interp.vocabulary import FORMS, ChallengeKind, RuleForm

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


def columns_of(answers: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Columns of a table of raw answers: `COLUMNS`, and those that were asked for."""
    present = {key for row in answers for key in row}
    return (*COLUMNS, *(name for name in ADDED_ANSWER_COLUMNS if name in present))


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
        answers, one row per question and editor (`columns_of`).

    Raises:
        InputError: Challenges are asked for that no rule has.
    """
    check_challenges(rules, config.challenges)
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
    free: Mapping[str, FreeAnswer]
    yes_no: YesNo

    def of(self, forms: Sequence[RuleForm]) -> "Unedited":
        """The questions of some forms."""
        return replace(self, items=[item for item in self.items if item.form in forms])


def unedited(model: LanguageModel, rule: Rule, config: EvaluateConfig) -> Unedited:
    """Ask the unedited model all of a rule's questions."""
    items = items_of(rule, config.challenges)
    forced, said = _answer(model, items, config)
    free = _free(model, items, config)
    if config.greedy:
        own = {q: in_own_tokens(model, q, said[q.prompt].ids) for q in forced}
        items = [replace(item, question=own[item.question]) for item in items]
        forced = {own[q]: result for q, result in forced.items()}
        others = [q for q in forced if q.ids]
        forced |= zip(
            others, teacher_forced(model, others, batch_size=config.batch_size), strict=True
        )
    return Unedited(
        items, forced, said, free, yes_no_of(model) if config.challenges else YesNo((), ())
    )


def evaluate_edit(
    model: LanguageModel,
    editor: str,
    rule: Rule,
    edit: Edit,
    floor: Unedited,
    config: EvaluateConfig,
) -> list[dict[str, Any]]:
    """One edit against the floor: a row for every question (`columns_of`)."""
    with edit.edited(model) as view:
        after, said_after = _answer(view, floor.items, config)
        free_after = _free(view, floor.items, config)
    rows = []
    for item in floor.items:
        q, asked = item.question, (item.metric, item.question.target)
        was, first, now = floor.forced[q], floor.said[q.prompt], said_after[q.prompt]
        values = {
            "pre": forced_modes(*asked, was, was, floor.yes_no, config),
            "post": forced_modes(*asked, was, after[q], floor.yes_no, config),
        }
        if config.greedy:
            values["pre"] |= greedy_modes(*asked, first.text, first.text)
            values["post"] |= greedy_modes(*asked, first.text, now.text)
        row = _row(editor, rule.id, item, first, now)
        if config.free_tokens:
            own = {"pre": floor.free[q.prompt], "post": free_after[q.prompt]}
            for phase, answer in own.items():
                values[phase] |= free_modes(*asked, own["pre"], answer, values[phase])
            row |= {"free_answer_before": own["pre"].text, "free_answer_after": own["post"].text}
        rows.append(row | _numbers(values, modes_of(config)))
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
    asked = {row["metric"] for row in answers}
    metrics = (*METRICS, *(name for name in ADDED_METRICS if name in asked))
    columns = columns_of(answers)
    modes = (*MODES, *(name for name in ADDED_MODES if f"{name}_after" in columns))
    labels = (editors, rules, FORMS, metrics, modes, PHASES)
    places = [{name: i for i, name in enumerate(each)} for each in labels]
    sums = np.zeros([len(each) for each in labels])
    counts = np.zeros(sums.shape, dtype=np.int64)
    for row in answers:
        where = tuple(
            places[i][row[key]] for i, key in enumerate(("editor", "rule", "form", "metric"))
        )
        for m, mode in enumerate(modes):
            for p, when in enumerate(("before", "after")):
                if (value := row.get(f"{mode}_{when}", "")) != "":
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


def _answer(
    model: LanguageModel | View, items: Sequence[Item], config: EvaluateConfig
) -> tuple[dict[Question, Forced], dict[str, _Answer]]:
    """Teacher-forced results and greedy answers; the same question is run once."""
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


def _free(
    model: LanguageModel | View, items: Sequence[Item], config: EvaluateConfig
) -> dict[str, FreeAnswer]:
    """Free answers to all prompts; none where none are asked for."""
    if not config.free_tokens:
        return {}
    counts: dict[str, int] = {}
    for item in items:
        question = item.question
        counts[question.prompt] = max(
            sentence_count(question.target), counts.get(question.prompt, 1)
        )
    return free_answers(model, counts, config.free_tokens, batch_size=config.batch_size)


def _row(
    editor: str,
    rule: str,
    item: Item,
    before: _Answer,
    after: _Answer,
) -> dict[str, Any]:
    """The texts of a row."""
    return {
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


def _numbers(
    values: Mapping[str, Mapping[str, float]], modes: Sequence[str]
) -> dict[str, float | str]:
    """The numbers of a row; an empty text where a mode does not apply."""
    numbers: dict[str, float | str] = {}
    for phase, when in zip(PHASES, ("before", "after"), strict=True):
        numbers |= {f"{mode}_{when}": values[phase].get(mode, "") for mode in modes}
    return numbers


def _question(probe: Probe) -> Question:
    return Question(probe.prompt, probe.target_new, probe.space)


def _first(texts: Sequence[str]) -> str:
    return texts[0] if texts else ""
