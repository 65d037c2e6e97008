"""A limit of time for pure Python code, on every system and in every thread: no signal is needed.

The clock is read whenever a function is called or returns. For code that asks much of a short text, such as SymPy.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class TimeUp(BaseException):
    """The time of a `time_limit` is over. Not an `Exception`: the code inside must not take it for one of its own."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TimeUp` inside the block once it has taken this long; a block inside another ends no later than that."""
    before, end = sys.getprofile(), time.monotonic() + seconds

    def check(frame: FrameType, event: Any, argument: object) -> None:
        if time.monotonic() > end:
            raise TimeUp(f"{seconds} s")
        if before is not None:
            before(frame, event, argument)

    sys.setprofile(check)
    try:
        yield
    finally:
        sys.setprofile(before)
