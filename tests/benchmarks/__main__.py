"""`make bench`: run the benchmarks, print them and write bench.json as they come.

python -m tests.benchmarks [tracing|edits|evaluation|costs|covariance|report|executors|plan …]
[--prompts 0 1 2] [--quick] [--out bench.json]
python -m tests.benchmarks curve --out curve.csv [--help]: the error of tracing against its cost
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from tests.benchmarks import (
    bench_evaluation,
    bench_report,
    costs,
    covariance,
    curve,
    edits,
    executors,
    plan,
    tracing,
)

# The longest of the quick ones first.
PARTS = {
    "tracing": tracing,
    "edits": edits,
    "evaluation": bench_evaluation,
    "costs": costs,
    "covariance": covariance,
    "report": bench_report,
    "executors": executors,
    "plan": plan,
}
ALONE = ("executors", "plan")
"""They take all cores, or need a quiet machine: at the small size, beside others, they run only if
they are named."""
QUICK_TOGETHER = 2
"""Parts that run side by side at the small size. Each case is a process of one thread."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run some of the benchmarks, all by default (about an hour on one core)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["curve"]:
        curve.main(given[1:])
        return
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Benchmarks")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which (default: all)")
    parser.add_argument(
        "--prompts", type=int, nargs="+", default=[0, 1, 2], help="tracing: which prompts (0 to 2)"
    )
    parser.add_argument("--quick", action="store_true", help="every ratio at a small size")
    parser.add_argument("--out", type=Path, help="bench.json, or bench-quick.json")
    options = parser.parse_args(given)
    out = options.out or Path("bench-quick.json" if options.quick else "bench.json")
    rows: list[dict[str, Any]] = []
    turn = Lock()

    def say(part: Any, row: dict[str, Any]) -> None:
        with turn:
            rows.append(row)
            out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
            sys.stdout.write(part.describe(row) + "\n")
            sys.stdout.flush()

    def run(name: str) -> None:
        part = PARTS[name]
        more = {"prompts": options.prompts} if name == "tracing" else {}
        part.run(partial(say, part), quick=options.quick, **more)

    usual = [name for name in PARTS if not (options.quick and name in ALONE)]
    with ThreadPoolExecutor(QUICK_TOGETHER if options.quick else 1) as pool:
        list(pool.map(run, options.parts or usual))


if __name__ == "__main__":  # child processes import this module again
    main()
