"""Arms: named ways to edit, with their layers, statistics and contexts found before any work.

Layers are resolved once (`resolve`), from an arm's settings and the selection that `layers: auto`
stands for. Whoever edits gets them as numbers, so that no file is read again for every rule.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from editing.closed_form.contexts import sample_contexts
from editing.closed_form.covariance import Covariances
from editing.config import EditConfig, EditorSettings
from editing.editors.registry import CLOSED_FORM, Resources, block_of, selection_of
from interp.errors import StaleError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule, load_rules
from interp.selection.layers import LayerSelection
from interp.vocabulary import FORMS, RuleForm

Statistics = Callable[[Sequence[int]], Covariances]
"""Gives the statistics of some blocks, read or measured."""
IN_CONTEXT = ("ice", "ike")


@dataclass(frozen=True)
class Place:
    """Where an arm edits.

    Attributes:
        layers: Layers that it writes, by group of forms; none if it edits in context.
        given: The same as its editor takes them: a selection for DMLE, else one block.
        statistics: Blocks whose statistics it needs.
    """

    layers: Mapping[str, tuple[int, ...]]
    given: LayerSelection | tuple[int, ...] | None = None
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
    resources: Mapping[int, Resources]
    """Of each seed."""
    layers: Mapping[str, Sequence[int]]
    """Layers it writes, for the record and to know whether a cell is of the same."""
    rules: frozenset[str]
    """Rules it is run on."""
    forms: tuple[RuleForm, ...] = FORMS
    """Forms that it edits, and is scored on. Arms that are compared have the same."""


def reads_selection(settings: EditorSettings) -> bool:
    """Whether an arm takes the layers of the run's selection."""
    return settings.editor == "dmle" and settings.layers == "auto"


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
        InputError: `auto` without a selection, layers that are outside the model, or more than
            one block where one is needed.
    """
    if settings.editor in IN_CONTEXT:
        return Place({})
    if settings.editor != "dmle":
        block = block_of(settings, model.n_layers)
        return at_block(settings, block)
    if settings.layers.endswith(".json"):
        path = Path(settings.layers)
        selection = LayerSelection.load(path)
        check_selection(model, selection, path)
    else:
        selection = selection_of(settings, model.n_layers, selected)
    layers = {group.name: tuple(group.layers) for group in selection.groups}
    every = {layer for group in layers.values() for layer in group}
    return Place(layers, selection, tuple(sorted(every)))


def at_block(settings: EditorSettings, block: tuple[int, ...], group: str = "all forms") -> Place:
    """A block of layers as the place of an editor that knows no groups."""
    needed = block if settings.editor in CLOSED_FORM else ()
    return Place({group: block}, block, needed)


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
    """The embedded rules of the training split, if an arm demonstrates with them."""
    if all(settings.editor != "ike" for settings in arms):
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
        DmleError: See `resolve` and `sample_contexts`.
    """
    settings = {name: config.settings_of(name) for name in config.editors}
    if places is None:
        places = {name: resolve(model, each, selected) for name, each in settings.items()}
    needed = sorted({layer for place in places.values() for layer in place.statistics})
    shared = Shared(
        model, statistics(needed) if needed else None, training_rules(settings.values())
    )
    ids = [rule.id for rule in rules]
    arms = []
    for name, each in settings.items():
        place = places[name]
        of_seed = {seed: shared.of(each, place, seed) for seed in seeds or (each.seed,)}
        own = frozenset(ids[:few_rules] if name in few else ids)
        arms.append(Arm(name, each, of_seed, place.layers, own))
    return arms


class Shared:
    """What arms share: statistics, rules to demonstrate with, and contexts, sampled when they are
    first asked for.

    Args:
        model: The unedited model.
        statistics: Of all blocks that the arms write.
        training: Rules that IKE may demonstrate with.
    """

    def __init__(
        self,
        model: LanguageModel,
        statistics: Covariances | None = None,
        training: Sequence[Rule] = (),
    ) -> None:
        self._model, self._statistics, self._training = model, statistics, training
        self._contexts: dict[tuple[int, int, int], tuple[str, ...]] = {}

    def of(self, settings: EditorSettings, place: Place, seed: int) -> Resources:
        """What an arm edits with."""
        which = (settings.contexts, settings.context_tokens, seed)
        contexts = ("",)
        if settings.editor in CLOSED_FORM:
            if which not in self._contexts:
                self._contexts[which] = sample_contexts(self._model, *which)
            contexts = self._contexts[which]
        return Resources(
            contexts, self._statistics, training_rules=self._training, layers=place.given
        )
