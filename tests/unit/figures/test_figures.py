import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib import pyplot as plt
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text

from figures import (
    edit_scores,
    effect_map,
    layer_profile,
    layer_selection,
    paper,
    score_tables,
    style,
)
from interp.results import effects as effects_schema
from interp.results.intervals import resample_counts
from interp.results.records import save_records
from interp.results.scores import per_rule
from interp.selection.layers import LayerSelection
from interp.selection.profiles import layer_profile as profile_of
from tests.unit.records import window_selection

TOKENS = (" The", " area", "\n", "$x_1$", " =")
CORRUPTED = (False, True, False, True, False)
ROLES = ("prefix", "rule_word", "after", "subject_last", "last")
LAYERS = 4


def prompt_map(
    effect: np.ndarray | None = None,
    *,
    untraced: Sequence[int] = (),
    noise: float = 0.1,
    tokens: Sequence[str] = TOKENS,
    components: Sequence[str] = ("resid", "mlp", "attn"),
) -> xr.Dataset:
    """A map with the given indirect effect (component, layer, pos): total 2 nats, samples -3 ±
    noise."""
    if effect is None:
        effect = (
            np.arange(len(components) * LAYERS * len(tokens)).reshape(len(components), LAYERS, -1)
            / 40
            - 0.3
        )
    effect = effect.astype(float).copy()
    effect[:, :, list(untraced)] = np.nan
    corrupted = np.array([-3 - noise, -3 + noise])
    return effects_schema.effect_map(
        effect[..., None] + corrupted,
        -1.0,
        corrupted,
        components=components,
        tokens=tokens,
        roles=ROLES[-len(tokens) :],
        is_corrupted=CORRUPTED[: len(tokens)],
        prompt="".join(tokens),
        answer=" $A = x_1^2$",
        attrs={"model": "toy", "window": 3, "answer_source": "dataset"},
    )


def joined(rules: Sequence[str] = ("0",), **options: Any) -> xr.Dataset:
    """Maps of the formula and instance of some rules; the instance has two tokens fewer."""
    maps = {}
    for number, rule in enumerate(rules):
        for form, tokens in (("formula", TOKENS), ("instance", TOKENS[:3])):
            shape = (3, LAYERS, len(tokens))
            effect = (1 + number) * np.sin(np.arange(np.prod(shape))).reshape(shape) / 4
            maps[rule, form] = prompt_map(effect, tokens=tokens, **options)
    return effects_schema.concat(maps)


def hand_profile() -> xr.Dataset:
    """Three rules; MLP peaks of the formula at layers 1, 1 and 2, of the instance at 3 (one rule
    only)."""
    profile = profile_of(joined(("0", "1", "2")))
    effect = np.zeros((3, 2, 3, profile.sizes["role"], LAYERS))
    effect[0, 0, 1, :, 1] = effect[1, 0, 1, :, 1] = effect[2, 0, 1, :, 2] = 0.5
    effect[:, 1] = np.nan
    effect[1, 1] = [0.0, 0.1, 0.2, 0.4]
    dims = ("form", "component", "role", "layer")
    with_data = ~np.isnan(effect)
    aie = np.where(with_data, effect, 0).sum(0) / with_data.sum(0)
    return profile.assign(
        effect=(("rule", *dims), effect),
        aie=(dims, aie),
        lower=(dims, aie - 0.1),
        upper=(dims, aie + 0.1),
        n=(dims[:-1], with_data[..., 0].sum(0)),
    )


def selection(**instance: object) -> LayerSelection:
    supported = {
        "name": "formula",
        "forms": ("formula",),
        "layers": (1, 2),
        "score": 0.25,
        "lower": 0.1,
        "upper": 0.4,
        "stability": 0.83,
        "n_rules": 3,
    }
    weak = {
        "name": "instance", "forms": ("instance",), "layers": (0, 3), "score": 0.2, "lower": -0.1,
        "upper": 0.4, "stability": 0.31, "n_rules": 2, "supported": False, "reason": "weak",
        "objections": (
            "The interval reaches zero.", "Not significant: p = 0.250 with 2 rules (5 needed)."
        ),
    }  # fmt: skip
    return window_selection(LAYERS, supported, {**weak, **instance})


