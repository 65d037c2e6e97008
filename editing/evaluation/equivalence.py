"""Whether a free answer states the same number or formula as the target, however it is written.

Answers come from a model, so they may hold anything. They are read by
`interp.rules.expressions.tree` (numbers, names, arithmetic and a few functions; nothing is
evaluated as code), at most so many characters of them (see `editing.evaluation.statements`), and
computed in floating point, where every operation takes constant time: no answer can make this slow.

What an answer states is in its first sentence or line. "A = 3 × 5 = 15 cm" is a chain of sides of
which the last one counts, so "3 × 5 = 16" says 16; a chain that breaks off ("3 × 5 =") says what
its last side is worth. A chain ends where another clause begins ("15, so b = 3" says 15).

Formulas are compared at random points, not by rewriting (see `interp.rules.agreement`).
"""

import ast
import math
import re
from typing import NamedTuple

from editing.evaluation.statements import (
    expression_of,
    first_sentences,
    leading_expression,
    sides_of_answer,
    sides_of_target,
    symbols_of,
    without_constant,
)
from interp.rules.agreement import PRECISION, agree, point_of, value_of
from interp.rules.derivation import TOLERANCE
from interp.rules.expressions import ExpressionError, names, tree
from interp.rules.units import UnitError, measure

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


def equivalent(answer: str, target: str) -> bool | None:
    """Whether an answer states the target's number, or else its formula; None if the target
    holds neither.
    """
    same = numeric(answer, target)
    same = symbolic(answer, target) if same is None else same
    # The same words say the same, even where they are too odd to be read out of an answer.
    return same if same is None else same or first_sentences(answer) == first_sentences(target)


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
    stated = _stated_number(sides_of_answer(answer))
    if stated is None or stated.both_signs != wanted.both_signs:
        return False
    tolerance = PRECISION * abs(wanted.value) if wanted.value else PRECISION
    step = wanted.step if wanted.step is not None else stated.step if not wanted.whole else None
    if step is not None:
        tolerance = max(tolerance, min(step / 2, TOLERANCE * abs(wanted.value)) * (1 + PRECISION))
    return abs(stated.value - wanted.value) <= tolerance


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
    chain = sides_of_answer(answer)
    stated = _stated_formula(chain, wanted)
    if stated is None or not agree(stated, wanted.node):
        return False
    if wanted.left is None or len(chain) == 1:
        return True
    lefts = [node for side in chain[:-1] if (node := expression_of(side.casefold())) is not None]
    return not lefts or any(agree(node, wanted.left) for node in lefts)


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


def _wanted_number(target: str) -> _Number | None:
    chain = sides_of_target(target)
    leading = None if chain is None else _leading_number(chain[-1])
    if leading is None:
        return None
    number, tail = leading
    return number if not tail.strip() or _is_unit(tail) else None


def _is_unit(tail: str) -> bool:
    """Whether a unit follows a number; "2s" is twice s, "2 s" two seconds."""
    if _UNIT_WORDS.fullmatch(tail):
        return True
    try:
        return tail[0].isspace() and measure(tail.strip()) is not None
    except UnitError:
        return False


def _leading_number(side: str) -> tuple[_Number, str] | None:
    """The number that a side begins with, and what follows it."""
    text = re.sub(r"(?<=[\d)iπ])\s*(?:[xX]|times)\s*(?=[\d(π]|pi|sqrt)", " * ", side.lstrip(" €£"))
    both, text = bool(re.match(r"±|\+/?-", text)), re.sub(r"^(?:±|\+/?-|\+)\s*", "", text)
    leading = leading_expression(text, frozenset())
    if leading is None:
        return None
    try:
        value = value_of(leading.node, {})
    except (ArithmeticError, ValueError, RecursionError):
        return None
    if abs(value.imag) > PRECISION * abs(value):
        return None
    literal = _LITERAL.fullmatch(leading.source)
    step = _last_place(literal) if literal else None
    whole = bool(literal and step is None and not literal["pi"])
    return _Number(value.real, step, whole, both), leading.tail


def _last_place(literal: re.Match[str]) -> float | None:
    """Value of the last decimal place of a number; None if it shows none, or none that a float
    holds.
    """
    decimals, power = literal["decimals"], int(literal["power"] or 0)
    if not decimals or abs(power) > 300:
        return None
    return 10.0 ** (power - len(decimals)) * (math.pi if literal["pi"] else 1)


def _stated_number(chain: list[str]) -> _Number | None:
    stated: _Number | None = None
    for side in chain:
        leading = _leading_number(side)
        if leading is None or not _ends_number(leading[1]):
            # Before a number stands the name of what is asked for, after it ("15 = A") nothing that
            # changes it; but "15 = 5x" says no more than what x is.
            if stated is not None:
                break
            continue
        stated, tail = leading
        if _BREAK.match(tail):
            break
    return stated


def _ends_number(tail: str) -> bool:
    """Whether what follows a number leaves it that number: nothing, a unit, other words; not
    "x^2" nor ", 16".
    """
    if tail.startswith(("…", "_", "(")) or _MORE_NUMBERS.match(tail):
        return False
    match = re.match(r"(\s*)([-−–+*/^×·÷(]*)\s*([^\W\d_]*)", tail)
    space, operators, word = match.groups() if match else ("", "", "")
    if operators.strip("(-−–"):
        return False
    if operators and operators != "(":
        return len(word) > 1 and bool(space)  # a dash: "15 - that is"
    return len(word) != 1 or operators == "(" or _is_no_symbol(word, bool(space))


def _is_no_symbol(letter: str, after_space: bool) -> bool:
    """Whether one letter is a unit or the article, not a symbol."""
    return letter in _UNIT_LETTERS or (letter == "a" and after_space)


def _wanted_formula(target: str) -> _Formula | None:
    chain = sides_of_target(target)
    if chain is None or _wanted_number(target) is not None:
        return None
    side = without_constant(chain[-1])
    symbols = symbols_of(side)
    if not symbols:
        return None
    try:
        node = tree(side, symbols)
        value_of(node, point_of(symbols, 0))
    except (ExpressionError, ArithmeticError, ValueError, RecursionError):
        return None
    if not names(node):
        return None
    left = expression_of(chain[0].casefold()) if len(chain) > 1 else None
    return _Formula(node, symbols, None if isinstance(left, ast.Name) else left)


def _stated_formula(chain: list[str], wanted: _Formula) -> ast.expr | None:
    stated: ast.expr | None = None
    for position, side in enumerate(chain):
        if position and not side:
            continue  # "P = 2(l + w) =" breaks off
        leading = leading_expression(without_constant(side), wanted.symbols)
        if leading is None or not _ends_clause(leading.tail):
            if position == 0 and len(chain) > 1:
                continue  # the name of the result
            return None
        if names(leading.node) or stated is None:
            stated = leading.node  # later numbers are an example of it: "lw = 3 × 5 = 15"
        if leading.tail.strip():
            break
    return stated


def _ends_clause(tail: str) -> bool:
    return not tail.strip() or _BREAK.match(tail) is not None
