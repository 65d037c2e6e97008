"""Sizes of memory in words. No torch."""

import re

from interp.errors import DmleError

UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def parse_size(text: str) -> int:
    """Bytes of a size in words; a decimal unit is taken for the binary one.

    Raises:
        DmleError: It is not a positive size.

    >>> parse_size("4GiB"), parse_size("512 MB"), parse_size("1.5k")
    (4294967296, 536870912, 1536)
    """
    found = re.fullmatch(
        r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE
    )
    size = int(float(found[1]) * UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise DmleError(f"memory {text[:80]!r}: a size such as 4GiB or 512MiB is needed")
    return size
