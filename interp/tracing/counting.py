"""What a trace runs, counted by the code that traces (`interp.models.outline`).

Runs of a prompt depend on lengths and places of tokens alone. Prompts that are alike in these are
counted once. Two things only numbers could tell, and they are counted to their most: how long an
answer of the model's own is, and of `screen`, how many sites need more noise samples than the first
few. Which sites `screen` looks at is drawn at random, so that its tokens are about right.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interp.config import TraceConfig
from interp.errors import DmleError
from interp.models.arithmetic import Pass
from interp.models.outline import Outline
from interp.rules.sources import Rule
from interp.tracing.corruption import noise_of
from interp.tracing.metrics import Metric, Target
from interp.tracing.prompt import Prepared, prepare, scoring_options, sites_of, traced_positions
from interp.tracing.screening import contrasts_of, score_by
from interp.vocabulary import RuleForm


@dataclass
class TraceCount:
    """Runs of a trace.

    Attributes:
        passes: All runs.
        prompts: How many prompts are traced.
        skipped: How many cannot be.
        sites: Sites of all prompts.
        states: Most numbers that are kept of the runs of one prompt, to be exchanged.
    """

    passes: list[Pass] = field(default_factory=list)
    prompts: int = 0
    skipped: int = 0
    sites: int = 0
    states: int = 0


def count_trace(
    outline: Outline,
    rules: Sequence[Rule],
    prompts: Sequence[tuple[Rule, RuleForm]],
    config: TraceConfig,
) -> TraceCount:
    """Count the runs of a trace.

    Args:
        outline: The model's outline; its own list of runs is emptied.
        rules: All rules of the run, which the noise may depend on.
        prompts: What is traced now.
        config: Settings of the trace.
    """
    outline.passes.clear()
    count, known = TraceCount(), {}
    outline.embedding_std()  # every map tells it
    noise = noise_of(outline, config, rules)
    for rule, form in prompts:
        try:
            ready = prepare(outline, rule, form, config, noise)
            positions = traced_positions(ready, config)
        except DmleError:
            count.skipped += 1
            continue
        count.passes += _taken(outline)
        kind = _kind(ready, positions)
        if kind not in known:
            _run(outline, ready, config, positions)
            known[kind] = _taken(outline)
        count.passes += known[kind]
        count.prompts += 1
        count.sites += len(sites_of(outline, config, positions))
        count.states = max(count.states, _states(outline, ready, config))
    return count


def _taken(outline: Outline) -> list[Pass]:
    passes = list(outline.passes)
    outline.passes.clear()
    return passes


def _kind(ready: Prepared, positions: Sequence[int]) -> tuple:
    """What the runs of a prompt depend on."""
    case = ready.case
    other = () if case.alternative is None else (len(case.alternative),)
    return len(case.prompt), len(case.answer), case.positions, tuple(positions), other


def _run(outline: Outline, ready: Prepared, config: TraceConfig, positions: Sequence[int]) -> None:
    options = scoring_options(config)
    contrasts = contrasts_of(ready.case, config.metrics, options)
    functions: list[Metric] = [_Drawn(config.seed) for _ in config.metrics]
    sites = sites_of(outline, config, positions)
    score_by(outline, ready.case, sites, functions, contrasts, options)


class _Drawn:
    """A metric of random scores, which depends on all states."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed % 2**63)

    def __call__(self, logits: Tensor, target: Target) -> Tensor:
        noise = torch.rand(len(logits), generator=self._generator)
        return noise + 0 * logits.sum((1, 2))


def _states(outline: Outline, ready: Prepared, config: TraceConfig) -> int:
    """Numbers that are kept of the two runs: each component and the stream, in every block."""
    rows, kinds = 1 + ready.case.samples, 1 + len(config.components)
    return rows * kinds * outline.n_layers * len(ready.case.ids) * outline.shape.d_model
