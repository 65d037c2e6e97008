"""Does stability keep its promise? How often a choice is found again on a disjoint half of the
rules.

python -m tests.benchmarks.stability [--profile runs/mine/profile.nc] [--trials 2000] [--out
stability.json]

Layers are chosen from one half of the rules, with their stability
(`interp.selection.strategies.choose`), and again from the other half. By strategy and bin of
stability: how often the other half gives the same window, or how large the overlap (Jaccard index)
is where the strategy's stability is one. What is promised: of choices of 0.8 or more at least 80 %.

Without a profile, halves are simulated: peaks of all heights (from none) and widths at places that
differ between rules, rules of different strength, a decline over depth that all share, noise that
neighbouring layers share, 8 to 100 rules in a half. With one, its rules are split again and again,
for each group of forms that a selection has.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from interp.config import SelectConfig
from interp.results import effects
from interp.selection import strategies
from interp.selection.candidates import candidate_windows
from interp.selection.pickers import Picker, block_shares
from interp.selection.support import Agreement, choose
from interp.vocabulary import LOOKUP

STRATEGIES: dict[str, tuple[Picker, Agreement]] = {
    name: (strategies.get(name).picker(SelectConfig()), strategies.get(name).agreement)
    for name in ("window", "mass", "changepoint")
}
"""groups and adaptive pick windows for groups of forms, with the stability of window."""
LAYERS = 26
BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0 + 1e-9)


def profiles(rules: int, rng: np.random.Generator) -> np.ndarray:
    """Profiles of rules of one random population, shape (rule, layer)."""
    at = np.arange(LAYERS)
    height, width = rng.choice([0, 0.1, 0.2, 0.3, 0.5, 1.0]), rng.uniform(1.5, 5)
    centre = rng.uniform(3, LAYERS - 4) + rng.normal(0, rng.uniform(0, 4), (rules, 1))
    strength = rng.lognormal(0, 0.6, (rules, 1))
    shape = height * np.exp(-((at - centre) ** 2) / 2 / width**2) + 0.1 * np.exp(-at / 10)
    noise = rng.normal(size=(rules, LAYERS + 2))
    return strength * shape + 0.3 * (noise[:, :-2] + noise[:, 1:-1] + noise[:, 2:]) / 3**0.5


def repeated(
    one: np.ndarray, two: np.ndarray, pick: Picker, agreement: Agreement, draws: int
) -> tuple[float, float]:
    """Stability of the choice from some rules, and how like it the choice from others is.

    Args:
        one: Effects of the rules that are chosen from, shape (rule, layer).
        two: Those of the others.
        pick: The strategy's picker.
        agreement: And how picks are compared.
        draws: Splits.
    """
    stability = choose(one, pick, draws=draws, seed=0, agreement=agreement).stability
    masks = [pick(effect.mean(0)[None])[0] for effect in (one, two)]
    return stability, float(agreement(masks[0], masks[1])[0])


def simulate(trials: int, rules: Sequence[int], draws: int, seed: int) -> dict[str, np.ndarray]:
    """Stability and repetition of every strategy in simulated halves, each of shape (trial, 2)."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in STRATEGIES}
    for _ in range(trials):
        n = int(rng.choice(rules))
        effect = profiles(2 * n, rng)
        for name, (pick, agreement) in STRATEGIES.items():
            found[name].append(repeated(effect[:n], effect[n:], pick, agreement, draws))
    return {name: np.array(rows) for name, rows in found.items()}


def split_again(path: Path, trials: int, draws: int, seed: int) -> dict[str, np.ndarray]:
    """The same for random halves of a profile's rules, every group of forms in every trial.

    Splits of the same rules are not independent trials: what one profile gives is one case.
    """
    profile = effects.load(path)
    config = SelectConfig()
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in STRATEGIES}
    for forms in config.groups:
        values = (
            profile["effect"]
            .sel(form=list(forms), component=config.component, role=LOOKUP)
            .mean("form")
        )
        effect = candidates(values.transpose("rule", "layer").values, profile, config)
        effect = effect[~np.isnan(effect).any(1)]
        for _ in range(trials):
            order = rng.permutation(len(effect))
            one, two = effect[order[: len(effect) // 2]], effect[order[len(effect) // 2 :]]
            for name, (pick, agreement) in STRATEGIES.items():
                found[name].append(repeated(one, two, pick, agreement, draws))
    return {name: np.array(rows) for name, rows in found.items()}


def candidates(effect: np.ndarray, profile: Any, config: SelectConfig) -> np.ndarray:
    """Effects of the blocks that a selection may choose, shape (rule, candidate)."""
    layers = list(candidate_windows(profile, config))
    shares = block_shares(profile.sizes["layer"], int(profile.attrs.get("window", 1)), layers[0])
    return effect @ shares[layers].T


def summary(found: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """One row for each strategy and bin of stability, and one for all of 0.8 or more."""
    for name, rows in found.items():
        bins = [*pairwise(BINS), (0.8, BINS[-1])]
        for low, high in bins:
            inside = rows[(rows[:, 0] >= low) & (rows[:, 0] < high)]
            means = [float(mean) for mean in inside.mean(0)] if len(inside) else [None, None]
            row = {"strategy": name, "from": low, "to": min(high, 1.0), "n": len(inside)}
            yield {**row, "stability": means[0], "repeated": means[1]}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write a table."""
    parser = argparse.ArgumentParser(description="Calibration of stability")
    parser.add_argument("--profile", type=Path, help="split the rules of this profile.nc")
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=200, help="splits for each stability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("stability.json"))
    options = parser.parse_args(arguments)
    how = (options.trials, options.draws, options.seed)
    if options.profile:
        found = split_again(options.profile, *how)
    else:
        found = simulate(options.trials, (8, 16, 32, 100), options.draws, options.seed)
    rows = list(summary(found))
    options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        told = (
            "none"
            if not row["n"]
            else f"mean {row['stability']:.2f}, found again {row['repeated']:.2f}"
        )
        sys.stdout.write(
            f"{row['strategy']:12} stability {row['from']:.2f} to {row['to']:.2f}: {row['n']:5} "
            f" {told}\n"
        )


if __name__ == "__main__":
    main()
