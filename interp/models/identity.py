"""What tells one model from another: its weights, and everything else that changes its numbers.

Two models have one identity if the same text gives the same numbers: equal parameters and
persistent buffers (values, shapes and number format), an equal configuration, an equal tokenizer
and equal end tokens. Where they lie, what they are called and how they are run (padding, caches,
attention code) is no part of it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

HASH_LENGTH = 16
"""Hexadecimal digits of an identity: 64 bits."""

# Settings of a configuration that change no logit: names, versions, how a run is made, labels of
# other tasks. The number format is that of the parameters; the tokens that begin and end a text are
# those of tokenizer and generation.
_NO_NUMBERS = frozenset(
    {
        "architectures",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "chunk_size_feed_forward",
        "dtype",
        "eos_token_id",
        "experts_implementation",
        "id2label",
        "label2id",
        "name_or_path",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
    }
)


def settings_digest(config: Any, tokenizer: Any, ends: Iterable[int]) -> str:
    """SHA-256 of what changes a model's numbers beside its tensors: 64 hexadecimal digits.

    Args:
        config: Hugging Face configuration.
        tokenizer: Fast tokenizer; its vocabulary, merges, normaliser, added tokens and what it puts
            around a text count, its present padding and truncation do not.
        ends: Token ids that end a text.
    """
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("padding", "truncation"):  # running a batch may change them
        core.pop(state, None)
    found = {
        "config": _plain(config.to_dict()),
        "tokenizer": core,
        "special": sorted(tokenizer.all_special_ids),
        "ends": sorted(ends),
    }
    return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()


def model_hash(settings: str, tensors: Mapping[str, Tensor]) -> str:
    """The identity: first 16 hexadecimal digits of the SHA-256 of settings and tensors, in the
    order of their names.
    """
    digest = hashlib.sha256(settings.encode())
    for name in sorted(tensors):
        value = tensors[name].detach()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:HASH_LENGTH]


def _plain(value: Any) -> Any:
    """A configuration's value without what changes no number, the same however it was written.

    What is off is left out: a version of the library that knows one more feature says so of every
    old model.
    """
    if isinstance(value, Mapping):
        kept = {
            str(key): _plain(each) for key, each in value.items() if not _is_idle(str(key), each)
        }
        return {key: each for key, each in kept.items() if each != {}}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # 10000.0 of one file is 10000 of another
    return value


def _is_idle(key: str, value: object) -> bool:
    return key.startswith("_") or key in _NO_NUMBERS or value is None or value is False
