"""What `dmle sweep`, `dmle regret` and `dmle evidence` do in a run folder: where edits succeed, and
what tells of it.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from editing.app.edit_steps import measured
from editing.config import CovarianceConfig, EditConfig, EvaluateConfig
from editing.studies.config import SweepConfig
from interp.app.steps import EXECUTOR, Context, Step
from interp.app.workers import spread_of
from interp.config import SelectConfig
from interp.errors import InputError
from interp.rules.sources import Rule

if TYPE_CHECKING:
    import xarray as xr

    from editing.studies.cells import Cell
    from editing.studies.layer_sweep import Block
    from interp.app.freshness import Made
    from interp.planning.plan import Costs, Work

CELLS = "sweep"
OF_ARMS = ("editor", "editors", "arms", "mode", "layers", "block")
"""Settings of edits that a layer sweep does not read."""


# -- sweep ---------------------------------------------------------------------------------------


def _swept_rules(context: Context) -> list[Rule]:
    config = context.settings(SweepConfig)
    return context.rules_of(config.splits, "sweep.splits")[: config.limit]


def _evidence_there(context: Context) -> "xr.Dataset | None":
    from interp.results import effects

    path = context.run.path / "evidence.nc"
    return effects.load(path) if path.is_file() else None


def _blocks(context: Context) -> "list[Block]":
    """Every window, and the layers that strategies choose from the run's profile, if it has one."""
    from editing.studies.layer_sweep import blocks
    from editing.studies.regret import choices, placed
    from interp.results import effects

    config, path = context.settings(SweepConfig), context.run.path / "profile.nc"
    chosen = []
    if path.is_file():
        edit = context.settings(EditConfig).settings_of("dmle")
        select = placed(context.settings(SelectConfig), edit.model_dump())
        chosen = choices(effects.load(path), config, select, _evidence_there(context))
    return blocks(context.model.n_layers, config, [each.block for each in chosen])


def _sweep(context: Context) -> str:
    from editing.studies.cells import remove_others
    from editing.studies.layer_sweep import block_arms, sweep_layers, write_layer_sweep
    from editing.studies.lengths import check_edits, check_rules
    from interp.app import freshness

    config, model, rules = context.settings(SweepConfig), context.model, _swept_rules(context)
    edit, folder = context.settings(EditConfig), context.run.path
    evaluate = _of_sweep(context)
    check_edits(model, rules, [edit])
    check_rules(model, rules, evaluate)
    places, dmle = _blocks(context), edit.settings_of("dmle")
    arms = block_arms(model, rules, places, dmle, lambda layers: measured(context, layers))
    with context.progress(total=len(arms) * len(rules), desc="sweep", unit="edit") as bar:
        sweep = sweep_layers(
            model,
            rules,
            places,
            arms,
            folder / CELLS,
            config=config,
            evaluate=evaluate,
            advance=bar.update,
            spread=spread_of(context, "sweep"),
        )
    if context.overwrite:
        remove_others(folder / CELLS, rules, arms)
    sweep.success.attrs |= {
        "edit": dmle.model_dump_json(exclude={"layers", "block"}),
        freshness.RECORD: _record_of_sweep(context).text(),
    }
    with context.lock:
        path = write_layer_sweep(sweep, folder)
    lines = [f"{len(sweep.cells)} edits of {len(rules)} rules: {path}", *_failures(sweep.cells)]
    return "\n".join(lines)


def _plan_sweep(context: Context, costs: "Costs", note: Callable[[str], object]) -> "list[Work]":
    from editing.app.plan_works import Cells, plan_cells
    from editing.studies.counting import Asked

    rules, edit = _swept_rules(context), context.settings(EditConfig)
    asked = Asked(evaluate=_of_sweep(context))
    folder = context.run.path / CELLS
    cells = Cells("sweep", rules, edit, asked, folder, blocks=_blocks(context))
    return plan_cells(context, costs, note, cells)


def _of_sweep(context: Context) -> EvaluateConfig:
    return context.settings(EvaluateConfig).teacher_forced


def _sweeper(context: Context) -> Callable[[str], None]:
    from editing.studies.cells import cell_runner
    from editing.studies.layer_sweep import block_arms

    model, rules = context.model, _swept_rules(context)
    dmle = context.settings(EditConfig).settings_of("dmle")
    places = _blocks(context)
    arms = block_arms(model, rules, places, dmle, lambda layers: measured(context, layers))
    return cell_runner(model, rules, arms, _of_sweep(context), context.run.path / CELLS)


def _failures(cells: "Sequence[Cell]") -> list[str]:
    failed = Counter(cell.arm for cell in cells if cell.error)
    if not failed:
        return []
    first = next(cell for cell in cells if cell.error)
    return [
        f"{failed.total()} edits failed and have no score; {first.arm}, {first.rule}: {first.error}"
    ]


