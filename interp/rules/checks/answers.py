"""What several checks need of a rule's answers."""

import ast
import re
from collections.abc import Iterator

from interp.rules.derivation import number_of, same_number
from interp.rules.expressions import ExpressionError, tree
from interp.rules.sources import LocalityProbe, Rule
from interp.vocabulary import RuleForm


def items_of(
    rule: Rule,
) -> Iterator[tuple[RuleForm, str, str, str, tuple[str, ...], dict[str, float]]]:
    """Form, place, prompt, edited answer, true answers and values of every edit and instance of
    a rule.
    """
    for form, prompt in rule.forms.items():
        place = f"{rule.id}/{form}"
        kind: RuleForm = form
        yield kind, place, prompt.prompt, prompt.target_new, prompt.target_true, prompt.values
        for at, probe in enumerate(prompt.instances):
            yield (
                "instance",
                f"{place}/instances[{at}]",
                probe.prompt,
                probe.target_new,
                probe.target_true,
                probe.values,
            )


def locality_of(rule: Rule) -> Iterator[tuple[str, LocalityProbe]]:
    """Place and item of every question that an edit of a rule must leave alone."""
    for form, prompt in rule.forms.items():
        kinds = {"neighborhood": prompt.neighborhood, "distracting": prompt.distracting}
        for kind, probes in kinds.items():
            for number, probe in enumerate(probes):
                yield f"{rule.id}/{form}/{kind}[{number}]", probe


def parsed(rule: Rule, expression: str | None) -> ast.expr | None:
    """An expression of a rule; None if there is none, or it cannot be read (the check
    `expression` says so).
    """
    try:
        return (
            None
            if expression is None
            else tree(expression, frozenset(s.name for s in rule.symbols) or None)
        )
    except ExpressionError:
        return None


def same_answer(first: str, second: str) -> bool:
    """Whether two answers are the same text, up to case and space, or the same number."""
    if plain(first) == plain(second):
        return True
    a, b = number_of(first), number_of(second)
    return a is not None and b is not None and same_number(a, b)


def plain(text: str) -> str:
    """A text without case, doubled space and the final full stop."""
    return re.sub(r"\s+", " ", text.strip().rstrip(".").casefold())
