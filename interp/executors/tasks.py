"""Tasks, whoever runs them: each has a name, writes its own file, and may be run again.

A `Job` says how a worker gets ready. It is plain data, so that it can be sent anywhere: the name of
a function and its arguments. The function loads what is needed once, such as the model, and
returns what runs one task by its name. What a task returns must be of JSON: files carry the rest.
"""

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from interp import errors

Work = Callable[[str], Any]
"""Runs one task, and returns something of JSON."""
ATTEMPTS = 3
"""Workers that may die at one task before it counts as failed."""


@dataclass(frozen=True)
class Job:
    """How a worker gets ready for its tasks.

    Attributes:
        opener: "module:function", which returns what runs one task.
        arguments: What it is called with, of JSON.
    """

    opener: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> Work:
        """Get ready, in this process."""
        module, _, name = self.opener.partition(":")
        return getattr(import_module(module), name)(**self.arguments)


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        task: Its name.
        result: What it returned.
        failure: Why there is no result: its workers died. Empty otherwise.
    """

    task: str
    result: Any = None
    failure: str = ""


Spread = Callable[[Sequence[str]], Iterator[Outcome]]
"""Runs tasks elsewhere, and says what became of each as soon as it is done."""


class TaskError(RuntimeError):
    """A task ended with an error of the code; holds the worker's traceback."""


class Executor(Protocol):
    """Runs tasks, in any order."""

    def run(self, job: Job, tasks: Sequence[str]) -> Iterator[Outcome]:
        """Run each task once, and say what became of it as soon as it is done.

        Raises:
            DmleError: A task, or getting ready, was refused with one.
            TaskError: It ended with any other error.
        """
        ...


def answer(work: Callable[[], Any]) -> dict[str, Any]:
    """Call something in a worker, and tell its result or its error as JSON.

    The counterpart is `result_of`.
    """
    try:
        return {"result": work()}
    except errors.DmleError as error:
        return {"refused": type(error).__name__, "message": str(error)}
    except Exception:  # a fault of the code: it is raised again where the worker was asked
        return {"traceback": traceback.format_exc()}


def result_of(told: Mapping[str, Any]) -> Any:
    """The result that `answer` told.

    Raises:
        DmleError: It told one; of the same class, where `interp.errors` has it.
        TaskError: It told any other error.
    """
    if "refused" in told:
        raise getattr(errors, told["refused"], errors.DmleError)(told["message"])
    if "traceback" in told:
        raise TaskError(f"a worker failed:\n{told['traceback']}")
    return told["result"]
