"""`dataset.dmle`: which figure and table each kind of result leads to."""

from collections.abc import Callable

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

import figures.accessors
from figures.accessors import SCREEN_DPI
from interp.results import effects
from interp.selection.layers import LayerGroup, LayerSelection
from interp.selection.profiles import layer_profile
from tests.unit.records import window_selection

LAYERS = 4
TOKENS = (" The", " area", "$x$", " =")


def one_map(
    scale: float = 1.0, components: tuple[str, ...] = ("resid", "mlp"), noise: float = 0.1
) -> xr.Dataset:
    """Effect scale · (component + layer / 10 + position / 100) of a total of 2 nats."""
    grid = np.meshgrid(np.arange(len(components)), np.arange(LAYERS), np.arange(4), indexing="ij")
    effect = scale * (grid[0] + grid[1] / 10 + grid[2] / 100)
    corrupted = np.array([-3 - noise, -3 + noise])
    return effects.effect_map(
        effect[..., None] + corrupted,
        -1.0,
        corrupted,
        components=components,
        tokens=TOKENS,
        roles=("prefix", "rule_word", "subject_last", "last"),
        is_corrupted=(False, True, True, False),
        prompt="The area$x$ =",
        answer=" <b>",
        attrs={"model": "toy", "window": 1},
    )


def joined() -> xr.Dataset:
    weak, strong = one_map(0.1), one_map(0.2).assign(clean=2.0)
    return effects.concat(
        {("weak", "formula"): weak, ("strong", "formula"): strong, ("strong", "instance"): strong}
    )


def scores(editors: int = 2) -> xr.Dataset:
    dims = ("editor", "rule", "form", "metric", "mode", "phase")
    score = np.full((editors, 2, 1, 3, 2, 2), np.nan)
    for editor in range(editors):
        for rule in range(2):
            score[editor, rule, 0, 0, 0] = [
                0.1 * rule,
                0.5 + 0.1 * editor + 0.2 * rule,
            ]  # reliability
            score[editor, rule, 0, 1, 0] = [0.0, 0.3]  # portability
            score[editor, rule, 0, 2, 0] = [1.0, 0.9]  # locality
    score[0, :, 0, 0, 1] = [[0.0, 0.0], [0.0, 1.0]]
    return xr.Dataset(
        {"score": (dims, score)},
        {
            "editor": [f"editor-{i}" for i in range(editors)],
            "rule": ["a", "b"],
            "form": ["formula"],
            "metric": ["reliability", "instance_portability", "locality"],
            "mode": ["token_accuracy", "exact"],
            "phase": ["pre", "post"],
        },
        {"schema": "dmle.scores/1"},
    )


def selection() -> LayerSelection:
    group = LayerGroup(name="formula", forms=("formula",), layers=(1, 2), score=0.2, n_rules=2)
    return window_selection(LAYERS, group)


def titles(figure: Figure) -> list[str]:
    return [
        ax.get_title(loc=where)
        for ax in figure.axes
        for where in ("left", "center")
        if ax.get_title(loc=where)
    ]


def maps_of(figure: Figure) -> list[np.ndarray]:
    """Cells of the heat maps, shape (token, layer)."""
    shown = [ax for ax in figure.axes if ax.get_xlim() == (0, LAYERS) and ax.yaxis_inverted()]
    return [np.asarray(ax.collections[0].get_array()).reshape(-1, LAYERS) for ax in shown]


def test_one_map_shows_all_components_or_one() -> None:
    item = one_map()
    both, one = item.dmle.plot(), item.dmle.plot(component="resid")
    assert [t.split("\n")[0] for t in titles(both)] == ["residual stream", "MLP output (1 layer)"]
    expected = effects.indirect_effect(item).sel(component="resid").transpose("pos", "layer").values
    (cells,) = maps_of(one)
    np.testing.assert_allclose(cells, expected, atol=1e-6)


def test_one_of_several_metrics_can_be_chosen() -> None:
    item = one_map()
    score = np.stack([item["score"].values, 2 * item["score"].values])
    two = effects.effect_map(
        score,
        np.array([-1.0, -2.0]),
        np.stack([item["corrupted"].values, 2 * item["corrupted"].values]),
        components=("resid", "mlp"),
        tokens=TOKENS,
        roles=item["role"].values.tolist(),
        is_corrupted=item["is_corrupted"].values.tolist(),
        prompt="p",
        answer="a",
        attrs={"window": 1},
        metrics={"mean_log_prob": "nats", "sum_log_prob": "nats"},
    )
    (first,), (second,) = (
        maps_of(two.dmle.plot(component="mlp", metric=m)) for m in (None, "sum_log_prob")
    )
    np.testing.assert_allclose(second, 2 * first, atol=1e-5)


