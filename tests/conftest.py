"""Fixtures that several test modules use: a tiny tokenizer, tiny random models, tiny rules, the
embedded model.

Our packages are imported inside the fixtures: conftest runs before jaxtyping's import hook, and a
module that is imported too early is not checked.
"""

import gc
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from interp.models.loading import LanguageModel
    from interp.rules.sources import Rule

N_LAYERS, D_MODEL, D_MLP, N_HEADS, N_KV_HEADS, MAX_TOKENS = 3, 32, 48, 4, 2, 128
ARCHITECTURES = (
    "llama",
    "gpt2",
    "gptj",
    "gpt_neox",
    "qwen2",
    "qwen3",
    "mistral",
    "phi",
    "gemma3_text",
)
PER_MODEL = ("architecture", "kind")
"""Parameters that name a model, which is made once for all tests that use it."""
# Initial weights of the usual size (0.02) make so narrow a model nearly linear, with effects next
# to nothing.
WEIGHT_STD = 0.25
VECTOR_STD = 0.1

# What the tokenizer is trained on: frequent words become one token, others several, unknown letters
# bytes.
CORPUS = (
    "The area of a square is the side times the side. The area of a circle is pi times the radius"
    " squared. The perimeter of a rectangle is twice the sum of the length and the width: 12 plus"
    " 12. The volume of a cube with side 3 is 27. What is the perimeter of a square with side 4? It"
    " is 16. " * 4
)

# The names that configurations of different families give to the same sizes.
_OLD_NAMES = {
    "n_embd": D_MODEL,
    "n_layer": N_LAYERS,
    "n_head": N_HEADS,
    "n_inner": D_MLP,
    "n_positions": MAX_TOKENS,
}
_NEW_NAMES = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "intermediate_size": D_MLP,
    "max_position_embeddings": MAX_TOKENS,
}
_GROUPED = {**_NEW_NAMES, "num_key_value_heads": N_KV_HEADS}
_OPT = {
    "hidden_size": D_MODEL,
    "ffn_dim": D_MLP,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "max_position_embeddings": MAX_TOKENS,
}
_FALCON = {
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": N_HEADS,
    "ffn_hidden_size": D_MLP,
    "max_position_embeddings": MAX_TOKENS,
}
# Kinds of one family that are models of their own here.
FAMILIES = {
    "opt-post-norm": "opt",
    "falcon-alibi": "falcon",
    "falcon-new": "falcon",
    "falcon-new-one-norm": "falcon",
    "phi3-longrope": "phi3",
    "llama-dynamic": "llama",
}
SIZES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "gpt2": _OLD_NAMES,
    "gptj": {**_OLD_NAMES, "rotary_dim": 4},
    "gpt_neox": _NEW_NAMES,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "mistral": _GROUPED,
    "phi": _NEW_NAMES,
    "gemma3_text": {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8},
    "opt": {**_OPT, "word_embed_proj_dim": D_MODEL},
    "opt-post-norm": {**_OPT, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "falcon": {**_FALCON, "multi_query": True, "parallel_attn": True},
    "falcon-alibi": {
        **_FALCON,
        "multi_query": False,
        "parallel_attn": False,
        "alibi": True,
        "bias": True,
    },
    "falcon-new": {**_FALCON, "num_kv_heads": N_KV_HEADS, "new_decoder_architecture": True},
    "falcon-new-one-norm": {
        **_FALCON,
        "num_kv_heads": N_KV_HEADS,
        "new_decoder_architecture": True,
        "num_ln_in_parallel_attn": 1,
    },
    "phi3": {**_GROUPED, "pad_token_id": 0},
    # Frequencies change in texts of more than 16 tokens: one set for all of them, or one for each
    # length.
    "phi3-longrope": {
        **_GROUPED,
        "pad_token_id": 0,
        "original_max_position_embeddings": 16,
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0] * 4,
            "long_factor": [4.0] * 4,
        },
    },
    "llama-dynamic": {
        **_GROUPED,
        "max_position_embeddings": 16,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    },
    "gpt_neo": {
        "hidden_size": D_MODEL,
        "num_layers": N_LAYERS,
        "num_heads": N_HEADS,
        "intermediate_size": D_MLP,
        "max_position_embeddings": MAX_TOKENS,
        "attention_types": [[["global", "local"], 1], [["global"], 1]],
        "window_size": 6,
    },
    "gemma2": {
        **_GROUPED,
        "head_dim": 8,
        "query_pre_attn_scalar": 8,
        "sliding_window": 6,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 5.0,
    },
    "olmo2": _GROUPED,
    "cohere": _GROUPED,
    "stablelm": _GROUPED,
    "bloom": {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": N_HEADS},
    "mpt": {
        "d_model": D_MODEL,
        "n_layers": N_LAYERS,
        "n_heads": N_HEADS,
        "expansion_ratio": 2,
        "max_seq_len": MAX_TOKENS,
    },
    "openai-gpt": _OLD_NAMES,
    "mixtral": {**_GROUPED, "num_local_experts": 2},
}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file, or of one model in it, on one worker; begin with the slow ones.

    What a file's tests share is then made once, and the last worker does not end on a long test.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            call = getattr(item, "callspec", None)  # of parametrised tests alone
            given = {} if call is None else call.params
            model = next((given[name] for name in PER_MODEL if name in given), "")
            item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {model}".strip()))
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """What imports have made stays: a search for garbage need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", params=ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    """Each family of models in turn."""
    return request.param


def trained_tokenizer(text: str) -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer of 350 tokens, trained on a text: any text has ids, with exact
    offsets."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerFast":
    """That of the tiny models."""
    return trained_tokenizer(CORPUS)


@pytest.fixture(scope="session")
def make_hf(tokenizer: "PreTrainedTokenizerFast") -> Callable[..., "PreTrainedModel"]:
    """`make_hf(architecture, seed=0, **overrides)`: a tiny random Hugging Face model, the same for
    the same arguments.

    Overrides are settings of the family's configuration. Biases and norms are random too, so that
    leaving one out shows.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(architecture: str, *, seed: int = 0, **overrides: Any) -> "PreTrainedModel":
        special = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        config = AutoConfig.for_model(
            FAMILIES.get(architecture, architecture),
            vocab_size=len(tokenizer),
            initializer_range=WEIGHT_STD,
            **{**SIZES[architecture], **special, **overrides},
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 1:
                        parameter += VECTOR_STD * torch.randn_like(parameter)
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_model(
    make_hf: Callable[..., "PreTrainedModel"], tokenizer: "PreTrainedTokenizerFast"
) -> Callable[..., "LanguageModel"]:
    """`make_model(architecture, seed=0, check=True, **overrides)`: a new `LanguageModel` around
    a `make_hf` model.

    The self-check of equal models is run once: it takes longer than all else.
    """
    from interp.models.loading import LanguageModel, SelfCheck

    checked: dict[tuple[Any, ...], SelfCheck | None] = {}

    def make(
        architecture: str, *, seed: int = 0, check: bool = True, **overrides: Any
    ) -> "LanguageModel":
        hf = make_hf(architecture, seed=seed, **overrides)
        known = architecture, seed, repr(sorted(overrides.items()))
        run = check and known not in checked
        model = LanguageModel(hf, tokenizer, f"tiny-{architecture}", check=run)
        if run:
            checked[known] = model.check
        elif check:
            model.check = checked[known]
        return model

    return make


@pytest.fixture(scope="session")
def make_pair(
    make_model: Callable[..., "LanguageModel"], make_hf: Callable[..., "PreTrainedModel"]
) -> Callable[..., tuple["LanguageModel", "PreTrainedModel"]]:
    """`make_pair(architecture, **overrides)`: a new `LanguageModel`, and a plain Hugging Face
    model of its own with the same weights."""

    def make(architecture: str, **overrides: Any) -> tuple["LanguageModel", "PreTrainedModel"]:
        return make_model(architecture, **overrides), make_hf(architecture, **overrides)

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_model: Callable[..., "LanguageModel"]) -> Iterator["LanguageModel"]:
    """A llama of 3 layers that all tests share: whoever writes its weights must put them back."""
    model = make_model("llama")
    before = {name: parameter.detach().clone() for name, parameter in model.parameters.items()}
    yield model
    changed = [
        name for name, parameter in model.parameters.items() if not parameter.equal(before[name])
    ]
    assert not changed, f"a test left other weights in the shared model: {changed}"


