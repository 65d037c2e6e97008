"""Tables of what an edit did: scores before and after, and raw answers."""

import numpy as np
import pandas as pd
import xarray as xr

from figures.edit_scores import MODE_NAMES, metrics_with_data
from interp.errors import InputError
from interp.results.scores import WITHOUT_FLOOR, per_rule
from interp.results.tables import (
    MISSING,
    SHORT_METRIC_NAMES,
    Table,
    escape_markdown,
    latex,
    markdown,
)


def score_table(
    scores: xr.Dataset, mode: str = "token_accuracy", *, each_rule: bool = True
) -> Table:
    """Tables of the scores before → after, per rule (unless `each_rule` is false) and mean over
    rules.

    Raises:
        ValueError: The mode is unknown or has no scores.
    """
    rules = per_rule(scores, mode)
    metrics = metrics_with_data(rules)
    groups = [
        _rows_of(rules.sel(editor=editor), metrics, each_rule) for editor in rules["editor"].values
    ]
    heads = ["Editor", "Rule", *(SHORT_METRIC_NAMES.get(m, m) for m in metrics)]
    flat = [
        [escape_markdown(e), escape_markdown(r), *cells]
        for group in groups
        for e, r, *cells in group
    ]
    note = f"{MODE_NAMES.get(mode, mode)}; before → after, mean over forms; {MISSING}: no items."
    return Table(f"{markdown(heads, flat)}\n{note[0].upper()}{note[1:]}\n", latex(heads, groups))


def before_after_table(answers: pd.DataFrame, *, rows: int | None = None) -> str:
    """Markdown table of what the model said before and after each edit.

    Args:
        answers: Columns editor, rule, form, metric, prompt, target_new, target_true, before, after.
        rows: Show at most so many rows (and say how many there are); all by default.

    Raises:
        ValueError: A column is missing.
    """
    heads = {
        "editor": "Editor",
        "rule": "Rule",
        "form": "Form",
        "metric": "Metric",
        "prompt": "Prompt",
        "target_true": "True answer",
        "target_new": "Wanted answer",
        "before": "Before",
        "after": "After",
    }
    if missing := set(heads) - set(answers.columns):
        raise InputError(
            f"the answers lack the columns {sorted(missing)}; write them with `dmle evaluate`"
        )
    shown = answers[list(heads)].head(len(answers) if rows is None else rows)
    body = [[escape_markdown(str(cell)) for cell in row] for row in shown.itertuples(index=False)]
    table = markdown(list(heads.values()), body)
    return (
        table
        if len(shown) == len(answers)
        else f"{table}\n{len(shown)} of {len(answers)} answers shown.\n"
    )


def _rows_of(rules: xr.DataArray, metrics: list[str], each_rule: bool) -> list[list[str]]:
    """Rows of one editor: its rules that have scores, then their mean."""
    editor = str(rules["editor"].item())
    scored = rules.isel(rule=rules.sel(phase="post").notnull().any("metric").values)
    rows = []
    for rule in scored["rule"].values if each_rule else ():
        rows.append(
            [editor, str(rule), *(_cell(scored.sel(rule=rule, metric=m), m) for m in metrics)]
        )
    mean = scored.mean("rule", skipna=True)
    return [
        *rows,
        [
            editor,
            f"mean of {scored.sizes['rule']}",
            *(_cell(mean.sel(metric=m), m) for m in metrics),
        ],
    ]


def _cell(value: xr.DataArray, metric: str) -> str:
    before, after = (float(value.sel(phase=phase)) for phase in ("pre", "post"))
    if not np.isfinite(after):
        return MISSING
    return (
        f"{after:.2f}"
        if metric in WITHOUT_FLOOR or not np.isfinite(before)
        else f"{before:.2f} → {after:.2f}"
    )
