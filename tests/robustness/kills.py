"""`make kills`: commands that are killed, and commands that are started twice, end with the files
of one whole run.

python -m tests.robustness.kills [--kills 200] [--pairs 3] [--only COMMAND] [--case COMMAND EVENT
HOW]

Every command of `commands.COMMANDS` runs once without interruption. Then, for each point of a plan,
it runs from the same start until it is ended there (see `processes`), and once more to its end.
Afterwards the folder must hold the same files with the same content (`commands.content`), and
nothing else: no temporary file, no half one. A pair is the command twice on one folder, the second
begun at once or a part of the run later: both end well, or one refuses in one line, and the files
are those of one run.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.robustness import processes
from tests.robustness.commands import BY_NAME, Command, States, differences
from tests.robustness.processes import Ended, How

OUT = Path("build/kills")
REFUSED = 2


@dataclass(frozen=True)
class Point:
    """Where a run is ended: before an event, counted from 1, or in the first larger write from
    there on."""

    event: int
    how: How


@dataclass
class Tally:
    """What was tried of one command, and what went wrong, in words."""

    command: str
    events: int = 0
    kills: int = 0
    pairs: int = 0
    refused: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)


def plan(events: dict[str, int], total: int) -> dict[str, list[Point]]:
    """Points for each command: at least one, shared out by weight, spread evenly over its events.

    Commands with few events have few points; the others take over what they leave.
    """
    points = {
        name: [Point(event, how) for event in range(1, count + 1) for how in ("kill", "torn")]
        for name, count in events.items()
    }
    shares = dict.fromkeys(points, 1)
    while sum(shares.values()) < total:
        open_ = [name for name in points if shares[name] < len(points[name])]
        if not open_:
            break
        shares[min(open_, key=lambda name: shares[name] / BY_NAME[name].weight)] += 1
    return {name: _spread(points[name], shares[name]) for name in points}


def _spread(points: Sequence[Point], count: int) -> list[Point]:
    """So many of the points, from the first to the last."""
    if count >= len(points):
        return list(points)
    # An odd step in between, so that both ways of ending are among them.
    return [points[round(i * (len(points) - 1) / max(count - 1, 1))] for i in range(count)]


def check_kill(states: States, command: Command, point: Point) -> tuple[bool, list[str]]:
    """End a run at a point, run again, compare: whether it was ended there, and what is wrong."""
    states.put(command)
    ended = processes.run(states.work, command.arguments, at=point.event, how=point.how)
    if not ended.killed and ended.code != 0:
        return False, [f"before the kill it ended with {ended.code}: {_last(ended)}"]
    again = processes.run(states.work, command.arguments)
    other = differences(states.work, states.after(command.name))
    if again.code == REFUSED and not other:  # all was done: an export asks for a new folder
        return ended.killed, []
    return ended.killed, [*_wrong(again), *other]


def check_pair(states: States, command: Command, delay: float) -> tuple[int, list[str]]:
    """Run a command twice at once: how many refused, and what is wrong.

    Args:
        states: Working directory and what the command should leave.
        command: The command.
        delay: Seconds by which the second begins later.
    """
    states.put(command)
    gates = [os.pipe() for _ in range(2)]
    started = [processes.start(states.work, command.arguments, gate=read) for read, _ in gates]
    for (_, write), wait in zip(gates, (0.0, delay), strict=True):
        time.sleep(wait)
        os.write(write, b"!")
    ended = [each.wait() for each in started]
    for descriptor in (each for gate in gates for each in gate):
        os.close(descriptor)
    said = [line for each in ended if each.code != REFUSED for line in _wrong(each)]
    refused = sum(each.code == REFUSED for each in ended)
    if refused == len(ended):
        said.append(f"both refused: {_last(ended[0])}; {_last(ended[1])}")
    return refused, [*said, *differences(states.work, states.after(command.name))]


def _wrong(ended: Ended) -> list[str]:
    if ended.hung:
        return [f"hangs: no end within {processes.PATIENCE_S:g} s"]
    return [f"ended with {ended.code}: {_last(ended)}"] if ended.code != 0 else []


def _last(ended: Ended) -> str:
    lines = [line for line in ended.said.strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else "(said nothing)"


def run(states: States, kills: int, pairs: int, names: Sequence[str]) -> Iterator[Tally]:
    """Check commands one after the other.

    Args:
        states: Where they run, and what they should leave.
        kills: Kills in all.
        pairs: Pairs of each command.
        names: Commands.
    """
    for name in names:
        states.after(name)
    points = plan({name: states.events[name] for name in names}, kills) if kills else {}
    for name in names:
        began, tally = time.monotonic(), Tally(name, states.events[name])
        for point in points.get(name, ()):
            killed, wrong = check_kill(states, BY_NAME[name], point)
            if not killed and not wrong:  # nothing larger was written from there on
                point = Point(point.event, "kill")
                killed, wrong = check_kill(states, BY_NAME[name], point)
            tally.kills += killed
            tally.failures += [
                f"--case '{name}' {point.event} {point.how}: {line}" for line in wrong
            ]
        for number in range(pairs):
            refused, wrong = check_pair(
                states, BY_NAME[name], number / pairs * states.seconds[name]
            )
            tally.pairs += 1
            tally.refused += refused
            tally.failures += [
                f"'{name}' twice, {number} of {pairs} of a run apart: {line}" for line in wrong
            ]
        tally.seconds = round(time.monotonic() - began, 1)
        yield tally


def tell(*lines: str) -> None:
    """Print lines."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


def prepared(root: Path) -> Path:
    """An empty folder with the inputs, as the working directory of this process, which is ready
    to fork."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    os.chdir(root)
    processes.prepare(root / "in")
    return root


def main() -> int:
    """Check, print a table, and return 1 if anything is wrong."""
    about = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m tests.robustness.kills", description=about)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--pairs", type=int, default=3, help="of each command")
    parser.add_argument(
        "--only", action="append", choices=list(BY_NAME), help="this command; may be repeated"
    )
    parser.add_argument(
        "--case", nargs=3, metavar=("COMMAND", "EVENT", "HOW"), help="one kill, and keep the folder"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args()
    out = given.out.resolve()
    root = prepared(out / "files")
    if given.case:
        name, event, how = given.case
        states = States(root)
        states.after(name)
        killed, wrong = check_kill(states, BY_NAME[name], Point(int(event), how))
        tell(f"killed: {killed}; the folder after running again: {root / 'work'}", *wrong)
        return int(bool(wrong))
    tallies = []
    tell(
        f"{'command':16}{'events':>8}{'kills':>7}{'pairs':>7}{'refused':>9}"
        f"{'failures':>10}{'seconds':>9}"
    )
    for tally in run(States(root), given.kills, given.pairs, given.only or list(BY_NAME)):
        tallies.append(tally)
        counts = f"{tally.events:8}{tally.kills:7}{tally.pairs:7}{tally.refused:9}"
        tell(
            f"{tally.command:16}{counts}{len(tally.failures):10}{tally.seconds:9}", *tally.failures
        )
    failures = [line for tally in tallies for line in tally.failures]
    tell(
        f"{sum(t.kills for t in tallies)} kills and {sum(t.pairs for t in tallies)} pairs,"
        f" {len(failures)} failures"
    )
    tell(*failures)
    (out / "summary.json").write_text(
        json.dumps([asdict(tally) for tally in tallies], indent=1), encoding="utf-8"
    )
    shutil.rmtree(root, ignore_errors=True)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
