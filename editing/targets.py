"""Targets z: the state of a block that makes the model give the new answer. One implementation for all editors.

For each request a change δ of the state at the lookup token (output of block `layer`) is found by gradient
descent so that the target becomes likely after the prompt in every context, while what the model says about
the subject stays as it was:

    loss = mean over contexts of −(1/n) Σ log p(target token)
         + kl_factor · KL(p_edited ‖ p_unedited) at the lookup token of "<subject> is a"
         + weight_decay · ‖δ‖ / ‖h‖²                            (h: the unchanged state of the bare prompt)

with Adam, stopping when the loss is below `stop_loss` or after `steps` evaluations (the last takes no step),
and δ kept within `clamp`·‖h‖ after each step. z = h + δ.

Requests are searched in one batch; their losses are separate, so the result is that of one at a time.

Source: MEMIT compute_z; the reference's norm in the weight decay is not squared, nor is it here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.config import EditConfig
from editing.contexts import Row, preservation_row, rows
from editing.requests import EditRequest
from interp.model import LanguageModel
from interp.tokens import pad_right


class TargetSearchError(ValueError):
    """The search for a target gave no usable number."""


@dataclass(frozen=True)
class Targets:
    """Result of the search, one row per request."""

    z: Float[Tensor, "request d_model"]
    initial: Float[Tensor, "request d_model"]
    losses: tuple[tuple[float, ...], ...]
    """Total loss at each evaluation, per request."""


@dataclass(frozen=True)
class _Batch:
    """All rows of all requests, padded: per request its contexts with the target, then its preservation row."""

    ids: Int[Tensor, "row pos"]
    mask: Int[Tensor, "row pos"]
    request: Int[Tensor, " row"]
    lookup: Int[Tensor, " row"]
    is_context: Tensor
    """Rows that the target is read from, shape (row,)."""
    predict: Int[Tensor, "row target"]
    """Positions that predict the target's tokens; padded with 0."""
    target: Int[Tensor, "row target"]
    weight: Float[Tensor, "row target"]
    """1 / (contexts · target tokens) for real target tokens, 0 for padding."""


def find_targets(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    config: EditConfig,
) -> Targets:
    """Search the target of every request at the output of a block (see the module).

    Args:
        model: The model as it is now (in a later stage: with the earlier stage's edits).
        requests: The requests.
        layer: Block whose output is changed.
        contexts: Texts before the prompt; the first must be empty (the bare prompt).
        config: Steps, learning rate, penalties, clamp, lookup.

    Raises:
        TargetSearchError: The loss became NaN or infinite.
    """
    if not contexts or contexts[0]:
        raise ValueError(f"the first context must be empty (the bare prompt), got {contexts[:1]}")
    batch = _batch(model, requests, contexts, config.lookup)
    # Only the positions that predict something need logits.
    kept, where = torch.unique(torch.cat([batch.predict.flatten(), batch.lookup]), return_inverse=True)
    predict = where[: batch.predict.numel()].view_as(batch.predict)
    lookup = where[batch.predict.numel() :]

    bare = torch.tensor([i * (len(contexts) + 1) for i in range(len(requests))], device=model.device)
    name = model.hook("resid", layer)
    with torch.no_grad():
        seen = model.capture(batch.ids[bare], [name], mask=batch.mask[bare])[name]
        initial = seen[torch.arange(len(requests)), batch.lookup[bare]].float()
    size = initial.norm(dim=-1)
    delta = torch.zeros_like(initial, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=config.learning_rate)
    unedited: Tensor | None = None
    done = torch.zeros(len(requests), dtype=torch.bool, device=model.device)
    losses: list[list[float]] = [[] for _ in requests]
    row = torch.arange(len(batch.ids), device=model.device)

    def add_delta(value: Tensor, hook: Any) -> Tensor:
        change = torch.zeros_like(value).index_put((row, batch.lookup), delta[batch.request].to(value.dtype))
        return value + change

    for step in range(config.steps):
        with torch.enable_grad():
            logits = model.logits(batch.ids, mask=batch.mask, keep=kept, hooks=[(name, add_delta)]).float()
            nll = _target_nll(logits, predict, batch, len(requests))
            preserved = ~batch.is_context
            said = logits[preserved, lookup[preserved]].log_softmax(-1)
            unedited = said.detach() if unedited is None else unedited
            kl = (said.exp() * (said - unedited)).sum(-1)
            loss = nll + config.kl_factor * kl + config.weight_decay * _norm(delta) / size**2
        if not loss.isfinite().all():
            worst = [requests[i].prompt for i in (~loss.isfinite()).nonzero().flatten().tolist()]
            raise TargetSearchError(
                f"the target search diverged at step {step} for {worst}; "
                "use a smaller edit.learning_rate or edit.clamp, or model.dtype float32"
            )
        for i in (~done).nonzero().flatten().tolist():
            losses[i].append(loss[i].item())
        done = done | (loss.detach() < config.stop_loss)
        if bool(done.all()) or step == config.steps - 1:
            break
        optimiser.zero_grad()
        loss.sum().backward()
        before = delta.detach().clone()
        optimiser.step()
        with torch.no_grad():
            delta *= (config.clamp * size / delta.norm(dim=-1)).clamp(max=1).unsqueeze(-1)
            # Adam's momentum moves finished requests too; they stay where they stopped.
            delta[done] = before[done]
    return Targets(initial + delta.detach(), initial, tuple(tuple(one) for one in losses))


