"""What an edit did: dot plots of scores before and after.

Every score is a mean over rules of each rule's mean over forms, so that a rule with more forms or
items counts once. Intervals are bootstrap intervals over rules, with the same resamples for every
editor. "Before" (hollow) is the unedited model, the floor that an editor starts from; locality has
none, because it is agreement with the unedited model itself.

Up to `MOST_COLOURS` editors share axes, each in its colour. More, as in a comparison of arms, get a
row each and every metric its own axes (`scores_panel`). `difference_panel` shows the paired
differences from a reference arm.
"""

import textwrap
from typing import Any

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from interp.errors import InputError
from interp.results.intervals import bootstrap_mean
from interp.results.scores import LOWER_IS_BETTER, WITHOUT_FLOOR, per_rule
from interp.results.tables import SHORT_METRIC_NAMES

METRIC_NAMES = {
    "reliability": "reliability\n(edited prompts)",
    "generality": "generality\n(rephrased prompts)",
    "instance_portability": "portability\n(new instances)",
    "rule_understanding_verbatim": "rule understanding\n(edited prompts)",
    "rule_understanding_paraphrase": "rule understanding\n(paraphrases)",
    "locality": "locality\n(unchanged behaviour)",
    "locality_correctness": "locality\n(correct answers)",
    "fact_check": "fact checks\n(yes or no)",
    "distractor": "distractors\n(old rule stated before)",
    "multi_step": "multi-step\n(one step further)",
}
MODE_NAMES = {
    "token_accuracy": "share of answer tokens right (teacher-forced)",
    "exact": "share of answers wholly right",
    "greedy_exact": "share of greedy answers equal to the target",
    "greedy_prefix": "share of greedy answers that begin with the target",
    "equivalent": "share of greedy answers that state the target's number or formula",
    "log_prob": "log-probability of the answer (nats per token)",
    "kl": "KL divergence from the unedited model (nats)",
    "yes_no": "share of questions whose right answer, yes or no, is the likelier one",
    "free": "share of free answers, ended by the model itself, that say what the target says",
    "free_gap": "teacher-forced share minus share of free answers",
    "top_5": "share of the five most likely tokens that stay",
    "top_10": "share of the ten most likely tokens that stay",
}
SHARES = (
    "token_accuracy",
    "exact",
    "greedy_exact",
    "greedy_prefix",
    "equivalent",
    "yes_no",
    "free",
    "top_5",
    "top_10",
)
RESAMPLES = 2000
CONFIDENCE = 0.95
MOST_COLOURS = 6
"""Most editors that colours tell apart."""
ARM_HEIGHT = 0.14
"""Height of an arm's row in the panels, inches."""


def draw_edit_scores(
    scores: xr.Dataset,
    mode: str = "token_accuracy",
    *,
    seed: int = 0,
    ax: Axes | None = None,
) -> Axes:
    """Draw each metric's mean before (hollow) and after (full) the edit, one colour per editor.

    Args:
        scores: Edit scores, dims ``editor rule form metric mode phase``.
        mode: Which way of scoring an answer to show.
        seed: Seed of the bootstrap, whose resamples of rules all editors and metrics share.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: The mode is unknown or has no scores.
    """
    rules = per_rule(scores, mode)
    metrics = metrics_with_data(rules)
    editors = [str(e) for e in rules["editor"].values]
    if ax is None:
        ax = style.new_axes(
            style.DOUBLE_COLUMN * 0.75, 1.0 + len(metrics) * (0.2 + 0.1 * len(editors))
        )
    colours = style.editor_colours(editors)
    offsets = np.linspace(-0.3, 0.3, len(editors)) if len(editors) > 1 else np.zeros(1)
    intervals = intervals_of(rules.sel(phase="post"), seed)
    for editor, offset in zip(editors, offsets, strict=True):
        for height, metric in enumerate(metrics):
            at = {"editor": editor, "metric": metric}
            floor = metric not in WITHOUT_FLOOR
            _draw_dot(
                ax, rules.sel(at), intervals.sel(at), height + offset, colours[editor], floor=floor
            )
    _name_axes(ax, metrics, mode)
    _name_editors(
        ax, editors, colours, floor=any(metric not in WITHOUT_FLOOR for metric in metrics)
    )
    style.caption(ax, _counts(rules, metrics))
    return ax


