"""The error of tracing against its cost: measures by hand, and a stopped measurement that goes
on."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest

from figures import error_cost
from interp.errors import InputError
from tests.benchmarks import curve
from tests.benchmarks import curve_errors as errors
from tests.benchmarks.tracing import Size

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast


def test_the_share_that_is_wrong_by_hand() -> None:
    assert errors.share_wrong(np.array([1.0, -1.0, 0.5]), np.array([2.0, -1.0, -1.0])) == 2.5 / 4


def test_what_noise_samples_leave_open_by_hand() -> None:
    # Means 2 and -1; standard deviations √2 and 0, so standard errors of two samples 1 and 0.
    samples = np.array([[1.0, 3.0], [-1.0, -1.0]])
    assert errors.share_uncertain(samples) == pytest.approx(1 / 3)


def test_the_profile_is_the_mean_at_lookup_tokens() -> None:
    effects = np.arange(12.0).reshape(1, 3, 4)  # one component, three tokens, four layers
    found = errors.profile(effects, np.array([True, False, True]))
    assert found.tolist() == [[4.0, 5.0, 6.0, 7.0]]


def test_layers_inside_the_interval_by_hand() -> None:
    # Mean 2, standard error 1: two samples give 2 ± 12.706. Equal samples give rounding alone.
    samples = np.array([[1.0, 3.0], [1.0, 3.0], [5.0, 5.0], [5.0, 5.0]])
    assert errors.share_within(np.array([14.7, 14.8, 5.00005, 5.001]), samples) == 0.5


COMPONENTS = np.array(["mlp"] * 5 + ["attn"] * 3)
CHEAP = np.array([0.0, 1.0, 2.0, 3.0, 10.0, 1.0, 1.0, 4.0])


def test_a_mean_difference_is_added_to_its_component_alone() -> None:
    # mlp: exact minus cheap is 1 at site 0 and 3 at site 2, so 2 elsewhere; attn: -1 at site 6.
    exact = np.array([1.0, 5.0, 0.0])
    found = errors.corrected(CHEAP, [0, 2, 6], exact, COMPONENTS, regress=False)
    assert found.tolist() == [1.0, 3.0, 5.0, 5.0, 12.0, 0.0, 0.0, 3.0]


def test_a_regressed_difference_finds_a_line_and_takes_the_mean_of_few_sites() -> None:
    # mlp: exact = 1 + 1.5 · cheap at three sites; attn: one site, so its difference.
    exact = np.array([1.0, 2.5, 4.0, 3.0])
    found = errors.corrected(CHEAP, [0, 1, 2, 5], exact, COMPONENTS, regress=True)
    assert found == pytest.approx([1.0, 2.5, 4.0, 5.5, 16.0, 3.0, 3.0, 6.0])
    equal = np.ones(3)
    kept = errors.corrected(equal, [0, 1, 2], 2 * equal, np.array(["mlp"] * 3), regress=True)
    assert kept.tolist() == [2.0, 2.0, 2.0]


def test_a_component_without_exact_sites_stays_as_it_is() -> None:
    found = errors.corrected(CHEAP, [0], np.array([2.0]), COMPONENTS, regress=False)
    assert found.tolist() == [2.0, 3.0, 4.0, 5.0, 12.0, 1.0, 1.0, 4.0]


def test_windows_are_sums_of_their_singles() -> None:
    singles = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, 40.0]])
    assert errors.summed(singles, [[0, 1], [1, 2], [2]]).tolist() == [[3, 30], [6, 60], [4, 40]]


def test_every_measure_by_component() -> None:
    # Two components, two tokens (the second a lookup), one layer, two samples.
    exact = np.array([[1.0, 1.0], [2.0, 4.0], [0.0, 2.0], [-1.0, -1.0]])
    guess = np.array([1.5, 3.0, 1.0, 0.0])
    found = errors.errors_of(guess, exact, np.array([False, True]), ("mlp", "attn"))
    assert found == pytest.approx(
        {
            "map_mlp": 0.5 / 4,  # of means 1 and 3
            "profile_mlp": 0.0,
            "within_mlp": 1.0,
            "noise_mlp": 1 / 4,
            "profile_noise_mlp": 1 / 3,
            "map_attn": 1 / 2,  # of means 1 and -1
            "profile_attn": 1.0,
            "within_attn": 0.0,
            "noise_attn": 1 / 2,
            "profile_noise_attn": 0.0,
        }
    )


def row(method: str, cost: float, wrong: float, rule: str = "a") -> dict[str, Any]:
    measures = {f"{m}_{c}": wrong for m in curve.MEASURES for c in curve.COMPONENTS}
    return {"model": "tiny", "rule": rule, "form": "formula", "method": method, "cost": cost} | (
        measures
    )


def test_points_are_means_over_prompts_in_series_by_cost() -> None:
    rows = pd.DataFrame(
        [
            row("screen 20%", 0.2, 0.1),
            row("screen 10%", 0.1, 0.3),
            row("screen 10%", 0.3, 0.5, "b"),
            row("attribution 3 steps", 0.05, 0.6),
            row("bfloat16 mean difference", 0.4, 0.05),
        ]
    )
    points = error_cost.mean_points(rows, rows["map_mlp"])
    assert points["series"].tolist() == [
        "attribution",
        "screen",
        "screen",
        "bfloat16 mean difference",
    ]
    assert sorted(points["error"]) == pytest.approx([0.05, 0.1, 0.4, 0.6])
    fig = error_cost.error_cost_panel(rows)
    assert [ax.get_title(loc="left") for ax in fig.axes[:3]] == [
        "residual stream",
        "MLP output",
        "attention output",
    ]
    heights = [np.asarray(line.get_ydata()) for ax in fig.axes[:3] for line in ax.get_lines()]
    assert {0.08, 0.15} <= {round(float(values[0]), 6) for values in heights}
    with pytest.raises(InputError, match="there is no row to draw"):
        error_cost.error_cost_panel(rows.iloc[:0])


def test_every_method_has_a_series() -> None:
    names = list(curve.methods(10))
    rows = pd.DataFrame([row(name, 0.1, 0.1) for name in names])
    points = error_cost.mean_points(rows, rows["map_mlp"])
    assert set(points["series"]) == set(error_cost.LOOKS)
    assert {"exact 1 samples", "exact 4 samples", "exact 10 samples"} <= set(names)
    assert "exact 4 samples" not in curve.methods(2)


@pytest.fixture(scope="module")
def folder(
    make_hf: Callable[..., "PreTrainedModel"],
    tokenizer: "PreTrainedTokenizerFast",
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A tiny model with room for the prompts of the benchmark."""
    path = tmp_path_factory.mktemp("roomy")
    make_hf("llama", max_position_embeddings=256).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.golden
