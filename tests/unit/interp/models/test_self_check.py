"""The self-check: what is found wrong with a model, a number format, a length or a device, and
what is done then."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from editing.evaluation.greedy import greedy_ids
from interp.models.lengths import Lengths
from interp.models.loading import LanguageModel, ModelError
from interp.models.self_check import device
from interp.models.self_check.basis import tolerance
from interp.models.self_check.routes import check_long
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.metrics import mean_log_prob
from interp.tracing.patching import SweepOptions, sweep
from interp.tracing.reference import sweep_reference

PROMPTS = ((5, 9, 17), (3, 8, 2, 7, 11, 30, 41), (1, 4, 6, 6, 2, 9, 11, 12, 40, 77, 9, 200))


def test_every_measured_error_is_rounding_on_a_sound_model(tiny_llama: LanguageModel) -> None:
    check = tiny_llama.check
    assert check is not None and "left padding" in str(check)
    for what in ("logits", "additivity", "projection", "writing", "right_padding"):
        assert getattr(check, what) < 1e-5
    assert max(check.prefix_cache, check.entry, check.left_padding) < 1e-5


@pytest.mark.parametrize(
    ("family", "depth"),
    [("gptj", "n_layer"), ("falcon", "num_hidden_layers"), ("llama", "num_hidden_layers")],
)
def test_runs_of_deep_models_begin_in_the_middle(
    family: str, depth: str, make_model: Callable[..., LanguageModel]
) -> None:
    """Blocks of some families return more than states, also where they only hand these on."""
    model = make_model(family, **{depth: 8})
    assert model.check is not None and model.check.entry < 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_answers_are_the_same_together_and_alone_in_every_type(
    family: str, dtype: torch.dtype, make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = LanguageModel(make_hf(family).to(dtype), tokenizer, "typed")
    # In float64 the library's mask overflows its float32 softmax: rows padded on the left would be
    # NaN.
    assert model.pads_left == (dtype != torch.float64 or family == "gpt2")
    assert model.has_entry and model.has_prefix_cache
    together = model.generate(PROMPTS, 5)
    assert together == [model.generate([prompt], 5)[0] for prompt in PROMPTS]
    assert all(together)
    if dtype == torch.float64:
        single = LanguageModel(make_hf(family), tokenizer, "single")
        assert together == single.generate(PROMPTS, 5)


def test_evaluation_answers_alike_where_padding_on_the_left_fails(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, tiny_llama: LanguageModel
) -> None:
    texts = [
        "The area of a square is",
        "What is it?",
        "The perimeter of a rectangle is twice the sum of",
    ]
    model = LanguageModel(make_hf("llama").double(), tokenizer, "double")
    assert greedy_ids(model, texts, [4, 6, 5], batch_size=3) == greedy_ids(
        tiny_llama, texts, [4, 6, 5], batch_size=3
    )


def test_a_row_that_sees_another_is_refused(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    hf = make_hf("llama")
    norm = hf.model.layers[1].post_attention_layernorm
    forward = norm.forward
    # Statistics over the batch: the same rows give the same logits, but a written row changes the
    # other.
    norm.forward = lambda x: forward(x) * (1 + 0.1 * x.mean())
    with pytest.raises(
        ModelError, match=r"relative error of (writing|right padding) is .*would give wrong numbers"
    ):
        LanguageModel(hf, tokenizer, "mixing")


@pytest.mark.parametrize(
    "error", [RuntimeError("sizes\nof tensors"), KeyError("key"), AttributeError("no attribute")]
)
def test_what_a_library_raises_is_one_line(
    error: Exception, make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    hf = make_hf("llama")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    hf.model.layers[1].mlp.forward = fail
    with pytest.raises(
        ModelError,
        match=f"odd: self-check failed: the model does not run .{type(error).__name__}: ",
    ) as got:
        LanguageModel(hf, tokenizer, "odd")
    assert "\n" not in str(got.value)


# Numbers that are none.


def scaled(hf: Any, factor: float) -> Any:
    with torch.no_grad():
        for layer in hf.model.layers[:2]:
            for part in (layer.mlp.up_proj, layer.mlp.gate_proj, layer.mlp.down_proj):
                part.weight *= factor
    return hf


def test_half_precision_that_overflows_is_said_as_that(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(
        ModelError, match=r"not finite .*: float16 overflows in this model.*=bfloat16 or float32"
    ):
        LanguageModel(scaled(make_hf("llama"), 60).half(), tokenizer, "hot")
    # The remedy works.
    for dtype in (torch.bfloat16, torch.float32):
        LanguageModel(scaled(make_hf("llama"), 60).to(dtype), tokenizer, "hot")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_are_no_numbers_are_named(
    value: float,
    dtype: torch.dtype,
    make_hf: Callable[..., Any],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    hf = make_hf("llama").to(dtype)
    with torch.no_grad():
        hf.model.layers[0].mlp.up_proj.weight[3, 3] = value
    with pytest.raises(
        ModelError, match=r"1 of its parameters hold .*layers\.0\.mlp\.up_proj\.weight; the check"
    ):
        LanguageModel(hf, tokenizer, "damaged")


# Lengths.


def test_lengths_are_read_off_the_model(make_hf: Callable[..., Any]) -> None:
    assert Lengths.of(make_hf("llama")).switches(10**6) == []
    assert Lengths.of(make_hf("mistral", sliding_window=6)).switches(7) == [6]
    assert Lengths.of(make_hf("mistral", sliding_window=6)).switches(6) == []
    assert Lengths.of(make_hf("gpt_neo")).windows == (6,)
    long, dynamic = Lengths.of(make_hf("phi3-longrope")), Lengths.of(make_hf("llama-dynamic"))
    assert (long.rope, long.grows, dynamic.rope, dynamic.grows) == (16, False, 16, True)
    assert [long.kind(n) for n in (5, 16, 17, 30)] == [0, 0, 17, 17]
    assert [dynamic.kind(n) for n in (5, 16, 17, 30)] == [0, 0, 17, 30]
    assert dynamic.groups([20, 3, 20, 21, 9]) == [[0, 2], [1, 4], [3]]


@pytest.mark.parametrize(("family", "window"), [("mistral", 5), ("gemma3_text", 14), ("qwen2", 18)])
def test_the_fast_route_is_verified_beyond_a_window_when_it_is_asked_for(
    family: str,
    window: int,
    make_model: Callable[..., LanguageModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more: dict[str, Any] = {"sliding_window": window}
    more |= {"use_sliding_window": True, "max_window_layers": 1} if family == "qwen2" else {}
    model = make_model(family, **more)
    checked: list[int] = []
    monkeypatch.setattr(
        "interp.models.base.check_long",
        lambda model, at: checked.append(at) or check_long(model, at),
    )
    assert model.takes_fast_route(window) and not checked
    assert model.takes_fast_route(window + 3) and model.takes_fast_route(window + 4)
    assert checked == [window]
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(2, 350, (window + 6,), generator=generator).tolist()
    noise = torch.randn(2, 2, 32, generator=generator)
    one = CorruptedPrompt(tuple(ids[:-2]), tuple(ids[-2:]), (window, window + 1), noise)
    some = [Site(c, window + 1, range(1, 2)) for c in ("resid", "mlp", "attn")]
    expected = sweep_reference(model, one, some, mean_log_prob)
    got = sweep(model, one, some, mean_log_prob, SweepOptions(route="fast"))
    torch.testing.assert_close(got.restored, expected.restored, rtol=0, atol=1e-4)


def test_a_fast_route_that_fails_beyond_a_window_is_not_taken_there(
    make_model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("mistral", sliding_window=8)
    # Keys and values that are off by one token beyond the window, as a wrong cache gives.
    monkeypatch.setattr(
        model, "prefix_cache", lambda *a, **k: (_ for _ in ()).throw(NotImplementedError("evicted"))
    )
    assert model.takes_fast_route(8) and not model.takes_fast_route(9)


# Devices.


def test_a_device_that_computes_something_else_is_found(make_hf: Callable[..., Any]) -> None:
    hf = make_hf("llama")
    ids = torch.tensor([[5, 9, 17, 3]])
    with torch.no_grad():
        assert device.device_error(hf, ids) == 0
        module = hf.model.layers[1].mlp

        def wrong(one: nn.Module, args: Any, out: Tensor) -> Tensor:
            """On this "device" alone: the copy is another module."""
            return out * 1.01 if one is module else out

        handle = module.register_forward_hook(wrong)
        error = device.device_error(hf, ids)
        handle.remove()
        assert tolerance(torch.float32) < error < 0.1
        assert device.device_error(hf, ids) == 0
    assert len(hf.model.layers) == 3


def test_the_device_is_compared_at_load_where_it_is_not_the_cpu(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = make_hf("gpt2")
    monkeypatch.setattr(
        LanguageModel, "device", property(lambda self: torch.empty(0, device="meta").device)
    )
    model = object.__new__(LanguageModel)
    model.parameters, model.name = dict(hf.named_parameters()), "there"
    assert device.check_device(model, hf, torch.tensor([[5, 9, 17, 3]])) == 0
    first = hf.transformer.h[0].mlp
    first.register_forward_hook(lambda one, args, out: out * 1.1 if one is first else out)
    with pytest.raises(
        ModelError,
        match=r"first blocks on meta differ from those on the CPU by .*use another device",
    ):
        device.check_device(model, hf, torch.tensor([[5, 9, 17, 3]]))
    monkeypatch.setattr(
        device.copy, "deepcopy", lambda *a: (_ for _ in ()).throw(RuntimeError("no memory"))
    )
    assert device.check_device(model, hf, torch.tensor([[5, 9, 17, 3]])) == float("inf")
