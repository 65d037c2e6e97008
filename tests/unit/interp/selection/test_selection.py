"""The layers chosen: planted windows, resampling written out, and evidence that is too weak."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from interp.config import SelectConfig
from interp.errors import DmleError, InputError
from interp.results import effects
from interp.results.intervals import resample_counts
from interp.selection import strategies
from interp.selection.adaptive import select_for_rules
from interp.selection.candidates import first_candidate
from interp.selection.layers import (
    LayerGroup,
    LayerSelection,
    load_for_rules,
    parse_layers,
    save_for_rules,
)
from interp.selection.select import select_layers
from interp.tracing.windows import window
from interp.vocabulary import LOOKUP
from tests.unit.selection_making import FIXED

FORMS = ("formula", "description", "instance")
LAYERS, RULES = 10, 8
PROFILED = [each.name for each in strategies.every() if each.reads == ("profile",)]
FINDING = [name for name in PROFILED if name not in FIXED]
"""Those that find what is planted."""


def profile(
    planted: dict[str, Sequence[int]],
    *,
    rules: int = RULES,
    noise: float = 0.1,
    total_effect: float = 2.0,
    **attrs: int,
) -> xr.Dataset:
    """A profile whose mlp lookup effect is 1 in the planted layers of each form and noise
    elsewhere."""
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
        attrs={
            "model": "tiny",
            "weight_hash": "0123",
            "unit": "nats",
            "window": 1,
            "irrelevant": 7,
            **attrs,
        },
    )


def planted(rules: int = RULES, **attrs: int) -> xr.Dataset:
    return profile(
        {"formula": (3, 4, 5), "description": (3, 4, 5), "instance": (6, 7)}, rules=rules, **attrs
    )


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
        ("mlp_single", 10, 1, 1),
        ("resid_mlp_frozen", 10, 2, 2),
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
    selection = select_layers(planted(), SelectConfig(strategy="window", width=3))
    first, second = selection.groups
    assert first.layers == (3, 4, 5) and first.forms == ("formula", "description")
    assert first.stability == 1 and first.supported and first.n_rules == RULES
    assert first.score == pytest.approx(1, abs=0.1)
    assert first.lower is not None and first.upper is not None and first.score is not None
    assert 0.9 < first.lower < first.score < first.upper < 1.1
    assert set(second.layers) > {6, 7}
    assert selection.layers_of("instance") == second.layers
    assert selection.layers_of("description") == (3, 4, 5)
    assert select_layers(planted(), SelectConfig(strategy="window", width=2)).layers_of(
        "instance"
    ) == (6, 7)


def test_select_layers_scores_equal_the_means_of_the_profile() -> None:
    data = planted()
    group = select_layers(data, SelectConfig(strategy="window", width=3)).group_of("formula")
    values = data["effect"].sel(
        component="mlp", role=LOOKUP, form=["formula", "description"], layer=[3, 4, 5]
    )
    assert group.score == pytest.approx(float(values.mean()))
    per_rule = values.mean(("form", "layer")).values
    means = resample_counts(RULES, 1000, 0) @ per_rule / RULES
    assert (group.lower, group.upper) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_select_layers_leaves_out_windows_that_restore_the_first_blocks() -> None:
    data = profile({form: (0, 1, 2) for form in FORMS})
    data["effect"][..., 1, 1, 6:9] += 0.5
    every = SelectConfig(strategy="window", width=3, identity_blocks=0)
    assert select_layers(data, every).layers_of("formula") == (0, 1, 2)
    # Windows of 4 restored blocks hold block 0 up to layer 2.
    chosen = select_layers(
        data.assign_attrs(window=4), SelectConfig(strategy="window", width=3, identity_blocks=1)
    )
    assert chosen.first_layer == 3
    assert chosen.layers_of("formula") == (6, 7, 8)


@pytest.mark.parametrize("strategy", FINDING)
@pytest.mark.parametrize("restored", [2, 3, 4])
def test_one_block_is_found_in_the_plateau_of_the_windows_that_restore_it(
    strategy: str, restored: int
) -> None:
    rng = np.random.default_rng(0)
    for block in range(4, LAYERS - 1):
        data = profile({}, noise=0.02, window=restored)
        seen = [block in window(layer, restored, LAYERS) for layer in range(LAYERS)]
        # Strengths differ between rules, and the plateau is not even: its largest end is not the
        # block.
        data["effect"][:, :, 1, 1] += rng.uniform(0.5, 2, (RULES, 1, 1)) * (
            np.array(seen) * np.linspace(1, 1.2, LAYERS)
        )
        config = SelectConfig.model_validate({"strategy": strategy, "width": 2})
        for selection in (select_layers(data, config), *select_for_rules(data, config).values()):
            assert all(block in group.layers and group.supported for group in selection.groups)


def test_select_layers_reads_one_block_alone_as_it_is() -> None:
    data = profile({form: (1, 2) for form in FORMS}, window=6)
    data = data.assign_coords(component=["attn", "mlp_single"])
    selection = select_layers(
        data, SelectConfig(strategy="window", component="mlp_single", width=2)
    )
    assert selection.first_layer == 1 and selection.layers_of("formula") == (1, 2)


def test_select_layers_flags_noise_as_not_supported() -> None:
    group = select_layers(
        profile({}, noise=1.0), SelectConfig(strategy="window", width=5, bootstrap=2000)
    ).groups[1]
    assert group.lower is not None and group.lower < 0
    assert not group.supported and "The interval reaches zero." in group.objections
    assert all(objection in group.reason for objection in group.objections)
    assert group.stability is not None and group.stability < 0.9


def test_select_layers_flags_an_effect_that_is_certain_but_negligible() -> None:
    planted_in: dict[str, Sequence[int]] = {
        "formula": (3, 4, 5),
        "description": (3, 4, 5),
        "instance": (6, 7),
    }
    assert all(g.supported for g in select_layers(profile(planted_in, total_effect=50)).groups)
    assert not any(g.supported for g in select_layers(profile(planted_in, total_effect=200)).groups)


def test_select_layers_flags_a_single_rule_as_not_supported() -> None:
    for group in select_layers(planted(rules=1), SelectConfig(strategy="window")).groups:
        assert (
            group.n_rules == 1
            and not group.supported
            and group.objections[0] == "There is only one rule."
        )


def test_select_layers_counts_a_rule_that_any_of_the_forms_supports() -> None:
    data = planted()
    data["effect"][0, 0] = np.nan  # its description remains
    data["effect"][1, :2] = np.nan
    groups = select_layers(data, SelectConfig(strategy="window")).groups
    assert [group.n_rules for group in groups] == [RULES - 1, RULES]
    assert groups[0].layers == (3, 4, 5)


def test_select_layers_takes_another_component_when_told() -> None:
    assert 8 in select_layers(
        planted(), SelectConfig(strategy="window", component="attn", width=1)
    ).layers_of("formula")


# Other strategies.


def test_mass_selects_scattered_layers_by_hand() -> None:
    data = profile(
        {"formula": (2, 5, 6, 9), "description": (2, 5, 6, 9), "instance": (7,)}, noise=0.01
    )
    data["effect"][:, :2, 1, 1, [2, 9]] += 1  # 2, 2, 1, 1 of 6
    selection = select_layers(data, SelectConfig(strategy="mass", share=0.6))
    first, second = selection.groups
    assert first.layers == (2, 9) and second.layers == (7,) and selection.width == 2
    assert first.score == pytest.approx(2, abs=0.02) and first.stability == 1 and first.supported
    assert first.reason.startswith("Layers 2, 9 hold 6")
    assert "No smaller set of layers holds 60 %." in first.reason
    most = select_layers(data, SelectConfig(strategy="mass", share=0.6, max_width=1))
    assert len(most.layers_of("formula")) == 1 and most.layers_of("formula")[0] in (2, 9)
    four = select_layers(data, SelectConfig(strategy="mass", min_width=4)).group_of("instance")
    assert len(four.layers) == 4 and "select.min_width asks for 4 layers." in four.reason


def test_changepoint_finds_segments_of_any_width() -> None:
    data = profile({"formula": (2, 3, 4, 5, 6), "description": (2, 3, 4, 5, 6), "instance": (8, 9)})
    selection = select_layers(data, SelectConfig(strategy="changepoint"))
    first, second = selection.groups
    assert first.layers == (2, 3, 4, 5, 6) and second.layers == (8, 9) and selection.width == 5
    assert first.supported and first.stability is not None and first.stability > 0.95
    assert first.reason.startswith("Layers 2–6 have a higher mean MLP effect (")
    bounded = select_layers(data, SelectConfig(strategy="changepoint", max_width=3, min_width=3))
    assert [len(group.layers) for group in bounded.groups] == [3, 3]


@pytest.mark.parametrize(
    ("where", "groups"),
    [
        ((3, 3, 6), [("formula", "description"), ("instance",)]),
        ((3, 6, 6), [("formula",), ("description", "instance")]),
        ((3, 7, 3), [("formula", "instance"), ("description",)]),
        ((5, 5, 5), [("formula", "description", "instance")]),
        ((1, 4, 7), [("formula",), ("description",), ("instance",)]),
    ],
)
def test_groups_are_found_from_the_data(
    where: tuple[int, ...], groups: list[tuple[str, ...]]
) -> None:
    data = profile(
        {form: (at, at + 1, at + 2) for form, at in zip(FORMS, where, strict=True)}, rules=10
    )
    selection = select_layers(data, SelectConfig(strategy="groups", level=0.01))
    assert [group.forms for group in selection.groups] == groups
    for form, at in zip(FORMS, where, strict=True):
        assert selection.layers_of(form) == (at, at + 1, at + 2)
    words = selection.provenance["grouping"]
    assert (
        words
        and all("correlation" in line for line in words)
        and words[0] in selection.groups[0].reason
    )


def test_groups_puts_a_form_without_a_profile_where_the_given_grouping_has_it() -> None:
    data = planted()
    data["effect"][:, 1] = np.nan
    selection = select_layers(data, SelectConfig(strategy="groups"))
    assert [group.forms for group in selection.groups] == [
        ("formula", "description"),
        ("instance",),
    ]
    data["effect"][:, 2] = np.nan
    with pytest.raises(ValueError, match="no rule is traceable in its instance form"):
        select_layers(data, SelectConfig(strategy="groups"))


# Rule by rule.


def two_kinds(noise: float, rules: int = 12) -> xr.Dataset:
    """Half of the rules have their effect in layers 2-4, the others in 6-8."""
    data = profile({}, rules=rules, noise=noise)
    data["effect"][: rules // 2, :, 1, 1, 2:5] += 1
    data["effect"][rules // 2 :, :, 1, 1, 6:9] += 1.2
    return data


def test_adaptive_gives_each_rule_its_own_layers_where_maps_are_clear() -> None:
    data = two_kinds(0.05)
    config = SelectConfig(strategy="adaptive")
    own = select_for_rules(data, config)
    assert list(own) == data["rule"].values.tolist()
    for i, selection in enumerate(own.values()):
        expected = (2, 3, 4) if i < 6 else (6, 7, 8)
        assert all(group.layers == expected and group.supported for group in selection.groups)
        assert all(
            group.n_rules == 1 and (group.stability or 0) > 0.9 for group in selection.groups
        )
        assert selection.strategy == "adaptive" and selection.provenance["rule"] == f"rule{i}"
        assert "Of its deviation from the mean over 12 rules, " in selection.groups[0].reason
    population = select_layers(data, config)
    assert population.layers_of("formula") == (6, 7, 8) and population.strategy == "adaptive"


def test_adaptive_believes_the_standard_errors_that_the_profile_stores() -> None:
    data = two_kinds(0.05)
    population = select_layers(data, SelectConfig(strategy="adaptive"))
    noisy = data.assign(effect_se=data["effect"] * 0 + 1e6)
    for selection in select_for_rules(noisy).values():
        assert [g.layers for g in selection.groups] == [g.layers for g in population.groups]
        kept = ", 0 % is kept. The rest is taken for noise, by its standard error."
        assert kept in selection.groups[0].reason
    exact = data.assign(effect_se=data["effect"] * 0)
    for i, selection in enumerate(select_for_rules(exact).values()):
        scores = (
            data["effect"]
            .isel(rule=i)
            .sel(component="mlp", role=LOOKUP, form=["formula", "description"])
        )
        assert selection.groups[0].score == pytest.approx(
            float(scores.mean("form")[2:5].mean() if i < 6 else scores.mean("form")[6:9].mean())
        )


def test_adaptive_shrinks_a_noisy_rule_more() -> None:
    data = two_kinds(0.05)
    errors = data["effect"] * 0 + 0.05
    errors[0] = 100.0
    own = select_for_rules(data.assign(effect_se=errors))
    assert own["rule0"].layers_of("formula") == (6, 7, 8)
    assert own["rule1"].layers_of("formula") == (2, 3, 4)


def test_adaptive_gives_a_rule_without_a_map_the_population_s_layers() -> None:
    data = two_kinds(0.05)
    data["effect"][0, 2] = np.nan
    own = select_for_rules(data)["rule0"]
    assert own.layers_of("formula") == (2, 3, 4)
    population = select_layers(data, SelectConfig(strategy="adaptive"))
    assert own.layers_of("instance") == population.layers_of("instance")
    assert own.group_of("instance").reason.startswith("This rule is not traceable here")


def test_selections_by_rule_are_equal_after_saving_and_loading(tmp_path: Path) -> None:
    own = select_for_rules(two_kinds(0.1))
    save_for_rules(own, tmp_path / "rules.json")
    assert load_for_rules(tmp_path / "rules.json") == own
    (tmp_path / "rules.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a readable file of layer selections by rule"):
        load_for_rules(tmp_path / "rules.json")


# Undecided.


def drawn(seed: int, effect: float, rules: int = 10, layers: int = 20) -> xr.Dataset:
    """One form, noise of 1 in every layer and rule, `effect` in layers 9-11."""
    rng = np.random.default_rng([seed, rules])
    values = rng.normal(size=(rules, 1, 1, 1, layers))
    values[..., 9:12] += effect
    return xr.Dataset(
        {"effect": (("rule", "form", "component", "role", "layer"), values), "te": ("form", [2.0])},
        coords={
            "rule": [str(i) for i in range(rules)],
            "form": ["formula"],
            "component": ["mlp"],
            "role": [LOOKUP],
            "layer": np.arange(layers),
        },
    )


# Groups and adaptive are windows for one group of forms.
@pytest.mark.parametrize("rules", [10, 30])
@pytest.mark.parametrize("strategy", ["window", "mass", "changepoint"])
def test_noise_is_undecided_and_what_is_planted_is_found(strategy: str, rules: int) -> None:
    config = SelectConfig.model_validate(
        {"strategy": strategy, "groups": [["formula"]], "bootstrap": 300}
    )
    noise = [
        select_layers(drawn(seed, 0, rules), config).groups[0].supported for seed in range(100)
    ]
    assert np.mean(noise) <= 0.1
    found = [select_layers(drawn(seed, 2, rules), config).groups[0] for seed in range(100)]
    assert (
        np.mean([group.supported and set(group.layers) & {9, 10, 11} != set() for group in found])
        >= 0.95
    )
    if strategy != "mass":  # noise elsewhere holds a share of the effect too
        assert np.mean([10 in group.layers for group in found]) >= 0.95


def test_few_rules_are_undecided_since_no_test_could_tell() -> None:
    for rules, supported in ((4, False), (5, True)):
        group = select_layers(planted(rules=rules)).groups[0]
        assert group.supported == supported and group.p_value == 0.5**rules
        said = "Not significant: p = 0.062 with 4 rules (at least 5 needed)."
        assert group.objections == (() if supported else (said,))
        assert group.reason.endswith("Significant: p = 0.031 with 5 rules." if supported else said)
    assert (
        select_layers(planted(rules=4), SelectConfig(strategy="window", level=0.1))
        .groups[0]
        .supported
    )
    assert (
        select_layers(planted(rules=2), SelectConfig(strategy="window", level=1))
        .groups[0]
        .supported
    )


def test_min_stability_makes_an_unstable_choice_undecided() -> None:
    data = profile({form: range(3, 8) for form in FORMS}, noise=0.3)
    easy = select_layers(data, SelectConfig(strategy="window")).groups[0]
    assert easy.supported
    group = select_layers(data, SelectConfig(strategy="window", min_stability=0.999)).groups[0]
    assert not group.supported and "below select.min_stability = 0.999" in group.reason
    assert group.layers == easy.layers  # still the best guess


def test_the_fallback_takes_the_published_layers_and_says_so() -> None:
    data = planted(rules=3)
    chosen = select_layers(data, SelectConfig(strategy="window", fallback="published"))
    for group in chosen.groups:
        assert group.layers == (1, 2, 3, 4, 5) and not group.supported and group.stability is None
        assert group.reason.startswith(
            "These are the published layers 4–8 of models with 28 to 32 blocks, scaled to 10 blocks"
        )
        assert group.reason.endswith("Not significant: p = 0.125 with 3 rules (at least 5 needed).")
    values = data["effect"].sel(
        component="mlp", role=LOOKUP, form="instance", layer=[1, 2, 3, 4, 5]
    )
    assert chosen.groups[1].score == pytest.approx(float(values.mean()))
    assert "not supported: Layers 3–5 are the" in chosen.groups[0].reason
    # What is supported does not fall back.
    assert select_layers(
        planted(), SelectConfig(strategy="window", fallback="published")
    ).layers_of("formula") == (
        3,
        4,
        5,
    )
    of_rules = select_for_rules(data, SelectConfig(strategy="window", fallback="published"))
    assert all(s.layers_of("formula") == (1, 2, 3, 4, 5) for s in of_rules.values())


# Bounds.


@pytest.mark.parametrize("strategy", PROFILED)
def test_bounds_hold_for_every_strategy(strategy: str) -> None:
    data = profile({form: (1, 2, 5, 8, 9) for form in FORMS}, rules=10)
    config = SelectConfig.model_validate({"strategy": strategy, "first": 3, "last": 7, "width": 2})
    for selection in (select_layers(data, config), *select_for_rules(data, config).values()):
        assert (selection.first_layer, selection.last_layer) == (3, 7)
        for group in selection.groups:
            assert set(group.layers) <= {3, 4, 5, 6, 7}
            assert 5 in group.layers or strategy in FIXED
            assert "Only layers 3–7 could be chosen." in group.reason


@pytest.mark.parametrize(("low", "high"), [("first", "last"), ("min_width", "max_width")])
def test_bounds_that_cross_are_refused(low: str, high: str) -> None:
    with pytest.raises(ValueError, match=f"{low} is 5, above {high} = 4; lower it"):
        SelectConfig.model_validate({low: 5, high: 4})


def test_one_candidate_layer_and_one_rule_are_enough_for_every_strategy() -> None:
    data = planted(rules=1).isel(layer=slice(3, 4))
    for strategy in PROFILED:
        config = SelectConfig.model_validate(
            {"strategy": strategy, "width": 1, "identity_blocks": 0}
        )
        assert all(g.layers == (0,) and not g.supported for g in select_layers(data, config).groups)
    assert select_for_rules(data, SelectConfig(strategy="window", width=1, identity_blocks=0))[
        "rule0"
    ].layers_of("instance") == (0,)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            SelectConfig(strategy="window", first=6, last=7),
            "select.width is 3, but only 2 of .* candidates .*bounds 6 to 7",
        ),
        (SelectConfig(strategy="mass", min_width=10), "select.min_width is 10, but only 9 of"),
        (
            SelectConfig(strategy="changepoint", min_width=9),
            "only 9 .* candidates and a segment needs one outside it",
        ),
        (
            SelectConfig(strategy="window", width=11),
            "select.width is 11, but only 9 of the model's 10 layers are candidates",
        ),
        (
            SelectConfig(strategy="window", identity_blocks=20),
            "none of the model's 10 layers is a candidate .* select.identity_blocks",
        ),
        (
            SelectConfig(strategy="window", component="resid"),
            r"the profile has no component 'resid', only \['attn', 'mlp'\]; trace it",
        ),
    ],
)
def test_select_layers_refuses_what_cannot_be_chosen(config: SelectConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_layers(planted(), config)


def test_select_layers_refuses_a_group_without_a_traceable_rule() -> None:
    data = planted()
    data["effect"][:, 2] = np.nan
    with pytest.raises(
        ValueError, match=r"no rule is traceable in its instance form .*; use more noise samples"
    ):
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
def test_parse_layers_reads_lists_and_ranges(
    text: str, first: tuple[int, ...], second: tuple[int, ...]
) -> None:
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
    effects.save(planted(), tmp_path / "means.nc")
    selection = select_layers(effects.load(tmp_path / "means.nc"))
    assert selection.provenance == {
        "model": "tiny",
        "weight_hash": "0123",
        "unit": "nats",
        "window": 1,
    }
    assert selection == select_layers(planted())


@pytest.mark.parametrize(
    "content", [None, "{", "{}", '{"schema": "dmle.selection/1", "layers": [1]}']
)
def test_a_file_that_is_no_selection_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "selection.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(
        DmleError,
        match=r"selection\.json (is not a readable layer|does not exist).*`dmle select --run",
    ):
        LayerSelection.load(path)


def test_a_form_without_a_group_is_named() -> None:
    group = LayerGroup(name="instance", forms=("instance",), layers=(1,))
    selection = parse_layers("1", 3).model_copy(update={"groups": (group,)})
    with pytest.raises(
        InputError, match=r"form 'formula' is in no group; groups are \['instance'\]"
    ):
        selection.layers_of("formula")
