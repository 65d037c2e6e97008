"""Second moments of output gradients, G = E[g gᵀ]: the output side of K-FAC.

g is the gradient of log p(y) with respect to what a block's down-projection gives at a token, where
the next tokens y are drawn from the model itself. The Fisher information of the weights is then
about G ⊗ C, with C = E[k kᵀ] the second moment of the keys, and a small change ΔW changes what the
model says of text by about

    KL(p ‖ p_edited) ≈ ½ tr(G ΔW C ΔWᵀ)  nats per text token.

One text is run at a time, forwards and backwards, on the unedited model.

Source: Martens and Grosse 2015 (K-FAC), section 3; drawn targets as in its section 5.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.edits.precision import device_of_sums
from interp.errors import NotFiniteError
from interp.models.budget import one_batch
from interp.models.finite import cause
from interp.models.loading import LanguageModel, NamedHook

SEED = 0
"""Of the drawn tokens."""


def output_moments(
    model: LanguageModel,
    layers: Sequence[int],
    rows: Sequence[Sequence[int]],
    *,
    advance: Callable[[int], object] = lambda n: None,
) -> dict[int, Float[Tensor, "d_model d_model"]]:
    """G of some blocks over all tokens of the texts, float64.

    Args:
        model: The unedited model.
        layers: Blocks.
        rows: Token ids of each text.
        advance: Called with the number of tokens run.

    Raises:
        NotFiniteError: A gradient is NaN or infinite.
        MemoryLimitError: A text does not fit in memory.
    """
    draws = torch.Generator().manual_seed(SEED)
    place = device_of_sums(model.device)
    size = (model.d_model, model.d_model)
    sums = {layer: torch.zeros(size, dtype=torch.float64, device=place) for layer in layers}
    remedy = "use a smaller covariance.max_length, another device, or model.dtype=bfloat16"
    for row in rows:
        with one_batch(remedy):
            gradients = _gradients(model, layers, torch.tensor([list(row)]), draws)
        for layer, gradient in gradients.items():
            exact = gradient.to(place, torch.float64)
            sums[layer] += exact.T @ exact
        advance(len(row))
    tokens = sum(len(row) for row in rows)
    for layer, total in sums.items():
        if not total.isfinite().all():
            raise NotFiniteError(
                f"gradients of block {layer} of {model.name} are not finite: {cause(model)}"
            )
    return {layer: total / tokens for layer, total in sums.items()}


def _gradients(
    model: LanguageModel,
    layers: Sequence[int],
    ids: Int[Tensor, "1 pos"],
    draws: torch.Generator,
) -> dict[int, Float[Tensor, "pos d_model"]]:
    """Gradient of Σ log p(drawn token) with respect to the outputs of each block's MLP."""
    outputs: dict[int, Tensor] = {}

    def watch(layer: int) -> NamedHook:
        def keep(value: Tensor, hook: Any) -> Tensor:
            # Nothing before the first of the blocks needs a gradient.
            outputs[layer] = value if value.requires_grad else value.detach().requires_grad_()
            return outputs[layer]

        return model.value_hook(layer), keep

    with torch.enable_grad():
        hooks = [watch(layer) for layer in layers]
        scores = model.logits(ids.to(model.device), hooks=hooks)[0].float().log_softmax(-1)
        drawn = torch.multinomial(scores.detach().exp().cpu(), 1, generator=draws)
        total = scores.gather(-1, drawn.to(scores.device)).sum()
        found = torch.autograd.grad(total, [outputs[layer] for layer in layers])
    return {
        layer: each.reshape(-1, model.d_model) for layer, each in zip(layers, found, strict=True)
    }
