"""Attribution patching: the effect of every site at once, from gradients.

Exchanging a state moves the score, to first order, by the gradient of the base run's score times
the change of the state. One forward and one backward pass per noise sample give the whole map, at
the price of an error that grows with the corruption. Integrated gradients average the gradient over
runs between base and source (their embeddings mixed), which follows the score on its way from the
one to the other.

Source: Nanda 2023 (attribution patching); Sundararajan et al. 2017 (integrated gradients); Syed et
al. 2023.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.errors import InputError, ModelError
from interp.models.budget import chunked, default_budget
from interp.models.finite import require_finite
from interp.models.loading import LanguageModel, NamedHook
from interp.tracing.metrics import Metric
from interp.tracing.patching import CorruptedPrompt, Side, Site, SweepResult, target
from interp.vocabulary import Direction


def attribute(
    model: LanguageModel,
    case: CorruptedPrompt,
    sites: Sequence[Site],
    metric: Metric,
    *,
    direction: Direction = "denoise",
    steps: int = 1,
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
        direction: See `sweep`.
        steps: Points between the base and the source run at which the gradient is taken; 1: at the
            base run alone.
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
    if bad := [s for s in sites if not 0 <= s.position < len(case.prompt)]:
        raise InputError(f"site {bad[0]} is outside the prompt of {len(case.prompt)} tokens")
    names = sorted({model.hook(site.component, layer) for site in sites for layer in site.layers})
    clean, corrupted = Side.clean(case), Side.corrupted(case)
    hooks, n, budget = (
        [model.embedding_hook, *names],
        len(case.answer),
        memory or default_budget(model.device),
    )
    with torch.no_grad():
        clean_logits = clean.run(model, hooks, n, lambda logits: logits, budget)
        goal = target(case, model.device, clean_logits[0].float().log_softmax(-1))
        found = corrupted.run(model, hooks, n, lambda logits: metric(logits, goal), budget)
    scores = {"clean": metric(clean_logits, goal), "corrupted": found}
    for name, values in scores.items():
        require_finite(values, f"the {name} run", model)
    to_base = direction == "denoise"
    base, source = (corrupted, clean) if to_base else (clean, corrupted)
    start = scores["corrupted" if to_base else "clean"].expand_as(scores["corrupted"])

    def gradients(share: float) -> list[dict[str, Tensor]]:
        mixed = source.states[model.embedding_hook] + share * (
            base.states[model.embedding_hook] - source.states[model.embedding_hook]
        )
        mixed = mixed.expand(case.samples, -1, -1)
        parts: list[list[dict[str, Tensor]]] = []
        # What the backward pass needs is kept of every block.
        row = model.row_bytes(len(case.ids), len(case.ids), len(case.answer)) * model.n_layers
        size = max(1, budget // row)
        chunked(
            range(case.samples),
            size,
            lambda some: parts.append(_gradients(model, case, mixed[some], names, metric, goal)),
        )
        return [
            {name: torch.cat([part[at][name] for part in parts]) for name in names}
            for at in range(len(parts[0]))
        ]

    # At the middle of each step from the base run (1) to the source run (0).
    each = [gradients(1 - (step + 0.5) / steps if steps > 1 else 1.0) for step in range(steps)]
    effects = []
    for at in range(len(each[0])):
        # [sample, position] of each hook: gradient · (source − base)
        by_name = {
            name: (
                (
                    torch.stack([one[at][name] for one in each]).mean(0)
                    * _change(base, source, name)
                ).sum(-1)
            )
            for name in names
        }
        sums = [
            sum(
                (by_name[model.hook(s.component, layer)][:, s.position] for layer in s.layers),
                torch.zeros(()),
            )
            for s in sites
        ]
        effects.append(torch.stack([total.expand(case.samples) for total in sums]))
    # [site, sample], with the metrics' axis behind if there is one.
    effect = torch.stack(effects, dim=-1) if start.ndim > 1 else effects[0]
    require_finite(effect, "a gradient", model)
    return SweepResult(scores["clean"][0].cpu(), scores["corrupted"].cpu(), (start + effect).cpu())


def _change(base: Side, source: Side, name: str) -> Tensor:
    return source.states[name].float() - base.states[name].float()


def _gradients(
    model: LanguageModel,
    case: CorruptedPrompt,
    mixed: Tensor,
    names: Sequence[str],
    metric: Metric,
    goal: Any,
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
        totals = scores.sum(0).reshape(-1)
        found = []
        for at, total in enumerate(totals):
            more = at + 1 < len(totals)
            got = torch.autograd.grad(
                total, [values[name] for name in names], retain_graph=more, allow_unused=True
            )
            if unused := [name for name, value in zip(names, got, strict=True) if value is None]:
                raise ModelError(
                    f"{model.name}: what is seen at {unused[0]} has no gradient, so its effects"
                    " cannot be estimated by gradients; use trace.method=exact"
                )
            found.append({name: value.float() for name, value in zip(names, got, strict=True)})
    return found
