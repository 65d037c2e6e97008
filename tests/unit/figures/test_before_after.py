"""Dumbbells: every rule has its row, its scores and the colour of its change."""

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes

from figures import before_after
from figures.edit_scores import METRIC_NAMES

NAN = np.nan


def scores(
    before: list[float], after: list[float], modes: tuple[str, ...] = ("token_accuracy",)
) -> xr.Dataset:
    """One editor and form; reliability as given, locality 1 before and 0.5 after."""
    score = np.full((1, len(before), 1, 2, len(modes), 2), NAN)
    score[0, :, 0, 0, 0] = np.stack([before, after], axis=1)
    score[0, :, 0, 1, 0] = [1.0, 0.5]
    coords = {
        "editor": ["dmle"], "rule": [f"r_{i}" for i in range(len(before))], "form": ["formula"],
        "metric": ["reliability", "locality"], "mode": list(modes), "phase": ["pre", "post"],
    }  # fmt: skip
    return xr.Dataset({"score": (tuple(coords), score)}, coords)


def points(ax: Axes, gid: str) -> list[tuple[float, float]]:
    (line,) = [child for child in ax.lines if child.get_gid() == gid]
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata())]


def test_a_row_for_each_rule_in_the_colour_of_its_change() -> None:
    ax = before_after.draw_before_after(
        scores([0.1, 0.6, 0.3, NAN], [0.4, 0.2, 0.3, NAN]), "dmle", "reliability"
    )
    assert [label.get_text() for label in ax.get_yticklabels()] == ["r_0", "r_1", "r_2", "r_3"]
    assert (points(ax, "before better"), points(ax, "after better")) == ([(0.1, 0)], [(0.4, 0)])
    assert (points(ax, "before worse"), points(ax, "after worse")) == ([(0.6, 1)], [(0.2, 1)])
    assert points(ax, "after same") == [(0.3, 2)]  # the last rule has no score
    (bar,) = [lines for lines in ax.collections if lines.get_gid() == "better"]
    assert np.asarray(bar.get_paths()[0].vertices).tolist() == [[0.1, 0], [0.4, 0]]
    assert ax.get_xlim() == (-0.04, 1.04)
    assert ax.get_title() == "reliability\n(edited\nprompts)\nmean 0.33 → 0.30"


def test_locality_has_no_before() -> None:
    ax = before_after.draw_before_after(scores([0.1, 0.6], [0.4, 0.2]), "dmle", "locality")
    assert points(ax, "after same") == [(0.5, 0), (0.5, 1)]
    assert all(np.isnan(x) for x, _ in points(ax, "before same"))
    assert ax.get_title().endswith("mean 0.50")


def test_lower_is_better_in_divergences() -> None:
    before, after = np.array([0.1, 0.5]), np.array([0.4, 0.2])
    assert before_after.changes(before, after, "kl").tolist() == ["worse", "better"]
    assert before_after.changes(before, after, "token_accuracy").tolist() == ["better", "worse"]


def test_panel_names_the_rules_once_and_keeps_their_rows() -> None:
    fig = before_after.before_after_panel(scores([0.1, 0.6, NAN], [0.4, 0.2, NAN]), "dmle")
    fig.draw_without_rendering()
    reliability, locality = fig.axes
    assert [ax.get_title().split("\n")[0] for ax in fig.axes] == [
        METRIC_NAMES[name].split("\n")[0] for name in ("reliability", "locality")
    ]
    assert [label.get_text() for label in reliability.get_yticklabels() if label.get_visible()] == [
        "r_0",
        "r_1",
        "r_2",
    ]
    assert not any(label.get_visible() for label in locality.get_yticklabels())
    assert reliability.get_ylim() == locality.get_ylim()
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()][:4] == [
        "before the edit",
        "after the edit",
        "better",
        "worse",
    ]


def test_more_rules_than_names_fit_stand_in_the_order_of_their_change_on_one_page() -> None:
    n = 2 * before_after.MOST_NAMED
    after = np.random.default_rng(0).permutation(n) / n
    many = scores([0.5] * n, after.tolist())
    order = before_after.rules_of(many, "dmle", "token_accuracy")
    assert order == [f"r_{i}" for i in np.argsort(-after)]
    fig = before_after.before_after_panel(many, "dmle")
    assert fig.get_figheight() < 9
    ax = fig.axes[0]
    assert ax.get_yticklabels() == []
    assert ax.get_ylabel() == f"{n} rules"
    drawn = sorted(
        points(ax, "after better") + points(ax, "after worse") + points(ax, "after same"),
        key=lambda p: p[1],
    )
    np.testing.assert_allclose([x for x, _ in drawn], sorted(after, reverse=True))


def test_unknown_editors_and_metrics_are_refused() -> None:
    data = scores([0.1], [0.2])
    with pytest.raises(
        ValueError,
        match=r"editor 'x' has no scores in mode 'token_accuracy'; choose from \['dmle'\]",
    ):
        before_after.draw_before_after(data, "x", "reliability")
    with pytest.raises(ValueError, match="no score of 'generality' in mode"):
        before_after.draw_before_after(data, "dmle", "generality")
