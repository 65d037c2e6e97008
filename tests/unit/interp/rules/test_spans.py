"""Mentions in any script: ranges counted by hand, and every range checked to be the phrase."""

import unicodedata
from typing import Literal

import pytest

from interp.rules.scripts import TextError
from interp.rules.spans import char_spans, check_phrases, missing, subject_spans, word_start
from interp.rules.words import content_words

MENTIONS = [
    ("日本の首都は東京。日本の人口は", "日本", [(0, 2), (9, 11)]),
    ("日本語と日本", "日本", [(0, 2), (4, 6)]),
    ("日日日", "日日", [(0, 2), (1, 3)]),
    ("中国的首都，中国的人口", "中国", [(0, 2), (6, 8)]),
    ("ประเทศไทยและไทย", "ไทย", [(6, 9), (12, 15)]),
    ("한국의 수도, 한국은", "한국", [(0, 2), (8, 10)]),
    ("नमस्ते भारत, भारत का", "भारत", [(7, 11), (13, 17)]),
    ("iPhoneはiPhoneと", "iPhone", [(0, 6), (7, 13)]),
    ("長さs=3、幅s", "s", [(2, 3), (7, 8)]),
    ("Rätsel, Rat", "Rat", [(8, 11)]),
    ("the square's and square", "square", [(4, 10), (17, 23)]),
    ("square-root of a square", "square", [(0, 6), (17, 23)]),
    ("squares, square", "square", [(9, 15)]),
]


@pytest.mark.parametrize(("text", "phrase", "spans"), MENTIONS)
def test_every_mention_is_found(text: str, phrase: str, spans: list[tuple[int, int]]) -> None:
    assert char_spans(text, phrase) == spans == subject_spans(text, phrase)
    assert all(text[first:last] == phrase for first, last in spans)


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("नि", "न"),  # a letter without its vowel sign
        ("क्षत्रिय", "क"),
        ("นำ", "น"),
        ("cafe\u0301", "cafe"),
        ("مُحَمَّد", "م"),
        ("👩‍👩‍👧", "👩"),
        ("👍🏽", "👍"),
        ("🇫🇷", "🇫"),
        ("x²", "x"),
    ],
)
def test_no_mention_cuts_a_sign(text: str, phrase: str) -> None:
    assert char_spans(text, phrase, ignore_case=True) == []
    if phrase != "x":  # x² is two signs: a longer word
        with pytest.raises(TextError, match="is not in the prompt"):
            subject_spans(text, phrase)


@pytest.mark.parametrize("text_form", ["NFC", "NFD"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("phrase", ["Élysée", "Việt Nam", "ガス", "각", "Å"])
def test_either_unicode_form_is_found_with_the_places_of_the_text(
    text_form: Literal["NFC", "NFD"], form: Literal["NFC", "NFD"], phrase: str
) -> None:
    text = unicodedata.normalize(text_form, f"é {phrase}, {phrase}")
    found = char_spans(text, unicodedata.normalize(form, phrase))
    assert len(found) == 2
    assert {unicodedata.normalize("NFC", text[a:b]) for a, b in found} == {
        unicodedata.normalize("NFC", phrase)
    }


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("Die STRASSE und die Straße", "straße", ["STRASSE", "Straße"]),
        ("ΟΔΟΣ οδός οδος", "οδος", ["ΟΔΟΣ", "οδος"]),
        ("İSTANBUL, İstanbul", "istanbul", ["İSTANBUL", "İstanbul"]),
        ("ISPARTA", "ısparta", ["ISPARTA"]),
        ("İİ area", "AREA", ["area"]),
    ],
)
def test_case_is_ignored_with_the_places_of_the_text(
    text: str, phrase: str, found: list[str]
) -> None:
    assert [text[a:b] for a, b in char_spans(text, phrase, ignore_case=True)] == found


def test_inside_longer_words_every_place_counts_where_there_is_no_whole_one() -> None:
    assert subject_spans("rectangles and rectangles", "rectangle") == [(0, 9), (15, 24)]
    assert subject_spans("کتاب‌ها", "کتاب") == [
        (0, 4)
    ]  # a Persian plural, behind a zero-width non-joiner


def test_a_phrase_that_is_not_there_is_named() -> None:
    assert missing("The capital", ["capital", "Frence", "CAPITAL"]) == ["Frence"]
    with pytest.raises(TextError, match="'首部' not found in the prompt '日本の首都は'"):
        check_phrases("日本の首都は", ["首都", "首部"])
    with pytest.raises(TextError, match="names no phrase"):
        check_phrases("日本の首都は", [])


def test_content_words_of_names() -> None:
    assert content_words("perimeter of a Rectangle", "rectangle") == ("perimeter",)
    assert content_words("日本の首都", "日本") == ("首都",)
    assert content_words("中国的首都和人口", "中国") == ("首都", "人口")
    assert content_words("भारत की राजधानी", "भारत") == ("की", "राजधानी")


def test_word_start_goes_back_to_the_space_or_to_the_script() -> None:
    assert word_start("of (square", 4) == 3
    assert word_start("これは日本", 3) == 3
