"""How wrong a screened trace is: its effects at the lookup tokens against an exact trace of the
same prompts.

python -m tests.benchmarks.screened EXACT_RUN SCREENED_RUN

Both are run folders of `dmle trace`. By component, over all prompts that both have and all layers,
at the tokens of the lookup roles: the sum of absolute differences as a share of the sum of absolute
exact effects, and the correlation. Both runs must have the same seed and noise samples, so that
nothing but the method differs.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from interp.config import ProfileConfig
from interp.results import effects


def compare(
    exact: xr.Dataset, screened: xr.Dataset, roles: Sequence[str]
) -> dict[str, tuple[float, float, int]]:
    """By component: share of the effects that is wrong, correlation, and number of prompts.

    Raises:
        ValueError: The maps have no prompt in common, or differ in their samples.
    """
    if not np.array_equal(exact.sizes["sample"], screened.sizes["sample"]):
        raise ValueError("the two runs have different numbers of noise samples")
    both = [str(rule) for rule in exact["rule"].values if rule in screened["rule"].values]
    forms = [str(form) for form in exact["form"].values if form in screened["form"].values]
    values: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {
        str(c): [] for c in exact["component"].values
    }
    for rule in both:
        for form in forms:
            pair = [each.sel(rule=rule, form=form) for each in (exact, screened)]
            if not all(int(one["n_tokens"]) for one in pair):
                continue
            at = np.isin(pair[0]["role"].values, list(roles))
            maps = [
                effects.indirect_effect(effects.choose_metric(one)).isel(pos=at) for one in pair
            ]
            for component, found in values.items():
                one, two = (
                    np.asarray(each.sel(component=component).values).ravel() for each in maps
                )
                known = ~np.isnan(one) & ~np.isnan(two)
                found.append((one[known], two[known]))
    if not any(values.values()):
        raise ValueError("the two runs have no prompt in common")
    out = {}
    for component, found in values.items():
        one, two = (np.concatenate(each) for each in zip(*found, strict=True))
        wrong = float(np.abs(one - two).sum() / np.abs(one).sum())
        out[component] = (wrong, float(np.corrcoef(one, two)[0, 1]), len(found))
    return out


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare two run folders."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.screened", description="Error of a screened trace"
    )
    parser.add_argument("exact", type=Path)
    parser.add_argument("screened", type=Path)
    options = parser.parse_args(arguments)
    exact, screened = (
        effects.load(run / "effects.nc") for run in (options.exact, options.screened)
    )
    for component, (wrong, correlation, prompts) in compare(
        exact, screened, ProfileConfig().lookup_roles
    ).items():
        sys.stdout.write(
            f"{component}: {wrong:.0%} wrong, correlation {correlation:.2f}, {prompts} prompts\n"
        )


if __name__ == "__main__":
    main()
