"""Sweeps and regret: windows, hand-worked regret, rank correlation, and the two commands on a
tiny model."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from editing.studies import layer_sweep, regret_measures
from editing.studies.config import SweepConfig
from editing.studies.regret import choices, regret
from interp.config import SelectConfig
from interp.errors import InputError
from interp.results import effects
from interp.rules.sources import Rule
from interp.selection.from_sweep import select_from_sweep
from interp.vocabulary import LOOKUP, ROLES
from tests.unit.records import recorded, with_means

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str]]
SCORES = np.array([[0.2, 0.6, 0.4], [0.4, 0.8, 0.9], [0.3, 0.7, 0.2]])
"""Rule × window; means 0.3, 0.7, 0.5."""


def test_regret_by_hand() -> None:
    found = regret_measures.regret_of(SCORES, SCORES[:, 2], resamples=100)
    assert (found.score, found.oracle) == (pytest.approx(0.5), pytest.approx(0.7))
    assert found.regret == pytest.approx((0.2 - 0.1 + 0.5) / 3)
    assert (found.rank, found.n_windows, found.n_rules) == (2, 3, 3)
    assert -0.1 <= found.lower <= found.regret <= found.upper <= 0.5


def test_the_oracle_has_no_regret_and_rank_one() -> None:
    found = regret_measures.regret_of(SCORES, SCORES[:, 1])
    assert (found.regret, found.lower, found.upper, found.rank) == (0, 0, 0, 1)


def test_layers_outside_the_sweep_may_beat_the_oracle() -> None:
    found = regret_measures.regret_of(SCORES, np.ones(3))
    assert found.regret == pytest.approx(-0.3)
    assert found.rank == 1


def test_rules_with_missing_cells_are_left_out_and_counted() -> None:
    scores = SCORES.copy()
    scores[1, 0] = np.nan
    found = regret_measures.regret_of(scores, SCORES[:, 2])
    assert found.n_rules == 2
    assert found.oracle == pytest.approx(0.65)
    with pytest.raises(ValueError, match="no rule has a score at every window"):
        regret_measures.regret_of(scores[1:2], SCORES[1:2, 2])


def test_one_rule_has_no_interval() -> None:
    assert np.isnan(regret_measures.regret_of(SCORES[:1], SCORES[:1, 0]).lower)


def test_a_window_chosen_on_other_rules_is_scored_on_the_one_left_out() -> None:
    # Without rule 0 the best is window 1 (0.75 to 0.55); without 1 also (0.65); without 2 window 1
    # (0.7) as well.
    assert regret_measures.left_out(SCORES) == pytest.approx(SCORES[:, 1])
    # Now rule 2 alone carries window 0: for itself the others' choice counts, window 2.
    scores = np.array([[0.0, 0.1, 0.5], [0.1, 0.2, 0.6], [9.0, 0.0, 0.0]])
    assert regret_measures.left_out(scores).tolist() == [0.0, 0.1, 0.0]
    assert np.isnan(regret_measures.left_out(scores[:1])).all()


def test_rank_correlation_is_spearmans() -> None:
    rng = np.random.default_rng(0)
    profile, scores = rng.normal(size=9).round(1), rng.normal(size=(6, 9)).round(1)
    value, lower, upper = regret_measures.rank_correlation(
        profile, scores, resamples=500, confidence=0.9, seed=1
    )
    expected = pd.Series(profile).rank().corr(pd.Series(scores.mean(0)).rank())
    assert value == pytest.approx(expected)
    assert -1 <= lower < upper <= 1
    options = {"resamples": 50, "confidence": 0.9, "seed": 1}
    ordered = np.arange(9) + np.zeros((6, 1))
    rising, falling = np.arange(9.0), -np.arange(9.0)
    correlation = regret_measures.rank_correlation
    assert correlation(rising, ordered, **options) == pytest.approx((1, 1, 1))
    assert correlation(falling, ordered, **options)[0] == pytest.approx(-1)
    assert np.isnan(correlation(profile[:2], scores[:, :2], **options)).all()


@pytest.mark.parametrize(("n", "width", "step"), [(30, 3, 2), (7, 3, 4), (3, 3, 1), (12, 1, 5)])
def test_windows_cover_the_model_from_end_to_end(n: int, width: int, step: int) -> None:
    found = layer_sweep.windows(n, width, step)
    assert found[0][0] == 0 and found[-1][-1] == n - 1
    assert all(span == tuple(range(span[0], span[0] + width)) for span in found)
    gaps = [b[0] - a[0] for a, b in pairwise(found)]
    assert all(gap == step for gap in gaps[:-1]) and all(0 < gap <= step for gap in gaps[-1:])


def test_a_model_that_is_too_shallow_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sweep.width is 4, but the model has 3 layers"):
        layer_sweep.windows(3, 4, 1)


def test_success_is_a_mean_of_means_and_nan_where_a_metric_failed() -> None:
    dims = ("editor", "rule", "form", "metric", "mode", "phase")
    score = np.full((2, 2, 2, 3, 1, 2), np.nan)
    score[0, 0, :, 0, 0, 1] = [0.2, 0.4]  # 0.3
    score[0, 0, 0, 1, 0, 1] = 0.7  # one form has items of it
    score[1, 0, :, 0, 0, 1] = [1.0, 1.0]  # arm 1 lacks metric 1 of rule 0
    score[:, 1, :, 0, 0, 1] = 0.5  # rule 1 has no items of metric 1 at all
    names = (
        ["a", "b"],
        ["r", "s"],
        ["formula", "description"],
        ["m", "n", "unused"],
        ["token_accuracy"],
        ["pre", "post"],
    )
    scores = xr.Dataset({"score": (dims, score)}, coords=dict(zip(dims, names, strict=True)))
    found = layer_sweep.success(scores, ["formula", "description"], ["m", "n"], "token_accuracy")
    assert found.values == pytest.approx(np.array([[0.5, 0.5], [np.nan, 0.5]]), nan_ok=True)


def _profile(n_layers: int = 8) -> xr.Dataset:
    """Six rules whose effect sits in layers 2-3 for two forms and 5-6 for instances."""
    forms, rules = ["formula", "description", "instance"], 6
    rng = np.random.default_rng(3)
    effect = 0.01 * rng.normal(size=(rules, 3, 1, 1, n_layers))
    effect[:, :2, ..., 2:4] += 1
    effect[:, 2, ..., 5:7] += 1
    dims = ("form", "component", "role", "layer")
    made = xr.Dataset(
        {
            "effect": (("rule", *dims), effect),
            "te": ("form", np.full(3, 2.0)),
            "total_effect": (("rule", "form"), np.full((rules, 3), 2.0)),
            "traceable": (("rule", "form"), np.ones((rules, 3), dtype=bool)),
        },
        coords={
            "rule": [f"r{i}" for i in range(rules)],
            "form": forms,
            "component": ["mlp"],
            "role": ["lookup"],
            "layer": range(n_layers),
        },
        attrs={"window": 1, "model": "made up", "metric": "mean_log_prob", "unit": "nats"},
    )
    return with_means(made)


def test_strategies_are_scored_at_their_layers() -> None:
    config = SweepConfig(width=2, step=1, resamples=200)
    select = SelectConfig(strategy="window", width=2, bootstrap=50)
    chosen = {(one.strategy, one.group): one.layers for one in choices(_profile(), config, select)}
    assert chosen["window", "formula+description"] == (2, 3)
    assert chosen["window", "instance"] == (5, 6)
    assert chosen["reversed", "instance"] == (2, 3)
    assert chosen["all", "instance"] == tuple(range(8))
    spans = layer_sweep.windows(8, 2, 1)
    rules = [f"e{i}" for i in range(4)]
    rows, by_group = [], {}
    for group, peak in (("formula+description", 2), ("instance", 4)):
        made = np.array(
            [[1 - 0.1 * abs(span[0] - peak) + 0.01 * r for span in spans] for r in range(4)]
        )
        by_group[group] = made
        places = [*spans, *{at for (_, g), at in chosen.items() if g == group} - set(spans)]
        rows += [
            {
                "group": group,
                "layers": layer_sweep.layers_text(layers),
                "rule": rule,
                "score": made[r, spans.index(layers)] if layers in spans else 0.25,
            }
            for r, rule in enumerate(rules)
            for layers in places
        ]
    data = layer_sweep.sweep_dataset(by_group, rules, spans)
    swept = layer_sweep.with_arms(data, pd.DataFrame(rows))
    regrets = regret(swept, _profile(), config, select)
    notes = regrets.notes
    by_name = {(row["strategy"], row["group"]): row for row in regrets.rows}
    assert by_name["window", "formula+description"]["regret"] == pytest.approx(0)
    assert by_name["window", "instance"]["regret"] == pytest.approx(0.1)  # chosen 5-6, best 4-5
    assert by_name["window", "instance"]["rank"] == 2
    assert by_name["all", "instance"]["score"] == pytest.approx(0.25)
    assert by_name["random", "instance"]["score"] == pytest.approx(by_group["instance"].mean())
    assert by_name["sweep", "instance"]["regret"] == pytest.approx(0)
    against = by_name["random", "instance"]
    expected = by_name["window", "instance"]["score"] - by_group["instance"].mean()
    assert against["against_default"] == pytest.approx(expected)
    assert "against_default" not in by_name["window", "instance"]
    assert "4 of 4 rules" in notes[0] and "4 of 4 rules" in notes[1]
    assert [note.split(" is left out: no evidence")[0] for note in notes[2:]] == [
        "auto",
        "combined",
        "lga",
        "reach",
    ]
    assert "| instance | window | 5-6 |" in regrets.text.markdown
    assert r"\toprule" in regrets.text.latex
    other = config.model_copy(update={"groups": (("formula",),)})
    with pytest.raises(InputError, match="the sweep has no group formula; it has formula\\+desc"):
        regret(swept, _profile(), other, select)


@pytest.fixture(scope="module")
def inputs(make_inputs: Callable[..., Path], rules: tuple[Rule, ...]) -> Path:
    """One rule to sweep over."""
    settings: dict[str, Any] = {
        "edit": {"contexts": 0, "steps": 2},
        "sweep": {"width": 1, "step": 1, "resamples": 100},
        "select": {"width": 1, "identity_blocks": 0, "bootstrap": 50},
    }
    return make_inputs([rules[0].model_copy(update={"split": "validation"})], settings)


def test_both_commands_run_and_resume(inputs: Path, dmle: Command, tmp_path: Path) -> None:
    run, config = tmp_path / "run", inputs / "config.yaml"
    code, said = dmle("sweep", "--config", config, "--run", run)
    assert code == 0, said
    swept = effects.load(run / "sweep.nc")
    n_layers = swept.attrs["n_layers"]
    assert dict(swept.sizes) == {"group": 2, "rule": 1, "window": n_layers, "arm": 2 * n_layers}
    assert bool(swept["score"].notnull().all())
    cells = {
        path: json.loads(path.read_text())["cell"] for path in (run / "sweep").glob("*/*.json")
    }
    assert len(cells) == 2 * n_layers
    for cell in cells.values():
        forms = set(cell["arm"].partition("@")[0].split("+"))
        assert {row["form"] for row in cell["answers"]} <= forms
        assert cell["requests"] == len(forms)
    table = pd.read_csv(run / "sweep.csv", dtype={"layers": str})
    one = table[(table["group"] == "instance") & (table["layers"] == "0")]
    metrics = SweepConfig().metrics
    assert one["score"].item() == pytest.approx(one[list(metrics)].mean(axis=1).item())
    assert swept["score"].sel(group="instance", window="0").item() == pytest.approx(
        one["score"].item()
    )

    times = {path: path.stat().st_mtime_ns for path in cells}
    profile = _profile(n_layers).reindex(role=[*ROLES, LOOKUP])
    effects.save(profile, run / "profile.nc")
    code, said = dmle("sweep", "--config", config, "--run", run)
    assert code == 2 and "does not say what it was made with" in said
    effects.save(recorded(profile, "profile", "profile"), run / "profile.nc")
    assert dmle("sweep", "--config", config, "--run", run)[0] == 0
    assert {
        path: path.stat().st_mtime_ns for path in cells
    } == times  # layers of strategies are added, no more
    code, said = dmle("regret", "--config", config, "--run", run)
    assert code == 0, said
    rows = pd.read_csv(run / "regret.csv")
    held = effects.load(run / "regret.nc")
    assert held["score"].values == pytest.approx(rows["score"].to_numpy(), nan_ok=True)
    assert held["layers"].values.tolist() == rows["layers"].astype(str).tolist()
    assert {"window", "published", "best-layer", "all", "reversed", "random"} <= set(
        rows["strategy"]
    )
    assert set(rows[rows["strategy"] == "window"]["n_rules"]) == {1}
    assert (run / "tables" / "regret.tex").is_file()


def test_regret_without_a_sweep_says_what_to_run(
    inputs: Path, dmle: Command, tmp_path: Path
) -> None:
    code, said = dmle("regret", "--config", inputs / "config.yaml", "--run", tmp_path / "none")
    assert code != 0
    assert "dmle sweep" in said


def test_a_selection_from_a_sweep_takes_the_best_window_and_knows_chance() -> None:
    rng = np.random.default_rng(0)
    spans = layer_sweep.windows(12, 3, 1)
    clear = 0.5 + 0.05 * rng.normal(size=(10, len(spans))) + 0.3 * (np.arange(len(spans)) == 4)
    flat = 0.5 + 0.05 * rng.normal(size=(10, len(spans)))
    held = layer_sweep.sweep_dataset(
        {"formula+description": clear, "instance": flat}, [f"r{i}" for i in range(10)], spans
    )
    held.attrs["n_layers"] = 12
    found = select_from_sweep(held, SelectConfig(bootstrap=200))
    first, second = found.groups
    assert (first.layers, first.supported, first.forms) == (
        (4, 5, 6),
        True,
        ("formula", "description"),
    )
    assert first.score == pytest.approx(clear[:, 4].mean())
    assert first.stability == 1
    assert not second.supported and "Not significant: p = " in second.reason
    assert select_from_sweep(held, SelectConfig(bootstrap=50, last=5)).groups[0].layers[-1] <= 5
    with pytest.raises(ValueError, match="no window of the sweep lies within layers 0 to 1"):
        select_from_sweep(held, SelectConfig(last=1))
    held["score"][0, :, 0] = np.nan
    with pytest.raises(ValueError, match="run `dmle sweep` to its end"):
        select_from_sweep(held, SelectConfig())
    with pytest.raises(ValueError, match="expected a sweep"):
        select_from_sweep(_profile(), SelectConfig())


@pytest.mark.parametrize("seed", range(5))
def test_selections_from_noise_are_rarely_supported(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spans = layer_sweep.windows(20, 3, 2)
    supported = 0
    for _ in range(20):
        held = layer_sweep.sweep_dataset(
            {"instance": rng.normal(size=(8, len(spans)))}, [str(i) for i in range(8)], spans
        )
        held.attrs["n_layers"] = 20
        supported += select_from_sweep(held, SelectConfig(bootstrap=100)).groups[0].supported
    assert supported <= 4  # 5 % of 20 is 1; 5 and more happen in 0.3 %
