"""What a model folder holds, looked at before it is loaded and after: the model is the checkpoint,
or it is refused.

Loaders fill what a checkpoint lacks with random numbers, leave out what they do not know, and say
so in notices that nobody reads. Here every such difference is an error that names the tensors.
Files are read without running anything of them: JSON, headers of safetensors, and pickles of
tensors by torch's loader that allows nothing else.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from interp.errors import DmleError, ModelError

NEEDED = "a text model with a decoder only (GPT-2, Llama, Qwen and their kin) is needed"
UNQUANTISED = "load the unquantised checkpoint that it was made from"
AGAIN = "download or copy it again"

_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_JSON = 64 * 2**20
_LARGEST_HEADER = 100 * 10**6
"""Bytes; the format's own limit."""
_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
_QUANTISATION = ("quantization_config", "compression_config", "quantization")
_TOKENIZER = re.compile(
    r"tokenizer\.json|.*\.model|.*\.tiktoken|tekken\.json|vocab\..*|.*[-_]vocab\..*|merges\.txt"
    r"|dict\.txt"
)
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
_SHOWN = 3


@dataclass(frozen=True)
class Stored:
    """A tensor as a file has it."""

    dtype: str
    shape: tuple[int, ...]


# -- errors of other people's code ---------------------------------------------------------------


@contextmanager
def told(what: str, mend: str) -> Iterator[None]:
    """Turn whatever a library raises inside the block into one line: what failed, why, and how
    to mend it.
    """
    try:
        yield
    except DmleError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise ModelError(_no_memory(what)) from error
    except ImportError as error:
        raise ModelError(
            f"{what}: {one_line(error)}; install the package that it asks for, or {mend}"
        ) from error
    except (
        Exception
    ) as error:  # libraries raise KeyError, AttributeError, AssertionError and errors of their own
        if "allocate memory" in str(error):
            raise ModelError(_no_memory(what)) from error
        raise ModelError(f"{what}: {one_line(error)}; {mend}") from error


def one_line(error: BaseException, limit: int = 240) -> str:
    """The first sentence of an error, with its kind where the text alone says little."""
    text = " ".join(str(error).split())
    # Library texts go on with advice for its own programmers.
    text = re.split(r"(?<=[a-z0-9)'`\"])[.!?] (?=[A-Z\-(])", text, maxsplit=1)[0].rstrip(". :")
    if len(text) > limit:
        text = text[:limit].rsplit(" ", 1)[0] + " …"
    plain = isinstance(error, (OSError, ValueError, ImportError)) and text
    return text if plain else f"{type(error).__name__}: {text}".rstrip(": ")


def _no_memory(what: str) -> str:
    return (
        f"{what}: there is not enough memory for it; use a smaller type (model.dtype=bfloat16) or a"
        " smaller model"
    )


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


# -- before loading ------------------------------------------------------------------------------


def check_settings(folder: Path) -> None:
    """Refuse a folder that by its small files cannot be loaded as what it says it is, before a
    loader guesses.

    Raises:
        ModelError: A file is damaged or missing, or the model is quantised or of another kind than
            is needed.
    """
    _check_pointers(folder)
    settings = {name: _read_json(folder / name) for name in _SETTINGS if (folder / name).exists()}
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter (adapter_config.json), which is no model of its own: merge"
            " it into its base model with merge_and_unload() of peft, save that, and load the"
            " result"
        )
    check_quantisation(folder, settings["config.json"])
    _check_kind(folder, settings["config.json"])
    if not any(_TOKENIZER.fullmatch(path.name) for path in folder.iterdir()):
        raise ModelError(
            f"{folder} has no tokenizer (tokenizer.json); copy the tokenizer files of the model"
            " into the folder"
        )


