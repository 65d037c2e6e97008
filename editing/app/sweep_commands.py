"""`dmle sweep` and `dmle regret`: what edits achieve at every window of layers, and how far
selections are from it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from editing.app.commands import measured
from editing.config import CovarianceConfig, EditConfig, EditorSettings, EvaluateConfig, SweepConfig
from interp.app.commands import Common, execute
from interp.app.steps import Context, Step
from interp.config import SelectConfig
from interp.rules.sources import Rule
from interp.vocabulary import RuleForm

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from editing.studies.comparison import Arm, Cell
    from interp.app.freshness import Made
    from interp.results.tables import Table
    from interp.selection.layers import LayerSelection

CELLS = "sweep"
LEFT_OUT = "sweep"
"""The strategy that chooses by edits, here for each rule by the edits of all others."""
ARM_LABELS = {"arm_group": "group", "arm_layers": "layers"}
"""Coords of the arms of a sweep, and what they hold."""
OF_ARMS = ("editor", "editors", "arms", "mode", "layers", "block")
"""Settings of edits that a sweep does not read."""
COLUMNS = (
    "strategy",
    "group",
    "layers",
    "supported",
    "score",
    "oracle",
    "regret",
    "lower",
    "upper",
    "rank",
    "n_windows",
    "n_rules",
    "against_default",
    "against_lower",
    "against_upper",
)


def sweep(*, common: Common | None = None) -> None:
    """Edit rules at every window of layers, one group of forms at a time, and score each edit: the
    selector's oracle.

    Layers that the strategies and baselines of selection choose from the run folder's `profile.nc`
    (and `evidence.nc`, if it is there) are edited too, so that `dmle regret` can score them. One
    file per cell: a stopped sweep continues, and several processes may work on one run folder.

    For example:

        dmle sweep --run runs/mine --set sweep.step=4 --set sweep.limit=2
    """
    execute(["sweep"], common, {})


def regret(*, common: Common | None = None) -> None:
    """Hold each way to choose layers against the best window of a sweep; needs no model.

    Reads `sweep.nc`, `profile.nc`, `evidence.nc` (if it is there) of the run folder; writes
    `regret.nc`, `regret.csv` and a table: the score at the chosen layers, the oracle's, the regret
    with its interval over rules, the rank of the choice among all windows, how well the profile and
    the evidence rank windows, and how much better the default strategy is than each other choice.

    For example:

        dmle regret --run runs/mine
    """
    execute(["regret"], common, {})


@dataclass(frozen=True)
class Chosen:
    """Layers that a strategy or baseline chooses for one group."""

    strategy: str
    group: str
    layers: tuple[int, ...]
    supported: bool = True


def group_name(forms: Sequence[str]) -> str:
    """Name of a group of forms."""
    return "+".join(forms)


def arm_name(group: str, layers: Sequence[int]) -> str:
    """Name of the arm that edits a group at some layers."""
    from editing.studies.sweep import layers_text

    return f"{group}@{layers_text(layers)}"


def choices(
    profile: "xr.Dataset",
    config: SweepConfig,
    select: SelectConfig,
    evidence: "xr.Dataset | None" = None,
) -> list[Chosen]:
    """What every strategy and baseline chooses from a profile, for each group of the sweep.

    Strategies that read evidence (`dmle evidence`) are left out where there is none. A selection
    that does not give all forms of a group the same layers chooses none for it.
    """
    from interp.selection import baselines, strategies
    from interp.selection.select import select_layers

    n_layers = profile.sizes["layer"]
    base = select.model_copy(update={"width": config.width, "groups": config.groups})
    made: dict[str, LayerSelection] = {}
    for strategy in strategies.every():
        # A rule's own selection needs its trace, and a sweep is what choices are held against.
        if strategy.by_rule or "sweep" in strategy.reads:
            continue
        reads = "evidence" in strategy.reads
        if reads and evidence is None:
            continue
        made[strategy.name] = select_layers(
            profile,
            base.model_copy(update={"strategy": strategy.name}),
            evidence=evidence if reads else None,
        )
    made["published"] = baselines.published(n_layers, config.groups)
    made["best-layer"] = baselines.best_layer(profile, base)
    made["all"] = baselines.all_layers(n_layers, config.groups)
    if len(config.groups) > 1:
        made["reversed"] = baselines.reversed_assignment(made["window"])
    found = []
    for name, selection in made.items():
        for forms in config.groups:
            groups = [selection.group_of(form) for form in forms]
            if len({group.layers for group in groups}) == 1:
                found.append(
                    Chosen(
                        name, group_name(forms), groups[0].layers, all(g.supported for g in groups)
                    )
                )
    return found


def _settings(context: Context, layers: Sequence[int]) -> EditorSettings:
    """DMLE's stage as an editor of one block."""
    from editing.studies.sweep import layers_text

    dmle = context.settings(EditConfig).settings_of("dmle")
    return dmle.model_copy(update={"editor": dmle.solver, "block": layers_text(layers)})


