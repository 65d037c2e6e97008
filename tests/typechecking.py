"""The type checker that jaxtyping's import hook puts on our functions in tests."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check a function's arguments and result in every call, but not of a function in a function.

    The latter is made anew in every call of the outer one, hooks many thousand times, and beartype
    compiles a checker each time: a tenth of the time of all tests.
    """
    return function if "<locals>" in function.__qualname__ else beartype(function)
