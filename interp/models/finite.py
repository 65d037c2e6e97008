"""A number is finite or it is not a number: what is said where a run, a gradient or a statistic
is NaN or infinite.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interp.errors import NotFiniteError

if TYPE_CHECKING:
    from interp.models.base import ModelBase


def require_finite(value: Tensor, what: str, model: "ModelBase") -> None:
    """Refuse numbers that are none.

    Args:
        value: Numbers of any shape.
        what: What they are, for the error: "the clean run".
        model: Where they come from; its number format and weights are looked at for the cause.

    Raises:
        NotFiniteError: One is NaN or infinite.
    """
    if not bool(value.isfinite().all()):
        raise NotFiniteError(
            f"{what} of {model.name} is not finite ({kind(value)}): {cause(model)}"
        )


def kind(value: Tensor) -> str:
    """What is wrong with numbers that are not finite, in words."""
    return "NaN" if bool(value.isnan().any()) else "infinite"


def cause(model: "ModelBase") -> str:
    """The likely cause of numbers that are not finite, and what mends it."""
    bad = [name for name, value in model.parameters.items() if not bool(value.isfinite().all())]
    holding = f"{len(bad)} of its parameters hold such numbers, among them {bad[0]}" if bad else ""
    name = str(model.dtype).removeprefix("torch.")
    if any(bool(model.parameters[each].isnan().any()) for each in bad):
        # A change of number format makes infinities of large weights, but no NaN.
        return f"{holding}; the checkpoint, or the edit in force, is damaged: use another"
    if model.dtype == torch.float16:
        found = f" ({holding})" if bad else ""
        return f"{name} overflows in this model{found}: use --set model.dtype=bfloat16 or float32"
    if bad:
        return f"{holding}; the checkpoint, or the edit in force, is damaged: use another"
    if model.dtype == torch.float64:
        return (
            "its weights are finite, so the run itself overflows: a smaller edit, or less noise, is"
            " needed"
        )
    wider = "float32" if model.dtype.itemsize < torch.float32.itemsize else "float64"
    return f"its weights are finite, so {name} overflows in the run: use --set model.dtype={wider}"
