"""Where things are in a tokenised prompt: the subject, the rule's words, numbers, and the role of
each token. `interp.models.text.ModelText.encode` tokenises the prompt.

All positions come from the tokenizer's character offsets, never from tokenising pieces of the text
apart: a piece alone may be split differently than inside the sentence.
"""

import re
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import InputError, NotTraceableError
from interp.models.loading import Encoding
from interp.rules.spans import Span, char_spans, subject_spans

# Digits of any script, with the separators that go with them: 1,000.5, ١٬٠٠٠٫٥, １，０００.
_NUMBER = re.compile(r"[０-９]+(?:[．，.,][０-９]+)*|\d+(?:[.,٫٬]\d+)*")


def token_positions(encoding: Encoding, span: Span) -> range:
    """Positions of the tokens that share a character, other than white space, with a character
    range.

    Raises:
        ValueError: No token does (the range is empty or all white space).
    """
    found = [
        i for i, offset in enumerate(encoding.offsets) if _overlaps(encoding.text, offset, span)
    ]
    if not found:
        raise InputError(f"no token covers characters {span} of {encoding.text!r}")
    return range(found[0], found[-1] + 1)


def word_positions(encoding: Encoding, words: Iterable[str]) -> list[range]:
    """Token ranges of every occurrence of any of the words, in reading order; upper or lower
    case.
    """
    spans = [span for word in words for span in char_spans(encoding.text, word, ignore_case=True)]
    return [token_positions(encoding, span) for span in sorted(spans)]


def number_positions(encoding: Encoding, symbols: Iterable[str] = ()) -> list[range]:
    """Token ranges of numbers, and of the given variable symbols standing alone."""
    spans = [m.span() for m in _NUMBER.finditer(encoding.text)]
    spans += [span for symbol in symbols for span in char_spans(encoding.text, symbol)]
    return [token_positions(encoding, span) for span in sorted(spans)]


def token_roles(
    encoding: Encoding, subject: str, rule_words: Sequence[str], symbols: Iterable[str] = ()
) -> list[str]:
    """The role of each token; every token has exactly one (see `interp.vocabulary.ROLES`).

    Where roles compete, the earlier in this list wins: subject, rule_word, number, last, then
    prefix (before the first token of the subject or rule words) and after (behind it). A one-token
    subject is `subject_last`.
    """
    n = len(encoding.ids)
    roles = [""] * n
    roles[n - 1] = "last"
    for span in number_positions(encoding, symbols):
        _fill(roles, span, "number")
    for span in word_positions(encoding, rule_words):
        _fill(roles, span, "rule_word")
    for span in (token_positions(encoding, s) for s in subject_spans(encoding.text, subject)):
        _fill(roles, span, "subject_middle")
        roles[span[0]] = "subject_first"
        roles[span[-1]] = "subject_last"
    named = [i for i, role in enumerate(roles) if role.startswith("subject") or role == "rule_word"]
    return [role or ("prefix" if i < named[0] else "after") for i, role in enumerate(roles)]


def lookup_span(text: str, lookup: str, subject: str, rule_words: Sequence[str]) -> Span:
    """Characters whose last token is where an edit reads its key.

    Args:
        text: The prompt.
        lookup: "subject_last" (end of the subject's first mention), "rule_word_last" (end of the
            last rule word), "mention_last" (the later of the last subject and the last rule word:
            by then both are read) or "last" (end of the prompt).
        subject: The subject, as in the prompt.
        rule_words: Content words of the rule's name.

    Raises:
        ValueError: The prompt has no such place, or `lookup` is unknown.
    """
    if lookup == "subject_last":
        return subject_spans(text, subject)[0]
    if lookup == "rule_word_last":
        spans = [span for word in rule_words for span in char_spans(text, word, ignore_case=True)]
        if not spans:
            words = tuple(rule_words)
            raise NotTraceableError(
                f"none of the rule words {words} is in {text!r}; use lookup subject_last"
            )
        return max(spans)
    if lookup == "mention_last":
        words = [span for word in rule_words for span in char_spans(text, word, ignore_case=True)]
        return max([*subject_spans(text, subject), *words], key=lambda span: (span[1], span[0]))
    if lookup == "last":
        end = len(text.rstrip())
        return end - 1, end
    raise InputError(
        f"lookup is {lookup!r}; use subject_last, rule_word_last, mention_last or last"
    )


def pad_right(
    rows: Sequence[Sequence[int]], device: torch.device, pad: int = 0
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Rows of different length as one tensor, padded on the right, with the mask of real tokens.

    Right padding leaves the position of every real token as it is, and causal attention keeps real
    tokens from seeing the padding.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return ids, mask


def _overlaps(text: str, offset: Span, span: Span) -> bool:
    # Tokens carry the space before a word; a token that shares only white space is not part of the
    # phrase.
    return bool(text[max(offset[0], span[0]) : min(offset[1], span[1])].strip())


def _fill(roles: list[str], span: range, role: str) -> None:
    for i in span:
        roles[i] = role