def check_quantisation(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse quantised models by what their configuration says, whoever knows the method.

    Raises:
        ModelError: There are settings of a quantisation.
    """
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in _QUANTISATION:
            if not (settings := part.get(key)):
                continue
            method = (
                settings.get("quant_method") or settings.get("method")
                if isinstance(settings, dict)
                else None
            )
            method = method or ("bitsandbytes" if "load_in_" in str(settings) else "unknown method")
            raise ModelError(
                f"{folder} is quantised ({key} in config.json: {method}); {UNQUANTISED}"
            )


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ModelError(
            f"{folder}: config.json names no model_type, so the architecture is not known; {NEEDED}"
        )
    if kind not in CONFIG_MAPPING_NAMES:
        own = (
            " and would need code from the folder, which is never run"
            if config.get("auto_map")
            else ""
        )
        raise ModelError(
            f"{folder}: model_type {kind!r} is unknown to transformers"
            f" {transformers.__version__}{own}: it is newer, misspelt, or not part of the library;"
            " use a newer transformers, or another model"
        )
    if (
        config.get("is_encoder_decoder")
        or kind in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    ):
        what = "an encoder-decoder"
    elif kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        what = "an encoder"
    elif kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return
    elif kind in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        what = "a vision-language model"
    else:
        what = "no language model"
    raise ModelError(f"{folder}: model_type {kind!r} is {what}; {NEEDED}")


def _check_pointers(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if not path.is_file():
            continue
        with (
            told(f"{path} cannot be read", "give yourself the right to read it"),
            path.open("rb") as file,
        ):
            if file.read(len(_POINTER)) == _POINTER:
                raise ModelError(
                    f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in"
                    f" {folder}, or {AGAIN}"
                )


def _read_json(path: Path) -> dict[str, Any]:
    with told(f"{path} cannot be read", AGAIN):
        if path.stat().st_size > _LARGEST_JSON:
            raise ModelError(
                f"{path} has {path.stat().st_size} bytes, too many for settings; {AGAIN}"
            )
        text = path.read_bytes()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({one_line(error)}); {AGAIN}") from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{path} holds a {type(found).__name__}, where a JSON object is needed; {AGAIN}"
        )
    return found


def check_tokenizer(folder: Path, tokenizer: Any, rows: int) -> None:
    """Refuse a tokenizer that is empty or of another model.

    Args:
        folder: Where it comes from, for the message.
        tokenizer: The tokenizer as loaded. Tokens that were added to its vocabulary may lie beyond
            the model's: many have such for padding or images, which no text is made of.
        rows: Tokens that the model has embeddings for.

    Raises:
        ModelError: It makes no tokens of a word, or tokens that the model has no embeddings for.
    """
    mend = "copy the tokenizer files of the model into the folder"
    if tokenizer.vocab_size > rows:
        raise ModelError(
            f"{folder}: its tokenizer has {tokenizer.vocab_size} tokens, the model embeddings for"
            f" {rows}: it is of another model; {mend}"
        )
    if not tokenizer("area", add_special_tokens=False)["input_ids"]:
        raise ModelError(
            f"{folder}: its tokenizer has no vocabulary ({len(tokenizer)} tokens); {mend}"
        )


# -- weights as stored ---------------------------------------------------------------------------


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the files that the loader takes, by its name there.

    Raises:
        ModelError: There are no weights, a file is missing or damaged, or a tensor is in two files.
    """
    found: dict[str, Stored] = {}
    for path in _weight_files(folder):
        header = _header(path) if path.suffix == ".safetensors" else _pickled(path)
        if twice := found.keys() & header.keys():
            raise ModelError(
                f"{folder}: {listed(twice)} is in two weight files, {path.name} and another;"
                f" {AGAIN}"
            )
        found |= header
    return found


def _weight_files(folder: Path) -> list[Path]:
    for name in (_SAFETENSORS, f"{_SAFETENSORS}.index.json", _PICKLE, f"{_PICKLE}.index.json"):
        if not (path := folder / name).is_file():
            continue
        if not name.endswith(".index.json"):
            return [path]
        named = _read_json(path).get("weight_map")
        if (
            not isinstance(named, dict)
            or not named
            or not all(isinstance(shard, str) for shard in named.values())
        ):
            raise ModelError(f"{path} names no weight files (weight_map); {AGAIN}")
        shards = sorted(set(named.values()))
        if outside := [
            shard for shard in shards if Path(shard).is_absolute() or ".." in Path(shard).parts
        ]:
            raise ModelError(f"{path} names files outside the folder: {listed(outside)}; {AGAIN}")
        if lost := [shard for shard in shards if not (folder / shard).is_file()]:
            raise ModelError(
                f"{folder} lacks weight files that {name} names: {listed(lost)}; {AGAIN}"
            )
        return [folder / shard for shard in shards]
    others = [
        path.name
        for path in folder.iterdir()
        if path.suffix in {".gguf", ".h5", ".msgpack", ".pth", ".bin"}
    ]
    others += [path.name for path in folder.glob("*.safetensors")]
    seen = (
        f"; what lies there ({listed(others)}) is in another form or under another name"
        if others
        else ""
    )
    raise ModelError(
        f"cannot load model {folder}: it has no weights ({_SAFETENSORS} or its shards){seen};"
        f" {AGAIN}"
    )


def _header(path: Path) -> dict[str, Stored]:
    """Names, number formats and shapes in the header of a safetensors file, whose length must be
    right.
    """
    damaged = f"{path} is damaged or cut short"
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise ModelError(f"{damaged}: {size} bytes do not hold the header; {AGAIN}")
        try:
            header = json.loads(file.read(length))
            tensors = {name: each for name, each in header.items() if name != "__metadata__"}
            found = {
                name: Stored(str(each["dtype"]), tuple(each["shape"]))
                for name, each in tensors.items()
            }
            end = max((int(each["data_offsets"][1]) for each in tensors.values()), default=0)
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            RecursionError,
        ) as error:
            raise ModelError(
                f"{damaged}: its header is not that of safetensors; {AGAIN}"
            ) from error
    if size != (needed := 8 + length + end):
        raise ModelError(f"{damaged}: it has {size} bytes, its header needs {needed}; {AGAIN}")
    return found


def _pickled(path: Path) -> dict[str, Stored]:
    with told(f"{path} cannot be read as tensors, and nothing else of a pickle is", AGAIN):
        held = torch.load(path, map_location="meta", weights_only=True)
        if not isinstance(held, Mapping):
            raise ModelError(
                f"{path} holds a {type(held).__name__}, where tensors by name are needed; {AGAIN}"
            )
    other = [str(name) for name, value in held.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise ModelError(
            f"{path} holds more than tensors by name ({listed(other)}): save the model's own state,"
            " or use safetensors"
        )
    return {
        str(n): Stored(str(v.dtype).removeprefix("torch."), tuple(v.shape)) for n, v in held.items()
    }


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


# -- after loading -------------------------------------------------------------------------------


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
