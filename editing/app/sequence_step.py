"""What `dmle sequence` does in a run folder: many rules edited into one model."""

from typing import TYPE_CHECKING

from editing.app.edit_steps import (
    edited_rules,
    fresh_selection,
    measured,
    record_of_scores,
    selected_layers,
)
from editing.config import CovarianceConfig, EditConfig, EvaluateConfig
from editing.studies.config import SequenceConfig
from interp.app.steps import Context, Step

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "sequence"
SHOWN = (
    "reliability",
    "reliability_recent",
    "generality",
    "instance_portability",
    "locality",
    "perplexity_ratio",
    "side_agreement",
    "side_accuracy_after",
)
"""Columns that are printed, where they are."""


def _sequence(context: Context) -> str:
    from editing.studies.arms import make_arms, own_lines
    from editing.studies.lengths import check_edits, check_rules
    from editing.studies.sequence import edit_many, remove_others, write_many
    from interp.app import freshness

    config, sequence = context.settings(EditConfig), context.settings(SequenceConfig)
    model, rules, folder = context.model, edited_rules(context, config), context.run.path
    evaluate = context.settings(EvaluateConfig).teacher_forced
    check_edits(model, rules, [config.settings_of(name) for name in config.editors])
    check_rules(model, rules, evaluate)
    arms = make_arms(
        model,
        config,
        rules,
        statistics=lambda layers: measured(context, layers),
        selected=selected_layers(context, config),
    )
    without = len({*config.editors} & {*sequence.without_batch}) * ("batch" in sequence.orders)
    total = (len(arms) * len(sequence.orders) - without) * len(rules)
    with context.progress(total=total, desc="sequence", unit="rule") as bar:
        study = edit_many(
            model,
            rules,
            arms,
            folder / FOLDER,
            config=sequence,
            evaluate=evaluate,
            covariance=context.settings(CovarianceConfig),
            advance=bar.update,
        )
    if context.overwrite:
        remove_others(folder / FOLDER, config.editors)
    record = record_of_scores(context, "sequence", "covariance", "sequence")
    study.data.attrs[freshness.RECORD] = record.text()
    path = write_many(study, folder)
    lines = [_shown(study.table), f"scores: {path}; for people: {folder / 'sequence.csv'}"]
    lines += own_lines(arms)
    return "\n".join([*lines, *(f"{name}: {error}" for name, error in study.errors.items())])


def _shown(table: "pd.DataFrame") -> str:
    """A line for each arm, order and checkpoint."""
    columns = [name for name in SHOWN if name in table]
    shown = table[["arm", "order", "edits", "failed", *columns]]
    return shown.to_string(index=False, float_format="%.3f")


def _check_sequence(context: Context) -> None:
    from editing.editors.registry import options_of
    from editing.edits.requests import requests_of
    from editing.studies.arms import is_by_rule
    from editing.studies.sequence_checks import check_arms

    config = context.settings(EditConfig)
    settings = {name: config.settings_of(name) for name in config.editors}
    by_rule = [name for name, each in settings.items() if is_by_rule(each)]
    check_arms(settings, context.settings(SequenceConfig), by_rule)
    for each in settings.values():
        options_of(each)
    for rule in edited_rules(context, config):
        for lookup in sorted({each.lookup for each in settings.values()}):
            requests_of(rule, lookup)


SEQUENCE = Step(
    "sequence",
    _sequence,
    {
        "covariance": CovarianceConfig,
        "edit": EditConfig,
        "evaluate": EvaluateConfig,
        "sequence": SequenceConfig,
    },
    needs_model=True,
    check=_check_sequence,
    fresh=fresh_selection,
)
