"""Arithmetic of runs against PyTorch's own counter, and outlines of models at full size."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from interp.models.arithmetic import ModelShape

DATA = Path(__file__).parents[3] / "data" / "configs"
PARAMETERS = {
    "gpt-j-6b": 6_050_882_784,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2-7b": 7_615_616_512,
    "llama-3-8b": 8_030_261_248,
}
"""As the Hugging Face classes count them."""
FAMILIES = (
    "llama",
    "gpt2",
    "gptj",
    "gpt_neox",
    "qwen2",
    "opt",
    "falcon",
    "bloom",
    "phi3",
    "gemma2",
)


def shape_of(model: Any) -> "ModelShape":
    from interp.models.arithmetic import ModelShape

    return ModelShape.of(model, model.config)


@pytest.mark.parametrize("family", FAMILIES)
def test_operations_are_those_that_torch_counts(make_hf: Callable[..., Any], family: str) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from interp.models.arithmetic import Pass

    model = make_hf(family)
    shape, rows, tokens = shape_of(model), 3, 14
    ids = torch.ones(rows, tokens, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids)
    layers = shape.n_layers
    run = Pass(rows, tokens, tokens, rows * layers, rows * tokens, layers)
    assert run.flops(shape) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_operations_of_gradients_are_those_that_torch_counts(
    make_hf: Callable[..., Any], family: str
) -> None:
    """With respect to the embeddings: no weight needs a gradient."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from interp.models.arithmetic import Pass

    model = make_hf(family).requires_grad_(False)
    shape, rows, tokens = shape_of(model), 2, 14
    states = torch.randn(rows, tokens, shape.d_model, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        model(inputs_embeds=states).logits.sum().backward()
    layers = shape.n_layers
    whole = rows * layers
    run = Pass(rows, tokens, tokens, whole, rows * tokens, layers, whole)
    assert run.flops(shape) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_operations_by_hand() -> None:
    from interp.models.arithmetic import Pass, row_bytes, total_flops
    from tests.observed_runs import small_shape

    shape = small_shape()
    # Five tokens in a context of six: 2·5·100 by the matrices, 4·5·6·2·2 by attention; logits of
    # one position: 2·4·10.
    run = Pass(rows=2, tokens=5, context=6, row_blocks=6, kept=2, blocks=3)
    assert run.flops(shape) == 6 * (1000 + 480) + 2 * 80
    back = Pass(2, 5, 6, 6, 2, 3, back_blocks=4)
    # Back from attention are twice as many products.
    assert total_flops([run, back], shape) == 2 * 8880 + 160 + 4 * (1000 + 960) + 2 * 160
    # Of float32: the MLP is at its widest here.
    assert (
        row_bytes(shape, 4, tokens=5, context=6, kept=1)
        == max(4 * (6 * 5 * 4 + 4 * 6 * 4) + 2 * 5 * 6 * 12, 4 * (3 * 5 * 4 + 3 * 5 * 8), 10 * 16)
        + 4 * 5 * 4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_model(make_model: Callable[..., Any], family: str) -> None:
    from interp.models.outline import Outline

    model = make_model(family, check=False)
    outline = Outline(model.config, model.tokenizer, model.name)
    assert outline.shape.parameters == sum(p.numel() for p in model.parameters.values())
    assert outline.row_sizes.d_mlp == model.row_sizes.d_mlp
    assert outline.row_bytes(7, 9, 2) == model.row_bytes(7, 9, 2)
    assert outline.step_bytes(1) == model.step_bytes(1)
    assert outline.n_layers == model.n_layers
    assert outline.context_length == model.context_length


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_models_of_the_paper_have_their_parameters(
    name: str, tmp_path: Path, tokenizer: Any
) -> None:
    from interp.models.outline import outline

    folder = tmp_path / name
    shutil.copytree(DATA / name, folder)
    tokenizer.save_pretrained(folder)
    drawn = outline(str(folder), dtype="bfloat16")
    assert drawn.shape.parameters == PARAMETERS[name]
    assert drawn.dtype.itemsize * drawn.shape.parameters == 2 * PARAMETERS[name]


def test_an_outline_needs_a_model(tmp_path: Path) -> None:
    from interp.errors import ModelError
    from interp.models.outline import outline

    with pytest.raises(ModelError, match=r"no config\.json"):
        outline(str(tmp_path))
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ModelError, match="does not describe a model"):
        outline(str(tmp_path))


def test_generations_are_counted_to_their_longest(make_model: Callable[..., Any]) -> None:
    from interp.models.outline import Outline
    from tests.observed_runs import counted, observed

    model = make_model("llama")
    model.ends.clear()
    model._hf_model.generation_config.eos_token_id = None
    drawn = Outline(model.config, model.tokenizer, model.name)
    prompts = [(5, 6, 7), (5, 6)]
    with observed(model) as seen:
        model.generate(prompts, 4)
    assert [len(answer) for answer in drawn.generate(prompts, 4)] == [4, 4]
    assert counted(drawn.passes) == seen