METRICS = ("reliability", "locality", "instance_portability")


def hand_scores(rules: int = 3) -> xr.Dataset:
    """Rule r, form f: reliability from 0.1 r to 0.2 r + 0.1 f; portability for the instance
    only."""
    score = np.full((2, rules, 2, len(METRICS), 2, 2), np.nan)
    for rule in range(rules):
        for form in range(2):
            score[0, rule, form, 0, 0] = [0.1 * rule, 0.2 * rule + 0.1 * form]
            score[0, rule, form, 1, 0] = [1.0, 0.9]
            score[1, rule, form, 0, 0] = [0.1 * rule, 0.5]
        score[0, rule, 1, 2, 0] = [0.0, 0.6]
    dims = ("editor", "rule", "form", "metric", "mode", "phase")
    return xr.Dataset(
        {"score": (dims, score), "n_items": (dims, np.isfinite(score).astype(int))},
        coords={
            "editor": ["dmle", "in_context"],
            "rule": [f"r_{i}" for i in range(rules)],
            "form": ["formula", "instance"],
            "metric": list(METRICS),
            "mode": ["token_accuracy", "kl"],
            "phase": ["pre", "post"],
        },
    )


def by_gid(ax: Axes, gid: str) -> list:
    return [child for child in ax.get_children() if child.get_gid() == gid]


def caption_of(ax: Axes) -> str:
    (note,) = by_gid(ax, "caption")
    return " ".join(note.get_text().replace("\u00a0", " ").split())


def cells_of(ax: Axes) -> np.ndarray:
    """Values of the cells of a heat map, masked where there are none."""
    cells = ax.collections[0].get_array()
    assert cells is not None
    return np.ma.asarray(cells)


def left_title(ax: Any) -> Text:
    """The title at the left itself, of which `get_title` gives the words."""
    return ax._left_title


def figure_of(ax: Axes) -> Figure:
    """The whole figure that axes are in."""
    assert isinstance(ax.figure, Figure)
    return ax.figure


# Effect maps


def test_heat_map_shows_the_indirect_effect_of_each_token_and_layer() -> None:
    effect = np.linspace(-0.4, 1.2, 3 * LAYERS * 5).reshape(3, LAYERS, 5)
    ax = effect_map.draw_effect_map(prompt_map(effect), "mlp")
    np.testing.assert_allclose(cells_of(ax).reshape(5, LAYERS), effect[1].T, atol=1e-6)
    assert ax.yaxis_inverted()  # reading order: the first token on top
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("sign", [1, -1])
def test_colour_scale_is_symmetric_about_zero(sign: int) -> None:
    effect = np.zeros((3, LAYERS, 5))
    effect[1, 2, 3] = sign * 0.7
    ax = effect_map.draw_effect_map(prompt_map(effect), "mlp")
    np.testing.assert_allclose(ax.collections[0].get_clim(), (-0.7, 0.7), atol=1e-6)


def test_colour_scale_of_a_map_of_zeros_has_a_length() -> None:
    ax = effect_map.draw_effect_map(prompt_map(np.zeros((3, LAYERS, 5))), "mlp")
    assert ax.collections[0].get_clim() == (-1, 1)


def test_corrupted_tokens_are_starred_and_bold_and_others_are_not() -> None:
    labels = effect_map.draw_effect_map(prompt_map(), "mlp").get_yticklabels()
    assert [label.get_text() for label in labels] == ["The", "area*", "↵", "$x_1$*", "="]
    assert [label.get_fontweight() for label in labels] == [
        "normal",
        "bold",
        "normal",
        "bold",
        "normal",
    ]


def test_dollar_signs_of_tokens_and_answers_are_drawn_literally() -> None:
    ax = effect_map.draw_effect_map(prompt_map(), "mlp")
    figure_of(ax).draw_without_rendering()
    texts = [ax.get_yticklabels()[3], left_title(ax)]
    assert all("$" in text.get_text() and not text.get_parse_math() for text in texts)
    assert "“$A = x_1^2$” (true)" in ax.get_title(loc="left")


