"""The wrapped model against raw Hugging Face models of the same weights, family by family."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    ByT5Tokenizer,
    MambaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP

from interp.models.loading import LanguageModel, ModelError, load
from interp.models.tokens import pad_right

pytestmark = pytest.mark.slow

TEXTS = (
    "The area of a square is",
    "What is the rectangle's perimeter (π = 3.14)?",
    "Ünïcödé 面積 🙂 of  two  spaces",
)
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def model(architecture: str, make_model: Callable[..., LanguageModel]) -> LanguageModel:
    return make_model(architecture)


@pytest.fixture(scope="module")
def raw(architecture: str, make_hf: Callable[..., Any]) -> Any:
    """The same weights as `model`, never wrapped."""
    return make_hf(architecture)


def random_ids(rows: int, tokens: int, seed: int = 1) -> Tensor:
    return torch.randint(2, 350, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def raw_logits(raw: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return raw(ids).logits


@contextmanager
def updated(parameter: nn.Parameter, update: Tensor) -> Iterator[None]:
    """Adds to a parameter for a while; the old values come back bit for bit."""
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(update)
    try:
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(before)


# Every family.


def test_logits_equal_those_of_the_raw_model(model: LanguageModel, raw: Any) -> None:
    ids = random_ids(2, 15)
    torch.testing.assert_close(model.logits(ids), raw_logits(raw, ids), **CLOSE)


def test_resid_hooks_are_the_hidden_states_of_the_raw_model(
    model: LanguageModel, raw: Any, architecture: str
) -> None:
    ids = random_ids(2, 9)
    with torch.no_grad():
        states = raw(ids, output_hidden_states=True).hidden_states
    seen = model.capture(
        ids, [model.embedding_hook, *(model.hook("resid", layer) for layer in range(3))]
    )
    if architecture != "gpt2":  # its first hidden state has the position embedding already
        torch.testing.assert_close(seen["hook_embed"], states[0], **CLOSE)
    for layer in range(2):  # the last of the raw states is normalised
        torch.testing.assert_close(seen[model.hook("resid", layer)], states[layer + 1], **CLOSE)


def test_attn_and_mlp_hooks_are_what_is_added_to_the_stream(model: LanguageModel) -> None:
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(3)]
    names += [
        model.hook(component, layer) for component in ("resid", "mlp", "attn") for layer in range(3)
    ]
    seen = model.capture(random_ids(2, 9), names)
    for layer in range(3):
        added = seen[model.hook("attn", layer)] + seen[model.hook("mlp", layer)]
        assert added.abs().max() > 0.1
        torch.testing.assert_close(
            seen[f"blocks.{layer}.hook_resid_pre"] + added,
            seen[model.hook("resid", layer)],
            **CLOSE,
        )


def test_keys_are_the_input_of_the_down_projection_of_the_raw_model(
    model: LanguageModel, raw: Any
) -> None:
    ids = random_ids(2, 9)
    for layer in range(3):
        down = model.down_projection(layer)
        module = raw.get_submodule(down.name.removesuffix(".weight"))
        inputs: list[Tensor] = []
        handle = module.register_forward_hook(
            lambda module, args, out, inputs=inputs: inputs.extend((args[0], out))
        )
        raw_logits(raw, ids)
        handle.remove()
        seen = model.capture(ids, [model.key_hook(layer), f"blocks.{layer}.mlp.hook_out"])
        torch.testing.assert_close(seen[model.key_hook(layer)], inputs[0].view(2, 9, -1), **CLOSE)
        torch.testing.assert_close(
            seen[f"blocks.{layer}.mlp.hook_out"], inputs[1].view(2, 9, -1), **CLOSE
        )
        assert down.weight.equal(module.weight)
        assert (down.bias is None) == (getattr(module, "bias", None) is None)


def check_update_is_oriented(model: LanguageModel) -> None:
    """Adding `orient(update)` to the weight adds ``update @ key`` to the MLP's output."""
    ids, layer = random_ids(1, 7), 1
    down = model.down_projection(layer)
    key_hook, out_hook = model.key_hook(layer), f"blocks.{layer}.mlp.hook_out"
    before = model.capture(ids, [key_hook, out_hook])
    width = before[key_hook].shape[-1]
    update = torch.randn(model.d_model, width, generator=torch.Generator().manual_seed(2))
    with updated(down.weight, down.orient(update)):
        after = model.capture(ids, [out_hook])
    change = torch.einsum("bpk,dk->bpd", before[key_hook], update)
    assert change.abs().max() > 0.1
    torch.testing.assert_close(after[out_hook], before[out_hook] + change, rtol=1e-4, atol=1e-5)


