"""Mathematical text, read without evaluating code.

`tree` reads what rule files, benchmarks and models write ("2(l + w)", "π r²", "1/2 m v^2") into a
syntax tree of numbers, names, arithmetic and a few functions; everything else is refused, and
nothing is ever executed. `meaning.to_sympy` gives its meaning, `rendering.render` its text in the
order in which it was written.
"""

import ast
import operator
import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sympy

from interp.errors import DmleError

MAX_LENGTH = 300
FUNCTIONS = {
    "sqrt": sympy.sqrt,
    "sin": sympy.sin,
    "cos": sympy.cos,
    "tan": sympy.tan,
    "cot": sympy.cot,
    "sec": sympy.sec,
    "csc": sympy.csc,
    "asin": sympy.asin,
    "acos": sympy.acos,
    "atan": sympy.atan,
    "arcsin": sympy.asin,
    "arccos": sympy.acos,
    "arctan": sympy.atan,
    "ln": sympy.log,
    "exp": sympy.exp,
    "abs": sympy.Abs,
    "factorial": sympy.factorial,
}
# log is to base 10, as in the decibel and the pH; ln is natural.
FUNCTIONS["log"] = lambda x: sympy.log(x, 10)
CONSTANTS = {"pi": sympy.pi}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
"""What the signs do, but for powers, which SymPy and floating point compute with care."""
_WRITTEN = {
    "**": "^",
    "π": " pi ",
    "×": "*",
    "·": "*",
    "⋅": "*",
    "∗": "*",
    "−": "-",
    "–": "-",
    "÷": "/",
}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|\.\d+)|([^\W\d_](?:[^\W\d_])*(?:_?\d+)?)|([-+*/^()!]))"
)


class ExpressionError(DmleError):
    """Text is not an expression that this module reads; says what stands in the way."""


@lru_cache(maxsize=4096)
def tree(text: str, symbols: frozenset[str] | None = None) -> ast.expr:
    """Read an expression.

    Args:
        text: An expression; a product may be written without a sign, a power as `^`, `**` or
            superscripts.
        symbols: The names that may occur. With them, "lw" is l times w; without, a name is one
            letter with an optional index, so that words are not taken for products.

    Raises:
        ExpressionError: If the text is no such expression.
    """
    symbols = (
        None
        if symbols is None
        else frozenset(unicodedata.normalize("NFKC", name) for name in symbols)
    )
    if len(text) > MAX_LENGTH:
        raise ExpressionError(
            f"an expression of {len(text)} characters; at most {MAX_LENGTH} are read"
        )
    tokens = _explicit(_tokens(text, symbols))
    source = "".join(tokens).replace("^", "**")
    try:
        found = ast.parse(source, mode="eval").body
        _check(found)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, ExpressionError):
            raise
        raise ExpressionError(f"{text!r} is not an expression") from error
    return found


def names(node: ast.expr) -> list[str]:
    """The symbols of a tree in order of first appearance, constants and functions left out."""
    functions = {
        n.func.id
        for n in ast.walk(node)
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    found = [
        n
        for n in ast.walk(node)
        if isinstance(n, ast.Name) and n.id not in CONSTANTS and n.id not in functions
    ]
    return list(dict.fromkeys(n.id for n in sorted(found, key=lambda n: n.col_offset)))


def _tokens(text: str, symbols: frozenset[str] | None) -> list[str]:
    text = re.sub(r"√\s*(\d+(?:\.\d+)?|π|[^\W\d_]\d*)", r"sqrt(\1)", text).replace("√", "sqrt")
    for written, plain in _WRITTEN.items():
        text = text.replace(written, plain)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda found: f"^({found[0].translate(_SUPERSCRIPTS)})", text)
    if odd := [c for c in text if unicodedata.decomposition(c).startswith(("<super>", "<sub>"))]:
        raise ExpressionError(f"{odd[0]!r} is not read; write ^ or an index")
    # Python's parser takes compatibility characters (the micro sign) for the letters they look
    # like.
    text = unicodedata.normalize("NFKC", text).replace("[", "(").replace("]", ")").strip()
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            odd = text[at:].strip()[:1]
            raise ExpressionError(
                f"{text!r} has {odd!r} where a number, a name or an operator is read"
            )
        number, word, sign = found.groups()
        tokens += [number or sign] if word is None else _split(word, word, symbols)
        at = found.end()
    if not tokens:
        raise ExpressionError("an empty expression")
    return tokens


def _split(word: str, whole: str, symbols: frozenset[str] | None) -> list[str]:
    """A run of letters as names: a known name whole, else the known names that it is made of."""
    if (
        word in FUNCTIONS
        or word in CONSTANTS
        or (word in symbols if symbols is not None else _is_one(word))
    ):
        return [word]
    known = (symbols or frozenset()) | FUNCTIONS.keys() | CONSTANTS.keys()
    for length in range(len(word) - 1, 0, -1):
        if word[:length] in known:
            return [word[:length], *_split(word[length:], whole, symbols)]
    raise ExpressionError(f"{whole!r} is not a known symbol")


def _is_one(word: str) -> bool:
    """One letter with an optional index or Δ before it: x, R1, Δx."""
    return bool(re.fullmatch(r"Δ?[^\W\d_](?:_?\d+)?", word))


def _explicit(tokens: list[str]) -> list[str]:
    """Write out the products: 2(l + w) is 2*(l+w); postfix ! becomes a call."""
    found: list[str] = []
    for token in tokens:
        if token == "!":
            start = _operand_start(found)
            found[start:] = ["factorial", "(", *found[start:], ")"]
            continue
        if found and found[-1] in FUNCTIONS and token != "(":
            raise ExpressionError(f"the function {found[-1]} has no argument in brackets")
        if found and _ends_operand(found[-1]) and _starts_operand(token):
            if found[-1][-1].isdigit() and found[-1][0].isdigit() and token[0].isdigit():
                raise ExpressionError(f"two numbers side by side: {found[-1]} {token}")
            found.append("*")
        found.append(re.sub(r"^0+(?=\d)", "", token))
    return found


def _operand_start(tokens: list[str]) -> int:
    if not tokens or not _ends_operand(tokens[-1]):
        raise ExpressionError("'!' follows nothing")
    depth = 0
    for at in range(len(tokens) - 1, -1, -1):
        depth += {")": 1, "(": -1}.get(tokens[at], 0)
        if depth == 0:
            return at
    raise ExpressionError("unbalanced brackets")


def _ends_operand(token: str) -> bool:
    return token == ")" or (token not in FUNCTIONS and token not in "+-*/^(")


def _starts_operand(token: str) -> bool:
    return token == "(" or token not in "+-*/^)"


def _check(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=int() | float()) | ast.Name():
            if isinstance(node, ast.Name) and node.id in FUNCTIONS:
                raise ExpressionError(f"the function {node.id} has no argument")
        case ast.BinOp(left, ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.Pow(), right):
            _check(left)
            _check(right)
        case ast.UnaryOp(ast.USub(), operand):
            _check(operand)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            _check(argument)
        case _:
            raise ExpressionError(f"{ast.unparse(node)!r} is not arithmetic")
