"""Arms: named ways to edit, with their layers, statistics and contexts found before any work.

Layers are resolved once (`resolve`), from an arm's settings and the selection that `layers: auto`
stands for. Whoever edits gets them as numbers, so that no file is read again for every rule.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from editing.closed_form.chosen_layers import (
    ADAPTIVE,
    RUN_FILES,
    SHOWN,
    Layers,
    layers_of,
    of_edited,
)
from editing.closed_form.covariance import Covariances
from editing.closed_form.workbench import Workbench
from editing.config import EditConfig, EditorSettings
from editing.editors.registry import block_of, needs, options_of
from interp.errors import StaleError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule, load_rules
from interp.selection.layers import LayerSelection, load_layers
from interp.vocabulary import FORMS, RuleForm

Statistics = Callable[[Sequence[int]], Covariances | None]
"""Gives the statistics of some blocks, read or measured; None where nothing will be edited."""


@dataclass(frozen=True)
class Place:
    """Where an arm edits.

    Attributes:
        layers: Layers that it writes, by group of forms; none if it edits in context, or if each
            rule has its own.
        chosen: The same as DMLE takes them.
        of_rules: The same of each rule, by its id, where each has its own.
        block: The same for an editor that knows no groups.
        statistics: Blocks whose statistics it needs.
    """

    layers: Mapping[str, tuple[int, ...]]
    chosen: LayerSelection | None = None
    of_rules: Mapping[str, LayerSelection] | None = None
    block: tuple[int, ...] = ()
    statistics: tuple[int, ...] = ()

    def layers_of(self, rule: str) -> Mapping[str, tuple[int, ...]]:
        """Layers that it writes for a rule, by group of forms."""
        return self.layers if self.of_rules is None else by_group(self.of_rules[rule])

    @property
    def text(self) -> str:
        """In words."""
        if self.of_rules is None:
            return layers_text(self.layers) if self.layers else "in context, no layers"
        return own_text(self.of_rules)


@dataclass(frozen=True)
class Arm:
    """One way to edit, as it is compared."""

    name: str
    settings: EditorSettings
    bench: Workbench
    """The model, where the arm edits, and what edits share."""
    seeds: tuple[int, ...]
    layers: Mapping[str, Sequence[int]]
    """Layers it writes, for the record and to know whether a cell is of the same; none if each rule
    has its own (`Workbench.of_rules`)."""
    rules: frozenset[str]
    """Rules it is run on."""
    forms: tuple[RuleForm, ...] = FORMS
    """Forms that it edits, and is scored on. Arms that are compared have the same."""

    def layers_of(self, rule: str) -> Mapping[str, Sequence[int]]:
        """Layers that it writes for a rule, by group of forms."""
        own = self.bench.of_rules
        return self.layers if own is None else by_group(own[rule])

    def layers_text(self, rule: str) -> str:
        """The same in words."""
        whose = "" if self.bench.of_rules is None else " (the rule's own)"
        return layers_text(self.layers_of(rule)) + whose


@dataclass(frozen=True)
class Selected:
    """Layers that a run has selected.

    Attributes:
        population: For all rules; what `layers: auto` stands for.
        of_rules: For each rule, by its id; what `layers: adaptive` stands for.
    """

    population: LayerSelection | None = None
    of_rules: Mapping[str, LayerSelection] | None = None


def by_group(selection: LayerSelection) -> dict[str, tuple[int, ...]]:
    """Layers by the name of the group of forms."""
    return {group.name: tuple(group.layers) for group in selection.groups}


def layers_text(layers: Mapping[str, Sequence[int]]) -> str:
    """Layers by group of forms in words."""
    return "; ".join(
        f"{group}: layers {', '.join(map(str, each))}" for group, each in layers.items()
    )


def own_text(of_rules: Mapping[str, LayerSelection]) -> str:
    """Layers of each rule's own in words, of the first rules."""
    texts = {rule: layers_text(by_group(own)) for rule, own in of_rules.items()}
    shown = [f"{rule} ({text})" for rule, text in list(texts.items())[:SHOWN]]
    more = f", and {len(texts) - SHOWN} more rules" if len(texts) > SHOWN else ""
    return f"each rule's own layers: {', '.join(shown)}{more}"


def own_lines(arms: Iterable[Arm]) -> list[str]:
    """A line for each arm that has layers of each rule's own."""
    named = [(arm.name, arm.bench.of_rules) for arm in arms]
    return [f"{name}: {own_text(own)}" for name, own in named if own is not None]


