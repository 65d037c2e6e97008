"""Names that become parts of file names: what they may be made of. No torch."""

import unicodedata
from collections.abc import Iterable

MAX_NAME_BYTES = 150
NAME_RULE = (
    f"letters, digits and . - _ = + , @ ( ) and single spaces inside, at most {MAX_NAME_BYTES}"
    " bytes, and neither a dot first nor last"
)
"""The rule in words."""
_SIGNS = frozenset(".-_=+,@() ")
# What Windows takes for devices, whatever follows a dot.
_DEVICES = {
    "con",
    "prn",
    "aux",
    "nul",
    *(f"{kind}{n}" for kind in ("com", "lpt") for n in range(1, 10)),
}


def name_fault(name: str) -> str | None:
    """Why a name is not safe as a part of a file name on every system, or None.

    >>> name_fault("ridge=0.3 lookup=last"), name_fault("../../out")
    (None, "it has '/'")
    """
    if not name or name != name.strip() or "  " in name:
        return "it is empty, or has a space first, last or doubled"
    if odd := [char for char in name if not (char.isalnum() or char in _SIGNS)]:
        return f"it has {odd[0]!r}"
    if name.startswith(".") or name.endswith("."):
        return "it has a dot first or last"
    if len(name.encode()) > MAX_NAME_BYTES:
        return f"it has {len(name.encode())} bytes"
    if unicodedata.normalize("NFC", name) != name:
        return "its letters are not in composed form (NFC)"
    if name.partition(".")[0].casefold() in _DEVICES:
        return "Windows takes it for a device"
    return None


def safe_name(text: str) -> str:
    """A text with a plus for every character that `name_fault` would not have; not shortened.

    >>> safe_name("layers=3,4/12 targets=['q']")
    'layers=3,4+12 targets=++q++'
    """
    return "".join(char if char.isalnum() or char in _SIGNS else "+" for char in text)


def same_on_some_disks(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names that differ in upper and lower case only, so that some disks keep one file for
    both.
    """
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(name.casefold(), name)
        if other != name:
            return other, name
    return None
