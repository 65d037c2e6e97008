"""What tracing and editing rely on, measured on a model at load: a model that fails is refused.

The numbers are relative errors, the largest difference over the largest value.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import ModelError

if TYPE_CHECKING:
    from interp.model import LanguageModel

# A relative error above this is a hook that means something else, not rounding.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
TOLERANCE_HALF = 4e-2
CHECK_TOKENS = 12


@dataclass(frozen=True)
class SelfCheck:
    """Relative errors (largest difference over largest value) of what tracing and editing rely on."""

    logits: float
    """Bridge against the Hugging Face model before wrapping."""
    additivity: float
    """resid_pre + attn_out + mlp_out against resid_post, worst block."""
    projection: float
    """key @ W_out (+ bias) against the MLP's raw output, worst block."""
    prefix_cache: float
    """Logits with the first half of the tokens cached against all at once; infinite if not supported."""
    entry: float
    """Logits of a batch that grows at two later blocks against whole runs; infinite if not supported."""
    post_norm: bool
    """Whether the block normalises the MLP output before adding it (Gemma 3)."""

    def __str__(self) -> str:
        """The errors, in one line."""
        names = ("logits", "additivity", "projection", "prefix_cache", "entry")
        return "relative errors " + ", ".join(f"{name.replace('_', ' ')} {getattr(self, name):.0e}" for name in names)


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative error that is rounding in a number format."""
    return TOLERANCE.get(dtype, TOLERANCE_HALF)


def check_ids(model: "LanguageModel") -> Int[Tensor, "batch pos"]:
    """A short row of random tokens, the same for every model of a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    return torch.randint(vocabulary, (1, CHECK_TOKENS), generator=generator).to(model.device)


def self_check(model: "LanguageModel", ids: Int[Tensor, "batch pos"], expected: Tensor) -> SelfCheck:
    """Measure what the rest relies on and refuse a model that fails (see `SelfCheck`).

    Raises:
        ModelError: A relative error is above the tolerance of the model's dtype.
    """
    check = SelfCheck(0.0, 0.0, 0.0, _cache_error(model, ids), _entry_error(model, ids), post_norm=False)
    layers = range(model.n_layers)
    parts = (
        "hook_resid_pre",
        "hook_attn_out",
        "hook_mlp_out",
        "hook_resid_post",
        "mlp.hook_post",
        "mlp.out.hook_out",
    )
    with torch.no_grad():
        try:
            seen = model.capture(ids, [f"blocks.{layer}.{part}" for layer in layers for part in parts])
        except KeyError as error:
            raise ModelError(
                f"{model.name}: self-check failed: {error.args[0]} Tracing and editing need blocks of attention "
                "and MLP; use another model"
            ) from error
        check = replace(check, logits=_relative(model.logits(ids), expected))
        for layer in layers:
            pre, attn, mlp, post, key, raw = (seen[f"blocks.{layer}.{part}"] for part in parts)
            down = model.down_projection(layer)
            value = key @ down.orient(down.weight).T if not down.transposed else key @ down.weight
            value = value if down.bias is None else value + down.bias
            check = replace(
                check,
                additivity=max(check.additivity, _relative(pre + attn + mlp, post)),
                projection=max(check.projection, _relative(value, raw)),
                post_norm=check.post_norm or _relative(raw, mlp) > tolerance(model.dtype),
            )
    for what in ("logits", "additivity", "projection"):
        if not (error := getattr(check, what)) <= tolerance(model.dtype):
            raise ModelError(
                f"{model.name}: self-check failed, relative error of {what} is {error:.2g}, "
                f"allowed {tolerance(model.dtype):.0e} "
                f"in {model.dtype}. TransformerLens's hooks do not mean for this architecture what "
                "tracing and editing need; use another model, or report this architecture"
            )
    return check


def _entry_error(model: "LanguageModel", ids: Int[Tensor, "batch pos"]) -> float:
    blocks = (model.n_layers // 3, 2 * model.n_layers // 3)
    names = [f"blocks.{block}.hook_resid_pre" for block in blocks]
    both = torch.cat([ids, ids.flip(1)])
    with torch.no_grad():
        try:
            seen = model.capture(both, sorted(set(names)))
            joins = [(block, seen[name][i : i + 1]) for i, (block, name) in enumerate(zip(blocks, names, strict=True))]
            entered = model.logits(ids, joins=joins)
        except (AttributeError, TypeError, ValueError, IndexError, RuntimeError):
            return float("inf")
        return _relative(entered, model.logits(both))


def _cache_error(model: "LanguageModel", ids: Int[Tensor, "batch pos"]) -> float:
    half = ids.shape[1] // 2
    with torch.no_grad():
        try:
            cache = model.prefix_cache(ids[:, :half])
            second = model.logits(ids[:, half:].repeat(2, 1), prefix=cache)
        except (TypeError, ValueError, NotImplementedError, AttributeError, RuntimeError):
            return float("inf")
        return _relative(second, model.logits(ids)[:, half:].repeat(2, 1, 1))


def _relative(got: Tensor, expected: Tensor) -> float:
    got, expected = got.float(), expected.float()
    return ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
