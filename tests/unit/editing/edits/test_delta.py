"""Edit deltas: applied, reverted bit for bit, saved, merged, exported; for every family and
orientation."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import logging as transformers_logging

from editing.editors.grace import Codebook
from editing.editors.ice import InContext
from editing.editors.registry import load_edit
from editing.edits.delta import EditDelta, merge, stack
from editing.edits.low_rank import LowRank
from editing.edits.protocol import Edit, EditError, View
from editing.edits.report import EditReport
from interp.errors import DamagedError
from interp.models.loading import LanguageModel, load
from interp.results.tensor_files import write_tensors
from tests.unit.editing_making import assert_unchanged, factors, snapshot

FAMILIES = ("llama", "gpt2", "gptj", "gpt_neox", "qwen2", "qwen3", "mistral", "phi", "gemma3_text")
TRANSPOSED = {"gpt2"}  # Conv1D keeps (d_mlp, d_model)
TEXT = "The area of a square with side 4 is"
# d_mlp = d_model: the shape says nothing about the orientation.
SQUARE = {"llama": {"intermediate_size": 32}, "gpt2": {"n_inner": 32}, "gptj": {"n_inner": 32}}


def make_delta(
    model: LanguageModel, layers: tuple[int, ...] = (0, 2), seed: int = 0, rank: int = 2
) -> EditDelta:
    generator = torch.Generator().manual_seed(seed)
    updates, blocks = {}, {}
    for layer in layers:
        down = model.down_projection(layer)
        d_mlp = down.weight.shape[0 if down.transposed else 1]
        draw = [torch.randn(d, rank, generator=generator) / 10 for d in (model.d_model, d_mlp)]
        updates[down.name], blocks[down.name] = LowRank(*draw), layer
    return EditDelta(updates, blocks, model.weight_hash, EditReport("test", own={"text": "π"}))


def saved(delta: EditDelta, path: Path) -> EditDelta:
    """The delta as it is loaded from a new file, with the same header."""
    delta.save(path)
    loaded = EditDelta.load(path)
    assert (loaded.layers, loaded.model_hash) == (delta.layers, delta.model_hash)
    assert loaded.report == delta.report
    return loaded


def logits_of(model: LanguageModel) -> Tensor:
    with torch.no_grad():
        return model.logits(torch.tensor([model.encode(TEXT).ids]))


def plain_logits(hf: Any, model: LanguageModel) -> Tensor:
    with torch.no_grad():
        return hf(torch.tensor([model.tokenizer(TEXT)["input_ids"]])).logits


@contextmanager
def quiet_loading() -> Iterator[None]:
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.mark.parametrize(
    ("family", "square"),
    [*((family, False) for family in FAMILIES), *((family, True) for family in SQUARE)],
)
def test_apply_equals_changing_the_plain_weight_by_hand_and_reverts_exactly(
    family: str, square: bool, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any]
) -> None:
    sizes = SQUARE[family] if square else {}
    model, hf = make_model(family, **sizes), make_hf(family, **sizes)
    delta, before = make_delta(model), snapshot(model)
    unedited = logits_of(model)
    with torch.no_grad():
        for name, update in factors(delta).items():
            change = torch.stack(
                [update.left.double() @ row for row in update.right.double()], dim=1
            )
            by_hand = hf.get_parameter(name)
            by_hand.copy_(
                (by_hand.double() + (change.T if family in TRANSPOSED else change)).float()
            )
    handle = delta.apply(model)
    for name in delta.updates:
        torch.testing.assert_close(
            model.parameters[name], hf.get_parameter(name), rtol=1e-6, atol=1e-7
        )
    edited = logits_of(model)
    torch.testing.assert_close(edited, plain_logits(hf, model), rtol=1e-4, atol=1e-4)
    assert (edited - unedited).abs().max() > 0.1
    handle.revert()
    assert_unchanged(model, before)
    assert torch.equal(logits_of(model), unedited)


def test_apply_changes_the_named_weights_only(tiny_llama: LanguageModel) -> None:
    delta, before = make_delta(tiny_llama), snapshot(tiny_llama)
    with delta.applied(tiny_llama) as edited:
        assert edited is tiny_llama
        changed = {
            name for name, p in tiny_llama.parameters.items() if not torch.equal(p, before[name])
        }
    assert changed == {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 2)}
    assert_unchanged(tiny_llama, before)


def test_applied_reverts_after_an_exception(tiny_llama: LanguageModel) -> None:
    before = snapshot(tiny_llama)
    with pytest.raises(KeyboardInterrupt), make_delta(tiny_llama).applied(tiny_llama):
        raise KeyboardInterrupt
    assert_unchanged(tiny_llama, before)


def test_apply_reverts_what_it_did_when_a_later_update_fails(tiny_llama: LanguageModel) -> None:
    delta, before = make_delta(tiny_llama), snapshot(tiny_llama)
    last = list(delta.updates)[-1]
    # 7 is not d_mlp; one row of d_mlp would be added to every row if shapes were not compared.
    for wrong in (
        LowRank(torch.ones(32, 1), torch.ones(7, 1)),
        LowRank(torch.ones(1, 1), torch.ones(48, 1)),
    ):
        bad = EditDelta({**delta.updates, last: wrong}, delta.layers, delta.model_hash)
        with pytest.raises(EditError, match=r"does not fit block 2.*shape \(32, 48\)"):
            bad.apply(tiny_llama)
        assert_unchanged(tiny_llama, before)


def test_apply_refuses_another_models_weights_without_a_change(
    tiny_llama: LanguageModel, make_model: Callable[..., LanguageModel]
) -> None:
    other = make_model("llama", seed=1)
    before = snapshot(other)
    delta = make_delta(tiny_llama)
    with pytest.raises(EditError, match=f"{tiny_llama.weight_hash}.*{other.weight_hash}"):
        delta.apply(other)
    assert_unchanged(other, before)


def test_apply_refuses_a_delta_whose_names_and_blocks_disagree(tiny_llama: LanguageModel) -> None:
    delta, before = make_delta(tiny_llama), snapshot(tiny_llama)
    swapped = EditDelta(delta.updates, dict.fromkeys(delta.layers, 1), delta.model_hash)
    with pytest.raises(EditError, match=r"model\.layers\.0\.mlp\.down_proj\.weight.*block 1"):
        swapped.apply(tiny_llama)
    assert_unchanged(tiny_llama, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_apply_rounds_once_to_the_models_type(
    dtype: torch.dtype, make_hf: Callable[..., Any], tokenizer: Any
) -> None:
    model = LanguageModel(make_hf("llama").to(dtype), tokenizer, "typed")
    delta, before = make_delta(model), snapshot(model)
    with delta.applied(model):
        for name, update in factors(delta).items():
            exact = before[name].double() + update.left.double() @ update.right.double().T
            assert model.parameters[name].dtype == dtype
            assert torch.equal(model.parameters[name], exact.to(dtype))
    assert_unchanged(model, before)


def test_two_deltas_reverted_in_reverse_order_leave_the_first_then_nothing(
    tiny_llama: LanguageModel,
) -> None:
    first, second, before = (
        make_delta(tiny_llama),
        make_delta(tiny_llama, (1, 2), seed=1),
        snapshot(tiny_llama),
    )
    outer = first.apply(tiny_llama)
    with_first = snapshot(tiny_llama)
    inner = second.apply(tiny_llama)
    name = "model.layers.2.mlp.down_proj.weight"
    both = before[name] + factors(first)[name].dense() + factors(second)[name].dense()
    torch.testing.assert_close(tiny_llama.parameters[name].data, both)
    inner.revert()
    assert_unchanged(tiny_llama, with_first)
    outer.revert()
    assert_unchanged(tiny_llama, before)


def test_revert_twice_is_harmless(tiny_llama: LanguageModel) -> None:
    before = snapshot(tiny_llama)
    handle = make_delta(tiny_llama).apply(tiny_llama)
    handle.revert()
    handle.revert()
    assert_unchanged(tiny_llama, before)


def test_merge_adds_updates_of_the_same_weight(tiny_llama: LanguageModel) -> None:
    first, second = make_delta(tiny_llama, (0, 2)), make_delta(tiny_llama, (1, 2), seed=1, rank=3)
    merged = merge([first, second], EditReport("both"))
    name = "model.layers.2.mlp.down_proj.weight"
    assert sorted(merged.layers.values()) == [0, 1, 2] and merged.report == EditReport("both")
    update = factors(merged)[name]
    assert update.left.shape == (32, 5) and update.right.shape == (48, 5)
    torch.testing.assert_close(
        update.dense(), factors(first)[name].dense() + factors(second)[name].dense()
    )
    with merged.applied(tiny_llama):
        together = logits_of(tiny_llama)
    with first.applied(tiny_llama), second.applied(tiny_llama):
        torch.testing.assert_close(logits_of(tiny_llama), together, rtol=1e-5, atol=1e-5)


def test_merge_refuses_deltas_of_different_models(tiny_llama: LanguageModel) -> None:
    delta = make_delta(tiny_llama)
    with pytest.raises(EditError, match="different models"):
        merge([delta, EditDelta(delta.updates, delta.layers, "0" * 16)], EditReport())


def test_norms_are_frobenius_norms_by_block(tiny_llama: LanguageModel) -> None:
    delta = make_delta(tiny_llama)
    expected = {
        delta.layers[name]: sum(x * x for row in update.dense().tolist() for x in row) ** 0.5
        for name, update in factors(delta).items()
    }
    assert delta.norms() == pytest.approx(expected, rel=1e-5)


def test_with_report_adds_and_keeps(tiny_llama: LanguageModel) -> None:
    delta = make_delta(tiny_llama)
    assert delta.with_report(fingerprint="f").report.to_json() == {
        "editor": "test",
        "text": "π",
        "fingerprint": "f",
    }
    assert delta.report.fingerprint is None


def test_a_saved_delta_loads_with_equal_updates_and_equal_logits(
    tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    delta, path = make_delta(tiny_llama), tmp_path / "deep" / "edit.safetensors"
    loaded = saved(delta, path)
    assert list(loaded.updates) == list(delta.updates)
    for name, update in factors(delta).items():
        assert torch.equal(factors(loaded)[name].left, update.left)
        assert torch.equal(factors(loaded)[name].right, update.right)
    with delta.applied(tiny_llama):
        expected = logits_of(tiny_llama)
    with loaded.applied(tiny_llama):
        assert torch.equal(logits_of(tiny_llama), expected)
    assert [p.name for p in path.parent.iterdir()] == ["edit.safetensors"]


def test_a_saved_delta_is_little_more_than_its_factors(
    make_model: Callable[..., LanguageModel], tmp_path: Path
) -> None:
    model = make_model("llama", hidden_size=128, intermediate_size=512)
    make_delta(model, (0, 1), rank=1).save(tmp_path / "edit.safetensors")
    factors = 2 * (128 + 512) * 4  # blocks · (d_model + d_mlp) · bytes
    dense = 2 * 128 * 512 * 4
    size = (tmp_path / "edit.safetensors").stat().st_size
    assert factors < size < factors + 2000 < dense / 50
    make_delta(model, (0, 1, 2), rank=8).save(tmp_path / "more.safetensors")
    factors = 3 * 8 * (128 + 512) * 4
    assert factors < (tmp_path / "more.safetensors").stat().st_size < 1.1 * factors


@pytest.mark.parametrize(
    "damage", ["missing", "empty", "cut", "text", "no header", "no hash", "no factor", "schema"]
)
def test_load_refuses_a_damaged_file_and_names_it(
    damage: str, tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    path = tmp_path / "edit.safetensors"
    delta = make_delta(tiny_llama)
    delta.save(path)
    content = path.read_bytes()
    EditDelta.load(path)
    factors = {
        f"{n}.{side}": getattr(u, side)
        for n, u in delta.updates.items()
        for side in ("left", "right")
    }
    if damage == "missing":
        path.unlink()
    elif damage == "no header":
        save_file(factors, path)
    elif damage == "no hash":
        path.write_bytes(content.replace(b"model_hash", b"model_hush"))
    elif damage == "no factor":
        path.write_bytes(
            content.replace(
                b"layers.2.mlp.down_proj.weight.left", b"layers.2.mlp.down_proj.weight.lost"
            )
        )
    elif damage == "schema":
        path.write_bytes(content.replace(b"dmle.delta/2", b"dmle.delta/1"))
    else:
        path.write_bytes(
            {"empty": b"", "cut": content[:-10], "text": b"not a delta at all"}[damage]
        )
    with pytest.raises(EditError, match=r"edit\.safetensors is not a readable edit delta"):
        EditDelta.load(path)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "qwen3", "gemma3_text"])
def test_an_exported_edited_model_gives_the_edited_logits_in_plain_transformers(
    family: str, make_model: Callable[..., LanguageModel], tmp_path: Path
) -> None:
    model = make_model(family)
    before = snapshot(model)
    with make_delta(model).applied(model):
        edited = logits_of(model)
        model.export(tmp_path / "edited")
    assert_unchanged(model, before)
    with quiet_loading():
        hf: Any = AutoModelForCausalLM.from_pretrained(
            tmp_path / "edited", attn_implementation="eager"
        ).eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(tmp_path / "edited")
    with torch.no_grad():
        logits = hf(torch.tensor([tokenizer(TEXT)["input_ids"]])).logits
    torch.testing.assert_close(logits, edited, rtol=1e-5, atol=1e-5)
    assert (logits - logits_of(model)).abs().max() > 0.1


def tensors_of(update: LowRank | Tensor) -> list[Tensor]:
    return [update.left, update.right] if isinstance(update, LowRank) else [update]


def linear_names(hf: Any) -> dict[str, tuple[int, int]]:
    """Linear maps of block 1 of a plain model: parameter → (d_out, d_in), by module type."""
    found = {}
    for name, module in hf.named_modules():
        if ".1." not in name or type(module).__name__ not in ("Linear", "Conv1D"):
            continue
        shape = tuple(module.weight.shape)
        found[f"{name}.weight"] = shape[::-1] if type(module).__name__ == "Conv1D" else shape
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_any_linear_map_of_a_block_takes_factors_and_whole_matrices(
    family: str, make_model: Callable[..., LanguageModel], make_hf: Callable[..., Any]
) -> None:
    # d_mlp = d_model: a square matrix the wrong way round would fit.
    sizes = SQUARE.get(family, {})
    model, hf = make_model(family, **sizes), make_hf(family, **sizes)
    before, unedited = snapshot(model), logits_of(model)
    seen = 0
    for name, (d_out, d_in) in linear_names(hf).items():
        generator = torch.Generator().manual_seed(len(name))
        factors = LowRank(
            torch.randn(d_out, 2, generator=generator), torch.randn(d_in, 2, generator=generator)
        )
        fused = "c_attn" in name or "query_key_value" in name
        for update in (factors, factors.dense()):
            delta = EditDelta({name: update}, {name: 1}, model.weight_hash)
            if fused:
                with pytest.raises(EditError, match=r"has no place.*fused"):
                    delta.apply(model)
                continue
            original = hf.get_parameter(name).detach().clone()
            change = factors.dense()
            with torch.no_grad():
                hf.get_parameter(name).add_(change.T if type_is_conv(hf, name) else change)
            with delta.edited(model) as view:
                assert view == View(model)
                edited = logits_of(model)
            torch.testing.assert_close(edited, plain_logits(hf, model), rtol=1e-4, atol=2e-4)
            assert (edited - unedited).abs().max() > 0.01
            with torch.no_grad():
                hf.get_parameter(name).copy_(original)
            assert_unchanged(model, before)
            seen += 1
    assert seen >= 6


def type_is_conv(hf: Any, name: str) -> bool:
    return type(hf.get_submodule(name.removesuffix(".weight"))).__name__ == "Conv1D"


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "no.such.weight"]
)
def test_apply_refuses_parameters_that_are_no_linear_map_of_a_block(
    name: str, tiny_llama: LanguageModel
) -> None:
    before = snapshot(tiny_llama)
    delta = EditDelta({name: torch.ones(350, 32)}, {name: 0}, tiny_llama.weight_hash)
    with pytest.raises(EditError, match=rf"update of {name} has no place"):
        delta.apply(tiny_llama)
    assert_unchanged(tiny_llama, before)


def mixed_delta(model: LanguageModel) -> EditDelta:
    """Factors for one weight of block 0, whole matrices for another and for block 2."""
    low = make_delta(model, (0,))
    generator = torch.Generator().manual_seed(3)
    names = {"model.layers.0.self_attn.q_proj.weight": 0, "model.layers.2.mlp.down_proj.weight": 2}
    whole = {
        name: torch.randn(model.parameters[name].shape, generator=generator) / 10 for name in names
    }
    return EditDelta(
        {**low.updates, **whole}, {**low.layers, **names}, model.weight_hash, EditReport("mixed")
    )


def test_whole_matrices_are_saved_merged_and_measured(
    tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    delta, path = mixed_delta(tiny_llama), tmp_path / "mixed.safetensors"
    loaded = saved(delta, path)
    for name, update in delta.updates.items():
        for got, expected in zip(tensors_of(loaded.updates[name]), tensors_of(update), strict=True):
            assert torch.equal(got, expected)
    low = make_delta(tiny_llama, (0, 2), seed=5)
    both = merge([delta, low], EditReport())
    with both.applied(tiny_llama):
        together = logits_of(tiny_llama)
    with stack([delta, low], tiny_llama) as view:
        torch.testing.assert_close(logits_of(view.model), together, rtol=1e-4, atol=1e-5)
    down, query, last = delta.updates
    squares = [
        sum(x * x for x in dense_of(delta.updates[name]).flatten().tolist())
        for name in (query, down, last)
    ]
    expected = {0: (squares[0] + squares[1]) ** 0.5, 2: squares[2] ** 0.5}
    assert delta.norms() == pytest.approx(expected, rel=1e-5)


def dense_of(update: LowRank | Tensor) -> Tensor:
    return update.dense() if isinstance(update, LowRank) else update


def test_rank_counts_columns_of_factors_and_independent_rows_of_matrices(
    tiny_llama: LanguageModel,
) -> None:
    low = make_delta(tiny_llama, (0, 1), rank=3)
    first, second = low.updates
    delta = EditDelta(
        {first: low.updates[first], second: dense_of(low.updates[second])},
        low.layers,
        low.model_hash,
    )
    assert delta.rank() == {first: 3, second: 3}
    assert make_delta(tiny_llama, (0,), rank=99).rank() == {first: 32}
    assert EditDelta({first: torch.zeros(32, 48)}, {first: 0}, low.model_hash).rank() == {first: 0}


def test_stack_applies_in_order_and_leaves_the_model_as_it_was(tiny_llama: LanguageModel) -> None:
    deltas = [make_delta(tiny_llama, (0, 2), seed=seed) for seed in range(4)]
    before = snapshot(tiny_llama)
    by_hand = {name: before[name].clone() for name in deltas[0].updates}
    for delta in deltas:
        for name, update in factors(delta).items():
            by_hand[name] = (
                by_hand[name].double() + update.left.double() @ update.right.double().T
            ).float()
    with stack(deltas, tiny_llama) as view:
        assert view.model is tiny_llama
        assert all(
            torch.equal(tiny_llama.parameters[name], value) for name, value in by_hand.items()
        )
    assert_unchanged(tiny_llama, before)
    with pytest.raises(KeyboardInterrupt), stack(deltas, tiny_llama):
        raise KeyboardInterrupt
    assert_unchanged(tiny_llama, before)
    bad = EditDelta(deltas[0].updates, dict.fromkeys(deltas[0].layers, 1), deltas[0].model_hash)
    with pytest.raises(EditError), stack([*deltas, bad], tiny_llama):
        pytest.fail("entered")
    assert_unchanged(tiny_llama, before)


def test_cast_loss_is_the_share_of_the_update_that_rounding_takes(
    make_hf: Callable[..., Any], tokenizer: Any
) -> None:
    model = LanguageModel(make_hf("llama").to(torch.bfloat16), tokenizer, "half")
    before = snapshot(model)
    name = model.down_projection(1).name
    with torch.no_grad():
        model.parameters[name].fill_(1.0)  # bfloat16 holds 8 bits: next to 1, steps of 1/128
    ones = torch.ones(32, 48)
    cases = {2**-7: 0.0, 2**-12: 1.0, 1.25 * 2**-7: 0.2, 0.0: 0.0}
    for size, expected in cases.items():
        for update in (ones * size, LowRank(torch.ones(32, 1) * size, torch.ones(48, 1))):
            delta = EditDelta({name: update}, {name: 1}, model.weight_hash)
            assert delta.cast_loss(model) == {name: pytest.approx(expected, abs=1e-9)}
    with torch.no_grad():
        model.parameters[name].copy_(before[name])
    assert_unchanged(model, before)
    other = EditDelta({}, {}, "0" * 16)
    with pytest.raises(EditError, match="load the model that was edited"):
        other.cast_loss(model)


@pytest.mark.parametrize(
    ("family", "tied"), [("llama", False), ("llama", True), ("gpt2", True), ("gemma3_text", True)]
)
def test_export_writes_the_edited_model_as_a_folder_that_loads(
    family: str, tied: bool, make_model: Callable[..., LanguageModel], tmp_path: Path
) -> None:
    model = make_model(family, tie_word_embeddings=tied)
    assert ("lm_head.weight" in model.parameters) != tied
    delta, before = make_delta(model), snapshot(model)
    with delta.edited(model):
        edited = logits_of(model)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    delta.export(model, tmp_path / "edited")
    assert torch.equal(torch.get_rng_state(), state)
    assert_unchanged(model, before)
    again = load(str(tmp_path / "edited"), device="cpu")
    torch.testing.assert_close(logits_of(again), edited, rtol=1e-5, atol=1e-5)
    assert (logits_of(again) - logits_of(model)).abs().max() > 0.1


def test_load_edit_reads_every_kind_by_its_header(
    tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    codebook = Codebook(
        1, torch.ones(2, 48), torch.ones(2, 32), torch.ones(2), ("4", "π"), tiny_llama.weight_hash
    )
    edits: list[Edit] = [
        make_delta(tiny_llama),
        codebook,
        InContext("New Fact: π\n", tiny_llama.weight_hash),
    ]
    for i, edit in enumerate(edits):
        path = tmp_path / f"{i}.safetensors"
        edit.with_report(fingerprint="f").save(path)
        loaded = load_edit(path)
        assert type(loaded) is type(edit)
        assert (loaded.model_hash, loaded.report.fingerprint) == (tiny_llama.weight_hash, "f")
    for kind in (EditDelta, Codebook, InContext):
        wrong = [i for i, edit in enumerate(edits) if not isinstance(edit, kind)]
        for i in wrong:
            with pytest.raises(
                EditError,
                match=r"not a readable .* its schema is 'dmle\.\w+/\d', 'dmle\.\w+/\d' is needed",
            ):
                kind.load(tmp_path / f"{i}.safetensors")
    with pytest.raises(EditError, match="missing"):
        load_edit(tmp_path / "missing.safetensors")
    about: dict[str, Any] = {"schema": "x/1", "model_hash": "h", "about": {}}
    for header, reason in (
        ({}, "no schema"),
        ({**about, "schema": 1}, "no schema"),
        ({**about, "about": []}, "no about"),
        (about, "'x/1', one of"),
    ):
        write_tensors(tmp_path / "other.safetensors", {}, header)
        with pytest.raises(EditError, match=reason):
            load_edit(tmp_path / "other.safetensors")
    save_file({}, tmp_path / "other.safetensors", metadata={"dmle": json.dumps(about)})
    with pytest.raises(DamagedError, match="no checksum"):
        load_edit(tmp_path / "other.safetensors")
