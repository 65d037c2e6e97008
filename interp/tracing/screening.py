"""Scores of all sites of a prompt: exact, from gradients, or exact where it matters and estimated
elsewhere.

`screen` does less than the exact sweep, with a known error:

1. *Gradients.* Attribution patching (`interp.tracing.attribution`) gives every site an approximate
   effect.
2. *Exact runs where it matters.* Along the layers of a line (one component at one token) the error
   of the gradients is smooth. It is measured exactly on a coarse grid of layers and interpolated
   between; then the intervals whose interpolation seems worst are halved, until a share of all
   sites has been run.
3. *As many noise samples as needed.* A site starts with a few samples. The gradients' effect is
   known for all of them, so only the difference to it must be averaged (a control variate); where
   its standard error is above a tolerance the remaining samples are run, too.
4. *Audit.* Sites drawn at random from those that were not run are run in full. Their error, scaled
   up to all sites that were not run, is the *missed mass*: the share of the absolute effects of the
   map that is wrong.

Every entry says whether it was run or estimated.
"""

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.tracing.attribution import attribute
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.metrics import METRICS, Metric, several
from interp.tracing.patching import Patcher, SweepOptions, SweepResult, sweep
from interp.vocabulary import Method

STRIDE = 6
"""Layers between the exact sites of a line at the start."""
FIRST_SAMPLES = 4
ROUNDS = 2
AUDIT = 0.02
"""Share of all sites that the audit runs; at least `MIN_AUDIT`."""
MIN_AUDIT = 12


@dataclass(frozen=True)
class ScoredSites:
    """Scores of a prompt's runs in several metrics, and how they came about."""

    clean: Float[Tensor, " metric"]
    corrupted: Float[Tensor, "sample metric"]
    restored: Float[Tensor, "site sample metric"]
    exact: Bool[Tensor, "site sample"] | None = None
    """Which scores were run; None if all were."""
    about: dict[str, float | int] = field(default_factory=dict)
    """What was measured of the method: `missed_mass`, `exact_share` (of the site × sample runs
    of the exact sweep)."""


@dataclass(frozen=True)
class ScoringOptions:
    """How the sites of a prompt are scored."""

    method: Method = "exact"
    """See the module."""
    steps: int = 1
    """Integrated-gradient steps of `attribution` and `screen`."""
    share: float = 0.3
    """Share of the sites that `screen` runs. All sites of the first grid are, even if they are
    more."""
    tolerance: float = 0.01
    """Standard error of a site, as a share of the total effect, up to which a few noise samples are
    enough for `screen`."""
    seed: int = 0
    """Of the audit's draw."""
    sweep: SweepOptions = field(default_factory=SweepOptions)
    """Direction, route and memory."""


def score_sites(
    model: LanguageModel,
    case: CorruptedPrompt,
    sites: Sequence[Site],
    metrics: Sequence[str],
    options: ScoringOptions = ScoringOptions(),
    advance: Callable[[float], object] = lambda share: None,
) -> ScoredSites:
    """Score all sites in named metrics (`interp.tracing.metrics.METRICS`).

    Args:
        model: The model.
        case: The prompt, its answer and its corruption.
        sites: What to exchange, each alone.
        metrics: Names; the first decides where `screen` looks closer.
        options: Method, direction, route, memory.
        advance: Called with the share of the work done since the last call.

    Raises:
        InputError: A metric compares with the counterfactual answer, and there is none, or `screen`
            is asked for such a metric.
    """
    functions = [METRICS[name].function for name in metrics]
    contrasts = contrasts_of(case, metrics, options)
    return score_by(model, case, sites, functions, contrasts, options, advance)


def score_by(
    model: LanguageModel,
    case: CorruptedPrompt,
    sites: Sequence[Site],
    functions: Sequence[Metric],
    contrasts: Sequence[int],
    options: ScoringOptions,
    advance: Callable[[float], object] = lambda share: None,
) -> ScoredSites:
    """`score_sites` by scores that are given as functions.

    Args:
        model: The model.
        case: The prompt, its answer and its corruption.
        sites: What to exchange, each alone.
        functions: Logits and target → score per row, each.
        contrasts: Which of them subtract the score of the counterfactual answer.
        options: Method, direction, route, memory.
        advance: Called with the share of the work done since the last call.
    """
    metric = several(functions)
    if options.method == "screen":
        patcher = Patcher(model, case, sites, metric, options.sweep)
        guess = _attribute(model, case, sites, metric, options)
        return screen(patcher, guess, sites, options, advance)
    passes = 2 if contrasts else 1

    def count(n: int) -> None:
        advance(n / len(sites) / passes)

    def score(case: CorruptedPrompt, metric: Metric) -> SweepResult:
        if options.method == "exact":
            return sweep(model, case, sites, metric, options.sweep, count)
        result = _attribute(model, case, sites, metric, options)
        count(len(sites))
        return result

    result = score(case, metric)
    scores = ScoredSites(result.clean.clone(), result.corrupted.clone(), result.restored.clone())
    if contrasts and case.alternative is not None:
        metric = several([functions[index] for index in contrasts])
        other = score(replace(case, answer=case.alternative), metric)
        scores.clean[contrasts] -= other.clean
        scores.corrupted[:, contrasts] -= other.corrupted
        scores.restored[..., contrasts] -= other.restored
    if options.method == "exact":
        return scores
    nowhere = torch.zeros(scores.restored.shape[:2], dtype=torch.bool)
    return replace(scores, exact=nowhere, about={"exact_share": 0.0})


