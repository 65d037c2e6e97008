"""Mathematical text: read it into SymPy without evaluating code, and write it as people do.

`tree` reads what rule files, benchmarks and models write ("2(l + w)", "π r²", "1/2 m v^2") into a
syntax tree of numbers, names, arithmetic and a few functions; everything else is refused, and
nothing is ever executed. `to_sympy` gives its meaning, `render` its text in the order in which it
was written.
"""

import ast
import re
import unicodedata
from collections.abc import Collection, Mapping
from functools import lru_cache

import sympy

from interp.errors import DmleError
from interp.rules.work_limit import WorkOver, work_limit

MAX_LENGTH = 300
MAX_EXPONENT = 64
MAX_FACTORIAL = 170
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
MAX_BITS = 4096
MAX_ROOT_BITS, MAX_ROOT = 256, 1000
"""Binary digits of a number of which a root is taken, and largest part of a fractional exponent."""
MAX_CALLS = 500_000
"""Calls of functions for the meaning of one expression: about a second; ordinary ones take a
thousandth of it."""
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


def to_sympy(node: ast.expr, values: Mapping[str, object] | None = None) -> sympy.Expr:
    """The meaning of a tree; names in `values` are replaced, others are positive real symbols.

    Raises:
        ExpressionError: If the result is too large to write out, or undefined.
    """
    known = {unicodedata.normalize("NFKC", name): value for name, value in (values or {}).items()}
    try:
        if _is_plain(node):
            return _meaning(node, known)
        with work_limit(MAX_CALLS):
            return _meaning(node, known)
    except ExpressionError:
        raise
    except WorkOver as error:
        raise ExpressionError(
            f"{ast.unparse(node)!r} takes more steps to compute than are done here"
        ) from error
    except (TypeError, ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise ExpressionError(f"{ast.unparse(node)!r} cannot be computed ({error})") from error


def _is_plain(node: ast.expr) -> bool:
    """Whether it has so few functions and roots that its meaning cannot take long, as those of
    almost all rules.
    """
    odd = [
        part
        for part in ast.walk(node)
        if isinstance(part, ast.Call)
        or (
            isinstance(part, ast.BinOp)
            and isinstance(part.op, ast.Pow)
            and not _is_whole(part.right)
        )
    ]
    return len(odd) <= 2


def _is_whole(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int)


def _meaning(node: ast.expr, values: Mapping[str, object]) -> sympy.Expr:
    match node:
        case ast.Constant(value=value):
            return _number(str(value))
        case ast.Name(id=name):
            if name in CONSTANTS:
                return CONSTANTS[name]
            return (
                _number(str(values[name])) if name in values else sympy.Symbol(name, positive=True)
            )
        case ast.UnaryOp(operand=operand):
            return -_meaning(operand, values)
        case ast.Call(func=ast.Name(id=name), args=[inner]):
            argument = _meaning(inner, values)
            counted = name == "factorial" and argument.is_number
            if counted and not (argument.is_real and 0 <= argument <= MAX_FACTORIAL):
                raise ExpressionError(f"factorial of {argument}; 0 to {MAX_FACTORIAL} are computed")
            if (
                name == "exp"
                and argument.is_number
                and not (argument.is_real and abs(argument) <= MAX_EXPONENT)
            ):
                raise ExpressionError(
                    f"exp of {argument}; exponents up to {MAX_EXPONENT} are computed"
                )
            if name == "sqrt":
                _check_root(argument, sympy.Rational(1, 2))
            return _bounded(FUNCTIONS[name](argument))
    assert isinstance(node, ast.BinOp)
    left, right = _meaning(node.left, values), _meaning(node.right, values)
    match node.op:
        case ast.Add():
            return _bounded(left + right)
        case ast.Sub():
            return _bounded(left - right)
        case ast.Mult():
            return _bounded(left * right)
        case ast.Div():
            if right.is_zero:
                raise ExpressionError("division by zero")
            return _bounded(left / right)
    if right.is_number and not (right.is_real and abs(right) <= MAX_EXPONENT):
        raise ExpressionError(f"a power of {right}; exponents up to {MAX_EXPONENT} are computed")
    if left.is_zero and right.is_number and right < 0:
        raise ExpressionError("division by zero")
    _check_root(left, right)
    return _bounded(left**right)


def _check_root(left: sympy.Expr, right: sympy.Expr) -> None:
    """Refuse a root of a number that SymPy would take apart for long: it looks for factors, and
    writes out powers.
    """
    if not isinstance(right, sympy.Rational) or right.is_Integer:
        return
    bits = max((max(abs(n.p), n.q).bit_length() for n in left.atoms(sympy.Rational)), default=1)
    if bits > MAX_ROOT_BITS or max(abs(right.p), right.q) > MAX_ROOT:
        raise ExpressionError(
            f"a power of {right} of a number of {bits} binary digits; smaller ones are computed"
        )


def _number(text: str) -> sympy.Expr:
    found = re.fullmatch(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d+))?", text)
    if not found or abs(int(found[1] or 0)) > MAX_LENGTH or len(text) > MAX_LENGTH:
        raise ExpressionError(f"{text[:40]!r} is not a number of ordinary size")
    return sympy.Rational(text)


def _bounded(value: sympy.Expr) -> sympy.Expr:
    """The value, unless it is undefined or so large that going on would take for ever."""
    if value.has(sympy.nan, sympy.zoo, sympy.oo, -sympy.oo):
        raise ExpressionError("a value is undefined")
    if any(max(abs(n.p), n.q).bit_length() > MAX_BITS for n in value.atoms(sympy.Rational)):
        raise ExpressionError(f"a number of more than {MAX_BITS} binary digits")
    return value


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


