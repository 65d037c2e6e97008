"""Which layers `edit.layers` stands for: those selected for all rules, or for each rule its own."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from interp.errors import InputError
from interp.selection.layers import LayerSelection, load_layers, parse_layers

AUTO, ADAPTIVE = "auto", "adaptive"
RUN_FILES = {AUTO: "selection.json", ADAPTIVE: "selection-rules.json"}
"""Files of the run folder by the value of `edit.layers` that stands for them."""
SHOWN = 3
"""Rules that an error names."""
Layers = LayerSelection | Mapping[str, LayerSelection]
"""Layers of each group of forms: of all rules, or by a rule's id."""


def layers_of(
    settings: EditorSettings,
    n_layers: int,
    selected: LayerSelection | None = None,
    of_rules: Mapping[str, LayerSelection] | None = None,
) -> Layers:
    """The layers that some settings name: the run's, a file's, or those given by hand.

    Args:
        settings: Of an editor that knows groups.
        n_layers: Depth of the model.
        selected: What `layers: auto` stands for.
        of_rules: What `layers: adaptive` stands for.

    Raises:
        InputError: `auto` or `adaptive` without a selection, or layers that are outside the model.
    """
    held: Layers | None
    if settings.layers in RUN_FILES:
        held = selected if settings.layers == AUTO else of_rules
        if held is None:
            raise InputError(_unselected(settings))
    elif settings.layers.endswith(".json"):
        held = load_layers(Path(settings.layers))
    else:
        held = parse_layers(settings.layers, n_layers)
    selections = [held] if isinstance(held, LayerSelection) else held.values()
    _check_inside(selections, n_layers)
    return held


def of_edited(
    of_rules: Mapping[str, LayerSelection], rules: Iterable[str]
) -> dict[str, LayerSelection]:
    """The layers of some rules.

    Raises:
        InputError: A rule has none of its own.
    """
    wanted = list(dict.fromkeys(rules))
    if missing := [rule for rule in wanted if rule not in of_rules]:
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise InputError(
            f"there are no layers of its own for {', '.join(missing[:SHOWN])}{more}: the"
            " selection rule by rule is of other rules. Trace these rules, and run `dmle profile`"
            " and `dmle select --strategy adaptive` in this run folder, or take the layers of all"
            " rules, edit.layers=auto"
        )
    return {rule: of_rules[rule] for rule in wanted}


def with_layers(bench: Workbench) -> Workbench:
    """A workbench with the layers of the edit that it is asked for.

    Raises:
        InputError: As `layers_of`; or each rule has layers of its own, and the requests are of
            several, or of one that has none.
    """
    if bench.chosen is not None:
        return replace(bench, selection=bench.chosen)
    found: Layers | None = bench.of_rules
    if found is None:
        found = layers_of(bench.settings, bench.model.n_layers, bench.selection)
    if isinstance(found, LayerSelection):
        return replace(bench, selection=found, chosen=found)
    own = of_edited(found, [request.rule for request in bench.requests])
    if len(own) > 1:
        raise InputError(one_plan(f"these requests are of {len(own)} rules"))
    _check_inside(own.values(), bench.model.n_layers)
    (selection,) = own.values()
    return replace(bench, selection=selection, chosen=selection, of_rules=own)


def one_plan(what: str, remedy: str = "edit the rules one by one") -> str:
    """What to say of an edit of many rules by layers of each rule's own."""
    return (
        f"{what}, and each rule has layers of its own (edit.layers): one edit has one plan of"
        f" layers; {remedy}, or take the layers of all rules, such as edit.layers=auto"
    )


def _unselected(settings: EditorSettings) -> str:
    editor = settings.editor
    if settings.layers == AUTO:
        return (
            f"{editor} with layers: auto needs selected layers; run `dmle select`, or"
            " give layers, such as --layers 3,4,5/12,13,14"
        )
    return (
        f"{editor} with layers: adaptive needs layers selected for each rule; run `dmle select"
        " --strategy adaptive`, or give layers, such as --layers 3,4,5/12,13,14"
    )


def _check_inside(selections: Iterable[LayerSelection], n_layers: int) -> None:
    groups = [group for selection in selections for group in selection.groups]
    if worst := [layer for g in groups for layer in g.layers if not 0 <= layer < n_layers]:
        raise InputError(
            f"edit.layers has layers {worst}; the model has layers 0 to {n_layers - 1}"
        )