def contrasts_of(
    case: CorruptedPrompt, metrics: Sequence[str], options: ScoringOptions
) -> list[int]:
    """Which of the metrics subtract the score of the counterfactual answer, which takes a second
    sweep.

    Raises:
        InputError: See `score_sites`.
    """
    if missing := [n for n in metrics if METRICS[n].needs_alternative and case.alternative is None]:
        raise InputError(
            f"metrics {missing} compare with the answer to a counterfactual prompt, and there is"
            " none"
        )
    contrasts = [index for index, name in enumerate(metrics) if METRICS[name].contrast]
    if contrasts and options.method == "screen":
        raise InputError(
            "log_prob_difference takes a second sweep, which method screen has not; use exact"
        )
    return contrasts


def _attribute(
    model: LanguageModel,
    case: CorruptedPrompt,
    sites: Sequence[Site],
    metric: Metric,
    options: ScoringOptions,
) -> SweepResult:
    direction, memory = options.sweep.direction, options.sweep.memory
    return attribute(
        model, case, sites, metric, direction=direction, steps=options.steps, memory=memory
    )


def screen(
    patcher: Patcher,
    guess: SweepResult,
    sites: Sequence[Site],
    options: ScoringOptions = ScoringOptions(),
    advance: Callable[[float], object] = lambda share: None,
) -> ScoredSites:
    """Correct approximate scores by exact runs of some sites (see the module).

    Args:
        patcher: Runs sites exactly; of a metric with several scores, of which the first decides.
        guess: Approximate scores of the same sites (`interp.tracing.attribution.attribute`).
        sites: The sites.
        options: Share, tolerance and seed.
        advance: Called with the share of the work done since the last call.
    """
    work = _Screen(
        patcher, guess, options.tolerance * float((guess.clean - guess.corrupted.mean(0)).abs()[0])
    )
    lines = [_Line(line, [_middle(sites[i]) for i in line]) for line in _lines(sites)]
    work.run(sorted({i for line in lines for i in line.grid(STRIDE)}))
    first = len(work.done)
    wanted = max(first, math.ceil(options.share * len(sites)))
    for turn in range(ROUNDS):
        goal = first + math.ceil((wanted - first) * (turn + 1) / ROUNDS)
        work.run(_worst(lines, work, goal - len(work.done)))
        advance(1 / (ROUNDS + 2))
    work.complete()
    advance(1 / (ROUNDS + 2))
    correction = np.zeros((len(sites), guess.clean.numel()))
    for line in lines:
        line.interpolate(work, correction)
    estimate = guess.restored + torch.from_numpy(correction).float().unsqueeze(1)
    drawn, missed = work.audit(estimate, options.seed)
    exact = torch.zeros(estimate.shape[:2], dtype=torch.bool)
    for site, values in work.values.items():
        estimate[site, : len(values)] = values
        exact[site, : len(values)] = True
    exact[drawn] = True
    advance(1 / (ROUNDS + 2))
    about = {
        "missed_mass": missed,
        "exact_share": exact.float().mean().item(),
        "audited_sites": len(drawn),
    }
    return ScoredSites(guess.clean, guess.corrupted, estimate, exact, about)


