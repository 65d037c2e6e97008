"""Keys k: what the down-projection of a block reads at the lookup token. One implementation for all editors."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from editing.contexts import Row, rows
from editing.requests import EditRequest
from interp.model import LanguageModel
from interp.tokens import pad_right


def find_keys(
    model: LanguageModel, requests: Sequence[EditRequest], layer: int, contexts: Sequence[str], lookup: str
) -> Float[Tensor, "request d_mlp"]:
    """The key of each request at a block, averaged over contexts.

    The bare prompt counts one half, the sampled contexts share the other half.
    Source: MEMIT compute_ks (mean within each group of templates, then mean of groups).
    """
    seen = values_at_lookup(model, requests, model.key_hook(layer), contexts, lookup)
    bare, sampled = seen[:, 0], seen[:, 1:]
    return bare if not sampled.shape[1] else (bare + sampled.mean(1)) / 2


def find_states(
    model: LanguageModel, requests: Sequence[EditRequest], layer: int, lookup: str
) -> Float[Tensor, "request d_model"]:
    """The output of a block at the lookup token of each bare prompt."""
    return values_at_lookup(model, requests, model.hook("resid", layer), ("",), lookup)[:, 0]


def values_at_lookup(
    model: LanguageModel, requests: Sequence[EditRequest], hook: str, contexts: Sequence[str], lookup: str
) -> Float[Tensor, "request context d"]:
    """Values at a hook at the lookup token, in float32."""
    all_rows: list[Row] = [row for request in requests for row in rows(model, request, contexts, lookup)]
    ids, mask = pad_right([row.ids for row in all_rows], model.device)
    seen = model.capture(ids, [hook], mask=mask)[hook]
    at = torch.tensor([row.lookup for row in all_rows], device=model.device)
    values = seen[torch.arange(len(all_rows), device=model.device), at].float()
    return values.view(len(requests), len(contexts), -1)
