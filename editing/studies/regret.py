"""Ways to choose layers, held against the best window of a layer sweep.

For example, in a notebook:

    regrets = regret(swept, profile, SweepConfig(), SelectConfig())
    regrets.table[["strategy", "group", "layers", "regret"]]
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from editing.studies.config import SweepConfig
from editing.studies.layer_sweep import Block, arm_table, group_name, layers_text
from editing.studies.regret_measures import (
    left_out,
    rank_correlation,
    regret_of,
    window_effects,
)
from interp.config import SelectConfig
from interp.errors import InputError
from interp.results import effects
from interp.results.files import write_text
from interp.results.intervals import mean_interval
from interp.results.scores import REGRET_NUMBERS
from interp.results.tables import MISSING, Table, csv_text, escape_markdown, latex, markdown
from interp.selection import baselines, strategies
from interp.selection.evidence import lacks, lacks_effects
from interp.selection.layers import LayerSelection
from interp.selection.select import select_layers
from interp.selection.strategy import Strategy
from interp.vocabulary import LOOKUP, RuleForm

REGRET_SCHEMA = "dmle.regret/1"
LEFT_OUT = "sweep"
"""The strategy that chooses by edits, here for each rule by the edits of all others."""
TEXTS = ("strategy", "group", "layers", "supported")
"""Columns that hold no numbers."""
AGAINST = ("against_default", "against_lower", "against_upper")
COLUMNS = (*TEXTS, "score", "oracle", *REGRET_NUMBERS, *AGAINST)


@dataclass(frozen=True)
class Chosen:
    """Layers that a strategy or baseline chooses for one group of forms."""

    strategy: str
    forms: tuple[RuleForm, ...]
    layers: tuple[int, ...]
    supported: bool = True

    @property
    def group(self) -> str:
        """Name of the group."""
        return group_name(self.forms)

    @property
    def block(self) -> Block:
        """The layers as a layer sweep edits them."""
        return Block(self.forms, self.layers)


@dataclass(frozen=True)
class Regrets:
    """The regret of every choice.

    Attributes:
        rows: One for each choice and group (`COLUMNS`); what could not be measured is missing.
        notes: What tells of edit success, and which strategies are left out, in sentences.
    """

    rows: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]

    @property
    def table(self) -> pd.DataFrame:
        """The rows, columns `COLUMNS`."""
        return pd.DataFrame(self.rows, columns=COLUMNS)

    @property
    def dataset(self) -> xr.Dataset:
        """The table along ``row``: the content of `regret.nc`."""
        return regret_dataset(self.table)

    @property
    def text(self) -> Table:
        """The table for a paper, with the notes beneath."""
        return regret_table(self.rows, self.notes)


@dataclass(frozen=True)
class _Scored:
    """Edit success at the layers of a choice, shape (rule,)."""

    layers: str
    supported: bool | None
    values: np.ndarray


def choices(
    profile: xr.Dataset,
    config: SweepConfig,
    select: SelectConfig,
    evidence: xr.Dataset | None = None,
) -> list[Chosen]:
    """What every strategy and baseline chooses from a profile, for each group of the sweep.

    Strategies are left out where the profile or the evidence (`dmle evidence`) lacks what they
    read. Editor and lookup of `select` should be those of the sweep (`placed`). A
    selection that does not give all forms of a group the same layers chooses none for it.
    """
    n_layers = profile.sizes["layer"]
    base = select.model_copy(update={"width": config.width, "groups": config.groups})
    made: dict[str, LayerSelection] = {}
    for strategy in strategies.every():
        # A rule's own selection needs its trace, and a sweep is what choices are held against.
        if strategy.by_rule or "sweep" in strategy.reads:
            continue
        own = base.model_copy(update={"strategy": strategy.name})
        strategy = strategies.chosen(own)
        if _objection(strategy, profile, evidence, select.component):
            continue
        read = evidence if "evidence" in strategy.reads else None
        made[strategy.name] = select_layers(profile, own, evidence=read)
    made["published"] = baselines.published(n_layers, config.groups)
    made["best-layer"] = baselines.best_layer(profile, base)
    made["all"] = baselines.all_layers(n_layers, config.groups)
    if len(config.groups) > 1:
        made["reversed"] = baselines.reversed_assignment(made["window"])
    chosen = []
    for name, selection in made.items():
        for forms in config.groups:
            groups = [selection.group_of(form) for form in forms]
            if len({group.layers for group in groups}) == 1:
                supported = all(group.supported for group in groups)
                chosen.append(Chosen(name, forms, groups[0].layers, supported))
    return chosen


def regret(
    swept: xr.Dataset,
    profile: xr.Dataset,
    config: SweepConfig,
    select: SelectConfig,
    evidence: xr.Dataset | None = None,
) -> Regrets:
    """Hold each way to choose layers against the best window of a layer sweep.

    Args:
        swept: The content of `sweep.nc`.
        profile: The content of `profile.nc`.
        config: Groups and width of the sweep, resamples and confidence.
        select: The strategies' settings; its strategy is the default that others are compared with.
        evidence: The content of `evidence.nc`, if there is one.

    Raises:
        InputError: The sweep lacks a group.
    """
    if "edit" in swept.attrs:
        select = placed(select, json.loads(swept.attrs["edit"]))
    chosen = choices(profile, config, select, evidence)
    cells = arm_table(swept)
    rows: list[Mapping[str, Any]] = []
    notes = []
    for forms in config.groups:
        group = group_name(forms)
        if group not in swept["group"].values:
            groups = ", ".join(map(str, swept["group"].values))
            raise InputError(
                f"the sweep has no group {group}; it has {groups}, which sweep.groups must name"
            )
        success = swept["score"].sel(group=group).transpose("rule", "window").values
        table = cells[cells["group"] == group].pivot(index="rule", columns="layers", values="score")
        own = [each for each in chosen if each.group == group]
        scored = _scored(own, table.reindex(swept["rule"].values), success)
        default = scored.get(select.strategy)
        for strategy, each in scored.items():
            row = {"strategy": strategy, "group": group} | _measures(each, success, config)
            if default is not None and strategy != select.strategy:
                row |= _gain(default.values - each.values, config)
            rows.append(row)
        known = _profiles(profile, forms, select.component, evidence)
        notes.append(_note(group, known, swept, success, config))
    notes += [
        f"{name} is left out: {reason}"
        for name in strategies.names()
        if (reason := _left_out(name, profile, evidence, select))
    ]
    return Regrets(tuple(rows), tuple(notes))


def placed(select: SelectConfig, edit: Mapping[str, Any]) -> SelectConfig:
    """Settings of selection for the edits of a sweep: editor and lookup are theirs.

    Args:
        select: The settings.
        edit: Settings of the edits (`editing.config.EditorSettings`): DMLE's, with its solver.
    """
    return select.model_copy(update={"editor": edit["solver"], "lookup": edit["lookup"]})


def _objection(
    strategy: Strategy, profile: xr.Dataset, evidence: xr.Dataset | None, component: str
) -> str:
    """Why a strategy cannot choose by what there is; "" if it can."""
    return lacks(strategy, evidence) or lacks_effects(strategy, profile, component)


def _left_out(
    name: str, profile: xr.Dataset, evidence: xr.Dataset | None, select: SelectConfig
) -> str:
    """Why a strategy is left out; "" if it is not."""
    strategy = strategies.chosen(select.model_copy(update={"strategy": name}))
    return _objection(strategy, profile, evidence, select.component)


def _scored(
    chosen: Sequence[Chosen], table: pd.DataFrame, success: np.ndarray
) -> dict[str, _Scored]:
    """Edit success of every choice for a group: NaN where a rule has none at its layers.

    Args:
        chosen: The choices for this group.
        table: Score by rule (index) and layers (column).
        success: Score by rule and window.
    """
    missing = np.full(len(success), np.nan)
    scored = {}
    for each in chosen:
        text = layers_text(each.layers)
        values = table[text].to_numpy(float) if text in table.columns else missing
        scored[each.strategy] = _Scored(text, each.supported, values)
    scored["random"] = _Scored("any window", None, success.mean(1))
    whole = ~np.isnan(success).any(1)
    others = missing.copy()
    others[whole] = left_out(success[whole])
    scored[LEFT_OUT] = _Scored("best for the other rules", None, others)
    return scored


def _measures(scored: _Scored, success: np.ndarray, config: SweepConfig) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layers": scored.layers,
        "supported": scored.supported,
        "n_windows": success.shape[1],
        "n_rules": 0,
    }
    whole = ~np.isnan(success).any(1)
    if (whole & ~np.isnan(scored.values)).any():
        row |= asdict(regret_of(success, scored.values, **_options(config)))
    return row


def _gain(gain: np.ndarray, config: SweepConfig) -> dict[str, float]:
    """How much better the default is than a choice, over the rules with both."""
    gain = gain[~np.isnan(gain)]
    if not len(gain):
        return {}
    lower, upper = mean_interval(gain, draws=config.resamples, confidence=config.confidence, seed=0)
    return {
        "against_default": float(gain.mean()),
        "against_lower": lower,
        "against_upper": upper,
    }


def _profiles(
    profile: xr.Dataset,
    forms: Sequence[str],
    component: str,
    evidence: xr.Dataset | None,
) -> dict[str, np.ndarray]:
    """What may tell of edit success at each layer: means over a group's forms, shape (layer,)."""
    known = {
        f"the {component} profile": profile["aie"].sel(component=component, role=LOOKUP),
    }
    for name, values in (evidence.data_vars if evidence is not None else {}).items():
        known[f"the {name} of edits"] = values.mean("rule")
    traced = [form for form in forms if form in profile["form"].values]
    return {name: values.sel(form=traced).mean("form").values for name, values in known.items()}


