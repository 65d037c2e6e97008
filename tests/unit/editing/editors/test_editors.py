"""Every editor on every architecture through one function, and where each of them writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.closed_form.covariance import Covariances, measure
from editing.config import EDITORS, CovarianceConfig, EditorSettings
from editing.editors import registry as editors
from editing.editors.grace import Codebook
from editing.editors.in_context import InContext
from editing.editors.registry import (
    CLOSED_FORM,
    Resources,
    block_of,
    edit,
    layers_of,
    remarks,
    selection_of,
)
from editing.edits.delta import EditDelta, load_edit
from editing.edits.protocol import Edit, EditError, View
from editing.edits.requests import requests_of, words_of
from editing.evaluation.scoring import Question, teacher_forced
from interp.models.loading import LanguageModel, load
from interp.rules.sources import Rule
from interp.selection.layers import parse_layers

CONTEXTS = ("", "The area of a square is 4. ")
LINES = [
    f"The {a} of a {b} with {c} is {d} times the {c}."
    for a in ("area", "volume", "perimeter")
    for b in ("square", "cube", "circle")
    for c, d in (("side", 3), ("length", 12), ("width", 27), ("sum", 9))
]
# Enough to be seen on a random model of three blocks. Its prompts differ in their last tokens, so
# that no keys collide.
STRONG: dict[str, Any] = {
    "layers": "1,2/2",
    "lookup": "last",
    "steps": 8,
    "kl_factor": 0.0,
    "ridge": 1e-3,
    "l2": 1e-2,
    "damping": 1e-2,
    "null_threshold": 0.5,
    "null_relative": True,
    "ft": {"steps": 6, "learning_rate": 2e-2},
    "lora": {"rank": 3, "steps": 6, "learning_rate": 4e-2, "dropout": 0.0},
    "grace": {"steps": 6, "learning_rate": 0.5, "epsilon": 0.05},
    "in_context": {"demonstrations": 1},
}
BLOCKS = {
    "memit": "1-2",
    "alphaedit": "1-2",
    "emmet": "1-2",
    "rome": "2",
    "ft": "2",
    "lora": "auto",
    "grace": "2",
}
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
IN_CONTEXT = ("ice", "ike")


def settings_of(editor: str, **more: Any) -> EditorSettings:
    return EditorSettings.model_validate(
        {**STRONG, "editor": editor, "block": BLOCKS.get(editor, "auto"), **more}
    )


def allowed(architecture: str, editor: str) -> EditorSettings:
    return settings_of(editor, **INSTEAD.get((architecture, editor), {}))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "lines.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def make_resources(
    corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Resources]:
    def make(model: LanguageModel, training: Sequence[Rule]) -> Resources:
        config = CovarianceConfig(corpus=str(corpus), tokens=450, shrinkage=0.05)
        statistics = measure(model, range(3), config, tmp_path_factory.mktemp("covariance"))
        return Resources(CONTEXTS, statistics, training_rules=training)

    return make


@pytest.fixture(scope="module")
def model(architecture: str, make_model: Callable[..., LanguageModel]) -> LanguageModel:
    """One of each family, with room for demonstrations."""
    size = "n_positions" if architecture in ("gpt2", "gptj") else "max_position_embeddings"
    return make_model(architecture, **{size: 1024})


@pytest.fixture(scope="module")
def resources(
    model: LanguageModel, make_resources: Callable[..., Resources], rules: tuple[Rule, ...]
) -> Resources:
    return make_resources(model, rules[1:])


@pytest.fixture(scope="module")
def made(
    architecture: str, model: LanguageModel, resources: Resources, rule: Rule
) -> Callable[[str], Edit]:
    """The edit of each editor, made once for the tests of an architecture."""
    edits: dict[str, Edit] = {}

    def get(editor: str) -> Edit:
        if editor not in edits:
            settings = allowed(architecture, editor)
            edits[editor] = edit(model, requests_of(rule, settings.lookup), settings, resources)
        return edits[editor]

    return get


def snapshot(model: LanguageModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.parameters.items()}


def assert_unchanged(model: LanguageModel, before: Mapping[str, Tensor]) -> None:
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.parameters.items())
    assert not any(parameter.requires_grad for parameter in model.parameters.values())


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


def test_the_list_of_editors_is_complete() -> None:
    assert set(EDITORS) == {*CLOSED_FORM, "ft", "lora", "grace", *IN_CONTEXT}
    assert {editor for _, editor in REFUSED} | set(BLOCKS) | {"dmle", *IN_CONTEXT} == set(EDITORS)


@pytest.mark.parametrize("editor", EDITORS)
def test_every_editor_edits_every_architecture_or_says_why_not(
    editor: str,
    architecture: str,
    model: LanguageModel,
    resources: Resources,
    rule: Rule,
    made: Callable[[str], Edit],
) -> None:
    before, unedited = snapshot(model), scores(model, rule)
    if (said := REFUSED.get((architecture, editor))) is not None:
        with pytest.raises(EditError, match=said):
            edit(model, requests_of(rule, "last"), settings_of(editor), resources)
        assert_unchanged(model, before)
    found = made(editor)
    assert_unchanged(model, before)
    assert found.about["editor"] == editor and found.model_hash == model.weight_hash
    kinds = {"grace": Codebook, "ice": InContext, "ike": InContext}
    assert type(found) is kinds.get(editor, EditDelta)

    after = edited_scores(found, model, rule)
    assert_unchanged(model, before)
    assert scores(model, rule) == unedited
    if editor in IN_CONTEXT:  # a random model has no use for what it is told, but it reads it
        assert all(abs(a - b) > 1e-4 for a, b in zip(after, unedited, strict=True))
    else:
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
    assert type(loaded) is type(found) and loaded.about["editor"] == editor
    assert edited_scores(loaded, model, rule) == expected


# The families that differ in how a folder is written: names, transposed and fused matrices, a norm
# behind the MLP.
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma3_text"])
def test_an_exported_folder_is_the_edited_model(
    family: str,
    make_model: Callable[..., LanguageModel],
    make_resources: Callable[..., Resources],
    rules: tuple[Rule, ...],
    tmp_path: Path,
) -> None:
    model = make_model(family)
    resources, requests, before = (
        make_resources(model, ()),
        requests_of(rules[0], "subject_last"),
        snapshot(model),
    )
    ids = torch.tensor([model.encode("The area of a square is A = 4 side").ids])
    with torch.no_grad():
        unedited = model.logits(ids)
    for editor in (*CLOSED_FORM, "ft", "lora") if family == "llama" else ("rome", "lora"):
        found = edit(
            model, requests, allowed(family, editor).model_copy(update={"steps": 4}), resources
        )
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
    half_resources: Resources,
    rule: Rule,
) -> None:
    before, unedited = snapshot(half), scores(half, rule)
    found = edit(half, requests_of(rule, "last"), settings_of(editor), half_resources)
    assert_unchanged(half, before)
    after = edited_scores(found, half, rule)
    assert_unchanged(half, before)
    if editor not in IN_CONTEXT:
        assert sum(after[::2]) / 3 > sum(unedited[::2]) / 3 + 0.1
    if isinstance(found, EditDelta):
        lost = found.cast_loss(half)
        assert set(lost) == set(found.updates) and all(0 < share < 0.5 for share in lost.values())
        # Updates a thousand times smaller round away, and a reader is told.
        small = {name: shrunk(update) for name, update in found.updates.items()}
        lost = EditDelta(small, found.layers, found.model_hash).cast_loss(half)
        assert all(share > 0.5 for share in lost.values())
        lines = remarks({"cast_loss": lost})
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
def half_resources(
    half: LanguageModel, make_resources: Callable[..., Resources], rules: tuple[Rule, ...]
) -> Resources:
    return make_resources(half, rules[1:])


@pytest.mark.parametrize(
    ("editor", "missing"),
    [(editor, "covariances") for editor in CLOSED_FORM] + [("dmle", "selection")],
)
def test_a_missing_resource_is_named(
    editor: str, missing: str, tiny_llama: LanguageModel, rule: Rule
) -> None:
    statistics = (
        Covariances({0: torch.eye(48)}, tiny_llama.weight_hash, 0, {})
        if missing == "selection"
        else None
    )
    settings = settings_of(editor, layers="auto")
    said = (
        "dmle with layers: auto needs" if missing == "selection" else f"{editor} needs statistics"
    )
    with pytest.raises(ValueError, match=said):
        edit(
            tiny_llama,
            requests_of(rule, "subject_last"),
            settings,
            Resources(covariances=statistics),
        )


def test_ike_without_training_rules_is_refused(tiny_llama: LanguageModel, rule: Rule) -> None:
    with pytest.raises(EditError, match="IKE has no rules to demonstrate with"):
        edit(tiny_llama, requests_of(rule, "subject_last"), settings_of("ike"), Resources())


def test_earlier_requests_reach_alphaedit_and_dmle_with_its_solver(
    tiny_llama: LanguageModel, make_resources: Callable[..., Resources], rules: tuple[Rule, ...]
) -> None:
    resources, requests = make_resources(tiny_llama, ()), requests_of(rules[0], "subject_last")
    earlier = requests_of(rules[1], "subject_last")

    def differs(editor: str, **more: Any) -> bool:
        settings = settings_of(editor, steps=3, **more)
        alone, after = (
            edit(tiny_llama, requests, settings, resources, earlier=e) for e in ((), earlier)
        )
        assert isinstance(alone, EditDelta) and isinstance(after, EditDelta)
        pairs = [(alone.updates[name], after.updates[name]) for name in alone.updates]
        return any((a.dense() - b.dense()).norm() > 0.01 * a.dense().norm() for a, b in pairs)

    assert differs("alphaedit") and differs("dmle", solver="alphaedit")
    assert not differs("memit") and not differs("dmle")


# Where editors write.


@pytest.mark.parametrize(
    ("editor", "n_layers", "block"),
    [
        # 4·n/30 rounded is the first of five; ROME 5·n/30, FT 21·n/30, GRACE 19·n/30.
        *[
            (editor, n, b)
            for editor in ("memit", "alphaedit", "emmet")
            for n, b in ((30, (4, 5, 6, 7, 8)),)
        ],
        ("memit", 28, (4, 5, 6, 7, 8)),  # 3.73
        ("memit", 32, (4, 5, 6, 7, 8)),  # 4.27
        ("memit", 12, (2, 3, 4, 5, 6)),  # 1.6
        ("memit", 3, (0, 1, 2)),  # 0.4, and no more blocks
        *[("rome", n, (b,)) for n, b in ((30, 5), (28, 5), (32, 5), (12, 2), (3, 0))],
        *[("ft", n, (b,)) for n, b in ((30, 21), (28, 20), (32, 22), (12, 8), (3, 2))],
        *[("grace", n, (b,)) for n, b in ((30, 19), (28, 18), (32, 20), (12, 8), (3, 2))],
        *[("lora", n, tuple(range(n))) for n in (30, 28, 32, 12, 3)],
    ],
)
def test_blocks_scale_with_the_depth(editor: str, n_layers: int, block: tuple[int, ...]) -> None:
    settings = EditorSettings.model_validate({"editor": editor})
    assert settings.block == "auto" and block_of(settings, n_layers) == block


def test_blocks_given_by_hand_are_taken_as_they_are() -> None:
    def given(editor: str, block: str) -> tuple[int, ...]:
        return block_of(EditorSettings.model_validate({"editor": editor, "block": block}), 12)

    assert (
        given("memit", "1,4-6") == (1, 4, 5, 6)
        and given("rome", "11") == (11,)
        and given("lora", "0") == (0,)
    )
    assert given("ft", "2-3") == (2, 3)
    for editor in ("memit", "ft", "lora", "rome", "grace"):
        with pytest.raises(ValueError, match="'12': ascending layers within 0 to 11 are needed"):
            given(editor, "12")
    for editor in ("rome", "grace"):
        with pytest.raises(
            ValueError,
            match=rf"{editor} writes one block, edit.block gives \[3, 4\]; give one layer",
        ):
            given(editor, "3-4")
    with pytest.raises(ValueError, match=r"edit.block is '3/5': memit knows no groups of forms"):
        given("memit", "3/5")
    with pytest.raises(ValueError, match="numbers and ranges separated by commas"):
        given("memit", "middle")


def test_dmle_takes_the_selection_a_file_or_layers_by_hand(tmp_path: Path) -> None:
    selected, other = parse_layers("0,1/2", 3), parse_layers("2/0", 3)
    other.save(tmp_path / "selection.json")
    auto = EditorSettings(editor="dmle")
    assert selection_of(auto, 3, selected) is selected
    assert selection_of(EditorSettings(layers="1/1,2"), 3, selected).layers_of("instance") == (1, 2)
    from_file = EditorSettings(layers=str(tmp_path / "selection.json"))
    assert selection_of(from_file, 3, selected) == other
    assert layers_of(from_file, 3, selected) == (0, 2) and layers_of(auto, 3, selected) == (0, 1, 2)
    with pytest.raises(ValueError, match="dmle with layers: auto needs"):
        selection_of(auto, 3, None)
    # A file of a deeper model.
    parse_layers("3,4/12", 30).save(tmp_path / "deep.json")
    with pytest.raises(
        ValueError, match=r"edit.layers has layers \[12\]; the model has layers 0 to 11"
    ):
        selection_of(EditorSettings(layers=str(tmp_path / "deep.json")), 12, None)
    with pytest.raises(ValueError, match="ascending layers within 0 to 2 are needed"):
        selection_of(EditorSettings(layers="1/3"), 3, None)
    with pytest.raises(ValueError, match=r"none.json does not exist"):
        selection_of(EditorSettings(layers=str(tmp_path / "none.json")), 3, None)


def test_statistics_are_needed_where_a_closed_form_writes() -> None:
    def needed(editor: str, **more: Any) -> tuple[int, ...]:
        return layers_of(
            EditorSettings.model_validate({"editor": editor, **more}),
            12,
            parse_layers("3,4/4,9", 12),
        )

    assert needed("dmle") == (3, 4, 9) and needed("dmle", layers="5/1") == (1, 5)
    assert (
        needed("memit") == (2, 3, 4, 5, 6)
        and needed("emmet", block="7") == (7,)
        and needed("rome") == (2,)
    )
    assert [needed(editor) for editor in ("ft", "lora", "grace", "ice", "ike")] == [()] * 5


# What a reader is told.


def test_remarks_say_what_collides_what_is_left_and_what_is_lost() -> None:
    requests = [{"rule": "square", "form": form} for form in ("formula", "description", "instance")]
    pair = {"rules": ["square", "square"], "forms": ["formula", "description"]}
    about: dict[str, Any] = {
        "requests": requests,
        "collinear_keys": [
            {"layer": 3, **pair, "cosine": 0.9991},
            {"layer": 4, **pair, "cosine": 0.99996},
        ],
        "residual_left": [0.2, 0.5, 0.873],
        "cast_loss": {"a.weight": 0.51, "b.weight": 0.49},
    }
    assert remarks(about) == [
        (
            "square formula and square description share a key (cosine 1.0000) and want different"
            " changes, which are averaged; try edit.lookup=rule_word_last or last, or other layers"
            " for one of them"
        ),
        "square instance: 87% of the way to its target is left",
        "a.weight: 51% of the update is lost in the model's number format; use model.dtype float32",
    ]
    # Stages speak of their own requests.
    stages = {
        "stages": [
            {"requests": requests[:2], "residual_left": [0.1, 0.9]},
            {"requests": requests[2:]},
        ]
    }
    assert remarks(stages) == ["square description: 90% of the way to its target is left"]
    # Word by word a form has several requests; one that wants no change has no share.
    words = {
        "requests": [requests[0]] * 4 + [requests[1]] * 2,
        "residual_left": [0.9, float("nan"), 0.1, 0.6, 0.2, 0.5],
    }
    assert remarks(words) == [
        "square formula: more than half of the way to the target is left for 2 of its 4 words"
    ]
    assert remarks({}) == remarks({"editor": "ice", "requests": requests}) == []


def test_a_good_edit_needs_no_remark(
    tiny_llama: LanguageModel, make_resources: Callable[..., Resources], rule: Rule
) -> None:
    requests = [requests_of(rule, "last")[0]]
    found = edit(
        tiny_llama, requests, settings_of("memit", lookup="last"), make_resources(tiny_llama, ())
    )
    assert isinstance(found, EditDelta)
    assert remarks({**found.about, "cast_loss": found.cast_loss(tiny_llama)}) == []
    weak = edit(
        tiny_llama,
        requests,
        settings_of("memit", ridge=1e6, lookup="last"),
        make_resources(tiny_llama, ()),
    )
    assert remarks(weak.about) == ["square-area formula: 100% of the way to its target is left"]


def test_published_layers_are_those_of_a_model_of_thirty_blocks() -> None:
    assert editors.PUBLISHED_DEPTH == 30 and set(editors.PUBLISHED) == set(BLOCKS) - {"lora"}


@pytest.mark.parametrize("editor", ["dmle", "memit", "rome"])
def test_rounds_are_edits_one_after_the_other(
    tiny_llama: LanguageModel,
    make_resources: Callable[..., Resources],
    rules: tuple[Rule, ...],
    editor: str,
) -> None:
    resources, settings = make_resources(tiny_llama, rules[1:]), settings_of(editor)
    requests = requests_of(rules[0], settings.lookup)
    before = {name: parameter.detach().clone() for name, parameter in tiny_llama.parameters.items()}
    got = edit(tiny_llama, requests, settings.model_copy(update={"rounds": 2}), resources)
    assert all(parameter.equal(before[name]) for name, parameter in tiny_llama.parameters.items())
    first = edit(tiny_llama, requests, settings, resources)
    with first.edited(tiny_llama):
        second = edit(tiny_llama, requests, settings, resources)
        with second.edited(tiny_llama):
            want = {
                name: parameter.detach().clone()
                for name, parameter in tiny_llama.parameters.items()
            }
    with got.edited(tiny_llama):
        for name, parameter in tiny_llama.parameters.items():
            torch.testing.assert_close(parameter, want[name], atol=1e-5, rtol=1e-5)
    assert len(got.about["rounds"]) == 1
    assert got.about["rounds"][0]["editor"] == editor


@pytest.mark.parametrize("editor", ["dmle", "memit"])
def test_word_by_word_is_the_edit_of_the_words_as_requests(
    tiny_llama: LanguageModel,
    make_resources: Callable[..., Resources],
    rules: tuple[Rule, ...],
    editor: str,
) -> None:
    resources, whole = make_resources(tiny_llama, rules[1:]), settings_of(editor, lookup="last")
    words = whole.model_copy(update={"answer": "words"})
    requests = [replace(r, target_new="side side") for r in requests_of(rules[0], "last")]
    got = edit(tiny_llama, requests, words, resources)
    want = edit(tiny_llama, [word for r in requests for word in words_of(r)], whole, resources)
    assert isinstance(got, EditDelta) and isinstance(want, EditDelta)
    for name, update in got.updates.items():
        torch.testing.assert_close(update.dense(), want.updates[name].dense())
    alone = [replace(r, target_new="side") for r in requests]
    one, other = (edit(tiny_llama, alone, each, resources) for each in (words, whole))
    assert isinstance(one, EditDelta) and isinstance(other, EditDelta)
    for name, update in one.updates.items():
        torch.testing.assert_close(update.dense(), other.updates[name].dense())


def test_word_by_word_needs_a_key_for_each_word() -> None:
    with pytest.raises(ValueError, match=r"--set edit.lookup=last"):
        settings_of("memit", lookup="subject_last", answer="words")
