"""Texts that statistics of keys are measured over: which there are, and their tokens."""

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from editing.closed_form.rule_text import mixed, sentences
from editing.config import CovarianceConfig
from interp.errors import InputError
from interp.models.corpus import paragraphs, paragraphs_sha256
from interp.models.loading import LanguageModel
from interp.rules.sources import load_rules

WITH_RULES = "embedded+rules"
HUB = "hf:"


@dataclass(frozen=True)
class Corpus:
    """Texts, with what tells them from others."""

    name: str
    version: Mapping[str, str]
    """A hash, or a commit."""
    texts: Iterable[str]


def open_corpus(corpus: str) -> Corpus:
    """The texts that `covariance.corpus` names.

    Raises:
        InputError: They cannot be read.
    """
    if corpus.startswith(HUB):
        return _dataset(corpus)
    if corpus != WITH_RULES:
        source, texts = paragraphs(corpus)
        return Corpus(source.name, {"corpus_sha256": source.sha256}, texts)
    source, texts = paragraphs()
    both = list(mixed(texts, sentences(load_rules("embedded", split="train").rules)))
    return Corpus(
        f"{source.name}, with training rules", {"corpus_sha256": paragraphs_sha256(both)}, both
    )


def _dataset(corpus: str) -> Corpus:
    """A Hugging Face dataset, "hf:NAME" or "hf:NAME@CONFIGURATION", read as it is needed."""
    name, _, configuration = corpus.removeprefix(HUB).partition("@")
    try:
        # Imported here: it is optional, and takes a second.
        from datasets import load_dataset_builder
    except ImportError as error:
        raise InputError(
            f"covariance.corpus {corpus!r} needs the package datasets: pip install datasets. Or"
            " give a text file"
        ) from error
    try:
        builder = load_dataset_builder(name, configuration or None)
        stream: Any = builder.as_streaming_dataset(split="train")
    except (
        Exception
    ) as error:  # the library has no common class for a missing name, configuration, split, network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"covariance.corpus {corpus!r} cannot be read: {reason}. Write hf:NAME or"
            ' hf:NAME@CONFIGURATION, of a dataset with a split "train"; or give a text file'
        ) from error
    # The commit of a dataset on the hub; of a folder, a hash of its files.
    return Corpus(corpus, {"corpus_revision": str(builder.hash)}, _column(corpus, stream))


def _column(corpus: str, stream: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for row in stream:
        text = row.get("text")
        if "text" not in row or not isinstance(text, str | None):
            raise InputError(
                f'covariance.corpus {corpus!r} has no column "text" of strings; its columns are'
                f" {', '.join(row)}"
            )
        if text and text.strip():
            yield text.strip()


def rows_of(model: LanguageModel, texts: Iterable[str], config: CovarianceConfig) -> list[array]:
    """Token ids of the texts, cut at `max_length`: exactly `tokens` of them count, if the corpus
    has so many.
    """
    left, skipped, length = config.tokens, int(config.skip_first), longest(model, config)
    rows: list[array] = []
    for text in texts:
        ids = model.encode(text).ids[: min(length, left + skipped)]
        if len(ids) > skipped:
            # Four bytes a token: a corpus may be long.
            rows.append(array("i", ids))
            left -= len(ids) - skipped
        if left == 0:
            break
    return rows


def longest(model: LanguageModel, config: CovarianceConfig) -> int:
    """Tokens at which texts are cut: beyond its positions a model computes nothing that means
    anything.
    """
    return min(config.max_length, model.context_length)


def counted(rows: Iterable[Sequence[int]], skip_first: bool) -> int:
    """Tokens of some texts, without the first of each if it is skipped."""
    return sum(len(row) - skip_first for row in rows)
