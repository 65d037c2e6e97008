"""Edits of one editor with statistics, contexts and layers that a test gives."""

from collections.abc import Sequence
from typing import Any

from editing.closed_form.covariance import Covariances
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.editors.registry import edit
from editing.edits.requests import EditRequest
from interp.models.loading import LanguageModel
from interp.selection.select import LayerSelection


def bench_of(
    name: str,
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int] | LayerSelection = (),
    statistics: Covariances | None = None,
    contexts: Sequence[str] | None = None,
    settings: EditorSettings | None = None,
    **more: Any,
) -> Workbench:
    """A workbench with these on it, for the editor of a name."""
    chosen = isinstance(layers, LayerSelection)
    changes = {"editor": name, **({"layers": "auto"} if chosen else {})}
    settings = (settings or EditorSettings()).model_copy(update=changes)
    where: dict[str, Any] = {"selection": layers} if chosen else {"layers": tuple(layers)}
    return Workbench(
        model, requests, settings, statistics=statistics, given_contexts=contexts, **where, **more
    )


def edit_with(name: str, *given: Any, targets: Any = None, **more: Any) -> Any:
    """The edit of the editor of a name (see `bench_of`)."""
    known = {} if targets is None else {"targets": targets}
    return edit(bench_of(name, *given, **more), **known)
