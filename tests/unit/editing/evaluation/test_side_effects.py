"""Side effects: entropy by hand, perplexity against a plain run of a plain model, and edits of
every kind."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from editing.editors.grace import Codebook
from editing.editors.ice import InContext
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.protocol import EditError
from editing.evaluation import side_effects
from editing.evaluation.scoring import Question
from editing.evaluation.side_effects import (
    OPENINGS,
    TEXT_WORDS,
    Answers,
    Probes,
    compare,
    n_gram_entropy,
    probes_of,
)
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule

TEXTS = (
    "The perimeter of a rectangle is twice the sum of the length and the width.",
    "What is the volume?",
    "A circle has a radius, a square has a side; both have an area.",
)
KEYS = {
    "side_agreement",
    "side_kl",
    "side_accuracy_before",
    "side_accuracy_after",
    "perplexity_before",
    "perplexity_after",
    "entropy_before",
    "entropy_after",
}
FIRST = "The volume of a cube is"


@pytest.fixture
def probes() -> Probes:
    questions = (Question(FIRST, "the side times the side"), Question("A circle has", "12"))
    return Probes(questions, TEXTS, (FIRST, "The circle"), answer_tokens=6)


def random_delta(model: LanguageModel) -> EditDelta:
    name = model.down_projection(1).name
    generator = torch.Generator().manual_seed(0)
    update = LowRank(
        torch.randn(32, 2, generator=generator) / 3, torch.randn(48, 2, generator=generator) / 3
    )
    return EditDelta({name: update}, {name: 1}, model.weight_hash)


def plain_perplexity(hf: Any, tokenizer: Any, texts: tuple[str, ...], before: str = "") -> float:
    """One token at a time, each from a full run over what stands before it; first words predict
    only."""
    nll: list[float] = []
    for text in texts:
        first, rest = text.split(" ", 1)
        ids = tokenizer(before + first)["input_ids"]
        for token in tokenizer(" " + rest)["input_ids"]:
            with torch.no_grad():
                logits = hf(torch.tensor([ids])).logits[0, -1].double()
            nll.append(-math.log(torch.softmax(logits, -1)[token].item()))
            ids = [*ids, token]
    return math.exp(math.fsum(nll) / len(nll))


def test_entropy_by_hand() -> None:
    # Bigrams 12 23 31 12: shares 1/2 1/4 1/4, 1.5 bits. Trigrams 123 231 312: log2 3 bits.
    assert n_gram_entropy([1, 2, 3, 1, 2]) == pytest.approx(
        (2 / 3 * 1.5 + 4 / 3 * math.log2(3)) / 2
    )
    # Bigrams 12 21 12 21: 1 bit. Trigrams 121 212 121: shares 2/3 1/3.
    trigrams = 2 / 3 * math.log2(3 / 2) + 1 / 3 * math.log2(3)
    assert n_gram_entropy([1, 2, 1, 2, 1]) == pytest.approx((2 / 3 + 4 / 3 * trigrams) / 2)
    assert n_gram_entropy(list(range(18))) == pytest.approx((2 / 3 * math.log2(17) + 4 / 3 * 4) / 2)


@pytest.mark.parametrize("ids", [[], [5], [5, 6], [5] * 9])
def test_entropy_of_text_that_is_too_short_or_repeats_is_zero(ids: list[int]) -> None:
    assert n_gram_entropy(ids) == 0


@pytest.mark.parametrize("before", ["", "New Fact: 12\nPrompt: "])
def test_perplexity_equals_a_plain_loop(
    before: str, tiny_llama: LanguageModel, make_hf: Callable[..., Any], probes: Probes
) -> None:
    with InContext(before, tiny_llama.weight_hash).edited(tiny_llama) as view:
        answers = side_effects.ask(view, probes, batch_size=2)
    expected = plain_perplexity(make_hf("llama"), tiny_llama.tokenizer, TEXTS, before)
    assert compare(answers, answers)["perplexity_after"] == pytest.approx(expected, rel=1e-4)


def test_perplexity_of_a_plain_model_is_over_all_tokens_but_the_first(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any]
) -> None:
    texts = TEXTS[::2]  # their first words are one token each
    nll = 0.0
    n = 0
    for text in texts:
        ids = torch.tensor(tiny_llama.tokenizer(text)["input_ids"])
        with torch.no_grad():
            log_probs = make_hf("llama")(ids[None]).logits[0].double().log_softmax(-1)
        nll -= log_probs[:-1].gather(-1, ids[1:, None]).sum().item()
        n += len(ids) - 1
    got = side_effects.ask(tiny_llama, Probes((), texts, ()), batch_size=1)
    assert got.nll == pytest.approx(nll / n, rel=1e-5)


def test_the_same_model_has_no_side_effects(tiny_llama: LanguageModel, probes: Probes) -> None:
    once, again = (side_effects.ask(tiny_llama, probes, batch_size=4) for _ in range(2))
    got = compare(once, again)
    assert set(got) == KEYS
    assert got["side_agreement"] == 1 and got["side_kl"] == 0
    for name in ("side_accuracy", "perplexity", "entropy"):
        assert got[f"{name}_before"] == got[f"{name}_after"]


def test_a_real_edit_is_seen_as_a_plain_model_with_its_weights_says(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], probes: Probes
) -> None:
    delta, hf, tokenizer = random_delta(tiny_llama), make_hf("llama"), tiny_llama.tokenizer

    def logits(prompt: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return hf(torch.tensor([prompt])).logits[0].double()

    def run() -> tuple[list[torch.Tensor], list[list[int]], float]:
        at_answers, texts = [], []
        for q in probes.questions:
            prompt, target = (tokenizer(text)["input_ids"] for text in (q.prompt, " " + q.target))
            at_answers.append(logits(prompt + target)[len(prompt) - 1 : -1].log_softmax(-1))
        for opening in probes.prompts:
            ids, said = tokenizer(opening)["input_ids"], list[int]()
            while len(said) < probes.answer_tokens:
                token = int(logits(ids + said)[-1].argmax())
                if token == tokenizer.eos_token_id:
                    break
                said.append(token)
            texts.append(said)
        return at_answers, texts, plain_perplexity(hf, tokenizer, TEXTS)

    before = side_effects.ask(tiny_llama, probes, batch_size=4)
    with delta.edited(tiny_llama) as view:
        after = side_effects.ask(view, probes, batch_size=4)
    got = compare(before, after)

    was, said_before, perplexity_before = run()
    ((name, update),) = delta.updates.items()
    assert isinstance(update, LowRank)
    with torch.no_grad():
        hf.get_parameter(name).add_(update.dense())
    now, said_after, perplexity_after = run()
    targets = [torch.tensor(tokenizer(" " + q.target)["input_ids"]) for q in probes.questions]

    def mean(values: list[torch.Tensor]) -> float:
        return sum(value.double().mean().item() for value in values) / len(values)

    expected = {
        "side_agreement": mean(
            [a.argmax(-1) == b.argmax(-1) for a, b in zip(was, now, strict=True)]
        ),
        "side_kl": mean([(a.exp() * (a - b)).sum(-1) for a, b in zip(was, now, strict=True)]),
        "side_accuracy_before": mean(
            [a.argmax(-1) == t for a, t in zip(was, targets, strict=True)]
        ),
        "side_accuracy_after": mean([b.argmax(-1) == t for b, t in zip(now, targets, strict=True)]),
        "perplexity_before": perplexity_before,
        "perplexity_after": perplexity_after,
        "entropy_before": sum(map(n_gram_entropy, said_before)) / len(said_before),
        "entropy_after": sum(map(n_gram_entropy, said_after)) / len(said_after),
    }
    assert got == pytest.approx(expected, rel=1e-4)

    def kept(k: int) -> float:
        tops = [
            [
                len(set(a.topk(k)[1].tolist()) & set(b.topk(k)[1].tolist())) / k
                for a, b in zip(*pair, strict=True)
            ]
            for pair in zip(was, now, strict=True)
        ]
        return sum(sum(each) / len(each) for each in tops) / len(tops)

    more = {"side_top_5": kept(5), "side_top_10": kept(10)}
    assert more["side_top_5"] < 1
    assert compare(before, after, overlaps=True) == pytest.approx({**got, **more})
    assert got["side_agreement"] < 1 and got["side_kl"] > 1e-2
    assert abs(got["perplexity_after"] / got["perplexity_before"] - 1) > 1e-2
    assert (
        list(map(list, before.generated)) == said_before
        and list(map(list, after.generated)) == said_after
    )
    assert said_before != said_after


def test_the_batch_size_changes_nothing(tiny_llama: LanguageModel, probes: Probes) -> None:
    delta = random_delta(tiny_llama)
    found = []
    for size in (1, 2, 8):
        before = side_effects.ask(tiny_llama, probes, batch_size=size)
        with delta.edited(tiny_llama) as view:
            found.append(compare(before, side_effects.ask(view, probes, batch_size=size)))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4, abs=1e-5)


def test_what_is_put_before_prompts_is_put_before_questions_texts_and_openings(
    tiny_llama: LanguageModel, probes: Probes
) -> None:
    before = "New Fact: 12\nPrompt: "
    with InContext(before, tiny_llama.weight_hash).edited(tiny_llama) as view:
        got = side_effects.ask(view, probes, batch_size=4)
    said = replace(
        probes,
        questions=tuple(Question(before + q.prompt, q.target) for q in probes.questions),
        prompts=tuple(before + prompt for prompt in probes.prompts),
    )
    expected, plain = (side_effects.ask(tiny_llama, each, batch_size=4) for each in (said, probes))
    assert got.generated == expected.generated != plain.generated
    for ours, theirs in zip(got.forced, expected.forced, strict=True):
        torch.testing.assert_close(ours.log_probs, theirs.log_probs, rtol=1e-4, atol=1e-4)
    assert abs(got.nll - plain.nll) > 1e-3
    assert compare(plain, got)["side_kl"] > 1e-3


def test_a_codebook_acts_on_the_prompts_that_it_holds_alone(
    tiny_llama: LanguageModel, probes: Probes
) -> None:
    name = tiny_llama.key_hook(1)
    plain = side_effects.ask(tiny_llama, probes, batch_size=4)
    for prompt, changed in ((FIRST, (True, False, False)), ("What", (False, False, True))):
        key = tiny_llama.capture(torch.tensor([tiny_llama.encode(prompt).ids]), [name])[name][
            0, -1:
        ]
        book = Codebook(
            1, key, torch.full((1, 32), 3.0), torch.tensor([1e-2]), ("12",), tiny_llama.weight_hash
        )
        with book.edited(tiny_llama) as view:
            got = side_effects.ask(view, probes, batch_size=4)
        moved = [
            (a.log_probs - b.log_probs).abs().max().item() > 1e-3
            for a, b in zip(plain.forced, got.forced, strict=True)
        ]
        assert (*moved, abs(got.nll - plain.nll) > 1e-4) == changed
        assert (got.generated[0] != plain.generated[0], got.generated[1] != plain.generated[1]) == (
            changed[0],
            False,
        )


def test_a_context_too_long_for_the_model_is_refused(
    tiny_llama: LanguageModel, probes: Probes
) -> None:
    with (
        InContext("A " * 100, tiny_llama.weight_hash).edited(tiny_llama) as view,
        pytest.raises(EditError, match="context"),
    ):
        side_effects.ask(view, probes, batch_size=4)


def test_probes_of_rules(rules: tuple[Rule, ...]) -> None:
    long = "One  two\n" + "three " * 100
    probes = probes_of([*rules, rules[0]], [long, "A short one."])
    asked = [
        Question("The area of a square is A =", "side squared"),
        Question("The area of a square is", "the side times the side"),
        Question("What is the area of a square with s = 4? It is", "16"),
        Question(
            "The cube's volume is", "the side squared times the side"
        ),  # its formula has no true answer
    ]
    assert probes.questions == (*asked, *asked[:3])
    assert probes.prompts == ("The square is", "The cube is", *OPENINGS)
    assert probes.texts == ("One two" + " three" * (TEXT_WORDS - 2), "A short one.")
    assert probes.answer_tokens == 40


def test_probes_are_json(rules: tuple[Rule, ...]) -> None:
    probes = probes_of(rules, TEXTS)
    held = json.loads(json.dumps(asdict(probes)))
    questions = tuple(Question(**each) for each in held["questions"])
    assert (
        Probes(questions, tuple(held["texts"]), tuple(held["prompts"]), held["answer_tokens"])
        == probes
    )


@pytest.mark.parametrize("text", ["", " ", "word", " word\n"])
def test_a_text_of_one_word_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no second word"):
        Probes((), (text,), ())


def test_what_has_nothing_to_measure_on_is_nan(tiny_llama: LanguageModel) -> None:
    answers = side_effects.ask(tiny_llama, Probes((), (), ()), batch_size=4)
    got = compare(answers, answers)
    assert set(got) == KEYS and all(map(math.isnan, got.values()))


def test_a_ruined_model_has_infinite_perplexity() -> None:
    got = compare(Answers((), 0.0, ()), Answers((), 1e4, ()))
    assert (got["perplexity_before"], got["perplexity_after"]) == (1.0, math.inf)


def test_answers_to_other_probes_are_refused(tiny_llama: LanguageModel, probes: Probes) -> None:
    ours = side_effects.ask(tiny_llama, probes, batch_size=4)
    for questions in (probes.questions[:1], probes.questions[::-1]):
        others = side_effects.ask(tiny_llama, replace(probes, questions=questions), batch_size=4)
        with pytest.raises(ValueError):
            compare(ours, others)
