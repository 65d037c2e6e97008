"""Where phrases are in a text, by characters. No torch."""

import re

Span = tuple[int, int]


def char_spans(text: str, phrase: str, *, ignore_case: bool = False) -> list[Span]:
    """Character ranges of every whole-word occurrence of a phrase.

    >>> char_spans("A rectangle's area; rectangles", "rectangle")
    [(2, 11)]
    """
    pattern = rf"(?<!\w){re.escape(phrase)}(?!\w)"
    return [m.span() for m in re.finditer(pattern, text, re.IGNORECASE if ignore_case else 0)]


def subject_spans(text: str, subject: str) -> list[Span]:
    """Character ranges of every mention of the subject, at least one.

    Raises:
        ValueError: The subject is not in the text (case matters).
    """
    spans = char_spans(text, subject)
    if not spans and (at := text.find(subject)) >= 0:
        spans = [(at, at + len(subject))]  # only inside a longer word ("rectangles"): that is then the mention
    if not spans:
        raise ValueError(f"the subject {subject!r} is not in the prompt {text!r}; write it as it stands there")
    return spans