@style.paper_style()
def scores_panel(scores: xr.Dataset, mode: str = "token_accuracy", *, seed: int = 0) -> Figure:
    """Draw every arm in a row of its own, a column for each metric; for more arms than colours tell
    apart.

    Args:
        scores: Edit scores, dims ``editor rule form metric mode phase``.
        mode: Which way of scoring an answer to show.
        seed: Seed of the bootstrap, whose resamples of rules all arms and metrics share.

    Raises:
        ValueError: The mode is unknown or has no scores.
    """
    rules = per_rule(scores, mode)
    after = rules.sel(phase="post")
    fig, axes = _panel(rules, MODE_NAMES.get(mode, mode))
    intervals = intervals_of(after, seed)
    for metric, ax in axes.items():
        _draw_arms(ax, intervals.sel(metric=metric), mode)
        before = rules.sel(phase="pre", metric=metric)
        if metric not in WITHOUT_FLOOR and bool(before.notnull().any()):
            ax.axvline(
                float(before.mean("editor", skipna=True).mean()),
                color="0.5",
                linestyle=":",
                gid="before",
            )
        if mode in SHARES:
            ax.set_xlim(-0.04, 1.04)
            ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    floor = any(metric not in WITHOUT_FLOOR for metric in axes)
    style.figure_caption(
        fig, _counts(rules, list(axes)) + (" Dotted: before the edit." if floor else "")
    )
    return fig


@style.paper_style()
def difference_panel(
    scores: xr.Dataset, mode: str = "token_accuracy", reference: str | None = None, *, seed: int = 0
) -> Figure:
    """Draw each arm's paired difference from a reference arm, with its interval, a column for each
    metric.

    Args:
        scores: Edit scores, dims ``editor rule form metric mode phase``.
        mode: Which way of scoring an answer to show.
        reference: The arm that the others are compared with; the first with scores by default.
        seed: Seed of the bootstrap, whose resamples of rules all arms and metrics share.

    Raises:
        ValueError: The mode is unknown or has no scores, the reference has none in it, or there is
            no other arm.
    """
    rules = per_rule(scores, mode)
    arms = [str(arm) for arm in rules["editor"].values]
    reference = arms[0] if reference is None else reference
    if reference not in arms:
        raise InputError(
            f"the reference {reference!r} has no scores in mode {mode!r}; those that have: {arms}"
        )
    if len(arms) < 2:
        raise InputError(
            f"only {reference!r} has scores in mode {mode!r}; a difference needs two arms"
        )
    others = rules.sel(editor=[arm for arm in arms if arm != reference])
    differences = others - rules.sel(editor=reference, drop=True)
    better = "left" if mode in LOWER_IS_BETTER else "right"
    fig, axes = _panel(
        differences, f"difference from {style.visible(reference)} (better: {better})"
    )
    intervals = intervals_of(differences.sel(phase="post"), seed)
    for metric, ax in axes.items():
        ax.axvline(0, color="0.5", linewidth=0.6, zorder=0)
        _draw_arms(ax, intervals.sel(metric=metric), mode)
        # Where no rule differs, an axis of thousandths would look like a measurement.
        least = 0.1 if mode in SHARES else 1e-3
        reach = 1.1 * float(
            np.nanmax(np.abs(intervals.sel(metric=metric).to_array().values), initial=least)
        )
        ax.set_xlim(-reach, reach)
        ax.locator_params(axis="x", nbins=3)
    style.figure_caption(
        fig, f"{MODE_NAMES.get(mode, mode)}. {_counts(differences, list(axes), floor=False)}"
    )
    return fig


def narrow_name(metric: str) -> str:
    """Name of a metric for the head of a narrow column, in a few lines.

    >>> narrow_name("rule_understanding_verbatim").splitlines()
    ['rule', 'understanding', '(edited', 'prompts)']
    """
    lines = METRIC_NAMES.get(metric, metric).split("\n")
    return "\n".join(textwrap.fill(line, 14, break_long_words=False) for line in lines)


def intervals_of(rules: xr.DataArray, seed: int = 0) -> xr.Dataset:
    """Mean over rules with its bootstrap interval (``mean``, ``lower``, ``upper``), in the same
    resamples throughout.

    Args:
        rules: A value per rule, NaN where a rule has none; dim ``rule`` and any others.
        seed: Seed of the resampling.
    """
    rules = rules.transpose("rule", ...)
    found = bootstrap_mean(rules.values, draws=RESAMPLES, confidence=CONFIDENCE, seed=seed)
    dims = rules.dims[1:]
    coords = {dim: rules[dim].values for dim in dims}
    return xr.Dataset(
        dict(zip(("mean", "lower", "upper"), ((dims, each) for each in found), strict=True)), coords
    )


def _panel(rules: xr.DataArray, label: str) -> tuple[Figure, dict[str, Axes]]:
    """A figure with axes for each metric, side by side, and a row for each arm."""
    metrics, arms = metrics_with_data(rules), [str(arm) for arm in rules["editor"].values]
    fig = Figure(
        figsize=(style.DOUBLE_COLUMN, 1.15 + max(ARM_HEIGHT * len(arms), 0.5)), layout="constrained"
    )
    axes = fig.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    axes[0].set_yticks(range(len(arms)), [style.shorten(arm, 26) for arm in arms], parse_math=False)
    axes[0].set_ylim(len(arms) - 0.4, -0.6)
    for ax, metric in zip(axes, metrics, strict=True):
        ax.set_title(narrow_name(metric), fontsize=style.SMALL)
        ax.grid(color="0.93", linewidth=0.4)
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0, labelleft=ax is axes[0])
        sns.despine(ax=ax, left=True)
    fig.suptitle(label, fontsize=7, x=0.01, ha="left", parse_math=False)
    return fig, dict(zip(metrics, axes, strict=True))


