"""What an edit did: dot plots and tables of scores before and after, and raw answers.

Every score is a mean over rules of each rule's mean over forms, so that a rule with more forms or items
counts once. Intervals are bootstrap intervals over rules, with the same resamples for every editor.
"Before" (hollow) is the unedited model, the floor that an editor starts from; locality has none, because
it is agreement with the unedited model itself.
"""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from figures import style
from interp.tables import MISSING, SHORT_METRIC_NAMES, Table, escape_markdown, latex, markdown

METRIC_NAMES = {
    "reliability": "reliability\n(edited prompts)",
    "generality": "generality\n(rephrased prompts)",
    "instance_portability": "portability\n(new instances)",
    "rule_understanding_verbatim": "rule understanding\n(edited prompts)",
    "rule_understanding_paraphrase": "rule understanding\n(paraphrases)",
    "locality": "locality\n(unchanged behaviour)",
    "locality_correctness": "locality\n(correct answers)",
}
MODE_NAMES = {
    "token_accuracy": "share of answer tokens right (teacher-forced)",
    "exact": "share of answers wholly right",
    "greedy_exact": "share of greedy answers equal to the target",
    "greedy_prefix": "share of greedy answers that begin with the target",
    "equivalent": "share of greedy answers that state the target's number or formula",
    "log_prob": "log-probability of the answer (nats per token)",
    "kl": "KL divergence from the unedited model (nats)",
}
SHARES = ("token_accuracy", "exact", "greedy_exact", "greedy_prefix", "equivalent")
WITHOUT_FLOOR = ("locality",)
"""Metrics that compare with the unedited model: their value before the edit is fixed by definition."""
RESAMPLES = 2000
CONFIDENCE = 0.95


