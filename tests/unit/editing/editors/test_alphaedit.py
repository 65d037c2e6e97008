"""AlphaEdit: against the published code's linear system on plain modules, with projectors by
SVD."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editing.closed_form.covariance import Covariances
from editing.closed_form.targets import find_targets
from editing.config import EditorSettings
from editing.editors import alphaedit
from editing.edits.requests import EditRequest, requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import assert_unchanged, edit_with, measured, snapshot
from tests.unit.editing_reference import averaged_key, updates_by_block

CONTEXTS = ("", "The area of a square is 4. ")
SETTINGS = EditorSettings(editor="alphaedit", steps=4, null_threshold=0.02, l2=0.5)


def middle(c: Tensor, n_free: int) -> float:
    """A threshold with so many singular values below it, in the middle between two."""
    values = torch.linalg.svdvals(c.double()).sort().values
    return (values[n_free - 1] * values[n_free]).sqrt().item()


def projector(c: Tensor, threshold: float) -> Tensor:
    left, values, _ = torch.linalg.svd(c.double())
    free = left[:, values < threshold]
    return free @ free.T


def by_hand(
    hf: nn.Module,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    names: Sequence[str],
    layers: Sequence[int],
    z: Tensor,
    c: dict[int, Tensor],
    threshold: float,
    l2: float,
    earlier: Sequence[EditRequest] = (),
) -> dict[str, Tensor]:
    """(P(KKᵀ + C_p) + l2·I) X = P K Rᵀ and ΔW = Xᵀ, block by block; the updates are left in the
    model's weights."""

    def solve(name: str, layer: int, k: Tensor, residual: Tensor) -> Tensor:
        kept = [averaged_key(hf, tokenizer, r, name, CONTEXTS).double() for r in earlier]
        cache = sum(
            (torch.outer(e, e) for e in kept), torch.zeros(len(k), len(k), dtype=torch.float64)
        )
        p = projector(c[layer], threshold)
        system = p @ (k @ k.T + cache) + l2 * torch.eye(len(k), dtype=torch.float64)
        return torch.linalg.solve(system, p @ k @ residual.T).T

    return updates_by_block(hf, tokenizer, requests, names, layers, z, CONTEXTS, solve)


