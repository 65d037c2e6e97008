"""Rules: the embedded benchmark recomputed with SymPy's own parser, choosing among rules, and
rule files."""

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sympy
from sympy.parsing.sympy_parser import (
    convert_xor,
    parse_expr,
    rationalize,
    standard_transformations,
)

from interp.rules.sources import Probe, Rule, RuleError, RulePrompt, Twin, dump_rules, load_rules
from interp.vocabulary import FORMS, RuleForm

EMBEDDED = load_rules().rules
BY_ID = {rule.id: rule for rule in EMBEDDED}
TRANSFORMATIONS = (*standard_transformations, convert_xor, rationalize)


# The embedded rules. Expressions are read by SymPy's parser, not by ours, and answers by the few
# lines here.


@cache
def meaning(expression: str, symbols: frozenset[str]) -> sympy.Expr:
    local = {name: sympy.Symbol(name) for name in symbols} | {"log": lambda x: sympy.log(x, 10)}
    found = parse_expr(expression, local_dict=local, transformations=TRANSFORMATIONS)
    assert {str(symbol) for symbol in found.free_symbols} <= symbols, (expression, symbols)
    return found


def result(rule: Rule, expression: str | None, values: dict[str, float]) -> Any:
    """An expression of a rule at some values, exactly."""
    assert expression is not None
    numbers = {sympy.Symbol(name): sympy.Rational(str(value)) for name, value in values.items()}
    assert {symbol.name for symbol in rule.symbols} == set(values)
    return meaning(expression, frozenset(values)).xreplace(numbers)


def number(text: str) -> sympy.Expr:
    """The value of an answer's last side: "-76", "0.9", "49π", "π"."""
    found = re.fullmatch(r"(-?)(\d+(?:\.\d+)?)?(π?)", text)
    assert found and (found[2] or found[3]), text
    value = sympy.Rational(found[2] or "1") * (sympy.pi if found[3] else 1)
    return -value if found[1] else value


@cache
def working(text: str) -> float:
    """The value of an arithmetic text such as `2 × π × 4 × (4 + 10)` or `5! / 2`, by Python's
    own arithmetic."""
    plain = (
        re.sub(r"(?<=[\d)])π", "*pi", text).replace("π", "pi").replace("^", "**").replace("×", "*")
    )
    plain = re.sub(r"(\([^()]*\)|\d+)!", r"factorial(\1)", plain)
    assert set(re.findall(r"[^\W\d]+", plain)) <= {"pi", "sqrt", "factorial", "log"}, text
    names = {"pi": math.pi, "sqrt": math.sqrt, "factorial": math.factorial, "log": math.log10}
    return float(eval(plain, {"__builtins__": {}}, names))


def same(first: sympy.Expr, second: sympy.Expr) -> bool:
    return first == second or sympy.simplify(first - second) == 0


def numeric_items(rule: Rule) -> Iterator[Probe | RulePrompt]:
    """Everything of a rule that asks for a number: the instance edit, and the instances of every
    form."""
    yield rule.forms["instance"]
    for form in FORMS:
        yield from rule.forms[form].instances


def numbers_in(text: str) -> Counter[float]:
    """Numbers of a prompt; the index of a symbol such as R1 is none."""
    return Counter(float(found) for found in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", text))


def occurrences(words: str, text: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE))


def every_form() -> Iterator[tuple[Rule, RuleForm, RulePrompt]]:
    for rule in EMBEDDED:
        for form in FORMS:
            yield rule, form, rule.forms[form]


def test_embedded_has_enough_rules_with_all_forms() -> None:
    domains = Counter(rule.domain for rule in EMBEDDED)
    assert len(EMBEDDED) >= 200 and domains["mathematics"] >= 120 and domains["physics"] >= 60
    assert all(tuple(rule.forms) == FORMS for rule in EMBEDDED)
    assert len({rule.subject.lower() for rule in EMBEDDED}) >= 120
    assert len({rule.name.lower() for rule in EMBEDDED}) == len(EMBEDDED)
    assert len({id_.lower() for id_ in BY_ID}) == len(
        EMBEDDED
    )  # ids name files, also where case is not told apart
    assert all(rule.topic and rule.result and rule.symbols for rule in EMBEDDED)


