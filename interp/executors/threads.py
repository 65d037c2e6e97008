"""How many workers a machine has room for, and how many threads each of them gets."""

import os
from collections.abc import Mapping

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""What libraries of linear algebra read when they are loaded."""


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def room(workers: int | None, tasks: int) -> int:
    """Workers that are started: as many as asked for, or one a core; never more than there are
    cores or tasks, since more of them would only wait for one another.
    """
    return max(1, min(workers or cores(), cores(), tasks))


def threads_each(workers: int) -> int:
    """Threads of each of so many workers."""
    return max(1, cores() // workers)


def environment(threads: int) -> Mapping[str, str]:
    """The environment of a process with so many threads."""
    return {**os.environ, **dict.fromkeys(VARIABLES, str(threads))}
