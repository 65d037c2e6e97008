"""What a text states: its first sentence, the sides of its equation, the expression of a side.

Texts come from a model, so they may hold anything. At most `MAX_LENGTH` characters are read, and
what is read is brought into the notation of `interp.rules.expressions.tree`: LaTeX, superscripts,
fractions and roots in characters, thousands with commas, "is" in place of "=".
"""

import ast
import re
import unicodedata
from typing import NamedTuple

from interp.rules.derivation import sides
from interp.rules.expressions import CONSTANTS, FUNCTIONS, ExpressionError, tree

MAX_LENGTH = 200
"""Characters of an answer that are read; a longer target is neither number nor formula here."""
_SENTENCE_END = re.compile(r"[.?。？！]?[\n\r]+|[.?](?=\s|$)|[。？！]")
_LATEX = (
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"((\1)/(\2))"),
    (r"\\sqrt\s*\{", "sqrt{"),
    (r"\\(?:times|cdot)(?![a-z])", "*"),
    (r"\\pi(?![a-z])", "π"),
    (r"\\(?:left|right|quad|,|;|\(|\)|\[|\])|\$", " "),
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_LEXEME = re.compile(
    r"\s*(?:(?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+)|(?P<word>[^\W\d_]+[0-9]*)"
    r"|(?P<operator>[-+*/^()!×·⋅∗−–÷√]))"
)
_NAMES = frozenset(("π", *CONSTANTS, *FUNCTIONS))
_DANGLING = "+-*/^×·⋅∗−–÷√"
# Words that are as short as a product of symbols, and those that join others: "at" is a product
# unless words stand on both sides of it.
_WORDS = re.compile(
    "yes|no|none|true|false|null|zero|one|two|four|five|six|nine|ten|half|odd|"
    "even|area|base|edge|mass|mean|axis|rate|time|root|cube|lim|sum|gcd|lcm|max|"
    "min|det|mod"
)
_JOINING = re.compile(r"\s(?:of|or|and|is|if|to|the|by|in|its|as|at|it|be|an)\s", re.IGNORECASE)
_CALL = re.compile(rf"(?:{'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?=\()")
_CONDITION = re.compile(r"[,;]|\b(?:or|where|if|and|with|no|yes)\b", re.IGNORECASE)


class Leading(NamedTuple):
    """The expression that a text begins with."""

    node: ast.expr
    source: str
    """The expression as it is written."""
    tail: str
    """What follows it."""


def first_sentences(text: str, count: int = 1) -> str:
    """The first sentences of a text, which end at a line's end, or at a full stop or question mark
    before a space.

    >>> first_sentences(" It is 0.5. The rest"), first_sentences("15")
    ('It is 0.5', '15')
    """
    text = text.strip()
    ends = [found.start() for found in _SENTENCE_END.finditer(text)]
    return text[: ends[count - 1]].strip() if len(ends) >= count else text


def ended_sentences(text: str, count: int = 1) -> str | None:
    r"""The first sentences of a text that may go on, or None if they have not ended in it: a full
    stop at its very end may be a decimal point.

    >>> ended_sentences(" It is 0.5. The"), ended_sentences("15\n"), ended_sentences("It is 0.")
    ('It is 0.5', '15', None)
    """
    text = text.lstrip()
    ends = [
        found.start()
        for found in _SENTENCE_END.finditer(text)
        if found.end() < len(text) or found[0][-1] not in ".?"
    ]
    return text[: ends[count - 1]].strip() if len(ends) >= count else None


def sentence_count(text: str) -> int:
    """How many sentences a text has, at least 1."""
    text = text.strip()
    return 1 + sum(found.end() < len(text) for found in _SENTENCE_END.finditer(text))


def sides_of_answer(answer: str) -> list[str]:
    """The sides of what an answer states: of its first sentence or line."""
    # Cut before anything else, so that no later step sees a long text.
    text = answer[: 8 * MAX_LENGTH].lstrip()
    # The mark keeps what was cut through from being taken for a whole number or formula.
    text = text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + "…"
    return _plain_sides(first_sentences(text))


def sides_of_target(target: str) -> list[str] | None:
    """The sides of a target, in which "is" is a word; None where a condition stands before the
    last.
    """
    text = target.strip().rstrip(".").strip()
    if not 0 < len(text) <= MAX_LENGTH:
        return None
    chain = sides(re.sub("≈", "=", text))
    if any(_CONDITION.search(re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "", side)) for side in chain[:-1]):
        return None
    plain = [_plain_sides(side) for side in chain]
    return [side[0] for side in plain] if len(plain[-1]) == 1 else None


