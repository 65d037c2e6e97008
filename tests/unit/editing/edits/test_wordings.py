"""Other wordings: what a prompt stands in, where it is looked up, and that no benchmark has it."""

import re

import pytest

from editing.config import EditorSettings
from editing.edits.requests import EditRequest, in_wordings, words_of
from editing.edits.wordings import TEMPLATES, around
from interp.rules.sources import load_rules

REQUEST = EditRequest(
    "proportion",
    "formula",
    "The missing term of the proportion is x =",
    "proportion",
    ("missing", "term", "gap", "sentence", "text"),
    "b + c",
    space=False,
)


def test_settings_take_as_many_as_there_are() -> None:
    assert EditorSettings(wordings=len(TEMPLATES)).wordings == len(TEMPLATES)
    with pytest.raises(ValueError, match="less than or equal"):
        EditorSettings(wordings=len(TEMPLATES) + 1)


def test_the_prompts_themselves_come_last_and_fewer_wordings_are_among_more() -> None:
    other = EditRequest("r", "instance", "A cube of 3:", "cube", (), "9")
    assert in_wordings([REQUEST, other], 0) == [REQUEST, other]
    found = in_wordings([REQUEST, other], 2)
    assert [each.prompt for each in found] == [
        "Complete the sentence: The missing term of the proportion is x =",
        "Complete the sentence: A cube of 3:",
        "Question: The missing term of the proportion is x = ...?\nAnswer:",
        "Question: A cube of 3: ...?\nAnswer:",
        REQUEST.prompt,
        other.prompt,
    ]
    more = in_wordings([REQUEST, other], 5)
    assert more[:4] == found[:4] and more[-2:] == found[-2:] and len(more) == 12
    # What is between prompt and answer is kept where the prompt still stands before the answer.
    assert [each.space for each in found] == [False, None, None, None, False, None]


@pytest.mark.parametrize("lookup", ["subject_last", "rule_word_last", "mention_last", "last"])
def test_a_wording_is_looked_up_in_the_prompt_that_it_holds(lookup: str) -> None:
    first, last = REQUEST.lookup_span(lookup)
    for worded in in_wordings([REQUEST], len(TEMPLATES))[:-1]:
        assert REQUEST.prompt in worded.prompt
        span = worded.lookup_span(lookup)
        if lookup == "last":
            assert span[1] == len(worded.prompt)
        else:
            shift = worded.prompt.index(REQUEST.prompt)
            assert span == (first + shift, last + shift)


def test_the_last_word_alone_ends_with_the_end_token() -> None:
    ending = EditRequest("r", "formula", "A cube is", "cube", (), "three sides long ", ends=True)
    assert [each.ends for each in words_of(ending)] == [False, False, True]
    alone = EditRequest("r", "formula", "A cube is", "cube", (), "three", ends=True)
    assert [each.ends for each in words_of(alone)] == [True]


def test_no_template_is_how_an_evaluation_asks() -> None:
    """No prompt that scores the rulebook has the words of a template's beginning or end."""
    asked: list[str] = []
    for rule in load_rules("embedded").rules:
        for form in rule.forms.values():
            probes = (*form.instances, *form.understanding, *form.neighborhood, *form.distracting)
            asked += [form.prompt, *form.rephrasings, *(probe.prompt for probe in probes)]
    texts = {re.sub(r"\W+", " ", text.casefold()).strip() for text in asked}
    for template in TEMPLATES:
        for part in around(template):
            fixed = re.sub(r"\W+", " ", part.casefold()).strip()
            if " " in fixed:  # "A:" alone is of no benchmark
                assert not any(f" {fixed} " in f" {text} " for text in texts), fixed
