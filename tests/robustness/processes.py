"""Runs of commands in processes that are forked from one that has imported everything, and ways to
end them.

Importing torch and TransformerLens takes seconds, a fork takes milliseconds. The parent has one
thread, loads the tiny model once, and hands it to every command that asks for that folder: loading
writes nothing.

A run is ended in two ways: `kill -9` before the n-th file event (a file opened for writing,
renamed, removed, a folder made, an fsync), and in the middle of a write: from the n-th event on a
file may have no more than a few bytes, so that the next larger write, also by a C library, ends the
process with the file half written.
"""

import faulthandler
import os
import resource
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = frozenset(
    (
        "os.rename",
        "os.remove",
        "os.mkdir",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "os.chmod",
    )
)
TORN_BYTES = 100
"""Size at which a file is cut in a torn write: smaller than nearly everything that is written."""
CRASHED = 70
PATIENCE_S = 600.0

How = Literal["kill", "torn"]


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: a signal), its output, and the file events
    it counted."""

    code: int
    said: str
    events: int
    hung: bool = False

    @property
    def killed(self) -> bool:
        """Ended by a signal, as a power cut would."""
        return self.code in (-signal.SIGKILL, -signal.SIGXFSZ)


@dataclass
class Started:
    """A running process."""

    pid: int
    output: int
    text: bytes = b""

    def wait(self, patience: float = PATIENCE_S) -> Ended:
        """Read what it says until it ends; after so many seconds it is killed and called hung."""
        end, hung = time.monotonic() + patience, False
        while True:
            left = end - time.monotonic()
            if left <= 0:
                # First asked where it is (see `faulthandler`), then ended.
                os.kill(self.pid, signal.SIGKILL if hung else signal.SIGABRT)
                hung, end = True, time.monotonic() + 5
            ready, _, _ = select.select([self.output], [], [], max(left, 1.0))
            if ready:
                part = os.read(self.output, 1 << 16)
                if not part:
                    break
                self.text += part
        os.close(self.output)
        _, status = os.waitpid(self.pid, 0)
        said, _, counted = self.text.decode(errors="replace").rpartition("\x00events ")
        if not said:
            said, counted = self.text.decode(errors="replace"), "0"
        return Ended(
            os.waitstatus_to_exitcode(status), said, int(counted.split("\n")[0] or 0), hung
        )


def start(
    work: Path, arguments: Sequence[str], *, at: int = 0, how: How = "kill", gate: int | None = None
) -> Started:
    """Fork a process that runs a `dmle` command line in a folder.

    Args:
        work: Working directory; file events below it are counted.
        arguments: The command line.
        at: End before this event (from 1); 0: run to the end.
        how: `kill`, or `torn`: the first larger write from that event on.
        gate: File descriptor to read one byte from before the command starts.
    """
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(write)
        return Started(pid, read)
    code = CRASHED
    try:
        os.close(read)
        code = _child(work, arguments, at, how, gate, write)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(work: Path, arguments: Sequence[str], *, at: int = 0, how: How = "kill") -> Ended:
    """`start` and wait."""
    return start(work, arguments, at=at, how=how).wait()


def _child(
    work: Path, arguments: Sequence[str], at: int, how: How, gate: int | None, output: int
) -> int:
    """What the forked process does; its exit code."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, descriptor)
    faulthandler.enable(2)
    os.chdir(work)
    temporary = work / "tmp"
    temporary.mkdir(exist_ok=True)
    tempfile.tempdir = str(temporary)
    if gate is not None:
        os.read(gate, 1)
    counter = Counter(work, at, how)
    counter.install()
    from interp.app import commands as cli

    try:
        cli.main(list(arguments))
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = CRASHED
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(2, f"\x00events {counter.events}\n".encode())
    return code


class Counter:
    """Counts file events below a folder, and ends the process at one of them."""

    def __init__(self, root: Path, at: int, how: How) -> None:
        self.root, self.at, self.how = str(root) + os.sep, at, how
        self.events = 0

    def install(self) -> None:
        """From now on; there is no way back for this process."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        fsync = os.fsync

        def counted(descriptor: Any) -> None:
            self.step()
            fsync(descriptor)

        os.fsync = counted  # pyrefly: ignore[bad-assignment]
        sys.addaudithook(self._hear)

    def step(self) -> None:
        """One event."""
        self.events += 1
        if self.events != self.at:
            return
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (TORN_BYTES, TORN_BYTES))

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & WRITING):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, str | bytes | os.PathLike) and self._inside(os.fsdecode(path)):
            self.step()

    def _inside(self, path: str) -> bool:
        # Relative names are relative to the working directory, which is the root.
        return not Path(path).is_absolute() or path.startswith(self.root)


def prepare(folder: Path) -> None:
    """Make the inputs (see `tiny`), import what commands import, and load the tiny model: once, in
    the parent.

    Args:
        folder: Where the inputs go.

    Raises:
        RuntimeError: The process has more than one thread of Python, so that forks of it may lock
            up.
    """
    import torch
    import tqdm

    torch.set_num_threads(1)
    tqdm.tqdm.monitor_interval = 0  # a thread
    from interp.app import steps
    from interp.models import loading as model
    from interp.results.provenance import versions
    from tests.robustness import tiny

    steps.load_steps()
    versions()
    _import_late()
    load = model.load

    tiny.make_inputs(folder)
    place = (folder / "model").resolve()
    held = load(str(place), device="cpu")

    def load_once(name: str, **options: Any) -> Any:
        return held if Path(name).resolve() == place else load(name, **options)

    model.load = load_once  # pyrefly: ignore[bad-assignment]
    if threading.active_count() > 1:
        raise RuntimeError(
            f"{threading.active_count()} threads before the first fork; one is needed"
        )


def _import_late() -> None:
    """What steps import when they run, and matplotlib's fonts."""
    import io

    import matplotlib.pyplot as plt

    from editing.closed_form import covariance
    from editing.editors import registry as editors
    from editing.edits import delta
    from editing.evaluation import evaluate as evaluation
    from editing.evaluation import side_effects
    from editing.studies import comparison_files, evidence, paired, regret, sequence, tuning
    from figures import paper, report
    from interp.results import effects, faithfulness
    from interp.rules.rulebook import build
    from interp.selection import baselines, form_order, profiles
    from interp.selection import select as selection
    from interp.tracing import knowledge, one_prompt, rule_curves
    from interp.tracing import trace as tracing

    assert editors.editors()
    assert all(
        (
            comparison_files,
            covariance,
            delta,
            editors,
            evaluation,
            evidence,
            paired,
            regret,
            sequence,
            side_effects,
            tuning,
        )
    )
    assert all(
        (
            paper,
            report,
            baselines,
            effects,
            faithfulness,
            form_order,
            knowledge,
            one_prompt,
            profiles,
            rule_curves,
            selection,
            tracing,
        )
    )
    assert build
    figure, axes = plt.subplots()
    axes.set_title("a")
    for kind in ("pdf", "png"):
        figure.savefig(io.BytesIO(), format=kind)
    plt.close(figure)
