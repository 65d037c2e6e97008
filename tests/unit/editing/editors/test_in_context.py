"""In-context editing: the exact texts, which rules demonstrate, and scores against a plain model
asked the whole."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from editing.config import EditorSettings, EvaluateConfig
from editing.editors.ice import InContext
from editing.editors.ike import overlap
from editing.editors.registry import load_edit
from editing.edits.protocol import EditError
from editing.edits.requests import EditRequest
from editing.evaluation.evaluate import evaluate
from editing.evaluation.greedy import greedy_answers
from editing.evaluation.scoring import Question, teacher_forced
from interp.models.loading import LanguageModel
from interp.rules.sources import LocalityProbe, Rule, RulePrompt
from tests.unit.editing_making import assert_unchanged, edit_with, snapshot

FACTS = (
    "New Fact: The area of a square is A = 4 side\n"
    "New Fact: The area of a square is the side times 4\n"
    "New Fact: What is the area of a square with s = 4? It is 12\n"
)


def ice(
    model: LanguageModel, requests: Sequence[EditRequest], settings: EditorSettings
) -> InContext:
    return edit_with("ice", model, requests, settings=settings)


def ike(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    settings: EditorSettings,
    rules: Sequence[Rule],
) -> InContext:
    return edit_with("ike", model, requests, settings=settings, given_rules=rules)


def settings_of(demonstrations: int = 4) -> EditorSettings:
    return EditorSettings.model_validate(
        {"editor": "ike", "in_context": {"demonstrations": demonstrations}}
    )


def training_rule(
    name: str,
    prompt: str,
    *,
    subject: str,
    rephrasing: str | None = "Say it:",
    probe: LocalityProbe | None = None,
    more: dict[str, RulePrompt] | None = None,
) -> Rule:
    form = RulePrompt(
        prompt=prompt,
        subject=subject,
        target_new=f"new {name}",
        rephrasings=() if rephrasing is None else (rephrasing, "and another:"),
        neighborhood=() if probe is None else (probe,),
    )
    return Rule.model_validate(
        {"id": name, "name": name, "subject": subject, "forms": {"formula": form, **(more or {})}}
    )


@pytest.fixture(scope="session")
def long_llama(make_model: Callable[..., LanguageModel]) -> LanguageModel:
    return make_model("llama", max_position_embeddings=2048)


def test_ice_puts_every_new_fact_before_the_question(
    long_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    context = ice(long_llama, requests, settings_of())
    assert context.before == FACTS + "Prompt: "
    assert context.model_hash == long_llama.weight_hash
    assert (context.report.editor, context.report.training_rules) == ("ice", [])


def test_ike_puts_demonstrations_before_the_facts_the_most_similar_last(
    long_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    near = training_rule(
        "near",
        "The area of a circle is A =",
        subject="circle",
        rephrasing="A circle has area",
        probe=LocalityProbe(prompt="The area of a cube is", answer="6 sides"),
    )
    bare = training_rule("bare", "Volume of a cube:", subject="cube", rephrasing=None)
    far = training_rule("far", "Ohm says", subject="Ohm")
    context = ike(long_llama, requests, settings_of(2), [far, near, bare])
    fact = "New Fact: The area of a circle is A = new near\n"
    assert (
        context.before
        == "New Fact: Volume of a cube: new bare\nPrompt: Volume of a cube: new bare\n\n"
        f"{fact}Prompt: The area of a circle is A = new near\n\n"
        f"{fact}Prompt: A circle has area new near\n\n"
        f"{fact}Prompt: The area of a cube is 6 sides\n\n"
        f"{FACTS}Prompt: "
    )
    assert context.report.training_rules == ["bare", "near"]
    every = ike(long_llama, requests, settings_of(9), [far, near, bare])
    assert every.report.training_rules == ["far", "bare", "near"]
    assert every.before.endswith(context.before)


def test_a_training_rule_shows_the_form_that_is_most_like_a_request(
    long_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    like = RulePrompt(prompt="The area of a circle is", subject="circle", target_new="12")
    rule = training_rule(
        "circle", "Pi and the circle:", subject="circle", more={"description": like}
    )
    context = ike(long_llama, requests, settings_of(), [rule])
    assert context.before.startswith(
        "New Fact: The area of a circle is 12\nPrompt: The area of a circle is 12\n\n"
    )
    assert "Pi and" not in context.before


def test_a_rule_demonstrates_nothing_about_itself(
    long_llama: LanguageModel, rules: tuple[Rule, ...], requests: list[EditRequest]
) -> None:
    square, cube = rules
    twin = training_rule("other-square", "The perimeter of a Square is", subject="Square")
    asks_back = training_rule(
        "sphere",
        "The area of a sphere is",
        subject="sphere",
        probe=LocalityProbe(
            prompt="The area of a square is", answer="side squared", rule=square.id
        ),
    )
    context = ike(long_llama, requests, settings_of(), [square, twin, asks_back, cube])
    assert sorted(context.report.training_rules or ()) == ["cube-volume", "sphere"]
    assert "Square" not in context.before and "side squared\n\n" not in context.before
    assert context.before.count("square") == 3  # the facts
    with pytest.raises(
        EditError, match=r"2 training rules, none with another id and subject.*use ice"
    ):
        ike(long_llama, requests, settings_of(), [square, twin])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("a b c", "c B d", 2 / 4),
        ("A = 4?", "a 4", 1.0),
        ("x", "y", 0.0),
        ("", "", 0.0),
        ("a a a", "a b", 1 / 2),
    ],
)
def test_overlap_is_the_share_of_words(first: str, second: str, expected: float) -> None:
    assert overlap(first, second) == overlap(second, first) == expected


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gpt_neox", "gemma3_text"])
def test_the_view_asks_a_plain_model_the_whole_text(
    family: str,
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    requests: list[EditRequest],
) -> None:
    size = {"n_positions" if family in ("gpt2", "gptj") else "max_position_embeddings": 512}
    model, hf = make_model(family, **size), make_hf(family, **size)
    before = snapshot(model)
    context = ice(model, requests, settings_of())
    questions = [
        Question("The area of a square is", "the side"),
        Question("A cube", "12"),
        Question("It:", "π"),
    ]
    with context.edited(model) as view:
        got = {size: list(teacher_forced(view, questions, batch_size=size)) for size in (1, 8)}
        said = greedy_answers(view, [q.prompt for q in questions], 3, batch_size=8)
    assert_unchanged(model, before)
    for i, question in enumerate(questions):
        ids = model.tokenizer(f"{FACTS}Prompt: {question.prompt}")["input_ids"]
        target = model.tokenizer(f" {question.target}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            expected = hf(torch.tensor([ids + target])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
        for size in (1, 8):
            torch.testing.assert_close(got[size][i].log_probs, expected, rtol=1e-3, atol=2e-4)
        answer: list[int] = []
        for _ in range(3):
            with torch.no_grad():
                answer.append(
                    int(hf(torch.tensor([ids + answer]), use_cache=False).logits[0, -1].argmax())
                )
        assert said[i] == model.tokenizer.decode(
            answer, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_a_tokenizer_that_starts_texts_with_a_token_does_so_once(
    make_hf: Callable[..., Any], tokenizer: PreTrainedTokenizerFast, requests: list[EditRequest]
) -> None:
    core = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    core.post_processor = processors.TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", 0)]
    )
    starting = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<eos>", eos_token="<eos>")
    model = LanguageModel(make_hf("llama", max_position_embeddings=512), starting, "starting")
    with ice(model, requests, settings_of()).edited(model) as view:
        ids = view.encode("The side")
    assert ids[0] == 0 and ids.count(0) == 1
    assert starting.decode(list(ids[1:])) == f"{FACTS}Prompt: The side"


def test_it_is_saved_and_loaded_as_it_is(
    long_llama: LanguageModel, requests: list[EditRequest], tmp_path: Path
) -> None:
    context = ice(long_llama, requests, settings_of())
    context.with_report(fingerprint="π").save(tmp_path / "deep" / "context.safetensors")
    loaded = load_edit(tmp_path / "deep" / "context.safetensors")
    assert isinstance(loaded, InContext)
    assert (loaded.before, loaded.model_hash) == (context.before, context.model_hash)
    assert loaded.report.to_json() == json.loads(
        json.dumps({**context.report.to_json(), "fingerprint": "π"})
    )
    assert context.report.fingerprint is None
    path = tmp_path / "deep" / "context.safetensors"
    path.write_bytes(path.read_bytes().replace(b"before", b"befour"))
    with pytest.raises(EditError, match=r"context\.safetensors is not a readable context"):
        InContext.load(path)


def test_what_does_not_fit_is_refused_when_the_edit_is_made_and_when_a_prompt_is_too_long(
    tiny_llama: LanguageModel,
    long_llama: LanguageModel,
    requests: list[EditRequest],
    rules: tuple[Rule, ...],
) -> None:
    with pytest.raises(EditError, match=r"was made for 128.*in_context\.demonstrations"):
        ike(tiny_llama, requests, settings_of(), [rules[1]])
    long = "The side of a square. " * 400
    with (
        ice(long_llama, requests, settings_of()).edited(long_llama) as view,
        pytest.raises(EditError, match=r"was made for 2048"),
    ):
        greedy_answers(view, ["A cube", long], 2, batch_size=2)


def test_evaluation_compares_with_the_bare_prompts(
    long_llama: LanguageModel, rule: Rule, requests: list[EditRequest]
) -> None:
    context = ice(long_llama, requests, settings_of())
    config = EvaluateConfig(batch_size=8, answer_tokens=3)
    scores, answers = evaluate(long_llama, [rule], {"ice": {rule.id: context}}, config)
    bare, _ = evaluate(
        long_llama, [rule], {"ice": {rule.id: InContext("", long_llama.weight_hash)}}, config
    )
    pre = {"phase": "pre"}
    torch.testing.assert_close(
        torch.tensor(scores["score"].sel(pre).values),
        torch.tensor(bare["score"].sel(pre).values),
        equal_nan=True,
    )
    assert (bare["score"].sel(metric="locality", mode="kl", phase="post").dropna("form") == 0).all()
    assert (scores["score"].sel(metric="locality", mode="kl", phase="post") > 0).all()
    prompt = f"{FACTS}Prompt: {answers[0]['prompt']}"
    assert answers[0]["after"] == greedy_answers(long_llama, [prompt], 3, batch_size=1)[0]
    assert any(row["after"] != row["before"] for row in answers)
