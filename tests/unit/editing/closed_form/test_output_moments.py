"""Second moments of output gradients: against gradients of a plain model, one token at a time, and
the files they are kept in.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.closed_form.covariance import measure
from editing.closed_form.output_moments import SEED, output_moments
from editing.config import CovarianceConfig
from interp.errors import DamagedError, InputError
from interp.models.loading import LanguageModel
from tests.unit.editing_reference import projection_of

ROWS = ([5, 9, 2, 7, 11], [3, 3, 8], [1, 4, 6, 10])
LAYERS = (1, 2)


def gradient_of(
    model: LanguageModel, hf: Any, row: list[int], position: int, token: int
) -> dict[int, Tensor]:
    """Gradient of log p of one drawn token, (pos, d_model) by block, with torch hooks."""
    given: dict[int, Tensor] = {}

    def keeper(layer: int) -> Callable[[Any, Any, Tensor], Tensor]:
        def keep(module: Any, args: Any, out: Tensor) -> Tensor:
            given[layer] = out if out.requires_grad else out.detach().requires_grad_()
            given[layer].retain_grad()
            return given[layer]

        return keep

    handles = [
        projection_of(hf, model.down_projection(layer).name).register_forward_hook(keeper(layer))
        for layer in LAYERS
    ]
    scores = hf(torch.tensor([row])).logits[0, position].log_softmax(-1)
    scores[token].backward()
    for handle in handles:
        handle.remove()
    gradients = {layer: out.grad for layer, out in given.items()}
    return {layer: value[0] for layer, value in gradients.items() if value is not None}


def slow(model: LanguageModel, hf: Any) -> dict[int, Tensor]:
    """Mean of g gᵀ; each drawn token is a backward pass of its own through the plain model."""
    draws = torch.Generator().manual_seed(SEED)
    sums = {layer: torch.zeros(model.d_model, model.d_model) for layer in LAYERS}
    for row in ROWS:
        with torch.no_grad():
            said = hf(torch.tensor([row])).logits[0].softmax(-1)
        drawn = torch.multinomial(said, 1, generator=draws)[:, 0].tolist()
        each = [gradient_of(model, hf, row, i, token) for i, token in enumerate(drawn)]
        for layer in LAYERS:
            total = torch.stack([gradients[layer] for gradients in each]).sum(0)
            sums[layer] += total.T @ total
    return {layer: value / sum(map(len, ROWS)) for layer, value in sums.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_it_is_the_mean_over_tokens(
    family: str, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any]
) -> None:
    model, hf = make_model(family), make_hf(family).requires_grad_(False)
    seen: list[int] = []
    found = output_moments(model, LAYERS, ROWS, advance=seen.append)
    assert seen == [5, 3, 4]
    for layer, expected in slow(model, hf).items():
        assert (found[layer] - expected).norm() < 1e-4 * expected.norm()


@pytest.fixture
def config(tmp_path: Path) -> CovarianceConfig:
    path = tmp_path / "corpus.txt"
    path.write_text("The area of a square.\n\nA cube has six faces, all alike.\n")
    return CovarianceConfig(corpus=str(path), tokens=30, output_tokens=12, shrinkage=0.5)


def test_they_are_kept_beside_the_others(
    config: CovarianceConfig, tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    measured = measure(tiny_llama, [1], config, tmp_path / "statistics")
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(files) == 2 and measured.origin["output_tokens"] == 12
    again = measure(tiny_llama, [1], config, tmp_path / "statistics")
    assert torch.equal(again.outputs[1], measured.outputs[1])
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    plain = config.model_copy(update={"output_tokens": 0})
    assert measure(tiny_llama, [1], plain, tmp_path / "statistics").outputs == {}
    for path in files:
        path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    with pytest.raises(DamagedError, match="delete it to measure it anew"):
        measure(tiny_llama, [1], config, tmp_path / "statistics")


def test_the_corpus_must_have_as_many_tokens(
    config: CovarianceConfig, tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    more = config.model_copy(update={"output_tokens": 10_000})
    with pytest.raises(InputError, match=r"covariance\.output_tokens asks for 10000"):
        measure(tiny_llama, [1], more, tmp_path)


def test_the_identity_has_none() -> None:
    with pytest.raises(ValueError, match=r"leave out covariance\.identity"):
        CovarianceConfig(identity=True, output_tokens=10)


def test_whitened_outputs_have_the_identity(
    config: CovarianceConfig, tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    measured = measure(tiny_llama, [1], config, tmp_path)
    whitening, moment = measured.output_whitening(1, 0.2), measured.outputs[1].double()
    damped = 0.8 * moment * len(moment) / moment.trace() + 0.2 * torch.eye(len(moment)).double()
    torch.testing.assert_close(
        whitening.T @ damped @ whitening, torch.eye(len(moment)).double(), atol=1e-9, rtol=0
    )
