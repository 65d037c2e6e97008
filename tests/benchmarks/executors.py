"""Benchmarks of executors: the same work in one process, in two worker processes, and on Ray.

SmolLM2-135M; each run is a command of its own with one thread a worker, in an empty run folder:

(a) trace: twelve prompts, MLP windows, two noise samples
(b) compare: two arms (ft and whitened fine-tuning) on four rules; the statistics are there already

Times are wall-clock seconds, since several processes work: on a quiet machine only. They hold the
start of the command, and of the workers. The median of three is told. Results are compared with
those of the serial run; `equal` says whether every effect and every score is the same.
"""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from interp.results import effects
from tests.benchmarks.apart import said_by

WORKERS, REPEATS = 2, 3
KINDS = ("serial", "processes", "ray")
COMMANDS: dict[str, tuple[str, Sequence[str]]] = {
    "trace": ("effects.nc", ("trace.components=[mlp]", "trace.samples=2", "rules.split=train")),
    "compare": (
        "scores.nc",
        (
            "edit.editors=[ft, ft_whitened]",
            "edit.splits=[train]",
            "covariance.tokens=4000",
            "covariance.shrinkage=0.1",
            "compare.bystanders=0",
            "evaluate.greedy=false",
        ),
    ),
}
LIMIT = 4
QUICK_LIMIT = 2


def once(command: str, folder: Path, kind: str, limit: int) -> float:
    """Seconds of one run of a command."""
    _, settings = COMMANDS[command]
    flags = [part for setting in settings for part in ("--set", setting)]
    if kind != "serial":
        flags += ["--executor", kind, "--workers", str(WORKERS)]
    main = "import sys; from interp.app.commands import main; main(sys.argv[1:])"
    start = time.perf_counter()
    said_by(main, [command, "--run", str(folder), "--limit", str(limit), *flags])
    return time.perf_counter() - start


def numbers(folder: Path, command: str) -> np.ndarray:
    """Every number that the command found."""
    with effects.opened(folder / COMMANDS[command][0]) as data:
        return data["score"].values


def run(say: Callable[[dict[str, Any]], None], *, quick: bool = False) -> None:
    """All commands with all executors; rows as in bench.json."""
    limit, repeats = (QUICK_LIMIT, 1) if quick else (LIMIT, REPEATS)
    for command in COMMANDS:
        with tempfile.TemporaryDirectory() as place:
            base = Path(place) / "base"
            base.mkdir()
            if command == "compare":
                once(command, Path(place) / "first", "serial", 1)
                shutil.copytree(Path(place) / "first" / "covariance", base / "covariance")
            _compare(say, command, base, limit, repeats)


def _compare(
    say: Callable[[dict[str, Any]], None], command: str, base: Path, limit: int, repeats: int
) -> None:
    medians: dict[str, float] = {}
    expected: np.ndarray | None = None
    for kind in KINDS:
        spent, folder = [], base
        for number in range(repeats):
            folder = base.with_name(f"{kind}-{number}")
            shutil.copytree(base, folder)
            spent.append(once(command, folder, kind, limit))
        found = numbers(folder, command)
        medians[kind] = statistics.median(spent)
        expected = found if expected is None else expected
        say(
            {
                "name": f"executor, {command}",
                "case": kind,
                "seconds": medians[kind],
                "ratio": medians["serial"] / medians[kind],
                "baseline": "serial",
                "equal": bool(np.array_equal(found, expected, equal_nan=True)),
            }
        )


def describe(row: dict[str, Any]) -> str:
    """One line about a row."""
    text = f"{row['name']:18} {row['case']:16} {row['seconds']:8.1f} s"
    same = "equal results" if row["equal"] else "OTHER RESULTS"
    return f"{text}  {row['ratio']:6.2f} x as fast as {row['baseline']}  {same}"
