"""Paired comparison of arms: means, differences and intervals worked out by hand or by plain
numpy."""

import math

import numpy as np
import pytest
import xarray as xr

from editing.studies.paired import Pair, comparison_table, numbers, pair_table, pairs, summary
from interp.results.intervals import resample_counts
from interp.results.scores import modes_with_scores, per_rule

NAN = math.nan
BOOTSTRAP = {"resamples": 400, "confidence": 0.9}
METRICS = ("reliability", "instance_portability", "locality")
# Each rule's score after the edit: arm → metric → rule. Nothing has portability in its third rule.
AFTER = {
    "my_arm": {
        "reliability": (0.9, 0.5, 0.4, 0.8),
        "instance_portability": (0.4, 0.6, NAN, 0.2),
        "locality": (1.0, 0.9, 0.8, 0.7),
    },
    "base": {
        "reliability": (0.7, 0.5, 0.6, 0.3),
        "instance_portability": (0.1, 0.7, NAN, 0.2),
        "locality": (1.0, 1.0, 1.0, 1.0),
    },
    "few": {
        "reliability": (NAN, 1.0, NAN, 0.1),
        "instance_portability": (NAN, NAN, NAN, 0.5),
        "locality": (NAN, 0.5, NAN, 0.5),
    },
    "broken": {metric: (NAN,) * 4 for metric in METRICS},
}


def hand_scores(rules: int = 4) -> xr.Dataset:
    """Two forms around each rule's score; before the edit 0.1, 0.2 ... by rule, for locality 1.
    KL is 1 − locality."""
    labels = (
        tuple(AFTER),
        tuple(f"r_{i}" for i in range(rules)),
        ("formula", "instance"),
        (*METRICS, "generality"),
    )
    modes, phases = ("token_accuracy", "exact", "kl"), ("pre", "post")
    score = np.full((*map(len, labels), len(modes), len(phases)), NAN)
    for e, by_metric in enumerate(AFTER.values()):
        for m, (metric, values) in enumerate(by_metric.items()):
            for r, value in enumerate(values[:rules]):
                if math.isnan(value):
                    continue
                floor = 1.0 if metric == "locality" else (r + 1) / 10
                # An odd rule has one form only: a mean over forms is not a sum.
                for f, shift in enumerate((0.0,) if r % 2 else (-0.1, 0.1)):
                    score[e, r, f, m, 0] = floor, value + shift
                    if metric == "locality":
                        score[e, r, f, m, 2] = 0, 1 - value - shift
    dims = ("editor", "rule", "form", "metric", "mode", "phase")
    coords = dict(zip(dims, (*labels, modes, phases), strict=True))
    return xr.Dataset(
        {"score": (dims, score)},
        coords={dim: np.array(c, dtype=object) for dim, c in coords.items()},
    )


