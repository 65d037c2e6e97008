"""A plan: what a command will take, as a table and as JSON."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from interp.models.arithmetic import Pass, total_flops
from interp.models.outline import Outline
from interp.planning.machine import Machine
from interp.planning.speed import Speed

UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True)
class Work:
    """One part of a plan.

    Attributes:
        name: What is done.
        tasks: How many tasks are left, of `unit`.
        unit: What a task is.
        done: How many tasks are done already.
        passes: Runs of the model.
        tokens: Tokens that are run, each row counted.
        flops: Floating-point operations.
        seconds: Expected time; None: it was not measured.
        at_most: Whether passes and what follows from them are counted from above.
        memory: Bytes that it takes beside the weights, by what for.
        blocks: Blocks whose statistics are in that memory.
        files: Files that it writes.
        disk: Their bytes, about.
    """

    name: str
    tasks: int = 0
    unit: str = "task"
    done: int = 0
    passes: int = 0
    tokens: int = 0
    flops: float = 0.0
    seconds: float | None = 0.0
    at_most: bool = False
    memory: Mapping[str, int] = field(default_factory=dict)
    blocks: int = 0
    files: int = 0
    disk: int = 0


@dataclass(frozen=True)
class Costs:
    """What works are measured by.

    Attributes:
        outline: The model's outline.
        speed: How fast this machine runs it; None: it could not be timed.
        machine: What this machine has.
    """

    outline: Outline
    speed: Speed | None
    machine: Machine

    def work(
        self,
        name: str,
        passes: Sequence[Pass],
        *,
        scale: float = 1.0,
        more: tuple[float, float] = (0.0, 0.0),
        **fields: Any,
    ) -> Work:
        """A work that runs the model, and some operations beside it.

        Args:
            name: What is done.
            passes: Its runs, or those of a part of its tasks.
            scale: How many times as much all tasks are.
            more: Floating-point operations beside the model's, and their seconds.
            **fields: Other fields of `Work`.
        """
        shape, seconds = self.outline.shape, None
        if self.speed is not None:
            seconds = scale * self.speed.total(passes, shape) + more[1]
        return Work(
            name,
            passes=round(scale * len(passes)),
            tokens=round(scale * sum(each.rows * each.tokens for each in passes)),
            flops=scale * total_flops(passes, shape) + more[0],
            seconds=seconds,
            **fields,
        )


@dataclass(frozen=True)
class Plan:
    """What a command will take.

    Attributes:
        command: The command.
        works: Its parts, in order.
        base: Bytes that it takes whatever it does: libraries, and weights.
        machine: What this machine has.
        advice: Settings that make it fit, or make it smaller.
        notes: What was taken for granted.
    """

    command: str
    works: tuple[Work, ...]
    base: Mapping[str, int]
    machine: Machine
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def memory(self) -> dict[str, int]:
        """Bytes at the peak, by what for: those of the work that takes most."""
        most = max(self.works, key=lambda work: sum(work.memory.values()), default=Work(""))
        return {**self.base, **most.memory}

    @property
    def peak(self) -> int:
        """Bytes at the peak."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether this machine has the memory and the disk for it."""
        disk = sum(work.disk for work in self.works)
        return self.peak <= self.machine.memory and disk <= self.machine.disk

    @property
    def seconds(self) -> float | None:
        """Expected time of all works."""
        parts = [work.seconds for work in self.works]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    def record(self) -> dict[str, Any]:
        """The plan as JSON can hold it."""
        return {
            "command": self.command,
            "works": [{**vars(work), "memory": dict(work.memory)} for work in self.works],
            "seconds": self.seconds,
            "memory": self.memory,
            "peak_bytes": self.peak,
            "machine": vars(self.machine),
            "fits": self.fits,
            "advice": list(self.advice),
            "notes": list(self.notes),
        }

    def text(self) -> str:
        """The plan as a table and a few lines."""
        rows = [HEAD, *(_row(work) for work in self.works)]
        if len(self.works) > 1:
            rows.append(_row(_sum(self.works, self.seconds)))
        memory = ", ".join(f"{name} {size(part)}" for name, part in self.memory.items())
        machine = self.machine
        verdict = "fits" if self.fits else "DOES NOT FIT"
        lines = [
            *_table(rows),
            f"memory at the peak: {size(self.peak)} ({memory})",
            (
                f"this machine: {size(machine.memory)} of memory ({size(machine.free)} free now),"
                f" {size(machine.disk)} of disk free, {machine.threads} threads: {verdict}"
            ),
            *(f"to make it fit: {line}" for line in self.advice),
            *(f"note: {line}" for line in self.notes),
        ]
        return "\n".join(lines)


HEAD = ("", "tasks", "done", "passes", "tokens", "FLOPs", "time", "files", "disk")


def _row(work: Work) -> tuple[str, ...]:
    least = "≤ " if work.at_most else ""
    return (
        work.name,
        f"{work.tasks} {work.unit}{'' if work.tasks == 1 else 's'}" if work.unit else "",
        str(work.done) if work.done else "",
        f"{least}{work.passes:,}",
        f"{least}{work.tokens:,}",
        f"{least}{work.flops:.2e}",
        "not known" if work.seconds is None else f"{least}{duration(work.seconds)}",
        str(work.files) if work.files else "",
        size(work.disk) if work.disk else "",
    )


def _sum(works: Sequence[Work], seconds: float | None) -> Work:
    return Work(
        "all",
        unit="",
        passes=sum(work.passes for work in works),
        tokens=sum(work.tokens for work in works),
        flops=sum(work.flops for work in works),
        seconds=seconds,
        at_most=any(work.at_most for work in works),
        files=sum(work.files for work in works),
        disk=sum(work.disk for work in works),
    )


def _table(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *others = (
            cell.ljust(width) if not i else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([first, *others]).rstrip()


def size(number: float) -> str:
    """Bytes in words.

    >>> size(512), size(3 * 1024**3), size(1536)
    ('512 B', '3.0 GiB', '1.5 KiB')
    """
    power = 0 if number < 1 else min(len(UNITS) - 1, int(math.log(number, 1024)))
    value = number / 1024**power
    return f"{value:.1f} {UNITS[power]}" if power else f"{value:.0f} B"


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(3.21), duration(75), duration(7200), duration(300000)
    ('3.2 s', '1 min 15 s', '2 h 0 min', '3 d 11 h')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, least, part, small in (("d", 86400, 3600, "h"), ("h", 3600, 60, "min")):
        if whole >= least:
            return f"{whole // least} {unit} {whole % least // part} {small}"
    return f"{whole // 60} min {whole % 60} s"
