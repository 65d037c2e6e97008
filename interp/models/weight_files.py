"""Weights as the files of a model folder have them: names, number formats and shapes.

Only headers of safetensors are read, and pickles of tensors by torch's loader that allows nothing
else.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from interp.errors import ModelError
from interp.models.checkpoint import read_json
from interp.models.refusals import AGAIN, listed, refusal

_LARGEST_HEADER = 100 * 10**6
"""Bytes; the format's own limit."""
_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"
_OTHER_FORMS = frozenset({".gguf", ".h5", ".msgpack", ".pth", ".bin"})


@dataclass(frozen=True)
class Stored:
    """A tensor as a file has it."""

    dtype: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the files that the loader takes, by its name there.

    Raises:
        ModelError: There are no weights, a file is missing or damaged, or a tensor is in two files.
    """
    tensors: dict[str, Stored] = {}
    for path in _weight_files(folder):
        header = _header(path) if path.suffix == ".safetensors" else _pickled(path)
        if twice := tensors.keys() & header.keys():
            raise ModelError(
                f"{folder}: {listed(twice)} is in two weight files, {path.name} and another;"
                f" {AGAIN}"
            )
        tensors |= header
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    for name in (_SAFETENSORS, f"{_SAFETENSORS}.index.json", _PICKLE, f"{_PICKLE}.index.json"):
        if (path := folder / name).is_file():
            return _shards(path) if name.endswith(".index.json") else [path]
    others = [path.name for path in folder.iterdir() if path.suffix in _OTHER_FORMS]
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


def _shards(index: Path) -> list[Path]:
    """The files that an index names: all are there, and in its folder."""
    folder, named = index.parent, read_json(index).get("weight_map")
    names = list(named.values()) if isinstance(named, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{index} names no weight files (weight_map); {AGAIN}")
    shards = sorted(set(names))
    if outside := [
        shard for shard in shards if Path(shard).is_absolute() or ".." in Path(shard).parts
    ]:
        raise ModelError(f"{index} names files outside the folder: {listed(outside)}; {AGAIN}")
    if lost := [shard for shard in shards if not (folder / shard).is_file()]:
        raise ModelError(
            f"{folder} lacks weight files that {index.name} names: {listed(lost)}; {AGAIN}"
        )
    return [folder / shard for shard in shards]


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
            stored = {
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
            OverflowError,
        ) as error:
            raise ModelError(
                f"{damaged}: its header is not that of safetensors; {AGAIN}"
            ) from error
    if size != (needed := 8 + length + end):
        raise ModelError(f"{damaged}: it has {size} bytes, its header needs {needed}; {AGAIN}")
    return stored


def _pickled(path: Path) -> dict[str, Stored]:
    with refusal(f"{path} cannot be read as tensors, and nothing else of a pickle is", AGAIN):
        content = torch.load(path, map_location="meta", weights_only=True)
        if not isinstance(content, Mapping):
            raise ModelError(
                f"{path} holds a {type(content).__name__}, where tensors by name are needed;"
                f" {AGAIN}"
            )
    other = [str(name) for name, value in content.items() if not isinstance(value, torch.Tensor)]
    if other:
        raise ModelError(
            f"{path} holds more than tensors by name ({listed(other)}): save the model's own state,"
            " or use safetensors"
        )
    return {
        str(name): Stored(str(value.dtype).removeprefix("torch."), tuple(value.shape))
        for name, value in content.items()
    }
