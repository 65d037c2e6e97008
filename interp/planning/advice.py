"""Settings that make a plan fit into a machine's memory."""

from collections.abc import Mapping, Sequence

from interp.planning.machine import Machine
from interp.planning.plan import Work, size

WEIGHTS, STATISTICS = "weights", "statistics of keys"
"""Names of parts of the memory."""
HALF = 2
"""Bytes of a number of half precision."""


def advice(
    base: Mapping[str, int],
    works: Sequence[Work],
    machine: Machine,
    itemsize: int,
    settings: Mapping[str, str],
) -> list[str]:
    """What to change so that works fit; nothing if they do.

    Args:
        base: Bytes that are taken whatever is done.
        works: The works.
        machine: What this machine has.
        itemsize: Bytes of a number of the weights.
        settings: By a part of the memory, the setting that makes it smaller, in words.
    """
    most = max(works, key=lambda work: sum(work.memory.values()), default=Work(""))
    parts = {**base, **most.memory}
    lines, over = [], sum(parts.values()) - machine.memory
    if over <= 0:
        return _for_disk(works, machine)
    weights = base.get(WEIGHTS, 0)
    saved = weights * (itemsize - HALF) // itemsize if itemsize > HALF else 0
    if saved:
        lines.append(f"--set model.dtype=bfloat16 (weights take {size(weights - saved)})")
    own = {name: part for name, part in most.memory.items() if name in settings}
    for name in sorted(own, key=lambda name: -own[name]):
        left = sum(parts.values()) - saved - machine.memory
        if left <= 0:
            break
        lines.append(f"{settings[name]} ({most.name}: {name} take {size(own[name])})")
        if name == STATISTICS and most.blocks:
            lines[-1] += _blocks_that_fit(own[name], most.blocks, left)
        saved += own[name]
    if sum(parts.values()) - saved > machine.memory:
        lines.append(
            f"nothing here: without what settings can save, {size(sum(parts.values()) - saved)} are"
            " needed; use a device with more memory (--device) or a smaller model"
        )
    return [*lines, *_for_disk(works, machine)]


def _blocks_that_fit(taken: int, blocks: int, over: int) -> str:
    """How many of some blocks fit, if so many bytes must be saved."""
    fitting = max(0, (taken - over) * blocks // taken)
    return f": {fitting} of {blocks} blocks fit" if fitting else ": not one block fits"


def _for_disk(works: Sequence[Work], machine: Machine) -> list[str]:
    disk = sum(work.disk for work in works)
    if disk <= machine.disk:
        return []
    return [f"--run on a disk with {size(disk)} free"]