def test_untraced_tokens_are_left_out_and_counted() -> None:
    effect = np.linspace(-0.4, 1.2, 3 * LAYERS * 5).reshape(3, LAYERS, 5)
    ax = effect_map.draw_effect_map(prompt_map(effect, untraced=[0, 2]), "mlp")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["area*", "$x_1$*", "="]
    np.testing.assert_allclose(cells_of(ax).reshape(3, LAYERS), effect[1].T[[1, 3, 4]], atol=1e-6)
    assert "3 of 5 tokens traced (dashes: gaps)" in caption_of(ax)
    dashes = ax.collections[1]
    assert isinstance(dashes, LineCollection)
    gaps = dashes.get_segments()
    assert [segment[0][1] for segment in gaps] == [1]  # "area" and "$x_1$" are no neighbours


def test_partly_traced_token_keeps_its_row_with_masked_cells() -> None:
    effect = np.full((3, LAYERS, 5), 0.2)
    effect[1, 0, 0] = np.nan
    cells = cells_of(effect_map.draw_effect_map(prompt_map(effect), "mlp")).reshape(5, LAYERS)
    assert np.argwhere(np.ma.getmaskarray(cells)).tolist() == [[0, 0]]


def test_caption_states_total_effect_and_its_standard_error() -> None:
    # corrupted -3.1 and -2.9: TE = -1 - (-3) = 2; SE = 0.1414 / sqrt(2) = 0.10.
    caption = caption_of(effect_map.draw_effect_map(prompt_map(noise=0.1), "mlp"))
    assert "total effect 2.00 ± 0.10 nats per answer token" in caption
    assert "2 samples" in caption


def test_prompt_whose_effect_is_within_noise_is_marked() -> None:
    axes = [effect_map.draw_effect_map(prompt_map(noise=noise), "mlp") for noise in (0.1, 3.0)]
    clear, noisy = (ax.get_title(loc="left") for ax in axes)
    assert "TRACEABLE" not in clear
    assert "NOT TRACEABLE" in noisy.replace("\n", " ")


def test_untraced_component_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=r"no component 'head'; choose from \['resid', 'mlp', 'attn'\]"
    ):
        effect_map.draw_effect_map(prompt_map(), "head")
    with pytest.raises(ValueError, match="no token of 'mlp' was traced"):
        effect_map.draw_effect_map(prompt_map(untraced=range(5)), "mlp")


def test_long_tokens_and_answers_leave_room_for_the_map() -> None:
    tokens = [" antidisestablishmentarianism_and_more", " area", " x"]
    ax = effect_map.draw_effect_map(prompt_map(tokens=tokens), "mlp")
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "antidisestablis…",
        "area*",
        "x",
    ]
    fig = figure_of(ax)
    for _ in range(2):
        fig.draw_without_rendering()
    width = fig.bbox.width
    for text in (*ax.get_yticklabels(), left_title(ax)):
        box = text.get_window_extent()
        assert box.x0 >= 0 and box.x1 <= width


def test_layers_of_a_deep_model_get_few_ticks() -> None:
    effect = np.random.default_rng(0).normal(size=(1, 80, 5))
    deep = prompt_map(effect, components=["mlp"])
    labels = [
        int(label.get_text()) for label in effect_map.draw_effect_map(deep, "mlp").get_xticklabels()
    ]
    assert labels == list(range(0, 80, 10))


def test_effect_panel_shares_one_scale_over_forms_and_components() -> None:
    data = joined()
    fig = effect_map.effect_panel(data, "0")
    maps = [ax for ax in fig.axes if ax.get_xlim() == (0, LAYERS)]
    assert len(maps) == 6
    largest = np.nanmax(np.abs(effects_schema.indirect_effect(data).values))
    for ax in maps:
        np.testing.assert_allclose(ax.collections[0].get_clim(), (-largest, largest), rtol=1e-6)
    headings = [note.get_text() for ax in maps for note in by_gid(ax, "heading")]
    assert [heading.split(":")[0] for heading in headings] == ["formula", "instance"]
    assert len(fig.axes) == 7  # and one colour bar