def _plan(
    context: Context, n_layers: int
) -> dict[str, tuple[tuple[RuleForm, ...], tuple[int, ...]]]:
    """Forms and layers of every arm, by name."""
    from editing.studies.sweep import windows
    from interp.results import effects

    config = context.settings(SweepConfig)
    found: dict[str, tuple[tuple[RuleForm, ...], tuple[int, ...]]] = {}
    for forms in config.groups:
        for layers in windows(n_layers, config.width, config.step):
            found[arm_name(group_name(forms), layers)] = (forms, layers)
    path = context.run.path / "profile.nc"
    if path.is_file():
        of_name = {group_name(forms): forms for forms in config.groups}
        for each in choices(
            effects.load(path), config, context.settings(SelectConfig), _held_evidence(context)
        ):
            found[arm_name(each.group, each.layers)] = (of_name[each.group], each.layers)
    return found


def _held_evidence(context: Context) -> "xr.Dataset | None":
    from interp.results import effects

    path = context.run.path / "evidence.nc"
    return effects.load(path) if path.is_file() else None


def _rules(context: Context) -> list[Rule]:
    config = context.settings(SweepConfig)
    return context.rules_of(config.splits, "sweep.splits")[: config.limit]


def _sweep(context: Context) -> str:
    from editing.studies.comparison import remove_others, run_cells
    from editing.studies.lengths import check_edits, check_rules

    config, rules = context.settings(SweepConfig), _rules(context)
    evaluate = context.settings(EvaluateConfig).model_copy(update={"greedy": False})
    check_edits(context.model, rules, [context.settings(EditConfig)])
    check_rules(context.model, rules, evaluate)
    arms = _arms(context, _plan(context, context.model.n_layers), rules)
    with tqdm(total=len(arms) * len(rules), desc="sweep", unit="edit") as bar:
        cells = run_cells(
            context.model, rules, arms, evaluate, context.run.path / CELLS, advance=bar.update
        )
    if context.overwrite:
        remove_others(context.run.path / CELLS, rules, arms)
    failed = Counter(cell.arm for cell in cells if cell.error)
    with context.lock:
        _write(context, rules, cells, config)
    lines = [f"{len(cells)} edits of {len(rules)} rules: {context.run.path / 'sweep.nc'}"]
    if failed:
        first = next(cell for cell in cells if cell.error)
        lines.append(
            f"{sum(failed.values())} edits failed and have no score; {first.arm}, {first.rule}:"
            f" {first.error}"
        )
    return "\n".join(lines)


def _arms(
    context: Context,
    plan: Mapping[str, tuple[tuple[RuleForm, ...], tuple[int, ...]]],
    rules: Sequence[Rule],
) -> "list[Arm]":
    from editing.closed_form.contexts import sample_contexts
    from editing.editors.registry import Resources
    from editing.studies.comparison import Arm

    model = context.model
    needed = sorted({layer for _, layers in plan.values() for layer in layers})
    statistics = measured(context, needed)
    shared = context.settings(EditConfig)
    contexts = sample_contexts(model, shared.contexts, shared.context_tokens, shared.seed)
    resources = {shared.seed: Resources(contexts, statistics)}
    every = frozenset(rule.id for rule in rules)
    return [
        Arm(name, _settings(context, layers), resources, {group_name(forms): layers}, every, forms)
        for name, (forms, layers) in plan.items()
    ]


