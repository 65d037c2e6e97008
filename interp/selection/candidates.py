"""The layers that may be chosen, and what is read of a profile for them.

Layers whose window holds one of the first `identity_blocks` blocks are no candidates and their
windows are not read: their effect is mostly that the corrupted word comes back. Where windows of
blocks are restored (see `interp.tracing.windows`), the effect of a layer is the mean over the
windows that hold it (`interp.selection.pickers.block_shares`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.config import SelectConfig
from interp.errors import InputError, NotTraceableError
from interp.results.intervals import mean_of_known
from interp.selection.pickers import block_shares
from interp.selection.reasons import NEGLIGIBLE
from interp.selection.strategy import Strategy
from interp.tracing.windows import window
from interp.vocabulary import LOOKUP


@dataclass(frozen=True)
class Bounds:
    """Candidate layers, both ends included."""

    first: int
    last: int
    n_layers: int
    restored: int
    """Blocks restored together."""
    behind: int
    """Windows around earlier layers are not read."""

    def __len__(self) -> int:
        """How many there are."""
        return max(0, self.last - self.first + 1)

    @property
    def narrowed(self) -> bool:
        """Whether the settings leave out layers that could be read."""
        return self.first > self.behind or self.last < self.n_layers - 1

    def of(self, effect: np.ndarray) -> np.ndarray:
        """Effects of the candidates, shape (…, candidate), from those of all layers' windows,
        shape (…, layer).
        """
        return self.of_read(effect[..., self.behind :])

    def of_read(self, effect: np.ndarray) -> np.ndarray:
        """The same from the effects of the windows that are read only."""
        shares = block_shares(self.n_layers, self.restored, self.behind)
        return effect @ shares[self.first : self.last + 1, self.behind :].T


def first_candidate(component: str, restored: int, identity_blocks: int, n_layers: int) -> int:
    """First layer whose restored blocks are all behind the identity blocks; `n_layers` if there is
    none.

    >>> [first_candidate(*place, 30) for place in (("mlp", 6, 1), ("resid", 6, 1), ("mlp", 6, 0))]
    [4, 1, 0]
    """
    widths = (_restored(component, restored), n_layers)
    behind = (layer for layer in range(n_layers) if window(layer, *widths).start >= identity_blocks)
    return next(behind, n_layers)


def _restored(component: str, restored: int) -> int:
    """Blocks that a component restores together, where windows have `restored`: the stream and
    `…_single` have one.
    """
    return restored if component in ("mlp", "attn") else 1


def candidates(profile: xr.Dataset, config: SelectConfig) -> Bounds:
    """The layers behind the identity blocks and within the bounds of the settings.

    Raises:
        InputError: There is none, or the profile has no such component.
    """
    n_layers = profile.sizes["layer"]
    restored = _restored(config.component, int(profile.attrs.get("window", 1)))
    behind = first_candidate(config.component, restored, config.identity_blocks, n_layers)
    first = max(config.first, behind)
    last = n_layers - 1 if config.last is None else min(config.last, n_layers - 1)
    bounds = Bounds(first, last, n_layers, restored, behind)
    if first > last:
        raise InputError(
            f"none of the model's {n_layers} layers is a candidate ({_in_words(bounds, config)});"
            " lower select.identity_blocks or trace.window, or widen select.first and select.last"
        )
    if config.component not in profile["component"].values:
        raise InputError(
            f"the profile has no component {config.component!r}, only "
            f"{profile['component'].values.tolist()}; trace it first"
        )
    return bounds


def candidates_of(profile: xr.Dataset, config: SelectConfig, strategy: Strategy) -> Bounds:
    """The same, if they are as many as a strategy needs.

    Raises:
        InputError: They are fewer, or as for `candidates`.
    """
    bounds = candidates(profile, config)
    needed = 1 if strategy.size is None else getattr(config, strategy.size)
    # A segment needs a layer beside it that is lower, unless there is one candidate alone.
    outside = 1 if strategy.needs_outside and len(bounds) > 1 else 0
    if needed > len(bounds) - outside:
        beside = " and a segment needs one outside it" if outside else ""
        setting = f"select.{strategy.size}"
        raise InputError(
            f"{setting} is {needed}, but only {len(bounds)} of the model's {bounds.n_layers} layers"
            f" are candidates{beside} ({_in_words(bounds, config)}); lower {setting},"
            " select.identity_blocks or trace.window, or widen select.first and select.last"
        )
    return bounds


def candidate_windows(profile: xr.Dataset, config: SelectConfig) -> dict[int, range]:
    """By candidate layer: the blocks that are restored there.

    Raises:
        InputError: As for `candidates`.
    """
    bounds = candidates(profile, config)
    return {
        layer: window(layer, bounds.restored, bounds.n_layers)
        for layer in range(bounds.first, bounds.last + 1)
    }


def effects_of(
    profile: xr.Dataset,
    forms: Sequence[str],
    component: str,
    name: str = "effect",
    role: str = LOOKUP,
) -> np.ndarray:
    """Shape (form, rule, layer), of the forms that the profile has; NaN where a rule is not
    traceable in a form, or has no token of the role.
    """
    known = [form for form in forms if form in profile["form"].values]
    values = profile[name].sel(form=known, component=component, role=role)
    return values.transpose("form", "rule", "layer").values


def mean_effects(
    profile: xr.Dataset, forms: Sequence[str], component: str, role: str = LOOKUP
) -> np.ndarray:
    """Mean over the forms that a rule is traceable in, shape (rule, layer); NaN if there is
    none.
    """
    return mean_of_known(effects_of(profile, forms, component, role=role), 0)


def floor(profile: xr.Dataset, forms: Sequence[str]) -> float:
    """Effect of some forms up to which it counts as none, in the profile's unit."""
    known = [form for form in forms if form in profile["form"].values]
    return NEGLIGIBLE * float(profile["te"].sel(form=known).mean())


def untraceable(forms: Sequence[str]) -> NotTraceableError:
    """The error of forms that no rule is traceable in."""
    return NotTraceableError(
        f"no rule is traceable in its {' or '.join(forms)} form (total effect above two standard"
        " errors); use more noise samples, a wider corrupted span, or rules that the model knows"
    )


def _in_words(bounds: Bounds, config: SelectConfig) -> str:
    return (
        f"blocks {bounds.restored} wide are restored, behind the first {config.identity_blocks};"
        f" bounds {config.first} to {bounds.last}"
    )