def distance(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(
    ("family", "layers"), [("llama", (0, 1, 2)), ("gpt2", (0, 2)), ("gptj", (2,))]
)
def test_edit_equals_the_published_system_on_plain_modules(
    family: str, layers: tuple[int, ...], make_pair: Callable[..., Any], rule: Rule
) -> None:
    (model, hf), requests = make_pair(family), requests_of(rule, "subject_last")
    statistics = measured(model, hf)
    threshold = middle(statistics.by_layer[layers[-1]], 30)
    settings = SETTINGS.model_copy(update={"null_threshold": threshold})
    z = find_targets(model, requests, layers[-1], CONTEXTS, settings).z
    got = edit_with("alphaedit", model, requests, layers, statistics, CONTEXTS, settings)
    names = [model.down_projection(layer).name for layer in layers]
    expected = by_hand(
        hf, model.tokenizer, requests, names, layers, z, statistics.by_layer, threshold, 0.5
    )
    assert list(got.updates) == names and got.report.editor == "alphaedit"
    for name in names:
        assert distance(got.updates[name].dense(), expected[name]) < 1e-3
    # What the header says was free, counted among the singular values.
    counted = {
        str(i): int((torch.linalg.svdvals(statistics.by_layer[i].double()) < threshold).sum())
        for i in layers
    }
    assert got.report.own["free_directions"] == counted and counted[str(layers[-1])] == 30
    assert all(0 < n < 48 for n in counted.values())


def test_the_update_does_nothing_in_the_directions_that_text_uses(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    threshold = middle(statistics.by_layer[1], 20)
    settings = SETTINGS.model_copy(update={"null_threshold": threshold})
    delta = edit_with(
        "alphaedit",
        tiny_llama,
        requests_of(rule, "subject_last"),
        (1,),
        statistics,
        CONTEXTS,
        settings,
    )
    update = delta.updates[tiny_llama.down_projection(1).name].dense().double()
    used = torch.eye(48, dtype=torch.float64) - projector(statistics.by_layer[1], threshold)
    assert update.norm() > 1e-3 and (update @ used).norm() / update.norm() < 1e-5


def test_keys_of_earlier_requests_enter_the_system(
    tiny_llama: LanguageModel,
    make_hf: Callable[..., Any],
    statistics: Covariances,
    rules: tuple[Rule, ...],
) -> None:
    requests, earlier = requests_of(rules[0], "subject_last"), requests_of(rules[1], "subject_last")
    threshold, layers = middle(statistics.by_layer[1], 30), (0, 1)
    settings = SETTINGS.model_copy(update={"null_threshold": threshold})
    z = find_targets(tiny_llama, requests, 1, CONTEXTS, settings).z
    names = [tiny_llama.down_projection(layer).name for layer in layers]
    got = edit_with(
        "alphaedit", tiny_llama, requests, layers, statistics, CONTEXTS, settings, earlier=earlier
    )
    fresh = edit_with("alphaedit", tiny_llama, requests, layers, statistics, CONTEXTS, settings)
    c = statistics.by_layer
    for delta, kept in ((got, earlier), (fresh, [])):
        hf = make_hf("llama")
        expected = by_hand(
            hf, tiny_llama.tokenizer, requests, names, layers, z, c, threshold, 0.5, kept
        )
        assert all(distance(delta.updates[name].dense(), expected[name]) < 1e-3 for name in names)
    assert distance(got.updates[names[0]].dense(), fresh.updates[names[0]].dense()) > 0.01
    # At the block where both updates start from the same model, the earlier keys' outputs move
    # less.
    keys = torch.stack(
        [
            averaged_key(make_hf("llama"), tiny_llama.tokenizer, r, names[0], CONTEXTS)
            for r in earlier
        ]
    )
    moved = [(delta.updates[names[0]].dense() @ keys.T).norm().item() for delta in (got, fresh)]
    assert moved[0] < moved[1]


def test_a_relative_threshold_is_in_units_of_the_mean_singular_value(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests, threshold = requests_of(rule, "subject_last"), middle(statistics.by_layer[1], 25)
    mean = torch.linalg.svdvals(statistics.by_layer[1].double()).mean().item()
    assert abs(mean - 1) > 0.01
    absolute = SETTINGS.model_copy(update={"null_threshold": threshold})
    relative = SETTINGS.model_copy(
        update={"null_threshold": threshold / mean, "null_relative": True}
    )
    one, other = (
        edit_with("alphaedit", tiny_llama, requests, (1,), statistics, CONTEXTS, settings)
        for settings in (absolute, relative)
    )
    (name,) = one.updates
    assert one.report.own["free_directions"] == other.report.own["free_directions"] == {"1": 25}
    assert distance(one.updates[name].dense(), other.updates[name].dense()) < 1e-6
    # The same number taken absolutely frees other directions.
    alone = relative.model_copy(update={"null_relative": False})
    assert alphaedit.free(statistics, 1, alone) != 25


@pytest.mark.parametrize(("threshold", "n_free"), [(1e-12, 0), (1e6, 48)])
def test_a_threshold_that_frees_nothing_or_everything_is_refused(
    threshold: float, n_free: int, tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    before = snapshot(tiny_llama)
    settings = SETTINGS.model_copy(update={"null_threshold": threshold})
    with pytest.raises(
        ValueError, match=f"{n_free} of 48 directions .* layer 0 .* edit.null_threshold={threshold}"
    ):
        edit_with(
            "alphaedit",
            tiny_llama,
            requests_of(rule, "subject_last"),
            (0, 1),
            statistics,
            CONTEXTS,
            settings,
        )
    assert_unchanged(tiny_llama, before)
