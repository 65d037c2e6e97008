"""What `dmle edit` and `dmle evaluate` do in a run folder."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from editing.config import CovarianceConfig, EditConfig, EvaluateConfig
from interp.app.steps import Context, Step
from interp.errors import InputError
from interp.rules.sources import Rule

if TYPE_CHECKING:
    import xarray as xr

    from editing.app.planned import Planned
    from editing.closed_form.covariance import Covariances
    from editing.closed_form.workbench import Workbench
    from editing.edits.protocol import Edit
    from editing.edits.requests import EditRequest
    from editing.studies.arms import Place, Selected
    from interp.app.freshness import Made
    from interp.planning.plan import Costs, Work

REMARKS_SHOWN = 12
ANSWERS_SHOWN = (("wanted", "target_new"), ("before", "before"), ("after", "after"))


# -- what every step that edits needs ------------------------------------------------------------


def edited_rules(context: Context, config: EditConfig) -> list[Rule]:
    """Rules that are edited: those of `edit.splits` among rules with a split, and all without one.

    Raises:
        InputError: There is none.
    """
    return context.rules_of(config.splits, "edit.splits")[: config.limit]


def measured(context: Context, layers: Sequence[int]) -> "Covariances":
    """The statistics of some blocks, read or measured, one process at a time."""
    from editing.closed_form import covariance

    config = context.settings(CovarianceConfig)
    tokens = config.tokens + config.output_tokens
    with context.lock, context.progress(total=tokens, desc="covariance", unit="token") as bar:
        folder = context.run.path / "covariance"
        return covariance.measure(context.model, layers, config, folder, advance=bar.update)


def fresh_selection(context: Context, config: EditConfig | None = None) -> None:
    """See that the run's files of layers that arms read were made with what is in force.

    Raises:
        RunError: It is missing.
        StaleError: It was made with something else.
    """
    from interp.app import freshness

    for name in selections_read(config or context.settings(EditConfig)):
        need_selection(context, name)
        freshness.check(context, name)


def selections_read(config: EditConfig) -> list[str]:
    """Files of the run that arms take their layers of."""
    from editing.studies.arms import file_read

    names = [file_read(config.settings_of(name)) for name in config.editors]
    return [name for name in dict.fromkeys(names) if name is not None]


def need_selection(context: Context, name: str) -> Path:
    """A file of the run that holds layers.

    Raises:
        RunError: It is missing; names the command that makes it.
    """
    from editing.closed_form.chosen_layers import ADAPTIVE, RUN_FILES

    by_rule = ("--strategy", "adaptive") if name == RUN_FILES[ADAPTIVE] else ()
    return context.run.need(name, "select", *by_rule)


def selected_layers(context: Context, config: EditConfig) -> "Selected":
    """What the run has selected, as far as arms ask for it.

    Raises:
        RunError: It is missing.
        StaleError: It was made for another model.
    """
    from editing.closed_form.chosen_layers import ADAPTIVE, AUTO, RUN_FILES
    from editing.studies.arms import Selected, check_layers
    from interp.selection.layers import LayerSelection, load_for_rules

    read, selected = selections_read(config), Selected()
    if RUN_FILES[AUTO] in read:
        path = need_selection(context, RUN_FILES[AUTO])
        selected = replace(selected, population=(selection := LayerSelection.load(path)))
        check_layers(context.model, selection, path)
    if RUN_FILES[ADAPTIVE] in read:
        path = need_selection(context, RUN_FILES[ADAPTIVE])
        selected = replace(selected, of_rules=(of_rules := load_for_rules(path)))
        check_layers(context.model, of_rules, path)
    return selected


def places_of(context: Context, config: EditConfig, rules: Sequence[Rule]) -> "dict[str, Place]":
    """Where every arm edits. All are found before any work: a wrong layer in the last arm should
    not wait for the others.

    Raises:
        DmleError: See `selected_layers` and `editing.studies.arms.resolve`.
    """
    from editing.studies.arms import resolve

    selected = selected_layers(context, config)
    arms = {name: config.settings_of(name) for name in config.editors}
    ids = [rule.id for rule in rules]
    return {name: resolve(context.model, each, selected, ids) for name, each in arms.items()}


def record_of_scores(context: Context, step: str, *sections: str) -> "Made":
    """What the scores of edits were made with."""
    from editing.editors.registry import needs
    from interp.app.freshness import made

    config = context.settings(EditConfig)
    closed = any(needs(config.settings_of(name), "statistics") for name in config.editors)
    statistics = ["covariance"] if closed else []
    inputs = selections_read(config)
    return made(context, step, ["edit", *statistics, *sections], inputs=inputs, rules=["edit"])


# -- edit ----------------------------------------------------------------------------------------


def _edit(context: Context) -> str:
    from editing.app.planned import plan, remove_others
    from editing.studies.arms import make_arms, training_rules
    from editing.studies.lengths import check_edits

    config, model = context.settings(EditConfig), context.model
    settings = [config.settings_of(name) for name in config.editors]
    rules = edited_rules(context, config)
    places = places_of(context, config, rules)
    check_edits(model, rules, settings)
    plans = plan(context, rules, places, training_rules(settings))
    arms = make_arms(
        model, config, rules, statistics=lambda needed: measured(context, needed), places=places
    )
    remarks: list[str] = []
    with context.progress(total=len(rules) * len(arms), desc="edit", unit="edit") as bar:
        for arm in arms:
            in_sequence = config.mode == "sequential"
            lines = _edit_arm(arm.bench, plans[arm.name], in_sequence, bar.update)
            remarks += [f"  {arm.name}: {line}" for line in lines]
    if context.overwrite:
        remove_others(context, plans)
    lines = [f"{name}: {place.text}" for name, place in places.items()]
    if remarks:
        more = ["  …"] if len(remarks) > REMARKS_SHOWN else []
        lines += [f"{len(remarks)} remarks:", *remarks[:REMARKS_SHOWN], *more]
    lines.append(
        f"{len(rules)} rules × {len(arms)} editors ({config.mode}): {context.run.path / 'deltas'}"
    )
    return "\n".join(lines)


def _edit_arm(
    bench: "Workbench",
    planned: "list[Planned]",
    in_sequence: bool,
    advance: Callable[[int], object],
) -> Iterator[str]:
    """Make the edits of an arm that are not there yet; what a reader should know of each."""
    from editing.editors.registry import needs
    from editing.edits.delta import EditDelta
    from editing.edits.remarks import remarks

    earlier: list[EditRequest] = []
    if planned and needs(planned[0].settings, "statistics"):
        # Before an edit of an earlier run is in force: they are of the unedited model.
        bench.asked((), planned[0].settings).sample()
    with ExitStack() as stack:
        for wanted in planned:
            made = wanted.kept()
            if made is None:
                made = _make(bench, wanted, earlier)
            yield from remarks(made.report)
            if in_sequence and isinstance(made, EditDelta):
                stack.enter_context(made.applied(bench.model))
                earlier += wanted.requests
            advance(len(wanted.rules))


def _make(bench: "Workbench", wanted: "Planned", earlier: "Sequence[EditRequest]") -> "Edit":
    """Make one edit and keep it."""
    from editing.editors.registry import edit
    from editing.edits.delta import EditDelta

    bench = bench.asked(
        wanted.requests, wanted.settings, earlier=earlier, evaluated=wanted.evaluated
    )
    made = edit(bench)
    if isinstance(made, EditDelta):
        made = made.with_report(cast_loss=made.cast_loss(bench.model))
    made = made.with_report(
        fingerprint=wanted.fingerprint, earlier=wanted.earlier, made=dict(wanted.about)
    )
    made.save(wanted.path)
    return made


# -- evaluate ------------------------------------------------------------------------------------


def _evaluate(context: Context) -> str:
    from editing.evaluation.evaluate import columns_of, evaluate
    from editing.studies.comparison_files import write_answers
    from interp.app import freshness
    from interp.results import effects

    config, evaluation = context.settings(EditConfig), context.settings(EvaluateConfig)
    rules, folder = edited_rules(context, config), context.run.path
    edits = _edits_of(context, config, rules)
    _check_lengths(context, rules, edits)
    total = len(rules) * (1 + len(edits))
    with context.progress(total=total, desc="evaluate", unit="pass") as bar:
        scores, answers = evaluate(context.model, rules, edits, evaluation, advance=bar.update)
    scores.attrs[freshness.RECORD] = record_of_scores(context, "evaluate", "evaluate").text()
    effects.save(scores, folder / "scores.nc")
    write_answers(folder, answers, columns_of(answers))
    return "\n".join(
        [
            score_text(scores),
            "",
            answer_text(answers),
            f"scores: {folder / 'scores.nc'}; every answer: {folder / 'answers.csv'}",
        ]
    )


def _check_lengths(
    context: Context, rules: Sequence[Rule], edits: "dict[str, dict[str, Edit]]"
) -> None:
    """See that all questions fit into the model, also behind what in-context edits put there.

    Raises:
        TooLongError: Some do not.
    """
    from editing.editors.ice import InContext
    from editing.studies.lengths import check_rules

    evaluation = context.settings(EvaluateConfig)
    check_rules(context.model, rules, evaluation)
    for of_rules in edits.values():
        for rule in rules:
            if isinstance(made := of_rules[rule.id], InContext):
                check_rules(context.model, [rule], evaluation, made.before)


def _edits_of(
    context: Context, config: EditConfig, rules: list[Rule]
) -> "dict[str, dict[str, Edit]]":
    """What each rule is evaluated under, by arm: its own edit, or in batch and sequential mode all
    of them together.

    Raises:
        StaleError: The edits in the folder are not those of the settings, rules and model.
    """
    from editing.app.planned import load_planned, plan, together
    from editing.edits.delta import EditDelta, merge
    from editing.edits.report import EditReport
    from editing.studies.arms import training_rules

    arms = {name: config.settings_of(name) for name in config.editors}
    places = places_of(context, config, rules)
    of_arms: dict[str, dict[str, Edit]] = {}
    for name, planned in plan(context, rules, places, training_rules(arms.values())).items():
        edits = load_planned(context, planned)
        if config.mode == "sequential" and not together(config, arms[name]):
            deltas = [edit for edit in edits if isinstance(edit, EditDelta)]
            edits = [merge(deltas, EditReport(editor=name))] * len(rules)
        elif together(config, arms[name]):
            edits = edits * len(rules)
        of_arms[name] = {rule.id: edit for rule, edit in zip(rules, edits, strict=True)}
    return of_arms


def score_text(scores: "xr.Dataset") -> str:
    """One line for each rule and metric: before → after for every editor, mean over the forms."""
    editors = [str(name) for name in scores["editor"].values]
    lines = [f"{'rule':28}{'metric, mode':46}" + "".join(f"{name:>16}" for name in editors)]
    shown = [
        ("yes_no" if m == "fact_check" else "token_accuracy", m) for m in scores["metric"].values
    ]
    shown += [("exact", "reliability"), ("kl", "locality")]
    shown += [(m, "reliability") for m in ("free", "free_gap") if m in scores["mode"].values]
    means = scores["score"].mean("form", skipna=True)
    for rule in scores["rule"].values:
        for mode, metric in shown:
            values = means.sel(rule=rule, metric=metric, mode=mode)
            cells = [_before_after(values.sel(editor=name)) for name in editors]
            lines.append(
                f"{rule:28}{f'{metric}, {mode}':46}" + "".join(f"{cell:>16}" for cell in cells)
            )
    return "\n".join(lines)


def _before_after(values: "xr.DataArray") -> str:
    before, after = (values.sel(phase=phase).item() for phase in ("pre", "post"))
    return f"{before:.2f} → {after:.2f}"


def answer_text(answers: Iterable[dict[str, object]]) -> str:
    """The edited prompts with the model's own answers before and after."""
    lines = []
    for row in answers:
        if row["metric"] == "reliability":
            lines.append(f"{row['editor']}, {row['rule']}, {row['form']}: {row['prompt']}")
            lines += [f"  {name:7} {row[key]!r}" for name, key in ANSWERS_SHOWN]
    return "\n".join(lines)


