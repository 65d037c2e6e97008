"""What editors that train on answers have in common: their rows, and the loss.

The loss is the mean over rows of −(1/n) Σ log p(token of the new answer). Where prompts are
retained (`edit.retained`), the mean over them of (1/n) Σ KL(p_before ‖ p) is added, n being the
tokens of their answers, and p_before what the model said before the first step. Training stops when
this whole loss is small: the new answers alone are often learned in a few steps, which move what is
retained as well, and later steps bring it back.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.edits.requests import EditRequest
from editing.evaluation.scoring import Asked, Question, ask
from interp.models.loading import LanguageModel


@dataclass
class Lesson:
    """Rows that are trained, and behind them rows that are retained, as one batch."""

    asked: Asked
    n_trained: int
    before: Float[Tensor, "retained_place d_vocab"] | None = None
    """Log-probabilities of the retained rows before the first step, which are noted there."""

    @property
    def places(self) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
        """Row and column of each prediction that the loss is of (`only` of `LanguageModel.logits`):
        a vocabulary is large, and rows differ in where their answers are.
        """
        return self.asked.places()

    def loss(self, logits: Float[Tensor, "place d_vocab"]) -> tuple[Tensor, Tensor]:
        """Loss of the new answers alone, and with the retained rows; the first call is of the
        model before any step.

        Args:
            logits: Those of `places`.
        """
        rows, device = self.places[0].to(logits.device), logits.device
        targets = torch.tensor(
            [token for row in self.asked.targets for token in row], device=device
        )
        log_probs = logits.float().log_softmax(-1)
        trained = rows < self.n_trained
        said = log_probs[trained].gather(-1, targets[trained, None]).squeeze(-1)
        loss = _mean_of_rows(-said, rows[trained])
        if trained.all():
            return loss, loss
        now = log_probs[~trained]
        if self.before is None:
            self.before = now.detach()
        divergence = (self.before.exp() * (self.before - now)).sum(-1)
        return loss, loss + _mean_of_rows(divergence, rows[~trained] - self.n_trained)


def _mean_of_rows(
    values: Float[Tensor, " place"], rows: Int[Tensor, " place"]
) -> Float[Tensor, ""]:
    """Mean over rows of the mean over a row's places."""
    counts = torch.bincount(rows)
    return (
        torch.zeros(len(counts), device=values.device).index_add(0, rows, values) / counts
    ).mean()


def lessons(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    retained: Sequence[EditRequest],
    contexts: Sequence[str] = ("",),
    *,
    size: int | None = None,
    seed: int = 0,
) -> list[Lesson]:
    """Each request behind each of the texts, in batches that each have the retained prompts, too.

    Args:
        model: The model.
        requests: What is trained.
        retained: What is kept.
        contexts: Texts before the prompts.
        size: Most trained rows of a batch; None: all rows are one batch. Batches are of about the
            same size, and of rows in a random order.
        seed: Of that order.

    Raises:
        EditError: A prompt with its answer is longer than the model's context.
    """
    rows = [trained_question(model, each, text) for text in contexts for each in requests]
    kept = [trained_question(model, each) for each in retained]
    number = 1 if size is None else math.ceil(len(rows) / size)
    if number > 1:
        random.Random(seed).shuffle(rows)
    batches = [rows[start::number] for start in range(number)]
    return [Lesson(ask(model, [*batch, *kept]), len(batch)) for batch in batches]


def settled(losses: Sequence[float], number: int, stop_loss: float) -> bool:
    """Whether the mean of the newest whole loss of each of so many batches, trained in turn, is
    below the loss at which training stops.
    """
    newest = losses[-number:]
    return len(newest) == number and sum(newest) / number < stop_loss


def trained_question(model: LanguageModel, request: EditRequest, context: str = "") -> Question:
    """What a request wants behind a text, as an editor trains on it."""
    ids = request.target_ids(model, context) if request.ends else None
    return Question(context + request.prompt, request.target_new, request.space, ids)
