"""Layer profiles against loops written out, and the labelled wrapper against its array core."""

import numpy as np
import pytest
import xarray as xr

from interp import vocabulary
from interp.config import ProfileConfig
from interp.results import effects
from interp.results.intervals import bootstrap_mean
from interp.selection.profiles import layer_profile, mean_by_role
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
