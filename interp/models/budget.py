"""How much memory work may take, and work in chunks that shrink when memory runs out."""

import gc
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from interp.errors import DmleError
from interp.settings.sizes import parse_size

T = TypeVar("T")

HOST_BUDGET = parse_size("256MiB")
"""On a CPU larger batches do not run faster (measured: `make bench`), they only leave the cache."""
ACCELERATOR_SHARE = 0.5
"""Of the memory that is free; the other half is for what the estimate leaves out."""

REMEDY = "use fewer noise samples, a shorter prompt, another device, or model.dtype=bfloat16"


class MemoryLimitError(DmleError, MemoryError):
    """The memory does not take what cannot be made smaller; says which settings need less."""


def default_budget(device: torch.device) -> int:
    """Bytes that one chunk of work may take on a device, if the user does not say."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or device.type != accelerator.type:
        return HOST_BUDGET
    free, _ = memory_of(device)
    return int(free * ACCELERATOR_SHARE)


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes of an accelerator that are free, and all of them."""
    module = torch.get_device_module(device)
    if hasattr(module, "mem_get_info"):
        free, total = module.mem_get_info(device)
        return int(free), int(total)
    # Metal (mps) tells what a process should take at most, and what it has taken.
    total = int(module.recommended_max_memory())
    return max(0, total - int(module.driver_allocated_memory())), total


def chunked(
    items: Sequence[T], size: int, work: Callable[[list[T]], object], remedy: str = REMEDY
) -> int:
    """Work on items in order, `size` at a time; where memory runs out the size is halved and the
    chunk tried again.

    Args:
        items: What is worked on.
        size: How many at a time, at first.
        work: Works on some; must leave nothing behind when it fails.
        remedy: What to do if a single item does not fit, for the error.

    Returns:
        The size at the end.

    Raises:
        MemoryLimitError: A single item does not fit.
    """
    at = 0
    while at < len(items):
        some = list(items[at : at + size])
        if fits(len(some), remedy, lambda some=some: work(some)):
            at += len(some)
        else:
            size = len(some) // 2
    return size


def fits(number: int, remedy: str, work: Callable[[], object]) -> bool:
    """Work on so many items together; False if memory runs out, for the caller to try fewer.

    Args:
        number: How many items; work on one is not tried again.
        remedy: What to do if a single item does not fit, for the error.
        work: Must leave nothing behind when it fails.

    Raises:
        MemoryLimitError: A single item does not fit.
    """
    with _out_of_memory() as failed:
        work()
    if not failed:
        return True
    if number == 1:
        raise MemoryLimitError(f"one item alone does not fit in memory ({failed[0]}); {remedy}")
    # After the exception is gone, so that the tensors its frames held are free.
    gc.collect()
    if (accelerator := torch.accelerator.current_accelerator(check_available=True)) is not None:
        torch.get_device_module(accelerator).empty_cache()
    return False


@contextmanager
def one_batch(remedy: str) -> Iterator[None]:
    """Names the settings that need less memory where work that cannot be cut runs out of it.

    Raises:
        MemoryLimitError: Memory ran out inside.
    """
    with _out_of_memory() as failed:
        yield
    if failed:
        raise MemoryLimitError(f"out of memory ({failed[0]}); {remedy}")


@contextmanager
def _out_of_memory() -> Iterator[list[str]]:
    """Collects the message if memory runs out inside; other errors pass."""
    messages: list[str] = []
    try:
        yield messages
    except MemoryLimitError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        messages.append((str(error).splitlines() or ["no memory is left"])[0])
    except RuntimeError as error:  # the host's allocator has no error class of its own
        if not re.search(r"can.t allocate memory|not enough memory|out of memory", str(error)):
            raise
        messages.append(str(error).splitlines()[0])