def test_a_stopped_measurement_goes_on_with_what_the_file_lacks(
    folder: Path, tmp_path: Path
) -> None:
    out, said = tmp_path / "curve.csv", []
    size = Size(samples=2, loop_sites=2, generic_sites=2, stride=1)
    place = curve.Place(str(folder), *curve.PROMPTS[0], size)
    curve.measure_all([place], ["attribution 1 ", "exact"], out, said.append)
    before = out.read_text(encoding="utf-8").splitlines()
    with out.open(encoding="utf-8") as lines:
        rows = {each["method"]: each for each in csv.DictReader(lines)}
    assert set(rows) == {"exact 2 samples", "attribution 1 steps", "exact 1 samples"}
    exact = rows["exact 2 samples"]
    for component in curve.COMPONENTS:
        assert float(exact[f"map_{component}"]) == 0
        assert float(exact[f"within_{component}"]) == 1
        # One of two samples is as far from their mean as the standard error.
        half = float(rows["exact 1 samples"][f"map_{component}"])
        assert half == pytest.approx(float(exact[f"noise_{component}"]), rel=1e-4)
    curve.measure_all([place], ["singles", "bfloat16", "exact"], out, said.append)
    after = out.read_text(encoding="utf-8").splitlines()
    assert after[:4] == before and len(after) == 9 and len(said) == 8
    singles = pd.read_csv(out).set_index("method").loc["singles"]
    # Windows of this model have one block, so that they are their singles.
    assert singles[[f"map_{component}" for component in curve.COMPONENTS]].max() < 1e-4
    curve.measure_all([place], ["singles"], out, said.append)
    assert len(said) == 8
    out.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match="has other columns"):
        curve.measure_all([place], [], out, said.append)
