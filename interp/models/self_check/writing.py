"""What hooks write: whether the model goes on with it, and no other row or token sees it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.models.self_check.basis import relative_error
from interp.models.self_check.hooks import block_hooks, watched

if TYPE_CHECKING:
    from interp.models.loading import LanguageModel
    from interp.models.runs import NamedHook


ROW, TOKEN = 1, 2
"""Where values are written, of two rows."""


def writing_error(
    model: "LanguageModel",
    ids: Int[Tensor, "batch pos"],
    plain: Mapping[str, Tensor],
    before: Float[Tensor, "batch pos d_vocab"],
) -> float:
    """What goes on from values written in the second row, at one token, as patching and editors
    write them.

    Args:
        model: The wrapped model.
        ids: Two rows of tokens.
        plain: Values of these rows by hook, where nothing is written.
        before: Their logits where nothing is written.

    Returns:
        The largest relative error; infinite where a value is not written at all, or has no effect.
    """
    layers, last = range(model.n_layers), model.n_layers - 1
    written: dict[str, Tensor] = {}
    writes = _writes(model, written)
    seen, after = watched(
        model, ids, [name for layer in layers for name in block_hooks(layer)], writes
    )
    if set(written) != {name for name, _ in writes}:
        return float("inf")
    raw, mlp = model.value_hook(last), f"blocks.{last}.hook_mlp_out"
    if raw in written and seen[mlp][ROW, TOKEN].equal(plain[mlp][ROW, TOKEN]):
        return float("inf")
    embedded = block_hooks(0)[0]
    return max(
        relative_error(after[:ROW], before[:ROW]),
        _embedding_error(seen[embedded], plain[embedded]),
        *_stream_errors(model, seen, written),
    )


def _writes(model: "LanguageModel", written: dict[str, Tensor]) -> list["NamedHook"]:
    """Hooks that change a value at one token, and keep in `written` what they made of it."""
    place = tuple(torch.tensor([each], device=model.device) for each in (ROW, TOKEN))
    generator = torch.Generator().manual_seed(1)

    def write(value: Tensor, hook: Any, name: str) -> Tensor:
        change = torch.randn(value.shape[-1], generator=generator).to(value)
        change = change * value.float().std().to(value.dtype)
        value = value.index_put_(place, (value[place] + change))
        written[name] = value.detach().clone()
        return value

    def embed(value: Tensor, hook: Any) -> Tensor:
        return write(value.clone(), hook, model.embedding_hook)

    n, low, high = model.n_layers, model.n_layers // 3, 2 * model.n_layers // 3
    names = [model.hook("attn", low), model.hook("mlp", high), model.hook("resid", low)]
    # The last block's MLP as editors write it; the one above writes what a norm behind the MLP has
    # left of it.
    names += [model.value_hook(n - 1)] if high != n - 1 else []
    return [
        (model.embedding_hook, embed),
        *((name, lambda value, hook, name=name: write(value, hook, name)) for name in names),
    ]


def _embedding_error(
    seen: Float[Tensor, "batch pos d_model"], plain: Float[Tensor, "batch pos d_model"]
) -> float:
    """How far the embeddings of other tokens than the written one are moved; infinite if that one
    is not moved.
    """
    moved = (seen - plain).abs().amax(-1)
    if float(moved[ROW, TOKEN]) == 0:
        return float("inf")
    moved[ROW, TOKEN] = 0
    return float(moved.max() / plain.abs().max())


def _stream_errors(
    model: "LanguageModel", seen: Mapping[str, Tensor], written: Mapping[str, Tensor]
) -> Iterator[float]:
    """Each block's stream against that of the block before it and against what its parts add."""
    stream = seen[block_hooks(0)[0]]
    for layer in range(model.n_layers):
        pre, attn, mlp, post = block_hooks(layer)
        attn_out, mlp_out = (written.get(name, seen[name]) for name in (attn, mlp))
        yield relative_error(seen[pre], stream)
        yield relative_error(seen[pre] + attn_out + mlp_out, seen[post])
        stream = written.get(post, seen[post])
