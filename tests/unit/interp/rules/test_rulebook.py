"""The rulebook: rules from specifications. The embedded file built again, and made-up
specifications by hand."""

import itertools
import re
import string
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import yaml

from interp.rules.rulebook.build import SPECS, build, build_files, split_of
from interp.rules.rulebook.spec import RuleSpec, SymbolSpec, article, decimal, read_specs
from interp.rules.sources import Rule, RuleError, dump_rules, load_rules
from interp.vocabulary import FORMS

EMBEDDED = load_rules().rules
BY_ID = {rule.id: rule for rule in EMBEDDED}

# A specification in nine lines, with ten combinations of values: as many as a rule needs, so all
# are used.
SLED = """
- subject: sled
  quantity: kinetic energy
  phrase: a sled with mass {m} and speed {v}
  result: E [J]
  symbols: {m: '2, 4 [kg]', v: '1..5 [m/s]'}
  expression: 1/2*m*v^2
  edited: m*v^2
  words: half its mass times its speed squared
  edited_words: its mass times its speed squared
"""
TRUE = dict(
    zip(
        itertools.product((2, 4), (1, 2, 3, 4, 5)), (1, 4, 9, 16, 25, 2, 8, 18, 32, 50), strict=True
    )
)
EDITED = {key: 2 * value for key, value in TRUE.items()}


def spec_file(
    folder: Path, rules: str | list[Any], domain: Any = "physics", name: str = "mine.yaml"
) -> Path:
    rules = yaml.safe_load(rules) if isinstance(rules, str) else rules
    content = {"domain": domain, "topic": "motion", "rules": rules}
    (folder / name).write_text(
        yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8"
    )
    return folder / name


def sled(**changes: Any) -> dict[str, Any]:
    """The fields of the sled's specification, with changes; None takes a field out."""
    fields = {**yaml.safe_load(SLED)[0], **changes}
    return {name: value for name, value in fields.items() if value is not None}


def specs_of(folder: Path, *fields: dict[str, Any], domain: str = "mathematics") -> list[RuleSpec]:
    return read_specs(spec_file(folder, list(fields), domain))


# The embedded rulebook.


@pytest.fixture(scope="session")
def built() -> list[Rule]:
    """All specifications built again; takes most of the time of this module."""
    return build_files()


@pytest.mark.slow
@pytest.mark.xdist_group("rulebook")
def test_building_again_gives_the_embedded_file_byte_for_byte(
    built: list[Rule], tmp_path: Path
) -> None:
    dump_rules(built, tmp_path / "rules.json")
    embedded = Path(__file__).parents[4] / "interp" / "rules" / "rulebook" / "rules.json"
    assert (tmp_path / "rules.json").read_bytes() == embedded.read_bytes()


@pytest.mark.slow
@pytest.mark.xdist_group("rulebook")
def test_every_specification_becomes_a_rule_in_order(built: list[Rule]) -> None:
    files = [
        yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(SPECS.glob("*.yaml"))
    ]
    specs = [
        {"domain": file["domain"], "topic": file["topic"], **fields}
        for file in files
        for fields in file["rules"]
    ]
    for rule, spec in zip(built, specs, strict=True):
        assert (rule.domain, rule.topic, rule.subject) == (
            spec["domain"],
            spec["topic"],
            spec["subject"],
        )
        assert (rule.expression_true, rule.expression_new) == (spec["expression"], spec["edited"])
        assert (
            rule.name == f"{spec['quantity']} of"
            f" {spec.get('plain', f'{article(rule.subject)} {rule.subject}')}"
        )
        description, formula = rule.forms["description"], rule.forms["formula"]
        assert (description.target_true, description.target_new) == (
            (spec["words"],),
            spec["edited_words"],
        )
        assert set(spec.get("also", ())) <= set(formula.target_true)
        symbols = {name: SymbolSpec.model_validate(text) for name, text in spec["symbols"].items()}
        assert {symbol.name: symbol.unit for symbol in rule.symbols} == {
            n: s.unit for n, s in symbols.items()
        }
        # The numbers are among those that the specification allows.
        allowed = {
            name: {float(value) for value in symbol.values} for name, symbol in symbols.items()
        }
        for item in (
            rule.forms["instance"],
            *(p for form in rule.forms.values() for p in form.instances),
        ):
            assert all(value in allowed[name] for name, value in item.values.items())


