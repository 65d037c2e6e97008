"""UltraEdit: against the formula in numpy, with keys and gradients of a plain model, one unpadded
run per request."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from editing.config import EditorSettings
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.protocol import EditError
from editing.edits.requests import EditRequest, requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import edit_with
from tests.unit.editing_reference import projection_of

LAYERS = (1, 2)
EPSILON = float(np.finfo(np.float32).eps)
RATE, RIDGE = 3e-4, 0.5


def settings_of(**more: Any) -> EditorSettings:
    options = {"learning_rate": RATE, "ridge": RIDGE}
    return EditorSettings.model_validate({"editor": "ultraedit", "options": options, **more})


def rows_of(
    hf: Any, tokenizer: Any, name: str, requests: Sequence[EditRequest]
) -> tuple[np.ndarray, np.ndarray, float]:
    """Keys, gradients of the mean loss over all answer tokens, and that loss, by autograd."""
    keys, outputs, losses = [], [], []

    def note(module: Any, args: Any, out: torch.Tensor) -> None:
        keys.append(args[0][0].detach())
        out.requires_grad_()
        outputs.append(out)

    handle = projection_of(hf, name).register_forward_hook(note)
    spans = []
    for request in requests:
        prompt = tokenizer(request.prompt)["input_ids"]
        target = tokenizer(" " + request.target_new, add_special_tokens=False)["input_ids"]
        target += [tokenizer.eos_token_id] * request.ends
        logits = hf(torch.tensor([prompt + target[:-1]])).logits[0].log_softmax(-1)
        spans.append(range(len(prompt) - 1, len(prompt) - 1 + len(target)))
        losses += [-logits[at, token] for at, token in zip(spans[-1], target, strict=True)]
    handle.remove()
    loss = torch.stack(losses).mean()
    gradients = torch.autograd.grad(loss, outputs)
    parts = [
        np.concatenate([each.reshape(-1, each.shape[-1])[list(s)].numpy() for each, s in pairs])
        for pairs in (zip(keys, spans, strict=True), zip(gradients, spans, strict=True))
    ]
    return parts[0].astype(np.float64), parts[1].astype(np.float64), loss.item()


def normalised(rows: np.ndarray) -> np.ndarray:
    return (rows - rows.mean(0)) / (rows.std(0, ddof=1) + EPSILON)


def by_hand(keys: np.ndarray, gradients: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
    """ΔW (d_out, d_in), from the normal equations in the features."""
    wanted = -RATE * (normalised(keys) ** 2).sum(1, keepdims=True) * normalised(gradients)
    gram = keys.T @ keys + RIDGE * np.eye(keys.shape[1])
    if kept is not None:
        gram = gram + kept.T @ kept
    return np.linalg.solve(gram, keys.T @ wanted).T


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
@pytest.mark.parametrize("end_token", [False, True])
def test_it_is_the_formula_by_hand(
    family: str,
    end_token: bool,
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    tokenizer: Any,
    rule: Rule,
) -> None:
    model, hf, requests = make_model(family), make_hf(family), requests_of(rule, "last")
    settings = settings_of(end_token=end_token)
    made = edit_with("ultraedit", model, requests, LAYERS, settings=settings)
    assert isinstance(made, EditDelta) and list(made.layers.values()) == list(LAYERS)
    asked = [
        EditRequest(r.rule, r.form, r.prompt, r.subject, (), r.target_new, ends=end_token)
        for r in requests
    ]
    for layer in LAYERS:
        name = model.down_projection(layer).name
        keys, gradients, loss = rows_of(hf, tokenizer, name, asked)
        assert made.report.losses == pytest.approx([loss], rel=1e-5)
        expected = by_hand(keys, gradients)
        update = made.updates[name]
        assert isinstance(update, LowRank)
        error = np.abs(update.dense().numpy() - expected).max()
        assert error < 1e-5 * np.abs(expected).max()


def test_more_rows_than_features_are_one_matrix_and_retained_rows_want_no_change(
    tiny_llama: LanguageModel,
    make_hf: Callable[..., Any],
    tokenizer: Any,
    rules: tuple[Rule, ...],
) -> None:
    model, hf = tiny_llama, make_hf("llama")
    requests = [request for rule in rules for request in requests_of(rule, "last")]
    many = [*requests] * 3
    (kept,) = requests_of(rules[-1], "last")[:1]
    made = edit_with("ultraedit", model, many, 1, settings=settings_of(), retained=[kept])
    name = model.down_projection(1).name
    keys, gradients, _ = rows_of(hf, tokenizer, name, many)
    seen: list[torch.Tensor] = []
    handle = projection_of(hf, name).register_forward_hook(
        lambda module, args, out: seen.append(args[0][0].detach())
    )
    text = tokenizer(kept.prompt)["input_ids"]
    text += tokenizer(" " + kept.target_new, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hf(torch.tensor([text]))
    handle.remove()
    expected = by_hand(keys, gradients, seen[0].double().numpy())
    update = made.updates[name]
    assert isinstance(update, torch.Tensor) and len(keys) > model.d_model
    # Equal rows thrice: rounding of float32 runs is not averaged out.
    assert np.abs(update.numpy() - expected).max() < 1e-4 * np.abs(expected).max()


def test_one_token_has_no_spread(tiny_llama: LanguageModel, rule: Rule) -> None:
    (request,) = requests_of(rule, "last")[:1]
    alone = EditRequest(request.rule, request.form, request.prompt, request.subject, (), "4")
    assert len(alone.target_ids(tiny_llama)) == 1
    with pytest.raises(EditError, match="one token in all"):
        edit_with("ultraedit", tiny_llama, [alone], LAYERS, settings=settings_of())
