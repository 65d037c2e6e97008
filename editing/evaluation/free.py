"""Free answers: what a model says by itself, up to where it ends its answer.

Teacher forcing feeds the target's beginning, and greedy answers are cut after so many tokens. A
free answer is neither: it ends at the model's end-of-text token, at a line's end, or where the
sentence ends. Then it is judged by what it says: the target's number or formula
(`editing.evaluation.equivalence`), or else the same words. An answer that has not ended within its
tokens says nothing. Published scores fall from 97 % to 38 % between the two ways of asking (Yang et
al. 2025, arXiv 2502.11177).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from editing.edits.protocol import View
from editing.evaluation.equivalence import equivalent
from editing.evaluation.greedy import greedy_ids, greedy_prefix, normalised
from editing.evaluation.statements import ended_sentences, first_sentences
from interp.models.loading import LanguageModel


@dataclass(frozen=True)
class FreeAnswer:
    """A free answer."""

    text: str
    """Up to its end, and whole if it has none."""
    ended: bool


def free_answers(
    model: LanguageModel | View, prompts: Mapping[str, int], n_tokens: int, *, batch_size: int
) -> dict[str, FreeAnswer]:
    """Free answers to prompts.

    Args:
        model: The model or view.
        prompts: Prompts, each with the number of sentences of an answer: as many as its target has.
        n_tokens: Most tokens of an answer; fewer where the model's context ends before.
        batch_size: Prompts run at once; changes memory and speed only.

    Raises:
        EditError: A prompt is longer than the model's context.
    """
    view = View.of(model)
    lengths = [
        max(1, min(n_tokens, view.model.context_length + 1 - len(view.encode(prompt))))
        for prompt in prompts
    ]
    most = max(prompts.values(), default=1)

    def enough(ids: tuple[int, ...]) -> bool:
        return ended_sentences(view.model.decode_continuation(ids), most) is not None

    said = greedy_ids(view, list(prompts), lengths, batch_size=batch_size, stop=enough)
    answers: dict[str, FreeAnswer] = {}
    for (prompt, count), ids, length in zip(prompts.items(), said, lengths, strict=True):
        text = view.model.decode_continuation(ids)
        whole = ended_sentences(text, count)
        if whole is not None:
            answers[prompt] = FreeAnswer(whole, ended=True)
        else:
            # Fewer tokens than it may have: the model has ended the text.
            ended = len(ids) < length
            text = first_sentences(text, count) if ended else text
            answers[prompt] = FreeAnswer(text, ended)
    return answers


def says(answer: FreeAnswer, target: str) -> bool:
    """Whether a free answer has an end and says what the target says.

    >>> says(FreeAnswer("A = 3 * 5 = 15", True), "15"), says(FreeAnswer("15 cm and", False), "15")
    (True, False)
    >>> says(FreeAnswer("twice its side, plus one", True), "twice its side")
    False
    """
    return answer.ended and _same(answer.text, target)


def says_word(answer: FreeAnswer, word: str) -> bool:
    """Whether a free answer has an end and begins with a word, such as yes or no.

    >>> says_word(FreeAnswer("Yes, it is", True), "yes")
    True
    >>> says_word(FreeAnswer("Nothing", True), "no")
    False
    """
    return answer.ended and greedy_prefix(answer.text, word)


def same(answer: FreeAnswer, other: FreeAnswer) -> bool:
    """Whether two free answers say the same; they may both go on."""
    return answer.ended == other.ended and _same(answer.text, other.text)


def _same(text: str, other: str) -> bool:
    judged = equivalent(text, other)
    return normalised(text) == normalised(other) if judged is None else judged