def _write(
    context: Context, rules: Sequence[Rule], cells: "Sequence[Cell]", config: SweepConfig
) -> None:
    """`sweep.nc` (windows), and `sweep.csv` with every cell's score, also at the layers of the
    strategies.
    """
    import pandas as pd

    from editing.evaluation.evaluate import edit_scores
    from editing.studies.sweep import success, sweep_dataset, windows
    from interp.app import freshness
    from interp.results import effects
    from interp.results.files import write_text
    from interp.results.tables import csv_text

    model, ids = context.model, [rule.id for rule in rules]
    spans = windows(model.n_layers, config.width, config.step)
    by_group: dict[str, np.ndarray] = {}
    rows: list[dict[str, Any]] = []
    for forms in config.groups:
        group = group_name(forms)
        own = [cell for cell in cells if cell.arm.startswith(f"{group}@")]
        names = list(dict.fromkeys(cell.arm for cell in own))
        scores = edit_scores([row for cell in own for row in cell.answers], names, ids, model)
        found = success(scores, forms, config.metrics, config.mode)
        by_group[group] = np.stack(
            [found.sel(editor=arm_name(group, span)).values for span in spans], axis=1
        )
        parts = scores["score"].sel(mode=config.mode, phase="post").mean("form", skipna=True)
        for name in names:
            for rule in ids:
                each = {
                    m: float(parts.sel(editor=name, rule=rule, metric=m)) for m in config.metrics
                }
                rows.append(
                    {
                        "group": group,
                        "layers": name.partition("@")[2],
                        "rule": rule,
                        "score": float(found.sel(editor=name, rule=rule)),
                        **each,
                    }
                )
    held = sweep_dataset(by_group, ids, spans)
    held.attrs |= {
        "model": model.name,
        "weight_hash": model.weight_hash,
        "n_layers": model.n_layers,
        "metrics": " ".join(config.metrics),
        "mode": config.mode,
        "edit": (
            context.settings(EditConfig)
            .settings_of("dmle")
            .model_dump_json(exclude={"layers", "block"})
        ),
        freshness.RECORD: _record(context).text(),
    }
    table = pd.DataFrame(rows)
    # Every arm's score, also at layers that are no window: what `dmle regret` reads; the CSV is for
    # people.
    arms = table.pivot(index=["group", "layers"], columns="rule", values="score").reindex(
        columns=ids
    )
    labels = {
        name: ("arm", np.array(arms.index.get_level_values(level), object))
        for name, level in ARM_LABELS.items()
    }
    held = held.assign(arm_score=(("arm", "rule"), arms.values)).assign_coords(labels)
    effects.save(held, context.run.path / "sweep.nc")
    write_text(context.run.path / "sweep.csv", csv_text(table, index=False))


def arm_table(swept: "xr.Dataset") -> "pd.DataFrame":
    """The score of every arm of a sweep: columns group, layers, rule, score."""
    flat = swept["arm_score"].to_dataframe().reset_index()
    return flat.rename(columns={**ARM_LABELS, "arm_score": "score"}).filter(
        ["group", "layers", "rule", "score"]
    )


def _record(context: Context) -> "Made":
    """What a sweep is made with: of the settings of edits, those of one editor; it asks for no
    greedy answers.
    """
    from interp.app import freshness

    edit = freshness.settings_of("edit", context.settings(EditConfig))
    of_editor = {key: value for key, value in edit.items() if key.split(".")[1] not in OF_ARMS}
    return freshness.made(
        context, "sweep", ["covariance", "sweep"], rules=["sweep"], more=of_editor
    )


def _read_by_sweep(context: Context) -> list[str]:
    """Files that a sweep reads if they are there."""
    return [name for name in ("profile.nc", "evidence.nc") if (context.run.path / name).is_file()]


def _fresh_sweep(context: Context) -> None:
    from interp.app import freshness

    freshness.check(context, *_read_by_sweep(context))


def _fresh_regret(context: Context) -> None:
    from interp.app import freshness

    context.run.need("sweep.nc", "sweep")
    context.run.need("profile.nc", "profile")
    freshness.check(context, "sweep.nc", *_read_by_sweep(context))


def _regret(context: Context) -> str:
    import pandas as pd

    from interp.app import freshness
    from interp.results import effects
    from interp.results.files import write_text
    from interp.results.tables import csv_text

    config, run = context.settings(SweepConfig), context.run
    swept = effects.load(run.need("sweep.nc", "sweep"))
    profile = effects.load(run.need("profile.nc", "profile"))
    cells = arm_table(swept)
    rows, notes = regret_rows(
        swept, profile, cells, config, context.settings(SelectConfig), _held_evidence(context)
    )
    table = pd.DataFrame(rows, columns=COLUMNS)
    more = {f"sweep.{name}": getattr(config, name) for name in ("resamples", "confidence")}
    record = freshness.made(
        context, "regret", ["select"], inputs=["sweep.nc", *_read_by_sweep(context)], more=more
    )
    held = regret_dataset(table).assign_attrs({freshness.RECORD: record.text()})
    effects.save(held, run.path / "regret.nc")
    write_text(run.path / "regret.csv", csv_text(table, index=False))
    made = regret_table(rows, notes)
    write_text(run.path / "tables" / "regret.md", made.markdown)
    write_text(run.path / "tables" / "regret.tex", made.latex)
    return f"{made.markdown}\nregret of every strategy: {run.path / 'regret.csv'}"


def regret_dataset(table: "pd.DataFrame") -> "xr.Dataset":
    """The rows of a regret table (`COLUMNS`) along ``row``, for those who read it back
    (`figures`).
    """
    import xarray as xr

    texts = ("strategy", "group", "layers", "supported")
    return xr.Dataset(
        {
            name: (
                "row",
                values.astype(str).to_numpy(object) if name in texts else values.to_numpy(float),
            )
            for name, values in table.items()
        },
        attrs={"schema": "dmle.regret/1"},
    )


