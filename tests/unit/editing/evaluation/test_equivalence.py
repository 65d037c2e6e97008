"""Equivalence: answers worked by hand, what is not applicable, and answers that mean harm."""

import time

import pytest

from editing.evaluation.equivalence import equivalent, numeric, symbolic
from editing.evaluation.statements import MAX_LENGTH, first_sentences, sentence_count
from interp.rules.sources import load_rules

NUMBERS = [
    ("3 * 5 = 15.", "15", True),
    ("A = 3*5 = 15", "15", True),
    ("15 cm", "15", True),
    ("15cm", "15", True),
    ("0.5", "1/2", True),
    ("2/3", "2/3", True),
    ("5.0", "5", True),
    ("1,000", "1000", True),
    ("π", "π", True),
    ("25π", "25π", True),
    ("78.54", "25π", True),
    ("78.5", "25π", True),
    ("78", "25π", False),
    ("= 3 x 4 = 12", "12", True),
    ("3 × 4", "3 × 4 = 12", True),
    ("√4", "2", True),
    ("√2", "sqrt(2)", True),
    ("1.41", "sqrt(2)", True),
    ("3²", "9", True),
    ("3^2", "9", True),
    ("3*5 = 16", "15", False),
    ("3*5 =", "15", True),
    ("15, so b = 3", "15", True),
    ("15 and P = 16", "15", True),
    ("The area is 15 cm.", "15", True),
    ("15x", "15", False),
    ("15 x", "15", False),
    ("150", "15", False),
    ("1.5", "15", False),
    ("15 or 16", "15", False),
    ("15, 16", "15", False),
    ("15^2", "15", False),
    ("15 * w", "15", False),
    ("15 - that is", "15", True),
    ("15 - x", "15", False),
    ("2½", "2.5", True),
    ("½", "0.5", True),
    ("\\frac{1}{2}", "0.5", True),
    ("$3 \\times 5 = 15$", "15", True),
    ("12.75", "12.8", True),
    ("12.74", "12.8", False),
    ("5.4", "5", False),
    ("0.333", "1/3", True),
    ("±14", "x = ±(8 + 6) = ±14.", True),
    ("14", "x = ±(8 + 6) = ±14.", False),
    ("-3", "-3", True),
    ("−3", "-3", True),
    ("- 3", "3", False),
    ("7.63e-34", "7.63e-34", True),
    ("0", "7.63e-34", False),
    ("6*10^16", "6e+16", True),
    ("6 x 10^16", "6e+16", True),
    ("0", "0", True),
    ("2 times 3 = 6", "6", True),
    ("5x = 15", "15", True),
    ("fifteen", "15", False),
    ("", "15", False),
    ("15 15", "15", False),
    ("15.\nQ: 16", "15", True),
    ("15.5.3", "15.5", False),
    ("nan", "15", False),
    ("inf", "15", False),
    ("15 (fifteen)", "15", True),
    ("2(x+1)", "2", False),
    ("50%", "50%", True),
    ("$15", "15", True),
    ("15 square units", "15", True),
    ("Answer: 15", "15", True),
    ("15 to 20", "15", False),
    ("15 m", "15", True),
    ("15!", "15", False),
    ("10 * (x", "10", False),
    ("sqrt(16 + 9) = 5", "G = sqrt(16 + 9) = 5.", True),
    ("28", "average = 2 * (2 + 4 + 8).", True),
    ("٣", "3", False),
]
FORMULAS = [
    ("P = 2l + 2w.", "2(l + w)", True),
    ("A = l × w", "lw", True),
    ("A = wl, where l is the length", "lw", True),
    ("lw", "l*w", True),
    ("lwh", "lw", False),
    ("l w h", "lw", False),
    ("l * w * h", "lw", False),
    ("(1/2)mv²", "(1/2)mv^2", True),
    ("½ m v^2", "(1/2)mv^2", True),
    ("mv^2/2", "(1/2)mv^2", True),
    ("x_1 + x₂", "x1 + x2", True),
    ("P = X + Y", "P = x + y.", False),
    ("p = x + y", "P = x + y.", True),
    ("a rectangle with", "a", False),
    ("d^2 = (x + x)^2", "d^2 = (x + x)^2.", True),
    ("(2x)^2", "d^2 = (x + x)^2.", True),
    ("d = (x + x)^2", "d^2 = (x + x)^2.", False),
    ("D^2 = 4x^2", "d^2 = (x + x)^2.", True),
    ("P = 2(l + w) = 2l + 2w", "2(l + w)", True),
    ("P = 2(l+w) = 2(3+4) = 14", "2(l + w)", True),
    ("P = 2(l + w) = 2l", "2(l + w)", False),
    ("P = 2(l + w) =", "2(l + w)", True),
    ("√(l^2 + w^2)", "sqrt(l^2 + w^2)", True),
    ("√l", "sqrt(l)", True),
    ("π r²", "πr^2", True),
    ("pi*r^2", "πr^2", True),
    ("πrr", "πr^2", True),
    ("\\frac{a}{b}", "a/b", True),
    ("a ÷ b", "a/b", True),
    ("a·b", "ab", True),
    ("n!/(n-1)!", "n", True),
    ("sin(θ) * r", "r sin(θ)", True),
    ("abs(x - m)", "|x - m|", True),
    ("y - x", "|x - y|", False),
    ("3x + C", "3x + C.", True),
    ("-sin(x) + C", "-sin(x) + C.", True),
    ("the area is lw", "lw", True),
    ("lw square units", "lw", True),
    ("4", "lw", False),
    ("", "lw", False),
    ("q = p", "R = q.", False),
    ("f'(x) = 7x", "f'(x) = 7x.", True),
    ("a^(mn)", "a^m * a^n = a^(m * n).", True),
    ("a^m*a^n = a^(nm)", "a^m * a^n = a^(m * n).", True),
    ("ut + 2at^2", "ut + 2at^2", True),
    ("sA", "As", True),
    ("x + 0.0001", "x", False),
    ("R*R1", "RR1", True),
    ("ΔT*k", "kΔT", True),
    ("2lw", "lw", False),
    ("lw/(a-a)", "lw", False),
]
NEITHER = [
    "the product of a and b",
    "adding its length and width.",
    "Yes.",
    "True.",
    "[Blue]",
    "",
    " ",
    "[1, 2]",
    "12" * 200,
]
HARMFUL = [
    "__import__('os')",
    "__import__('os').system('true')",
    "10**10**10",
    "10^10^10^10",
    "9**9**9**9",
    "((((",
    "))))",
    "(" * 10_000,
    "(" * 10_000 + "1" + ")" * 10_000,
    "(" * 90 + "15" + ")" * 80,
    "1+" * 50_000,
    "x" * 100_000,
    "9" * 100_000,
    "9" * MAX_LENGTH,
    "= " * 50_000,
    "=" * 150,
    "NaN",
    "inf",
    "-inf",
    "1e999",
    "1e308*10",
    "0/0",
    "1/0",
    "٣",
    "１５",
    "²" * 200,
    "!" * 200,
    "3" + "!" * 190,
    "170!!!",
    "exp(exp(exp(9)))",
    "√" * 200,
    "½" * 200,
    "|" * 200,
    "1," * 100,
    "_" * 200,
    "\\frac{" * 40,
    "\\frac{1}{0}",
    "-" * 190 + "1",
    "(-8)^(1/3)",
    "\x00",
    "a\u0301" * 90,
    "lw" * 100,
    "l^" * 99 + "w",
    "sqrt(" * 40 + "l" + ")" * 40,
    "sin(" * 45 + "l" + ")" * 45,
    "l=w=" * 50,
    "3=" * 100,
    "3 x " * 50 + "3",
    "lambda: 0",
    "eval(15)",
    "l.__class__",
    'f"{15}"',
    "1 if 1 else 2",
    "[1]*9**9",
    "(-1)!",
    "ln(0)",
    "15" + "0" * 300,
    "15 +" * 2000,
]


