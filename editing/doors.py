"""The public functions of `editing`: an editor with its settings, an edit, its scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import xarray as xr
from pydantic import ValidationError

from editing.closed_form.covariance import Covariances
from editing.closed_form.statistics import Statistics
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings, EvaluateConfig
from editing.editors.registry import edit as edit_on
from editing.editors.registry import editor, needs
from editing.edits.neighbours import kept_prompts
from editing.edits.protocol import Edit
from editing.edits.requests import EditRequest, requests_of
from editing.evaluation import evaluate as evaluation
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from interp.selection.layers import LayerSelection
from interp.settings.section import Section, explained

Settings = TypeVar("Settings", bound=Section)
Layers = (
    LayerSelection | Mapping[str, LayerSelection] | str | Sequence[int] | Sequence[Sequence[int]]
)


@dataclass(frozen=True)
class Recipe:
    """An editor with its settings and layers.

    Attributes:
        settings: Which editor, and how.
        selection: Layers by group of forms, for an editor that knows groups; None: those of the
            settings.
        of_rules: The same by a rule's id, where each rule has layers of its own.
    """

    settings: EditorSettings
    selection: LayerSelection | None = None
    of_rules: Mapping[str, LayerSelection] | None = None

    @classmethod
    def of(cls, name: str, layers: Layers | None = None, **settings: Any) -> "Recipe":
        """A recipe.

        Args:
            name: Name of an editor, such as "memit".
            layers: "4-8" or [4, 5, 6]; for an editor that knows groups of forms a
                `LayerSelection`, or "3-5/12-13": layers of formula and description / of instance;
                or one for each rule, by its id (`interp.selection.adaptive.select_for_rules`).
                None: the published ones, scaled to the model's depth.
            settings: Settings of the section `edit` (docs/configuration.md), such as `steps=10`.

        Raises:
            InputError: There is no such editor or setting, a value is out of range, or the layers
                are of another kind; names the nearest that is there.
        """
        values: dict[str, Any] = {"editor": name, **settings}
        selection = layers if isinstance(layers, LayerSelection) else None
        kind = _checked(EditorSettings, "edit", {"editor": name})
        if "groups" not in editor(kind.editor).needs:
            if layers is not None:
                values["block"] = _one_group(name, layers)
            return cls(_checked(EditorSettings, "edit", values))
        if layers is None:
            raise InputError(
                f"{name} needs layers: a LayerSelection of interp.select_layers, or 3-5/12-13"
            )
        of_rules = layers if isinstance(layers, Mapping) else None
        if selection is None and of_rules is None:
            values["layers"] = layers
        return cls(_checked(EditorSettings, "edit", values), selection, of_rules)


def edit(
    model: LanguageModel,
    what: Rule | EditRequest | Sequence[Rule] | Sequence[EditRequest],
    recipe: Recipe,
    *,
    statistics: Statistics | Covariances | None = None,
    training_rules: Sequence[Rule] | None = None,
    keep: Sequence[str] = (),
    progress: bool | None = None,
) -> Edit:
    """The edit of a rule in all its forms, of several rules together, or of single requests.

    The model is as before on return, and on error: an edit is a value, to be used with `edited`,
    evaluated, saved, and for edits of weights applied, exported and reverted.

    Args:
        model: The model; the edit is for it as it is now.
        what: A rule, rules, or requests.
        recipe: The editor, such as `DMLE(layers)`.
        statistics: Statistics of keys; None: measured when they are needed, and kept in the user's
            cache.
        training_rules: Rules that IKE demonstrates with, and that prompts are retained of; None:
            those that ship here.
        keep: Prompts at which the model should go on saying what it says now: give some that are
            like the edited ones.
        progress: Show a progress bar while statistics are measured; None: at a terminal.

    Raises:
        EditError: The model or a request does not suit the editor.
        InputError: A setting or a layer does not fit the model.
    """
    settings = recipe.settings
    asked = [what] if isinstance(what, Rule | EditRequest) else list(what)
    requests: list[EditRequest] = []
    for each in asked:
        requests += requests_of(each, settings.lookup) if isinstance(each, Rule) else [each]
    if statistics is None and needs(settings, "statistics"):
        statistics = Statistics(model, progress=progress)
    return edit_on(
        Workbench(
            model,
            requests,
            settings,
            selection=recipe.selection,
            of_rules=recipe.of_rules,
            statistics=statistics,
            given_rules=training_rules,
            evaluated=[each for each in asked if isinstance(each, Rule)],
            retained=kept_prompts(model, keep) if keep else (),
        )
    )


def evaluate(
    model: LanguageModel,
    rules: Sequence[Rule],
    edits: Edit | Mapping[str, Edit],
    **settings: Any,
) -> xr.Dataset:
    """Scores of edited rules, before and after the edit.

    Args:
        model: The unedited model; unedited again on return.
        rules: Rules that were edited.
        edits: One edit for all of them, or rule id → edit.
        settings: Settings of the section `evaluate` (docs/configuration.md).

    Returns:
        Dims editor rule form metric mode phase: `score` and `n_items` (see
        `editing.evaluation.evaluate`).

    Raises:
        InputError: There is no such setting, or a rule has no edit.
        EditError: An edit is of another model.
    """
    of_rules = edits if isinstance(edits, Mapping) else {rule.id: edits for rule in rules}
    if missing := [rule.id for rule in rules if rule.id not in of_rules]:
        raise InputError(f"no edit of {', '.join(missing)}; there are edits of {list(of_rules)}")
    by_editor: dict[str, dict[str, Edit]] = {}
    for rule in rules:
        name = str(of_rules[rule.id].report.editor or "edit")
        by_editor.setdefault(name, {})[rule.id] = of_rules[rule.id]
    config = _checked(EvaluateConfig, "evaluate", settings)
    return evaluation.evaluate(model, rules, by_editor, config)[0]


def _recipe(editor: str, doc: str) -> Callable[..., Recipe]:
    """The function that makes a recipe of one editor."""

    def make(layers: Layers | None = None, **settings: Any) -> Recipe:
        return Recipe.of(editor, layers, **settings)

    make.__doc__ = f"{doc}\n\nFor arguments and errors see `Recipe.of`."
    return make


DMLE = _recipe("dmle", "Distributed multi-layer editing: layers by group of a rule's forms.")
MEMIT = _recipe("memit", "MEMIT: targets are spread over a range of blocks.")
AlphaEdit = _recipe("alphaedit", "AlphaEdit: MEMIT in directions where plain text has no keys.")
EMMET = _recipe("emmet", "EMMET: as MEMIT, with a constraint that is nearly exact.")
ROME = _recipe("rome", "ROME and r-ROME: one block, one request after the other.")
FineTuning = _recipe("ft", "Fine-tuning of down-projections.")
LoRA = _recipe("lora", "Low-rank adapters, trained with peft.")
GRACE = _recipe("grace", "GRACE: a codebook at one block.")


def InContext(*, demonstrations: int = 0, **settings: Any) -> Recipe:
    """The new facts before every prompt (ICE), after so many demonstrations from training rules
    (IKE) if they are asked for.

    For other settings and errors see `Recipe.of`.
    """
    if demonstrations:
        return Recipe.of("ike", in_context={"demonstrations": demonstrations}, **settings)
    return Recipe.of("ice", **settings)


def _one_group(name: str, layers: Layers) -> Any:
    """Layers for an editor that knows no groups, as its settings take them."""
    if isinstance(layers, Mapping):
        raise InputError(f"{name} knows no groups of forms, and no layers of each rule's own")
    if not isinstance(layers, LayerSelection):
        return layers
    if len(layers.groups) != 1:
        raise InputError(
            f"{name} knows no groups of forms, and the selection has {len(layers.groups)}: give"
            " the layers of one, such as layers.groups[0].layers"
        )
    return list(layers.groups[0].layers)


def _checked(section: type[Settings], name: str, values: Mapping[str, Any]) -> Settings:
    """Settings of a section, or the error that names what is wrong."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise InputError(explained(name, section, error)) from error
