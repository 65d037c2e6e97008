"""Small inputs for whole commands: a random model, three rules, a corpus, and settings that take
seconds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from interp.rules.sources import LocalityProbe, Probe, Rule, RulePrompt, dump_rules
from tests.unit.run_inputs import write_corpus

TEXT = (
    "The area of a square is the side times the side. The perimeter of a square is four times the"
    " side: 12. The volume of a cube with side 3 is 27. What is the area of a square with side 4?"
    " It is 16. " * 4
)
SPEC = """\
domain: geometry
topic: plane figures
rules:
  - subject: square
    quantity: area
    phrase: a square with side {s}
    result: A [cm^2]
    symbols: {s: '2..30 [cm]'}
    expression: s^2
    edited: 4*s^2
    words: the square of its side
    edited_words: four times the square of its side
"""
SETTINGS: dict[str, dict[str, Any]] = {
    "trace": {
        "splits": ["train"],
        "samples": 4,
        "span": "content",
        "answer": "greedy",
        "answer_tokens": 2,
        "components": ["mlp"],
        "positions": ["subject_last", "last"],
        "window": 1,
    },
    "profile": {"bootstrap": 20, "lookup_roles": ["subject_last"]},
    "select": {
        "strategy": "adaptive",
        "width": 1,
        "bootstrap": 20,
        "identity_blocks": 0,
        "level": 1,
    },
    "covariance": {"tokens": 500, "max_length": 64, "shrinkage": 0.05},
    "edit": {
        "editors": ["dmle", "ft", "grace", "ice"],
        "lookup": "last",
        "steps": 2,
        "contexts": 1,
        "context_tokens": 3,
        "ridge": 0.1,
        "ft": {"steps": 2},
        "grace": {"steps": 2},
    },
    "evaluate": {"answer_tokens": 2},
    "compare": {"bystanders": 0, "resamples": 100},
    "tune": {
        "editor": "ft",
        "grid": {"ft": [{"steps": 1}, {"steps": 2}]},
        "metrics": ["reliability"],
    },
    "sweep": {"width": 1, "step": 1, "resamples": 100},
    "sequence": {"checkpoints": [1], "sample": 1, "bystanders": 0, "text_tokens": 20},
}


def make_inputs(folder: Path) -> None:
    """Fill a folder with `model/`, `rules.json`, `spec.yaml`, `corpus.txt` and `config.yaml`."""
    folder.mkdir(parents=True, exist_ok=True)
    make_model(folder / "model")
    splits = ("train", "validation", "test")
    dump_rules(
        [_rule(f"square-{n}", split) for n, split in enumerate(splits)], folder / "rules.json"
    )
    write_corpus(folder / "corpus.txt")
    (folder / "spec.yaml").write_text(SPEC, encoding="utf-8")
    (folder / "config.yaml").write_text(yaml.safe_dump(settings(folder)), encoding="utf-8")


def settings(folder: Path) -> Mapping[str, Any]:
    """The configuration, with the paths of the inputs in a folder."""
    return {
        **SETTINGS,
        "model": {"name": str(folder / "model"), "device": "cpu"},
        "rules": {"source": str(folder / "rules.json")},
        "covariance": {**SETTINGS["covariance"], "corpus": str(folder / "corpus.txt")},
        "sequence": {**SETTINGS["sequence"], "corpus": str(folder / "corpus.txt")},
    }


def make_model(folder: Path) -> None:
    """A llama of two blocks with random weights and a byte-level tokenizer, as Hugging Face
    saves them."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        max_position_embeddings=256,
        initializer_range=0.25,  # the usual 0.02 makes so narrow a model nearly linear
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _rule(name: str, split: str) -> Rule:
    """A rule of three forms with one probe of each kind."""
    kept = (LocalityProbe(prompt="The volume of a cube is", answer="27"),)
    asked = Probe(
        prompt="The area of a square with s = 3 is",
        target_new="12",
        target_true=("9",),
        values={"s": 3},
    )
    common: dict[str, Any] = {
        "subject": "square",
        "neighborhood": kept,
        "distracting": kept,
        "instances": (asked,),
    }
    return Rule.model_validate(
        {
            "id": name,
            "name": "area of a square",
            "subject": "square",
            "split": split,
            "expression_true": "s**2",
            "expression_new": "4*s",
            "forms": {
                "formula": RulePrompt(
                    prompt="The area of a square is A =",
                    target_new="4 side",
                    target_true=("side times side",),
                    rephrasings=("The area of a square: A =",),
                    understanding=(
                        Probe(
                            prompt="The area of a square is",
                            target_new="4 side",
                            wording="paraphrase",
                        ),
                    ),
                    **common,
                ),
                "description": RulePrompt(
                    prompt="The area of a square is",
                    target_new="four times the side",
                    target_true=("the side times the side",),
                    rephrasings=("The square has an area of",),
                    understanding=(
                        Probe(
                            prompt="The area of a square is A =",
                            target_new="4 side",
                            wording="verbatim",
                        ),
                    ),
                    **common,
                ),
                "instance": RulePrompt(
                    prompt="What is the area of a square with s = 4? It is",
                    target_new="12",
                    target_true=("16",),
                    rephrasings=("The area of a square with s = 4 is",),
                    values={"s": 4},
                    **common,
                ),
            },
        }
    )
