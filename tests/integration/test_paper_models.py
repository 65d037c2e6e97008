"""The paper's four models through the whole chain: their own classes and configurations with random
weights, at reduced depth and width, and with the published settings of each.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from editing.edits.delta import EditDelta
from editing.presets import preset
from interp.app.run import Run
from interp.rules.sources import Rule
from tests.unit.run_inputs import write_inputs

CONFIGS = Path(__file__).parents[1] / "data" / "configs"
MODELS = sorted(path.name for path in CONFIGS.iterdir())
DEPTH, HEAD, FEWER = 10, 16, 4
"""Blocks (the published ones are 3 to 8), width of a head, and by how many heads are divided."""
SETTINGS: dict[str, Any] = {
    "trace": {
        "window": 1,
        "samples": 8,
        "span": "content",
        "answer": "greedy",
        "answer_tokens": 2,
        "components": ["mlp"],
        "positions": ["subject_last"],
    },
    "profile": {"bootstrap": 20},
    "select": {"strategy": "window", "width": 1, "bootstrap": 20},
    "edit": {"editors": ["dmle", "memit"], "steps": 2, "contexts": 1, "splits": ["train", "test"]},
    "evaluate": {"greedy": False},
}


def reduced(name: str) -> dict[str, Any]:
    """The configuration with fewer blocks and heads in the same ratios."""
    values = json.loads((CONFIGS / name / "config.json").read_text(encoding="utf-8"))
    if values["model_type"] == "gptj":
        heads = values["n_head"] // FEWER
        return values | {
            "n_layer": DEPTH,
            "n_head": heads,
            "n_embd": heads * HEAD,
            "rotary_dim": values["rotary_dim"] * HEAD // (values["n_embd"] // values["n_head"]),
        }
    heads = values["num_attention_heads"] // FEWER
    width = heads * HEAD
    return values | {
        "num_hidden_layers": DEPTH,
        "max_window_layers": DEPTH,
        "num_attention_heads": heads,
        "num_key_value_heads": values["num_key_value_heads"] // FEWER,
        "hidden_size": width,
        "intermediate_size": width * values["intermediate_size"] // values["hidden_size"],
    }


@pytest.fixture
def model(name: str, tokenizer: Any, tmp_path: Path) -> Path:
    """The folder of a model with random weights, under the model's name."""
    folder = tmp_path / name
    values = reduced(name) | {"vocab_size": len(tokenizer), "torch_dtype": "float32"}
    values["initializer_range"] = 0.2  # so that what is corrupted shows
    values |= {key: tokenizer.eos_token_id for key in ("bos_token_id", "eos_token_id")}
    kind = values.pop("model_type")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values)).save_pretrained(
            folder
        )
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.golden
@pytest.mark.parametrize("name", MODELS)
def test_the_whole_chain_runs_with_the_published_settings(
    name: str, model: Path, rule: Rule, tmp_path: Path, dmle: Callable[..., tuple[int, str]]
) -> None:
    names = (("square-1", "train"), ("square-2", "test"))
    rules = [rule.model_copy(update={"id": each, "split": split}) for each, split in names]
    write_inputs(tmp_path, rules, SETTINGS)
    folder = tmp_path / "run"
    code, said = dmle(
        "run",
        "--config",
        tmp_path / "config.yaml",
        "--run",
        folder,
        "--model",
        model,
        "--preset",
        "paper",
    )
    assert code == 0, said
    assert "route: fast" in said
    run = Run(folder, progress=None)
    assert run.load("effects.nc").sizes["layer"] == DEPTH
    scores = run.load("scores.nc")
    assert set(scores["editor"].values) == {"dmle", "memit"} and scores.sizes["rule"] == 2
    first, last = map(int, preset(name, "memit")["block"].split("-"))
    made = EditDelta.load(folder / "deltas" / "memit" / "square-1.safetensors")
    assert sorted(made.layers.values()) == list(range(first, last + 1))
    drawn = {path.name for path in (folder / "figures").glob("*.pdf")}
    assert {"layer-profile.pdf", "edit-scores-token_accuracy.pdf"} <= drawn
    assert (folder / "report.html").is_file()
