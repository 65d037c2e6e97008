"""Texts of a search for targets, laid out in batches: all that stays the same from step to step.

Only what a target's change δ reaches is run at each step: the blocks above the state, from the
lookup token on. What comes before is run once, here.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.closed_form.contexts import preservation_row, rows
from editing.config import TargetConfig
from editing.edits.requests import EditRequest
from interp.models.budget import fits
from interp.models.loading import LanguageModel, NamedHook
from interp.models.tokens import pad_right
from interp.settings.sizes import parse_size

Site = Literal["resid", "mlp"]
REMEDY = "use shorter prompts or contexts, another device, or model.dtype=bfloat16"
PADDING, FREE_PADDING = 1.15, 40
"""Rows are batched together as long as no more than this many times their tokens, and so many more,
are run: a batch costs as much as some 40 tokens by its weights alone, which have to be read."""


@dataclass(frozen=True)
class Row:
    """One text of a request: a context, the prompt and its target; or the preservation prompt
    (no target).
    """

    request: int
    ids: tuple[int, ...]
    lookup: int
    target: tuple[int, ...]
    share: float
    """What it counts in the request's loss."""
    weights: tuple[float, ...] = ()
    """What each target token counts; none: all alike, 1."""

    @property
    def suffix(self) -> int:
        """Tokens from the lookup token on."""
        return len(self.ids) - self.lookup


@dataclass(frozen=True)
class Batch:
    """Rows that run together, cut at the lookup token, with all that stays the same from step to
    step.
    """

    request: Int[Tensor, " row"]
    prefix: Any
    """Keys and values of the tokens before the lookup token; None if there are none or the model
    cannot."""
    mask: Int[Tensor, "row all_pos"]
    ids: Int[Tensor, "row pos"]
    positions: Int[Tensor, " row"]
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
    """Weight of the token / (contexts · target tokens); kl_factor for a preservation row."""
    unedited: Float[Tensor, "kl d_vocab"] | None = None
    """Log-probabilities at the preservation rows before any change."""


def batches_of(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    config: TargetConfig,
    site: Site,
) -> list[Batch]:
    """All texts of some requests, in batches that fit into the memory; see
    `editing.closed_form.targets.find_targets`.
    """
    texts = _rows(model, requests, contexts, config)
    chunks = _batched(texts, model.step_bytes(layer), config, model.lengths.kind)
    return [batch for chunk in chunks for batch in _prepared(model, chunk, layer, site)]


def _prepared(model: LanguageModel, chunk: Sequence[Row], layer: int, site: Site) -> list[Batch]:
    """Rows as one batch, or as several where memory runs out."""
    made: list[Batch] = []
    if fits(len(chunk), REMEDY, lambda: made.append(_prepare(model, chunk, layer, site))):
        return made
    half = len(chunk) // 2
    parts = (chunk[:half], chunk[half:])
    return [batch for part in parts for batch in _prepared(model, part, layer, site)]


def _rows(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    contexts: Sequence[str],
    config: TargetConfig,
) -> list[Row]:
    texts: list[Row] = []
    for i, request in enumerate(requests):
        target, weights = _target(model, request)
        asked = rows(model, request, contexts, config.lookup)
        longest_row = max(len(row.ids) for row in asked) + len(target) - 1
        model.need_room(
            longest_row, f"the prompt {request.prompt[:60]!r} with its new answer, in its contexts,"
        )
        texts += [
            Row(i, (*row.ids, *target[:-1]), row.lookup, target, 1 / len(asked), weights)
            for row in asked
        ]
        if config.kl_factor:
            row = preservation_row(model, request, config.lookup)
            # Attention is causal: nothing behind the lookup token matters to what is said there.
            texts.append(Row(i, row.ids[: row.lookup + 1], row.lookup, (), config.kl_factor))
    return texts


