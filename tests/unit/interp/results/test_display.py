"""What notebooks show of results: the numbers, and text from data as text."""

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
import xarray as xr

from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from interp.results import display, effects
from interp.selection import shown
from interp.selection.layers import LayerGroup, LayerSelection
from interp.selection.profiles import layer_profile

EVIL = "<script>alert('$x$')</script> & \"q\""


class Reader(HTMLParser):
    """The cells of every row, the text, and the names of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    def names(self) -> set[str]:
        return {name for name, _ in self.elements}


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


def one_map(noise: float = 0.1) -> xr.Dataset:
    """Two components, three layers, three tokens, of which the second is the first that was
    corrupted."""
    effect = np.array(
        [
            [[0.0, 0.5, 0.1], [0.0, 0.2, 0.3], [0.0, -0.1, 0.2]],  # resid: best at layer 0 and 1
            [[0.0, -0.3, 0.0], [0.0, -0.2, 0.1], [0.0, -0.1, 0.4]],  # mlp: best at layer 2 and 2
        ]
    )
    corrupted = np.array([-3 - noise, -3 + noise])
    return effects.effect_map(
        effect[..., None] + corrupted,
        -1.0,
        corrupted,
        components=("resid", "mlp"),
        tokens=(" The", EVIL, " is"),
        roles=("prefix", "subject_last", "last"),
        is_corrupted=(False, True, False),
        prompt=EVIL,
        answer=" <i>A</i>",
        attrs={"model": "toy", "window": 1},
    )


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


def test_an_edit_shows_what_was_asked_and_how_far_it_got() -> None:
    request = {"rule": "area", "form": "formula", "prompt": EVIL, "target_new": "A = <b>"}
    other = {**request, "form": "instance", "prompt": "5 and 4:"}
    nothing = {"requests": [other], "residual_left": [float("nan")]}  # it wanted no change
    about = {
        "editor": "dmle", "requests": [request, other], "cast_loss": {"w": 0.25},
        "stages": [{"requests": [request], "residual_left": [0.515]}, nothing],
    }  # fmt: skip
    updates = [display.Update("w", 3, (2, 4), 1), display.Update("v", 5, (2, 2), None)]
    read = Reader(display.delta_html(updates, {5: 1.5, 3: 0.25}, about, model_hash="abc"))
    assert read.rows[1:3] == [
        ["area", "formula", EVIL, "A = <b>", "52%"],
        ["area", "instance", "5 and 4:", "A = <b>", "–"],
    ]
    assert read.rows[4:] == [["w", "3", "2 × 4", "1"], ["v", "5", "2 × 2", "–"]]
    assert "Norm of the change: layer 3: 0.25; layer 5: 1.50." in read.text
    assert "25.0% at most" in read.text and "weights abc" in read.text and "dmle: area" in read.text


def test_a_delta_shows_itself_with_the_norms_of_its_updates() -> None:
    left, right = torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0], [4.0], [0.0]])
    delta = EditDelta(
        {"low": LowRank(left, right), "whole": 2 * torch.eye(2)}, {"low": 1, "whole": 2}, "hash"
    )
    read = Reader(delta._repr_html_())
    assert read.rows[2:] == [["low", "1", "2 × 3", "1"], ["whole", "2", "2 × 2", "–"]]
    assert "layer 1: 12.00; layer 2: 2.83" in read.text  # ‖3·4‖, √8


@pytest.mark.parametrize(
    "text",
    [
        shown.selection_html(selection()),
        display.delta_html(
            [display.Update(EVIL, 0, (1, 1), None)], {}, {"editor": EVIL, "cast_loss": {"w": 0.1}}
        ),
        display.frame_html(display.map_table(one_map()), title=EVIL, note=EVIL),
        display.html_table([EVIL], [[EVIL]]),
    ],
    ids=["selection", "delta", "frame", "table"],
)
def test_text_from_data_is_text(text: str) -> None:
    read = Reader(text)
    assert not read.names() & {"script", "i", "style", "img"}
    assert EVIL in read.text
    outermost = [attrs for name, attrs in read.elements if name == "div"]
    assert all("mathjax_ignore" in str(attrs["class"]) for attrs in outermost)


def test_a_map_is_tabled_by_traced_token_with_the_best_layer_of_each_component() -> None:
    table = display.map_table(one_map())
    assert table["token"].tolist() == [EVIL, " is"] and table["role"].tolist() == [
        "subject_last",
        "last",
    ]
    assert table["corrupted"].tolist() == [True, False]
    assert table["resid: best layer"].tolist() == [0, 1] and table["mlp: best layer"].tolist() == [
        2,
        2,
    ]
    np.testing.assert_allclose(table["resid: effect"], [0.5, 0.3], atol=1e-6)
    np.testing.assert_allclose(table["mlp: effect"], [-0.1, 0.4], atol=1e-6)  # the best may harm


def test_a_token_that_one_component_lacks_has_no_best_layer_there() -> None:
    item = one_map()
    item["score"].loc[{"component": "mlp", "pos": 2}] = np.nan
    table = display.map_table(item)
    assert table["mlp: best layer"].isna().tolist() == [False, True] and np.isnan(
        table["mlp: effect"][1]
    )
    assert Reader(display.frame_html(table)).rows[2][-2:] == ["–", "–"]


def test_joined_maps_are_tabled_by_prompt_and_say_what_is_not_traceable() -> None:
    maps = effects.concat({("a", "formula"): one_map(), ("b", "instance"): one_map(noise=3.0)})
    table = display.maps_table(maps)
    assert list(zip(table["rule"], table["form"], strict=True)) == [
        ("a", "formula"),
        ("b", "instance"),
    ]
    np.testing.assert_allclose(table["total effect"], [2, 2], atol=1e-6)
    np.testing.assert_allclose(
        table["standard error"], [0.1, 3.0], atol=1e-6
    )  # of two samples, ± noise
    assert table["traceable"].tolist() == [True, False]
    assert [row[-1] for row in Reader(display.frame_html(table)).rows] == ["traceable", "yes", "no"]


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
    assert (formula["lower"] <= formula["effect there"]).all() and (
        formula["effect there"] <= formula["upper"]
    ).all()
    np.testing.assert_allclose(formula["total effect"], 2.0, atol=1e-6)
    instance = table[table["form"] == "instance"]
    assert instance["rules"].tolist() == [0, 0] and instance["peak layer"].isna().all()


def test_frames_show_two_decimals_and_whole_numbers_as_they_are() -> None:
    frame = pd.DataFrame({"x": [1 / 3, np.nan], "n": [7, 8], "ok": [True, False]})
    assert Reader(display.frame_html(frame)).rows == [
        ["x", "n", "ok"],
        ["0.33", "7", "yes"],
        ["–", "8", "no"],
    ]