def test_orient_gives_an_update_the_shape_of_the_weight(
    model: LanguageModel, architecture: str
) -> None:
    assert model.down_projection(0).transposed == (architecture == "gpt2")
    check_update_is_oriented(model)


@pytest.mark.parametrize(
    ("architecture", "width"), [("gpt2", "n_inner"), ("llama", "intermediate_size")]
)
def test_orient_is_right_for_a_square_weight(
    architecture: str, width: str, make_model: Callable[..., LanguageModel]
) -> None:
    model = make_model(architecture, **{width: 32})
    down = model.down_projection(1)
    assert down.weight.shape == (32, 32) and down.transposed == (architecture == "gpt2")
    check_update_is_oriented(model)


def test_self_check_finds_post_norm_in_gemma3_only(model: LanguageModel, architecture: str) -> None:
    assert model.check is not None
    assert model.check.post_norm == (architecture == "gemma3_text")
    assert max(model.check.logits, model.check.additivity, model.check.projection) < 1e-5


def test_prefix_cache_continues_as_one_run_does(model: LanguageModel, raw: Any) -> None:
    assert model.has_prefix_cache
    ids = random_ids(2, 14)
    with torch.no_grad():
        cache = model.prefix_cache(ids[:, :5])
        continued = model.logits(ids[:, 5:], prefix=cache)
    torch.testing.assert_close(continued, raw_logits(raw, ids)[:, 5:], **CLOSE)


def test_prefixes_continue_as_runs_of_their_own_do(model: LanguageModel, raw: Any) -> None:
    """Texts of different length, among them one begun by two others, one twice, and an empty
    one."""
    long, other = random_ids(1, 11)[0].tolist(), random_ids(1, 14)[0].tolist()[7:]
    texts = [long[:4], other, long[:8], long, other, []]
    cache, mask = model.prefixes(texts)
    assert mask.tolist() == [[0] * (11 - len(text)) + [1] * len(text) for text in texts]
    more = random_ids(len(texts), 6)
    with torch.no_grad():
        continued = model.logits(
            more, mask=torch.cat([mask, torch.ones_like(more)], 1), prefix=cache
        )
    for text, end, logits in zip(texts, more, continued, strict=True):
        whole = raw_logits(raw, torch.tensor([[*text, *end.tolist()]]))[0, len(text) :]
        torch.testing.assert_close(logits, whole, **CLOSE)


def test_right_padding_with_a_mask_changes_nothing(model: LanguageModel) -> None:
    rows = [model.encode(text).ids for text in TEXTS]
    ids, mask = pad_right(rows, model.device, pad=7)
    padded = model.logits(ids, mask=mask)
    assert len({len(row) for row in rows}) == 3
    for row, logits in zip(rows, padded, strict=True):
        torch.testing.assert_close(
            logits[: len(row)], model.logits(torch.tensor([row]))[0], **CLOSE
        )


def test_keep_gives_the_logits_of_the_positions_asked_for(model: LanguageModel) -> None:
    ids = random_ids(2, 8)
    full = model.logits(ids)
    assert full.shape == (2, 8, 350)
    torch.testing.assert_close(model.logits(ids, keep=3), full[:, -3:], **CLOSE)
    torch.testing.assert_close(
        model.logits(ids, keep=torch.tensor([1, 6])), full[:, [1, 6]], **CLOSE
    )


def test_generate_is_the_argmax_of_the_raw_model_alone_and_in_a_batch(
    model: LanguageModel, raw: Any
) -> None:
    prompts = [model.encode(text).ids for text in TEXTS]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(6):
            ids.append(int(raw_logits(raw, torch.tensor([ids]))[0, -1].argmax()))
        expected.append(tuple(ids[len(prompt) :]))
    assert model.tokenizer.eos_token_id not in {token for row in expected for token in row}
    assert [model.generate([prompt], 6)[0] for prompt in prompts] == expected
    assert model.generate(prompts, 6) == expected


