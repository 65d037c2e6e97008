"""Edit requests: one per form, and where each looks its key up."""

import pytest

from editing.edits.requests import EditRequest, of_forms, requests_of, words_of
from interp.rules.sources import Rule, RulePrompt, load_rules

FORMULA = "The perimeter of a rectangle, whose perimeter is P, can be calculated by"


def rule(**prompts: str) -> Rule:
    forms = {
        form: RulePrompt(prompt=prompt, subject="rectangle", target_new=f"new {form}")
        for form, prompt in prompts.items()
    }
    return Rule.model_validate(
        {"id": "r", "name": "perimeter of a rectangle", "subject": "rectangle", "forms": forms}
    )


def test_requests_of_makes_one_request_per_form_in_order() -> None:
    got = requests_of(
        rule(instance="A rectangle of 3:", formula="The rectangle perimeter:"), "subject_last"
    )
    assert got == [
        EditRequest(
            "r", "instance", "A rectangle of 3:", "rectangle", ("perimeter",), "new instance"
        ),
        EditRequest(
            "r", "formula", "The rectangle perimeter:", "rectangle", ("perimeter",), "new formula"
        ),
    ]


@pytest.mark.parametrize(
    ("lookup", "words"),
    [("subject_last", "rectangle"), ("rule_word_last", "perimeter"), ("last", "y")],
)
def test_lookup_span_covers_the_words_looked_up(lookup: str, words: str) -> None:
    request = requests_of(rule(formula=FORMULA), lookup)[0]
    first, last = request.lookup_span(lookup)
    assert FORMULA[first:last] == words
    where = {
        "subject_last": FORMULA.index,
        "rule_word_last": FORMULA.rindex,
        "last": FORMULA.rindex,
    }[lookup]
    assert first == where(words)


def test_lookup_span_of_the_subject_takes_its_first_mention() -> None:
    request = requests_of(rule(formula="A rectangle is a rectangle:"), "subject_last")[0]
    assert request.lookup_span("subject_last") == (2, 11)


def test_requests_of_refuses_a_prompt_without_the_lookup() -> None:
    made = rule(formula="The rectangle perimeter:", instance="A rectangle of 3:")
    with pytest.raises(
        ValueError, match=r"\('perimeter',\).*'A rectangle of 3:'.*use lookup subject_last"
    ):
        requests_of(made, "rule_word_last")


def test_requests_of_refuses_an_unknown_lookup_and_names_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match="'subject_first'; use subject_last, rule_word_last, mention_last or last"
    ):
        requests_of(rule(formula="A rectangle:"), "subject_first")


def test_requests_of_serves_every_form_of_every_embedded_rule() -> None:
    for one in load_rules().rules:
        requests = requests_of(one, "subject_last")
        assert [r.form for r in requests] == list(one.forms)
        for request in requests:
            first, last = request.lookup_span("subject_last")
            assert request.prompt[first:last] == request.subject == one.forms[request.form].subject


def test_of_forms_keeps_the_order_of_the_requests() -> None:
    requests = requests_of(
        rule(instance="rectangle 1", description="rectangle 2", formula="rectangle 3"), "last"
    )
    assert [r.form for r in of_forms(requests, ("formula", "instance"))] == ["instance", "formula"]
    assert of_forms(requests, ()) == []


def test_words_of_asks_for_the_next_word_behind_those_before() -> None:
    whole = EditRequest(
        "r", "formula", "The rectangle perimeter:", "rectangle", ("perimeter",), "P = x + y."
    )
    got = words_of(whole)
    assert [r.prompt for r in got] == [
        "The rectangle perimeter:",
        "The rectangle perimeter: P",
        "The rectangle perimeter: P =",
        "The rectangle perimeter: P = x",
        "The rectangle perimeter: P = x +",
    ]
    assert [r.target_new for r in got] == ["P", "=", "x", "+", "y."]
    assert {(r.rule, r.form, r.subject) for r in got} == {("r", "formula", "rectangle")}
    rest = words_of(whole, rest=True)
    assert [r.behind for r in rest] == [tuple(got[i:]) for i in range(1, 6)]
    assert [r.record() for r in rest] == [r.record() for r in got]


def test_an_answer_of_one_word_is_one_request() -> None:
    whole = EditRequest("r", "instance", "A rectangle of 3:", "rectangle", (), "14.")
    assert words_of(whole) == [whole]
