"""What `dmle compare` and `dmle tune` do in a run folder; several processes may share the work."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from editing.app.edit_steps import (
    edited_rules,
    fresh_selection,
    measured,
    record_of_scores,
    selected_layers,
)
from editing.config import CovarianceConfig, EditConfig, EvaluateConfig
from editing.names import editor_names
from editing.studies.config import CompareConfig, TuneConfig
from interp.app.steps import EXECUTOR, Context, Step
from interp.app.workers import spread_of
from interp.config import RulesConfig
from interp.errors import InputError
from interp.rules.sources import Rule

if TYPE_CHECKING:
    from editing.studies.arms import Arm
    from interp.planning.plan import Costs, Work

CELLS = "cells"
TRIALS_SHOWN = 5


def _arms(
    context: Context, config: EditConfig, rules: Sequence[Rule], compared: CompareConfig
) -> "list[Arm]":
    """The arms, after a look at the lengths of all texts."""
    from editing.evaluation.items import check_challenges
    from editing.studies.arms import make_arms
    from editing.studies.lengths import check_edits, check_rules

    check_challenges(rules, context.settings(EvaluateConfig).challenges)
    model = context.model
    check_edits(model, rules, [config.settings_of(name) for name in config.editors])
    check_rules(model, rules, context.settings(EvaluateConfig))
    return make_arms(
        model,
        config,
        rules,
        statistics=lambda layers: measured(context, layers),
        selected=selected_layers(context, config),
        seeds=compared.seeds,
        few=compared.few,
        few_rules=compared.few_rules,
    )


def _total(arms: "Sequence[Arm]") -> int:
    return sum(len(arm.seeds) * len(arm.rules) for arm in arms)


def _compare(context: Context) -> str:
    from editing.studies.arms import own_lines
    from editing.studies.cells import remove_others
    from editing.studies.comparison import compare
    from editing.studies.comparison_files import write_comparison
    from interp.app import freshness

    config, compared = context.settings(EditConfig), context.settings(CompareConfig)
    rules, folder = edited_rules(context, config), context.run.path
    arms = _arms(context, config, rules, compared)
    with context.progress(total=_total(arms), desc="compare", unit="edit") as bar:
        comparison = compare(
            context.model,
            rules,
            arms,
            folder / CELLS,
            config=compared,
            evaluate=context.settings(EvaluateConfig),
            advance=bar.update,
            spread=spread_of(context, "compare"),
        )
    if context.overwrite:
        remove_others(folder / CELLS, rules, arms)
    record = record_of_scores(context, "compare", "evaluate", "compare")
    comparison.scores.attrs[freshness.RECORD] = record.text()
    with context.lock:  # files of two comparisons are not mixed
        tables = write_comparison(comparison, folder)
    first = next(iter(tables.values()), {})
    failures = [
        f"{n} edits of {name} failed and have no score; {comparison.errors[name]}"
        for name, n in comparison.failed.items()
    ]
    lines = [
        *(table.markdown for table in first.values()),
        (
            f"scores: {folder / 'scores.nc'}; tables: {folder / 'tables'}; every answer:"
            f" {folder / 'answers.csv'}"
        ),
        f"as the published driver writes them: {folder / 'published'}",
        *own_lines(arms),
        *failures,
    ]
    return "\n".join(lines)


def _comparer(context: Context) -> Callable[[str], None]:
    config, compared = context.settings(EditConfig), context.settings(CompareConfig)
    rules = edited_rules(context, config)
    return _cell_runner(context, rules, _arms(context, config, rules, compared))


def _cell_runner(
    context: Context, rules: Sequence[Rule], arms: "Sequence[Arm]"
) -> Callable[[str], None]:
    from editing.studies.cells import cell_runner
    from editing.studies.comparison import bystanders

    return cell_runner(
        context.model,
        rules,
        arms,
        context.settings(EvaluateConfig),
        context.run.path / CELLS,
        probes=bystanders(rules, context.settings(CompareConfig).bystanders),
    )


def _check_compare(context: Context) -> None:
    config, compared = context.settings(EditConfig), context.settings(CompareConfig)
    edited_rules(context, config)
    # Few may name arms that are not run this time.
    known = {*config.editors, *config.arms, *editor_names()}
    if wrong := [name for name in compared.few if name not in known]:
        raise InputError(
            f"compare.few names {', '.join(wrong)}; the arms are {', '.join(config.editors)}"
        )
    if compared.reference and compared.reference not in config.editors:
        raise InputError(
            f"compare.reference names {compared.reference}; the arms are"
            f" {', '.join(config.editors)}"
        )


def _plan_compare(context: Context, costs: "Costs", note: Callable[[str], object]) -> "list[Work]":
    from editing.app.plan_works import Cells, plan_cells
    from editing.studies.comparison import bystanders
    from editing.studies.counting import Asked

    config, compared = context.settings(EditConfig), context.settings(CompareConfig)
    rules = edited_rules(context, config)
    probes = bystanders(rules, compared.bystanders)
    asked = Asked(evaluate=context.settings(EvaluateConfig), probes=probes)
    cells = Cells(
        "compare",
        rules,
        config,
        asked,
        context.run.path / CELLS,
        compared.seeds,
        compared.few,
        compared.few_rules,
    )
    return plan_cells(context, costs, note, cells)


# -- tuning --------------------------------------------------------------------------------------


def _trial_config(context: Context) -> EditConfig:
    from editing.studies.grid import trial_config

    return trial_config(context.settings(EditConfig), context.settings(TuneConfig))


def _tuning_rules(context: Context) -> list[Rule]:
    rules = context.rules_of(("train",), "the rules' split")
    if any(rule.split is None for rule in rules) and context.settings(RulesConfig).ids is None:
        raise InputError(
            "these rules have no split; name those to tune on in rules.ids, and evaluate on none of"
            " them afterwards"
        )
    return rules[: context.settings(EditConfig).limit]


def _tune(context: Context) -> str:
    from editing.studies.cells import remove_others
    from editing.studies.tuning import tune, write_tuning
    from interp.app import freshness

    tuned, config = context.settings(TuneConfig), _trial_config(context)
    rules, folder = _tuning_rules(context), context.run.path
    arms = _arms(context, config, rules, CompareConfig(seeds=(config.seed,)))
    with context.progress(total=_total(arms), desc="tune", unit="edit") as bar:
        tuning = tune(
            context.model,
            rules,
            arms,
            folder / CELLS,
            config=tuned,
            evaluate=context.settings(EvaluateConfig),
            bystanders=context.settings(CompareConfig).bystanders,
            advance=bar.update,
            spread=spread_of(context, "tune"),
        )
    if context.overwrite:
        remove_others(folder / CELLS, rules, arms)
    sections = ["edit", "covariance", "evaluate", "tune"]
    record = freshness.made(context, "tune", sections, rules=["tune"])
    tuning.scores.attrs[freshness.RECORD] = record.text()
    with context.lock:
        path = write_tuning(tuning, folder)
    lines = [f"best of {len(tuning.evidence)} settings by {tuning.objective}:"]
    best = tuning.evidence[:TRIALS_SHOWN]
    lines += [f"  {each['objective']}  {each['settings']}" for each in best]
    if tuning.lacks:
        floors = dict(tuned.floors)
        lines.append(f"no setting reaches {floors}; the first lacks {tuning.lacks:.4f}")
    return "\n".join([*lines, f"settings and evidence: {path}"])


def _trier(context: Context) -> Callable[[str], None]:
    config, rules = _trial_config(context), _tuning_rules(context)
    arms = _arms(context, config, rules, CompareConfig(seeds=(config.seed,)))
    return _cell_runner(context, rules, arms)


def _plan_tune(context: Context, costs: "Costs", note: Callable[[str], object]) -> "list[Work]":
    from editing.app.plan_works import Cells, plan_cells
    from editing.studies.comparison import bystanders
    from editing.studies.counting import Asked

    config, rules = _trial_config(context), _tuning_rules(context)
    probes = bystanders(rules, context.settings(CompareConfig).bystanders)
    asked = Asked(evaluate=context.settings(EvaluateConfig), probes=probes)
    cells = Cells("tune", rules, config, asked, context.run.path / CELLS, (config.seed,))
    return plan_cells(context, costs, note, cells)


def _check_tune(context: Context) -> None:
    _tuning_rules(context)
    _trial_config(context)


_SECTIONS = {
    "covariance": CovarianceConfig,
    "edit": EditConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "tune": TuneConfig,
    **EXECUTOR,
}
COMPARE = Step(
    "compare",
    _compare,
    _SECTIONS,
    needs_model=True,
    check=_check_compare,
    fresh=fresh_selection,
    settles=("covariance", "edit", "evaluate", "compare"),
    shares=True,
    worker=_comparer,
    plan=_plan_compare,
)
TUNE = Step(
    "tune",
    _tune,
    _SECTIONS,
    needs_model=True,
    check=_check_tune,
    fresh=lambda context: fresh_selection(context, _trial_config(context)),
    settles=("covariance", "edit", "evaluate", "tune"),
    shares=True,
    worker=_trier,
    plan=_plan_tune,
)
