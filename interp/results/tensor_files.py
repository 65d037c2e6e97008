"""Tensors on the disk: safetensors files whose header holds a JSON object and the checksum of the
whole file.

Every reader of safetensors opens them. The checksum stands at a fixed place near the start, as
metadata, and is the SHA-256 of the file with zeros in that place; it is compared before anything is
made of the file (`read_tensors`).
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from interp.results.checksums import BLOCK, damaged, regular
from interp.results.files import writing

HEADER = "dmle"
"""Key of the metadata that holds the JSON object."""
_START = b'{"__metadata__":{"sha256":"'
_DIGITS = 64
_BEFORE = 8 + len(_START)
"""Bytes before the checksum; the first eight are the header's length."""
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object, whole or not at all, with one tensor at a time on the CPU.

    Args:
        path: The file.
        tensors: By name, on any device.
        header: What JSON can hold.

    Raises:
        WriteError: The disk is full, the folder cannot be written, ….
    """
    # As safetensors orders them: wide types first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    head = _head(order, tensors, json.dumps(dict(header), ensure_ascii=False))
    found = hashlib.sha256(head)
    with writing(path) as file:
        file.write(head)
        for name in order:
            raw = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            for start in range(0, len(raw), BLOCK):
                piece = raw[start : start + BLOCK].data
                found.update(piece)
                file.write(piece)
        file.seek(_BEFORE)
        file.write(found.hexdigest().encode())


def read_tensors(
    path: Path, what: str, *, mend: str | None = None, device: str = "cpu", names: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON object of a file that `write_tensors` wrote.

    Args:
        path: The file.
        what: What it should be, for the error.
        mend: What to do if it is damaged; by default what `interp.results.checksums.remedy` says.
        device: Where the tensors go.
        names: Whether the tensors are read; the object alone otherwise.

    Raises:
        FileNotFoundError: There is nothing.
        DamagedError: It does not hold what was written.
    """
    _check(path, what, mend)
    try:
        with safe_open(path, framework="pt", device=device) as file:
            header = json.loads(file.metadata()[HEADER])
            if not isinstance(header, dict):
                raise ValueError("its header is no JSON object")
            tensors = {name: file.get_tensor(name) for name in file.keys() if names}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(path, what, error, mend) from error
    return tensors, header


def _head(order: list[str], tensors: Mapping[str, Tensor], header: str) -> bytes:
    """Length and header, with zeros in the place of the checksum."""
    entries, at = {}, 0
    for name in order:
        value = tensors[name]
        end = at + value.numel() * value.element_size()
        entries[name] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [at, end],
        }
        at = end
    metadata = {"__metadata__": {"sha256": "0" * _DIGITS, HEADER: header}}
    text = json.dumps({**metadata, **entries}, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    assert text.startswith(_START)
    return len(text).to_bytes(8, "little") + text


def _check(path: Path, what: str, mend: str | None) -> None:
    """Compare the file with its checksum."""
    with regular(path, what, mend) as file:
        try:
            start = file.read(_BEFORE)
            said = file.read(_DIGITS)
            if start[8:] != _START or len(said) != _DIGITS:
                size = os.fstat(file.fileno()).st_size
                reason = (
                    f"its {size} bytes have no checksum: cut short, or not written by this version"
                    " of dmle"
                )
                raise damaged(path, what, reason, mend)
            found = hashlib.sha256(start + b"0" * _DIGITS)
            while block := file.read(BLOCK):
                found.update(block)
        except OSError as error:
            raise damaged(path, what, error.strerror or str(error), mend) from error
    if found.hexdigest().encode() != said:
        raise damaged(path, what, "its content does not fit its checksum", mend)
