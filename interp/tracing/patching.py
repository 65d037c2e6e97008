"""The patching engine: put states of one run into another and score the answer.

A prompt has a *clean* run and a *corrupted* one, whose embeddings are damaged by noise or which
asks about something else (a counterfactual prompt of as many tokens). A *site* names states: a
component's output in some blocks, at one position. Two directions:

- `denoise` (the default): the corrupted run gets the clean states of a site. What returns of the
  answer is what those states suffice for.
- `noise`: the clean run gets the corrupted states of a site. What is lost is what they were
  necessary for.

The run that is changed is called *base* here, the one whose states it gets *source*.

Cost. Three routes give the same numbers:

- `interp.tracing.reference` is the definition: whole forward passes, one per site and noise
  sample, nothing shared.
- The generic route puts sites and samples along the batch axis; hooks only, so it serves any
  TransformerLens model.
- The fast route shares what sites have in common. Positions before the site's are those of the base
  run in every block: their keys and values are computed once, and only the tokens from the site's
  position on are run. Blocks before the first that a site changes are those of the base run, too: a
  site joins the batch behind them, so the batch grows from block to block. Logits are computed only
  where the answer is predicted. `sweep` takes it where the model's self-check shows that it holds.

With T tokens and L blocks a map of T·L sites takes T passes over growing batches in place of T·L
whole passes: half of the blocks and half of the tokens on average, hence a quarter of the block
arithmetic.

Source: Meng et al. 2022 (ROME 2.1), causal tracing; Zhang & Nanda 2024 for the vocabulary.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.models.budget import chunked
from interp.models.finite import require_finite
from interp.models.loading import LanguageModel, NamedHook
from interp.tracing.cases import CorruptedPrompt, Side, Site, require_inside, target
from interp.tracing.metrics import Metric
from interp.vocabulary import Direction, Route


@dataclass(frozen=True)
class SweepResult:
    """Scores of one prompt, in the metric's unit. A metric of several scores adds a last axis to
    each.
    """

    clean: Float[Tensor, "*metric"]
    corrupted: Float[Tensor, "sample *metric"]
    restored: Float[Tensor, "site sample *metric"]
    """Of the base run with the site's states of the source run."""


@dataclass(frozen=True)
class SweepOptions:
    """How sites are run. All but the direction change the cost, not the result."""

    direction: Direction = "denoise"
    """See `interp.vocabulary`."""
    route: Route = "auto"
    """`fast`, `generic`, or the fast one where the model's self-check allows it."""
    memory: int | None = None
    """Bytes that one batch may take (estimated). Default: see `interp.models.budget`. If memory
    runs out all the same, batches are halved."""
    batch_size: int | None = None
    """Rows (site × sample) run together, whatever the memory."""
    unchecked: bool = False
    """Take the fast route although nothing has shown yet that it holds: for the self-check."""


def sweep(
    model: LanguageModel,
    case: CorruptedPrompt,
    sites: Sequence[Site],
    metric: Metric,
    options: SweepOptions = SweepOptions(),
    advance: Callable[[int], object] = lambda n: None,
) -> SweepResult:
    """Score the clean run, the corrupted runs, and the base run patched at each site.

    Args:
        model: The model.
        case: The prompt, its answer and its corruption.
        sites: What to exchange, each alone.
        metric: Logits and target → score per row.
        options: Direction, route, memory.
        advance: Called with the number of sites done.

    Raises:
        InputError: A site is outside the prompt, or the fast route is asked for where it does not
            hold.
        NotFiniteError: A score of a run is NaN or infinite.
        MemoryError: Not even one site fits in memory.
    """
    patcher = Patcher(model, case, sites, metric, options)
    restored = patcher.run(range(len(sites)), range(case.samples), advance)
    return SweepResult(patcher.clean.cpu(), patcher.corrupted.cpu(), restored)