def test_effect_panel_names_forms_without_a_map() -> None:
    partial = effects_schema.concat(
        {("0", "formula"): prompt_map(), ("1", "instance"): prompt_map()}
    )
    fig = effect_map.effect_panel(partial, "0")
    assert fig.get_suptitle() == "Rule: 0 (not traced: instance)"
    with pytest.raises(ValueError, match=r"no maps of rule '7'; traced rules are \['0', '1'\]"):
        effect_map.effect_panel(partial, "7")


# Style


def test_characters_without_a_glyph_become_escapes() -> None:
    assert style.visible(" 周长") == "\\u5468\\u957f"
    assert style.visible("π ≤ �") == "π ≤ �"
    assert style.visible("\x00a\tb") == "\\u0000a⇥b"


def test_chinese_prompt_draws_without_a_missing_glyph_warning(tmp_path: Path) -> None:
    ax = effect_map.draw_effect_map(prompt_map(tokens=[" 周长", "\u200b", "$"]), "mlp")
    assert style.save(figure_of(ax), tmp_path / "map")  # warnings are errors


def test_style_leaves_global_settings_and_pyplot_untouched(tmp_path: Path) -> None:
    before = dict(rcParams)
    style.save(effect_map.effect_panel(joined(), "0"), tmp_path / "panel")
    assert dict(rcParams) == before
    assert plt.get_fignums() == []


def test_saved_files_are_reproducible_with_embedded_fonts(tmp_path: Path) -> None:
    first, second = (
        style.save(effect_map.effect_panel(joined(), "0"), tmp_path / name) for name in "ab"
    )
    assert [path.name for path in first] == ["a.pdf", "a.png"]
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    pdf = first[0].read_bytes()
    assert b"/FontFile2" in pdf
    assert b"CreationDate" not in pdf
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pdf", "a.png", "b.pdf", "b.png"]


def test_colours_stay_with_known_names_and_differ_between_unknown_ones() -> None:
    alone, among = (
        style.editor_colours(["memit"]),
        style.editor_colours(["x", "dmle", "memit", "y"]),
    )
    assert alone["memit"] == among["memit"]
    assert len(set(among.values())) == 4
    many = style.editor_colours(f"editor {i}" for i in range(20))
    assert len(set(many.values())) == 20


# Profiles


def test_profile_lines_and_bands_are_the_profile_values() -> None:
    profile = hand_profile()
    ax = layer_profile.draw_layer_profile(profile, "mlp", "rule_word")
    formula = next(line for line in ax.lines if line.get_label() == "formula (n = 3)")
    np.testing.assert_allclose(np.asarray(formula.get_ydata()), [0, 1 / 3, 1 / 6, 0])
    band = np.asarray(ax.collections[0].get_paths()[0].vertices)
    assert {round(float(y), 4) for _, y in band} >= {round(1 / 3 - 0.1, 4), round(1 / 3 + 0.1, 4)}
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "formula (n = 3)",
        "instance (n = 1)",
    ]
    assert ax.get_ylabel() == "average indirect effect\n(nats per answer token)"
    assert ax.get_title(loc="left") == "MLP output (3 layers), rule words"


def test_strip_shows_where_each_rule_peaks_and_how_many() -> None:
    ax = layer_profile.draw_layer_profile(hand_profile(), "mlp", "rule_word")
    (strip,) = ax.child_axes
    instance, formula = strip.collections  # drawn bottom up
    assert np.asarray(formula.get_offsets())[:, 0].tolist() == [1, 2]
    assert isinstance(formula, PathCollection)
    assert formula.get_sizes()[0] == 2 * formula.get_sizes()[1]
    assert np.asarray(instance.get_offsets())[:, 0].tolist() == [3]