def test_embedded_splits_are_disjoint_by_subject() -> None:
    splits: dict[str, set[str | None]] = defaultdict(set)
    for rule in EMBEDDED:
        splits[rule.subject.lower()].add(rule.split)
    assert all(len(found) == 1 for found in splits.values())
    shares = Counter(next(iter(found)) for found in splits.values())
    assert set(shares) == {"train", "validation", "test"}
    # 40, 20 and 40 of 100 subjects by a hash: five standard deviations of a draw, or less.
    for split, share in (("train", 0.4), ("validation", 0.2), ("test", 0.4)):
        allowed = 5 * math.sqrt(len(splits) * share * (1 - share))
        assert abs(shares[split] - len(splits) * share) < allowed, shares


def test_instance_targets_equal_the_expressions() -> None:
    """The last side of an answer is the exact result, so nothing is rounded; its other sides
    equal it."""
    for rule in EMBEDDED:
        checked = 0
        for item in numeric_items(rule):
            assert item.target_true, rule.id
            for text, expression in [
                *((true, rule.expression_true) for true in item.target_true),
                (item.target_new, rule.expression_new),
            ]:
                *sides, last = text.split(" = ")
                assert same(result(rule, expression, item.values), number(last)), (
                    rule.id,
                    item.prompt,
                    text,
                )
                for side in sides:
                    assert working(side) == pytest.approx(float(number(last)), rel=1e-9), (
                        rule.id,
                        item.prompt,
                        text,
                    )
                checked += 1
        assert checked >= 2 * (1 + 3 * 4)


def test_instance_prompts_hold_their_values_and_nothing_else_that_varies() -> None:
    for rule in EMBEDDED:
        left = []
        for item in numeric_items(rule):
            found, values = numbers_in(item.prompt), Counter(item.values.values())
            assert values <= found, (rule.id, item.prompt)
            left.append(found - values)
        assert all(rest == left[0] for rest in left), rule.id


def test_instances_are_new_numbers() -> None:
    for rule in EMBEDDED:
        edited, seen = rule.forms["instance"], {}
        for form in FORMS:
            prompts = {probe.prompt for probe in rule.forms[form].instances}
            assert len(prompts) == len(rule.forms[form].instances) >= 4
            assert edited.prompt not in prompts
            assert all(probe.values != edited.values for probe in rule.forms[form].instances)
            seen[form] = prompts
        assert seen["formula"] == seen["description"]
        assert not seen["formula"] & seen["instance"], rule.id


def factors(text: str, rule: Rule) -> str:
    """A formula with its products written out: the longest symbols first, and nothing of our
    parser."""
    known = sorted((symbol.name for symbol in rule.symbols), key=len, reverse=True)
    text = text.replace("√", "sqrt")
    pattern = "|".join(
        [r"\d+(?:\.\d+)?", "sqrt", "log", "π", *map(re.escape, known), r"[-+*/^()!×]"]
    )
    tokens = re.findall(pattern, text)
    assert "".join(tokens) == text.replace(" ", ""), (rule.id, text)
    spelling, found = {"π": "pi", "×": "*"}, ""
    for before, token in zip(["", *tokens], tokens, strict=False):
        both_operands = (
            before and before not in (*"-+*/^(×", "sqrt", "log") and token not in "-+*/^)!×"
        )
        found += "*" if both_operands else ""
        found += spelling.get(token, str(token))
    return found


def test_formula_targets_say_what_the_expressions_say() -> None:
    for rule in EMBEDDED:
        form, symbols = rule.forms["formula"], frozenset(symbol.name for symbol in rule.symbols)
        pairs = [
            (form.target_new, rule.expression_new),
            *((t, rule.expression_true) for t in form.target_true),
        ]
        for text, expression in pairs:
            read: Any = meaning(factors(text, rule), symbols)
            for probe in form.instances:
                numbers = {
                    sympy.Symbol(name): sympy.Rational(str(v)) for name, v in probe.values.items()
                }
                wanted = float(result(rule, expression, probe.values))
                assert float(read.xreplace(numbers)) == pytest.approx(wanted, rel=1e-9), (
                    rule.id,
                    text,
                )