def _target(
    model: LanguageModel, request: EditRequest
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Tokens that a target is searched on, and what each counts: 1 those of the request, and of n
    words less and less, (n − 1)/n to 1/n, those behind it (see `editing.closed_form.targets`).
    """
    words = [each.target_ids(model) for each in (request, *request.behind)]
    ids = tuple(token for word in words for token in word)
    return ids, tuple(1 - i / len(words) for i, word in enumerate(words) for _ in word)


def _batched(
    texts: Sequence[Row],
    row_bytes: int,
    config: TargetConfig,
    kind: Callable[[int], int] = lambda length: 0,
) -> Iterator[list[Row]]:
    """Rows in batches of similar length, and of one kind (`interp.models.lengths`), that fit
    into the memory.
    """
    memory = parse_size(config.memory)
    batch: list[Row] = []
    for row in sorted(texts, key=lambda row: (kind(len(row.ids)), row.suffix)):
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


def _prepare(model: LanguageModel, chunk: Sequence[Row], layer: int, site: Site) -> Batch:
    """Run what comes before δ, and lay out what is run at each step."""
    device = model.device
    middle = _begins_in_the_middle(model, chunk)
    entry = layer + 1 if site == "resid" and layer + 1 < model.n_layers else layer
    cuts = [row.lookup if middle else 0 for row in chunk]
    rows = list(zip(chunk, cuts, strict=True))
    ids, mask = pad_right([row.ids[cut:] for row, cut in rows], device)
    prefix = None
    if any(cuts):
        prefix, prefix_mask = model.prefixes([row.ids[:cut] for row, cut in rows])
        mask = torch.cat([prefix_mask, mask], 1)
    flat = [(i, *each) for i, pair in enumerate(rows) for each in _predictions(*pair)]
    row_of, position, target, weight = (
        torch.tensor(values, device=device) for values in zip(*flat, strict=True)
    )
    return Batch(
        request=torch.tensor([row.request for row in chunk], device=device),
        prefix=prefix,
        mask=mask,
        ids=ids,
        positions=torch.tensor([row.lookup - cut for row, cut in rows], device=device),
        entry=entry,
        state=_state_before(model, entry, ids, mask, prefix) if middle else None,
        places=(row_of, position),
        target=target,
        weight=weight,
    )


def _begins_in_the_middle(model: LanguageModel, chunk: Sequence[Row]) -> bool:
    """Whether what comes before the lookup token is run once for all steps."""
    if not model.takes_fast_route(max(len(row.ids) for row in chunk)):
        return False
    # Beginnings of different length are padded on the left.
    return model.pads_left or len({row.lookup for row in chunk}) == 1


def _state_before(
    model: LanguageModel, block: int, ids: Tensor, mask: Tensor, prefix: Any
) -> Float[Tensor, "row pos d_model"]:
    """Residual stream before a block."""
    seen: list[Tensor] = []
    name = f"blocks.{block}.hook_resid_pre"
    keep: NamedHook = (name, lambda value, hook: seen.append(value.clone()))
    with torch.no_grad():
        model.logits(ids, mask=mask, prefix=prefix, keep=1, hooks=[keep])
    return seen[0]


def _predictions(row: Row, cut: int) -> list[tuple[int, int, float]]:
    """Position behind the cut, target and weight of each prediction of a row that counts."""
    first = len(row.ids) - max(1, len(row.target)) - cut
    target = row.target or (-1,)
    share, weights = row.share / len(target), row.weights or (1.0,) * len(target)
    return [
        (first + i, token, share * weight)
        for i, (token, weight) in enumerate(zip(target, weights, strict=True))
    ]


def kl_places(batch: Batch) -> Tensor:
    """Which predictions are of preservation rows."""
    return batch.target < 0


def without(model: LanguageModel, batches: Sequence[Batch], done: Tensor) -> list[Batch]:
    """The batches without the rows of finished requests."""
    going_on = [batch for batch in batches if not bool(done[batch.request].all())]
    return [_without(model, batch, done) for batch in going_on]


def _without(model: LanguageModel, batch: Batch, done: Tensor) -> Batch:
    """The batch without the rows of finished requests; some rows are left."""
    keep = ~done[batch.request]
    return batch if bool(keep.all()) else _rows_of(model, batch, keep)


def halves(model: LanguageModel, batch: Batch) -> list[Batch]:
    """A batch of two rows or more as two."""
    number = len(batch.ids)
    first = torch.arange(number, device=batch.ids.device) < number // 2
    return [_rows_of(model, batch, first), _rows_of(model, batch, ~first)]


def _rows_of(model: LanguageModel, batch: Batch, keep: Bool[Tensor, " row"]) -> Batch:
    """Some rows of a batch, at least one."""
    kept = keep.nonzero().flatten()
    places, number = keep[batch.places[0]], keep.cumsum(0) - 1
    said = batch.unedited
    return replace(
        batch,
        request=batch.request[kept],
        prefix=None if batch.prefix is None else model.rows_of_cache(batch.prefix, kept),
        mask=batch.mask[kept],
        ids=batch.ids[kept],
        positions=batch.positions[kept],
        state=None if batch.state is None else batch.state[kept],
        places=(number[batch.places[0][places]], batch.places[1][places]),
        target=batch.target[places],
        weight=batch.weight[places],
        unedited=None if said is None else said[places[kl_places(batch)]],
    )
