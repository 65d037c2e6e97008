"""The error of tracing against its cost: `python -m tests.benchmarks curve --out curve.csv`.

Whole maps (resid, mlp and attn, every layer, every token from the first corrupted one) of two
training rules in three forms, by methods that cost less than the exact map of ten noise samples:

- ``attribution``: gradients, with 1, 3 and 10 integrated-gradient steps;
- ``screen``: gradients of 3 steps, then a share of the sites exactly;
- ``exact``: 1, 2 and 4 noise samples, the first of the ten (against whose mean they are less wrong
  than against that of endless samples);
- ``bfloat16``: the exact map of the model in bfloat16; then with what float32 differs by at a
  random tenth of the sites of each component, as a mean or as a line over the effect
  (`tests.benchmarks.curve_errors.corrected`);
- ``singles``: a window's effect as the sum of the exact effects of its blocks, each restored alone;
  then with exact windows at the same tenth, which measure how blocks act on one another.

Cost is CPU-seconds of one thread, over those of one whole pass per site with all samples in the
batch (`tests.benchmarks.tracing`, (a) loop). Loading the model is not counted. All float32 runs of
a prompt share a process, so that the model is loaded once.

A row is a method on a prompt, and by component:

- ``map_*``: share of the absolute effects of the exact map that is wrong;
- ``profile_*``: the same of the profile over layers, the mean at the lookup tokens;
- ``within_*``: share of that profile's layers inside the exact one's 95 % interval over its noise
  samples;
- ``noise_*``, ``profile_noise_*``: summed standard errors of the exact map, or profile, over its
  noise samples, as the same share: what its own samples leave open. An error far below it says no
  more.

Rows are written as they come. The same command goes on where it was stopped: it skips rows that are
in the file. The costs of the loop and of the exact map are measured again for a prompt that is
not finished.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from figures.error_cost import save_error_cost
from interp.config import ProfileConfig
from interp.errors import InputError
from interp.results.files import write_text
from interp.results.tables import csv_text
from interp.tracing.cases import Site
from interp.tracing.metrics import mean_log_prob
from interp.tracing.patching import sweep
from interp.tracing.screening import ScoringOptions, score_sites
from interp.vocabulary import FORMS, RuleForm
from tests.benchmarks import curve_errors as errors
from tests.benchmarks.apart import apart, worker
from tests.benchmarks.tracing import COMPONENTS, QUICK, SEED, Bench, Size

MODELS = {"smollm2": "smollm2-135m", "gemma": "gemma3-270m"}
RULES = ("complex-number-modulus", "solute-mole-fraction")
"""Training rules that both models are traceable in, in all forms."""
PROMPTS: tuple[tuple[str, RuleForm], ...] = tuple((rule, form) for form in FORMS for rule in RULES)
TINY = QUICK._replace(stride=15)
QUICK_METHODS = ("exact", "attribution 1 ", "screen 10%", "bfloat16", "singles")
"""One or two of each kind: at two layers, screening runs all sites anyway."""
DRAWN = 0.1
"""Share of the sites of each component that corrections run exactly."""
KEY = ("model", "rule", "form", "samples", "stride", "method")
MEASURES = ("map", "profile", "within", "noise", "profile_noise")
COLUMNS = (
    *KEY,
    "tokens",
    "sites",
    "seconds",
    "loop_seconds",
    "cost",
    "exact_share",
    *(f"{measure}_{component}" for measure in MEASURES for component in COMPONENTS),
)


class Place(NamedTuple):
    """A prompt of a model, and how much of it is traced."""

    model: str
    rule: str
    form: RuleForm
    size: Size


class Run(NamedTuple):
    """What is measured: a method of `CurveBench`."""

    name: str
    arguments: tuple[Any, ...] = ()
    dtype: str = "float32"


@dataclass(frozen=True)
class Effects:
    """What a run gives."""

    values: np.ndarray
    """Effects, shape (site, sample)."""
    seconds: float
    sites: tuple[int, ...] = ()
    """Which sites they are of; none named: all."""
    exact_share: float = 1.0
    """Share of the exact map's runs of a site with a sample that were made."""

    @property
    def mean(self) -> np.ndarray:
        """Over samples, shape (site,)."""
        return self.values.mean(1)


