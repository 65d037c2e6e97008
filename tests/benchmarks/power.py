"""How many rules does a supported choice of layers take?

python -m tests.benchmarks.power [--profile docs/data/profile-smollm2.nc] [--rules 6 8 10 12 16]

Draws so many rules of a profile at random, without replacement, selects layers from them alone, and
counts how often the choice is supported: for each group of forms, and for all groups at once. Rules
of a draw that are not traceable count: their forms are missing, as they would be in a trace.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from interp.config import SelectConfig
from interp.errors import InputError
from interp.results import effects
from interp.selection.select import select_layers


def supported(profile: xr.Dataset, n_rules: int, draws: int, seed: int) -> dict[str, int]:
    """Draws whose choice is supported, by group of forms; "all": in every group.

    A draw without a traceable rule in some group supports nothing.
    """
    rng = np.random.default_rng(seed)
    config = SelectConfig(bootstrap=400)
    counts = {"+".join(forms): 0 for forms in config.groups} | {"all": 0}
    for _ in range(draws):
        chosen = np.sort(rng.choice(profile.sizes["rule"], n_rules, replace=False))
        try:
            groups = select_layers(profile.isel(rule=chosen), config).groups
        except InputError:
            continue
        for group in groups:
            counts[group.name] += group.supported
        counts["all"] += all(group.supported for group in groups)
    return counts


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    root = Path(__file__).parents[2]
    parser = argparse.ArgumentParser(description="Rules that a supported choice takes")
    parser.add_argument("--profile", type=Path, default=root / "docs/data/profile-smollm2.nc")
    parser.add_argument("--rules", type=int, nargs="+", default=[4, 6, 8, 10, 12, 16])
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    profile = effects.load(given.profile)
    for n_rules in given.rules:
        counts = supported(profile, n_rules, given.draws, given.seed)
        shares = ", ".join(f"{name} {count / given.draws:.0%}" for name, count in counts.items())
        sys.stdout.write(f"{n_rules:3} rules: {shares}\n")


if __name__ == "__main__":
    main()
