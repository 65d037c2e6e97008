"""MEMIT: against the formula run on plain modules, linear identities, and that the model comes
back unchanged."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from editing.closed_form.covariance import Covariances
from editing.closed_form.spreading import collinear_keys
from editing.closed_form.targets import Targets, find_targets
from editing.config import EditConfig
from editing.edits.requests import EditRequest, requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import assert_unchanged, edit_with, measured, snapshot
from tests.unit.editing_reference import averaged_key, memit, state, updates_by_block

CONTEXTS = ("", "The area of a square is 4. ", "I {say}: ")
CONFIG = EditConfig(steps=6, learning_rate=0.5, ridge=0.02)


# Where attention and MLP run in parallel (GPT-J), a key of the first block depends on its token
# alone, and the few tokens of this corpus make a singular C.
@pytest.mark.parametrize(
    ("family", "layers"),
    [("llama", (2,)), ("llama", (0, 1, 2)), ("gpt2", (0, 2)), ("gptj", (1, 2))],
)
def test_edit_equals_the_formula_on_plain_modules(
    family: str, layers: tuple[int, ...], make_pair: Callable[..., Any], rule: Rule
) -> None:
    model, hf = make_pair(family)
    requests, statistics = requests_of(rule, "subject_last"), measured(model, hf)
    targets = find_targets(model, requests, layers[-1], CONTEXTS, CONFIG)
    got = edit_with("memit", model, requests, layers, statistics, CONTEXTS, CONFIG)
    names = [model.down_projection(layer).name for layer in layers]
    solve = memit(statistics.by_layer, weight=0.02 * 48)  # ridge is in units of d_mlp
    expected = updates_by_block(
        hf, model.tokenizer, requests, names, layers, targets.z, CONTEXTS, solve
    )
    assert list(got.updates) == names and list(got.layers.values()) == list(layers)
    for name in names:
        update = got.updates[name].dense().double()
        assert ((update - expected[name]).norm() / expected[name].norm()).item() < 1e-3
        assert got.updates[name].left.shape == (32, 3)


def test_one_request_at_one_layer_moves_the_output_of_its_key_by_the_ridge_share(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], statistics: Covariances, rule: Rule
) -> None:
    hf, requests = make_hf("llama"), requests_of(rule, "subject_last")[:1]
    targets = find_targets(tiny_llama, requests, 1, ("",), CONFIG)
    delta = edit_with(
        "memit", tiny_llama, requests, [1], statistics, ("",), CONFIG, targets=targets
    )
    name = tiny_llama.down_projection(1).name
    k = averaged_key(hf, tiny_llama.tokenizer, requests[0], name, ("",)).double()
    a = (k @ torch.linalg.solve(0.02 * 48 * statistics.by_layer[1].double(), k)).item()
    residual = (targets.z - targets.initial)[0].double()
    assert 0.05 < a / (1 + a) < 0.99
    before = tiny_llama.parameters[name].detach().double() @ k
    with delta.applied(tiny_llama):
        moved = tiny_llama.parameters[name].detach().double() @ k - before
        torch.testing.assert_close(moved, residual * a / (1 + a), rtol=1e-3, atol=1e-4)
    # The stream moves by the same, and the report says what is left.
    with torch.no_grad():
        hf.get_parameter(name).add_(delta.updates[name].dense())
    now = state(hf, tiny_llama.tokenizer, requests[0], name, 1).double()
    torch.testing.assert_close(
        now - targets.initial[0].double(), residual * a / (1 + a), rtol=1e-3, atol=1e-4
    )
    assert delta.report.residual_left == pytest.approx([1 / (1 + a)], rel=1e-3)


def test_edit_brings_the_states_closer_to_the_targets_and_the_answer_with_them(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")[2:]
    left = [
        edit_with(
            "memit",
            tiny_llama,
            requests,
            (0, 1),
            statistics,
            CONTEXTS,
            CONFIG.model_copy(update={"ridge": ridge}),
        ).report.residual_left[0]
        for ridge in (10.0, 0.1, 1e-3, 1e-5)
    ]
    assert left == sorted(left, reverse=True)
    assert left[0] < 1 and left[-1] < 0.3


def test_edit_of_an_edited_model_is_for_the_model_as_it_is(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    first = edit_with("memit", tiny_llama, requests[:2], (0,), statistics, CONTEXTS, CONFIG)
    with first.applied(tiny_llama):
        edited = snapshot(tiny_llama)
        after = edit_with("memit", tiny_llama, requests[2:], (1,), statistics, CONTEXTS, CONFIG)
        assert_unchanged(tiny_llama, edited)
    fresh = edit_with("memit", tiny_llama, requests[2:], (1,), statistics, CONTEXTS, CONFIG)
    name = tiny_llama.down_projection(1).name
    difference = after.updates[name].dense() - fresh.updates[name].dense()
    assert (difference.norm() / fresh.updates[name].dense().norm()).item() > 0.01


def test_edit_records_what_made_it(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    delta = edit_with("memit", tiny_llama, requests, (0, 1), statistics, CONTEXTS, CONFIG)
    report = delta.report
    assert (report.editor, report.layers, report.contexts) == ("memit", [0, 1], list(CONTEXTS))
    assert report.requests and report.settings and report.losses and report.residual_left
    assert [r["target_new"] for r in report.requests] == [r.target_new for r in requests]
    assert report.settings["ridge"] == 0.02 and report.covariance == {"corpus": "here"}
    assert [len(losses) for losses in report.losses] == [6, 6, 6] and len(report.residual_left) == 3
    assert delta.model_hash == tiny_llama.weight_hash


def test_prompts_with_the_same_prefix_are_reported_as_collinear_and_get_the_average(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], statistics: Covariances
) -> None:
    shared, other = "A rectangle", "The width of a circle is"
    requests = [
        EditRequest("r", "formula", f"{shared} has the area", "rectangle", (), "3 side"),
        EditRequest("r", "description", other, "circle", (), "the side"),
        EditRequest("r", "instance", f"{shared} with 4 has the area", "rectangle", (), "12 plus"),
    ]
    targets = find_targets(tiny_llama, requests, 1, ("",), CONFIG)
    delta = edit_with(
        "memit", tiny_llama, requests, (1,), statistics, ("",), CONFIG, targets=targets
    )
    (pair,) = delta.report.collinear_keys
    assert pair["layer"] == 1 and pair["forms"] == ["formula", "instance"]
    assert pair["cosine"] == pytest.approx(1, abs=1e-5)
    # The update of the two alone: both outputs move by (r1 + r2) a / (1 + 2 a).
    two = edit_with(
        "memit",
        tiny_llama,
        [requests[0], requests[2]],
        (1,),
        statistics,
        ("",),
        CONFIG,
        targets=pick(targets, [0, 2]),
    )
    name = tiny_llama.down_projection(1).name
    k = averaged_key(make_hf("llama"), tiny_llama.tokenizer, requests[0], name, ("",)).double()
    a = (k @ torch.linalg.solve(0.02 * 48 * statistics.by_layer[1].double(), k)).item()
    residual = (targets.z - targets.initial).double()
    expected = (residual[0] + residual[2]) * a / (1 + 2 * a)
    torch.testing.assert_close(
        two.updates[name].dense().double() @ k, expected, rtol=1e-3, atol=1e-3
    )


def pick(targets: Targets, at: list[int]) -> Targets:
    return Targets(targets.z[at], targets.initial[at], tuple(targets.losses[i] for i in at))


def test_equal_keys_that_want_the_same_are_not_reported() -> None:
    requests = [EditRequest("r", "formula", "A cube", "cube", (), "1")] * 2
    keys, residual = torch.ones(2, 4), torch.tensor([[1.0, 2.0]] * 2)
    assert collinear_keys(keys, residual, requests) == []
    assert len(collinear_keys(2 * keys, residual * torch.tensor([[1.0], [-1.0]]), requests)) == 1
    # cos = 0.999 is at the limit, and opposite keys are another matter.
    apart = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.998, (1 - 0.998**2) ** 0.5, 0.0, 0.0]])
    assert collinear_keys(apart, residual * torch.tensor([[1.0], [2.0]]), requests) == []
