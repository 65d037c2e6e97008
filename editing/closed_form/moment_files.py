"""Files of statistics: one per block, with what was measured in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editing.closed_form.moments import Moments
from interp.results.checksums import damaged
from interp.results.tensor_files import read_tensors, write_tensors

REMEDY = "delete it to measure it anew, and run the same command again"


def save(path: Path, moments: Moments, layer: int, about: Mapping[str, Any]) -> None:
    """Write the moments of one block's keys."""
    tensors = {
        "second_moment": moments.second.float(),
        "fourth_moment": torch.tensor(moments.fourth, dtype=torch.float64),
    }
    write_tensors(
        path,
        tensors,
        {"about": about, "layer": layer, "convergence": moments.convergence, "half": moments.half},
    )


def read(
    path: Path, layer: int, about: Mapping[str, Any]
) -> tuple[Tensor, float, float | None, int]:
    """C of one block as it was measured, E‖k kᵀ‖², the convergence report, and the tokens of its
    first half.

    Raises:
        DamagedError: The file does not hold what `save` wrote for this block and these settings.
    """
    what, mend = "covariance", REMEDY
    tensors, header = read_tensors(path, what, mend=mend)
    second, fourth = (
        tensors.get(name, torch.zeros(0)) for name in ("second_moment", "fourth_moment")
    )
    convergence, half = header.get("convergence"), header.get("half")
    if (header.get("about"), header.get("layer")) != (json.loads(json.dumps(about)), layer):
        raise damaged(path, what, "it was measured on another block, model or text", mend)
    if second.ndim != 2 or second.shape[0] != second.shape[1] or fourth.numel() != 1:
        raise damaged(path, what, "it holds no square matrix of second moments", mend)
    if (
        not second.isfinite().all()
        or type(half) is not int
        or not isinstance(convergence, float | int | None)
    ):
        raise damaged(path, what, "its moments are no finite numbers", mend)
    return second, fourth.item(), convergence, half


def save_output(
    path: Path, moment: Float[Tensor, "d_model d_model"], layer: int, about: Mapping[str, Any]
) -> None:
    """Write G of one block."""
    header = {"about": about, "layer": layer}
    write_tensors(path, {"output_moment": moment.float()}, header)


def read_output(
    path: Path, layer: int, about: Mapping[str, Any]
) -> Float[Tensor, "d_model d_model"]:
    """G of one block.

    Raises:
        DamagedError: The file does not hold what `save_output` wrote for this block and text.
    """
    what, mend = "moments of outputs", REMEDY
    tensors, header = read_tensors(path, what, mend=mend)
    if (header.get("about"), header.get("layer")) != (json.loads(json.dumps(about)), layer):
        raise damaged(path, what, "it was measured on another block, model or text", mend)
    moment = tensors.get("output_moment", torch.zeros(0))
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1] or not moment.isfinite().all():
        raise damaged(path, what, "it holds no square matrix of finite numbers", mend)
    return moment