def _check_edit(context: Context) -> None:
    from editing.closed_form.chosen_layers import one_plan
    from editing.editors.registry import options_of
    from editing.edits.requests import requests_of
    from editing.studies.arms import is_by_rule

    config = context.settings(EditConfig)
    settings = [config.settings_of(name) for name in config.editors]
    for each in settings:
        options_of(each)
        if config.mode == "batch" and is_by_rule(each):
            one_by_one = "edit the rules one by one (edit.mode=single or sequential)"
            raise InputError(one_plan("edit.mode=batch is one edit of all rules", one_by_one))
    lookups = {each.lookup for each in settings}
    for rule in edited_rules(context, config):
        for lookup in sorted(lookups):
            requests_of(rule, lookup)


def _plan_edit(context: Context, costs: "Costs", note: Callable[[str], object]) -> "list[Work]":
    return _plan(context, costs, note, "edit")


def _plan_evaluate(context: Context, costs: "Costs", note: Callable[[str], object]) -> "list[Work]":
    return _plan(context, costs, note, "evaluate")


def _plan(
    context: Context, costs: "Costs", note: Callable[[str], object], name: str
) -> "list[Work]":
    from editing.app.plan_works import Cells, plan_cells
    from editing.studies.counting import Asked

    config, edits = context.settings(EditConfig), name == "edit"
    asked = Asked(edits, None if edits else context.settings(EvaluateConfig))
    if edits and config.mode != "single":
        note(f"edit.mode={config.mode}: counted as if each rule were edited alone")
    cells = Cells(name, edited_rules(context, config), config, asked)
    works = plan_cells(context, costs, note, cells)
    return works if edits else works[-1:]


def _fresh_evaluate(context: Context) -> None:
    context.run.need("deltas", "edit")
    fresh_selection(context)


EDIT = Step(
    "edit",
    _edit,
    {"covariance": CovarianceConfig, "edit": EditConfig},
    needs_model=True,
    check=_check_edit,
    fresh=fresh_selection,
    plan=_plan_edit,
)
EVALUATE = Step(
    "evaluate",
    _evaluate,
    {"covariance": CovarianceConfig, "edit": EditConfig, "evaluate": EvaluateConfig},
    needs_model=True,
    check=_check_edit,
    fresh=_fresh_evaluate,
    plan=_plan_evaluate,
)
