"""Words: descriptions, replaced symbols, and subjects in prompts."""

import ast
import re
from collections.abc import Iterator, Mapping

from interp.rules.checks.registry import Finding, finding, of_rule
from interp.rules.derivation import NUMBER, expression_of, sides
from interp.rules.expressions import names
from interp.rules.sources import Rule
from interp.rules.spans import char_spans, subject_spans

_OPERATIONS = {
    "sum": r"\b(sum|add(s|ed|ing)?|plus|summ(ing|ed)|total|more than|increased)\b",
    "difference": r"\b(difference|subtract(s|ed|ing)?|minus|less|decreased|from)\b",
    "product": (
        r"\b(product|multipl(y|ying|ied)|times|twice|double[d]?|doubling|triple[d]?|thrice"
        r"|two|three|four|of)\b"
    ),
    "quotient": (
        r"\b(quotient|ratio|divid(e|ed|ing)|over|per|half|halve|third|thirds|quarter|fourth"
        r"|reciprocal|inverse|fraction|average|mean|percent)\b"
    ),
    "power": r"\b(square[ds]?|squaring|cube[ds]?|cubing|power|root|exponent|itself)\b",
}


def operations(node: ast.expr) -> set[str]:
    """The operations of an expression, as words may name them."""
    found: set[str] = set()
    kinds: dict[type[ast.operator], str] = {
        ast.Add: "sum",
        ast.Sub: "difference",
        ast.Mult: "product",
        ast.Div: "quotient",
        ast.Pow: "power",
    }
    for part in ast.walk(node):
        if isinstance(part, ast.BinOp):
            found.add(kinds[type(part.op)])
        if (
            isinstance(part, ast.Call)
            and isinstance(part.func, ast.Name)
            and part.func.id == "sqrt"
        ):
            found.add("power")
    return found


@of_rule(
    words=("warning", "a description that names none of the formula's operations, but others"),
)
def _words(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    """Words that name only operations that the formula lacks; words that name none are not
    judged.
    """
    formula, description = rule.forms.get("formula"), rule.forms.get("description")
    node = expression_of(formula.target_new) if formula else None
    if node is None or description is None or not names(node):
        return
    text = description.target_new.lower()
    named = {
        kind for kind, words in _OPERATIONS.items() if re.search(words.replace("|of)", ")"), text)
    }
    # x * x may be said as a square, x / 0.5 as a double: those are not other operations.
    alike = {"power": {"product"}, "product": {"power", "quotient"}, "quotient": {"product"}}
    has = operations(node)
    has |= {other for kind in has for other in alike.get(kind, ())}
    if named and has and not named & has:
        yield finding(
            "words",
            f"{rule.id}/description",
            description.target_new,
            f"words for {formula and formula.target_new!r}",
        )


@of_rule(
    result_replaced=(
        "warning",
        "an instance prompt with a number where the formula's prompt has the result",
    ),
)
def _replaced_result(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    """As in "its inradius 5 can be calculated": the result's symbol was replaced as if it were
    given.
    """
    formula, instance = rule.forms.get("formula"), rule.forms.get("instance")
    if formula is None or instance is None or len(sides(formula.target_new)) < 2:
        return
    symbol = sides(formula.target_new)[0]
    if not re.fullmatch(r"\w", symbol):
        return
    for before, after in re.findall(rf"(\w+) {re.escape(symbol)} (\w+)", formula.prompt):
        if found := re.search(rf"\b{before} {NUMBER} {after}\b", instance.prompt):
            yield finding(
                "result_replaced", f"{rule.id}/instance", found[0], f"{before} {symbol} {after}"
            )


@of_rule(
    subject=(
        "error",
        "an edit prompt in which the subject is not found as a word of its own, or more than once",
    ),
    subject_elsewhere=("info", "prompts of an evaluation without the subject"),
)
def _subjects(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    for form, prompt in rule.forms.items():
        found = len(subject_spans(prompt.prompt, prompt.subject))
        whole = len(char_spans(prompt.prompt, prompt.subject))
        if found != 1 or whole != 1:
            where = f"{rule.id}/{form}/prompt"
            yield finding(
                "subject",
                where,
                f"{whole} times {prompt.subject!r} in {prompt.prompt!r}",
                "once, as a word",
            )
        asked = {
            "rephrasings": prompt.rephrasings,
            "instances": [probe.prompt for probe in prompt.instances],
            "understanding": [probe.prompt for probe in prompt.understanding],
        }
        for kind, prompts in asked.items():
            without = [text for text in prompts if prompt.subject not in text]
            if without:
                where, found_text = (
                    f"{rule.id}/{form}/{kind}",
                    f"{len(without)} of {len(prompts)}: {without[0]!r}",
                )
                yield finding(
                    "subject_elsewhere", where, found_text, f"the subject {prompt.subject!r}"
                )
