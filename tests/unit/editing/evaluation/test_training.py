"""The loss of editors that train on answers, by hand from the logits of a plain model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from editing.closed_form.targets import find_targets
from editing.config import EditConfig
from editing.edits.requests import requests_of
from editing.evaluation.training import Lesson, lessons, settled
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule

CONTEXTS = ("", "A cube. ")


def said(hf: Any, tokenizer: Any, prompt: str, target: Sequence[int]) -> Tensor:
    """Logits at each token of a target."""
    ids = tokenizer(prompt)["input_ids"]
    return hf(torch.tensor([[*ids, *target]])).logits[0, len(ids) - 1 : -1]


def ids_of(tokenizer: Any, answer: str, *end: int) -> list[int]:
    return [*tokenizer(" " + answer, add_special_tokens=False)["input_ids"], *end]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_answer_ends_with_the_end_token(
    family: str,
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
    tokenizer: Any,
    rule: Rule,
) -> None:
    model, hf, end = make_model(family), make_hf(family), tokenizer.eos_token_id
    requests = [replace(each, ends=True) for each in requests_of(rule, "last")]
    expected = []
    for context in CONTEXTS:
        for each in requests:
            target = ids_of(tokenizer, each.target_new, end)
            logits = said(hf, tokenizer, context + each.prompt, target)
            expected.append(cross_entropy(logits, torch.tensor(target)))
    (rows,) = lessons(model, requests, (), CONTEXTS)
    assert all(target[-1] == end for target in rows.asked.targets)
    logits = model.logits(rows.asked.ids, mask=rows.asked.mask, only=rows.places)[0]
    loss, whole = rows.loss(logits)
    assert loss is whole
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    # The search for targets begins with the same loss, request by request.
    config = EditConfig(lookup="last", kl_factor=0.0, weight_decay=0.0, steps=1)
    found = find_targets(model, requests, 1, CONTEXTS, config)
    for i, losses in enumerate(found.losses):
        assert losses[0] == pytest.approx(torch.stack(expected[i::3]).mean().item(), rel=1e-5)


def test_what_is_retained_is_a_divergence_from_the_first_logits(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], tokenizer: Any, rule: Rule
) -> None:
    trained, *retained = requests_of(rule, "last")
    (rows,) = lessons(tiny_llama, [trained], retained)
    logits = tiny_llama.logits(rows.asked.ids, mask=rows.asked.mask, only=rows.places)[0]
    loss, whole = rows.loss(logits)
    assert whole.item() == loss.item()  # nothing has changed yet
    hf = make_hf("llama")
    changed, each = 1.5 * logits, []
    loss, whole = rows.loss(changed)
    for kept in retained:
        target = ids_of(tokenizer, kept.target_new)
        before = said(hf, tokenizer, kept.prompt, target)
        after = (1.5 * before).log_softmax(-1)
        each.append(
            kl_div(after, before.log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
        )
    assert len({len(ids_of(tokenizer, kept.target_new)) for kept in retained}) == 2
    expected = torch.stack(each).mean().item()
    assert expected > 0.01
    assert (whole - loss).item() == pytest.approx(expected, rel=1e-4)
    target = ids_of(tokenizer, trained.target_new)
    new = cross_entropy(1.5 * said(hf, tokenizer, trained.prompt, target), torch.tensor(target))
    assert loss.item() == pytest.approx(new.item(), rel=1e-5)


@pytest.mark.parametrize(("size", "sizes"), [(None, [6]), (6, [6]), (4, [3, 3]), (1, [1] * 6)])
def test_batches_have_every_row_once_and_all_that_is_retained(
    size: int | None, sizes: list[int], tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    requests, retained = (requests_of(rule, "last") for rule in rules)
    batches = lessons(tiny_llama, requests, retained, CONTEXTS, size=size)
    (whole,) = lessons(tiny_llama, requests, retained, CONTEXTS)
    assert [batch.n_trained for batch in batches] == sizes

    def texts(batch: Lesson, rows: slice) -> list[tuple[int, ...]]:
        ids, mask = batch.asked.ids[rows], batch.asked.mask[rows].bool()
        return [tuple(row[kept].tolist()) for row, kept in zip(ids, mask, strict=True)]

    trained = [text for batch in batches for text in texts(batch, slice(batch.n_trained))]
    assert sorted(trained) == sorted(texts(whole, slice(6)))
    for batch in batches:
        assert texts(batch, slice(batch.n_trained, None)) == texts(whole, slice(6, None))


def test_training_is_settled_when_every_batch_is_on_average() -> None:
    assert settled([0.5, 0.09], 1, 0.1)
    assert not settled([0.05], 2, 0.1)
    assert not settled([0.01, 0.05, 0.2], 2, 0.1)
    assert settled([0.9, 0.05, 0.14], 2, 0.1)


def test_a_tokenizer_without_an_end_token_is_named(
    make_model: Callable[..., LanguageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("llama", check=False)
    assert model.end_token == model.tokenizer.eos_token_id
    monkeypatch.setattr(model.tokenizer, "eos_token", None)
    with pytest.raises(InputError, match=r"no end-of-text token .*edit.end_token"):
        _ = model.end_token
