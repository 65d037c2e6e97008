"""The loop that closed forms share: what it asks one, what it reports, and models with a norm
behind the MLP."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.spreading import (
    ClosedForm,
    Problem,
    collinear_keys,
    site_of,
    spread,
)
from editing.closed_form.targets import Targets, find_targets
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.protocol import EditError
from editing.edits.remarks import doubtful
from editing.edits.report import EditReport
from editing.edits.requests import EditRequest, requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from interp.selection.layers import parse_layers
from tests.unit.editing_making import assert_unchanged, edit_with, snapshot
from tests.unit.editing_reference import (
    averaged_key,
    outputs_of,
    place,
    projection_of,
    state,
    tokens_and_place,
)

SETTINGS = EditorSettings(steps=4)
CONTEXTS = ("", "The area of a square is 4. ")


def bench(model: LanguageModel, requests: Sequence[EditRequest], **more: Any) -> Workbench:
    more = {"given_contexts": ("",), "statistics": unit(model), **more}
    return Workbench(model, requests, SETTINGS, **more)


def form(solve: Callable[[Problem], LowRank]) -> ClosedForm:
    return ClosedForm("test", solve)


@pytest.fixture(scope="module")
def gemma(make_model: Callable[..., LanguageModel]) -> LanguageModel:
    """Blocks that normalise the MLP's output before they add it."""
    return make_model("gemma3_text")


def unit(model: LanguageModel) -> Covariances:
    return Covariances({layer: torch.eye(48) for layer in range(3)}, model.weight_hash, 0, {})


def uneven(model: LanguageModel) -> Covariances:
    """Half of the directions hardly used."""
    diagonal = torch.tensor([1.0] * 10 + [1e-4] * 38)
    return Covariances({layer: diagonal.diag() for layer in range(3)}, model.weight_hash, 0, {})


def far(model: LanguageModel, requests: Sequence[EditRequest], hook: str) -> Targets:
    """Targets at some distance, without a search."""
    from editing.closed_form.keys import find_states

    initial = find_states(model, requests, hook, "subject_last")
    change = torch.randn(initial.shape, generator=torch.Generator().manual_seed(0))
    return Targets(initial + change, initial, ((),) * len(requests))


def apart(rules: Sequence[Rule]) -> list[EditRequest]:
    """Three requests with three different keys at the subject."""
    formula, _, instance = requests_of(rules[0], "subject_last")
    return [formula, instance, requests_of(rules[1], "subject_last")[0]]


