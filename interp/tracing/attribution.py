"""Attribution patching: the effect of every site at once, from gradients.

Exchanging a state moves the score, to first order, by the gradient of the base run's score times
the change of the state. One forward and one backward pass per noise sample give the whole map, at
the price of an error that grows with the corruption. Integrated gradients average the gradient over
runs between base and source (their embeddings mixed), which follows the score on its way from the
one to the other.

Source: Nanda 2023 (attribution patching); Sundararajan et al. 2017 (integrated gradients); Syed et
al. 2023.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError, ModelError
from interp.models.budget import chunked
from interp.models.finite import require_finite
from interp.models.loading import LanguageModel, NamedHook
from interp.tracing.cases import CorruptedPrompt, Side, Site, require_inside, target
from interp.tracing.metrics import Metric, Target
from interp.tracing.patching import SweepResult
from interp.vocabulary import Direction


def attribute(
    model: LanguageModel,
    case: CorruptedPrompt,
    sites: Sequence[Site],
    metric: Metric,
    *,
    steps: int = 1,
    direction: Direction = "denoise",
    memory: int | None = None,
) -> SweepResult:
    """What `interp.tracing.patching.sweep` gives, approximately.

    Args:
        model: The model.
        case: The prompt, its answer and its corruption.
        sites: What to exchange, each alone. A window of several blocks is the sum over its blocks,
            which leaves out that its blocks act on one another. That a component is frozen behind a
            site is left out, too.
        metric: Logits and target → score per row.
        steps: Points between the base and the source run at which the gradient is taken; 1: at the
            base run alone.
        direction: See `sweep`.
        memory: Bytes that one backward pass may take (estimated); noise samples are taken together
            up to it.

    Returns:
        Exact clean and corrupted scores; `restored` is the base score plus the approximate change.

    Raises:
        ValueError: A site is outside the prompt, or `steps` is below 1.
        NotFiniteError: A score or a gradient is NaN or infinite.
        MemoryError: Not even one sample fits in memory.
    """
    if steps < 1:
        raise InputError(f"steps is {steps}; at least one gradient is needed")
    require_inside(case, sites)
    names = sorted({model.hook(site.component, layer) for site in sites for layer in site.layers})
    budget = memory or model.budget()
    clean, corrupted = Side.clean(case), Side.corrupted(case)
    goal, clean_score, scores = _scored(model, case, clean, corrupted, names, metric, budget)
    base, source = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    start = scores if direction == "denoise" else clean_score.expand_as(scores)
    path = _Path(model, case, base, source, names, metric, goal, budget)
    # At the middle of each step from the base run (1) to the source run (0).
    shares = [1 - (step + 0.5) / steps if steps > 1 else 1.0 for step in range(steps)]
    effects = [
        _summed(model, path.changes(gradients), sites, case.samples)
        for gradients in zip(*(path.gradients(share) for share in shares), strict=True)
    ]
    # [site, sample], with the metrics' axis behind if there is one.
    effect = torch.stack(effects, dim=-1) if start.ndim > 1 else effects[0]
    require_finite(effect, "a gradient", model)
    return SweepResult(clean_score[0].cpu(), scores.cpu(), (start + effect).cpu())


def _scored(
    model: LanguageModel,
    case: CorruptedPrompt,
    clean: Side,
    corrupted: Side,
    names: Sequence[str],
    metric: Metric,
    budget: int,
) -> tuple[Target, Tensor, Tensor]:
    """Do both runs, keeping their states: what they are scored against, and their scores."""
    hooks, n = [model.embedding_hook, *names], len(case.answer)
    with torch.no_grad():
        logits = clean.run(model, hooks, n, lambda logits: logits, budget)
        goal = target(case, model.device, logits[0].float().log_softmax(-1))
        clean_score = metric(logits, goal)
        scores = corrupted.run(model, hooks, n, lambda logits: metric(logits, goal), budget)
    require_finite(clean_score, "the clean run", model)
    require_finite(scores, "the corrupted run", model)
    return goal, clean_score, scores


@dataclass(frozen=True)
class _Path:
    """The straight line in the embeddings from the base run to the source run."""

    model: LanguageModel
    case: CorruptedPrompt
    base: Side
    source: Side
    names: Sequence[str]
    metric: Metric
    goal: Target
    budget: int

    def gradients(self, share: float) -> list[dict[str, Tensor]]:
        """Gradients at a point of the line, by score and hook, shape (sample, pos, d).

        `share` is 1 at the base run and 0 at the source run. Samples run together as memory
        allows: what the backward pass needs is kept of every block.
        """
        start, end = (side.states[self.model.embedding_hook] for side in (self.source, self.base))
        mixed = (start + share * (end - start)).expand(self.case.samples, -1, -1)
        n_tokens, n_answer = len(self.case.ids), len(self.case.answer)
        row = self.model.row_bytes(n_tokens, n_tokens, n_answer) * self.model.n_layers
        parts: list[list[dict[str, Tensor]]] = []

        def run(samples: list[int]) -> None:
            some = mixed[samples]
            parts.append(
                _gradients(self.model, self.case, some, self.names, self.metric, self.goal)
            )

        chunked(range(self.case.samples), max(1, self.budget // row), run)
        return [
            {name: torch.cat([part[name] for part in of_score]) for name in self.names}
            for of_score in zip(*parts, strict=True)
        ]

    def changes(self, gradients: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Mean gradient · (source − base) at each hook, shape (sample, pos)."""
        return {
            name: (torch.stack([each[name] for each in gradients]).mean(0) * self._gap(name)).sum(
                -1
            )
            for name in self.names
        }

    def _gap(self, name: str) -> Tensor:
        return self.source.states[name].float() - self.base.states[name].float()