def _batch(model: LanguageModel, requests: Sequence[EditRequest], contexts: Sequence[str], lookup: str) -> _Batch:
    token_rows: list[tuple[int, ...]] = []
    built: list[tuple[int, Row, tuple[int, ...]]] = []
    for i, request in enumerate(requests):
        target = model.encode_continuation(request.target_new)
        for row in rows(model, request, contexts, lookup):
            token_rows.append((*row.ids, *target[:-1]))
            built.append((i, row, target))
        row = preservation_row(model, request, lookup)
        token_rows.append(row.ids)
        built.append((i, row, ()))
    ids, mask = pad_right(token_rows, model.device)
    width = max(len(target) for _, _, target in built)

    def table(values: Sequence[Sequence[int | float]], dtype: torch.dtype) -> Tensor:
        return torch.tensor([[*v, *[0] * (width - len(v))] for v in values], dtype=dtype, device=model.device)

    return _Batch(
        ids=ids,
        mask=mask,
        request=torch.tensor([i for i, _, _ in built], device=model.device),
        lookup=torch.tensor([row.lookup for _, row, _ in built], device=model.device),
        is_context=torch.tensor([bool(target) for _, _, target in built], device=model.device),
        predict=table([[len(row.ids) - 1 + j for j in range(len(t))] for _, row, t in built], torch.long),
        target=table([t for _, _, t in built], torch.long),
        weight=table([[1 / (len(contexts) * max(1, len(t)))] * len(t) for _, _, t in built], torch.float32),
    )


def _target_nll(logits: Tensor, predict: Tensor, batch: _Batch, n: int) -> Float[Tensor, " request"]:
    """−log p of the target, mean over its tokens, then over contexts."""
    at = logits[torch.arange(len(logits), device=logits.device).unsqueeze(-1), predict]
    log_prob = at.gather(-1, batch.target.unsqueeze(-1)).squeeze(-1) - at.logsumexp(-1)
    per_row = -(log_prob * batch.weight).sum(-1)
    return torch.zeros(n, device=logits.device).index_add(0, batch.request, per_row)


def _norm(delta: Tensor) -> Float[Tensor, " request"]:
    # The norm has no gradient at zero, where the search starts; the reference gets zero there too.
    return torch.linalg.vector_norm(delta, dim=-1)