def interval(values: tuple[float, ...] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Percentile interval of the mean: each resample written out, without the rules that have no
    value."""
    values = np.asarray(values)
    means = []
    for counts in resample_counts(len(values), BOOTSTRAP["resamples"], seed):
        drawn = np.repeat(values, counts.astype(int))
        drawn = drawn[~np.isnan(drawn)]
        if len(drawn):
            means.append(drawn.mean())
    low, high = np.quantile(means, [0.05, 0.95])
    return float(low), float(high)


def find(found: list[Pair], arm: str, metric: str) -> Pair:
    (pair,) = [each for each in found if (each.arm, each.metric) == (arm, metric)]
    return pair


def test_per_rule_is_the_mean_over_forms_in_either_phase() -> None:
    rules = per_rule(hand_scores(), "token_accuracy").sel(phase="post")
    assert rules.dims == ("editor", "metric", "rule")
    assert rules["editor"].values.tolist() == ["my_arm", "base", "few"]
    for arm in rules["editor"].values:
        for metric, values in AFTER[arm].items():
            np.testing.assert_allclose(rules.sel(editor=arm, metric=metric), values)
    before = per_rule(hand_scores(), "token_accuracy").sel(phase="pre")
    np.testing.assert_allclose(before.sel(editor="few", metric="reliability"), [NAN, 0.2, NAN, 0.4])


def test_both_phases_stand_side_by_side_for_the_figures() -> None:
    both = per_rule(hand_scores(), "token_accuracy")
    assert both.dims == ("editor", "metric", "phase", "rule")
    assert both["editor"].values.tolist() == [
        "my_arm",
        "base",
        "few",
    ]  # the broken arm has no score
    one = both.sel(editor="my_arm", metric="reliability")
    np.testing.assert_allclose(one, [(0.1, 0.2, 0.3, 0.4), AFTER["my_arm"]["reliability"]])
    assert modes_with_scores(hand_scores()) == ["token_accuracy", "kl"]


def test_modes_without_scores_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"no mode 'x'; choose from \['token_accuracy', 'exact', 'kl'\]"
    ):
        per_rule(hand_scores(), "x")
    with pytest.raises(ValueError, match="mode 'exact' has no scores"):
        summary(hand_scores(), "exact", **BOOTSTRAP)


def test_differences_wins_ties_and_losses() -> None:
    found = pairs(hand_scores(), "token_accuracy", "base", **BOOTSTRAP)
    assert [(pair.arm, pair.metric) for pair in found] == [
        (arm, m) for arm in ("my_arm", "few") for m in METRICS
    ]
    assert {pair.reference for pair in found} == {"base"}
    pair = find(found, "my_arm", "reliability")  # +0.2, 0, −0.2, +0.5
    assert (pair.wins, pair.ties, pair.losses, pair.n) == (2, 1, 1, 4)
    assert pair.mean == pytest.approx(0.125)
    assert (pair.lower, pair.upper) == pytest.approx(interval((0.2, 0.0, -0.2, 0.5)))
    pair = find(found, "my_arm", "locality")  # 0, −0.1, −0.2, −0.3
    assert (pair.wins, pair.ties, pair.losses, pair.n) == (0, 1, 3, 4)
    assert pair.mean == pytest.approx(-0.15)


def test_rules_that_one_of_the_two_lacks_are_left_out() -> None:
    found = pairs(hand_scores(), "token_accuracy", "base", **BOOTSTRAP)
    pair = find(found, "my_arm", "instance_portability")  # +0.3, −0.1, none, 0
    assert (pair.wins, pair.ties, pair.losses, pair.n) == (1, 1, 1, 3)
    assert pair.mean == pytest.approx(0.2 / 3)
    assert (pair.lower, pair.upper) == pytest.approx(interval((0.3, -0.1, NAN, 0.0)))
    pair = find(found, "few", "reliability")  # none, +0.5, none, −0.2
    assert (pair.wins, pair.ties, pair.losses, pair.n) == (1, 0, 1, 2)
    assert pair.mean == pytest.approx(0.15)
    pair = find(found, "few", "instance_portability")  # one rule
    assert (pair.wins, pair.n, pair.mean) == (1, 1, pytest.approx(0.3))
    assert math.isnan(pair.lower) and math.isnan(pair.upper)


def test_no_common_rule_is_a_pair_of_none() -> None:
    scores = hand_scores()
    scores["score"].loc[{"editor": "few", "metric": "locality"}] = NAN
    pair = find(pairs(scores, "token_accuracy", "few", **BOOTSTRAP), "base", "locality")
    assert (pair.wins, pair.ties, pair.losses, pair.n) == (0, 0, 0, 0)
    assert math.isnan(pair.mean) and math.isnan(pair.lower)


def test_a_lower_divergence_wins_and_its_difference_is_negative() -> None:
    found = pairs(hand_scores(), "kl", "my_arm", **BOOTSTRAP)
    assert {pair.metric for pair in found} == {"locality"}
    pair = find(found, "base", "locality")  # KL of my_arm 0, 0.1, 0.2, 0.3; of base 0
    assert pair.mean == pytest.approx(-0.15)
    assert (pair.wins, pair.ties, pair.losses) == (3, 1, 0)
    assert pair.lower < pair.mean < pair.upper <= 0


def test_turning_a_pair_round_turns_its_sign() -> None:
    scores = hand_scores()
    there = find(pairs(scores, "token_accuracy", "base", **BOOTSTRAP), "my_arm", "reliability")
    back = find(pairs(scores, "token_accuracy", "my_arm", **BOOTSTRAP), "base", "reliability")
    assert (there.wins, there.ties, there.losses) == (back.losses, back.ties, back.wins)
    assert (there.mean, there.lower, there.upper) == pytest.approx(
        (-back.mean, -back.upper, -back.lower)
    )


def test_rounding_is_no_win_but_a_small_difference_is() -> None:
    scores = hand_scores()
    base = scores["score"].sel(editor="base").values
    for shift, wins in ((1e-12, 0), (1e-6, 4)):
        scores["score"].loc[{"editor": "my_arm"}] = base + shift
        pair = find(pairs(scores, "token_accuracy", "base", **BOOTSTRAP), "my_arm", "reliability")
        assert (pair.wins, pair.ties, pair.losses) == (wins, 4 - wins, 0)


def test_every_arm_has_the_same_resamples_and_the_seed_changes_them() -> None:
    scores = hand_scores()
    scores["score"].loc[{"editor": "few"}] = scores["score"].sel(editor="my_arm").values + 1
    found = pairs(scores, "token_accuracy", "base", **BOOTSTRAP)
    one, other = (find(found, arm, "reliability") for arm in ("my_arm", "few"))
    assert (other.lower, other.upper) == pytest.approx((one.lower + 1, one.upper + 1))
    scores["score"].values[:] = np.random.default_rng(1).random(scores["score"].shape)
    by_seed = [
        find(pairs(scores, "exact", "base", **BOOTSTRAP, seed=s), "few", "generality")
        for s in (0, 0, 1)
    ]
    assert by_seed[0] == by_seed[1] != by_seed[2]


def test_a_reference_without_scores_is_refused() -> None:
    for name in ("broken", "unknown"):
        with pytest.raises(
            ValueError, match=rf"reference '{name}' has no scores in mode 'kl'.*'my_arm', 'base'"
        ):
            pairs(hand_scores(), "kl", name, **BOOTSTRAP)


def test_summary_has_means_intervals_and_the_floor_of_the_same_rules() -> None:
    got = summary(hand_scores(), "token_accuracy", **BOOTSTRAP, seed=3)
    assert got["mean"].dims == ("editor", "metric")
    assert got["metric"].values.tolist() == list(METRICS)
    for arm in ("my_arm", "base", "few"):
        for metric, values in AFTER[arm].items():
            one = got.sel(editor=arm, metric=metric)
            known = np.flatnonzero(~np.isnan(values))
            assert one["n"].item() == len(known)
            assert one["mean"].item() == pytest.approx(np.asarray(values)[known].mean())
            assert one["before"].item() == pytest.approx(
                1 if metric == "locality" else (known + 1).mean() / 10
            )
            expected = interval(values, seed=3) if len(known) > 1 else (NAN, NAN)
            assert (one["lower"].item(), one["upper"].item()) == pytest.approx(
                expected, nan_ok=True
            )

    floor = got.sel(editor="unedited")
    assert floor["mean"].sel(metric="reliability").item() == pytest.approx(0.25)
    expected = interval((0.1, 0.2, 0.3, 0.4), seed=3)
    one = floor.sel(metric="reliability")
    assert (one["lower"].item(), one["upper"].item()) == pytest.approx(expected)
    assert np.isnan(floor["mean"].sel(metric="locality").item())


def test_numbers_are_those_of_the_tables() -> None:
    scores = hand_scores()
    rows = numbers(scores, ["token_accuracy", "kl"], "base", **BOOTSTRAP)
    by_place = {(row["arm"], row["metric"], row["mode"]): row for row in rows}
    assert len(by_place) == len(rows)
    assert [row["arm"] for row in rows[:: len(METRICS)]][:4] == [
        "unedited",
        "my_arm",
        "base",
        "few",
    ]
    for mode in ("token_accuracy", "kl"):
        means = summary(scores, mode, **BOOTSTRAP)
        for pair in pairs(scores, mode, "base", **BOOTSTRAP):
            row = by_place[pair.arm, pair.metric, mode]
            said = [row[name] for name in ("difference", "difference_lower", "difference_upper")]
            assert said == pytest.approx([pair.mean, pair.lower, pair.upper], nan_ok=True)
            assert (row["wins"], row["ties"], row["losses"]) == (pair.wins, pair.ties, pair.losses)
            expected = means["mean"].sel(editor=pair.arm, metric=pair.metric).item()
            assert row["mean"] == pytest.approx(expected, nan_ok=True)
            assert row["reference"] == "base"
    assert "difference" not in by_place["base", "locality", "kl"]
    assert "difference" not in by_place["unedited", "locality", "kl"]


SHIFT = 0.001
"""Added to scores that are printed, so that none lies halfway between two hundredths."""


def cell(values: tuple[float, ...]) -> str:
    low, high = interval(np.asarray(values) + SHIFT)
    return f"{np.nanmean(values) + SHIFT:.2f} [{low:.2f}, {high:.2f}]"


def test_comparison_table_puts_the_floor_first() -> None:
    table = comparison_table(
        hand_scores() + SHIFT, "token_accuracy", {"broken": 4, "few": 1, "gone_too": 2}, **BOOTSTRAP
    )
    lines = table.markdown.splitlines()
    assert lines[0] == "| Arm | Rel. | IP | Loc. | n | failed |"
    floors = (cell((0.1, 0.2, 0.3, 0.4)), cell((0.1, 0.2, NAN, 0.4)))
    assert lines[2] == f"| unedited | {floors[0]} | {floors[1]} | – | 4 | – |"
    mine = [cell(values) for values in AFTER["my_arm"].values()]
    assert lines[3] == f"| my\\_arm | {' | '.join(mine)} | 4 | 0 |"
    assert (
        lines[5]
        == f"| few | {cell(AFTER['few']['reliability'])} | 0.50 | 0.50 [0.50, 0.50] | 2 | 1 |"
    )
    assert lines[6:8] == ["| broken | – | – | – | 0 | 4 |", "| gone\\_too | – | – | – | 0 | 2 |"]
    assert "90 % bootstrap interval" in lines[-1] and "token\\_accuracy" in lines[-1]
    rows = table.latex.splitlines()
    assert rows[:4] == [
        "\\begin{tabular}{lccccc}",
        "\\toprule",
        "Arm & Rel. & IP & Loc. & n & failed \\\\",
        "\\midrule",
    ]
    assert rows[4].startswith("unedited & ") and rows[5] == "\\midrule"
    shielded = [text.replace("[", "{[}").replace("]", "{]}") for text in mine]
    assert rows[6] == f"my\\_arm & {' & '.join(shielded)} & 4 & 0 \\\\"


def test_comparison_table_of_no_failure_has_no_such_column() -> None:
    table = comparison_table(
        hand_scores().sel(editor=["my_arm", "base"]), "token_accuracy", {"base": 0}, **BOOTSTRAP
    )
    lines = table.markdown.splitlines()
    assert lines[0] == "| Arm | Rel. | IP | Loc. | n |"
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| unedited", "| my\\_arm", "| base"]


def test_one_rule_has_no_interval() -> None:
    scores = hand_scores(1).sel(editor=["my_arm", "base"])
    lines = comparison_table(scores, "token_accuracy", {}, **BOOTSTRAP).markdown.splitlines()
    assert lines[2:4] == [
        "| unedited | 0.10 | 0.10 | – | 1 |",
        "| my\\_arm | 0.90 | 0.40 | 1.00 | 1 |",
    ]
    table = pair_table(pairs(scores, "token_accuracy", "base", **BOOTSTRAP), "token_accuracy")
    assert (
        table.markdown.splitlines()[2]
        == "| my\\_arm | +0.20, 1/0/0 | +0.30, 1/0/0 | +0.00, 0/1/0 |"
    )


def test_pair_table_shows_differences_and_counts() -> None:
    found = [
        Pair("my_arm", "the_base", "reliability", 0.071, 0.02, 0.11, 9, 1, 2, 12),
        Pair("my_arm", "the_base", "locality", -0.001, -0.123, 0.0, 0, 3, 2, 5),
        Pair("other", "the_base", "reliability", NAN, NAN, NAN, 0, 0, 0, 0),
    ]
    table = pair_table(found, "token_accuracy")
    lines = table.markdown.splitlines()
    assert lines[0] == "| Arm − the\\_base | Rel. | Loc. |"
    assert lines[2] == "| my\\_arm | +0.07 [0.02, 0.11], 9/1/2 | +0.00 [−0.12, 0.00], 0/3/2 |"
    assert lines[3] == "| other | – | – |"
    assert "higher is better" in lines[-1]
    assert (
        "my\\_arm & +0.07 {[}0.02, 0.11{]}, 9/1/2 & +0.00 {[}$-$0.12, 0.00{]}, 0/3/2 \\\\\nother &"
        " -- & -- \\\\" in table.latex
    )
    kl = pair_table(found[1:2], "kl").markdown.splitlines()
    assert kl[2] == "| my\\_arm | −0.001 [−0.123, 0.000], 0/3/2 |"
    assert "lower is better" in kl[-1]


def test_pair_table_needs_one_reference() -> None:
    pair = Pair("a", "b", "locality", 0.0, 0.0, 0.0, 0, 1, 0, 1)
    with pytest.raises(ValueError, match="needs one reference, not 0"):
        pair_table([], "kl")
    with pytest.raises(ValueError, match=r"not 2: \['b', 'c'\]"):
        pair_table([pair, Pair("a", "c", "locality", 0.0, 0.0, 0.0, 0, 1, 0, 1)], "kl")
