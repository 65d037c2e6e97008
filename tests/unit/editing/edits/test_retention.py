"""Prompts that are retained: of rules that are neither edited nor evaluated."""

import pytest

from editing.config import EditorSettings
from editing.edits.requests import requests_of
from editing.edits.retention import retained
from interp.errors import InputError
from interp.rules.sources import LocalityProbe, Rule, RulePrompt, load_rules


def rule_of(name: str, subject: str, *asked: LocalityProbe, truth: str = "2") -> Rule:
    form = RulePrompt(
        prompt=f"The {name} is",
        subject=subject,
        target_new="9",
        target_true=(truth,) if truth else (),
        neighborhood=asked,
    )
    return Rule(id=name.replace(" ", "-"), name=name, subject=subject, forms={"formula": form})


EDITED = rule_of(
    "area of a square",
    "square",
    LocalityProbe(prompt="State it:", answer="1", rule="side-of-a-prism"),
    LocalityProbe(prompt="A Circle has which area?", answer="1"),
)
KEPT = [rule_of(f"{what} of a cone", "cone") for what in ("area", "side", "height")]
RULES = [
    EDITED,
    rule_of("side of a Square", "Square"),  # its subject
    rule_of("side of a prism", "prism"),  # a locality prompt asks about it by name
    rule_of("area of a circle", "circle"),  # and about this one in words
    rule_of("side of a circle", "circle"),
    rule_of("area of a wall", "wall", truth=""),  # no true answer is known
    *KEPT,
]


def asked_to_keep(n: int, seed: int = 0, evaluated: tuple[Rule, ...] = (EDITED,)) -> list[str]:
    settings = EditorSettings(retained=n, seed=seed)
    found = retained(settings, RULES, requests_of(EDITED, "last"), evaluated)
    assert all(each.target_new == "2" for each in found)  # the true answer, not the edited one
    return [each.rule for each in found]


def test_neither_edited_rules_nor_those_asked_about_are_retained() -> None:
    free = {"side-of-a-circle", *(rule.id for rule in KEPT)}
    assert set(asked_to_keep(4)) == free
    with pytest.raises(InputError, match=r"edit.retained is 5, and there are 4 prompts"):
        asked_to_keep(5)
    # Nothing is known of what is evaluated: what it asks about may be retained.
    assert set(asked_to_keep(6, evaluated=())) == free | {"side-of-a-prism", "area-of-a-circle"}
    with pytest.raises(InputError, match="there are 3 prompts"):
        asked_to_keep(4, evaluated=(EDITED, RULES[4]))


def test_more_prompts_hold_those_of_fewer_and_the_seed_draws_others() -> None:
    assert asked_to_keep(2) == asked_to_keep(4)[:2]
    assert len({tuple(asked_to_keep(2, seed)) for seed in range(10)}) > 1


@pytest.mark.slow
def test_no_test_rule_is_asked_about_a_rule_that_is_retained_for_it() -> None:
    train, test = (load_rules("embedded", split=split).rules for split in ("train", "test"))
    for rule in test[:20]:
        asked = {
            probe.rule
            for form in rule.forms.values()
            for probe in (*form.neighborhood, *form.distracting)
        }
        found = retained(EditorSettings(retained=30), train, requests_of(rule, "last"), [rule])
        assert not asked & {each.rule for each in found}
