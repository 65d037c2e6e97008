"""FT in whitened coordinates: fine-tuning of down-projections, measured by what it changes on text.

The change of a down-projection is written ΔW = A L⁻¹, where C = E[k kᵀ] = L Lᵀ is the second moment
of its keys on text. Then

    E ‖ΔW k‖² = tr(ΔW C ΔWᵀ) = ‖A‖²,

so that two changes of the same size in A change the block's output on text equally much. Adam on A
takes steps of about equal size in every coordinate. It therefore moves most along directions that
text seldom uses, in proportion to 1/√eigenvalue of C. The gradient is dA = dW L⁻ᵀ: one step of
plain gradient descent on A with rate η is ΔW = −η dW C⁻¹, the input side of K-FAC.

With `output_damping` the outputs are whitened as well: ΔW = M⁻ᵀ A L⁻¹ with M Mᵀ = G, the second
moment of output gradients on text. Then ‖A‖² = tr(G ΔW C ΔWᵀ), twice the change of what the model
says of text (nats per token, to second order, in the approximation of K-FAC).

The loss is the mean over rows of −(1/n) Σ log p(target token), plus `penalty`·‖A‖² summed over the
blocks. A row is a request, alone or behind a sampled text. What retained prompts add is in
`editing.evaluation.training`. As in `editing.editors.ft` hooks add the
change to the MLP's raw output. Blocks below the first edited one are run once.

Source: whitened coordinates as in Desjardins et al. 2015 (Natural Neural Networks); the input side
of K-FAC (Martens and Grosse 2015); for editing compare CrispEdit (arXiv 2602.15823). Adam in these
coordinates, on all edited blocks together, is ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.workbench import Workbench
from editing.editors.registry import EXTRAS, register
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.protocol import EditError
from editing.edits.report import EditReport
from editing.edits.requests import EditRequest
from editing.evaluation.scoring import Asked
from editing.evaluation.training import REMEDY, Lesson, lessons, settled
from interp.errors import InputError
from interp.models.budget import chunked, one_batch
from interp.models.finite import cause
from interp.models.loading import LanguageModel, NamedHook
from interp.settings.section import Section


class WhitenedConfig(Section):
    """Fine-tuning in whitened coordinates."""

    steps: int = Field(default=60, ge=1, le=1_000_000)
    """Gradient evaluations of every batch; the last one takes no step."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Adam's, in the units of A: about how much a step changes the output on text, for each
    coordinate."""
    stop_loss: float = Field(default=0.05, ge=0)
    """Training ends below this loss (nats per token, without the penalty): that of the new answers,
    and the divergence of what is retained added to it."""
    penalty: float = Field(default=0.0, ge=0)
    """Weight of tr(ΔW C ΔWᵀ), the mean square of the change of the outputs on text."""
    prefixes: int = Field(default=0, ge=0, le=1000)
    """So many of the sampled texts (`edit.contexts`) stand before the prompts in further rows."""
    batch_size: int | None = Field(default=None, ge=1, le=1_000_000)
    """Most rows of a gradient evaluation: batches take turns, in an order of `edit.seed`. None: all
    rows at once."""
    output_damping: float | None = Field(default=None, gt=0, le=1)
    """Whiten the outputs, too: ΔW = M⁻ᵀ A L⁻¹ with M Mᵀ = (1−s) G/g + s I, where G is the second
    moment of output gradients on text (`covariance.output_tokens`), g its mean eigenvalue, and s
    this number. None: the outputs are left as they are."""
    stored_energy: float | None = Field(default=None, gt=0, le=1)
    """The update is kept as factors of the least rank that have this share of ‖A‖². None: as a
    whole matrix."""


Group = tuple[Sequence[int], Sequence[EditRequest]]
"""Blocks, and the requests that they are trained on."""


@dataclass(frozen=True)
class _Block:
    """A down-projection that is trained."""

    layer: int
    name: str
    whitening: Float[Tensor, "d_mlp d_mlp"]
    """L⁻¹."""
    change: Float[Tensor, "d_model d_mlp"]
    """A, trained in place."""
    outputs: Float[Tensor, "d_model d_model"] | None = None
    """M⁻ᵀ, or None for the identity."""

    def of_outputs(self, change: Tensor) -> Tensor:
        """M⁻ᵀ A."""
        return change if self.outputs is None else self.outputs @ change

    def update(self, energy: float | None) -> Tensor | LowRank:
        """ΔW = M⁻ᵀ A L⁻¹, or the best of low rank in A, which changes text least.

        Args:
            energy: Share of ‖A‖² that the factors have; None: a whole matrix.
        """
        change = self.change.detach()
        if energy is None:
            return (self.of_outputs(change) @ self.whitening).cpu()
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        shares = values.square().cumsum(0) / values.square().sum()
        # An update of zeros has no shares, and needs no rank.
        rank = int((shares < energy).sum()) + 1 if values[0] > 0 else 1
        factor = right[:rank] @ self.whitening
        wide = self.of_outputs(left[:, :rank] * values[:rank])
        return LowRank(wide.cpu(), factor.T.contiguous().cpu())


@dataclass(frozen=True)
class _Part:
    """Blocks, and the rows that they are trained on."""

    blocks: Sequence[_Block]
    batches: Sequence[Lesson]


def edit_jointly(bench: Workbench, plan: Sequence[Sequence[int]], report: EditReport) -> EditDelta:
    """Train all blocks at once, each on the loss of the requests that it is planned for.

    Args:
        bench: As for `edit`.
        plan: Blocks of each request.
        report: What made the edit; losses are filled in, the mean over the groups of requests that
            have the same blocks.

    Raises:
        As `edit`.
    """
    rows = {tuple(layers): [i for i, own in enumerate(plan) if own == layers] for layers in plan}
    groups = [(layers, [bench.requests[i] for i in indices]) for layers, indices in rows.items()]
    return _trained(bench, groups, report)


@register(
    "ft_whitened",
    needs=("statistics",),
    blocks=(18, 19, 20, 21, 22),
    options=WhitenedConfig,
    joint=edit_jointly,
    honours=EXTRAS,
)
def edit(bench: Workbench) -> EditDelta:
    """Fine-tune the down-projections of some blocks together; the model is as before on return,
    and on error.

    Args:
        bench: Model, requests, blocks, statistics of their keys, and the options of
            `WhitenedConfig`. Protected requests are trained, too: they keep their answers.

    Returns:
        A delta with one matrix per block, whole or in factors (`stored_energy`), float32 (float64
        for a float64 model).

    Raises:
        EditError: The loss became NaN or infinite.
        InputError: There are no statistics of a block, fewer sampled texts than `prefixes`, or a
            second moment is not positive definite; or there are no moments of outputs for
            `output_damping`.
    """
    report = bench.report(editor="ft_whitened", covariance=bench.covariances(bench.layers).about)
    return _trained(bench, [(bench.layers, [*bench.requests, *bench.protected])], report)


@one_batch(REMEDY)
def _trained(bench: Workbench, groups: Sequence[Group], report: EditReport) -> EditDelta:
    model, config = bench.model, bench.options
    assert isinstance(config, WhitenedConfig)
    contexts = bench.contexts[: config.prefixes + 1]
    if len(contexts) <= config.prefixes:
        raise InputError(
            f"edit.options.prefixes is {config.prefixes}, and there are {len(contexts) - 1} sampled"
            f" texts: take a smaller number, or --set edit.contexts={config.prefixes}"
        )
    layers = sorted({layer for own, _ in groups for layer in own})
    statistics = bench.covariances(layers)
    blocks = {layer: _block(model, layer, statistics, config) for layer in layers}
    parts = [
        _Part(
            [blocks[layer] for layer in own],
            lessons(
                model,
                requests,
                bench.retained,
                contexts,
                size=config.batch_size,
                seed=bench.settings.seed,
            ),
        )
        for own, requests in groups
    ]
    losses = _train(model, config, list(blocks.values()), parts)
    return EditDelta(
        {block.name: block.update(config.stored_energy) for block in blocks.values()},
        {block.name: layer for layer, block in blocks.items()},
        model.weight_hash,
        report.with_values(
            losses=losses,
            contexts=list(contexts),
            own={
                "change_on_text": {
                    str(layer): block.of_outputs(block.change.detach()).square().sum().item()
                    for layer, block in blocks.items()
                }
            },
        ),
    )


def _block(
    model: LanguageModel, layer: int, statistics: Covariances, config: WhitenedConfig
) -> _Block:
    down = model.linear(model.down_projection(layer).name)
    weight = down.orient(down.weight.detach())
    dtype = torch.promote_types(model.dtype, torch.float32)
    change = torch.zeros_like(weight, dtype=dtype).requires_grad_()
    whitening = statistics.whitening(layer).to(weight.device, dtype)
    outputs = None
    if config.output_damping is not None:
        outputs = statistics.output_whitening(layer, config.output_damping)
        outputs = outputs.to(weight.device, dtype)
    return _Block(layer, down.name, whitening, change, outputs)


def _train(
    model: LanguageModel,
    config: WhitenedConfig,
    blocks: Sequence[_Block],
    parts: Sequence[_Part],
) -> list[float]:
    """Train the changes in place; the mean loss of the parts at each evaluation, without the
    penalty and retained rows.
    """
    optimiser = torch.optim.Adam([block.change for block in blocks], lr=config.learning_rate)
    runs = [[_run_of(model, each.asked, blocks) for each in part.batches] for part in parts]
    number = max(len(part.batches) for part in parts)
    losses: list[float] = []
    wholes: list[float] = []
    for step in range(config.steps * number):
        optimiser.zero_grad()
        last = step == config.steps * number - 1
        each = [
            _descend(model, part, some, step, last=last)
            for part, some in zip(parts, runs, strict=True)
        ]
        for kept, values in zip((losses, wholes), zip(*each, strict=True), strict=True):
            kept.append(sum(values) / len(values))
        if not math.isfinite(losses[-1]):
            remedy = "use a smaller edit.options.learning_rate, or model.dtype=float32"
            raise EditError(
                f"fine-tuning diverged at step {step}: {remedy if step else cause(model)}"
            )
        if last or settled(wholes, number, config.stop_loss):
            break
        with torch.no_grad():
            for block in blocks:
                assert block.change.grad is not None
                block.change.grad.add_(block.change, alpha=2 * config.penalty)
        optimiser.step()
    return losses


def _descend(
    model: LanguageModel, part: _Part, runs: Sequence[dict[str, Any]], step: int, *, last: bool
) -> tuple[float, float]:
    """Loss of the part's batch whose turn it is, in nats per token, without what it retains and
    with it; the gradient of the whole is added to those of its own blocks.
    """
    turn = step % len(part.batches)
    taken, changes = runs[turn], [block.change for block in part.blocks]

    def run(rows: Sequence[int], asked: Asked) -> Tensor:
        more = {**taken}
        if "joins" in taken:
            ((first, state),) = taken["joins"]
            whole = len(rows) == len(state)
            more["joins"] = [(first, state if whole else state[list(rows)])]
        return model.logits(asked.ids, mask=asked.mask, only=asked.places(), **more)[0]

    return part.batches[turn].descend(changes, run, gradients=not last)


def _run_of(model: LanguageModel, asked: Asked, blocks: Sequence[_Block]) -> dict[str, Any]:
    """What every run takes: hooks that add the changes, and the residual stream before the first
    edited block, where the model can begin there.
    """
    hooks = [hook for block in blocks for hook in _added(model, block)]
    first = min(block.layer for block in blocks)
    if first == 0 or not model.takes_fast_route(asked.ids.shape[1]):
        return {"hooks": hooks}
    name = f"blocks.{first}.hook_resid_pre"
    states: list[Tensor] = []

    def read(rows: list[int]) -> None:
        some = asked.of_rows(rows)
        states.append(model.capture(some.ids, [name], mask=some.mask)[name])

    chunked(range(len(asked.targets)), len(asked.targets), read, REMEDY)
    return {"hooks": hooks, "joins": [(first, torch.cat(states))]}


def _added(model: LanguageModel, block: _Block) -> list[NamedHook]:
    """Hooks that make a block compute with W + A L⁻¹."""
    keys: list[Tensor] = []

    def read(value: Tensor, hook: Any) -> None:
        keys[:] = [value]

    def write(value: Tensor, hook: Any) -> Tensor:
        white = keys.pop().to(block.change.dtype) @ block.whitening.T
        return value + (white @ block.of_outputs(block.change).T).to(value.dtype)

    # The raw output: a norm after the MLP acts on the sum, as it would with the weights changed.
    return [(model.key_hook(block.layer), read), (model.value_hook(block.layer), write)]
