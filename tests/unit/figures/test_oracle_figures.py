"""Oracle figures: the curve is the mean over whole rules, and the marked windows are the right
ones."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.legend import Legend

from figures import oracle
from figures.regret import draw_regret

LAYERS = 6
NAN = np.nan
# Rules in rows, windows 0-1 … 4-5 in columns; the last rule was not run everywhere.
SCORES = {
    "formula+description": [
        [0.2, 0.4, 0.6, 0.1, 0.0],
        [0.0, 0.8, 0.4, 0.1, 0.2],
        [1.0, NAN, 0.0, 1.0, 1.0],
    ],
    "instance": [[0.1, 0.2, 0.3, 0.9, 0.3], [0.3, 0.2, 0.1, 0.7, 0.3], [0.2, 0.2, 0.2, 0.5, 0.0]],
}


def sweep() -> xr.Dataset:
    return xr.Dataset(
        {"score": (("group", "rule", "window"), np.array(list(SCORES.values())))},
        coords={
            "group": np.array(list(SCORES), dtype=object),
            "rule": np.array(["a", "b", "c"], dtype=object),
            "start": ("window", np.arange(5)),
            "width": ("window", np.full(5, 2)),
        },
    )


def profile() -> xr.Dataset:
    """Formula: the layer's number; description: three times it; instance: not traced."""
    aie = np.full((3, 1, 1, LAYERS), NAN)
    aie[0, 0, 0], aie[1, 0, 0] = np.arange(LAYERS), 3 * np.arange(LAYERS)
    coords = {
        "form": np.array(["formula", "description", "instance"], dtype=object),
        "component": np.array(["mlp"], dtype=object),
        "role": np.array(["lookup"], dtype=object),
        "layer": np.arange(LAYERS),
    }
    return xr.Dataset({"aie": (tuple(coords), aie)}, coords, {"unit": "nats"})


def regret() -> pd.DataFrame:
    rows = [
        ("far", "formula+description", "0-1", 0.45, 0.4, 0.5, 5),
        ("near", "formula+description", "2-3", 0.10, -0.1, 0.3, 2),
        ("far", "instance", "4,5", 0.55, NAN, NAN, 4),
    ]
    heads = ["strategy", "group", "layers", "regret", "lower", "upper", "rank"]
    return pd.DataFrame(rows, columns=heads).assign(n_windows=5, n_rules=2)


def by_gid(ax: Axes, gid: str) -> list:
    return [child for child in ax.get_children() if child.get_gid() == gid]


def spans(ax: Axes, gid: str) -> list[tuple[float, float]]:
    return [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in by_gid(ax, gid)]


def labels(legend: Legend | None) -> list[str]:
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def test_curve_is_the_mean_over_the_rules_that_were_run_at_every_window() -> None:
    ax = oracle.draw_oracle(sweep(), profile(), "formula+description")
    (line,) = by_gid(ax, "success")
    np.testing.assert_allclose(
        line.get_xdata(), [0.5, 1.5, 2.5, 3.5, 4.5]
    )  # middles of the windows
    np.testing.assert_allclose(line.get_ydata(), [0.1, 0.6, 0.5, 0.1, 0.1])
    assert ax.get_xlim() == (-0.5, LAYERS - 0.5)
    low, high = ax.get_ylim()
    assert low < 0.0 and high > 0.8  # also the intervals, whose ends are single rules


def test_oracle_and_chosen_layers_are_shaded_and_named() -> None:
    ax = oracle.draw_oracle(sweep(), profile(), "formula+description", (0, 1, 4))
    assert spans(ax, "oracle") == [(0.5, 2.5)]
    assert spans(ax, "chosen") == [(-0.5, 1.5), (3.5, 4.5)]
    title = "formula + description (n = 2 rules)\noracle: 1–2, success 0.60\nchosen: 0–1, 4"
    assert ax.get_title(loc="left") == title
    names = ["edit success (95 % interval)", "profile (right)", "oracle window", "chosen layers"]
    assert labels(ax.get_legend()) == names
    one_of_them = oracle.draw_oracle(sweep(), profile(), "formula+description", (2, 3))
    assert one_of_them.get_title(loc="left").endswith("chosen: 2–3, success 0.50")


def test_profile_is_the_mean_over_the_forms_of_the_group_on_its_own_scale() -> None:
    ax = oracle.draw_oracle(sweep(), profile(), "formula+description")
    assert ax.figure is not None
    (right,) = [other for other in ax.figure.axes if other is not ax]
    (line,) = by_gid(right, "profile")
    np.testing.assert_allclose(line.get_ydata(), 2 * np.arange(LAYERS))
    alone = oracle.draw_oracle(sweep(), profile(), "instance")
    assert alone.figure is not None
    assert alone.figure.axes == [alone]
    assert "profile (right)" not in labels(alone.get_legend())


def test_windows_of_several_widths_are_not_joined() -> None:
    mixed = sweep().assign_coords(width=("window", [2, 2, 1, 1, 1]))
    lines = by_gid(oracle.draw_oracle(mixed, profile(), "instance"), "success")
    assert sorted(len(line.get_xdata()) for line in lines) == [2, 3]


def test_panel_has_one_scale_for_all_groups() -> None:
    fig = oracle.oracle_panel(sweep(), profile(), {"instance": (3, 4)})
    left, right = fig.axes[:2]
    assert left.get_ylim() == right.get_ylim()
    low, high = left.get_ylim()
    assert low < 0.0 and high > 0.9
    assert [spans(ax, "chosen") for ax in (left, right)] == [[], [(2.5, 4.5)]]


def test_groups_without_a_whole_rule_are_refused_or_left_out() -> None:
    holes = sweep()
    holes["score"].loc[{"group": "instance"}] = (
        holes["score"].sel(group="instance").where(holes["start"] != 2)
    )
    assert oracle.groups_with_rules(holes) == ["formula+description"]
    with pytest.raises(ValueError, match="no rule was run at every window of group 'instance'"):
        oracle.draw_oracle(holes, profile(), "instance")
    with pytest.raises(
        ValueError, match=r"no group 'x'; choose from \['formula\+description', 'instance'\]"
    ):
        oracle.draw_oracle(sweep(), profile(), "x")


def test_regret_is_drawn_by_strategy_in_the_order_of_its_mean() -> None:
    ax = draw_regret(regret())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["near", "far"]
    first, second = by_gid(ax, "regret")
    assert dict(zip(np.round(first.get_ydata(), 2), first.get_xdata(), strict=True)) == {
        0.78: 0.45,
        -0.22: 0.10,
    }
    assert dict(zip(np.round(second.get_ydata(), 2), second.get_xdata(), strict=True)) == {
        1.22: 0.55
    }
    ends = [
        tuple(path.vertices[:, 0]) for bar in by_gid(ax, "interval") for path in bar.get_paths()
    ]
    assert ends == [(0.4, 0.5), (-0.1, 0.3)]  # none where there is none
    assert labels(ax.get_legend()) == ["formula + description", "instance"]
    said = [text.get_text() for text in ax.texts]
    assert {"0-1, rank 5", "2-3, rank 2", "4,5, rank 4"} <= set(said)
    (caption,) = by_gid(ax, "caption")
    assert (
        caption.get_text()
        .replace("\n", " ")
        .startswith("n = 2 rules. Bars: bootstrap interval over rules.")
    )


def test_regret_without_columns_or_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lack the columns \['rank'\]"):
        draw_regret(regret().drop(columns="rank"))
    with pytest.raises(ValueError, match="no strategy to compare"):
        draw_regret(regret().iloc[:0])
