"""Second moments of keys: against a sum over single tokens read with torch hooks, and the files they are kept in."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from editing_reference import second_moment

from editing.config import CovarianceConfig
from editing.covariance import measure, second_moments
from interp.model import LanguageModel

LINES = [
    "The area of a square is the side times the side.",
    "A cube.",
    "The perimeter of a rectangle is twice the sum of the length and the width: 12 plus 12.",
    "What is the volume of a cube with side 3? It is 27, of course, and no more than that.",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(LINES), encoding="utf-8")
    return path


def config(corpus: Path, **changes: Any) -> CovarianceConfig:
    return CovarianceConfig(**{"corpus": str(corpus), "tokens": 45, "max_length": 16, "batch_size": 2, **changes})


def expected_rows(model: LanguageModel, tokens: int, max_length: int) -> list[list[int]]:
    """Lines cut to max_length, until so many tokens are there; written out with the tokenizer alone."""
    rows: list[list[int]] = []
    for line in LINES:
        left = tokens - sum(len(row) for row in rows)
        if left > 0:
            rows.append(model.tokenizer(line)["input_ids"][: min(max_length, left)])
    return rows


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "gemma3_text"])
def test_measure_equals_the_mean_over_single_tokens_of_unpadded_texts(
    family: str, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any], corpus: Path, tmp_path: Path
) -> None:
    model, hf = make_model(family), make_hf(family)
    rows = expected_rows(model, 45, 16)
    assert [len(row) for row in rows] == [12, 3, 16, 14]  # whole, whole, cut at max_length, cut at tokens
    got = measure(model, [0, 2], config(corpus), tmp_path / "covariance")
    assert list(got.by_layer) == [0, 2]
    assert (got.tokens, got.model_hash) == (45, model.weight_hash)
    for layer, moment in got.by_layer.items():
        expected = second_moment(hf, model.down_projection(layer).name, rows)
        assert moment.shape == (48, 48)
        assert ((moment.double() - expected).norm() / expected.norm()).item() < 1e-5


@pytest.mark.parametrize(("tokens", "max_length"), [(1, 16), (15, 16), (16, 16), (47, 16), (70, 256)])
def test_measure_runs_exactly_so_many_tokens(
    tokens: int, max_length: int, tiny_llama: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    seen: list[int] = []
    measure(
        tiny_llama,
        [0],
        config(corpus, tokens=tokens, max_length=max_length),
        tmp_path / "covariance",
        advance=seen.append,
    )
    assert sum(seen) == tokens


def test_batch_size_changes_nothing(tiny_llama: LanguageModel, corpus: Path, tmp_path: Path) -> None:
    one = measure(tiny_llama, [1], config(corpus, batch_size=1), tmp_path / "one").by_layer[1]
    four = measure(tiny_llama, [1], config(corpus, batch_size=4), tmp_path / "four").by_layer[1]
    torch.testing.assert_close(one, four, rtol=1e-5, atol=1e-6)


def test_second_moments_does_not_count_padding(tiny_llama: LanguageModel) -> None:
    long, short = tiny_llama.encode(LINES[2]).ids, tiny_llama.encode(LINES[1]).ids
    together, tokens = second_moments(tiny_llama, [0], iter([[long, short]]))
    apart, same = second_moments(tiny_llama, [0], iter([[long], [short]]))
    assert tokens == same == len(long) + len(short)
    torch.testing.assert_close(together[0], apart[0], rtol=1e-5, atol=1e-6)
    assert together[0].dtype == torch.float64


def test_measure_reuses_its_files(tiny_llama: LanguageModel, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "covariance"
    first = measure(tiny_llama, [0], config(corpus), folder)
    (file,) = folder.glob("*/*.safetensors")
    os.utime(file, (1e9, 1e9))
    run: list[int] = []
    again = measure(tiny_llama, [0], config(corpus, batch_size=3), folder, advance=run.append)
    assert not run and torch.equal(again.by_layer[0], first.by_layer[0]) and again.about == first.about
    # One block more: only that one is measured.
    measure(tiny_llama, [0, 1], config(corpus), folder, advance=run.append)
    assert sum(run) == 45 and file.stat().st_mtime == 1e9
    assert sorted(path.name for path in file.parent.iterdir()) == ["layer_0.safetensors", "layer_1.safetensors"]


@pytest.mark.parametrize("change", [{"tokens": 44}, {"max_length": 15}, "text", "weights", "dtype"])
def test_measure_does_not_reuse_files_of_other_settings_texts_or_weights(
    change: Any, make_model: Callable[..., LanguageModel], make_hf: Any, tokenizer: Any, corpus: Path, tmp_path: Path
) -> None:
    folder, settings = tmp_path / "covariance", config(corpus)
    model = make_model("llama")
    measure(model, [0], settings, folder)
    if change == "text":
        corpus.write_text("\n\n".join([*LINES[:3], "The side of a cube is 3, and so on and on."]), encoding="utf-8")
    elif change == "weights":
        model = make_model("llama", seed=1)
    elif change == "dtype":
        model = LanguageModel(make_hf("llama").double(), tokenizer, "double")
    else:
        settings = config(corpus, **change)
    run: list[int] = []
    measure(model, [0], settings, folder, advance=run.append)
    assert sum(run) == settings.tokens
    assert len(list(folder.glob("*/layer_0.safetensors"))) == 2


def test_measure_refuses_a_corpus_that_is_too_short_and_writes_nothing(
    tiny_llama: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    have = sum(len(tiny_llama.tokenizer(line)["input_ids"]) for line in LINES)
    settings = config(corpus, tokens=have + 1, max_length=256)
    with pytest.raises(ValueError, match=rf"corpus\.txt has {have} tokens, covariance\.tokens asks for {have + 1}"):
        measure(tiny_llama, [0], settings, tmp_path / "covariance")
    assert not (tmp_path / "covariance").exists()
    enough = config(corpus, tokens=have, max_length=256)
    assert measure(tiny_llama, [0], enough, tmp_path / "covariance").tokens == have


def test_measure_names_a_missing_corpus(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        measure(tiny_llama, [0], config(tmp_path / "nowhere.txt"), tmp_path / "covariance")
