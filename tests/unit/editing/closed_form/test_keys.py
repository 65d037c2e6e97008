"""Keys and states: against plain torch hooks on the Hugging Face module, one unpadded prompt at
a time."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from editing.closed_form.keys import (
    KeysInTurn,
    find_keys,
    find_states,
    keys_of_prompts,
    values_at_lookup,
)
from editing.edits.requests import EditRequest, requests_of, words_of
from interp.models.budget import MemoryLimitError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_reference import (
    averaged_key,
    inputs_of,
    key,
    place,
    state,
    tokens_and_place,
)

CONTEXTS = (
    "",
    "The area of a square is 4. ",
    "I {say}: ",
    "Because of the side of the length of the cube. ",
)
FAMILIES = ("llama", "gpt2", "gptj", "gpt_neox", "qwen2", "qwen3", "mistral", "phi", "gemma3_text")


def request(prompt: str, subject: str, words: Sequence[str] = ("area",)) -> EditRequest:
    return EditRequest("r", "formula", prompt, subject, tuple(words), "12")


ODD = [
    request("{} squared is {x} times", "{}"),
    request("The {x} of a square {} is", "{x}"),
    request("squares of a square are", "square"),
    request("A circle's radius:", "radius"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_find_keys_equals_the_input_of_the_down_projection(
    family: str, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any], rule: Rule
) -> None:
    model, hf = make_model(family), make_hf(family)
    requests = requests_of(rule, "subject_last")
    for layer in range(model.n_layers):
        name = model.down_projection(layer).name
        got = find_keys(model, requests, layer, CONTEXTS, "subject_last")
        expected = torch.stack(
            [averaged_key(hf, model.tokenizer, r, name, CONTEXTS) for r in requests]
        )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        states = torch.stack([state(hf, model.tokenizer, r, name, layer) for r in requests])
        torch.testing.assert_close(
            find_states(model, requests, model.hook("resid", layer), "subject_last"),
            states,
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize(("room", "fast"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("family", FAMILIES)
def test_keys_in_turn_are_those_of_runs_from_the_start_while_blocks_are_written(
    family: str, room: bool, fast: bool, make_model: Callable[..., LanguageModel], rule: Rule
) -> None:
    model, entries = make_model(family), []
    requests = requests_of(rule, "subject_last")
    in_turn = KeysInTurn(model, requests, CONTEXTS, "subject_last")
    if not room:  # for a single stream: each reading begins at the first block
        in_turn._streams._left = 1
    capture = model.capture

    def watched(ids: Any, names: Any, *, entry: Any = None, **more: Any) -> Any:
        entries.append(0 if entry is None else entry[0])
        return capture(ids, names, entry=entry, **more)

    for layer in range(model.n_layers):
        entries.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "capture", watched)
            if not fast:  # such as texts of a length for which it does not hold
                patch.setattr(model, "takes_fast_route", lambda length: False)
            got = in_turn.at(layer)
        assert set(entries) == {max(0, layer - 1) if room and fast else 0}
        expected = find_keys(model, requests, layer, CONTEXTS, "subject_last")
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            weight = model.down_projection(layer).weight
            weight.add_(0.1 * torch.randn_like(weight))


@pytest.mark.parametrize("family", FAMILIES)
def test_words_of_an_answer_are_read_in_one_run_and_are_those_of_runs_of_their_own(
    family: str, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any], rule: Rule
) -> None:
    model, hf = make_model(family), make_hf(family)
    words = [word for whole in requests_of(rule, "last") for word in words_of(whole)]
    words += [
        words[1],
        request("A circle's radius:", "radius"),
    ]  # one twice, one that no other begins with
    name = model.down_projection(1).name
    run: list[int] = []
    capture = model.capture
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            model, "capture", lambda ids, *a, **k: run.append(len(ids)) or capture(ids, *a, **k)
        )
        got = values_at_lookup(model, words, model.key_hook(1), CONTEXTS, "last")
    assert run == [4 * len(CONTEXTS)]
    for i, one in enumerate(words):
        for c, context in enumerate(CONTEXTS):
            expected = key(hf, model.tokenizer, one, name, context, "last")
            torch.testing.assert_close(got[i, c], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lookup", ["subject_last", "rule_word_last", "last"])
def test_values_at_lookup_are_those_of_the_looked_up_token(
    lookup: str, tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    hf, name = make_hf("llama"), tiny_llama.down_projection(1).name
    requests = requests_of(rule, lookup)
    got = values_at_lookup(tiny_llama, requests, tiny_llama.key_hook(1), CONTEXTS, lookup)
    assert got.shape == (3, len(CONTEXTS), 48)
    for i, one in enumerate(requests):
        for c, context in enumerate(CONTEXTS):
            expected = key(hf, tiny_llama.tokenizer, one, name, context, lookup)
            torch.testing.assert_close(got[i, c], expected, rtol=1e-4, atol=1e-5)
    # The three lookups are three places, or the cases above would not tell them apart.
    places = {
        tokens_and_place(tiny_llama.tokenizer, r.prompt, place(r, lookup))[1] for r in requests[:1]
    }
    others = {
        tokens_and_place(tiny_llama.tokenizer, requests[0].prompt, place(requests[0], other))[1]
        for other in {"subject_last", "rule_word_last", "last"} - {lookup}
    }
    assert not places & others


@pytest.mark.parametrize("one", ODD, ids=lambda one: one.prompt)
def test_braces_and_repeated_subjects_do_not_move_the_lookup(
    one: EditRequest, tiny_llama: LanguageModel, make_hf: Callable[..., Any]
) -> None:
    hf, name = make_hf("llama"), tiny_llama.down_projection(0).name
    contexts = ("", f"{one.subject} {{}} {one.prompt} {{x}}. ", "{0} }{ . ")
    got = values_at_lookup(tiny_llama, [one], tiny_llama.key_hook(0), contexts, "subject_last")
    whole = request(one.prompt, one.subject)
    if one.prompt.startswith("squares"):  # the whole word counts, not its first letters
        whole = request(one.prompt, "a square")
    for c, context in enumerate(contexts):
        expected = key(hf, tiny_llama.tokenizer, whole, name, context, "subject_last")
        torch.testing.assert_close(got[0, c], expected, rtol=1e-4, atol=1e-5)


def test_find_keys_weighs_the_bare_prompt_one_half(tiny_llama: LanguageModel, rule: Rule) -> None:
    requests = requests_of(rule, "subject_last")
    each = values_at_lookup(
        tiny_llama, requests, tiny_llama.key_hook(2), CONTEXTS, "subject_last"
    ).double()
    expected = each[:, 0] / 2 + each[:, 1] / 6 + each[:, 2] / 6 + each[:, 3] / 6
    got = find_keys(tiny_llama, requests, 2, CONTEXTS, "subject_last").double()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    bare = find_keys(tiny_llama, requests, 2, ("",), "subject_last").double()
    torch.testing.assert_close(bare, each[:, 0], rtol=1e-5, atol=1e-6)


def test_find_states_gives_the_same_in_any_company(tiny_llama: LanguageModel, rule: Rule) -> None:
    requests = requests_of(rule, "subject_last")
    hook = tiny_llama.hook("resid", 2)
    together = find_states(tiny_llama, requests, hook, "subject_last")
    alone = torch.cat([find_states(tiny_llama, [r], hook, "subject_last") for r in requests])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_find_keys_are_float32_for_a_half_precision_model(
    make_hf: Callable[..., Any], tokenizer: Any, rule: Rule
) -> None:
    model = LanguageModel(make_hf("llama").to(torch.bfloat16), tokenizer, "half")
    requests = requests_of(rule, "subject_last")
    keys = find_keys(model, requests, 1, CONTEXTS, "subject_last")
    exact = find_keys(
        LanguageModel(make_hf("llama"), tokenizer, "whole"), requests, 1, CONTEXTS, "subject_last"
    )
    assert keys.dtype == torch.float32
    assert ((keys - exact).norm() / exact.norm()).item() < 0.05


def test_the_mean_of_keys_counts_every_context_alike(tiny_llama: LanguageModel, rule: Rule) -> None:
    requests = requests_of(rule, "subject_last")
    each = values_at_lookup(tiny_llama, requests, tiny_llama.key_hook(1), CONTEXTS, "subject_last")
    got = find_keys(tiny_llama, requests, 1, CONTEXTS, "subject_last", "mean")
    torch.testing.assert_close(got, each.sum(1) / 4)


def test_keys_of_prompts_are_those_of_every_token_of_prompt_and_answer(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any]
) -> None:
    requests = [request("The area of a square", "square"), request("A circle", "circle")]
    got = keys_of_prompts(tiny_llama, requests, 1)
    hf, name = make_hf("llama"), tiny_llama.down_projection(1).name
    expected = []
    for one in requests:
        ids = tiny_llama.tokenizer(f"{one.prompt} {one.target_new}", return_tensors="pt")[
            "input_ids"
        ]
        expected.append(inputs_of(hf, hf.get_submodule(name.removesuffix(".weight")), ids))
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", [1, 200_000, 10**10])
def test_keys_do_not_depend_on_the_memory_and_runs_fit_in_it(
    memory: int, tiny_llama: LanguageModel, rules: tuple[Rule, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [one for rule in rules for one in requests_of(rule, "subject_last")]
    expected = find_keys(tiny_llama, requests, 1, CONTEXTS, "subject_last")
    states = find_states(tiny_llama, requests, tiny_llama.hook("resid", 1), "subject_last")
    prompts = keys_of_prompts(tiny_llama, requests, 1)
    shapes: list[tuple[int, ...]] = []
    capture = tiny_llama.capture
    monkeypatch.setattr(
        tiny_llama,
        "capture",
        lambda ids, *a, **k: shapes.append(tuple(ids.shape)) or capture(ids, *a, **k),
    )
    for got, want in (
        (find_keys(tiny_llama, requests, 1, CONTEXTS, "subject_last", memory=memory), expected),
        (
            find_states(tiny_llama, requests, tiny_llama.hook("resid", 1), "subject_last", memory),
            states,
        ),
        (keys_of_prompts(tiny_llama, requests, 1, memory), prompts),
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    for rows, width in shapes:
        assert rows == 1 or rows * tiny_llama.row_bytes(width, width, 1) <= memory
    # Texts with which others begin are not run of their own.
    assert len(shapes) == 3 if memory == 10**10 else len(shapes) > 3


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), RuntimeError("not enough memory"), MemoryError()]
)
def test_keys_take_smaller_batches_when_memory_runs_out(
    error: Exception, tiny_llama: LanguageModel, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(rule, "subject_last")
    expected = find_keys(tiny_llama, requests, 1, CONTEXTS, "subject_last")
    capture, most = tiny_llama.capture, [3]

    def limited(ids: Any, *arguments: Any, **options: Any) -> Any:
        if len(ids) > most[0]:
            raise error
        return capture(ids, *arguments, **options)

    monkeypatch.setattr(tiny_llama, "capture", limited)
    got = find_keys(tiny_llama, requests, 1, CONTEXTS, "subject_last")
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    most[0] = 0
    with pytest.raises(
        MemoryLimitError, match=r"one item alone does not fit .*; use shorter prompts or contexts"
    ):
        find_keys(tiny_llama, requests, 1, CONTEXTS, "subject_last")