def test_edited_answer_differs_from_the_true_one() -> None:
    for rule, form, prompt in every_form():
        for item in (prompt, *prompt.instances, *prompt.understanding):
            assert item.target_true
            assert len(set(item.target_true)) == len(item.target_true)
            assert item.target_new not in item.target_true, (rule.id, form, item.prompt)
            assert all(
                text and text == text.strip()
                for text in (item.prompt, item.target_new, *item.target_true)
            )
        for item in prompt.instances:
            true, new = (
                result(rule, e, item.values) for e in (rule.expression_true, rule.expression_new)
            )
            assert not same(true, new) and true != 0 != new, (rule.id, item.prompt)


def test_no_true_answer_begins_with_the_edited_one() -> None:
    """A model that was not edited would seem to give the edited answer."""
    contained = set()
    for rule, form, prompt in every_form():
        for item in (prompt, *prompt.instances, *prompt.understanding):
            true, new = item.target_true[0], item.target_new
            if true.startswith(new):
                contained.add((rule.id, form, true, new))
    assert not contained


def test_edit_prompt_names_the_subject_once_and_the_rule() -> None:
    for rule, form, prompt in every_form():
        assert prompt.subject == rule.subject
        assert occurrences(rule.subject, prompt.prompt) == 1, (rule.id, form)
        named = [word for word in rule.rule_words if occurrences(word, prompt.prompt)]
        assert named, (rule.id, form, rule.rule_words)
        assert len(prompt.rephrasings) == 2
        assert len({prompt.prompt, *prompt.rephrasings}) == 3
        assert all(occurrences(rule.subject, text) == 1 for text in prompt.rephrasings)
    for rule in EMBEDDED:  # the description is about the rule's name and nothing more
        words = rule.forms["description"].prompt
        assert all(occurrences(word, words) for word in rule.rule_words), rule.id


def test_forms_differ_before_the_subject_ends() -> None:
    """Equal text up to the subject would give equal keys there (a causal model sees only the
    prefix)."""
    for rule in EMBEDDED:
        assert len({form.prompt.partition(rule.subject)[0] for form in rule.forms.values()}) == 3, (
            rule.id
        )


def test_no_two_rules_edit_the_same_prompt() -> None:
    prompts = Counter(prompt.prompt for _, _, prompt in every_form())
    assert max(prompts.values()) == 1


def test_understanding_wording_is_labelled_truly() -> None:
    for rule, form, prompt in every_form():
        siblings = {other.prompt: other for name, other in rule.forms.items() if name != form}
        everywhere = {
            text for other in rule.forms.values() for text in (other.prompt, *other.rephrasings)
        }
        wanted = {(s.target_new, s.target_true) for s in siblings.values()}
        for wording in ("verbatim", "paraphrase"):
            probes = [probe for probe in prompt.understanding if probe.wording == wording]
            # Each wording asks for each of the two other forms.
            assert {(p.target_new, p.target_true) for p in probes} == wanted and len(probes) == 2
            for probe in probes:
                assert (wording == "verbatim") == (probe.prompt in siblings)
                if wording == "verbatim":
                    asked = siblings[probe.prompt]
                    assert (asked.target_new, asked.target_true) == (
                        probe.target_new,
                        probe.target_true,
                    )
                else:
                    assert probe.prompt not in everywhere, (rule.id, probe.prompt)


def test_locality_is_about_other_rules() -> None:
    edited = {text for _, _, form in every_form() for text in (form.prompt, *form.rephrasings)}
    edited |= {
        probe.prompt
        for _, _, form in every_form()
        for probe in (*form.instances, *form.understanding)
    }
    for rule, form, prompt in every_form():
        probes = (*prompt.neighborhood, *prompt.distracting)
        assert len(prompt.neighborhood) == len(prompt.distracting) == 2
        assert len({probe.prompt for probe in probes}) == 4
        assert not {probe.prompt for probe in probes} & edited
        assert rule.id not in {probe.rule for probe in probes}
        near = [BY_ID[str(probe.rule)] for probe in prompt.neighborhood]
        assert all(other.domain == rule.domain for other in near)
        of_subject = [other.subject == rule.subject for other in near]
        assert of_subject == sorted(of_subject, reverse=True)
        if (
            form == "formula"
        ):  # an instance may have to leave one out whose number is the edited one
            others = [o for o in EMBEDDED if o.subject == rule.subject and o.domain == rule.domain]
            assert sum(of_subject) == min(2, len(others) - 1), rule.id
        for probe in prompt.distracting:
            assert not occurrences(rule.subject, probe.prompt), (rule.id, probe.prompt)
            assert BY_ID[str(probe.rule)].topic != rule.topic


