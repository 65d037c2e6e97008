"""Do the forms of a rule differ in depth? Centres of mass of layer profiles, and paired tests over
rules.

The paper's claim is an order: formula and description in earlier layers, instances in later ones.
Per rule and form, over the candidate layers and at the lookup tokens (the profile that the
selection reads):

- ``centre`` Σ layer · effect⁺ / Σ effect⁺, in layers: the centre of mass of the positive part of
  the profile.
- ``spread`` the standard deviation of layers with the same weights, in layers.
- ``peak`` the layer with the largest effect.

The layer of an effect is the middle of its restored window, (first block + last block) / 2: windows
of an even number of blocks do not stand evenly around their layer, and those at the end of the
model are cut.

Contrasts are differences of centres within a rule, first − second, positive if the first form is
*later*: every pair of forms, and instance against the mean of formula and description (`PAPER`).
Only rules that have all forms of a contrast count. The test flips the signs of rules' differences
(two-sided; all flips for few rules, else seeded draws with p = (1 + count) / (1 + draws)); p-values
of the pairs are corrected together (Holm 1979), the paper's contrast is one test of its own. Effect
sizes: the mean difference in layers with a bootstrap interval over rules, and Cohen's d_z, mean /
standard deviation of the differences.

A mean can be where no rule is: peaks of single rules stand beside it (`peaks`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr

from interp.config import SelectConfig
from interp.results.intervals import bootstrap_mean
from interp.selection.candidates import candidate_windows
from interp.selection.pickers import ROUNDING
from interp.selection.support import signs
from interp.vocabulary import LOOKUP

PAPER = (("instance",), ("formula", "description"))
"""The published order: instances later than formula and description."""


@dataclass(frozen=True)
class Contrast:
    """Centres of mass of some forms against those of others, over the rules that have both."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    n_rules: int
    difference: float
    """Mean of first − second, in layers; positive: first is later. NaN without a rule."""
    lower: float
    upper: float
    d_z: float
    """Mean over standard deviation of the differences; NaN below two rules or without any
    variation."""
    p_value: float
    p_holm: float
    """Corrected for all pairs of forms; the paper's contrast is not one of them and keeps its
    p-value."""
    later: int
    """Rules in which first is later."""

    @property
    def name(self) -> str:
        """The forms in words."""
        return f"{'+'.join(self.first)} − {'+'.join(self.second)}"


# -- arrays --------------------------------------------------------------------------------------


