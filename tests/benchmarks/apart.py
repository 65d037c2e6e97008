"""A fresh process for each case, so that its memory and its CPU-seconds are its own.

The processes are forked from a server that has imported torch and has run nothing: the import
takes longer than many a case.
"""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def apart(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the function returns in a process of its own."""
    with worker(function) as pool:
        return pool.submit(function, *arguments, **named).result()


def said_by(code: str, words: Sequence[str]) -> str:
    """What Python code says, run on one thread in a fresh process with these arguments.

    Raises:
        RuntimeError: It failed; its last words.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def worker(function: Callable[..., Any]) -> ProcessPoolExecutor:
    """One process, for functions of the same module; a context manager."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    return ProcessPoolExecutor(1, mp_context=context)
