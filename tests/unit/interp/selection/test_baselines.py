"""Layers to compare with: where they come from, and that they are selections like any other."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from interp.config import SelectConfig
from interp.selection import baselines
from interp.selection.layers import LayerSelection, parse_layers
from interp.vocabulary import LOOKUP


def test_published_layers_are_the_same_for_every_group() -> None:
    selection = baselines.published(30)
    assert [group.forms for group in selection.groups] == [
        ("formula", "description"),
        ("instance",),
    ]
    assert all(group.layers == (4, 5, 6, 7, 8) for group in selection.groups)
    assert baselines.published(12, [("formula", "description", "instance")]).layers_of(
        "instance"
    ) == (2, 3, 4, 5, 6)
    assert "scaled to 30" in selection.groups[0].reason and selection.groups[0].score is None


def test_random_windows_are_seeded_and_drawn_alike_within_bounds() -> None:
    assert baselines.random_windows(30, 3, 5) == baselines.random_windows(30, 3, 5)
    counts: Counter[int] = Counter()
    together = 0
    for seed in range(1200):
        first, second = baselines.random_windows(12, 3, seed, first=4, last=9).groups
        for group in (first, second):
            assert group.layers == tuple(range(group.layers[0], group.layers[0] + 3))
            counts[group.layers[0]] += 1
        together += first.layers == second.layers
    assert sorted(counts) == [4, 5, 6, 7]
    assert all(abs(count - 600) < 4 * (2400 * 0.25 * 0.75) ** 0.5 for count in counts.values())
    assert abs(together - 300) < 4 * (1200 * 0.25 * 0.75) ** 0.5  # groups are drawn independently


@pytest.mark.parametrize("bounds", [(3, None, 6), (0, 1, 30), (0, 30, 30), (-1, 5, 30)])
def test_random_windows_refuse_what_does_not_fit(bounds: tuple[int, int | None, int]) -> None:
    first, last, n_layers = bounds
    with pytest.raises(ValueError, match="no window of 4 layers fits in"):
        baselines.random_windows(n_layers, 4, 0, first=first, last=last)


def test_best_layer_is_the_largest_of_the_profile() -> None:
    effect = np.random.default_rng(0).normal(size=(6, 3, 1, 1, 8))
    forms = ["formula", "description", "instance"]
    profile = xr.Dataset(
        {
            "effect": (("rule", "form", "component", "role", "layer"), effect),
            "te": ("form", np.ones(3)),
        },
        coords={
            "rule": list("abcdef"),
            "form": forms,
            "component": ["mlp"],
            "role": [LOOKUP],
            "layer": np.arange(8),
        },
    )
    selection = baselines.best_layer(
        profile, SelectConfig(strategy="mass", width=5, identity_blocks=0)
    )
    assert selection.layers_of("instance") == (int(effect[:, 2].mean((0, 1, 2)).argmax()),)
    assert selection.layers_of("formula") == (int(effect[:, :2].mean((0, 1, 2, 3)).argmax()),)
    assert selection.strategy == "best-layer"


def test_all_layers_and_reversed_groups() -> None:
    assert baselines.all_layers(4).layers_of("instance") == (0, 1, 2, 3)
    selection = parse_layers("3,4/7,8,9", 12)
    turned = baselines.reversed_assignment(selection)
    assert turned.layers_of("formula") == turned.layers_of("description") == (7, 8, 9)
    assert turned.layers_of("instance") == (3, 4)
    assert baselines.reversed_assignment(turned).layers_of("formula") == (3, 4)
    assert turned.groups[0].reason == "The layers that were chosen for instance."
    assert turned.n_layers == 12
    with pytest.raises(
        ValueError, match=r"has groups \['formula\+description\+instance'\]; two are needed"
    ):
        baselines.reversed_assignment(parse_layers("3", 12))


def test_baselines_are_saved_and_loaded_like_selections(tmp_path: Path) -> None:
    for selection in (
        baselines.published(30),
        baselines.random_windows(30, 3, 1),
        baselines.all_layers(3),
    ):
        selection.save(tmp_path / "s.json")
        assert LayerSelection.load(tmp_path / "s.json") == selection
