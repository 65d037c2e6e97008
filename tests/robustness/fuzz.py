"""`make fuzz`: damaged and hostile input for everything that reads: no traceback, no hang, no
silent change.

python -m tests.robustness.fuzz [--minutes 1 | --cases N] [--seed 0] [--only READER] [--case READER
SEED]
                                [--summary out.json]

Every reader may refuse with a `DmleError`, which says what is wrong in one line. Anything else is a
failure: another exception, no answer in time, too much memory, a file written elsewhere, or, where
files carry a checksum, other values without a word. The same seed is the same case: `--case READER
SEED` repeats one, and keeps the file in build/fuzz/.
"""

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.robustness.commands import States
from tests.robustness.kills import prepared, tell
from tests.robustness.readers import FileCases, file_readers
from tests.robustness.texts import TextCases, text_readers
from tests.robustness.watch import Failure, watched

OUT = Path("build/fuzz")
SHOWN = 2
"""Failures of one group that are printed and kept."""

Cases = FileCases | TextCases


@dataclass
class Tally:
    """What was tried of one reader."""

    reader: str
    cases: int = 0
    seconds: float = 0.0
    failures: list[Failure] = field(default_factory=list)

    def groups(self) -> dict[tuple[str, str, str], list[Failure]]:
        """Failures by what they seem to come from."""
        found: dict[tuple[str, str, str], list[Failure]] = {}
        for failure in self.failures:
            found.setdefault(failure.group, []).append(failure)
        return found


def make_cases(states: States, root: Path) -> dict[str, tuple[Cases, float]]:
    """All readers by name, with their share of the time.

    Args:
        states: Makes the files.
        root: A folder to work in.
    """
    from interp.models.loading import load

    files = file_readers(states, root / "samples")
    contents = [reader.content() for reader in files if not reader.name.startswith("model")]
    found: dict[str, tuple[Cases, float]] = {}
    for reader in files:
        found[reader.name] = (
            FileCases(reader, contents, root / "scratch" / _slug(reader.name)),
            reader.share,
        )
    for reader in text_readers(load(str(states.inputs / "model"))):
        found[reader.name] = TextCases(reader), reader.share
    return found


def run(
    cases: dict[str, tuple[Cases, float]], *, seconds: float, count: int, first: int
) -> Iterator[Tally]:
    """Try readers one after the other.

    Args:
        cases: The readers, with their share of the time.
        seconds: Time for all of them.
        count: Most seeds of each; one is a case of a file, or a hundred texts.
        first: First seed.
    """
    shares = sum(share for _, share in cases.values())
    for name, (work, share) in cases.items():
        began = time.monotonic()
        limit = max(count // 100, 1) if isinstance(work, TextCases) and count < 10**9 else count
        done = watched(name, work, first, seconds=seconds * share / shares, count=limit)
        yield Tally(name, done.cases, round(time.monotonic() - began, 1), list(done.failures))


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name)


def report(tallies: Sequence[Tally]) -> str:
    """The failures by group, most frequent first."""
    lines = []
    for tally in tallies:
        for (reader, kind, where), failures in tally.groups().items():
            lines.append(f"{reader}: {kind} {where or ''} ({len(failures)} of {tally.cases} cases)")
            for failure in failures[:SHOWN]:
                lines.append(f"    --case '{reader}' {failure.seed}: {failure.case[:160]}")
                lines.append(f"        {' '.join(failure.said.split())[:200]}")
    return "\n".join(lines)


def keep(out: Path, cases: dict[str, tuple[Cases, float]], tallies: Sequence[Tally]) -> None:
    """Write the damaged files and the texts of the failures, some of each group."""
    for tally in tallies:
        work, _ = cases[tally.reader]
        for failures in tally.groups().values():
            for failure in failures[:SHOWN]:
                content = (
                    work.damage(failure.seed)[0]
                    if isinstance(work, FileCases)
                    else failure.case.encode()
                )
                (out / f"{_slug(tally.reader)}-{failure.seed}").write_bytes(content)


def summary(tallies: Sequence[Tally], first: int) -> dict[str, object]:
    """Counts and failures as plain data."""
    readers = [
        {
            "reader": tally.reader,
            "cases": tally.cases,
            "seconds": tally.seconds,
            "failures": [
                {"kind": kind, "where": where, "count": len(group), "first": asdict(group[0])}
                for (_, kind, where), group in tally.groups().items()
            ],
        }
        for tally in tallies
    ]
    kinds = Counter(failure.kind for tally in tallies for failure in tally.failures)
    return {
        "first_seed": first,
        "cases": sum(t.cases for t in tallies),
        "failures": dict(kinds),
        "readers": readers,
    }


def repeat(work: Cases, seed: int, out: Path) -> int:
    """One case, in a watched process; prints what came of it."""
    done = watched("case", work, seed, count=1)
    for failure in done.failures:
        tell(f"{failure.kind} {failure.where}: {failure.said}\n  {failure.case}")
    if isinstance(work, FileCases):
        content, said = work.damage(seed)
        path = out / f"{_slug(work.reader.name)}-{seed}"
        path.write_bytes(content)
        tell(f"{said}: {path}")
    tell(f"{len(done.failures)} failures")
    return int(bool(done.failures))


def main() -> int:
    """Try, print a table and the failures, and return 1 if there is one."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.fuzz", description=about)
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="for all readers, besides making the files"
    )
    parser.add_argument("--cases", type=int, help="of each reader, in place of a time")
    parser.add_argument("--seed", type=int, default=0, help="first seed; another gives other cases")
    parser.add_argument(
        "--only", action="append", metavar="READER", help="this reader; may be repeated"
    )
    parser.add_argument("--case", nargs=2, metavar=("READER", "SEED"), help="repeat one case")
    parser.add_argument("--summary", type=Path, help="JSON file of counts and failures")
    given = parser.parse_args()
    out, wanted = OUT.resolve(), given.only or []
    target = (given.summary or out / "summary.json").resolve()
    shutil.rmtree(out / "files", ignore_errors=True)
    root = prepared(out / "files")
    cases = make_cases(States(root), root)
    names = [given.case[0]] if given.case else wanted
    if unknown := [name for name in names if name not in cases]:
        parser.error(f"no reader {unknown}; there are {list(cases)}")
    if given.case:
        return repeat(cases[given.case[0]][0], int(given.case[1]), out)
    chosen = {name: each for name, each in cases.items() if not wanted or name in wanted}
    seconds, count = (1e9, given.cases) if given.cases else (60 * given.minutes, 10**9)
    tallies = []
    tell(f"{'reader':30}{'cases':>8}{'failures':>10}{'seconds':>9}")
    for tally in run(chosen, seconds=seconds, count=count, first=given.seed):
        tallies.append(tally)
        tell(f"{tally.reader:30}{tally.cases:8}{len(tally.failures):10}{tally.seconds:9}")
    keep(out, cases, tallies)
    made = summary(tallies, given.seed)
    target.write_text(json.dumps(made, indent=1), encoding="utf-8")
    tell(f"{made['cases']} cases; failures by kind: {made['failures'] or 'none'}", report(tallies))
    shutil.rmtree(root, ignore_errors=True)
    return int(bool(made["failures"]))


if __name__ == "__main__":
    sys.exit(main())
