"""Whether a free answer states the same number or formula as the target, however it is written.

Answers come from a model, so they may hold anything. They are read by
`interp.rules.expressions.tree` (numbers, names, arithmetic and a few functions; nothing is
evaluated as code), at most `MAX_LENGTH` characters of them, and computed in floating point, where
every operation takes constant time: no answer can make this slow.

What an answer states is in its first sentence or line. "A = 3 × 5 = 15 cm" is a chain of sides of
which the last one counts, so "3 × 5 = 16" says 16; a chain that breaks off ("3 × 5 =") says what
its last side is worth. A chain ends where another clause begins ("15, so b = 3" says 15).

Formulas are compared at random points, not by rewriting (see `interp.rules.agreement`).
"""

import ast
import math
import re
import unicodedata
from typing import NamedTuple

from interp.rules.agreement import PRECISION, agree, point_of, value_of
from interp.rules.derivation import TOLERANCE, sides
from interp.rules.expressions import CONSTANTS, FUNCTIONS, ExpressionError, names, tree
from interp.rules.units import UnitError, measure

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
_DANGLING = "+-*/^×·⋅∗−–÷√"
_LITERAL = re.compile(
    r"[-−–]?\s*\d*(?:\.(?P<decimals>\d+))?(?:[eE](?P<power>[+-]?\d+))?\s*(?:[*×·]?\s*(?P<pi>pi|π))?"
)
# Where a clause ends and words begin that say something else.
_BREAK = re.compile(
    r"\s*(?:[,;:.]|\s\(|—|(?:and|where|with|for|so|which|or|if|in|because|since|when|then|but|is|as"
    r"|units?|square|cubic)\b)",
    re.IGNORECASE,
)
_MORE_NUMBERS = re.compile(r"\s*(?:,|or|and|to)\s*[-−]?\d", re.IGNORECASE)
_UNIT_LETTERS = frozenset("mgsNJWVACKLTFHΩ")
_UNIT_WORDS = re.compile(
    r"\s*(?:%|°)|\s+(?:degrees?|radians?|(?:square |cubic )?units?|percent)", re.IGNORECASE
)
# Words that are as short as a product of symbols, and those that join others: "at" is a product
# unless words stand on both sides of it.
_WORDS = {
    "yes",
    "no",
    "none",
    "true",
    "false",
    "null",
    "zero",
    "one",
    "two",
    "four",
    "five",
    "six",
    "nine",
    "ten",
    "half",
    "odd",
    "even",
    "area",
    "base",
    "edge",
    "mass",
    "mean",
    "axis",
    "rate",
    "time",
    "root",
    "cube",
    "lim",
    "sum",
    "gcd",
    "lcm",
    "max",
    "min",
    "det",
    "mod",
}
_JOINING = re.compile(r"\s(?:of|or|and|is|if|to|the|by|in|its|as|at|it|be|an)\s", re.IGNORECASE)
_CALL = re.compile(rf"(?:{'|'.join(sorted(FUNCTIONS, key=len, reverse=True))})(?=\()")
_CONDITION = re.compile(r"[,;]|\b(?:or|where|if|and|with|no|yes)\b", re.IGNORECASE)


def equivalent(answer: str, target: str) -> bool | None:
    """Whether an answer states the target's number, or else its formula; None if the target
    holds neither.
    """
    found = numeric(answer, target)
    found = symbolic(answer, target) if found is None else found
    # The same words say the same, even where they are too odd to be read out of an answer.
    return found if found is None else found or first_sentences(answer) == first_sentences(target)


def numeric(answer: str, target: str) -> bool | None:
    """Whether an answer states the number of the target; None if the target does not end in a
    number.

    The answer's number may be written in another way (2/3, 3 × 5, 25π, 1,000, √2, 15 cm). A target
    that shows decimals accepts what rounds to them, up to a relative difference of `TOLERANCE`; any
    other target wants its exact value, except that the decimals of an answer may round a fraction,
    a root or a multiple of π.

    >>> numeric("A = 3 * 5 = 15.", "15"), numeric("15 cm", "14"), numeric("15", "the side squared")
    (True, False, None)
    """
    wanted = _wanted_number(target)
    if wanted is None:
        return None
    found = _stated_number(_statement(answer))
    if found is None or found.both_signs != wanted.both_signs:
        return False
    tolerance = PRECISION * abs(wanted.value) if wanted.value else PRECISION
    step = wanted.step if wanted.step is not None else found.step if not wanted.whole else None
    if step is not None:
        tolerance = max(tolerance, min(step / 2, TOLERANCE * abs(wanted.value)) * (1 + PRECISION))
    return abs(found.value - wanted.value) <= tolerance


