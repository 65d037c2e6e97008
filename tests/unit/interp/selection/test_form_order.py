"""Depths of forms: by hand, against enumeration, and that the test keeps its level and finds
what is there."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from interp.config import SelectConfig
from interp.results import effects
from interp.selection.form_order import (
    centre_and_spread,
    compare_forms,
    contrast,
    depths,
    holm,
    report,
    sign_flip,
    table,
)
from interp.vocabulary import LOOKUP

FORMS = ["formula", "description", "instance"]


def profile(effect: np.ndarray, window: int = 1, component: str = "mlp") -> xr.Dataset:
    """A profile of effects with shape (rule, form, layer); another component and role hold other
    things."""
    values = np.full((*effect.shape[:2], 2, 2, effect.shape[2]), 7.0)
    values[:, :, 1, 1] = effect
    return xr.Dataset(
        {
            "effect": (("rule", "form", "component", "role", "layer"), values),
            "te": ("form", np.ones(effect.shape[1])),
        },
        coords={
            "rule": [f"rule{i}" for i in range(len(effect))],
            "form": FORMS[: effect.shape[1]],
            "component": ["attn", component],
            "role": ["last", LOOKUP],
            "layer": np.arange(effect.shape[2]),
        },
        attrs={"window": window, "unit": "nats"},
    )


def peaked(centres: np.ndarray, layers: int = 20) -> np.ndarray:
    """Profiles with peaks at some places, shape (..., layer)."""
    return np.exp(-((np.arange(layers) - np.asarray(centres, float)[..., None]) ** 2) / 4)


# Centres.


def test_centre_and_spread_by_hand() -> None:
    effect = np.array([[1.0, 0, 0, 1], [0, 2, -9, 2], [0, 0, 5, 0], [-1, 0, 0, 0], [np.nan] * 4])
    centre, spread = centre_and_spread(effect, np.array([0.0, 1, 2, 3]))
    np.testing.assert_allclose(centre, [1.5, 2, 2, np.nan, np.nan])
    np.testing.assert_allclose(spread, [1.5, 1, 0, np.nan, np.nan])
    # 1/4 at 10, 3/4 at 20: deviation √(1/4 · 7.5² + 3/4 · 2.5²).
    centre, spread = centre_and_spread(np.array([1.0, 3]), np.array([10.0, 20]))
    assert centre == 17.5 and spread == pytest.approx(18.75**0.5)


def test_depths_are_of_the_candidates_at_the_lookup_tokens() -> None:
    effect = np.zeros((2, 3, 6))
    effect[:, :, 0] = 100  # block 0 is no candidate
    effect[0, :, 2], effect[0, 2, 4] = 1, 3
    effect[1] = np.nan
    got = depths(profile(effect))
    np.testing.assert_allclose(got["centre"].sel(rule="rule0"), [2, 2, 3.5])
    np.testing.assert_allclose(got["peak"].sel(rule="rule0"), [2, 2, 4])
    assert got.sel(rule="rule1").to_array().isnull().all()
    bounded = depths(profile(effect), SelectConfig(first=3))
    np.testing.assert_allclose(bounded["centre"].sel(rule="rule0"), [np.nan, np.nan, 4])
    with pytest.raises(ValueError, match="no component 'resid'"):
        depths(profile(effect), SelectConfig(component="resid"))


def test_a_layer_is_where_the_middle_of_its_window_is() -> None:
    effect = np.zeros((1, 3, 8))
    effect[0, 0, 4], effect[0, 1, 7], effect[0, 2, 3] = 1, 1, 1
    # Windows of 4 restore 2-5 at layer 4, 5-7 at the end, 1-4 at layer 3.
    np.testing.assert_allclose(depths(profile(effect, window=4))["centre"][0], [3.5, 6, 2.5])
    # One block alone is where it is, whatever the windows of the others.
    alone = profile(effect, window=4, component="mlp_single")
    np.testing.assert_allclose(
        depths(alone, SelectConfig(component="mlp_single"))["centre"][0], [4, 7, 3]
    )


# Tests.


def test_sign_flip_equals_enumeration() -> None:
    difference = np.random.default_rng(0).normal(0.5, 1, 8)
    every = [abs(np.dot(s, difference)) for s in product((1, -1), repeat=8)]
    expected = np.mean(np.array(every) >= every[0] - 1e-12)
    assert sign_flip(difference, draws=10, seed=0) == pytest.approx(expected)
    assert sign_flip(-difference, draws=10, seed=0) == pytest.approx(expected)
    assert sign_flip(np.ones(5), draws=10, seed=0) == 2 / 32
    assert sign_flip(np.zeros(4), draws=10, seed=0) == 1
    assert sign_flip(np.zeros(0), draws=10, seed=0) == 1


def test_sign_flip_of_many_rules_is_close_to_the_t_test_and_never_zero() -> None:
    difference = np.random.default_rng(1).normal(0.25, 1, 60)
    t = difference.mean() / (difference.std(ddof=1) / 60**0.5)
    sample = np.random.default_rng(2).standard_t(59, 200_000)
    assert sign_flip(difference, draws=20_000, seed=0) == pytest.approx(
        (abs(sample) >= abs(t)).mean(), abs=0.01
    )
    assert sign_flip(np.ones(40), draws=999, seed=0) == 1 / 1000
    assert sign_flip(difference, draws=500, seed=3) == sign_flip(difference, draws=500, seed=3)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.02, 0.9]) == pytest.approx([0.03, 0.04, 0.9])
    assert holm([0.03, 0.02, 0.025]) == pytest.approx([0.06, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_contrast_by_hand() -> None:
    centres = {
        "instance": np.array([5.0, 6, 7, np.nan]),
        "formula": np.array([4.0, 4, 4, 4]),
        "description": np.array([2.0, 2, 4, 4]),
    }
    got = contrast(centres, ("instance",), ("formula", "description"), draws=500, seed=0)
    # Differences 2, 3, 3.
    assert got.n_rules == 3 and got.later == 3 and got.name == "instance − formula+description"
    assert got.difference == pytest.approx(8 / 3) and got.d_z == pytest.approx(
        8 / 3 / (1 / 3) ** 0.5
    )
    assert got.p_value == 2 / 8 and 2 <= got.lower < 8 / 3 < got.upper <= 3
    none = contrast(
        {"a": np.array([np.nan, 1.0]), "b": np.array([1.0, np.nan])},
        ("a",),
        ("b",),
        draws=10,
        seed=0,
    )
    assert (
        none.n_rules == 0
        and none.p_value == 1
        and np.isnan([none.difference, none.lower, none.d_z]).all()
    )
    one = contrast({"a": np.array([3.0]), "b": np.array([1.0])}, ("a",), ("b",), draws=10, seed=0)
    assert one.difference == 2 and one.p_value == 1 and np.isnan([one.lower, one.d_z]).all()


def test_a_planted_order_is_found_with_its_size() -> None:
    rng = np.random.default_rng(0)
    own = rng.uniform(
        5, 8, (24, 1)
    )  # rules differ more than forms do: the comparison is within rules
    centres = own + np.array([0.0, 0.0, 2.0]) + rng.normal(0, 0.5, (24, 3))
    effect = rng.lognormal(0, 1, (24, 1, 1)) * peaked(centres)
    pairs = compare_forms(depths(profile(effect)), draws=2000)
    assert [(c.first, c.second) for c in pairs] == [
        (("description",), ("formula",)),
        (("instance",), ("formula",)),
        (("instance",), ("description",)),
        (("instance",), ("formula", "description")),
    ]
    same, late, later, paper = pairs
    assert same.p_holm > 0.05 and abs(same.difference) < 0.4
    for found in (late, later, paper):
        assert (
            found.p_holm < 0.01
            and found.difference == pytest.approx(2, abs=0.35)
            and found.d_z > 1.5
        )
        assert found.lower < found.difference < found.upper and found.later >= 22
    assert (
        late.p_holm == pytest.approx(3 * late.p_value, rel=1e-9) and paper.p_holm == paper.p_value
    )


def test_without_an_order_p_values_are_uniform() -> None:
    rng = np.random.default_rng(3)
    p_values = []
    for _ in range(400):
        centres = rng.uniform(5, 14, (9, 1)) + rng.normal(0, 1, (9, 3))
        found = compare_forms(depths(profile(peaked(centres))), draws=20)
        p_values.append(found[-1].p_value)
    for level in (0.05, 0.1, 0.25, 0.5, 0.75):
        error = (level * (1 - level) / 400) ** 0.5
        assert np.mean(np.array(p_values) <= level) == pytest.approx(
            level, abs=3 * error + 2 / 2**9
        )


# What is said.


def test_report_and_table_say_the_same(tmp_path: Path) -> None:
    effect = peaked(np.array([[4.0, 4.5, 8.0], [6, 6, 9], [5, 5.5, 9]]))
    data = profile(effect)
    effects.save(data, tmp_path / "means.nc")
    of_rules = depths(effects.load(tmp_path / "means.nc"))
    made = compare_forms(of_rules)
    lines = report(of_rules, made)
    assert len(lines) == 3 + 4
    assert (
        lines[0].startswith("depth of formula: centre of mass 5.")
        and "peaks of single rules 5.0" in lines[0]
    )
    assert lines[-1].startswith(
        f"instance − formula+description: {made[-1].difference:+.2f} layers"
    )
    assert (
        made[-1].difference == pytest.approx(3.5, abs=0.05) and "later in 3 of 3 rules" in lines[-1]
    )
    table(made).to_csv(tmp_path / "order.csv", index=False)
    read = pd.read_csv(tmp_path / "order.csv")
    assert (
        read["second"].tolist()[-1] == "formula+description"
        and read["p_value"].tolist()[-1] == 0.25
    )
    np.testing.assert_allclose(read["difference"], [c.difference for c in made])


def test_forms_that_are_missing_are_said_to_be() -> None:
    effect = peaked(np.array([[4.0, 4.5, 8.0], [6, 6, 9]]))
    effect[:, 2] = np.nan
    of_rules = depths(profile(effect))
    lines = report(of_rules, compare_forms(of_rules))
    assert lines[2] == "depth of instance: no traceable rule with a positive effect"
    assert lines[-1] == "instance − formula+description: no rule has both"
    two = compare_forms(depths(profile(effect[:, :2])))
    assert len(two) == 1  # no contrast of the paper without its forms