class Patcher:
    """The clean and corrupted runs of a case, done and scored once, and patched runs of any of its
    sites.

    Attributes:
        clean: Score of the clean run, shape (*metric).
        corrupted: Scores of the corrupted runs, shape (sample, *metric).
        direction: Which of the two is patched.
    """

    def __init__(
        self,
        model: LanguageModel,
        case: CorruptedPrompt,
        sites: Sequence[Site],
        metric: Metric,
        options: SweepOptions = SweepOptions(),
    ) -> None:
        """Do the two runs, keeping the states that the sites need. Arguments and errors: see
        `sweep`.
        """
        require_inside(case, sites)
        holds = options.unchecked or model.takes_fast_route(len(case.ids))
        if options.route == "fast" and not holds:
            raise InputError(
                f"{model.name}: the self-check does not allow the fast route; use route auto or"
                " generic"
            )
        self._model, self._case, self._sites, self._metric = model, case, sites, metric
        self.direction = options.direction
        self._fast = holds and options.route != "generic"
        self._memory = options.memory or model.budget()
        self._batch_size = options.batch_size
        clean, corrupted = Side.clean(case), Side.corrupted(case)
        self._base, self._source = (
            (corrupted, clean) if self.direction == "denoise" else (clean, corrupted)
        )
        self._run_sides(clean, corrupted)

    def _run_sides(self, clean: Side, corrupted: Side) -> None:
        """Do and score both runs, the clean one first."""
        model, case, metric = self._model, self._case, self._metric
        n, memory = len(case.answer), self._memory
        of_source = {
            model.hook(site.component, layer) for site in self._sites for layer in site.layers
        }
        of_clean, of_corrupted = of_source, self._base_hooks()
        if clean is self._base:
            of_clean, of_corrupted = of_corrupted, of_clean
        with torch.inference_mode():
            logits = clean.run(model, of_clean, n, lambda logits: logits, memory)
            # What the other runs are compared with is known from here on.
            self._target = target(case, model.device, logits[0].float().log_softmax(-1))
            self.clean = metric(logits, self._target)[0]
            require_finite(self.clean, "the clean run", model)
            self.corrupted = corrupted.run(
                model,
                of_corrupted,
                n,
                lambda logits: metric(logits, self._target),
                memory,
                self._batch_size,
            )
            require_finite(self.corrupted, "a corrupted run", model)

    def _base_hooks(self) -> set[str]:
        """Hooks whose states of the base run are needed: for what is frozen, and on the fast route
        for sites that join the batch.
        """
        model, sites = self._model, self._sites
        names = {
            model.hook(site.frozen, layer)
            for site in sites
            if site.frozen
            for layer in range(site.layers.stop, model.n_layers)
        }
        if self._fast and sites:
            names |= {_stream(layer) for layer in range(model.n_layers)}
            names |= {
                model.hook(site.component, site.layers.start)
                for site in sites
                if site.component == "mlp"
            }
        return names

    def generic(self) -> "Patcher":
        """The same on the generic route, with the runs that are done."""
        other = copy.copy(self)
        other._fast = False
        return other

    def run(
        self,
        indices: Sequence[int],
        samples: Sequence[int],
        advance: Callable[[int], object] = lambda n: None,
    ) -> Float[Tensor, "site sample *metric"]:
        """Scores of the base run patched at some of the sites, in some of the noise samples."""
        model, case = self._model, self._case
        scores = torch.empty(len(indices), len(samples), *self.clean.shape)
        order = sorted(
            range(len(indices)),
            key=lambda i: (
                self._sites[indices[i]].position,
                _first_block(model, self._sites[indices[i]]),
            ),
        )
        cache: Any = None
        done = 0
        with torch.inference_mode():
            for position, group in groupby(order, key=lambda i: self._sites[indices[i]].position):
                start = position if self._fast else 0
                if start > done:
                    cache, done = self._base.extend_cache(model, samples, cache, done, start), start
                row = model.row_bytes(len(case.ids) - start, len(case.ids), len(case.answer))

                def work(some: list[int], start: int = start, cache: Any = cache) -> None:
                    chosen = [self._sites[indices[i]] for i in some]
                    got = self._patched(chosen, samples, start, cache)
                    require_finite(got, "a patched run", model)
                    scores[some] = got.unflatten(0, (len(some), len(samples))).cpu()
                    advance(len(some))

                rows = self._batch_size or self._memory // row
                chunked(list(group), max(1, rows // len(samples)), work)
        return scores

    def _patched(
        self, sites: Sequence[Site], samples: Sequence[int], start: int, cache: Any
    ) -> Tensor:
        """Scores of patched runs, rows running through the samples fastest.

        On the fast route the sites are at the position `start`, ordered by their first block, and
        `cache` holds what is before; on the generic one whole sequences go through all blocks.
        """
        model, answer = self._model, len(self._case.answer)
        if self._fast:
            blocks = [_first_block(model, site) for site in sites]
            hooks = self._exchanges(sites, samples, start, blocks)
            joins = self._joins(sites, samples, blocks)
            ids = self._base.tokens(model, 1, start)
            return self._metric(
                model.logits(ids, keep=answer, hooks=hooks, prefix=cache, joins=joins), self._target
            )
        rows = [*samples] * len(sites)
        hooks = [
            *self._base.embedding_hooks(model, rows),
            *self._exchanges(sites, samples, start, [0] * len(sites)),
        ]
        ids = self._base.tokens(model, len(rows))
        return self._metric(model.logits(ids, keep=answer, hooks=hooks), self._target)

    def _joins(
        self, sites: Sequence[Site], samples: Sequence[int], blocks: Sequence[int]
    ) -> list[tuple[int, Tensor]]:
        """The streams with which sites, ordered by their first block, join the batch there.

        Those of the base run; what a site exchanges before that block is exchanged already.
        """
        joining: dict[int, list[Tensor]] = {}
        for site, block in zip(sites, blocks, strict=True):
            stream = self._base.take(_stream(block), samples)[:, site.position :]
            if block > site.layers.start:
                name = self._model.hook(site.component, site.layers.start)
                new = self._source.take(name, samples)[:, site.position]
                if site.component == "mlp":
                    new = stream[:, 0] - self._base.take(name, samples)[:, site.position] + new
                stream = torch.cat([new.unsqueeze(1), stream[:, 1:]], dim=1)
            joining.setdefault(block, []).append(stream)
        return [(block, torch.cat(streams)) for block, streams in joining.items()]

    def _exchanges(
        self, sites: Sequence[Site], samples: Sequence[int], start: int, blocks: Sequence[int]
    ) -> list[NamedHook]:
        """Hooks that set the states of each site from its block on; columns count from `start`."""
        changes: dict[str, list[tuple[int, int, Tensor]]] = {}
        for i, (site, block) in enumerate(zip(sites, blocks, strict=True)):
            later = range(site.layers.stop, self._model.n_layers) if site.frozen else ()
            of = [(self._source, site.component, layer) for layer in site.layers if layer >= block]
            of += [(self._base, str(site.frozen), layer) for layer in later]
            for side, component, layer in of:
                name = self._model.hook(component, layer)
                new = side.take(name, samples)[:, site.position]
                changes.setdefault(name, []).append((i, site.position - start, new))
        return [self._exchange(name, some, len(samples)) for name, some in changes.items()]

    def _exchange(
        self, name: str, changes: Sequence[tuple[int, int, Tensor]], n_samples: int
    ) -> NamedHook:
        """Set states of site i in its rows, i·samples … (i+1)·samples, at a column each."""
        rows = [i * n_samples + k for i, _, _ in changes for k in range(n_samples)]
        columns = [column for _, column, _ in changes for _ in range(n_samples)]
        where = (
            torch.tensor(rows, device=self._model.device),
            torch.tensor(columns, device=self._model.device),
        )
        new = torch.cat([value for _, _, value in changes])

        def exchange(value: Tensor, hook: Any) -> Tensor:
            # In place: the value is a fresh output of its block, and nothing else has seen it.
            return value.index_put_(where, new.to(value))

        return name, exchange


def _first_block(model: LanguageModel, site: Site) -> int:
    """The first block that a patched run must go through.

    What the stream or an MLP gets exchanged in a block can be set in the stream behind that block,
    unless it is the last one.
    """
    return site.layers.start + (
        site.component in ("resid", "mlp") and site.layers.start + 1 < model.n_layers
    )


def _stream(block: int) -> str:
    return f"blocks.{block}.hook_resid_pre"
