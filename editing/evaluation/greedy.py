"""What a model says by itself, and how it is judged as text.

`greedy_exact` and `greedy_prefix` are here; by what answers mean they are judged in
`editing.evaluation.equivalence`. Case, spacing and punctuation at the end make no difference to
either.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from editing.edits.protocol import View
from editing.evaluation.scoring import REMEDY, rows_together, shared_prefix
from editing.evaluation.statements import first_sentences, sentence_count
from interp.models.budget import chunked
from interp.models.loading import LanguageModel
from interp.rules.spans import begins_word


def greedy_answers(
    model: LanguageModel | View,
    prompts: Sequence[str],
    n_tokens: int | Sequence[int],
    *,
    batch_size: int,
) -> list[str]:
    """The model's own continuations, of so many tokens each (or one number for all)."""
    view = View.of(model)
    return [
        view.model.decode_continuation(answer)
        for answer in greedy_ids(view, prompts, n_tokens, batch_size=batch_size)
    ]


def greedy_ids(
    model: LanguageModel | View,
    prompts: Sequence[str],
    n_tokens: int | Sequence[int],
    *,
    batch_size: int,
    stop: Callable[[tuple[int, ...]], bool] | None = None,
) -> list[tuple[int, ...]]:
    """`greedy_answers` as tokens.

    Args:
        model: The model or view.
        prompts: The prompts.
        n_tokens: Most tokens of the answers.
        batch_size: Prompts run at once.
        stop: Whether an answer so far is enough (see `generate` of `LanguageModel`).

    Raises:
        EditError: A prompt with its answer is longer than the model's context.
    """
    view = View.of(model)
    lengths = [n_tokens] * len(prompts) if isinstance(n_tokens, int) else list(n_tokens)
    ids = [view.encode(prompt, n - 1) for prompt, n in zip(prompts, lengths, strict=True)]
    out: list[tuple[int, ...]] = [()] * len(prompts)
    prefix = _prefix(view, ids, lengths)

    def work(rows: list[int]) -> None:
        # Padded on the left, every prompt ends in the last column.
        last = max(len(ids[row]) for row in rows) - 1
        ends = torch.full((len(rows),), last, device=view.model.device)
        n = max(lengths[row] for row in rows)
        answers = view.model.generate(
            [ids[r] for r in rows], n, hooks=view.hooks(ends), prefix=prefix, stop=stop
        )
        for row, answer in zip(rows, answers, strict=True):
            out[row] = answer[: lengths[row]]

    for rows in _groups(view, ids, lengths, batch_size):
        width = max(len(ids[row]) for row in rows)
        size = rows_together(view, width, width + max(lengths[row] for row in rows), 1)
        chunked(rows, size, work, REMEDY)
    return out


def _prefix(view: View, ids: Sequence[tuple[int, ...]], lengths: Sequence[int]) -> Any:
    """Keys and values of what all prompts begin with; None where it is not run once for all."""
    config = view.model.config.get_text_config()
    window = getattr(config, "sliding_window", None) or view.model.context_length
    longest = max(map(len, ids), default=0) + max(lengths, default=0)
    # Padding behind the prefix counts as distance: it must not push tokens out of a sliding window.
    return shared_prefix(view, ids, longest)[1] if longest - 1 <= window else None


def _groups(
    view: View, ids: Sequence[tuple[int, ...]], lengths: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
    """Rows that are generated together."""
    # An answer does not depend on how many tokens others in its batch are continued by, unless the
    # model does.
    for group in view.model.groups([len(each) for each in ids], max(lengths, default=0)):
        prompts, answers = [len(ids[row]) for row in group], [lengths[row] for row in group]
        for batch in _batches(prompts, answers, batch_size, view.model.context_length):
            yield [group[i] for i in batch]


def _batches(
    prompts: Sequence[int], answers: Sequence[int], size: int, limit: int
) -> Iterator[list[int]]:
    """Rows that are generated together: answers of like length, as a batch runs until its longest
    is done.

    The longest prompt of a batch with its longest answer fits into the context.
    """
    rows: list[int] = []
    for row in sorted(range(len(prompts)), key=lambda row: -answers[row]):
        more = [*rows, row]
        longest = max(prompts[r] for r in more) + max(answers[r] for r in more) - 1
        if len(more) > size or longest > limit:
            if rows:
                yield rows
            more = [row]
        rows = more
    if rows:
        yield rows


def greedy_exact(answer: str, target: str) -> bool:
    r"""Whether the answer's first sentence is the target (its first sentences, if the target has
    several).

    >>> greedy_exact(" The  side squared.\nAnd", "the side squared"), greedy_exact("15 cm", "15")
    (True, False)
    """
    return normalised(first_sentences(answer, sentence_count(target))) == normalised(target)


def greedy_prefix(answer: str, target: str) -> bool:
    """Whether the answer begins with the target, as whole words and numbers: "150" and "15.5" do
    not with "15".

    >>> greedy_prefix("15 cm, as", "15."), greedy_prefix("150", "15"), greedy_prefix("15.5", "15")
    (True, False, False)
    """
    said, wanted = normalised(answer), normalised(target)
    if not wanted:
        return not normalised(first_sentences(answer))
    rest = said.removeprefix(wanted)
    return (
        said.startswith(wanted) and not begins_word(rest, wanted) and not re.match(r"[.,]\d", rest)
    )


def normalised(text: str) -> str:
    """Text as it is compared: in lower case, spaces single, without punctuation at its end."""
    return " ".join(text.casefold().split()).rstrip(" .,;:!?。．，、；：！？")
