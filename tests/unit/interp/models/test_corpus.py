import bz2
import hashlib
import re
from pathlib import Path

import pytest

from interp.models.corpus import (
    CorpusSource,
    article_markup,
    clean_paragraphs,
    corpus_paragraphs,
    paragraphs,
    paragraphs_sha256,
)
from interp.models.embedded import EmbeddedFileError
from interp.results.checksums import SEAL_BYTES

PAGE = """<page><title>{title}</title><ns>{ns}</ns>{extra}
<revision><text xml:space="preserve">{text}</text></revision></page>"""


def write_dump(path: Path, pages: list[str]) -> Path:
    xml = (
        f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{"".join(pages)}</mediawiki>'
    )
    path.write_bytes(bz2.compress(xml.encode()))
    return path


def only(markup: str) -> str:
    """The single paragraph of a markup, whatever its length."""
    (paragraph,) = clean_paragraphs(markup, min_characters=0)
    return paragraph


def test_article_markup_passes_over_redirects_and_other_namespaces(tmp_path: Path) -> None:
    pages = [
        PAGE.format(title="A", ns=0, extra="", text="first"),
        PAGE.format(title="B", ns=0, extra='<redirect title="A"/>', text="#REDIRECT [[A]]"),
        PAGE.format(title="Wikipedia:C", ns=4, extra="", text="project page"),
        PAGE.format(title="D", ns=0, extra="", text=""),
        PAGE.format(title="E", ns=0, extra="", text="x &lt; y"),
    ]
    assert list(article_markup(write_dump(tmp_path / "dump.bz2", pages))) == ["first", "x < y"]


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("The '''square''' is a [[rectangle]].", "The square is a rectangle."),
        ("A [[regular polygon|regular]] shape.", "A regular shape."),
        (
            "Four sides,<ref name='x'>Euclid, ''Elements''</ref> equal.<ref name=x />",
            "Four sides, equal.",
        ),
        ("Four<!-- or\nfive --> sides.", "Four sides."),
        ("Alabama ({{IPAc-en|æ}}) is a state.", "Alabama is a state."),
        ("It is {{convert|52419|sqmi|km2|0}} wide.", "It is 52419 sqmi wide."),
        ("From {{lang|el|ἀρχή}}, rule.", "From ἀρχή, rule."),
        ("Two{{citation needed|date=May 2016}} words&nbsp;only.", "Two words only."),
        ("[[File:A.svg|thumb|A [[small]] picture]]Beside it.", "Beside it."),
        ("Before.[[Category:Shapes]]", "Before."),
    ],
)
def test_clean_paragraphs_markup_becomes_running_text(markup: str, text: str) -> None:
    assert only(markup) == text


def test_clean_paragraphs_drops_headings_lists_tables_and_templates() -> None:
    markup = (
        "{{Infobox shape|name=Square|sides=4}}\nOne.\n\n== History ==\n* item one\n# item two\n"
        '{| class="wikitable"\n! Head\n|-\n| cell\n|}\nTwo.\n'
    )
    assert clean_paragraphs(markup, min_characters=0) == ["One.", "Two."]


def test_clean_paragraphs_drops_a_sentence_that_would_lose_its_formula() -> None:
    markup = "The area is <math>a^2</math> here.\nThe area is a square."
    assert only(markup) == "The area is a square."


@pytest.mark.parametrize(
    "markup", ["Open [[link.", "Open {{template.", "See http://example.org/x now."]
)
def test_clean_paragraphs_drops_paragraphs_with_markup_left(markup: str) -> None:
    assert only(f"{markup}\n\nClean.") == "Clean."


def test_clean_paragraphs_keeps_only_more_than_the_minimum() -> None:
    assert clean_paragraphs(f"{'a' * 200}\n{'b' * 201}") == ["b" * 201]


def test_corpus_paragraphs_without_gensim_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedFileError, match=r"--force-reinstall gensim==4\.4\.0"):
        next(corpus_paragraphs(search=[tmp_path]))


def test_corpus_paragraphs_damaged_archive_is_refused(tmp_path: Path) -> None:
    name = (
        "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    )
    info = tmp_path / "gensim-4.4.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: gensim\nVersion: 4.4.0\n", encoding="utf-8"
    )
    (info / "RECORD").write_text(f"{name},,\n", encoding="utf-8")
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_bytes(b"BZh")
    with pytest.raises(EmbeddedFileError, match="has 3 bytes, and needs 1695871"):
        next(corpus_paragraphs(search=[tmp_path]))


def test_paragraphs_of_a_text_file_are_its_lines_that_are_not_blank(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("First.\n\n  Second, café.\u2028Still second.  \n   \nThird.", encoding="utf-8")
    source, texts = paragraphs(path)
    assert texts == ["First.", "Second, café.\u2028Still second.", "Third."]
    joined = "First.\nSecond, café.\u2028Still second.\nThird.".encode()
    assert source == CorpusSource("mine.txt", "not stated", hashlib.sha256(joined).hexdigest())
    assert paragraphs(str(path)) == (source, texts)


def test_paragraphs_hash_does_not_depend_on_line_ends_but_on_order(tmp_path: Path) -> None:
    unix, windows = tmp_path / "unix.txt", tmp_path / "windows.txt"
    unix.write_bytes(b"a\nb\n")
    windows.write_bytes(b"a\r\n\r\nb")
    assert paragraphs(unix)[0].sha256 == paragraphs(windows)[0].sha256
    assert paragraphs_sha256(["a", "b"]) != paragraphs_sha256(["b", "a"])


def test_paragraphs_unusable_text_files_are_errors_that_say_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no corpus file .*absent\.txt.*'embedded'"):
        paragraphs(tmp_path / "absent.txt")
    (tmp_path / "blank.txt").write_text(" \n\n", encoding="utf-8")
    with pytest.raises(ValueError, match="every line is blank"):
        paragraphs(tmp_path / "blank.txt")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        paragraphs(tmp_path / "latin.txt")


@pytest.mark.slow
@pytest.mark.slow
def test_paragraphs_embedded_are_clean_cached_and_the_same_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DMLE_CACHE", str(tmp_path))
    source, texts = paragraphs()
    (cached,) = (tmp_path / "corpus").glob("enwiki-*.txt")
    written = cached.stat().st_mtime_ns
    assert paragraphs() == (source, texts)
    assert cached.stat().st_mtime_ns == written
    assert source.licence == "CC BY-SA 3.0"
    content = cached.read_bytes()
    assert source.sha256 == hashlib.sha256(content[:-SEAL_BYTES].rstrip(b"\n")).hexdigest()
    cached.write_bytes(content.replace(b"Anarchism", b"Anbrchism", 1))  # made again
    assert paragraphs() == (source, texts) and cached.read_bytes() == content
    # The first of the excerpt's 106 articles; gensim's own extraction finds 383 thousand words in
    # paragraphs.
    assert texts[0].startswith(
        "Anarchism is a political philosophy that advocates self-governed societies"
    )
    assert sum(len(text.split()) for text in texts) == pytest.approx(383_000, rel=0.05)
    assert min(map(len, texts)) > 200
    assert not [text for text in texts if re.search(r"\{\{|\[\[|<ref|&nbsp;|\n|  ", text)]
    assert len(set(texts)) > 0.99 * len(texts)
