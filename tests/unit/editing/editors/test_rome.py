"""ROME and r-ROME: against the formula on plain modules, the constraint itself, and that the
model comes back."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editing.closed_form.covariance import Covariances
from editing.closed_form.targets import Targets, find_targets
from editing.config import EditorSettings
from editing.edits.delta import EditDelta
from editing.edits.requests import EditRequest, requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import edit_with, factors, measured
from tests.unit.editing_reference import (
    key,
    matrix_of,
    outputs_of,
    place,
    projection_of,
    tokens_and_place,
)

CONTEXTS = ("", "The area of a square is 4. ", "I {say}: ")
SETTINGS = EditorSettings(editor="rome", steps=4, learning_rate=0.5, weight_decay=0.1)


def raw_output(hf: nn.Module, tokenizer: Any, request: EditRequest, parameter: str) -> Tensor:
    """What the down-projection gives at the lookup token of the bare prompt."""
    ids, at = tokens_and_place(tokenizer, request.prompt, place(request))
    return outputs_of(hf, projection_of(hf, parameter), ids)[at]


def change_of_value(
    hf: nn.Module, tokenizer: Any, request: EditRequest, parameter: str, settings: EditorSettings
) -> Tensor:
    """δ of v* = Wk + δ by plain gradient descent: a hook on the down-projection, one run per
    text, no batches."""
    target = tokenizer(" " + request.target_new, add_special_tokens=False)["input_ids"]
    module, at_end = projection_of(hf, parameter), place(request)
    kept, kept_at = tokens_and_place(tokenizer, f"{request.subject} is a", len(request.subject) - 1)
    size = raw_output(hf, tokenizer, request, parameter).norm()
    delta = torch.zeros(32, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=settings.learning_rate)
    base: Tensor | None = None

    def log_probs(ids: Tensor, at: int) -> Tensor:
        def add(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            return out.index_put((torch.tensor(0), torch.tensor(at)), out[0, at] + delta)

        handle = module.register_forward_hook(add)
        try:
            return hf(ids).logits[0].log_softmax(-1)
        finally:
            handle.remove()

    for _ in range(settings.steps - 1):
        loss = settings.weight_decay * delta.norm() / size**2
        for context in CONTEXTS:
            ids, at = tokens_and_place(tokenizer, context + request.prompt, len(context) + at_end)
            said = log_probs(torch.cat([ids, torch.tensor([target])], 1), at)[ids.shape[1] - 1 :]
            each = [said[j, token] for j, token in enumerate(target)]
            loss = loss - torch.stack(each).mean() / len(CONTEXTS)
        now = log_probs(kept, kept_at)[kept_at]
        base = now.detach() if base is None else base
        loss = loss + settings.kl_factor * (now.exp() * (now - base)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            delta *= (settings.clamp * size / delta.norm()).clamp(max=1)
    return delta.detach()


def by_hand(
    hf: nn.Module,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    parameter: str,
    c: Tensor,
    settings: EditorSettings,
) -> list[Tensor]:
    """The update of each request, on the model with the earlier ones; they are left in the
    model's weights."""
    updates = []
    for request in requests:
        change = change_of_value(hf, tokenizer, request, parameter, settings).double()
        keys = [
            key(hf, tokenizer, request, parameter, context, "subject_last").double()
            for context in CONTEXTS
        ]
        mean = torch.stack(keys).mean(0)
        u = torch.linalg.inv(c.double()) @ mean
        written = mean if settings.rome_keys == "consistent" else keys[0]
        updates.append(torch.outer(change, u) / (u @ written))
        with torch.no_grad():
            matrix_of(hf, parameter).add_(updates[-1].float())
    return updates


