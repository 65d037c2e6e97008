"""DMLE: equal to MEMIT run by hand once per group, each stage on the model that the earlier ones
edited."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.targets import find_targets
from editing.config import EditConfig
from editing.edits.delta import EditDelta
from editing.edits.remarks import remarks
from editing.edits.requests import EditRequest, requests_of
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from interp.selection.layers import LayerGroup, LayerSelection, parse_layers
from tests.unit.editing_making import assert_unchanged, edit_with, factors, measured, snapshot
from tests.unit.editing_reference import averaged_key, state

CONTEXTS = ("", "The area of a square is 4. ")
CONFIG = EditConfig(steps=5, learning_rate=0.5, ridge=0.02)
# Of these, the closed forms make edits that can be told from each other.
TEXTS = [
    f"The {a} of a {b} is {c} times the side."
    for a in ("area", "volume")
    for b in ("cube", "square")
    for c in range(9)
]


@pytest.fixture(scope="module")
def statistics(tiny_llama: LanguageModel, make_hf: Callable[..., Any]) -> Covariances:
    """C of the unedited model, by the slow reference."""
    return measured(tiny_llama, make_hf("llama"), TEXTS)


def grouped(*groups: tuple[Sequence[str], Sequence[int]]) -> LayerSelection:
    made = tuple(
        LayerGroup(name="+".join(f), forms=tuple(f), layers=tuple(layers)) for f, layers in groups
    )
    return LayerSelection(
        schema="dmle.selection/1",
        strategy="manual",
        component="mlp",
        role="",
        width=1,
        n_layers=3,
        groups=made,
    )


def assert_same(got: EditDelta, *stages: EditDelta) -> None:
    """The sum of the stages' dense updates, weight by weight."""
    names = {name for stage in stages for name in stage.updates}
    assert set(got.updates) == names
    for name in names:
        expected = sum(factors(stage)[name].dense() for stage in stages if name in stage.updates)
        torch.testing.assert_close(factors(got)[name].dense(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", ["0,1/2", "1/1,2"], ids=["apart", "overlapping"])
def test_edit_equals_memit_by_hand_stage_after_stage(
    layers: str, tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests, selection = requests_of(rule, "subject_last"), parse_layers(layers, 3)
    before = snapshot(tiny_llama)
    got = edit_with("dmle", tiny_llama, requests, selection, statistics, CONTEXTS, CONFIG)
    assert_unchanged(tiny_llama, before)

    first_layers, second_layers = (group.layers for group in selection.groups)
    first = edit_with("memit", tiny_llama, requests[:2], first_layers, statistics, CONTEXTS, CONFIG)
    handle = first.apply(tiny_llama)
    second = edit_with(
        "memit", tiny_llama, requests[2:], second_layers, statistics, CONTEXTS, CONFIG
    )
    handle.revert()
    assert_same(got, first, second)
    assert got.layers == {**first.layers, **second.layers}
    # The second stage on the unedited model would be another edit: the stages do depend on each
    # other.
    alone = edit_with(
        "memit", tiny_llama, requests[2:], second_layers, statistics, CONTEXTS, CONFIG
    )
    last = list(second.updates)[-1]
    away = (second.updates[last].dense() - alone.updates[last].dense()).norm() / alone.updates[
        last
    ].dense().norm()
    assert away.item() > 0.01


def test_overlapping_stages_applied_together_give_the_weights_of_one_after_the_other(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    got = edit_with(
        "dmle", tiny_llama, requests, parse_layers("1/1,2", 3), statistics, CONTEXTS, CONFIG
    )
    first = edit_with("memit", tiny_llama, requests[:2], (1,), statistics, CONTEXTS, CONFIG)
    name = tiny_llama.down_projection(1).name
    with first.applied(tiny_llama):
        second = edit_with("memit", tiny_llama, requests[2:], (1, 2), statistics, CONTEXTS, CONFIG)
        with second.applied(tiny_llama):
            expected = tiny_llama.parameters[name].detach().clone()
    with got.applied(tiny_llama):
        torch.testing.assert_close(tiny_llama.parameters[name].data, expected, rtol=1e-5, atol=1e-6)
    assert got.updates[name].left.shape == (32, 3)  # two requests, then one


def test_the_order_of_the_groups_is_the_order_of_the_stages(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    forward = grouped((("formula", "description"), (0,)), (("instance",), (1,)))
    backward = grouped((("instance",), (1,)), (("formula", "description"), (0,)))
    one = edit_with("dmle", tiny_llama, requests, forward, statistics, CONTEXTS, CONFIG)
    other = edit_with("dmle", tiny_llama, requests, backward, statistics, CONTEXTS, CONFIG)
    assert [stage.layers for stage in one.report.stages] == [[0], [1]]
    assert [stage.layers for stage in other.report.stages] == [[1], [0]]
    # Instances first, on the unedited model: their update is what it is alone.
    alone = edit_with("memit", tiny_llama, requests[2:], (1,), statistics, CONTEXTS, CONFIG)
    name = tiny_llama.down_projection(1).name
    torch.testing.assert_close(
        other.updates[name].dense(), alone.updates[name].dense(), rtol=1e-5, atol=1e-6
    )
    away = (one.updates[name].dense() - alone.updates[name].dense()).norm() / alone.updates[
        name
    ].dense().norm()
    assert away.item() > 0.01


def test_edit_with_one_group_is_memit(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    got = edit_with(
        "dmle", tiny_llama, requests, parse_layers("0-1", 3), statistics, CONTEXTS, CONFIG
    )
    assert_same(got, edit_with("memit", tiny_llama, requests, (0, 1), statistics, CONTEXTS, CONFIG))
    assert (got.report.editor, len(got.report.stages)) == ("dmle", 1)


def test_edit_passes_over_groups_without_a_request(
    tiny_llama: LanguageModel, statistics: Covariances, rules: tuple[Rule, ...]
) -> None:
    requests = requests_of(rules[1], "subject_last")  # formula and description, no instance
    got = edit_with(
        "dmle", tiny_llama, requests, parse_layers("0/2", 3), statistics, CONTEXTS, CONFIG
    )
    assert list(got.layers.values()) == [0]
    assert len(got.report.stages) == 1


def test_edit_refuses_a_form_that_is_in_no_group_before_any_work(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    before = snapshot(tiny_llama)
    with pytest.raises(InputError, match="'instance' is in no group"):
        edit_with(
            "dmle",
            tiny_llama,
            requests_of(rule, "subject_last"),
            grouped((("formula", "description"), (0,))),
            statistics,
            CONTEXTS,
            CONFIG,
        )
    assert_unchanged(tiny_llama, before)


def test_every_stage_uses_the_statistics_given(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests, selection = requests_of(rule, "subject_last"), parse_layers("0/2", 3)
    kept = {layer: moment.clone() for layer, moment in statistics.by_layer.items()}
    got = edit_with("dmle", tiny_llama, requests, selection, statistics, CONTEXTS, CONFIG)
    assert all(torch.equal(moment, kept[layer]) for layer, moment in statistics.by_layer.items())
    assert [stage.covariance for stage in got.report.stages] == [statistics.about] * 2
    # The second stage's update has the form R Kᵀ (λC + K Kᵀ)⁻¹ for the given C: its right factor is
    # (λC)⁻¹K (1 + Kᵀ(λC)⁻¹K)⁻¹, so that λC times it is a multiple of the key, which the model alone
    # decides.
    stage_one = edit_with("memit", tiny_llama, requests[:2], (0,), statistics, CONTEXTS, CONFIG)
    from editing.closed_form.keys import find_keys

    with stage_one.applied(tiny_llama):
        key = find_keys(tiny_llama, requests[2:], 2, CONTEXTS, "subject_last")[0].double()
    back = (
        statistics.by_layer[2].double()
        @ got.updates[tiny_llama.down_projection(2).name].right[:, 0].double()
    )
    assert torch.nn.functional.cosine_similarity(back, key, dim=0).item() == pytest.approx(
        1, abs=1e-5
    )


def test_edit_records_layers_requests_and_contexts(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    report = edit_with(
        "dmle", tiny_llama, requests, parse_layers("0,1/2", 3), statistics, CONTEXTS, CONFIG
    ).report
    assert report.layers == {"formula+description": [0, 1], "instance": [2]}
    assert [r["form"] for r in report.requests] == ["formula", "description", "instance"]
    assert report.contexts == list(CONTEXTS) and report.settings["steps"] == 5


# Protection and other solvers.


def outputs(model: LanguageModel, requests: Sequence[EditRequest]) -> list[Tensor]:
    """Logits over each request's prompt and new answer."""
    rows = [
        (*model.encode(r.prompt).ids, *model.encode_continuation(r.target_new)) for r in requests
    ]
    return [model.logits(torch.tensor([row]))[0].clone() for row in rows]


@pytest.mark.parametrize("solver", ["memit", "alphaedit", "emmet"])
def test_protected_leaves_what_stage_one_says_as_it_is(
    solver: str, tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "last")
    config = CONFIG.model_copy(
        update={
            "protection": "protected",
            "solver": solver,
            "lookup": "last",
            "null_relative": True,
        }
    )
    threshold = {"null_threshold": 0.5}
    config = config.model_copy(update=threshold)
    selection = parse_layers("0/1,2", 3)

    def moved(protection: str) -> tuple[float, float]:
        """Largest relative change that stage two makes to logits of stage one's prompts, and of
        its own."""
        settings = config.model_copy(update={"protection": protection})
        whole = edit_with("dmle", tiny_llama, requests, selection, statistics, CONTEXTS, settings)
        first = edit_with(
            "dmle", tiny_llama, requests[:2], selection, statistics, CONTEXTS, settings
        )
        with first.applied(tiny_llama):
            before = outputs(tiny_llama, requests)
        with whole.applied(tiny_llama):
            after = outputs(tiny_llama, requests)
        change = [((a - b).norm() / b.norm()).item() for a, b in zip(after, before, strict=True)]
        return max(change[:2]), change[2]

    theirs, own = moved("protected")
    assert theirs < 1e-4 and own > 1e-2
    assert moved("staged")[0] > 1e-2


def test_protected_says_that_a_request_with_the_same_key_cannot_be_served(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    formula = requests_of(rule, "subject_last")[0]
    same = dataclasses.replace(formula, form="instance", target_new="12")
    config = CONFIG.model_copy(update={"protection": "protected"})
    got = edit_with(
        "dmle", tiny_llama, [formula, same], parse_layers("0/2", 3), statistics, ("",), config
    )
    second = got.report.stages[1]
    assert second.served["2"] == [pytest.approx(0, abs=1e-4)] and second.residual_left[0] > 0.9
    assert any(
        "instance" in line and "does not give the new answer" in line
        for line in remarks(got.report)
    )


def test_joint_solves_one_ridge_problem_per_layer_over_all_forms(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], statistics: Covariances, rule: Rule
) -> None:
    requests, selection = requests_of(rule, "subject_last"), parse_layers("0,1/1,2", 3)
    config = CONFIG.model_copy(update={"protection": "joint"})
    got = edit_with("dmle", tiny_llama, requests, selection, statistics, CONTEXTS, config)
    # The same by hand on plain modules: layer → share of what is missing, for the first two
    # requests and the third.
    hf = make_hf("llama")
    early = find_targets(tiny_llama, requests[:2], 1, CONTEXTS, config).z
    late = find_targets(tiny_llama, requests[2:], 2, CONTEXTS, config).z
    z, last = torch.cat([early, late]), (1, 1, 2)
    names = [tiny_llama.down_projection(layer).name for layer in range(3)]
    for layer, shares in enumerate(((0.5, 0.5, 0.0), (1.0, 1.0, 0.5), (0.0, 0.0, 1.0))):
        keys = torch.stack(
            [averaged_key(hf, tiny_llama.tokenizer, r, names[layer], CONTEXTS) for r in requests]
        )
        now = torch.stack(
            [
                state(hf, tiny_llama.tokenizer, r, names[at], at)
                for r, at in zip(requests, last, strict=True)
            ]
        )
        residual = (z - now).double() * torch.tensor(shares).unsqueeze(1)
        k = keys.double()
        weight = 0.02 * 48 * statistics.by_layer[layer].double() + k.T @ k
        expected = residual.T @ k @ torch.linalg.inv(weight)
        update = got.updates[names[layer]].dense().double()
        assert ((update - expected).norm() / expected.norm()).item() < 1e-3
        with torch.no_grad():
            hf.get_parameter(names[layer]).add_(expected.float())


@pytest.mark.parametrize("solver", ["alphaedit", "emmet"])
def test_stages_use_the_chosen_solver(
    solver: str, tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    config = CONFIG.model_copy(
        update={"solver": solver, "null_threshold": 0.5, "null_relative": True}
    )
    got = edit_with(
        "dmle", tiny_llama, requests, parse_layers("0/1", 3), statistics, CONTEXTS, config
    )
    first = edit_with(solver, tiny_llama, requests[:2], (0,), statistics, CONTEXTS, config)
    with first.applied(tiny_llama):
        second = edit_with(solver, tiny_llama, requests[2:], (1,), statistics, CONTEXTS, config)
    assert_same(got, first, second)
    memits = edit_with(
        "dmle", tiny_llama, requests, parse_layers("0/1", 3), statistics, CONTEXTS, CONFIG
    )
    name = tiny_llama.down_projection(0).name
    assert not torch.allclose(got.updates[name].dense(), memits.updates[name].dense(), rtol=0.01)
