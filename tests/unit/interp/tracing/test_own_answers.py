"""Prompts and answers as tokens, for tokenizers of every habit; and the model's own answer,
given back as text."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    BloomConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    PreTrainedTokenizerFast,
)

from editing.evaluation.scoring import Question, in_own_tokens, teacher_forced
from interp.config import TraceConfig
from interp.errors import ModelError, TooLongError
from interp.models.loading import LanguageModel
from interp.rules.scripts import TextError
from interp.rules.sources import Rule, RulePrompt
from interp.tracing.fingerprint import trace_fingerprint
from interp.tracing.one_prompt import PromptRequest, report, trace_one
from interp.tracing.prompt import prepare

TEXT = [
    "The capital of France is Paris. Capital (France): (Paris) and 12 more.",
    "東京は日本の首都",
] * 8
PROMPTS = (
    ("The capital of France is", "France"),
    ("The capital of France is ", "France"),
    ("Capital (France): (", "France"),
    ("Q: capital of France?\nA:\n", "France"),
    ("日本の首都は", "日本"),
)


def wrapped(core: Tokenizer, *, bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    if bos or eos:
        single = f"{'<s> ' * bos}$A{' </s>' * eos}"
        ids = [(name, core.token_to_id(name)) for name in ("<s>", "</s>")]
        core.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def byte_level(*, prefix_space: bool = False, **added: bool) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXT, trainer)
    return wrapped(core, **added)


def metaspace(*, special_bytes: bool = False, **added: bool) -> PreTrainedTokenizerFast:
    """Like Llama 2's: a mark before the text, bytes for unknown letters, and tokens that reach
    over spaces."""
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=special, show_progress=False)
    core.train_from_iterator(TEXT, trainer)
    if not special_bytes:
        held = json.loads(core.to_str())
        held["added_tokens"] = held["added_tokens"][:3]
        core = Tokenizer.from_str(json.dumps(held))
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return wrapped(core, **added)


KINDS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "plain": byte_level,
    "BOS": lambda: byte_level(bos=True),
    "EOS": lambda: byte_level(eos=True),
    "both": lambda: byte_level(bos=True, eos=True),
    "prefix space": lambda: byte_level(prefix_space=True),
    "metaspace": lambda: metaspace(bos=True),
    "metaspace with EOS": lambda: metaspace(bos=True, eos=True),
}


def model_of(tokenizer: PreTrainedTokenizerFast, seed: int = 0, **changes: Any) -> LanguageModel:
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 96,
        "initializer_range": 0.4,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = LlamaForCausalLM._from_config(
            LlamaConfig(**{**sizes, **changes}), attn_implementation="eager"
        )
    return LanguageModel(hf, tokenizer, "tiny", check=False)


# Bytes that a decoder leaves out: the text of an answer then is not all of it.
LOSSY = {"special bytes": lambda: metaspace(bos=True, special_bytes=True)}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    return model_of(tokenizer)


CONFIG = TraceConfig(samples=2, components=("resid",), answer_tokens=3, positions="all")


@pytest.mark.parametrize("kind", [*KINDS, *LOSSY])
def test_the_own_answer_given_back_scores_what_it_scored(kind: str) -> None:
    """Many models, so that own answers begin with and without a space, are white space, or are
    broken characters."""
    seen, tokenizer = [], {**KINDS, **LOSSY}[kind]()
    for seed in range(2):
        model = model_of(tokenizer, seed)
        for prompt, subject in PROMPTS:
            try:
                own = trace_one(model, PromptRequest(prompt, subject), CONFIG)
            except ValueError as error:
                assert "is empty: it ends the text there" in str(error)
                continue
            text = own["answer"].item()
            given = trace_one(model, PromptRequest(prompt, subject, answer=text), CONFIG)
            assert given["clean"].item() == own["clean"].item(), (seed, prompt, text)
            assert given.attrs["answer_source"] == "given"
            seen.append(text)
    assert len(seen) > 4 and len(set(seen)) > 2


def test_an_answer_in_a_rule_file_that_is_the_own_one_scores_what_it_scored(
    model: LanguageModel,
) -> None:
    for prompt, subject in PROMPTS:
        ids = prepare(model, rule_of(prompt, subject), "formula", CONFIG).answer.ids
        text = prepare(model, rule_of(prompt, subject), "formula", CONFIG).answer.text
        if text.strip():
            assert (
                prepare(model, rule_of(prompt, subject, (text,)), "formula", CONFIG).answer.ids
                == ids
            )


def rule_of(prompt: str, subject: str, truths: tuple[str, ...] = (), **more: Any) -> Rule:
    form = RulePrompt(prompt=prompt, subject=subject, target_new="x", target_true=truths, **more)
    return Rule(id="r", name="capital", subject=subject, forms={"formula": form})


@pytest.mark.parametrize(
    ("prompt", "answer", "text"),
    [
        ("The capital of France is", "Paris", "The capital of France is Paris"),
        ("The capital of France is ", "Paris", "The capital of France is Paris"),
        ("The capital of France is ", " Paris", "The capital of France is Paris"),
        ("Capital (France): (", "Paris", "Capital (France): (Paris"),
        ("Q: capital of France?\nA:\n", "Paris", "Q: capital of France?\nA:\nParis"),
        ("日本の首都は", "東京", "日本の首都は東京"),
        ("The capital of Japan is", "東京", "The capital of Japan is東京"),
    ],
)
def test_tokens_of_prompt_and_answer_are_a_reading_of_the_text(
    prompt: str, answer: str, text: str, model: LanguageModel
) -> None:
    head, tail = model.encode(prompt).ids, model.encode_continuation(answer, prompt)
    assert model.tokenizer.eos_token_id not in (*head, *tail)
    assert model.decode((*head, *tail)).strip() == text.strip()
    whole = model.encode(text).ids
    if whole[: len(head)] == head:  # no token reaches over the border
        assert (*head, *tail) == whole


@pytest.mark.parametrize("answer", ["北京", "東京", "กรุงเทพ", "。"])
def test_no_space_is_scored_before_an_answer_of_an_unspaced_script(
    answer: str, model: LanguageModel
) -> None:
    alone = model.encode_continuation(answer)
    assert model.decode_continuation(alone) == answer
    assert alone == model.encode_continuation(answer, "日本の首都は")
    assert (
        model.decode_continuation(model.encode_continuation(answer, "It is", space=True))
        == f" {answer}"
    )


def test_one_begin_of_text_however_it_is_written(model: LanguageModel) -> None:
    plain, typed = model.encode("The capital").ids, model.encode("<s>The capital").ids
    begin = model.tokenizer.bos_token_id
    assert typed.count(begin) == 1
    if begin in plain and "▁" not in model.tokenizer.convert_ids_to_tokens(list(typed)):
        assert typed[0] == begin
    assert typed.count(begin) + model.encode("a").ids.count(model.tokenizer.eos_token_id) == 1


def test_typed_special_tokens_are_said_in_a_prompt_and_refused_elsewhere() -> None:
    model = model_of(byte_level(bos=True))
    traced = trace_one(model, PromptRequest("<s>The capital of France is", "France"), CONFIG)
    assert any(
        "written in the prompt" in line and line.endswith(": <s>") for line in report(traced)
    )
    with pytest.raises(
        ModelError, match="the answer 'Paris</s>' holds '</s>', which is a special token"
    ):
        model.encode_continuation("Paris</s>", "The capital is")
    with pytest.raises(ModelError, match="the subject 'of<s>' holds '<s>'"):
        trace_one(model, PromptRequest("The capital of<s> is", "of<s>"), CONFIG)


def test_how_the_answer_is_joined_is_said_and_can_be_said() -> None:
    model, ask = (
        model_of(byte_level()),
        PromptRequest("The capital of France is", "France", answer="Paris"),
    )
    spaced, written_on = (
        trace_one(
            model, PromptRequest(ask.prompt, ask.subject, answer="Paris", space=space), CONFIG
        )
        for space in (None, False)
    )
    assert any("answer: 'Paris' (given), after a space" in line for line in report(spaced))
    assert any(
        "answer: 'Paris' (given), directly after the prompt" in line for line in report(written_on)
    )
    assert spaced["clean"].item() != written_on["clean"].item()
    rule = rule_of(ask.prompt, ask.subject, ("Paris",), space=False)
    assert prepare(model, rule, "formula", CONFIG).answer.ids == model.encode_continuation(
        "Paris", ask.prompt, False
    )
    other = rule_of(ask.prompt, ask.subject, ("Paris",))
    assert trace_fingerprint(model, rule, "formula", CONFIG) != trace_fingerprint(
        model, other, "formula", CONFIG
    )


def test_a_blank_answer_that_is_not_the_own_one_is_refused() -> None:
    model = model_of(byte_level())
    own = trace_one(model, PromptRequest(*PROMPTS[0]), CONFIG)["answer"].item()
    assert own.strip()
    with pytest.raises(TextError, match="the answer is ' '; text is needed"):
        trace_one(model, PromptRequest(*PROMPTS[0], answer=" "), CONFIG)


def test_a_broken_character_is_the_own_answer_or_is_refused() -> None:
    """Own answers are cut at a token, also within a character: as text that is U+FFFD, which is
    no text to score."""
    broken = 0
    for seed in range(4):
        model = model_of(byte_level(), seed)
        for prompt, subject in PROMPTS[3:]:
            own = trace_one(model, PromptRequest(prompt, subject), CONFIG)
            text = own["answer"].item()
            broken += text.endswith("\ufffd")
            with pytest.raises(TextError, match=r"holds U\+FFFD, a part of a character"):
                trace_one(model, PromptRequest(prompt, subject, answer=f"{text}x\ufffd"), CONFIG)
            given = trace_one(model, PromptRequest(prompt, subject, answer=text), CONFIG)
            assert given["clean"].item() == own["clean"].item()
    assert broken


def test_teacher_forcing_agrees_with_an_own_answer_of_other_tokens(model: LanguageModel) -> None:
    """A target in the words of the model's own answer is exactly right, whatever its tokens."""
    for prompt, _ in PROMPTS:
        ids = model.generate([model.encode(prompt).ids], 3)[0]
        text = model.decode_continuation(ids)
        if not text.strip() or text != text.rstrip():
            continue
        question = in_own_tokens(model, Question(prompt, text, space=False), ids)
        (forced,) = teacher_forced(model, [question], batch_size=1)
        if model.decode_continuation(forced.target) == text:
            assert forced.exact == 1 and forced.token_accuracy == 1, (prompt, text)