def _note(
    group: str,
    known: Mapping[str, np.ndarray],
    swept: xr.Dataset,
    success: np.ndarray,
    config: SweepConfig,
) -> str:
    """How well each profile ranks the windows of a group, in a sentence."""
    places = zip(swept["start"].values, swept["width"].values, strict=True)
    spans = [range(start, start + width) for start, width in places]
    whole = ~np.isnan(success).any(1)
    parts = []
    for name, values in known.items():
        value, lower, upper = rank_correlation(
            window_effects(values, spans), success[whole], seed=0, **_options(config)
        )
        parts.append(f"of {name} {value:+.2f} [{lower:+.2f}, {upper:+.2f}]")
    return (
        f"{group}: rank correlation with edit success over {len(spans)} windows"
        f" {', '.join(parts)}; {int(whole.sum())} of {len(success)} rules with all cells"
    )


def _options(config: SweepConfig) -> dict[str, Any]:
    return {"resamples": config.resamples, "confidence": config.confidence}


def regret_dataset(table: pd.DataFrame) -> xr.Dataset:
    """The rows of a regret table (`COLUMNS`) along ``row``, for those who read it back
    (`figures`).
    """
    columns = {
        name: values.astype(str).to_numpy(object) if name in TEXTS else values.to_numpy(float)
        for name, values in table.items()
    }
    variables = {name: ("row", values) for name, values in columns.items()}
    return xr.Dataset(variables, attrs={"schema": REGRET_SCHEMA})


