"""Edits of one editor with statistics, contexts and layers that a test gives."""

from collections.abc import Sequence
from typing import Any

from editing.closed_form.covariance import Covariances
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.editors.registry import edit
from editing.edits.requests import EditRequest
from interp.models.loading import LanguageModel
from interp.selection.layers import LayerSelection


def bench_of(
    name: str,
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layers: int | Sequence[int] | LayerSelection = (),
    statistics: Covariances | None = None,
    contexts: Sequence[str] | None = None,
    settings: EditorSettings | None = None,
    **more: Any,
) -> Workbench:
    """A workbench with these on it, for the editor of a name."""
    chosen = isinstance(layers, LayerSelection)
    changes = {"editor": name, **({"layers": "auto"} if chosen else {})}
    settings = (settings or EditorSettings()).model_copy(update=changes)
    blocks = (layers,) if isinstance(layers, int) else layers
    where: dict[str, Any] = {"selection": layers} if chosen else {"layers": tuple(blocks)}
    return Workbench(
        model, requests, settings, statistics=statistics, given_contexts=contexts, **where, **more
    )


def edit_with(name: str, *given: Any, targets: Any = None, **more: Any) -> Any:
    """The edit of the editor of a name (see `bench_of`)."""
    known = {} if targets is None else {"targets": targets}
    return edit(bench_of(name, *given, **more), **known)


# Enough to be seen on a random model of three blocks. Its prompts differ in their last tokens, so
# that no keys collide.
STRONG: dict[str, Any] = {
    "layers": "1,2/2",
    "lookup": "last",
    "steps": 8,
    "kl_factor": 0.0,
    "ridge": 1e-3,
    "l2": 1e-2,
    "damping": 1e-2,
    "null_threshold": 0.5,
    "null_relative": True,
    "ft": {"steps": 6, "learning_rate": 2e-2},
    "lora": {"rank": 3, "steps": 6, "learning_rate": 4e-2, "dropout": 0.0},
    "grace": {"steps": 6, "learning_rate": 0.5, "epsilon": 0.05},
    "in_context": {"demonstrations": 1},
}
BLOCKS = {
    "memit": "1-2",
    "alphaedit": "1-2",
    "emmet": "1-2",
    "rome": "2",
    "ft": "2",
    "lora": "auto",
    "grace": "2",
}


def settings_of(editor: str, **more: Any) -> EditorSettings:
    return EditorSettings.model_validate(
        {**STRONG, "editor": editor, "block": BLOCKS.get(editor, "auto"), **more}
    )
