"""What editors that train on answers have in common: their rows, and the loss.

The loss is the mean over rows of −(1/n) Σ log p(token of the new answer). Where prompts are
retained (`edit.retained`), the mean over them of (1/n) Σ KL(p_before ‖ p) is added, n being the
tokens of their answers, and p_before what the model said before the first step. Training stops when
this whole loss is small: the new answers alone are often learned in a few steps, which move what is
retained as well, and later steps bring it back.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.edits.requests import EditRequest
from editing.evaluation.scoring import Asked, Question, ask
from interp.models.budget import chunked
from interp.models.loading import LanguageModel

REMEDY = "use shorter prompts, fewer blocks (edit.block), another device, or model.dtype=bfloat16"
"""What to do where not even one row fits."""


@dataclass
class Lesson:
    """Rows that are trained, and behind them rows that are retained, as one batch.

    Attributes:
        asked: The rows.
        n_trained: How many are trained.
        before: By retained row, log-probabilities of its places before the first step, which are
            noted there.
        together: How many rows are run at once: fewer than all where memory has run out.
    """

    asked: Asked
    n_trained: int
    before: dict[int, Float[Tensor, "place d_vocab"]] = field(default_factory=dict)
    together: int = 0

    @property
    def places(self) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
        """Row and column of each prediction that the loss is of (`only` of `LanguageModel.logits`):
        a vocabulary is large, and rows differ in where their answers are.
        """
        return self.asked.places()

    def loss(
        self, logits: Float[Tensor, "place d_vocab"], rows: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss of the new answers alone, and with the retained rows; the first call is of the
        model before any step.

        Args:
            logits: Those of the rows' places.
            rows: Rows, ascending; None: all. The losses of parts add up to that of the whole.
        """
        rows = range(len(self.asked.targets)) if rows is None else rows
        asked, device = self.asked.of_rows(rows), logits.device
        place = asked.places()[0].to(device)
        targets = torch.tensor([token for row in asked.targets for token in row], device=device)
        log_probs = logits.float().log_softmax(-1)
        n_trained = sum(row < self.n_trained for row in rows)
        trained = place < n_trained
        said = log_probs[trained].gather(-1, targets[trained, None]).squeeze(-1)
        loss = _mean_of_rows(-said, place[trained], self.n_trained)
        if n_trained == len(rows):
            return loss, loss
        now = log_probs[~trained]
        before = self._before(rows[n_trained:], now)
        divergence = (before.exp() * (before - now)).sum(-1)
        retained = len(self.asked.targets) - self.n_trained
        return loss, loss + _mean_of_rows(divergence, place[~trained] - n_trained, retained)

    def _before(
        self, rows: Sequence[int], now: Float[Tensor, "place d_vocab"]
    ) -> Float[Tensor, "place d_vocab"]:
        """What was said at retained rows before the first step; noted, if this is it."""
        lengths = [len(self.asked.targets[row]) for row in rows]
        for row, said in zip(rows, now.detach().split(lengths), strict=True):
            self.before.setdefault(row, said)
        return torch.cat([self.before[row] for row in rows])

    def descend(
        self,
        changes: Sequence[Tensor],
        run: Callable[[Sequence[int], Asked], Float[Tensor, "place d_vocab"]],
        *,
        gradients: bool = True,
    ) -> tuple[float, float]:
        """The two losses; the gradient of the whole one is added to those of the changes.

        Where memory runs out, half as many rows are run together, from there on.

        Args:
            changes: What is trained.
            run: Logits of the places of some rows, from their numbers and their questions.
            gradients: Whether gradients are wanted.

        Raises:
            MemoryLimitError: Not even one row fits in memory.
        """
        losses = [0.0, 0.0]

        def work(rows: list[int]) -> None:
            with torch.set_grad_enabled(gradients):
                loss, whole = self.loss(run(rows, self.asked.of_rows(rows)), rows)
            # Not `backward`, which would leave some gradients behind where memory runs out.
            found = torch.autograd.grad(whole, changes) if gradients else ()
            for change, gradient in zip(changes, found, strict=False):
                change.grad = gradient if change.grad is None else change.grad + gradient
            losses[0] += loss.item()
            losses[1] += whole.item()

        number = len(self.asked.targets)
        self.together = chunked(range(number), self.together or number, work, REMEDY)
        return losses[0], losses[1]


def _mean_of_rows(
    values: Float[Tensor, " place"], rows: Int[Tensor, " place"], number: int
) -> Float[Tensor, ""]:
    """Sum over rows of the mean over a row's places, divided by a number of rows."""
    counts = torch.bincount(rows)
    means = torch.zeros(len(counts), device=values.device).index_add(0, rows, values) / counts
    return means.mean() * (len(counts) / number) if len(counts) else values.sum()


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
