"""Effect maps: quantities by hand, joining and saving without loss."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from interp.results import effects

COMPONENTS = ("resid", "mlp")
ROLE_NAMES = ("prefix", "subject_last", "after", "last")


def one_map(
    tokens: int = 4, *, layers: int = 2, samples: int = 3, seed: int = 0, **attrs: str | int | float
) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    return effects.effect_map(
        rng.normal(size=(2, layers, tokens, samples)),
        clean=-0.5,
        corrupted=rng.normal(-3, 0.1, samples),
        components=COMPONENTS,
        tokens=[f" t{i}" for i in range(tokens)],
        roles=[ROLE_NAMES[min(i, 3)] for i in range(tokens)],
        is_corrupted=[i == 1 for i in range(tokens)],
        prompt=f"prompt {seed} π",
        answer=f"answer {seed}",
        attrs=attrs,
    )


def by_hand() -> xr.Dataset:
    """One component, layer and three positions; corrupted -4 and -2, clean -1.2, the last
    position untraced."""
    score = np.array([[[[-4.0, -2.0], [-1.0, -2.5], [np.nan, np.nan]]]])
    return effects.effect_map(
        score,
        clean=-1.2,
        corrupted=np.array([-4.0, -2.0]),
        components=["mlp"],
        tokens=["a", "b", "c"],
        roles=["prefix", "subject_last", "last"],
        is_corrupted=[False, True, False],
        prompt="abc",
        answer="d",
    )


# Quantities.


def test_indirect_effect_by_hand() -> None:
    effect = effects.indirect_effect(by_hand())
    assert effect.dims == ("component", "layer", "pos")
    # (-1 - -4) and (-2.5 - -2) are 3 and -0.5.
    np.testing.assert_array_equal(effect.squeeze(), [0.0, 1.25, np.nan])
    assert effect.attrs["unit"] == "nats"


def test_total_effect_by_hand() -> None:
    total = effects.total_effect(by_hand())
    assert total["total_effect"].item() == pytest.approx(1.8)  # (2.8 + 0.8) / 2
    assert total["standard_error"].item() == pytest.approx(1.0)  # deviation √2 over √2 samples
    assert not total["traceable"].item()  # 1.8 is not above two standard errors of 1


@pytest.mark.parametrize(
    ("clean", "corrupted", "traceable"),
    [
        (-1.0, (-4.0, -2.1), True),  # 2.05 against two standard errors of 0.95
        (-1.0, (-4.0, -1.9), False),  # 1.95 against two of 1.05
        (-3.0, (-2.0, -2.0), False),  # corruption helps: certain, but of the wrong sign
        (-2.0, (-2.0, -2.0), False),
        (-1.0, (-2.0, -2.0), True),
    ],
)
def test_traceable_needs_a_positive_effect_above_the_noise(
    clean: float, corrupted: tuple[float, float], traceable: bool
) -> None:
    item = by_hand().assign(
        clean=((), np.float32(clean)), corrupted=("sample", np.array(corrupted, dtype=np.float32))
    )
    assert effects.total_effect(item)["traceable"].item() is traceable


def test_normalised_recovery_by_hand() -> None:
    item = by_hand().assign(
        clean=((), np.float32(-1)), corrupted=("sample", np.array([-3.0, -3.0], dtype=np.float32))
    )
    # Total effect 2; restored -3 and -1.75 on average, over a corrupted -3.
    recovery = effects.normalised_recovery(item)
    np.testing.assert_array_equal(recovery.squeeze(), [0.0, 0.625, np.nan])
    assert recovery.attrs["unit"] == "fraction of total effect"


def test_normalised_recovery_of_an_untraceable_prompt_is_nan() -> None:
    assert np.isnan(effects.normalised_recovery(by_hand())).all()


# Labelling.


def test_effect_map_refuses_a_shape_that_the_labels_do_not_give() -> None:
    with pytest.raises(
        ValueError, match=r"shape \(1, 2, 3, 4\), but the labels give .* = \(2, 2, 3, 5\)"
    ):
        effects.effect_map(
            np.zeros((1, 2, 3, 4)),
            0.0,
            np.zeros(5),
            components=COMPONENTS,
            tokens=["a"] * 3,
            roles=["after"] * 3,
            is_corrupted=[False] * 3,
            prompt="",
            answer="",
        )


@pytest.mark.parametrize(
    ("components", "roles", "flags", "message"),
    [
        (
            ["mlp"],
            ["after"],
            [True] * 2,
            "got 2 tokens, 1 roles, 2 corruption flags; need one of each",
        ),
        (
            ["mlp"],
            ["after", "verb"],
            [True] * 2,
            r"unknown label \['verb'\]; known are .*subject_last",
        ),
        (
            ["mpl"],
            ["after"] * 2,
            [True] * 2,
            r"unknown label \['mpl'\]; known are \('resid', 'mlp', 'attn'",
        ),
    ],
)
def test_effect_map_refuses_labels_that_do_not_fit(
    components: list[str], roles: list[str], flags: list[bool], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        effects.effect_map(
            np.zeros((1, 1, 2, 3)),
            0.0,
            np.zeros(3),
            components=components,
            tokens=["a", "b"],
            roles=roles,
            is_corrupted=flags,
            prompt="",
            answer="",
        )


# Joining.


def joined() -> tuple[dict[tuple[str, str], xr.Dataset], xr.Dataset]:
    maps = {
        ("b", "formula"): one_map(
            4, seed=1, model="tiny", unit="nats", rule_name="of b", seed_used=1
        ),
        ("b", "instance"): one_map(
            6, seed=2, model="tiny", unit="nats", rule_name="of b", seed_used=1
        ),
        ("a", "formula"): one_map(
            3, seed=3, model="tiny", unit="nats", rule_name="of a", seed_used=1
        ),
    }
    return maps, effects.concat(maps)


def test_concat_pads_with_nan_and_cuts_nothing() -> None:
    maps, together = joined()
    assert dict(together.sizes) == {
        "rule": 2,
        "form": 2,
        "component": 2,
        "layer": 2,
        "pos": 6,
        "sample": 3,
    }
    assert list(together["rule"].values) == ["b", "a"] and list(together["form"].values) == [
        "formula",
        "instance",
    ]
    assert together["n_tokens"].values.tolist() == [[4, 6], [3, 0]]
    score = together["score"].sel(rule="a", form="formula").values
    np.testing.assert_array_equal(score[..., :3, :], maps["a", "formula"]["score"].values)
    assert np.isnan(score[..., 3:, :]).all()
    assert together["token"].sel(rule="a", form="formula").values.tolist() == [
        " t0",
        " t1",
        " t2",
        "",
        "",
        "",
    ]
    assert np.isnan(together["score"].sel(rule="a", form="instance")).all()
    assert np.isnan(together["clean"].sel(rule="a", form="instance"))


def test_concat_keeps_every_value() -> None:
    maps, together = joined()
    kept = int(together["score"].notnull().sum())
    assert kept == sum(item["score"].size for item in maps.values())
    total = sum(float(item["score"].astype(float).sum()) for item in maps.values())
    assert float(together["score"].astype(float).sum()) == pytest.approx(total)


def test_concat_turns_attributes_that_differ_into_coordinates() -> None:
    _, together = joined()
    assert together.attrs["model"] == "tiny" and together.attrs["seed_used"] == 1
    assert together.attrs["schema"] == "dmle.effects/2"
    assert "rule_name" not in together.attrs
    assert together["rule_name"].values.tolist() == [["of b", "of b"], ["of a", ""]]
    assert together["rule_name"].dims == ("rule", "form")


@pytest.mark.parametrize("key", [("b", "formula"), ("b", "instance"), ("a", "formula")])
def test_select_map_gives_back_what_was_joined(key: tuple[str, str]) -> None:
    maps, together = joined()
    original, back = maps[key], effects.select_map(together, *key)
    for name in (
        "score",
        "clean",
        "corrupted",
        "token",
        "role",
        "is_corrupted",
        "prompt",
        "answer",
    ):
        np.testing.assert_array_equal(back[name].values, original[name].values)
        assert back[name].dims == original[name].dims


@pytest.mark.parametrize("key", [("a", "instance"), ("c", "formula"), ("a", "verse")])
def test_select_map_refuses_a_prompt_without_a_map(key: tuple[str, str]) -> None:
    with pytest.raises(
        ValueError, match=rf"no map for rule '{key[0]}', form '{key[1]}'; rules: \['b', 'a'\]"
    ):
        effects.select_map(joined()[1], *key)


def test_concat_refuses_maps_of_different_configurations() -> None:
    with pytest.raises(ValueError, match="has 3 along layer, others have 2 or other labels"):
        effects.concat({("a", "formula"): one_map(), ("b", "formula"): one_map(layers=3)})
    with pytest.raises(ValueError, match="no effect maps to join; trace at least one prompt first"):
        effects.concat({})


# Files.


def test_load_gives_back_what_was_saved(tmp_path: Path) -> None:
    for name, dataset in {"one": one_map(window=3, noise="e3"), "joined": joined()[1]}.items():
        path = tmp_path / "deeper" / f"{name}.nc"
        effects.save(dataset, path)
        back = effects.load(path)
        xr.testing.assert_identical(back, dataset)
        assert back["score"].dtype == np.float32 and back["is_corrupted"].dtype == bool
        assert [p.name for p in path.parent.iterdir() if "partial" in p.name] == []


def test_save_that_fails_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    path = tmp_path / "map.nc"
    effects.save(one_map(seed=1), path)
    before = path.read_bytes()
    bad = one_map(seed=2).assign_attrs(impossible={"a": object()})
    with pytest.raises(TypeError):
        effects.save(bad, path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["map.nc"]  # noqa: PTH208


def test_save_puts_a_new_file_in_the_place_of_the_old_one(tmp_path: Path) -> None:
    # A reader, or a link, that has the old file keeps it whole: nothing is written into it.
    path, link = tmp_path / "map.nc", tmp_path / "link.nc"
    effects.save(one_map(seed=1), path)
    link.hardlink_to(path)
    effects.save(one_map(seed=2), path)
    xr.testing.assert_identical(effects.load(link), one_map(seed=1))
    xr.testing.assert_identical(effects.load(path), one_map(seed=2))


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_load_refuses_a_damaged_file(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "map.nc"
    effects.save(one_map(), path)
    content = path.read_bytes()
    path.write_bytes(
        {"cut": content[: len(content) // 2], "garbage": b"not netcdf", "empty": b""}[damage]
    )
    with pytest.raises(
        ValueError,
        match=r"map\.nc is not a readable NetCDF file: .*; delete it and run the command",
    ):
        effects.load(path)


def test_load_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"map\.nc does not exist; run the command that writes it first"
    ):
        effects.load(tmp_path / "map.nc")


# Several metrics, both directions, estimated sites.


def several_metrics(pos: int = 4, seed: int = 1, **attrs: Any) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    return effects.effect_map(
        rng.normal(size=(2, 2, 5, pos, 3)),
        np.array([1.0, 0.5]),
        rng.normal(size=(2, 3)),
        components=["resid", "mlp"],
        tokens=[f" t{i}" for i in range(pos)],
        roles=["after"] * pos,
        is_corrupted=[True] * pos,
        prompt="p",
        answer="a",
        attrs=attrs,
        metrics={"mean_log_prob": "nats per answer token", "first_token_prob": "probability"},
        exact=rng.random((2, 5, pos, 3)) < 0.5,
    )


def test_choose_metric_gives_the_map_of_one() -> None:
    whole = several_metrics()
    one = effects.choose_metric(whole, "first_token_prob")
    assert one.attrs["unit"] == "probability" and one.attrs["metric"] == "first_token_prob"
    np.testing.assert_array_equal(one["score"], whole["score"][1])
    np.testing.assert_array_equal(
        effects.indirect_effect(one), (whole["score"] - whole["corrupted"])[1].mean("sample")
    )
    assert effects.choose_metric(whole).attrs["metric"] == "mean_log_prob"
    alone = effects.choose_metric(one, "first_token_prob")
    assert alone.identical(one)
    with pytest.raises(
        ValueError, match=r"no metric 'negative_kl', only \['mean_log_prob', 'first_token_prob'\]"
    ):
        effects.choose_metric(whole, "negative_kl")


def test_the_effect_of_noising_is_what_the_clean_run_loses() -> None:
    item = effects.choose_metric(several_metrics(direction="noise"))
    np.testing.assert_allclose(
        effects.indirect_effect(item), item["clean"] - item["score"].mean("sample"), rtol=1e-6
    )


def test_one_sample_has_no_error_and_is_traceable() -> None:
    item = effects.choose_metric(several_metrics()).isel(sample=[0])
    te = effects.total_effect(item)
    assert te["standard_error"] == 0 and bool(te["traceable"]) == bool(
        item["clean"] > item["corrupted"][0]
    )


@pytest.mark.parametrize("make", [one_map, several_metrics])
def test_joining_files_gives_what_joining_in_memory_gives(make: Any, tmp_path: Path) -> None:
    maps = {
        ("b", "formula"): make(4, seed=1, model="tiny"),
        ("a", "instance"): make(7, seed=2, model="tiny"),
        ("b", "instance"): make(3, seed=3, model="other"),
    }
    paths = {key: tmp_path / f"{'-'.join(key)}.nc" for key in maps}
    for key, item in maps.items():
        effects.save(item, paths[key])
    effects.join(paths, tmp_path / "joined.nc", {"n_skipped": 0})
    got, wanted = (
        effects.load(tmp_path / "joined.nc"),
        effects.concat(maps).assign_attrs(n_skipped=0),
    )
    xr.testing.assert_identical(got, wanted)
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []
    with effects.opened(tmp_path / "joined.nc") as lazy:
        xr.testing.assert_identical(
            effects.select_map(lazy, "a", "instance").load(),
            effects.select_map(wanted, "a", "instance"),
        )


def test_maps_of_different_kinds_are_not_joined() -> None:
    with pytest.raises(
        ValueError, match="some maps have several metrics or estimated sites, others not"
    ):
        effects.concat(
            {
                ("a", "formula"): several_metrics(),
                ("b", "formula"): several_metrics().drop_vars("exact"),
            }
        )