def test_profile_without_data_is_refused_with_the_roles_that_have_some() -> None:
    with pytest.raises(ValueError, match=r"no traceable rule has role 'number'.*'rule_word'"):
        layer_profile.draw_layer_profile(profile_of(joined()), "mlp", "number")
    with pytest.raises(ValueError, match="no component 'head'"):
        layer_profile.draw_layer_profile(hand_profile(), "head", "rule_word")


def test_profile_panel_shows_only_roles_with_data_and_counts_rules() -> None:
    profile = profile_of(joined(("0", "1")))
    fig = layer_profile.profile_panel(profile)
    roles = ["prefix", "subject_last", "rule_word", "after", "last", "lookup"]
    assert layer_profile.roles_with_data(profile) == roles
    titles = [ax.get_title() for ax in fig.axes]
    counts = [
        "n = 2/0",
        "n = 2/2",
        "n = 2/0",
        "n = 2/2",
        "n = 2/2",
        "n = 2/2",
    ]  # the instance has three tokens
    assert titles[len(roles) :] == counts + counts
    assert titles[0] == "before\nthe subject\nn = 2/0"


def test_profile_of_one_rule_says_that_there_is_no_interval() -> None:
    ax = layer_profile.draw_layer_profile(profile_of(joined()), "mlp", "lookup")
    assert (
        "One rule, so no interval over rules. Left out as not traceable: 0 of 2 prompts."
        in caption_of(ax)
    )


# Selection


def test_shading_covers_exactly_the_chosen_layers() -> None:
    figure = layer_selection.selection_panel(hand_profile(), selection())
    formula, instance = figure.axes
    spans = [
        [(p.get_x(), p.get_x() + p.get_width()) for p in by_gid(ax, "chosen")]
        for ax in (formula, instance)
    ]
    assert spans == [[(0.5, 2.5)], [(-0.5, 0.5), (2.5, 3.5)]]


def test_unsupported_selection_is_hatched_and_said_in_words() -> None:
    figure = layer_selection.selection_panel(hand_profile(), selection())
    formula, instance = figure.axes
    assert "Not" not in formula.get_title(loc="left")
    assert by_gid(formula, "chosen")[0].get_hatch() is None
    assert (
        instance.get_title(loc="left")
        == "instance: layers 0, 3\nscore 0.20 [−0.10, 0.40] (n = 2 rules)\nstability 0.31 (between"
        " halves of the rules)\nThe interval reaches zero. Not significant:\np = 0.250 with 2 rules"
        " (5 needed)."
    )
    assert by_gid(instance, "chosen")[0].get_hatch() == "////"
    assert to_rgba(left_title(instance).get_color()) == to_rgba(style.WARNING_COLOUR)


def test_objections_are_said_once() -> None:
    ax = layer_selection.draw_layer_selection(
        hand_profile(), selection(objections=("One.", "Two.")), "instance"
    )
    assert ax.get_title(loc="left").endswith("halves of the rules)\nOne. Two.")
    # A selection that does not list its objections still says that it has some.
    ax = layer_selection.draw_layer_selection(hand_profile(), selection(objections=()), "instance")
    assert ax.get_title(loc="left").endswith("\nNot supported. weak")


def test_selection_from_one_rule_shows_no_interval_and_no_stability() -> None:
    only = ("There is only one rule.",)
    one = selection(n_rules=1, lower=0.2, upper=0.2, stability=1.0, objections=only)
    ax = layer_selection.draw_layer_selection(hand_profile(), one, "instance")
    assert (
        ax.get_title(loc="left")
        == "instance: layers 0, 3\nscore 0.20 (n = 1 rule)\nThere is only one rule."
    )


def test_layers_given_by_hand_for_untraced_forms_are_still_shown() -> None:
    by_hand = selection(
        score=None, lower=None, upper=None, stability=None, supported=True, reason="given by hand"
    )
    ax = layer_selection.draw_layer_selection(
        hand_profile().sel(form=["formula"]), by_hand, "instance"
    )
    assert (
        ax.get_title(loc="left")
        == "instance: layers 0, 3\ngiven by hand\nno traceable rule: instance"
    )
    assert ax.get_xlim() == (-0.5, LAYERS - 0.5)


