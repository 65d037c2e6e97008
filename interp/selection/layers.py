"""The layers to edit, for each group of forms: a value, its file, and layers given by hand."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp.errors import InputError
from interp.results.checksums import damaged, read_json, write_json
from interp.rules.schema import explain
from interp.selection.exports import Method, easyedit_yaml
from interp.selection.shown import selection_html, selection_markdown
from interp.vocabulary import FORMS

SCHEMA = "dmle.selection/1"
RULES_SCHEMA = "dmle.selections/1"
WHAT = "layer selection"
_RANGE = re.compile(r"\s*([0-9]{1,18})\s*(?:-\s*([0-9]{1,18})\s*)?")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerGroup(_Frozen):
    """Forms that share an update, and the layers it goes to."""

    name: str
    forms: tuple[str, ...]
    layers: tuple[int, ...] = Field(min_length=1)
    score: float | None = None
    """Mean AIE over the layers (of the windows that hold them); None if the layers were given,
    not selected."""
    lower: float | None = None
    upper: float | None = None
    stability: float | None = None
    """How alike the choices of two halves of the rules are, from 0 to 1 (`Strategy.agreement`)."""
    p_value: float | None = None
    """How often the best pick would be as strong by chance (`interp.selection.support.chance`)."""
    n_rules: int = 0
    supported: bool = True
    """Whether the layers' effect is distinguishable from zero, not negligible, and stable
    enough."""
    objections: tuple[str, ...] = ()
    """What speaks against the choice and what it takes, a sentence each; empty if supported."""
    reason: str = ""
    """Why these layers, in sentences; the objections are among them."""


class LayerSelection(_Frozen):
    """Layers for each group of forms, with where they come from."""

    schema_: Literal["dmle.selection/1"] = Field(default=SCHEMA, alias="schema")
    strategy: str
    component: str
    role: str
    width: int
    """Layers of the widest group."""
    n_layers: int
    first_layer: int = 0
    """Layers before this one were no candidates."""
    last_layer: int | None = None
    """Layers after this one were no candidates; None: all were."""
    groups: tuple[LayerGroup, ...]
    provenance: dict[str, Any] = Field(default_factory=dict)

    def layers_of(self, form: str) -> tuple[int, ...]:
        """Layers for a form.

        Raises:
            InputError: No group has the form.
        """
        return self.group_of(form).layers

    def group_of(self, form: str) -> LayerGroup:
        """The group that a form belongs to.

        Raises:
            InputError: There is none.
        """
        for group in self.groups:
            if form in group.forms:
                return group
        raise InputError(
            f"form {form!r} is in no group; groups are {[g.name for g in self.groups]}"
        )

    def to_dmle_config(self) -> list[dict[str, Any]]:
        """The published driver's config.json: `f_d` (formula and description), then `ins`
        (instance).

        Raises:
            InputError: The groups do not map to these two stages.
        """
        layers = {form: group.layers for group in self.groups for form in group.forms}
        if set(layers) != set(FORMS) or layers["formula"] != layers["description"]:
            got = {group.name: list(group.layers) for group in self.groups}
            raise InputError(
                "the published driver has one stage for formula and description and one for"
                f" instance; the selection has {got}; select with --set 'select.groups=[[formula,"
                " description], [instance]]'"
            )
        return [
            {"name": "f_d", "layers": list(layers["formula"])},
            {"name": "ins", "layers": list(layers["instance"])},
        ]

    def to_easyedit_yaml(
        self, group: str, model_name: str, method: Method = "MEMIT", *, tied: bool = False
    ) -> str:
        """EasyEdit's settings for one group's layers as YAML text (see
        `interp.selection.exports.easyedit_yaml`).

        Args:
            group: Name of the group, or one of its forms.
            model_name: Hub name or folder of the model.
            method: Which of EasyEdit's editors.
            tied: Whether a model without published settings ties its embeddings.

        Raises:
            InputError: There is no such group, or the named model has another depth.
        """
        chosen = next((g for g in self.groups if g.name == group), None) or self.group_of(group)
        return easyedit_yaml(chosen.layers, self.n_layers, model_name, method, tied=tied)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return selection_html(self)

    def _repr_markdown_(self) -> str:
        """The same as Markdown."""
        return selection_markdown(self)

    def save(self, path: Path) -> None:
        """Write JSON with a checksum."""
        write_json(path, self.model_dump(mode="json", by_alias=True), indent=2)

    @classmethod
    def load(cls, path: Path) -> "LayerSelection":
        """Read JSON written by `save`.

        Raises:
            FileNotFoundError: There is no such file.
            DamagedError: It does not hold what `save` wrote.
        """
        return _selection_of(path, read_json(path, WHAT))


def save_for_rules(
    selections: Mapping[str, LayerSelection],
    path: Path,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Write the selections of many rules as one JSON file, by rule.

    Args:
        selections: By the rule's id.
        path: The file.
        provenance: Where all of them come from.
    """
    content = {
        rule: selection.model_dump(mode="json", by_alias=True)
        for rule, selection in selections.items()
    }
    entries = {"schema": RULES_SCHEMA, "provenance": provenance or {}, "selections": content}
    write_json(path, entries, indent=1)