def parse(
    text: str, symbols: Collection[str] | None = None, values: Mapping[str, object] | None = None
) -> sympy.Expr:
    """`to_sympy` of `tree`.

    >>> parse("2(l + w)")
    2*l + 2*w
    >>> parse("2(l + w)", values={"l": 5, "w": 4})
    18
    >>> from interp.rules.expressions import ExpressionError
    >>> try:
    ...     parse("__import__('os')")
    ... except ExpressionError as error:
    ...     print(error)
    "__import__('os')" has '_' where a number, a name or an operator is read
    """
    return to_sympy(tree(text, None if symbols is None else frozenset(symbols)), values)


def render(node: ast.expr, values: Mapping[str, str] | None = None) -> str:
    """Write a tree as mathematical text; with `values`, numbers take the places of the names.

    >>> render(tree("1/2*m*v**2")), render(tree("2*(l + w)"))
    ('(1/2)mv^2', '2(l + w)')
    >>> render(tree("2*(l + w)"), {"l": "5", "w": "4"})
    '2 × (5 + 4)'
    """
    return _render(node, values)[0]


def exact(value: sympy.Expr, places: int = 3) -> str | None:
    """A number as text if that loses nothing: an integer, a decimal of few places, or such a
    multiple of π.

    >>> exact(sympy.Rational(5, 2)), exact(9 * sympy.pi)
    ('2.5', '9π')
    >>> exact(sympy.Rational(1, 3)), exact(sympy.sqrt(2))
    (None, None)
    """
    value = sympy.nsimplify(value) if value.is_Float else value
    over_pi = value / sympy.pi
    if over_pi.is_Rational and not value.is_zero:
        factor = exact(over_pi, places)
        return None if factor is None else {"1": "π", "-1": "-π"}.get(factor, f"{factor}π")
    if not value.is_Rational or not (value * 10**places).is_Integer:
        return None
    digits = str(abs(value * 10**places)).rjust(places + 1, "0")
    return ("-" if value < 0 else "") + f"{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(
        "."
    )


# Reading.


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
        number, word, operator = found.groups()
        tokens += [number or operator] if word is None else _split(word, word, symbols)
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


# Writing. Every part comes with how tightly it binds, so that brackets stand where they are needed.

_SUM, _PRODUCT, _SIGN, _POWER, _ATOM = range(5)


def _render(node: ast.expr, values: Mapping[str, str] | None) -> tuple[str, int]:
    match node:
        case ast.Constant(value=value):
            return str(value), _ATOM
        case ast.Name(id=name):
            text = "π" if name == "pi" else (values or {}).get(name, name)
            return text, _SIGN if text.startswith("-") else _ATOM
        case ast.UnaryOp(operand=operand):
            return "-" + _bracketed(operand, values, _POWER), _SIGN
        case ast.Call(func=ast.Name(id="factorial"), args=[argument]):
            return _bracketed(argument, values, _ATOM) + "!", _ATOM
        case ast.Call(func=ast.Name(id=name), args=[argument]):
            return f"{name}({_render(argument, values)[0]})", _ATOM
        case ast.BinOp(left, ast.Add(), right):
            return f"{_bracketed(left, values, _SUM)} + {_bracketed(right, values, _PRODUCT)}", _SUM
        case ast.BinOp(left, ast.Sub(), right):
            return f"{_bracketed(left, values, _SUM)} - {_bracketed(right, values, _PRODUCT)}", _SUM
        case ast.BinOp(left, ast.Mult(), right):
            return _product(left, right, values), _PRODUCT
        case ast.BinOp(left, ast.Div(), right):
            above, below = _bracketed(left, values, _PRODUCT), _bracketed(right, values, _POWER)
            spaced = values is not None and not (
                isinstance(left, ast.Constant) and isinstance(right, ast.Constant)
            )
            return f"{above} / {below}" if spaced else f"{above}/{below}", _PRODUCT
        case ast.BinOp(left, ast.Pow(), right):
            return f"{_bracketed(left, values, _ATOM)}^{_bracketed(right, values, _ATOM)}", _POWER
    raise ExpressionError(f"{ast.unparse(node)!r} cannot be written")


def _bracketed(node: ast.expr, values: Mapping[str, str] | None, least: int) -> str:
    text, binds = _render(node, values)
    return text if binds >= least else f"({text})"


def _product(left: ast.expr, right: ast.expr, values: Mapping[str, str] | None) -> str:
    before, after = _bracketed(left, values, _PRODUCT), _bracketed(right, values, _SIGN + 1)
    if values is not None:
        return f"{before} × {after}"
    if isinstance(left, ast.BinOp) and isinstance(left.op, ast.Div):
        before = f"({before})"  # (1/2)mv^2: without brackets the m would seem to stand below
    if after[0].isdigit():
        return f"{before} × {after}"
    # A function name must not run into the symbol before it: r sin(θ).
    named = isinstance(right, ast.Call) and right.func.id != "factorial"  # type: ignore[union-attr]
    return (
        f"{before} {after}"
        if (named and before[-1].isalpha()) or _runs_together(before, after)
        else before + after
    )


def _runs_together(before: str, after: str) -> bool:
    """Whether two texts side by side would be read as something else: p and i as pi, 2 and e1 as
    20.
    """
    if before[-1].isdigit() and re.match(r"[eE]\d", after):
        return True
    head, tail = re.search(r"[^\W\d_]*$", before), re.match(r"[^\W\d_]*", after)
    run, at = (head[0] if head else "") + (tail[0] if tail else ""), len(head[0] if head else "")
    words = [*FUNCTIONS, *CONSTANTS]
    return any(
        start < at < start + len(word)
        for word in words
        for start in range(len(run))
        if run.startswith(word, start)
    )
