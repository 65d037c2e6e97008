"""Sizes by hand; chunks that shrink; the host's own allocator running out for real."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from interp.models.budget import HOST_BUDGET, chunked, default_budget, memory_of
from interp.settings.sizes import parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4GiB", 4 * 2**30),
        ("512 MB", 512 * 2**20),
        ("1.5k", 1536),
        ("2tib", 2 * 2**40),
        (" 7 B ", 7),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GiB", "-4GiB", "4 XB", "4GiB or so", "0.4"])
def test_parse_size_refuses_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="a size such as 4GiB or 512MiB is needed"):
        parse_size(text)


def test_the_host_has_a_fixed_budget() -> None:
    assert default_budget(torch.empty(0).device) == HOST_BUDGET


def test_chunked_works_through_everything_once_in_order() -> None:
    seen: list[list[int]] = []
    assert chunked(range(7), 3, seen.append) == 3
    assert seen == [[0, 1, 2], [3, 4, 5], [6]]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("full"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_chunked_halves_until_it_fits(error: Exception) -> None:
    tried: list[int] = []
    done: list[int] = []

    def work(some: list[int]) -> None:
        tried.append(len(some))
        if len(some) > 2:
            raise error
        done.extend(some)

    assert chunked(range(9), 9, work) == 2
    assert done == list(range(9)) and tried == [9, 4, 2, 2, 2, 2, 1]


def test_chunked_passes_other_errors_on() -> None:
    def work(some: list[int]) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        chunked(range(4), 2, work)


LIMITED = """
import resource, torch
from interp.models.budget import chunked
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 200 * 2**20,) * 2)  # room for three items
done = []
def work(some):
    torch.ones(len(some), 64 * 2**20 // 4)  # 64 MiB an item
    done.extend(some)
size = chunked(range(8), 8, work)
print(size, done == list(range(8)))
"""


def test_the_allocators_own_error_is_recognised() -> None:
    got = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False
    )
    size, complete = got.stdout.split()
    assert int(size) in (1, 2) and complete == "True", got.stderr


def test_metal_has_no_mem_get_info(monkeypatch: pytest.MonkeyPatch) -> None:
    metal = SimpleNamespace(
        recommended_max_memory=lambda: 16 * 2**30, driver_allocated_memory=lambda: 6 * 2**30
    )
    device = torch.device("mps")
    monkeypatch.setattr(torch, "get_device_module", lambda device: metal)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **options: device)
    assert memory_of(device) == (10 * 2**30, 16 * 2**30)
    assert default_budget(device) == 5 * 2**30
