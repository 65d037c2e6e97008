"""Faithfulness of a ranking of sites: what its first sites bring back, restored together.

An effect map restores one site at a time. It says nothing of how sites act together: two sites may
bring back the same part of the answer, or nothing unless both are restored. So the sites are ranked
by their effects, and the first k of them are restored in one corrupted run. The *recovered share*
is

    f(k) = (score with the first k sites − corrupted) / (clean − corrupted),

of scores that are means over noise samples. Its curve over k, and the area under it, tell how good
the ranking is. A ranking that is no better than chance has the curve of random rankings.

The *area* is taken by trapezoids over log k, from the first number of sites that is run to all, and
divided by the width of that axis: the mean of f where each doubling of k counts the same. A ranking
is good if a few sites suffice, and on this axis they count. On the linear axis of k / n four fifths
of the area are above 20 % of the sites, where rankings differ by the sites that do harm. That area,
which begins with no site, is kept too (`linear_area`); the benchmark's code has both axes.

All sites together need not recover everything. The tokens of the answer are no sites, and in the
first block their attention reads the corrupted embeddings.

Source: the Mechanistic Interpretability Benchmark (Mueller et al. 2025, arXiv 2504.13151): the
integrated circuit performance ratio, there of edges or nodes of a circuit that is kept, while all
else is corrupted. Here states of tokens are kept, all else being what follows from them.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.errors import InputError
from interp.models.budget import chunked
from interp.models.finite import require_finite
from interp.models.loading import LanguageModel, NamedHook
from interp.tracing.cases import CorruptedPrompt, Side, Site, require_inside, target
from interp.tracing.metrics import Metric
from interp.tracing.patching import SweepResult

States = frozenset[tuple[str, int]]
"""Hooks and positions whose clean states are put back."""


def restore_together(
    model: LanguageModel,
    case: CorruptedPrompt,
    sets: Sequence[Sequence[Site]],
    metric: Metric,
    *,
    memory: int | None = None,
    batch_size: int | None = None,
    advance: Callable[[float], object] = lambda share: None,
) -> SweepResult:
    """Scores of the corrupted runs in which all sites of a set have their clean states.

    A site of several blocks restores the outputs of all of them; of sites that overlap each state
    is restored once. Whole runs, by hooks alone. Sets that restore the same states are run once.

    Args:
        model: The model.
        case: The prompt, its answer and its corruption.
        sets: The sites of each set; one without any is the corrupted run.
        metric: Logits and target → score per row.
        memory: Bytes that one batch may take (estimated).
        batch_size: Rows (set × sample) run together, whatever the memory.
        advance: Called with the share of the work done since the last call.

    Returns:
        Clean and corrupted scores, and those of the sets, shape (set, sample, *metric).

    Raises:
        InputError: A site is outside the prompt, or freezes something behind it.
        NotFiniteError, MemoryError: As of a sweep.
    """
    states = [_states(model, case, sites) for sites in sets]
    budget, n = memory or model.budget(), len(case.answer)
    clean, corrupted = Side.clean(case), Side.corrupted(case)
    hooks = {hook for each in states for hook, _ in each}
    with torch.inference_mode():
        logits = clean.run(model, hooks, n, lambda logits: logits, budget)
        goal = target(case, model.device, logits[0].float().log_softmax(-1))
        score = metric(logits, goal)[0]
        base = corrupted.run(
            model, (), n, lambda logits: metric(logits, goal), budget, batch_size
        ).cpu()
        require_finite(score, "the clean run", model)
        require_finite(base, "a corrupted run", model)
        scores: dict[States, Tensor] = {frozenset(): base}
        todo = [each for each in dict.fromkeys(states) if each]

        def work(some: list[States]) -> None:
            rows = [*range(case.samples)] * len(some)
            changes = [*corrupted.embedding_hooks(model, rows), *_hooks(model, clean, some, case)]
            ids = corrupted.tokens(model, len(rows))
            got = metric(model.logits(ids, keep=n, hooks=changes), goal)
            require_finite(got, "a patched run", model)
            scores.update(zip(some, got.unflatten(0, (len(some), -1)).cpu(), strict=True))
            advance(len(some) / len(todo))

        row = model.row_bytes(len(case.ids), len(case.ids), n)
        chunked(todo, max(1, (batch_size or budget // row) // case.samples), work)
    restored = torch.stack([base, *(scores[each] for each in states)])[1:]  # there may be no set
    return SweepResult(score.cpu(), base, restored)


def _states(model: LanguageModel, case: CorruptedPrompt, sites: Iterable[Site]) -> States:
    """What a set of sites restores.

    Raises:
        InputError: See `restore_together`.
    """
    sites = list(sites)
    require_inside(case, sites)
    if frozen := [site for site in sites if site.frozen]:
        raise InputError(
            f"site {frozen[0]} keeps states of the corrupted run behind it, where another site may"
            " restore one; give sites that freeze nothing"
        )
    return frozenset(
        (model.hook(site.component, layer), site.position)
        for site in sites
        for layer in site.layers
    )


def _hooks(
    model: LanguageModel, clean: Side, sets: Sequence[States], case: CorruptedPrompt
) -> list[NamedHook]:
    """Hooks that set the clean states of set i in its rows, i·samples … (i+1)·samples."""
    places: dict[str, list[tuple[int, int]]] = {}
    for i, states in enumerate(sets):
        for name, position in sorted(states):
            rows = range(i * case.samples, (i + 1) * case.samples)
            places.setdefault(name, []).extend((row, position) for row in rows)
    return [(name, _restoring(clean.states[name][0], where)) for name, where in places.items()]


def _restoring(clean: Tensor, where: Sequence[tuple[int, int]]) -> Callable[[Tensor, Any], Tensor]:
    """A hook that sets rows and positions to the clean states, shape (pos, d)."""
    rows, positions = torch.tensor(where, device=clean.device).T

    def restore(value: Tensor, hook: Any) -> Tensor:
        # In place: the value is a fresh output of its block, and nothing else has seen it.
        return value.index_put_((rows, positions), clean[positions].to(value))

    return restore


def numbers_of_sites(n_sites: int, shares: Sequence[float]) -> list[int]:
    """How many sites are restored together: none, the shares, all.

    Where a share gives no more sites than the last one, twice the last number is taken, up to all:
    few sites give 1, 2, 4, 8, ….

    >>> numbers_of_sites(200, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5))
    [0, 2, 4, 10, 20, 40, 100, 200]
    >>> numbers_of_sites(24, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5))
    [0, 1, 2, 4, 8, 16, 24, 24]
    """
    numbers = [0]
    for share in shares:
        number, last = round(share * n_sites), numbers[-1]
        numbers.append(min(n_sites, number if number > last else max(1, 2 * last)))
    return [*numbers, n_sites]


def ranking(effects: np.ndarray) -> np.ndarray:
    """Sites by their effect, the largest first, ties in the order of the sites, shape (site,)."""
    return np.argsort(-effects, kind="stable")


def recovered(scores: np.ndarray, clean: float, corrupted: np.ndarray) -> np.ndarray:
    """Recovered share of the total effect.

    Args:
        scores: Of the sets, shape (set, sample).
        clean: Score of the clean run.
        corrupted: Scores of the corrupted runs, shape (sample,).

    Returns:
        0: as corrupted, 1: as clean, shape (set,). It may be below 0 or above 1.

    >>> recovered(np.array([[-3.0, -5.0], [-2.0, -2.0]]), -1.0, np.array([-3.0, -5.0]))
    array([0.        , 0.66666667])
    """
    base = corrupted.mean()
    return (scores.mean(1) - base) / (clean - base)


def area_under(values: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Mean height of curves over the logarithm of the number of sites, over the last axis.

    Args:
        values: Shape (..., point).
        numbers: Numbers of sites, ascending from 0, shape (point,). None has no logarithm, and is
            left out.

    >>> float(area_under(np.array([0.0, 0.5, 1.0, 1.0]), [0, 1, 2, 4]))
    0.875
    """
    places = np.log(np.array(numbers[1:]))
    width = places[-1] - places[0]
    return _trapezoids(values[..., 1:], places) / width if width else values[..., -1]


def linear_area_under(values: np.ndarray, numbers: Sequence[int]) -> np.ndarray:
    """Mean height of curves over the number of sites, over the last axis; see `area_under`.

    >>> float(linear_area_under(np.array([0.0, 0.5, 1.0, 1.0]), [0, 1, 2, 4]))
    0.75
    """
    return _trapezoids(values, np.array(numbers)) / numbers[-1]


def _trapezoids(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    return ((values[..., 1:] + values[..., :-1]) / 2 * np.diff(places)).sum(-1)