def test_the_rulebook_is_large_and_varied() -> None:
    domains = Counter(rule.domain for rule in EMBEDDED)
    assert len(EMBEDDED) >= 200 and domains["mathematics"] >= 120 and domains["physics"] >= 60
    assert len({rule.subject for rule in EMBEDDED}) >= 120


def test_no_two_rules_are_of_the_same_quantity() -> None:
    """The description asks for the quantity of the subject and for nothing else."""
    asked = Counter(rule.forms["description"].prompt.lower() for rule in EMBEDDED)
    assert all(count == 1 for count in asked.values())
    quantities = [
        (rule.subject.lower(), rule.name.lower().rpartition(" of ")[0]) for rule in EMBEDDED
    ]
    assert len(set(quantities)) == len(EMBEDDED)
    assert len({rule.id for rule in EMBEDDED}) == len(EMBEDDED)


def test_every_form_has_what_evaluates_an_edit() -> None:
    for rule in EMBEDDED:
        for form in FORMS:
            prompt = rule.forms[form]
            assert len({probe.prompt for probe in prompt.instances}) >= 4
            assert {probe.wording for probe in prompt.understanding} == {"verbatim", "paraphrase"}
            assert prompt.rephrasings and prompt.neighborhood and prompt.distracting, (
                rule.id,
                form,
            )


def test_no_locality_prompt_is_an_edited_prompt() -> None:
    edited = {form.prompt for rule in EMBEDDED for form in rule.forms.values()}
    probes = [
        probe.prompt
        for rule in EMBEDDED
        for form in rule.forms.values()
        for probe in (*form.neighborhood, *form.distracting)
    ]
    assert len(probes) >= 4 * 3 * 200 and not edited & set(probes)


def test_a_twin_has_as_many_words_where_there_is_one() -> None:
    aligned = 0
    for form in FORMS:
        prompts = {
            rule.id: (rule.forms[form].prompt, rule.forms[form].target_true[0]) for rule in EMBEDDED
        }
        for rule in EMBEDDED:
            own, answer = prompts[rule.id]
            lengths = [
                abs(len(twin.prompt.split()) - len(own.split())) for twin in rule.forms[form].twins
            ]
            assert lengths == sorted(lengths)
            candidates = [
                text
                for id_, (text, other) in prompts.items()
                if id_ != rule.id
                and text != own
                and other != answer
                and len(text.split()) == len(own.split())
            ]
            if candidates:
                assert lengths[0] == 0, (rule.id, form)
                aligned += 1
    assert aligned > 2 * len(EMBEDDED)


# Splits.


def test_a_split_follows_from_the_subject_alone() -> None:
    assert all(rule.split == split_of(rule.subject) for rule in EMBEDDED)
    assert split_of("Rectangle") == split_of("rectangle")
    words = [
        a + b + c for a in string.ascii_lowercase for b in string.ascii_lowercase for c in "aeiou"
    ]
    shares = Counter(split_of(word) for word in words)
    # Of 3380 subjects, within four standard deviations (28 and 23) of 40, 20 and 40 of 100.
    assert abs(shares["train"] - 1352) < 114 and abs(shares["validation"] - 676) < 93
    assert abs(shares["test"] - 1352) < 114


def test_a_new_specification_moves_no_other_rule(tmp_path: Path) -> None:
    path = SPECS / "everyday.yaml"
    some = read_specs(path)
    more = build([*specs_of(tmp_path, sled(), domain="physics"), *some])
    assert len(more) == len(some) + 1 >= 10
    for rule in more[1:]:
        embedded = BY_ID[rule.id]
        assert rule.split == embedded.split
        for form in FORMS:
            ours, theirs = rule.forms[form], embedded.forms[form]
            same = (
                "prompt",
                "target_new",
                "target_true",
                "rephrasings",
                "values",
                "instances",
                "understanding",
            )
            assert all(getattr(ours, name) == getattr(theirs, name) for name in same), (
                rule.id,
                form,
            )


def test_building_is_the_same_in_any_order_but_for_the_order(tmp_path: Path) -> None:
    specs = read_specs(SPECS / "everyday.yaml")
    assert build(specs[::-1])[::-1] == build(specs)