def symbolic(answer: str, target: str) -> bool | None:
    """Whether an answer states the formula of the target; None if the target does not end in a
    formula.

    Right-hand sides are compared. What stands left may be left out or be another name of the
    result; if the target has an expression there ("d^2 = …"), an expression in the answer must be
    the same. Symbols are the target's, and upper and lower case differ.

    >>> symbolic("P = 2l + 2w.", "2(l + w)"), symbolic("lw", "2(l + w)")
    (True, False)
    >>> symbolic("lw", "the product") is None
    True
    """
    wanted = _wanted_formula(target)
    if wanted is None:
        return None
    chain = _sides(_statement(answer))
    if (found := _stated_formula(chain, wanted)) is None or not agree(found, wanted.node):
        return False
    if wanted.left is None or len(chain) == 1:
        return True
    lefts = [node for side in chain[:-1] if (node := _expression(side.casefold())) is not None]
    return not lefts or any(agree(node, wanted.left) for node in lefts)


def first_sentences(text: str, count: int = 1) -> str:
    """The first sentences of a text, which end at a line's end, or at a full stop or question mark
    before a space.

    >>> first_sentences(" It is 0.5. The rest"), first_sentences("15")
    ('It is 0.5', '15')
    """
    text = text.strip()
    ends = [found.start() for found in _SENTENCE_END.finditer(text)]
    return text[: ends[count - 1]].strip() if len(ends) >= count else text


def sentence_count(text: str) -> int:
    """How many sentences a text has, at least 1."""
    text = text.strip()
    return 1 + sum(found.end() < len(text) for found in _SENTENCE_END.finditer(text))


class _Number(NamedTuple):
    value: float
    step: float | None
    """Value of the last decimal place that is shown; None for what is no decimal."""
    whole: bool
    """Whether it is written as a plain integer."""
    both_signs: bool


class _Formula(NamedTuple):
    node: ast.expr
    symbols: frozenset[str]
    left: ast.expr | None
    """What stands left of the first "=", in lower case, if it is an expression and more than a
    name."""


# Reading.


def _statement(answer: str) -> str:
    # Cut before anything else, so that no later step sees a long text.
    text = answer[: 8 * MAX_LENGTH].lstrip()
    # The mark keeps what was cut through from being taken for a whole number or formula.
    return first_sentences(text if len(text) <= MAX_LENGTH else text[:MAX_LENGTH] + "…")


def _sides(text: str) -> list[str]:
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


def _leading(text: str, symbols: frozenset[str]) -> tuple[ast.expr, str, str] | None:
    """The expression that a text begins with, as a tree and as text, and what follows it."""
    end = 0
    while found := _LEXEME.match(text, end):
        word = found["word"]
        if (
            word is not None
            and word not in FUNCTIONS
            and word not in ("π", *CONSTANTS)
            and not _splits(word, symbols)
        ):
            break
        end = found.end()
    end = _balanced(text[:end])
    source = text[:end].rstrip(_DANGLING + " ")
    if re.search(r"!\s*!|[-−–+]\s*[-−–+]\s*[-−–+]", source):
        return None  # nobody means this, and every sign is a level of the tree
    try:
        return tree(source, symbols), source, text[len(source) :]
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
    for at, char in enumerate(text):
        if char == "(":
            opened.append(at)
        elif char == ")":
            if not opened:
                return at
            opened.pop()
    return opened[0] if opened else len(text)


def _expression(side: str) -> ast.expr | None:
    """A side that is an expression, not words."""
    symbols = _symbols(side)
    try:
        return None if symbols is None else tree(side, symbols)
    except ExpressionError:
        return None


# Numbers.


def _wanted_number(target: str) -> _Number | None:
    chain = _chain(target)
    found = None if chain is None else _number_at(chain[-1])
    if found is None:
        return None
    number, tail = found
    return number if not tail.strip() or _is_unit(tail) else None


def _chain(target: str) -> list[str] | None:
    """The sides of a target, in which "is" is a word; None where a condition stands before the
    last.
    """
    text = target.strip().rstrip(".").strip()
    if not 0 < len(text) <= MAX_LENGTH:
        return None
    chain = sides(re.sub("≈", "=", text))
    if any(_CONDITION.search(re.sub(r"\([^()]*\)|\[[^\[\]]*\]", "", side)) for side in chain[:-1]):
        return None
    plain = [_sides(side) for side in chain]
    return [side[0] for side in plain] if len(plain[-1]) == 1 else None


def _is_unit(tail: str) -> bool:
    """Whether a unit follows a number; "2s" is twice s, "2 s" two seconds."""
    if _UNIT_WORDS.fullmatch(tail):
        return True
    try:
        return tail[0].isspace() and measure(tail.strip()) is not None
    except UnitError:
        return False


