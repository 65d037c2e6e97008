"""Keys k: what the down-projection of a block reads at the lookup token. One implementation for all
editors.

Attention is causal, so rows end at the lookup token: what comes behind it has no part in a key.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from editing.closed_form.contexts import Row, rows
from editing.edits.requests import EditRequest
from interp.models.budget import chunked
from interp.models.finite import require_finite
from interp.models.loading import LanguageModel
from interp.models.prefixes import longest
from interp.models.tokens import pad_right

REMEDY = (
    "use shorter prompts or contexts (edit.context_tokens), another device, or model.dtype=bfloat16"
)
Average = Literal["halves", "mean"]


def find_keys(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    lookup: str,
    average: Average = "halves",
    memory: int | None = None,
    streams: "_Streams | None" = None,
) -> Float[Tensor, "request d_mlp"]:
    """The key of each request at a block, averaged over contexts.

    `halves`: the bare prompt counts one half, the sampled contexts share the other half (MEMIT
    compute_ks, mean within each group of templates, then mean of groups). `mean`: all count alike
    (ROME). For `memory` and errors see `values_at_lookup`; `streams` are those of `KeysInTurn`.
    """
    hook = model.key_hook(layer)
    seen = values_at_lookup(model, requests, hook, contexts, lookup, memory, streams)
    bare, sampled = seen[:, 0], seen[:, 1:]
    if not sampled.shape[1] or average == "mean":
        return seen.mean(1)
    return (bare + sampled.mean(1)) / 2


def find_states(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    hook: str,
    lookup: str,
    memory: int | None = None,
) -> Float[Tensor, "request d_model"]:
    """The value at a hook (the output of a block or of its MLP) at the lookup token of each bare
    prompt.
    """
    return values_at_lookup(model, requests, hook, ("",), lookup, memory)[:, 0]


def values_at_lookup(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    hook: str,
    contexts: Sequence[str],
    lookup: str,
    memory: int | None = None,
    streams: "_Streams | None" = None,
) -> Float[Tensor, "request context d"]:
    """Values at a hook at the lookup token, in float32.

    A text with which another begins is read where that one is run: the words of an answer cost one
    run.

    Args:
        model: The model.
        requests: The requests.
        hook: Name of the hook.
        contexts: Texts before the prompts.
        lookup: See `interp.models.tokens.lookup_span`.
        memory: Bytes that a batch may take (estimated; `edit.memory`). Default: see
            `interp.models.budget`. Changes memory and speed only.
        streams: Where runs begin, by batch.

    Raises:
        NotFiniteError: A value is NaN or infinite.
        MemoryLimitError: Not even one text fits in memory.
    """
    all_rows: list[Row] = [
        row for request in requests for row in rows(model, request, contexts, lookup)
    ]
    texts, within = longest([row.ids[: row.lookup + 1] for row in all_rows])
    places: list[list[int]] = [[] for _ in texts]
    for text, row in zip(within, all_rows, strict=True):
        places[text].append(row.lookup)
    found = [iter(each) for each in _values(model, texts, places, hook, memory, streams)]
    return torch.stack([next(found[text]) for text in within]).view(
        len(requests), len(contexts), -1
    )


class KeysInTurn:
    """Keys of requests at one block after the other, while blocks are being written: each reading
    begins at the block of the one before, whose input no later write changes.

    Streams are kept as far as the memory goes; what has none is run from the first block on.
    """

    def __init__(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        contexts: Sequence[str],
        lookup: str,
        memory: int | None = None,
    ) -> None:
        """See `find_keys`."""
        self._model, self._requests, self._contexts = model, requests, contexts
        self._lookup, self._memory = lookup, memory
        self._streams = _Streams(memory or model.budget())

    def at(self, layer: int) -> Float[Tensor, "request d_mlp"]:
        """Keys at a block; blocks ascend from call to call."""
        return find_keys(
            self._model,
            self._requests,
            layer,
            self._contexts,
            self._lookup,
            memory=self._memory,
            streams=self._streams,
        )


class _Streams:
    """Residual streams of batches, each before the block where it was read last."""

    def __init__(self, memory: int) -> None:
        self._kept: dict[tuple[int, ...], tuple[int, Tensor]] = {}
        self._left = memory

    def capture(
        self, model: LanguageModel, batch: Sequence[int], ids: Tensor, mask: Tensor, hook: str
    ) -> Tensor:
        """The values of a batch, with a run from where its stream is kept."""
        layer = int(hook.split(".")[1])
        # Some models do in long texts what was verified in short ones alone.
        entry = self._kept.get(tuple(batch)) if model.takes_fast_route(ids.shape[1]) else None
        before = f"blocks.{layer}.hook_resid_pre"
        seen = model.capture(ids, [before, hook], mask=mask, entry=entry)
        stream = seen[before]
        kept = tuple(batch) in self._kept
        size = 0 if kept else stream.numel() * stream.element_size()
        if size <= self._left:
            self._left -= size
            self._kept[tuple(batch)] = (layer, stream)
        return seen[hook]


def keys_of_prompts(
    model: LanguageModel, requests: Sequence[EditRequest], layer: int, memory: int | None = None
) -> Float[Tensor, "token d_mlp"]:
    """Keys of every token of the requests' bare prompts and new answers: all that their outputs
    depend on.
    """
    texts = [
        (*model.encode(r.prompt).ids, *model.encode_continuation(r.target_new, r.prompt, r.space))
        for r in requests
    ]
    return torch.cat(
        _values(model, texts, [range(len(text)) for text in texts], model.key_hook(layer), memory)
    )


def _values(
    model: LanguageModel,
    texts: Sequence[tuple[int, ...]],
    places: Sequence[Sequence[int]],
    hook: str,
    memory: int | None,
    streams: _Streams | None = None,
) -> list[Float[Tensor, "place d"]]:
    """Values at a hook at some places of each text, in batches that fit in the memory."""
    out: list[Tensor] = [torch.empty(0)] * len(texts)

    def work(some: list[int]) -> None:
        ids, mask = pad_right([texts[i] for i in some], model.device)
        if streams is None:
            seen = model.capture(ids, [hook], mask=mask)[hook]
        else:
            seen = streams.capture(model, some, ids, mask, hook)
        for row, i in enumerate(some):
            # A copy, so that what else was seen in the run is free.
            out[i] = seen[row, list(places[i])].float()
            require_finite(out[i], hook, model)

    for group in model.lengths.groups([len(text) for text in texts]):
        width = max(len(texts[i]) for i in group)
        size = (memory or model.budget()) // model.row_bytes(width, width, 1)
        # The longest first, so that memory that does not suffice shows at the start.
        chunked(sorted(group, key=lambda i: -len(texts[i])), max(1, size), work, REMEDY)
    return out
