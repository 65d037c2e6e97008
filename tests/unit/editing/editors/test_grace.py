"""GRACE: training and lookup against a codebook around the down-projection of a plain model; the
rules of placement."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.config import EditorSettings
from editing.editors.grace import Codebook, _placed
from editing.editors.registry import load_edit
from editing.edits.protocol import EditError
from editing.edits.requests import EditRequest
from editing.evaluation.greedy import greedy_answers
from editing.evaluation.scoring import Question, teacher_forced
from interp.models.loading import LanguageModel
from tests.unit.editing_making import assert_unchanged, log_probs, snapshot, train_with

FAMILIES = ("llama", "gpt2", "gptj", "gpt_neox", "phi", "gemma3_text")
PROMPTS = (
    "The area of a square is A =",
    "The area of a circle is",
    "What is the area of a square with s = 4? It is",
)
edit = partial(train_with, "grace")


def settings_of(seed: int = 0, **grace: Any) -> EditorSettings:
    values = {"steps": 8, "learning_rate": 0.3, "epsilon": 0.5, **grace}
    return EditorSettings.model_validate({"editor": "grace", "seed": seed, "grace": values})


def down_module(hf: Any, model: LanguageModel, layer: int) -> Any:
    return hf.get_submodule(model.down_projection(layer).name.removesuffix(".weight"))


def same(first: Codebook, second: Codebook) -> bool:
    tensors = all(
        torch.equal(getattr(first, n), getattr(second, n)) for n in ("keys", "values", "radii")
    )
    return (
        tensors
        and replace(first, keys=second.keys, values=second.values, radii=second.radii) == second
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_keys_and_values_equal_those_trained_around_a_plain_down_projection(
    family: str, make_hf: Callable[..., Any], tokenizer: Any, requests: list[EditRequest]
) -> None:
    model, hf = LanguageModel(make_hf(family).double(), tokenizer, family), make_hf(family).double()
    before = snapshot(model)
    book = edit(model, requests, 1, settings_of(epsilon=1e-3, seed=4))
    assert_unchanged(model, before)
    assert len(book.labels) == len(requests) and book.radii.tolist() == [1e-3] * len(requests)
    generator = torch.Generator().manual_seed(4)
    for i, request in enumerate(requests):
        prompt = tokenizer(request.prompt)["input_ids"]
        target = tokenizer(" " + request.target_new, add_special_tokens=False)["input_ids"]
        value = torch.rand(model.d_model, generator=generator, dtype=torch.float64).requires_grad_()
        optimiser = torch.optim.Adam([value], lr=0.3)
        keys, losses = [], []

        def replace_last(
            module: Any, inputs: tuple[Tensor], out: Tensor, end: int = len(prompt) - 1
        ) -> Tensor:
            keys.append(inputs[0][0, end].detach())  # noqa: B023
            parts = [out[:, :end], value[None, None], out[:, end + 1 :]]  # noqa: B023
            return torch.cat(parts, dim=1)

        handle = down_module(hf, model, 1).register_forward_hook(replace_last)
        for _ in range(8):
            said = hf(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
            loss = torch.nn.functional.cross_entropy(said.float(), torch.tensor(target))
            losses.append(loss.item())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        handle.remove()
        torch.testing.assert_close(book.keys[i], keys[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(book.values[i], value.detach(), rtol=1e-4, atol=1e-5)
        assert book.report.losses[i] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_codebook_answers_near_its_keys_and_nowhere_else(
    family: str, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any]
) -> None:
    model, hf = make_model(family), make_hf(family)
    generator = torch.Generator().manual_seed(0)
    captured: list[Tensor] = []
    module = down_module(hf, model, 1)
    look = module.register_forward_hook(lambda module, inputs, out: captured.append(inputs[0][0]))
    ids = [model.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    with torch.no_grad():
        for row in ids:
            hf(torch.tensor([row]))
    look.remove()
    ends = [keys[-1] for keys in captured]
    # A key near the first prompt's end, one at another token of the second, one too far from the
    # third's end.
    offset = torch.zeros_like(ends[0])
    offset[0] = 0.3
    keys = torch.stack([ends[0] + offset, captured[1][1], ends[2] + 2 * offset])
    values = torch.randn(3, model.d_model, generator=generator)
    book = Codebook(
        1, keys, values, torch.tensor([0.31, 0.31, 0.59]), ("a", "b", "c"), model.weight_hash
    )
    questions = [Question(prompt, "12 side") for prompt in PROMPTS]
    plain = [f.log_probs for f in teacher_forced(model, questions, batch_size=3)]
    with book.edited(model) as view:
        got = [f.log_probs for f in teacher_forced(view, questions, batch_size=3)]
        said = greedy_answers(view, PROMPTS, 4, batch_size=3)
    assert torch.equal(got[1], plain[1]) and torch.equal(got[2], plain[2])
    assert (got[0] - plain[0]).abs().max() > 0.01
    assert said[1:] == greedy_answers(model, PROMPTS, 4, batch_size=3)[1:]

    end = len(ids[0]) - 1
    target = model.tokenizer(" 12 side", add_special_tokens=False)["input_ids"]
    replaced = module.register_forward_hook(
        lambda module, inputs, out: torch.cat(
            [out[:, :end], values[None, :1], out[:, end + 1 :]], dim=1
        )
    )
    with torch.no_grad():
        expected = hf(torch.tensor([ids[0] + target])).logits[0, end:-1].log_softmax(-1)
        answer: list[int] = []
        for _ in range(4):
            answer.append(
                int(hf(torch.tensor([ids[0] + answer]), use_cache=False).logits[0, -1].argmax())
            )
    replaced.remove()
    torch.testing.assert_close(got[0], expected, rtol=1e-4, atol=1e-4)
    assert said[0] == model.tokenizer.decode(
        answer, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def book_of(*entries: tuple[float, float, str]) -> Codebook:
    """Keys on a line: (place, radius, label)."""
    places, radii, labels = zip(*entries, strict=True) if entries else ((), (), ())
    keys = torch.tensor([[place, 0.0] for place in places]).view(-1, 2)
    values = torch.arange(len(entries), dtype=torch.float32)[:, None].expand(-1, 3).contiguous()
    return Codebook(0, keys, values, torch.tensor(list(radii)), tuple(labels), "")


@pytest.mark.parametrize(
    ("entries", "place", "label", "index", "radii", "labels"),
    [
        ([], 0.0, "x", 0, [1.0], "x"),
        (
            [(0.0, 1.0, "x")],
            2.1,
            "x",
            1,
            [1.0, 1.0],
            "xx",
        ),  # balls that do not meet: a new key, same target or not
        ([(0.0, 1.0, "x")], 2.1, "y", 1, [1.0, 1.0], "xy"),
        ([(0.0, 1.0, "x")], 1.8, "x", 0, [1.8], "x"),  # grows to the query
        ([(0.0, 1.0, "x")], 0.5, "x", 0, [1.0], "x"),  # contains it already
        ([(0.0, 1.0, "x")], 1.8, "y", 1, [0.9, 0.9], "xy"),  # conflict
        ([(0.0, 1.0, "x")], 0.5, "y", 1, [0.25, 0.25], "xy"),
        ([(0.0, 0.2, "x")], 1.1, "y", 1, [0.2, 0.55], "xy"),  # a small ball is not made larger
        ([(0.0, 4.0, "x")], 3.0, "y", 1, [1.5, 1.0], "xy"),  # nor the new one than ε
        ([(0.0, 1.0, "x")], 0.0, "y", 0, [1.0], "y"),  # the same prompt asked anew
        ([(0.0, 1.0, "x")], 0.0, "x", 0, [1.0], "x"),
        (
            [(0.0, 1.0, "x"), (3.0, 1.0, "y")],
            2.0,
            "y",
            1,
            [1.0, 1.0],
            "xy",
        ),  # the nearest key decides
    ],
)
def test_placement(
    entries: list[tuple[float, float, str]],
    place: float,
    label: str,
    index: int,
    radii: list[float],
    labels: str,
) -> None:
    book = book_of(*entries)
    before = replace(book, radii=book.radii.clone(), values=book.values.clone())
    cold = torch.full((3,), 9.0)
    got, at = _placed(book, torch.tensor([[place, 0.0]]), label, cold, 1.0)
    assert at == index and got.labels == tuple(labels)
    assert got.radii.tolist() == pytest.approx(radii, rel=2e-4)
    assert len(got.keys) == len(got.values) == len(got.radii) == len(got.labels)
    new = at == len(entries) or got.labels[at] != entries[at][2]
    assert got.values[at].tolist() == (cold if new else book.values[at]).tolist()
    assert same(book, before)
    # Whatever was asked is answered by its own entry afterwards.
    distance, nearest = got.nearest(torch.tensor([[place, 0.0]]))
    assert nearest.item() == index and distance.item() <= got.radii[index].item()
    for i, (other, _, _) in enumerate(entries):
        assert got.nearest(torch.tensor([[other, 0.0]]))[1].item() == i


def test_after_a_conflict_no_ball_holds_the_others_key() -> None:
    got, _ = _placed(book_of((0.0, 1.0, "x")), torch.tensor([[0.7, 0.0]]), "y", torch.zeros(3), 1.0)
    assert got.radii.sum().item() <= 0.7


@pytest.mark.parametrize("family", FAMILIES)
def test_every_request_of_a_sequence_becomes_likelier(
    family: str, make_model: Callable[..., LanguageModel], requests: list[EditRequest]
) -> None:
    model = make_model(family)
    before = log_probs(model, requests)
    book = edit(model, requests, 2, settings_of(steps=40, learning_rate=0.3, epsilon=1e-2))
    with book.edited(model) as view:
        after = {size: log_probs(view, requests, size) for size in (1, 8)}
    assert after[1] == pytest.approx(after[8], rel=1e-3)
    assert sum(after[8]) > sum(before) + 1
    assert all(a > b for a, b in zip(after[8], before, strict=True))
    assert log_probs(model, requests) == before


def test_requests_of_one_prompt_share_an_entry_and_the_later_target_holds(
    tiny_llama: LanguageModel, requests: list[EditRequest]
) -> None:
    first, again = requests[0], replace(requests[0], target_new="27")
    repeated = edit(tiny_llama, [first, first], 2, settings_of(steps=20))
    assert repeated.labels == ("4 side",) and len(repeated.report.losses) == 2
    # The second time starts from what the first left.
    assert repeated.report.losses[1][0] < repeated.report.losses[0][0]
    book = edit(tiny_llama, [first, again], 2, settings_of(steps=20))
    assert book.labels == ("27",)
    alone = log_probs(tiny_llama, [again])[0]
    with book.edited(tiny_llama) as view:
        assert log_probs(view, [again])[0] > alone


def test_it_is_seeded_and_saved_and_loaded_as_it_is(
    tiny_llama: LanguageModel, requests: list[EditRequest], tmp_path: Path
) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    book = edit(tiny_llama, requests, 1, settings_of())
    assert torch.equal(torch.get_rng_state(), state)
    assert same(book, edit(tiny_llama, requests, 1, settings_of()))
    assert not torch.equal(book.values, edit(tiny_llama, requests, 1, settings_of(seed=1)).values)
    book.with_report(fingerprint="π").save(tmp_path / "deep" / "book.safetensors")
    loaded = load_edit(tmp_path / "deep" / "book.safetensors")
    assert isinstance(loaded, Codebook)
    assert same(replace(loaded, report=book.report), book) and book.report.fingerprint is None
    assert loaded.report.to_json() == json.loads(
        json.dumps({**book.report.to_json(), "fingerprint": "π"})
    )
    assert loaded.report.editor == "grace" and loaded.report.layers == [1]


def test_a_damaged_file_or_another_model_is_refused(
    tiny_llama: LanguageModel,
    make_model: Callable[..., LanguageModel],
    requests: list[EditRequest],
    tmp_path: Path,
) -> None:
    book = edit(tiny_llama, requests[:1], 1, settings_of())
    path = tmp_path / "book.safetensors"
    book.save(path)
    path.write_bytes(path.read_bytes().replace(b'"radii"', b'"rodii"'))
    with pytest.raises(EditError, match=r"book\.safetensors is not a readable codebook"):
        Codebook.load(path)
    other = make_model("llama", seed=1)
    with (
        pytest.raises(EditError, match=f"{tiny_llama.weight_hash}.*{other.weight_hash}"),
        book.edited(other),
    ):
        pytest.fail("entered")


def test_a_loss_that_is_no_number_is_an_error(
    make_model: Callable[..., LanguageModel], requests: list[EditRequest]
) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.parameters["lm_head.weight"][0] = torch.nan
    with pytest.raises(
        EditError, match=r"diverged at step 0: 1 of its parameters hold such numbers"
    ):
        edit(model, requests, 1, settings_of())
