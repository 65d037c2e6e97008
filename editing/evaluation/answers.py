"""What a model, or an edited one, answers to questions: teacher-forced, greedily, and freely."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from editing.config import EvaluateConfig
from editing.edits.protocol import View
from editing.evaluation.free import FreeAnswer, free_answers
from editing.evaluation.greedy import greedy_ids
from editing.evaluation.items import Item
from editing.evaluation.scoring import Forced, Question, teacher_forced
from editing.evaluation.statements import sentence_count
from interp.models.loading import LanguageModel

MARGIN = 8
"""Tokens that a greedy answer may have beyond its target: to end the sentence, or to say it in
more words."""


@dataclass(frozen=True)
class Answer:
    """A model's greedy answer to a prompt, whole and as it is shown."""

    text: str
    shown: str
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answers:
    """Answers to some questions.

    Attributes:
        forced: Teacher-forced results.
        said: Greedy answers to the prompts; empty texts where none are asked for.
        free: Free answers to the prompts; none where none are asked for.
    """

    forced: Mapping[Question, Forced]
    said: Mapping[str, Answer]
    free: Mapping[str, FreeAnswer]


def answers_to(
    model: LanguageModel | View, items: Sequence[Item], config: EvaluateConfig
) -> Answers:
    """Answers to the questions of some items; the same question is run once."""
    questions = list(dict.fromkeys(item.question for item in items))
    forced = dict(
        zip(questions, teacher_forced(model, questions, batch_size=config.batch_size), strict=True)
    )
    return Answers(forced, _greedy(model, forced, config), _free(model, questions, config))


def _greedy(
    model: LanguageModel | View, forced: Mapping[Question, Forced], config: EvaluateConfig
) -> dict[str, Answer]:
    """Greedy answers to all prompts; empty ones where none are asked for."""
    if not config.greedy:
        return {question.prompt: Answer("", "") for question in forced}
    view = View.of(model)
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
    return {
        prompt: Answer(decode(ids), decode(ids[: shown[prompt]]), ids)
        for prompt, ids in zip(lengths, said, strict=True)
    }


def _free(
    model: LanguageModel | View, questions: Sequence[Question], config: EvaluateConfig
) -> dict[str, FreeAnswer]:
    """Free answers to all prompts; none where none are asked for."""
    if not config.free_tokens:
        return {}
    counts: dict[str, int] = {}
    for question in questions:
        counts[question.prompt] = max(
            sentence_count(question.target), counts.get(question.prompt, 1)
        )
    return free_answers(model, counts, config.free_tokens, batch_size=config.batch_size)
