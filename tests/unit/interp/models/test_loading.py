"""The model is the checkpoint or it is refused: damaged, incomplete and foreign folders;
identity; export."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GenerationConfig,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from interp.errors import ModelError
from interp.models.loading import LanguageModel, load
from interp.models.refusals import refusal

WEIGHTS, UP = "model.safetensors", "model.layers.1.mlp.up_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
ENDS = {"eos_token_id": [0, 7], "temperature": 0.6, "do_sample": False, "top_p": 0.9}


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A model folder to spoil."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def refused(folder: Path, *words: str, dtype: str = "float32") -> str:
    with pytest.raises(ModelError) as raised:
        load(str(folder), device="cpu", dtype=dtype)
    said = str(raised.value)
    assert all(word in said for word in words), said
    assert "\n" not in said and len(said) < 700, said
    return said


def settings(path: Path, **changed: Any) -> None:
    path.write_text(
        json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changed}), encoding="utf-8"
    )


def tensors(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def as_shards(folder: Path) -> list[Path]:
    held = load_file(folder / WEIGHTS)
    names, paths, places = sorted(held), [], {}
    for i, part in enumerate((names[::2], names[1::2]), start=1):
        paths.append(folder / f"model-0000{i}-of-00002.safetensors")
        save_file({name: held[name] for name in part}, paths[-1], metadata={"format": "pt"})
        places |= dict.fromkeys(part, paths[-1].name)
    (folder / f"{WEIGHTS}.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8"
    )
    (folder / WEIGHTS).unlink()
    return paths


# Weights that are not those of the configuration.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: {k: v for k, v in w.items() if "lm_head" not in k},
            ["1 weight is missing (lm_head.weight)"],
        ),
        (
            lambda w: {k: v for k, v in w.items() if "layers.2.mlp" not in k},
            ["3 weights are missing", "2.mlp.down"],
        ),
        (
            lambda w: {f"_orig_mod.{k}": v for k, v in w.items()},
            ["30 weights are missing", "and 27 more", "_orig_mod."],
        ),
        (
            lambda w: {**w, "v_head.weight": torch.ones(1, 32)},
            ["1 weight is not of this architecture (v_head.weight)"],
        ),
        (lambda w: {**w, UP: torch.ones(64, 32)}, [UP, "(64, 32)", "(48, 32)"]),
        (
            lambda w: {**w, UP: torch.ones(48, 32, dtype=torch.int8)},
            ["quantised", UP, "I8", "unquantised"],
        ),
        (
            lambda w: {**w, UP: torch.ones(48, 32).to(torch.float8_e5m2)},
            ["quantised", UP, "F8_E5M2", "unquantised"],
        ),
        (
            lambda w: {
                **{k: v for k, v in w.items() if k != UP},
                UP.replace("weight", "weight_packed"): torch.ones(9),
            },
            ["weight_packed", "It is quantised: load the unquantised checkpoint"],
        ),
    ],
)
def test_weights_that_are_not_the_models_are_refused_by_name(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], words: list[str], folder: Path
) -> None:
    tensors(folder, change)
    refused(folder, *words)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_hidden_layers": 2}, ["9 weights are not of this architecture", "model.layers.2."]),
        ({"num_hidden_layers": 4}, ["9 weights are missing", "model.layers.3."]),
        ({"num_hidden_layers": 10**9}, ["1000000000 blocks"]),
        ({"vocab_size": 10**12}, ["2 weights have another shape", "lm_head.weight is (350, 32)"]),
        ({"attention_bias": True}, ["12 weights are missing", "q_proj.bias"]),
        (
            {"tie_word_embeddings": True},
            ["ties lm_head.weight and model.embed_tokens.weight", "tie_word_embeddings"],
        ),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    changed: dict[str, Any], words: list[str], folder: Path
) -> None:
    settings(folder / "config.json", **changed)
    refused(folder, *words)


def test_tied_weights_may_be_stored_once_or_twice_and_the_remedy_for_others_works(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    hf = make_hf("llama", tie_word_embeddings=True)
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    once = load(str(tmp_path), device="cpu", check=False).weight_hash
    tensors(tmp_path, lambda w: {**w, "lm_head.weight": w["model.embed_tokens.weight"].clone()})
    assert load(str(tmp_path), device="cpu", check=False).weight_hash == once
    tensors(tmp_path, lambda w: {**w, "lm_head.weight": -w["model.embed_tokens.weight"]})
    refused(tmp_path, "config.json ties", '"tie_word_embeddings": false')
    settings(tmp_path / "config.json", tie_word_embeddings=False)
    ids = torch.tensor([[5, 9, 2]])
    with torch.no_grad():
        expected = -hf(ids).logits
    torch.testing.assert_close(
        load(str(tmp_path), device="cpu").logits(ids), expected, rtol=1e-5, atol=1e-5
    )


def test_what_old_versions_stored_beside_the_weights_is_no_reason_to_refuse(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    hf = make_hf("gptj")
    hf.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    mask = torch.ones(1, 1, 128, 128, dtype=torch.bool).tril()
    old = {
        "transformer.h.0.attn.bias": mask,
        "transformer.h.0.attn.masked_bias": torch.tensor(-1e9),
    }
    tensors(tmp_path, lambda w: {**w, **old})
    ids = torch.tensor([[5, 9, 2]])
    with torch.no_grad():
        expected = hf(ids).logits
    torch.testing.assert_close(
        load(str(tmp_path), device="cpu").logits(ids), expected, rtol=1e-5, atol=1e-5
    )
    tensors(
        tmp_path, lambda w: {**w, "transformer.h.0.attn.bias": torch.ones(32)}
    )  # a bias of that name is none
    refused(tmp_path, "transformer.h.0.attn.bias")


@pytest.mark.parametrize(
    "quantisation",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "unheard-of"}},
        {"quantization_config": {"load_in_8bit": True}},
        {"quantization_config": "int4"},
        {"quantization": {"group_size": 64, "bits": 4}},
        {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
    ],
)
def test_quantised_models_are_refused_by_their_configuration(
    quantisation: dict[str, Any], folder: Path
) -> None:
    settings(folder / "config.json", **quantisation)
    (folder / WEIGHTS).unlink()  # before the weights are looked at
    refused(folder, "is quantised", "load the unquantised checkpoint")


# Files.


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "config.json", "pytorch_model.bin"])
def test_pointers_of_git_lfs_are_named_with_the_command(name: str, folder: Path) -> None:
    (folder / name).write_text(POINTER, encoding="utf-8")
    refused(folder, name, "Git LFS pointer", f"`git lfs pull` in {folder}")


@pytest.mark.parametrize("kept", [0, 5, 100, 5000, -1])
def test_files_cut_short_are_refused(kept: int, folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:kept])
    refused(folder, WEIGHTS, "damaged or cut short", "download or copy it again")


def test_shards_load_as_one_file_and_are_refused_when_one_is_lost_or_damaged(
    folder: Path, tmp_path: Path
) -> None:
    whole = load(str(folder), device="cpu", check=False).weight_hash
    first, second = as_shards(folder)
    assert load(str(folder), device="cpu", check=False).weight_hash == whole
    content = second.read_bytes()
    second.write_bytes(content[:-4])
    refused(folder, second.name, "cut short")
    second.unlink()
    refused(folder, f"lacks weight files that {WEIGHTS}.index.json names: {second.name}")
    second.write_bytes(content)
    extra = {**load_file(first), UP: torch.zeros(48, 32), "model.norm.weight": torch.zeros(32)}
    save_file(extra, first, metadata={"format": "pt"})
    refused(folder, "is in two weight files")
    settings(folder / f"{WEIGHTS}.index.json", weight_map={"a": "../x.safetensors"})
    refused(folder, "names files outside the folder")


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickles_give_tensors_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    whole = load(str(folder), device="cpu", check=False).weight_hash
    held, path, ran = load_file(folder / WEIGHTS), folder / "pytorch_model.bin", tmp_path / "ran"
    (folder / WEIGHTS).unlink()
    torch.save(held, path)
    assert load(str(folder), device="cpu", check=False).weight_hash == whole
    for content, words in (
        ({**held, "x": Harmful(ran)}, "cannot be read as tensors"),
        ({"model": held}, "holds more than tensors by name (model)"),
        (list(held.values()), "holds a list"),
        ({**held, UP: torch.ones(48, 32, dtype=torch.int8)}, "is quantised"),
    ):
        torch.save(content, path)
        refused(folder, words)
    path.write_bytes(b"x" * 99)
    refused(folder, "cannot be read as tensors")
    assert not ran.exists()


# At which the tokenizers library does not raise an `Exception`, but panics.
PANIC = json.dumps(
    {
        **json.loads(Tokenizer(models.BPE()).to_str()),
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": "CAAAAGFiYw=="},
    }
)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{oops", ["config.json is not JSON", "again"]),
        ("config.json", "[]", ["config.json holds a list"]),
        ("config.json", "[" * 100_000, ["config.json is not JSON"]),
        ("config.json", "{}", ["names no model_type", "decoder only"]),
        ("generation_config.json", "{", ["generation_config.json is not JSON"]),
        ("generation_config.json", '{"eos_token_id": "x"}', ["'x' as eos_token_id"]),
        ("tokenizer.json", "{}", ["its tokenizer cannot be read"]),
        ("tokenizer.json", PANIC, ["its tokenizer cannot be read", "precompiled_charsmap"]),
        ("tokenizer.json", '{"version"', ["tokenizer.json is not JSON"]),
        ("tokenizer_config.json", "[]", ["tokenizer_config.json holds a list"]),
        ("adapter_config.json", "{}", ["holds an adapter", "merge_and_unload()"]),
    ],
)
def test_damaged_settings_are_refused(
    name: str, content: str, words: list[str], folder: Path
) -> None:
    (folder / name).write_text(content, encoding="utf-8")
    refused(folder, *words)


def test_a_folder_without_a_tokenizer_or_with_that_of_a_larger_model_is_refused(
    folder: Path, make_hf: Callable[..., Any]
) -> None:
    settings(folder / "config.json", vocab_size=300)
    tensors(folder, lambda w: {name: value[:300].clone() for name, value in w.items()})
    refused(folder, "its tokenizer has 350 tokens, the model embeddings for 300")
    # The loader makes an empty tokenizer for this family, and says nothing.
    make_hf("qwen2").save_pretrained(folder)
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer (tokenizer.json)")


# Models of another kind, and code that comes with a model.


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model_type": "llava"}, ["'llava' is a vision-language model", "decoder only"]),
        ({"model_type": "vit"}, ["'vit' is no language model", "decoder only"]),
        ({"model_type": "llama99"}, ["'llama99' is unknown to transformers", "newer"]),
        (
            {"num_attention_heads": 3},
            ["config.json does not describe a model", "multiple of the number of attention"],
        ),
        ({"hidden_act": "nosuch"}, ["cannot load model", "nosuch"]),
    ],
)
def test_models_of_another_kind_are_refused_in_a_line(
    changed: dict[str, Any], words: list[str], folder: Path
) -> None:
    settings(folder / "config.json", **changed)
    refused(folder, *words)


def test_encoders_and_what_the_wrapper_does_not_know_are_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 350,
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
    }
    t5 = T5Config(vocab_size=350, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
    gpt = OpenAIGPTConfig(vocab_size=350, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    for name, hf, words in (
        ("t5", T5ForConditionalGeneration(t5), "'t5' is an encoder-decoder"),
        (
            "bert",
            BertForMaskedLM(BertConfig(**sizes, intermediate_size=48)),
            "'bert' is an encoder;",
        ),
        ("gpt", OpenAIGPTLMHeadModel(gpt), "use another model"),
    ):
        hf.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        refused(tmp_path / name, words)


def test_code_of_a_folder_never_runs_and_nobody_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object) -> str:
        pytest.fail("asked for leave to run code")

    monkeypatch.setattr("builtins.input", ask)
    whole = load(str(folder), device="cpu", check=False).weight_hash
    (folder / "own.py").write_text("raise SystemExit('ran')\n", encoding="utf-8")
    code = {
        "AutoConfig": "own.Config",
        "AutoModelForCausalLM": "own.Model",
        "AutoTokenizer": ["own.Tokenizer", None],
    }
    settings(folder / "config.json", auto_map=code)
    assert (
        load(str(folder), device="cpu", check=False).weight_hash == whole
    )  # the library's own Llama
    settings(folder / "config.json", model_type="mine")
    refused(folder, "'mine' is unknown", "code from the folder, which is never run")


# Names, types and devices.


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("~nosuchuser/m", "no model '~nosuchuser/m'"),
        ("", "no model ''"),
        ("a\0b", "no model"),
        ("x" * 5000, "no model 'xxx"),
        ("./nothing", "there is no such folder"),
        (__file__, "is a file; a folder as Hugging Face saves it is needed"),
    ],
)
def test_names_that_are_no_models_are_refused(name: str, words: str) -> None:
    with pytest.raises(ModelError) as raised:
        load(name)
    assert words in str(raised.value) and len(str(raised.value)) < 400


def test_types_and_devices_without_arithmetic_are_refused(model_folder: Path) -> None:
    refused(model_folder, "a type to store numbers in", dtype="float8_e4m3fn")
    for device in ("meta", "vulkan", "xla", "privateuseone", ""):
        with pytest.raises(ModelError, match=f"device '{device}' cannot be used here"):
            load(str(model_folder), device=device)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("layers"), "x: KeyError: 'layers'; mend"),
        (ImportError("needs `foo`"), "x: needs `foo`; install the package"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "not enough memory"),
        (AssertionError("no\nway\n\n  out"), "x: AssertionError: no way out; mend"),
        (ValueError("bad " * 500), " …; mend"),
    ],
)
def test_errors_of_libraries_become_one_line(error: Exception, words: str) -> None:
    with pytest.raises(ModelError) as raised, refusal("x", "mend"):
        raise error
    assert (
        words in str(raised.value)
        and "\n" not in str(raised.value)
        and len(str(raised.value)) < 300
    )
    assert raised.value.__cause__ is error


# Identity.


def test_identity_is_that_of_the_files_wherever_they_lie(
    folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    first, copied = (
        load(str(place), device="cpu", check=False) for place in (model_folder, folder)
    )
    assert first.weight_hash == copied.weight_hash == copied.current_hash()
    settings(
        folder / "config.json",
        architectures=["X"],
        use_cache=False,
        transformers_version="0",
        dtype="float16",
    )
    settings(
        folder / "tokenizer_config.json",
        padding_side="left",
        model_max_length=7,
        name_or_path="elsewhere",
    )
    (folder / "generation_config.json").write_text(
        '{"temperature": 0.3, "do_sample": true}', encoding="utf-8"
    )
    again = load(str(folder), device="cpu", check=False)
    assert again.weight_hash == first.weight_hash
    again.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    assert again.current_hash() == first.weight_hash
    again.export(tmp_path / "out")
    assert load(str(tmp_path / "out"), device="cpu").weight_hash == first.weight_hash


@pytest.mark.parametrize(
    "changed",
    [
        {"rms_norm_eps": 1e-3},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
        {"hidden_act": "gelu"},
        {"max_position_embeddings": 64},
    ],
)
def test_identity_changes_with_the_configuration(
    changed: dict[str, Any], folder: Path, model_folder: Path
) -> None:
    settings(folder / "config.json", **changed)
    first, other = (load(str(place), device="cpu", check=False) for place in (model_folder, folder))
    assert first.weight_hash != other.weight_hash


def _lower(core: dict[str, Any]) -> None:
    core["normalizer"] = {"type": "Lowercase"}


def _fewer_merges(core: dict[str, Any]) -> None:
    core["model"]["merges"].pop()


def _put_before(core: dict[str, Any]) -> None:
    ends = {"id": "<eos>", "ids": [0], "tokens": ["<eos>"]}
    single = [
        {"SpecialToken": {"id": "<eos>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    core["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {"<eos>": ends},
    }


@pytest.mark.parametrize("change", [_lower, _fewer_merges, _put_before])
def test_identity_changes_with_the_tokenizer(
    change: Callable[[dict[str, Any]], None], folder: Path, model_folder: Path
) -> None:
    core = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(core)
    (folder / "tokenizer.json").write_text(json.dumps(core), encoding="utf-8")
    first, other = (load(str(place), device="cpu", check=False) for place in (model_folder, folder))
    assert first.weight_hash != other.weight_hash


def test_identity_changes_with_the_tokens_that_end_a_text(folder: Path, model_folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": [0, 7]}', encoding="utf-8")
    first, other = (load(str(place), device="cpu", check=False) for place in (model_folder, folder))
    assert first.weight_hash != other.weight_hash


def test_identity_holds_persistent_buffers_and_no_others(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    def model(value: float, persistent: bool = True) -> LanguageModel:
        hf = make_hf("llama")
        hf.model.norm.register_buffer("shift", torch.tensor(value), persistent=persistent)
        return LanguageModel(hf, tokenizer, "buffered", check=False)

    first, other = model(1.0), model(2.0)
    assert first.weight_hash != other.weight_hash and first.current_hash() == first.weight_hash
    assert model(1.0, persistent=False).weight_hash == model(2.0, persistent=False).weight_hash


def test_identity_is_back_when_an_edit_is(make_model: Callable[..., LanguageModel]) -> None:
    model = make_model("llama", check=False)
    weight = model.down_projection(0).weight
    with torch.no_grad():
        before = weight.clone()
        weight[0, 0] += 1
        assert model.current_hash() != model.weight_hash
        weight.copy_(before)
    assert model.current_hash() == model.weight_hash


def test_a_bias_that_is_quantised_in_memory_is_refused(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    hf = make_hf("llama")
    hf.model.norm.weight = nn.Parameter(torch.ones(32).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ModelError, match=r"1 quantised parameters \(such as model.norm.weight\)"):
        LanguageModel(hf, tokenizer, "float8")


# Export.


def test_export_gives_back_everything_that_came_with_the_folder(
    folder: Path, tmp_path: Path
) -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    came = {
        "generation_config.json": json.dumps(ENDS),
        "chat_template.jinja": template,
        "preprocessor_config.json": '{"size": 3}',
        "special_tokens_map.json": '{"eos_token": "<eos>"}',
        "LICENSE": "free",
    }
    for name, text in came.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "README.md").write_text("of the model before the edit", encoding="utf-8")
    (folder / "optimizer.pt").write_bytes(b"weights of another kind")
    model = load(str(folder), device="cpu", check=False)
    for _ in range(2):  # again over the first
        model.export(tmp_path / "out")
        assert {
            name: (tmp_path / "out" / name).read_text(encoding="utf-8") for name in came
        } == came
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert not {"README.md", "optimizer.pt"} & {path.name for path in (tmp_path / "out").iterdir()}
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    again = load(str(tmp_path / "out"), device="cpu", check=False)
    assert again.weight_hash == model.weight_hash and again.tokenizer.chat_template == template
    assert (tmp_path / "out" / WEIGHTS).stat().st_mode & 0o777 == (
        tmp_path / "out"
    ).stat().st_mode & 0o666


def test_export_without_generation_settings_writes_none(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").unlink()
    model = load(str(folder), device="cpu", check=False)
    model.export(tmp_path / "out")
    assert not (tmp_path / "out" / "generation_config.json").exists()
    assert load(str(tmp_path / "out"), device="cpu", check=False).weight_hash == model.weight_hash


def test_export_of_a_model_made_in_memory_keeps_its_generation_settings(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    hf = make_hf("llama")
    hf.generation_config = GenerationConfig(**ENDS)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token="<eos>"
    )
    tokenizer.chat_template = "{{ messages }}"
    model = LanguageModel(hf, tokenizer, "chat", check=False)
    model.export(tmp_path)
    written = GenerationConfig.from_pretrained(tmp_path)
    assert {name: getattr(written, name) for name in ENDS} == ENDS
    again = load(str(tmp_path), device="cpu", check=False)
    assert (
        again.tokenizer.chat_template == "{{ messages }}" and again.weight_hash == model.weight_hash
    )


def test_export_over_an_older_model_leaves_nothing_of_it_and_other_files_alone(
    folder: Path, model_folder: Path, tmp_path: Path
) -> None:
    as_shards(folder)
    (folder / "chat_template.jinja").write_text("old", encoding="utf-8")
    (folder / "notes.md").write_text("mine", encoding="utf-8")
    model = load(str(model_folder), device="cpu", check=False)
    model.export(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in model_folder.iterdir()} | {"notes.md"}
    assert load(str(folder), device="cpu", check=False).weight_hash == model.weight_hash


def test_export_refuses_its_own_folder_a_file_and_a_folder_of_other_things(
    folder: Path, tmp_path: Path
) -> None:
    model = load(str(folder), device="cpu", check=False)
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(ModelError, match="was loaded from, and would be lost; give another folder"):
        model.export(folder)
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="it is a file"):
        model.export(tmp_path / "file")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").touch()
    with pytest.raises(ModelError, match="other files lie there"):
        model.export(tmp_path / "work")
    assert (folder / WEIGHTS).read_bytes() == before
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["thesis.txt"]
