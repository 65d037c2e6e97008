"""Published settings and how they reach an editor: the numbers of the files they come from, and
what overrides them."""

from typing import Any

import pytest
from pydantic import ValidationError

from editing.config import EditConfig, EditorSettings
from editing.names import editor_names
from editing.presets import SOURCES, preset

# Read off the published files: block, clamp, learning rate, steps, weight decay, KL factor, λ and
# d_mlp.
EDITORS = editor_names()
PUBLISHED = {
    "gpt-j-6b": ("3-8", 0.75, 0.5, 25, 0.5, 0.0625, 15000, 16384),
    "qwen2.5-7b": ("4-8", 4.0, 0.5, 25, 1e-3, 0.0625, 15000, 18944),
    "qwen2-7b": ("4-8", 4.0, 0.5, 25, 1e-3, 0.0625, 15000, 18944),
    "llama-3-8b": ("4-8", 0.75, 0.1, 25, 0.5, 0.0625, 15000, 14336),
}


@pytest.mark.parametrize("model", list(PUBLISHED))
def test_memit_settings_are_the_published_ones(model: str) -> None:
    block, clamp, rate, steps, decay, kl, weight, d_mlp = PUBLISHED[model]
    settings = EditorSettings.model_validate({"editor": "memit", "preset": model})
    assert (settings.block, settings.clamp, settings.learning_rate) == (block, clamp, rate)
    assert (settings.steps, settings.weight_decay, settings.kl_factor) == (steps, decay, kl)
    assert settings.lookup == "subject_last"
    # The closed form multiplies by d_mlp: λ itself again.
    assert settings.ridge * d_mlp == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize(
    ("model", "ridge"), [("gpt-j-6b", 0.9155), ("qwen2.5-7b", 0.7918), ("llama-3-8b", 1.0463)]
)
def test_ridge_is_the_published_weight_over_the_width_of_the_keys(model: str, ridge: float) -> None:
    assert preset(model, "memit")["ridge"] == pytest.approx(ridge, abs=5e-5)


def test_alphaedit_settings_of_llama_are_the_published_ones() -> None:
    settings = EditorSettings.model_validate({"editor": "alphaedit", "preset": "llama-3-8b"})
    assert (settings.block, settings.clamp, settings.learning_rate, settings.weight_decay) == (
        "4-8",
        0.75,
        0.1,
        0.5,
    )
    assert (settings.null_threshold, settings.l2, settings.null_relative) == (0.02, 10.0, False)


def test_dmle_takes_the_search_of_its_solver_and_no_layers() -> None:
    memit, alphaedit = preset("llama-3-8b", "dmle"), preset("llama-3-8b", "dmle", "alphaedit")
    assert memit == {
        name: value for name, value in preset("llama-3-8b", "memit").items() if name != "block"
    }
    assert "block" not in alphaedit and alphaedit["l2"] == 10.0 and "l2" not in memit
    settings = EditorSettings.model_validate(
        {"editor": "dmle", "solver": "alphaedit", "preset": "llama-3-8b"}
    )
    assert (settings.layers, settings.block, settings.l2) == ("auto", "auto", 10.0)
    # An editor is DMLE, and its solver MEMIT's, where nothing else is said.
    assert EditorSettings.model_validate({"preset": "gpt-j-6b"}).clamp == 0.75


def test_an_unknown_model_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ValueError,
        match=r"no preset for 'llama-4'; there are gpt-j-6b, qwen2.5-7b, qwen2-7b, llama-3",
    ):
        preset("llama-4", "memit")
    with pytest.raises(ValidationError, match="no preset for 'llama-4'"):
        EditorSettings.model_validate({"preset": "llama-4"})


@pytest.mark.parametrize(
    ("model", "editor"),
    [
        ("gpt-j-6b", "alphaedit"),
        ("qwen2.5-7b", "alphaedit"),
        *(("llama-3-8b", e) for e in EDITORS if e not in ("dmle", "memit", "alphaedit")),
    ],
)
def test_settings_that_nobody_published_are_refused(model: str, editor: str) -> None:
    with pytest.raises(
        ValueError, match=f"no settings of {editor} for {model} are known to be published"
    ):
        preset(model, editor)


def test_every_source_is_named_and_says_what_easyedit_lacks() -> None:
    with_settings = set()
    for model in PUBLISHED:
        for editor in (name for name in EDITORS if name != "dmle"):
            try:
                preset(model, editor)
            except ValueError:
                continue
            with_settings.add((model, editor))
    assert set(SOURCES) == with_settings
    assert "EasyEdit publishes none" in SOURCES["llama-3-8b", "memit"]


def test_explicit_settings_override_a_preset() -> None:
    settings = EditorSettings.model_validate(
        {"editor": "memit", "preset": "gpt-j-6b", "clamp": 3.0, "block": "5", "ridge": 2.0}
    )
    assert (settings.clamp, settings.block, settings.ridge) == (3.0, "5", 2.0)
    assert settings.weight_decay == 0.5  # the rest is the preset's


