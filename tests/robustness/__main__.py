"""A short look at everything: that the fuzzer notices each kind of fault, some cases of each
reader, some kills.

python -m tests.robustness [--cases 1] [--kills 8] [--pairs 0] --out out.json
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from interp.errors import DmleError
from tests.robustness import fuzz, kills, watch
from tests.robustness.commands import BY_NAME, States
from tests.robustness.readers import FileCases, FileReader
from tests.robustness.watch import watched

QUICK = ("trace", "profile", "select", "edit", "evaluate", "regret", "evidence", "rules build")
"""Commands that take a fraction of a second."""


def noticed(root: Path) -> dict[str, list[str]]:
    """What the fuzzer says of readers that are wrong on purpose, by what is wrong with them."""
    folder = root / "noticed"
    folder.mkdir()
    (folder / "file").write_bytes(b"content" * 100)

    def refuses(at: Path) -> Any:
        if (at / "file").read_bytes() != b"content" * 100:
            raise DmleError("damaged")

    def writes_outside(at: Path) -> None:  # beside its folder
        (at.parent / "hacked").touch()

    def waits(at: Path) -> None:
        while (at / "file").read_bytes() != b"content" * 100:
            pass

    def crashes(at: Path) -> None:
        if (at / "file").read_bytes() != b"content" * 100:
            os.kill(os.getpid(), signal.SIGSEGV)

    def grows(at: Path) -> int:
        return (
            len(bytearray(watch.MEMORY * 3))
            if (at / "file").read_bytes() != b"content" * 100
            else 0
        )

    wrong: dict[str, Callable[[Path], Any]] = {
        "refuses": refuses,
        "silent change": lambda at: (at / "file").read_bytes(),
        "UnicodeDecodeError": lambda at: (at / "file").read_bytes().decode("ascii") and None,
        "outside": writes_outside,
        "hang": waits,
        "crash": crashes,
        "memory": grows,
    }
    limit, watch.HANG_S = watch.HANG_S, 0.3
    found = {}
    for name, read in wrong.items():
        work = FileCases(
            FileReader(name, folder, "file", read), [b"other" * 99], root / "scratch" / name
        )
        done = watched(name, work, 0, count=12 if name == "UnicodeDecodeError" else 3)
        found[name] = sorted({failure.kind for failure in done.failures})
    watch.HANG_S = limit
    return found


def main() -> int:
    """Write everything as JSON; 0 whatever is found."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.robustness", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument(
        "--cases", type=int, default=1, help="of each reader of files; the others get a hundred"
    )
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=0, help="of each command")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    out = given.out.resolve()
    root = kills.prepared(out.with_name(f"{out.stem}-files"))
    began = time.monotonic()
    found, states = {"noticed": noticed(root)}, States(root)
    # Whole models and commands take a second a case: `make fuzz` has them.
    slow = ("model", "dmle")
    cases = {
        name: case
        for name, case in fuzz.make_cases(states, root).items()
        if not name.startswith(slow)
    }
    tallies = list(fuzz.run(cases, seconds=1e9, count=given.cases, first=0))
    ended = list(
        kills.run(states, given.kills, given.pairs, [name for name in BY_NAME if name in QUICK])
    )
    ended += kills.run(states, 0, 1, ["compare"])  # two that share their cells
    killed = [asdict(tally) for tally in ended]
    said = fuzz.report(tallies)
    seconds = round(time.monotonic() - began, 1)
    result = {
        **found,
        "fuzz": fuzz.summary(tallies, 0),
        "report": said,
        "kills": killed,
        "seconds": seconds,
    }
    out.write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
