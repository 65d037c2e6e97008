"""A fresh process for each case, so that its memory and its CPU-seconds are its own.

The processes are forked from a server that has imported torch and has run nothing: the import
takes longer than many a case.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def apart(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the function returns in a process of its own."""
    with worker(function) as pool:
        return pool.submit(function, *arguments, **named).result()


def worker(function: Callable[..., Any]) -> ProcessPoolExecutor:
    """One process, for functions of the same module; a context manager."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    return ProcessPoolExecutor(1, mp_context=context)