class CurveBench(Bench):
    """A prompt's map by every method; each gives effects of sites in order."""

    def __init__(self, place: Place, dtype: str) -> None:
        super().__init__((place.rule, place.form), dtype, place.size, place.model)
        roles = self.roles[self.case.positions[0] :]
        self.at_lookup = np.isin(roles, ProfileConfig().lookup_roles)
        self.components = np.array([site.component for site in self.sites])

    def about(self) -> dict[str, Any]:
        """What the parent must know of the sites."""
        return {
            "at_lookup": self.at_lookup,
            "components": self.components,
            "tokens": len(self.case.prompt),
            "sites": len(self.sites),
        }

    def looped(self) -> float:
        """CPU-seconds of one whole pass per site, scaled up from a few sites."""
        return float(self.loop()["seconds"])

    def exact(self, samples: int | None = None) -> Effects:
        """The exact map of the first noise samples, all by default."""
        return self._swept(self.sites, samples)

    def drawn(self) -> Effects:
        """Exact effects of a random share of the sites of each component."""
        rng = np.random.default_rng(SEED)
        chosen: list[int] = []
        for component in COMPONENTS:
            own = np.flatnonzero(self.components == component)
            number = max(1, round(DRAWN * len(own)))
            chosen += sorted(rng.choice(own, number, replace=False).tolist())
        part = self._swept([self.sites[i] for i in chosen])
        share = len(chosen) / len(self.sites)
        return Effects(part.values, part.seconds, tuple(chosen), share)

    def singles(self) -> Effects:
        """Windows as sums of the exact effects of their blocks."""
        alone = {
            Site(site.component, site.position, range(layer, layer + 1)): None
            for site in self.sites
            for layer in site.layers
        }
        number = {
            (site.component, site.position, site.layers.start): i for i, site in enumerate(alone)
        }
        parts = [
            [number[site.component, site.position, layer] for layer in site.layers]
            for site in self.sites
        ]
        found = self._swept(list(alone))
        share = len(alone) / len(self.sites)
        return Effects(errors.summed(found.values, parts), found.seconds, exact_share=share)

    def attributed(self, steps: int) -> Effects:
        """From gradients."""
        return self._guessed(method="attribution", steps=steps)

    def screened(self, share: float) -> Effects:
        """From gradients, and exactly where it matters."""
        return self._guessed(method="screen", share=share, steps=3)

    def _swept(self, sites: Sequence[Site], samples: int | None = None) -> Effects:
        case = self.case if samples is None else self.case.take(range(samples))
        start = time.process_time()
        found = sweep(self.model, case, sites, mean_log_prob)
        seconds = time.process_time() - start
        share = case.samples / self.case.samples
        return Effects((found.restored - found.corrupted).numpy(), seconds, exact_share=share)

    def _guessed(self, **options: Any) -> Effects:
        start = time.process_time()
        found = score_sites(
            self.model, self.case, self.sites, ["mean_log_prob"], ScoringOptions(**options)
        )
        seconds = time.process_time() - start
        effects = (found.restored - found.corrupted)[..., 0].numpy()
        return Effects(effects, seconds, exact_share=found.about["exact_share"])


@lru_cache(1)
def bench_of(place: Place, dtype: str) -> CurveBench:
    """The bench of a child process, made once."""
    return CurveBench(place, dtype)


def measured(place: Place, run: Run) -> Any:
    """What a method of `CurveBench` gives, in this process."""
    return getattr(bench_of(place, run.dtype), run.name)(*run.arguments)


@dataclass(frozen=True)
class Method:
    """A way to get a map."""

    runs: tuple[Run, ...]
    regress: bool | None = None
    """Of two runs: how the second corrects the first."""

    def map_of(self, found: Sequence[Effects], components: np.ndarray) -> np.ndarray:
        """Effects of all sites, shape (site,)."""
        cheap = found[0].mean
        if self.regress is None:
            return cheap
        sites, exact = found[1].sites, found[1].mean
        return errors.corrected(cheap, sites, exact, components, regress=self.regress)


def methods(samples: int) -> dict[str, Method]:
    """Every method by name, for so many noise samples; the exact map first."""
    exact, drawn, singles = Run("exact"), Run("drawn"), Run("singles")
    low = Run("exact", dtype="bfloat16")
    few = (number for number in (1, 2, 4) if number < samples)
    return {
        f"exact {samples} samples": Method((exact,)),
        **{f"attribution {n} steps": Method((Run("attributed", (n,)),)) for n in (1, 3, 10)},
        **{
            f"screen {share:.0%}": Method((Run("screened", (share,)),))
            for share in (0.1, 0.2, 0.3, 0.5)
        },
        **{f"exact {n} samples": Method((Run("exact", (n,)),)) for n in few},
        "bfloat16": Method((low,)),
        "bfloat16 mean difference": Method((low, drawn), regress=False),
        "bfloat16 regressed difference": Method((low, drawn), regress=True),
        "singles": Method((singles,)),
        "singles regressed difference": Method((singles, drawn), regress=True),
    }