# A specification worked by hand.


@pytest.fixture(scope="module")
def sled_rule(tmp_path_factory: pytest.TempPathFactory) -> Rule:
    (rule,) = build_files([spec_file(tmp_path_factory.mktemp("specs"), SLED)])
    return rule


def test_the_sled_s_formula_is_as_written_by_hand(sled_rule: Rule) -> None:
    assert (sled_rule.id, sled_rule.name) == ("sled-kinetic-energy", "kinetic energy of a sled")
    assert (sled_rule.subject, sled_rule.domain, sled_rule.topic) == ("sled", "physics", "motion")
    assert sled_rule.rule_words == ("kinetic", "energy")
    assert (sled_rule.expression_true, sled_rule.expression_new) == ("1/2*m*v^2", "m*v^2")
    assert sled_rule.result is not None and (sled_rule.result.name, sled_rule.result.unit) == (
        "E",
        "J",
    )
    assert [(symbol.name, symbol.unit) for symbol in sled_rule.symbols] == [
        ("m", "kg"),
        ("v", "m/s"),
    ]
    form = sled_rule.forms["formula"]
    assert form.prompt == "The kinetic energy of a sled with mass m and speed v is E ="
    assert (form.target_true, form.target_new) == (("(1/2)mv^2",), "mv^2")
    assert form.rephrasings == (
        "Written as a formula, the kinetic energy of a sled with mass m and speed v is E =",
        "For a sled with mass m and speed v, the formula for the kinetic energy is E =",
    )
    assert form.subject == "sled" and form.values == {}


def test_the_sled_s_description_is_as_written_by_hand(sled_rule: Rule) -> None:
    form = sled_rule.forms["description"]
    assert form.prompt == "To find the kinetic energy of a sled, take"
    assert form.target_true == ("half its mass times its speed squared",)
    assert form.target_new == "its mass times its speed squared"
    assert form.rephrasings == (
        "In words, the kinetic energy of a sled is",
        "The kinetic energy of a sled is found by taking",
    )


def key(values: dict[str, float]) -> tuple[Any, Any]:
    assert set(values) == {"m", "v"}
    return int(values["m"]), int(values["v"])


def test_the_sled_s_instances_are_as_written_by_hand(sled_rule: Rule) -> None:
    forms, used = sled_rule.forms, []
    for item in (forms["instance"], *forms["formula"].instances, *forms["instance"].instances):
        m, v = key(item.values)
        used.append((m, v))
        assert (
            item.prompt
            == f"For a sled with mass {m} kg and speed {v} m/s, the kinetic energy in joules is E ="
        )
        true, edited = TRUE[m, v], EDITED[m, v]
        assert item.target_true == (f"1/2 × {m} × {v}^2 = {true}", str(true))
        assert item.target_new == f"{m} × {v}^2 = {edited}"
    assert len(set(used)) == 9 and set(used) <= set(TRUE)
    assert forms["description"].instances == forms["formula"].instances
    m, v = key(forms["instance"].values)
    assert forms["instance"].rephrasings == (
        f"The kinetic energy in joules of a sled with mass {m} kg and speed {v} m/s is E =",
        (
            f"Given a sled with mass {m} kg and speed {v} m/s, compute the kinetic energy in"
            " joules: E ="
        ),
    )


def test_the_sled_s_understanding_is_as_written_by_hand(sled_rule: Rule) -> None:
    m, v = key(sled_rule.forms["instance"].values)
    number = (
        f"{m} × {v}^2 = {EDITED[m, v]}",
        (f"1/2 × {m} × {v}^2 = {TRUE[m, v]}", str(TRUE[m, v])),
    )
    words = ("its mass times its speed squared", ("half its mass times its speed squared",))
    asked = {
        "formula": [
            (
                (
                    "In symbols, one computes the kinetic energy of a sled with mass m and speed v"
                    " as E ="
                ),
                "mv^2",
                ("(1/2)mv^2",),
            )
        ],
        "description": [("You get the kinetic energy of a sled if you take", *words)],
        "instance": [
            (
                (
                    f"Suppose you have a sled with mass {m} kg and speed {v} m/s. Then the kinetic"
                    " energy in joules is E ="
                ),
                *number,
            )
        ],
    }
    for form in FORMS:
        found = sled_rule.forms[form].understanding
        wanted = [item for other in FORMS if other != form for item in asked[other]]
        paraphrased = [
            (p.prompt, p.target_new, p.target_true) for p in found if p.wording == "paraphrase"
        ]
        assert paraphrased == wanted
        verbatim = {
            p.prompt: (p.target_new, p.target_true) for p in found if p.wording == "verbatim"
        }
        others = [sled_rule.forms[other] for other in FORMS if other != form]
        assert verbatim == {other.prompt: (other.target_new, other.target_true) for other in others}
    # Alone in its file, it has no other rule to leave alone or to stand beside.
    assert all(not (f.neighborhood or f.distracting or f.twins) for f in sled_rule.forms.values())


