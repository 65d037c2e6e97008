"""Plain English paragraphs from which statistics of a model's states are taken.

The default corpus is an excerpt of Wikipedia that ships inside the `gensim` wheel (106 articles).
Any text file can stand in for it. What was read is always named by a `CorpusSource`, so that a
statistic can say what it was measured on.
"""

import bz2
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import mwparserfromhell
from mwparserfromhell.nodes import Heading, Node, Tag, Template, Text, Wikilink
from mwparserfromhell.wikicode import Wikicode

from interp.errors import DamagedError, DmleError, MissingFileError
from interp.models.embedded import KEY_LENGTH, EmbeddedFile, locate, make_once
from interp.results.cache import cache_dir
from interp.results.checksums import check_seal, read_bytes, write_sealed

EMBEDDED = "embedded"
MIN_CHARACTERS = 200

WIKIPEDIA = EmbeddedFile(
    what="the embedded corpus (Wikipedia excerpt)",
    distribution="gensim",
    version="4.4.0",
    suffix="enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
    size=1_695_871,
    sha256="a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
)
WIKIPEDIA_NAME = "English Wikipedia, 2016 excerpt of the gensim test data"
WIKIPEDIA_LICENCE = "CC BY-SA 3.0"
EXTRACTION = 1
"""Version of the rules below that turn wiki markup into text; part of the cached file's name."""

# Removed before parsing: notes are no running text, and the parser spends much of its time on them.
_NOTES = re.compile(
    r"<!--.*?-->|<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref\s*>", re.DOTALL | re.IGNORECASE
)
_EMPTY_BRACKETS = re.compile(r"\s*\([\s,;:]*\)")
_SPACE_BEFORE_STOP = re.compile(r" +([,.;:])")
_LEFT_MARKUP = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|\{\||\|\}|''|</?\w+[^<>]*>|https?://|\bthumb\||\w\|\w"
)
_LIST_MARKS = frozenset("*#:;")
_NO_PROSE = "\0"
"""Marks a line that is dropped as a whole: a list item, or a sentence that would lose its
formula."""
_NOT_TEXT_TAGS = frozenset(
    {"table", "gallery", "timeline", "source", "syntaxhighlight", "pre", "ref"}
)
_NOT_TEXT_LINKS = ("file:", "image:", "category:", "media:")
_CONVERSIONS = frozenset({"convert", "cvt"})


@dataclass(frozen=True)
class CorpusSource:
    """What a corpus is: enough to find it again and to cite it."""

    name: str
    licence: str
    sha256: str
    """SHA-256 of the paragraphs as they were given out, joined by newlines, in UTF-8."""


def paragraphs(source: str | Path = EMBEDDED) -> tuple[CorpusSource, list[str]]:
    """The paragraphs of a corpus, in a fixed order, and what they come from.

    Args:
        source: `"embedded"` for the Wikipedia excerpt (paragraphs of more than 200 characters), or
            the path of a UTF-8 text file. In a text file every line that is not blank is one
            paragraph, whatever its length; text that is wrapped at a column has to be unwrapped
            first.

    Raises:
        EmbeddedFileError: The excerpt is missing or damaged.
        FileNotFoundError: There is no such text file.
        ValueError: The text file is not UTF-8 or has no paragraph.
    """
    if source == EMBEDDED:
        texts = _excerpt()
        return CorpusSource(WIKIPEDIA_NAME, WIKIPEDIA_LICENCE, paragraphs_sha256(texts)), texts
    path = Path(source)
    texts = _user_lines(path)
    return CorpusSource(path.name, "not stated", paragraphs_sha256(texts)), texts


