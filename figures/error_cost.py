"""The error of tracing against its cost, for every method of `python -m tests.benchmarks curve`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from interp.errors import InputError

COMPONENTS = ("resid", "mlp", "attn")
LOOKS: dict[str, dict[str, Any]] = {
    "attribution": {"marker": "^", "color": 0, "linestyle": "-"},
    "screen": {"marker": "s", "color": 1, "linestyle": "-"},
    "exact": {"marker": "o", "color": 2, "linestyle": "-"},
    "bfloat16": {"marker": "D", "color": 3},
    "bfloat16 mean difference": {"marker": "<", "color": 3},
    "bfloat16 regressed difference": {"marker": ">", "color": 3},
    "singles": {"marker": "v", "color": 4},
    "singles regressed difference": {"marker": "X", "color": 4},
}
"""By series: a line with a point for each number of steps or samples, or a single point. Colours
are numbers of the palette."""
AIMS = {"resid": 0.08, "mlp": 0.08, "attn": 0.15}
"""Share of a map's effects that may be wrong."""
MAP_COST, PROFILE_COST = 1 / 10, 1 / 12
"""Of the loop, at which the aims are to be reached."""
OUTSIDE = 0.05
"""Share of a profile's layers that may be outside the interval."""
HEIGHT = 2.0
"""Of a row of panels, inches."""


@style.paper_style()
def error_cost_panel(rows: pd.DataFrame) -> Figure:
    """Draw the mean over prompts of each method: for each model a row of maps and one of profiles,
    a panel for each component.

    Args:
        rows: Columns of `tests.benchmarks.curve.COLUMNS`.

    Raises:
        InputError: There is no row.
    """
    if rows.empty:
        raise InputError("there is no row to draw; run python -m tests.benchmarks curve first")
    models = list(dict.fromkeys(rows["model"]))
    size = (style.DOUBLE_COLUMN, 0.5 + 2 * HEIGHT * len(models))
    fig = Figure(figsize=size, layout="constrained")
    axes = fig.subplots(2 * len(models), len(COMPONENTS), squeeze=False, sharex=True)
    for i, model in enumerate(models):
        own = rows[rows["model"] == model]
        for j, component in enumerate(COMPONENTS):
            of_map, of_profile = axes[2 * i, j], axes[2 * i + 1, j]
            _draw(of_map, own, own[f"map_{component}"])
            _lines(of_map, MAP_COST, AIMS[component], own[f"noise_{component}"].mean())
            _draw(of_profile, own, 1 - own[f"within_{component}"])
            _lines(of_profile, PROFILE_COST, OUTSIDE)
            where = f"{style.visible(str(model))}: " if len(models) > 1 else ""
            of_map.set_title(where + style.component_name(component, None), loc="left")
        axes[2 * i, 0].set_ylabel("map: share wrong")
        axes[2 * i + 1, 0].set_ylabel("profile: layers outside")
    for ax in axes[-1]:
        ax.set_xlabel("cost / one pass per site")
    handles = {str(line.get_label()): line for line in axes[0, 0].get_lines()}
    shown = [handle for name, handle in handles.items() if not name.startswith("_")]
    fig.legend(handles=shown, loc="outside upper left", ncols=4)
    prompts = rows[["model", "rule", "form"]].drop_duplicates().groupby("model").size()
    numbers = " and ".join(str(prompts[model]) for model in models)
    style.figure_caption(
        fig,
        f"Means over prompts (number: {numbers}). Dotted: aims of error and cost. Grey: what"
        " the noise samples of the exact map leave open. Below: layers of the profile at the lookup"
        " tokens outside the exact one's 95 % interval.",
    )
    return fig


def save_error_cost(rows: pd.DataFrame, path: Path) -> None:
    """Draw the rows into a PNG or PDF, as the file's name says."""
    style.save_as(error_cost_panel(rows), path)


def mean_points(rows: pd.DataFrame, error: pd.Series) -> pd.DataFrame:
    """Columns ``series``, ``cost`` and ``error``: means over prompts, a row for each method, by
    cost.
    """
    points = rows[["method", "cost"]].assign(error=error)
    means = points.groupby("method", as_index=False, sort=False).mean()
    series = means["method"].str.replace(r" \d+(%| steps| samples)", "", regex=True)
    return means.assign(series=series).sort_values("cost", ignore_index=True)


def _draw(ax: Axes, rows: pd.DataFrame, error: pd.Series) -> None:
    points = mean_points(rows, error)
    palette = sns.color_palette("colorblind")
    for name, look in LOOKS.items():
        own = points[points["series"] == name]
        if len(own):
            shape: dict[str, Any] = {"linestyle": "none", **look, "label": name}
            shape["color"] = palette[look["color"]]
            ax.plot(own["cost"], own["error"], markersize=3.5, linewidth=0.8, **shape)
    ax.set_xscale("log")
    ax.set_ylim(bottom=-0.01)
    sns.despine(ax=ax)


def _lines(ax: Axes, cost: float, error: float, noise: float = np.nan) -> None:
    """The aims, and what noise samples leave open."""
    ax.axvline(cost, color="0.3", linewidth=0.6, linestyle=":", label="_aim")
    ax.axhline(error, color="0.3", linewidth=0.6, linestyle=":", label="_aim")
    if np.isfinite(noise):
        ax.axhline(noise, color="0.6", linewidth=0.8, zorder=0, label="_noise")
