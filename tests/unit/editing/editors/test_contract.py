"""What holds of every editor, of those that somebody adds, too.

An editor refuses bad input before it works. It leaves the model as it was, whatever happens. What
it returns is a value that is used, saved and loaded like any other.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.editors.registry import edit, editors, load_edit, needs
from editing.edits.delta import EditDelta
from editing.edits.protocol import Edit, EditError, View
from editing.edits.remarks import remarks
from editing.edits.report import EditReport
from editing.edits.requests import requests_of
from editing.evaluation.scoring import Question, teacher_forced
from editing.names import editor_names
from interp.errors import DmleError, InputError
from interp.models.loading import LanguageModel, load
from interp.rules.sources import Rule
from tests.unit.editing_making import (
    MOVES,
    READS,
    STRONG,
    assert_unchanged,
    settings_of,
    snapshot,
)

pytestmark = pytest.mark.slow

EDITORS = editor_names()
KIND = editors()
NEEDING = [name for name in EDITORS if needs(settings_of(name), "statistics")]
SPREAD, FUSED = (
    "cannot be spread over layers there; give one layer per request",
    "LoRA cannot adapt .*'q'.*lora.targets",
)
REFUSED = {
    **{("gemma3_text", editor): SPREAD for editor in ("dmle", "memit", "alphaedit", "emmet")},
    **{(family, "lora"): FUSED for family in ("gpt2", "gpt_neox")},
}
# What the refused ones are asked instead.
INSTEAD: dict[tuple[str, str], dict[str, Any]] = {
    ("gemma3_text", "dmle"): {"layers": "1/2"},
    **{("gemma3_text", editor): {"block": "1"} for editor in ("memit", "alphaedit", "emmet")},
    **{
        (family, "lora"): {"lora": {**STRONG["lora"], "targets": ["o", "in"]}}
        for family in ("gpt2", "gpt_neox")
    },
}


def allowed(architecture: str, editor: str) -> EditorSettings:
    return settings_of(editor, **INSTEAD.get((architecture, editor), {}))


@pytest.fixture(scope="module")
def model(architecture: str, make_model: Callable[..., LanguageModel]) -> LanguageModel:
    """One of each family, with room for demonstrations."""
    size = "n_positions" if architecture in ("gpt2", "gptj") else "max_position_embeddings"
    return make_model(architecture, **{size: 1024})


@pytest.fixture(scope="module")
def bench(
    model: LanguageModel, make_bench: Callable[..., Workbench], rules: tuple[Rule, ...]
) -> Workbench:
    return make_bench(model, rules[1:])


@pytest.fixture(scope="module")
def made(
    architecture: str, model: LanguageModel, bench: Workbench, rule: Rule
) -> Callable[[str], Edit]:
    """The edit of each editor, made once for the tests of an architecture."""
    edits: dict[str, Edit] = {}

    def get(editor: str) -> Edit:
        if editor not in edits:
            settings = allowed(architecture, editor)
            edits[editor] = edit(bench.asked(requests_of(rule, settings.lookup), settings))
        return edits[editor]

    return get


def scores(model: LanguageModel | View, rule: Rule, batch_size: int = 8) -> list[float]:
    """Log-probability of each new answer, and of the true ones, which edits may move too."""
    asked = [
        Question(p.prompt, target)
        for p in rule.forms.values()
        for target in (p.target_new, p.target_true[0])
    ]
    return [forced.log_prob for forced in teacher_forced(model, asked, batch_size=batch_size)]


def edited_scores(
    found: Edit, model: LanguageModel, rule: Rule, batch_size: int = 8
) -> list[float]:
    with found.edited(model) as view:
        return scores(view, rule, batch_size)


@pytest.mark.parametrize("editor", EDITORS)
def test_every_editor_edits_every_architecture_or_says_why_not(
    editor: str,
    architecture: str,
    model: LanguageModel,
    bench: Workbench,
    rule: Rule,
    made: Callable[[str], Edit],
) -> None:
    before, unedited = snapshot(model), scores(model, rule)
    if (said := REFUSED.get((architecture, editor))) is not None:
        with pytest.raises(EditError, match=said):
            edit(bench.asked(requests_of(rule, "last"), settings_of(editor)))
        assert_unchanged(model, before)
    found = made(editor)
    assert_unchanged(model, before)
    assert found.report.editor == editor and found.model_hash == model.weight_hash
    assert type(found) is KIND[editor].makes
    assert isinstance(found, Edit)  # pyrefly: ignore[unsafe-overlap]

    after = edited_scores(found, model, rule)
    assert_unchanged(model, before)
    assert scores(model, rule) == unedited
    if editor in READS:
        assert all(abs(a - b) > 1e-4 for a, b in zip(after, unedited, strict=True))
    if editor in MOVES:
        assert sum(after[::2]) / 3 > sum(unedited[::2]) / 3 + 0.1  # the new answers
    with pytest.raises(RuntimeError, match="inside"), found.edited(model) as view:
        scores(view, rule)
        raise RuntimeError("inside")
    assert_unchanged(model, before)
    assert scores(model, rule) == unedited


@pytest.mark.parametrize("editor", EDITORS)
def test_scores_are_the_same_from_a_file_and_in_batches_of_any_size(
    editor: str, model: LanguageModel, rule: Rule, made: Callable[[str], Edit], tmp_path: Path
) -> None:
    found = made(editor)
    expected = edited_scores(found, model, rule)
    assert edited_scores(found, model, rule, batch_size=1) == pytest.approx(expected, abs=1e-5)
    found.save(tmp_path / "edit.safetensors")
    loaded = load_edit(tmp_path / "edit.safetensors")
    assert type(loaded) is type(found) and loaded.report.editor == editor
    assert edited_scores(loaded, model, rule) == expected


@pytest.fixture(scope="module")
def another(make_model: Callable[..., LanguageModel]) -> LanguageModel:
    return make_model("llama", seed=1, check=False)


@pytest.mark.parametrize("editor", EDITORS)
def test_an_edit_is_refused_by_another_model(
    editor: str, made: Callable[[str], Edit], another: LanguageModel
) -> None:
    found, other = made(editor), another
    said = f"{found.model_hash}.*{other.weight_hash}; load the model that was edited"
    with pytest.raises(EditError, match=said), found.edited(other):
        pytest.fail("entered")


WORK = ("logits", "capture", "watch", "sample")
"""What runs the model."""


@pytest.fixture(scope="module")
def llama_bench(
    make_model: Callable[..., LanguageModel],
    make_bench: Callable[..., Workbench],
    rules: tuple[Rule, ...],
) -> Workbench:
    return make_bench(make_model("llama", max_position_embeddings=1024), rules[1:])


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int, calls: list[str]) -> None:
    """Stop at a call of the model, as Ctrl-C would; `calls` gets the names of those before."""
    for name in (*WORK, "encode"):
        whole = getattr(LanguageModel, name)

        def counted(*given: Any, _name: str = name, _whole: Any = whole, **more: Any) -> Any:
            calls.append(_name)
            if len(calls) == at:
                raise KeyboardInterrupt
            return _whole(*given, **more)

        monkeypatch.setattr(LanguageModel, name, counted)


@pytest.mark.parametrize("editor", EDITORS)
def test_the_model_is_as_before_wherever_an_edit_is_stopped(
    editor: str, llama_bench: Workbench, rule: Rule
) -> None:
    model, calls = llama_bench.model, list[str]()
    bench = llama_bench.asked(requests_of(rule, "last"), settings_of(editor))
    before, unedited = snapshot(model), scores(model, rule)
    with pytest.MonkeyPatch.context() as patched:
        interrupt(patched, 0, calls)
        edit(bench)
    assert calls or editor not in MOVES | READS  # an editor that asks the model nothing has no stop
    for share in (0.5, 0.8, 1.0) if calls else ():
        with pytest.MonkeyPatch.context() as patched:
            interrupt(patched, max(1, round(share * len(calls))), [])
            with pytest.raises(KeyboardInterrupt):
                edit(bench)
        assert_unchanged(model, before)
    assert scores(model, rule) == unedited  # and nothing is left hooked to it


@pytest.mark.parametrize("editor", EDITORS)
def test_bad_input_is_refused_before_any_work(
    editor: str, llama_bench: Workbench, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    def works(*given: Any, **more: Any) -> Any:
        pytest.fail("the model was run")

    for name in WORK:
        monkeypatch.setattr(LanguageModel, name, works)
    requests, kind = requests_of(rule, "last"), KIND[editor]
    with pytest.raises(EditError, match=f"{editor} needs at least one request, got none"):
        edit(llama_bench.asked([], settings_of(editor)))
    with pytest.raises(InputError, match=r"edit.options.*strnegth"):
        edit(llama_bench.asked(requests, settings_of(editor, options={"strnegth": 1})))
    if kind.blocks or "groups" in kind.needs:
        outside = settings_of(editor, layers="1/7", block="7")
        with pytest.raises(DmleError, match="ascending layers within 0 to 2 are needed"):
            edit(llama_bench.asked(requests, outside))
    if needs(settings_of(editor), "lookup"):
        lost = replace(requests[0], subject="pyramid")
        with pytest.raises(DmleError, match="pyramid"):
            edit(llama_bench.asked([lost], settings_of(editor, lookup="subject_last")))
    if needs(settings_of(editor), "statistics"):
        bench = llama_bench.asked(requests, settings_of(editor))
        with pytest.raises(InputError, match=f"{editor} needs statistics"):
            edit(replace(bench, statistics=None))
        with pytest.raises(InputError, match="no covariance of block"):
            edit(replace(bench, statistics=Covariances({}, bench.model.weight_hash, 0, {})))
        other = Covariances({i: torch.eye(48) for i in range(3)}, "another", 0, {})
        with pytest.raises(EditError, match=r"weights another.*measure them again"):
            edit(replace(bench, statistics=other))
        with pytest.raises(InputError, match="the first context must be empty"):
            edit(replace(bench, given_contexts=["The. "]))


EXTRA = {"end_token": True, "wordings": 2, "retained": 1, "neighbours": 1}
HONOURED = {
    name: editors()[settings_of(name).solver if name == "dmle" else name].honours
    for name in EDITORS
}


@pytest.mark.parametrize("setting", EXTRA)
@pytest.mark.parametrize("editor", EDITORS)
def test_what_is_given_to_all_editors_is_honoured_or_refused(
    editor: str,
    setting: str,
    llama_bench: Workbench,
    rule: Rule,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    settings = settings_of(editor, **{setting: EXTRA[setting]})
    model, bench = llama_bench.model, llama_bench.asked(requests_of(rule, "last"), settings)
    if setting not in HONOURED[editor]:
        for name in WORK:
            monkeypatch.setattr(LanguageModel, name, lambda *given, **more: pytest.fail("run"))
        with pytest.raises(InputError, match=f"edit.{setting}: {editor} cannot honour it"):
            edit(bench)
        return
    before, unedited = snapshot(model), scores(model, rule)
    found = edit(bench)
    assert_unchanged(model, before)
    after, plain = (
        edited_scores(found, model, rule),
        edit(bench.asked(bench.requests, settings_of(editor))),
    )
    assert after != pytest.approx(edited_scores(plain, model, rule), abs=1e-6)
    if editor in MOVES:
        assert sum(after[::2]) / 3 > sum(unedited[::2]) / 3 + 0.1
    asked = [each for part in found.report.parts() for each in part.requests]
    assert any(each["ends"] for each in asked) == (setting == "end_token")
    assert any(each["wording"] for each in asked) == (setting == "wordings")
    kept = {
        "retained": [("cube-volume", "description")],
        "neighbours": [("cube-volume", "formula")],
    }
    assert list(found.report.retained) == kept.get(setting, [])
    found.save(path := tmp_path / "edit.safetensors")
    assert [tuple(each) for each in load_edit(path).report.retained] == kept.get(setting, [])


@pytest.mark.parametrize("editor", [name for name in EDITORS if "end_token" in HONOURED[name]])
def test_an_end_token_that_is_not_there_is_refused_before_any_work(
    editor: str, llama_bench: Workbench, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in WORK:
        monkeypatch.setattr(LanguageModel, name, lambda *given, **more: pytest.fail("run"))
    monkeypatch.setattr(llama_bench.model.tokenizer, "eos_token", None)
    settings = settings_of(editor, end_token=True)
    with pytest.raises(InputError, match="no end-of-text token"):
        edit(llama_bench.asked(requests_of(rule, "last"), settings))


@pytest.mark.parametrize("editor", [name for name in NEEDING if name != "ft_whitened"])
def test_a_closed_form_leaves_what_it_retains_exactly_as_it_is(
    editor: str, llama_bench: Workbench, rule: Rule, rules: tuple[Rule, ...]
) -> None:
    model, form = llama_bench.model, rules[1].forms["description"]
    asked = [Question(form.prompt, form.target_true[0])]

    def said(view: LanguageModel | View) -> Tensor:
        (answer,) = teacher_forced(view, asked, batch_size=1)
        return answer.log_probs

    unedited, moved = said(model), {}
    for n in (0, 1):
        settings = settings_of(editor, retained=n)
        with edit(llama_bench.asked(requests_of(rule, "last"), settings)).edited(model) as view:
            moved[n] = (said(view) - unedited).abs().max().item()
    assert moved[1] < 1e-4 and moved[0] > 100 * moved[1]
    with pytest.raises(InputError, match=r"retained is 60 .* none of 48 directions"):
        more = [
            rules[1].model_copy(
                update={
                    "id": f"r{i}",
                    "forms": {
                        "description": form.model_copy(update={"target_true": (f"{i} times",)})
                    },
                }
            )
            for i in range(60)
        ]
        bench = replace(llama_bench, given_rules=more)
        edit(bench.asked(requests_of(rule, "last"), settings_of(editor, retained=60)))


# The families that differ in how a folder is written: names, transposed and fused matrices, a norm
# behind the MLP.
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
def test_an_exported_folder_is_the_edited_model(
    family: str,
    make_model: Callable[..., LanguageModel],
    make_bench: Callable[..., Workbench],
    rules: tuple[Rule, ...],
    tmp_path: Path,
) -> None:
    model = make_model(family)
    bench, requests, before = (
        make_bench(model, ()),
        requests_of(rules[0], "subject_last"),
        snapshot(model),
    )
    ids = torch.tensor([model.encode("The area of a square is A = 4 side").ids])
    with torch.no_grad():
        unedited = model.logits(ids)
    for editor in (*NEEDING, "ft", "lora") if family == "llama" else ("rome", "lora"):
        settings = allowed(family, editor).model_copy(update={"steps": 4})
        found = edit(bench.asked(requests, settings))
        assert isinstance(found, EditDelta)
        with found.applied(model), torch.no_grad():
            expected = model.logits(ids)
        found.export(model, tmp_path / editor)
        assert_unchanged(model, before)
        loaded = load(str(tmp_path / editor), device="cpu")
        assert loaded.weight_hash != model.weight_hash
        with torch.no_grad():
            torch.testing.assert_close(loaded.logits(ids), expected, rtol=1e-5, atol=1e-5)
        assert (expected - unedited).abs().max() > 1e-3


@pytest.mark.parametrize("editor", EDITORS)
def test_a_model_of_half_precision_can_be_edited(
    editor: str,
    half: LanguageModel,
    half_bench: Workbench,
    rule: Rule,
) -> None:
    before, unedited = snapshot(half), scores(half, rule)
    found = edit(half_bench.asked(requests_of(rule, "last"), settings_of(editor)))
    assert_unchanged(half, before)
    after = edited_scores(found, half, rule)
    assert_unchanged(half, before)
    if editor in MOVES:
        assert sum(after[::2]) / 3 > sum(unedited[::2]) / 3 + 0.1
    if editor in MOVES and isinstance(found, EditDelta):
        lost = found.cast_loss(half)
        assert set(lost) == set(found.updates) and all(0 < share < 0.5 for share in lost.values())
        # Updates a thousand times smaller round away, and a reader is told.
        small = {name: shrunk(update) for name, update in found.updates.items()}
        lost = EditDelta(small, found.layers, found.model_hash).cast_loss(half)
        assert all(share > 0.5 for share in lost.values())
        lines = remarks(EditReport(cast_loss=lost))
        assert len(lines) == len(lost) and all(
            "lost in the model's number format" in line for line in lines
        )


def shrunk(update: Any) -> Any:
    if isinstance(update, Tensor):
        return 1e-4 * update
    return type(update)(1e-4 * update.left, update.right)


@pytest.fixture(scope="module")
def half(
    make_model: Callable[..., LanguageModel], tmp_path_factory: pytest.TempPathFactory
) -> LanguageModel:
    folder = tmp_path_factory.mktemp("half")
    make_model("llama", check=False, max_position_embeddings=1024).export(folder)
    return load(str(folder), device="cpu", dtype="bfloat16")


@pytest.fixture(scope="module")
def half_bench(
    half: LanguageModel, make_bench: Callable[..., Workbench], rules: tuple[Rule, ...]
) -> Workbench:
    return make_bench(half, rules[1:])