def test_locality_answers_are_true_and_none_is_what_the_edit_wants() -> None:
    for rule, form, prompt in every_form():
        for probe in (*prompt.neighborhood, *prompt.distracting):
            other = BY_ID[str(probe.rule)]
            last = probe.answer.split(" = ")[-1]
            assert last != prompt.target_new.split(" = ")[-1], (rule.id, probe.prompt)
            if form == "instance":
                assert same(result(other, other.expression_true, probe.values), number(last)), (
                    rule.id,
                    probe.prompt,
                )
                assert Counter(probe.values.values()) <= numbers_in(probe.prompt)
            else:
                assert probe.answer == other.forms[form].target_true[0] and not probe.values


def twin_answer(rule: Rule, form: RuleForm, twin: Twin) -> bool:
    """Whether the answer of a twin is that of its rule, at its own values or at those of this
    rule's instance."""
    other = BY_ID[twin.rule]
    if twin.prompt == other.forms[form].prompt:
        return twin.answer == other.forms[form].target_true[0]
    last = number(twin.answer.split(" = ")[-1])
    values = rule.forms["instance"].values
    return form == "instance" and same(result(other, other.expression_true, values), last)


def test_twins_have_the_true_answer_of_another_rule() -> None:
    for rule, form, prompt in every_form():
        assert len({twin.rule for twin in prompt.twins}) == len(prompt.twins) >= 1
        for twin in prompt.twins:
            assert twin.rule != rule.id and twin.prompt != prompt.prompt
            assert twin.answer not in (prompt.target_true[0], ""), (rule.id, form, twin)
            assert twin_answer(rule, form, twin), (rule.id, form, twin)