def test_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no group 'x'; choose from \['formula', 'instance'\]"):
        layer_selection.draw_layer_selection(hand_profile(), selection(), "x")


# Scores


def dots(ax: Axes, gid: str) -> dict[float, float]:
    """Score by height of the markers of one kind."""
    return {
        round(float(line.get_ydata()[0]), 6): float(line.get_xdata()[0]) for line in by_gid(ax, gid)
    }


def test_dots_stand_at_the_mean_over_rules_of_the_mean_over_forms() -> None:
    ax = edit_scores.draw_edit_scores(hand_scores())
    labels = [label.get_text().split("\n")[0] for label in ax.get_yticklabels()]
    assert labels == ["reliability", "portability", "locality"]
    after, before = dots(ax, "after"), dots(ax, "before")
    # dmle (offset -0.3): rules 0.05, 0.25, 0.45 over forms; in_context (offset 0.3): always 0.5.
    assert after == pytest.approx({-0.3: 0.25, 0.3: 0.5, 0.7: 0.6, 1.7: 0.9})
    assert before == pytest.approx({-0.3: 0.1, 0.3: 0.1, 0.7: 0.0})  # none for locality
    assert ax.get_xlim() == (-0.03, 1.03)


def test_each_rule_counts_once_however_many_forms_it_has() -> None:
    scores = hand_scores(2)
    scores["score"].loc[{"rule": "r_0", "form": "formula", "metric": "reliability"}] = np.nan
    # dmle: r_0 has only the instance, 0.1; r_1 has 0.2 and 0.3.
    rules = per_rule(scores, "token_accuracy").sel(
        editor="dmle", metric="reliability", phase="post"
    )
    np.testing.assert_allclose(rules, [0.1, 0.25])


def test_intervals_equal_a_bootstrap_written_as_a_loop() -> None:
    values = np.array([0.05, 0.25, 0.45, np.nan])
    means = []
    for counts in resample_counts(4, edit_scores.RESAMPLES, 3).astype(int):
        kept = [
            value
            for value, count in zip(values, counts, strict=True)
            for _ in range(count)
            if not np.isnan(value)
        ]
        if kept:
            means.append(sum(kept) / len(kept))
    found = edit_scores.intervals_of(
        xr.DataArray([values], dims=("editor", "rule"), coords={"editor": ["x"]}), seed=3
    )
    found = found.sel(editor="x")
    np.testing.assert_allclose([found["lower"], found["upper"]], np.percentile(means, [2.5, 97.5]))
    assert float(found["mean"]) == pytest.approx(0.25)


def test_many_arms_have_a_row_each_and_every_metric_its_axes() -> None:
    scores = hand_scores().reindex(metric=["reliability", "locality"])
    fig = edit_scores.scores_panel(scores)
    reliability, locality = fig.axes
    assert [label.get_text() for label in reliability.get_yticklabels()] == ["dmle", "in_context"]
    (line,) = by_gid(reliability, "after")
    np.testing.assert_allclose(line.get_xydata(), [[0.25, 0], [0.5, 1]])
    (before,) = by_gid(reliability, "before")
    assert before.get_xdata()[0] == pytest.approx(0.1)
    assert by_gid(locality, "before") == []
    assert reliability.get_xlim() == locality.get_xlim() == (-0.04, 1.04)


def test_differences_are_paired_over_the_rules_that_both_have() -> None:
    scores = hand_scores()
    scores["score"].loc[{"editor": "in_context", "rule": "r_2"}] = np.nan
    fig = edit_scores.difference_panel(scores, reference="in_context")
    (ax,) = fig.axes  # in_context has neither portability nor locality
    (line,) = by_gid(ax, "after")
    np.testing.assert_allclose(
        line.get_xydata(), [[(0.05 - 0.5 + 0.25 - 0.5) / 2, 0]]
    )  # not over the third rule
    (bars,) = by_gid(ax, "interval")
    np.testing.assert_allclose(
        bars.get_paths()[0].vertices[:, 0], [-0.45, -0.25]
    )  # one rule, or the other
    assert fig.get_suptitle() == "difference from in_context (better: right)"
    low, high = ax.get_xlim()
    assert low == -high
    with pytest.raises(ValueError, match="reference 'x' has no scores"):
        edit_scores.difference_panel(scores, reference="x")
    with pytest.raises(ValueError, match="a difference needs two arms"):
        edit_scores.difference_panel(scores.sel(editor=["dmle"]))