def _number_at(side: str) -> tuple[_Number, str] | None:
    """The number that a side begins with, and what follows it."""
    text = re.sub(r"(?<=[\d)iπ])\s*(?:[xX]|times)\s*(?=[\d(π]|pi|sqrt)", " * ", side.lstrip(" €£"))
    both, text = bool(re.match(r"±|\+/?-", text)), re.sub(r"^(?:±|\+/?-|\+)\s*", "", text)
    found = _leading(text, frozenset())
    if found is None:
        return None
    node, source, tail = found
    try:
        value = value_of(node, {})
    except (ArithmeticError, ValueError, RecursionError):
        return None
    if abs(value.imag) > PRECISION * abs(value):
        return None
    literal = _LITERAL.fullmatch(source)
    step = None
    if literal and (decimals := literal["decimals"]):
        power = int(literal["power"] or 0)
        step = (
            10.0 ** (power - len(decimals)) * (math.pi if literal["pi"] else 1)
            if abs(power) <= 300
            else None
        )
    return (
        _Number(value.real, step, bool(literal and step is None and not literal["pi"]), both),
        tail,
    )


def _stated_number(statement: str) -> _Number | None:
    stated: _Number | None = None
    for side in _sides(statement):
        found = _number_at(side)
        if found is None or not _ends_number(found[1]):
            # Before a number stands the name of what is asked for, after it ("15 = A") nothing that
            # changes it; but "15 = 5x" says no more than what x is.
            if stated is not None:
                break
            continue
        stated, tail = found
        if _BREAK.match(tail):
            break
    return stated


def _ends_number(tail: str) -> bool:
    """Whether what follows a number leaves it that number: nothing, a unit, other words; not
    "x^2" nor ", 16".
    """
    if tail.startswith(("…", "_", "(")) or _MORE_NUMBERS.match(tail):
        return False
    found = re.match(r"(\s*)([-−–+*/^×·÷(]*)\s*([^\W\d_]*)", tail)
    space, operators, word = found.groups() if found else ("", "", "")
    if operators.strip("(-−–"):
        return False
    if operators and operators != "(":
        return len(word) > 1 and bool(space)  # a dash: "15 - that is"
    return (
        len(word) != 1 or operators == "(" or word in _UNIT_LETTERS or (word == "a" and bool(space))
    )


# Formulas.


def _wanted_formula(target: str) -> _Formula | None:
    chain = _chain(target)
    if chain is None or _wanted_number(target) is not None:
        return None
    side = _without_constant(chain[-1])
    symbols = _symbols(side)
    if not symbols:
        return None
    try:
        node = tree(side, symbols)
        value_of(node, point_of(symbols, 0))
    except (ExpressionError, ArithmeticError, ValueError, RecursionError):
        return None
    if not names(node):
        return None
    left = _expression(chain[0].casefold()) if len(chain) > 1 else None
    return _Formula(node, symbols, None if isinstance(left, ast.Name) else left)


def _without_constant(side: str) -> str:
    """Without the constant of an integral, as in `interp.rules.derivation.expression_of`."""
    return re.sub(r"\s*\+\s*[Cc]$", "", re.sub(r"^±\s*", "", side)).strip()


def _symbols(side: str) -> frozenset[str] | None:
    """The symbols of a formula, one letter with an optional index each; None where the text has
    words.
    """
    text = re.sub(r"\bpi\b|π", "*", _CALL.sub(" ", side))
    if re.search(r"[^\W\d_]{2,}\d*\s+[^\W\d_]{2,}", text) or _JOINING.search(text):
        return None
    if re.search(r"\bd[^\W\d_]?/d[^\W\d_]", text):  # a derivative, not a quotient
        return None
    found: set[str] = set()
    for run in re.finditer(r"([^\W\d_]+)\d*", text):
        letters = run[1]
        called = (
            len(letters) > 2 and text[run.end() : run.end() + 1] == "("
        )  # sum(…), of which nothing is known
        if letters.casefold() in _WORDS or called or len(letters) > 4:
            return None
        if len(letters) == 4 and letters[1:].isascii() and letters[1:].islower():
            return None  # "Blue"; products of four have a capital or a Greek letter: nRTV, αLΔT
        found |= set(re.findall(r"Δ?[^\W\d_]\d*", run[0]))
    return frozenset(found)


def _stated_formula(chain: list[str], wanted: _Formula) -> ast.expr | None:
    stated: ast.expr | None = None
    for at, side in enumerate(chain):
        if at and not side:
            continue  # "P = 2(l + w) =" breaks off
        found = _leading(_without_constant(side), wanted.symbols)
        if found is None or (found[2].strip() and not _BREAK.match(found[2])):
            if at == 0 and len(chain) > 1:
                continue  # the name of the result
            return None
        node, _, tail = found
        if names(node) or stated is None:
            stated = node  # after a formula, numbers are an example of it: "lw = 3 × 5 = 15"
        if tail.strip():
            break
    return stated
