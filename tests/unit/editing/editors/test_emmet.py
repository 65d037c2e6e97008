"""EMMET: against the formula with explicit inverses on plain modules, and the equality
constraint itself."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from editing.closed_form.covariance import Covariances
from editing.closed_form.targets import find_targets
from editing.config import EditorSettings
from editing.edits.requests import EditRequest, requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import edit_with
from tests.unit.editing_reference import averaged_key, matrix_of, second_moment, state

CONTEXTS = ("", "The area of a square is 4. ")
SETTINGS = EditorSettings(editor="emmet", steps=4, damping=0.3)
TEXTS = [
    f"The {a} of a {b} with {c} is {d} times the {c}."
    for a in ("area", "volume", "perimeter")
    for b in ("square", "cube", "circle")
    for c, d in (("side", 3), ("length", 12), ("width", 27))
]


def covariances(model: LanguageModel, hf: Any, layers: Sequence[int]) -> Covariances:
    """C of some blocks, by the slow reference."""
    rows = [model.tokenizer(text)["input_ids"] for text in TEXTS]
    by_layer = {
        layer: second_moment(hf, model.down_projection(layer).name, rows).float()
        for layer in layers
    }
    return Covariances(by_layer, model.weight_hash, sum(map(len, rows)), {"corpus": "here"})


def by_hand(
    hf: nn.Module,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    names: Sequence[str],
    layers: Sequence[int],
    z: Tensor,
    c: dict[int, Tensor],
    damping: float,
) -> dict[str, Tensor]:
    """R (KᵀC⁻¹K + damping·I)⁻¹KᵀC⁻¹, block by block; the updates are left in the model's
    weights."""
    updates = {}
    for i, (name, layer) in enumerate(zip(names, layers, strict=True)):
        k = (
            torch.stack([averaged_key(hf, tokenizer, r, name, CONTEXTS) for r in requests])
            .double()
            .T
        )
        now = torch.stack([state(hf, tokenizer, r, names[-1], layers[-1]) for r in requests])
        residual = ((z - now).double() / (len(layers) - i)).T
        inverse = torch.linalg.inv(c[layer].double())
        gram = k.T @ inverse @ k + damping * torch.eye(len(requests), dtype=torch.float64)
        updates[name] = residual @ torch.linalg.inv(gram) @ k.T @ inverse
        with torch.no_grad():
            matrix_of(hf, name).add_(updates[name].float())
    return updates


@pytest.mark.parametrize(
    ("family", "layers"), [("llama", (0, 2)), ("gpt2", (1,)), ("gptj", (1, 2))]
)
def test_edit_equals_the_formula_on_plain_modules(
    family: str,
    layers: tuple[int, ...],
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    rule: Rule,
) -> None:
    model, hf, requests = make_model(family), make_hf(family), requests_of(rule, "subject_last")
    statistics = covariances(model, hf, layers)
    z = find_targets(model, requests, layers[-1], CONTEXTS, SETTINGS).z
    got = edit_with("emmet", model, requests, layers, statistics, CONTEXTS, SETTINGS)
    names = [model.down_projection(layer).name for layer in layers]
    expected = by_hand(hf, model.tokenizer, requests, names, layers, z, statistics.by_layer, 0.3)
    assert list(got.updates) == names and got.report.editor == "emmet"
    for name in names:
        update = got.updates[name].dense().double()
        assert ((update - expected[name]).norm() / expected[name].norm()).item() < 1e-3


def test_without_damping_the_outputs_of_distinct_keys_move_by_exactly_the_residual(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rules: tuple[Rule, ...]
) -> None:
    hf = make_hf("llama")
    requests = [requests_of(rules[0], "last")[2], *requests_of(rules[1], "last")]
    statistics = covariances(tiny_llama, hf, (1,))
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
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    requests = requests_of(rule, "subject_last")
    statistics = covariances(tiny_llama, make_hf("llama"), (1,))
    got = edit_with("emmet", tiny_llama, requests, (1,), statistics, CONTEXTS, SETTINGS)
    settings = SETTINGS.model_copy(update={"ridge": 0.3 / 48})
    same = edit_with("memit", tiny_llama, requests, (1,), statistics, CONTEXTS, settings)
    (name,) = got.updates
    torch.testing.assert_close(
        got.updates[name].dense(), same.updates[name].dense(), rtol=1e-5, atol=1e-6
    )
