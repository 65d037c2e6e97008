"""Second moments of keys: against a sum over single tokens read with torch hooks, and the files
they are kept in."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from editing.closed_form import covariance, moments
from editing.closed_form.covariance import Covariances, measure
from editing.closed_form.moments import ledoit_wolf, second_moments
from editing.config import CovarianceConfig
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from interp.errors import InputError
from interp.models.loading import LanguageModel
from tests.unit.editing_reference import inputs_of, projection_of, second_moment

LINES = [
    "The area of a square is the side times the side.",
    "A cube.",
    "The perimeter of a rectangle is twice the sum of the length and the width: 12 plus 12.",
    "What is the volume of a cube with side 3? It is 27, of course, and no more than that.",
]
# Enough tokens for d_mlp = 48 to be well determined at half of them; texts of several lengths, no
# two of which start alike (equal starts have equal keys).
MANY = [
    f"{chr(65 + i)} {i * i % 97} is {'the side of a cube, and not ' * (i % 3)}{31 * i % 83}."
    for i in range(40)
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(LINES), encoding="utf-8")
    return path


@pytest.fixture
def long_corpus(tmp_path: Path) -> Path:
    path = tmp_path / "long.txt"
    path.write_text("\n".join(MANY), encoding="utf-8")
    return path


@pytest.fixture
def save_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running sums are saved after every batch."""
    monkeypatch.setattr(moments, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(moments, "CHECKPOINT_SHARE", 0)


def config(corpus: Path | str, **changes: Any) -> CovarianceConfig:
    small: dict[str, Any] = {"corpus": str(corpus), "tokens": 45, "max_length": 16, "batch_size": 2}
    return CovarianceConfig(**(small | changes))


def long_config(corpus: Path, **changes: Any) -> CovarianceConfig:
    return config(corpus, **{"tokens": 400, "max_length": 20, **changes})


def keys_of(hf: Any, model: LanguageModel, layer: int, row: list[int]) -> Tensor:
    return inputs_of(hf, projection_of(hf, model.down_projection(layer).name), torch.tensor([row]))


def error_of(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected).norm() / expected.norm()).item()


def expected_rows(
    model: LanguageModel, tokens: int, max_length: int, lines: list[str] | None = None
) -> list[list[int]]:
    """Lines cut to max_length, until so many tokens are there; written out with the tokenizer
    alone."""
    rows: list[list[int]] = []
    for line in lines or LINES:
        left = tokens - sum(len(row) for row in rows)
        if left > 0:
            rows.append(model.tokenizer(line)["input_ids"][: min(max_length, left)])
    return rows


