"""The check of a model at load, and the numbers that it gives."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import DmleError, ModelError, NotFiniteError
from interp.models.refusals import panicked
from interp.models.self_check import routes
from interp.models.self_check.basis import tolerance
from interp.models.self_check.hooks import hook_errors
from interp.models.self_check.writing import writing_error

if TYPE_CHECKING:
    from interp.models.loading import LanguageModel

REFUSES = {
    "logits": "TransformerLens's bridge does not compute what the model computes",
    "additivity": (
        "resid_pre + attn_out + mlp_out is not resid_post: its blocks do more than add to the"
        " stream (some normalise the sum, as OPT-350m does)"
    ),
    "projection": "the MLP's output is not the down-projection of its key",
    "writing": (
        "what a hook writes into the embeddings, attention, MLP or stream of one row is not what"
        " the model goes on with, or another row sees it"
    ),
    "right_padding": "padding on the right changes what the tokens before it say",
}
"""What it means that an error is above the tolerance, for those that refuse a model."""


@dataclass(frozen=True)
class SelfCheck:
    """Relative errors (largest difference over largest value) of what tracing and editing rely on.

    An error is infinite where the way is not supported at all.
    """

    logits: float
    """Bridge against the Hugging Face model before wrapping."""
    additivity: float
    """resid_pre + attn_out + mlp_out against resid_post, worst block."""
    projection: float
    """key @ W_out (+ bias) against the MLP's raw output, worst block."""
    prefix_cache: float
    """Logits of rows behind one prefix, whose keys and values are computed once, against whole
    runs."""
    entry: float
    """Logits of sites patched in a batch that grows (the fast route) against whole runs (the
    generic one)."""
    post_norm: bool
    """Whether the block normalises the MLP output before adding it (Gemma 3)."""
    writing: float = 0.0
    """What goes on from a written value against that value: embeddings, attention, MLP and
    stream, one row of two."""
    right_padding: float = 0.0
    """Logits of a shorter text padded on the right, at chosen places, against those of the text
    alone."""
    left_padding: float = 0.0
    """Logits of texts padded on the left, behind kept keys and in greedy continuation, against
    whole runs of each."""
    device: float = 0.0
    """Logits of the first blocks on the device against those on the CPU; 0 on a CPU."""

    def __str__(self) -> str:
        """The errors, in one line."""
        names = [name for name in vars(self) if name != "post_norm"]
        return "relative errors " + ", ".join(
            f"{name.replace('_', ' ')} {getattr(self, name):.0e}" for name in names
        )


@contextmanager
def foreign_errors(name: str) -> Iterator[None]:
    """Make one line of whatever another library raises inside, for architectures fail in any
    way.
    """
    try:
        yield
    except NotFiniteError as error:
        raise ModelError(str(error)) from error
    except (DmleError, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or panicked(error)):
            raise
        raise ModelError(
            f"{name}: self-check failed: the model does not run ({_one_line(error)}). Its"
            " architecture is none that tracing and editing know how to use; use another model, or"
            " report this architecture"
        ) from error


def self_check(
    model: "LanguageModel",
    ids: Int[Tensor, "batch pos"],
    expected: Float[Tensor, "batch pos d_vocab"],
) -> SelfCheck:
    """Measure what the rest relies on and refuse a model that fails (see `SelfCheck`).

    Args:
        model: The wrapped model.
        ids: Two rows of tokens.
        expected: Their logits before wrapping.

    Raises:
        ModelError: A relative error is above the tolerance of the model's dtype, a state is NaN or
            infinite, or the model does not run.
    """
    with torch.no_grad(), foreign_errors(model.name):
        errors, plain = hook_errors(model, ids, expected)
        check = SelfCheck(
            **vars(errors),
            prefix_cache=float("inf"),
            entry=float("inf"),
            writing=writing_error(model, ids, plain, expected),
            right_padding=routes.right_error(model, ids, expected),
        )
        _refuse(model, check)
        faster: dict[str, Any] = routes.faster_errors(model, ids, expected)
        return replace(check, **faster)


def _refuse(model: "LanguageModel", check: SelfCheck) -> None:
    for what, why in REFUSES.items():
        if not (error := getattr(check, what)) <= tolerance(model.dtype):
            raise ModelError(
                f"{model.name}: self-check failed, relative error of {what.replace('_', ' ')}"
                f" is {error:.2g}, allowed {tolerance(model.dtype):.0e} in {model.dtype}:"
                f" {why}. Tracing and editing would give wrong numbers; use another model, or"
                " report this architecture"
            )


def _one_line(error: BaseException) -> str:
    """An error of another library in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
