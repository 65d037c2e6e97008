"""The figure of all models of the atlas: lines by hand, and what is left out."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from figures.atlas import atlas_panel, relative_profile, save_atlas_panel
from interp.errors import InputError
from interp.vocabulary import FORMS, LOOKUP


def profile(*effects: list[float]) -> xr.Dataset:
    """The mean effects of each form at the lookup tokens; forms without any have none."""
    n_layers = len(effects[0])
    rows = [*effects, *[[np.nan] * n_layers] * (len(FORMS) - len(effects))]
    return xr.Dataset(
        {"aie": (("form", "component", "role", "layer"), np.array(rows)[:, None, None])},
        coords={
            "form": list(FORMS),
            "component": ["mlp"],
            "role": [LOOKUP],
            "layer": np.arange(n_layers),
        },
    )


def test_a_line_is_effect_over_its_maximum_by_share_of_the_depth() -> None:
    line = relative_profile(profile([0.0, 2.0, 4.0, -1.0, 1.0]), "formula")
    assert line is not None
    np.testing.assert_array_equal(line[0], [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_array_equal(line[1], [0, 0.5, 1, -0.25, 0.25])


def test_nothing_is_drawn_without_a_positive_effect_or_the_labels() -> None:
    part = profile([-1.0, 0.0])
    assert relative_profile(part, "formula") is None  # nothing is positive
    assert relative_profile(part, "instance") is None  # nothing is known
    assert relative_profile(part, "formula", "attn") is None
    with pytest.raises(InputError, match="no model of the atlas has a profile of 'mlp'"):
        atlas_panel({"a": part})


def test_one_block_is_at_the_beginning() -> None:
    line = relative_profile(profile([3.0]), "formula")
    assert line is not None and line[0].tolist() == [0] and line[1].tolist() == [1]


def test_a_panel_for_each_form_and_a_line_for_each_model(tmp_path: Path) -> None:
    models = {"one$": profile([1.0, 2.0], [2.0, 1.0]), "two": profile([1.0, 3.0, 0.0])}
    fig = atlas_panel(models)
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert titles == ["formula", "description"]  # no model has an instance
    drawn = [[line for line in ax.get_lines() if line.get_label() != "_zero"] for ax in fig.axes]
    assert [[line.get_label() for line in lines] for lines in drawn] == [["one$", "two"], ["one$"]]
    np.testing.assert_array_equal(np.asarray(drawn[0][1].get_xdata()), [0, 0.5, 1])
    # A model keeps its colour and dashes in every panel.
    assert drawn[0][0].get_color() == drawn[1][0].get_color() != drawn[0][1].get_color()
    assert drawn[0][0].get_linestyle() != drawn[0][1].get_linestyle()
    (legend,) = fig.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one$", "two"]
    for suffix, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        save_atlas_panel(models, tmp_path / f"atlas.{suffix}")
        assert (tmp_path / f"atlas.{suffix}").read_bytes().startswith(start)