def test_a_request_that_wants_no_change_has_no_share_left(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    requests = apart(rules)
    found = far(tiny_llama, requests, "blocks.1.hook_resid_post")
    still = Targets(torch.cat([found.initial[:1], found.z[1:]]), found.initial, found.losses)

    def disturbing(problem: Problem) -> LowRank:
        return LowRank(torch.ones(32, 1), problem.keys.sum(1, keepdim=True))

    made = spread(bench(tiny_llama, requests), form(disturbing), [(1,)] * 3, still, EditReport())
    assert [math.isnan(left) for left in made.report.residual_left] == [True, False, False]


# What a closed form is asked.


def test_each_block_is_asked_for_an_even_share_of_what_is_still_missing(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rules: tuple[Rule, ...]
) -> None:
    requests, asked = apart(rules), {}

    def nothing(problem: Problem) -> LowRank:
        assert problem.protected is None and problem.earlier is None
        asked[problem.layer] = problem.residual
        return LowRank(torch.zeros(32, 1), torch.zeros(48, 1))

    # Three requests with different blocks; nothing is ever written, so what is missing stays the
    # same.
    plan = [(0, 1), (1,), (0, 2)]
    targets = Targets(torch.ones(3, 32), torch.zeros(3, 32), ((),) * 3)
    made = spread(
        bench(tiny_llama, requests, given_contexts=CONTEXTS),
        form(nothing),
        plan,
        targets,
        EditReport(),
    )
    hf, names = make_hf("llama"), [tiny_llama.down_projection(layer).name for layer in range(3)]
    last = (1, 1, 2)
    now = [
        state(hf, tiny_llama.tokenizer, r, names[at], at)
        for r, at in zip(requests, last, strict=True)
    ]
    missing = torch.ones(3, 32) - torch.stack(now)
    shares = {0: (0.5, 0.0, 0.5), 1: (1.0, 1.0, 0.0), 2: (0.0, 0.0, 1.0)}
    assert list(asked) == [0, 1, 2] and list(made.layers.values()) == [0, 1, 2]
    for layer, share in shares.items():
        torch.testing.assert_close(
            asked[layer].T, missing * torch.tensor(share).unsqueeze(1), rtol=1e-4, atol=1e-4
        )
    # Nothing of the way was gone: the distance that is left, in units of the distance from
    # `initial`.
    assert made.report.residual_left == pytest.approx(
        (missing.norm(dim=-1) / 32**0.5).tolist(), rel=1e-4
    )


def test_keys_of_protected_and_earlier_requests_are_read_on_the_model_as_it_is_at_each_block(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rules: tuple[Rule, ...]
) -> None:
    edited, kept, before = apart(rules)
    asked: dict[int, Problem] = {}
    update = LowRank(torch.ones(32, 1), torch.ones(48, 1))

    def solve(problem: Problem) -> LowRank:
        asked[problem.layer] = problem
        return update

    hook = "blocks.1.hook_resid_post"
    targets = far(tiny_llama, [edited], hook)
    more = {"given_contexts": CONTEXTS, "protected": [kept], "earlier": [before]}
    spread(bench(tiny_llama, [edited], **more), form(solve), [(0, 1)], targets, EditReport())
    hf, tokenizer = make_hf("llama"), tiny_llama.tokenizer
    length = len(tokenizer(kept.prompt)["input_ids"]) + len(
        tokenizer(" " + kept.target_new, add_special_tokens=False)["input_ids"]
    )
    for layer in (0, 1):
        name = tiny_llama.down_projection(layer).name
        keys, protected, earlier = (
            getattr(asked[layer], part) for part in ("keys", "protected", "earlier")
        )
        for got, request in ((keys, edited), (earlier, before)):
            expected = averaged_key(hf, tokenizer, request, name, CONTEXTS)
            torch.testing.assert_close(got[:, 0], expected, rtol=1e-3, atol=1e-4)
        assert protected.shape == (
            48,
            length,
        )  # every token of the prompt and its answer, without contexts
        at = tokens_and_place(tokenizer, kept.prompt, place(kept))[1]
        expected = averaged_key(hf, tokenizer, kept, name, ("",))
        torch.testing.assert_close(protected[:, at], expected, rtol=1e-3, atol=1e-4)
        with torch.no_grad():
            hf.get_parameter(name).add_(update.dense())


# What is reported.


def test_what_each_block_gives_of_its_share_and_what_is_left(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    requests = apart(rules)

    def some(problem: Problem) -> LowRank:
        # Exact for every key, then a given part of it per request.
        part = torch.tensor([0.25, 1.0, -0.5])
        return LowRank(problem.residual * part, torch.linalg.pinv(problem.keys).T)

    targets = far(tiny_llama, requests, "blocks.1.hook_resid_post")
    made = spread(bench(tiny_llama, requests), form(some), [(1,)] * 3, targets, EditReport())
    assert made.report.served == {"1": pytest.approx([0.25, 1.0, -0.5], abs=1e-3)}
    # At its own block a change of the MLP's output is a change of the stream.
    assert made.report.residual_left == pytest.approx([0.75, 0.0, 1.5], abs=1e-3)
    assert made.report.collinear_keys == [] and len(made.updates) == 1


def test_served_counts_what_points_the_wanted_way_and_is_nothing_without_a_wish(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    requests = apart(rules)[:2]

    def aside(problem: Problem) -> LowRank:
        residual = problem.residual
        across = torch.roll(residual, 1, dims=0)
        flat = across - residual * (across * residual).sum(0) / residual.square().sum(0).clamp_min(
            1e-9
        )
        return LowRank(0.5 * residual + 7 * flat, torch.linalg.pinv(problem.keys).T)

    targets = far(tiny_llama, requests, "blocks.2.hook_resid_post")
    plan = [(0, 2), (2,)]
    made = spread(bench(tiny_llama, requests), form(aside), plan, targets, EditReport())
    served = made.report.served
    assert served is not None and set(served) == {"0", "2"}
    assert served["0"][0] == pytest.approx(0.5, abs=1e-3) and math.isnan(served["0"][1])
    assert served["2"] == pytest.approx([0.5, 0.5], abs=1e-3)


def test_collinear_keys_are_pairs_that_point_the_same_way_and_want_different_changes() -> None:
    forms = ("formula", "description", "instance")
    requests = [
        EditRequest(f"r{i}", form, "A cube", "cube", (), "1") for i, form in enumerate(forms)
    ]
    keys = torch.tensor([[3.0, 4.0], [6.0, 8.0], [4.0, 3.0]])  # cosines 1, 24/25, 24/25
    residual = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    (pair,) = collinear_keys(keys, residual, requests)
    assert pair["rules"] == ["r0", "r1"] and pair["forms"] == ["formula", "description"]
    assert pair["cosine"] == pytest.approx(1.0, abs=1e-6)
    # (0.9995, 0.0316…) is 0.9995 from the first axis.
    near = torch.tensor([[1.0, 0.0], [0.9995, (1 - 0.9995**2) ** 0.5], [0.0, 1.0]])
    (pair,) = collinear_keys(near, residual, requests)
    assert pair["cosine"] == pytest.approx(0.9995, abs=1e-6)
    assert collinear_keys(near, torch.ones(3, 2), requests) == []


def test_colliding_keys_are_reported_at_every_block(tiny_llama: LanguageModel, rule: Rule) -> None:
    requests = requests_of(rule, "subject_last")  # formula and description begin alike
    targets = far(tiny_llama, requests, "blocks.1.hook_resid_post")
    delta = edit_with(
        "memit",
        tiny_llama,
        requests,
        (0, 1),
        unit(tiny_llama),
        ("",),
        SETTINGS,
        targets=targets,
    )
    pairs = delta.report.collinear_keys
    assert [pair["layer"] for pair in pairs] == [0, 1]
    assert all(pair["forms"] == ["formula", "description"] for pair in pairs)
    assert {("square-area", "formula"), ("square-area", "description")} <= doubtful(delta.report)


def test_the_model_is_as_before_when_a_closed_form_fails(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    before = snapshot(tiny_llama)
    requests = apart(rules)
    seen = []

    def fails(problem: Problem) -> LowRank:
        name = tiny_llama.down_projection(0).name
        seen.append(torch.equal(tiny_llama.parameters[name], before[name]))
        if problem.layer == 1:
            raise RuntimeError("stop")
        return LowRank(problem.residual, problem.keys)

    targets = far(tiny_llama, requests, "blocks.1.hook_resid_post")
    with pytest.raises(RuntimeError, match="stop"):
        spread(bench(tiny_llama, requests), form(fails), [(0, 1)] * 3, targets, EditReport())
    assert seen == [True, False]  # the first block was edited when the second failed
    assert_unchanged(tiny_llama, before)


# Models with a norm behind the MLP.


def raw_output(hf: Any, tokenizer: Any, request: EditRequest, parameter: str) -> Tensor:
    ids, at = tokens_and_place(tokenizer, request.prompt, place(request))
    return outputs_of(hf, projection_of(hf, parameter), ids)[at]


def add_to(hf: Any, delta: EditDelta) -> None:
    with torch.no_grad():
        for name, update in delta.updates.items():
            assert isinstance(update, LowRank)
            hf.get_parameter(name).add_(update.dense())


@pytest.mark.parametrize("editor", ["memit", "alphaedit", "emmet", "dmle", "dmle joint"])
def test_a_norm_behind_the_mlp_allows_no_spreading(
    editor: str, gemma: LanguageModel, rule: Rule
) -> None:
    before = snapshot(gemma)
    requests, statistics = requests_of(rule, "subject_last"), uneven(gemma)
    said = (
        "tiny-gemma3_text normalises the MLP output .* cannot be spread over layers there; give one"
        " layer per request"
    )
    with pytest.raises(EditError, match=said):
        if editor.startswith("dmle"):
            settings = SETTINGS.model_copy(
                update={"protection": "joint" if "joint" in editor else "staged"}
            )
            edit_with(
                "dmle", gemma, requests, parse_layers("0,1/2", 3), statistics, CONTEXTS, settings
            )
        else:
            edit_with(editor, gemma, requests, (1, 2), statistics, CONTEXTS, SETTINGS)
    assert_unchanged(gemma, before)


def test_targets_are_of_the_stream_unless_a_norm_stands_behind_the_mlp(
    tiny_llama: LanguageModel, gemma: LanguageModel
) -> None:
    assert site_of(tiny_llama, [(0, 1), (2,)]) == "resid"
    assert site_of(gemma, [(0,), (2,)]) == "mlp"


@pytest.mark.parametrize("editor", ["memit", "alphaedit", "emmet"])
def test_one_block_behind_a_norm_takes_the_raw_output_to_its_target(
    editor: str, gemma: LanguageModel, make_hf: Callable[..., Any], rules: tuple[Rule, ...]
) -> None:
    requests, hf = apart(rules), make_hf("gemma3_text")
    settings = SETTINGS.model_copy(update={"ridge": 1e-7, "l2": 1e-6, "damping": 1e-7})
    wanted = find_targets(gemma, requests, 1, ("",), settings, site="mlp")
    delta = edit_with(editor, gemma, requests, (1,), uneven(gemma), ("",), settings)
    name = gemma.down_projection(1).name
    before = torch.stack([raw_output(hf, gemma.tokenizer, r, name) for r in requests])
    torch.testing.assert_close(before, wanted.initial, rtol=1e-4, atol=1e-4)
    add_to(hf, delta)
    after = torch.stack([raw_output(hf, gemma.tokenizer, r, name) for r in requests])
    torch.testing.assert_close(after, wanted.z, rtol=1e-2, atol=1e-2)
    assert max(delta.report.residual_left) < 1e-2 < (wanted.z - wanted.initial).norm(dim=-1).min()
    assert delta.report.served == {"1": pytest.approx([1, 1, 1], abs=1e-2)}


@pytest.mark.parametrize("protection", ["staged", "joint"])
def test_dmle_with_one_block_per_group_reaches_the_raw_targets_behind_a_norm(
    protection: str, gemma: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    formula, _, instance = requests_of(rule, "subject_last")
    settings = SETTINGS.model_copy(update={"ridge": 1e-7, "protection": protection})
    got = edit_with(
        "dmle", gemma, [formula, instance], parse_layers("0/2", 3), unit(gemma), ("",), settings
    )
    names = [gemma.down_projection(layer).name for layer in (0, 2)]
    assert list(got.updates) == names
    hf = make_hf("gemma3_text")
    early = find_targets(gemma, [formula], 0, ("",), settings, site="mlp").z[0]
    if protection == "staged":  # the second target is for the model that the first stage leaves
        left = [stage.residual_left[0] for stage in got.report.stages]
        first = edit_with(
            "dmle", gemma, [formula], parse_layers("0/2", 3), unit(gemma), ("",), settings
        )
        with first.applied(gemma):
            late = find_targets(gemma, [instance], 2, ("",), settings, site="mlp").z[0]
    else:
        left = got.report.residual_left
        late = find_targets(gemma, [instance], 2, ("",), settings, site="mlp").z[0]
    assert len(left) == 2 and max(left) < 1e-2
    add_to(hf, got)
    torch.testing.assert_close(
        raw_output(hf, gemma.tokenizer, formula, names[0]), early, rtol=1e-2, atol=1e-2
    )
    torch.testing.assert_close(
        raw_output(hf, gemma.tokenizer, instance, names[1]), late, rtol=1e-2, atol=1e-2
    )
