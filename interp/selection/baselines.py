"""Layers to compare a selection with: published ones, random windows, one layer, all layers, groups
reversed.

Each gives a `LayerSelection`, so that it can be edited and scored like one. None of them is
evidence: scores are None, but for the best single layer, which reads the profile.
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from interp.config import SelectConfig
from interp.errors import InputError
from interp.selection.layers import LayerSelection, given_layers
from interp.selection.published import PUBLISHED_BLOCK, published_block
from interp.selection.select import select_layers

Groups = Sequence[Sequence[str]]
GROUPS: Groups = SelectConfig().groups
"""The paper's grouping."""


def published(n_layers: int, groups: Groups = GROUPS) -> LayerSelection:
    """The published layers for every group, scaled to the depth (see
    `interp.selection.published.published_block`).
    """
    block = published_block(n_layers)
    words = (
        f"Layers {PUBLISHED_BLOCK[0]}–{PUBLISHED_BLOCK[-1]} of models with 28 to 32 blocks, scaled"
        f" to {n_layers} blocks."
    )
    return given_layers("published", n_layers, [(forms, block, words) for forms in groups])


def random_windows(
    n_layers: int,
    width: int,
    seed: int,
    groups: Groups = GROUPS,
    first: int = 0,
    last: int | None = None,
) -> LayerSelection:
    """A window for each group, drawn alike from all that fit between two layers, both included.

    Raises:
        InputError: No window fits.
    """
    end = n_layers if last is None else last + 1
    if not 0 < width <= end - first or first < 0 or end > n_layers:
        raise InputError(
            f"no window of {width} layers fits in {first} to {end - 1} of {n_layers}; lower width"
        )
    starts = np.random.default_rng(seed).integers(first, end - width + 1, len(groups))
    return given_layers(
        "random",
        n_layers,
        [
            (forms, range(int(start), int(start) + width), f"A random window, seed {seed}.")
            for forms, start in zip(groups, starts, strict=True)
        ],
    )


def best_layer(profile: xr.Dataset, config: SelectConfig | None = None) -> LayerSelection:
    """The single layer with the largest mean effect, for each group.

    Raises:
        InputError: As `select_layers`.
    """
    config = config or SelectConfig()
    single = config.model_copy(update={"strategy": "window", "width": 1})
    return select_layers(profile, single).model_copy(update={"strategy": "best-layer"})


def all_layers(n_layers: int, groups: Groups = GROUPS) -> LayerSelection:
    """Every layer, for every group."""
    return given_layers(
        "all", n_layers, [(forms, range(n_layers), "All layers.") for forms in groups]
    )


def reversed_assignment(selection: LayerSelection) -> LayerSelection:
    """The same layers with the groups' order reversed: of two groups, each gets the other's.

    Raises:
        InputError: There is one group only, which nothing can be exchanged with.
    """
    groups = selection.groups
    if len(groups) < 2:
        raise InputError(
            f"the selection has groups {[g.name for g in groups]}; two are needed to reverse them"
        )
    return given_layers(
        "reversed",
        selection.n_layers,
        [
            (to.forms, of.layers, f"The layers that were chosen for {of.name}.")
            for to, of in zip(groups, reversed(groups), strict=True)
        ],
    ).model_copy(update={"provenance": selection.provenance})
