"""Models from GGUF files: the weights of the file, made into a folder once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from interp.errors import ModelError
from interp.models.loading import load
from interp.results.cache import CACHE_VARIABLE

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, hf: Any, tokenizer: Any) -> None:
    """A llama as llama.cpp writes it: rows of queries and keys in its order of rotary halves."""
    config = hf.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges([" ".join(pair) for pair in merges_of(tokenizer)])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    for name, value in hf.state_dict().items():
        place = name.removesuffix(".weight")
        block = ""
        if place.startswith("model.layers."):
            _, _, layer, place = place.split(".", 3)
            block = f"blk.{layer}."
        array = value.float().numpy()
        if (n := heads.get(NAMES[place])) is not None:
            shape = array.shape
            array = array.reshape(n, 2, shape[0] // n // 2, shape[1]).swapaxes(1, 2).reshape(shape)
        writer.add_tensor(f"{block}{NAMES[place]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def merges_of(tokenizer: Any) -> list[list[str]]:
    """Merges of a byte-pair tokenizer."""
    return json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]


@pytest.fixture
def file(
    make_hf: Callable[..., Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, make_hf("llama"), tokenizer)
    return path


def test_the_model_of_a_file_is_that_of_its_weights(
    file: Path, make_hf: Callable[..., Any], tmp_path: Path
) -> None:
    model = load(str(file), device="cpu")
    ids = model.encode("The area of a square").ids
    expected = make_hf("llama")(torch.tensor([ids])).logits
    torch.testing.assert_close(model.logits(torch.tensor([ids])), expected, rtol=1e-4, atol=1e-5)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    assert len(made) == 1
    assert load(str(file), device="cpu").weight_hash == model.weight_hash
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.gguf"
    wrong.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"is no GGUF file, or it is damaged"):
        load(str(wrong))


def test_a_file_that_is_cut_short_is_refused(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ModelError, match=r"the GGUF file cannot be read"):
        load(str(file))
