"""Fine-tuning: against Adam on the real parameters of a plain model, one unpadded run per
request."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.config import EditorSettings
from editing.edits.protocol import EditError
from editing.edits.requests import EditRequest
from interp.models.loading import LanguageModel
from tests.unit.editing_making import assert_unchanged, edit_with, log_probs, snapshot, train_with
from tests.unit.editing_reference import loss_of_answers

FAMILIES = ("llama", "gpt2", "gptj", "gpt_neox", "phi", "gemma3_text")
edit = partial(train_with, "ft")


def settings_of(**ft: Any) -> EditorSettings:
    return EditorSettings.model_validate(
        {"editor": "ft", "ft": {"steps": 6, "learning_rate": 5e-3, **ft}}
    )


def reference(
    hf: Any,
    tokenizer: Any,
    names: Sequence[str],
    requests: Sequence[EditRequest],
    settings: EditorSettings,
) -> tuple[dict[str, Tensor], list[float]]:
    """Adam on the parameters themselves, with its own weight decay."""
    ft = settings.ft
    start = {name: hf.get_parameter(name).detach().clone() for name in names}
    hf.requires_grad_(False)
    trained = [hf.get_parameter(name).requires_grad_() for name in names]
    optimiser = torch.optim.Adam(trained, lr=ft.learning_rate, weight_decay=ft.weight_decay)
    losses = []
    for _ in range(ft.steps):
        loss = loss_of_answers(hf, tokenizer, requests)
        losses.append(loss.item())
        if losses[-1] < ft.stop_loss:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if ft.norm_constraint is not None:
            with torch.no_grad():
                for name, weight in zip(names, trained, strict=True):
                    low, high = start[name] - ft.norm_constraint, start[name] + ft.norm_constraint
                    weight.copy_(weight.clamp(low, high))
    return {name: (hf.get_parameter(name) - start[name]).detach() for name in names}, losses


@pytest.mark.parametrize(
    "ft",
    [{}, {"norm_constraint": 8e-3}, {"weight_decay": 0.3}],
    ids=["free", "constrained", "decay"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_edit_equals_adam_on_the_parameters_of_a_plain_model(
    family: str,
    ft: dict[str, float],
    make_hf: Callable[..., Any],
    tokenizer: Any,
    requests: list[EditRequest],
) -> None:
    # float64: Adam's first steps divide a gradient by its own size, which in float32 turns on
    # rounding.
    model = LanguageModel(make_hf(family).double(), tokenizer, family)
    settings, before = settings_of(**ft), snapshot(model)
    delta = edit(model, requests, (0, 2), settings)
    assert_unchanged(model, before)
    expected, losses = reference(
        make_hf(family).double(), tokenizer, list(delta.updates), requests, settings
    )
    assert sorted(delta.layers.values()) == [0, 2]
    assert delta.report.losses == pytest.approx(losses, rel=1e-4)
    for name, update in delta.updates.items():
        assert isinstance(update, Tensor)
        change = expected[name].T if family == "gpt2" else expected[name]
        assert change.abs().max() > 1e-3
        torch.testing.assert_close(update.double(), change, rtol=1e-3, atol=1e-5)
    if "norm_constraint" in ft:
        largest = max(u.abs().max().item() for u in delta.updates.values() if isinstance(u, Tensor))
        assert largest == pytest.approx(ft["norm_constraint"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_new_answers_become_likelier_and_the_loss_is_that_of_the_edited_model(
    family: str, make_model: Callable[..., LanguageModel], requests: list[EditRequest]
) -> None:
    model = make_model(family)
    before = log_probs(model, requests)
    delta = edit(model, requests, (1, 2), settings_of(steps=10))
    shorter = edit(model, requests, (1, 2), settings_of(steps=9))
    with delta.edited(model) as view:
        after = log_probs(view, requests)
    assert sum(after) > sum(before) + 1
    assert -sum(before) / len(before) == pytest.approx(delta.report.losses[0], rel=1e-4)
    # The last loss is measured before the last step: on the model with the steps up to it.
    with shorter.edited(model) as view:
        assert -sum(log_probs(view, requests)) / 3 == pytest.approx(
            delta.report.losses[9], rel=1e-3
        )


def test_it_stops_below_the_stopping_loss(
    tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    losses = edit(tiny_llama, requests, (1, 2), settings_of(steps=30, stop_loss=2.0)).report.losses
    assert 1 < len(losses) < 30
    assert losses[-1] < 2.0 <= min(losses[:-1])
    at_once = edit(tiny_llama, requests, (1,), settings_of(stop_loss=1e9))
    assert len(at_once.report.losses) == 1
    assert not any(u.any() for u in at_once.updates.values() if isinstance(u, Tensor))


def test_it_is_deterministic_and_says_what_it_did(
    tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    first, second = (edit(tiny_llama, requests, (1,), settings_of()) for _ in range(2))
    for name, update in first.updates.items():
        other = second.updates[name]
        assert (
            isinstance(update, Tensor) and isinstance(other, Tensor) and torch.equal(update, other)
        )
    assert (first.report.editor, first.report.layers) == ("ft", [1])
    assert first.report.settings["ft"]["steps"] == 6
    assert [r["prompt"] for r in first.report.requests] == [r.prompt for r in requests]
    assert first.model_hash == tiny_llama.weight_hash


def test_a_half_precision_model_is_tuned_in_float32_and_stays_as_it_is(
    make_hf: Callable[..., Any], tokenizer: Any, requests: list[EditRequest]
) -> None:
    model = LanguageModel(make_hf("llama").to(torch.bfloat16), tokenizer, "half")
    before, unedited = snapshot(model), log_probs(model, requests)
    delta = edit(model, requests, (1, 2), settings_of(steps=10))
    assert_unchanged(model, before)
    assert {u.dtype for u in delta.updates.values() if isinstance(u, Tensor)} == {torch.float32}
    assert all(0 < loss < 0.3 for loss in delta.cast_loss(model).values())
    with delta.edited(model) as view:
        assert sum(log_probs(view, requests)) > sum(unedited)
    assert_unchanged(model, before)


def test_edit_reports_divergence(
    make_model: Callable[..., LanguageModel], requests: list[EditRequest]
) -> None:
    model = make_model("llama")
    before = snapshot(model)
    with pytest.raises(EditError, match=r"diverged at step 1.*ft\.learning_rate"):
        edit(model, requests, (1,), settings_of(learning_rate=1e37))
    assert_unchanged(model, before)


def test_training_stops_when_what_is_retained_is_back(
    tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    """The new answers are learned first; what they moved is brought back after that."""
    asked, kept = requests[:1], requests[2]
    target = tiny_llama.encode_continuation(kept.target_new, kept.prompt)
    prompt = tiny_llama.encode(kept.prompt).ids
    ids = torch.tensor([[*prompt, *target[:-1]]])

    def said() -> Tensor:
        with torch.no_grad():
            return tiny_llama.logits(ids)[0, len(prompt) - 1 :].log_softmax(-1)

    before = said()
    ends: dict[bool, tuple[int, float, float]] = {}
    for retained in ([], [kept]):
        settings = settings_of(steps=500, learning_rate=3e-3, stop_loss=0.2)
        made = edit_with("ft", tiny_llama, asked, 1, settings=settings, retained=retained)
        with made.applied(tiny_llama):
            divergence = (before.exp() * (before - said())).sum(-1).mean().item()
        losses = made.report.losses
        ends[bool(retained)] = len(losses), losses[-1], divergence
    (few, alone, moved), (steps, loss, left) = ends[False], ends[True]
    assert alone < 0.2 < alone + moved  # alone it stops with the other prompt changed
    assert few < steps < 500 and loss + left < 0.2