def _draw_arms(ax: Axes, intervals: xr.Dataset, mode: str) -> None:
    """A dot and its interval in the row of each arm that has a mean."""
    heights = np.arange(intervals.sizes["editor"])
    mean, lower, upper = (intervals[name].values for name in ("mean", "lower", "upper"))
    colour = sns.color_palette("colorblind")[0]
    known = np.isfinite(lower)
    ax.hlines(
        heights[known],
        lower[known],
        upper[known],
        colors=[colour],
        linewidth=1.4,
        alpha=0.45,
        gid="interval",
    )
    ax.plot(mean, heights, "o", color=colour, markersize=3, gid="after")
    if mode == "kl" and float(np.nanmin(lower, initial=0)) >= 0 and float(np.nanmin(mean)) >= 0:
        ax.set_xlim(left=0)


def _draw_dot(
    ax: Axes, one: xr.DataArray, interval: xr.Dataset, height: float, colour: Any, *, floor: bool
) -> None:
    """Hollow floor, full score and interval of one editor and metric; nothing where there are no
    items.
    """
    mean, low, high = (float(interval[name]) for name in ("mean", "lower", "upper"))
    if not np.isfinite(mean):
        return
    if np.isfinite(low):
        ax.plot(
            [low, high],
            [height, height],
            color=colour,
            linewidth=1.6,
            alpha=0.45,
            solid_capstyle="butt",
            gid="interval",
        )
    ax.plot([mean], [height], marker="o", color=colour, linestyle="none", gid="after", zorder=3)
    before = one.sel(phase="pre").values
    if floor and np.isfinite(before).any():
        start = float(np.nanmean(before))
        ax.plot(
            [start, mean], [height, height], color=colour, linewidth=0.5, linestyle=":", zorder=1
        )
        ax.plot(
            [start],
            [height],
            marker="o",
            markerfacecolor="white",
            color=colour,
            linestyle="none",
            gid="before",
            zorder=2,
        )


def _name_axes(ax: Axes, metrics: list[str], mode: str) -> None:
    ax.set_yticks(range(len(metrics)), [METRIC_NAMES.get(m, m) for m in metrics])
    ax.set_ylim(len(metrics) - 0.5, -0.5)
    for border in np.arange(0.5, len(metrics) - 1):
        ax.axhline(border, color="0.9", linewidth=0.6, zorder=0)
    if mode in SHARES:
        ax.set_xlim(-0.03, 1.03)
    elif mode == "kl":
        ax.set_xlim(left=0)
    ax.set_xlabel(MODE_NAMES.get(mode, mode))
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.92", linewidth=0.5)
    ax.set_axisbelow(True)
    sns.despine(ax=ax, left=True)


def _name_editors(ax: Axes, editors: list[str], colours: dict[str, Any], *, floor: bool) -> None:
    """Legend of editors, then of the two markers."""
    handles = [
        Line2D([], [], marker="o", linestyle="none", color=colours[e], label=style.visible(e))
        for e in editors
    ]
    marks = (("white", "before the edit"), ("0.3", "after the edit")) if floor else ()
    handles += [
        Line2D([], [], marker="o", linestyle="none", color="0.3", markerfacecolor=face, label=label)
        for face, label in marks
    ]
    legend = ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _counts(rules: xr.DataArray, metrics: list[str], *, floor: bool = True) -> str:
    """Numbers of rules, overall or by metric where they differ, and what the marks are."""
    n = rules.sel(phase="post", metric=metrics).notnull().sum("rule")
    n = n.where(n > 0)
    low, high = int(n.min()), int(n.max())
    each = (f"{SHORT_METRIC_NAMES.get(m, m)} {_range(n.sel(metric=m))}" for m in metrics)
    parts = ["One rule, so no interval over rules."] if high == 1 else [
        f"n = {high} rules." if low == high else f"n rules: {', '.join(each)}.",
        f"Bars: {100 * CONFIDENCE:.0f} % bootstrap interval over rules, after the edit.",
    ]  # fmt: skip
    if floor and set(metrics) & set(WITHOUT_FLOOR):
        parts.append("Unchanged behaviour has no “before”: it compares with the unedited model.")
    return " ".join(parts)


def _range(n: xr.DataArray) -> str:
    low, high = int(n.min()), int(n.max())
    return f"{low}" if low == high else f"{low}–{high}"


def metrics_with_data(rules: xr.DataArray) -> list[str]:
    """Metrics that have a score after the edit, the known ones first, in the order of
    `METRIC_NAMES`.
    """
    names = [str(m) for m in rules["metric"].values]
    ordered = [m for m in METRIC_NAMES if m in names] + [m for m in names if m not in METRIC_NAMES]
    return [m for m in ordered if bool(rules.sel(metric=m, phase="post").notnull().any())]
