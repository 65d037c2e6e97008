"""Benchmarks of plans: predicted time and peak memory beside those that are measured.

SmolLM2-135M, each plan and each run in a fresh process of one thread, with an empty run folder:

(a) trace: three prompts of one rule, exact, MLP windows, two noise samples
(b) compare: one rule with MEMIT and FT, all steps, no greedy answers; it measures its statistics
(c) covariance: 4000 tokens, five blocks

The time is that of the step: loading is not in it. The memory is the most that the process has had.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.apart import said_by

SETTINGS: dict[str, dict[str, Any]] = {
    "trace": {"rules.split": "train", "trace.components": ["mlp"], "trace.samples": 2},
    "compare": {
        "edit.editors": ["memit", "ft"],
        "edit.splits": ["train"],
        "edit.limit": 1,
        "edit.stop_loss": 0.0,
        "edit.ft.stop_loss": 0.0,
        "covariance.tokens": 4000,
        "compare.bystanders": 0,
        "evaluate.greedy": False,
    },
    "covariance": {"edit.editors": ["memit"], "covariance.tokens": 4000},
}
PLAN = """
import json, sys
from interp.app.run import Run
plan = Run(sys.argv[2], settings=json.loads(sys.argv[3]), progress=None).plan(sys.argv[1])
sys.stdout.write(json.dumps([plan.seconds, plan.peak]))
"""
RUN = """
import json, sys, time
from interp.app.run import Run
from interp.planning.machine import peak_rss
run = Run(sys.argv[2], settings=json.loads(sys.argv[3]), progress=None)
run.check(sys.argv[1])
start = time.perf_counter()
run.step(sys.argv[1])
sys.stdout.write(json.dumps([time.perf_counter() - start, peak_rss()]))
"""


def fresh(code: str, command: str, folder: Path) -> tuple[float, float]:
    """Seconds and bytes that a process of its own tells."""
    settings = {"rules.limit": 1, **SETTINGS[command]}
    said = said_by(code, [command, str(folder), json.dumps(settings)])
    seconds, peak = json.loads(said.splitlines()[-1])
    return seconds, peak


def run(say: Callable[[dict[str, Any]], None], *, quick: bool = False) -> None:
    """All settings; rows as in bench.json."""
    for command in SETTINGS:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "run"
            planned, peak = fresh(PLAN, command, folder)
            seconds, memory = fresh(RUN, command, folder)
        say(
            {
                "name": f"plan, {command}",
                "case": "SmolLM2-135M",
                "seconds": seconds,
                "planned_seconds": planned,
                "ratio": planned / seconds,
                "memory": memory,
                "planned_memory": peak,
                "memory_ratio": peak / memory,
                "baseline": "measured",
            }
        )


def describe(row: dict[str, Any]) -> str:
    """One line about a row."""
    mega = 2**20
    return (
        f"{row['name']:18} planned {row['planned_seconds']:7.1f} s, took {row['seconds']:7.1f} s"
        f" ({row['ratio']:.2f}); planned {row['planned_memory'] / mega:6.0f} MiB, took"
        f" {row['memory'] / mega:6.0f} MiB ({row['memory_ratio']:.2f})"
    )
