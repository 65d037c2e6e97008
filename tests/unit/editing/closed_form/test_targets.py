"""The search for targets: step by step against a slow reference on plain modules, one request at
a time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, Literal

import pytest
import torch

from editing.closed_form.targets import TargetSearchError, find_targets
from editing.config import EditConfig
from editing.edits.requests import EditRequest, as_trained, requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import snapshot
from tests.unit.editing_reference import place, projection_of, search_target, tokens_and_place

CONTEXTS = ("", "The area of a square is 4. ", "I {say}: ")
# Large factors, so that every term of the loss moves the result.
SETTINGS: dict[str, Any] = {
    "steps": 6,
    "learning_rate": 0.5,
    "weight_decay": 3.0,
    "kl_factor": 2.0,
    "clamp": 0.3,
    "stop_loss": 0.05,
}
# Little holds the search back.
EASY: dict[str, Any] = {
    **SETTINGS,
    "learning_rate": 1.0,
    "weight_decay": 0.0,
    "kl_factor": 0.0,
    "clamp": 4.0,
    "lookup": "last",
}


def reference(
    hf: Any,
    model: LanguageModel,
    request: EditRequest,
    layer: int,
    contexts: Sequence[str] = CONTEXTS,
    **changes: Any,
) -> tuple[torch.Tensor, torch.Tensor, list[dict[str, float]]]:
    name = model.down_projection(layer).name
    return search_target(
        hf, model.tokenizer, request, name, layer, contexts, **(SETTINGS | changes)
    )


def assert_close(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    assert ((got - expected).norm() / expected.norm()).item() < tolerance


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "gptj", "gpt_neox", "qwen3", "mistral", "phi", "gemma3_text"]
)
def test_find_targets_equals_the_slow_reference_step_by_step(
    family: str, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any], rule: Rule
) -> None:
    model, hf = make_model(family), make_hf(family)
    requests = requests_of(rule, "subject_last")
    got = find_targets(model, requests, 1, CONTEXTS, EditConfig(**SETTINGS))
    for i, request in enumerate(requests):
        z, initial, trace = reference(hf, model, request, 1)
        assert len(got.losses[i]) == len(trace) == SETTINGS["steps"]
        for step, parts in enumerate(trace):
            assert got.losses[i][step] == pytest.approx(parts["loss"], rel=2e-4), (
                request.form,
                step,
            )
        assert_close(got.initial[i], initial, 1e-5)
        assert_close(got.z[i], z)


@pytest.mark.parametrize("wrong", ["reverse_kl", "squared_decay"])
def test_the_comparison_would_notice_a_wrong_term(
    wrong: str, tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    far: dict[str, Any] = {
        "learning_rate": 1.0,
        "clamp": 4.0,
        "weight_decay": 30.0,
    }  # so far out that the terms differ much
    requests = requests_of(rule, "subject_last")[2:]
    got = find_targets(tiny_llama, requests, 1, CONTEXTS, EditConfig(**(SETTINGS | far)))
    z, _, trace = reference(make_hf("llama"), tiny_llama, requests[0], 1, **(far | {wrong: True}))
    assert (
        max(abs(a - b["loss"]) / b["loss"] for a, b in zip(got.losses[0], trace, strict=True))
        > 2e-3
    )
    assert ((got.z[0] - z).norm() / z.norm()).item() > 1e-3


def test_find_targets_at_another_lookup_equals_the_reference(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    requests = requests_of(rule, "rule_word_last")
    got = find_targets(
        tiny_llama, requests, 1, CONTEXTS, EditConfig(**(SETTINGS | {"lookup": "rule_word_last"}))
    )
    for i, request in enumerate(requests):
        z, _, trace = reference(make_hf("llama"), tiny_llama, request, 1, lookup="rule_word_last")
        assert list(got.losses[i]) == pytest.approx([parts["loss"] for parts in trace], rel=2e-4)
        assert_close(got.z[i], z)


def test_find_targets_of_a_batch_are_those_of_one_at_a_time(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    # The requests reach the stop loss at different steps; the last token is where the answer moves
    # most.
    config = EditConfig(**(EASY | {"steps": 12, "stop_loss": 5.0}))
    requests = requests_of(rule, "last")
    together = find_targets(tiny_llama, requests, 1, CONTEXTS, config)
    assert len({len(losses) for losses in together.losses}) == 3
    for i, request in enumerate(requests):
        alone = find_targets(tiny_llama, [request], 1, CONTEXTS, config)
        assert list(together.losses[i]) == pytest.approx(list(alone.losses[0]), rel=5e-4)
        assert_close(together.z[i], alone.z[0], 5e-4)


def test_find_targets_stops_below_the_stop_loss_as_the_reference_does(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    changes: dict[str, Any] = {**EASY, "steps": 12, "stop_loss": 2.0}
    requests = requests_of(rule, "last")[2:]
    got = find_targets(tiny_llama, requests, 1, CONTEXTS, EditConfig(**changes))
    z, _, trace = reference(make_hf("llama"), tiny_llama, requests[0], 1, **changes)
    assert len(got.losses[0]) == len(trace) < 12
    assert got.losses[0][-1] < 2.0 <= min(got.losses[0][:-1])
    assert_close(got.z[0], z)


def test_one_step_takes_no_update_and_its_loss_has_no_penalty(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    got = find_targets(
        tiny_llama, requests, 2, CONTEXTS, EditConfig(**(SETTINGS | {"steps": 1, "kl_factor": 1e6}))
    )
    assert torch.equal(got.z, got.initial)
    for losses, request in zip(got.losses, requests, strict=True):
        # KL and decay are zero where nothing has changed yet, however large their factors.
        trace = reference(make_hf("llama"), tiny_llama, request, 2, steps=1)[2]
        assert trace[0]["kl"] == trace[0]["decay"] == 0.0
        assert list(losses) == pytest.approx([trace[0]["nll"]], rel=1e-5)


def test_two_steps_take_one_adam_update(tiny_llama: LanguageModel, rule: Rule) -> None:
    requests = requests_of(rule, "subject_last")
    got = find_targets(
        tiny_llama,
        requests,
        1,
        CONTEXTS,
        EditConfig(steps=2, learning_rate=0.01, clamp=100.0, stop_loss=0.0),
    )
    # Adam's first step is the learning rate in every coordinate, in the direction of the sign.
    torch.testing.assert_close(
        (got.z - got.initial).abs(), torch.full_like(got.z, 0.01), rtol=1e-2, atol=1e-6
    )


@pytest.mark.parametrize("clamp", [0.05, 0.5])
def test_find_targets_keeps_the_change_within_the_clamp(
    clamp: float, tiny_llama: LanguageModel, rule: Rule
) -> None:
    def share(limit: float) -> torch.Tensor:
        config = EditConfig(**(EASY | {"clamp": limit}))
        got = find_targets(tiny_llama, requests_of(rule, "last"), 1, CONTEXTS, config)
        return (got.z - got.initial).norm(dim=-1) / got.initial.norm(dim=-1)

    assert bool((share(100.0) > clamp).all())
    assert bool((share(clamp) <= clamp * (1 + 1e-5)).all())


def test_find_targets_leaves_weights_and_gradients_alone(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    before = snapshot(tiny_llama)
    find_targets(tiny_llama, requests_of(rule, "subject_last"), 1, CONTEXTS, EditConfig(**SETTINGS))
    for name, parameter in tiny_llama.parameters.items():
        assert torch.equal(parameter, before[name])
        assert parameter.grad is None and not parameter.requires_grad


def test_find_targets_refuses_a_diverged_search_and_names_the_prompts(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    config = EditConfig(**(SETTINGS | {"learning_rate": 1e30, "clamp": 1e38}))
    with pytest.raises(
        TargetSearchError, match=r"(?s)diverged at step 1 .*area of a square.*smaller edit.learning"
    ):
        find_targets(tiny_llama, requests_of(rule, "subject_last"), 1, CONTEXTS, config)


@pytest.mark.parametrize("contexts", [(), ("The. ",), ("The. ", "")])
def test_find_targets_refuses_contexts_without_the_bare_prompt_first(
    contexts: tuple[str, ...], tiny_llama: LanguageModel, rule: Rule
) -> None:
    with pytest.raises(ValueError, match="first context must be empty"):
        find_targets(tiny_llama, requests_of(rule, "subject_last"), 1, contexts, EditConfig())


def test_targets_at_the_last_block_equal_the_reference(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")[:1]
    got = find_targets(
        tiny_llama, requests, 2, CONTEXTS, EditConfig(**(SETTINGS | {"lookup": "last"}))
    )
    z, _, trace = reference(make_hf("llama"), tiny_llama, requests[0], 2, lookup="last")
    assert got.losses[0] == pytest.approx([parts["loss"] for parts in trace], rel=2e-4)
    assert_close(got.z[0], z)


def test_a_model_that_cannot_begin_in_the_middle_gives_the_same_targets(
    tiny_llama: LanguageModel, make_model: Callable[..., LanguageModel], rule: Rule
) -> None:
    requests, plain = requests_of(rule, "subject_last"), make_model("llama", check=False)
    assert tiny_llama.has_entry and not plain.has_entry
    fast = find_targets(tiny_llama, requests, 1, CONTEXTS, EditConfig(**SETTINGS))
    slow = find_targets(plain, requests, 1, CONTEXTS, EditConfig(**SETTINGS))
    assert_close(fast.z, slow.z, 1e-5)
    for one, other in zip(fast.losses, slow.losses, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_a_sliding_window_shorter_than_the_prompt_gives_the_reference(
    make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any], rule: Rule
) -> None:
    model, hf = make_model("mistral", sliding_window=4), make_hf("mistral", sliding_window=4)
    requests = requests_of(rule, "last")
    # At the end of the prompt: from the subject the window does not reach the answer, and nothing
    # has a gradient.
    got = find_targets(model, requests, 1, CONTEXTS, EditConfig(**(SETTINGS | {"lookup": "last"})))
    for i, request in enumerate(requests):
        z, _, trace = reference(hf, model, request, 1, lookup="last")
        assert got.losses[i] == pytest.approx([parts["loss"] for parts in trace], rel=2e-4)
        assert_close(got.z[i], z)


@pytest.mark.parametrize("memory", ["1KiB", "100KiB", "1GiB"])
def test_the_memory_given_changes_nothing(
    memory: str, tiny_llama: LanguageModel, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    expected = find_targets(tiny_llama, requests, 1, CONTEXTS, EditConfig(**SETTINGS))
    got = find_targets(tiny_llama, requests, 1, CONTEXTS, EditConfig(**SETTINGS, memory=memory))
    assert_close(got.z, expected.z, 1e-5)


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_a_target_of_the_mlp_moves_the_stream_as_one_of_the_block_does(
    family: str, make_model: Callable[..., LanguageModel], rule: Rule
) -> None:
    # Without a norm behind the MLP both changes are the same; they differ in the state that clamps
    # them.
    model, requests = make_model(family), requests_of(rule, "subject_last")
    free = EditConfig(**(SETTINGS | {"weight_decay": 0.0, "clamp": 1e6}))
    block = find_targets(model, requests, 1, CONTEXTS, free)
    mlp = find_targets(model, requests, 1, CONTEXTS, free, site="mlp")
    assert_close(mlp.z - mlp.initial, block.z - block.initial)
    assert ((mlp.initial - block.initial).norm() / block.initial.norm()).item() > 0.1


def test_a_target_of_the_mlp_goes_through_the_norm_behind_it(
    make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any], rule: Rule
) -> None:
    model, hf = make_model("gemma3_text"), make_hf("gemma3_text")
    request = requests_of(rule, "subject_last")[0]
    settings = EditConfig(**(SETTINGS | {"kl_factor": 0.0, "weight_decay": 0.0, "steps": 4}))
    found = find_targets(model, [request], 1, ("",), settings, site="mlp")
    # The last loss is that of the model whose down-projection gives z at the lookup token.
    target = model.tokenizer(" " + request.target_new, add_special_tokens=False)["input_ids"]
    ids, at = tokens_and_place(model.tokenizer, request.prompt, place(request))
    whole = torch.cat([ids, torch.tensor([target])], 1)

    def put(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[0, at] = found.z[0]
        return out

    with (
        projection_of(hf, model.down_projection(1).name).register_forward_hook(put),
        torch.no_grad(),
    ):
        said = hf(whole).logits[0].log_softmax(-1)
    each = [said[ids.shape[1] - 1 + j, token].item() for j, token in enumerate(target)]
    assert found.losses[0][-1] == pytest.approx(-sum(each) / len(target), rel=1e-4)


@pytest.mark.parametrize("loss", ["own", "rest"])
@pytest.mark.parametrize("end_token", [False, True])
def test_a_word_is_searched_on_itself_or_with_those_behind_it(
    loss: Literal["own", "rest"],
    end_token: bool,
    tiny_llama: LanguageModel,
    make_hf: Callable[..., Any],
    tokenizer: Any,
    rule: Rule,
) -> None:
    whole = replace(requests_of(rule, "last")[0], target_new="4 side + side")
    answer = [
        tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        for word in whole.target_new.split()
    ]
    if end_token:
        answer[-1].append(tokenizer.eos_token_id)
    settings = EditConfig(
        **(SETTINGS | {"lookup": "last", "steps": 2}),
        answer="words",
        words_loss=loss,
        end_token=end_token,
    )
    words = as_trained([whole], tiny_llama, settings, by_word=True)
    # Where the search starts, no change is penalised, and nothing differs from what was said.
    got = find_targets(tiny_llama, words, 1, CONTEXTS, settings).losses
    hf = make_hf("llama")
    for i, losses in enumerate(got):
        rest = answer[i:] if loss == "rest" else answer[i : i + 1]
        total = 0.0
        for context in CONTEXTS:
            before = [*tokenizer(context + whole.prompt)["input_ids"], *chain(*answer[:i])]
            said = hf(torch.tensor([[*before, *chain(*rest)]])).logits[0].log_softmax(-1)
            # The mean over the nested beginnings of the rest.
            for end in range(1, len(rest) + 1):
                for j, token in enumerate(chain(*rest[:end])):
                    total -= said[len(before) - 1 + j, token].item() / len(rest)
        expected = total / len(CONTEXTS) / sum(map(len, rest))
        assert losses[0] == pytest.approx(expected, rel=1e-5)
        assert losses[1] != losses[0]
