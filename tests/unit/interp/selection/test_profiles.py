"""Layer profiles against loops written out, and the labelled wrapper against its array core."""

import numpy as np
import pytest
import xarray as xr

from interp import vocabulary
from interp.config import ProfileConfig
from interp.results import effects
from interp.selection.profiles import bootstrap_mean, layer_profile, mean_by_role, resample_counts
from interp.vocabulary import LOOKUP

ROLES = ("prefix", "subject_first", "subject_last", "rule_word", "rule_word", "last")
NAMES: list[tuple[str, ...]] = [
    ("rule_word",),
    ("subject_last", "rule_word"),
    ("number",),
    ("last",),
]


def with_holes(shape: tuple[int, ...], share: float = 0.3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    values[rng.random(shape) < share] = np.nan
    return values


# The array core.


def test_mean_by_role_equals_a_loop() -> None:
    effect = with_holes((2, 3, 6))
    got = mean_by_role(effect, np.array(ROLES, dtype=object), NAMES)
    assert got.shape == (2, 3, 4)
    for place in np.ndindex(2, 3):
        for i, names in enumerate(NAMES):
            found = [effect[(*place, t)] for t, role in enumerate(ROLES) if role in names]
            found = [value for value in found if not np.isnan(value)]
            expected = sum(found) / len(found) if found else np.nan
            np.testing.assert_allclose(got[(*place, i)], expected, rtol=1e-12)


def test_mean_by_role_pools_tokens_not_roles() -> None:
    effect = np.array([1.0, 2.0, 3.0, 10.0, 20.0, 7.0])
    np.testing.assert_allclose(
        mean_by_role(effect, np.array(ROLES), NAMES), [15.0, 11.0, np.nan, 7.0]
    )


def test_resample_counts_are_draws_with_replacement() -> None:
    counts = resample_counts(7, 4000, seed=3)
    assert counts.shape == (4000, 7)
    np.testing.assert_array_equal(counts.sum(1), 7)
    # Binomial(7, 1/7): mean 1, variance 6/7.
    np.testing.assert_allclose(counts.mean(0), 1, atol=4 * (6 / 7 / 4000) ** 0.5)
    np.testing.assert_allclose(counts.var(0), 6 / 7, rtol=0.15)
    np.testing.assert_array_equal(counts, resample_counts(7, 4000, seed=3))
    assert not np.array_equal(counts, resample_counts(7, 4000, seed=4))


def slow_bootstrap(
    values: np.ndarray, draws: int, confidence: float, seed: int
) -> tuple[np.ndarray, ...]:
    """Mean and interval of one column, resample by resample, rule by rule."""
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return (known.mean() if len(known) else np.nan), np.nan, np.nan
    means = []
    for counts in resample_counts(len(values), draws, seed):
        drawn = [
            v
            for v, count in zip(values, counts, strict=True)
            for _ in range(int(count))
            if not np.isnan(v)
        ]
        if drawn:
            means.append(sum(drawn) / len(drawn))
    tail = (1 - confidence) / 2
    return known.mean(), *np.quantile(means, [tail, 1 - tail])


@pytest.mark.parametrize("shape", [(6, 4), (2, 3), (1, 3), (5, 1), (4, 2, 3)])
@pytest.mark.parametrize("share", [0.0, 0.4])
def test_bootstrap_mean_equals_a_loop(shape: tuple[int, ...], share: float) -> None:
    values = with_holes(shape, share, seed=2)
    got = bootstrap_mean(values, draws=60, confidence=0.9, seed=5)
    for part in got:
        assert part.shape == shape[1:]
    for place in np.ndindex(shape[1:]):
        expected = slow_bootstrap(values[(slice(None), *place)], 60, 0.9, 5)
        np.testing.assert_allclose([part[place] for part in got], expected, rtol=1e-12)


def test_bootstrap_mean_of_nothing_is_nan() -> None:
    values = np.array([[np.nan, 1.0, 2.0], [np.nan, np.nan, 4.0]])
    mean, lower, upper = bootstrap_mean(values, draws=50, confidence=0.95, seed=0)
    np.testing.assert_array_equal(mean, [np.nan, 1.0, 3.0])
    np.testing.assert_array_equal(lower, [np.nan, np.nan, 2.0])
    np.testing.assert_array_equal(upper, [np.nan, np.nan, 4.0])


def test_bootstrap_draws_are_paired() -> None:
    # The same draws for every entry: what is always larger by 5 has bounds larger by exactly 5.
    values = with_holes((8, 1), 0.0)
    _, lower, upper = bootstrap_mean(
        np.concatenate([values, values + 5], axis=1), draws=40, confidence=0.9, seed=1
    )
    np.testing.assert_allclose(lower[1] - lower[0], 5, rtol=1e-12)
    np.testing.assert_allclose(upper[1] - upper[0], 5, rtol=1e-12)


def test_bootstrap_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 2.0, size=(40, 1000))
    _, lower, upper = bootstrap_mean(values, draws=400, confidence=0.9, seed=1)
    covered = ((lower < 1) & (upper > 1)).mean()
    assert 0.84 < covered < 0.93  # percentile intervals of 40 values are a little short


