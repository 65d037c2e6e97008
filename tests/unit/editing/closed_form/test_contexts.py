"""Contexts: seeded sampling that leaves no trace, and the lookup token of a prompt inside a
context."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from editing.closed_form.contexts import STARTS, TOP_K, preservation_row, rows, sample_contexts
from editing.edits.requests import EditRequest, requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_reference import place, tokens_and_place

CONTEXTS = ("", "A square, a square. ", "The {} of {x} } is. ")


def test_sample_contexts_starts_with_the_bare_prompt_and_ends_every_text_with_a_stop(
    tiny_llama: LanguageModel,
) -> None:
    texts = sample_contexts(tiny_llama, 7, 10, seed=3)
    assert len(texts) == 8 and texts[0] == ""
    for i, text in enumerate(texts[1:]):
        assert text.startswith(STARTS[i % 5]) and text.endswith(". ") and "\n" not in text
    assert len(set(texts)) == 8
    assert sample_contexts(tiny_llama, 0, 10, seed=3) == ("",)


def test_sample_contexts_depends_on_the_seed_alone(tiny_llama: LanguageModel) -> None:
    first = sample_contexts(tiny_llama, 5, 10, seed=1)
    torch.manual_seed(12345)
    before = torch.random.get_rng_state()
    assert sample_contexts(tiny_llama, 5, 10, seed=1) == first
    assert torch.equal(torch.random.get_rng_state(), before)
    other = sample_contexts(tiny_llama, 5, 10, seed=100)
    assert not set(other[1:]) & set(first[1:])


def test_sample_contexts_draws_from_the_five_likeliest_tokens(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any]
) -> None:
    hf, start = make_hf("llama"), tiny_llama.encode("Because").ids
    ids = list(start)
    for token in tiny_llama.sample(start, 20, top_k=TOP_K, seed=5):
        with torch.no_grad():
            likeliest = hf(torch.tensor([ids])).logits[0, -1].topk(TOP_K).indices.tolist()
        assert token in likeliest
        ids.append(token)


def test_sample_contexts_are_of_the_asked_length(tiny_llama: LanguageModel) -> None:
    start = tiny_llama.encode("Therefore").ids
    text = sample_contexts(tiny_llama, 2, 16, seed=0)[2]
    whole = [*start, *tiny_llama.sample(start, 16 - len(start), top_k=TOP_K, seed=1)]
    assert len(whole) == 16
    assert text == tiny_llama.decode(whole).replace("\n", " ").strip() + ". "


@pytest.mark.parametrize("lookup", ["subject_last", "rule_word_last", "last"])
def test_rows_keep_the_lookup_on_the_same_word_in_every_context(
    lookup: str, tiny_llama: LanguageModel, rule: Rule
) -> None:
    for request in requests_of(rule, lookup):
        for context, row in zip(CONTEXTS, rows(tiny_llama, request, CONTEXTS, lookup), strict=True):
            expected = tokens_and_place(
                tiny_llama.tokenizer,
                context + request.prompt,
                len(context) + place(request, lookup),
            )
            assert (list(row.ids), row.lookup) == (expected[0][0].tolist(), expected[1])


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [("{} of {x} is", "{}"), ("The area {x} is {}", "{x}"), ("{0} {1!r} %s is", "{1!r}")],
)
def test_rows_take_braces_as_they_are(prompt: str, subject: str, tiny_llama: LanguageModel) -> None:
    request = EditRequest("r", "formula", prompt, subject, (), "12")
    for context, row in zip(
        CONTEXTS, rows(tiny_llama, request, CONTEXTS, "subject_last"), strict=True
    ):
        assert tiny_llama.decode(row.ids) == context + prompt
        before = tiny_llama.decode(row.ids[: row.lookup])
        assert len(before) < len(context) + prompt.index(subject) + len(subject)
        assert len(tiny_llama.decode(row.ids[: row.lookup + 1])) >= len(context) + prompt.index(
            subject
        ) + len(subject)


def test_preservation_row_is_the_subject_followed_by_is_a(tiny_llama: LanguageModel) -> None:
    prompt = "What is the perimeter of a green square with s = 4? It is"
    request = EditRequest("r", "instance", prompt, "green square", ("perimeter",), "12")
    expected = {
        "subject_last": ("green square is a", "green square"),
        "rule_word_last": ("perimeter is a", "perimeter"),
    }
    for lookup, (text, phrase) in expected.items():
        row = preservation_row(tiny_llama, request, lookup)
        assert tiny_llama.decode(row.ids) == text
        assert tiny_llama.decode(row.ids[: row.lookup + 1]) == phrase
