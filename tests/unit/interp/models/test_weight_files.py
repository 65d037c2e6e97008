"""Headers of weight files, and vocabularies, that were changed on purpose."""

import json
from pathlib import Path
from typing import Any

import pytest

from interp.errors import ModelError
from interp.models.checkpoint import _check_vocabulary
from interp.models.weight_files import _header


@pytest.mark.parametrize(
    "end", [float("-inf"), float("inf"), float("nan"), "many", None, [], 10**9]
)
def test_an_end_that_is_no_place_in_the_file_is_refused(end: Any, tmp_path: Path) -> None:
    header = {"weight": {"dtype": "F32", "shape": [1], "data_offsets": [0, end]}}
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ModelError, match="is damaged or cut short"):
        _header(path)


def test_a_token_with_an_absurd_number_is_refused(tmp_path: Path) -> None:
    _check_vocabulary(tmp_path, {"model": {"vocab": {"a": 0, "b": 49151}}})
    _check_vocabulary(tmp_path, {"model": {"vocab": [["a", -1.5]]}})  # Unigram: scores
    for number in (2**31, -1):
        with pytest.raises(ModelError, match=f"gives a token the number {number}"):
            _check_vocabulary(tmp_path, {"model": {"vocab": {"a": 0, "b": number}}})
