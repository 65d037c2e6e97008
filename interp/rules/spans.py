"""Where phrases are in a text, by characters. No torch.

What counts as a mention, in any script (see `interp.rules.scripts`):

- a whole word or phrase, between signs that are in no word: "square" in "a square's side", not in
  "squares";
- in scripts that write no spaces, every occurrence: 日本 in 日本語; in Korean also with particles
  behind it;
- never a part of a sign: no letter without its accents or vowel signs, no person out of a family of
  emoji;
- in either Unicode form, composed or decomposed; compatible forms (full-width letters, ligatures)
  are other letters;
- overlapping occurrences all count.
"""

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from interp.rules.scripts import TextError, clusters, folded, in_word, inside_word, joins_particles

Span = tuple[int, int]


def char_spans(text: str, phrase: str, *, ignore_case: bool = False) -> list[Span]:
    """Character ranges of every mention of a phrase as whole words (see the module), in reading
    order.

    >>> char_spans("A rectangle's area; rectangles", "rectangle"), char_spans("日本と日本", "日本")
    ([(2, 11)], [(0, 2), (3, 5)])
    """
    found = _occurrences(text, phrase, ignore_case)
    return [span for span in found if _is_whole(text, span)]


def subject_spans(text: str, subject: str) -> list[Span]:
    """Character ranges of every mention of the subject, at least one.

    Where it stands nowhere as whole words, every place inside longer ones is a mention
    ("rectangles").

    Raises:
        TextError: The subject is not in the text (case matters).
    """
    found = _occurrences(text, subject, ignore_case=False)
    spans = [span for span in found if _is_whole(text, span)] or found
    if not spans:
        raise TextError(
            f"the subject {subject!r} is not in the prompt {text!r}; write it as it stands there"
        )
    return spans


def missing(text: str, phrases: Iterable[str]) -> list[str]:
    """The phrases that are mentioned nowhere in a text, upper or lower case."""
    return [phrase for phrase in phrases if not char_spans(text, phrase, ignore_case=True)]


def check_phrases(text: str, phrases: Sequence[str]) -> None:
    """See that every phrase of an explicit span is in a prompt.

    Raises:
        TextError: One of them is not, or there is none.
    """
    if lost := missing(text, phrases):
        raise TextError(
            f"trace.span: {', '.join(map(repr, lost))} not found in the prompt {text!r}; write each"
            " phrase as whole words that stand there, with commas between phrases"
        )
    if not phrases:
        raise TextError(
            "trace.span names no phrase; give words of the prompt, or subject, subject+rule,"
            " numbers, content"
        )


def _is_whole(text: str, span: Span) -> bool:
    first, last = span
    before, after = text[first - 1 : first], text[last : last + 1]
    if first and inside_word(before, text[first]):
        return False
    if joins_particles(text[last - 1]) and joins_particles(after):
        return True
    return not inside_word(text[last - 1], after)


def _occurrences(text: str, phrase: str, ignore_case: bool) -> list[Span]:
    """Every place where the signs of the phrase stand, overlapping ones too."""
    if not phrase:
        return []
    if text.isascii() and phrase.isascii():
        flags = re.IGNORECASE if ignore_case else 0
        return [m.span(1) for m in re.finditer(rf"(?=({re.escape(phrase)}))", text, flags)]
    # In the form that is compared a sign may have another length: its edges there, and in the text.
    there, here, parts = [0], [0], []
    for first, last in clusters(text):
        parts.append(folded(text[first:last], ignore_case=ignore_case))
        there.append(there[-1] + len(parts[-1]))
        here.append(last)
    whole, wanted = "".join(parts), folded(phrase, ignore_case=ignore_case)
    spans: list[Span] = []
    at = whole.find(wanted)
    while wanted and at >= 0:
        # The last of equal edges: what folds to nothing belongs to the sign before it.
        first, last = _edge(there, at), _edge(there, at + len(wanted))
        if first is not None and last is not None:
            spans.append((here[first], here[last]))
        at = whole.find(wanted, at + 1)
    return spans


def _edge(edges: list[int], at: int) -> int | None:
    found = bisect_left(edges, at)
    return found if found < len(edges) and edges[found] == at else None


def word_start(text: str, at: int) -> int:
    """Where the word at a character begins, with what is written on to it in front (a bracket, a
    hyphen).

    >>> word_start("The (square is", 5), word_start("日本の首都は", 3)
    (4, 3)
    """
    from interp.rules.scripts import unspaced

    while (
        at > 0
        and not text[at - 1].isspace()
        and not unspaced(text[at - 1])
        and not unspaced(text[at])
    ):
        at -= 1
    return at


def begins_word(rest: str, before: str) -> bool:
    """Whether a text goes on after `before` with the same word (letters that belong together)."""
    return bool(rest) and bool(before) and in_word(rest[0]) and inside_word(before[-1], rest[0])
