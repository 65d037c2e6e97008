"""What the registry says of editors: where they write, what they need, rounds and words."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from editing.closed_form.chosen_layers import layers_of
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.editors.registry import (
    block_of,
    edit,
    editor,
    editors,
    ready,
    solver,
)
from editing.edits.delta import EditDelta
from editing.edits.protocol import EditError
from editing.edits.requests import requests_of, words_of
from editing.names import editor_names
from editing.studies.arms import Selected, resolve
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from interp.selection.layers import LayerSelection, parse_layers
from tests.unit.editing_making import edit_with, factors, settings_of, snapshot


def test_ike_without_training_rules_is_refused(tiny_llama: LanguageModel, rule: Rule) -> None:
    with pytest.raises(EditError, match="IKE has no rules to demonstrate with"):
        edit_with("ike", tiny_llama, requests_of(rule, "subject_last"), given_rules=())


def test_earlier_requests_reach_alphaedit_and_dmle_with_its_solver(
    tiny_llama: LanguageModel, make_bench: Callable[..., Workbench], rules: tuple[Rule, ...]
) -> None:
    bench, requests = make_bench(tiny_llama, ()), requests_of(rules[0], "subject_last")
    earlier = requests_of(rules[1], "subject_last")

    def differs(editor: str, **more: Any) -> bool:
        settings = settings_of(editor, steps=3, **more)
        alone, after = (edit(bench.asked(requests, settings, earlier=e)) for e in ((), earlier))
        assert isinstance(alone, EditDelta) and isinstance(after, EditDelta)
        pairs = [(update, factors(after)[name]) for name, update in factors(alone).items()]
        return any((a.dense() - b.dense()).norm() > 0.01 * a.dense().norm() for a, b in pairs)

    assert differs("alphaedit") and differs("dmle", solver="alphaedit")
    assert not differs("memit") and not differs("dmle")

    def read(editor: str, **more: Any) -> int:
        """How many earlier requests an editor would read the keys of."""
        return len(
            ready(bench.asked(requests, settings_of(editor, **more), earlier=earlier)).earlier
        )

    assert read("alphaedit") == read("dmle", solver="alphaedit") == len(earlier) > 0
    assert read("memit") == read("dmle") == 0


def test_layers_auto_needs_a_selection(tiny_llama: LanguageModel, rule: Rule) -> None:
    with pytest.raises(InputError, match="dmle with layers: auto needs"):
        edit(Workbench(tiny_llama, requests_of(rule, "last"), settings_of("dmle", layers="auto")))


def test_an_editor_and_a_solver_that_are_none_are_named() -> None:
    with pytest.raises(InputError, match="there is no editor 'memti'; there are alphaedit, dmle"):
        editor("memti")
    with pytest.raises(
        InputError, match=r"solver is .rome.; solvers are alphaedit, emmet, ft_whit"
    ):
        solver("rome")


def test_every_file_of_the_room_registers_the_editor_of_its_name() -> None:
    assert tuple(editors()) == editor_names()
    assert all(kind.name == name for name, kind in editors().items())


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
    for name in ("memit", "ft", "lora", "rome", "grace"):
        with pytest.raises(ValueError, match="'12': ascending layers within 0 to 11 are needed"):
            given(name, "12")
    for name in ("rome", "grace"):
        with pytest.raises(
            ValueError,
            match=rf"{name} writes one block, edit.block gives \[3, 4\]; give one layer",
        ):
            given(name, "3-4")
    with pytest.raises(ValueError, match=r"edit.block is '3/5': memit knows no groups of forms"):
        given("memit", "3/5")
    with pytest.raises(ValueError, match="numbers and ranges separated by commas"):
        given("memit", "middle")


def statistics_of(
    settings: EditorSettings, n_layers: int, selected: LayerSelection
) -> tuple[int, ...]:
    class Deep(LanguageModel):
        """A model of so many layers, and nothing else."""

        def __init__(self) -> None:
            pass

        @property
        def n_layers(self) -> int:
            return n_layers

    return resolve(Deep(), settings, Selected(selected)).statistics


def test_dmle_takes_the_selection_a_file_or_layers_by_hand(tmp_path: Path) -> None:
    selected, other = parse_layers("0,1/2", 3), parse_layers("2/0", 3)
    other.save(tmp_path / "selection.json")
    auto = EditorSettings(editor="dmle")
    assert layers_of(auto, 3, selected) is selected
    by_hand = layers_of(EditorSettings(layers="1/1,2"), 3, selected)
    assert by_hand == parse_layers("1/1,2", 3)
    from_file = EditorSettings(layers=str(tmp_path / "selection.json"))
    assert layers_of(from_file, 3, selected) == other
    assert statistics_of(auto, 3, selected) == (0, 1, 2)
    assert statistics_of(EditorSettings(layers="2/0"), 3, selected) == (0, 2)
    with pytest.raises(ValueError, match="dmle with layers: auto needs"):
        layers_of(auto, 3, None)
    # A file of a deeper model.
    parse_layers("3,4/12", 30).save(tmp_path / "deep.json")
    with pytest.raises(
        ValueError, match=r"edit.layers has layers \[12\]; the model has layers 0 to 11"
    ):
        layers_of(EditorSettings(layers=str(tmp_path / "deep.json")), 12, None)
    with pytest.raises(ValueError, match="ascending layers within 0 to 2 are needed"):
        layers_of(EditorSettings(layers="1/3"), 3, None)
    with pytest.raises(ValueError, match=r"none.json does not exist"):
        layers_of(EditorSettings(layers=str(tmp_path / "none.json")), 3, None)


def test_statistics_are_needed_where_a_closed_form_writes() -> None:
    def needed(editor: str, **more: Any) -> tuple[int, ...]:
        settings = EditorSettings.model_validate({"editor": editor, **more})
        return statistics_of(settings, 12, parse_layers("3,4/4,9", 12))

    assert needed("dmle") == (3, 4, 9) and needed("dmle", layers="5/1") == (1, 5)
    assert (
        needed("memit") == (2, 3, 4, 5, 6)
        and needed("emmet", block="7") == (7,)
        and needed("rome") == (2,)
    )
    assert [needed(editor) for editor in ("ft", "lora", "grace", "ice", "ike")] == [()] * 5


@pytest.mark.parametrize("editor", ["dmle", "memit", "rome"])
def test_rounds_are_edits_one_after_the_other(
    tiny_llama: LanguageModel,
    make_bench: Callable[..., Workbench],
    rules: tuple[Rule, ...],
    editor: str,
) -> None:
    bench, settings = make_bench(tiny_llama, rules[1:]), settings_of(editor)
    requests = requests_of(rules[0], settings.lookup)
    before = snapshot(tiny_llama)
    got = edit(bench.asked(requests, settings.model_copy(update={"rounds": 2})))
    assert all(parameter.equal(before[name]) for name, parameter in tiny_llama.parameters.items())
    first = edit(bench.asked(requests, settings))
    with first.edited(tiny_llama):
        second = edit(bench.asked(requests, settings))
        with second.edited(tiny_llama):
            want = {
                name: parameter.detach().clone()
                for name, parameter in tiny_llama.parameters.items()
            }
    with got.edited(tiny_llama):
        for name, parameter in tiny_llama.parameters.items():
            torch.testing.assert_close(parameter, want[name], atol=1e-5, rtol=1e-5)
    assert len(got.report.rounds) == 1
    assert got.report.rounds[0].editor == editor


@pytest.mark.parametrize("editor", ["dmle", "memit"])
def test_word_by_word_is_the_edit_of_the_words_as_requests(
    tiny_llama: LanguageModel,
    make_bench: Callable[..., Workbench],
    rules: tuple[Rule, ...],
    editor: str,
) -> None:
    bench, whole = make_bench(tiny_llama, rules[1:]), settings_of(editor, lookup="last")
    words = whole.model_copy(update={"answer": "words"})
    requests = [replace(r, target_new="side side") for r in requests_of(rules[0], "last")]
    got = edit(bench.asked(requests, words))
    want = edit(bench.asked([word for r in requests for word in words_of(r)], whole))
    assert isinstance(got, EditDelta) and isinstance(want, EditDelta)
    for name, update in factors(got).items():
        torch.testing.assert_close(update.dense(), factors(want)[name].dense())
    alone = [replace(r, target_new="side") for r in requests]
    one, other = (edit(bench.asked(alone, each)) for each in (words, whole))
    assert isinstance(one, EditDelta) and isinstance(other, EditDelta)
    for name, update in factors(one).items():
        torch.testing.assert_close(update.dense(), factors(other)[name].dense())


def test_word_by_word_needs_a_key_for_each_word() -> None:
    with pytest.raises(ValueError, match=r"--set edit.lookup=last"):
        settings_of("memit", lookup="subject_last", answer="words")


def test_the_loss_of_words_behind_a_word_needs_words_and_changes_the_edit(
    tiny_llama: LanguageModel, make_bench: Callable[..., Workbench], rules: tuple[Rule, ...]
) -> None:
    with pytest.raises(ValueError, match=r"--set edit.answer=words"):
        settings_of("memit", words_loss="rest")
    bench = make_bench(tiny_llama, rules[1:])
    requests = [replace(r, target_new="side side") for r in requests_of(rules[0], "last")]
    own, rest = (
        edit(bench.asked(requests, settings_of("memit", answer="words", words_loss=loss)))
        for loss in ("own", "rest")
    )
    assert isinstance(own, EditDelta) and isinstance(rest, EditDelta)
    assert own.report.requests == rest.report.requests and "behind" not in own.report.requests[0]
    # The last word of an answer has none behind it.
    first = [(a[0], b[0]) for a, b in zip(own.report.losses, rest.report.losses, strict=True)]
    assert all(a != b for a, b in first[::2]) and all(a == pytest.approx(b) for a, b in first[1::2])
