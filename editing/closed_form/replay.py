"""Forward replay: targets of later blocks, read off one run with the first block's target in place.

MEMIT searches a target at the last edited block, and divides what is missing there among the
blocks. Here the target z is searched at the first block of each request. Then the bare prompt runs
once with z in place of the state there, and the states at the later blocks are their targets. Every
block writes its whole residual.

Source: arXiv 2605.00358 (MEMIT-FE), as EasyEdit's `memit_FE` does it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editing.closed_form.contexts import Row, rows
from editing.closed_form.keys import REMEDY
from editing.edits.requests import EditRequest
from interp.models.budget import chunked
from interp.models.finite import require_finite
from interp.models.loading import LanguageModel, NamedHook
from interp.models.tokens import pad_right


def replayed_targets(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    plan: Sequence[Sequence[int]],
    z: Float[Tensor, "request d_model"],
    lookup: str,
    memory: int | None = None,
) -> Mapping[int, Float[Tensor, "request d_model"]]:
    """The target of each request at each block of the plan.

    Args:
        model: The unedited model.
        requests: The requests.
        plan: Blocks of each request, ascending.
        z: Targets at the first block of each request: outputs of the block.
        lookup: See `interp.models.tokens.lookup_span`.
        memory: Bytes that a batch may take (estimated).

    Returns:
        Block → targets; rows of requests that have not this block are zero.

    Raises:
        NotFiniteError: A state is NaN or infinite.
        MemoryLimitError: Not even one prompt fits in memory.
    """
    layers = sorted({layer for blocks in plan for layer in blocks})
    targets = {layer: torch.zeros_like(z) for layer in layers}
    # Each prompt in a row of its own: its state is replaced at its own lookup token.
    texts = [rows(model, request, ("",), lookup)[0] for request in requests]

    def work(some: list[int]) -> None:
        states = _states(model, [texts[i] for i in some], [plan[i][0] for i in some], z[some])
        for row, i in enumerate(some):
            for layer in plan[i]:
                targets[layer][i] = states[layer][row]

    for group in model.lengths.groups([text.lookup + 1 for text in texts]):
        width = max(texts[i].lookup + 1 for i in group)
        size = (memory or model.budget()) // model.row_bytes(width, width, 1)
        chunked(sorted(group, key=lambda i: -texts[i].lookup), max(1, size), work, REMEDY)
    for layer, found in targets.items():
        require_finite(found, f"a target of block {layer}", model)
    return targets


def _states(
    model: LanguageModel,
    texts: Sequence[Row],
    first: Sequence[int],
    z: Float[Tensor, "row d_model"],
) -> dict[int, Float[Tensor, "row d_model"]]:
    """Outputs of the blocks from the first on, at the lookup tokens, with z in place."""
    ids, mask = pad_right([text.ids[: text.lookup + 1] for text in texts], model.device)
    at = torch.tensor([text.lookup for text in texts], device=model.device)
    states: dict[int, Tensor] = {}

    def visit(layer: int) -> Callable[..., Tensor]:
        here = torch.tensor([i for i, own in enumerate(first) if own == layer], dtype=torch.long)
        here = here.to(model.device)

        def put_and_read(value: Tensor, hook: Any) -> Tensor:
            value = value.index_put((here, at[here]), z[here].to(value.dtype))
            states[layer] = value[torch.arange(len(texts), device=value.device), at].float()
            return value

        return put_and_read

    hooks: list[NamedHook] = [
        (model.hook("resid", layer), visit(layer)) for layer in range(min(first), model.n_layers)
    ]
    with torch.no_grad():
        model.logits(ids, mask=mask, keep=1, hooks=hooks)
    return states
