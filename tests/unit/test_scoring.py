"""Scoring: against one unpadded forward pass per question in a plain model, and the model's real greedy answers."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.scoring import Forced, Question, agreement, divergence, greedy_answers, teacher_forced
from interp.model import LanguageModel

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma3_text")
QUESTIONS = [
    Question("The area of a square is", "4 times the side"),
    Question("A cube", "12"),
    Question("What is the perimeter of a rectangle? It is", "twice the sum of the length and the width: π."),
    Question("The {x} of a {} is", "{}"),
    Question("The area of a square is", "  4 times the side "),  # the same answer as the first
]


def plain_log_probs(hf: Any, tokenizer: Any, question: Question) -> tuple[list[int], Tensor]:
    """Target ids and float64 log-probabilities at each of their places, from the text's ids laid end to end."""
    prompt = tokenizer(question.prompt)["input_ids"]
    target = tokenizer(" " + question.target.strip(), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = hf(torch.tensor([prompt + target])).logits[0].double()
    return target, logits[len(prompt) - 1 : -1].log_softmax(-1)


def forced(said: list[int], target: list[int], log_probs: Tensor | None = None) -> Forced:
    return Forced(tuple(target), tuple(said), torch.zeros(len(target), 5) if log_probs is None else log_probs)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_forced_equals_one_plain_unpadded_run_per_question(
    family: str, batch_size: int, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any]
) -> None:
    model, hf = make_model(family), make_hf(family)
    got = list(teacher_forced(model, QUESTIONS, batch_size=batch_size))
    assert len(got) == len(QUESTIONS)
    for question, result in zip(QUESTIONS, got, strict=True):
        target, expected = plain_log_probs(hf, model.tokenizer, question)
        assert list(result.target) == target
        assert result.log_probs.dtype == torch.float32
        torch.testing.assert_close(result.log_probs.double(), expected, rtol=1e-4, atol=1e-4)
        right = [int(expected[j].argmax() == token) for j, token in enumerate(target)]
        assert result.token_accuracy == sum(right) / len(right)
        assert result.exact == float(all(right))
        mean = math.fsum(expected[j, token].item() for j, token in enumerate(target)) / len(target)
        assert result.log_prob == pytest.approx(mean, rel=1e-5)


def test_equal_questions_score_equal_whatever_the_spaces_around_the_target(tiny_llama: LanguageModel) -> None:
    got = list(teacher_forced(tiny_llama, QUESTIONS, batch_size=8))
    assert got[0].target == got[4].target and got[0].log_prob == pytest.approx(got[4].log_prob, rel=1e-5)


@pytest.mark.parametrize(
    ("said", "target", "accuracy", "exact"),
    [
        ([1, 2, 3], [1, 2, 3], 1, 1),
        ([1, 2, 4], [1, 2, 3], 2 / 3, 0),
        ([2, 3, 1], [1, 2, 3], 0, 0),  # right tokens at other places do not count
        ([4], [4], 1, 1),
    ],
)
def test_token_accuracy_and_exact_on_cases_by_hand(
    said: list[int], target: list[int], accuracy: float, exact: float
) -> None:
    assert forced(said, target).token_accuracy == pytest.approx(accuracy)
    assert forced(said, target).exact == exact


def test_exact_holds_exactly_where_the_greedy_answer_starts_with_the_target(
    make_model: Callable[..., LanguageModel],
) -> None:
    prompts = [f"The {a} of a {b}" for a in ("area", "volume", "side", "length") for b in ("cube", "square", "circle")]
    checked = [0, 0]
    for family in FAMILIES:
        model = make_model(family)
        answers = model.generate([model.encode(prompt).ids for prompt in prompts], 4)
        for prompt, answer in zip(prompts, answers, strict=True):
            # The answer's beginnings, and the same with another last token, as far as they are a text's tokens.
            for length in range(1, len(answer) + 1):
                for other in (0, 1):
                    target = (*answer[: length - 1], answer[length - 1] if not other else 300)
                    text = model.decode(target)
                    if text.startswith(" ") and text.strip() and model.encode_continuation(text) == target:
                        (result,) = teacher_forced(model, [Question(prompt, text)], batch_size=1)
                        assert result.exact == (target == answer[:length])
                        checked[target == answer[:length]] += 1
    assert min(checked) >= 5, checked


def test_greedy_answers_are_those_of_one_prompt_at_a_time(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any]
) -> None:
    prompts = ["The area of a square is", "A cube", "What is the volume of a cube with side 3? It is"]
    hf, tokenizer = make_hf("llama"), tiny_llama.tokenizer
    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        answer: list[int] = []
        for _ in range(6):  # the most likely token, again and again
            with torch.no_grad():
                best = int(hf(torch.tensor([ids + answer])).logits[0, -1].argmax())
            if best == tokenizer.eos_token_id:
                break
            answer.append(best)
        expected.append(tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False))
    for batch_size in (1, 2, 3):
        assert greedy_answers(tiny_llama, prompts, 6, batch_size=batch_size) == expected
    assert greedy_answers(tiny_llama, [], 6, batch_size=2) == []


def test_agreement_is_the_share_of_places_with_the_same_likeliest_token() -> None:
    assert agreement(forced([1, 2, 3, 4], [0, 0, 0, 0]), forced([1, 0, 3, 0], [0, 0, 0, 0])) == 0.5
    assert agreement(forced([1], [0]), forced([1], [0])) == 1


def test_divergence_by_hand() -> None:
    before = torch.tensor([[0.5, 0.5], [0.25, 0.75]]).log()
    after = torch.tensor([[0.25, 0.75], [0.25, 0.75]]).log()
    there = (0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75)) / 2  # the second place adds nothing
    back = (0.25 * math.log(0.5) + 0.75 * math.log(1.5)) / 2
    one, other = forced([0, 1], [0, 1], before), forced([1, 1], [0, 1], after)
    assert divergence(one, other) == pytest.approx(there, rel=1e-5)
    assert divergence(other, one) == pytest.approx(back, rel=1e-5)
    assert there != pytest.approx(back, rel=1e-2)


def test_divergence_is_zero_for_itself_and_positive_for_another_model(
    tiny_llama: LanguageModel, make_model: Callable[..., LanguageModel]
) -> None:
    ours = list(teacher_forced(tiny_llama, QUESTIONS, batch_size=3))
    theirs = list(teacher_forced(make_model("llama", seed=1), QUESTIONS, batch_size=3))
    for a, b in zip(ours, theirs, strict=True):
        assert divergence(a, a) == 0
        exact = sum(
            p * (math.log(p) - lq)
            for p, lq in zip(a.log_probs.double().exp().flatten().tolist(), b.log_probs.flatten().tolist(), strict=True)
        ) / len(a.target)
        assert divergence(a, b) == pytest.approx(exact, rel=1e-4) and exact > 0
