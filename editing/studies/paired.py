"""Arms compared rule by rule: means with intervals, and differences from a reference arm.

Everything here is over rules: a rule's score is the mean over its forms, so that a rule with more
forms or items counts once. Intervals are percentile-bootstrap intervals over rules, with the same
resamples of rules for every arm, metric and difference. A rule that an arm has no score for is left
out of that arm's mean, and of its differences, and is not counted in their ``n``; a resample then
holds as many of the others as it happens to draw.

Differences are arm − reference in every mode, whatever is better there. Wins and losses are the
arm's, and know that a divergence (``kl``) is better when it is lower: there, a negative difference
is a win.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.results.intervals import bootstrap_mean
from interp.results.scores import LOWER_IS_BETTER, WITHOUT_FLOOR, per_rule
from interp.results.tables import (
    MISSING,
    SHORT_METRIC_NAMES,
    Table,
    escape_markdown,
    latex,
    markdown,
)

TIE = 1e-9
"""Largest absolute difference that counts as none."""
FLOOR = "unedited"
DIGITS = {"kl": 3}
"""Decimals of a mode's scores in tables, where they are not two."""


@dataclass(frozen=True)
class Pair:
    """One arm against the reference in one metric, over the rules that both have a score for.

    `mean`, `lower` and `upper` are of the differences arm − reference (see the module on signs):
    NaN if there are no such rules, the interval also if there is only one. `wins`, `ties` and
    `losses` are the arm's and add up to `n`.
    """

    arm: str
    reference: str
    metric: str
    mean: float
    lower: float
    upper: float
    wins: int
    ties: int
    losses: int
    n: int


