"""Trade-off figure: the points are the scores, and only undominated arms are joined."""

import numpy as np
import pytest
import xarray as xr

from figures.trade_off import GAINS, draw_trade_off, front, points_of

POINTS = {
    "memit": {"locality": 0.9, "instance_portability": 0.5},
    "dmle": {"locality": 0.8, "instance_portability": 0.7},
    "lost": {"locality": 0.8, "instance_portability": 0.6},
    "failed": {"locality": np.nan, "instance_portability": np.nan},
}


def test_dots_are_the_scores_and_the_front_is_joined() -> None:
    ax = draw_trade_off(POINTS, "instance_portability")
    line, *dots = ax.get_lines()
    assert np.asarray(line.get_xydata()).tolist() == [[0.8, 0.7], [0.9, 0.5]]
    assert [np.asarray(dot.get_xydata()).tolist()[0] for dot in dots] == [
        [0.9, 0.5],
        [0.8, 0.7],
        [0.8, 0.6],
    ]
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["1  memit", "2  dmle", "3  lost"]


def test_equal_points_are_both_on_the_front() -> None:
    assert front({"a": (0.5, 0.5), "b": (0.5, 0.5), "c": (0.4, 0.5)}) == {"a", "b"}


def test_no_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="no arm has both locality and instance_portability"):
        draw_trade_off({"failed": POINTS["failed"]}, "instance_portability")


def test_points_are_means_over_rules_of_means_over_forms() -> None:
    dims = ("editor", "rule", "form", "metric", "mode", "phase")
    score = np.full((1, 2, 2, 4, 1, 2), np.nan)
    score[0, 0, :, 0, 0, 1] = 0.2, 0.4  # rule one: 0.3
    score[0, 1, 0, 0, 0, 1] = 0.9  # rule two has one form: 0.9
    score[0, :, 0, 2, 0, 1] = 0.5, 0.7
    coords = {
        "editor": ["dmle"],
        "rule": ["a", "b"],
        "form": ["formula", "instance"],
        "metric": ["locality", *GAINS],
        "mode": ["token_accuracy"],
        "phase": ["pre", "post"],
    }
    points = points_of(xr.Dataset({"score": (dims, score)}, coords=coords))
    assert points["dmle"]["locality"] == pytest.approx(0.6)
    assert points["dmle"]["instance_portability"] == pytest.approx(0.6)
    assert np.isnan(points["dmle"]["rule_understanding_paraphrase"])
    without = points_of(
        xr.Dataset({"score": (dims, score)}, coords=coords).drop_sel(metric=list(GAINS))
    )
    assert without["dmle"]["locality"] == pytest.approx(0.6)
    assert np.isnan(without["dmle"]["instance_portability"])
