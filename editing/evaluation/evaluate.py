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
`answers.MARGIN` more where that is longer and fits into the model's context.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from editing.config import EvaluateConfig
from editing.edits.protocol import Edit
from editing.evaluation.answers import Answer, Answers, answers_to
from editing.evaluation.items import Item, check_challenges, items_of
from editing.evaluation.judging import forced_modes, free_modes, greedy_modes, modes_of
from editing.evaluation.scoring import (
    in_own_tokens,
    teacher_forced,
)
from editing.evaluation.yes_no import YesNo, yes_no_of
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
from interp.rules.sources import Rule
from interp.vocabulary import FORMS, RuleForm

SCHEMA = "dmle.scores/1"
COLUMNS = (*ANSWER_COLUMNS, "answer_before", "answer_after", *ANSWER_NUMBERS)
"""Columns of the table of raw answers.

`answer_before` and `answer_after` are the greedy answers that are scored, `before` and `after`
their first `answer_tokens` tokens, or as many as the longest target of the prompt has, to be shown.
"""


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
    answers: Answers
    yes_no: YesNo

    def of(self, forms: Sequence[RuleForm]) -> "Unedited":
        """The questions of some forms."""
        return replace(self, items=[item for item in self.items if item.form in forms])


def unedited(model: LanguageModel, rule: Rule, config: EvaluateConfig) -> Unedited:
    """Ask the unedited model all of a rule's questions."""
    items = items_of(rule, config.challenges)
    answers = answers_to(model, items, config)
    if config.greedy:
        said, forced = answers.said, answers.forced
        own = {q: in_own_tokens(model, q, said[q.prompt].ids) for q in forced}
        items = [replace(item, question=own[item.question]) for item in items]
        forced = {own[q]: result for q, result in forced.items()}
        others = [q for q in forced if q.ids]
        forced |= zip(
            others, teacher_forced(model, others, batch_size=config.batch_size), strict=True
        )
        answers = replace(answers, forced=forced)
    return Unedited(items, answers, yes_no_of(model) if config.challenges else YesNo((), ()))


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
        after = answers_to(view, floor.items, config)
    before = floor.answers
    rows = []
    for item in floor.items:
        q, asked = item.question, (item.metric, item.question.target)
        was, first, now = before.forced[q], before.said[q.prompt], after.said[q.prompt]
        values = {
            "pre": forced_modes(*asked, was, was, floor.yes_no, config),
            "post": forced_modes(*asked, was, after.forced[q], floor.yes_no, config),
        }
        if config.greedy:
            values["pre"] |= greedy_modes(*asked, first.text, first.text)
            values["post"] |= greedy_modes(*asked, first.text, now.text)
        row = _row(editor, rule.id, item, first, now)
        if config.free_tokens:
            own = {"pre": before.free[q.prompt], "post": after.free[q.prompt]}
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


def _row(
    editor: str,
    rule: str,
    item: Item,
    before: Answer,
    after: Answer,
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