# The labelled profile.


def joined(
    rules: int = 4, layers: int = 3, components: tuple[str, ...] = ("resid", "mlp")
) -> xr.Dataset:
    """Maps of two forms; rule 1 is not traceable in its formula, rule 2 has no instance."""
    maps = {}
    for rule in range(rules):
        for form in ("formula", "instance"):
            if (rule, form) == (2, "instance"):
                continue
            rng = np.random.default_rng([rule, form == "instance"])
            roles = ROLES if rule % 2 == 0 else ROLES[1:]
            corrupted = rng.normal(-3, 0.05, 4)
            score = corrupted + rng.normal(0.5, 1, (len(components), layers, len(roles), 4))
            score[:, :, -1] = np.nan  # the last token was not traced
            maps[f"rule{rule}", form] = effects.effect_map(
                score,
                clean=-3.2 if (rule, form) == (1, "formula") else -1.0,
                corrupted=corrupted,
                components=components,
                tokens=["t"] * len(roles),
                roles=roles,
                is_corrupted=[False] * len(roles),
                prompt="p",
                answer="a",
                attrs={"model": "tiny"},
            )
    return effects.concat(maps)


CONFIG = ProfileConfig(
    bootstrap=50, confidence=0.8, seed=3, lookup_roles=("subject_last", "rule_word")
)


def test_layer_profile_effects_equal_a_loop_over_prompts() -> None:
    maps = joined()
    profile = layer_profile(maps, CONFIG)
    assert profile["effect"].dims == ("rule", "form", "component", "role", "layer")
    for rule in maps["rule"].values:
        for form in maps["form"].values:
            got = profile["effect"].sel(rule=rule, form=form)
            if not bool(profile["traceable"].sel(rule=rule, form=form)):
                assert np.isnan(got).all()
                continue
            one = effects.select_map(maps, rule, form)
            restored = (one["score"] - one["corrupted"]).mean("sample")
            for role in (*vocabulary.ROLES, LOOKUP):
                names = CONFIG.lookup_roles if role == LOOKUP else (role,)
                tokens = [i for i, name in enumerate(one["role"].values) if name in names]
                expected = (
                    restored.values[..., tokens].mean(-1) if tokens else np.full((2, 3), np.nan)
                )
                np.testing.assert_allclose(got.sel(role=role).values, expected, rtol=1e-5)


def test_layer_profile_means_are_those_of_the_array_core() -> None:
    profile = layer_profile(joined(), CONFIG)
    expected = bootstrap_mean(profile["effect"].values, draws=50, confidence=0.8, seed=3)
    for name, values in zip(("aie", "lower", "upper"), expected, strict=True):
        np.testing.assert_array_equal(profile[name].values, values)
    total = profile["total_effect"].where(profile["traceable"]).values
    for name, values in zip(
        ("te", "te_lower", "te_upper"),
        bootstrap_mean(total, draws=50, confidence=0.8, seed=3),
        strict=True,
    ):
        np.testing.assert_array_equal(profile[name].values, values)


def test_layer_profile_leaves_untraceable_prompts_out_and_counts_them() -> None:
    profile = layer_profile(joined(), CONFIG)
    assert profile["traceable"].values.tolist() == [
        [True, True],
        [False, True],
        [True, False],
        [True, True],
    ]
    assert (profile.attrs["n_prompts"], profile.attrs["n_untraceable"]) == (7, 1)
    assert profile["n"].sel(role=LOOKUP).values.tolist() == [[3, 3], [3, 3]]
    assert profile["n"].sel(role="prefix").values.tolist() == [
        [2, 2],
        [1, 1],
    ]  # odd rules have no prefix
    assert (profile["n"].sel(role=["last", "number"]) == 0).all()
    # The total effect of the untraceable prompt is told, and not averaged.
    assert profile["total_effect"].sel(rule="rule1", form="formula") == pytest.approx(
        -0.2, abs=0.15
    )
    assert profile["te"].sel(form="formula") == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(("rules", "layers"), [(1, 3), (4, 1), (1, 1)])
def test_layer_profile_of_one_rule_or_one_layer(rules: int, layers: int) -> None:
    profile = layer_profile(joined(rules, layers, ("mlp",)), CONFIG)
    assert (profile.sizes["rule"], profile.sizes["layer"]) == (rules, layers)
    lookup = profile.sel(role=LOOKUP, form="instance", component="mlp")
    assert np.isfinite(lookup["aie"]).all()
    assert np.isfinite(lookup["lower"]).all() == (rules > 1)
    if rules == 1:
        np.testing.assert_array_equal(lookup["aie"], lookup["effect"].isel(rule=0))


def test_layer_profile_keeps_the_provenance_of_the_maps() -> None:
    attrs = layer_profile(joined(), CONFIG).attrs
    assert (attrs["model"], attrs["unit"], attrs["schema"]) == ("tiny", "nats", "dmle.profile/1")
    assert (attrs["bootstrap"], attrs["bootstrap_seed"], attrs["confidence"]) == (50, 3, 0.8)
    assert attrs["lookup_roles"] == "subject_last rule_word"
