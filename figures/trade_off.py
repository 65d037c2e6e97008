"""What an edit costs elsewhere against what it brings: locality against generality, portability
and understanding.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill

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
    held = {
        name: (one[COST], one[gain])
        for name, one in points.items()
        if np.isfinite([one[COST], one[gain]]).all()
    }
    if not held:
        raise InputError(
            f"no arm has both {COST} and {gain}; score some with `dmle compare` or `dmle evaluate`"
        )
    # A long name takes several lines: the legend stands beside the dots and must leave them room.
    told = map(style.visible, told_apart(list(held)))
    shown = {
        name: fill(one, NAME_WIDTH, break_long_words=False)
        for name, one in zip(held, told, strict=True)
    }
    lines = sum(name.count("\n") + 1 for name in shown.values())
    ax = (
        style.new_axes(style.DOUBLE_COLUMN * 0.75, 0.9 + max(2.4, 0.13 * lines))
        if ax is None
        else ax
    )
    best = front(held)
    along = sorted((held[name] for name in best), key=lambda point: point[0])
    ax.plot(*zip(*along, strict=True), color="0.6", linewidth=0.8, zorder=1)
    colours = sns.color_palette("colorblind")
    handles = []
    for number, (name, (x, y)) in enumerate(held.items(), start=1):
        colour = colours[0] if name in best else "0.45"
        ax.plot(x, y, "o", color=colour, markersize=3, zorder=2)
        ax.annotate(
            str(number),
            (x, y),
            (2, 2),
            textcoords="offset points",
            fontsize=style.SMALL,
            color=colour,
        )
        label = f"{number}  {shown[name]}"
        handles.append(
            Line2D([], [], linestyle="", marker="o", markersize=3, color=colour, label=label)
        )
    ax.set_xlabel(METRIC_NAMES[COST].replace("\n", " "))
    ax.set_ylabel(METRIC_NAMES[gain])
    ax.set_title(MODE_NAMES[mode], loc="left")
    legend = ax.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=0.8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    sns.despine(ax=ax)
    return ax


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
    """Names of the points that no other is at least as good as in both, and better in one.

    >>> sorted(front({"a": (0.9, 0.5), "b": (0.8, 0.7), "c": (0.8, 0.6)}))
    ['a', 'b']
    """
    return {
        name
        for name, (x, y) in points.items()
        if not any(u >= x and v >= y and (u > x or v > y) for u, v in points.values())
    }
