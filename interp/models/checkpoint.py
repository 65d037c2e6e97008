"""What a model folder says of itself, looked at before it is loaded, or it is refused.

Files are read without running anything of them. The weights are looked at in
`interp.models.weight_files` and `interp.models.weights`.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from interp.errors import ModelError
from interp.models.refusals import AGAIN, UNQUANTISED, one_line, refusal

NEEDED = "a text model with a decoder only (GPT-2, Llama, Qwen and their kin) is needed"

_POINTER = b"version https://git-lfs.github.com/spec/"
_LARGEST_JSON = 64 * 2**20
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

_MOST_TOKENS = 2**24
"""No vocabulary comes near."""


def check_settings(folder: Path) -> None:
    """Refuse a folder that by its small files cannot be loaded as what it says it is, before a
    loader guesses.

    Raises:
        ModelError: A file is damaged or missing, or the model is quantised or of another kind than
            is needed.
    """
    _check_pointers(folder)
    settings = {name: read_json(folder / name) for name in _SETTINGS if (folder / name).exists()}
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
    if (folder / "tokenizer.json").exists():
        _check_vocabulary(folder, read_json(folder / "tokenizer.json"))


def _check_vocabulary(folder: Path, tokenizer: Any) -> None:
    """Refuse token ids for which the reader in Rust takes more memory than there is, and aborts.

    Raises:
        ModelError: A token id is no number of a token.
    """
    model = tokenizer.get("model") if isinstance(tokenizer, dict) else None
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = vocabulary.values() if isinstance(vocabulary, dict) else ()
    for number in ids:
        if isinstance(number, int) and not 0 <= number < _MOST_TOKENS:
            raise ModelError(
                f"{folder}: tokenizer.json gives a token the number {number}; copy the tokenizer"
                " files of the model into the folder"
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
            refusal(f"{path} cannot be read", "give yourself the right to read it"),
            path.open("rb") as file,
        ):
            if file.read(len(_POINTER)) == _POINTER:
                raise ModelError(
                    f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in"
                    f" {folder}, or {AGAIN}"
                )


def read_json(path: Path) -> dict[str, Any]:
    """Settings of a file.

    Raises:
        ModelError: It cannot be read, is too large, or holds no JSON object.
    """
    with refusal(f"{path} cannot be read", AGAIN):
        if path.stat().st_size > _LARGEST_JSON:
            raise ModelError(
                f"{path} has {path.stat().st_size} bytes, too many for settings; {AGAIN}"
            )
        text = path.read_bytes()
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({one_line(error)}); {AGAIN}") from error
    if not isinstance(settings, dict):
        raise ModelError(
            f"{path} holds a {type(settings).__name__}, where a JSON object is needed; {AGAIN}"
        )
    return settings


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