def test_export_reloads_with_equal_logits_with_an_edit_and_without(
    model: LanguageModel, tmp_path: Path
) -> None:
    ids = random_ids(1, 10)
    down = model.down_projection(1)
    update = 0.3 * torch.randn(down.weight.shape, generator=torch.Generator().manual_seed(3))
    before = model.logits(ids)
    model.export(tmp_path / "plain")
    with updated(down.weight, update):
        edited = model.logits(ids)
        model.export(tmp_path / "edited")
    assert (edited - before).abs().max() > 0.1
    assert model.logits(ids).equal(before)
    for name, expected in {"plain": before, "edited": edited}.items():
        again = load(str(tmp_path / name), device="cpu")
        torch.testing.assert_close(again.logits(ids), expected, **CLOSE)
        # Not the text with numbers: any Qwen2 folder gets Qwen2's own way with digits from the
        # loader.
        assert again.encode(TEXTS[0]) == model.encode(TEXTS[0])


# Text.


@pytest.mark.parametrize("text", TEXTS)
def test_encode_gives_the_character_range_of_each_token(
    text: str, tiny_llama: LanguageModel
) -> None:
    encoding = tiny_llama.encode(text)
    assert len(encoding.ids) == len(encoding.offsets)
    assert tiny_llama.decode(encoding.ids) == text
    covered = {i for first, last in encoding.offsets for i in range(first, last)}
    assert covered == set(range(len(text)))
    for id_, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
        # A token of plain ASCII says itself what it covers; parts of a letter cover the letter.
        own = tiny_llama.decode([id_])
        assert text[first:last] == own or not text[first:last].isascii()


