"""The editing steps of `dmle`: `edit` and `evaluate`."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from tqdm import tqdm

from editing.config import CovarianceConfig, EditConfig, EditorSettings, EvaluateConfig
from interp.app.commands import Common, execute
from interp.app.steps import Context, Step
from interp.errors import StaleError
from interp.rules.sources import Rule, load_rules

if TYPE_CHECKING:
    import xarray as xr

    from editing.closed_form.covariance import Covariances
    from editing.editors.registry import Resources
    from editing.edits.protocol import Edit
    from editing.studies.planned import Planned
    from interp.app.freshness import Made
    from interp.models.loading import LanguageModel
    from interp.selection.layers import LayerSelection

SHOWN = 12
_SHOWN = (("wanted", "target_new"), ("before", "before"), ("after", "after"))


def edit(
    *,
    layers: Annotated[
        str | None, Parameter(help="auto, a selection.json, or 3,4,5/12,13,14.")
    ] = None,
    editors: Annotated[
        str | None, Parameter(help="Editors or arms separated by commas: dmle,memit,ft.")
    ] = None,
    common: Common | None = None,
) -> None:
    """Edit each rule in all its forms and keep every edit as a delta; the model itself is not
    changed.

    Editors: dmle, memit, alphaedit, emmet, rome, ft, lora, grace, ice, ike. Every one gets the same
    requests, contexts and statistics of the unedited model. Variants are named under `edit.arms` of
    a configuration file.

    For example:

        dmle edit --run runs/mine

        dmle edit --run runs/mine --layers 3,4,5/12,13,14

        dmle edit --run runs/mine --set edit.lookup=rule_word_last --set edit.protection=joint

        dmle edit --run runs/mine --editors dmle,memit,alphaedit,rome,ft,lora,grace,ice,ike
    """
    execute(
        ["edit"],
        common,
        {"edit.layers": layers, "edit.editors": editors.split(",") if editors else None},
    )


def evaluate(*, common: Common | None = None) -> None:
    """Score every edit before and after: reliability, generality, locality, IP and RU.

    For example:

        dmle evaluate --run runs/mine
    """
    execute(["evaluate"], common, {})


def _edit(context: Context) -> str:
    from editing.closed_form.contexts import sample_contexts
    from editing.editors.registry import CLOSED_FORM, Resources, layers_of
    from editing.studies.lengths import check_edits
    from editing.studies.planned import plan, remove_others

    config, model = context.settings(EditConfig), context.model
    arms = {name: config.settings_of(name) for name in config.editors}
    selected = selected_layers(context, arms.values())
    # All of them before any work: a wrong layer in the last arm should not wait for the others.
    layers = {
        name: layer_plan(settings, model.n_layers, selected) for name, settings in arms.items()
    }
    rules, training = edited_rules(context, config), training_rules(arms.values())
    check_edits(model, rules, arms.values())
    plans = plan(context, rules, layers, training)
    needed = sorted(
        {
            layer
            for settings in arms.values()
            for layer in layers_of(settings, model.n_layers, selected)
        }
    )
    statistics = measured(context, needed) if needed else None
    contexts: dict[tuple[int, int, int], tuple[str, ...]] = {}
    said: list[str] = []
    with tqdm(total=len(rules) * len(arms), desc="edit", unit="edit") as bar:
        for name, settings in arms.items():
            sampled = (settings.contexts, settings.context_tokens, settings.seed)
            if settings.editor in CLOSED_FORM and sampled not in contexts:
                contexts[sampled] = sample_contexts(model, *sampled)
            resources = Resources(contexts.get(sampled, ("",)), statistics, selected, training)
            for line in _edit_arm(
                model, plans[name], resources, config.mode == "sequential", bar.update
            ):
                said.append(f"  {name}: {line}")
    if context.overwrite:
        remove_others(context, plans)
    lines = [f"{name}: {_plan_text(each)}" for name, each in layers.items()]
    if said:
        lines += [f"{len(said)} remarks:", *said[:SHOWN], *(["  …"] if len(said) > SHOWN else [])]
    lines.append(
        f"{len(rules)} rules × {len(arms)} editors ({config.mode}): {context.run.path / 'deltas'}"
    )
    return "\n".join(lines)


def _edit_arm(
    model: "LanguageModel",
    planned: "list[Planned]",
    resources: "Resources",
    in_sequence: bool,
    advance: Callable[[int], object],
) -> Iterator[str]:
    """Make the edits of an arm that are not there yet; what a reader should know of each."""
    from editing.editors.registry import edit, remarks
    from editing.edits.delta import EditDelta
    from editing.edits.requests import EditRequest
    from interp.app.freshness import RECORD

    earlier: list[EditRequest] = []
    with ExitStack() as stack:
        for one in planned:
            found = one.held()
            if found is None:
                found = edit(model, one.requests, one.settings, resources, earlier=earlier)
                if isinstance(found, EditDelta):
                    found = found.with_about(cast_loss=found.cast_loss(model))
                more = {
                    "fingerprint": one.fingerprint,
                    "earlier": one.earlier,
                    RECORD: dict(one.about),
                }
                found = found.with_about(**more)
                found.save(one.path)
            yield from remarks(found.about)
            if in_sequence and isinstance(found, EditDelta):
                stack.enter_context(found.applied(model))
                earlier += one.requests
            advance(len(one.rules))


def measured(context: Context, layers: Sequence[int]) -> "Covariances":
    """The statistics of some blocks, read or measured, one process at a time."""
    from editing.closed_form import covariance

    config = context.settings(CovarianceConfig)
    with context.lock, tqdm(total=config.tokens, desc="covariance", unit="token") as bar:
        folder = context.run.path / "covariance"
        return covariance.measure(context.model, layers, config, folder, advance=bar.update)


def _evaluate(context: Context) -> str:
    import pandas as pd

    from editing.editors.in_context import InContext
    from editing.evaluation.evaluate import COLUMNS, evaluate
    from editing.studies.lengths import check_rules
    from interp.app import freshness
    from interp.results import effects
    from interp.results.files import write_text
    from interp.results.records import save_records
    from interp.results.tables import csv_text

    config = context.settings(EditConfig)
    rules = edited_rules(context, config)
    edits = _edits_of(context, config, rules)
    check_rules(context.model, rules, context.settings(EvaluateConfig))
    for of_rules in edits.values():
        for rule in rules:
            if isinstance(made := of_rules[rule.id], InContext):
                check_rules(context.model, [rule], context.settings(EvaluateConfig), made.before)
    with tqdm(total=len(rules) * (1 + len(edits)), desc="evaluate", unit="pass") as bar:
        scores, answers = evaluate(
            context.model, rules, edits, context.settings(EvaluateConfig), advance=bar.update
        )
    scores.attrs[freshness.RECORD] = record_of_scores(context, "evaluate", "evaluate").text()
    effects.save(scores, context.run.path / "scores.nc")
    save_records(context.run.path / "answers.json", COLUMNS, answers)
    table = pd.DataFrame(answers, columns=list(COLUMNS))
    write_text(context.run.path / "answers.csv", csv_text(table, index=False, quote_text=True))
    return "\n".join(
        [
            score_text(scores),
            "",
            answer_text(answers),
            (
                f"scores: {context.run.path / 'scores.nc'}; every answer:"
                f" {context.run.path / 'answers.csv'}"
            ),
        ]
    )


def _edits_of(
    context: Context, config: EditConfig, rules: list[Rule]
) -> "dict[str, dict[str, Edit]]":
    """What each rule is evaluated under, by arm: its own edit, or in batch and sequential mode all
    of them together.

    Raises:
        StaleError: The edits in the folder are not those of the settings, rules and model.
    """
    from editing.edits.delta import EditDelta, merge
    from editing.studies.planned import load_planned, plan, together

    arms = {name: config.settings_of(name) for name in config.editors}
    selected = selected_layers(context, arms.values())
    layers = {
        name: layer_plan(settings, context.model.n_layers, selected)
        for name, settings in arms.items()
    }
    found: dict[str, dict[str, Edit]] = {}
    for name, planned in plan(context, rules, layers, training_rules(arms.values())).items():
        edits = load_planned(context, planned)
        if config.mode == "sequential" and not together(config, arms[name]):
            deltas = [edit for edit in edits if isinstance(edit, EditDelta)]
            edits = [merge(deltas, {"editor": name, "mode": "sequential"})] * len(rules)
        elif together(config, arms[name]):
            edits = edits * len(rules)
        found[name] = {rule.id: edit for rule, edit in zip(rules, edits, strict=True)}
    return found


def score_text(scores: "xr.Dataset") -> str:
    """One line for each rule and metric: before → after for every editor, mean over the forms."""
    editors = [str(name) for name in scores["editor"].values]
    lines = [f"{'rule':28}{'metric, mode':46}" + "".join(f"{name:>16}" for name in editors)]
    shown = [("token_accuracy", m) for m in scores["metric"].values] + [
        ("exact", "reliability"),
        ("kl", "locality"),
    ]
    for rule in scores["rule"].values:
        for mode, metric in shown:
            values = (
                scores["score"].sel(rule=rule, metric=metric, mode=mode).mean("form", skipna=True)
            )
            cells = [
                f"{values.sel(editor=e, phase='pre').item():.2f} →"
                f" {values.sel(editor=e, phase='post').item():.2f}"
                for e in editors
            ]
            lines.append(
                f"{rule:28}{f'{metric}, {mode}':46}" + "".join(f"{cell:>16}" for cell in cells)
            )
    return "\n".join(lines)


def answer_text(answers: list[dict[str, object]]) -> str:
    """The edited prompts with the model's own answers before and after."""
    lines = []
    for row in answers:
        if row["metric"] == "reliability":
            lines.append(f"{row['editor']}, {row['rule']}, {row['form']}: {row['prompt']}")
            lines += [f"  {name:7} {row[key]!r}" for name, key in _SHOWN]
    return "\n".join(lines)


