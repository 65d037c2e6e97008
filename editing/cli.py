"""The editing steps of `dmle`: `edit` and `evaluate`."""

import csv
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from tqdm import tqdm

from editing.config import CovarianceConfig, EditConfig, EditorSettings, EvaluateConfig
from interp.cli import Common, execute
from interp.rules import Rule, load_rules
from interp.steps import Context, Step

if TYPE_CHECKING:
    import xarray as xr

    from editing.editors import Resources
    from editing.view import Edit
    from interp.selection import LayerSelection

ALL = "_all"
"""File name of an edit of all rules."""
SHOWN = 12
_SHOWN = (("wanted", "target_new"), ("before", "before"), ("after", "after"))


def edit(
    *,
    layers: Annotated[str | None, Parameter(help="auto, a selection.json, or 3,4,5/12,13,14.")] = None,
    editors: Annotated[str | None, Parameter(help="Editors or arms separated by commas: dmle,memit,ft.")] = None,
    common: Common | None = None,
) -> None:
    """Edit each rule in all its forms and keep every edit as a delta; the model itself is not changed.

    Editors: dmle, memit, alphaedit, emmet, rome, ft, lora, grace, ice, ike. Every one gets the same requests, contexts
    and statistics of the unedited model. Variants are named under `edit.arms` of a configuration file.

    For example:

        dmle edit --run runs/mine

        dmle edit --run runs/mine --layers 3,4,5/12,13,14

        dmle edit --run runs/mine --editors dmle --set edit.lookup=rule_word_last --set edit.protection=joint

        dmle edit --run runs/mine --editors dmle,memit,alphaedit,rome,ft,lora,grace,ice,ike
    """
    execute(["edit"], common, {"edit.layers": layers, "edit.editors": editors.split(",") if editors else None})


def evaluate(*, common: Common | None = None) -> None:
    """Score every edit before and after: reliability, generality, locality, IP and RU.

    For example:

        dmle evaluate --run runs/mine
    """
    execute(["evaluate"], common, {})


def _edit(context: Context) -> str:
    from editing import covariance
    from editing.contexts import sample_contexts
    from editing.delta import EditDelta
    from editing.editors import CLOSED_FORM, IN_ORDER, Resources, edit, layers_of, remarks
    from editing.lengths import check_edits
    from editing.requests import EditRequest, requests_of
    from interp.provenance import fingerprint

    config, model = context.settings(EditConfig), context.model
    arms = {name: config.settings_of(name) for name in config.editors}
    selected = selected_layers(context, arms.values())
    # All of them before any work: a wrong layer in the last arm should not wait for the others.
    plans = {name: layer_plan(settings, model.n_layers, selected) for name, settings in arms.items()}
    rules = edited_rules(context, config)
    check_edits(model, rules, arms.values())
    needed = sorted({layer for settings in arms.values() for layer in layers_of(settings, model.n_layers, selected)})
    statistics = None
    if needed:
        settings = context.settings(CovarianceConfig)
        with tqdm(total=settings.tokens, desc="covariance", unit="token") as bar:
            folder = context.run.path / "covariance"
            statistics = covariance.measure(model, needed, settings, folder, advance=bar.update)
    contexts: dict[tuple[int, int, int], tuple[str, ...]] = {}
    training = training_rules(arms.values())
    said: list[str] = []
    with tqdm(total=len(rules) * len(arms), desc="edit", unit="edit") as bar:
        for name, settings in arms.items():
            sampled = (settings.contexts, settings.context_tokens, settings.seed)
            if settings.editor in CLOSED_FORM and sampled not in contexts:
                contexts[sampled] = sample_contexts(model, *sampled)
            resources = Resources(contexts.get(sampled, ("",)), statistics, selected, training)
            together = config.mode == "batch" or (config.mode == "sequential" and settings.editor in IN_ORDER)
            earlier: list[EditRequest] = []
            done = ""
            with ExitStack() as stack:
                for group in [rules] if together else [[rule] for rule in rules]:
                    requests = [r for rule in group for r in requests_of(rule, settings.lookup)]
                    before = done if config.mode == "sequential" else ""
                    done = fingerprint(
                        weights=model.weight_hash,
                        plan=plans[name],
                        settings=settings.model_dump(exclude={"layers", "block", "memory"}),
                        requests=requests,
                        resources=_shared(resources) if settings.editor in CLOSED_FORM else None,
                        demonstrations=[rule.id for rule in training] if settings.editor == "ike" else [],
                        earlier=before,
                    )
                    path = delta_path(context, name, group[0] if len(group) == 1 else None)
                    found = _done(path, done)
                    if found is None:
                        found = edit(model, requests, settings, resources, earlier=earlier)
                        if isinstance(found, EditDelta):
                            found = found.with_about(cast_loss=found.cast_loss(model))
                        found = found.with_about(fingerprint=done, earlier=before)
                        found.save(path)
                    said += [f"  {name}: {line}" for line in remarks(found.about)]
                    if config.mode == "sequential" and isinstance(found, EditDelta):
                        stack.enter_context(found.applied(model))
                        earlier += requests
                    bar.update(len(group))
    lines = [f"{name}: {_plan_text(plan)}" for name, plan in plans.items()]
    if said:
        lines += [f"{len(said)} remarks:", *said[:SHOWN], *(["  …"] if len(said) > SHOWN else [])]
    lines.append(f"{len(rules)} rules × {len(arms)} editors ({config.mode}): {context.run.path / 'deltas'}")
    return "\n".join(lines)


