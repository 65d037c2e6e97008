"""What an edit costs elsewhere against what it brings: locality against generality, portability
and understanding.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from figures import style
from figures.edit_scores import METRIC_NAMES, MODE_NAMES
from interp.errors import InputError
from interp.results.scores import per_rule

GAINS = ("generality", "instance_portability", "rule_understanding_paraphrase")
"""Metrics on the vertical axis, all of prompts that were not edited."""
COST = "locality"
NAME_WIDTH = 30
"""Characters of a line of the legend."""


def points_of(scores: xr.Dataset, mode: str = "token_accuracy") -> dict[str, dict[str, float]]:
    """Each editor's mean over rules of locality and of the gains, after the edit."""
    means = per_rule(scores, mode).sel(phase="post").mean("rule", skipna=True)
    means = means.reindex(metric=[COST, *GAINS])  # a metric that was not scored is NaN
    return {
        str(editor): {
            metric: float(means.sel(editor=editor, metric=metric)) for metric in (COST, *GAINS)
        }
        for editor in means["editor"].values
    }


def draw_trade_off(
    points: Mapping[str, Mapping[str, float]],
    gain: str,
    mode: str = "token_accuracy",
    ax: Axes | None = None,
) -> Axes:
    """One numbered dot for each arm; up and to the right is better, and arms that no other beats in
    both are joined.

    Args:
        points: Arm → metric → score, as of `points_of`; arms without one of the two scores are left
            out.
        gain: Metric on the vertical axis.
        mode: Scoring mode, for the labels.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: No arm has both scores.
    """
    both = {
        name: (arm[COST], arm[gain])
        for name, arm in points.items()
        if np.isfinite([arm[COST], arm[gain]]).all()
    }
    if not both:
        raise InputError(
            f"no arm has both {COST} and {gain}; score some with `dmle compare` or `dmle evaluate`"
        )
    # A long name takes several lines: the legend stands beside the dots and must leave them room.
    shown = [
        fill(style.visible(name), NAME_WIDTH, break_long_words=False)
        for name in told_apart(list(both))
    ]
    lines = sum(name.count("\n") + 1 for name in shown)
    if ax is None:
        ax = style.new_axes(style.DOUBLE_COLUMN * 0.75, 0.9 + max(2.4, 0.13 * lines))
    _draw_points(ax, both, shown)
    ax.set_xlabel(METRIC_NAMES[COST].replace("\n", " "))
    ax.set_ylabel(METRIC_NAMES[gain])
    ax.set_title(MODE_NAMES[mode], loc="left")
    sns.despine(ax=ax)
    return ax


def _draw_points(
    ax: Axes, points: Mapping[str, tuple[float, float]], labels: Sequence[str]
) -> None:
    """The numbered dots, the line through those that no other beats, and the legend."""
    best = front(points)
    along = sorted((points[name] for name in best), key=lambda point: point[0])
    ax.plot(*zip(*along, strict=True), color="0.6", linewidth=0.8, zorder=1)
    colours = sns.color_palette("colorblind")
    handles = []
    for number, (name, label) in enumerate(zip(points, labels, strict=True), start=1):
        colour = colours[0] if name in best else "0.45"
        dot: Any = {"marker": "o", "markersize": 3, "color": colour}
        ax.plot(*points[name], linestyle="none", zorder=2, **dot)
        ax.annotate(
            str(number),
            points[name],
            (2, 2),
            textcoords="offset points",
            fontsize=style.SMALL,
            color=colour,
        )
        handles.append(Line2D([], [], linestyle="", label=f"{number}  {label}", **dot))
    legend = ax.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=0.8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def told_apart(names: Sequence[str]) -> list[str]:
    """Names of settings such as `layers=4-8 ridge=1` without what is the same in all of them.

    >>> told_apart(["ridge=1 rounds=2", "ridge=3 rounds=2"])
    ['ridge=1', 'ridge=3']
    >>> told_apart(["dmle", "memit"]), told_apart(["ridge=1"])
    (['dmle', 'memit'], ['ridge=1'])
    """
    same = (
        set.intersection(*(set(name.split(" ")) for name in names))
        if len(set(names)) > 1
        else set()
    )
    return [
        " ".join(word for word in name.split(" ") if word not in same) or name for name in names
    ]


def front(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Names of the points that no other is at least as good as in both, and better in arm.

    >>> sorted(front({"a": (0.9, 0.5), "b": (0.8, 0.7), "c": (0.8, 0.6)}))
    ['a', 'b']
    """
    return {
        name
        for name, (x, y) in points.items()
        if not any(u >= x and v >= y and (u > x or v > y) for u, v in points.values())
    }