def edited_rules(context: Context, config: EditConfig) -> list[Rule]:
    """Rules that are edited: those of `edit.splits` among rules with a split, and all without one.

    Raises:
        ValueError: There is none.
    """
    rules = context.rules_of(config.splits, "edit.splits")
    return rules[: config.limit]


def reads_selection(arms: Iterable[EditorSettings]) -> bool:
    """Whether an arm takes the layers of the run's `selection.json`."""
    return any(settings.editor == "dmle" and settings.layers == "auto" for settings in arms)


def fresh_selection(context: Context) -> None:
    """See that the run's selection, if an arm takes its layers, was made with what is in force.

    Raises:
        RunError: It is missing.
        StaleError: It was made with something else.
    """
    from interp.app import freshness

    config = context.settings(EditConfig)
    if reads_selection(config.settings_of(name) for name in config.editors):
        context.run.need("selection.json", "select")
        freshness.check(context, "selection.json")


def selected_layers(context: Context, arms: Iterable[EditorSettings]) -> "LayerSelection | None":
    """The run's selection, if an arm asks for it.

    Raises:
        RunError: It is missing.
        StaleError: It, or the selection that an arm names, was made for another model.
    """
    from interp.selection.layers import LayerSelection

    every = list(arms)
    for settings in every:
        if settings.editor == "dmle" and settings.layers.endswith(".json"):
            _check_model(context, Path(settings.layers), LayerSelection.load(Path(settings.layers)))
    if not reads_selection(every):
        return None
    path = context.run.need("selection.json", "select")
    found = LayerSelection.load(path)
    _check_model(context, path, found)
    return found


