"""Many edits in one model: what is kept, what is lost, and what happens elsewhere on the way."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from figures.edit_scores import METRIC_NAMES, MODE_NAMES, SHARES
from interp.errors import InputError
from interp.results.sequences import LAST, RECENT, sequence_means

PANEL_NAMES = {
    **METRIC_NAMES,
    "reliability": "reliability\n(all rules so far)",
    RECENT: f"reliability\n(the last {LAST})",
    "perplexity_ratio": "perplexity of plain text\n(relative to unedited)",
    "side_agreement": "rules not edited\n(answers unchanged)",
    "side_accuracy_after": "rules not edited\n(true answers)",
}
"""What is drawn, where it was measured."""
COLUMNS = 3
PANEL_HEIGHT = 1.55
"""Height of a row of panels, inches."""
LOOKS: Mapping[str, dict[str, Any]] = {
    "sequence": {"marker": "o", "markersize": 3},
    "batch": {"marker": "X", "markersize": 5, "linestyle": ""},
}
Row = Mapping[str, Any]
WIDE = 10
"""A sequence with so many times more rules at the end than at the beginning has a logarithmic
axis."""
HIGH = 3.0
"""Above this ratio of perplexities their axis is logarithmic."""


def sequence_panel(data: xr.Dataset, mode: str = "token_accuracy") -> Figure:
    """One small panel for each metric: a line for each arm over the number of rules edited, and a
    cross for all rules in one batch.

    Args:
        data: Content of `sequence.nc`.
        mode: Scoring mode of what is asked of rules.

    Raises:
        InputError: Nothing was scored, or there is no such mode.
    """
    if mode not in data["mode"].values:
        raise InputError(
            f"the scores have no mode {mode!r}; choose from {list(data['mode'].values)}"
        )
    means = sequence_means(data, mode)
    names = [name for name in PANEL_NAMES if _finite(means, name)]
    if not names:
        raise InputError("nothing was scored; see the errors that `dmle sequence` names")
    rows = -(-len(names) // COLUMNS)
    figure = Figure(figsize=(style.DOUBLE_COLUMN, 0.75 + PANEL_HEIGHT * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flat
    palette = cycle(sns.color_palette("colorblind"))
    colours = {str(arm): next(palette) for arm in data["arm"].values}
    for ax, name in zip(axes, names, strict=False):
        _draw_metric(ax, means, name, colours)
        if name != "perplexity_ratio" and (mode in SHARES or name.startswith("side")):
            ax.set_ylim(-0.03, 1.03)
    for ax in list(axes)[len(names) :]:
        ax.set_axis_off()
    handles = [
        Line2D([], [], color=colour, label=style.visible(arm), **LOOKS["sequence"])
        for arm, colour in colours.items()
    ]
    legend = figure.legend(handles=handles, loc="outside upper left", ncols=5)
    for text in legend.get_texts():
        text.set_parse_math(False)
    style.figure_caption(figure, _note(data, means, mode))
    return figure


def _finite(means: Sequence[Row], name: str) -> list[Row]:
    """The rows in which something is a number."""
    return [row for row in means if np.isfinite(row.get(name, np.nan))]


def _draw_metric(ax: Axes, means: Sequence[Row], name: str, colours: Mapping[str, Any]) -> None:
    """The lines and crosses of one metric."""
    rows = _finite(means, name)
    for arm, colour in colours.items():
        for order, look in LOOKS.items():
            own = [row for row in rows if (row["arm"], row["order"]) == (arm, order)]
            ax.plot(
                [row["edits"] for row in own],
                [row[name] for row in own],
                color=colour,
                gid=f"{order}: {name}",
                **look,
            )
    ax.set_title(PANEL_NAMES[name], loc="left")
    _draw_axes(ax, sorted({row["edits"] for row in means}))
    if name == "perplexity_ratio":
        ax.axhline(1, color="0.6", linewidth=0.6, zorder=0)
        if max(row[name] for row in rows) > HIGH:
            ax.set_yscale("log")
    if name == "side_accuracy_after":
        ax.axhline(rows[0]["side_accuracy_before"], color="0.6", linestyle=":", zorder=0)


def _draw_axes(ax: Axes, edits: Sequence[int]) -> None:
    if edits[-1] >= WIDE * edits[0]:
        ax.set_xscale("log")
    ax.set_xticks(edits, list(map(str, edits)))
    ax.minorticks_off()
    ax.set_xlabel("rules edited")
    sns.despine(ax=ax)


def _note(data: xr.Dataset, means: Sequence[Row], mode: str) -> str:
    """What a reader needs to know of the numbers."""
    n, sample = data.sizes["rule"], min(int(data.attrs["sample"]), data.sizes["rule"])
    batch = any(row["order"] == "batch" for row in means)
    crosses = f"; crosses: all {n} in one edit" if batch else ""
    parts = [
        f"Rules: {MODE_NAMES[mode]}. Lines: rules edited one after the other{crosses}. Reliability"
        f" is of all rules edited so far, all else of edited rules of at most {sample} of them."
    ]
    if questions := int(data.attrs["questions"]):
        parts.append(
            f"Rules not edited: {questions} questions, teacher-forced; dotted: the unedited model."
        )
    if tokens := int(data.attrs["text_tokens"]):
        parts.append(f"Perplexity: some {tokens} tokens that statistics of keys have not seen.")
    failed: dict[str, int] = {}
    for row in means:
        if row["failed"]:
            failed[f"{row['arm']}, {row['order']}"] = row["failed"]
    parts += [f"{line}: {count} edits failed." for line, count in failed.items()]
    return " ".join(parts)