def file_read(settings: EditorSettings) -> str | None:
    """The file of the run that an arm takes its layers of; None if it takes none of the run."""
    return RUN_FILES.get(settings.layers) if needs(settings, "groups") else None


def is_by_rule(settings: EditorSettings) -> bool:
    """Whether an arm takes layers of each rule's own.

    Raises:
        DmleError: The file of layers that the settings name cannot be read.
    """
    if not needs(settings, "groups"):
        return False
    if settings.layers.endswith(".json"):
        return not isinstance(load_layers(Path(settings.layers)), LayerSelection)
    return settings.layers == ADAPTIVE


def resolve(
    model: LanguageModel,
    settings: EditorSettings,
    selected: Selected | None = None,
    rules: Iterable[str] = (),
) -> Place:
    """Where an arm edits.

    Args:
        model: The model.
        settings: The arm's settings.
        selected: What the run has selected.
        rules: Ids of the rules that are edited: each needs layers of its own, if the settings
            say so.

    Raises:
        StaleError: The selection that the settings name was made for another model.
        InputError: `auto` or `adaptive` without a selection, a rule without layers of its own,
            layers that are outside the model, more than one block where one is needed, or a setting
            that the editor cannot honour.
    """
    options_of(settings)
    if not needs(settings, "groups"):
        block = block_of(settings, model.n_layers)
        return at_block(settings, block) if block else Place({})
    chosen = _chosen(model, settings, selected or Selected())
    if isinstance(chosen, LayerSelection):
        return Place(by_group(chosen), chosen, statistics=_every([chosen]))
    own = of_edited(chosen, rules)
    return Place({}, of_rules=own, statistics=_every(own.values()))


def _chosen(model: LanguageModel, settings: EditorSettings, selected: Selected) -> Layers:
    """The layers that an arm's settings name; of a file, after a look at its model."""
    if not settings.layers.endswith(".json"):
        return layers_of(settings, model.n_layers, selected.population, selected.of_rules)
    path = Path(settings.layers)
    check_layers(model, layers := load_layers(path), path)
    return layers


def _every(selections: Iterable[LayerSelection]) -> tuple[int, ...]:
    groups = [group for selection in selections for group in selection.groups]
    return tuple(sorted({layer for group in groups for layer in group.layers}))


def at_block(settings: EditorSettings, block: tuple[int, ...], group: str = "all forms") -> Place:
    """A block of layers as the place of an editor that knows no groups."""
    needed = block if needs(settings, "statistics") else ()
    return Place({group: block}, block=block, statistics=needed)


def check_layers(model: LanguageModel, layers: Layers, path: Path) -> None:
    """See that layers of all rules, or of each, were selected for a model.

    Raises:
        StaleError: They were selected for another one.
    """
    for selection in [layers] if isinstance(layers, LayerSelection) else layers.values():
        check_selection(model, selection, path)


def check_selection(model: LanguageModel, selection: LayerSelection, path: Path) -> None:
    """See that layers were selected for a model.

    Raises:
        StaleError: They were selected for another one.
    """
    # An outline has no hash.
    made_for = selection.provenance.get("weight_hash") if model.weight_hash else None
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
    selected: Selected | None = None,
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
        selected: What the run has selected.
        places: Where each arm edits, if that is known already.
        seeds: Each rule is edited once with each; the arm's own if not given.
        few: Arms that are run on the first rules only.
        few_rules: How many those are.

    Raises:
        DmleError: See `resolve`.
    """
    settings = {name: config.settings_of(name) for name in config.editors}
    ids = [rule.id for rule in rules]
    edited = {name: ids[:few_rules] if name in few else ids for name in settings}
    if places is None:
        places = {
            name: resolve(model, each, selected, edited[name]) for name, each in settings.items()
        }
    needed = sorted({layer for place in places.values() for layer in place.statistics})
    training = training_rules(settings.values())
    bench = Workbench(
        model,
        statistics=statistics(needed) if needed else None,
        given_rules=training or None,
    )
    arms = []
    for name, each in settings.items():
        place = places[name]
        own = frozenset(edited[name])
        at = replace(bench, layers=place.block, chosen=place.chosen, of_rules=place.of_rules)
        arms.append(Arm(name, each, at, tuple(seeds or (each.seed,)), place.layers, own))
    return arms