def _plain_sides(text: str) -> list[str]:
    """The sides of a statement in the notation that `tree` reads; "is" between them counts as
    "=".
    """
    text = unicodedata.normalize("NFC", text)
    for pattern, plain in _LATEX:
        text = re.sub(pattern, plain, text)
    text = text.replace("{", "(").replace("}", ")").replace("[", "(").replace("]", ")")
    text = re.sub(r"(\d*)\s?([¼½¾⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞])", _fraction, text)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: f"^({found[0].translate(_SUPERSCRIPTS)})", text)
    text = re.sub(r"_(?=\d)", "", text.translate(_SUBSCRIPTS))
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|π|[^\W\d_]\d*)", r"sqrt(\1)", text).replace("√", "sqrt")
    text = re.sub(r"\|([^|]+)\|", r"abs(\1)", text)
    text = re.sub(
        r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d)", lambda found: found[0].replace(",", ""), text
    )
    text = re.sub(r"\b(?:Pi|PI)\b", "pi", text).replace("**", "^")
    text = re.sub(r"[•∙]", "*", text)
    text = re.sub(r"≈|\b(?:is equal to|equals|is|are)\b|:(?=\s|$)", "=", text)
    return [side.strip() for side in re.split(r"(?<![<>!])=+", text)]


def _fraction(found: re.Match[str]) -> str:
    """2½ is two and a half."""
    above, below = unicodedata.normalize("NFKC", found[2]).split("\N{FRACTION SLASH}")
    return f"({found[1]}+{above}/{below})" if found[1] else f"({above}/{below})"


def leading_expression(text: str, symbols: frozenset[str]) -> Leading | None:
    """The expression that a text begins with, if it begins with one."""
    end = 0
    while found := _LEXEME.match(text, end):
        word = found["word"]
        if word is not None and not (word in _NAMES or _splits(word, symbols)):
            break
        end = found.end()
    end = _balanced(text[:end])
    source = text[:end].rstrip(_DANGLING + " ")
    if re.search(r"!\s*!|[-−–+]\s*[-−–+]\s*[-−–+]", source):
        return None  # nobody means this, and every sign is a level of the tree
    try:
        return Leading(tree(source, symbols), source, text[len(source) :])
    except ExpressionError:
        return None


def _splits(word: str, symbols: frozenset[str]) -> bool:
    try:
        return bool(symbols) and tree(word, symbols) is not None
    except ExpressionError:
        return False


def _balanced(text: str) -> int:
    """Where the first bracket stands that has no partner, or the text's end."""
    opened: list[int] = []
    for position, char in enumerate(text):
        if char == "(":
            opened.append(position)
        elif char == ")":
            if not opened:
                return position
            opened.pop()
    return opened[0] if opened else len(text)


def expression_of(side: str) -> ast.expr | None:
    """A side that is an expression, not words."""
    symbols = symbols_of(side)
    try:
        return None if symbols is None else tree(side, symbols)
    except ExpressionError:
        return None


def without_constant(side: str) -> str:
    """Without the constant of an integral, as in `interp.rules.derivation.expression_of`."""
    return re.sub(r"\s*\+\s*[Cc]$", "", re.sub(r"^±\s*", "", side)).strip()


def symbols_of(side: str) -> frozenset[str] | None:
    """The symbols of a formula, one letter with an optional index each; None where the text has
    words.
    """
    text = re.sub(r"\bpi\b|π", "*", _CALL.sub(" ", side))
    if re.search(r"[^\W\d_]{2,}\d*\s+[^\W\d_]{2,}", text) or _JOINING.search(text):
        return None
    if re.search(r"\bd[^\W\d_]?/d[^\W\d_]", text):  # a derivative, not a quotient
        return None
    symbols: set[str] = set()
    for run in re.finditer(r"([^\W\d_]+)\d*", text):
        if _is_word(run[1], text[run.end() : run.end() + 1]):
            return None
        symbols |= set(re.findall(r"Δ?[^\W\d_]\d*", run[0]))
    # As trees have them: the micro sign is the letter mu.
    return frozenset(unicodedata.normalize("NFKC", symbol) for symbol in symbols)


def _is_word(letters: str, behind: str) -> bool:
    """Whether letters are a word, not a product of symbols; `behind` is the character after
    them.
    """
    if _WORDS.fullmatch(letters.casefold()) or len(letters) > 4:
        return True
    if len(letters) > 2 and behind == "(":
        return True  # sum(…), of which nothing is known
    # "Blue"; products of four have a capital or a Greek letter: nRTV, αLΔT
    return len(letters) == 4 and letters[1:].isascii() and letters[1:].islower()