def paragraphs_sha256(texts: Iterable[str]) -> str:
    """SHA-256 of paragraphs joined by newlines, in UTF-8: equal for equal text, however stored."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def corpus_paragraphs(*, search: Sequence[Path] | None = None) -> Iterator[str]:
    """Extract the paragraphs of the embedded Wikipedia excerpt, in the order of the dump.

    Left out are redirects and pages that are no articles; notes, tables, lists, images and
    headings; and paragraphs with a typeset formula, with markup that was never closed, or of no
    more than 200 characters. Takes seconds; `paragraphs` reads a cached copy.

    Args:
        search: Folders that hold installed distributions; by default those of `sys.path`.

    Raises:
        EmbeddedFileError: The excerpt is missing or damaged.
    """
    for markup in article_markup(locate(WIKIPEDIA, search=search)):
        yield from clean_paragraphs(markup)


def article_markup(dump: Path) -> Iterator[str]:
    """Wiki markup of every article of a bz2-compressed MediaWiki dump, without redirects and
    other pages.
    """
    with bz2.open(dump) as file:
        for _, page in ElementTree.iterparse(file):
            if not page.tag.endswith("}page"):
                continue
            markup = page.findtext("{*}revision/{*}text")
            if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None and markup:
                yield markup
            page.clear()


def clean_paragraphs(markup: str, *, min_characters: int = MIN_CHARACTERS) -> list[str]:
    """Running text of one article: paragraphs longer than `min_characters` in which no markup is
    left.
    """
    nodes = mwparserfromhell.parse(_NOTES.sub("", markup)).nodes
    kept = Wikicode([part for node in nodes for part in _running_text(node)])
    lines = (
        _tidy(line) for line in kept.strip_code(collapse=False).split("\n") if _NO_PROSE not in line
    )
    return [line for line in lines if len(line) > min_characters and not _LEFT_MARKUP.search(line)]


def _running_text(node: Node) -> list[Node]:
    """What a node of an article adds to its running text."""
    if isinstance(node, Template):
        return [Text(_template_text(node))]
    if isinstance(node, Heading):
        return []
    if isinstance(node, Wikilink) and str(node.title).strip().lower().startswith(_NOT_TEXT_LINKS):
        return []
    if isinstance(node, Tag):
        name = str(node.tag).strip().lower()
        if name == "math" or str(node.wiki_markup) in _LIST_MARKS:
            return [Text(_NO_PROSE)]
        return [] if name in _NOT_TEXT_TAGS else [node]
    return [node]


def _template_text(template: Template) -> str:
    """Text that a template stands for inside a sentence: quantities and foreign words, nothing
    else.
    """
    name = str(template.name).strip().lower()
    values = [
        str(parameter.value.strip_code()) for parameter in template.params if not parameter.showkey
    ]
    if name in _CONVERSIONS and len(values) >= 2:
        return f"{values[0]} {values[1]}"
    if name == "lang" and len(values) >= 2:
        return values[1]
    return ""


def _tidy(line: str) -> str:
    """One space between words, and no brackets or spaces that a removed template left."""
    line = _EMPTY_BRACKETS.sub("", " ".join(line.split()))
    return _SPACE_BEFORE_STOP.sub(r"\1", line)


def _cached_excerpt() -> Path:
    """Text file of the embedded paragraphs, one a line; written the first time."""
    made_by = f"{WIKIPEDIA.sha256} {EXTRACTION} {metadata.version('mwparserfromhell')}"
    key = hashlib.sha256(made_by.encode()).hexdigest()[:KEY_LENGTH]
    return make_once(cache_dir() / "corpus" / f"enwiki-{key}-sealed.txt", _write_excerpt)


def _write_excerpt(path: Path) -> None:
    write_sealed(path, "".join(f"{paragraph}\n" for paragraph in corpus_paragraphs()).encode())


def _excerpt() -> list[str]:
    """The embedded paragraphs; a damaged file of them is made again."""
    for last in (False, True):
        path = _cached_excerpt()
        try:
            size = check_seal(path, "cached corpus", "delete it; it is made again").size
            return _lines(path.read_bytes()[:size].decode())
        except DamagedError:
            if last or not path.is_file():
                raise
            path.unlink()
    raise AssertionError("the second turn returns or raises")


def _lines(text: str) -> list[str]:
    """Every line that is not blank, without the white space around it."""
    # Split at newlines alone: str.splitlines would also split at characters that occur inside
    # paragraphs.
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return [line.strip() for line in text.split("\n") if line.strip()]


def _user_lines(path: Path) -> list[str]:
    if not path.is_file():
        raise MissingFileError(
            f"There is no corpus file {path}. Give {EMBEDDED!r} for the embedded corpus, or the"
            " path of a UTF-8 text file with one paragraph a line."
        )
    try:
        texts = _lines(
            read_bytes(path, "text file", "give a UTF-8 text file", limit=1 << 40).decode()
        )
    except UnicodeDecodeError as error:
        raise DmleError(
            f"The corpus file {path} is not UTF-8: {error}. Convert it to UTF-8."
        ) from error
    if not texts:
        raise DmleError(
            f"The corpus file {path} has no paragraph: every line is blank. Put one paragraph a"
            " line."
        )
    return texts
