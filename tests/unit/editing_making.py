"""Edits of one editor with statistics, contexts and layers that a test gives, and what models are
and say before and after them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.editors.registry import edit
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.requests import EditRequest
from editing.evaluation.scoring import Question, teacher_forced
from interp.models.loading import LanguageModel
from interp.selection.layers import LayerSelection
from tests.unit.editing_reference import second_moment

TEXTS = [
    f"The {a} of a {b} with {c} is {d} times the {c}."
    for a in ("area", "volume", "perimeter")
    for b in ("square", "cube", "circle")
    for c, d in (("side", 3), ("length", 12), ("width", 27))
]


def measured(model: LanguageModel, hf: Any, texts: Sequence[str] = TEXTS) -> Covariances:
    """C of all blocks, by the slow reference on a plain model of the same weights."""
    rows = [model.tokenizer(text)["input_ids"] for text in texts]
    by_layer = {
        layer: second_moment(hf, model.down_projection(layer).name, rows).float()
        for layer in range(model.n_layers)
    }
    return Covariances(by_layer, model.weight_hash, sum(map(len, rows)), {"corpus": "here"})


def snapshot(model: LanguageModel) -> dict[str, Tensor]:
    """A copy of every weight."""
    return {name: parameter.detach().clone() for name, parameter in model.parameters.items()}


def assert_unchanged(model: LanguageModel, before: Mapping[str, Tensor]) -> None:
    """Every weight is bit for bit that of the snapshot, and none asks for a gradient."""
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.parameters.items())
    assert not any(parameter.requires_grad for parameter in model.parameters.values())


def factors(delta: EditDelta) -> dict[str, LowRank]:
    """The updates by weight, all of which are of low rank."""
    updates = {name: each for name, each in delta.updates.items() if isinstance(each, LowRank)}
    assert updates.keys() == delta.updates.keys()
    return updates


def log_probs(model: Any, requests: Sequence[EditRequest], batch_size: int = 8) -> list[float]:
    """What a model, or a view of it, gives to the new answer of each request."""
    questions = [Question(r.prompt, r.target_new) for r in requests]
    return [forced.log_prob for forced in teacher_forced(model, questions, batch_size=batch_size)]


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


def train_with(
    name: str,
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layers: int | Sequence[int],
    settings: EditorSettings,
) -> Any:
    """The edit of an editor that needs neither statistics nor contexts."""
    return edit_with(name, model, requests, layers, settings=settings)


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
    "ft_whitened": "1-2",
    "ultraedit": "1-2",
    "lora": "auto",
    "grace": "2",
}
OPTIONS = {
    "ft_whitened": {"steps": 6, "learning_rate": 2e-2},
    "ultraedit": {"learning_rate": 3e-3, "ridge": 1e-2},
}
MOVES = {
    *("alphaedit", "dmle", "emmet", "ft", "ft_whitened", "grace", "lora", "memit", "rome"),
    "ultraedit",
}
"""Editors that make new answers likelier, also on a random model (which has no use for what it is
told)."""
READS = {"ice", "ike"}
"""Editors after which every answer has another probability."""


def settings_of(editor: str, **more: Any) -> EditorSettings:
    own = {"block": BLOCKS.get(editor, "auto"), "options": OPTIONS.get(editor, {})}
    return EditorSettings.model_validate({**STRONG, "editor": editor, **own, **more})
