"""How well a model answers: one prompt against one target.

Teacher forcing feeds the target and asks at each of its tokens whether the model would have said
it. That leaks the target's prefix and length, so the share of right tokens (EasyEdit's "accuracy",
kept for comparison) flatters; ``exact``, all tokens right, does not: it holds exactly when greedy
generation starts with the target's tokens. What a model says by itself is in
`editing.evaluation.greedy`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from editing.edits.protocol import View, no_hooks
from editing.edits.requests import EditRequest
from interp.models.budget import chunked
from interp.models.finite import require_finite
from interp.models.loading import LanguageModel
from interp.models.tokens import pad_right
from interp.rules.joining import join
from interp.settings.sizes import parse_size

REMEDY = "use a smaller evaluate.batch_size, another device, or model.dtype=bfloat16"
MEMORY = parse_size("1GiB")
"""Bytes that a batch may take (estimated) whatever the device; more if it has more
(`interp.models.budget`)."""
OVERLAPS = {"top_5": 5, "top_10": 10}
"""Modes by how many of the most likely tokens they compare."""
WORTH_SHARING = 64
"""Tokens that a shared beginning must save: the pass over it costs as much as some 40, by
reading the weights."""


@dataclass(frozen=True)
class Question:
    """Does the model continue `prompt` with `target`?"""

    prompt: str
    target: str
    space: bool | None = None
    """Whether a space is between them (see `interp.rules.joining`)."""
    ids: tuple[int, ...] | None = None
    """Tokens of the target, where they are not those of the text (see `in_own_tokens`)."""


def question_of(request: EditRequest) -> Question:
    """What a request wants, as a question."""
    return Question(request.prompt, request.target_new, request.space)


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


@dataclass(frozen=True)
class Asked:
    """Questions as one batch: each prompt followed by its target but for the last token, which
    predicts nothing.
    """

    ids: Int[Tensor, "row pos"]
    mask: Int[Tensor, "row pos"]
    ends: Int[Tensor, " row"]
    """Column of the last prompt token; the target's tokens are predicted from there on."""
    kept: Int[Tensor, " kept"]
    """Columns whose logits matter: from the first of `ends` on."""
    targets: tuple[tuple[int, ...], ...]

    def nll(self, logits: Float[Tensor, "row kept d_vocab"]) -> Float[Tensor, " row"]:
        """−log p of each target, mean over its tokens, in nats; `logits` are those of the
        columns `kept`.
        """
        counts = self.counts()
        width, length = counts.shape[1], counts.sum(-1)
        padded = torch.tensor(
            [[*t, *[0] * (width - len(t))] for t in self.targets], device=self.ids.device
        )
        log_prob = self.log_probs(logits).gather(-1, padded[..., None]).squeeze(-1)
        return -(log_prob * counts).sum(-1) / length

    def log_probs(
        self, logits: Float[Tensor, "row kept d_vocab"]
    ) -> Float[Tensor, "row token d_vocab"]:
        """Log-probabilities at the place of each target token, in nats."""
        counts = self.counts()
        length = counts.sum(-1, keepdim=True)
        step = torch.arange(counts.shape[1], device=self.ids.device)[None]
        # Padding looks at the last token's place, which exists, and counts nothing.
        places = (self.ends - self.kept[0])[:, None] + torch.minimum(step, length - 1)
        at = logits[torch.arange(len(logits), device=logits.device)[:, None], places].float()
        return at.log_softmax(-1)

    def places(self) -> tuple[Int[Tensor, " place"], Int[Tensor, " place"]]:
        """Row and column of each target token's prediction, row by row and without padding."""
        rows, tokens = self.counts().nonzero(as_tuple=True)
        return rows, self.ends[rows] + tokens

    def of_rows(self, rows: Sequence[int]) -> "Asked":
        """Some of the questions, ascending, laid out as in the whole batch."""
        if len(rows) == len(self.targets):
            return self
        which = torch.tensor(list(rows), device=self.ids.device)
        targets = tuple(self.targets[row] for row in rows)
        return Asked(self.ids[which], self.mask[which], self.ends[which], self.kept, targets)

    def counts(self) -> Bool[Tensor, "row token"]:
        """Which places are of a target token; the others are padding."""
        length = torch.tensor([len(t) for t in self.targets], device=self.ids.device)
        step = torch.arange(int(length.max()), device=self.ids.device)
        return step[None] < length[:, None]


def ask(model: LanguageModel | View, questions: Sequence[Question]) -> Asked:
    """Lay questions out as one batch, padded on the right.

    Raises:
        EditError: A prompt with its target is longer than the model's context.
    """
    view = View.of(model)
    return _laid_out(*_encoded(view, questions), view.model.device)


