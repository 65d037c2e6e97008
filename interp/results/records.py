"""Tables of results as the programs read them back: JSON with a checksum, a list of values for each
row.

What people read (CSV, Markdown) is written beside and never read back: there a number is rounded or
a text escaped for its place, and a damaged cell shows by nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from interp.results.checksums import damaged, read_json, write_json

SCHEMA = "dmle.records/1"
Value = str | int | float | bool | None


def save_records(path: Path, columns: Sequence[str], rows: Iterable[Mapping[Any, Any]]) -> None:
    """Write rows, atomically.

    Args:
        path: The file.
        columns: Their order; other keys of the rows are left out.
        rows: Texts, numbers, yes or no; what a row lacks is None.
    """
    table = [[_plain(row.get(name)) for name in columns] for row in rows]
    write_json(path, {"schema": SCHEMA, "columns": list(columns), "rows": table})


def load_records(
    path: Path,
    what: str,
    columns: Sequence[str] = (),
    numbers: Sequence[str] = (),
    mend: str | None = None,
) -> list[dict[str, Value]]:
    """The rows that `save_records` wrote.

    Args:
        path: The file.
        what: What it should be, for the error.
        columns: Columns that it must have.
        numbers: Columns that hold numbers, None or an empty text alone, where they are.
        mend: What to do if it is damaged; by default what `interp.results.checksums.remedy` says.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It does not hold what was written, or lacks a column.
    """
    content = read_json(path, what, schema=SCHEMA, mend=mend)
    names, rows = content.get("columns"), content.get("rows")
    if not _is_list_of(names, str) or not isinstance(rows, list):
        raise damaged(path, what, "it has no columns and rows", mend)
    if missing := sorted(set(columns) - set(names)):
        raise damaged(path, what, f"it lacks the columns {missing}", mend)
    for row in rows:
        if fault := _fault(row, names, numbers):
            raise damaged(path, what, fault, mend)
    return [dict(zip(names, row, strict=True)) for row in rows]


def _fault(row: Any, names: Sequence[str], numbers: Sequence[str]) -> str:
    """What is wrong with a row; "" if nothing is."""
    if not isinstance(row, list) or len(row) != len(names):
        return "its rows and columns do not fit together"
    if not _is_list_of(row, str | int | float | None):
        return "a row holds something else than texts and numbers"
    named = dict(zip(names, row, strict=True))
    if any(isinstance(named.get(name) or 0, str) for name in numbers):
        return "a row holds a text where a number should be"
    return ""


def _is_list_of(values: Any, kind: Any) -> TypeGuard[list[Any]]:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _plain(value: Any) -> Value:
    """A number of numpy's as Python's."""
    return value.item() if hasattr(value, "item") else value
