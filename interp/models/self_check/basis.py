"""What every check uses: its texts, relative errors, and what is rounding in a number format."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from interp.models.base import ModelBase

# A relative error above this is a hook that means something else, not rounding. Models compute
# norms, rotary angles and softmax in float32 whatever their type, so float64 is not much nearer.
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-5}
TOLERANCE_HALF = 4e-2
CHECK_TOKENS = 12
ROW, SHORT = 8, 5
"""Tokens of the texts that are run, and of the shorter of two that are padded."""


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative error that is rounding in a number format."""
    return TOLERANCE.get(dtype, TOLERANCE_HALF)


def check_ids(model: "ModelBase", length: int = CHECK_TOKENS) -> Int[Tensor, "batch pos"]:
    """A row of random tokens, the same for every model of a vocabulary."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = int(model.config.get_text_config().vocab_size)
    return torch.randint(vocabulary, (1, length), generator=generator).to(model.device)


def check_rows(model: "ModelBase", length: int = ROW) -> Int[Tensor, "batch pos"]:
    """Two rows of random tokens."""
    ids = check_ids(model, length)
    return torch.cat([ids, ids.flip(1)])


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value; infinite if a number is none."""
    got, expected = got.float(), expected.float()
    error = ((got - expected).abs().max() / expected.abs().max().clamp_min(1e-12)).item()
    # NaN compares as false with everything and would pass where a maximum is taken.
    return error if error < float("inf") else float("inf")