def test_intervals_are_the_same_in_every_call_and_enclose_the_mean() -> None:
    first, second = (edit_scores.draw_edit_scores(hand_scores()) for _ in range(2))
    spans = [[line.get_xdata() for line in by_gid(ax, "interval")] for ax in (first, second)]
    np.testing.assert_array_equal(spans[0], spans[1])
    low, high = spans[0][0]
    assert 0.05 <= low < 0.25 < high <= 0.45


def test_one_rule_has_no_interval_and_the_caption_says_so() -> None:
    ax = edit_scores.draw_edit_scores(hand_scores(1))
    assert by_gid(ax, "interval") == []
    assert caption_of(ax).startswith("One rule, so no interval over rules.")


def test_caption_counts_rules_by_metric_where_they_differ() -> None:
    assert caption_of(edit_scores.draw_edit_scores(hand_scores())).startswith("n = 3 rules.")
    scores = hand_scores()
    scores["score"].loc[{"rule": "r_0", "metric": "instance_portability"}] = np.nan
    assert caption_of(edit_scores.draw_edit_scores(scores)).startswith(
        "n rules: Rel. 3, IP 2, Loc. 3."
    )


def test_mode_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="mode 'kl' has no scores"):
        edit_scores.draw_edit_scores(hand_scores(), "kl")
    with pytest.raises(ValueError, match=r"no mode 'x'; choose from \['token_accuracy', 'kl'\]"):
        score_tables.score_table(hand_scores(), "x")


def test_score_table_gives_before_and_after_per_rule_and_mean() -> None:
    table = score_tables.score_table(hand_scores(2)).markdown.splitlines()
    assert table[0] == "| Editor | Rule | Rel. | IP | Loc. |"
    assert table[2] == "| dmle | r\\_0 | 0.00 → 0.05 | 0.00 → 0.60 | 0.90 |"
    assert table[3] == "| dmle | r\\_1 | 0.10 → 0.25 | 0.00 → 0.60 | 0.90 |"
    assert table[4] == "| dmle | mean of 2 | 0.05 → 0.15 | 0.00 → 0.60 | 0.90 |"
    assert table[7] == "| in\\_context | mean of 2 | 0.05 → 0.50 | – | – |"
    means = score_tables.score_table(hand_scores(2), each_rule=False).markdown.splitlines()
    assert means[2:4] == [table[4], table[7]]


def test_latex_table_is_booktabs_with_escaped_names() -> None:
    latex = score_tables.score_table(hand_scores(2)).latex
    assert latex.startswith(
        "\\begin{tabular}{llccc}\n\\toprule\nEditor & Rule & Rel. & IP & Loc. \\\\\n\\midrule\n"
    )
    assert "dmle & r\\_0 & 0.00 $\\to$ 0.05 & 0.00 $\\to$ 0.60 & 0.90 \\\\\n" in latex
    assert latex.endswith("\\bottomrule\n\\end{tabular}\n")
    assert not re.search(r"(?<!\\)_", latex)


def answers() -> pd.DataFrame:
    row = {
        "editor": "dmle",
        "rule": "0",
        "form": "formula",
        "metric": "reliability",
        "prompt": "A | B\nis",
        "target_new": "$x_1$",
        "target_true": "NA",
        "before": "<b>",
        "after": "12",
    }
    return pd.DataFrame([row, {**row, "form": "instance"}])


