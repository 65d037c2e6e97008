"""Places in tokenised prompts, worked out by hand for hand-made and for trained tokenisations."""

import itertools

import pytest
import torch

from interp.models.loading import Encoding, LanguageModel
from interp.models.tokens import (
    char_spans,
    lookup_span,
    number_positions,
    pad_right,
    subject_spans,
    token_positions,
    token_roles,
    word_positions,
)
from interp.rules.sources import load_rules
from interp.vocabulary import ROLES


def encoding(*tokens: str) -> Encoding:
    """An encoding of the given pieces of text; an empty piece stands for a special token."""
    ends = list(itertools.accumulate(map(len, tokens)))
    offsets = tuple((end - len(token), end) for token, end in zip(tokens, ends, strict=True))
    return Encoding("".join(tokens), tuple(range(len(tokens))), offsets)


def by_role(item: Encoding, roles: list[str]) -> list[tuple[str, str]]:
    return [(item.text[a:b], role) for (a, b), role in zip(item.offsets, roles, strict=True)]


# Characters.


@pytest.mark.parametrize(
    ("text", "phrase", "spans"),
    [
        ("square", "square", [(0, 6)]),
        ("a square's side", "square", [(2, 8)]),
        ("squares and square", "square", [(12, 18)]),
        ("subsquare", "square", []),
        ("x+x=2x", "x", [(0, 1), (2, 3)]),
        ("(a.b) a_b aXb a.b", "a.b", [(1, 4), (14, 17)]),
        ("Kreis ÄKreis Kreis", "Kreis", [(0, 5), (13, 18)]),
    ],
)
def test_char_spans_finds_whole_words_only(
    text: str, phrase: str, spans: list[tuple[int, int]]
) -> None:
    assert char_spans(text, phrase) == spans


def test_char_spans_minds_the_case_unless_told() -> None:
    assert char_spans("Area, area", "area") == [(6, 10)]
    assert char_spans("Area, area", "area", ignore_case=True) == [(0, 4), (6, 10)]


def test_subject_spans_takes_a_plural_only_where_nothing_else_is() -> None:
    assert subject_spans("rectangles have area", "rectangle") == [(0, 9)]
    assert subject_spans("rectangles and a rectangle", "rectangle") == [(17, 26)]


def test_subject_spans_names_a_subject_that_is_not_there() -> None:
    with pytest.raises(
        ValueError,
        match="the subject 'Square' is not in the prompt 'a square'; write it as it stands",
    ):
        subject_spans("a square", "Square")


# Tokens of a span.


@pytest.mark.parametrize(
    ("tokens", "span", "positions"),
    [
        (("The", " rect", "angle", "'s", " area"), (4, 13), [1, 2]),
        (("The", " rectangle's", " area"), (4, 13), [1]),  # merged with what follows
        (("square", " area"), (0, 6), [0]),
        (("area", " of", " square"), (8, 14), [2]),
        (("of", " ", "square"), (3, 9), [2]),  # the space is a token of its own
        (("of ", "square"), (3, 9), [1]),
        (("", "square"), (0, 6), [1]),  # a special token covers nothing
    ],
)
def test_token_positions_by_hand(
    tokens: tuple[str, ...], span: tuple[int, int], positions: list[int]
) -> None:
    assert list(token_positions(encoding(*tokens), span)) == positions


def test_token_positions_of_a_letter_in_several_tokens() -> None:
    item = Encoding("is π r", (5, 6, 7, 8), ((0, 2), (2, 4), (3, 4), (4, 6)))
    assert list(token_positions(item, (3, 4))) == [1, 2]


@pytest.mark.parametrize("span", [(2, 3), (2, 2), (40, 50)])
def test_token_positions_refuses_a_span_without_a_token(span: tuple[int, int]) -> None:
    with pytest.raises(
        ValueError, match=rf"no token covers characters \({span[0]}, {span[1]}\) of 'of square'"
    ):
        token_positions(encoding("of", " square"), span)


def test_word_positions_are_in_reading_order_whatever_the_case() -> None:
    item = encoding("Area", " of", " side", " and", " ar", "ea")
    assert word_positions(item, ["side", "area"]) == [range(0, 1), range(2, 3), range(4, 6)]


def test_number_positions_take_decimals_whole_and_symbols_alone() -> None:
    item = encoding("with", " s", " =", " 3", ".", "5", " sides", " 1", "2", ".")
    assert number_positions(item, ["s"]) == [range(1, 2), range(3, 6), range(7, 9)]
    assert number_positions(item) == [range(3, 6), range(7, 9)]


# Roles.


def test_token_roles_by_hand() -> None:
    item = encoding(
        "The", " area", " of", " a", " rect", "ang", "le", " with", " w", " =", " 3", " is"
    )
    assert by_role(item, token_roles(item, "rectangle", ["area"], ["w"])) == [
        ("The", "prefix"),
        (" area", "rule_word"),
        (" of", "after"),
        (" a", "after"),
        (" rect", "subject_first"),
        ("ang", "subject_middle"),
        ("le", "subject_last"),
        (" with", "after"),
        (" w", "number"),
        (" =", "after"),
        (" 3", "number"),
        (" is", "last"),
    ]