# Products of 20 columns: 48 are two whole pieces and one that is not.
@pytest.mark.parametrize("columns", [20, 192])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "gemma3_text"])
def test_measure_equals_the_mean_over_single_tokens_of_unpadded_texts(
    family: str,
    columns: int,
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(moments, "COLUMNS", columns)
    model, hf = make_model(family), make_hf(family)
    rows = expected_rows(model, 45, 16)
    assert [len(row) for row in rows] == [
        12,
        3,
        16,
        14,
    ]  # whole, whole, cut at max_length, cut at tokens
    got = measure(model, [0, 2], config(corpus), tmp_path / "covariance")
    assert list(got.by_layer) == [0, 2]
    assert (got.tokens, got.model_hash) == (45, model.weight_hash)
    for layer, moment in got.by_layer.items():
        expected = second_moment(hf, model.down_projection(layer).name, rows)
        assert moment.shape == (48, 48) and moment.dtype == torch.float32
        assert error_of(moment, expected) < 1e-5
        assert torch.equal(moment, moment.T)


@pytest.mark.parametrize(
    ("tokens", "max_length"), [(1, 16), (15, 16), (16, 16), (47, 16), (70, 256)]
)
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


def test_batch_size_changes_nothing(
    tiny_llama: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    one = measure(tiny_llama, [1], config(corpus, batch_size=1), tmp_path / "one").by_layer[1]
    four = measure(tiny_llama, [1], config(corpus, batch_size=4), tmp_path / "four").by_layer[1]
    torch.testing.assert_close(one, four, rtol=1e-5, atol=1e-6)


def test_second_moments_does_not_count_padding(tiny_llama: LanguageModel) -> None:
    long, short = tiny_llama.encode(LINES[2]).ids, tiny_llama.encode(LINES[1]).ids
    together = second_moments(tiny_llama, [0], [long, long, short], together=1000)[0]
    apart = second_moments(tiny_llama, [0], [long, long, short], together=1)[0]
    torch.testing.assert_close(together.second, apart.second, rtol=1e-5, atol=1e-6)
    assert together.fourth == pytest.approx(apart.fourth, rel=1e-6)
    assert together.second.dtype == torch.float64


def test_measure_reuses_its_files(tiny_llama: LanguageModel, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "covariance"
    first = measure(tiny_llama, [0], config(corpus), folder)
    (file,) = folder.glob("*/*.safetensors")
    os.utime(file, (1e9, 1e9))
    run: list[int] = []
    again = measure(tiny_llama, [0], config(corpus, batch_size=3), folder, advance=run.append)
    assert (
        not run and torch.equal(again.by_layer[0], first.by_layer[0]) and again.about == first.about
    )
    # One block more: only that one is measured.
    measure(tiny_llama, [0, 1], config(corpus), folder, advance=run.append)
    assert sum(run) == 45 and file.stat().st_mtime == 1e9
    assert sorted(path.name for path in file.parent.iterdir()) == [
        "layer_0.safetensors",
        "layer_1.safetensors",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 44},
        {"max_length": 15},
        {"skip_first": True, "tokens": 41},
        "text",
        "weights",
        "dtype",
    ],
)
def test_measure_does_not_reuse_files_of_other_settings_texts_or_weights(
    change: Any,
    make_model: Callable[..., LanguageModel],
    make_hf: Any,
    tokenizer: Any,
    corpus: Path,
    tmp_path: Path,
) -> None:
    folder, settings = tmp_path / "covariance", config(corpus)
    model = make_model("llama")
    measure(model, [0], settings, folder)
    if change == "text":
        corpus.write_text(
            "\n\n".join([*LINES[:3], "The side of a cube is 3, and so on and on."]),
            encoding="utf-8",
        )
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
    with pytest.raises(
        ValueError, match=rf"corpus\.txt has {have} tokens, covariance\.tokens asks for {have + 1}"
    ):
        measure(tiny_llama, [0], settings, tmp_path / "covariance")
    assert not (tmp_path / "covariance").exists()
    enough = config(corpus, tokens=have, max_length=256)
    assert measure(tiny_llama, [0], enough, tmp_path / "covariance").tokens == have


def test_measure_names_a_missing_corpus(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        measure(tiny_llama, [0], config(tmp_path / "nowhere.txt"), tmp_path / "covariance")


def test_measure_names_a_block_that_the_model_does_not_have(
    tiny_llama: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"no blocks \[3, -1\] in tiny-llama: it has 3"):
        measure(tiny_llama, [0, 3, -1], config(corpus), tmp_path / "covariance")


def test_one_pass_serves_all_blocks_and_ends_at_the_last_of_them(
    make_model: Callable[..., LanguageModel], corpus: Path, tmp_path: Path
) -> None:
    model = make_model("llama")
    runs = [0, 0, 0]
    for layer in range(3):

        def count(module: Any, args: Any, out: Any, layer: int = layer) -> None:
            runs[layer] += 1

        model.bridge.blocks[layer].original_component.register_forward_hook(count)
    # 12, 3 | 16, 14 tokens; the first three have half of the tokens, and no more than 2 × 16 run
    # together.
    measure(model, [1, 0, 1], config(corpus), tmp_path / "covariance")
    assert runs == [3, 3, 0]


def test_skip_first_leaves_the_first_token_of_each_text_out(
    make_pair: Callable[..., Any],
    corpus: Path,
    tmp_path: Path,
) -> None:
    model, hf = make_pair("llama")
    rows = [model.tokenizer(line)["input_ids"] for line in LINES]
    # 41 tokens in the mean: 11, 2, 15 (cut at 16) and 13 more.
    rows = [rows[0], rows[1], rows[2][:16], rows[3][:14]]
    assert sum(len(row) - 1 for row in rows) == 41
    seen: list[int] = []
    got = measure(
        model,
        [1],
        config(corpus, tokens=41, skip_first=True),
        tmp_path / "covariance",
        advance=seen.append,
    )
    keys = torch.cat([keys_of(hf, model, 1, row)[1:] for row in rows]).double()
    assert error_of(got.by_layer[1], keys.T @ keys / 41) < 1e-5
    assert (got.tokens, sum(seen), got.about["skip_first"]) == (41, 41, True)


def test_a_token_that_the_tokenizer_puts_before_texts_counts_and_makes_other_files(
    make_hf: Callable[..., Any], tokenizer: Any, corpus: Path, tmp_path: Path
) -> None:
    again = PreTrainedTokenizerFast.from_pretrained(_saved(tokenizer, tmp_path / "tokenizer"))
    again.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 0)]
    )
    plain, with_bos = (LanguageModel(make_hf("llama"), t, "tiny") for t in (tokenizer, again))
    assert plain.weight_hash != with_bos.weight_hash and with_bos.encode("A").ids[0] == 0
    folder = tmp_path / "covariance"
    without, got = (measure(model, [0], config(corpus), folder) for model in (plain, with_bos))
    assert (without.about["added_tokens"], got.about["added_tokens"]) == ([], [0])
    assert len(list(folder.glob("*/layer_0.safetensors"))) == 2
    hf = make_hf("llama")
    expected = second_moment(hf, with_bos.down_projection(0).name, expected_rows(with_bos, 45, 16))
    assert error_of(got.by_layer[0], expected) < 1e-5