def test_lengths_beyond_the_positions_are_refused_before_anything_is_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(byte_level(bos=True), max_position_embeddings=24)
    monkeypatch.setattr(model, "generate", None)
    monkeypatch.setattr(model, "logits", None)
    long = "The capital of Italy is Rome, and the capital of France is"
    n_tokens = len(model.encode(long).ids)
    assert n_tokens > 24
    for answer in (None, "Paris"):
        with pytest.raises(
            TooLongError, match=rf"\({n_tokens} tokens\) with its answer .* was made for 24"
        ):
            trace_one(model, PromptRequest(long, "France", answer=answer), CONFIG)


def test_models_without_positions_have_no_limit() -> None:
    model = model_of(byte_level())
    model.config = BloomConfig()
    assert model.context_length > 10**9
    model.config = MptConfig(max_seq_len=7)
    assert model.context_length == 7
    model.config = GPT2Config(n_positions=9)
    assert model.context_length == 9


def test_a_prompt_without_a_token_to_trace_says_so() -> None:
    request, config = (
        PromptRequest("The capital: France", "France"),
        CONFIG.model_copy(update={"positions": ("last",)}),
    )
    with pytest.raises(ValueError, match=r"no token to trace: trace\.positions is last"):
        trace_one(model_of(byte_level()), request, config)
