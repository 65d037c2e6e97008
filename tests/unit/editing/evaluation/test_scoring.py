"""Scoring: against one unpadded forward pass per question in a plain model, and the model's real
greedy answers."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.edits.protocol import EditError, View
from editing.evaluation.greedy import greedy_answers, greedy_exact, greedy_ids, greedy_prefix
from editing.evaluation.scoring import (
    WORTH_SHARING,
    Forced,
    Question,
    agreement,
    ask,
    divergence,
    teacher_forced,
)
from interp.models.loading import LanguageModel

FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma3_text")
QUESTIONS = [
    Question("The area of a square is", "4 times the side"),
    Question("A cube", "12"),
    Question(
        "What is the perimeter of a rectangle? It is",
        "twice the sum of the length and the width: π.",
    ),
    Question("The {x} of a {} is", "{}"),
    Question("The area of a square is", "  4 times the side "),  # the same answer as the first
]


def plain_log_probs(hf: Any, tokenizer: Any, question: Question) -> tuple[list[int], Tensor]:
    """Target ids and float64 log-probabilities at each of their places, from the text's ids laid
    end to end."""
    prompt = tokenizer(question.prompt)["input_ids"]
    target = tokenizer(" " + question.target.strip(), add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = hf(torch.tensor([prompt + target])).logits[0].double()
    return target, logits[len(prompt) - 1 : -1].log_softmax(-1)


def forced(said: list[int], target: list[int], log_probs: Tensor | None = None) -> Forced:
    return Forced(
        tuple(target), tuple(said), torch.zeros(len(target), 5) if log_probs is None else log_probs
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_forced_equals_one_plain_unpadded_run_per_question(
    family: str, batch_size: int, make_pair: Callable[..., Any]
) -> None:
    model, hf = make_pair(family)
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


def test_equal_questions_score_equal_whatever_the_spaces_around_the_target(
    tiny_llama: LanguageModel,
) -> None:
    got = list(teacher_forced(tiny_llama, QUESTIONS, batch_size=8))
    assert got[0].target == got[4].target and got[0].log_prob == pytest.approx(
        got[4].log_prob, rel=1e-5
    )


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
    prompts = [
        f"The {a} of a {b}"
        for a in ("area", "volume", "side", "length")
        for b in ("cube", "square", "circle")
    ]
    checked = [0, 0]
    for family in FAMILIES:
        model = make_model(family)
        answers = model.generate([model.encode(prompt).ids for prompt in prompts], 4)
        for prompt, answer in zip(prompts, answers, strict=True):
            # The answer's beginnings, and the same with another last token, as far as they are a
            # text's tokens.
            for length in range(1, len(answer) + 1):
                for other in (0, 1):
                    target = (*answer[: length - 1], answer[length - 1] if not other else 300)
                    text = model.decode(target)
                    if (
                        text.startswith(" ")
                        and text.strip()
                        and model.encode_continuation(text) == target
                    ):
                        (result,) = teacher_forced(model, [Question(prompt, text)], batch_size=1)
                        assert result.exact == (target == answer[:length])
                        checked[target == answer[:length]] += 1
    assert min(checked) >= 5, checked


def test_greedy_answers_are_those_of_one_prompt_at_a_time(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any]
) -> None:
    prompts = [
        "The area of a square is",
        "A cube",
        "What is the volume of a cube with side 3? It is",
    ]
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
        expected.append(
            tokenizer.decode(answer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        )
    for batch_size in (1, 2, 3):
        assert greedy_answers(tiny_llama, prompts, 6, batch_size=batch_size) == expected
    assert greedy_answers(tiny_llama, [], 6, batch_size=2) == []


@pytest.mark.parametrize(
    ("answer", "target", "exact", "prefix"),
    [
        (" 15.", "15", True, True),
        (" 15", "15.", True, True),
        (" The  Side\tsquared.\nThe", "the side squared", True, True),
        (" the side squared of it", "the side squared.", False, True),
        (" 15 cm", "15", False, True),
        (" 150", "15", False, False),
        (" 15.5", "15", False, False),
        (" 1,500", "1", False, False),
        (" 15, then", "15", False, True),
        (" the sides", "the side", False, False),
        (" A = 15", "15", False, False),
        ("", "15", False, False),
        ("\n\n15\n16", "15", True, True),
        (" It is. Or not. Who", "It is. Or not.", True, True),
        (" It is. Who", "It is. Or not.", False, False),
        ("", "", True, True),
        (".\nAnd", ".", True, True),
        (" x", "", False, False),
        (" n! / 2", "n!/2", False, False),
        (" 0.5. So", "0.5", True, True),
    ],
)
def test_greedy_answers_as_text_by_hand(
    answer: str, target: str, exact: bool, prefix: bool
) -> None:
    assert greedy_exact(answer, target) is exact
    assert greedy_prefix(answer, target) is prefix


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_answers_of_different_lengths_are_those_of_one_prompt_at_a_time(
    batch_size: int, make_model: Callable[..., LanguageModel]
) -> None:
    for family in FAMILIES:
        model = make_model(family)
        prompts, lengths = [q.prompt for q in QUESTIONS[:4]], [3, 9, 1, 6]
        expected = [
            greedy_ids(model, [p], n, batch_size=1)[0]
            for p, n in zip(prompts, lengths, strict=True)
        ]
        assert greedy_ids(model, prompts, lengths, batch_size=batch_size) == expected


def test_a_long_prompt_and_a_long_answer_that_fit_alone_need_not_fit_together(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model("gpt2")  # its positions end with the context
    long = "A " * 200
    sizes = [(n, len(model.encode(long[: 2 * n]).ids)) for n in range(1, 200)]
    size, taken = max((n, taken) for n, taken in sizes if taken < model.context_length)
    room = model.context_length + 1 - taken
    assert 2 <= room < 10
    prompts, lengths = ["A cube", long[: 2 * size], "A"], [20, room, 20]
    got = greedy_ids(model, prompts, lengths, batch_size=8)
    assert got == [
        greedy_ids(model, [p], n, batch_size=1)[0] for p, n in zip(prompts, lengths, strict=True)
    ]
    with pytest.raises(EditError, match="was made for"):
        greedy_ids(model, prompts, [20, room + 1, 20], batch_size=8)


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
            for p, lq in zip(
                a.log_probs.double().exp().flatten().tolist(),
                b.log_probs.flatten().tolist(),
                strict=True,
            )
        ) / len(a.target)
        assert divergence(a, b) == pytest.approx(exact, rel=1e-4) and exact > 0


def shifting(model: LanguageModel, size: float = 3.0) -> Callable[[Tensor], list[tuple[str, Any]]]:
    """Hooks that shift a block's MLP output at the last prompt token, and record where they saw
    what."""

    def hooks(ends: Tensor) -> list[tuple[str, Any]]:
        def shift(value: Tensor, hook: Any) -> Tensor:
            out = value.clone()
            for row, end in enumerate(ends.tolist()):
                out[row, end] += size * torch.linspace(-1, 1, value.shape[-1])
            return out

        return [(model.value_hook(1), shift)]

    return hooks


def down_module(hf: Any, model: LanguageModel) -> Any:
    return hf.get_submodule(model.down_projection(1).name.removesuffix(".weight"))


def plain_shift(hf: Any, model: LanguageModel, end: int, size: float = 3.0) -> Any:
    """The same in a plain model, in every run: at one column of one unpadded row."""

    def shift(module: Any, inputs: Any, out: Tensor) -> Tensor:
        assert out.shape[0] == 1 and out.shape[1] > end
        out = out.clone()
        out[0, end] += size * torch.linspace(-1, 1, out.shape[-1])
        return out

    return down_module(hf, model).register_forward_hook(shift)


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_views_hooks_act_at_the_last_prompt_token_of_every_question(
    family: str, batch_size: int, make_pair: Callable[..., Any]
) -> None:
    model, hf = make_pair(family)
    view = View(model, hooks=shifting(model))
    plain = list(teacher_forced(model, QUESTIONS, batch_size=batch_size))
    for question, result, other in zip(
        QUESTIONS, teacher_forced(view, QUESTIONS, batch_size=batch_size), plain, strict=True
    ):
        handle = plain_shift(hf, model, len(model.tokenizer(question.prompt)["input_ids"]) - 1)
        _, expected = plain_log_probs(hf, model.tokenizer, question)
        handle.remove()
        torch.testing.assert_close(result.log_probs.double(), expected, rtol=1e-4, atol=1e-4)
        assert (result.log_probs - other.log_probs).abs().max() > 0.1
    again = list(teacher_forced(model, QUESTIONS, batch_size=batch_size))
    assert all(torch.equal(a.log_probs, b.log_probs) for a, b in zip(again, plain, strict=True))


@pytest.mark.parametrize("batch_size", [1, 2, 8])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_views_hooks_act_in_generation_at_the_last_prompt_token_only(
    family: str, batch_size: int, make_pair: Callable[..., Any]
) -> None:
    model, hf = make_pair(family)
    prompts = [q.prompt for q in QUESTIONS[:4]]
    plain = greedy_answers(model, prompts, 6, batch_size=batch_size)
    got = greedy_answers(View(model, hooks=shifting(model)), prompts, 6, batch_size=batch_size)
    assert greedy_answers(model, prompts, 6, batch_size=batch_size) == plain != got
    for prompt, answer in zip(prompts, got, strict=True):
        ids = model.tokenizer(prompt)["input_ids"]
        handle, said = plain_shift(hf, model, len(ids) - 1), []
        for _ in range(6):  # without a cache: every run computes the prompt again
            with torch.no_grad():
                said.append(
                    int(hf(torch.tensor([ids + said]), use_cache=False).logits[0, -1].argmax())
                )
            if said[-1] == model.tokenizer.eos_token_id:
                break
        handle.remove()
        assert answer == model.tokenizer.decode(
            said, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def test_hooks_see_one_pass_of_generation_and_are_gone_afterwards(
    tiny_llama: LanguageModel,
) -> None:
    seen: list[tuple[int, ...]] = []

    def hooks(ends: Tensor) -> list[tuple[str, Any]]:
        def look(value: Tensor, hook: Any) -> None:
            seen.append((*value.shape[:2], *ends.tolist()))

        return [(tiny_llama.key_hook(0), look)]

    prompts = ["A", "A cube with side 3 is"]
    width = len(tiny_llama.encode(prompts[1]).ids)
    greedy_answers(View(tiny_llama, hooks=hooks), prompts, 4, batch_size=2)
    assert seen == [(2, width, width - 1, width - 1)]
    greedy_answers(
        View(tiny_llama, hooks=hooks), ["A"], 4, batch_size=2
    )  # one token: as short as the later passes
    assert seen[1:] == [(1, 1, 0)]
    tiny_llama.generate([(5, 6)], 2)
    assert len(seen) == 2


def test_a_failing_hook_leaves_no_hook_behind(tiny_llama: LanguageModel) -> None:
    def hooks(ends: Tensor) -> list[tuple[str, Any]]:
        def fail(value: Tensor, hook: Any) -> None:
            raise KeyboardInterrupt

        return [(tiny_llama.key_hook(0), fail)]

    view = View(tiny_llama, hooks=hooks)
    expected = greedy_answers(tiny_llama, ["A cube"], 3, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        greedy_answers(view, ["A cube"], 3, batch_size=1)
    with pytest.raises(KeyboardInterrupt):
        list(teacher_forced(view, QUESTIONS[:1], batch_size=1))
    assert greedy_answers(tiny_llama, ["A cube"], 3, batch_size=1) == expected


@pytest.mark.parametrize("batch_size", [1, 8])
def test_text_before_a_prompt_is_encoded_with_it_as_one_text(
    batch_size: int, tiny_llama: LanguageModel
) -> None:
    before = "New Fact: the side is 12.\nPrompt: "
    whole = [Question(before + q.prompt, q.target) for q in QUESTIONS]
    view = View(tiny_llama, before=before)
    expected = teacher_forced(tiny_llama, whole, batch_size=batch_size)
    for got, other in zip(
        teacher_forced(view, QUESTIONS, batch_size=batch_size), expected, strict=True
    ):
        assert torch.equal(got.log_probs, other.log_probs) and got.target == other.target
    prompts = [q.prompt for q in QUESTIONS]
    assert greedy_answers(view, prompts, 4, batch_size=batch_size) == greedy_answers(
        tiny_llama, [before + prompt for prompt in prompts], 4, batch_size=batch_size
    )


def test_what_does_not_fit_the_models_context_is_refused(tiny_llama: LanguageModel) -> None:
    prompt, limit = QUESTIONS[0].prompt, tiny_llama.context_length
    assert limit == 128
    n = len(tiny_llama.encode(prompt).ids)
    (result,) = teacher_forced(tiny_llama, [Question(prompt, "12 " * 20)], batch_size=1)
    longest = limit - n + 1
    assert len(result.target) < longest  # the last answer token is not fed
    greedy_answers(tiny_llama, [prompt], longest, batch_size=1)
    with pytest.raises(
        EditError,
        match=rf"{limit + 1} tokens, tiny-llama was made for {limit}; use a shorter prompt",
    ):
        greedy_answers(tiny_llama, [prompt], longest + 1, batch_size=1)
    view = View(tiny_llama, before="x" * 500)
    with pytest.raises(
        EditError, match=r"500 characters put before it,.*in_context\.demonstrations"
    ):
        list(teacher_forced(view, QUESTIONS, batch_size=8))


@pytest.mark.parametrize("family", FAMILIES)
def test_nll_is_the_mean_over_each_targets_tokens(
    family: str, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any]
) -> None:
    model, hf = make_model(family), make_hf(family)
    asked = ask(model, QUESTIONS)
    with torch.no_grad():
        got = asked.nll(model.logits(asked.ids, mask=asked.mask, keep=asked.kept))
    for question, value in zip(QUESTIONS, got.tolist(), strict=True):
        target, log_probs = plain_log_probs(hf, model.tokenizer, question)
        assert value == pytest.approx(
            -log_probs[range(len(target)), target].mean().item(), rel=1e-4
        )


def test_long_answers_are_judged_quickly() -> None:
    for answer in (
        " " * 100_000 + "x",
        "." * 100_000 + "x",
        ". " * 50_000,
        "\n" * 100_000 + "x",
        "?!" * 50_000 + "x",
    ):
        start = time.process_time()
        assert not greedy_exact(answer, "15") and not greedy_prefix(answer, "15")
        assert time.process_time() - start < 0.2


BEFORE = (
    "New Fact: The area of a square is 4 times the side\nPrompt: The area of a square is 4 times"
    " the side\n\nPrompt: "
)


def common(rows: list[tuple[int, ...]]) -> int:
    """Number of tokens that all rows begin with."""
    return next(
        n for n in count() if len({row[: n + 1] for row in rows}) > 1 or n == min(map(len, rows))
    )


@contextmanager
def widths_run(model: LanguageModel) -> Iterator[list[tuple[int, ...]]]:
    """Rows and columns of every run of the model."""
    seen: list[tuple[int, ...]] = []
    handle = model.bridge.embed.original_component.register_forward_hook(
        lambda module, inputs, out: seen.append(tuple(out.shape[:2]))
    )
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_what_all_prompts_begin_with_is_run_once_and_changes_nothing(
    batch_size: int, architecture: str, make_model: Callable[..., LanguageModel]
) -> None:
    model, whole = make_model(architecture), make_model(architecture, check=False)
    assert model.has_prefix_cache and not whole.has_prefix_cache
    with widths_run(model) as seen:
        got = list(teacher_forced(View(model, before=BEFORE), QUESTIONS, batch_size=batch_size))
    with widths_run(whole) as all_seen:
        expected = list(
            teacher_forced(View(whole, before=BEFORE), QUESTIONS, batch_size=batch_size)
        )
    for one, other in zip(got, expected, strict=True):
        assert one.target == other.target and one.said == other.said
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0, atol=1e-4)
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-5)
    rows = [model.encode(BEFORE + q.prompt).ids for q in QUESTIONS]
    shared = common(rows)
    assert shared > 10
    assert seen == [(1, shared), *((n, width - shared) for n, width in all_seen)]


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
def test_a_shared_beginning_longer_than_a_sliding_window(
    family: str, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any]
) -> None:
    model, hf = make_model(family, sliding_window=8), make_hf(family, sliding_window=8)
    other = make_hf(family)
    assert model.shares(100)  # verified now, so that its runs are not counted
    with widths_run(model) as seen:
        got = list(teacher_forced(View(model, before=BEFORE), QUESTIONS, batch_size=3))
    assert seen[0][0] == 1 and seen[0][1] > 8
    for question, result in zip(QUESTIONS, got, strict=True):
        whole = Question(BEFORE + question.prompt, question.target)
        _, expected = plain_log_probs(hf, model.tokenizer, whole)
        torch.testing.assert_close(result.log_probs.double(), expected, rtol=1e-4, atol=1e-4)
        _, without = plain_log_probs(other, model.tokenizer, whole)
        assert (without - expected).abs().max() > 1e-2  # the window matters


@pytest.mark.parametrize(
    ("before", "prompts"),
    [
        (
            "The area of a circle is pi times the s",
            ("quare", "ide", "um"),
        ),  # the last letter goes into other tokens
        (
            BEFORE,
            ("A cube", "A cube", "A cube"),
        ),  # all is shared but the token whose logits are asked for
        (
            BEFORE,
            ("A cube", "A cube with side 3", "A cube with side 3 is"),
        ),  # one is the beginning of the others
        (BEFORE, ("A cube",)),
        ("", ("A cube", "The area", "What is")),
    ],
)
def test_tokens_are_shared_where_all_prompts_have_them(
    before: str, prompts: tuple[str, ...], tiny_llama: LanguageModel, make_hf: Callable[..., Any]
) -> None:
    questions = [Question(prompt, "12") for prompt in prompts]
    rows = [tiny_llama.encode(before + prompt).ids for prompt in prompts]
    shared = min(common(rows), min(map(len, rows)) - 1)
    with widths_run(tiny_llama) as seen:
        got = list(teacher_forced(View(tiny_llama, before=before), questions, batch_size=8))
    assert (
        (seen[0] == (1, shared)) is (shared * (len(rows) - 1) >= WORTH_SHARING) is (len(seen) == 2)
    )
    hf = make_hf("llama")
    for question, result in zip(questions, got, strict=True):
        _, expected = plain_log_probs(
            hf, tiny_llama.tokenizer, Question(before + question.prompt, question.target)
        )
        torch.testing.assert_close(result.log_probs.double(), expected, rtol=1e-4, atol=1e-4)


def test_rows_are_whole_where_hooks_address_their_columns(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any]
) -> None:
    hf, view = make_hf("llama"), View(tiny_llama, before=BEFORE, hooks=shifting(tiny_llama))
    with widths_run(tiny_llama) as seen:
        got = list(teacher_forced(view, QUESTIONS, batch_size=8))
    assert len(seen) == 1
    for question, result in zip(QUESTIONS, got, strict=True):
        whole = Question(BEFORE + question.prompt, question.target)
        handle = plain_shift(
            hf, tiny_llama, len(tiny_llama.tokenizer(whole.prompt)["input_ids"]) - 1
        )
        _, expected = plain_log_probs(hf, tiny_llama.tokenizer, whole)
        handle.remove()
        torch.testing.assert_close(result.log_probs.double(), expected, rtol=1e-4, atol=1e-4)


def test_no_questions_have_no_answers(tiny_llama: LanguageModel) -> None:
    assert list(teacher_forced(View(tiny_llama, before=BEFORE), [], batch_size=8)) == []


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_greedy_answers_run_a_shared_beginning_once(
    batch_size: int, architecture: str, make_model: Callable[..., LanguageModel]
) -> None:
    model, whole = make_model(architecture), make_model(architecture, check=False)
    prompts, lengths = [q.prompt for q in QUESTIONS], [3, 9, 1, 6, 12]
    with widths_run(model) as seen:
        got = greedy_ids(View(model, before=BEFORE), prompts, lengths, batch_size=batch_size)
    with widths_run(whole) as all_seen:
        want = greedy_ids(View(whole, before=BEFORE), prompts, lengths, batch_size=batch_size)
    assert got == want
    shared = common([model.encode(BEFORE + p).ids for p in prompts])
    assert seen[0] == (1, shared), seen
    assert seen[1:] == [(n, w - shared if w > 1 else w) for n, w in all_seen]
