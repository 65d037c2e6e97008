"""What the layers of each strategy cost: regret against the best window of a sweep.

Regret of a strategy is the oracle's score − the score at the strategy's layers (`figures.oracle`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes

from figures import style
from interp.errors import InputError
from interp.results.scores import REGRET_NUMBERS

REGRET_COLUMNS = ("strategy", "group", "layers", *REGRET_NUMBERS)
ROW_HEIGHT = 0.16
"""Height of a strategy's row, inches."""
MARKERS = "os^D"


def draw_regret(regret: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw the regret of each strategy with its interval, a colour and marker for each group; left
    is better.

    Args:
        regret: Columns of `REGRET_COLUMNS`; strategies are drawn in the order of their mean regret.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: A column is missing, or there is no row.
    """
    if missing := set(REGRET_COLUMNS) - set(regret.columns):
        raise InputError(
            f"the regrets lack the columns {sorted(missing)}; write them anew with `dmle regret`"
        )
    # Layers that no edit was made at have no regret; the table names them.
    scored = regret.dropna(subset=["regret"])
    if scored.empty:
        raise InputError(
            "there is no strategy to compare; run `dmle sweep` and `dmle regret` first"
        )
    rows: list[dict[str, Any]] = [
        {str(k): v for k, v in row.items()} for row in scored.to_dict("records")
    ]
    order = _order(rows)
    groups = list(dict.fromkeys(str(row["group"]) for row in rows))
    if ax is None:
        height = 0.9 + ROW_HEIGHT * len(groups) * max(len(order), 3)
        ax = style.new_axes(style.SINGLE_COLUMN, height)
    offsets = np.linspace(-0.22, 0.22, len(groups)) if len(groups) > 1 else np.zeros(1)
    colours = sns.color_palette("colorblind")
    for number, (group, offset) in enumerate(zip(groups, offsets, strict=True)):
        own = [row for row in rows if row["group"] == group]
        heights = [order.index(str(row["strategy"])) + offset for row in own]
        colour = colours[number % len(colours)]
        _draw_intervals(ax, own, heights, colour)
        ax.plot(
            [row["regret"] for row in own],
            heights,
            MARKERS[number % len(MARKERS)],
            color=colour,
            markersize=4,
            label=style.visible(group.replace("+", " + ")),
            gid="regret",
        )
    _name_axes(ax, order)
    style.caption(ax, _regret_note(rows))
    return ax


def _order(rows: list[dict[str, Any]]) -> list[str]:
    """The strategies by their mean regret, the least first."""
    regrets: dict[str, list[float]] = {}
    for row in rows:
        regrets.setdefault(str(row["strategy"]), []).append(row["regret"])
    return sorted(regrets, key=lambda strategy: np.mean(regrets[strategy]))


def _draw_intervals(
    ax: Axes, rows: list[dict[str, Any]], heights: Sequence[float], colour: Any
) -> None:
    """The interval of each row that has one, and its layers and rank beside the axes."""
    for height, row in zip(heights, rows, strict=True):
        if np.isfinite([row["lower"], row["upper"]]).all():
            look: Any = {"colors": [colour], "linewidth": 1.4, "alpha": 0.45}
            ax.hlines(height, row["lower"], row["upper"], gid="interval", **look)
        ax.annotate(
            _place(row),
            (1.01, height),
            xycoords=("axes fraction", "data"),
            fontsize=5.5,
            va="center",
            color="0.25",
        )


def _name_axes(ax: Axes, strategies: list[str]) -> None:
    """A row for each strategy, the legend above, and no regret as a line."""
    ax.axvline(0, color="0.6", linewidth=0.6, zorder=0)
    ax.set_yticks(range(len(strategies)), [style.shorten(name, 24) for name in strategies])
    ax.set_ylim(len(strategies) - 0.5, -0.5)
    for border in np.arange(0.5, len(strategies) - 1):
        ax.axhline(border, color="0.9", linewidth=0.6, zorder=0)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.92", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.set_xlabel("regret (oracle − strategy)")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, handletextpad=0.2)
    sns.despine(ax=ax, left=True)


def _place(row: dict[str, Any]) -> str:
    """A strategy's layers and rank; a choice rule by rule has no layers of its own."""
    layers = row["layers"] if isinstance(row["layers"], str) and row["layers"] else "by rule"
    return f"{layers}, rank {int(row['rank'])}" if np.isfinite(row["rank"]) else layers


def _regret_note(rows: list[dict[str, Any]]) -> str:
    counts = sorted({int(row["n_rules"]) for row in rows})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    rules = f"n = {n} rule{'s' if counts != [1] else ''}."
    with_interval = any(np.isfinite(row["lower"]) for row in rows)
    bars = "Bars: bootstrap interval over rules." if with_interval else "One rule, so no interval."
    windows = max(int(row["n_windows"]) for row in rows)
    return (
        f"{rules} {bars} Right: layers, and their rank among {windows} windows (1: none is better)."
    )
