"""Every editor behind one function: settings and requests in, an edit out.

What editors share (contexts, statistics of the unedited model, selected layers, rules to
demonstrate with) is a `Resources`; an arm of a comparison is an `EditorSettings`.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editing.closed_form.covariance import Covariances
from editing.closed_form.spreading import Others
from editing.config import EditorSettings
from editing.editors import alphaedit, dmle, emmet, grace, in_context, lora, memit, rome
from editing.editors import ft as finetune
from editing.edits.delta import EditDelta, merge
from editing.edits.protocol import Edit
from editing.edits.requests import EditRequest, words_of
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from interp.selection.layers import LayerSelection, parse_layers

# Published blocks of models of 28 to 32 blocks: MEMIT 4-8 (Qwen2.5-7B, LLaMA-3-8B), ROME 5, FT 21
# (EasyEdit for LLaMA; its setting for Qwen2.5-7B is the last block), GRACE 19 (its 18 of 28 for
# Qwen2.5-7B).
PUBLISHED_DEPTH = 30
PUBLISHED: dict[str, tuple[int, ...]] = {
    "memit": (4, 5, 6, 7, 8),
    "alphaedit": (4, 5, 6, 7, 8),
    "emmet": (4, 5, 6, 7, 8),
    "rome": (5,),
    "ft": (21,),
    "grace": (19,),
}
CLOSED_FORM = ("dmle", "memit", "alphaedit", "emmet", "rome")
ONE_BLOCK = ("rome", "grace")
IN_ORDER = ("grace", "ice", "ike")
"""Editors that take requests one by one anyway: a sequence of edits is one edit with all
requests."""
WEAK = 0.5


@dataclass(frozen=True)
class Resources:
    """What editors share in a run."""

    contexts: Sequence[str] = ("",)
    covariances: Covariances | None = None
    selection: LayerSelection | None = None
    """Layers that `layers: auto` stands for."""
    training_rules: Sequence[Rule] = ()
    """Rules that IKE may demonstrate with."""


def edit(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    settings: EditorSettings,
    resources: Resources,
    *,
    earlier: Sequence[EditRequest] = (),
) -> Edit:
    """One editor's edit for all the requests together; the model is as before on return, and on
    error.

    Args:
        model: The model, edited or not: the edit is for it as it is now.
        requests: What to change.
        settings: Which editor, and how.
        resources: Shared by editors.
        earlier: Requests of earlier edits in a sequence.

    Raises:
        ValueError: A resource that the editor needs is missing, or the model or a request does not
            suit it.
    """
    if settings.editor in CLOSED_FORM and settings.answer == "words":
        requests, earlier = (
            [word for each in some for word in words_of(each)] for some in (requests, earlier)
        )
    if settings.editor not in CLOSED_FORM or settings.rounds == 1:
        return _edit(model, requests, settings, resources, earlier)
    parts: list[EditDelta] = []
    with ExitStack() as stack:
        for _ in range(settings.rounds):
            part = _edit(model, requests, settings, resources, earlier)
            assert isinstance(part, EditDelta)
            parts.append(part)
            stack.enter_context(part.applied(model))
    # What is said of an edit is what the last round leaves; the searches of all are kept.
    return merge(parts, {**parts[-1].about, "rounds": [dict(part.about) for part in parts[:-1]]})


def _edit(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    settings: EditorSettings,
    resources: Resources,
    earlier: Sequence[EditRequest],
) -> Edit:
    """One round of an editor."""
    name = settings.editor
    if name in CLOSED_FORM:
        covariances, contexts = _need(resources.covariances, name), resources.contexts
        if name == "dmle":
            selection = selection_of(settings, model.n_layers, resources.selection)
            return dmle.edit(
                model, requests, selection, covariances, contexts, settings, earlier=earlier
            )
        block = block_of(settings, model.n_layers)
        if name == "rome":
            return rome.edit(model, requests, block[0], covariances, contexts, settings)
        module = {"memit": memit, "alphaedit": alphaedit, "emmet": emmet}[name]
        others = Others(earlier=earlier)
        return module.edit(model, requests, block, covariances, contexts, settings, others=others)
    if name == "ft":
        return finetune.edit(model, requests, block_of(settings, model.n_layers), settings)
    if name == "lora":
        return lora.edit(model, requests, block_of(settings, model.n_layers), settings)
    if name == "grace":
        return grace.edit(model, requests, block_of(settings, model.n_layers)[0], settings)
    if name == "ice":
        return in_context.ice(model, requests, settings)
    return in_context.ike(model, requests, settings, resources.training_rules)


def selection_of(
    settings: EditorSettings, n_layers: int, selected: LayerSelection | None
) -> LayerSelection:
    """DMLE's layers: the run's selection, a file's, or those given by hand.

    Raises:
        ValueError: `auto` without a selection, or layers that are outside the model.
    """
    if settings.layers == "auto":
        return _need(selected, "dmle with layers: auto")
    chosen = (
        LayerSelection.load(Path(settings.layers))
        if settings.layers.endswith(".json")
        else parse_layers(settings.layers, n_layers)
    )
    if worst := [
        layer for group in chosen.groups for layer in group.layers if not 0 <= layer < n_layers
    ]:
        raise InputError(
            f"edit.layers has layers {worst}; the model has layers 0 to {n_layers - 1}"
        )
    return chosen


def block_of(settings: EditorSettings, n_layers: int) -> tuple[int, ...]:
    """Layers of an editor that knows no groups.

    Raises:
        ValueError: They are outside the model, or more than one where one is needed.
    """
    if settings.block != "auto":
        groups = parse_layers(settings.block, n_layers).groups
        if len(groups) != 1:
            raise InputError(
                f"edit.block is {settings.block!r}: {settings.editor} knows no groups of forms;"
                " give one list, such as 4-8 (layers by group are DMLE's, edit.layers)"
            )
        block = groups[0].layers
    elif settings.editor == "lora":
        block = tuple(range(n_layers))
    else:
        published = PUBLISHED[settings.editor]
        # The width stays as published; only the place scales with the depth.
        first = min(round(published[0] * n_layers / PUBLISHED_DEPTH), n_layers - 1)
        block = tuple(range(first, min(first + len(published), n_layers)))
    if settings.editor in ONE_BLOCK and len(block) != 1:
        raise InputError(
            f"{settings.editor} writes one block, edit.block gives {list(block)}; give one layer"
        )
    return block


def layers_of(
    settings: EditorSettings, n_layers: int, selected: LayerSelection | None
) -> tuple[int, ...]:
    """Blocks whose statistics an editor needs; none for editors without a closed form."""
    if settings.editor not in CLOSED_FORM:
        return ()
    if settings.editor == "dmle":
        groups = selection_of(settings, n_layers, selected).groups
        return tuple(sorted({layer for group in groups for layer in group.layers}))
    return block_of(settings, n_layers)


def remarks(about: Mapping[str, Any]) -> list[str]:
    """What a reader of an edit should know: colliding keys, requests that were not served,
    losses in the cast.
    """
    lines: list[str] = []
    for part in (about, *about.get("stages", ())):
        worst: dict[tuple[str, ...], float] = {}
        for pair in part.get("collinear_keys", ()):
            names = tuple(f"{r} {f}" for r, f in zip(pair["rules"], pair["forms"], strict=True))
            worst[names] = max(worst.get(names, 0.0), pair["cosine"])
        for (first, second), cosine in worst.items():
            lines.append(
                f"{first} and {second} share a key (cosine {cosine:.4f}) and want different"
                " changes, which are averaged; try edit.lookup=rule_word_last or last, or other"
                " layers for one of them"
            )
        shares: dict[tuple[str, str], list[float]] = {}
        for request, left in zip(
            part.get("requests", ()), part.get("residual_left", ()), strict=False
        ):
            shares.setdefault((request["rule"], request["form"]), []).append(left)
        for (rule, form), left in shares.items():
            weak = sum(share > WEAK for share in left)
            if weak and len(left) == 1:
                lines.append(f"{rule} {form}: {left[0]:.0%} of the way to its target is left")
            elif weak:
                of = f"{weak} of its {len(left)} words"
                lines.append(
                    f"{rule} {form}: more than half of the way to the target is left for {of}"
                )
    for name, lost in about.get("cast_loss", {}).items():
        if lost > WEAK:
            lines.append(
                f"{name}: {lost:.0%} of the update is lost in the model's number format; use"
                " model.dtype float32"
            )
    return lines


def _need(value: Any, who: str) -> Any:
    if value is None:
        raise InputError(
            f"{who} needs statistics or selected layers that were not given; see"
            " editing.editors.registry.Resources"
        )
    return value
