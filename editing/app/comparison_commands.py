"""`dmle compare` and `dmle tune`: many arms on many rules, and settings chosen on training
rules.
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import yaml
from cyclopts import Parameter
from tqdm import tqdm

from editing.app.commands import (
    edited_rules,
    fresh_selection,
    layer_plan,
    measured,
    reads_selection,
    record_of_scores,
    selected_layers,
    training_rules,
)
from editing.config import (
    EDITORS,
    CompareConfig,
    CovarianceConfig,
    EditConfig,
    EvaluateConfig,
    TuneConfig,
)
from interp.app.commands import Common, execute
from interp.app.steps import Context, Step
from interp.config import ConfigError, RulesConfig
from interp.errors import InputError
from interp.results.provenance import fingerprint
from interp.rules.sources import Rule, load_rules
from interp.settings.names import name_fault, safe_name
from interp.settings.plain_yaml import load_yaml

if TYPE_CHECKING:
    from editing.evaluation.side_effects import Probes
    from editing.studies.comparison import Arm, Cell

CELLS = "cells"
MAX_TRIALS = 10_000
"""Combinations of a grid."""
MODES = ("token_accuracy", "exact", "greedy_prefix", "equivalent", "kl")
"""Modes that get a table."""
PRESETS = ("paper",)
BYSTANDER_TEXTS = 2
BYSTANDER_TOKENS = 20
"""Tokens of each free generation of the fluency scores."""


def compare(
    *,
    preset: Annotated[
        str | None, Parameter(help="paper: the arms that the claims of the paper need.")
    ] = None,
    editors: Annotated[str | None, Parameter(help="Editors or arms separated by commas.")] = None,
    common: Common | None = None,
) -> None:
    """Edit every rule with every arm, score each edit, and compare the arms in pairs.

    All arms get the same requests. One file per rule, arm and seed: a stopped comparison continues,
    several processes may work on one run folder, and a failure of one arm is counted, never a zero.
    Arms with layers: auto need `selection.json` in the run folder. Of a preset, what is said with
    --editors or --set counts before it.

    For example:

        dmle compare --preset paper --run runs/compare

        dmle compare --editors dmle,memit,ft --run runs/small --limit 2
    """
    named = {"edit.editors": editors.split(",")} if editors else {}
    execute(["compare"], common, lambda: {**_preset(preset), **named})


def tune(*, common: Common | None = None) -> None:
    """Try the settings of a grid on training rules, and write the best with the evidence to
    `tuned.yaml`.

    The grid is `tune.grid` of a configuration file, each setting of an editor with its values, or a
    list of such grids; every combination is an arm on top of `edit`. `tune.floors` says what an arm
    must keep to be chosen. Rules without a split must be named in `rules.ids`: whoever does so says
    that they are not evaluated on.

    For example:

        dmle tune --config docs/tune.yaml --run runs/tune
    """
    execute(["tune"], common, {})


def _preset(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there is {', '.join(PRESETS)}")
    held = load_yaml(files("editing").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    return {
        f"{section}.{key}": value
        for section, values in held.items()
        for key, value in values.items()
    }


def _compare(context: Context) -> str:
    config, compared = context.settings(EditConfig), context.settings(CompareConfig)
    rules = edited_rules(context, config)
    few = frozenset(rule.id for rule in rules[: compared.few_rules])
    every = frozenset(rule.id for rule in rules)
    of_arm = {name: few if name in compared.few else every for name in config.editors}
    _check_lengths(context, rules, config)
    arms = _arms(context, config, compared.seeds, of_arm)
    cells = _run(context, rules, arms, "compare")
    failed = Counter(cell.arm for cell in cells if cell.error)
    with context.lock:  # files of two comparisons are not mixed
        lines = _write(context, rules, arms, cells, failed, compared)
    if failed:
        first = {cell.arm: f"{cell.rule}: {cell.error}" for cell in reversed(cells) if cell.error}
        lines += [
            f"{n} edits of {name} failed and have no score; {first[name]}"
            for name, n in failed.items()
        ]
    return "\n".join(lines)


def _check_lengths(context: Context, rules: Sequence[Rule], config: EditConfig) -> None:
    from editing.studies.lengths import check_edits, check_rules

    check_edits(context.model, rules, [config.settings_of(name) for name in config.editors])
    check_rules(context.model, rules, context.settings(EvaluateConfig))


def _arms(
    context: Context, config: EditConfig, seeds: Sequence[int], of_arm: Mapping[str, frozenset[str]]
) -> "list[Arm]":
    from editing.closed_form.contexts import sample_contexts
    from editing.editors.registry import CLOSED_FORM, Resources, layers_of
    from editing.studies.comparison import Arm

    model = context.model
    settings = {name: config.settings_of(name) for name in config.editors}
    selected = selected_layers(context, settings.values())
    plans = {name: layer_plan(each, model.n_layers, selected) for name, each in settings.items()}
    needed = sorted(
        {layer for each in settings.values() for layer in layers_of(each, model.n_layers, selected)}
    )
    statistics = measured(context, needed) if needed else None
    training = training_rules(settings.values())
    sampled: dict[tuple[int, int, int], tuple[str, ...]] = {}
    arms = []
    for name, each in settings.items():
        resources = {}
        for seed in seeds:
            which = (each.contexts, each.context_tokens, seed)
            if each.editor in CLOSED_FORM and which not in sampled:
                sampled[which] = sample_contexts(model, *which)
            resources[seed] = Resources(sampled.get(which, ("",)), statistics, selected, training)
        arms.append(Arm(name, each, resources, plans[name], of_arm[name]))
    return arms


def _run(context: Context, rules: list[Rule], arms: "list[Arm]", what: str) -> "list[Cell]":
    from editing.studies.comparison import remove_others, run_cells

    folder = context.run.path / CELLS
    total = sum(len(arm.resources) * sum(rule.id in arm.rules for rule in rules) for arm in arms)
    with tqdm(total=total, desc=what, unit="edit") as bar:
        cells = run_cells(
            context.model,
            rules,
            arms,
            context.settings(EvaluateConfig),
            folder,
            probes=_probes(context, rules),
            advance=bar.update,
        )
    if context.overwrite:
        remove_others(folder, rules, arms)
    return cells


def _probes(context: Context, rules: Sequence[Rule]) -> "Probes | None":
    """Validation rules of the embedded rulebook that are not edited, and plain text."""
    from editing.evaluation.side_effects import probes_of
    from interp.models import corpus

    if not (n := context.settings(CompareConfig).bystanders):
        return None
    edited = {rule.id for rule in rules}
    others = [
        rule for rule in load_rules("embedded", split="validation").rules if rule.id not in edited
    ]
    _, texts = corpus.paragraphs()
    # From the end: the statistics of the keys are measured from the beginning.
    found = probes_of(others[:: max(1, len(others) // n)][:n], texts[-BYSTANDER_TEXTS:])
    return replace(found, answer_tokens=BYSTANDER_TOKENS)


def _write(
    context: Context,
    rules: list[Rule],
    arms: "list[Arm]",
    cells: "Sequence[Cell]",
    failed: Mapping[str, int],
    config: CompareConfig,
) -> list[str]:
    """Scores, answers, pairs and tables of the cells that are there."""
    import pandas as pd

    from editing.evaluation.evaluate import COLUMNS, edit_scores
    from editing.studies.paired import comparison_table, pair_table, pairs
    from interp.app import freshness
    from interp.results import effects
    from interp.results.files import write_text
    from interp.results.records import save_records
    from interp.results.tables import csv_text

    run = context.run.path
    names = [arm.name for arm in arms]
    answers = [{**row, "seed": cell.seed} for cell in cells for row in cell.answers]
    scores = edit_scores(answers, names, [rule.id for rule in rules], context.model)
    scores["failed"] = ("editor", [failed.get(name, 0) for name in names])
    scores.attrs["seeds"] = list(config.seeds)
    scores.attrs[freshness.RECORD] = record_of_scores(
        context, "compare", "evaluate", "compare"
    ).text()
    effects.save(scores, run / "scores.nc")
    save_records(run / "answers.json", ["seed", *COLUMNS], answers)
    table = pd.DataFrame(answers, columns=["seed", *COLUMNS])
    write_text(run / "answers.csv", csv_text(table, index=False, quote_text=True))
    side = pd.DataFrame(
        [
            {
                "arm": cell.arm,
                "rule": cell.rule,
                "seed": cell.seed,
                "cpu_seconds": round(cell.seconds, 3),
                "requests": cell.requests,
                "error": cell.error,
                **cell.side_effects,
            }
            for cell in cells
        ]
    )
    write_text(run / "cells.csv", csv_text(side, index=False))
    lines = []
    # Of other modes and arms.
    for path in (*(run / "tables").glob("comparison-*.*"), *(run / "tables").glob("pairs-*.*")):
        path.unlink()
    for path in (run / "published").glob("*/metrics_rule_*.json"):
        path.unlink()
    for mode in MODES:
        if not scores["n_items"].sel(mode=mode).any():
            continue
        made = comparison_table(
            scores, mode, failed, resamples=config.resamples, confidence=config.confidence
        )
        two = [(f"comparison-{mode}", made)]
        reference = config.reference or names[0]
        scored = scores["n_items"].sel(mode=mode).sum(["rule", "form", "metric", "phase"])
        if scored.sel(editor=reference) and int((scored > 0).sum()) > 1:
            found = pairs(
                scores, mode, reference, resamples=config.resamples, confidence=config.confidence
            )
            two.append((f"pairs-{mode}", pair_table(found, mode)))
        for name, one in two:
            write_text(run / "tables" / f"{name}.md", one.markdown)
            write_text(run / "tables" / f"{name}.tex", one.latex)
        if not lines:
            lines = [one.markdown for _, one in two]
    published = _write_published(run, rules, names, answers, config)
    means = side.drop(columns=["rule", "seed", "error"]).groupby("arm", sort=False).mean()
    write_text(
        run / "tables" / "side-effects.csv", csv_text(pd.DataFrame(means), float_format="%.3f")
    )
    return [
        *lines,
        (
            f"scores: {run / 'scores.nc'}; tables: {run / 'tables'}; every answer:"
            f" {run / 'answers.csv'}"
        ),
        *published,
    ]


def _write_published(
    run: Path,
    rules: list[Rule],
    names: list[str],
    answers: list[dict[str, Any]],
    config: CompareConfig,
) -> list[str]:
    """Files and averages as the published driver and its `cal_avg.py` have them, for the first
    seed.
    """
    import pandas as pd

    from editing.evaluation.reference_format import case_average, metrics_of, rule_average
    from interp.results.files import inside, write_text
    from interp.results.tables import csv_text

    rows = []
    for name in names:
        records = []
        for rule in rules:
            own = [
                a
                for a in answers
                if a["editor"] == name and a["rule"] == rule.id and a["seed"] == config.seeds[0]
            ]
            if not own:
                continue
            records.append(metrics_of(rule, own, only_published=True))
            path = inside(
                run / "published", name, f"metrics_rule_{rule.id.removeprefix('ruleedit-')}.json"
            )
            write_text(path, json.dumps(records[-1], indent=1, ensure_ascii=False))
        for how, averages in (
            ("cal_avg", case_average(records)),
            ("driver", rule_average(records)),
        ):
            rows += [
                {"arm": name, "average": how, "phase": phase, **each}
                for phase, each in averages.items()
            ]
    write_text(
        run / "tables" / "published-averages.csv",
        csv_text(pd.DataFrame(rows).round(4), index=False),
    )
    return [f"as the published driver writes them: {run / 'published'}"]


# -- tuning --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """One combination of the grid."""

    name: str
    values: Mapping[str, Any]


def trials(config: TuneConfig) -> list[Trial]:
    """Every combination of the values of a grid, for each grid; what two grids share is tried
    once.
    """
    found = {}
    for grid in config.grids:
        if (count := math.prod(map(len, grid.values()))) > MAX_TRIALS:
            raise ConfigError(f"tune.grid has {count} combinations; at most {MAX_TRIALS} are tried")
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            found.setdefault(json.dumps(chosen, default=str), chosen)
    if len(found) > MAX_TRIALS:
        raise ConfigError(
            f"tune.grid has {len(found)} combinations; at most {MAX_TRIALS} are tried"
        )
    named: dict[str, Trial] = {}
    for chosen in found.values():
        name = _trial_name(chosen)
        # Another of the same name, up to case: a number tells them apart.
        taken = {other.casefold() for other in named}
        numbered = (f"{name} ({i})" for i in itertools.count(2))
        name = next(n for n in itertools.chain((name,), numbered) if n.casefold() not in taken)
        named[name] = Trial(name, chosen)
    return list(named.values())


def _trial_name(chosen: Mapping[str, Any]) -> str:
    """The values in words, as a name of a folder."""
    parts = []
    for key, value in chosen.items():
        written = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        parts.append(f"{key}={written}")
    name = safe_name(" ".join(" ".join(parts).split()))
    return (
        name
        if name_fault(name) is None
        else f"{name[:60].strip('. ')}-{fingerprint(chosen=dict(chosen))}"
    )


def _trial_config(context: Context) -> EditConfig:
    config, tuned = context.settings(EditConfig), context.settings(TuneConfig)
    found = trials(tuned)
    shared = config.model_dump(include=config.model_fields_set - {"arms", "editors"})
    arms = {trial.name: {"editor": tuned.editor, **trial.values} for trial in found}
    return EditConfig.model_validate(
        {**shared, "arms": arms, "editors": list(arms), "splits": ["train"]}
    )


def _tuning_rules(context: Context) -> list[Rule]:
    rules = context.rules_of(("train",), "the rules' split")
    if any(rule.split is None for rule in rules) and context.settings(RulesConfig).ids is None:
        raise InputError(
            "these rules have no split; name those to tune on in rules.ids, and evaluate on none of"
            " them afterwards"
        )
    return rules[: context.settings(EditConfig).limit]


def _tune(context: Context) -> str:
    from editing.evaluation.evaluate import edit_scores
    from interp.app import freshness
    from interp.results import effects
    from interp.results.files import write_text
    from interp.results.scores import per_rule

    tuned, rules, config = (
        context.settings(TuneConfig),
        _tuning_rules(context),
        _trial_config(context),
    )
    every = frozenset(rule.id for rule in rules)
    _check_lengths(context, rules, config)
    arms = _arms(context, config, (config.seed,), dict.fromkeys(config.editors, every))
    cells = _run(context, rules, arms, "tune")
    failed = Counter(cell.arm for cell in cells if cell.error)
    # A setting that failed somewhere is not chosen, however good the rest is.
    if len(failed) == len(config.editors):
        error = next(cell.error for cell in cells if cell.error)
        raise InputError(f"every setting of the grid failed on some rule; one error: {error}")
    answers = [row for cell in cells for row in cell.answers]
    scores = edit_scores(answers, list(config.editors), [rule.id for rule in rules], context.model)
    means = per_rule(scores, tuned.mode).sel(phase="post", metric=list(tuned.metrics)).mean("rule")
    means = means.reindex(editor=list(config.editors))  # one that failed on all rules has no scores
    evidence = []
    for trial in trials(tuned):
        of = {
            metric: float(means.sel(editor=trial.name, metric=metric)) for metric in tuned.metrics
        }
        objective = float(np.mean(list(of.values())))
        judged = trial.name not in failed and np.isfinite(objective)
        evidence.append(
            {
                "settings": dict(trial.values),
                **{metric: round(value, 4) for metric, value in of.items()},
                "objective": round(objective, 4) if judged else None,
                "lacks": sum(max(0.0, least - of[name]) for name, least in tuned.floors.items()),
                "failed": failed[trial.name],
            }
        )
    evidence.sort(
        key=lambda each: (each["objective"] is None, each["lacks"], -(each["objective"] or 0.0))
    )
    best = evidence[0]
    if best["objective"] is None:
        empty = [metric for metric in tuned.metrics if not np.isfinite(best[metric])]
        raise InputError(
            f"no prompt of these rules is scored for {', '.join(empty)}; take it out of"
            " tune.metrics"
        )
    held = {
        "chosen": {"editor": tuned.editor, **best["settings"]},
        "objective": (
            f"mean of {', '.join(tuned.metrics)} ({tuned.mode}) over {len(rules)} training rules"
        ),
        "floors": dict(tuned.floors),
        "floors_reached": best["lacks"] == 0,
        "rules": [rule.id for rule in rules],
        "evidence": evidence,
    }
    sections = ["edit", "covariance", "evaluate", "tune"]
    scores.attrs[freshness.RECORD] = freshness.made(
        context, "tune", sections, rules=["tune"]
    ).text()
    path = context.run.path / "tuned.yaml"
    with context.lock:
        effects.save(scores, context.run.path / "tuning.nc")
        write_text(path, yaml.safe_dump(held, sort_keys=False, allow_unicode=True))
    top = "\n".join(f"  {each['objective']}  {each['settings']}" for each in evidence[:5])
    if best["lacks"]:
        top += f"\nno setting reaches {dict(tuned.floors)}; the first lacks {best['lacks']:.4f}"
    return (
        f"best of {len(evidence)} settings by {held['objective']}:\n{top}\nsettings and evidence:"
        f" {path}"
    )


def _check_compare(context: Context) -> None:
    config, compared = context.settings(EditConfig), context.settings(CompareConfig)
    edited_rules(context, config)
    # Few may name arms that are not run this time.
    known = {*config.editors, *config.arms, *EDITORS}
    if wrong := [name for name in compared.few if name not in known]:
        raise InputError(
            f"compare.few names {', '.join(wrong)}; the arms are {', '.join(config.editors)}"
        )
    if compared.reference and compared.reference not in config.editors:
        raise InputError(
            f"compare.reference names {compared.reference};"
            f" the arms are {', '.join(config.editors)}"
        )


def _check_tune(context: Context) -> None:
    _tuning_rules(context)
    _trial_config(context)


def _fresh_tune(context: Context) -> None:
    from interp.app import freshness

    config = _trial_config(context)
    if reads_selection(config.settings_of(name) for name in config.editors):
        context.run.need("selection.json", "select")
        freshness.check(context, "selection.json")


_SECTIONS = {
    "covariance": CovarianceConfig,
    "edit": EditConfig,
    "evaluate": EvaluateConfig,
    "compare": CompareConfig,
    "tune": TuneConfig,
}
COMPARE = Step(
    "compare",
    _compare,
    compare,
    _SECTIONS,
    needs_model=True,
    check=_check_compare,
    fresh=fresh_selection,
    settles=("covariance", "edit", "evaluate", "compare"),
    shares=True,
)
TUNE = Step(
    "tune",
    _tune,
    tune,
    _SECTIONS,
    needs_model=True,
    check=_check_tune,
    fresh=_fresh_tune,
    settles=("covariance", "edit", "evaluate", "tune"),
    shares=True,
)