def _saved(tokenizer: Any, folder: Path) -> str:
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_keys_that_are_not_finite_are_refused(
    make_hf: Callable[..., Any], tokenizer: Any, corpus: Path, tmp_path: Path
) -> None:
    hf = make_hf("llama")
    with torch.no_grad():
        hf.model.layers[0].mlp.down_proj.weight[0, 0] = float("nan")
    model = LanguageModel(hf, tokenizer, "tiny-llama", check=False)
    with pytest.raises(
        ValueError, match=r"keys of block 1 of tiny-llama are not finite: 1 of its parameters hold"
    ):
        measure(model, [0, 1], config(corpus), tmp_path / "covariance")
    assert not list((tmp_path / "covariance").glob("*/layer_*"))


def test_a_damaged_file_says_what_to_do(
    tiny_llama: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    measure(tiny_llama, [0], config(corpus), tmp_path)
    (file,) = tmp_path.glob("*/layer_0.safetensors")
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(
        ValueError,
        match=(
            r"layer_0\.safetensors is not a readable covariance: .*; delete it to measure it anew"
        ),
    ):
        measure(tiny_llama, [0], config(corpus), tmp_path)


# -- interruptions -------------------------------------------------------------------------------


class Stop:
    """An `advance` that is interrupted at its n-th call."""

    def __init__(self, n: int) -> None:
        self.n, self.seen = n, [0]

    def __call__(self, tokens: int) -> None:
        if self.n == len(self.seen):
            raise KeyboardInterrupt
        self.seen.append(tokens)


def files_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/*"))


@pytest.mark.parametrize("batch", [2, 4, 6, 8, 9])
@pytest.mark.usefixtures("save_always")
def test_an_interrupted_measurement_goes_on_with_the_same_result(
    batch: int, tiny_llama: LanguageModel, long_corpus: Path, tmp_path: Path
) -> None:
    whole: list[int] = []
    expected = measure(
        tiny_llama, [0, 2], long_config(long_corpus), tmp_path / "whole", advance=whole.append
    )
    assert len(whole) > 9 and expected.convergence[0] is not None
    folder = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        measure(tiny_llama, [0, 2], long_config(long_corpus), folder, advance=Stop(batch))
    assert files_of(folder) == ["unfinished.safetensors"]
    resumed: list[int] = []
    got = measure(tiny_llama, [0, 2], long_config(long_corpus), folder, advance=resumed.append)
    # The batch during which it was interrupted runs again, those before it do not.
    assert resumed == [sum(whole[: batch - 1]), *whole[batch - 1 :]]
    assert all(torch.equal(got.by_layer[layer], expected.by_layer[layer]) for layer in (0, 2))
    assert got.about == expected.about and got.convergence == expected.convergence
    assert files_of(folder) == ["layer_0.safetensors", "layer_2.safetensors"]


@pytest.mark.usefixtures("save_always")
def test_an_interruption_inside_a_batch_or_while_saving_leaves_nothing_half(
    tiny_llama: LanguageModel, long_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = measure(tiny_llama, [0, 1], long_config(long_corpus), tmp_path / "whole")
    folder, calls = tmp_path / "interrupted", [0]
    add, to_disk = moments._Sums._add, os.fsync

    def interrupted_add(sums: Any, layer: int, keys: Tensor) -> None:
        calls[0] += 1
        if calls[0] == 6:  # the second block in the third batch: the first has the batch already
            raise KeyboardInterrupt
        add(sums, layer, keys)

    monkeypatch.setattr(moments._Sums, "_add", interrupted_add)
    with pytest.raises(KeyboardInterrupt):
        measure(tiny_llama, [0, 1], long_config(long_corpus), folder)
    assert files_of(folder) == ["unfinished.safetensors"]

    def interrupted_write(file: int) -> None:
        raise KeyboardInterrupt

    before = next(folder.glob("*/unfinished.safetensors")).read_bytes()
    monkeypatch.setattr(os, "fsync", interrupted_write)
    with pytest.raises(KeyboardInterrupt):
        measure(tiny_llama, [0, 1], long_config(long_corpus), folder)
    assert files_of(folder) == ["unfinished.safetensors"]
    assert next(folder.glob("*/unfinished.safetensors")).read_bytes() == before
    monkeypatch.setattr(os, "fsync", to_disk)
    got = measure(tiny_llama, [0, 1], long_config(long_corpus), folder)
    assert all(torch.equal(got.by_layer[layer], expected.by_layer[layer]) for layer in (0, 1))


@pytest.mark.parametrize(
    ("layers", "changes", "goes_on"),
    [
        ([1], {}, True),
        ([0, 1, 2], {}, False),
        ([0, 1], {"batch_size": 3}, False),
        ([0, 1], "damaged", False),
    ],
)
@pytest.mark.usefixtures("save_always")
def test_running_sums_serve_only_what_they_fit(
    layers: list[int],
    changes: Any,
    goes_on: bool,
    tiny_llama: LanguageModel,
    long_corpus: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure(tiny_llama, [0, 1], long_config(long_corpus), tmp_path, advance=Stop(4))
    (file,) = tmp_path.glob("*/unfinished.safetensors")
    if changes == "damaged":
        file.write_bytes(file.read_bytes()[:1000])
        changes = {}
    got: list[int] = []
    moments = measure(
        tiny_llama, layers, long_config(long_corpus, **changes), tmp_path, advance=got.append
    )
    plain: list[int] = []
    expected = measure(
        tiny_llama,
        layers,
        long_config(long_corpus, **changes),
        tmp_path / "plain",
        advance=plain.append,
    )
    assert got == ([sum(plain[:3]), *plain[3:]] if goes_on else plain)
    assert all(torch.equal(moments.by_layer[layer], expected.by_layer[layer]) for layer in layers)
    assert not file.exists()


def test_short_measurements_save_no_running_sums(
    tiny_llama: LanguageModel, long_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        measure(tiny_llama, [0], long_config(long_corpus), tmp_path / "covariance", advance=Stop(5))
    assert not (tmp_path / "covariance").exists()


# -- shrinkage, identity -------------------------------------------------------------------------


def slow_ledoit_wolf_share(samples: Tensor) -> float:
    """scikit-learn's `ledoit_wolf_shrinkage(X, assume_centered=True)`, written out entry by
    entry."""
    n, d = samples.shape
    squares = samples**2
    trace = (squares.sum(0) / n).sum().item()
    mu = trace / d
    beta = sum((squares[:, i] @ squares[:, j]).item() for i in range(d) for j in range(d))
    delta = (
        sum((samples[:, i] @ samples[:, j]).item() ** 2 for i in range(d) for j in range(d)) / n**2
    )
    beta = 1.0 / (d * n) * (beta / n - delta)
    delta = (delta - 2.0 * mu * trace + d * mu**2) / d
    return min(beta, delta) / delta


@pytest.mark.parametrize("tokens", [45, 12])
def test_ledoit_wolf_shrinks_by_the_share_that_the_samples_give(
    tokens: int,
    make_pair: Callable[..., Any],
    corpus: Path,
    tmp_path: Path,
) -> None:
    model, hf = make_pair("llama")
    got = measure(
        model, [1], config(corpus, tokens=tokens, shrinkage="ledoit-wolf"), tmp_path / "covariance"
    )
    keys = torch.cat(
        [keys_of(hf, model, 1, row) for row in expected_rows(model, tokens, 16)]
    ).double()
    share = slow_ledoit_wolf_share(keys)
    assert 0.01 < share < 1
    assert got.about["shrinkage"] == "ledoit-wolf"
    assert got.about["shrinkage_shares"] == {"1": pytest.approx(share, rel=1e-4)}
    moment = keys.T @ keys / tokens
    expected = (1 - share) * moment + share * moment.trace() / 48 * torch.eye(48)
    assert error_of(got.by_layer[1], expected) < 1e-5


def test_ledoit_wolf_stays_a_share() -> None:
    generator = torch.Generator().manual_seed(0)
    for samples in (
        torch.randn(500, 6, generator=generator),
        torch.randn(2, 6, generator=generator),
    ):
        second, fourth = (
            samples.T @ samples / len(samples),
            samples.square().sum(1).square().mean().item(),
        )
        expected = slow_ledoit_wolf_share(samples.double())
        assert ledoit_wolf(second, fourth, len(samples)) == pytest.approx(expected, rel=1e-5)
    assert ledoit_wolf(torch.eye(6), 36.0, 10) == 0  # exactly a multiple of the identity
    assert ledoit_wolf(torch.diag(torch.tensor([1.0, 1.1])), 50.0, 10) == 1


def test_one_measurement_serves_all_shrinkages(
    tiny_llama: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    run: list[int] = []
    plain = measure(tiny_llama, [1], config(corpus), tmp_path / "covariance").by_layer[1].double()
    for share in (0.0, 0.25, 1.0):
        got = measure(
            tiny_llama,
            [1],
            config(corpus, shrinkage=share),
            tmp_path / "covariance",
            advance=run.append,
        )
        expected = (1 - share) * plain + share * plain.trace() / 48 * torch.eye(48)
        assert error_of(got.by_layer[1], expected) < 1e-6
        assert got.about["shrinkage_shares"] == {"1": share}
    measure(
        tiny_llama,
        [1],
        config(corpus, shrinkage="ledoit-wolf"),
        tmp_path / "covariance",
        advance=run.append,
    )
    assert not run
    # 45 tokens leave C singular; shrinkage mends that.
    with pytest.raises(
        ValueError, match=r"block 1: the covariance .* --set covariance\.shrinkage=ledoit-wolf"
    ):
        measure(tiny_llama, [1], config(corpus), tmp_path / "covariance").factor(1)
    assert (
        measure(tiny_llama, [1], config(corpus, shrinkage=0.1), tmp_path / "covariance")
        .factor(1)
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_shrinkage_that_is_no_share_is_refused_before_any_work(
    share: float, tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"covariance\.shrinkage is {share}: a share from 0 "):
        measure(
            tiny_llama,
            [0],
            config(tmp_path / "nowhere.txt", shrinkage=share),
            tmp_path / "covariance",
        )


def test_identity_takes_no_pass_and_no_corpus(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    run: list[int] = []
    settings = config(tmp_path / "nowhere.txt", identity=True)
    got = measure(tiny_llama, [0, 2], settings, tmp_path / "covariance", advance=run.append)
    assert list(got.by_layer) == [0, 2] and all(
        torch.equal(c, torch.eye(48)) for c in got.by_layer.values()
    )
    assert not run and not (tmp_path / "covariance").exists()
    assert (
        got.about["identity"] is True
        and got.tokens == 0
        and got.model_hash == tiny_llama.weight_hash
    )
    assert torch.equal(got.factor(0), torch.eye(48, dtype=torch.float64))


# -- convergence ---------------------------------------------------------------------------------


def test_convergence_is_the_change_of_the_solutions_from_half_to_all_tokens(
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    long_corpus: Path,
    tmp_path: Path,
) -> None:
    model, hf = make_model("llama"), make_hf("llama")
    rows = expected_rows(model, 400, 20, MANY)
    half = next(n for n in range(len(rows)) if sum(len(row) for row in rows[:n]) >= 200)
    assert 4 < half < len(rows) - 4
    got = measure(model, [0, 2], long_config(long_corpus), tmp_path / "covariance")
    for layer in (0, 2):
        keys = [keys_of(hf, model, layer, row).double() for row in rows]
        fixed = torch.stack([k[-1] for k in keys[: min(16, half)]]).T
        some, all_ = torch.cat(keys[:half]), torch.cat(keys)
        a = torch.linalg.solve(some.T @ some / len(some), fixed)
        b = torch.linalg.solve(all_.T @ all_ / len(all_), fixed)
        expected = ((a - b).norm() / b.norm()).item()
        assert got.convergence[layer] == pytest.approx(expected, rel=1e-2)
    assert got.about["convergence"] == {
        str(layer): change for layer, change in got.convergence.items()
    }
    assert got.about["convergence_from_tokens"] == sum(len(row) for row in rows[:half])
    json.dumps(got.about)
    # Kept in the files, and the same whatever ran together.
    assert (
        measure(model, [0, 2], long_config(long_corpus), tmp_path / "covariance").convergence
        == got.convergence
    )
    other = measure(
        model, [0, 2], long_config(long_corpus, batch_size=5), tmp_path / "other"
    ).convergence
    assert other == {
        layer: pytest.approx(change, rel=1e-2) for layer, change in got.convergence.items()
    }


def test_convergence_is_none_where_half_of_the_tokens_leave_it_singular(
    tiny_llama: LanguageModel, corpus: Path, long_corpus: Path, tmp_path: Path
) -> None:
    few = measure(tiny_llama, [0], config(corpus, tokens=60, max_length=256), tmp_path / "few")
    assert few.convergence == {0: None} and few.about["convergence"] == {"0": None}
    one_text = measure(tiny_llama, [0], config(corpus, tokens=10), tmp_path / "one")
    assert one_text.convergence == {0: None}


# -- what editors compute ------------------------------------------------------------------------


@pytest.fixture
def known() -> Covariances:
    """C of blocks 1 and 4 with known eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    values = torch.tensor([8.0, 3.0, 0.6, 0.3, 0.05, 0.05], dtype=torch.float64)
    first = (basis * values) @ basis.T
    return Covariances({1: first.float(), 4: 2 * first.float()}, "0" * 16, 10, {"corpus": "here"})


def test_factor_is_computed_once_per_block(
    known: Covariances, monkeypatch: pytest.MonkeyPatch
) -> None:
    for layer in (1, 4):
        factor = known.factor(layer)
        assert factor.dtype == torch.float64 and torch.equal(factor, factor.tril())
        assert error_of(factor @ factor.T, known.by_layer[layer].double()) < 1e-12
    monkeypatch.setattr(covariance, "factorise", lambda c: pytest.fail("computed again"))
    assert known.factor(4) is known.factor(4) and known.factor(1) is not known.factor(4)
    with pytest.raises(pytest.fail.Exception):
        Covariances(known.by_layer, "", 10, {}).factor(1)


def test_whitened_keys_have_the_identity_as_second_moment(known: Covariances) -> None:
    for layer in (1, 4):
        whitening = known.whitening(layer)
        moment = whitening @ known.by_layer[layer].double() @ whitening.T
        assert (moment - torch.eye(len(moment), dtype=torch.float64)).abs().max() < 1e-9
        assert known.whitening(layer) is whitening


@pytest.mark.parametrize(
    ("layer", "threshold", "relative", "rank"),
    [
        (1, 0.1, False, 2),
        (4, 0.05, False, 0),
        (4, 0.11, False, 2),
        (1, 0.2, True, 3),
        (4, 0.2, True, 3),
        (1, 9.0, False, 6),
    ],
)
def test_null_space_projects_on_small_singular_values(
    layer: int, threshold: float, relative: bool, rank: int, known: Covariances
) -> None:
    # The mean eigenvalue of block 1 is 2, of block 4 it is 4.
    u = torch.linalg.svd(known.by_layer[layer].double())[0]
    got = known.null_space(layer, threshold, relative)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, u[:, 6 - rank :] @ u[:, 6 - rank :].T, rtol=0, atol=1e-9)


def test_null_space_decomposes_a_block_once(
    known: Covariances, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda c: runs.append(1) or eigh(c))
    assert known.null_space(1, 0.1, False) is known.null_space(1, 0.1, False)
    assert known.null_space(1, 0.1, True) is not known.null_space(1, 0.1, False)
    assert known.null_space(1, 1.0, False) is not known.null_space(1, 0.1, False)
    assert len(runs) == 1
    known.null_space(4, 0.1, False)
    assert len(runs) == 2


def test_a_block_that_was_not_measured_is_named_with_those_that_were(known: Covariances) -> None:
    for ask in (known.moment, known.factor, lambda layer: known.null_space(layer, 0.02, False)):
        with pytest.raises(
            InputError, match=r"no covariance of block 2: there are those of 1, 4\. Measure it"
        ):
            ask(2)


# -- Hugging Face datasets -----------------------------------------------------------------------


def write_dataset(
    folder: Path, lines: list[str], split: str = "train", column: str = "text"
) -> str:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps({column: line}) + "\n" for line in lines)
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return f"hf:{folder}"


def test_a_dataset_is_read_as_its_texts_in_a_file(
    tiny_llama: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    pytest.importorskip("datasets")
    name = write_dataset(tmp_path / "texts", [LINES[0], "", f" {LINES[1]}\n", *LINES[2:]])
    folder = tmp_path / "covariance"
    expected = measure(tiny_llama, [0], config(corpus), folder).by_layer[0]
    for given in (name, f"{name}@default"):
        got = measure(tiny_llama, [0], config(given), folder)
        assert torch.equal(got.by_layer[0], expected)
        assert got.about["corpus"] == given and got.about["corpus_revision"] not in ("", "None")
    run: list[int] = []
    again = measure(tiny_llama, [0], config(name), folder, advance=run.append)
    assert not run and torch.equal(again.by_layer[0], expected)
    # Other texts under the same name.
    write_dataset(tmp_path / "texts", LINES[::-1])
    measure(tiny_llama, [0], config(name), folder, advance=run.append)
    assert sum(run) == 45


def test_a_dataset_that_cannot_be_read_says_why(
    tiny_llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")

    def fails(name: str, match: str) -> None:
        with pytest.raises(ValueError, match=match):
            measure(tiny_llama, [0], config(name), tmp_path / "covariance")

    fails(
        f"hf:{tmp_path / 'nowhere'}",
        r"hf:.*nowhere' cannot be read: .*Write hf:NAME or hf:NAME@CONFIGURATION",
    )
    good = write_dataset(tmp_path / "good", LINES[:2])
    fails(
        f"{good}@other",
        r"good@other' cannot be read: .*'other' not found\. Available: \['default'\]",
    )
    fails(good, r"good has 15 tokens, covariance\.tokens asks for 45")
    fails(
        write_dataset(tmp_path / "test-only", LINES, split="test"),
        r"cannot be read: Bad split: train",
    )
    fails(
        write_dataset(tmp_path / "named", LINES, column="body"),
        r'no column "text" of strings; its columns are body',
    )
    monkeypatch.setattr(datasets, "load_dataset_builder", _unreachable)
    fails("hf:org/name", r"'hf:org/name' cannot be read: ConnectionError\.")


def _unreachable(name: str, configuration: str | None) -> Any:
    raise ConnectionError


def test_a_dataset_needs_its_package(
    tiny_llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r"'hf:org/name' needs the package datasets: pip install datasets"
    ):
        measure(tiny_llama, [0], config("hf:org/name"), tmp_path / "covariance")


@pytest.mark.parametrize(
    ("given", "name", "configuration"),
    [
        ("hf:wikitext", "wikitext", None),
        ("hf:org/wiki", "org/wiki", None),
        ("hf:org/wiki@20231101.en", "org/wiki", "20231101.en"),
    ],
)
def test_a_dataset_is_streamed_no_further_than_needed(
    given: str,
    name: str,
    configuration: str | None,
    tiny_llama: LanguageModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    asked: list[Any] = []

    def endless() -> Iterator[dict[str, str]]:
        while True:
            read.append(LINES[0])
            yield {"text": LINES[0]}

    def builder(*arguments: Any) -> Any:
        asked.append(arguments)
        return SimpleNamespace(
            hash="abc", as_streaming_dataset=lambda split: {"train": endless()}[split]
        )

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset_builder=builder))
    got = measure(tiny_llama, [0], config(given), tmp_path / "covariance")
    assert asked == [(name, configuration)]
    assert len(read) == 4  # of 12 tokens
    assert got.about["corpus_revision"] == "abc"


def test_an_edited_model_is_not_measured(
    tiny_llama: LanguageModel, corpus: Path, tmp_path: Path
) -> None:
    name = tiny_llama.down_projection(0).name
    update = LowRank(torch.full((32, 1), 0.1), torch.full((48, 1), 0.1))
    with (
        EditDelta({name: update}, {name: 0}, tiny_llama.weight_hash).applied(tiny_llama),
        pytest.raises(ValueError, match=r"is edited at the moment.*revert"),
    ):
        measure(tiny_llama, [0], config(corpus), tmp_path / "covariance")