@pytest.mark.parametrize(("answer", "target", "expected"), NUMBERS)
def test_numbers_by_hand(answer: str, target: str, expected: bool) -> None:
    assert numeric(answer, target) is expected
    assert equivalent(answer, target) is expected


@pytest.mark.parametrize(("answer", "target", "expected"), FORMULAS)
def test_formulas_by_hand(answer: str, target: str, expected: bool) -> None:
    assert numeric(answer, target) is None
    assert symbolic(answer, target) is expected
    assert equivalent(answer, target) is expected


@pytest.mark.parametrize("target", NEITHER)
def test_words_lists_and_long_targets_are_not_judged(target: str) -> None:
    for answer in ("15", "lw", target, ""):
        assert (
            numeric(answer, target)
            is symbolic(answer, target)
            is equivalent(answer, target)
            is None
        )


@pytest.mark.parametrize("target", ["2s", "2πL/g", "12s^2", "(1/6)mL^2", "-x"])
def test_a_factor_is_no_number_with_a_unit(target: str) -> None:
    assert numeric("2", target) is None and symbolic(target, target) is True


@pytest.mark.parametrize("target", ["15", "2 m/s^2", "180 degrees.", "50%", "P = 3 * 5 = 15."])
def test_a_target_may_have_a_unit(target: str) -> None:
    assert numeric(target, target) is True and symbolic("x", target) is None