def test_joined_maps_show_the_clearest_rule_another_rule_or_one_form() -> None:
    data = joined()
    assert data.dmle.plot().get_suptitle() == "Rule: strong"
    assert data.dmle.plot(rule="weak").get_suptitle() == "Rule: weak (not traced: instance)"
    assert (
        len(maps_of(data.dmle.plot())) == 4 and len(maps_of(data.dmle.plot(component="mlp"))) == 2
    )
    (cells,) = maps_of(data.dmle.plot(rule="weak", form="formula", component="mlp"))
    np.testing.assert_allclose(cells[1], 0.1 * (1 + np.arange(LAYERS) / 10 + 0.01), atol=1e-6)
    with pytest.raises(ValueError, match="no map for rule 'weak', form 'instance'"):
        data.dmle.plot(rule="weak", form="instance")


def test_a_profile_shows_everything_one_role_or_a_selection() -> None:
    profile = layer_profile(joined())
    assert len(profile.dmle.plot().axes) > 2
    one = profile.dmle.plot(component="mlp")
    assert titles(one) == ["MLP output (1 layer), lookup tokens"]
    (line,) = [
        line for line in one.axes[0].get_lines() if str(line.get_label()).startswith("formula")
    ]
    np.testing.assert_allclose(
        line.get_ydata(), profile["aie"].sel(form="formula", component="mlp", role="lookup")
    )
    assert titles(profile.dmle.plot(role="last")) == ["MLP output (1 layer), last prompt token"]
    (title,) = titles(profile.dmle.plot(selection=selection()))
    assert title.startswith("formula: layers 1–2")
    with pytest.raises(ValueError, match="leave these two out"):
        profile.dmle.plot(selection=selection(), role="last")


def test_scores_show_the_chosen_mode_or_the_trade_off() -> None:
    data = scores()
    after = [
        line
        for line in data.dmle.plot(mode="exact").axes[0].get_lines()
        if line.get_gid() == "after"
    ]
    assert [float(line.get_xdata()[0]) for line in after] == [0.5]  # one editor, rules 0 and 1
    ax = data.dmle.plot(against="instance_portability").axes[0]
    assert ax.get_xlabel().startswith("locality") and ax.get_ylabel().startswith("portability")
    assert (
        len(scores(7).dmle.plot().axes) == 3
    )  # a column for each metric: too many editors for colours


def test_score_table_is_the_mean_over_rules_before_and_after() -> None:
    table = scores().dmle.table().set_index(["editor", "metric"])
    reliability = table.xs("reliability", level="metric")
    np.testing.assert_allclose(reliability["before"], 0.05)
    np.testing.assert_allclose(reliability["after"], [0.6, 0.7])
    assert np.isnan(table.loc[("editor-0", "locality"), "before"]) and (table["rules"] == 2).all()
    assert scores().dmle.table(mode="exact")["after"].tolist() == [0.5]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (one_map, "The area$x$ = →  &lt;b&gt;"),
        (lambda: one_map(noise=3.0), "NOT TRACEABLE"),
        (joined, "Effect maps of 3 prompts, 3 of them traceable"),
        (
            lambda: layer_profile(joined()),
            "Layer profile of 2 rules at lookup tokens (subject_last rule_word)",
        ),
        (scores, "share of answer tokens right"),
    ],
    ids=["map", "untraceable", "maps", "profile", "scores"],
)
def test_a_result_shows_its_table_in_a_notebook(make: Callable[[], xr.Dataset], said: str) -> None:
    data = make()
    shown = data.dmle._repr_html_()
    assert said in shown and "<b></" not in shown
    assert shown.count("<tr>") == 1 + len(data.dmle.table())


def test_figures_get_a_resolution_for_the_screen_and_stay_unknown_to_pyplot() -> None:
    from matplotlib import pyplot as plt

    assert one_map().dmle.plot().get_dpi() == SCREEN_DPI
    assert plt.get_fignums() == []


def test_an_unknown_schema_is_refused_with_the_known_ones() -> None:
    for attrs in ({}, {"schema": "dmle.sweep/1"}):
        data = xr.Dataset(attrs=attrs)
        with pytest.raises(
            ValueError, match=r"from dmle\.effects, dmle\.profile, dmle\.scores: load one with"
        ):
            data.dmle.plot()
        with pytest.raises(ValueError, match="has the schema"):
            data.dmle.table()


def test_an_option_of_another_kind_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        TypeError, match="no option 'mode' for an effect map; there are metric, component"
    ):
        one_map().dmle.plot(mode="exact")
    with pytest.raises(TypeError, match="no option 'role' for edit scores; there are mode"):
        scores().dmle.table(role="last")


def test_every_kind_is_registered_under_a_schema_that_the_packages_write() -> None:
    from editing.evaluation.evaluate import SCHEMA as SCORES
    from interp.selection.profiles import SCHEMA as PROFILE

    written = {schema.partition("/")[0] for schema in (effects.SCHEMA, PROFILE, SCORES)}
    assert {name.partition(" ")[0] for name in figures.accessors.KINDS} == written
