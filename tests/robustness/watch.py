"""Cases in a process of their own, with a limit of memory, watched: what hangs, crashes or grows is
told like an error.

The process is forked, works through a slice of cases, and says through a pipe which case it begins
and what failed.
"""

import json
import os
import resource
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HANG_S = 10.0
"""Time of the processor without an answer (or six times as long by the clock) that counts as a
hang."""
MEMORY = 1 << 30
"""What a case may take beyond what the process has at its start, in bytes."""
PACKAGES = ("interp", "editing", "figures")


@dataclass(frozen=True)
class Failure:
    """What one case did that it must not do."""

    reader: str
    seed: int
    kind: str
    """hang, crash, memory, silent change, outside (a file written elsewhere), or the name of the
    exception."""
    where: str
    """Innermost line of this project, as file:line; "" where none is known."""
    said: str
    case: str
    """What was done to the input, or the input."""

    @property
    def group(self) -> tuple[str, str, str]:
        """Failures with the same are taken for one fault."""
        return self.reader, self.kind, self.where


Say = Callable[[str], None]
"""Tells the watcher that another case begins, and what it is."""
Work = Callable[[int, Say], list[Failure]]
"""One seed: its failures."""


@dataclass
class Slice:
    """What came of a slice."""

    cases: int = 0
    next_seed: int = 0
    failures: tuple[Failure, ...] = ()


def watched(
    reader: str, work: Work, first: int, *, seconds: float = 1e9, count: int = 10**9
) -> Slice:
    """Run seeds from `first` on until the time or the count is used up, in as many processes as it
    takes.

    Args:
        reader: Name, for what the watcher reports itself.
        work: One seed; called in the forked process.
        first: First seed.
        seconds: Time for all.
        count: Number of seeds.
    """
    end, found, total, seed = time.monotonic() + seconds, [], 0, first
    while seed < first + count and time.monotonic() < end:
        done = _one_process(reader, work, seed, end, first + count)
        total += done.cases
        found += done.failures
        seed = done.next_seed
    return Slice(total, seed, tuple(found))


def _one_process(reader: str, work: Work, first: int, end: float, stop: int) -> Slice:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            _work(work, first, end, stop, write)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    done, case = Slice(next_seed=first), ""
    for line in _lines(read, pid):
        message = json.loads(line)
        done.cases += "case" in message
        case = message.get("case", case)
        done.next_seed = message.get("seed", done.next_seed)
        done.failures += tuple(Failure(**each) for each in message.get("failures", ()))
        if "broken" in message:
            raise RuntimeError(
                f"the test itself fails at {reader} {done.next_seed}:\n{message['broken']}"
            )
    hung = not _ended(pid)
    if hung:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(read)
    if (code := os.waitstatus_to_exitcode(status)) != 0:
        kind = "hang" if hung else "crash"
        said = f"no answer in {HANG_S:g} s" if hung else f"the process ended with {code}"
        done.failures += (Failure(reader, done.next_seed, kind, "", said, case),)
        done.next_seed += 1
    return done


def _lines(descriptor: int, pid: int) -> Iterator[bytes]:
    """Whole lines, until the process ends or does not answer."""
    rest, began, used = b"", time.monotonic(), _processor_seconds(pid)
    while True:
        ready, _, _ = select.select([descriptor], [], [], 1.0)
        if not ready:
            waited, worked = time.monotonic() - began, _processor_seconds(pid) - used
            if waited >= 6 * HANG_S or min(waited, worked) >= HANG_S:
                return
            continue
        part = os.read(descriptor, 1 << 16)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        yield from lines
        began, used = time.monotonic(), _processor_seconds(pid)


def _ended(pid: int) -> bool:
    """Whether the process has ended, or does within a moment; it is not reaped."""
    for _ in range(100):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return True
        time.sleep(0.02)
    return False


def _processor_seconds(pid: int) -> float:
    """Time of the processor that a process used; the clock, where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _work(work: Work, first: int, end: float, stop: int, output: int) -> None:
    """The forked process: one seed after the other."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    _limit_memory()

    def send(message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        while line:
            line = line[os.write(output, line) :]

    for seed in range(first, stop):
        if time.monotonic() >= end:
            break
        send({"seed": seed})
        try:
            failures = work(seed, lambda case: send({"case": case[:300]}))
        except BaseException:
            send({"broken": traceback.format_exc()})
            raise
        send({"seed": seed + 1, "failures": [asdict(each) for each in failures]})


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    except OSError:
        return
    limit = pages * os.sysconf("SC_PAGE_SIZE") + 2 * MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def peak() -> int:
    """Most memory that this process had so far, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def place_of(error: BaseException) -> str:
    """Innermost line of this project in a traceback, as file:line."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _own(frame.filename)]
    if not frames:
        return ""
    path = Path(frames[-1].filename)
    return f"{path.parent.name}/{path.name}:{frames[-1].lineno}"


def _own(name: str) -> bool:
    return bool({*Path(name).parts} & {*PACKAGES}) and "site-packages" not in name
