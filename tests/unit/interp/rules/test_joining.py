"""How prompts and answers are joined as text; every right value was written down by reading the
two aloud."""

import pytest

from interp.rules.joining import join, joint
from interp.rules.scripts import TextError, checked, needed

SPACED = [
    ("The capital of France is", "Paris"),
    ("A =", "s^2"),
    ("5 -", "3"),
    ("s=", "4"),
    ("It is", "-5"),
    ("It is", ".5"),
    ("It is", "(l + w)"),
    ("It is", '"Paris"'),
    ('He said "yes" and', "left"),
    ('"Paris"', "is"),
    ("(of France)", "Paris"),
    ("Die Stadt „Rom“", "liegt"),
    ("The price is 5 €", "per piece"),
    ("한국의 수도는", "서울"),
    ("राजधानी है", "दिल्ली"),
    ("عاصمة فرنسا هي", "باريس"),
]
ATTACHED = [
    ("Capital (France): (", "Paris"),
    ("He said “", "Paris"),
    ('He said "', "Paris"),
    ("Il dit «", "Paris"),
    ("```", "python"),
    ("It costs $", "5"),
    ("the post-", "war years"),
    ("a_", "b"),
    ("¿", "Qué"),
    ("日本の首都は", "東京"),
    ("中国的首都是", "Beijing"),
    ("The capital of China is", "北京"),
    ("日本の人口は", "18"),
    ("首都：", "Tokyo"),
    ("เมืองหลวงของไทยคือ", "กรุงเทพ"),
    ("រាជធានី", "ភ្នំពេញ"),
    ("It is over", "."),
    ("(France", ")"),
    ("Paris", ", of course"),
    ("The side", "'s length"),
]


@pytest.mark.parametrize(("prompt", "answer"), SPACED)
def test_words_are_joined_by_a_space(prompt: str, answer: str) -> None:
    assert join(prompt, answer).text == f"{prompt} {answer}"
    assert join(prompt, answer, space=False).text == prompt + answer
    assert join(prompt, answer).said == "after a space"


@pytest.mark.parametrize(("prompt", "answer"), ATTACHED)
def test_what_is_written_on_gets_no_space(prompt: str, answer: str) -> None:
    assert join(prompt, answer).text == prompt + answer
    assert join(prompt, answer, space=True).text == f"{prompt} {answer}"
    assert join(prompt, answer).said == "directly after the prompt"


@pytest.mark.parametrize("space", [None, True, False])
def test_white_space_is_taken_as_it_stands_and_never_doubled(space: bool | None) -> None:
    for prompt in ("It is", "It is "):
        assert join(prompt, " four ", space) == ("It is", " four")
    assert join("It is ", "four", space) == ("It is", " four")
    assert join("It is  ", "four", space) == ("It is ", " four")
    assert join("It is", "  four", space) == ("It is", " four")
    assert join("It is", "\nfour", space) == ("It is", "\nfour")
    assert join("首都は ", "東京", space) == ("首都は", " 東京")
    assert join("A:\t", "four", None) == ("A:\t", "four")
    assert join("Q: 2+2\nA:\n", "four", None).said == "after '\\n'"
    assert joint("It is ", "four", space) == ""


@pytest.mark.parametrize("answer", ["", " ", "\n\t", "\u3000"])
def test_a_blank_answer_is_refused(answer: str) -> None:
    with pytest.raises(TextError, match="text is needed"):
        join("It is", answer)


def test_text_that_is_no_unicode_is_refused_with_place_and_remedy() -> None:
    with pytest.raises(
        TextError, match=r"--x is not Unicode text: character 3 is U\+DCE9 \(the byte 0xE9\).*UTF-8"
    ):
        checked("Ca\udce9", "--x")
    with pytest.raises(
        TextError, match=r"character 1 is U\+D83D, a byte that is not UTF-8 or half of a character"
    ):
        checked("\ud83d", "x")
    with pytest.raises(TextError, match=r"U\+0000 at character 2"):
        checked("a\0", "x")
    with pytest.raises(TextError, match="x is ' '; text is needed"):
        needed(" ", "x")
    assert checked("日本 👩‍👩‍👧 e\u0301", "x")
