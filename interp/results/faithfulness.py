"""What sites bring back together: the schema of ``faithfulness.nc``, and what readers need of it.

=============== ================================ ===============================================
``recovered``   rule form component ranking share share of the total effect that the first `k` sites
                                                 of a ranking bring back together
``area``        rule form component ranking      area under that curve, the mean over log `k`
``linear_area`` rule form component ranking      the same over `k` itself, from no site on
``k``           rule form share                  how many sites were restored; 0 where no curve is
``n_sites``     rule form                        of how many; 0: no curve
``clean``       rule form                        score of the clean run
``corrupted``   rule form                        score of the corrupted run, mean over noise samples
=============== ================================ ===============================================

`ranking` is what sites are ranked by (`interp.vocabulary.RANKINGS`); ``random`` is the mean over
several random rankings. The labels of `share` are what was asked for; `k` / `n_sites` is what was
run. NaN where there is no curve.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xarray as xr

from interp.results.intervals import bootstrap_mean, mean_interval, mean_of_known
from interp.results.tables import MISSING, Table, escape_markdown, latex, markdown
from interp.vocabulary import RANKINGS

SCHEMA = "dmle.faithfulness/1"
DIMS: Mapping[str, tuple[str, ...]] = {
    "recovered": ("rule", "form", "component", "ranking", "share"),
    "area": ("rule", "form", "component", "ranking"),
    "linear_area": ("rule", "form", "component", "ranking"),
    "k": ("rule", "form", "share"),
    "n_sites": ("rule", "form"),
    "clean": ("rule", "form"),
    "corrupted": ("rule", "form"),
}
AREA_HEADS = ("Area", "Area − that of the next", "Is it ≥ the next?", "Linear area", "Rules")
DRAWS = 2000
CONFIDENCE = 0.95
SEED = 0
"""Of the bootstrap over rules."""


@dataclass(frozen=True)
class Interval:
    """A mean over rules with its bootstrap interval; NaN with fewer than two rules."""

    mean: float
    lower: float
    upper: float
    n_rules: int

    @classmethod
    def of(cls, values: np.ndarray) -> "Interval":
        """Of one value per rule, shape (rule,); NaN are left out."""
        values = values[~np.isnan(values)]
        lower, upper = mean_interval(values, draws=DRAWS, confidence=CONFIDENCE, seed=SEED)
        mean = float(values.mean()) if len(values) else float("nan")
        return cls(mean, lower, upper, len(values))

    def text(self, sign: str = "") -> str:
        """Mean and interval as a cell of a table."""

        def number(value: float) -> str:
            return f"{value:{sign}z.3f}".replace("-", "−")

        if not self.n_rules:
            return MISSING
        if np.isnan(self.lower):
            return number(self.mean)
        return f"{number(self.mean)} [{number(self.lower)}, {number(self.upper)}]"


@dataclass(frozen=True)
class Step:
    """Whether one ranking is at least as good as the next, rule by rule."""

    better: str
    worse: str
    difference: Interval
    """Of their areas, better − worse."""

    @property
    def verdict(self) -> str:
        """``holds``: no end of the interval is below 0; ``fails``: both are; else ``open``."""
        if self.difference.lower >= 0:
            return "holds"
        return "fails" if self.difference.upper < 0 else "open"


def joined(parts: Mapping[tuple[str, str], xr.Dataset]) -> xr.Dataset:
    """One dataset of the curves of single prompts of the same settings, keyed by (rule, form), in
    their order.
    """
    first = next(iter(parts.values()))
    rules = list(dict.fromkeys(rule for rule, _ in parts))
    forms = list(dict.fromkeys(form for _, form in parts))
    labels = {"rule": rules, "form": forms} | {
        dim: first[dim].values for dim in ("component", "ranking", "share")
    }
    values = {
        name: np.full([len(labels[dim]) for dim in dims], 0 if name in ("k", "n_sites") else np.nan)
        for name, dims in DIMS.items()
    }
    for (rule, form), part in parts.items():
        for name, dims in DIMS.items():
            place = rules.index(rule), forms.index(form)
            values[name][place] = part[name].transpose(*dims).values[0, 0]
    return dataset(values, labels, {})


def dataset(
    values: Mapping[str, np.ndarray],
    labels: Mapping[str, Sequence[object] | np.ndarray],
    attrs: Mapping[str, object],
) -> xr.Dataset:
    """The content of ``faithfulness.nc``: arrays with the dims of `DIMS`, and labels by dim."""
    coords = {
        dim: np.array(each, dtype=float if dim == "share" else object)
        for dim, each in labels.items()
    }
    variables = {
        name: (DIMS[name], each.astype(np.int64) if name in ("k", "n_sites") else each)
        for name, each in values.items()
    }
    return xr.Dataset(variables, coords, {"schema": SCHEMA, **attrs})


def methods_of(data: xr.Dataset) -> list[str]:
    """The rankings that there are, the one that should be best first."""
    known = {str(method) for method in data["ranking"].values}
    return [method for method in RANKINGS if method in known]


def areas(data: xr.Dataset, component: str, kind: str = "area") -> dict[str, np.ndarray]:
    """Area of each rule by ranking, the mean over its forms, shape (rule,); NaN without a curve.

    `kind` is ``area`` or ``linear_area``.
    """
    part = data[kind].sel(component=component).transpose("ranking", "rule", "form")
    return {
        method: mean_of_known(part.sel(ranking=method).values, 1) for method in methods_of(data)
    }


def steps(data: xr.Dataset, component: str) -> list[Step]:
    """The rankings compared one with the next, paired by rule."""
    by_method = areas(data, component)
    return [
        Step(better, worse, Interval.of(by_method[better] - by_method[worse]))
        for better, worse in pairwise(by_method)
    ]


def order(data: xr.Dataset, component: str) -> str:
    """Whether each ranking is at least as good as the next, in a sentence."""
    compared = steps(data, component)
    names = " ≥ ".join(methods_of(data))
    if not compared:
        return f"{component}: one ranking, nothing to compare"
    failed = [f"{step.better} ≥ {step.worse}" for step in compared if step.verdict == "fails"]
    undecided = [f"{step.better} ≥ {step.worse}" for step in compared if step.verdict == "open"]
    if failed:
        return f"{component}: {names} does not hold: {', '.join(failed)} fails"
    if undecided:
        return f"{component}: {names} is not decided: {', '.join(undecided)} is open"
    return f"{component}: {names} holds"


def mean_curves(
    data: xr.Dataset, component: str, method: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The mean curve of a ranking over rules, at the shares that were asked for.

    Curves of prompts with few sites have points at other shares; between points they are straight,
    as the area takes them.

    Returns:
        shares, mean, lower, upper, each of shape (share,); the interval is a bootstrap over rules.
    """
    shares = data["share"].values
    part = data[["recovered", "k", "n_sites"]].sel(component=component, ranking=method)
    values = np.full((part.sizes["rule"], part.sizes["form"], len(shares)), np.nan)
    for rule, form in np.argwhere(part["n_sites"].transpose("rule", "form").values > 0):
        one = part.isel(rule=rule, form=form)
        places = one["k"].values / int(one["n_sites"])
        values[rule, form] = np.interp(shares, places, one["recovered"].values)
    by_rule = mean_of_known(values, 1)
    return shares, *bootstrap_mean(by_rule, draws=DRAWS, confidence=CONFIDENCE, seed=SEED)


