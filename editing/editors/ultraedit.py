"""UltraEdit: down-projections in closed form, from one gradient and with no target search.

A row is a token of a new answer. Its key h is what the down-projection reads there, and g is the
gradient of the loss with respect to what it writes there. The loss is the mean over all rows of
−log p(token). Keys and gradients are normalised, feature by feature:

    ĥ = (h − mean) / (std + ε),   ĝ likewise,   v = −learning_rate · ‖ĥ‖² · ĝ

and the change is the ridge least squares from the keys as they are to v, rows stacked in H and V:

    ΔWᵀ = (HᵀH + ridge·I)⁻¹ Hᵀ V = Hᵀ (HHᵀ + ridge·I)⁻¹ V

One run forwards and backwards serves all blocks. Each is written as if the others stayed.

Mean and standard deviation are over the rows of *one* edit, all its requests together. The source
lets them run on through a sequence of edits. An edit is a value here, and makes no use of earlier
ones: their gradients on the model that answers them are near zero, and would blow up ĝ. So the rows
of a batch of rules (`edit.mode=batch`) are what comes nearest to the source.

What is retained (`edit.retained`) adds rows with v = 0, one for each token. That is ours.

Source: Gu et al. 2025 (arXiv 2505.14679) and its published code, where the learning rate is 1e-6,
the ridge 1, the rows are the answers' tokens, and the modules of GPT-J are the down-projections of
blocks 18 to 26. Its running variance counts a batch of n rows n/(n − 1) times; here it is the
sample variance.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from editing.closed_form.keys import keys_of_prompts
from editing.closed_form.workbench import Workbench
from editing.editors.registry import EXTRAS, register
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.protocol import EditError
from editing.evaluation.scoring import Asked, ask
from editing.evaluation.training import trained_question
from interp.models.budget import chunked, one_batch
from interp.models.finite import cause
from interp.models.loading import LanguageModel, NamedHook
from interp.settings.section import Section
from interp.settings.sizes import parse_size

EPSILON = torch.finfo(torch.float32).eps
"""ε of the normalisation, as in the published code."""

Rows = tuple[Float[Tensor, "row d_mlp"], Float[Tensor, "row d_model"]]
"""Keys and gradients of a block, one row for each token of the answers, float64."""


class UltraEditConfig(Section):
    """UltraEdit. Source of the defaults: the published code's, for all models."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Size of the wanted change v. It grows with the number of features of a key, too: smaller
    models need a larger one."""
    ridge: float = Field(default=1.0, gt=0)
    """Weight of ‖ΔW‖² against the squared errors of the rows, in squared units of the keys."""


REMEDY = "use shorter prompts, another device, or model.dtype=bfloat16"


@register("ultraedit", blocks=tuple(range(18, 27)), options=UltraEditConfig, honours=EXTRAS)
@one_batch(REMEDY)
def edit(bench: Workbench) -> EditDelta:
    """Change down-projections by one regularised step; the model is as before on return, and on
    error.

    Args:
        bench: Model, requests, retained prompts, blocks, and the options of `UltraEditConfig`.

    Returns:
        A delta with one update per block, float32: two factors, or the whole matrix where there
        are more rows than the matrix has.

    Raises:
        EditError: The answers have one token in all, or the loss is NaN or infinite.
    """
    model, config = bench.model, bench.options
    assert isinstance(config, UltraEditConfig)
    asked = ask(model, [trained_question(model, request) for request in bench.requests])
    if sum(map(len, asked.targets)) < 2:
        raise EditError(
            "ultraedit normalises over the tokens of the new answers, and there is one token in"
            " all: give more requests (--set edit.wordings=3), or set edit.end_token=true"
        )
    loss, rows = _rows(model, asked, bench.layers)
    memory = parse_size(bench.settings.memory)
    updates: dict[str, LowRank | Tensor] = {}
    layers: dict[str, int] = {}
    for layer, (keys, gradients) in zip(bench.layers, rows, strict=True):
        values = _values(keys, gradients, config.learning_rate)
        if bench.retained:
            kept = keys_of_prompts(model, bench.retained, layer, memory).to(keys)
            keys = torch.cat([keys, kept])
            values = torch.cat([values, values.new_zeros(len(kept), values.shape[1])])
        name = model.down_projection(layer).name
        updates[name], layers[name] = _solved(keys, values, config.ridge), layer
    return EditDelta(updates, layers, model.weight_hash, bench.report(losses=[loss]))


def _rows(model: LanguageModel, asked: Asked, layers: Sequence[int]) -> tuple[float, list[Rows]]:
    """The loss, and keys and gradients of each block at the places that predict answer tokens;
    where memory runs out, of fewer texts at once.

    Raises:
        EditError: The loss is NaN or infinite.
        MemoryLimitError: Not even one text fits in memory.
    """
    losses: list[float] = []
    parts: list[list[Rows]] = []
    tokens = sum(map(len, asked.targets))

    def work(texts: list[int]) -> None:
        loss, found = _rows_of(model, asked.of_rows(texts), layers, tokens)
        losses.append(loss)
        parts.append(found)

    chunked(range(len(asked.targets)), len(asked.targets), work, REMEDY)
    rows = [
        (torch.cat([keys for keys, _ in of_block]), torch.cat([each for _, each in of_block]))
        for of_block in zip(*parts, strict=True)
    ]
    return sum(losses), rows


def _rows_of(
    model: LanguageModel, asked: Asked, layers: Sequence[int], tokens: int
) -> tuple[float, list[Rows]]:
    """What some texts have part in the loss, a mean over so many tokens; keys and gradients."""
    keys: list[Tensor] = []
    changes: list[Tensor] = []

    def read(value: Tensor, hook: Any) -> None:
        keys.append(value.detach())

    def write(value: Tensor, hook: Any) -> Tensor:
        changes.append(torch.zeros_like(value).requires_grad_())
        return value + changes[-1]

    # The raw output: a norm after the MLP is part of the loss as a function of it.
    hooks: list[NamedHook] = []
    for layer in layers:
        hooks += [(model.key_hook(layer), read), (model.value_hook(layer), write)]
    counts = asked.counts()
    with torch.enable_grad():
        logits = model.logits(asked.ids, mask=asked.mask, keep=asked.kept, hooks=hooks)
        loss = (asked.nll(logits) * counts.sum(-1)).sum() / tokens
        if not loss.isfinite():
            raise EditError(f"the loss of the new answers is {loss.item()}: {cause(model)}")
        gradients = torch.autograd.grad(loss, changes)
    row, step = counts.nonzero(as_tuple=True)
    places = row, asked.ends[row] + step
    found = zip(keys, gradients, strict=True)
    return loss.item(), [(k[places].double(), g[places].double()) for k, g in found]


def _values(
    keys: Float[Tensor, "row d_mlp"], gradients: Float[Tensor, "row d_model"], learning_rate: float
) -> Float[Tensor, "row d_model"]:
    """The wanted changes −learning_rate · ‖ĥ‖² · ĝ."""
    size = _normalised(keys).square().sum(-1, keepdim=True)
    return -learning_rate * size * _normalised(gradients)


def _normalised(rows: Float[Tensor, "row d"]) -> Float[Tensor, "row d"]:
    return (rows - rows.mean(0)) / (rows.std(0) + EPSILON)


def _solved(
    keys: Float[Tensor, "row d_mlp"], values: Float[Tensor, "row d_model"], ridge: float
) -> LowRank | Tensor:
    """ΔW of ridge least squares from keys to values."""
    gram = keys @ keys.T + ridge * torch.eye(len(keys), dtype=keys.dtype, device=keys.device)
    right = torch.linalg.solve(gram, keys).T
    update = LowRank(values.T.float().cpu(), right.float().cpu())
    return update if len(keys) < values.shape[1] else (values.T @ right.T).float().cpu()
