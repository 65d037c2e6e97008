"""Checks of rules by machine: what in a rule source is wrong, contradicts itself, or tells an edit
less than it seems.

`check_rules` takes any `RuleSet` and gives findings with a name, a place, what was found and what
was expected. Levels: `error` (the data say something false, or a record cannot be used), `warning`
(a result would be distorted: contamination, conflicts, repairs), `info` (worth knowing when results
are read).
"""

import ast
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Literal, NamedTuple

import sympy

from interp.rules.agreement import agree
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
from interp.rules.expressions import ExpressionError, names, parse, to_sympy, tree
from interp.rules.sources import Probe, Rule, RulePrompt, RuleSet
from interp.rules.spans import char_spans, subject_spans
from interp.rules.units import UnitError, check_dimensions
from interp.vocabulary import FORMS, RuleForm

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")
DIMENSIONAL = ("physics", "chemistry")

CHECKS: dict[str, tuple[Level, str]] = {
    "refused": ("error", "a record that cannot be used"),
    "repaired": ("warning", "a record that was mended while it was read"),
    "arithmetic": ("error", "an answer whose sides are not equal: 2 * 2 * 2 = 525"),
    "operands": (
        "error",
        "an answer worked with numbers, or units, that are not those of its prompt",
    ),
    "result": (
        "error",
        "an answer that is not what the rule's expression gives for the prompt's numbers",
    ),
    "formula": ("error", "a formula that is not the rule's expression"),
    "edited_equals_true": (
        "error",
        "an item whose edited answer is also the true one: it cannot show an edit",
    ),
    "prefix": (
        "warning",
        (
            "an edited answer with which a true one begins: a model that was not edited seems to"
            " give it"
        ),
    ),
    "expression": ("error", "an expression that cannot be read"),
    "dimensions": ("error", "a true expression that does not give the unit of its result"),
    "subject": (
        "error",
        "an edit prompt in which the subject is not found as a word of its own, or more than once",
    ),
    "words": ("warning", "a description that names none of the formula's operations, but others"),
    "result_replaced": (
        "warning",
        "an instance prompt with a number where the formula's prompt has the result",
    ),
    "understanding_target": (
        "warning",
        "an understanding item that wants another answer than the edit of its prompt",
    ),
    "understanding_truth": (
        "warning",
        "an understanding item whose true answer is not that of the form it asks for",
    ),
    "instance_conflict": ("warning", "one instance prompt with different answers within a rule"),
    "instance_format": ("info", "one instance prompt with the same answer written differently"),
    "instance_repeated": ("warning", "an instance prompt that one form asks twice"),
    "instance_shared": (
        "info",
        "instance prompts that the formula asks as well as the instance form",
    ),
    "locality_is_edit": ("warning", "a locality prompt that is an edited prompt of the same rule"),
    "locality_is_edited_elsewhere": (
        "info",
        "a locality prompt that is an edited prompt of another rule",
    ),
    "locality_wants_edit": (
        "warning",
        "a locality prompt whose gold answer is what an edit of the rule wants",
    ),
    "locality_about_edit": ("warning", "a locality prompt that presumes the edited rule"),
    "locality_sizes": ("info", "locality lists that are not as long as those of other rules"),
    "understanding_verbatim": (
        "info",
        "understanding prompts that are edited prompts of the same rule",
    ),
    "contaminated": (
        "warning",
        "a rephrasing or paraphrase that is an edited prompt of the same rule",
    ),
    "key_collision": (
        "warning",
        "two forms whose prompts are the same up to the subject: subject-last keys coincide",
    ),
    "conflicting_edits": ("warning", "one edit prompt with different targets in different rules"),
    "duplicate_rule": ("warning", "rules with the same edits in every form"),
    "duplicate_forms": ("warning", "rules with the same edits of formula and description"),
    "same_quantity": ("warning", "rules of the same quantity of the same subject"),
    "subject_elsewhere": ("info", "prompts of an evaluation without the subject"),
    "encoding": (
        "info",
        "text that is not in composed form, or has control or replacement characters",
    ),
}


class Finding(NamedTuple):
    """One thing that a check found."""

    level: Level
    check: str
    """One of `CHECKS`."""
    where: str
    """Rule id, form and field: "ruleedit-11/instance/instances[2]"."""
    found: str
    expected: str


