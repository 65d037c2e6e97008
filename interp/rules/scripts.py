r"""What every place that reads text must know of scripts: where words end, which letters are the
same. No torch.

Scripts of the unspaced kind (Chinese, Japanese, Thai, Khmer, Tibetan, ...) write no space between
words. There a word may begin and end between any two of their letters. Korean writes spaces, but
hangs particles on its words: there a word may end between any two letters. Everywhere else a word
ends where its letters, marks and digits end.

A letter is a *grapheme cluster*: what readers see as one sign, with its accents, vowel signs and
joiners. No match begins or ends inside one.
"""

import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import regex

from interp.errors import DmleError

_NAMES = (
    "Han",
    "Hiragana",
    "Katakana",
    "Bopomofo",
    "Yi",
    "Nushu",
    "Tangut",
    "Thai",
    "Lao",
    "Khmer",
    "Myanmar",
    "Tibetan",
    "Tai_Le",
    "New_Tai_Lue",
    "Tai_Tham",
    "Tai_Viet",
    "Javanese",
    "Balinese",
    "Lepcha",
)
# The blocks of CJK punctuation and full-width forms belong to these scripts too, and carry their
# own space.
_SCRIPTS = "".join(rf"\p{{Script_Extensions={name}}}" for name in _NAMES)
_UNSPACED = regex.compile(f"[{_SCRIPTS}\u3000-\u303f\uff01-\uffef]")
_HANGUL = regex.compile(r"\p{Script=Hangul}")
_CLUSTER = regex.compile(r"\X")
# As Python's own \w, with marks and joiners.
_WORD = regex.compile(r"[\w\p{N}]+")
_IN_WORD = regex.compile(r"[\w\p{N}]")
JOINERS = "\u200c"
"""Zero-width non-joiner: it ends a sign (Persian plurals), though Unicode counts it to the sign
before it."""


class TextError(DmleError):
    """A text cannot be used: it is not Unicode, is blank, or holds a character that files cannot
    keep.
    """


def checked(text: str, what: str) -> str:
    r"""The text, if it is Unicode text.

    Raises:
        TextError: It holds a lone surrogate (a byte that was no UTF-8, or half of a character) or a
            NUL.

    >>> checked("Caf\u00e9", "--prompt") == "Café"
    True
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at, sign = error.start, text[error.start]
        byte = f" (the byte 0x{ord(sign) - 0xDC00:02X})" if "\udc80" <= sign <= "\udcff" else ""
        raise TextError(
            f"{what} is not Unicode text: character {at + 1} is U+{ord(sign):04X}{byte}, a byte"
            f" that is not UTF-8 or half of a character, in {text[max(0, at - 10) : at + 10]!a};"
            " give the text in UTF-8 (on a terminal: export LC_ALL=C.UTF-8)"
        ) from error
    if (at := text.find("\0")) >= 0:
        raise TextError(
            f"{what} has the control character U+0000 at character {at + 1}; take it out"
        )
    return text


def needed(text: str, what: str) -> str:
    """The text, if it is Unicode text and not blank.

    Raises:
        TextError: It is neither.
    """
    if not checked(text, what).strip():
        raise TextError(f"{what} is {text!r}; text is needed")
    return text


@lru_cache(maxsize=8192)
def unspaced(sign: str) -> bool:
    """Whether a character is of a script that writes no spaces between words.

    >>> unspaced("京"), unspaced("ไ"), unspaced("。"), unspaced("a"), unspaced("한"), unspaced("(")
    (True, True, True, False, False, False)
    """
    return not sign.isascii() and _UNSPACED.match(sign) is not None


@lru_cache(maxsize=8192)
def in_word(sign: str) -> bool:
    """Whether a character is part of a word: a letter, mark, digit or underscore.

    >>> in_word("a"), in_word("\u094d"), in_word("'"), in_word("")
    (True, True, False, False)
    """
    return _IN_WORD.match(sign) is not None


def inside_word(before: str, after: str) -> bool:
    """Whether one word goes on from a character to the next (either may be "": the edge of the
    text).

    >>> inside_word("a", "b"), inside_word("a", " ")
    (True, False)
    >>> inside_word("日", "本"), inside_word("s", "長")
    (False, False)
    """
    return in_word(before) and in_word(after) and not unspaced(before) and not unspaced(after)


def words(text: str) -> list[str]:
    """The words of a text; in unspaced scripts every letter is one, since their words cannot be
    told apart.

    >>> words("The area, 2 ft"), words("日本の首都")
    (['The', 'area', '2', 'ft'], ['日', '本', 'の', '首', '都'])
    """
    found: list[str] = []
    for run in _WORD.findall(text):
        word = ""
        for cluster in _CLUSTER.findall(run):
            if unspaced(cluster[0]):
                found += [word, cluster] if word else [cluster]
                word = ""
            else:
                word += cluster
        found += [word] if word else []
    return found


def runs(text: str) -> list[str]:
    """Words as they are written: between spaces and punctuation, whatever the script.

    >>> runs("perimeter of a square"), runs("日本の首都、人口")
    (['perimeter', 'of', 'a', 'square'], ['日本の首都', '人口'])
    """
    return _WORD.findall(text)


def clusters(text: str) -> Iterator[tuple[int, int]]:
    """The range of each sign that readers see, with a zero-width non-joiner as one of its own."""
    for found in _CLUSTER.finditer(text):
        first, last = found.span()
        end = last
        while end > first + 1 and text[end - 1] in JOINERS:
            end -= 1
        yield first, end
        if end < last:
            yield end, last


def folded(text: str, *, ignore_case: bool) -> str:
    """A text in the form in which it is compared: canonically decomposed, and without case if that
    is ignored.

    With German ß as ss, both Greek sigmas as one, and the Turkish i with and without a dot as i.

    >>> folded("Straße", ignore_case=True)
    'strasse'
    >>> folded("ΟΔΟΣ", ignore_case=True) == folded("οδος", ignore_case=True)
    True
    >>> folded("İ", ignore_case=True), folded("İ", ignore_case=False) == "I\u0307"
    ('i', True)
    """
    plain = unicodedata.normalize("NFD", text)
    if not ignore_case:
        return plain
    plain = unicodedata.normalize("NFD", plain.casefold())
    return plain.replace("i\u0307", "i").replace("ı", "i")


def joins_particles(sign: str) -> bool:
    """Whether words of the character's script carry particles behind them without a space
    (Korean).
    """
    return not sign.isascii() and _HANGUL.match(sign) is not None


def plain_digits(text: str) -> str:
    """A text with the digits of every script, and the full-width equals sign, as ASCII.

    >>> plain_digits("１２ = ١٢ = १२")
    '12 = 12 = 12'
    """
    if text.isascii():
        return text
    plain = (str(unicodedata.decimal(sign)) if sign.isdecimal() else sign for sign in text)
    return "".join(plain).replace("＝", "=")
