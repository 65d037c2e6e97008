"""A limit of work for pure Python code, such as SymPy, which may ask much of a short text.

Counted are calls of functions, not seconds: the same code ends at the same point on every machine,
however busy it is, on every system and in every thread.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class WorkOver(BaseException):
    """A `work_limit` is reached. Not an `Exception`: the code inside must not take it for one of
    its own.
    """


@contextmanager
def work_limit(calls: int) -> Iterator[None]:
    """Raise `WorkOver` inside the block once it has called this many functions that are written
    in Python.
    """
    before, left = sys.getprofile(), calls

    def check(frame: FrameType, event: Any, argument: object) -> None:
        nonlocal left
        if event == "call":
            left -= 1
            if left < 0:
                raise WorkOver(f"more than {calls} calls")
        if before is not None:
            before(frame, event, argument)

    sys.setprofile(check)
    try:
        yield
    finally:
        sys.setprofile(before)