def _summed(
    model: LanguageModel, changes: dict[str, Tensor], sites: Sequence[Site], samples: int
) -> Tensor:
    """Change of each site, shape (site, sample): the sum over the layers that it exchanges."""
    sums = [
        sum(
            (changes[model.hook(site.component, layer)][:, site.position] for layer in site.layers),
            torch.zeros(()),
        )
        for site in sites
    ]
    return torch.stack([total.expand(samples) for total in sums])


def _gradients(
    model: LanguageModel,
    case: CorruptedPrompt,
    mixed: Tensor,
    names: Sequence[str],
    metric: Metric,
    goal: Target,
) -> list[dict[str, Tensor]]:
    """Gradients of each score at the hooks in runs from given embeddings, shape (sample, pos,
    d).
    """
    values: dict[str, Tensor] = {}
    mixed = mixed.clone()

    def embed(value: Tensor, hook: Any) -> Tensor:
        return mixed.requires_grad_()

    def keep(value: Tensor, hook: Any, name: str) -> Tensor:
        values[name] = value
        # Given back, so that the run goes on with this tensor where a hook sees a view (OPT).
        return value

    hooks: list[NamedHook] = [(model.embedding_hook, embed)]
    hooks += [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    ids = torch.tensor([case.ids], device=model.device).expand(len(mixed), -1)
    with torch.enable_grad():
        scores = metric(model.logits(ids, keep=len(case.answer), hooks=hooks), goal)
        *others, last = scores.sum(0).reshape(-1)
        # The graph is needed until the last score's gradients are taken.
        gradients = [_gradients_of(model, total, names, values, keep=True) for total in others]
        return [*gradients, _gradients_of(model, last, names, values, keep=False)]


def _gradients_of(
    model: LanguageModel,
    total: Tensor,
    names: Sequence[str],
    values: Mapping[str, Tensor],
    *,
    keep: bool,
) -> dict[str, Tensor]:
    """Gradients of a number with respect to values, by hook; `keep`: the graph is used again."""
    gradients = torch.autograd.grad(
        total, [values[name] for name in names], retain_graph=keep, allow_unused=True
    )
    by_hook = dict(zip(names, gradients, strict=True))
    if unused := [name for name, value in by_hook.items() if value is None]:
        raise ModelError(
            f"{model.name}: what is seen at {unused[0]} has no gradient, so its effects"
            " cannot be estimated by gradients; use trace.method=exact"
        )
    return {name: value.float() for name, value in by_hook.items()}