def area_cells(data: xr.Dataset, component: str) -> list[tuple[str, list[str]]]:
    """Each ranking with what a table says of its areas, in the order of `AREA_HEADS`."""
    compared = {step.better: step for step in steps(data, component)}
    linear = areas(data, component, "linear_area")
    rows = []
    for method, values in areas(data, component).items():
        area, step = Interval.of(values), compared.get(method)
        more = [step.difference.text("+"), step.verdict] if step else [MISSING, MISSING]
        cells = [area.text(), *more, Interval.of(linear[method]).text(), str(area.n_rules)]
        rows.append((method, cells))
    return rows


def faithfulness_table(data: xr.Dataset) -> Table:
    """Areas of every component and ranking, and each ranking's advantage over the next."""
    heads = ["Component", "Ranking", *AREA_HEADS]
    groups = []
    for component in map(str, data["component"].values):
        rows = [[component, method, *cells] for method, cells in area_cells(data, component)]
        groups.append(rows)
    flat = [[escape_markdown(cell) for cell in row] for rows in groups for row in rows]
    notes = [
        "Area under the recovered share over the logarithm of the number of sites (linear area:"
        " over the number), mean over rules of the mean over forms"
        f" [{CONFIDENCE:.0%} bootstrap interval over rules]; differences are paired by rule."
        " holds: no end of the interval is below 0; fails: both are; open: one is, or there is no"
        " interval, as of one rule.",
        *(f"{order(data, str(component))}." for component in data["component"].values),
    ]
    text = markdown(heads, flat) + "\n" + "\n\n".join(notes) + "\n"
    return Table(text, latex(heads, groups, labels=2))
