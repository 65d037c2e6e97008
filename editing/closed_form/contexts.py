"""Contexts: sampled texts put before a prompt, so that an edit does not hang on the prompt standing
first.

Source: MEMIT (five texts that start with The, Therefore, Because, I, You). Here they are sampled
with a seed, are no format strings (braces in a prompt mean nothing), and are stored with every
result.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from editing.edits.requests import EditRequest
from interp.models.loading import LanguageModel
from interp.models.tokens import token_positions
from interp.rules.spans import word_start

STARTS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5


@dataclass(frozen=True)
class Row:
    """A tokenised prompt in one context, and the token at which the edit looks the rule up."""

    ids: tuple[int, ...]
    lookup: int


def sample_contexts(model: LanguageModel, n: int, tokens: int, seed: int) -> tuple[str, ...]:
    """The empty context and `n` sampled ones of `tokens` tokens each, every one ending in ``".
    "``.
    """
    if n:
        model.need_room(tokens, "a context of edit.context_tokens")
    texts = []
    for i in range(n):
        start = model.encode(STARTS[i % len(STARTS)]).ids
        ids = model.sample(start, max(1, tokens - len(start)), top_k=TOP_K, seed=seed + i)
        texts.append(model.decode([*start, *ids]).replace("\n", " ").strip() + ". ")
    return ("", *texts)


def rows(
    model: LanguageModel, request: EditRequest, contexts: Sequence[str], lookup: str
) -> list[Row]:
    """The request's prompt in each context."""
    first, last = request.lookup_span(lookup)
    return [_row(model, context, request.prompt, (first, last)) for context in contexts]


def preservation_row(model: LanguageModel, request: EditRequest, lookup: str) -> Row:
    """``"<subject> is a"``: a prompt whose prediction at the lookup token an edit should leave
    alone.

    For another lookup than the subject the words looked up take the subject's place.
    """
    first, last = request.lookup_span(lookup)
    # Whole words: the span of "last" is the prompt's last character.
    phrase = request.prompt[word_start(request.prompt, first) : last]
    return _row(model, "", f"{phrase} is a", (0, len(phrase)))


def _row(model: LanguageModel, context: str, prompt: str, span: tuple[int, int]) -> Row:
    encoding = model.encode(context + prompt)
    shift = len(context)
    return Row(encoding.ids, token_positions(encoding, (span[0] + shift, span[1] + shift))[-1])
