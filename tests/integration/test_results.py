"""Numbers of the results pages and of the README: each is that of a committed file.

A table behind `<!-- data: FILE.csv MODE -->` is compared cell by cell; paths are from
docs/data/results. Without a mode the heads are the columns of the file, and the cells are those of
one of its rows.

With a mode it is a table of arms.
Its rows are arms and its columns metrics by their short names; columns that the file does not have
(costs, remarks) are left out. A cell is a mean, its interval in brackets, and the difference from
the reference in parentheses. In rows named *difference*, and in tables of differences, it is the
difference alone.
"""

import itertools
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import pytest

from interp.results.tables import SHORT_METRIC_NAMES

ROOT = Path(__file__).parents[2]
DATA = ROOT / "docs" / "data" / "results"
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "results.md",
    *sorted((ROOT / "docs" / "results").glob("*.md")),
]
MARK = re.compile(r"<!-- data: (?P<files>[\w./-]+\.csv(?:, [\w./-]+\.csv)*)(?: (?P<mode>\w+))? -->")
NUMBER = r"[+−]?\d+(?:\.\d+)?"
INTERVAL = rf"(?: \[({NUMBER}), ({NUMBER})\])?"
NUMERIC = re.compile(rf"(?:× )?{NUMBER}")
CELL = re.compile(rf"({NUMBER}){INTERVAL}(?: \(({NUMBER}){INTERVAL}\))?(?:, (\d+)/(\d+)/(\d+))?")
METRICS = {short: metric for metric, short in SHORT_METRIC_NAMES.items()}
OWN = ("mean", "lower", "upper", "difference", "difference_lower", "difference_upper")
COUNTS = ("wins", "ties", "losses")


@dataclass(frozen=True)
class Said:
    """One number of a table: where it stands, and what of which row of the data it is."""

    place: str
    files: tuple[str, ...]
    mode: str
    arm: str
    metric: str
    value: str
    text: str


def tables(page: Path) -> Iterator[tuple[re.Match[str], list[list[str]]]]:
    """The marked tables of a page, as rows of cells with the head."""
    text = page.read_text(encoding="utf-8")
    for mark in MARK.finditer(text):
        lines = text[mark.end() :].lstrip("\n").split("\n")
        rows = []
        for line in lines:
            if not line.startswith("|"):
                break
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        yield mark, [rows[0], *rows[2:]]


def arm_of(cell: str) -> str:
    """The arm that a first cell names: without emphasis and without a remark in parentheses."""
    return re.sub(r" \(.*\)$", "", re.sub(r"[*`]", "", cell))


def said(page: Path) -> Iterator[Said]:
    """The numbers of a page's marked tables."""
    for mark, (head, *rows) in tables(page):
        files = tuple(mark["files"].split(", "))
        if mark["mode"] is None:
            continue
        for row in rows:
            arm = arm_of(row[0])
            for name, cell in zip(head[1:], row[1:], strict=True):
                if name in METRICS and cell not in ("–", ""):
                    of_difference = " − " in head[0] or arm == "difference"
                    for value, text in parts(cell, of_difference):
                        place = f"{page.name}, {head[0]}/{row[0]}/{name}"
                        yield Said(place, files, mark["mode"], arm, METRICS[name], value, text)


def parts(cell: str, of_difference: bool) -> Iterator[tuple[str, str]]:
    """The numbers of a cell, each with its column in the data."""
    found = CELL.fullmatch(cell.replace("**", ""))
    assert found is not None, f"cell {cell!r} cannot be read"
    names = (*OWN[3:], "", "", "", *COUNTS) if of_difference else (*OWN, *COUNTS)
    for name, text in zip(names, found.groups(), strict=True):
        if text is not None:
            yield name, text


@cache
def known(files: tuple[str, ...]) -> pd.DataFrame:
    return pd.concat(
        [pd.read_csv(DATA / name, dtype={"arm": str, "layers": str}) for name in files]
    )


def wrong(number: Said, data: pd.DataFrame) -> str | None:
    """What is wrong with a number, if anything."""
    rows = data[(data["mode"] == number.mode) & (data["metric"] == number.metric)]
    if number.arm == "difference":
        rows = rows[rows["difference"].notna()].tail(1)
    else:
        rows = rows[rows["arm"] == number.arm].tail(1)
    if rows.empty or pd.isna(value := rows[number.value].iloc[0]):
        return f"{number.place}: no {number.value} in {number.files}"
    if not is_rounded(number.text, value):
        return f"{number.place}: {number.text}, and {value} in {number.files}"
    return None


def plain_faults(page: Path) -> Iterator[str]:
    """What is wrong in tables whose heads are columns."""
    for mark, (head, *rows) in tables(page):
        if mark["mode"] is not None:
            continue
        data = known(tuple(mark["files"].split(", "))).astype(str)
        columns = [name if name in data else arm_of(name) for name in head]
        for row in rows:
            found = data
            for name, cell in zip(columns, row, strict=True):
                if NUMERIC.fullmatch(cell):
                    found = found[[is_rounded(cell, float(each)) for each in found[name]]]
                elif cell != "–":
                    found = found[found[name] == arm_of(cell)]
                if found.empty:
                    yield f"{page.name}: {row}: {name} is not {cell}"
                    break
            if len(found) > 1:
                yield f"{page.name}: {len(found)} rows for {row}"


def is_rounded(text: str, value: float) -> bool:
    """Whether a text is a number's rounded value: half a unit of its last digit, and what rounding
    the data to four digits adds.
    """
    text = text.replace("× ", "").replace("−", "-").lstrip("+")
    digits = len(text.partition(".")[2])
    return abs(float(text) - value) <= 0.5 * 10**-digits + 5.1e-5


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_numbers_of_marked_tables_are_those_of_the_data(page: Path) -> None:
    numbers = list(said(page))
    faults = [fault for number in numbers if (fault := wrong(number, known(number.files)))]
    faults += plain_faults(page)
    assert not faults, "\n".join(faults)


def test_tables_of_arms_are_marked() -> None:
    unmarked = []
    for page in PAGES:
        lines = page.read_text(encoding="utf-8").split("\n")
        for before, line in itertools.pairwise(lines):
            if line.startswith("| Arm") and not MARK.fullmatch(before):
                unmarked.append(f"{page.name}: {line}")
    assert not unmarked, unmarked
    assert sum(len(list(said(page))) for page in PAGES) > 500


def test_a_changed_digit_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "results" / "separate-layers.md"
    text = page.read_text(encoding="utf-8")
    changed = tmp_path / "page.md"
    first = next(number.text for number in said(page) if number.value == "difference_lower")
    changed.write_text(text.replace(first, first[:-1] + str((int(first[-1]) + 1) % 10)))
    assert any(wrong(number, known(number.files)) for number in said(changed))


def test_the_figure_of_all_families_is_drawn_from_the_data(tmp_path: Path) -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "frontier.py"))
    axes = drawn["frontier"]().axes
    assert [ax.get_title("left") for ax in axes] == list(drawn["PANELS"])
    for ax, arms in zip(axes, drawn["PANELS"].values(), strict=True):
        labels = [text.get_text().partition("  ")[2] for text in ax.get_legend().get_texts()]
        assert [" ".join(label.split()) for label in labels] == [label for *_, label in arms]