def test_embedded_file_is_canonical(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    dump_rules(EMBEDDED, path)
    embedded = Path(__file__).parents[4] / "interp" / "rules" / "rulebook" / "rules.json"
    assert path.read_bytes() == embedded.read_bytes()
    assert load_rules(path).rules == EMBEDDED
    assert load_rules().refused == load_rules().repairs == ()


# Choosing.


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rule file of eight embedded rules, renumbered: r9 and r3 in the training split, the rest
    in the test split."""
    names = ("r10", "r9", "r100", "r2", "r3", "r1", "r20", "r0")
    splits = {"r9": "train", "r3": "train"}
    rules = [
        EMBEDDED[at].model_copy(update={"id": name, "split": splits.get(name, "test")})
        for at, name in enumerate(names)
    ]
    path = tmp_path_factory.mktemp("few") / "few.json"
    dump_rules(rules, path)
    return path


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, "r10 r9 r100 r2 r3 r1 r20 r0"),
        ({"limit": 3}, "r10 r9 r100"),
        ({"limit": 100}, "r10 r9 r100 r2 r3 r1 r20 r0"),
        ({"ids": ["r1", "r9", "r100", "r9"]}, "r9 r100 r1"),
        ({"split": "train"}, "r9 r3"),
        ({"split": "test", "limit": 2}, "r10 r100"),
        ({"ids": ["r3", "r2", "r9", "r0"], "split": "train", "limit": 1}, "r9"),
    ],
)
def test_ids_split_and_limit_filter_in_source_order(
    few: Path, options: dict[str, Any], ids: str
) -> None:
    rules = load_rules(few, **options)
    assert [rule.id for rule in rules] == ids.split()
    assert len(rules) == len(ids.split()) and rules.source == str(few)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0; give at least 1"),
        (
            {"ids": ["r1", "r5", "r4"]},
            "has no usable rule 'r5', 'r4'; its ids are r0, r1, r2, r3, r9, r10, r20, r100",
        ),
        ({"ids": []}, "at least one rule id"),
        ({"ids": "r1"}, "give a list"),
        (
            {"ids": ["r9"], "split": "test"},
            "none of the 1 chosen rules is in the split 'test'; their splits are train",
        ),
        (
            {"split": "validation"},
            "none of the 8 chosen rules is in the split 'validation'; their splits are test, train",
        ),
    ],
)
def test_impossible_choice_raises(few: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuleError, match=re.escape(message)):
        load_rules(few, **options)


def test_an_unknown_embedded_rule_is_answered_with_twenty_known(tmp_path: Path) -> None:
    with pytest.raises(
        RuleError, match=f"'no-such-rule'; its ids are .* and {len(EMBEDDED) - 20} more$"
    ) as caught:
        load_rules(ids=["no-such-rule"])
    listed = str(caught.value).partition("its ids are ")[2].rpartition(" and ")[0].split(", ")
    assert len(set(listed)) == 20 and set(listed) <= BY_ID.keys()


def test_source_that_does_not_exist_raises() -> None:
    with pytest.raises(RuleError, match=re.escape("nowhere.json does not exist; give 'embedded'")):
        load_rules("nowhere.json")


# Rule files.


def minimal_rule() -> dict[str, Any]:
    form = {"prompt": "The area of a circle is", "subject": "circle", "target_new": "r"}
    return {"id": "a", "name": "area of a circle", "subject": "circle", "forms": {"formula": form}}


def rule_file(**changes: Any) -> str:
    return json.dumps({"schema": "dmle.rules/1", "rules": [minimal_rule() | changes]})


BAD_FILES: list[tuple[str | bytes, str]] = [
    ('{"schema": "dmle.rules/1", "rules": [', "invalid JSON at line 1 column 38"),
    ("[1, 2]", "the whole: expected a valid dictionary"),
    (json.dumps({"rules": []}), "schema is missing"),
    (
        json.dumps({"schema": "dmle.rules/9", "rules": []}),
        "schema: expected 'dmle.rules/1', got 'dmle.rules/9'",
    ),
    (rule_file(name=3), "rules[0].name: expected a valid string, got 3"),
    (rule_file(nmae="x"), "rules[0].nmae is not a known key"),
    (rule_file(id="../a"), "rules[0].id"),
    (rule_file(forms={}), "rules[0].forms"),
    (
        rule_file(forms={"formula": {**minimal_rule()["forms"]["formula"], "subject": "square"}}),
        "'square' is not in",
    ),
    (rule_file(split="dev"), "rules[0].split: expected 'train', 'validation' or 'test', got 'dev'"),
    (
        json.dumps({"schema": "dmle.rules/1", "rules": [minimal_rule(), minimal_rule()]}),
        "two rules have the id 'a'",
    ),
    ('{"schema": "dmle.rules/1", "rules": [], "rules": []}', "the key 'rules' occurs twice"),
    ("[" * 100_000, "nested too deeply"),
    (b'{"schema": "\xff"}', "byte 12 is not UTF-8 text"),
    (json.dumps({"schema": "dmle.rules/1", "rules": []}), "holds no usable rule"),
]


@pytest.mark.parametrize(
    ("content", "message"), BAD_FILES, ids=[message for _, message in BAD_FILES]
)
def test_bad_rule_file_raises_one_clear_error(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RuleError, match=re.escape(message)) as caught:
        load_rules(path)
    assert str(path) in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_kind_of_file_raises(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("", encoding="utf-8")
    with pytest.raises(RuleError, match=r"ends in '\.yaml'"):
        load_rules(tmp_path / "rules.yaml")


def test_dump_refuses_two_rules_with_one_id(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="must be unique"):
        dump_rules([EMBEDDED[0], EMBEDDED[0]], tmp_path / "rules.json")
    assert not (tmp_path / "rules.json").exists()


def test_a_sealed_rule_file_is_read_unless_it_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    rules = load_rules("embedded", limit=2).rules
    dump_rules(rules, path, sealed=True)
    assert load_rules(path).rules == rules
    text = path.read_text(encoding="utf-8")
    for changed in (
        text.replace(rules[1].name, "something else"),
        text.replace("test", "train", 1),
    ):
        if changed != text:
            path.write_text(changed, encoding="utf-8")
            with pytest.raises(
                RuleError, match="it was changed; if on purpose, take its entry 'checksum' out"
            ):
                load_rules(path)
    held = json.loads(text)
    held.pop("checksum")
    path.write_text(json.dumps(held), encoding="utf-8")
    assert load_rules(path).rules == rules