def centre_and_spread(effect: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass and standard deviation of the positive part of profiles, in layers.

    Args:
        effect: Shape (..., layer); NaN profiles and those without a positive effect give NaN.
        at: Where each layer is, shape (layer,).

    >>> centre_and_spread(np.array([0.0, 3.0, -5.0, 1.0]), np.arange(4.0))  # 3/4 at 1, 1/4 at 3
    (array(1.5), array(0.8660254))
    """
    weight = np.clip(effect, 0, None)
    total = weight.sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.where(total > 0, (weight * at).sum(-1) / total, np.nan)
        variance = (weight * (at - centre[..., None]) ** 2).sum(-1) / total
    return centre, np.asarray(np.sqrt(np.where(total > 0, variance, np.nan)))


def sign_flip(difference: np.ndarray, *, draws: int, seed: int) -> float:
    """Two-sided p-value that differences within rules are as likely positive as negative.

    Args:
        difference: Shape (rule,), no NaN.
        draws: Random flips, where there are too many to try all
            (`interp.selection.support.signs`).
        seed: Seed of these.

    Of the 8 flips of three differences, only the two of all signs alike are as far from 0:

    >>> sign_flip(np.array([1.0, 2.0, 3.0]), draws=10, seed=0)
    0.25
    """
    if not len(difference):
        return 1.0
    # The first row is what was seen: of all flips it is one, and it is the 1 in (1 + count) / (1 +
    # draws).
    means = np.abs(signs(len(difference), draws, seed) @ difference)
    return float((means >= means[0] * (1 - ROUNDING)).mean())


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p-values: step-down, so that the chance of any false finding stays below the level.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    n, worst = len(p_values), 0.0
    corrected = [1.0] * n
    for rank, i in enumerate(sorted(range(n), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (n - rank) * p_values[i]))
        corrected[i] = worst
    return corrected


def contrast(
    centres: dict[str, np.ndarray],
    first: Sequence[str],
    second: Sequence[str],
    *,
    draws: int,
    seed: int,
) -> Contrast:
    """One contrast, uncorrected (`p_holm` is the p-value).

    Args:
        centres: Centres of mass by form, each of shape (rule,); NaN where a rule has none.
        first: Forms whose mean is compared …
        second: … with the mean of these.
        draws: Flips and resamples.
        seed: Seed of both.
    """
    one, two = (np.mean([centres[form] for form in forms], axis=0) for forms in (first, second))
    difference = (one - two)[~np.isnan(one - two)]
    n = len(difference)
    mean = lower = upper = float("nan")
    if n:
        found = bootstrap_mean(difference[:, None], draws=draws, confidence=0.95, seed=seed)
        mean, lower, upper = (float(value[0]) for value in found)
    deviation = float(difference.std(ddof=1)) if n > 1 else 0.0
    p_value = sign_flip(difference, draws=draws, seed=seed)
    return Contrast(
        first=tuple(first),
        second=tuple(second),
        n_rules=n,
        difference=mean,
        lower=lower,
        upper=upper,
        d_z=mean / deviation if deviation > 0 else float("nan"),
        p_value=p_value,
        p_holm=p_value,
        later=int((difference > 0).sum()),
    )


# -- profiles ------------------------------------------------------------------------------------


def depths(profile: xr.Dataset, config: SelectConfig | None = None) -> xr.Dataset:
    """Centre, spread and peak of every rule and form (see the module).

    Args:
        profile: Result of `interp.selection.profiles.layer_profile`.
        config: Component and bounds of the layers: those that the selection reads.

    Returns:
        Dataset with dims ``rule form``; NaN where a rule is not traceable or has no positive
        effect.

    Raises:
        ValueError: No layer is behind the identity blocks, or the profile has no such component.
    """
    config = config or SelectConfig()
    windows = candidate_windows(profile, config)
    at = np.array([(w.start + w.stop - 1) / 2 for w in windows.values()])
    effect = (
        profile["effect"].sel(component=config.component, role=LOOKUP).isel(layer=list(windows))
    )
    values = effect.transpose("rule", "form", "layer").values
    centre, spread = centre_and_spread(values, at)
    best = np.argmax(np.where(np.isnan(values), -np.inf, values), axis=-1)
    peak = np.where(np.isnan(centre), np.nan, at[best])
    dims = ("rule", "form")
    return xr.Dataset(
        {"centre": (dims, centre), "spread": (dims, spread), "peak": (dims, peak)},
        coords={"rule": profile["rule"].values, "form": profile["form"].values},
        attrs={"unit": "layers", "component": config.component},
    )


def compare_forms(of_rules: xr.Dataset, *, draws: int = 10_000, seed: int = 0) -> list[Contrast]:
    """Every pair of forms, corrected together, and then the paper's contrast if the forms are
    there.

    Args:
        of_rules: Result of `depths`.
        draws: Flips (where not all are tried) and resamples.
        seed: Seed of both.
    """
    forms = [str(form) for form in of_rules["form"].values]
    centres = {form: of_rules["centre"].sel(form=form).values for form in forms}
    pairs = [
        contrast(centres, (b,), (a,), draws=draws, seed=seed) for a, b in combinations(forms, 2)
    ]
    corrected = holm([pair.p_value for pair in pairs])
    made = [replace(pair, p_holm=p) for pair, p in zip(pairs, corrected, strict=True)]
    if set(PAPER[0] + PAPER[1]) <= set(forms):
        made.append(contrast(centres, *PAPER, draws=draws, seed=seed))
    return made


def report(of_rules: xr.Dataset, contrasts: Sequence[Contrast]) -> list[str]:
    """What was found, in a few lines."""
    lines = []
    for form in of_rules["form"].values:
        one = of_rules.sel(form=form)
        known = ~np.isnan(one["centre"].values)
        if not known.any():
            lines.append(f"depth of {form}: no traceable rule with a positive effect")
            continue
        low, middle, high = np.percentile(one["peak"].values[known], [25, 50, 75])
        lines.append(
            f"depth of {form}: centre of mass {one['centre'].values[known].mean():.1f}, spread"
            f" {one['spread'].values[known].mean():.1f}, peaks of single rules {middle:.1f} (half"
            f" of them {low:.1f} to {high:.1f}); {known.sum()} rules"
        )
    for c in contrasts:
        corrected = f", corrected {c.p_holm:.3f}" if c.p_holm != c.p_value else ""
        lines.append(
            f"{c.name}: {c.difference:+.2f} layers ({c.lower:.2f} to {c.upper:.2f}), d_z"
            f" {c.d_z:.2f}, p = {c.p_value:.3f}{corrected}; later in {c.later} of {c.n_rules} rules"
            if c.n_rules
            else f"{c.name}: no rule has both"
        )
    return lines


def table(contrasts: Sequence[Contrast]) -> pd.DataFrame:
    """One row for each contrast."""
    rows = [
        {**vars(c), "first": "+".join(c.first), "second": "+".join(c.second)} for c in contrasts
    ]
    return pd.DataFrame(rows, columns=list(Contrast.__dataclass_fields__))
