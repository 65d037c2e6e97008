"""The weights of a model against its configuration, before it is loaded and after: the model is
the checkpoint, or it is refused.

Loaders fill what a checkpoint lacks with random numbers, leave out what they do not know, and say
so in notices that nobody reads. Here every such difference is an error that names the tensors.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from interp.errors import ModelError
from interp.models.refusals import AGAIN, UNQUANTISED, listed
from interp.models.weight_files import Stored

_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "float64", "float32", "float16", "bfloat16"})
_QUANTISED_NAMES = re.compile(
    r"(qweight|qzeros|g_idx|absmax|quant_map|quant_state|SCB|weight_format|weight_packed"
    r"|weight_shape|_packed|_blocks|scales?|scale_inv|zero_points?|zeros|qscales|B_q|codebooks?)"
    r"(\.|$)|\.quant_state\."
)
# Causal masks and rotary frequencies that old versions of the library stored beside the weights:
# they follow from the configuration. A mask is known by its shape, (1, 1, n, n), and its filler by
# having none.
_OLD_MASK = re.compile(
    r"(^|\.)(attn|attention|self_attention)\.(attention\.)?(bias|causal_mask|masked_bias)$"
)
_OLD_BUFFER = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids|decoder\.version)$")


def check_weights(folder: Path, config: Any, stored: Mapping[str, Stored]) -> None:
    """Refuse weights that are quantised, or of other sizes than the configuration says, before they
    are loaded.

    Raises:
        ModelError: A weight has another number format or shape than is needed, or there are too few
            for the blocks.
    """
    _check_formats(folder, stored)
    blocks = getattr(config.get_text_config(), "num_hidden_layers", None)
    if isinstance(blocks, int) and blocks > len(stored):
        raise ModelError(
            f"{folder}: config.json says {blocks} blocks (num_hidden_layers), the weights are"
            f" {len(stored)} tensors in all; {AGAIN}"
        )
    needed = _shapes(config)
    odd = {
        name: each.shape
        for name, each in stored.items()
        if needed.get(name, each.shape) != each.shape
    }
    if odd:
        name, shape = sorted(odd.items())[0]
        raise ModelError(
            f"{folder}: {len(odd)} weights have another shape than config.json says: {listed(odd)};"
            f" {name} is {shape}, and {needed[name]} is needed. Weights and config.json are of"
            f" different models, or one was changed: {AGAIN}"
        )


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of a configuration's model, which is made without memory for them."""
    try:
        with torch.device("meta"):
            empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:
        # The loader, which makes the model in another way, may do better, and has the last word.
        return {}
    return {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}


def _check_formats(folder: Path, stored: Mapping[str, Stored], names: Iterable[str] = ()) -> None:
    """Refuse weights in a number format that stands for others: what ends in "weight", and
    `names`.
    """
    weights = {
        name: each for name, each in stored.items() if name.endswith("weight") or name in names
    }
    if odd := {name: each.dtype for name, each in weights.items() if each.dtype not in _FLOATS}:
        formats = ", ".join(sorted(set(odd.values())))
        raise ModelError(
            f"{folder} is quantised: {len(odd)} weights are {formats} ({listed(odd)});"
            f" {UNQUANTISED}"
        )


def compare(
    folder: Path, model: Any, report: Mapping[str, Any], stored: Mapping[str, Stored]
) -> None:
    """Refuse a loaded model that is not its checkpoint.

    Args:
        folder: Where it comes from, for the message.
        model: The Hugging Face model as loaded.
        report: The loader's own report.
        stored: The tensors of the files.

    Raises:
        ModelError: Weights are missing, left over, of another shape or another number format, or
            tied in the configuration and different in the file.
    """
    if problems := report["error_msgs"] or report["mismatched_keys"]:
        raise ModelError(
            f"{folder}: the weights do not fit the model: {str(next(iter(problems)))[:200]};"
            f" {AGAIN}"
        )
    missing, left = set(report["missing_keys"]), _left_over(report["unexpected_keys"], stored)
    if missing or left:
        raise ModelError(_misfit(folder, missing, left))
    _check_ties(folder, model)
    _check_formats(folder, stored, dict(model.named_parameters()))


def _left_over(unexpected: Iterable[str], stored: Mapping[str, Stored]) -> set[str]:
    """Names that the model does not have, without those that hold no weights."""
    left = set()
    for name in unexpected:
        shape = stored[name].shape if name in stored else None
        square = (
            shape is not None and len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]
        )
        mask = _OLD_MASK.search(name) and (square or shape == ())
        if not mask and not _OLD_BUFFER.search(name):
            left.add(name)
    return left


def _counted(weights: set[str]) -> str:
    return "1 weight is" if len(weights) == 1 else f"{len(weights)} weights are"


def _misfit(folder: Path, missing: set[str], left: set[str]) -> str:
    """What is wrong with a checkpoint that lacks weights or has others, with the likeliest
    reason.
    """
    parts = []
    if missing:
        parts.append(f"{_counted(missing)} missing ({listed(missing)})")
    if left:
        parts.append(f"{_counted(left)} not of this architecture ({listed(left)})")
    if any(_QUANTISED_NAMES.search(name) for name in left):
        mend = f"It is quantised: {UNQUANTISED}"
    elif missing and left:
        mend = (
            "The weights have other names, or are of another architecture: save them with"
            " save_pretrained()"
        )
    elif missing:
        mend = f"The file is not whole: {AGAIN}, or save the whole model with save_pretrained()"
    else:
        mend = "config.json describes a smaller or another model: save both with save_pretrained()"
    return (
        f"{folder}: the checkpoint is not the model of its config.json: {', and '.join(parts)}."
        f" {mend}"
    )


def _check_ties(folder: Path, model: Any) -> None:
    wanted = model.get_expanded_tied_weights_keys(all_submodels=True)
    apart = [
        f"{name} and {source}"
        for name, source in wanted.items()
        if model.get_parameter_or_buffer(name) is not model.get_parameter_or_buffer(source)
    ]
    if apart:
        raise ModelError(
            f"{folder}: config.json ties {listed(apart)}, but the weights hold other values for the"
            ' two; set "tie_word_embeddings": false in config.json to use both as they are'
        )