def check_rules(rules: RuleSet) -> list[Finding]:
    """All findings, in the order of the rules; checks across rules come last."""
    findings = [
        _finding("refused", r.where, r.reason, "a record of the schema") for r in rules.refused
    ]
    findings += [
        _finding("repaired", r.where, f"{r.name}: {r.detail}", "data that need no repair")
        for r in rules.repairs
    ]
    known = {rule.id: rule for rule in rules}
    for rule in rules:
        for check in _EACH:
            findings += check(rule, known)
    return findings + [finding for check in _ACROSS for finding in check(list(rules))]


def counts(findings: Iterable[Finding]) -> dict[tuple[Level, str], int]:
    """How many findings there are of each check, worst level first."""
    counted: Counter[tuple[Level, str]] = Counter(
        (finding.level, finding.check) for finding in findings
    )
    return {
        key: counted[key] for key in sorted(counted, key=lambda key: (LEVELS.index(key[0]), key[1]))
    }


def _finding(check: str, where: str, found: str, expected: str) -> Finding:
    return Finding(CHECKS[check][0], check, where, found, expected)


def _items(
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


# Numbers and expressions.


def _arithmetic(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    formula = rule.forms.get("formula")
    first = int(formula is not None and _is_identity(formula.target_new))
    for form, place, _, new, true, _ in _items(rule):
        if form != "instance":
            continue
        for answer in (new, *true):
            numbers = [
                value for side in sides(answer)[first:] if (value := number_of(side)) is not None
            ]
            if any(not close(value, numbers[-1]) for value in numbers[:-1]):
                given = " = ".join(f"{value.evalf(6)}" for value in numbers)
                yield _finding("arithmetic", place, answer, f"equal sides; they are {given}")


def _is_identity(formula: str) -> bool:
    """Whether a formula says that two expressions are equal, so that an edit of it changes
    arithmetic itself.
    """
    try:
        return len(sides(formula)) > 1 and len(names(tree(sides(formula)[0]))) > 1
    except ExpressionError:
        return False


def _operands(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    """A worked answer must use the prompt's numbers, those of its formula, and no others."""
    formula = rule.forms.get("formula")
    edited = expression_of(formula.target_new) if formula else None
    units = {symbol.name: symbol.unit for symbol in rule.symbols}
    for form, place, prompt, new, _, values in _items(rule):
        for name, value in values.items() if rule.expression_true else ():
            number = f"{Decimal(repr(value)):f}".removesuffix(".0")
            written = f"{number} {units.get(name, '')}".strip()
            end = r"(?!\w)" if units.get(name) else r"(?!\d)"
            if not re.search(rf"(?<![\w.]){re.escape(written)}(?!\.\d){end}", prompt):
                yield _finding("operands", place, prompt, f"{name} as {written!r}")
        if form != "instance" or values or edited is None:
            continue
        for side in sides(new)[:-1]:
            found = _unified(edited, side)
            given = {float(number) for number in re.findall(NUMBER, prompt)} | {
                abs(float(number)) for number in re.findall(NUMBER, prompt)
            }
            strange = [n for n in (found or {}).values() if float(n) not in given]
            missing = _unused(found, prompt) if found and not strange else []
            if strange or missing:
                reason = "not in the prompt" if strange else "not used"
                said = f"{', '.join(strange or missing)} {reason}"
                yield _finding(
                    "operands", place, f"{new!r} to {prompt!r}", f"the prompt's numbers; {said}"
                )


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


def _results(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    """Recompute every instance whose numbers are known, from the rule's expressions or its
    formula.
    """
    formula = rule.forms.get("formula")
    edited, true = _parsed(rule, rule.expression_new), _parsed(rule, rule.expression_true)
    for form, place, prompt, new, truths, values in _items(rule):
        if form != "instance":
            continue
        if values and edited is not None and true is not None:
            shown = {name: f"{value:.12g}" for name, value in values.items()}
            yield from _compare("result", place, new, edited, shown)
            for truth in truths:
                yield from _compare("result", place, truth, true, shown)
        elif formula is not None and not rule.expression_new:
            yield from _result_by_formula(rule, formula, place, prompt, new)
    for form, prompt in rule.forms.items():
        for kind, probes in (
            ("neighborhood", prompt.neighborhood),
            ("distracting", prompt.distracting),
        ):
            for at, probe in enumerate(probes):
                other = known.get(probe.rule or "")
                node = _parsed(other, other.expression_true) if other is not None else None
                if probe.values and node is not None:
                    shown = {name: f"{value:.12g}" for name, value in probe.values.items()}
                    yield from _compare(
                        "result", f"{rule.id}/{form}/{kind}[{at}]", probe.answer, node, shown
                    )


def _parsed(rule: Rule, expression: str | None) -> ast.expr | None:
    """An expression of a rule; None if there is none, or it cannot be read (`_expressions` says
    so).
    """
    try:
        return (
            None
            if expression is None
            else tree(expression, frozenset(s.name for s in rule.symbols) or None)
        )
    except ExpressionError:
        return None


def _expressions(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    for field in ("expression_true", "expression_new"):
        if (text := getattr(rule, field)) is not None and _parsed(rule, text) is None:
            yield _finding(
                "expression", f"{rule.id}/{field}", text, "an expression of the rule's symbols"
            )


def _compare(
    check: str, place: str, answer: str, node: ast.expr, values: dict[str, str]
) -> Iterator[Finding]:
    try:
        got = to_sympy(node, values)
    except ExpressionError as error:
        yield _finding(check, place, answer, f"a result for {values}; there is none ({error})")
        return
    number = number_of(answer)
    if number is None or not same_number(got, number):
        yield _finding(check, place, answer, f"{got} for {values}")


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
                yield _finding(
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


def _formulas(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    """Formula answers must say what the expressions say."""
    prompt = rule.forms.get("formula")
    if (
        prompt is None
        or _parsed(rule, rule.expression_true) is None
        or _parsed(rule, rule.expression_new) is None
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
            yield _finding("formula", f"{rule.id}/formula/{field}", text, expression)


def _showing(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    formula = rule.forms.get("formula")
    for form, place, prompt, new, true, _ in _items(rule):
        if form == "instance" and not true and formula is not None:
            derived = instance_truth(
                formula.prompt, formula.target_new, formula.target_true, prompt, new
            )
            true = derived.answers if derived else ()
        if any(_same_answer(new, truth) for truth in true):
            yield _finding(
                "edited_equals_true", place, new, "an edited answer that is not the true one"
            )


def _prefixes(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    for form, prompt in rule.forms.items():
        new = prompt.target_new.strip().rstrip(".")
        for true in prompt.target_true:
            if true.strip().startswith(new) and not _same_answer(new, true):
                yield _finding(
                    "prefix",
                    f"{rule.id}/{form}/target_new",
                    new,
                    f"an answer with which {true!r} does not begin",
                )


def _same_answer(first: str, second: str) -> bool:
    if _plain(first) == _plain(second):
        return True
    a, b = number_of(first), number_of(second)
    return a is not None and b is not None and same_number(a, b)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text.strip().rstrip(".").casefold())


def _dimensions(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    node = _parsed(rule, rule.expression_true)
    if rule.domain in DIMENSIONAL and node is not None and rule.result is not None:
        try:
            check_dimensions(
                node, {symbol.name: symbol.unit for symbol in rule.symbols}, rule.result.unit
            )
        except UnitError as error:
            yield _finding(
                "dimensions",
                f"{rule.id}/expression_true",
                str(error),
                f"{rule.result.unit or 'a number'}",
            )


# Words.

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
    kinds = {
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


def _words(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
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
        yield _finding(
            "words",
            f"{rule.id}/description",
            description.target_new,
            f"words for {formula and formula.target_new!r}",
        )


def _replaced_result(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
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
            yield _finding(
                "result_replaced", f"{rule.id}/instance", found[0], f"{before} {symbol} {after}"
            )


# Subjects and prompts.


def _subjects(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    for form, prompt in rule.forms.items():
        found = len(subject_spans(prompt.prompt, prompt.subject))
        whole = len(char_spans(prompt.prompt, prompt.subject))
        if found != 1 or whole != 1:
            where = f"{rule.id}/{form}/prompt"
            yield _finding(
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
                yield _finding(
                    "subject_elsewhere", where, found_text, f"the subject {prompt.subject!r}"
                )


def _understanding(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    edits = {prompt.prompt: (form, prompt) for form, prompt in rule.forms.items()}
    for form, prompt in rule.forms.items():
        verbatim = 0
        for at, probe in enumerate(prompt.understanding):
            where = f"{rule.id}/{form}/understanding[{at}]"
            if probe.prompt not in edits:
                continue
            verbatim += 1
            of, edit = edits[probe.prompt]
            if probe.target_new != edit.target_new:
                yield _finding(
                    "understanding_target",
                    where,
                    probe.target_new,
                    f"{edit.target_new} (the {of} edit)",
                )
            if probe.target_true and edit.target_true and not _same_truth(probe, edit):
                yield _finding(
                    "understanding_truth",
                    where,
                    " | ".join(probe.target_true),
                    " | ".join(edit.target_true),
                )
        if verbatim:
            where = f"{rule.id}/{form}/understanding"
            yield _finding(
                "understanding_verbatim",
                where,
                f"{verbatim} of {len(prompt.understanding)}",
                "held-out wording",
            )
        for kind, texts in (
            ("rephrasings", prompt.rephrasings),
            (
                "understanding",
                [p.prompt for p in prompt.understanding if p.wording == "paraphrase"],
            ),
        ):
            for at, text in enumerate(texts):
                if text in edits:
                    yield _finding(
                        "contaminated",
                        f"{rule.id}/{form}/{kind}[{at}]",
                        text,
                        "a prompt that is not edited",
                    )


def _same_truth(probe: Probe, edit: RulePrompt) -> bool:
    """Whether an item's true answer is one of an edit's, as text or as an expression; words are
    not judged.
    """
    for written in (lambda text: text, lambda text: sides(text)[-1]):
        ours, theirs = (
            [_letters(written(text)) for text in each]
            for each in (probe.target_true, edit.target_true)
        )
        if any(a in b or b in a for a in ours for b in theirs):
            return True
    mine = [node for text in probe.target_true if (node := expression_of(text)) is not None]
    other = [node for text in edit.target_true if (node := expression_of(text)) is not None]
    return not mine or any(agree(a, b) for a in mine for b in other)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


def _instances(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    for form, prompt in rule.forms.items():
        repeated = [
            text for text, n in Counter(p.prompt for p in prompt.instances).items() if n > 1
        ]
        for text in repeated:
            yield _finding(
                "instance_repeated", f"{rule.id}/{form}/instances", text, "each prompt once"
            )
        for at, probe in enumerate(prompt.instances):
            answers[probe.prompt].setdefault(probe.target_new, f"{form}/instances[{at}]")
        if form == "instance":
            answers[prompt.prompt].setdefault(prompt.target_new, "instance")
    for text, found in answers.items():
        if len({_plain(answer) for answer in found}) > 1:
            same = all(_same_answer(answer, next(iter(found))) for answer in found)
            check = "instance_format" if same else "instance_conflict"
            places = "; ".join(f"{answer!r} in {place}" for answer, place in found.items())
            yield _finding(
                check,
                f"{rule.id}/{next(iter(found.values()))}",
                f"{text!r}: {places}",
                "one answer",
            )
    if "instance" in rule.forms and "formula" in rule.forms:
        ours = {probe.prompt for probe in rule.forms["instance"].instances}
        shared = ours & {probe.prompt for probe in rule.forms["formula"].instances}
        if shared:
            yield _finding(
                "instance_shared",
                f"{rule.id}/instance/instances",
                f"{len(shared)} of {len(ours)}",
                "its own",
            )


def _locality(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    edits = {prompt.prompt: form for form, prompt in rule.forms.items()}
    wanted = {_plain(sides(prompt.target_new)[-1]) for prompt in rule.forms.values()}
    wanted |= {_plain(prompt.target_new) for prompt in rule.forms.values()}
    for form, prompt in rule.forms.items():
        for kind, probes in (
            ("neighborhood", prompt.neighborhood),
            ("distracting", prompt.distracting),
        ):
            for at, probe in enumerate(probes):
                where = f"{rule.id}/{form}/{kind}[{at}]"
                if probe.prompt in edits:
                    yield _finding(
                        "locality_is_edit",
                        where,
                        probe.prompt,
                        f"not the {edits[probe.prompt]} edit",
                    )
                if _plain(probe.answer) in wanted:
                    yield _finding(
                        "locality_wants_edit", where, probe.answer, "an answer that no edit wants"
                    )
                if re.search(
                    r"\b(this|the) (new |edited )?(rule|system)\b(?!-)|\bnew rule\b",
                    probe.prompt.lower(),
                ):
                    yield _finding(
                        "locality_about_edit", where, probe.prompt, "a prompt about something else"
                    )


def _collisions(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    prefixes: dict[str, list[RuleForm]] = defaultdict(list)
    for form in FORMS:
        if form in rule.forms and (
            spans := subject_spans(rule.forms[form].prompt, rule.forms[form].subject)
        ):
            prefixes[rule.forms[form].prompt[: spans[-1][1]]].append(form)
    for prefix, forms in prefixes.items():
        if len(forms) > 1:
            yield _finding(
                "key_collision",
                f"{rule.id}/{'+'.join(forms)}",
                prefix,
                "prompts that differ before the subject",
            )


def _encoding(rule: Rule, known: dict[str, Rule]) -> Iterator[Finding]:
    text = "\n".join(_texts(rule.model_dump()))
    odd = sorted(
        {
            c
            for c in set(text) - {"\n"}
            if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn") or c == "\ufffd"
        }
    )
    combining = sorted({c for c in text if unicodedata.combining(c)})
    if odd or combining or unicodedata.normalize("NFC", text) != text:
        said = ", ".join(f"U+{ord(c):04X}" for c in [*odd, *combining])
        yield _finding(
            "encoding", rule.id, said or "decomposed characters", "composed characters only"
        )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


# Across rules.


def _duplicates(rules: list[Rule]) -> Iterator[Finding]:
    for check, forms in (("duplicate_rule", FORMS), ("duplicate_forms", FORMS[:2])):
        groups: dict[tuple[tuple[str, str], ...], list[str]] = defaultdict(list)
        for rule in rules:
            if edits := tuple(
                (rule.forms[f].prompt, rule.forms[f].target_new) for f in forms if f in rule.forms
            ):
                groups[edits].append(rule.id)
        for ids in groups.values():
            if len(ids) > 1:
                yield _finding(
                    check, ids[0], f"the same as {', '.join(ids[1:])}", "different rules"
                )
    quantities: dict[tuple[str, str], list[str]] = defaultdict(list)
    for rule in rules:
        if rule.expression_true:
            quantities[rule.subject.lower(), rule.name.lower()].append(rule.id)
    for (_, name), ids in quantities.items():
        if len(ids) > 1:
            yield _finding(
                "same_quantity", ids[0], f"{name}, as {', '.join(ids[1:])}", "one rule of it"
            )


def _conflicts(rules: list[Rule]) -> Iterator[Finding]:
    """What matters when rules are edited one after another."""
    targets: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for rule in rules:
        for form, prompt in rule.forms.items():
            targets[prompt.prompt][prompt.target_new].append(f"{rule.id}/{form}")
    for prompt, wanted in targets.items():
        if len(wanted) > 1:
            said = "; ".join(
                f"{answer!r} in {', '.join(places)}" for answer, places in wanted.items()
            )
            yield _finding(
                "conflicting_edits",
                next(iter(wanted.values()))[0],
                f"{prompt!r}: {said}",
                "one target",
            )
    for rule in rules:
        own = {prompt.prompt for prompt in rule.forms.values()}
        for form, prompt in rule.forms.items():
            probes = [*prompt.neighborhood, *prompt.distracting]
            elsewhere = [
                probe.prompt
                for probe in probes
                if probe.prompt in targets and probe.prompt not in own
            ]
            if elsewhere:
                where, found = (
                    f"{rule.id}/{form}/locality",
                    f"{len(elsewhere)} of {len(probes)}: {elsewhere[0]!r}",
                )
                yield _finding(
                    "locality_is_edited_elsewhere", where, found, "prompts that no rule edits"
                )


def _sizes(rules: list[Rule]) -> Iterator[Finding]:
    for kind in ("neighborhood", "distracting"):
        lengths = {
            (rule.id, form): len(getattr(p, kind))
            for rule in rules
            for form, p in rule.forms.items()
        }
        usual = Counter(lengths.values()).most_common(1)[0][0] if lengths else 0
        for (id_, form), length in lengths.items():
            if length != usual:
                yield _finding(
                    "locality_sizes",
                    f"{id_}/{form}/{kind}",
                    f"{length} items",
                    f"{usual}, as elsewhere",
                )


_EACH: tuple[Callable[[Rule, dict[str, Rule]], Iterator[Finding]], ...] = (
    _expressions,
    _arithmetic,
    _operands,
    _results,
    _formulas,
    _showing,
    _prefixes,
    _dimensions,
    _words,
    _replaced_result,
    _subjects,
    _understanding,
    _instances,
    _locality,
    _collisions,
    _encoding,
)
_ACROSS: tuple[Callable[[list[Rule]], Iterator[Finding]], ...] = (_duplicates, _conflicts, _sizes)