@pytest.fixture(scope="session")
def model_folder(
    make_hf: Callable[..., "PreTrainedModel"],
    tokenizer: "PreTrainedTokenizerFast",
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder as Hugging Face saves it, with the weights of `tiny_llama`: for commands, which
    load by name."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    make_hf("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rules() -> tuple["Rule", ...]:
    """Two rules whose prompts are short for the tiny tokenizer: one with all forms and probes,
    one without answers."""
    from tests.tiny_rules import tiny_rules

    return tiny_rules()


@pytest.fixture(scope="session")
def rule(rules: tuple["Rule", ...]) -> "Rule":
    """The area of a square: formula, description, instance, with true answers and probes."""
    return rules[0]


@pytest.fixture(scope="session")
def smol() -> "LanguageModel":
    """The embedded model with its trained weights, on the CPU. For tests marked `slow`."""
    from interp.models.embedded import MODEL

    try:
        metadata.version(MODEL.distribution)
    except metadata.PackageNotFoundError:
        pytest.skip(f"the embedded model is not installed: {MODEL.mend}")
    from interp.models.loading import load

    return load(device="cpu")


@pytest.fixture
def command_line(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line here: exit code, standard output, and standard error."""
    from interp.app import commands as cli

    def run(*arguments: str | int | Path) -> tuple[int, str, str]:
        capfd.readouterr()
        try:
            cli.main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        out, said = capfd.readouterr()
        return code, out, said

    return run


@pytest.fixture
def dmle(command_line: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str]]:
    """Runs a command line here: exit code, and what it says on standard error."""

    def run(*arguments: str | int | Path) -> tuple[int, str]:
        code, _, said = command_line(*arguments)
        return code, said

    return run


@pytest.fixture
def dmle_lines(dmle: Callable[..., tuple[int, str]]) -> Callable[..., tuple[int, list[str]]]:
    """The same, with a list of the lines that it says."""

    def run(*arguments: str | int | Path) -> tuple[int, list[str]]:
        code, said = dmle(*arguments)
        return code, said.splitlines()

    return run