class _Screen:
    """Exact scores so far, and by how much they differ from the approximate ones."""

    def __init__(self, patcher: Patcher, guess: SweepResult, error: float) -> None:
        self.patcher, self.guess, self.error = patcher, guess, error
        self.values: dict[int, Tensor] = {}
        """Site → exact scores of its first samples, shape (sample, metric)."""

    @property
    def done(self) -> list[int]:
        return list(self.values)

    def run(self, indices: Sequence[int]) -> None:
        """Run sites with a few samples."""
        first = range(min(FIRST_SAMPLES, len(self.guess.corrupted)))
        self.values |= dict(zip(indices, self.patcher.run(indices, first), strict=True))

    def complete(self) -> None:
        """Run the remaining samples of the sites whose standard error is too large."""
        rest = range(FIRST_SAMPLES, len(self.guess.corrupted))
        if todo := [i for i in self.values if rest and self._standard_error(i) > self.error]:
            for i, scores in zip(todo, self.patcher.run(todo, rest), strict=True):
                self.values[i] = torch.cat([self.values[i], scores])

    def audit(self, estimate: Tensor, seed: int) -> tuple[list[int], float]:
        """Run sites in full, drawn from those that were not run, and put their scores in place.

        Args:
            estimate: Scores of all sites, shape (site, sample, metric); changed in place.
            seed: Of the draw.

        Returns:
            The sites, and the share of the map's absolute effects that is wrong.
        """
        guess, n_sites = self.guess, len(estimate)
        rest = np.array(sorted(set(range(n_sites)) - set(self.done)), dtype=int)
        size = min(len(rest), max(MIN_AUDIT, round(AUDIT * n_sites)))
        drawn = np.random.default_rng(seed).choice(rest, size=size, replace=False).tolist()
        if not drawn:
            return [], 0.0
        denoises = self.patcher.direction == "denoise"
        base = guess.corrupted if denoises else guess.clean.expand_as(guess.corrupted)
        truth = self.patcher.run(drawn, range(len(guess.corrupted)))
        error = (truth.mean(1) - estimate[drawn].mean(1))[:, 0].abs().mean().item()
        mass = (estimate - base).mean(1)[:, 0].abs().sum().item()
        estimate[drawn] = truth
        return drawn, error * (len(rest) - len(drawn)) / mass if mass else 0.0

    def gap(self, i: int) -> np.ndarray:
        """Exact minus approximate score of a site, mean over the samples run, per metric."""
        return self._gaps(i).mean(0).numpy()

    def _gaps(self, i: int) -> Tensor:
        values = self.values[i]
        return values - self.guess.restored[i, : len(values)]

    def _standard_error(self, i: int) -> float:
        """Of the mean gap over all samples, of which those already run are known (finite
        population).
        """
        gaps = self._gaps(i)[:, 0]
        n, total = len(gaps), len(self.guess.corrupted)
        return gaps.std().item() * math.sqrt((1 - n / total) / n) if n > 1 else math.inf


@dataclass(frozen=True)
class _Line:
    """Sites of one component at one token, by layer."""

    sites: list[int]
    layers: list[float]

    def grid(self, stride: int) -> list[int]:
        """Every `stride`-th site, and the last."""
        return [*self.sites[::stride], self.sites[-1]]

    def intervals(self, work: _Screen) -> list["_Interval"]:
        """The stretches that were not run, worst first."""
        known = [k for k, i in enumerate(self.sites) if i in work.values]
        steps = [
            (low, high, abs(float(work.gap(self.sites[high])[0] - work.gap(self.sites[low])[0])))
            for low, high in pairwise(known)
        ]
        return [
            _Interval(-step * (high - low - 1), self, low, high)
            for low, high, step in steps
            if high - low > 1
        ]

    def interpolate(self, work: _Screen, into: np.ndarray) -> None:
        known = [k for k, i in enumerate(self.sites) if i in work.values]
        layers = [self.layers[k] for k in known]
        gaps = np.stack([work.gap(self.sites[k]) for k in known])
        for metric in range(gaps.shape[1]):
            into[self.sites, metric] = np.interp(self.layers, layers, gaps[:, metric])


@dataclass(frozen=True, order=True)
class _Interval:
    """Sites between two that were run; `error` is minus the estimated error of interpolating
    them.
    """

    error: float
    line: _Line = field(compare=False)
    low: int
    high: int

    def halves(self) -> list["_Interval"]:
        """What is left when the middle is run: half the step over half the sites, each."""
        middle = (self.low + self.high) // 2
        ends = [(self.low, middle), (middle, self.high)]
        return [
            _Interval(self.error / 4, self.line, low, high) for low, high in ends if high - low > 1
        ]


def _worst(lines: Sequence[_Line], work: _Screen, n: int) -> list[int]:
    """`n` sites whose running seems to mend the interpolation most, fewer if fewer are left."""
    heap = [interval for line in lines for interval in line.intervals(work)]
    heapq.heapify(heap)
    chosen = []
    while heap and len(chosen) < n:
        worst = heapq.heappop(heap)
        chosen.append(worst.line.sites[(worst.low + worst.high) // 2])
        for half in worst.halves():
            heapq.heappush(heap, half)
    return sorted(chosen)


def _middle(site: Site) -> float:
    return (site.layers.start + site.layers.stop - 1) / 2


def _lines(sites: Sequence[Site]) -> list[list[int]]:
    """Sites that differ in their layers alone, by layer; single blocks and windows apart."""
    lines: dict[tuple, list[int]] = {}
    for i, site in enumerate(sites):
        single = site.component != "resid" and len(site.layers) == 1
        lines.setdefault((site.component, site.position, site.frozen, single), []).append(i)
    return [sorted(line, key=lambda i: _middle(sites[i])) for line in lines.values()]
