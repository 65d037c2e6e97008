"""Content words of a rule's name: what names the rule beside its subject. No torch."""

import re

from interp.rules.scripts import runs, unspaced
from interp.rules.spans import char_spans

# Words of a rule's name that name nothing: they are never corrupted or looked up.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a across an and as at between by can for from has have in into is it its law of on or per"
        " rule that the theorem through to with",
    )
)
# Signs that join words where no space does (Chinese and Japanese: of, and, particles).
_BETWEEN = re.compile("[的之和与與のとはがを]|および")
_KANA = re.compile("[ぁ-ゖ]")


def content_words(name: str, subject: str) -> tuple[str, ...]:
    """Content words of a name outside the subject, lower case, in order of appearance.

    In scripts without spaces: what is left between the subject and joining signs.

    >>> content_words("area of a circle", "circle")
    ('area',)
    >>> content_words("円の面積", "円"), content_words("首都", "日本")
    (('面積',), ('首都',))
    """
    outside = set(runs(subject.lower()))
    found: list[str] = []
    for run in runs(name.lower()):
        if unspaced(run[0]):
            found += _unspaced_words(run, subject.lower())
        elif run not in outside | STOP_WORDS and len(run) > 1:
            found.append(run)
    return tuple(dict.fromkeys(found))


def _unspaced_words(run: str, subject: str) -> list[str]:
    if run == subject:
        return []
    for first, last in reversed(char_spans(run, subject)):
        run = f"{run[:first]} {run[last:]}"
    words = [
        word
        for part in run.split()
        for word in _BETWEEN.split(part)
        if word and not _KANA.fullmatch(word)
    ]
    # A word that holds a joining sign (食べ物) is taken whole where nothing else is left.
    return words or run.split()