def draw_edit_scores(
    scores: xr.Dataset,
    mode: str = "token_accuracy",
    *,
    rng: np.random.Generator | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw each metric's mean before (hollow) and after (full) the edit, one colour per editor.

    Args:
        scores: Edit scores, dims ``editor rule form metric mode phase``.
        mode: Which way of scoring an answer to show.
        rng: Generator for the bootstrap; seeded with 0 by default, so that figures are reproducible.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: The mode is unknown or has no scores.
    """
    rules = per_rule(scores, mode)
    metrics = _metrics_with_data(rules)
    editors = [str(e) for e in rules["editor"].values]
    if ax is None:
        ax = style.new_axes(style.DOUBLE_COLUMN * 0.75, 1.0 + len(metrics) * (0.2 + 0.1 * len(editors)))
    colours = style.editor_colours(editors)
    offsets = np.linspace(-0.3, 0.3, len(editors)) if len(editors) > 1 else np.zeros(1)
    rng = np.random.default_rng(0) if rng is None else rng
    resamples = rng.integers(rules.sizes["rule"], size=(RESAMPLES, rules.sizes["rule"]))
    for editor, offset in zip(editors, offsets, strict=True):
        for height, metric in enumerate(metrics):
            one = rules.sel(editor=editor, metric=metric)
            _draw_dot(ax, one, height + offset, colours[editor], resamples, floor=metric not in WITHOUT_FLOOR)
    _name_axes(ax, metrics, mode)
    _name_editors(ax, editors, colours, floor=any(metric not in WITHOUT_FLOOR for metric in metrics))
    style.caption(ax, _counts(rules, metrics))
    return ax


def per_rule(scores: xr.Dataset, mode: str) -> xr.DataArray:
    """Scores of one mode, averaged over the forms that a rule has items for; dims editor metric phase rule.

    Editors without a score in this mode are left out.

    Raises:
        ValueError: The mode is unknown or has no scores.
    """
    if mode not in scores["mode"].values:
        raise ValueError(f"the scores have no mode {mode!r}; choose from {scores['mode'].values.tolist()}")
    rules = scores["score"].sel(mode=mode).mean("form", skipna=True)
    scored = rules.sel(phase="post").notnull().any(["rule", "metric"]).values
    if not scored.any():
        raise ValueError(f"mode {mode!r} has no scores; choose another of {scores['mode'].values.tolist()}")
    return rules.isel(editor=scored).transpose("editor", "metric", "phase", "rule")


def bootstrap_interval(values: np.ndarray, resamples: np.ndarray) -> tuple[float, float]:
    """Percentile interval of the mean over rules; (NaN, NaN) with fewer than two rules.

    Args:
        values: One value per rule, NaN where a rule has none, shape (rule,).
        resamples: Indices into the rules, shape (resample, rule).
    """
    if np.isfinite(values).sum() < 2:
        return np.nan, np.nan
    drawn = values[resamples]
    drawn = drawn[np.isfinite(drawn).any(axis=1)]  # a resample of rules that all lack the metric has no mean
    low, high = np.quantile(np.nanmean(drawn, axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def before_after_table(answers: pd.DataFrame, *, rows: int | None = None) -> str:
    """Markdown table of what the model said before and after each edit.

    Args:
        answers: Columns editor, rule, form, metric, prompt, target_new, target_true, before, after.
        rows: Show at most so many rows (and say how many there are); all by default.

    Raises:
        ValueError: A column is missing.
    """
    heads = {
        "editor": "Editor", "rule": "Rule", "form": "Form", "metric": "Metric", "prompt": "Prompt",
        "target_true": "True answer", "target_new": "Wanted answer", "before": "Before", "after": "After",
    }  # fmt: skip
    if missing := set(heads) - set(answers.columns):
        raise ValueError(f"the answers lack the columns {sorted(missing)}; write them with `dmle evaluate`")
    shown = answers[list(heads)].head(len(answers) if rows is None else rows)
    body = [[escape_markdown(str(cell)) for cell in row] for row in shown.itertuples(index=False)]
    table = markdown(list(heads.values()), body)
    return table if len(shown) == len(answers) else f"{table}\n{len(shown)} of {len(answers)} answers shown.\n"


def score_table(scores: xr.Dataset, mode: str = "token_accuracy", *, each_rule: bool = True) -> Table:
    """Tables of the scores before → after, per rule (unless `each_rule` is false) and mean over rules.

    Raises:
        ValueError: The mode is unknown or has no scores.
    """
    rules = per_rule(scores, mode)
    metrics = _metrics_with_data(rules)
    groups = [_rows_of(rules.sel(editor=editor), metrics, each_rule) for editor in rules["editor"].values]
    heads = ["Editor", "Rule", *(SHORT_METRIC_NAMES.get(m, m) for m in metrics)]
    flat = [[escape_markdown(e), escape_markdown(r), *cells] for group in groups for e, r, *cells in group]
    note = f"{MODE_NAMES.get(mode, mode)}; before → after, mean over forms; {MISSING}: no items."
    return Table(f"{markdown(heads, flat)}\n{note[0].upper()}{note[1:]}\n", latex(heads, groups))


def _draw_dot(ax: Axes, one: xr.DataArray, height: float, colour: Any, resamples: np.ndarray, *, floor: bool) -> None:
    """Hollow floor, full score and interval of one editor and metric; nothing where there are no items."""
    after = one.sel(phase="post").values
    if not np.isfinite(after).any():
        return
    mean = float(np.nanmean(after))
    low, high = bootstrap_interval(after, resamples)
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
        ax.plot([start, mean], [height, height], color=colour, linewidth=0.5, linestyle=":", zorder=1)
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
    handles = [Line2D([], [], marker="o", linestyle="none", color=colours[e], label=style.visible(e)) for e in editors]
    marks = (("white", "before the edit"), ("0.3", "after the edit")) if floor else ()
    handles += [
        Line2D([], [], marker="o", linestyle="none", color="0.3", markerfacecolor=face, label=label)
        for face, label in marks
    ]
    legend = ax.legend(handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _counts(rules: xr.DataArray, metrics: list[str]) -> str:
    """Numbers of rules, overall or by metric where they differ, and what the marks are."""
    n = rules.sel(phase="post", metric=metrics).notnull().sum("rule")
    n = n.where(n > 0)
    low, high = int(n.min()), int(n.max())
    each = (f"{SHORT_METRIC_NAMES.get(m, m)} {_range(n.sel(metric=m))}" for m in metrics)
    parts = ["One rule, so no interval over rules."] if high == 1 else [
        f"n = {high} rules." if low == high else f"n rules: {', '.join(each)}.",
        f"Bars: {100 * CONFIDENCE:.0f} % bootstrap interval over rules, after the edit.",
    ]  # fmt: skip
    if set(metrics) & set(WITHOUT_FLOOR):
        parts.append("Unchanged behaviour has no “before”: it compares with the unedited model.")
    return " ".join(parts)


def _range(n: xr.DataArray) -> str:
    low, high = int(n.min()), int(n.max())
    return f"{low}" if low == high else f"{low}–{high}"


def _metrics_with_data(rules: xr.DataArray) -> list[str]:
    """Metrics that have a score after the edit, the known ones first, in the order of `METRIC_NAMES`."""
    names = [str(m) for m in rules["metric"].values]
    ordered = [m for m in METRIC_NAMES if m in names] + [m for m in names if m not in METRIC_NAMES]
    return [m for m in ordered if bool(rules.sel(metric=m, phase="post").notnull().any())]


def _rows_of(rules: xr.DataArray, metrics: list[str], each_rule: bool) -> list[list[str]]:
    """Rows of one editor: its rules that have scores, then their mean."""
    editor = str(rules["editor"].item())
    scored = rules.isel(rule=rules.sel(phase="post").notnull().any("metric").values)
    rows = []
    for rule in scored["rule"].values if each_rule else ():
        rows.append([editor, str(rule), *(_cell(scored.sel(rule=rule, metric=m), m) for m in metrics)])
    mean = scored.mean("rule", skipna=True)
    return [
        *rows,
        [editor, f"mean of {scored.sizes['rule']}", *(_cell(mean.sel(metric=m), m) for m in metrics)],
    ]


def _cell(value: xr.DataArray, metric: str) -> str:
    before, after = (float(value.sel(phase=phase)) for phase in ("pre", "post"))
    if not np.isfinite(after):
        return MISSING
    return f"{after:.2f}" if metric in WITHOUT_FLOOR or not np.isfinite(before) else f"{before:.2f} → {after:.2f}"
