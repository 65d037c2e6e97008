"""Neighbours of edited prompts: their words, what is left out, and the model's own answers."""

import pytest

from editing.config import EditorSettings
from editing.edits.neighbours import ANSWER_TOKENS, neighbours
from editing.edits.requests import EditRequest, requests_of
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import LocalityProbe, Rule, RulePrompt


def rule_of(name: str, subject: str, prompt: str = "", *probes: LocalityProbe) -> Rule:
    form = RulePrompt(
        prompt=prompt or f"The {name} is", subject=subject, target_new="9", neighborhood=probes
    )
    return Rule(id=name.replace(" ", "-"), name=name, subject=subject, forms={"formula": form})


EDITED = rule_of("area of a square", "square", "Area: the area of a square is")
CUBE, CONE = rule_of("volume of a cube", "cube"), rule_of("height of a cone", "cone")


def made(
    model: LanguageModel,
    n: int,
    rules: tuple[Rule, ...] = (CUBE,),
    evaluated: tuple[Rule, ...] = (),
    seed: int = 0,
) -> list[EditRequest]:
    settings = EditorSettings(neighbours=n, seed=seed)
    return neighbours(model, settings, rules, requests_of(EDITED, "last"), evaluated)


def test_words_are_replaced_one_kind_after_the_other(tiny_llama: LanguageModel) -> None:
    found = made(tiny_llama, 3)
    assert [(each.prompt, each.subject, each.rule_words) for each in found] == [
        ("Area: the area of a cube is", "cube", ("area",)),
        ("Volume: the volume of a square is", "square", ("volume",)),
        ("Volume: the volume of a cube is", "cube", ("volume",)),
    ]
    assert {each.rule for each in found} == {"volume-of-a-cube"}
    with pytest.raises(InputError, match=r"edit\.neighbours is 4, and 3 could be made"):
        made(tiny_llama, 4)


def test_the_answer_is_what_the_model_says(tiny_llama: LanguageModel) -> None:
    for each in made(tiny_llama, 3):
        ids = tiny_llama.encode(each.prompt).ids
        (said,) = tiny_llama.generate([ids], ANSWER_TOKENS)
        assert tiny_llama.decode(said).strip() == each.target_new


def test_nothing_that_an_evaluation_asks_about_is_made(tiny_llama: LanguageModel) -> None:
    probe = LocalityProbe(prompt="Which volume has the square?", answer="1")
    evaluated = rule_of("side of a prism", "prism", "", probe)
    assert [each.prompt for each in made(tiny_llama, 2, evaluated=(evaluated,))] == [
        "Area: the area of a cube is",
        "Volume: the volume of a cube is",
    ]
    # A rule that is evaluated lends no words, nor does one about the edited subject.
    squares = rule_of("perimeter of a square", "square")
    with pytest.raises(InputError, match="and 0 could be made"):
        made(tiny_llama, 1, rules=(CUBE, squares), evaluated=(CUBE,))


def test_more_hold_those_of_fewer_and_the_seed_draws_others(tiny_llama: LanguageModel) -> None:
    rules = (CUBE, CONE, rule_of("side of a wall", "wall"), rule_of("age of a dog", "dog"))
    four = made(tiny_llama, 4, rules)
    assert made(tiny_llama, 2, rules) == four[:2]
    firsts = {made(tiny_llama, 1, rules, seed=seed)[0].prompt for seed in range(8)}
    assert len(firsts) > 1
