"""The files of a comparison: scores, answers, tables, and what the published driver writes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from editing.evaluation.evaluate import columns_of
from editing.evaluation.reference_format import case_average, metrics_of, rule_average
from editing.studies.comparison import Comparison, answers_of, side_effect_rows
from interp.results import effects
from interp.results.files import write_text
from interp.results.paths import inside
from interp.results.records import save_records
from interp.results.tables import Table, csv_text


def write_comparison(comparison: Comparison, folder: Path) -> dict[str, dict[str, Table]]:
    """Write a comparison into a run folder, in place of another one.

    ``scores.nc``, ``answers.json`` and ``answers.csv``, ``cells.csv`` and
    ``tables/side-effects.csv``, ``tables/comparison-*`` and ``tables/pairs-*``, their numbers in
    ``tables/comparison.csv``, and ``published/``.

    Returns:
        The tables (`Comparison.tables`).
    """
    effects.save(comparison.scores, folder / "scores.nc")
    write_answers(folder, answers := comparison.answers, ("seed", *columns_of(answers)))
    _write_cells(comparison, folder)
    tables = comparison.tables()
    _write_tables(tables, folder / "tables")
    text = csv_text(pd.DataFrame(comparison.numbers()), index=False, float_format="%.4f")
    write_text(folder / "tables" / "comparison.csv", text)
    _write_published(comparison, folder)
    return tables


def write_answers(folder: Path, answers: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write raw answers: JSON for programs, CSV for people."""
    save_records(folder / "answers.json", columns, answers)
    table = pd.DataFrame(answers, columns=list(columns))
    write_text(folder / "answers.csv", csv_text(table, index=False, quote_text=True))


def _write_cells(comparison: Comparison, folder: Path) -> None:
    table = pd.DataFrame(side_effect_rows(comparison.cells))
    write_text(folder / "cells.csv", csv_text(table, index=False))
    means = (
        table.drop(columns=["rule", "seed", "layers", "error"]).groupby("arm", sort=False).mean()
    )
    text = csv_text(pd.DataFrame(means), float_format="%.3f")
    write_text(folder / "tables" / "side-effects.csv", text)


def _write_tables(tables: dict[str, dict[str, Table]], folder: Path) -> None:
    # Of other modes and arms.
    for path in (*folder.glob("comparison-*.*"), *folder.glob("pairs-*.*")):
        path.unlink()
    for mode, of_mode in tables.items():
        for kind, table in of_mode.items():
            write_text(folder / f"{kind}-{mode}.md", table.markdown)
            write_text(folder / f"{kind}-{mode}.tex", table.latex)


def _write_published(comparison: Comparison, folder: Path) -> None:
    """Files and averages as the published driver and its `cal_avg.py` have them, for the first
    seed.
    """
    for path in (folder / "published").glob("*/metrics_rule_*.json"):
        path.unlink()
    rows, answers = [], comparison.answers
    for arm in comparison.arms:
        records = []
        for rule in comparison.rules:
            if not (own := answers_of(answers, arm, rule.id, comparison.config.seeds[0])):
                continue
            records.append(metrics_of(rule, own, only_published=True))
            name = f"metrics_rule_{rule.id.removeprefix('ruleedit-')}.json"
            path = inside(folder / "published", arm, name)
            write_text(path, json.dumps(records[-1], indent=1, ensure_ascii=False))
        for how, average in (("cal_avg", case_average), ("driver", rule_average)):
            rows += [
                {"arm": arm, "average": how, "phase": phase, **values}
                for phase, values in average(records).items()
            ]
    text = csv_text(pd.DataFrame(rows).round(4), index=False)
    write_text(folder / "tables" / "published-averages.csv", text)