def load_for_rules(path: Path) -> dict[str, LayerSelection]:
    """Read JSON written by `save_for_rules`.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It does not hold what `save_for_rules` wrote.
    """
    what = "file of layer selections by rule"
    return _selections_of(path, read_json(path, what, schema=RULES_SCHEMA))


def load_layers(path: Path) -> LayerSelection | dict[str, LayerSelection]:
    """Read a file of layers of either kind: a selection for all rules, or one for each rule.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It holds neither.
    """
    content = read_json(path, WHAT)
    if content.get("schema") == RULES_SCHEMA:
        return _selections_of(path, content)
    return _selection_of(path, content)


def provenance_of(path: Path) -> Mapping[str, Any]:
    """Where the layers of a file of either kind come from.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It does not hold what was written.
    """
    provenance = read_json(path, WHAT).get("provenance")
    return provenance if isinstance(provenance, dict) else {}


def _selections_of(path: Path, content: Mapping[str, Any]) -> dict[str, LayerSelection]:
    selections = content.get("selections")
    if not isinstance(selections, dict):
        raise damaged(path, WHAT, "it has no selections by rule")
    return {rule: _selection_of(path, each) for rule, each in selections.items()}


def _selection_of(path: Path, content: Any) -> LayerSelection:
    try:
        return LayerSelection.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise damaged(path, WHAT, explain(error)) from error


def parse_layers(text: str, n_layers: int) -> LayerSelection:
    """Layers given by hand: "3,4,5/12,13,14" (formula and description / instance) or "4-8" (all
    forms).

    Raises:
        InputError: The text is not of that form, or a layer is outside the model.
    """
    forms = (("formula", "description"), ("instance",)) if "/" in text else (FORMS,)
    parts = text.split("/")
    if len(parts) != len(forms):
        raise InputError(
            f"layers {text!r}: give one list, or two separated by '/', such as 3,4,5/12,13,14"
        )
    groups = [
        (names, _layers(part, n_layers), "Given by hand.")
        for names, part in zip(forms, parts, strict=True)
    ]
    return given_layers("manual", n_layers, groups)


def given_layers(
    strategy: str, n_layers: int, groups: Sequence[tuple[Sequence[str], Sequence[int], str]]
) -> LayerSelection:
    """A selection that no data speaks for.

    Args:
        strategy: What it is called.
        n_layers: Depth of the model.
        groups: Forms, layers and reason of each group.
    """
    made = tuple(
        LayerGroup(name="+".join(forms), forms=tuple(forms), layers=tuple(layers), reason=reason)
        for forms, layers, reason in groups
    )
    return LayerSelection(
        schema=SCHEMA,
        strategy=strategy,
        component="mlp",
        role="",
        width=max(len(group.layers) for group in made),
        n_layers=n_layers,
        groups=made,
    )


def _layers(text: str, n_layers: int) -> tuple[int, ...]:
    layers: list[int] = []
    for part in text.split(","):
        ends = _RANGE.fullmatch(part)
        if ends is None:
            raise InputError(
                f"layers {text!r}: numbers and ranges separated by commas are needed, such as 3,4,5"
                " or 4-8"
            )
        first, last = int(ends[1]), int(ends[2] or ends[1])
        # Not written out before it is known to be within the model.
        layers += range(first, min(last, n_layers) + 1)
    if not layers or layers != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < n_layers:
        raise InputError(f"layers {text!r}: ascending layers within 0 to {n_layers - 1} are needed")
    return tuple(layers)
