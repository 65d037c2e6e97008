"""Everything that reads text: hypothesis makes it, from the words and signs that the reader knows
and from anything.

One case is one text. A seed stands for a hundred of them, so that a failure is shrunk to a short
one; the same seed gives the same texts.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.configuration
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from interp.errors import DmleError
from tests.robustness.watch import MEMORY, Failure, Say, peak, place_of

EXAMPLES = 100
"""Texts of one seed."""


class Wrong(Exception):
    """A reader gave what it must not give."""


@dataclass(frozen=True)
class TextReader:
    """One function of text: what it gets, and what calls it and looks at the result."""

    name: str
    texts: st.SearchStrategy[Any]
    check: Callable[[Any], Any]
    share: float = 1.0


class TextCases:
    """The cases of one reader: seed → a hundred texts → the failures, one for each kind, shrunk."""

    def __init__(self, reader: TextReader) -> None:
        self.reader = reader

    def __call__(self, seed: int, say: Say) -> list[Failure]:
        """Read the texts of a seed."""
        shortest: dict[tuple[str, str], tuple[str, str]] = {}

        def test(value: Any) -> None:
            said = ascii(value)
            say(said)
            before = peak()
            try:
                self.reader.check(value)
                if peak() - before > MEMORY:
                    raise MemoryError(f"{(peak() - before) >> 20} MiB more than before")
            except DmleError:
                return
            except Exception as error:
                key = (
                    ("memory" if isinstance(error, MemoryError) else type(error).__name__),
                    place_of(error),
                )
                if key not in shortest or len(said) <= len(shortest[key][1]):
                    shortest[key] = str(error), said
                raise

        hypothesis.configuration.set_hypothesis_home_dir(
            tempfile.gettempdir()
        )  # not the working directory
        settings = hypothesis.settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=[*HealthCheck.__members__.values()],
            report_multiple_bugs=True,
        )
        try:
            hypothesis.seed(seed)(settings(given(self.reader.texts)(test)))()
        except Exception:
            if not shortest:
                raise
        return [
            Failure(self.reader.name, seed, kind, where, said[:300], text[:2000])
            for (kind, where), (said, text) in shortest.items()
        ]


def _mixed(*words: str) -> st.SearchStrategy[str]:
    """Texts of words and signs that a reader knows, of any characters, and of both."""
    known = st.lists(st.sampled_from([*words, " ", ""]), max_size=14).map("".join)
    any_text = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates too
    return st.one_of(known, known, any_text, st.tuples(known, any_text, known).map("".join))


def text_readers(model: Any) -> list[TextReader]:
    """All readers of text.

    Args:
        model: A small model, for what depends on a tokenizer.
    """
    numbers = (
        "0",
        "1",
        "2",
        "9",
        "12",
        "0.5",
        "1e9",
        "999999999999",
        "1/3",
        ".",
        ",",
        "3,4",
        "1e999999999",
        "-",
    )
    algebra = (
        "s",
        "pi",
        "r",
        "sqrt",
        "log",
        "factorial",
        "sin",
        "^",
        "**",
        "*",
        "/",
        "+",
        "(",
        ")",
        "=",
        "²",
        "√",
        "π",
    )
    units = (
        "cm",
        "m",
        "kg",
        "s",
        "N",
        "%",
        "°C",
        "m/s",
        "^2",
        "^-1",
        "/",
        "*",
        "per",
        "[",
        "]",
        "square",
        "metres",
    )
    return [
        TextReader(
            "expressions",
            _mixed(*algebra, *numbers, "__import__", "!", "10^10^10", "mod"),
            _expression,
        ),
        TextReader("units", _mixed(*units, *numbers), _unit, 0.5),
        TextReader(
            "equivalence",
            _pairs(_mixed(*algebra, *numbers, *units, "A", "is", "P", "the", ". ")),
            _answers,
            1.5,
        ),
        TextReader("sizes", _mixed(*numbers, "KiB", "MiB", "GiB", "GB", "B", "k"), _size, 0.3),
        TextReader("layers", _mixed(*numbers, "4-6", "-", "/", ":", "auto", "f_d"), _layers, 0.3),
        TextReader(
            "--set",
            _mixed(*_assignments(), *numbers, "=", ".", ":", "[", "]", "{", "}", "&a", "*a", "!!"),
            _set,
        ),
        TextReader("settings", _trees(), _tree),
        TextReader("mentions", _prompts(), _mentions),
        TextReader("own prompt", _prompts(), _own_prompt),
        TextReader("joins", _prompts(), lambda given: _joins(model, *given[:2])),
    ]


# -- what is asked of each -----------------------------------------------------------------------


def _expression(text: str) -> None:
    from interp.rules.expressions import names, tree
    from interp.rules.meaning import parse, to_sympy
    from interp.rules.rendering import exact, render

    node = tree(text)
    names(node)
    render(node)
    to_sympy(node)
    exact(parse(text))
    exact(parse(text, values={name: 3 for name in names(node)}))


def _unit(text: str) -> None:
    from interp.rules.units import measure, spoken

    measure(text)
    spoken(text)


def _answers(given: tuple[str, str]) -> None:
    from editing.evaluation.equivalence import equivalent
    from editing.evaluation.statements import first_sentences, sentence_count

    answer, target = given
    if equivalent(answer, target) not in (True, False, None):
        raise Wrong("neither yes, no, nor unknown")
    sentence_count(answer)
    first_sentences(answer)


def _size(text: str) -> None:
    from interp.settings.sizes import parse_size

    if parse_size(text) <= 0:
        raise Wrong("a size that is not positive")


def _layers(text: str) -> None:
    from interp.selection.layers import parse_layers

    for group in parse_layers(text, 12).groups:
        if not group.layers or not all(0 <= layer < 12 for layer in group.layers):
            raise Wrong(f"layers {group.layers} of 12")


def _set(text: str) -> None:
    from interp.app.run import raw_settings
    from interp.app.steps import parse_settings
    from interp.settings.assignments import read_assignment

    parse_settings(_steps(), raw_settings({}, settings=[read_assignment(text)]))


def _tree(tree: dict[str, Any]) -> None:
    from interp.app.run import raw_settings
    from interp.app.steps import parse_settings

    parse_settings(_steps(), raw_settings(tree))


def _mentions(given: tuple[str, str, str]) -> None:
    from interp.rules.spans import char_spans, subject_spans

    prompt, subject, word = given
    for start, end in (
        *char_spans(prompt, word, ignore_case=True),
        *(subject_spans(prompt, subject) if subject else ()),
    ):
        if not 0 <= start <= end <= len(prompt):
            raise Wrong(f"span {start}-{end} of {len(prompt)} characters")


def _own_prompt(given: tuple[str, str, str]) -> None:
    from interp.config import TraceConfig
    from interp.tracing.one_prompt import PromptRequest

    prompt, subject, word = given
    request = PromptRequest(prompt, subject, words=(word,) if word else (), out=Path("map.nc"))
    request.check(TraceConfig())
    assert request.rule


def _joins(model: Any, prompt: str, answer: str) -> None:
    encoding = model.encode(prompt)
    if len(encoding.offsets) != len(encoding.ids):
        raise Wrong("not one place in the text for each token")
    if not all(0 <= token < 10_000 for token in model.encode_continuation(answer)):
        raise Wrong("a token that is none")


@cache
def _steps() -> Any:
    from interp.app.steps import load_steps

    return load_steps()


# -- what they get -------------------------------------------------------------------------------


def _pairs(texts: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(texts, texts)


def _prompts() -> st.SearchStrategy[tuple[str, str, str]]:
    words = (
        "square",
        "The area",
        " of a ",
        "日本",
        "の首都は",
        "東京",
        "e\u0301",
        "क्षि",
        "ﬁ",
        "İ",
        "ß",
        "-",
        "'s",
        "\n",
        "12",
    )
    texts = _mixed(*words)
    return st.tuples(texts, texts, texts)


def _assignments() -> tuple[str, ...]:
    return (
        "trace.samples",
        "trace.noise",
        "trace.span",
        "trace.positions",
        "trace.seed",
        "edit.block",
        "edit.editors",
        "edit.ft.steps",
        "edit.arms",
        "select.groups",
        "covariance.shrinkage",
        "tune.grid",
        "compare.few",
        "rules.ids",
        "model.dtype",
        "nothing.here",
        "yes",
        "null",
        "on",
        "~",
        "subject",
        "memit",
        "{a: 1}",
    )


def _trees() -> st.SearchStrategy[dict[str, Any]]:
    """Configurations: known and unknown sections and settings, with values of any kind."""
    sections = (
        "trace",
        "profile",
        "select",
        "edit",
        "evaluate",
        "compare",
        "tune",
        "sweep",
        "covariance",
        "model",
        "rules",
    )
    keys = (
        "samples",
        "noise",
        "span",
        "positions",
        "components",
        "metrics",
        "memory",
        "groups",
        "width",
        "layers",
        "block",
        "editors",
        "arms",
        "ft",
        "lora",
        "grace",
        "preset",
        "steps",
        "grid",
        "floors",
        "seeds",
        "few",
        "shrinkage",
        "tokens",
        "corpus",
        "splits",
        "limit",
        "ids",
        "name",
        "dtype",
        "source",
        "bootstrap",
        "confidence",
        "seed",
    )
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from(
            [10**400, "memit", "subject", "e3", "4-6", "1GiB", "all", float("nan"), 2**64]
        ),
    )
    name = st.one_of(st.sampled_from(keys), st.text(max_size=6))
    values = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4), st.dictionaries(name, inner, max_size=4)
        ),
        max_leaves=8,
    )
    section = st.one_of(st.dictionaries(st.sampled_from(keys), values, max_size=4), leaves)
    return st.dictionaries(
        st.one_of(st.sampled_from(sections), st.text(max_size=5)), section, max_size=3
    )
