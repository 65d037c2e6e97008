"""Each rule before and after its edit: what a mean over rules hides.

One dumbbell per rule: hollow before, full after, blue where the edit raised the score and orange
where it lowered it. Up to `MOST_NAMED` rules are named, in the order of the file; more are drawn
thin and unnamed, in the order of their change, and the tables name them. Locality has no "before":
it is agreement with the unedited model itself.
"""

from typing import Any

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.edit_scores import MODE_NAMES, SHARES, metrics_with_data, narrow_name
from interp.errors import InputError
from interp.results.scores import LOWER_IS_BETTER, WITHOUT_FLOOR, per_rule

MOST_NAMED = 60
"""Most rules whose names fit on a page."""
ROW_HEIGHT = 0.12
"""Height of a named rule's row, inches."""
THIN_ROW_HEIGHT = 0.012
"""Height of an unnamed rule's row, inches."""
MOST_THIN_HEIGHT = 6.0
"""Greatest height of all unnamed rows together, inches."""
BETTER, WORSE, SAME = "#0173b2", "#de8f05", "0.45"
UNCHANGED = 1e-9
"""Largest absolute change that counts as none."""
_KINDS = (("better", BETTER), ("worse", WORSE), ("same", SAME))


def draw_before_after(
    scores: xr.Dataset,
    editor: str,
    metric: str,
    mode: str = "token_accuracy",
    *,
    rules: list[str] | None = None,
    named: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw one metric of one editor, rule by rule, from before to after the edit.

    Args:
        scores: Edit scores, dims ``editor rule form metric mode phase``.
        editor: The editor, or named arm.
        metric: The metric.
        mode: Which way of scoring an answer to show.
        rules: The rules, from top to bottom; `rules_of` by default. One without a score has an
            empty row.
        named: Whether to name the rules, if they are few enough.
        ax: Axes to draw into; new ones, sized for the rules, by default.

    Raises:
        ValueError: The mode is unknown or has no scores, or the editor has none of the metric in
            it.
    """
    one = _scores_of(scores, editor, mode)
    if metric not in one["metric"].values or not bool(
        one.sel(metric=metric, phase="post").notnull().any()
    ):
        raise InputError(
            f"editor {editor!r} has no score of {metric!r} in mode {mode!r}; choose from"
            f" {metrics_with_data(one)}"
        )
    rules = rules_of(scores, editor, mode) if rules is None else rules
    one = one.sel(metric=metric, rule=rules)
    ax = style.new_axes(style.SINGLE_COLUMN, 0.9 + _rows_height(len(rules))) if ax is None else ax
    before, after = one.sel(phase="pre").values, one.sel(phase="post").values
    if metric in WITHOUT_FLOOR:
        before = np.full(len(rules), np.nan)
    kinds = changes(before, after, mode)
    for kind, colour in _KINDS:
        _draw_kind(ax, kind, colour, np.flatnonzero(kinds == kind), before, after)
    _name_rows(ax, rules, named=named)
    if mode in SHARES:
        ax.set_xlim(-0.04, 1.04)
        ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    ax.set_title(f"{narrow_name(metric)}\n{_mean(before, after)}", fontsize=style.SMALL)
    ax.grid(color="0.93", linewidth=0.4)
    ax.set_axisbelow(True)
    sns.despine(ax=ax, left=True)
    return ax


def _draw_kind(
    ax: Axes, kind: str, colour: str, rows: np.ndarray, before: np.ndarray, after: np.ndarray
) -> None:
    """Dumbbells of the rules in these rows; thin, without a dot before, if there are many rules."""
    few = len(after) <= MOST_NAMED
    dot: Any = {
        "color": colour,
        "linestyle": "none",
        "marker": "o",
        "markersize": 3 if few else 1.2,
    }
    ax.hlines(
        rows, before[rows], after[rows], colors=colour, linewidth=1.0 if few else 0.35, gid=kind
    )
    ax.plot(after[rows], rows, zorder=3, gid=f"after {kind}", **dot)
    if few:
        hollow: Any = {"markerfacecolor": "white", "markeredgewidth": 0.7, **dot}
        ax.plot(before[rows], rows, zorder=2, gid=f"before {kind}", **hollow)


def _name_rows(ax: Axes, rules: list[str], *, named: bool) -> None:
    """A row for each rule, with its name if the rules are few enough."""
    if len(rules) > MOST_NAMED:
        ax.set_yticks([])
    elif named:  # in a panel all axes share these
        names = [style.shorten(rule, 28) for rule in rules]
        ax.set_yticks(np.arange(len(rules)), names, parse_math=False)
    ax.tick_params(axis="y", length=0, labelsize=5.5, labelleft=named)
    ax.set_ylim(len(rules) - 0.4, -0.6)


@style.paper_style()
def before_after_panel(scores: xr.Dataset, editor: str, mode: str = "token_accuracy") -> Figure:
    """Draw every metric of one editor side by side, the rules in the same rows.

    Raises:
        ValueError: The mode is unknown or has no scores, or the editor has none in it.
    """
    metrics, rules = (
        metrics_with_data(_scores_of(scores, editor, mode)),
        rules_of(scores, editor, mode),
    )
    height = 1.35 + max(_rows_height(len(rules)), 0.5)
    fig = Figure(figsize=(style.DOUBLE_COLUMN, height), layout="constrained")
    axes = fig.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for ax, metric in zip(axes, metrics, strict=True):
        draw_before_after(scores, editor, metric, mode, rules=rules, named=ax is axes[0], ax=ax)
    if len(rules) > MOST_NAMED:
        axes[0].set_ylabel(f"{len(rules)} rules")
    fig.suptitle(
        f"{style.shorten(editor, 40)}, rule by rule",
        x=0.01,
        ha="left",
        parse_math=False,
        fontsize=7.5,
    )
    fig.supxlabel(MODE_NAMES.get(mode, mode), fontsize=7)
    handles = [
        *([] if len(rules) > MOST_NAMED else [_mark("0.3", "before the edit", hollow=True)]),
        _mark("0.3", "after the edit"),
        *(
            _mark(c, k)
            for (_, c), k in zip(_KINDS, ("better", "worse", "same, or no “before”"), strict=True)
        ),
    ]
    fig.legend(
        handles=handles,
        loc="outside upper right",
        ncols=len(handles),
        handletextpad=0.2,
        columnspacing=1.2,
    )
    return fig


def rules_of(scores: xr.Dataset, editor: str, mode: str) -> list[str]:
    """Rules that the editor has a score for, in the order of the file; more than `MOST_NAMED`:
    by their mean change.
    """
    one = _scores_of(scores, editor, mode)
    one = one.isel(rule=one.sel(phase="post").notnull().any("metric").values)
    names = [str(rule) for rule in one["rule"].values]
    if len(names) <= MOST_NAMED:
        return names
    with_floor = one.isel(metric=~np.isin(one["metric"].values, WITHOUT_FLOOR))
    change = (with_floor.sel(phase="post") - with_floor.sel(phase="pre")).mean(
        "metric", skipna=True
    )
    return [names[i] for i in np.argsort(-change.values, kind="stable")]


def changes(before: np.ndarray, after: np.ndarray, mode: str) -> np.ndarray:
    """What the edit did to each score: "better", "worse", "same" (also without a "before"), or ""
    without an "after".

    >>> before, after = np.array([0.1, 0.5, 0.5, np.nan]), np.array([0.2, 0.5, np.nan, 0.9])
    >>> changes(before, after, "exact").tolist()
    ['better', 'same', '', 'same']
    """
    gain = before - after if mode in LOWER_IS_BETTER else after - before
    kind = np.where(gain > UNCHANGED, "better", np.where(gain < -UNCHANGED, "worse", "same"))
    return np.where(np.isnan(after), "", kind)


def _scores_of(scores: xr.Dataset, editor: str, mode: str) -> xr.DataArray:
    """One editor's scores, dims metric phase rule."""
    rules = per_rule(scores, mode)
    if editor not in rules["editor"].values:
        raise InputError(
            f"editor {editor!r} has no scores in mode {mode!r}; choose from"
            f" {rules['editor'].values.tolist()}"
        )
    return rules.sel(editor=editor)


def _rows_height(n: int) -> float:
    return (
        ROW_HEIGHT * n if n <= MOST_NAMED else min(max(THIN_ROW_HEIGHT * n, 2.0), MOST_THIN_HEIGHT)
    )


def _mean(before: np.ndarray, after: np.ndarray) -> str:
    """Means before and after, over the rules that have a score after."""
    with_score = np.isfinite(after)
    mean = f"{after[with_score].mean():.2f}"
    if np.isfinite(before[with_score]).any():
        mean = f"{np.nanmean(before[with_score]):.2f} → {mean}"
    return f"mean {mean}".replace("-", "−")


def _mark(colour: str, label: str, *, hollow: bool = False) -> Line2D:
    face = "white" if hollow else colour
    return Line2D(
        [],
        [],
        marker="o",
        linestyle="none",
        color=colour,
        markerfacecolor=face,
        markersize=3.5,
        label=label,
    )