@pytest.mark.parametrize("target", ["x = 3 or x = -3.", "A = ab, where a = 2b.", "No, a = b"])
def test_a_target_with_a_condition_is_not_judged(target: str) -> None:
    assert equivalent(target, target) is None


@pytest.mark.parametrize("answer", HARMFUL, ids=range(len(HARMFUL)))
def test_harmful_answers_are_false_quickly(answer: str) -> None:
    start = time.process_time()
    got = (
        numeric(answer, "15"),
        symbolic(answer, "2(l + w)"),
        symbolic(answer, "l"),
        equivalent(answer, "15π"),
    )
    seconds = time.process_time() - start
    assert got[:2] == (False, False) and got[3] is False
    assert seconds < 4 * 0.05


@pytest.mark.parametrize("target", HARMFUL, ids=range(len(HARMFUL)))
def test_harmful_targets_are_judged_quickly(target: str) -> None:
    start = time.process_time()
    assert not numeric("15", target) and not symbolic("l", target)
    assert time.process_time() - start < 2 * 0.05


def test_what_is_cut_off_at_the_length_limit_is_not_read_as_whole() -> None:
    assert numeric("15 " + "and so on " * 100, "15") is True
    padded = "A" + " " * (MAX_LENGTH - 4) + "= "
    assert numeric(padded + "15", "15") is False and numeric(padded + "1567", "15") is False


def test_every_answer_of_the_embedded_rules_is_equivalent_to_itself_and_words_are_not_judged() -> (
    None
):
    counted = {True: 0, None: 0}
    for rule in load_rules():
        for form, prompt in rule.forms.items():
            got = equivalent(prompt.target_new, prompt.target_new)
            counted[got] += 1
            assert got is (None if form == "description" else True), prompt.target_new
            for truth in prompt.target_true[:1]:
                # The edited answer is not the true one.
                assert not equivalent(prompt.target_new, truth), (prompt.target_new, truth)
            for probe in prompt.instances:
                assert numeric(probe.target_new.split("=")[-1], probe.target_new) is True
                assert numeric(probe.target_new.split("=")[0], probe.target_new) is True, (
                    probe.target_new
                )
    assert min(counted.values()) > 200


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        (" It is 0.5. The rest", 1, "It is 0.5"),
        ("15\n16", 1, "15"),
        ("n!/2? No", 1, "n!/2"),
        ("one. two. three", 2, "one. two"),
        ("one. two.", 3, "one. two."),
        ("", 1, ""),
        (".\n", 1, ""),
    ],
)
def test_first_sentences(text: str, count: int, expected: str) -> None:
    assert first_sentences(text, count) == expected


def test_sentence_count() -> None:
    assert [sentence_count(t) for t in ("", "15", "0.5.", "It is. No", "a.\nb.\nc")] == [
        1,
        1,
        1,
        2,
        3,
    ]


def test_the_micro_sign_is_the_letter_mu() -> None:
    assert equivalent("μ", "µ") and equivalent("2µ", "μ + µ")
    assert not equivalent("", "µ") and not equivalent("m", "µ")