def test_each_editor_of_a_run_takes_its_own_part_of_a_shared_preset() -> None:
    config = EditConfig(preset="llama-3-8b", editors=("memit", "dmle", "alphaedit"), steps=7)
    memit, dmle, alphaedit = (config.settings_of(name) for name in config.editors)
    assert (memit.editor, memit.block, memit.learning_rate, memit.steps) == ("memit", "4-8", 0.1, 7)
    assert (dmle.editor, dmle.block, dmle.learning_rate, dmle.steps) == ("dmle", "auto", 0.1, 7)
    assert (alphaedit.block, alphaedit.l2) == ("4-8", 10.0)
    assert (memit.l2, dmle.l2) == (1.0, 1.0)


def test_an_arm_may_have_another_preset_than_the_rest() -> None:
    arms: dict[str, dict[str, Any]] = {
        "qwen": {"editor": "memit", "preset": "qwen2.5-7b"},
        "none": {"editor": "memit", "preset": None},
    }
    config = EditConfig(preset="gpt-j-6b", editors=("memit", "qwen", "none"), arms=arms)
    shared, qwen, none = (config.settings_of(name) for name in config.editors)
    assert (shared.block, shared.clamp, shared.weight_decay) == ("3-8", 0.75, 0.5)
    assert (qwen.block, qwen.clamp, qwen.weight_decay) == ("4-8", 4.0, 1e-3)
    assert qwen.ridge * 18944 == pytest.approx(15000)
    assert none == EditorSettings(editor="memit", preset=None)


def test_a_solver_in_an_arm_chooses_its_preset() -> None:
    arms: dict[str, dict[str, Any]] = {"null": {"editor": "dmle", "solver": "alphaedit"}}
    config = EditConfig(preset="llama-3-8b", editors=("dmle", "null"), arms=arms)
    assert (config.settings_of("dmle").l2, config.settings_of("null").l2) == (1.0, 10.0)


def test_a_shared_preset_does_not_reach_an_editor_it_is_not_published_for() -> None:
    with pytest.raises(ValidationError, match=r"no settings of ft for llama-3-8b"):
        EditConfig(preset="llama-3-8b", editors=("memit", "ft"))
    # Said in the arms that have one, it leaves the others alone.
    arms: dict[str, dict[str, Any]] = {"published": {"editor": "memit", "preset": "llama-3-8b"}}
    config = EditConfig(editors=("published", "ft"), arms=arms)
    assert (config.settings_of("published").clamp, config.settings_of("ft").clamp) == (0.75, 4.0)


# Arms.


def test_an_arm_overrides_what_is_for_all() -> None:
    arms: dict[str, dict[str, Any]] = {
        "early": {"editor": "memit", "block": "0", "ridge": 3.0},
        "plain": {},
    }
    config = EditConfig(
        editors=("early", "plain", "memit", "rome"), arms=arms, ridge=2.0, steps=4, block="1"
    )
    early, plain, memit, rome = (config.settings_of(name) for name in config.editors)
    assert (early.editor, early.block, early.ridge, early.steps) == ("memit", "0", 3.0, 4)
    assert (plain.editor, plain.block, plain.ridge) == ("dmle", "1", 2.0)
    assert (memit.editor, memit.block, memit.ridge) == ("memit", "1", 2.0)
    assert rome.editor == "rome" and rome.steps == 4


def test_an_arm_may_take_the_name_of_an_editor() -> None:
    config = EditConfig(editors=("memit",), arms={"memit": {"editor": "memit", "ridge": 5.0}})
    assert config.settings_of("memit").ridge == 5.0


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (
            {"editor": "memit", "rigde": 2.0},
            "unknown setting 'edit.arms.mine.rigde': did you mean 'edit.arms.mine.ridge'",
        ),
        (
            {"editor": "memit", "ridge": -1},
            "edit.arms.mine.ridge = -1: Input should be greater than 0",
        ),
        (
            {"editor": "memti"},
            "edit.arms.mine.editor = 'memti': there is no editor 'memti': did you mean 'memit'",
        ),
        (
            {"ft": {"stps": 3}},
            "unknown setting 'edit.arms.mine.ft.stps': did you mean 'edit.arms.mine.ft.steps'",
        ),
        (
            {"editors": ["memit"]},
            "unknown setting 'edit.arms.mine.editors': did you mean 'edit.arms.mine.editor'",
        ),
    ],
)
def test_a_wrong_setting_of_an_arm_is_named_with_the_arm(own: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EditConfig(editors=("mine",), arms={"mine": own})


@pytest.mark.parametrize(
    ("name", "nearest"), [("memti", "memit"), ("alphaedt", "alphaedit"), ("earli", "early")]
)
def test_an_unknown_editor_is_refused_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(
        ValidationError, match=f"no editor or arm '{name}': did you mean '{nearest}'"
    ):
        EditConfig(editors=(name,), arms={"early": {"editor": "memit"}})


def test_every_editor_is_a_name_by_itself() -> None:
    config = EditConfig(editors=EDITORS)
    assert [config.settings_of(name).editor for name in config.editors] == list(EDITORS)
