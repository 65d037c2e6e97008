"""Some of many tasks, spread over all."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread_out(items: Sequence[T], most: int) -> list[T]:
    """At most so many of some items, at equal distances.

    >>> spread_out(range(10), 3), spread_out([4, 5], 3)
    ([0, 3, 6], [4, 5])
    """
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]
