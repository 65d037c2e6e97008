"""What this machine has: memory and disk."""

import os
import resource
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from interp.models.budget import memory_of

KIB = 1024


@dataclass(frozen=True)
class Machine:
    """Bytes that the machine has.

    Attributes:
        memory: Of the device that the model is on: all of it, or what of it is there for us.
        free: What is free of it now.
        disk: Free where the run folder is.
        threads: Threads that torch uses.
    """

    memory: int
    free: int
    disk: int
    threads: int

    @classmethod
    def here(cls, device: torch.device, folder: Path) -> "Machine":
        """This machine, for a model on a device and a run in a folder."""
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        disk = shutil.disk_usage(there).free
        memory, free = _host() if device.type == "cpu" else _accelerator(device)
        return cls(memory, free, disk, torch.get_num_threads())


def _host() -> tuple[int, int]:
    page = os.sysconf("SC_PAGE_SIZE")
    memory = page * os.sysconf("SC_PHYS_PAGES")
    free = memory
    info = Path("/proc/meminfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * KIB
    # A container may have less than its machine.
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        memory = min(memory, int(text))
    return memory, min(free, memory)


def _accelerator(device: torch.device) -> tuple[int, int]:
    free, memory = memory_of(device)
    return memory, free


def peak_rss() -> int:
    """Most memory that this process has had, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * KIB
