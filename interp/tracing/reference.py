"""The sweep the slow and obvious way: the definition that the fast routes are held against."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interp.models.loading import LanguageModel, NamedHook
from interp.tracing.cases import CorruptedPrompt, Site, target
from interp.tracing.metrics import Metric, Target
from interp.tracing.patching import SweepResult
from interp.vocabulary import Direction

_WATCHED = ("resid", "mlp", "attn")
Change = tuple[str, int, Tensor]
"""Hook, position, and the state that is set there."""
Run = tuple[Tensor, dict[str, Tensor]]
"""Score, and states by hook."""


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
    samples = range(case.samples)
    with torch.no_grad():
        clean_ids = torch.tensor([case.ids], device=model.device)
        clean_log_probs = model.logits(clean_ids)[0, len(case.prompt) - 1 :].float().log_softmax(-1)
        runs = _WholeRuns(model, case, metric, target(case, model.device, clean_log_probs))
        clean = runs.run(False, 0)
        corrupted = [runs.run(True, sample) for sample in samples]
        pairs = [(clean, each) if direction == "noise" else (each, clean) for each in corrupted]
        restored = [
            torch.stack([runs.patched(site, n, *pair, direction) for n, pair in enumerate(pairs)])
            for site in sites
        ]
    scores = torch.stack([score for score, _ in corrupted])
    return SweepResult(
        clean[0],
        scores,
        torch.stack(restored) if sites else scores.new_empty(0, *scores.shape),
    )


@dataclass(frozen=True)
class _WholeRuns:
    """Runs of all tokens through all blocks, one row each."""

    model: LanguageModel
    case: CorruptedPrompt
    metric: Metric
    goal: Target

    def run(self, corrupted: bool, sample: int, changes: Sequence[Change] = ()) -> Run:
        """Score and states of one run in which the states of some hooks and positions are set."""
        model, case = self.model, self.case
        ids = case.counterfactual if corrupted and case.counterfactual else case.prompt
        states: dict[str, Tensor] = {}

        def embed(value: Tensor, hook: Any) -> Tensor:
            return self._corrupted(value.clone(), sample) if corrupted else value.clone()

        def change(value: Tensor, hook: Any, name: str) -> Tensor:
            value = value.clone()
            for where, position, new in changes:
                if where == name:
                    value[0, position] = new
            states[name] = value[0]
            return value

        names = [model.hook(part, layer) for part in _WATCHED for layer in range(model.n_layers)]
        hooks: list[NamedHook] = [(model.embedding_hook, embed)]
        hooks += [
            (name, lambda value, hook, name=name: change(value, hook, name)) for name in names
        ]
        tokens = torch.tensor([[*ids, *case.continuation]], device=model.device)
        logits = model.logits(tokens, hooks=hooks)[:, len(case.prompt) - 1 :]
        return self.metric(logits, self.goal)[0].cpu(), states

    def _corrupted(self, value: Tensor, sample: int) -> Tensor:
        if self.case.noise is not None:
            noise = self.case.noise[sample].to(value)
            places = list(self.case.positions)
            value[0, places] = noise if self.case.replace else value[0, places] + noise
        return value

    def patched(
        self, site: Site, sample: int, base: Run, source: Run, direction: Direction
    ) -> Tensor:
        """Score of the base run with a site's states of the source run."""
        model = self.model
        taken = [model.hook(site.component, layer) for layer in site.layers]
        later = range(site.layers.stop, model.n_layers) if site.frozen else ()
        kept = [model.hook(str(site.frozen), layer) for layer in later]
        changes = _changes(taken, site.position, source[1]) + _changes(kept, site.position, base[1])
        return self.run(direction == "denoise", sample, changes)[0]


def _changes(names: Sequence[str], position: int, states: Mapping[str, Tensor]) -> list[Change]:
    return [(name, position, states[name][position]) for name in names]