def test_answer_table_keeps_one_line_per_answer_whatever_the_text() -> None:
    table = score_tables.before_after_table(answers())
    lines = table.splitlines()
    assert len(lines) == 4
    assert (
        lines[2]
        == "| dmle | 0 | formula | reliability | A \\| B↵is | NA | \\$x\\_1\\$ | \\<b\\> | 12 |"
    )
    assert score_tables.before_after_table(answers(), rows=1).endswith("1 of 2 answers shown.\n")
    with pytest.raises(ValueError, match=r"lack the columns \['before'\]"):
        score_tables.before_after_table(answers().drop(columns="before"))


# Everything


@pytest.mark.slow
def test_draw_all_draws_every_figure_and_table_of_a_run(tmp_path: Path) -> None:
    data = joined(("0", "rule a/b"))
    effects_schema.save(data, tmp_path / "effects.nc")
    effects_schema.save(profile_of(data), tmp_path / "profile.nc")
    effects_schema.save(hand_scores(), tmp_path / "scores.nc")
    selection().save(tmp_path / "selection.json")
    rows = answers()
    save_records(tmp_path / "answers.json", list(rows.columns), rows.to_dict("records"))
    written = paper.draw_all(tmp_path).written
    figures = {
        "effect-panel-0",
        "effect-panel-rule+20+a+2f+b",
        "effect-map-formula",
        "effect-map-instance",
        "profile-panel",
        "layer-profile",
        "layer-selection",
        "edit-scores-token_accuracy",
        "edit-differences-token_accuracy",
        "before-after-dmle",
        "before-after-in_context",
    }
    tables = {
        "scores-token_accuracy.md", "scores-token_accuracy.tex", "scores-token_accuracy-mean.md",
        "scores-token_accuracy-mean.tex", "before-after.md",
    }  # fmt: skip
    expected = {f"figures/{stem}.{kind}" for stem in figures for kind in ("pdf", "png")}
    assert {path.relative_to(tmp_path).as_posix() for path in written} == expected | {
        f"tables/{t}" for t in tables
    }
    assert all(path.stat().st_size > 100 for path in written)
    table = (tmp_path / "tables" / "before-after.md").read_text(encoding="utf-8")
    assert "| NA |" in table  # text, not a missing value


def test_draw_all_draws_what_there_is(tmp_path: Path) -> None:
    effects_schema.save(joined(("0", "1")), tmp_path / "effects.nc")
    done = paper.draw_all(tmp_path, max_rules=1)
    stems = {path.stem for path in done.written}
    assert done.left_out == ["effect panels of 1 of 2 rules"]
    assert stems == {"effect-panel-0", "effect-map-formula", "effect-map-instance"}


def test_draw_all_of_an_empty_folder_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"run `dmle trace`.*`dmle evaluate` on it first"):
        paper.draw_all(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_example_rule_is_clearest_in_its_weakest_form() -> None:
    # Total effects are clean + 3. Weakest forms: a 1, b 0, c 2; the mean would choose b, the median
    # b.
    clean = {("a", "f"): -2.0, ("a", "d"): 1.5, ("a", "i"): -1.5, ("b", "f"): 9.5, ("b", "d"): 3.5}
    clean |= {("b", "i"): -3.0, ("c", "f"): -1.0, ("c", "d"): -1.0, ("c", "i"): -1.0}
    maps = {key: prompt_map().assign(clean=value) for key, value in clean.items()}
    assert paper.example_rule(effects_schema.concat(maps)) == "c"


def test_a_caption_says_what_was_estimated_and_that_a_trace_noises() -> None:
    item = prompt_map(untraced=[2])
    rows = effect_map.traced_positions(effects_schema.indirect_effect(item))
    assert "estimated" not in effect_map.effect_caption(item, rows)
    exact = np.zeros(item["score"].shape, bool)
    exact[:, :, :1] = True  # one of the four traced tokens
    caption = effect_map.effect_caption(
        item.assign(exact=(item["score"].dims, exact)).assign_attrs(direction="noise"), rows
    )
    assert caption.startswith(
        "noising: effect = what the clean run loses; 75% estimated; total effect"
    )
