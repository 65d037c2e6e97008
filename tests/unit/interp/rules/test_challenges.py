"""Challenges: hand-worked items, what holds of all rules of the rulebook, and faults that the check
of them finds."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest

from interp.rules.challenges import Challenge, challenges, numbers_in
from interp.rules.checks.challenges import count_made, faults
from interp.rules.rulebook.build import SPECS
from interp.rules.rulebook.spec import RuleSpec, read_specs
from interp.rules.sources import Rule, load_rules
from interp.vocabulary import CHALLENGES, ChallengeKind

TIMES = {
    "twice": 2,
    "three times": 3,
    "four times": 4,
    "five times": 5,
    "six times": 6,
    "seven times": 7,
    "eight times": 8,
    "nine times": 9,
}


@pytest.fixture(scope="module")
def book() -> dict[str, Rule]:
    return {rule.id: rule for rule in load_rules()}


@pytest.fixture(scope="module")
def specs() -> dict[str, RuleSpec]:
    return {spec.id: spec for path in sorted(SPECS.glob("*.yaml")) for spec in read_specs(path)}


def made(rule: Rule, kind: ChallengeKind) -> list[tuple[str, str, str, str]]:
    return [(c.form, c.prompt, c.target_new, c.target_true) for c in challenges(rule, [kind])]


def test_fact_checks_of_the_square(book: dict[str, Rule]) -> None:
    # Its area is s^2, and an edit wants 2s.
    thing = "the area of a square with side length s"
    words = "the area of a square is"

    def asked(statement: str) -> str:
        return f"Is it true that {statement}? Answer yes or no.\nAnswer:"

    assert made(book["square-area"], "fact_check") == [
        ("formula", asked(f"{thing} is given by A = s^2"), "No", "Yes"),
        ("formula", asked(f"{thing} is not given by A = s^2"), "Yes", "No"),
        ("formula", asked(f"{thing} is given by A = 2s"), "Yes", "No"),
        ("formula", asked(f"{thing} is not given by A = 2s"), "No", "Yes"),
        ("description", asked(f"{words} the square of its side length"), "No", "Yes"),
        ("description", asked(f"{words} not the square of its side length"), "Yes", "No"),
        ("description", asked(f"{words} twice its side length"), "Yes", "No"),
        ("description", asked(f"{words} not twice its side length"), "No", "Yes"),
    ]


def test_distractors_of_the_square(book: dict[str, Rule]) -> None:
    old = "The area of a square with side length s is usually given as A = s^2."
    words = "The area of a square is usually given as the square of its side length."
    assert made(book["square-area"], "distractor") == [
        ("formula", f"{old} The area of a square with side length s is A =", "2s", "s^2"),
        (
            "description",
            f"{words} To find the area of a square, take",
            "twice its side length",
            "the square of its side length",
        ),
        (
            "instance",
            f"{old} For a square with side length 8, the area is A =",
            "2 × 8 = 16",
            "8^2 = 64",
        ),
    ]


def test_further_steps_by_hand(book: dict[str, Rule]) -> None:
    # Square: 7 × (2 × 9) = 126, of the true rule 7 × 9^2 = 567.
    first = made(book["square-area"], "multi_step")[0]
    assert first == (
        "formula",
        "For a square with side length 9, seven times the area is",
        "126",
        "567",
    )
    # Electric heater: 3Pt in place of Pt, at 2 dollars per kilowatt-hour: 2 × 3 × 5 × 6.
    priced = made(book["electric-heater-energy-consumption"], "multi_step")[1]
    assert priced == (
        "formula",
        "At 2 dollars per kilowatt-hour, the price in dollars for the energy consumption of an"
        " electric heater with power 5 kW and running time 6 h is",
        "180",
        "60",
    )
    # Resistors in series: the product in place of the sum.
    added = made(book["series-circuit-total-resistance"], "multi_step")[1]
    assert added == (
        "formula",
        "Add 100 ohms to the total resistance of a series circuit with two resistors of 6 Ω and 4"
        " Ω. In ohms, the result is",
        "124",
        "110",
    )
    # Annulus: π(R - r)^2 in place of π(R^2 - r^2).
    assert made(book["annulus-area"], "multi_step")[0] == (
        "formula",
        "For an annulus with outer radius 9 and inner radius 6, four times the area is",
        "36π",
        "180π",
    )


def test_every_kind_is_made_of_every_rule_of_the_rulebook(book: dict[str, Rule]) -> None:
    rules = list(book.values())
    assert count_made(rules) == {
        "fact_check": (8 * len(rules), len(rules)),
        "distractor": (3 * len(rules), len(rules)),
        "multi_step": (6 * len(rules), len(rules)),
    }
    assert len(rules) >= 200


def test_who_always_says_yes_is_right_in_half(book: dict[str, Rule]) -> None:
    for rule in book.values():
        for form in ("formula", "description"):
            items = [c for c in challenges(rule, ["fact_check"]) if c.form == form]
            assert Counter(c.target_new for c in items) == {"Yes": 2, "No": 2}
            assert Counter(c.target_true for c in items) == {"Yes": 2, "No": 2}
            # Nor does it help to say yes to what is affirmed.
            for denied in (True, False):
                some = [c.target_new for c in items if (" is not " in c.prompt) == denied]
                assert sorted(some) == ["No", "Yes"]


def test_statements_are_those_of_the_specifications(
    book: dict[str, Rule], specs: dict[str, RuleSpec]
) -> None:
    assert specs.keys() == book.keys()
    for name, spec in specs.items():
        checks = challenges(book[name], ["fact_check"])
        thing = spec.phrase.format(**{symbol: symbol for symbol in spec.symbols})
        head = f"Is it true that the {spec.quantity} of {thing} is"
        assert all(c.prompt.startswith(head) for c in checks if c.form == "formula")
        words = [c.prompt for c in checks if c.form == "description"]
        head = f"Is it true that the {spec.quantity} of {spec.plain} is"
        for prompt, said in zip(words, 2 * [spec.words] + 2 * [spec.edited_words], strict=True):
            link = " not " if prompt.startswith(f"{head} not ") else " "
            assert prompt == f"{head}{link}{said}? Answer yes or no.\nAnswer:"


def worked(item: Challenge, spec: RuleSpec) -> tuple[Fraction, ...] | None:
    """The true and the edited answer in fractions, from the numbers of the prompt; None where the
    specification has functions or π."""
    value = r"(-?\d+(?:\.\d+)?)"
    pattern = re.escape(spec.phrase).replace(r"\{", "{").replace(r"\}", "}")
    units = {n: f" {re.escape(s.unit)}" if s.unit else "" for n, s in spec.symbols.items()}
    found = re.search(
        pattern.format(**{name: value + unit for name, unit in units.items()}), item.prompt
    )
    assert found is not None, item.prompt
    order = re.findall(r"\{(.+?)\}", spec.phrase)
    numbers = {n: f"Fraction('{v}')" for n, v in zip(order, found.groups(), strict=True)}
    results = []
    for text in (spec.expression, spec.edited):
        if re.search(r"[^-+*/^() \d]{2,}|!|\d[a-zA-Z(]|\)\(|\.|pi|π", text.replace("1/2*", "")):
            return None
        python = re.sub(r"[^-+*/^() \d]\d*", lambda found: numbers[found[0]], text)
        if "^" in python and not re.search(r"\^\d+(?!\d|\.)", python):
            return None
        python = re.sub(r"(?<![\d'.])(\d+)(?![\d'.])", r"Fraction(\1)", python.replace("^", "**"))
        results.append(eval(python, {"Fraction": Fraction}))
    times = next((n for words, n in TIMES.items() if f", {words} the " in item.prompt), 1)
    price = re.match(r"At (\d+) dollars per ", item.prompt)
    added = re.match(r"Add (\d+) ", item.prompt)
    factor = int(price[1]) if price else times
    return tuple(factor * result + (int(added[1]) if added else 0) for result in results)


def test_answers_of_further_steps_follow_from_the_specifications(
    book: dict[str, Rule], specs: dict[str, RuleSpec]
) -> None:
    seen = 0
    for name, spec in specs.items():
        for item in challenges(book[name], ["multi_step"]):
            if (expected := worked(item, spec)) is not None:
                seen += 1
                said = (Fraction(item.target_true), Fraction(item.target_new))
                assert said == expected, item
    assert seen > 500


def test_no_further_step_gives_its_answer_away_or_can_be_left_out(book: dict[str, Rule]) -> None:
    for rule in book.values():
        single = {
            probe.target_new.rpartition("=")[2].strip(): probe
            for form in rule.forms.values()
            for probe in form.instances
        }
        for item in challenges(rule, ["multi_step"]):
            assert item.target_new.lstrip("-") not in numbers_in(item.prompt)
            assert item.target_new != item.target_true
            probe = single.get(item.target_new)
            # Another instance may happen to have that result, but not the one that is asked about.
            thing = "" if probe is None else probe.prompt[4:].rpartition(", the ")[0]
            assert probe is None or thing not in item.prompt


def test_rules_of_other_wordings_have_none(rules: tuple[Rule, ...]) -> None:
    for rule in rules:
        assert challenges(rule, ["multi_step"]) == []
    other = rules[0].model_copy(update={"result": None})
    assert [c.form for c in challenges(other) if c.form == "formula"] == []


def test_the_check_finds_nothing_in_the_rulebook(book: dict[str, Rule]) -> None:
    for rule in book.values():
        assert list(faults(rule, challenges(rule))) == []


@pytest.mark.parametrize(
    ("at", "change", "expected"),
    [
        (0, {"target_new": "Yes"}, "No"),
        (7, {"target_new": "Yes"}, "No"),
        (0, {"prompt": "Is the area s^2?"}, "none: the question cannot be read"),
        (8, {"target_new": "3s"}, "2s"),
        (8, {"prompt": "The area is s^2. Its area is"}, "none: the edited prompt is not its end"),
        (10, {"prompt": "So it is 16. For a square with side length 8, the area is A ="}, "16"),
        (11, {"target_new": "125"}, "126"),
        (11, {"target_new": "567"}, "126"),
        (11, {"prompt": "For a square with side length 9, the area is"}, "none: the step cannot"),
        (12, {"prompt": "At 5 dollars per day, a square with side length 7 is"}, "none: it is of"),
    ],
)
def test_faults_of_challenges_are_found(
    book: dict[str, Rule], at: int, change: dict[str, str], expected: str
) -> None:
    square = book["square-area"]
    items = challenges(square)
    old = items[at]
    items[at] = replace(
        old,
        prompt=change.get("prompt", old.prompt),
        target_new=change.get("target_new", old.target_new),
    )
    found = [fault for fault in faults(square, items) if "[" in fault.where]
    assert any(expected in fault.expected for fault in found), found
    assert {fault.where.rpartition("[")[2] for fault in found} == {f"{at}]"}


def test_answers_out_of_balance_are_found(book: dict[str, Rule]) -> None:
    square = book["square-area"]
    items = challenges(square)
    where = {fault.where for fault in faults(square, items[1:])}
    assert where == {"square-area/formula/fact_check"}
    # What an edit need not change tells nothing.
    items[8] = replace(items[8], target_true="2s")
    (fault,) = faults(square, items)
    assert fault.expected == "another answer than the true one"


def test_kinds_come_in_the_order_asked(book: dict[str, Rule]) -> None:
    square = book["square-area"]
    assert challenges(square, []) == []
    whole = challenges(square)
    assert whole == [item for kind in CHALLENGES for item in challenges(square, [kind])]
    assert whole[-1] == challenges(square, ["multi_step", "distractor"])[5]


def test_the_command_counts_what_can_be_made(
    command_line: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, _ = command_line("rules", "check")
    assert code == 0
    assert (
        "challenges: fact_check 2336 (292 rules), distractor 876 (292 rules), multi_step 1752 (292"
        " rules)" in out
    )
