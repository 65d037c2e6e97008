"""Arms: named ways to edit, with their layers, statistics and contexts found before any work.

Layers are resolved once (`resolve`), from an arm's settings and the selection that `layers: auto`
stands for. Whoever edits gets them as numbers, so that no file is read again for every rule.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from editing.closed_form.covariance import Covariances
from editing.closed_form.workbench import Workbench
from editing.config import EditConfig, EditorSettings
from editing.editors.registry import block_of, needs, options_of, selection_of
from interp.errors import StaleError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule, load_rules
from interp.selection.layers import LayerSelection
from interp.vocabulary import FORMS, RuleForm

Statistics = Callable[[Sequence[int]], Covariances]
"""Gives the statistics of some blocks, read or measured."""


@dataclass(frozen=True)
class Place:
    """Where an arm edits.

    Attributes:
        layers: Layers that it writes, by group of forms; none if it edits in context.
        chosen: The same as DMLE takes them.
        block: The same for an editor that knows no groups.
        statistics: Blocks whose statistics it needs.
    """

    layers: Mapping[str, tuple[int, ...]]
    chosen: LayerSelection | None = None
    block: tuple[int, ...] = ()
    statistics: tuple[int, ...] = ()

    @property
    def text(self) -> str:
        """In words."""
        if not self.layers:
            return "in context, no layers"
        return "; ".join(
            f"{group}: layers {', '.join(map(str, layers))}"
            for group, layers in self.layers.items()
        )


@dataclass(frozen=True)
class Arm:
    """One way to edit, as it is compared."""

    name: str
    settings: EditorSettings
    bench: Workbench
    """The model, where the arm edits, and what edits share."""
    seeds: tuple[int, ...]
    layers: Mapping[str, Sequence[int]]
    """Layers it writes, for the record and to know whether a cell is of the same."""
    rules: frozenset[str]
    """Rules it is run on."""
    forms: tuple[RuleForm, ...] = FORMS
    """Forms that it edits, and is scored on. Arms that are compared have the same."""


def reads_selection(settings: EditorSettings) -> bool:
    """Whether an arm takes the layers of the run's selection."""
    return needs(settings, "groups") and settings.layers == "auto"


def resolve(
    model: LanguageModel, settings: EditorSettings, selected: LayerSelection | None = None
) -> Place:
    """Where an arm edits.

    Args:
        model: The model.
        settings: The arm's settings.
        selected: The layers that `layers: auto` stands for.

    Raises:
        StaleError: The selection that the settings name was made for another model.
        InputError: `auto` without a selection, layers that are outside the model, more than one
            block where one is needed, or a setting that the editor cannot honour.
    """
    options_of(settings)
    if not needs(settings, "groups"):
        block = block_of(settings, model.n_layers)
        return at_block(settings, block) if block else Place({})
    if settings.layers.endswith(".json"):
        path = Path(settings.layers)
        selection = LayerSelection.load(path)
        check_selection(model, selection, path)
    else:
        selection = selection_of(settings, model.n_layers, selected)
    layers = {group.name: tuple(group.layers) for group in selection.groups}
    every = {layer for group in layers.values() for layer in group}
    return Place(layers, selection, statistics=tuple(sorted(every)))


def at_block(settings: EditorSettings, block: tuple[int, ...], group: str = "all forms") -> Place:
    """A block of layers as the place of an editor that knows no groups."""
    needed = block if needs(settings, "statistics") else ()
    return Place({group: block}, block=block, statistics=needed)


def check_selection(model: LanguageModel, selection: LayerSelection, path: Path) -> None:
    """See that layers were selected for a model.

    Raises:
        StaleError: They were selected for another one.
    """
    made_for = selection.provenance.get("weight_hash")
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


def training_rules(arms: Iterable[EditorSettings]) -> list[Rule]:
    """The embedded rules of the training split, if an arm demonstrates with them, or retains
    prompts of them.
    """
    if not any(needs(settings, "training rules") for settings in arms):
        return []
    return list(load_rules("embedded", split="train").rules)


def make_arms(
    model: LanguageModel,
    config: EditConfig,
    rules: Sequence[Rule],
    *,
    statistics: Statistics,
    selected: LayerSelection | None = None,
    places: Mapping[str, Place] | None = None,
    seeds: Sequence[int] | None = None,
    few: Collection[str] = (),
    few_rules: int = 0,
) -> list[Arm]:
    """The arms of `config.editors`, ready to edit: all of them get the same statistics, and those
    of equal settings the same contexts.

    Args:
        model: The unedited model.
        config: Editors, arms and their settings.
        rules: Rules to edit.
        statistics: Asked once, for the blocks of all arms, if an arm needs any.
        selected: The layers that `layers: auto` stands for.
        places: Where each arm edits, if that is known already.
        seeds: Each rule is edited once with each; the arm's own if not given.
        few: Arms that are run on the first rules only.
        few_rules: How many those are.

    Raises:
        DmleError: See `resolve`.
    """
    settings = {name: config.settings_of(name) for name in config.editors}
    if places is None:
        places = {name: resolve(model, each, selected) for name, each in settings.items()}
    needed = sorted({layer for place in places.values() for layer in place.statistics})
    training = training_rules(settings.values())
    bench = Workbench(
        model,
        statistics=statistics(needed) if needed else None,
        given_rules=training or None,
    )
    ids = [rule.id for rule in rules]
    arms = []
    for name, each in settings.items():
        place = places[name]
        own = frozenset(ids[:few_rules] if name in few else ids)
        at = replace(bench, layers=place.block, chosen=place.chosen)
        arms.append(Arm(name, each, at, tuple(seeds or (each.seed,)), place.layers, own))
    return arms
