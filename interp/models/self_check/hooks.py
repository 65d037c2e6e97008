"""What hooks read: whether a block's parts add up, and whether the MLP is its down-projection."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import ModelError
from interp.models.finite import require_finite
from interp.models.self_check.basis import relative_error, tolerance

if TYPE_CHECKING:
    from interp.models.loading import LanguageModel


BLOCK_PARTS = ("hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post")
"""What a block adds to the stream, between the stream before it and behind it."""


@dataclass(frozen=True)
class HookErrors:
    """What `SelfCheck` has of what hooks read."""

    logits: float
    additivity: float
    projection: float
    post_norm: bool


def hook_errors(
    model: "LanguageModel",
    ids: Int[Tensor, "batch pos"],
    expected: Float[Tensor, "batch pos d_vocab"],
) -> tuple[HookErrors, dict[str, Tensor]]:
    """What hooks read: its relative errors, and the values by hook.

    Raises:
        ModelError: The model lacks a hook, or a down-projection.
    """
    if lacking := [part for part in ("attn", "mlp") if not hasattr(model.bridge.blocks[0], part)]:
        raise ModelError(_no_hook(model, f"block 0 has no {lacking[0]}."))
    layers = range(model.n_layers)
    seen, logits = watched(
        model, ids, [name for layer in layers for name in _hooks_of_block(model, layer)]
    )
    blocks = [_errors_of_block(model, layer, seen) for layer in layers]
    errors = HookErrors(
        relative_error(logits, expected),
        additivity=max(additivity for additivity, _, _ in blocks),
        projection=max(projection for _, projection, _ in blocks),
        post_norm=any(post_norm for _, _, post_norm in blocks),
    )
    return errors, seen


def block_hooks(layer: int) -> list[str]:
    """Hooks of a block's parts."""
    return [f"blocks.{layer}.{part}" for part in BLOCK_PARTS]


def _hooks_of_block(model: "LanguageModel", layer: int) -> list[str]:
    model.down_projection(layer)  # refused here where there is none
    mlp = [model.key_hook(layer), model.value_hook(layer), f"blocks.{layer}.mlp.hook_out"]
    return block_hooks(layer) + mlp


def _errors_of_block(
    model: "LanguageModel", layer: int, seen: Mapping[str, Tensor]
) -> tuple[float, float, bool]:
    """Additivity, projection, and whether the MLP's output is normalised."""
    pre, attn, mlp, post, key, raw, module = (seen[name] for name in _hooks_of_block(model, layer))
    down = model.down_projection(layer)
    value = key @ down.orient(down.weight).T if not down.transposed else key @ down.weight
    value = value if down.bias is None else value + down.bias
    # Behind it comes nothing, or the norm that what is added has gone through: an MLP that adds
    # the stream itself (Bloom) says what it adds at the block, others at the MLP.
    projection = max(
        relative_error(value, raw),
        min(relative_error(value, module), relative_error(value, mlp)),
    )
    post_norm = relative_error(raw, mlp) > tolerance(model.dtype)
    return relative_error(pre + attn + mlp, post), projection, post_norm


def watched(
    model: "LanguageModel",
    ids: Tensor,
    names: Sequence[str],
    writes: Sequence[tuple[str, Any]] = (),
) -> tuple[dict[str, Tensor], Tensor]:
    """Values at hooks in one run, before what is written there, and logits."""
    seen: dict[str, Tensor] = {}

    def keep(value: Tensor, hook: Any, name: str) -> None:
        seen[name] = value.detach().clone()

    hooks = [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    try:
        logits = model.logits(ids, hooks=[*hooks, *writes])
    except KeyError as error:
        raise ModelError(_no_hook(model, str(error.args[0]))) from error
    if missing := [name for name in names if name not in seen]:
        raise ModelError(_no_hook(model, f"nothing is seen at {missing[0]}."))
    for name, value in seen.items():
        require_finite(value, name, model)
    return seen, logits


def _no_hook(model: "LanguageModel", why: str) -> str:
    return (
        f"{model.name}: self-check failed: {why} Tracing and editing need blocks of attention and"
        " MLP that add to a residual stream (blocks that normalise the sum, as GPT-1's, have"
        " none); use another model"
    )
