"""The layers chosen: planted windows, resampling written out, and evidence that is too weak."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from interp import effects
from interp.config import SelectConfig
from interp.profiles import LOOKUP, resample_counts
from interp.selection import (
    LayerGroup,
    LayerSelection,
    best_window,
    first_candidate,
    parse_layers,
    select_layers,
    windows,
)

FORMS = ("formula", "description", "instance")
LAYERS, RULES = 10, 8


def profile(
    planted: dict[str, Sequence[int]],
    *,
    rules: int = RULES,
    noise: float = 0.1,
    total_effect: float = 2.0,
    **attrs: int,
) -> xr.Dataset:
    """A profile whose mlp lookup effect is 1 in the planted layers of each form and noise elsewhere."""
    rng = np.random.default_rng(0)
    effect = noise * rng.normal(size=(rules, 3, 2, 2, LAYERS))
    for form, layers in planted.items():
        effect[:, FORMS.index(form), 1, 1, list(layers)] += 1
    # Elsewhere there is more to find, which must not count: another component, another role.
    effect[:, :, 0, 1, 8] += 5
    effect[:, :, 1, 0, 9] += 5
    return xr.Dataset(
        {
            "effect": (("rule", "form", "component", "role", "layer"), effect),
            "te": (("form",), np.full(3, total_effect)),
        },
        coords={
            "rule": [f"rule{i}" for i in range(rules)],
            "form": list(FORMS),
            "component": ["attn", "mlp"],
            "role": ["last", LOOKUP],
            "layer": np.arange(LAYERS),
        },
        attrs={"model": "tiny", "weight_hash": "0123", "unit": "nats", "window": 1, "irrelevant": 7, **attrs},
    )


def planted(rules: int = RULES, **attrs: int) -> xr.Dataset:
    return profile({"formula": (3, 4, 5), "description": (3, 4, 5), "instance": (6, 7)}, rules=rules, **attrs)


# The array core.


def test_windows_average_contiguous_layers() -> None:
    matrix = windows(6, 4)
    assert matrix.shape == (3, 6)
    values = np.arange(6.0) ** 2
    np.testing.assert_allclose(matrix @ values, [values[i : i + 4].mean() for i in range(3)])


@pytest.mark.parametrize("first", [0, 2])
def test_best_window_equals_resampling_written_out(first: int) -> None:
    effect = np.random.default_rng(1).normal(size=(5, 7)) + np.array([2, 1, 0, 0.1, 0.3, 0.2, 0])
    best, draws, stability = best_window(effect, 2, draws=200, seed=9, first=first)

    def winner(rows: np.ndarray) -> int:
        scores = {start: rows[:, start : start + 2].mean() for start in range(first, 6)}
        return max(scores, key=lambda start: scores[start])

    assert best == winner(effect)
    wins, means = [], []
    for counts in resample_counts(5, 200, 9):
        rows = np.repeat(effect, counts.astype(int), axis=0)
        wins.append(winner(rows) == best)
        means.append(rows[:, best : best + 2].mean())
    np.testing.assert_allclose(draws, means, rtol=1e-12)
    assert stability == pytest.approx(np.mean(wins))
    assert 0 < stability < 1 or first == 0


@pytest.mark.parametrize(
    ("component", "restored", "blocks", "expected"),
    [
        ("mlp", 1, 0, 0),
        ("mlp", 1, 1, 1),
        ("mlp", 1, 3, 3),
        ("mlp", 2, 1, 2),  # window of 2 at layer 2: blocks 1 and 2
        ("mlp", 3, 1, 2),
        ("attn", 10, 1, 6),  # ROME's window: five blocks before
        ("resid", 10, 1, 1),
        ("mlp", 200, 1, 48),  # every window holds the first block
        ("resid", 1, 60, 48),
    ],
)
def test_first_candidate_is_the_first_window_behind_the_identity_blocks(
    component: str, restored: int, blocks: int, expected: int
) -> None:
    assert first_candidate(component, restored, blocks, 48) == expected


# Choosing.


def test_select_layers_finds_the_planted_windows() -> None:
    selection = select_layers(planted(), SelectConfig(width=3))
    first, second = selection.groups
    assert first.layers == (3, 4, 5) and first.forms == ("formula", "description")
    assert first.stability == 1 and first.supported and first.n_rules == RULES
    assert first.score == pytest.approx(1, abs=0.1)
    assert first.lower is not None and first.upper is not None and first.score is not None
    assert 0.9 < first.lower < first.score < first.upper < 1.1
    assert set(second.layers) > {6, 7}
    assert selection.layers_of("instance") == second.layers
    assert selection.layers_of("description") == (3, 4, 5)
    assert select_layers(planted(), SelectConfig(width=2)).layers_of("instance") == (6, 7)


def test_select_layers_scores_equal_the_means_of_the_profile() -> None:
    data = planted()
    group = select_layers(data, SelectConfig(width=3)).group_of("formula")
    values = data["effect"].sel(component="mlp", role=LOOKUP, form=["formula", "description"], layer=[3, 4, 5])
    assert group.score == pytest.approx(float(values.mean()))
    per_rule = values.mean(("form", "layer")).values
    means = resample_counts(RULES, 1000, 0) @ per_rule / RULES
    assert (group.lower, group.upper) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_select_layers_leaves_out_windows_that_restore_the_first_blocks() -> None:
    data = profile({form: (0, 1, 2) for form in FORMS})
    data["effect"][..., 1, 1, 6:9] += 0.5
    every = SelectConfig(width=3, identity_blocks=0)
    assert select_layers(data, every).layers_of("formula") == (0, 1, 2)
    # Windows of 4 restored blocks hold block 0 up to layer 2.
    chosen = select_layers(data.assign_attrs(window=4), SelectConfig(width=3, identity_blocks=1))
    assert chosen.first_layer == 3
    assert chosen.layers_of("formula") == (6, 7, 8)


def test_select_layers_flags_noise_as_not_supported() -> None:
    group = select_layers(profile({}, noise=1.0), SelectConfig(width=5, bootstrap=2000)).groups[1]
    assert group.lower is not None and group.lower < 0
    assert not group.supported and group.reason.startswith("not supported by the profile")
    assert group.stability is not None and group.stability < 0.9


def test_select_layers_flags_an_effect_that_is_certain_but_negligible() -> None:
    planted_in = {"formula": (3, 4, 5), "description": (3, 4, 5), "instance": (6, 7)}
    assert all(g.supported for g in select_layers(profile(planted_in, total_effect=50)).groups)
    assert not any(g.supported for g in select_layers(profile(planted_in, total_effect=200)).groups)


def test_select_layers_flags_a_single_rule_as_not_supported() -> None:
    for group in select_layers(planted(rules=1), SelectConfig()).groups:
        assert group.n_rules == 1 and not group.supported and "only one rule" in group.reason


def test_select_layers_counts_a_rule_that_any_of_the_forms_supports() -> None:
    data = planted()
    data["effect"][0, 0] = np.nan  # its description remains
    data["effect"][1, :2] = np.nan
    groups = select_layers(data, SelectConfig()).groups
    assert [group.n_rules for group in groups] == [RULES - 1, RULES]
    assert groups[0].layers == (3, 4, 5)


def test_select_layers_takes_another_component_when_told() -> None:
    assert 8 in select_layers(planted(), SelectConfig(component="attn", width=1)).layers_of("formula")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SelectConfig(width=11), "select.width is 11, but only 9 of the model's 10 layers are candidates"),
        (SelectConfig(identity_blocks=20), "only 0 of the model's 10 layers are candidates .* select.identity_blocks"),
        (SelectConfig(component="resid"), r"the profile has no component 'resid', only \['attn', 'mlp'\]; trace it"),
    ],
)
def test_select_layers_refuses_what_cannot_be_chosen(config: SelectConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_layers(planted(), config)


def test_select_layers_refuses_a_group_without_a_traceable_rule() -> None:
    data = planted()
    data["effect"][:, 2] = np.nan
    with pytest.raises(ValueError, match=r"no rule is traceable in its instance form .*; use more noise samples"):
        select_layers(data)


# Layers by hand.


@pytest.mark.parametrize(
    ("text", "first", "second"),
    [
        ("3,4,5/12,13,14", (3, 4, 5), (12, 13, 14)),
        ("4-8", (4, 5, 6, 7, 8), (4, 5, 6, 7, 8)),
        ("0", (0,), (0,)),
        ("0-1,4,7-9/29", (0, 1, 4, 7, 8, 9), (29,)),
        (" 1 , 2 ", (1, 2), (1, 2)),
    ],
)
def test_parse_layers_reads_lists_and_ranges(text: str, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    selection = parse_layers(text, 30)
    assert selection.layers_of("formula") == selection.layers_of("description") == first
    assert selection.layers_of("instance") == second
    assert selection.strategy == "manual" and selection.n_layers == 30
    assert all(group.score is None and group.stability is None for group in selection.groups)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "numbers and ranges separated by commas are needed, such as 3,4,5 or 4-8"),
        ("3;4", "numbers and ranges separated by commas"),
        ("1/2/3", "give one list, or two separated by '/', such as 3,4,5/12,13,14"),
        ("1/", "numbers and ranges separated by commas"),
        ("5,4", "ascending layers within 0 to 29 are needed"),
        ("5,5", "ascending layers within 0 to 29"),
        ("8-4", "ascending layers within 0 to 29"),
        ("30", "ascending layers within 0 to 29"),
        ("-1", "numbers and ranges separated by commas"),
    ],
)
def test_parse_layers_refuses_and_says_what_is_needed(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_layers(text, 30)


# Files.


def test_a_selection_is_equal_after_saving_and_loading(tmp_path: Path) -> None:
    for selection in (select_layers(planted()), parse_layers("3,4/7", 10)):
        path = tmp_path / "selection.json"
        selection.save(path)
        assert LayerSelection.load(path) == selection
        assert json.loads(path.read_text(encoding="utf-8"))["schema"] == "dmle.selection/1"


def test_a_selection_of_a_saved_profile_keeps_its_provenance(tmp_path: Path) -> None:
    effects.save(planted(), tmp_path / "profile.nc")
    selection = select_layers(effects.load(tmp_path / "profile.nc"))
    assert selection.provenance == {"model": "tiny", "weight_hash": "0123", "unit": "nats", "window": 1}
    assert selection == select_layers(planted())


@pytest.mark.parametrize("content", [None, "{", "{}", '{"schema": "dmle.selection/1", "layers": [1]}'])
def test_a_file_that_is_no_selection_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "selection.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"selection\.json is not a layer selection: "):
        LayerSelection.load(path)


def test_a_form_without_a_group_is_named() -> None:
    group = LayerGroup(name="instance", forms=("instance",), layers=(1,))
    selection = parse_layers("1", 3).model_copy(update={"groups": (group,)})
    with pytest.raises(KeyError, match=r"form 'formula' is in no group; groups are \['instance'\]"):
        selection.layers_of("formula")
