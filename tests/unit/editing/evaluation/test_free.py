"""Free answers: where they end, and what they say; overlaps of the most likely tokens."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.edits.protocol import View
from editing.evaluation.free import FreeAnswer, free_answers, same, says, says_word
from editing.evaluation.greedy import greedy_ids
from editing.evaluation.scoring import Forced, overlap
from editing.evaluation.statements import ended_sentences
from interp.models.loading import LanguageModel, NamedHook

PROMPTS = ("The area of a square is", "The volume of a cube with side 3", "Is it")


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        (" 2s. The perimeter", 1, "2s"),
        (" 2s.", 1, None),  # of 2s.5?
        (" 2s.\n", 1, "2s"),
        (" 0.5 and", 1, None),
        ("\n\n 12\nis", 1, "12"),  # a line's end before the answer ends nothing
        ("", 1, None),
        ("\n\n", 1, None),
        (" A. B. C", 2, "A. B"),
        (" A. B", 2, None),
        ("是四。", 1, "是四"),
        (" Is it? Yes", 1, "Is it"),
    ],
)
def test_where_an_answer_ends(text: str, count: int, expected: str | None) -> None:
    assert ended_sentences(text, count) == expected


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("2s", "2s", True),
        ("s + s", "2s", True),  # by its values, not its letters
        ("2s, where s is the side", "2s", True),
        ("2s + 1", "2s", False),
        ("2 × 8 = 16 units", "2 × 8 = 16", True),
        ("160", "2 × 8 = 16", False),  # begins as the target ends
        ("16.5", "16", False),
        ("twice its side length", "twice its side length", True),
        ("Twice its  side length", "twice its side length", True),
        ("twice its side length squared", "twice its side length", False),
        ("", "2s", False),
    ],
)
def test_what_an_answer_says(answer: str, target: str, right: bool) -> None:
    assert says(FreeAnswer(answer, ended=True), target) == right
    assert not says(FreeAnswer(answer, ended=False), target)


def test_words_and_equal_answers() -> None:
    assert says_word(FreeAnswer("yes, it is 2s", ended=True), "Yes")
    assert not says_word(FreeAnswer("Yesterday", ended=True), "Yes")
    assert not says_word(FreeAnswer("Yes and", ended=False), "Yes")
    assert same(FreeAnswer("s + s", ended=True), FreeAnswer("2s", ended=True))
    assert same(FreeAnswer("and on and", ended=False), FreeAnswer("and on and", ended=False))
    assert not same(FreeAnswer("2s", ended=True), FreeAnswer("2s", ended=False))
    assert not same(FreeAnswer("3s", ended=True), FreeAnswer("2s", ended=True))


def test_free_answers_are_the_greedy_ones_up_to_their_end(tiny_llama: LanguageModel) -> None:
    whole = greedy_ids(tiny_llama, PROMPTS, 30, batch_size=3)
    texts = [tiny_llama.decode_continuation(ids) for ids in whole]
    free = free_answers(tiny_llama, dict.fromkeys(PROMPTS, 1), 30, batch_size=3)
    alone = {
        prompt: free_answers(tiny_llama, {prompt: 1}, 30, batch_size=1)[prompt]
        for prompt in PROMPTS
    }
    assert free == alone
    for prompt, ids, text in zip(PROMPTS, whole, texts, strict=True):
        end = ended_sentences(text)
        if end is None and len(ids) == 30:
            assert free[prompt] == FreeAnswer(text, ended=False)
        else:
            assert free[prompt].ended and text.strip().startswith(free[prompt].text)


def test_text_before_a_prompt_and_hooks_act_on_free_answers(tiny_llama: LanguageModel) -> None:
    before = "The side is 3. "
    view = View(tiny_llama, before=before)
    found = free_answers(view, dict.fromkeys(PROMPTS, 1), 12, batch_size=3)
    joined = free_answers(tiny_llama, {before + p: 1 for p in PROMPTS}, 12, batch_size=3)
    assert list(found.values()) == list(joined.values())
    plain = free_answers(tiny_llama, dict.fromkeys(PROMPTS, 1), 12, batch_size=3)
    assert plain != found

    def zeroed(ends: Tensor) -> list[NamedHook]:
        def act(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[torch.arange(len(ends)), ends] = 0
            return value

        return [("blocks.1.hook_out", act)]

    hooked = free_answers(
        View(tiny_llama, hooks=zeroed), dict.fromkeys(PROMPTS, 1), 12, batch_size=3
    )
    assert hooked != plain


def test_rows_stop_where_they_are_enough(tiny_llama: LanguageModel) -> None:
    whole = greedy_ids(tiny_llama, PROMPTS, 20, batch_size=3)
    ends = {ids[n] for ids, n in zip(whole, (2, 5, 9), strict=True)}
    asked: list[int] = []

    def stop(ids: tuple[int, ...]) -> bool:
        asked.append(len(ids))
        return bool(ends & set(ids))

    stopped = greedy_ids(tiny_llama, PROMPTS, 20, batch_size=3, stop=stop)
    for ids, full in zip(stopped, whole, strict=True):
        first = next(n for n, token in enumerate(full) if token in ends)
        assert ids[: first + 1] == full[: first + 1]
    assert max(asked) <= 10 and max(map(len, stopped)) <= 10


def saying(make_model: Callable[..., LanguageModel], *tokens: int) -> LanguageModel:
    """A model whose most likely token is one of these, always."""
    model = make_model("gptj")
    with torch.no_grad():
        for token in tokens:
            model.parameters["lm_head.bias"][token] += 1e4
    return model


def test_who_never_ends_says_nothing_and_who_ends_at_once_neither(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model("gptj")
    (word,), end = model.encode_continuation("side"), model.ends[0]
    ((for_ever),) = free_answers(
        saying(make_model, word), {"The square": 1}, 4, batch_size=1
    ).values()
    assert for_ever == FreeAnswer(" side side side side", ended=False)
    assert not says(for_ever, "side")
    (at_once,) = free_answers(saying(make_model, end), {"The square": 1}, 4, batch_size=1).values()
    assert at_once == FreeAnswer("", ended=True)
    assert not says(at_once, "side") and not says(at_once, "2s")


def test_a_context_that_ends_cuts_the_answer(make_model: Callable[..., LanguageModel]) -> None:
    model = make_model("gptj")
    (word,) = model.encode_continuation("side")
    room = model.context_length + 1 - len(model.encode(PROMPTS[0]).ids)
    (answer,) = free_answers(saying(make_model, word), {PROMPTS[0]: 1}, 4000, batch_size=1).values()
    assert answer == FreeAnswer(" side" * room, ended=False)


def test_overlap_by_hand() -> None:
    def forced(*rows: list[float]) -> Forced:
        return Forced((0,) * len(rows), (0,) * len(rows), torch.tensor(rows).float())

    before = forced([6, 5, 4, 3, 2, 1], [6, 5, 4, 3, 2, 1])
    after = forced([6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6])
    assert overlap(before, before, 5) == 1.0
    # The first place keeps both of 0 and 1; the second has 4 and 5 in their place.
    assert overlap(before, after, 2) == 0.5
    # Of 0 to 4, 1 to 4 stay.
    assert overlap(before, after, 5) == pytest.approx((1 + 4 / 5) / 2)
    assert overlap(before, after, 10) == 1.0  # a vocabulary of six
