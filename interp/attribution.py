"""Attribution patching: the effect of every site at once, from gradients.

Restoring a state moves the score, to first order, by the gradient of the corrupted run's score times the change of
the state. One forward and one backward pass per noise sample give the whole map, at the price of an error that
grows with the noise. Integrated gradients average the gradient over corrupted runs with less and less of the noise,
which follows the score on its way to the clean run.

Source: Nanda 2023 (attribution patching); Sundararajan et al. 2017 (integrated gradients); Syed et al. 2023.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.metrics import Metric
from interp.model import LanguageModel, NamedHook
from interp.patching import CorruptedPrompt, Site, SweepResult


def attribute(
    model: LanguageModel, case: CorruptedPrompt, sites: Sequence[Site], metric: Metric, *, steps: int = 1
) -> SweepResult:
    """What `interp.patching.sweep` gives, approximately.

    Args:
        model: The model.
        case: The prompt, its answer and its noise.
        sites: What to restore, each alone. A window of several blocks is the sum over its blocks, which leaves out
            that its blocks act on one another.
        metric: Logits and answer ids → score per row.
        steps: Points between the corrupted and the clean run at which the gradient is taken; 1: at the corrupted
            run alone.

    Returns:
        Exact clean and corrupted scores; `restored` is the corrupted score plus the approximate effect.

    Raises:
        ValueError: A site is outside the prompt, or `steps` is below 1.
    """
    if steps < 1:
        raise ValueError(f"steps is {steps}; at least one gradient is needed")
    if bad := [s for s in sites if not 0 <= s.position < len(case.prompt)]:
        raise ValueError(f"site {bad[0]} is outside the prompt of {len(case.prompt)} tokens")
    names = sorted({model.hook(site.component, layer) for site in sites for layer in site.layers})
    ids = torch.tensor([case.ids], device=model.device)
    answer = torch.tensor(case.answer, device=model.device)
    with torch.no_grad():
        clean = metric(model.logits(ids, keep=len(answer)), answer).item()
    clean_values = model.capture(ids, names)
    corrupted, values, gradients = _gradients(model, case, names, metric, 1.0)
    if steps > 1:
        # The noise that is left at the middle of each step from the corrupted run (1) to the clean one (0).
        each = [_gradients(model, case, names, metric, 1 - (step + 0.5) / steps)[2] for step in range(steps)]
        gradients = {name: torch.stack([one[name] for one in each]).mean(0) for name in names}
    # effect[hook][sample, position] = gradient · (clean − corrupted)
    effect = {name: ((clean_values[name] - values[name]).float() * gradients[name].float()).sum(-1) for name in names}
    restored = torch.stack(
        [
            corrupted + sum((effect[model.hook(s.component, layer)][:, s.position] for layer in s.layers), 0.0)
            for s in sites
        ]
    )
    return SweepResult(clean, corrupted.cpu(), restored.cpu())


def _gradients(
    model: LanguageModel, case: CorruptedPrompt, names: Sequence[str], metric: Metric, share: float
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Scores of the runs with a share of the noise, states at the hooks, and the scores' gradients there."""
    values: dict[str, Tensor] = {}

    def corrupt(value: Tensor, hook: Any) -> Tensor:
        value = value.detach().clone()
        value[:, list(case.positions)] += share * case.noise.to(value)
        return value.requires_grad_()

    def keep(value: Tensor, hook: Any, name: str) -> None:
        values[name] = value

    hooks: list[NamedHook] = [(model.embedding_hook, corrupt)]
    hooks += [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    ids = torch.tensor([case.ids], device=model.device).expand(case.samples, -1)
    answer = torch.tensor(case.answer, device=model.device)
    with torch.enable_grad():
        scores = metric(model.logits(ids, keep=len(case.answer), hooks=hooks), answer)
        gradients = torch.autograd.grad(scores.sum(), [values[name] for name in names])
    return scores.detach(), {name: v.detach() for name, v in values.items()}, dict(zip(names, gradients, strict=True))