def pairs(
    scores: xr.Dataset,
    mode: str,
    reference: str,
    *,
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> list[Pair]:
    """Every other arm against the reference, in every metric that has data in some arm; by arm,
    then metric.

    Args:
        scores: Edit scores, dims ``editor rule form metric mode phase``.
        mode: Which way of scoring an answer to compare.
        reference: The arm that the others are compared with.
        resamples: Bootstrap resamples of rules.
        confidence: Coverage of the intervals, such as 0.95.
        seed: Seed of the resampling.

    Raises:
        ValueError: The mode is unknown or has no scores, or the reference has none in it.
    """
    rules = _with_data(per_rule(scores, mode).sel(phase="post", drop=True))
    arms = [str(arm) for arm in rules["editor"].values]
    if reference not in arms:
        raise InputError(
            f"the reference {reference!r} has no scores in mode {mode!r}; those that have: {arms}"
        )
    others = [arm for arm in arms if arm != reference]
    differences = rules.sel(editor=others) - rules.sel(editor=reference, drop=True)
    mean, lower, upper = _bootstrap(differences.values, resamples, confidence, seed)
    gains = -differences.values if mode in LOWER_IS_BETTER else differences.values
    wins, losses = (gains > TIE).sum(-1), (gains < -TIE).sum(-1)  # comparisons with NaN are false
    n = np.isfinite(gains).sum(-1)
    return [
        Pair(
            arm=arm,
            reference=reference,
            metric=str(metric),
            mean=float(mean[i, j]),
            lower=float(lower[i, j]),
            upper=float(upper[i, j]),
            wins=int(wins[i, j]),
            ties=int(n[i, j] - wins[i, j] - losses[i, j]),
            losses=int(losses[i, j]),
            n=int(n[i, j]),
        )
        for i, arm in enumerate(others)
        for j, metric in enumerate(rules["metric"].values)
    ]


def summary(
    scores: xr.Dataset, mode: str, *, resamples: int, confidence: float, seed: int = 0
) -> xr.Dataset:
    """Means over rules after the edit with their intervals.

    Args:
        scores: Edit scores, dims ``editor rule form metric mode phase``.
        mode: Which way of scoring an answer to take.
        resamples: Bootstrap resamples of rules.
        confidence: Coverage of the intervals, such as 0.95.
        seed: Seed of the resampling.

    Returns:
        Dims editor metric (those with data): ``mean``, ``lower``, ``upper``, ``n`` (rules), and
        ``before``, the mean before the edit over the same rules. The interval is NaN with fewer
        than two rules. The first editor is the unedited model (`FLOOR`), over all rules that some
        arm has a score for.

    Raises:
        ValueError: The mode is unknown or has no scores.
    """
    edited = _with_data(per_rule(scores, mode).sel(phase="post", drop=True))
    floor = _floor(scores, mode, edited).expand_dims(editor=[FLOOR])
    after = xr.concat([floor.transpose(*edited.dims), edited], "editor")
    before = (
        per_rule(scores, mode)
        .sel(phase="pre", metric=edited["metric"], drop=True)
        .where(edited.notnull())
    )
    before = xr.concat([floor.transpose(*before.dims), before], "editor")
    mean, lower, upper = _bootstrap(after.values, resamples, confidence, seed)
    dims = ("editor", "metric")
    return xr.Dataset(
        {
            "mean": (dims, mean),
            "lower": (dims, lower),
            "upper": (dims, upper),
            "n": (dims, after.notnull().sum("rule").values),
            "before": (dims, before.mean("rule", skipna=True).values),
        },
        coords={dim: after[dim].values for dim in dims},
        attrs={
            "mode": mode,
            "confidence": confidence,
            "bootstrap": resamples,
            "bootstrap_seed": seed,
        },
    )


def numbers(
    scores: xr.Dataset,
    modes: Sequence[str],
    reference: str,
    *,
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The numbers of all tables as rows: `summary` of each mode, and beside each arm's mean its
    difference from the reference, where both have scores (`pairs`).
    """
    options: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    rows = []
    for mode in modes:
        means = summary(scores, mode, **options)
        found = pairs(scores, mode, reference, **options) if reference in means["editor"] else []
        others = {(pair.arm, pair.metric): pair for pair in found}
        for arm in map(str, means["editor"].values):
            for metric in map(str, means["metric"].values):
                one = means.sel(editor=arm, metric=metric)
                row = {"arm": arm, "metric": metric, "mode": mode}
                row |= {name: one[name].item() for name in ("mean", "lower", "upper", "n")}
                if (pair := others.get((arm, metric))) is not None:
                    row |= {"reference": reference, "difference": pair.mean}
                    row |= {"difference_lower": pair.lower, "difference_upper": pair.upper}
                    row |= {"wins": pair.wins, "ties": pair.ties, "losses": pair.losses}
                rows.append(row)
    return rows


def comparison_table(
    scores: xr.Dataset,
    mode: str,
    failed: Mapping[str, int],
    *,
    resamples: int,
    confidence: float,
    seed: int = 0,
) -> Table:
    """A row for the unedited model, then one for each arm: mean and interval over rules of each
    metric with data.

    The unedited model's row is over all rules that some arm has a score for. An arm that was run on
    fewer rules, or failed on some, has a smaller `n`: only differences over common rules (`pairs`)
    compare it with the others.

    Args:
        scores: Edit scores, dims ``editor rule form metric mode phase``.
        mode: Which way of scoring an answer to show.
        failed: Arm → how many of its edits failed; arms that are not named had no failure. An arm
            all of whose edits failed has a row too.
        resamples: Bootstrap resamples of rules.
        confidence: Coverage of the intervals, such as 0.95.
        seed: Seed of the resampling.

    Raises:
        ValueError: The mode is unknown or has no scores.
    """
    after = _with_data(per_rule(scores, mode).sel(phase="post", drop=True))
    floor = _floor(scores, mode, after)
    scored = {str(arm): after.sel(editor=arm) for arm in after["editor"].values}
    known = [str(arm) for arm in scores["editor"].values]
    arms = known + [arm for arm, count in failed.items() if count and arm not in known]
    nothing = xr.full_like(floor, np.nan)
    of_arms = [scored.get(arm, nothing) for arm in arms]
    rows = np.stack([row.values for row in (floor, *of_arms)])
    mean, lower, upper = _bootstrap(rows, resamples, confidence, seed)
    # All rules of the floor count, also those that have questions of locality only.
    counts = [int(after.notnull().any(["editor", "metric"]).sum())]
    counts += [int(row.notnull().any("metric").sum()) for row in of_arms]
    failures = [MISSING, *(str(failed.get(arm, 0)) for arm in arms)] if any(failed.values()) else []
    cells = []
    for i, count in enumerate(counts):
        estimates = zip(mean[i], lower[i], upper[i], strict=True)
        cells.append([*(_estimate(mode, *each) for each in estimates), str(count)])
        cells[i] += failures[i : i + 1]
    heads = ["Arm", *_heads(after["metric"].values), "n", *(["failed"] if failures else ())]
    note = (
        f"Mode {escape_markdown(mode)}: mean over rules after the edit [{100 * confidence:g} %"
        " bootstrap interval over rules]; n: rules with a score, of which a metric counts those"
        f" that have items for it; {MISSING}: no items, or, of the unedited model, fixed by"
        " definition."
    )
    return _table(
        heads,
        [[[FLOOR, *cells[0]]], [[arm, *row] for arm, row in zip(arms, cells[1:], strict=True)]],
        note,
    )


def _floor(scores: xr.Dataset, mode: str, after: xr.DataArray) -> xr.DataArray:
    """Scores of the unedited model, dims ``rule metric``, where an arm has one afterwards."""
    before = per_rule(scores, mode).sel(phase="pre", metric=after["metric"], drop=True)
    # Before the edit all arms are the same model: one arm's score of a rule is any arm's.
    floor = before.where(after.notnull()).mean("editor", skipna=True)
    return floor.where(~after["metric"].isin(WITHOUT_FLOOR))


def pair_table(pairs: Sequence[Pair], mode: str) -> Table:
    """A row for each arm: its mean difference from the reference, the interval, and
    wins/ties/losses, by metric.

    Args:
        pairs: Pairs with one reference (see `pairs`).
        mode: The mode that they are of.

    Raises:
        ValueError: There are no pairs, or their references differ.
    """
    references = sorted({pair.reference for pair in pairs})
    if len(references) != 1:
        raise InputError(
            f"a table of pairs needs one reference, not {len(references)}: {references}"
        )
    by_place = {(pair.arm, pair.metric): pair for pair in pairs}
    arms, metrics = (list(dict.fromkeys(names)) for names in zip(*by_place, strict=True))
    rows = [
        [arm, *(_pair_cell(by_place.get((arm, metric)), mode) for metric in metrics)]
        for arm in arms
    ]
    better = "lower is better" if mode in LOWER_IS_BETTER else "higher is better"
    note = (
        f"Mode {escape_markdown(mode)} ({better}): mean difference from"
        f" {escape_markdown(references[0])} over the rules that both have [bootstrap interval over"
        f" rules], wins/ties/losses; {MISSING}: no such rule."
    )
    return _table([f"Arm − {references[0]}", *_heads(metrics)], [rows], note)


def _with_data(rules: xr.DataArray) -> xr.DataArray:
    """The metrics for which some arm has a score of some rule."""
    return rules.isel(metric=rules.notnull().any(["editor", "rule"]).values)


def _bootstrap(
    values: np.ndarray, resamples: int, confidence: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper over the last axis (rules), all else in the same resamples."""
    return bootstrap_mean(
        np.moveaxis(values, -1, 0), draws=resamples, confidence=confidence, seed=seed
    )


def _heads(metrics: Sequence[str] | np.ndarray) -> list[str]:
    return [SHORT_METRIC_NAMES.get(str(metric), str(metric)) for metric in metrics]


def _pair_cell(pair: Pair | None, mode: str) -> str:
    if pair is None or not pair.n:
        return MISSING
    return (
        f"{_estimate(mode, pair.mean, pair.lower, pair.upper, sign='+')},"
        f" {pair.wins}/{pair.ties}/{pair.losses}"
    )


def _estimate(mode: str, mean: float, lower: float, upper: float, *, sign: str = "") -> str:
    """Mean and interval as text; without the interval if there is none. A zero has no minus."""
    digits = DIGITS.get(mode, 2)
    if not np.isfinite(mean):
        return MISSING
    text = f"{mean:{sign}z.{digits}f}"
    if np.isfinite(lower):
        text += f" [{lower:z.{digits}f}, {upper:z.{digits}f}]"
    return text.replace("-", "−")


def _table(heads: Sequence[str], groups: Sequence[Sequence[Sequence[str]]], note: str) -> Table:
    """Names of arms, in the first column and its head, are escaped for Markdown; all else there
    is ours.
    """
    flat = [[escape_markdown(name), *cells] for group in groups for name, *cells in group]
    text = markdown([escape_markdown(heads[0]), *heads[1:]], flat)
    return Table(f"{text}\n{note}\n", latex(heads, [group for group in groups if group], labels=1))