def rows_of(place: Place, wanted: dict[str, Method], say: Callable[[dict[str, Any]], None]) -> None:
    """Measure methods on a prompt and say a row of each as it comes."""
    with worker(measured) as full:

        @cache
        def run(each: Run) -> Any:
            if each.dtype == "float32":
                return full.submit(measured, place, each).result()
            return apart(measured, place, each)  # gives its memory back

        _say_rows(place, wanted, run, say)


def _say_rows(
    place: Place,
    wanted: dict[str, Method],
    run: Callable[[Run], Any],
    say: Callable[[dict[str, Any]], None],
) -> None:
    about, loop = run(Run("about")), run(Run("looped"))
    exact = run(Run("exact"))
    for name, method in wanted.items():
        found = [run(each) for each in method.runs]
        guess = method.map_of(found, about["components"])
        seconds = sum(each.seconds for each in found)
        say(
            {
                **dict(zip(KEY, key_of(place, name), strict=True)),
                "tokens": about["tokens"],
                "sites": about["sites"],
                "seconds": seconds,
                "loop_seconds": loop,
                "cost": seconds / loop,
                "exact_share": sum(each.exact_share for each in found),
                **errors.errors_of(guess, exact.values, about["at_lookup"], COMPONENTS),
            }
        )


def key_of(place: Place, method: str) -> tuple[str, ...]:
    """What tells a row from all others, as the file has it."""
    size = place.size
    return place.model, place.rule, place.form, str(size.samples), str(size.stride), method


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file, none if there is no file.

    Raises:
        InputError: Its columns are others.
    """
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        rows = list(table)
    if tuple(table.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path} has other columns than these rows; give another --out")
    return rows


def measure_all(
    places: Sequence[Place], wanted: Sequence[str], out: Path, say: Callable[[str], object]
) -> None:
    """Measure what the file lacks, row by row.

    Args:
        places: Prompts.
        wanted: Beginnings of the names of methods; none: all.
        out: The file.
        say: Called with a line about each row.
    """
    rows: list[dict[str, Any]] = [*read_rows(out)]
    done = {tuple(row[name] for name in KEY) for row in rows}

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        write_text(out, csv_text(pd.DataFrame(rows, columns=list(COLUMNS)), index=False))
        say(describe(row))

    for place in places:
        todo = {
            name: method
            for name, method in methods(place.size.samples).items()
            if name.startswith(tuple(wanted) or "") and key_of(place, name) not in done
        }
        if todo:
            rows_of(place, todo, keep)


def describe(row: dict[str, Any]) -> str:
    """One line about a row."""
    wrong = " ".join(f"{row[f'map_{c}']:.3f} ({row[f'noise_{c}']:.3f})" for c in COMPONENTS)
    inside = " ".join(f"{row[f'within_{c}']:.0%}" for c in COMPONENTS)
    return (
        f"{row['rule']} {row['form']:11} {row['method']:29} {row['seconds']:7.1f} CPU-s,"
        f" 1/{1 / row['cost']:.1f} of the loop; wrong (noise) {wrong}; profile within {inside}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks curve",
        description="The error of tracing against its cost; columns: tests/benchmarks/curve.py",
    )
    parser.add_argument("--model", default="smollm2", help="smollm2, gemma, or a folder")
    parser.add_argument(
        "--prompts", type=int, default=len(PROMPTS), help="only the first of the six"
    )
    parser.add_argument(
        "--methods", nargs="+", default=[], help="only those whose name begins so (screen, exact …)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="two noise samples, two layers, fewer methods"
    )
    parser.add_argument("--figure", type=Path, help="also draw the rows (PNG or PDF)")
    parser.add_argument("--out", type=Path, required=True, help="CSV; goes on where it stopped")
    given = parser.parse_args(arguments)
    size = TINY if given.quick else Size()
    name = MODELS.get(given.model, given.model)
    places = [Place(name, rule, form, size) for rule, form in PROMPTS[: given.prompts]]

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    wanted = given.methods or (QUICK_METHODS if given.quick else ())
    measure_all(places, wanted, given.out, say)
    if given.figure:
        save_error_cost(pd.read_csv(given.out), given.figure)
        say(f"figure: {given.figure}")
