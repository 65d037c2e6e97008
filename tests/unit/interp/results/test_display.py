"""What notebooks show of results: the numbers, and text from data as text."""

import numpy as np
import pandas as pd
import pytest
import torch

from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from interp.results import display, effects
from tests.unit.html_reading import EVIL, Reader, assert_is_text, one_map


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
        display.delta_html(
            [display.Update(EVIL, 0, (1, 1), None)], {}, {"editor": EVIL, "cast_loss": {"w": 0.1}}
        ),
        display.frame_html(display.map_table(one_map()), title=EVIL, note=EVIL),
        display.html_table([EVIL], [[EVIL]]),
    ],
    ids=["delta", "frame", "table"],
)
def test_text_from_data_is_text(text: str) -> None:
    assert_is_text(text)


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


def test_frames_show_two_decimals_and_whole_numbers_as_they_are() -> None:
    frame = pd.DataFrame({"x": [1 / 3, np.nan], "n": [7, 8], "ok": [True, False]})
    assert Reader(display.frame_html(frame)).rows == [
        ["x", "n", "ok"],
        ["0.33", "7", "yes"],
        ["–", "8", "no"],
    ]
