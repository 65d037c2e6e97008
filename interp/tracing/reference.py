"""The sweep the slow and obvious way: the definition that the fast routes are held against."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interp.models.loading import LanguageModel, NamedHook
from interp.tracing.cases import CorruptedPrompt, Site, target
from interp.tracing.metrics import Metric
from interp.tracing.patching import SweepResult
from interp.vocabulary import Direction


def sweep_reference(
    model: LanguageModel,
    case: CorruptedPrompt,
    sites: Sequence[Site],
    metric: Metric,
    *,
    direction: Direction = "denoise",
) -> SweepResult:
    """The same numbers the slow and obvious way: whole forward passes, one per site and noise
    sample.
    """
    components = ("resid", "mlp", "attn")
    names = [
        model.hook(component, layer) for component in components for layer in range(model.n_layers)
    ]

    def run(
        corrupted: bool, sample: int, changes: Sequence[tuple[str, int, Tensor]] = ()
    ) -> tuple[Tensor, dict]:
        """Logits and states of one run in which the state at (hook, position) is set to a value."""
        ids = case.counterfactual if corrupted and case.counterfactual else case.prompt
        states: dict[str, Tensor] = {}

        def embed(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            if corrupted and case.noise is not None:
                noise = case.noise[sample].to(value)
                at = list(case.positions)
                value[0, at] = noise if case.replace else value[0, at] + noise
            return value

        def change(value: Tensor, hook: Any, name: str) -> Tensor:
            value = value.clone()
            for where, position, new in changes:
                if where == name:
                    value[0, position] = new
            states[name] = value[0]
            return value

        hooks: list[NamedHook] = [(model.embedding_hook, embed)]
        hooks += [
            (name, lambda value, hook, name=name: change(value, hook, name)) for name in names
        ]
        tokens = torch.tensor([[*ids, *case.continuation]], device=model.device)
        logits = model.logits(tokens, hooks=hooks)[:, len(case.prompt) - 1 :]
        return metric(logits, target(case, model.device, clean_log_probs))[0].cpu(), states

    def patched(site: Site, sample: int) -> Tensor:
        to, at = direction == "denoise", site.position
        base, source = run(to, sample)[1], run(not to, sample)[1]
        taken = [model.hook(site.component, layer) for layer in site.layers]
        later = range(site.layers.stop, model.n_layers) if site.frozen else ()
        kept = [model.hook(str(site.frozen), layer) for layer in later]
        changes = [(name, at, source[name][at]) for name in taken] + [
            (name, at, base[name][at]) for name in kept
        ]
        return run(to, sample, changes)[0]

    with torch.no_grad():
        clean_ids = torch.tensor([case.ids], device=model.device)
        clean_log_probs = model.logits(clean_ids)[0, len(case.prompt) - 1 :].float().log_softmax(-1)
        clean = run(False, 0)[0]
        corrupted = torch.stack([run(True, sample)[0] for sample in range(case.samples)])
        restored = [
            torch.stack([patched(site, sample) for sample in range(case.samples)]) for site in sites
        ]
    return SweepResult(
        clean,
        corrupted,
        torch.stack(restored) if sites else corrupted.new_empty(0, *corrupted.shape),
    )
