"""An edit as a LoRA adapter that PEFT loads.

Each update is cut to its largest singular values, ΔW ≈ B A, and written as PEFT writes an adapter.
What is cut off is stated, so that nobody takes the adapter for the edit itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from editing.edits.delta import EditDelta, dense
from editing.edits.protocol import EditError, check_model
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.results.files import atomic

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class Adapter:
    """What was written.

    Attributes:
        rank: Columns of B, for all parameters: an adapter has one rank.
        errors: Parameter → ‖ΔW − B A‖ / ‖ΔW‖.
    """

    rank: int
    errors: Mapping[str, float]


def save_adapter(
    delta: EditDelta,
    model: LanguageModel,
    folder: Path,
    *,
    rank: int | None = None,
    error: float = 0.01,
) -> Adapter:
    """Write a folder that `peft.PeftModel.from_pretrained` loads beside the unedited model.

    Args:
        delta: The edit.
        model: The model that it is for.
        folder: A new folder.
        rank: Rank of the adapter; None: the smallest that keeps every update within `error`.
        error: Largest share of an update's Frobenius norm that may be cut off.

    Raises:
        EditError: The edit is of another model, changes nothing, or `peft` is not installed.
        InputError: The folder is there already, or the rank is below 1.
    """
    check_model(model, delta.model_hash, "delta")
    if folder.exists():
        raise InputError(f"{folder} is there already; give a new folder for the adapter")
    if rank is not None and rank < 1:
        raise InputError(f"the rank of an adapter is {rank}; 1 or more is needed")
    parts = {name: _decomposed(dense(update)) for name, update in delta.updates.items()}
    parts = {name: part for name, part in parts.items() if part[1].numel() and part[1][0] > 0}
    if not parts:
        raise EditError("the edit changes nothing: there is no adapter to write")
    wanted = rank or max(_rank_within(sizes, error) for _, sizes, _ in parts.values())
    tensors: dict[str, Tensor] = {}
    errors: dict[str, float] = {}
    for name, (left, sizes, right) in parts.items():
        key = PREFIX + name.removesuffix(".weight")
        b, a = _padded(left, sizes, right, wanted)
        tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
        errors[name] = _cut_off(sizes, wanted)
    with atomic(folder) as partial:
        partial.mkdir()
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        _write_config(model, list(parts), wanted, partial)
    return Adapter(wanted, errors)


def _decomposed(update: Float[Tensor, "d_out d_in"]) -> tuple[Tensor, Tensor, Tensor]:
    left, sizes, right = torch.linalg.svd(update, full_matrices=False)
    return left, sizes, right


def _cut_off(sizes: Float[Tensor, " size"], rank: int) -> float:
    """Share of the Frobenius norm behind the first singular values."""
    return (sizes[rank:].norm() / sizes.norm()).item()


def _rank_within(sizes: Float[Tensor, " size"], error: float) -> int:
    return next(rank for rank in range(1, len(sizes) + 1) if _cut_off(sizes, rank) <= error)


def _padded(
    left: Tensor, sizes: Tensor, right: Tensor, rank: int
) -> tuple[Float[Tensor, "d_out rank"], Float[Tensor, "rank d_in"]]:
    """B and A, float32, with equal shares of the singular values; zeros where there are fewer."""
    root = sizes[:rank].sqrt()
    b, a = left[:, :rank] * root, root[:, None] * right[:rank]
    missing = rank - len(root)
    b, a = torch.nn.functional.pad(b, (0, missing)), torch.nn.functional.pad(a, (0, 0, 0, missing))
    return b.float().contiguous().cpu(), a.float().contiguous().cpu()


def _write_config(model: LanguageModel, names: list[str], rank: int, folder: Path) -> None:
    try:
        from peft import LoraConfig  # late: it takes seconds, and nothing else needs it
    except ImportError as error:
        raise EditError(
            f"an adapter needs the package peft ({error}): pip install 'peft>=0.21,<1'"
        ) from error
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,  # scaling 1
        lora_dropout=0.0,
        target_modules=[name.removesuffix(".weight") for name in names],
        fan_in_fan_out=model.linear(names[0]).transposed,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.name,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