@pytest.mark.parametrize("keys", ["consistent", "original"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_edit_equals_the_formula_on_plain_modules_one_request_after_the_other(
    family: str,
    keys: str,
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    rule: Rule,
) -> None:
    model, hf, requests = make_model(family), make_hf(family), requests_of(rule, "subject_last")
    settings = SETTINGS.model_copy(update={"rome_keys": keys})
    statistics = measured(model, hf)
    got = edit_with("rome", model, requests, 1, statistics, CONTEXTS, settings)
    (name,) = got.updates
    assert name == model.down_projection(1).name and got.layers == {name: 1}
    expected = by_hand(hf, model.tokenizer, requests, name, statistics.by_layer[1], settings)
    factors = got.updates[name]
    assert factors.left.shape == (32, 3)  # one column per request
    for i, update in enumerate(expected):
        own = torch.outer(factors.left[:, i], factors.right[:, i]).double()
        assert ((own - update).norm() / update.norm()).item() < 1e-3
    # The second request on the unedited model would be another update.
    alone = by_hand(
        make_hf(family), model.tokenizer, requests[1:2], name, statistics.by_layer[1], settings
    )[0]
    assert ((expected[1] - alone).norm() / alone.norm()).item() > 0.01


@pytest.mark.parametrize("keys", ["consistent", "original"])
def test_the_output_of_the_declared_key_moves_by_the_whole_change(
    keys: str,
    tiny_llama: LanguageModel,
    make_hf: Callable[..., Any],
    statistics: Covariances,
    rule: Rule,
) -> None:
    request, hf = requests_of(rule, "subject_last")[0], make_hf("llama")
    settings = SETTINGS.model_copy(update={"rome_keys": keys})
    targets = find_targets(tiny_llama, [request], 1, CONTEXTS, settings, site="mlp")
    update = dense(edit_with("rome", tiny_llama, [request], 1, statistics, CONTEXTS, settings))
    name = tiny_llama.down_projection(1).name
    each = [
        key(hf, tiny_llama.tokenizer, request, name, context, "subject_last").double()
        for context in CONTEXTS
    ]
    bare, mean = each[0], torch.stack(each).mean(0)
    declared, other = (mean, bare) if keys == "consistent" else (bare, mean)
    wanted = (targets.z - targets.initial)[0].double()
    torch.testing.assert_close(update @ declared, wanted, rtol=1e-4, atol=1e-5)
    assert (update @ other - wanted).norm() / wanted.norm() > 1e-3
    if keys == "original":  # W'k = v* itself, k being the key that v* was searched at
        after = matrix_of(hf, name).detach().double() @ bare + update @ bare
        torch.testing.assert_close(after, targets.z[0].double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_the_raw_output_at_the_lookup_token_becomes_the_value(
    family: str, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any], rule: Rule
) -> None:
    model, hf, request = make_model(family), make_hf(family), requests_of(rule, "subject_last")[2]
    statistics = measured(model, hf)
    wanted = find_targets(model, [request], 1, ("",), SETTINGS, site="mlp")
    delta = edit_with("rome", model, [request], 1, statistics, ("",), SETTINGS)
    (name,) = delta.updates
    before = raw_output(hf, model.tokenizer, request, name)
    torch.testing.assert_close(before, wanted.initial[0], rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        hf.get_parameter(name).add_(dense(delta).float())
    after = raw_output(hf, model.tokenizer, request, name)
    torch.testing.assert_close(after, wanted.z[0], rtol=1e-3, atol=1e-3)
    assert (after - before).norm() > 0.1 * before.norm()


def dense(delta: EditDelta) -> Tensor:
    (update,) = factors(delta).values()
    return update.left.double() @ update.right.double().T


def test_values_that_are_known_are_written_without_a_search(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")[1:]
    initial = find_targets(tiny_llama, requests, 1, ("",), SETTINGS, site="mlp").initial
    change = torch.arange(64.0).view(2, 32)
    known = Targets(initial + change, initial, ((1.0,), (2.0,)))
    got = edit_with("rome", tiny_llama, requests, 1, statistics, ("",), SETTINGS, targets=known)
    (update,) = got.updates.values()
    for i in range(2):
        unit = torch.nn.functional.cosine_similarity(update.left[:, i], change[i], dim=0)
        assert abs(unit.item()) == pytest.approx(1, abs=1e-5)
    assert got.report.losses == [[1.0], [2.0]]


def test_edit_records_what_made_it(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    report = edit_with("rome", tiny_llama, requests, 1, statistics, CONTEXTS, SETTINGS).report
    assert (report.editor, report.layers, report.contexts) == ("rome", [1], list(CONTEXTS))
    assert [r["target_new"] for r in report.requests] == [r.target_new for r in requests]
    assert [len(losses) for losses in report.losses] == [4, 4, 4] and report.covariance == {
        "corpus": "here"
    }
