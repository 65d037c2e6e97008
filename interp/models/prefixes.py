"""Texts that begin other texts: what a model computes of the longer one holds for the shorter as
well.
"""

from collections.abc import Sequence


def longest(texts: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The texts with which no other begins, in the order given, and for each text the one that
    begins with it.

    >>> longest([(1, 2), (5,), (1, 2, 3), (5,)])
    ([(1, 2, 3), (5,)], [0, 1, 0, 1])
    """
    holder: dict[tuple[int, ...], tuple[int, ...]] = {}
    following: tuple[int, ...] = ()
    # In order, the next text begins with this one if any does.
    for text in sorted(set(texts), reverse=True):
        holder[text] = holder[following] if following and following[: len(text)] == text else text
        following = text
    kept = list(dict.fromkeys(holder[text] for text in texts))
    number = {text: i for i, text in enumerate(kept)}
    return kept, [number[holder[text]] for text in texts]
