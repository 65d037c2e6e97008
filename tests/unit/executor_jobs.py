"""Jobs of the tests of executors: small tasks that write files, wait, fail, or end their worker."""

import os
import signal
import time
from pathlib import Path

from interp.errors import NotTraceableError
from interp.executors.tasks import Work


def files(folder: str, seconds: float = 0.0) -> Work:
    """Each task writes the square of its number to a file, whole or not at all."""
    place = Path(folder)

    def work(task: str) -> int:
        time.sleep(seconds)
        with (place / f"{task}.begun").open("a") as begun:
            begun.write("x")
        part = place / f"{task}.{os.getpid()}"
        part.write_text(str(int(task) ** 2))
        part.replace(place / f"{task}.txt")
        return int(task) ** 2

    return work


def pids() -> Work:
    """Each task tells its process and its threads; what is printed must not disturb."""
    import torch

    def work(task: str) -> list[int]:
        print("a library prints")  # noqa: T201
        time.sleep(0.2)
        return [os.getpid(), torch.get_num_threads()]

    return work


def deadly(victim: str) -> Work:
    """One task kills its worker, whoever runs it."""

    def work(task: str) -> str:
        if task == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return task

    return work


def refusing(when: str) -> Work:
    """A refusal, or a fault of the code: on opening, or of the task with that name."""
    if when == "opening":
        raise NotTraceableError("nothing to trace: give another rule")

    def work(task: str) -> str:
        if task == "refused":
            raise NotTraceableError("nothing to trace: give another rule")
        if task == "faulty":
            raise ZeroDivisionError("a fault")
        return task

    return work