def regret_rows(
    swept: "xr.Dataset",
    profile: "xr.Dataset",
    cells: "pd.DataFrame",
    config: SweepConfig,
    select: SelectConfig,
    evidence: "xr.Dataset | None" = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each strategy and group (`COLUMNS`), and sentences on what tells of edit success.

    Args:
        swept: `sweep.nc`.
        profile: `profile.nc`.
        cells: Scores of every arm (`arm_table`).
        config: Resamples and confidence.
        select: The strategies' settings; its strategy is the default that others are compared with.
        evidence: `evidence.nc`, if there is one.
    """
    from editing.studies.sweep import (
        layers_text,
        left_out,
        rank_correlation,
        regret_of,
        window_effects,
    )
    from interp.results.intervals import mean_interval
    from interp.vocabulary import LOOKUP

    options = {"resamples": config.resamples, "confidence": config.confidence}
    ids = [str(rule) for rule in swept["rule"].values]
    chosen = choices(profile, config, select, evidence)
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    for group in (str(name) for name in swept["group"].values):
        score = swept["score"].sel(group=group).transpose("rule", "window").values
        own = cells[cells["group"] == group]
        table = own.pivot(index="rule", columns="layers", values="score")
        whole = ~np.isnan(score).any(1)
        at: dict[str, tuple[str, bool | None, np.ndarray]] = {}
        for each in chosen:
            if each.group == group:
                text = layers_text(each.layers)
                values = (
                    table[text].reindex(ids).values
                    if text in table.columns
                    else np.full(len(ids), np.nan)
                )
                at[each.strategy] = (text, each.supported, np.asarray(values, dtype=float))
        at["random"] = ("any window", None, score.mean(1))
        out = np.full(len(ids), np.nan)
        out[whole] = left_out(score[whole])
        at[LEFT_OUT] = ("best for the other rules", None, out)
        default = at.get(select.strategy)
        for strategy, (text, supported, values) in at.items():
            row: dict[str, Any] = {
                "strategy": strategy,
                "group": group,
                "layers": text,
                "supported": supported,
            }
            row |= {"n_windows": score.shape[1], "n_rules": 0}
            if (whole & ~np.isnan(values)).any():
                row |= asdict(regret_of(score, values, **options))
            if default is not None and strategy != select.strategy:
                gain = default[2] - values
                gain = gain[~np.isnan(gain)]
                if len(gain):
                    lower, upper = mean_interval(
                        gain, draws=config.resamples, confidence=config.confidence, seed=0
                    )
                    row |= {
                        "against_default": float(gain.mean()),
                        "against_lower": lower,
                        "against_upper": upper,
                    }
            rows.append(row)
        forms = [form for form in group.split("+") if form in profile["form"].values]
        known = {
            f"the {select.component} profile": (
                profile["aie"].sel(component=select.component, role=LOOKUP)
            )
        }
        if evidence is not None:
            known |= {
                f"the {name} of edits": values.mean("rule")
                for name, values in evidence.data_vars.items()
            }
        spans = [
            range(s, s + w)
            for s, w in zip(swept["start"].values, swept["width"].values, strict=True)
        ]
        said = []
        for name, values in known.items():
            effect = values.sel(form=forms).mean("form").values
            value, lower, upper = rank_correlation(
                window_effects(effect, spans), score[whole], seed=0, **options
            )
            said.append(f"of {name} {value:+.2f} [{lower:+.2f}, {upper:+.2f}]")
        notes.append(
            f"{group}: rank correlation with edit success over {len(spans)} windows"
            f" {', '.join(said)}; {int(whole.sum())} of {len(ids)} rules with all cells"
        )
    return rows, notes


def regret_table(rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> "Table":
    """The rows for a paper, with the notes beneath."""
    from interp.results.tables import MISSING, Table, escape_markdown, latex, markdown

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


def _check(context: Context) -> None:
    from editing.edits.requests import requests_of

    settings = context.settings(EditConfig).settings_of("dmle")
    for rule in _rules(context):
        requests_of(rule, settings.lookup)


_SECTIONS = {
    "covariance": CovarianceConfig,
    "edit": EditConfig,
    "evaluate": EvaluateConfig,
    "select": SelectConfig,
    "sweep": SweepConfig,
}
SWEEP = Step(
    "sweep",
    _sweep,
    sweep,
    _SECTIONS,
    needs_model=True,
    check=_check,
    fresh=_fresh_sweep,
    settles=("covariance", "edit", "evaluate", "sweep"),
    shares=True,
)
REGRET = Step(
    "regret",
    _regret,
    regret,
    {"select": SelectConfig, "sweep": SweepConfig},
    fresh=_fresh_regret,
    settles=("sweep",),
)
