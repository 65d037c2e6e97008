"""Targets z: the state that makes the model give the new answer. One implementation for all
editors.

For each request a change δ at the lookup token is found by gradient descent so that the target
becomes likely after the prompt in every context, while what the model says about the subject stays
as it was:

    loss = mean over contexts of −(1/n) Σ log p(target token)
         + kl_factor · KL(p_edited ‖ p_unedited) at the lookup token of "<subject> is a"
         + weight_decay · ‖δ‖ / ‖h‖²

Here h is the unchanged state of the bare prompt. Adam stops when the loss is below `stop_loss` or
after `steps` evaluations (the last takes no step), and δ is kept within `clamp`·‖h‖ after each
step. z = h + δ.

Word by word (`edit.answer=words`) a target is searched on its own word. With
`edit.words_loss=rest` it is searched on the N words from there to the answer's end. The loss is
then −(1/n) Σ w log p over their n tokens, where w = (N − j)/N for the j-th word, j = 0 being its
own: a word counts as often as it is in one of the N nested beginnings, as in μKE without its
affinities. Earlier words are in the prompt, but their δ are not in place: all words are searched at
once.

The state is the output of a block ("resid", MEMIT) or of its down-projection ("mlp", ROME, and any
editor on models that normalise the MLP's output before adding it).

Only what δ reaches is run at each step: the blocks above the state, from the lookup token on, on
keys and values of the tokens before it, with logits where a target token is predicted. Rows of all
requests run together, in batches of about equal length; their losses are separate, so the result is
that of one request at a time.

Source: MEMIT compute_z, ROME compute_v; the reference's norm in the weight decay is not squared,
nor is it here. μKE (arXiv 2504.01196) for the words behind a word: by default its code weighs the
nested beginnings by 2 − affinity of their gradients, where 1 stands here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from editing.closed_form.keys import find_states
from editing.closed_form.target_batches import (
    REMEDY,
    Batch,
    Site,
    batches_of,
    halves,
    kl_places,
    without,
)
from editing.config import TargetConfig
from editing.edits.requests import EditRequest
from interp.errors import InputError, NotFiniteError
from interp.models.budget import fits, one_batch
from interp.models.finite import cause, require_finite
from interp.models.loading import LanguageModel, NamedHook
from interp.settings.sizes import parse_size


class TargetSearchError(NotFiniteError):
    """The search for a target gave no usable number."""


@dataclass(frozen=True)
class Targets:
    """Result of the search, one row per request."""

    z: Float[Tensor, "request d_model"]
    initial: Float[Tensor, "request d_model"]
    losses: tuple[tuple[float, ...], ...]
    """Total loss at each evaluation, per request."""


def state_hook(model: LanguageModel, site: Site, layer: int) -> str:
    """Hook name of the state that targets of a site are for."""
    return model.hook("resid", layer) if site == "resid" else model.value_hook(layer)


@one_batch(REMEDY)
def find_targets(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    config: TargetConfig,
    *,
    site: Site = "resid",
) -> Targets:
    """Search the target of every request at a block (see the module).

    Args:
        model: The model as it is now (in a later stage: with the earlier stage's edits).
        requests: What to change.
        layer: Block whose state is changed.
        contexts: Texts before the prompt; the first must be empty.
        config: Steps, learning rate, penalties, clamp, lookup.
        site: Output of the block, or of its down-projection.

    Raises:
        NotFiniteError: The loss (`TargetSearchError`), a state or a target is NaN or infinite.
        InputError: The first context is not empty.
        MemoryLimitError: A batch does not fit in memory.
    """
    if not contexts or contexts[0]:
        raise InputError(f"the first context must be empty (the bare prompt), got {contexts[:1]}")
    hook = state_hook(model, site, layer)
    initial = find_states(model, requests, hook, config.lookup, parse_size(config.memory))
    batches = batches_of(model, requests, layer, contexts, config, site)
    size, delta = initial.norm(dim=-1), torch.zeros_like(initial, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=config.learning_rate)
    done = torch.zeros(len(requests), dtype=torch.bool, device=initial.device)
    losses: list[list[float]] = [[] for _ in requests]

    for step in range(config.steps):
        last = step == config.steps - 1
        optimiser.zero_grad()
        with torch.set_grad_enabled(not last):
            decay = config.weight_decay * torch.linalg.vector_norm(delta, dim=-1) / size**2
            loss = _descend(model, batches, hook, delta, decay)
        _refuse_divergence(model, [r.prompt for r in requests], loss, done, step)
        for i in (~done).nonzero().flatten().tolist():
            losses[i].append(loss[i].item())
        finished = ~done & (loss < config.stop_loss)
        done = done | finished
        if bool(done.all()) or last:
            break
        if bool(finished.any()):
            batches = without(model, batches, done)
        _step(optimiser, delta, config.clamp * size, done)
    z = initial + delta.detach()
    require_finite(z, "a target", model)
    return Targets(z, initial, tuple(tuple(course) for course in losses))


def _step(
    optimiser: torch.optim.Optimizer,
    delta: Float[Tensor, "request d_model"],
    limit: Float[Tensor, " request"],
    done: Bool[Tensor, " request"],
) -> None:
    """One step of every δ that is still searched for, kept within a norm."""
    before = delta.detach().clone()
    optimiser.step()
    with torch.no_grad():
        delta *= (limit / delta.norm(dim=-1)).clamp(max=1).unsqueeze(-1)
        delta[done] = before[done]  # Adam's momentum moves them, too


def _descend(
    model: LanguageModel,
    batches: list[Batch],
    hook: str,
    delta: Float[Tensor, "request d_model"],
    decay: Float[Tensor, " request"],
) -> Float[Tensor, " request"]:
    """Loss of each request; where gradients are on, they are added to δ's.

    The first time, what the unedited model says is noted in the batches. A batch for which memory
    does not suffice becomes two, for this evaluation and those behind it.
    """
    loss = decay.detach().clone()
    # The norm has no gradient at zero, where the search starts; torch gives zero, as in the
    # reference.
    if torch.is_grad_enabled():
        decay.sum().backward()
    number = 0
    while number < len(batches):
        batch = batches[number]
        found: list[Tensor] = []

        def work(batch: Batch = batch, found: list[Tensor] = found) -> None:
            part, said = _losses(model, batch, hook, delta)
            # Not `backward`, so that nothing is left behind where memory runs out.
            wanted = torch.is_grad_enabled()
            found[:] = [*torch.autograd.grad(part.sum(), delta)] if wanted else []
            found[:0] = [part.detach(), said]

        if not fits(len(batch.ids), REMEDY, work):
            batches[number : number + 1] = halves(model, batch)
            continue
        part, said, *gradients = found
        if batch.unedited is None:
            batches[number] = replace(batch, unedited=said)
        loss = loss.index_add(0, batch.request[batch.places[0]], part)
        for gradient in gradients:
            assert delta.grad is not None  # the decay's
            delta.grad += gradient
        number += 1
    return loss


def _refuse_divergence(
    model: LanguageModel, prompts: Sequence[str], loss: Tensor, done: Tensor, step: int
) -> None:
    """See that the losses of requests that are still searched for are numbers.

    Raises:
        TargetSearchError: One is NaN or infinite.
    """
    wrong = ~loss.isfinite() & ~done
    if not bool(wrong.any()):
        return
    # Before the first step nothing of the search's has changed anything.
    why = (
        "use a smaller edit.learning_rate or edit.clamp, or model.dtype=float32"
        if step
        else cause(model)
    )
    worst = [prompts[i] for i in wrong.nonzero().flatten().tolist()]
    raise TargetSearchError(f"the target search diverged at step {step} for {worst}: {why}")


def _losses(
    model: LanguageModel, batch: Batch, hook: str, delta: Tensor
) -> tuple[Float[Tensor, " place"], Float[Tensor, "kl d_vocab"]]:
    """Share of the loss at each place, and what the model says at the preservation rows."""
    row = torch.arange(len(batch.ids), device=batch.ids.device)

    def add_delta(value: Tensor, hook: Any = None) -> Tensor:
        change = delta[batch.request].to(value.dtype)
        return value + torch.zeros_like(value).index_put((row, batch.positions), change)

    layer = int(hook.split(".")[1])
    hooks: list[NamedHook] = [(hook, add_delta)]
    joins: list[tuple[int, Tensor]] = []
    if batch.state is not None and batch.entry == layer:
        joins = [(batch.entry, batch.state)]
    elif batch.state is not None:
        hooks, joins = [], [(batch.entry, add_delta(batch.state))]
    # The ids have all rows, for the attention mask is made from as many.
    logits = model.logits(
        batch.ids, mask=batch.mask, prefix=batch.prefix, hooks=hooks, joins=joins, only=batch.places
    )[0].float()
    kept = kl_places(batch)
    said = logits[kept].log_softmax(-1)
    base = said.detach() if batch.unedited is None else batch.unedited
    kl = (said.exp() * (said - base)).sum(-1)
    wanted = logits.gather(-1, batch.target.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    nll = logits.logsumexp(-1) - wanted
    return (
        torch.where(kept, torch.zeros_like(nll).masked_scatter(kept, kl), nll) * batch.weight,
        said.detach(),
    )