def _check_model(context: Context, path: Path, selection: "LayerSelection") -> None:
    model, made_for = context.model, selection.provenance.get("weight_hash")
    remedy = (
        "select layers with this model, or give them as numbers, such as edit.layers=3,4,5/12,13,14"
    )
    if selection.n_layers != model.n_layers:
        raise StaleError(
            f"{path} is of a model of {selection.n_layers} layers, {model.name} has"
            f" {model.n_layers}; {remedy}"
        )
    if made_for and made_for != model.weight_hash:
        raise StaleError(
            f"{path} was made for another model ({made_for}; {model.name} as it is now is"
            f" {model.weight_hash}); {remedy}"
        )


def record_of_scores(context: Context, step: str, *sections: str) -> "Made":
    """What the scores of edits were made with."""
    from editing.editors.registry import CLOSED_FORM
    from interp.app.freshness import made

    config = context.settings(EditConfig)
    arms = [config.settings_of(name) for name in config.editors]
    statistics = ["covariance"] if any(settings.editor in CLOSED_FORM for settings in arms) else []
    inputs = ["selection.json"] if reads_selection(arms) else []
    return made(context, step, ["edit", *statistics, *sections], inputs=inputs, rules=["edit"])


def layer_plan(
    settings: EditorSettings, n_layers: int, selected: "LayerSelection | None"
) -> dict[str, list[int]]:
    """Layers that an arm writes, by group of forms."""
    from editing.editors.registry import block_of, selection_of

    if settings.editor in ("ice", "ike"):
        return {}
    if settings.editor != "dmle":
        return {"all forms": list(block_of(settings, n_layers))}
    return {
        group.name: list(group.layers)
        for group in selection_of(settings, n_layers, selected).groups
    }


def _plan_text(plan: dict[str, list[int]]) -> str:
    if not plan:
        return "in context, no layers"
    return "; ".join(
        f"{group}: layers {', '.join(map(str, layers))}" for group, layers in plan.items()
    )


def training_rules(arms: Iterable[EditorSettings]) -> list[Rule]:
    """The embedded rules of the training split, if an arm demonstrates with them."""
    if all(settings.editor != "ike" for settings in arms):
        return []
    return list(load_rules("embedded", split="train").rules)


def _check_edit(context: Context) -> None:
    from editing.edits.requests import requests_of

    config = context.settings(EditConfig)
    for rule in edited_rules(context, config):
        for name in config.editors:
            settings = config.settings_of(name)
            requests_of(rule, settings.lookup)


def _fresh_evaluate(context: Context) -> None:
    context.run.need("deltas", "edit")
    fresh_selection(context)


EDIT = Step(
    "edit",
    _edit,
    edit,
    {"covariance": CovarianceConfig, "edit": EditConfig},
    needs_model=True,
    check=_check_edit,
    fresh=fresh_selection,
)
EVALUATE = Step(
    "evaluate",
    _evaluate,
    evaluate,
    {"covariance": CovarianceConfig, "edit": EditConfig, "evaluate": EvaluateConfig},
    needs_model=True,
    check=_check_edit,
    fresh=_fresh_evaluate,
)
