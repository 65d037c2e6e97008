"""Edits as adapters: PEFT itself loads them, and gives the logits of the edited model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from editing.edits.adapter import save_adapter
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.protocol import EditError
from editing.edits.report import EditReport
from interp.errors import InputError
from interp.models.loading import LanguageModel

IDS = torch.tensor([[5, 9, 23, 42, 7, 11]])


def delta_of(model: LanguageModel, layers: tuple[int, ...] = (1, 2)) -> EditDelta:
    """A whole matrix in the first block, two factors in the others."""
    generator = torch.Generator().manual_seed(3)
    places = [model.linear(model.down_projection(layer).name) for layer in layers]
    updates: dict[str, Any] = {}
    for place in places:
        d_out, d_in = place.orient(place.weight).shape
        left, right = (torch.randn(d, 3, generator=generator) for d in (d_out, d_in))
        updates[place.name] = LowRank(left / 10, right / 10) if updates else left @ right.T / 100
    of_layer = {place.name: place.layer for place in places}
    return EditDelta(updates, of_layer, model.weight_hash, EditReport("test"))


# PEFT asks transformers for a name that it gives up.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
def test_peft_gives_the_logits_of_the_edited_model(
    family: str,
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    tmp_path: Path,
) -> None:
    model, hf = make_model(family), make_hf(family)
    delta = delta_of(model)
    written = save_adapter(delta, model, tmp_path / "adapter")
    assert written.rank == 3 and max(written.errors.values()) < 1e-6
    with torch.no_grad():
        plain = hf(IDS).logits
        with delta.applied(model):
            expected = model.logits(IDS)
        adapted = PeftModel.from_pretrained(hf, str(tmp_path / "adapter"))
        got = adapted(IDS).logits
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 1e-2


def test_what_a_rank_cuts_off_is_stated(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    delta = delta_of(tiny_llama)
    written = save_adapter(delta, tiny_llama, tmp_path / "small", rank=2)
    assert written.rank == 2
    for name, update in delta.updates.items():
        matrix = (update.dense() if isinstance(update, LowRank) else update).double()
        sizes = torch.linalg.svdvals(matrix)
        cut = (sizes[2:].square().sum() / sizes.square().sum()).sqrt().item()
        assert written.errors[name] == pytest.approx(cut, rel=1e-4) and cut > 0.05
    wide = save_adapter(delta, tiny_llama, tmp_path / "wide", rank=40)
    assert wide.rank == 40 and max(wide.errors.values()) < 1e-6


def test_what_cannot_be_written_is_said(tiny_llama: LanguageModel, tmp_path: Path) -> None:
    delta = delta_of(tiny_llama)
    with pytest.raises(InputError, match="is there already; give a new folder"):
        save_adapter(delta, tiny_llama, tmp_path)
    with pytest.raises(InputError, match="rank of an adapter is 0"):
        save_adapter(delta, tiny_llama, tmp_path / "none", rank=0)
    zero = EditDelta(
        {name: torch.zeros(32, 48) for name in delta.updates},
        delta.layers,
        delta.model_hash,
        delta.report,
    )
    with pytest.raises(EditError, match="changes nothing"):
        save_adapter(zero, tiny_llama, tmp_path / "zero")
    other = EditDelta(delta.updates, delta.layers, "another", delta.report)
    with pytest.raises(EditError, match="another"):
        save_adapter(other, tiny_llama, tmp_path / "other")
    assert list(tmp_path.iterdir()) == []
