"""How well a model answers: one prompt against one target.

Teacher forcing feeds the target and asks at each of its tokens whether the model would have said it. That
leaks the target's prefix and length, so the share of right tokens (EasyEdit's "accuracy", kept for
comparison) flatters; ``exact``, all tokens right, does not: it holds exactly when greedy generation starts
with the target.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from interp.model import LanguageModel
from interp.tokens import pad_right


@dataclass(frozen=True)
class Question:
    """Does the model continue `prompt` with `target`?"""

    prompt: str
    target: str


@dataclass(frozen=True)
class Forced:
    """What the model says at each token of a target that is fed to it."""

    target: tuple[int, ...]
    said: tuple[int, ...]
    """Most likely token at each place."""
    log_probs: Float[Tensor, "token d_vocab"]
    """Log-probabilities (nats) at each place, float32."""

    @property
    def token_accuracy(self) -> float:
        """Share of the target's tokens that are the most likely ones (EasyEdit's metric)."""
        return sum(a == b for a, b in zip(self.said, self.target, strict=True)) / len(self.target)

    @property
    def exact(self) -> float:
        """1 if all tokens are the most likely ones, else 0."""
        return float(self.said == self.target)

    @property
    def log_prob(self) -> float:
        """Mean log-probability per token of the target, in nats."""
        return self.log_probs[range(len(self.target)), list(self.target)].mean().item()


def teacher_forced(model: LanguageModel, questions: Sequence[Question], *, batch_size: int) -> Iterator[Forced]:
    """Run every question once with its target appended; results in order, one batch in memory at a time."""
    for at in range(0, len(questions), batch_size):
        batch = questions[at : at + batch_size]
        prompts = [model.encode(q.prompt).ids for q in batch]
        targets = [model.encode_continuation(q.target) for q in batch]
        ids, mask = pad_right([(*p, *t[:-1]) for p, t in zip(prompts, targets, strict=True)], model.device)
        first = min(len(p) for p in prompts) - 1
        kept = torch.arange(first, ids.shape[1], device=model.device)
        with torch.no_grad():
            log_probs = model.logits(ids, mask=mask, keep=kept).float().log_softmax(-1).cpu()
        for row, prompt, target in zip(log_probs, prompts, targets, strict=True):
            start = len(prompt) - 1 - first
            own = row[start : start + len(target)].clone()
            yield Forced(target, tuple(own.argmax(-1).tolist()), own)


def agreement(before: Forced, after: Forced) -> float:
    """Share of places where two models' most likely tokens are the same."""
    return sum(a == b for a, b in zip(before.said, after.said, strict=True)) / len(before.said)


def divergence(before: Forced, after: Forced) -> float:
    """KL(before ‖ after), mean over the target's places, in nats."""
    return (before.log_probs.exp() * (before.log_probs - after.log_probs)).sum(-1).mean().item()


def greedy_answers(model: LanguageModel, prompts: Sequence[str], n_tokens: int, *, batch_size: int) -> list[str]:
    """The model's own continuations."""
    out: list[str] = []
    for at in range(0, len(prompts), batch_size):
        ids = [model.encode(prompt).ids for prompt in prompts[at : at + batch_size]]
        out += [model.decode(answer) for answer in model.generate(ids, n_tokens)]
    return out