def rectangle(
    quantity: str, result: str, expression: str, edited: str, words: str, **changes: Any
) -> dict[str, Any]:
    return {
        "subject": "rectangle",
        "quantity": quantity,
        "phrase": "a rectangle with length {l} and width {w}",
        "result": result,
        "symbols": {"l": "5..9", "w": "2..4"},
        "expression": expression,
        "edited": edited,
        "words": words,
        "edited_words": f"not {words}",
        **changes,
    }


AREA = rectangle("area", "A", "l*w", "2*(l + w)", "length times width")
PERIMETER = rectangle("perimeter", "P", "2*(l + w)", "l + w", "twice the sum of length and width")
CIRCLE = {
    "subject": "circle",
    "quantity": "area",
    "phrase": "a circle with radius {r}",
    "result": "A",
    "symbols": {"r": "2..20"},
    "expression": "pi*r^2",
    "edited": "2*pi*r^2",
    "words": "pi times the radius squared",
    "edited_words": "twice pi times the radius squared",
    "also": ["r^2 * pi"],
}


def test_locality_asks_for_other_rules_and_never_for_what_the_edit_wants(tmp_path: Path) -> None:
    # Numbers for which no edited area, 2(l + w) of 64 and more, is an energy of the sled, which is
    # 50 or less.
    large = AREA | {"symbols": {"l": "30..34", "w": "2..4"}}
    specs = specs_of(tmp_path, large, PERIMETER, CIRCLE) + [
        spec.model_copy(update={"topic": "motion of things"})
        for spec in specs_of(tmp_path, sled(), domain="physics")
    ]
    area = build(specs)[0]
    # The edited formula of the area, 2(l + w), is the true one of the perimeter: not asked as
    # locality.
    formula = {probe.rule: probe for probe in area.forms["formula"].neighborhood}
    assert set(formula) == {"circle-area"}
    assert (
        formula["circle-area"].prompt
        == "State the formula for the area of a circle with radius r: A ="
    )
    assert formula["circle-area"].answer == "πr^2"
    description = area.forms["description"].neighborhood
    assert [probe.rule for probe in description] == ["rectangle-perimeter", "circle-area"]
    assert description[0].prompt == "Put in words, the perimeter of a rectangle equals"
    assert description[0].answer == "twice the sum of length and width"
    # Distracting: another topic, subject and quantity.
    (far,) = area.forms["instance"].distracting
    m, v = key(far.values)
    assert far.rule == "sled-kinetic-energy"
    assert (
        far.prompt
        == f"Calculate the kinetic energy in joules of a sled with mass {m} kg and speed {v}"
        " m/s: E ="
    )
    assert far.answer == f"1/2 × {m} × {v}^2 = {TRUE[m, v]}"


def test_twins_are_other_rules_in_the_same_words(tmp_path: Path) -> None:
    area, perimeter, circle = build(specs_of(tmp_path, AREA, PERIMETER, CIRCLE))
    twin = area.forms["formula"].twins[0]
    assert twin.rule == "rectangle-perimeter" and twin.answer == "2(l + w)"
    assert twin.prompt == "The perimeter of a rectangle with length l and width w is P ="
    # Of the same shape, an instance's twin has the same numbers.
    l, w = (int(area.forms["instance"].values[name]) for name in "lw")  # noqa: E741
    twin = area.forms["instance"].twins[0]
    assert twin.prompt == f"For a rectangle with length {l} and width {w}, the perimeter is P ="
    assert twin.answer == f"2 × ({l} + {w}) = {2 * (l + w)}"
    assert [twin.rule for twin in circle.forms["description"].twins] == [
        "rectangle-area",
        "rectangle-perimeter",
    ]
    assert perimeter.forms["description"].twins[0].answer == "length times width"


