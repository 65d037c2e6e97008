"""What a model is asked along many edits: the edited rules, other rules, and plain text.

The unedited model is asked first. Of what it says at locality prompts only the most likely tokens
are kept, so that a hundred rules take no memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from editing.closed_form.corpora import HUB, open_corpus, rows_of
from editing.config import CovarianceConfig
from editing.evaluation import side_effects
from editing.evaluation.items import Item, items_of
from editing.evaluation.scoring import Question, teacher_forced
from editing.evaluation.side_effects import Answers, Probes, probes_of
from editing.studies.comparison import other_rules
from editing.studies.config import SequenceConfig
from interp.errors import InputError
from interp.models import corpus
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule

TEXT_WORDS = 100
"""Words of each piece of plain text."""
TEXT_BATCH = 8
"""Pieces run at once."""


@dataclass(frozen=True)
class _Said:
    """What a model says at a target that is fed to it."""

    tokens: tuple[int, ...]
    values: Mapping[str, float]
    """By mode."""


@dataclass(frozen=True)
class Exam:
    """What is asked of the model at every checkpoint.

    Attributes:
        rules: Rules that are edited, in the order of the edits.
        priority: The place of each in the draw of samples.
        config: Metrics and size of the sample.
        probes: Questions about other rules, and plain text.
        batch_size: Questions run at once; changes memory and speed only.
    """

    rules: tuple[Rule, ...]
    priority: tuple[int, ...]
    config: SequenceConfig
    probes: Probes
    batch_size: int

    def sample(self, edits: int) -> list[Rule]:
        """The sample of the first so many rules."""
        places = sorted(range(edits), key=lambda place: self.priority[place])
        return [self.rules[place] for place in sorted(places[: self.config.sample])]

    def items(self, edits: int) -> list[tuple[Rule, Item]]:
        """Questions about the first so many rules: reliability of all, the rest of the sample."""
        metrics, sample = {*self.config.metrics} - {"reliability"}, self.sample(edits)
        asked = [(rule, item) for rule in self.rules[:edits] for item in items_of(rule)]
        sampled = {rule.id for rule in sample}
        return [
            (rule, item)
            for rule, item in asked
            if item.metric == "reliability" or (item.metric in metrics and rule.id in sampled)
        ]

    def about(self, edits: int) -> dict[str, Any]:
        """What scores depend on besides the weights."""
        return {
            "sample": [rule.id for rule in self.sample(edits)],
            "metrics": list(self.config.metrics),
            "probes": asdict(self.probes),
        }


@dataclass(frozen=True)
class Floor:
    """What the unedited model says."""

    locality: Mapping[Question, tuple[int, ...]]
    """Most likely tokens at the prompts that should not change."""
    side: Answers


def exam_of(
    rules: Sequence[Rule],
    priority: Sequence[int],
    config: SequenceConfig,
    texts: Sequence[str],
    batch_size: int,
) -> Exam:
    """An exam of rules in the order of their edits; see `Exam` and `held_out`."""
    questions = probes_of(other_rules(rules, config.bystanders), ()).questions
    return Exam(
        tuple(rules), tuple(priority), config, Probes(questions, tuple(texts), ()), batch_size
    )


def floor_of(model: LanguageModel, exam: Exam, checkpoints: Sequence[int]) -> Floor:
    """Ask the unedited model all that answers at some checkpoints are compared with."""
    locality = {
        item.question: None
        for edits in checkpoints
        for _, item in exam.items(edits)
        if item.metric == "locality"
    }
    said = _ask(model, list(locality), exam.batch_size)
    return Floor({question: each.tokens for question, each in said.items()}, _side(model, exam))


def scores_of(model: LanguageModel, exam: Exam, edits: int, floor: Floor) -> list[dict[str, Any]]:
    """Scores of the first so many rules: a row for each rule, metric and mode, the mean over forms
    of each form's mean.

    Raises:
        NotFiniteError: What the model says is no number.
    """
    items = exam.items(edits)
    said = _ask(model, list(dict.fromkeys(item.question for _, item in items)), exam.batch_size)
    values: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for rule, item in items:
        now = said[item.question]
        scores = (
            _kept(floor.locality[item.question], now.tokens)
            if item.metric == "locality"
            else now.values
        )
        for mode, value in scores.items():
            by_form = values.setdefault((rule.id, item.metric, mode), {})
            by_form.setdefault(item.form, []).append(value)
    return [
        {"rule": rule, "metric": metric, "mode": mode, "score": fmean(map(fmean, forms.values()))}
        for (rule, metric, mode), forms in values.items()
    ]


def effects_of(model: LanguageModel, exam: Exam, floor: Floor) -> dict[str, float]:
    """What edits did elsewhere (`interp.results.sequences.MEASURES`).

    Raises:
        NotFiniteError: What the model says is no number.
    """
    found = side_effects.compare(floor.side, _side(model, exam))
    ratio = found["perplexity_after"] / found["perplexity_before"]
    kept = {name: value for name, value in found.items() if not name.startswith("entropy")}
    return {**kept, "perplexity_ratio": ratio}


def held_out(
    model: LanguageModel, config: SequenceConfig, statistics: CovarianceConfig | None
) -> list[str]:
    """Plain text that the statistics of keys were not measured on, in pieces.

    Args:
        model: Its tokens are counted, and no piece is longer than its context.
        config: Corpus and number of tokens.
        statistics: How the statistics are measured; None if there are none.

    Raises:
        InputError: What is left of the corpus is too short.
    """
    if not config.text_tokens:
        return []
    read = _read_by_statistics(model, statistics)
    pieces: list[str] = []
    left = config.text_tokens
    for text in reversed(corpus.paragraphs(config.corpus)[1]):
        piece = _piece(model, text)
        if text in read or len(piece.split()) < 2:
            continue
        pieces.append(piece)
        left -= len(model.encode(piece).ids)
        if left <= 0:
            return pieces
    raise InputError(
        f"sequence.text_tokens is {config.text_tokens}, and {config.text_tokens - left} tokens of"
        f" the corpus {config.corpus!r} were not read by the statistics of keys; lower it, or"
        " covariance.tokens"
    )


def _read_by_statistics(
    model: LanguageModel, statistics: CovarianceConfig | None
) -> frozenset[str]:
    """Texts that statistics are measured on; a data set of the hub is taken for another corpus."""
    if statistics is None or statistics.identity or statistics.corpus.startswith(HUB):
        return frozenset()
    read: list[str] = []
    texts = open_corpus(statistics.corpus).texts
    rows_of(model, (read.append(text) or text for text in texts), statistics)
    return frozenset(read)


def _piece(model: LanguageModel, text: str) -> str:
    """The beginning of a text, short enough for the model."""
    words = text.split()[:TEXT_WORDS]
    while len(words) > 1 and len(model.encode(" ".join(words)).ids) > model.context_length:
        words = words[: len(words) * 3 // 4]
    return " ".join(words)


def _ask(
    model: LanguageModel, questions: Sequence[Question], batch_size: int
) -> dict[Question, _Said]:
    forced = teacher_forced(model, questions, batch_size=batch_size)
    return {
        question: _Said(
            each.said,
            {"token_accuracy": each.token_accuracy, "exact": each.exact, "log_prob": each.log_prob},
        )
        for question, each in zip(questions, forced, strict=True)
    }


def _kept(before: tuple[int, ...], now: tuple[int, ...]) -> dict[str, float]:
    """Locality: how much of what was said is said."""
    same = fmean(a == b for a, b in zip(before, now, strict=True))
    return {"token_accuracy": same, "exact": float(same == 1)}


def _side(model: LanguageModel, exam: Exam) -> Answers:
    """Answers to the questions about other rules, and to the plain text in smaller batches."""
    asked = Probes(exam.probes.questions, (), ())
    answers = side_effects.ask(model, asked, batch_size=exam.batch_size)
    text = side_effects.ask(model, Probes((), exam.probes.texts, ()), batch_size=TEXT_BATCH)
    return replace(answers, nll=text.nll)
