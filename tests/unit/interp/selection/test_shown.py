"""What notebooks show of layer selections and profiles."""

import numpy as np
import pandas as pd
import xarray as xr

from interp.results import effects
from interp.selection import shown
from interp.selection.layers import LayerGroup, LayerSelection
from interp.selection.profiles import layer_profile
from tests.unit.html_reading import EVIL, Reader, assert_is_text, one_map


def selection(**changes: object) -> LayerSelection:
    groups = (
        LayerGroup(
            name="formula+description",
            forms=("formula", "description"),
            layers=(2, 3),
            score=0.256,
            lower=0.1,
            upper=0.4,
            stability=0.83,
            p_value=0.0312,
            n_rules=5,
            reason="strongest",
        ),
        LayerGroup(
            name="instance",
            forms=("instance",),
            layers=(4,),
            score=0.1,
            n_rules=1,
            supported=False,
            reason=EVIL,
        ),
    )
    values = {
        "schema": "dmle.selection/1",
        "strategy": "window",
        "component": "mlp",
        "role": "lookup",
        "width": 2,
        "n_layers": 6,
        "first_layer": 1,
        "last_layer": 4,
        "groups": groups,
        "provenance": {"model": EVIL, "unit": "nats"},
    }
    return LayerSelection.model_validate({**values, **changes})


def test_a_selection_shows_its_layers_and_evidence() -> None:
    read = Reader(shown.selection_html(selection()))
    assert read.rows[1][:2] == ["formula + description", "2, 3"]
    assert read.rows[1][3:] == ["0.26 [0.10, 0.40]", "0.83", "0.031", "5", "yes", "strongest"]
    assert read.rows[2][1] == "4" and read.rows[2][3:] == ["0.10", "–", "–", "1", "no", EVIL]
    assert "mlp at lookup tokens" in read.text and "Candidates: layers 1 to 4." in read.text


def test_the_strip_of_a_selection_has_a_cell_for_each_layer_by_its_kind() -> None:
    read = Reader(shown.selection_html(selection()))
    fills = [attrs["fill"] for name, attrs in read.elements if name == "rect"]
    supported, weak = fills[:6], fills[6:]
    assert supported[2] == supported[3] and weak[4] not in (supported[2], supported[1])
    # Layers 0 and 5 were no candidates, 1 and 4 were and are not chosen.
    assert supported[0] == supported[5] != supported[1] == supported[4] != supported[2]
    assert [weak.count(weak[i]) for i in (0, 1, 4)] == [2, 3, 1]


def test_layers_given_by_hand_have_no_evidence_to_show() -> None:
    group = LayerGroup(name="instance", forms=("instance",), layers=(0,), reason="given by hand")
    read = Reader(
        shown.selection_html(
            selection(groups=(group,), role="", strategy="manual", last_layer=None)
        )
    )
    assert read.rows[1][3:] == ["–", "–", "–", "–", "yes", "given by hand"]
    assert "Candidates: layers 1 to 5." in read.text


def test_markdown_of_a_selection_keeps_a_row_to_a_line_whatever_the_text() -> None:
    text = shown.selection_markdown(selection())
    lines = text.splitlines()
    assert lines[2].startswith("| forms | layers | score |") and lines[4].startswith(
        "| formula + description | 2, 3 |"
    )
    assert "\\<script\\>" in lines[5] and "\\$x\\$" in lines[5]


def test_a_profile_is_tabled_by_the_layer_where_the_mean_effect_is_largest() -> None:
    other = one_map()
    other["score"] = other["score"] + xr.DataArray([0.2, 0.0, 0.4], dims="layer")
    maps = effects.concat(
        {("a", "formula"): one_map(), ("b", "formula"): other, ("b", "instance"): one_map(3.0)}
    )
    table = shown.profile_table(layer_profile(maps))
    # resid at the subject: (0.5, 0.2, -0.1) and (0.7, 0.2, 0.3); mlp (-0.3, -0.2, -0.1) and (-0.1,
    # -0.2, 0.3).
    formula = table[table["form"] == "formula"].set_index("component")
    assert formula["peak layer"].to_dict() == {"resid": 0, "mlp": 2} and formula[
        "rules"
    ].tolist() == [2, 2]
    np.testing.assert_allclose(formula["effect there"], [0.6, 0.1], atol=1e-6)
    assert np.all(formula["lower"] <= formula["effect there"])
    assert np.all(formula["effect there"] <= formula["upper"])
    np.testing.assert_allclose(formula["total effect"], 2.0, atol=1e-6)
    instance = table[table["form"] == "instance"]
    assert instance["rules"].tolist() == [0, 0] and np.all(pd.isna(instance["peak layer"]))


def test_text_of_a_selection_is_text() -> None:
    assert_is_text(shown.selection_html(selection()))
