"""Scores of a whole answer from logits. All in float32 whatever the model's type."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Metric = Callable[[Float[Tensor, "batch answer d_vocab"], Int[Tensor, " answer"]], Float[Tensor, " batch"]]


def answer_log_probs(
    logits: Float[Tensor, "batch answer d_vocab"], answer: Int[Tensor, " answer"]
) -> Float[Tensor, "batch answer"]:
    """Log-probability (nats) of each answer token given the prompt and the answer's tokens before it.

    Args:
        logits: At the positions that predict the answer's tokens.
        answer: The answer's token ids.
    """
    logits = logits.float()
    chosen = logits.gather(-1, answer.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)
    return chosen - torch.logsumexp(logits, dim=-1)


def mean_log_prob(
    logits: Float[Tensor, "batch answer d_vocab"], answer: Int[Tensor, " answer"]
) -> Float[Tensor, " batch"]:
    """Mean log-probability per answer token, in nats."""
    return answer_log_probs(logits, answer).mean(-1)


def sum_log_prob(
    logits: Float[Tensor, "batch answer d_vocab"], answer: Int[Tensor, " answer"]
) -> Float[Tensor, " batch"]:
    """Log-probability of the whole answer, in nats."""
    return answer_log_probs(logits, answer).sum(-1)


def first_token_prob(
    logits: Float[Tensor, "batch answer d_vocab"], answer: Int[Tensor, " answer"]
) -> Float[Tensor, " batch"]:
    """Probability of the first answer token (what ROME's causal tracing scores)."""
    return answer_log_probs(logits[:, :1], answer[:1]).exp().squeeze(-1)


METRICS: dict[str, tuple[Metric, str]] = {
    "mean_log_prob": (mean_log_prob, "nats per answer token"),
    "sum_log_prob": (sum_log_prob, "nats"),
    "first_token_prob": (first_token_prob, "probability"),
}
"""Name → (function, unit)."""
