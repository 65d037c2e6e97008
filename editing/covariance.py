"""Second moments of keys, C = E[k kᵀ], over plain text: what an edit should leave alone.

All requested blocks are measured in one pass over the corpus, always on the unedited model, accumulated in
float64 from float32 products per batch. A file per block, keyed by everything it depends on.

Source: ROME/MEMIT layer_stats (uncentred, every token counts, special tokens included).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from editing.config import CovarianceConfig
from interp.corpus import paragraphs
from interp.model import LanguageModel
from interp.provenance import fingerprint
from interp.tokens import pad_right


@dataclass(frozen=True)
class Covariances:
    """C of some blocks of one model."""

    by_layer: dict[int, Float[Tensor, "d_mlp d_mlp"]]
    model_hash: str
    tokens: int
    about: dict[str, Any]


def measure(
    model: LanguageModel,
    layers: Sequence[int],
    config: CovarianceConfig,
    folder: Path,
    *,
    advance: Callable[[int], object] = lambda n: None,
) -> Covariances:
    """Load what `folder` has for these settings and measure the rest in one pass.

    Args:
        model: The unedited model.
        layers: Blocks.
        config: Corpus and size.
        folder: Where `layer_<n>.safetensors` files are kept.
        advance: Called with the number of tokens run.

    Raises:
        ValueError: The corpus has fewer tokens than asked for.
    """
    source, texts = paragraphs(config.corpus)
    about = {
        "weights": model.weight_hash,
        "dtype": str(model.dtype),
        "corpus": source.name,
        "corpus_sha256": source.sha256,
        "tokens": config.tokens,
        "max_length": config.max_length,
    }
    key = fingerprint(**about)
    paths = {layer: folder / key / f"layer_{layer}.safetensors" for layer in layers}
    missing = [layer for layer, path in paths.items() if not path.is_file()]
    if missing:
        moments, tokens = second_moments(model, missing, _batches(model, texts, config), advance)
        if tokens < config.tokens:
            raise ValueError(
                f"the corpus {source.name} has {tokens} tokens, covariance.tokens asks for {config.tokens}; "
                "lower it or give a longer text with covariance.corpus"
            )
        for layer, moment in moments.items():
            _save(paths[layer], moment, about)
    return Covariances({layer: _load(path) for layer, path in paths.items()}, model.weight_hash, config.tokens, about)


def second_moments(
    model: LanguageModel,
    layers: Sequence[int],
    batches: Iterator[list[tuple[int, ...]]],
    advance: Callable[[int], object] = lambda n: None,
) -> tuple[dict[int, Float[Tensor, "d_mlp d_mlp"]], int]:
    """Mean of k kᵀ over all tokens of the batches, and the number of tokens."""
    sums: dict[int, Tensor] = {}
    count = 0
    mask = torch.empty(0)

    def accumulate(value: Tensor, hook: Any, layer: int) -> None:
        keys = value[mask.bool()].float()
        product = (keys.T @ keys).double()
        sums[layer] = sums[layer] + product if layer in sums else product

    hooks = [
        (model.key_hook(layer), lambda value, hook, layer=layer: accumulate(value, hook, layer)) for layer in layers
    ]
    for rows in batches:
        ids, mask = pad_right(rows, model.device)
        model.watch(ids, hooks, mask=mask)
        count += int(mask.sum())
        advance(int(mask.sum()))
    return {layer: total / count for layer, total in sums.items()}, count


def _batches(model: LanguageModel, texts: Sequence[str], config: CovarianceConfig) -> Iterator[list[tuple[int, ...]]]:
    """Token rows of at most `max_length`, exactly `tokens` tokens in all if the corpus has them."""
    left = config.tokens
    batch: list[tuple[int, ...]] = []
    for text in texts:
        ids = model.encode(text).ids[: min(config.max_length, left)]
        if ids:
            batch.append(ids)
            left -= len(ids)
        if batch and (left == 0 or len(batch) == config.batch_size):
            yield batch
            batch = []
        if left == 0:
            return
    if batch:
        yield batch


def _save(path: Path, moment: Tensor, about: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    save_file({"second_moment": moment.float().cpu()}, partial, metadata={"dmle": json.dumps(about)})
    partial.replace(path)


def _load(path: Path) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("second_moment")