def regret_table(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> Table:
    """The rows for a paper, with the notes beneath."""
    heads = ["Group", "Choice", "Layers", "Score", "Regret", "Rank", "Default − choice", "n"]

    def number(row: Mapping[str, Any], key: str, sign: str = "") -> str:
        value = row.get(key)
        return (
            MISSING if value is None or np.isnan(value) else f"{value:{sign}z.3f}".replace("-", "−")
        )

    def spread(row: Mapping[str, Any], key: str, low: str, high: str, sign: str = "") -> str:
        middle = number(row, key, sign)
        return (
            middle
            if middle == MISSING
            else f"{middle} [{number(row, low, sign)}, {number(row, high, sign)}]"
        )

    groups: dict[str, list[list[str]]] = {}
    for row in rows:
        groups.setdefault(str(row["group"]), []).append(
            [
                str(row["group"]),
                str(row["strategy"])
                + (" (not supported)" if row.get("supported") is False else ""),
                str(row["layers"]),
                number(row, "score"),
                spread(row, "regret", "lower", "upper"),
                f"{row['rank']} of {row['n_windows']}" if "rank" in row else MISSING,
                spread(row, "against_default", "against_lower", "against_upper", "+"),
                str(row.get("n_rules", 0)),
            ]
        )
    flat = [[escape_markdown(cell) for cell in row] for group in groups.values() for row in group]
    text = markdown(heads, flat)
    notes = [
        (
            "Regret and differences [bootstrap interval over rules]; rank of the choice among all"
            " windows."
        ),
        *notes,
    ]
    return Table(text + "\n" + "\n\n".join(notes) + "\n", latex(heads, groups.values(), labels=3))


def write_regret(regrets: Regrets, folder: Path, attrs: Mapping[str, str]) -> Path:
    """Write `regret.nc`, `regret.csv` and `tables/regret.*`; the CSV.

    Args:
        regrets: The regret of every choice.
        folder: The run folder.
        attrs: What it was made with, for the attributes of `regret.nc`.
    """
    effects.save(regrets.dataset.assign_attrs(attrs), folder / "regret.nc")
    write_text(folder / "regret.csv", csv_text(regrets.table, index=False))
    text = regrets.text
    write_text(folder / "tables" / "regret.md", text.markdown)
    write_text(folder / "tables" / "regret.tex", text.latex)
    return folder / "regret.csv"
