"""Side effects of an edit: what changes where nothing should, and whether the model still writes
fluently.

===================  ===============================================================================
``side_agreement``   at the answers of other rules, share of places whose most likely token is as
                     before
``side_kl``          there, KL(before ‖ after), nats per token
``side_top_*``       there, share of the 5 or 10 most likely tokens that stay; only if asked for
``side_accuracy_*``  there, share of the answers' tokens that are the most likely ones
                     (teacher-forced)
``perplexity_*``     of plain text: exp of the mean −log p (nats), over the tokens of all texts as
                     one
``entropy_*``        of greedy continuations: weighted n-gram entropy, in bits; it falls as text
                     repeats
===================  ===============================================================================

`*` is otherwise ``before`` and ``after``. What is measured at answers is a mean over questions,
entropy over continuations. Where there is nothing to measure on (no questions, say), a value is
NaN.

Every text is asked as the continuation of its first word, which predicts and is not predicted. Thus
edits that act on prompts act on texts too: what stands before every prompt stands before the first
word, a codebook is consulted at it, and the tokens that are scored are the same whatever the edit.

Entropy as in ROME's evaluation (Meng et al. 2022), with two differences: over token ids rather than
words, and over what the model wrote alone, without the prompt.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from editing.edits.protocol import View
from editing.evaluation.greedy import greedy_ids
from editing.evaluation.scoring import (
    OVERLAPS,
    Forced,
    Question,
    agreement,
    divergence,
    overlap,
    teacher_forced,
)
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule

OPENINGS = ("My favourite place to visit is", "In the early twentieth century,")
"""Continued whatever the rules are: fluency away from any of their subjects."""
TEXT_WORDS = 60
"""Words of each text that are asked: side effects are measured after every edit, so they must
cost little."""
ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}
"""Length of n-gram → its weight (ROME's)."""


@dataclass(frozen=True)
class Probes:
    """What a model is asked before and after an edit, the same for all edits.

    Attributes:
        questions: Prompts of rules that the edits have nothing to do with, each with its true
            answer.
        texts: Plain text, a few short paragraphs.
        prompts: Openings that are continued greedily.
        answer_tokens: Tokens of a continuation; fewer where the model ends its text.

    Raises:
        ValueError: A text has fewer than two words.
    """

    questions: tuple[Question, ...]
    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    answer_tokens: int = 40

    def __post_init__(self) -> None:
        """See `Raises`."""
        for text in self.texts:
            if len(text.split(maxsplit=1)) < 2:
                raise InputError(
                    f"the text {text!r} has no second word, so nothing of it can be predicted"
                )


@dataclass(frozen=True)
class Answers:
    """What a model says to probes."""

    forced: tuple[Forced, ...]
    """One for each question."""
    nll: float
    """−log p of the texts after their first words, nats per token, mean over the tokens of all."""
    generated: tuple[tuple[int, ...], ...]
    """Token ids of each continuation, without its opening."""


def probes_of(rules: Sequence[Rule], texts: Sequence[str]) -> Probes:
    """Probes made of rules that will not be edited.

    Args:
        rules: The rules. Each form that has a true answer is a question; the subjects give
            openings.
        texts: Plain text; the first `TEXT_WORDS` words of each are taken.

    Raises:
        ValueError: A text has fewer than two words.
    """
    questions = tuple(
        Question(form.prompt, form.target_true[0], form.space)
        for rule in rules
        for form in rule.forms.values()
        if form.target_true
    )
    subjects = dict.fromkeys(f"The {rule.subject} is" for rule in rules)
    return Probes(
        questions,
        tuple(" ".join(text.split()[:TEXT_WORDS]) for text in texts),
        (*subjects, *OPENINGS),
    )


def ask(model: LanguageModel | View, probes: Probes, *, batch_size: int) -> Answers:
    """Put probes to a model, or to one as an edit leaves it.

    Args:
        model: The model or view.
        probes: What to ask.
        batch_size: Questions, texts or openings run at once; changes memory and speed only.

    Raises:
        EditError: A probe, with what the view puts before it, is longer than the model's context.
    """
    return Answers(
        tuple(teacher_forced(model, probes.questions, batch_size=batch_size)),
        _nll(model, probes.texts, batch_size),
        tuple(greedy_ids(model, probes.prompts, probes.answer_tokens, batch_size=batch_size)),
    )


def compare(before: Answers, after: Answers, *, overlaps: bool = False) -> dict[str, float]:
    """Side effects of an edit (see the module).

    Args:
        before: Answers of the unedited model.
        after: Answers of the edited one to the same probes.
        overlaps: Also compare the most likely tokens beyond the first.

    Raises:
        ValueError: They are answers to other probes.
    """
    pairs = list(zip(before.forced, after.forced, strict=True))
    if any(was.target != now.target for was, now in pairs):
        raise InputError(
            "the answers before and after are to different questions; ask both the same probes"
        )
    tops = {
        f"side_{name}": _mean(overlap(was, now, k) for was, now in pairs)
        for name, k in OVERLAPS.items()
        if overlaps
    }
    return {
        "side_agreement": _mean(agreement(was, now) for was, now in pairs),
        "side_kl": _mean(divergence(was, now) for was, now in pairs),
        "side_accuracy_before": _mean(was.token_accuracy for was, _ in pairs),
        "side_accuracy_after": _mean(now.token_accuracy for _, now in pairs),
        "perplexity_before": _exp(before.nll),
        "perplexity_after": _exp(after.nll),
        "entropy_before": _mean(map(n_gram_entropy, before.generated)),
        "entropy_after": _mean(map(n_gram_entropy, after.generated)),
        **tops,
    }


def n_gram_entropy(ids: Sequence[int]) -> float:
    """(2/3 · H(bigrams) + 4/3 · H(trigrams)) / 2, in bits, over token ids; 0 for text too short to
    have any.

    >>> n_gram_entropy([7, 7, 7, 7]), round(n_gram_entropy([1, 2, 3, 4]), 3)
    (0.0, 1.195)
    """
    return fmean(
        weight * _entropy([tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)])
        for n, weight in ENTROPY_WEIGHTS.items()
    )


def _entropy(items: Sequence[tuple[int, ...]]) -> float:
    shares = [count / len(items) for count in Counter(items).values()]
    # log 1/p rather than −log p: a certain item gives 0, not −0.
    return math.fsum(share * math.log2(1 / share) for share in shares)


def text_questions(texts: Sequence[str]) -> list[Question]:
    """Texts as they are asked: the first word of each is continued by the others."""
    parts = [text.split(maxsplit=1) for text in texts]
    return [Question(first, rest, space=True) for first, rest in parts]


def _nll(model: LanguageModel | View, texts: Sequence[str], batch_size: int) -> float:
    total, tokens = 0.0, 0
    for forced in teacher_forced(model, text_questions(texts), batch_size=batch_size):
        total -= forced.log_prob * len(forced.target)
        tokens += len(forced.target)
    return total / tokens if tokens else math.nan


def _mean(values: Iterable[float]) -> float:
    held = list(values)
    return fmean(held) if held else math.nan


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except (
        OverflowError
    ):  # a model that an edit has ruined: all else that was measured is not to be lost
        return math.inf
