"""Replayed targets: against torch hooks on the plain model, and MEMIT with them against the formula
block by block."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.closed_form.replay import replayed_targets
from editing.closed_form.targets import find_targets
from editing.config import EditConfig
from editing.edits.requests import EditRequest, requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import assert_unchanged, edit_with, measured, snapshot
from tests.unit.editing_reference import (
    averaged_key,
    block_of,
    matrix_of,
    memit,
    place,
    state,
    tokens_and_place,
)

CONTEXTS = ("", "The area of a square is 4. ")
CONFIG = EditConfig(steps=6, learning_rate=0.5, ridge=0.02, targets="replayed")
LOOKUP = "subject_last"
LAYERS = (0, 1, 2)


def by_hooks(
    hf: Any, tokenizer: Any, request: EditRequest, parameters: Sequence[str], z: Tensor
) -> list[Tensor]:
    """Outputs of the blocks of some parameters at the lookup token, with z in the first."""
    ids, at = tokens_and_place(tokenizer, request.prompt, place(request, LOOKUP))
    blocks = [block_of(hf, name, layer) for name, layer in zip(parameters, LAYERS, strict=True)]
    seen: list[Tensor] = []

    def put(module: Any, given: Any, out: Any) -> Any:
        value = (out[0] if isinstance(out, tuple) else out).clone()
        value[0, at] = z
        return (value, *out[1:]) if isinstance(out, tuple) else value

    def read(module: Any, given: Any, out: Any) -> None:
        seen.append((out[0] if isinstance(out, tuple) else out)[0, at].clone())

    handles = [blocks[0].register_forward_hook(put)]
    handles += [block.register_forward_hook(read) for block in blocks]
    with torch.no_grad():
        hf(ids)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_targets_are_the_states_of_a_run_with_the_first_in_place(
    family: str, make_pair: Callable[..., Any], rule: Rule
) -> None:
    model, hf = make_pair(family)
    requests = requests_of(rule, LOOKUP)
    generator = torch.Generator().manual_seed(5)
    z = torch.randn(len(requests), 32, generator=generator)
    names = [model.down_projection(layer).name for layer in LAYERS]
    got = replayed_targets(model, requests, [LAYERS] * len(requests), z, LOOKUP)
    for i, request in enumerate(requests):
        expected = by_hooks(hf, model.tokenizer, request, names, z[i])
        torch.testing.assert_close(expected[0], z[i])
        for layer, value in zip(LAYERS, expected, strict=True):
            torch.testing.assert_close(got[layer][i], value, rtol=1e-4, atol=1e-4)
    # Each request in its own blocks, one of them alone in the last.
    plan = [(0, 2), (1, 2), (2,)]
    apart = replayed_targets(model, requests, plan, z, LOOKUP, memory=1)
    torch.testing.assert_close(apart[2][0], got[2][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(apart[1][1], z[1])
    torch.testing.assert_close(apart[2][2], z[2])
    assert not apart[0][1].any() and not apart[1][2].any()


def test_memit_writes_the_whole_residual_at_every_block(
    make_pair: Callable[..., Any], rule: Rule
) -> None:
    model, hf = make_pair("llama")
    tokenizer, requests = model.tokenizer, requests_of(rule, LOOKUP)
    statistics = measured(model, hf)
    before = snapshot(model)
    got = edit_with("memit", model, requests, LAYERS, statistics, CONTEXTS, CONFIG)
    assert_unchanged(model, before)

    z = find_targets(model, requests, LAYERS[0], CONTEXTS, CONFIG).z
    names = [model.down_projection(layer).name for layer in LAYERS]
    targets = [by_hooks(hf, tokenizer, r, names, z[i]) for i, r in enumerate(requests)]
    unedited = torch.stack([state(hf, tokenizer, r, names[-1], LAYERS[-1]) for r in requests])
    solve = memit(statistics.by_layer, weight=0.02 * 48)
    for i, (name, layer) in enumerate(zip(names, LAYERS, strict=True)):
        keys = [averaged_key(hf, tokenizer, r, name, CONTEXTS, LOOKUP) for r in requests]
        now = torch.stack([state(hf, tokenizer, r, name, layer, LOOKUP) for r in requests])
        wanted = torch.stack([each[i] for each in targets])
        update = solve(name, layer, torch.stack(keys).double().T, (wanted - now).double().T)
        made = got.updates[name].dense().double()
        assert ((made - update).norm() / update.norm()).item() < 1e-3
        with torch.no_grad():
            matrix_of(hf, name).add_(update.float())
    end = torch.stack([each[-1] for each in targets])
    now = torch.stack([state(hf, tokenizer, r, names[-1], LAYERS[-1]) for r in requests])
    left = ((end - now).norm(dim=-1) / (end - unedited).norm(dim=-1)).tolist()
    assert got.report.residual_left == pytest.approx(left, rel=1e-2)


def test_in_one_block_both_kinds_of_target_are_one(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    requests, statistics = requests_of(rule, LOOKUP), measured(tiny_llama, make_hf("llama"))
    last = CONFIG.model_copy(update={"targets": "last"})
    given = "memit", tiny_llama, requests, 1, statistics, CONTEXTS
    one, other = (edit_with(*given, config) for config in (CONFIG, last))
    for name, update in one.updates.items():
        torch.testing.assert_close(update.dense(), other.updates[name].dense())


@pytest.mark.parametrize("protection", ["staged", "joint"])
def test_dmle_takes_replayed_targets(
    protection: str, tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    requests, statistics = requests_of(rule, "last"), measured(tiny_llama, make_hf("llama"))
    changes = {"protection": protection, "layers": "0,1/1,2", "lookup": "last", "ridge": 1e-4}
    config = CONFIG.model_copy(update=changes)
    made = edit_with("dmle", tiny_llama, requests, (), statistics, CONTEXTS, config)
    left = [share for part in made.report.parts() for share in part.residual_left]
    assert len(left) == 3 and all(share < 0.9 for share in left)