def test_token_roles_of_a_subject_at_the_start_and_at_the_end() -> None:
    first = encoding("Rect", "angle", "'s", " area", ":")
    assert token_roles(first, "Rectangle", ["area"]) == [
        "subject_first",
        "subject_last",
        "after",
        "rule_word",
        "last",
    ]
    end = encoding("area", " of", " a", " square")
    assert token_roles(end, "square", ["area"]) == ["rule_word", "after", "after", "subject_last"]


def test_token_roles_of_every_mention_of_the_subject() -> None:
    item = encoding("A", " square", " is", " a", " squ", "are", " =")
    expected = ["prefix", "subject_last", "after", "after", "subject_first", "subject_last", "last"]
    assert token_roles(item, "square", []) == expected


def test_token_roles_of_competing_words_go_to_the_earlier_of_the_list() -> None:
    # "square root": subject over rule word; "2": rule word over number; the last token: number over
    # last.
    item = encoding("the", " square", " root", " of", " 2", " plus", " 3")
    roles = token_roles(item, "square", ["square", "root", "2"])
    assert roles == ["prefix", "subject_last", "rule_word", "after", "rule_word", "after", "number"]


def test_token_roles_begin_with_the_special_token_as_prefix() -> None:
    item = encoding("", "square", " area", " is")
    assert token_roles(item, "square", ["area"]) == ["prefix", "subject_last", "rule_word", "last"]


def test_token_roles_of_letters_in_several_tokens(tiny_llama: LanguageModel) -> None:
    item = tiny_llama.encode("The area of a Quadrat über π is")
    roles = token_roles(item, "über π", ["area"])
    named = [i for i, role in enumerate(roles) if role.startswith("subject")]
    assert named == list(range(named[0], named[-1] + 1))
    assert tiny_llama.decode([item.ids[i] for i in named]).strip() == "über π"
    assert (roles[named[0]], roles[named[-1]]) == ("subject_first", "subject_last")


def test_token_roles_partition_every_embedded_prompt(tiny_llama: LanguageModel) -> None:
    for rule in load_rules().rules:
        for form in rule.forms.values():
            item = tiny_llama.encode(form.prompt)
            roles = token_roles(item, form.subject, rule.rule_words, sorted(form.values))
            assert len(roles) == len(item.ids) and set(roles) <= set(ROLES)
            # What is called the subject spells it, once or more, and nothing else.
            spelt = tiny_llama.decode(
                [i for i, role in zip(item.ids, roles, strict=True) if "subject" in role]
            )
            mentions = len(subject_spans(form.prompt, form.subject))
            assert spelt.replace(" ", "") == form.subject.replace(" ", "") * mentions
            assert roles.count("subject_last") == mentions
            assert roles.count("last") <= 1


# Where an edit looks a rule up.

TEXT = "The area of a square, the Area of the square:  "


@pytest.mark.parametrize(
    ("lookup", "span"),
    [("subject_last", (14, 20)), ("rule_word_last", (26, 30)), ("last", (44, 45))],
)
def test_lookup_span_by_hand(lookup: str, span: tuple[int, int]) -> None:
    assert lookup_span(TEXT, lookup, "square", ["area"]) == span


def test_lookup_span_of_several_rule_words_is_the_one_furthest_on() -> None:
    assert lookup_span(
        "the side area of squares, area of side", "rule_word_last", "squares", ["side", "area"]
    ) == (
        34,
        38,
    )


def test_lookup_last_is_the_token_with_the_colon(tiny_llama: LanguageModel) -> None:
    text = "The area of a square:"
    positions = token_positions(tiny_llama.encode(text), lookup_span(text, "last", "square", []))
    assert list(positions) == [len(tiny_llama.encode(text).ids) - 1]
    merged = encoding("The", " square:")
    assert list(token_positions(merged, lookup_span(merged.text, "last", "square", []))) == [1]


def test_lookup_span_refuses_what_is_not_there() -> None:
    with pytest.raises(
        ValueError, match=r"none of the rule words \('volume',\) is in .*; use lookup subject_last"
    ):
        lookup_span(TEXT, "rule_word_last", "square", ("volume",))
    with pytest.raises(
        ValueError,
        match="lookup is 'first'; use subject_last, rule_word_last, mention_last or last",
    ):
        lookup_span(TEXT, "first", "square", ())


# Batches.


def test_pad_right_pads_to_the_longest_row() -> None:
    ids, mask = pad_right([(5, 6, 7), (8,)], torch.device("cpu"), pad=9)
    assert ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("The side area of a square is", (19, 25)),  # the subject comes later
        ("A square has sides. Its area is", (24, 28)),  # the rule word does
        (
            "A square, and one more square, has",
            (23, 29),
        ),  # no rule word: the last mention of the subject
    ],
)
def test_mention_last_is_where_subject_and_rule_words_are_read(
    text: str, span: tuple[int, int]
) -> None:
    assert lookup_span(text, "mention_last", "square", ("area",)) == span
