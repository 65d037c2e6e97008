"""FT in whitened coordinates: fine-tuning of down-projections, measured by what it changes on text.

The change of a down-projection is written ΔW = A L⁻¹, where C = E[k kᵀ] = L Lᵀ is the second moment
of its keys on text. Then

    E ‖ΔW k‖² = tr(ΔW C ΔWᵀ) = ‖A‖²,

so that two changes of the same size in A change the block's output on text equally much. Adam on A
takes steps of about equal size in every coordinate. It therefore moves most along directions that
text seldom uses, in proportion to 1/√eigenvalue of C. The gradient is dA = dW L⁻ᵀ: one step of
plain gradient descent on A with rate η is ΔW = −η dW C⁻¹, the input side of K-FAC.

The loss is the mean over rows of −(1/n) Σ log p(target token), plus `penalty`·‖A‖² summed over the
blocks. A row is a request, alone or behind a sampled text. As in `editing.editors.ft` hooks add the
change to the MLP's raw output. Blocks below the first edited one are run once.

Source: whitened coordinates as in Desjardins et al. 2015 (Natural Neural Networks); the input side
of K-FAC (Martens and Grosse 2015); for editing compare CrispEdit (arXiv 2602.15823). Adam in these
coordinates, on all edited blocks together, is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from editing.closed_form.workbench import Workbench
from editing.editors.registry import register
from editing.edits.delta import EditDelta
from editing.edits.protocol import EditError
from editing.edits.requests import EditRequest
from editing.evaluation.scoring import Asked, Question, ask
from interp.errors import InputError
from interp.models.budget import one_batch
from interp.models.finite import cause
from interp.models.loading import LanguageModel, NamedHook
from interp.settings.section import Section


class WhitenedConfig(Section):
    """Fine-tuning in whitened coordinates."""

    steps: int = Field(default=60, ge=1, le=1_000_000)
    """Gradient evaluations; the last one takes no step."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam's, in the units of A: about how much a step changes the output on text, for each
    coordinate."""
    stop_loss: float = Field(default=0.05, ge=0)
    """Training ends below this loss (nats per token of the new answers, without the penalty)."""
    penalty: float = Field(default=0.0, ge=0)
    """Weight of tr(ΔW C ΔWᵀ), the mean square of the change of the outputs on text."""
    prefixes: int = Field(default=0, ge=0, le=1000)
    """So many of the sampled texts (`edit.contexts`) stand before the prompts in further rows."""


@dataclass(frozen=True)
class _Block:
    """A down-projection that is trained."""

    layer: int
    name: str
    whitening: Float[Tensor, "d_mlp d_mlp"]
    """L⁻¹."""
    change: Float[Tensor, "d_model d_mlp"]
    """A, trained in place."""

    def update(self) -> Float[Tensor, "d_model d_mlp"]:
        """ΔW = A L⁻¹."""
        return (self.change.detach() @ self.whitening).cpu()


@register("ft_whitened", needs=("statistics",), blocks=(18, 19, 20, 21, 22), options=WhitenedConfig)
@one_batch(
    "all requests make one batch: give fewer at once, use another device, or model.dtype=bfloat16"
)
def edit(bench: Workbench) -> EditDelta:
    """Fine-tune the down-projections of some blocks together; the model is as before on return,
    and on error.

    Args:
        bench: Model, requests, blocks, statistics of their keys, and the options of
            `WhitenedConfig`.

    Returns:
        A delta with one whole matrix per block, float32 (float64 for a float64 model).

    Raises:
        EditError: The loss became NaN or infinite.
        InputError: There are no statistics of a block, fewer sampled texts than `prefixes`, or a
            second moment is not positive definite.
    """
    model, config = bench.model, bench.options
    assert isinstance(config, WhitenedConfig)
    statistics = bench.covariances(bench.layers)
    blocks = [_block(model, layer, statistics.factor(layer)) for layer in bench.layers]
    contexts = bench.contexts[: config.prefixes + 1]
    if len(contexts) <= config.prefixes:
        raise InputError(
            f"edit.options.prefixes is {config.prefixes}, and there are {len(contexts) - 1} sampled"
            f" texts: take a smaller number, or --set edit.contexts={config.prefixes}"
        )
    asked = ask(model, _questions(bench.requests, contexts))
    losses = _train(model, asked, config, blocks)
    return EditDelta(
        {block.name: block.update() for block in blocks},
        {block.name: block.layer for block in blocks},
        model.weight_hash,
        bench.record(
            losses=losses,
            contexts=list(contexts),
            covariance=statistics.about,
            change_on_text={block.layer: block.change.square().sum().item() for block in blocks},
        ),
    )


def _block(model: LanguageModel, layer: int, factor: Tensor) -> _Block:
    down = model.linear(model.down_projection(layer).name)
    weight = down.orient(down.weight.detach())
    dtype = torch.promote_types(model.dtype, torch.float32)
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    whitening = torch.linalg.solve_triangular(factor, identity, upper=False)
    change = torch.zeros_like(weight, dtype=dtype).requires_grad_()
    return _Block(layer, down.name, whitening.to(weight.device, dtype), change)


def _questions(requests: Sequence[EditRequest], contexts: Sequence[str]) -> list[Question]:
    """Each request behind each of the texts."""
    return [
        Question(context + request.prompt, request.target_new, request.space)
        for context in contexts
        for request in requests
    ]


def _train(
    model: LanguageModel, asked: Asked, config: WhitenedConfig, blocks: Sequence[_Block]
) -> list[float]:
    """Train the changes in place; the loss at each evaluation, without the penalty."""
    changes = [block.change for block in blocks]
    optimiser = torch.optim.Adam(changes, lr=config.learning_rate)
    run = _run_of(model, asked, blocks)
    losses: list[float] = []
    for step in range(config.steps):
        with torch.enable_grad():
            loss = asked.nll(model.logits(asked.ids, mask=asked.mask, keep=asked.kept, **run))
            loss = loss.mean()
            whole = loss + config.penalty * sum(change.square().sum() for change in changes)
        if not whole.isfinite():
            remedy = "use a smaller learning_rate (edit.options), or model.dtype=float32"
            raise EditError(
                f"fine-tuning diverged at step {step}: {remedy if step else cause(model)}"
            )
        losses.append(loss.item())
        if losses[-1] < config.stop_loss or step == config.steps - 1:
            break
        optimiser.zero_grad()
        whole.backward()
        optimiser.step()
    return losses


def _run_of(model: LanguageModel, asked: Asked, blocks: Sequence[_Block]) -> dict[str, Any]:
    """What every run takes: hooks that add the changes, and the residual stream before the first
    edited block, where the model can begin there.
    """
    hooks = [hook for block in blocks for hook in _added(model, block)]
    first = min(block.layer for block in blocks)
    if first == 0 or not model.takes_fast_route(asked.ids.shape[1]):
        return {"hooks": hooks}
    states: list[Tensor] = []
    read = [(f"blocks.{first}.hook_resid_pre", lambda value, hook: states.append(value.clone()))]
    with torch.no_grad():
        model.logits(asked.ids, mask=asked.mask, keep=1, hooks=read)
    return {"hooks": hooks, "joins": [(first, states[0])]}


def _added(model: LanguageModel, block: _Block) -> list[NamedHook]:
    """Hooks that make a block compute with W + A L⁻¹."""
    keys: list[Tensor] = []

    def read(value: Tensor, hook: Any) -> None:
        keys[:] = [value]

    def write(value: Tensor, hook: Any) -> Tensor:
        white = keys.pop().to(block.change.dtype) @ block.whitening.T
        return value + (white @ block.change.T).to(value.dtype)

    # The raw output: a norm after the MLP acts on the sum, as it would with the weights changed.
    return [(model.key_hook(block.layer), read), (model.value_hook(block.layer), write)]