def _record_of_sweep(context: Context) -> "Made":
    """What a layer sweep is made with: of the settings of edits, those of one editor; it asks for
    no greedy answers.
    """
    from interp.app import freshness

    edit = freshness.settings_of("edit", context.settings(EditConfig))
    of_editor = {key: value for key, value in edit.items() if key.split(".")[1] not in OF_ARMS}
    return freshness.made(
        context, "sweep", ["covariance", "sweep"], rules=["sweep"], more=of_editor
    )


def _read_by_sweep(context: Context) -> list[str]:
    """Files that a layer sweep reads if they are there."""
    return [name for name in ("profile.nc", "evidence.nc") if (context.run.path / name).is_file()]


def _check_sweep(context: Context) -> None:
    _check_lookup(context, _swept_rules(context))


def _check_lookup(context: Context, rules: Sequence[Rule]) -> None:
    """See that every prompt has the token that DMLE looks up."""
    from editing.edits.requests import requests_of

    lookup = context.settings(EditConfig).settings_of("dmle").lookup
    for rule in rules:
        requests_of(rule, lookup)


def _fresh_sweep(context: Context) -> None:
    from interp.app import freshness

    freshness.check(context, *_read_by_sweep(context))


# -- regret --------------------------------------------------------------------------------------


def _regret(context: Context) -> str:
    from editing.studies.regret import regret, write_regret
    from interp.app import freshness
    from interp.results import effects

    config, run = context.settings(SweepConfig), context.run
    swept = effects.load(run.need("sweep.nc", "sweep"))
    profile = effects.load(run.need("profile.nc", "profile"))
    select = context.settings(SelectConfig)
    regrets = regret(swept, profile, config, select, _evidence_there(context))
    more = {f"sweep.{name}": getattr(config, name) for name in ("resamples", "confidence")}
    inputs = ["sweep.nc", *_read_by_sweep(context)]
    record = freshness.made(context, "regret", ["select"], inputs=inputs, more=more)
    path = write_regret(regrets, run.path, {freshness.RECORD: record.text()})
    return f"{regrets.text.markdown}\nregret of every strategy: {path}"


def _fresh_regret(context: Context) -> None:
    from interp.app import freshness

    context.run.need("sweep.nc", "sweep")
    context.run.need("profile.nc", "profile")
    freshness.check(context, "sweep.nc", *_read_by_sweep(context))


# -- evidence ------------------------------------------------------------------------------------


def _profiled_rules(context: Context) -> list[Rule]:
    from interp.results import effects

    profile = effects.load(context.run.need("profile.nc", "profile"))
    wanted = {str(rule) for rule in profile["rule"].values}
    rules = [rule for rule in context.rules.rules if rule.id in wanted]
    if missing := sorted(wanted - {rule.id for rule in rules}):
        raise InputError(
            f"{len(missing)} rules of profile.nc are not among this run's rules (the first:"
            f" {missing[0]}); give the rules, split and limit of the trace"
        )
    return rules


def _evidence(context: Context) -> str:
    from editing.studies.evidence import measure_evidence
    from editing.studies.lengths import check_rules
    from interp.app import freshness
    from interp.results import effects

    model, folder, rules = context.model, context.run.path, _profiled_rules(context)
    check_rules(model, rules, EvaluateConfig(greedy=False))
    lookup = context.settings(EditConfig).settings_of("dmle").lookup
    statistics = measured(context, range(model.n_layers))
    with context.progress(total=len(rules), desc="evidence", unit="rule") as bar:
        evidence = measure_evidence(
            model,
            rules,
            lookup,
            statistics,
            folder / "evidence",
            only=context.overwrite,
            advance=bar.update,
        )
    record = freshness.made(
        context, "evidence", ["covariance"], rules=["evidence"], more={"edit.lookup": lookup}
    )
    path = folder / "evidence.nc"
    effects.save(evidence.assign_attrs({freshness.RECORD: record.text()}), path)
    return f"evidence of {len(rules)} rules: {path}"


def _check_evidence(context: Context) -> None:
    _check_lookup(context, _profiled_rules(context))


def _fresh_evidence(context: Context) -> None:
    from interp.app import freshness

    freshness.check(context, "profile.nc")


SWEEP = Step(
    "sweep",
    _sweep,
    {
        "covariance": CovarianceConfig,
        "edit": EditConfig,
        "evaluate": EvaluateConfig,
        "select": SelectConfig,
        "sweep": SweepConfig,
        **EXECUTOR,
    },
    needs_model=True,
    check=_check_sweep,
    fresh=_fresh_sweep,
    settles=("covariance", "edit", "evaluate", "sweep"),
    shares=True,
    worker=_sweeper,
    plan=_plan_sweep,
)
REGRET = Step(
    "regret",
    _regret,
    {"select": SelectConfig, "sweep": SweepConfig},
    fresh=_fresh_regret,
    settles=("sweep",),
)
EVIDENCE = Step(
    "evidence",
    _evidence,
    {"covariance": CovarianceConfig, "edit": EditConfig},
    needs_model=True,
    check=_check_evidence,
    fresh=_fresh_evidence,
)