def _evaluate(context: Context) -> str:
    import pandas as pd

    from editing.evaluation import COLUMNS, evaluate
    from editing.in_context import InContext
    from editing.lengths import check_rules
    from interp import effects
    from interp.files import write_text

    config = context.settings(EditConfig)
    context.run.need("deltas", "edit")
    rules = edited_rules(context, config)
    edits = {name: _edits_of(context, config, name, rules) for name in config.editors}
    check_rules(context.model, rules, context.settings(EvaluateConfig))
    for of_rules in edits.values():
        for rule in rules:
            if isinstance(made := of_rules[rule.id], InContext):
                check_rules(context.model, [rule], context.settings(EvaluateConfig), made.before)
    with tqdm(total=len(rules) * (1 + len(edits)), desc="evaluate", unit="pass") as bar:
        scores, answers = evaluate(context.model, rules, edits, context.settings(EvaluateConfig), advance=bar.update)
    effects.save(scores, context.run.path / "scores.nc")
    table = pd.DataFrame(answers, columns=list(COLUMNS))
    write_text(context.run.path / "answers.csv", table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC))
    return "\n".join(
        [
            score_text(scores),
            "",
            answer_text(answers),
            f"scores: {context.run.path / 'scores.nc'}; every answer: {context.run.path / 'answers.csv'}",
        ]
    )


def _edits_of(context: Context, config: EditConfig, name: str, rules: list[Rule]) -> "dict[str, Edit]":
    """What each rule is evaluated under: its own edit, or in batch and sequential mode all of them together.

    Raises:
        ValueError: The edits in the folder were made of other rules, or in another mode.
    """
    from editing.delta import EditDelta, load_edit, merge
    from editing.editors import IN_ORDER

    together = config.mode == "batch" or (config.mode == "sequential" and config.settings_of(name).editor in IN_ORDER)
    if together:
        one = load_edit(context.run.need(str(_relative(name, None if len(rules) > 1 else rules[0])), "edit"))
        if list(dict.fromkeys(request["rule"] for request in one.about["requests"])) != [rule.id for rule in rules]:
            raise ValueError(f"the edit of {name} is of other rules than those to evaluate; run `dmle edit` again")
        return {rule.id: one for rule in rules}
    found = {rule.id: load_edit(context.run.need(str(_relative(name, rule)), "edit")) for rule in rules}
    before = ""
    for one in found.values():
        # Every edit of a sequence names the one before it, and one of a rule alone names none.
        if one.about.get("earlier", "") != before:
            raise ValueError(
                f"the edits of {name} were not made one after the other with edit.mode={config.mode}; "
                "run `dmle edit` again"
            )
        before = one.about.get("fingerprint", "") if config.mode == "sequential" else ""
    if config.mode == "sequential":
        deltas = [edit for edit in found.values() if isinstance(edit, EditDelta)]
        return dict.fromkeys(found, merge(deltas, {"editor": name, "mode": "sequential"}))
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
            values = scores["score"].sel(rule=rule, metric=metric, mode=mode).mean("form", skipna=True)
            cells = [
                f"{values.sel(editor=e, phase='pre').item():.2f} → {values.sel(editor=e, phase='post').item():.2f}"
                for e in editors
            ]
            lines.append(f"{rule:28}{f'{metric}, {mode}':46}" + "".join(f"{cell:>16}" for cell in cells))
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


def delta_path(context: Context, editor: str, rule: Rule | None) -> Path:
    """File of one rule's edit, or of all rules' together."""
    return context.run.path / _relative(editor, rule)


def _relative(editor: str, rule: Rule | None) -> Path:
    return Path("deltas") / editor / f"{rule.id if rule else ALL}.safetensors"


def _done(path: Path, key: str) -> "Edit | None":
    from editing.delta import load_edit

    if not path.is_file():
        return None
    found = load_edit(path)
    return found if found.about.get("fingerprint") == key else None


def _shared(resources: "Resources") -> list[Any]:
    """What an edit by a closed form depends on, besides its settings."""
    assert resources.covariances is not None
    return [resources.contexts, resources.covariances.origin]


def selected_layers(context: Context, arms: Iterable[EditorSettings]) -> "LayerSelection | None":
    """The run's selection, if an arm asks for it."""
    from interp.selection import LayerSelection

    if any(settings.editor == "dmle" and settings.layers == "auto" for settings in arms):
        return LayerSelection.load(context.run.need("selection.json", "select"))
    return None


def layer_plan(settings: EditorSettings, n_layers: int, selected: "LayerSelection | None") -> dict[str, list[int]]:
    """Layers that an arm writes, by group of forms."""
    from editing.editors import block_of, selection_of

    if settings.editor in ("ice", "ike"):
        return {}
    if settings.editor != "dmle":
        return {"all forms": list(block_of(settings, n_layers))}
    return {group.name: list(group.layers) for group in selection_of(settings, n_layers, selected).groups}


def _plan_text(plan: dict[str, list[int]]) -> str:
    if not plan:
        return "in context, no layers"
    return "; ".join(f"{group}: layers {', '.join(map(str, layers))}" for group, layers in plan.items())


def training_rules(arms: Iterable[EditorSettings]) -> list[Rule]:
    """The embedded rules of the training split, if an arm demonstrates with them."""
    if all(settings.editor != "ike" for settings in arms):
        return []
    return list(load_rules("embedded", split="train").rules)


def _check_edit(context: Context) -> None:
    from editing.requests import requests_of

    config = context.settings(EditConfig)
    for rule in edited_rules(context, config):
        for name in config.editors:
            settings = config.settings_of(name)
            requests_of(rule, settings.lookup)


EDIT = Step(
    "edit",
    _edit,
    edit,
    {"covariance": CovarianceConfig, "edit": EditConfig},
    needs_model=True,
    check=_check_edit,
)
EVALUATE = Step("evaluate", _evaluate, evaluate, {"evaluate": EvaluateConfig}, needs_model=True, check=_check_edit)
