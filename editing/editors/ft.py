"""FT: constrained fine-tuning of down-projections on the new answers.

Adam on the mean over requests of −(1/n) Σ log p(target token), over the down-projections of some
blocks. With a norm constraint no single weight moves by more than it (FT-L); without, the update is
free. The weights themselves are never written: the change ΔW is a tensor of its own that hooks add
to the MLP's raw output as ``key @ ΔWᵀ``, which is what the model with W + ΔW computes.

Source: Zhu et al. 2020; EasyEdit's FT with `target_new`, from which this differs in two points: all
requests make one batch, if `ft.batch_size` says nothing else (there one request at a time, several
steps an epoch), and ΔW is float32 also in models of half precision (there every step is rounded to
the weights' type; see `EditDelta.cast_loss` for what rounding takes from the result).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from editing.closed_form.workbench import Workbench
from editing.config import FineTuneConfig
from editing.editors.registry import EXTRAS, register
from editing.edits.delta import EditDelta
from editing.edits.protocol import EditError
from editing.evaluation.scoring import Asked
from editing.evaluation.training import REMEDY, Lesson, lessons, settled
from interp.models.budget import one_batch
from interp.models.finite import cause
from interp.models.loading import LanguageModel, NamedHook


# EasyEdit for LLaMA; its setting for Qwen2.5-7B is the last block.
@register("ft", blocks=(21,), honours=EXTRAS)
@one_batch(REMEDY)
def edit(bench: Workbench) -> EditDelta:
    """Fine-tune the down-projections of some blocks; the model is as before on return, and on
    error.

    Args:
        bench: Model, requests, retained prompts, blocks, and under `ft` steps, learning rate,
            constraint and stopping loss.

    Returns:
        A delta with one whole matrix per block, float32 (float64 for a float64 model).

    Raises:
        EditError: The loss became NaN or infinite.
    """
    model, layers, config = bench.model, bench.layers, bench.settings.ft
    batches = lessons(
        model, bench.requests, bench.retained, size=config.batch_size, seed=bench.settings.seed
    )
    downs = [model.linear(model.down_projection(layer).name) for layer in layers]
    dtype = torch.promote_types(model.dtype, torch.float32)
    weights = [down.orient(down.weight.detach()).to(dtype) for down in downs]
    changes = [torch.zeros_like(weight).requires_grad_() for weight in weights]
    hooks = [
        hook
        for layer, change in zip(layers, changes, strict=True)
        for hook in _added(model, layer, change)
    ]
    losses = _train(model, batches, config, weights, changes, hooks)
    names = [down.name for down in downs]
    updates = {name: change.detach().cpu() for name, change in zip(names, changes, strict=True)}
    of_layer = dict(zip(names, layers, strict=True))
    return EditDelta(updates, of_layer, model.weight_hash, bench.report(losses=losses))


def _train(
    model: LanguageModel,
    batches: Sequence[Lesson],
    config: FineTuneConfig,
    weights: Sequence[Tensor],
    changes: Sequence[Tensor],
    hooks: Sequence[NamedHook],
) -> list[float]:
    """Train the changes in place; the loss before each step, without retained rows."""
    # Weight decay pulls the whole weight to zero, not its change: it is added to the gradient by
    # hand.
    optimiser = torch.optim.Adam(changes, lr=config.learning_rate)
    losses: list[float] = []
    wholes: list[float] = []

    def run(rows: Sequence[int], asked: Asked) -> Tensor:
        return model.logits(asked.ids, mask=asked.mask, only=asked.places(), hooks=hooks)[0]

    for step in range(config.steps * len(batches)):
        optimiser.zero_grad()
        loss, whole = batches[step % len(batches)].descend(changes, run)
        if not math.isfinite(loss):
            why = "use a smaller ft.learning_rate, or model.dtype=float32" if step else cause(model)
            raise EditError(f"fine-tuning diverged at step {step}: {why}")
        losses.append(loss)
        wholes.append(whole)
        if settled(wholes, len(batches), config.stop_loss):
            break
        with torch.no_grad():
            for weight, change in zip(weights, changes, strict=True):
                assert change.grad is not None
                change.grad.add_(weight + change, alpha=config.weight_decay)
            optimiser.step()
            if config.norm_constraint is not None:
                for change in changes:
                    change.clamp_(-config.norm_constraint, config.norm_constraint)
    return losses


def _added(model: LanguageModel, layer: int, change: Tensor) -> list[NamedHook]:
    """Hooks that make a block compute with W + ΔW."""
    keys: list[Tensor] = []

    def read(value: Tensor, hook: Any) -> None:
        keys[:] = [value]

    def write(value: Tensor, hook: Any) -> Tensor:
        return value + (keys.pop().to(change.dtype) @ change.T).to(value.dtype)

    # The raw output: a norm after the MLP (Gemma 3) acts on the sum, as it would with the weights
    # changed.
    return [(model.key_hook(layer), read), (model.value_hook(layer), write)]
