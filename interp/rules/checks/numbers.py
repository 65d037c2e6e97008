"""Numbers and expressions: instances recomputed, formulas compared, dimensions."""

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from decimal import Decimal

import sympy

from interp.rules.agreement import agree
from interp.rules.checks.answers import items_of, locality_of, parsed, same_answer
from interp.rules.checks.registry import Finding, finding, of_rule
from interp.rules.derivation import (
    NUMBER,
    candidate_values,
    close,
    expression_of,
    instance_truth,
    number_of,
    same_number,
    sides,
    unify,
)
from interp.rules.expressions import ExpressionError, names, tree
from interp.rules.meaning import parse, to_sympy
from interp.rules.sources import Rule, RulePrompt
from interp.rules.units import UnitError, check_dimensions

DIMENSIONAL = ("physics", "chemistry")


@of_rule(
    expression=("error", "an expression that cannot be read"),
)
def _expressions(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    for field in ("expression_true", "expression_new"):
        if (text := getattr(rule, field)) is not None and parsed(rule, text) is None:
            yield finding(
                "expression", f"{rule.id}/{field}", text, "an expression of the rule's symbols"
            )


@of_rule(arithmetic=("error", "an answer whose sides are not equal: 2 * 2 * 2 = 525"))
def _arithmetic(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    formula = rule.forms.get("formula")
    first = int(formula is not None and _is_identity(formula.target_new))
    for form, place, _, new, true, _ in items_of(rule):
        if form != "instance":
            continue
        for answer in (new, *true):
            numbers = [
                value for side in sides(answer)[first:] if (value := number_of(side)) is not None
            ]
            if any(not close(value, numbers[-1]) for value in numbers[:-1]):
                given = " = ".join(f"{value.evalf(6)}" for value in numbers)
                yield finding("arithmetic", place, answer, f"equal sides; they are {given}")


def _is_identity(formula: str) -> bool:
    """Whether a formula says that two expressions are equal, so that an edit of it changes
    arithmetic itself.
    """
    try:
        return len(sides(formula)) > 1 and len(names(tree(sides(formula)[0]))) > 1
    except ExpressionError:
        return False


@of_rule(
    operands=("error", "an answer worked with numbers, or units, that are not those of its prompt"),
)
def _operands(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    """A worked answer must use the prompt's numbers, those of its formula, and no others."""
    formula = rule.forms.get("formula")
    edited = expression_of(formula.target_new) if formula else None
    units = {symbol.name: symbol.unit for symbol in rule.symbols}
    for form, place, prompt, new, _, values in items_of(rule):
        for name, value in values.items() if rule.expression_true else ():
            written = _with_unit(value, units.get(name, ""))
            end = r"(?!\w)" if units.get(name) else r"(?!\d)"
            if not re.search(rf"(?<![\w.]){re.escape(written)}(?!\.\d){end}", prompt):
                yield finding("operands", place, prompt, f"{name} as {written!r}")
        if form == "instance" and not values and edited is not None:
            for side in sides(new)[:-1]:
                if fault := _operand_fault(edited, side, prompt):
                    yield finding(
                        "operands",
                        place,
                        f"{new!r} to {prompt!r}",
                        f"the prompt's numbers; {fault}",
                    )


def _with_unit(value: float, unit: str) -> str:
    """A number as prompts write it."""
    number = f"{Decimal(repr(value)):f}".removesuffix(".0")
    return f"{number} {unit}".strip()


def _operand_fault(edited: ast.expr, side: str, prompt: str) -> str:
    """What is wrong with the numbers of one side of a worked answer; empty if nothing is."""
    used = _unified(edited, side) or {}
    given = {float(number) for number in re.findall(NUMBER, prompt)}
    given |= {abs(number) for number in given}
    if strange := [number for number in used.values() if float(number) not in given]:
        return f"{', '.join(strange)} not in the prompt"
    if used and (missing := _unused(used, prompt)):
        return f"{', '.join(missing)} not used"
    return ""


def _unified(edited: ast.expr, side: str) -> dict[str, str] | None:
    try:
        return unify(edited, tree(side))
    except ExpressionError:
        return None


def _unused(found: dict[str, str], prompt: str) -> list[str]:
    """Numbers of "sides of 9, 2, and 7" that an answer with as many operands leaves out."""
    given = Counter(float(number) for number in re.findall(rf"(?<![\w^.]){NUMBER}", prompt))
    used = Counter(float(number) for number in found.values())
    if sum(given.values()) != sum(used.values()):
        return []
    return [f"{number:g}" for number in given - used]


@of_rule(
    result=(
        "error",
        "an answer that is not what the rule's expression gives for the prompt's numbers",
    )
)
def _results(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    """Recompute every instance whose numbers are known, from the rule's expressions or its
    formula.
    """
    formula = rule.forms.get("formula")
    edited, true = parsed(rule, rule.expression_new), parsed(rule, rule.expression_true)
    for form, place, prompt, new, truths, values in items_of(rule):
        if form != "instance":
            continue
        if values and edited is not None and true is not None:
            shown = _shown(values)
            yield from _compare("result", place, new, edited, shown)
            for truth in truths:
                yield from _compare("result", place, truth, true, shown)
        elif formula is not None and not rule.expression_new:
            yield from _result_by_formula(rule, formula, place, prompt, new)
    for place, probe in locality_of(rule):
        other = known.get(probe.rule or "")
        node = parsed(other, other.expression_true) if other is not None else None
        if probe.values and node is not None:
            yield from _compare("result", place, probe.answer, node, _shown(probe.values))


def _shown(values: Mapping[str, float]) -> dict[str, str]:
    """Numbers as `to_sympy` takes them."""
    return {name: f"{value:.12g}" for name, value in values.items()}


def _compare(
    check: str, place: str, answer: str, node: ast.expr, values: dict[str, str]
) -> Iterator[Finding]:
    try:
        got = to_sympy(node, values)
    except ExpressionError as error:
        yield finding(check, place, answer, f"a result for {values}; there is none ({error})")
        return
    number = number_of(answer)
    if number is None or not same_number(got, number):
        yield finding(check, place, answer, f"{got} for {values}")


def _result_by_formula(
    rule: Rule, formula: RulePrompt, place: str, prompt: str, new: str
) -> Iterator[Finding]:
    """For data without expressions: the formula as written, where the prompt names its numbers."""
    edited, result = expression_of(formula.target_new), number_of(new)
    if edited is None or result is None or not names(edited):
        return
    wanted = set(names(edited))
    for values in [
        _angles(prompt, wanted),
        *candidate_values(edited, edited, formula.prompt, prompt, ""),
    ]:
        if wanted <= set(values):
            try:
                got = (
                    to_sympy(edited, values)
                    if not isinstance(values, _Symbolic)
                    else values.put_into(edited)
                )
            except ExpressionError:
                continue
            if not got.is_finite or not close(got, result):
                value = got.evalf(6) if got.is_finite else "nothing (undefined)"
                yield finding(
                    "result", place, f"{new!r} to {prompt!r}", f"{value} by {formula.target_new!r}"
                )
            return


class _Symbolic(dict[str, str]):
    """Values that are expressions, such as x = π/6."""

    def put_into(self, node: ast.expr) -> sympy.Expr:
        """The value of an expression at these values."""
        return to_sympy(node).subs(
            {to_sympy(ast.Name(name)): parse(self[name]) for name in names(node)}
        )


def _angles(prompt: str, wanted: set[str]) -> _Symbolic:
    """Values given as multiples of π: "at x = pi/6"."""
    found = _Symbolic()
    for symbol in wanted:
        given = re.findall(
            rf"(?<!\w){re.escape(symbol)}\s*=\s*(-?\d*\s*(?:pi|π)(?:\s*/\s*\d+)?)", prompt
        )
        if len(given) == 1:
            found[symbol] = given[0]
    return found


@of_rule(formula=("error", "a formula that is not the rule's expression"))
def _formulas(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    """Formula answers must say what the expressions say."""
    prompt = rule.forms.get("formula")
    if (
        prompt is None
        or parsed(rule, rule.expression_true) is None
        or parsed(rule, rule.expression_new) is None
    ):
        return
    assert rule.expression_true is not None and rule.expression_new is not None
    symbols = frozenset(symbol.name for symbol in rule.symbols) or None
    pairs = [("target_new", prompt.target_new, rule.expression_new)]
    pairs += [
        (f"target_true[{at}]", text, rule.expression_true)
        for at, text in enumerate(prompt.target_true)
    ]
    for field, text, expression in pairs:
        try:
            same = agree(tree(sides(text)[-1], symbols), tree(expression, symbols))
        except ExpressionError:
            same = False
        if not same:
            yield finding("formula", f"{rule.id}/formula/{field}", text, expression)


@of_rule(
    edited_equals_true=(
        "error",
        "an item whose edited answer is also the true one: it cannot show an edit",
    )
)
def _showing(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    formula = rule.forms.get("formula")
    for form, place, prompt, new, true, _ in items_of(rule):
        if form == "instance" and not true and formula is not None:
            derived = instance_truth(
                formula.prompt, formula.target_new, formula.target_true, prompt, new
            )
            true = derived.answers if derived else ()
        if any(same_answer(new, truth) for truth in true):
            yield finding(
                "edited_equals_true", place, new, "an edited answer that is not the true one"
            )


@of_rule(
    prefix=(
        "warning",
        "an edited answer with which a true one begins: a model that was not edited seems to"
        " give it",
    )
)
def _prefixes(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    for form, prompt in rule.forms.items():
        new = prompt.target_new.strip().rstrip(".")
        for true in prompt.target_true:
            if true.strip().startswith(new) and not same_answer(new, true):
                yield finding(
                    "prefix",
                    f"{rule.id}/{form}/target_new",
                    new,
                    f"an answer with which {true!r} does not begin",
                )


@of_rule(
    dimensions=("error", "a true expression that does not give the unit of its result"),
)
def _dimensions(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    node = parsed(rule, rule.expression_true)
    if rule.domain in DIMENSIONAL and node is not None and rule.result is not None:
        try:
            check_dimensions(
                node, {symbol.name: symbol.unit for symbol in rule.symbols}, rule.result.unit
            )
        except UnitError as error:
            yield finding(
                "dimensions",
                f"{rule.id}/expression_true",
                str(error),
                f"{rule.result.unit or 'a number'}",
            )