def _encoded(
    view: View, questions: Sequence[Question]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Token ids of the prompts and of the targets."""
    targets = [
        q.ids or view.model.encode_continuation(q.target, q.prompt, q.space) for q in questions
    ]
    return [
        view.encode(q.prompt, len(t) - 1) for q, t in zip(questions, targets, strict=True)
    ], targets


def _laid_out(
    prompts: Sequence[tuple[int, ...]], targets: Sequence[tuple[int, ...]], device: torch.device
) -> Asked:
    ids, mask = pad_right([(*p, *t[:-1]) for p, t in zip(prompts, targets, strict=True)], device)
    ends = torch.tensor([len(p) - 1 for p in prompts], device=device)
    return Asked(
        ids, mask, ends, torch.arange(int(ends.min()), ids.shape[1], device=device), tuple(targets)
    )


def teacher_forced(
    model: LanguageModel | View, questions: Sequence[Question], *, batch_size: int
) -> Iterator[Forced]:
    """Run every question once with its target appended; results in order, one batch in memory at a
    time.

    Tokens that all prompts begin with (the text that an in-context edit puts before them) are run
    once for all.

    Raises:
        EditError: A prompt with its target is longer than the model's context; before anything is
            run.
    """
    view = View.of(model)
    prompts, targets = _encoded(view, questions)
    whole = [len(p) + len(t) - 1 for p, t in zip(prompts, targets, strict=True)]
    shared, prefix = shared_prefix(view, prompts, max(whole, default=0))
    for start in range(0, len(questions), batch_size):
        results: dict[int, Forced] = {}

        def work(rows: list[int], results: dict[int, Forced] = results) -> None:
            own = [prompts[i] for i in rows], [targets[i] for i in rows]
            results |= zip(rows, _forced(view, *own, prefix), strict=True)

        batch = range(start, min(start + batch_size, len(questions)))
        for group in view.model.lengths.groups([whole[i] for i in batch]):
            rows = [batch[i] for i in group]
            width, first = max(whole[i] for i in rows), min(len(prompts[i]) for i in rows)
            size = rows_together(view, width - shared, width, width - first + 1)
            chunked(rows, size, work, REMEDY)
        yield from (results[row] for row in batch)


def _forced(
    view: View, prompts: Sequence[tuple[int, ...]], targets: Sequence[tuple[int, ...]], prefix: Any
) -> list[Forced]:
    """One run; `prefix` holds what all prompts begin with, if anything."""
    asked = _laid_out(prompts, targets, view.model.device)
    shared = 0 if prefix is None else prefix.get_seq_length()
    with torch.no_grad():
        logits = view.model.logits(
            asked.ids[:, shared:],
            mask=asked.mask,
            keep=asked.kept - shared,
            hooks=view.hooks(asked.ends),
            prefix=prefix,
        )
        log_probs = logits.float().log_softmax(-1).cpu()
    results = []
    for row, end, target in zip(log_probs, asked.ends.tolist(), asked.targets, strict=True):
        start = end - int(asked.kept[0])
        own = row[start : start + len(target)].clone()
        require_finite(own, "a prediction", view.model)
        results.append(Forced(target, tuple(own.argmax(-1).tolist()), own))
    return results


def rows_together(view: View, tokens: int, context: int, kept: int) -> int:
    """How many rows the memory takes in one run, by an estimate from above."""
    memory = max(MEMORY, view.model.budget())
    return max(1, memory // view.model.row_bytes(tokens, context, kept))


def shared_prefix(view: View, prompts: Sequence[tuple[int, ...]], longest: int) -> tuple[int, Any]:
    """Tokens at the beginning of all prompts that are run once for all (see `_shared`): how many,
    and their keys and values; 0 and None where that saves too little.
    """
    shared = _shared(view, prompts, longest)
    if not shared:
        return 0, None
    ids = torch.tensor([prompts[0][:shared]], device=view.model.device)
    return shared, view.model.prefix_cache(ids)


def _shared(view: View, prompts: Sequence[tuple[int, ...]], longest: int) -> int:
    """Number of tokens at the beginning of all prompts that are run once for all; 0 where that
    saves too little.

    Token ids are compared, not texts: what is put before a prompt is encoded with it, and its last
    token may be another one for each. The last token of a prompt is never shared, for its logits
    are asked for. `longest` is the number of tokens of the longest row, with what follows its
    prompt.
    """
    # Hooks address columns of whole rows.
    if len(prompts) < 2 or view.hooks is not no_hooks or not view.model.shares(longest):
        return 0
    # What the least and the greatest of sorted rows share, all share.
    first, last = min(prompts), max(prompts)
    same = sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    )
    shared = min(same, min(map(len, prompts)) - 1)
    return shared if shared * (len(prompts) - 1) >= WORTH_SHARING else 0


def in_own_tokens(model: LanguageModel, question: Question, answer: tuple[int, ...]) -> Question:
    """The question with its target in the tokens of the model's own answer, if that begins with the
    same text.

    The same text may be other tokens than the tokenizer makes of it. What the model says greedily
    is then exactly right by every score, as it should be.

    Args:
        model: The model.
        question: The question.
        answer: Tokens of the model's own answer to the prompt.
    """
    wanted = join(question.prompt, question.target, question.space).answer
    if not model.decode_continuation(answer).startswith(wanted):
        return question
    found = next(
        (n for n in range(1, len(answer) + 1) if model.decode_continuation(answer[:n]) == wanted),
        None,
    )
    if found is None or answer[:found] == model.encode_continuation(
        question.target, question.prompt, question.space
    ):
        return question
    return replace(question, ids=answer[:found])


def agreement(before: Forced, after: Forced) -> float:
    """Share of places where two models' most likely tokens are the same."""
    return sum(a == b for a, b in zip(before.said, after.said, strict=True)) / len(before.said)


def overlap(before: Forced, after: Forced, k: int) -> float:
    """Share of the k most likely tokens of a place that stay among them, mean over the places."""
    k = min(k, before.log_probs.shape[-1])
    tops = zip(before.log_probs.topk(k).indices, after.log_probs.topk(k).indices, strict=True)
    kept = [len({*was.tolist()} & {*now.tolist()}) / k for was, now in tops]
    return sum(kept) / len(kept)


def divergence(before: Forced, after: Forced) -> float:
    """KL(before ‖ after), mean over the target's places, in nats."""
    return (before.log_probs.exp() * (before.log_probs - after.log_probs)).sum(-1).mean().item()
