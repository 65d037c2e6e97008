"""Keys k: what the down-projection of a block reads at the lookup token. One implementation for all editors.

Attention is causal, so rows end at the lookup token: what comes behind it has no part in a key.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from editing.contexts import Row, rows
from editing.requests import EditRequest
from interp.model import LanguageModel
from interp.prefixes import longest
from interp.tokens import pad_right

Average = Literal["halves", "mean"]


def find_keys(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layer: int,
    contexts: Sequence[str],
    lookup: str,
    average: Average = "halves",
) -> Float[Tensor, "request d_mlp"]:
    """The key of each request at a block, averaged over contexts.

    `halves`: the bare prompt counts one half, the sampled contexts share the other half (MEMIT compute_ks, mean
    within each group of templates, then mean of groups). `mean`: all count alike (ROME).
    """
    seen = values_at_lookup(model, requests, model.key_hook(layer), contexts, lookup)
    bare, sampled = seen[:, 0], seen[:, 1:]
    if not sampled.shape[1] or average == "mean":
        return seen.mean(1)
    return (bare + sampled.mean(1)) / 2


def find_states(
    model: LanguageModel, requests: Sequence[EditRequest], hook: str, lookup: str
) -> Float[Tensor, "request d_model"]:
    """The value at a hook (the output of a block or of its MLP) at the lookup token of each bare prompt."""
    return values_at_lookup(model, requests, hook, ("",), lookup)[:, 0]


def values_at_lookup(
    model: LanguageModel, requests: Sequence[EditRequest], hook: str, contexts: Sequence[str], lookup: str
) -> Float[Tensor, "request context d"]:
    """Values at a hook at the lookup token, in float32.

    A text with which another begins is read where that one is run: the words of an answer cost one run.
    """
    all_rows: list[Row] = [row for request in requests for row in rows(model, request, contexts, lookup)]
    texts, within = longest([row.ids[: row.lookup + 1] for row in all_rows])
    ids, mask = pad_right(texts, model.device)
    seen = model.capture(ids, [hook], mask=mask)[hook]
    at = torch.tensor([row.lookup for row in all_rows], device=model.device)
    values = seen[torch.tensor(within, device=model.device), at].float()
    return values.view(len(requests), len(contexts), -1)


def keys_of_prompts(model: LanguageModel, requests: Sequence[EditRequest], layer: int) -> Float[Tensor, "token d_mlp"]:
    """Keys of every token of the requests' bare prompts and new answers: all that their outputs depend on."""
    texts = [
        (*model.encode(r.prompt).ids, *model.encode_continuation(r.target_new, r.prompt, r.space)) for r in requests
    ]
    ids, mask = pad_right(texts, model.device)
    name = model.key_hook(layer)
    return model.capture(ids, [name], mask=mask)[name][mask.bool()].float()
