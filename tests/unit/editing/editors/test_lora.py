"""LoRA: against adapters written by hand as hooks on a plain model, and the delta against the
plain model's weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.config import EditorSettings
from editing.edits.protocol import EditError
from editing.edits.requests import EditRequest
from interp.models.loading import LanguageModel
from tests.unit.editing_making import assert_unchanged, factors, log_probs, snapshot, train_with
from tests.unit.editing_reference import loss_of_answers

SEPARATE = ("llama", "gptj", "qwen2", "qwen3", "mistral", "phi", "gemma3_text")
FUSED = ("gpt2", "gpt_neox")
edit = partial(train_with, "lora")


def settings_of(seed: int = 0, **lora: Any) -> EditorSettings:
    values = {"rank": 3, "steps": 6, "learning_rate": 1e-2, **lora}
    return EditorSettings.model_validate({"editor": "lora", "seed": seed, "lora": values})


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        *((family, ("q", "v")) for family in SEPARATE),
        *((f, ("o", "in", "out")) for f in FUSED),
        ("llama", ("gate",)),
    ],
)
def test_edit_equals_adapters_by_hand_on_a_plain_model(
    family: str,
    targets: tuple[str, ...],
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    tokenizer: Any,
    requests: list[EditRequest],
) -> None:
    model, hf = make_model(family), make_hf(family)
    before = snapshot(model)
    steps, alpha, rate = 4, 6.0, 1e-2
    common = {"alpha": alpha, "dropout": 0.0, "learning_rate": rate, "targets": targets}
    delta = edit(model, requests, (0, 2), settings_of(steps=steps, **common))
    assert_unchanged(model, before)
    # With B = 0 the first step has no gradient for A, so one step shows the A that training starts
    # with.
    first = factors(edit(model, requests, (0, 2), settings_of(steps=1, **common)))
    assert len(first) == 2 * len(targets) and sorted(set(delta.layers.values())) == [0, 2]

    hf.requires_grad_(False)
    a = {name: update.right.T.clone().requires_grad_() for name, update in first.items()}
    b = {name: torch.zeros_like(update.left).requires_grad_() for name, update in first.items()}
    for name in first:

        def add(module: Any, inputs: tuple[Tensor], out: Tensor, name: str = name) -> Tensor:
            return out + (alpha / 3) * (inputs[0] @ a[name].T) @ b[name].T

        hf.get_submodule(name.removesuffix(".weight")).register_forward_hook(add)
    optimiser = torch.optim.Adam([*a.values(), *b.values()], lr=rate)
    losses = []
    for _ in range(steps):
        loss = loss_of_answers(hf, tokenizer, requests)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert delta.report.losses == pytest.approx(losses, rel=1e-3)
    for name, update in factors(delta).items():
        expected = (alpha / 3) * (b[name] @ a[name]).detach()
        assert expected.abs().max() > 1e-3
        # Adam divides small gradients by their size, so a few entries turn on rounding.
        assert (update.dense() - expected).norm() < 2e-2 * expected.norm()
    with delta.edited(model):
        edited = log_probs(model, requests)
    with torch.no_grad():
        assert sum(edited) / 3 == pytest.approx(
            -loss_of_answers(hf, tokenizer, requests).item(), rel=2e-3
        )
    assert_unchanged(model, before)


@pytest.mark.parametrize("family", SEPARATE)
def test_the_new_answers_become_likelier(
    family: str, make_model: Callable[..., LanguageModel], requests: list[EditRequest]
) -> None:
    model = make_model(family)
    before = log_probs(model, requests)
    delta = edit(model, requests, range(3), settings_of(steps=20, dropout=0.1))
    with delta.edited(model) as view:
        assert sum(log_probs(view, requests)) > sum(before) + 1
    assert delta.rank() == dict.fromkeys(delta.updates, 3)


@pytest.mark.parametrize("family", FUSED)
def test_a_fused_model_is_refused_with_the_reason(
    family: str, make_model: Callable[..., LanguageModel], requests: list[EditRequest]
) -> None:
    model = make_model(family)
    before = snapshot(model)
    with pytest.raises(
        EditError, match=r"no projection 'q'.*it has o, in, out.*fuses.*set edit\.lora\.targets"
    ):
        edit(model, requests, (1,), settings_of())
    assert_unchanged(model, before)


def test_a_projection_that_does_not_exist_is_refused(
    make_model: Callable[..., LanguageModel], requests: list[EditRequest]
) -> None:
    with pytest.raises(EditError, match=r"block 1 has no projection 'gate'.*q, k, v, o, in, out"):
        edit(make_model("gptj"), requests, (1,), settings_of(targets=("gate",)))


def test_a_tied_embedding_stays_shared_and_unchanged(
    make_model: Callable[..., LanguageModel], requests: list[EditRequest]
) -> None:
    model = make_model("llama", tie_word_embeddings=True)
    before = snapshot(model)
    clean = model.clean_copy()
    ours, theirs = (
        model.parameters["model.embed_tokens.weight"],
        clean.get_input_embeddings().weight,
    )
    assert theirs.data_ptr() == ours.data_ptr() == clean.get_output_embeddings().weight.data_ptr()
    assert theirs is not ours and clean.get_output_embeddings().weight is theirs
    edit(model, requests, (1,), settings_of())
    assert_unchanged(model, before)


def test_a_clean_copy_shares_memory_and_gives_the_same_logits(
    architecture: str, make_model: Callable[..., LanguageModel]
) -> None:
    model = make_model(architecture)
    ids = torch.tensor([model.encode("The area of a square is").ids])
    torch.manual_seed(3)
    state = torch.get_rng_state()
    clean = model.clean_copy()
    assert torch.equal(torch.get_rng_state(), state)
    assert {n: p.data_ptr() for n, p in clean.named_parameters()} == {
        n: p.data_ptr() for n, p in model.parameters.items()
    }
    assert not clean.training and not any(p.requires_grad for p in clean.parameters())
    with torch.no_grad():
        torch.testing.assert_close(clean(ids).logits, model.logits(ids), rtol=1e-4, atol=1e-4)
    clean.requires_grad_(True)
    assert not any(p.requires_grad for p in model.parameters.values())


def test_it_is_seeded_and_leaves_the_random_state(
    tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = factors(edit(tiny_llama, requests, (1,), settings_of(dropout=0.5)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    second = factors(edit(tiny_llama, requests, (1,), settings_of(dropout=0.5)))
    other = factors(edit(tiny_llama, requests, (1,), settings_of(seed=1, dropout=0.5)))
    for name, update in first.items():
        assert torch.equal(update.left, second[name].left) and torch.equal(
            update.right, second[name].right
        )
        assert not torch.allclose(update.right, other[name].right)


def test_dropout_acts_in_the_adapters_and_not_in_the_model(
    make_model: Callable[..., LanguageModel], requests: list[EditRequest]
) -> None:
    model = make_model("gptj", attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5)
    with_none = edit(model, requests, (1,), settings_of(dropout=0.0)).report.losses
    with_some = edit(model, requests, (1,), settings_of(dropout=0.5)).report.losses
    # B = 0 at the start: dropout in the adapter shows from the second loss on, in the model from
    # the first.
    assert with_none[0] == pytest.approx(-sum(log_probs(model, requests)) / 3, rel=1e-4)
    assert with_some[0] == with_none[0] and with_some[-1] != with_none[-1]


def test_a_half_precision_model_is_left_as_it_is(
    make_hf: Callable[..., Any], tokenizer: Any, requests: list[EditRequest]
) -> None:
    model = LanguageModel(make_hf("llama").to(torch.bfloat16), tokenizer, "half")
    before, unedited = snapshot(model), log_probs(model, requests)
    delta = edit(model, requests, range(3), settings_of(steps=20))
    assert {update.left.dtype for update in factors(delta).values()} == {torch.float32}
    with delta.edited(model) as view:
        assert sum(log_probs(view, requests)) > sum(unedited)
    assert_unchanged(model, before)


def test_divergence_is_reported_and_the_model_stays(
    make_model: Callable[..., LanguageModel], requests: list[EditRequest]
) -> None:
    model = make_model("llama")
    before = snapshot(model)
    with pytest.raises(EditError, match=r"diverged at step \d.*lora\.learning_rate"):
        edit(model, requests, (1,), settings_of(learning_rate=1e37))
    assert_unchanged(model, before)


def test_without_peft_the_error_says_what_to_install(
    tiny_llama: LanguageModel, requests: list[EditRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(EditError, match=r"needs the package peft.*pip install"):
        edit(tiny_llama, requests, (1,), settings_of())
