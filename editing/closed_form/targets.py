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

The state is the output of a block ("resid", MEMIT) or of its down-projection ("mlp", ROME, and any
editor on models that normalise the MLP's output before adding it).

Only what δ reaches is run at each step: the blocks above the state, from the lookup token on, on
keys and values of the tokens before it, with logits where a target token is predicted. Rows of all
requests run together, in batches of about equal length; their losses are separate, so the result is
that of one request at a time.

Source: MEMIT compute_z, ROME compute_v; the reference's norm in the weight decay is not squared,
nor is it here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.closed_form.contexts import preservation_row, rows
from editing.closed_form.keys import find_states
from editing.config import TargetConfig
from editing.edits.requests import EditRequest
from interp.errors import InputError, NotFiniteError
from interp.models.budget import one_batch
from interp.models.finite import cause, require_finite
from interp.models.loading import LanguageModel, NamedHook
from interp.models.tokens import pad_right
from interp.settings.sizes import parse_size

Site = Literal["resid", "mlp"]
PADDING, FREE_PADDING = 1.15, 40
"""Rows are batched together as long as no more than this many times their tokens, and so many more,
are run: a batch costs as much as some 40 tokens by its weights alone, which have to be read."""


class TargetSearchError(NotFiniteError):
    """The search for a target gave no usable number."""


@dataclass(frozen=True)
class Targets:
    """Result of the search, one row per request."""

    z: Float[Tensor, "request d_model"]
    initial: Float[Tensor, "request d_model"]
    losses: tuple[tuple[float, ...], ...]
    """Total loss at each evaluation, per request."""


@dataclass(frozen=True)
class _Row:
    """One text of a request: a context, the prompt and its target; or the preservation prompt
    (no target).
    """

    request: int
    ids: tuple[int, ...]
    lookup: int
    target: tuple[int, ...]
    share: float
    """What it counts in the request's loss."""

    @property
    def suffix(self) -> int:
        return len(self.ids) - self.lookup


@dataclass(frozen=True)
class _Batch:
    """Rows that run together, cut at the lookup token, with all that stays the same from step to
    step.
    """

    request: Int[Tensor, " row"]
    prefix: Any
    """Keys and values of the tokens before the lookup token; None if there are none or the model
    cannot."""
    mask: Int[Tensor, "row all_pos"]
    ids: Int[Tensor, "row pos"]
    at: Int[Tensor, " row"]
    """Where δ is added; 0 behind a prefix."""
    entry: int
    """Block before which the run begins."""
    state: Float[Tensor, "row pos d_model"] | None
    """Residual stream there; None if the model cannot begin in the middle."""
    places: tuple[Int[Tensor, " place"], Int[Tensor, " place"]]
    """Row and position of every prediction that counts."""
    target: Int[Tensor, " place"]
    """Token that should be predicted there; −1 at the lookup token of a preservation row."""
    weight: Float[Tensor, " place"]
    """1 / (contexts · target tokens); kl_factor for a preservation row."""
    unedited: Float[Tensor, "kl d_vocab"] | None = None
    """Log-probabilities at the preservation rows before any change."""


def state_hook(model: LanguageModel, site: Site, layer: int) -> str:
    """Hook name of the state that targets of a site are for."""
    return model.hook("resid", layer) if site == "resid" else model.value_hook(layer)


@one_batch(
    "use a smaller edit.memory, fewer requests at once, another device, or model.dtype=bfloat16"
)
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
        requests: The requests.
        layer: Block whose state is changed.
        contexts: Texts before the prompt; the first must be empty (the bare prompt).
        config: Steps, learning rate, penalties, clamp, lookup.
        site: Output of the block, or of its down-projection.

    Raises:
        TargetSearchError: The loss became NaN or infinite.
        NotFiniteError: A state, or a target, is.
        MemoryLimitError: A batch does not fit in memory.
    """
    if not contexts or contexts[0]:
        raise InputError(f"the first context must be empty (the bare prompt), got {contexts[:1]}")
    hook = state_hook(model, site, layer)
    initial = find_states(model, requests, hook, config.lookup, parse_size(config.memory))
    batches = [
        _prepare(model, chunk, layer, site)
        for chunk in _batched(
            _rows(model, requests, contexts, config),
            _row_bytes(model, layer),
            config,
            model.lengths.kind,
        )
    ]
    size = initial.norm(dim=-1)
    delta = torch.zeros_like(initial, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=config.learning_rate)
    done = torch.zeros(len(requests), dtype=torch.bool, device=initial.device)
    losses: list[list[float]] = [[] for _ in requests]

    for step in range(config.steps):
        last = step == config.steps - 1
        optimiser.zero_grad()
        with torch.set_grad_enabled(not last):
            decay = config.weight_decay * torch.linalg.vector_norm(delta, dim=-1) / size**2
            loss = decay.detach().clone()
            # The norm has no gradient at zero, where the search starts; torch gives zero, as in the
            # reference.
            if not last:
                decay.sum().backward()
            for b, batch in enumerate(batches):
                part, said = _losses(model, batch, hook, delta)
                if batch.unedited is None:
                    batches[b] = replace(batch, unedited=said)
                loss = loss.index_add(0, batch.request[batch.places[0]], part.detach())
                if not last:
                    part.sum().backward()
        if not loss[~done].isfinite().all():
            worst = [
                requests[i].prompt for i in (~loss.isfinite() & ~done).nonzero().flatten().tolist()
            ]
            # Before the first step nothing of the search's has changed anything.
            why = (
                "use a smaller edit.learning_rate or edit.clamp, or model.dtype=float32"
                if step
                else cause(model)
            )
            raise TargetSearchError(f"the target search diverged at step {step} for {worst}: {why}")
        for i in (~done).nonzero().flatten().tolist():
            losses[i].append(loss[i].item())
        finished = ~done & (loss < config.stop_loss)
        done = done | finished
        if bool(done.all()) or last:
            break
        if bool(finished.any()):
            batches = [
                _without(model, batch, done)
                for batch in batches
                if not bool(done[batch.request].all())
            ]
        before = delta.detach().clone()
        optimiser.step()
        with torch.no_grad():
            delta *= (config.clamp * size / delta.norm(dim=-1)).clamp(max=1).unsqueeze(-1)
            # Adam's momentum moves finished requests too; they stay where they stopped.
            delta[done] = before[done]
    z = initial + delta.detach()
    require_finite(z, "a target", model)
    return Targets(z, initial, tuple(tuple(one) for one in losses))


def _rows(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    config: TargetConfig,
) -> list[_Row]:
    found: list[_Row] = []
    for i, request in enumerate(requests):
        target = model.encode_continuation(request.target_new, request.prompt, request.space)
        asked = rows(model, request, contexts, config.lookup)
        longest_row = max(len(row.ids) for row in asked) + len(target) - 1
        model.need_room(
            longest_row, f"the prompt {request.prompt[:60]!r} with its new answer, in its contexts,"
        )
        found += [
            _Row(i, (*row.ids, *target[:-1]), row.lookup, target, 1 / len(asked)) for row in asked
        ]
        if config.kl_factor:
            row = preservation_row(model, request, config.lookup)
            # Attention is causal: nothing behind the lookup token matters to what is said there.
            found.append(_Row(i, row.ids[: row.lookup + 1], row.lookup, (), config.kl_factor))
    return found


def _batched(
    found: Sequence[_Row],
    row_bytes: float,
    config: TargetConfig,
    kind: Callable[[int], int] = lambda length: 0,
) -> Iterator[list[_Row]]:
    """Rows in batches of similar length, and of one kind (`interp.models.lengths`), that fit
    into the memory.
    """
    memory = parse_size(config.memory)
    batch: list[_Row] = []
    for row in sorted(found, key=lambda row: (kind(len(row.ids)), row.suffix)):
        padded = row.suffix * (len(batch) + 1)
        real = row.suffix + sum(other.suffix for other in batch)
        alike = not batch or kind(len(batch[0].ids)) == kind(len(row.ids))
        if batch and (
            not alike or padded > PADDING * real + FREE_PADDING or padded * row_bytes > memory
        ):
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _row_bytes(model: LanguageModel, layer: int) -> float:
    """Memory per token that a step takes for its gradients."""
    d_mlp = model.down_projection(0).weight.numel() / model.d_model
    # What a block keeps: streams, norms, queries, keys, values and the MLP's inner states.
    return (model.n_layers - layer) * (12 * model.d_model + 5 * d_mlp) * 4


def _prepare(model: LanguageModel, chunk: Sequence[_Row], layer: int, site: Site) -> _Batch:
    device = model.device
    middle = model.takes_fast_route(max(len(row.ids) for row in chunk))
    # Beginnings of different length are padded on the left.
    middle = middle and (model.pads_left or len({row.lookup for row in chunk}) == 1)
    entry = layer + 1 if site == "resid" and layer + 1 < model.n_layers else layer
    cut = [row.lookup if middle else 0 for row in chunk]
    ids, suffix_mask = pad_right([row.ids[c:] for row, c in zip(chunk, cut, strict=True)], device)
    prefix, state = None, None
    mask = suffix_mask
    if any(cut):
        prefix, prefix_mask = model.prefixes(
            [row.ids[:c] for row, c in zip(chunk, cut, strict=True)]
        )
        mask = torch.cat([prefix_mask, suffix_mask], 1)
    if middle:
        seen: list[Tensor] = []
        name = f"blocks.{entry}.hook_resid_pre"
        with torch.no_grad():
            model.logits(
                ids,
                mask=mask,
                prefix=prefix,
                keep=1,
                hooks=[(name, lambda value, hook: seen.append(value.clone()))],
            )
        state = seen[0]
    row_at, where, target, weight = [], [], [], []
    for i, (row, c) in enumerate(zip(chunk, cut, strict=True)):
        first = len(row.ids) - max(1, len(row.target)) - c
        wanted = row.target or (-1,)
        row_at += [i] * len(wanted)
        where += range(first, first + len(wanted))
        target += wanted
        weight += [row.share / len(wanted)] * len(wanted)
    return _Batch(
        request=torch.tensor([row.request for row in chunk], device=device),
        prefix=prefix,
        mask=mask,
        ids=ids,
        at=torch.tensor([row.lookup - c for row, c in zip(chunk, cut, strict=True)], device=device),
        entry=entry,
        state=state,
        places=(torch.tensor(row_at, device=device), torch.tensor(where, device=device)),
        target=torch.tensor(target, device=device),
        weight=torch.tensor(weight, device=device),
    )


def _losses(
    model: LanguageModel, batch: _Batch, hook: str, delta: Tensor
) -> tuple[Float[Tensor, " place"], Float[Tensor, "kl d_vocab"]]:
    """Share of the loss at each place, and what the model says at the preservation rows."""
    row = torch.arange(len(batch.ids), device=batch.ids.device)

    def add_delta(value: Tensor, hook: Any = None) -> Tensor:
        change = delta[batch.request].to(value.dtype)
        return value + torch.zeros_like(value).index_put((row, batch.at), change)

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
    kept = _kl_places(batch)
    said = logits[kept].log_softmax(-1)
    base = said.detach() if batch.unedited is None else batch.unedited
    kl = (said.exp() * (said - base)).sum(-1)
    wanted = logits.gather(-1, batch.target.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    nll = logits.logsumexp(-1) - wanted
    return (
        torch.where(kept, torch.zeros_like(nll).masked_scatter(kept, kl), nll) * batch.weight,
        said.detach(),
    )


def _kl_places(batch: _Batch) -> Tensor:
    return batch.target < 0


def _without(model: LanguageModel, batch: _Batch, done: Tensor) -> _Batch:
    """The batch without the rows of finished requests; some rows are left."""
    keep = ~done[batch.request]
    if bool(keep.all()):
        return batch
    kept = keep.nonzero().flatten()
    places, number = keep[batch.places[0]], keep.cumsum(0) - 1
    said = batch.unedited
    return replace(
        batch,
        request=batch.request[kept],
        prefix=None if batch.prefix is None else model.rows_of_cache(batch.prefix, kept),
        mask=batch.mask[kept],
        ids=batch.ids[kept],
        at=batch.at[kept],
        state=None if batch.state is None else batch.state[kept],
        places=(number[batch.places[0][places]], batch.places[1][places]),
        target=batch.target[places],
        weight=batch.weight[places],
        unedited=None if said is None else said[places[_kl_places(batch)]],
    )
