"""EMMET: against the formula with explicit inverses on plain modules, and the equality
constraint itself."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.targets import find_targets
from editing.config import EditorSettings
from editing.edits.requests import requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import edit_with, measured
from tests.unit.editing_reference import Solve, averaged_key, updates_by_block

CONTEXTS = ("", "The area of a square is 4. ")
SETTINGS = EditorSettings(editor="emmet", steps=4, damping=0.3)


def solver(c: dict[int, Tensor], damping: float) -> Solve:
    """R (KᵀC⁻¹K + damping·I)⁻¹KᵀC⁻¹ of each block."""

    def solve(name: str, layer: int, k: Tensor, residual: Tensor) -> Tensor:
        inverse = torch.linalg.inv(c[layer].double())
        gram = k.T @ inverse @ k + damping * torch.eye(k.shape[1], dtype=torch.float64)
        return residual @ torch.linalg.inv(gram) @ k.T @ inverse

    return solve


@pytest.mark.parametrize(
    ("family", "layers"), [("llama", (0, 2)), ("gpt2", (1,)), ("gptj", (1, 2))]
)
def test_edit_equals_the_formula_with_explicit_inverses(
    family: str, layers: tuple[int, ...], make_pair: Callable[..., Any], rule: Rule
) -> None:
    (model, hf), requests = make_pair(family), requests_of(rule, "subject_last")
    statistics = measured(model, hf)
    z = find_targets(model, requests, layers[-1], CONTEXTS, SETTINGS).z
    got = edit_with("emmet", model, requests, layers, statistics, CONTEXTS, SETTINGS)
    names = [model.down_projection(layer).name for layer in layers]
    solve = solver(statistics.by_layer, 0.3)
    expected = updates_by_block(hf, model.tokenizer, requests, names, layers, z, CONTEXTS, solve)
    assert list(got.updates) == names and got.report.editor == "emmet"
    for name in names:
        update = got.updates[name].dense().double()
        assert ((update - expected[name]).norm() / expected[name].norm()).item() < 1e-3


def test_without_damping_the_outputs_of_distinct_keys_move_by_exactly_the_residual(
    tiny_llama: LanguageModel,
    make_hf: Callable[..., Any],
    statistics: Covariances,
    rules: tuple[Rule, ...],
) -> None:
    hf = make_hf("llama")
    requests = [requests_of(rules[0], "last")[2], *requests_of(rules[1], "last")]
    targets = find_targets(
        tiny_llama, requests, 1, CONTEXTS, SETTINGS.model_copy(update={"lookup": "last"})
    )
    name = tiny_llama.down_projection(1).name
    keys = torch.stack(
        [averaged_key(hf, tiny_llama.tokenizer, r, name, CONTEXTS, "last") for r in requests]
    ).double()
    wanted = (targets.z - targets.initial).double()
    missed = {}
    for damping in (0.0, 0.3):
        settings = SETTINGS.model_copy(update={"damping": damping, "lookup": "last"})
        delta = edit_with(
            "emmet", tiny_llama, requests, (1,), statistics, CONTEXTS, settings, targets=targets
        )
        with delta.applied(tiny_llama):
            after = tiny_llama.parameters[name].detach().double()
        moved = keys @ (after - tiny_llama.parameters[name].detach().double()).T
        missed[damping] = ((moved - wanted).norm() / wanted.norm()).item()
    assert missed[0.0] < 1e-4 < 1e-3 < missed[0.3]


def test_damping_is_the_weight_that_memit_gives_the_covariance(
    tiny_llama: LanguageModel, statistics: Covariances, rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    got = edit_with("emmet", tiny_llama, requests, (1,), statistics, CONTEXTS, SETTINGS)
    settings = SETTINGS.model_copy(update={"ridge": 0.3 / 48})
    same = edit_with("memit", tiny_llama, requests, (1,), statistics, CONTEXTS, settings)
    (name,) = got.updates
    torch.testing.assert_close(
        got.updates[name].dense(), same.updates[name].dense(), rtol=1e-5, atol=1e-6
    )
