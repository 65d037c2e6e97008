"""The answer that a trace scores: one that is given, as it continues the prompt, or the model's
own.

A given answer that is, as text, the model's own one gets the own one's tokens: the same words may
be other tokens, or stand without a space, and it would otherwise score less than it scored as the
model's own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from interp.errors import DmleError
from interp.models.loading import Encoding, LanguageModel
from interp.rules.joining import join
from interp.rules.scripts import TextError

BROKEN = "\ufffd"
"""What a part of a character is decoded to."""
AS_OWN = "in the tokens of the model's own answer"
AS_GENERATED = "as the model continues the prompt"


@dataclass(frozen=True)
class Answer:
    """The answer that is scored, and whose it is.

    `source` is "dataset" or "derived" for the rule's true answer, given or worked out from its
    formula, and "greedy" for the model's own. `joint` says how it continues the prompt.
    """

    ids: tuple[int, ...]
    text: str
    source: str
    joint: str = ""


def own_answer(
    model: LanguageModel, encoding: Encoding, n_tokens: int, *, one_line: bool = False
) -> Answer:
    """The model's own greedy answer of at most `n_tokens` tokens.

    Args:
        model: The model.
        encoding: The prompt.
        n_tokens: Most tokens.
        one_line: End with the first line that holds something.

    Raises:
        TooLongError: The prompt with the answer is longer than the model's positions.
        DmleError: The model ends the text at once.
    """
    model.need_room(
        len(encoding.ids) + n_tokens - 1,
        f"the prompt {encoding.text!r} with the model's own answer",
    )
    ids = model.generate([encoding.ids], n_tokens)[0]
    if not ids:
        raise DmleError(
            f"the model's own answer to {encoding.text!r} is empty: it ends the text there; give an"
            " answer"
        )
    texts = [model.decode_continuation(ids[: n + 1]) for n in range(len(ids))]
    if one_line:
        texts = texts[: max(1, first_line(texts))]
    return Answer(ids[: len(texts)], texts[-1], "greedy", AS_GENERATED)


def given_answer(
    model: LanguageModel,
    encoding: Encoding,
    text: str,
    source: str,
    n_tokens: int,
    *,
    space: bool | None = None,
    one_line: bool = False,
) -> Answer:
    """A given answer as it continues the prompt, or in the tokens of the model's own if that is the
    same text.

    Args:
        model: The model.
        encoding: The prompt.
        text: The answer.
        source: Where it is from.
        n_tokens: Most tokens of the model's own answer.
        space: Whether a space is before the answer (see `interp.rules.joining`).
        one_line: The own answer ends with its first line.

    Raises:
        TextError: The answer is blank or holds a broken character, and the model's own one is
            another.
        TooLongError: The prompt with the answer is longer than the model's positions.
    """
    joined = join(encoding.text, text, space) if text.strip() else None
    n_tokens = min(n_tokens, model.context_length + 1 - len(encoding.ids))
    if n_tokens > 0 and _may_be_own(model, encoding, [text, joined.answer if joined else ""]):
        own = own_answer(model, encoding, n_tokens, one_line=one_line)
        if own.text in (text, joined.answer if joined else text):
            return Answer(own.ids, text, source, AS_OWN)
    ids = _ids_of(model, encoding, text, space)
    assert joined is not None  # a blank answer is refused there
    return Answer(ids, text, source, joined.said)


def _ids_of(
    model: LanguageModel, encoding: Encoding, text: str, space: bool | None
) -> tuple[int, ...]:
    """Tokens of an answer that is not the model's own. Errors: see `given_answer`."""
    if BROKEN in text:
        raise TextError(
            f"the answer {text!r} holds U+FFFD, a part of a character, and is not the model's own"
            " answer as a whole; leave the answer out, or give whole characters"
        )
    ids = model.encode_continuation(text, encoding.text, space)
    model.need_room(
        len(encoding.ids) + len(ids) - 1, f"the prompt {encoding.text!r} with its answer {text!r}"
    )
    return ids


def first_line(texts: Sequence[str]) -> int:
    r"""How many tokens the first line of an answer has; `texts[i]` is the text of its first i + 1
    tokens.

    What a model says after a line break is mostly about something else. Leading line breaks belong
    to the line.

    >>> first_line([" Paris", " Paris.", " Paris.\n\n", " Paris.\n\nThe"])
    2
    >>> first_line(["\n", "\nParis"])
    2
    """
    return next((i for i, text in enumerate(texts) if "\n" in text.lstrip()), len(texts))


def _may_be_own(model: LanguageModel, encoding: Encoding, texts: Sequence[str]) -> bool:
    """Whether one of the texts begins as the model's own answer does: one token says no in most
    cases.
    """
    ids = model.generate([encoding.ids], 1)[0]
    if not ids:
        return False
    begins = model.decode_continuation(ids).rstrip(BROKEN)
    return any(text.startswith(begins) for text in texts)