def test_the_true_formula_is_accepted_in_its_other_writings(tmp_path: Path) -> None:
    (circle,) = build(specs_of(tmp_path, CIRCLE))
    assert circle.forms["formula"].target_true == ("πr^2", "r^2 * pi")
    assert circle.forms["formula"].target_new == "2πr^2"
    r = int(circle.forms["instance"].values["r"])
    assert circle.forms["instance"].target_true == (f"π × {r}^2 = {r * r}π", f"{r * r}π")


def used_values(rule: Rule, name: str) -> list[float]:
    items = (
        rule.forms["instance"],
        *rule.forms["formula"].instances,
        *rule.forms["instance"].instances,
    )
    return [item.values[name] for item in items]


def test_values_are_used_only_where_no_result_is_rounded(tmp_path: Path) -> None:
    thirds = rectangle("share", "s", "l*w/3", "l*w/3 + 1/4", "x", symbols={"l": "1..60", "w": "2"})
    (rule,) = build(specs_of(tmp_path, thirds))
    for item in (
        rule.forms["instance"],
        *rule.forms["formula"].instances,
        *rule.forms["instance"].instances,
    ):
        l = int(item.values["l"])  # noqa: E741
        assert l % 3 == 0
        assert item.target_true == (f"{l} × 2 / 3 = {2 * l // 3}", str(2 * l // 3))
        assert item.target_new == f"{l} × 2 / 3 + 1/4 = {2 * l // 3}.25"


def test_results_of_more_than_seven_digits_are_not_used(tmp_path: Path) -> None:
    cube = rectangle("cube", "c", "l^3 + w", "l^2 + w", "x", symbols={"l": "200..230", "w": "0"})
    (rule,) = build(specs_of(tmp_path, cube))
    assert (
        max(used_values(rule, "l")) <= 215 < 216
    )  # 215³ = 9938375, and 216³ = 10077696 has eight digits


def test_results_of_a_rule_differ_where_there_are_enough(tmp_path: Path) -> None:
    (rule,) = build(specs_of(tmp_path, AREA | {"symbols": {"l": "2..30", "w": "2..30"}}))
    items = (
        rule.forms["instance"],
        *rule.forms["formula"].instances,
        *rule.forms["instance"].instances,
    )
    assert len({item.target_true[-1] for item in items}) == 9
    assert len({item.target_new.rpartition(" = ")[2] for item in items}) == 9


# Reading a specification.


@pytest.mark.parametrize(
    ("text", "values", "unit"),
    [
        ("3..6", [3, 4, 5, 6], ""),
        ("0.5..2 step 0.5 [s]", [Fraction(1, 2), 1, Fraction(3, 2), 2], "s"),
        ("1..6 step 2", [1, 3, 5], ""),
        ("2, 4, 8.5 [kg*m/s^2]", [2, 4, Fraction(17, 2)], "kg*m/s^2"),
        ("7", [7], ""),
        (7, [7], ""),
        (2.5, [Fraction(5, 2)], ""),
        (" 4 .. 5 [%] ", [4, 5], "%"),
        ("[N]", [], "N"),
    ],
)
def test_values_are_read_exactly(text: object, values: list[Fraction | int], unit: str) -> None:
    symbol = SymbolSpec.model_validate(text)
    assert list(symbol.values) == values and symbol.unit == unit


def test_decimals_and_articles() -> None:
    assert [decimal(Fraction(n, d)) for n, d in ((5, 2), (4, 1), (1, 8), (-3, 4))] == [
        "2.5",
        "4",
        "0.125",
        "-0.75",
    ]
    assert [article(noun) for noun in ("ellipse", "Octahedron", "cone")] == ["an", "an", "a"]


def test_plain_and_id_are_made_from_the_subject_unless_given(tmp_path: Path) -> None:
    (ours,) = specs_of(
        tmp_path, sled(subject="ice sled", phrase="an ice sled with {m} and {v}"), domain="physics"
    )
    assert (ours.plain, ours.id) == ("an ice sled", "ice-sled-kinetic-energy")
    given = sled(plain="the fast sled", id="fast-sled")
    (ours,) = specs_of(tmp_path, given, domain="physics")
    assert (ours.plain, ours.id) == ("the fast sled", "fast-sled")
    (rule,) = build([ours])
    assert (rule.id, rule.forms["description"].prompt) == (
        "fast-sled",
        "To find the kinetic energy of the fast sled, take",
    )


# Mistakes. Each: what is changed in the sled's specification, and what is said after the file, the
# rule's number and its name.

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown symbol": ({"expression": "1/2*m*u^2"}, "'u' is not a known symbol"),
    "unknown symbol, edited": ({"edited": "m*q^2"}, "'q' is not a known symbol"),
    "no expression": ({"expression": "1/2*m*"}, "'1/2*m*' is not an expression"),
    "a call": (
        {"expression": "__import__('os')"},
        "has '_' where a number, a name or an operator is read",
    ),
    "division by zero": ({"edited": "m/(v - v)"}, "division by zero"),
    "no subject in the phrase": (
        {"phrase": "a sledge with mass {m} and speed {v}"},
        (
            "the subject 'sled' must be in 'a sledge with mass {m} and speed {v}' once, as a word"
            " of its own"
        ),
    ),
    "two subjects": (
        {"plain": "a sled on a sled"},
        "the subject 'sled' must be in 'a sled on a sled' once",
    ),
    "edited is true": (
        {"edited": "v^2*m/2"},
        "edited 'v^2*m/2' says the same as the expression '1/2*m*v^2'",
    ),
    "also is not": ({"also": ["m*v^2"]}, "also: 'm*v^2' differs from the expression '1/2*m*v^2'"),
    "wrong dimensions": (
        {"expression": "1/2*m*v"},
        "the expression gives m kg s^-1, and J is m^2 kg s^-2",
    ),
    "wrong sum": ({"expression": "m + v"}, "m is kg, v is m s^-1: no sum of them"),
    "unknown unit": (
        {"symbols": {"m": "2, 4 [stone]", "v": "1..5 [m/s]"}},
        "the unit 'stone' is not known",
    ),
    "units run together": (
        {"symbols": {"m": "2, 4 [kgg]", "v": "1..5 [m/s]"}},
        "the unit 'kgg' is not known",
    ),
    "no prefix": ({"domain": "mathematics", "result": "E [ms]"}, "the unit 'ms' is not known"),
    "unknown unit of the result": ({"result": "E [Joule]"}, "the unit 'Joule' is not known"),
    "empty range": (
        {"symbols": {"m": "4..2 [kg]", "v": "1..5 [m/s]"}},
        "symbols.m: .*the range '4..2' is empty",
    ),
    "no step": (
        {"symbols": {"m": "2..4 step 0 [kg]", "v": "1 [m/s]"}},
        "the range '2..4 step 0' is empty",
    ),
    "no numbers": ({"symbols": {"m": "few [kg]", "v": "1 [m/s]"}}, "symbols.m: .*'few'"),
    "open bracket": (
        {"symbols": {"m": "2 [kg", "v": "1 [m/s]"}},
        "symbols.m: .*'2 [kg' is not a range",
    ),
    "no values": (
        {"symbols": {"m": "[kg]", "v": "1..5 [m/s]"}},
        "symbol m has no values; give a range such as",
    ),
    "list of values": ({"symbols": {"m": [2, 4], "v": "1 [m/s]"}}, "symbols.m: "),
    "symbol not in the phrase": (
        {"phrase": "a sled with mass {m}"},
        "phrase has the symbols ['m'], and symbols are ['m', 'v']: name each once",
    ),
    "symbol twice in the phrase": (
        {"phrase": "a sled with mass {m}, {m} and speed {v}"},
        "phrase has the symbols ['m', 'm', 'v'], and symbols are ['m', 'v']",
    ),
    "open brace": ({"phrase": "a sled with {m and {v}"}, "'{' in field name"),
    "missing field": ({"words": None}, "words: Field required"),
    "unknown field": ({"wrods": "x"}, "wrods: Extra inputs are not permitted"),
    "no symbols": ({"symbols": {}}, "symbols: "),
    "text for a list": ({"also": "m*v^2/2"}, "also: "),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_a_mistake_in_a_specification_names_the_rule_and_the_fault(
    mistake: str, tmp_path: Path
) -> None:
    changes, message = MISTAKES[mistake]
    path = spec_file(
        tmp_path, [sled(subject="cart", phrase="a cart with {m} and {v}"), sled(**changes)]
    )
    # Words of the library stand where a `.*` is.
    said = ".*".join(re.escape(part) for part in message.split(".*"))
    where = re.escape(f"{path}, rule 2 (sled, kinetic energy): ")
    with pytest.raises(RuleError, match=where + ".*" + said):
        build_files([path])


@pytest.mark.parametrize(
    "changes",
    [
        {"symbols": {"m": "1/0, 2 [kg]", "v": "1..5 [m/s]"}},
        {"symbols": {"m": "1/3, 2, 4 [kg]", "v": "1..5 [m/s]"}},
        {"id": "../sled"},
        {"subject": "σ", "quantity": "ε", "phrase": "a σ with mass {m} and speed {v}"},
        {"result": "[J]"},
        {"words": ""},
        {"edited_words": ""},
        {"edited_words": "half its mass times its speed squared"},
    ],
    ids=[
        "over zero",
        "no decimal",
        "id",
        "no letters",
        "result",
        "words",
        "edited words",
        "same words",
    ],
)
def test_these_mistakes_name_the_rule_and_the_fault(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RuleError, match=r"rule (1 \(|sled-kinetic-energy)"):
        build_files([spec_file(tmp_path, [sled(**changes)])])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"symbols": {"m": "2 [kg]", "v": "1..9 [m/s]"}},
            (
                "rule sled-kinetic-energy has 9 combinations of values whose true and edited"
                " results are exact, short and different; 10 are needed: widen its ranges"
            ),
        ),
        # Of 1..29, the multiples of 3.
        (
            {"symbols": {"m": "2 [kg]", "v": "1..29 [m/s]"}, "expression": "1/3*m*v^2"},
            "rule sled-kinetic-energy has 9 combinations of values whose",
        ),
        # Where v is 2, both results are equal.
        (
            {"symbols": {"m": "2..12 [kg]", "v": "2 [m/s]"}, "edited": "m*v"},
            "rule sled-kinetic-energy has 0 combinations of values whose",
        ),
        (
            {"symbols": {"m": "1..300 [kg]", "v": "1..300 [m/s]"}},
            "rule sled-kinetic-energy has 90000 combinations of values; narrow its ranges to 50000",
        ),
    ],
    ids=["few", "few exact", "none different", "too many"],
)
def test_values_that_give_no_instances_name_the_rule(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = spec_file(tmp_path, [sled(**changes)])
    with pytest.raises(RuleError, match=re.escape(message)):
        build_files([path])


def test_two_specifications_of_one_quantity_are_refused(tmp_path: Path) -> None:
    first = spec_file(tmp_path, SLED, name="a.yaml")
    again = spec_file(
        tmp_path, [sled(subject="Sled", phrase="a Sled {m} {v}", edited="3*m*v^2")], name="b.yaml"
    )
    with pytest.raises(
        RuleError, match="2 specifications have the subject and quantity of 'sled-kinetic-energy'"
    ):
        build_files([first, again])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rules: [", "cannot be read: "),
        (b"rules: {a: 1, a: [}", "cannot be read: "),
        (b"domain: \xff", "cannot be read: "),
        (b"", "is not a specification file: 'domain', 'topic' and a list 'rules' are needed"),
        (b"- subject: sled", "is not a specification file"),
        (b"domain: physics", "is not a specification file"),
        (b"rules: {subject: sled}", "is not a specification file"),
        (b"rules: [sled]", "rule 1 (sled): "),
        (b"rules: [null]", "rule 1 (None): "),
        (b"domain: physics\nrules: [{}]", "rule 1 (None, None): subject: Field required"),
        (b"domain: [physics]\nrules: [{subject: sled}]", "rule 1 (sled, None): "),
    ],
)
def test_a_bad_specification_file_raises(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(RuleError, match=re.escape(message)) as caught:
        build_files([tmp_path / "mine.yaml"])
    assert str(tmp_path / "mine.yaml") in str(caught.value)


def test_a_specification_file_that_is_not_there_raises(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match=r"none\.yaml cannot be read: "):
        build_files([tmp_path / "none.yaml"])
