"""Scores of a whole answer from logits. All in float32 whatever the model's type.

A metric takes logits at the positions that predict the answer, and the `Target` to compare them
with, and gives one score per row; `several` makes one metric of many, so that one sweep scores them
all. Every metric is larger the closer a run is to the clean one, so that effects have one sign.

A metric is a function with the decorator `metric`; nothing else lists it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.errors import InputError

CACHED = 2**18
"""Numbers that a core's cache holds."""


@dataclass(frozen=True)
class Target:
    """What a run's logits are compared with."""

    answer: Int[Tensor, " answer"]
    alternative: Int[Tensor, " alternative"] | None = None
    """The answer to the counterfactual prompt."""
    clean_log_probs: Float[Tensor, "answer d_vocab"] | None = None
    """Log-probabilities (nats) of all tokens in the clean run."""

    @property
    def differs_at(self) -> int:
        """Where the answer and the alternative first differ; what they share is format.

        Raises:
            ValueError: There is no alternative, or one answer begins with the other.
        """
        return first_difference(
            self.answer.tolist(), None if self.alternative is None else self.alternative.tolist()
        )


Metric = Callable[[Float[Tensor, "batch answer d_vocab"], Target], Float[Tensor, "batch *metric"]]


class NamedMetric(NamedTuple):
    """A metric with what must be known of it."""

    function: Metric
    unit: str
    needs_alternative: bool = False
    contrast: bool = False
    """The same score of the alternative answer is subtracted, which takes a second sweep."""


METRICS: dict[str, NamedMetric] = {}
"""What `trace.metrics` may name; filled by `metric`."""


def metric(
    unit: str, *, needs_alternative: bool = False, contrast: bool = False
) -> Callable[[Metric], Metric]:
    """Register a function as the metric of its name.

    Args:
        unit: Unit of the scores.
        needs_alternative: Whether it compares with the answer to a counterfactual prompt.
        contrast: Whether the same score of that answer is subtracted, which takes a second sweep.

    Raises:
        ValueError: Another metric has the name.
    """

    def register(function: Metric) -> Metric:
        if function.__name__ in METRICS:
            raise ValueError(f"another metric has the name {function.__name__}")
        METRICS[function.__name__] = NamedMetric(function, unit, needs_alternative, contrast)
        return function

    return register


def first_difference(answer: Sequence[int], alternative: Sequence[int] | None) -> int:
    """Index of the first token in which two answers differ.

    Raises:
        ValueError: There is no second answer, or one begins with the other.

    >>> first_difference([5, 7, 9], [5, 8])
    1
    """
    if alternative is None:
        raise InputError(
            "a counterfactual answer is needed to compare with; give the case an alternative"
        )
    for at, (one, other) in enumerate(zip(answer, alternative, strict=False)):
        if one != other:
            return at
    raise InputError(
        f"answer {list(answer)} and counterfactual answer {list(alternative)} do not differ in a"
        " token that both have; choose another counterfactual prompt"
    )


def answer_log_probs(
    logits: Float[Tensor, "batch answer d_vocab"], answer: Int[Tensor, " answer"]
) -> Float[Tensor, "batch answer"]:
    """Log-probability (nats) of each answer token given the prompt and the answer's tokens before
    it.

    Args:
        logits: At the positions that predict the answer's tokens.
        answer: The answer's token ids.
    """
    logits = logits.float()
    chosen = logits.gather(-1, answer.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)
    # A third of the time on a CPU if its passes over the vocabulary find the row in the cache.
    rows = max(1, CACHED // logits[0].numel()) if logits.is_cpu else len(logits)
    return chosen - torch.cat([torch.logsumexp(some, dim=-1) for some in logits.split(rows)])


@metric("nats per answer token")
def mean_log_prob(
    logits: Float[Tensor, "batch answer d_vocab"], target: Target
) -> Float[Tensor, " batch"]:
    """Mean log-probability per answer token, in nats."""
    return answer_log_probs(logits, target.answer).mean(-1)


@metric("nats")
def sum_log_prob(
    logits: Float[Tensor, "batch answer d_vocab"], target: Target
) -> Float[Tensor, " batch"]:
    """Log-probability of the whole answer, in nats."""
    return answer_log_probs(logits, target.answer).sum(-1)


@metric("probability")
def first_token_prob(
    logits: Float[Tensor, "batch answer d_vocab"], target: Target
) -> Float[Tensor, " batch"]:
    """Probability of the first answer token (what ROME's causal tracing scores)."""
    return answer_log_probs(logits[:, :1], target.answer[:1]).exp().squeeze(-1)


@metric("logits", needs_alternative=True)
def logit_difference(
    logits: Float[Tensor, "batch answer d_vocab"], target: Target
) -> Float[Tensor, " batch"]:
    """Logit of the answer minus logit of the counterfactual answer, at the first token in which
    they differ.

    Tokens that both answers begin with are given (teacher forcing).

    Source: Zhang & Nanda 2024 2 (one-token answers); the first difference extends it to whole
    answers.
    """
    at = target.differs_at
    assert target.alternative is not None
    return (logits[:, at, target.answer[at]] - logits[:, at, target.alternative[at]]).float()


@metric("nats per answer token", needs_alternative=True, contrast=True)
def log_prob_difference(
    logits: Float[Tensor, "batch answer d_vocab"], target: Target
) -> Float[Tensor, " batch"]:
    """Mean log-probability per token of the answer minus that of the counterfactual answer, each
    whole.
    """
    return mean_log_prob(logits, target)


@metric("nats per answer token")
def negative_kl(
    logits: Float[Tensor, "batch answer d_vocab"], target: Target
) -> Float[Tensor, " batch"]:
    """Minus KL(clean ‖ run) per answer token, in nats: 0 for the clean run, negative for others.

    Raises:
        ValueError: The target holds no clean run.
    """
    if target.clean_log_probs is None:
        raise InputError("negative_kl compares with the clean run, and the target holds none")
    log_probs = logits.float().log_softmax(-1)
    clean = target.clean_log_probs
    return -(clean.exp() * (clean - log_probs)).sum(-1).mean(-1)


def several(metrics: Sequence[Metric]) -> Metric:
    """One metric that gives the scores of many along a last axis."""

    def stacked(logits: Tensor, target: Target) -> Tensor:
        return torch.stack([metric(logits, target) for metric in metrics], dim=-1)

    return stacked
