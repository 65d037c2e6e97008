"""A model's first blocks on its device against the same on the CPU."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.errors import ModelError
from interp.models.self_check.basis import relative_error, tolerance

if TYPE_CHECKING:
    from interp.models.loading import LanguageModel

DEVICE_BLOCKS = 2
"""Blocks that are run on the CPU, too, to compare with the device."""


def check_device(model: "LanguageModel", hf_model: Any, ids: Int[Tensor, "batch pos"]) -> float:
    """Compare the first blocks on the device with the same on the CPU, once.

    Returns:
        The relative error; 0 on a CPU, infinite where they cannot be compared (no memory for a
        copy, say).

    Raises:
        ModelError: They differ by more than rounding: the device, or its driver, computes something
            else.
    """
    if model.device.type == torch.empty(0).device.type:
        return 0.0
    with torch.no_grad():
        try:
            error = device_error(hf_model, ids)
        except (
            Exception
        ):  # what runs on the device is no less right for it; the check's numbers say so
            return float("inf")
    if error > tolerance(model.dtype):
        raise ModelError(
            f"{model.name}: self-check failed, its first blocks on {model.device} differ from those"
            f" on the CPU by {error:.2g} (relative), allowed {tolerance(model.dtype):.0e} in"
            f" {model.dtype}; use another device (--device cpu), another number format, or another"
            " version of torch or of the driver"
        )
    return error


def device_error(hf_model: Any, ids: Int[Tensor, "batch pos"]) -> float:
    """Relative difference of the logits of a model's first blocks where it is, and on the CPU."""
    with _shortened(hf_model, DEVICE_BLOCKS):
        here = hf_model(ids).logits
        # Copies that are made on the host, so that the device needs no room for them.
        memo = {
            id(p): nn.Parameter(p.detach().cpu(), requires_grad=False)
            for p in hf_model.parameters()
        }
        memo |= {id(b): b.detach().cpu() for b in hf_model.buffers()}
        there = copy.deepcopy(hf_model, memo)(ids.cpu()).logits
    return relative_error(here.cpu(), there)


@contextmanager
def _shortened(hf_model: Any, blocks: int) -> Iterator[None]:
    """The model with its first blocks alone."""
    config = hf_model.config.get_text_config()
    lists = [
        (parent, name, child)
        for parent in hf_model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    # Several lists of that length: what they are is not known, and the whole model is run.
    lists = lists if len(lists) == 1 else []
    for parent, name, child in lists:
        setattr(parent, name, child[:blocks])
    try:
        yield
    finally:
        for parent, name, child in lists:
            setattr(parent, name, child)
