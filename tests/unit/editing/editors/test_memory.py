"""Memory runs out in the middle of an edit: fewer rows are run together, and the edit is the same.

The memory is that of a module: its last block refuses more rows than so many, as an accelerator
does that is full.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from editing.closed_form.workbench import Workbench
from editing.editors.registry import edit
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.requests import requests_of
from interp.models.budget import MemoryLimitError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import assert_unchanged, settings_of, snapshot

TRAINED = ("ft", "ft_whitened", "lora", "ultraedit")
SEARCHED = ("memit", "dmle")
ERRORS = [torch.OutOfMemoryError("full"), RuntimeError("not enough memory: you tried")]


@pytest.fixture(scope="module")
def bench(
    tiny_llama: LanguageModel, make_bench: Callable[..., Workbench], rules: tuple[Rule, ...]
) -> Workbench:
    return make_bench(tiny_llama, rules[1:])


class Limit:
    """Blocks that refuse more than so many rows; counts refusals."""

    def __init__(self, rows: int, error: Exception) -> None:
        self.rows, self.error, self.refused = rows, error, 0
        self.largest = 0

    def __call__(self, module: Any, inputs: tuple, options: dict) -> None:
        states = inputs[0] if inputs else options["hidden_states"]
        if len(states) > self.rows:
            self.refused += 1
            raise self.error
        self.largest = max(self.largest, len(states))

    def put_on(self, block: Any) -> Any:
        return block.register_forward_pre_hook(self, with_kwargs=True)


def asked_of(bench: Workbench, name: str, rule: Rule, other: Rule) -> Workbench:
    settings = settings_of(name)
    asked = bench.asked(requests_of(rule, settings.lookup), settings)
    if name in TRAINED:  # and two prompts that are retained
        asked = replace(asked, retained=requests_of(other, settings.lookup)[:2])
    return asked


def dense(update: LowRank | torch.Tensor) -> torch.Tensor:
    return update if isinstance(update, torch.Tensor) else update.dense()


def made(asked: Workbench) -> EditDelta:
    delta = edit(asked)
    assert isinstance(delta, EditDelta)
    return delta


def limited(asked: Workbench, limit: Limit, patch: pytest.MonkeyPatch) -> EditDelta:
    """The edit while the model's last block, and that of every copy, takes so many rows."""
    model = asked.model
    copy = model.clean_copy

    def clean_copy() -> Any:
        clean = copy()
        limit.put_on(clean.model.layers[-1])
        return clean

    patch.setattr(model, "clean_copy", clean_copy)
    handle = limit.put_on(model.bridge.blocks[-1].original_component)
    try:
        return made(asked)
    finally:
        handle.remove()


@pytest.mark.parametrize(("rows", "error"), [(1, ERRORS[0]), (2, ERRORS[1])], ids=["1", "2"])
@pytest.mark.parametrize("name", [*TRAINED, *SEARCHED])
def test_less_memory_makes_the_same_edit(
    name: str,
    rows: int,
    error: Exception,
    bench: Workbench,
    rules: tuple[Rule, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = asked_of(bench, name, rules[0], rules[1])
    whole, limit = made(asked), Limit(rows, error)
    parts = limited(asked, limit, monkeypatch)
    assert limit.refused and limit.largest == rows
    # Sums over rows in other order: rounding, which Adam's first steps may enlarge.
    for key in whole.updates:
        full, other = (dense(each.updates[key]) for each in (whole, parts))
        assert (full - other).norm() < 1e-3 * full.norm()
    for ours, theirs in zip(whole.report.losses, parts.report.losses, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("name", ["ft_whitened", "memit"])
def test_not_one_row_fits(
    name: str, bench: Workbench, rules: tuple[Rule, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asked_of(bench, name, rules[0], rules[1])
    before = snapshot(bench.model)
    with pytest.raises(
        MemoryLimitError, match=r"one item alone does not fit .*full.*; use shorter"
    ):
        limited(asked, Limit(0, ERRORS[0]), monkeypatch)
    assert_unchanged(bench.model, before)