def with_bos(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The same tokenizer, which begins every text with <eos>, as many base models want it."""
    core = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", tokenizer.eos_token_id)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Puts a space mark before the first word of a text, as Llama 2's and Gemma's tokenizers do."""
    core = Tokenizer(models.BPE(byte_fallback=False, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=60, special_tokens=["<unk>", "<eos>"], show_progress=False
    )
    core.train_from_iterator(
        ["The side of a square is the side times a side squared. a b c 0 1 2 3 4"], trainer
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["byte level", "with BOS", "sentencepiece"])
@pytest.mark.parametrize("answer", ["side squared", "4", "  the side\n", "(side)^2"])
def test_encode_continuation_is_how_the_whole_text_continues(
    kind: str, answer: str, make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    chosen = {"byte level": lambda: tokenizer, "with BOS": lambda: with_bos(tokenizer)}.get(
        kind, sentencepiece_like
    )()
    model = LanguageModel(make_hf("llama"), chosen, kind, check=False)
    prompt = "The side of a square is"
    continuation = model.encode_continuation(answer)
    assert (*model.encode(prompt).ids, *continuation) == model.encode(
        f"{prompt} {answer.strip()}"
    ).ids
    assert model.tokenizer.eos_token_id not in continuation


def test_special_tokens_cover_nothing_and_are_shown_by_name(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    model = LanguageModel(make_hf("llama"), with_bos(tokenizer), "bos", check=False)
    encoding = model.encode("The area of")
    assert encoding.ids[0] == tokenizer.eos_token_id and encoding.offsets[0] == (0, 0)
    assert model.token_texts(encoding) == ["<eos>", "The", " area", " of"]
    assert model.decode(encoding.ids) == "The area of"


def test_decode_keeps_spaces_before_punctuation(tiny_llama: LanguageModel) -> None:
    text = "side squared . is n't , 4 !"
    assert tiny_llama.decode(tiny_llama.encode(text).ids) == text


def test_encode_continuation_refuses_a_tokenizer_without_a_boundary(
    make_hf: Callable[..., Any],
) -> None:
    core = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "a side": 2}, unk_token="<unk>"))
    words = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<unk>")
    model = LanguageModel(make_hf("llama"), words, "words", check=False)
    with pytest.raises(
        ModelError, match=r"words: cannot find where 'side' starts after a space; got tokens \[2\]"
    ):
        model.encode_continuation("side")


# Sizes and statistics.


def test_embedding_std_is_that_of_the_table(tiny_llama: LanguageModel) -> None:
    table = tiny_llama.parameters["model.embed_tokens.weight"].detach().numpy().astype("float64")
    assert tiny_llama.embedding_std() == pytest.approx(table.std(ddof=1), rel=1e-5)


def test_embedding_std_has_the_factor_by_which_gemma_scales(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model("gemma3_text")
    table = model.parameters["model.embed_tokens.weight"].detach().numpy().astype("float64")
    assert model.embedding_std() == pytest.approx(table.std(ddof=1) * 32**0.5, rel=1e-4)


def test_sizes_are_those_of_the_configuration(tiny_llama: LanguageModel) -> None:
    assert (tiny_llama.n_layers, tiny_llama.d_model) == (3, 32)
    assert tiny_llama.dtype == torch.float32 and tiny_llama.device == torch.device("cpu")
    assert tiny_llama.down_projection(2).weight.shape == (32, 48)
    assert tiny_llama.down_projection(2).name == "model.layers.2.mlp.down_proj.weight"


def test_weight_hash_tells_weights_apart(make_model: Callable[..., LanguageModel]) -> None:
    first, same, other = (make_model("llama", seed=seed, check=False) for seed in (0, 0, 1))
    assert first.weight_hash == same.weight_hash != other.weight_hash
    assert len(first.weight_hash) == 16


def test_weight_hash_changes_with_one_weight(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, tiny_llama: LanguageModel
) -> None:
    hf = make_hf("llama")
    with torch.no_grad():
        hf.model.layers[2].mlp.down_proj.weight[5, 7] += 1e-6
    assert (
        LanguageModel(hf, tokenizer, "changed", check=False).weight_hash != tiny_llama.weight_hash
    )


def test_prefix_cache_is_off_where_it_was_not_verified(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model("llama", check=False)
    assert model.check is None and not model.has_prefix_cache


# Generation.


def test_generate_stops_before_the_end_token(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, tiny_llama: LanguageModel
) -> None:
    prompt = tiny_llama.encode(TEXTS[0]).ids
    free = tiny_llama.generate([prompt], 6)[0]
    end = free[3]
    ending = copy.deepcopy(tokenizer)
    ending.eos_token = tokenizer.convert_ids_to_tokens(end)
    model = LanguageModel(make_hf("llama", eos_token_id=end), ending, "ends", check=False)
    assert model.generate([prompt], 6)[0] == free[: free.index(end)]


def test_generate_stops_at_every_end_token_that_the_model_names(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, tiny_llama: LanguageModel
) -> None:
    prompts = [tiny_llama.encode(text).ids for text in TEXTS[:2]]
    free = tiny_llama.generate(prompts, 6)
    end = free[0][3]
    model = LanguageModel(
        make_hf("llama", eos_token_id=[end, tokenizer.eos_token_id]), tokenizer, "chat", check=False
    )
    expected = [row[: row.index(end)] if end in row else row for row in free]
    assert len(expected[0]) < 6
    assert model.generate(prompts, 6) == expected


def test_generate_ignores_the_decoding_settings_of_the_checkpoint(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, tiny_llama: LanguageModel
) -> None:
    hf = make_hf("llama")
    hf.generation_config.repetition_penalty = 50.0
    prompt = tiny_llama.encode(TEXTS[0]).ids
    assert LanguageModel(hf, tokenizer, "penalty", check=False).generate(
        [prompt], 8
    ) == tiny_llama.generate([prompt], 8)


def test_sample_is_seeded_and_leaves_the_global_state(tiny_llama: LanguageModel) -> None:
    prompt = tiny_llama.encode(TEXTS[0]).ids
    state = torch.get_rng_state()
    first, again, other = (tiny_llama.sample(prompt, 8, top_k=50, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.get_rng_state().equal(state)


def test_sample_from_one_candidate_is_greedy(tiny_llama: LanguageModel) -> None:
    prompt = tiny_llama.encode(TEXTS[0]).ids
    assert tiny_llama.sample(prompt, 8, top_k=1, seed=5) == tiny_llama.generate([prompt], 8)[0]


def test_sample_draws_from_the_most_likely_tokens_in_proportion(tiny_llama: LanguageModel) -> None:
    prompt = tiny_llama.encode(TEXTS[0]).ids
    top = tiny_llama.logits(torch.tensor([prompt]))[0, -1].topk(3)
    drawn = [tiny_llama.sample(prompt, 1, top_k=3, seed=seed)[0] for seed in range(60)]
    assert set(drawn) <= set(top.indices.tolist())
    expected = top.values.softmax(-1)[0].item()
    share = drawn.count(int(top.indices[0])) / 60
    assert abs(share - expected) < 4 * (expected * (1 - expected) / 60) ** 0.5


# Hooks.


def test_hooks_are_gone_after_a_run_and_after_an_error(tiny_llama: LanguageModel) -> None:
    ids = random_ids(1, 6)
    before = tiny_llama.logits(ids)

    def zero(value: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(value)

    def fail(value: Tensor, hook: Any) -> Tensor:
        raise RuntimeError("in the middle")

    name = tiny_llama.hook("mlp", 0)
    assert not tiny_llama.logits(ids, hooks=[(name, zero)]).equal(before)
    assert tiny_llama.logits(ids).equal(before)
    with pytest.raises(RuntimeError, match="in the middle"):
        tiny_llama.logits(ids, hooks=[(name, zero), (tiny_llama.hook("mlp", 1), fail)])
    assert tiny_llama.logits(ids).equal(before)


def test_hooks_of_one_name_run_in_order(tiny_llama: LanguageModel) -> None:
    name, seen = tiny_llama.hook("resid", 2), []

    def add(value: Tensor, hook: Any) -> Tensor:
        return value + 1

    def double(value: Tensor, hook: Any) -> Tensor:
        return value * 2

    def look(value: Tensor, hook: Any) -> None:
        seen.append(value.clone())

    ids = random_ids(1, 4)
    plain = tiny_llama.capture(ids, [name])[name]
    tiny_llama.logits(ids, hooks=[(name, add), (name, double), (name, look)])
    torch.testing.assert_close(seen[0], (plain + 1) * 2, **CLOSE)


# Models that must be refused.


class LeakyBlock(LlamaDecoderLayer):
    """Adds to the stream what neither attention nor MLP says: hooks on the two then explain
    nothing."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(hidden_states, *args, **kwargs) + 0.1 * hidden_states.flip(-1)


class LeakyMLP(LlamaMLP):
    """Adds its input to the output: no longer the down-projection of its key."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1 * x


def with_leaky_block(hf: Any) -> None:
    block = LeakyBlock(hf.config, 1)
    block.load_state_dict(hf.model.layers[1].state_dict())
    hf.model.layers[1] = block


def with_leaky_mlp(hf: Any) -> None:
    mlp = LeakyMLP(hf.config)
    mlp.load_state_dict(hf.model.layers[2].mlp.state_dict())
    hf.model.layers[2].mlp = mlp


def with_nan(hf: Any) -> None:
    with torch.no_grad():
        hf.model.layers[0].mlp.up_proj.weight[3, 3] = torch.nan


@pytest.mark.parametrize(
    ("breaks", "what"), [(with_leaky_block, "additivity"), (with_leaky_mlp, "projection")]
)
def test_a_model_whose_hooks_mean_something_else_is_refused(
    breaks: Callable[[Any], None],
    what: str,
    make_hf: Callable[..., Any],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    hf = make_hf("llama")
    breaks(hf)
    with pytest.raises(
        ModelError,
        match=f"odd: self-check failed, relative error of {what} is .* use another model",
    ):
        LanguageModel(hf, tokenizer, "odd")


def test_a_slow_tokenizer_is_refused(make_hf: Callable[..., Any]) -> None:
    with pytest.raises(
        ModelError, match=r"gives no character offsets; a fast tokenizer \(tokenizer.json\)"
    ):
        LanguageModel(make_hf("llama"), ByT5Tokenizer(), "slow")


def test_quantised_parameters_are_refused(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    hf = make_hf("llama")
    hf.model.layers[0].mlp.down_proj.weight = nn.Parameter(
        torch.ones(32, 48, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(
        ModelError, match=r"1 quantised parameters \(such as model.layers.0.mlp.down_proj.weight\)"
    ):
        LanguageModel(hf, tokenizer, "int8")


def test_an_architecture_without_dense_mlps_is_refused(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    sizes: dict[str, Any] = {"vocab_size": 350, "hidden_size": 32, "num_hidden_layers": 2}
    experts = MixtralConfig(
        **sizes,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=2,
    )
    with pytest.raises(ModelError, match="block 0 has no dense down-projection to edit"):
        LanguageModel(AutoModelForCausalLM.from_config(experts), tokenizer, "experts")
    with pytest.raises(
        ModelError, match=r"block 0 has no attn\. .* need blocks of attention and MLP that add to a"
    ):
        LanguageModel(AutoModelForCausalLM.from_config(MambaConfig(**sizes)), tokenizer, "mamba")


# Loading.


@pytest.mark.parametrize("dtype", ["int8", "float33", "nn"])
def test_load_refuses_what_is_no_floating_point_type(dtype: str, model_folder: Path) -> None:
    with pytest.raises(
        ModelError,
        match=f"dtype '{dtype}' is not a torch floating-point type; use float32, bfloat16",
    ):
        load(str(model_folder), dtype=dtype)


def test_load_refuses_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"has no config\.json; a model folder as Hugging Face saves it is needed"
    ):
        load(str(tmp_path))


def test_load_refuses_a_folder_without_weights(model_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((model_folder / name).read_bytes())
    with pytest.raises(ModelError, match=r"cannot load model .*model\.safetensors"):
        load(str(tmp_path))


def test_load_refuses_an_unknown_name_and_says_where_it_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ModelError, match=r"no model 'nobody/none': .*not a folder here.* give a local folder"
    ):
        load("nobody/none")
    with pytest.raises(ModelError, match=r"no model 'smollm 135m': .*Repo id must use"):
        load("smollm 135m")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_load_refuses_a_device_that_is_not_there(device: str, model_folder: Path) -> None:
    with pytest.raises(
        ModelError, match=f"device '{device}' cannot be used here: .* Give another, or auto"
    ):
        load(str(model_folder), device=device)


def test_load_gives_the_type_asked_for(model_folder: Path, tiny_llama: LanguageModel) -> None:
    ids = random_ids(1, 8)
    double = load(str(model_folder), device="cpu", dtype="float64")
    half = load(str(model_folder), device="cpu", dtype="bfloat16")
    assert (double.dtype, half.dtype) == (torch.float64, torch.bfloat16)
    torch.testing.assert_close(double.logits(ids).float(), tiny_llama.logits(ids), **CLOSE)
    scale = tiny_llama.logits(ids).abs().max()
    assert (half.logits(ids).float() - tiny_llama.logits(ids)).abs().max() < 0.1 * scale
    assert len({double.weight_hash, half.weight_hash, tiny_llama.weight_hash}) == 3


def test_rows_that_join_at_any_block_equal_whole_runs(
    architecture: str, make_model: Callable
) -> None:
    model = make_model(architecture)
    assert model.has_entry
    ids = torch.tensor([[5, 9, 17, 3, 8, 2, 7], [1, 4, 6, 6, 2, 9, 11]])
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(model.n_layers)]
    states = model.capture(ids, names)
    whole = model.logits(ids)
    for layer, name in enumerate(names):
        # What the run enters with is what counts, not what the tokens are.
        entered = model.logits(ids[1:], joins=[(layer, states[name])])
        torch.testing.assert_close(entered, whole, atol=1e-5, rtol=1e-5)
        for later in range(layer, model.n_layers):
            joins = [(layer, states[name][:1]), (later, states[names[later]])]
            grown = model.logits(
                ids[:1], joins=joins if later > layer else [(layer, states[name][[0, 0, 1]])]
            )
            torch.testing.assert_close(grown, whole[[0, 0, 1]], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.logits(ids), whole, atol=0, rtol=0)  # all blocks run again


def test_embeddings_of_many_tokens_are_the_tables(tiny_llama: LanguageModel) -> None:
    # More tokens than the model has positions, in several pieces.
    ids = [i % 350 for i in range(700)]
    table = tiny_llama.parameters["model.embed_tokens.weight"].detach()
    assert tiny_llama.embeddings(ids).equal(table[ids])


def test_embeddings_of_more_tokens_than_positions(make_model: Callable[..., LanguageModel]) -> None:
    # Learned positions have an end; the embeddings are those before positions are added.
    model = make_model("gpt2")
    ids = [i % 350 for i in range(300)]
    torch.testing.assert_close(
        model.embeddings(ids), model.parameters["transformer.wte.weight"].detach()[ids]
    )
