"""Noise by its statistics, corrupted tokens by hand, counterfactual prompts by what is wrong
with them."""

import numpy as np
import pytest
import torch

from interp.models.loading import LanguageModel
from interp.models.tokens import token_roles
from interp.rules.sources import Twin
from interp.tracing.corruption import (
    SPAN_ROLES,
    corrupted_positions,
    counterfactual,
    gaussian_noise,
    noise_rule,
    phrase_positions,
)
from interp.vocabulary import ROLES, CorruptedSpan

PROMPT = (
    "prefix",
    "rule_word",
    "after",
    "subject_first",
    "subject_middle",
    "subject_last",
    "number",
    "last",
)


@pytest.mark.parametrize(
    ("span", "positions"),
    [
        ("subject", [3, 4, 5]),
        ("subject+rule", [1, 3, 4, 5]),
        ("numbers", [6]),
        ("content", [1, 3, 4, 5, 6]),
    ],
)
def test_corrupted_positions_are_those_of_the_roles(
    span: CorruptedSpan, positions: list[int]
) -> None:
    assert corrupted_positions(PROMPT, span) == positions


def test_corrupted_positions_include_every_mention() -> None:
    roles = ("subject_last", "after", "subject_first", "subject_last", "last")
    assert corrupted_positions(roles, "subject") == [0, 2, 3]


def test_corrupted_positions_of_nothing_say_what_is_needed_and_there() -> None:
    with pytest.raises(
        ValueError,
        match=r"span 'numbers' needs a role of \('number',\).*\['last', 'subject_last'\]",
    ):
        corrupted_positions(("subject_last", "last"), "numbers")


def test_span_roles_are_roles_and_never_the_last_token() -> None:
    assert {role for roles in SPAN_ROLES.values() for role in roles} <= set(ROLES) - {
        "last",
        "prefix",
        "after",
    }


def test_gaussian_noise_has_the_deviation_asked_for() -> None:
    noise = gaussian_noise(10, 5, 800, std=0.3, seed=0)
    assert noise.shape == (10, 5, 800)
    # 40,000 draws: both estimates are within 4 standard errors.
    assert noise.std().item() == pytest.approx(0.3, rel=4 / (2 * 40_000) ** 0.5)
    assert abs(noise.mean().item()) < 4 * 0.3 / 40_000**0.5
    kurtosis = ((noise / 0.3) ** 4).mean().item()
    assert kurtosis == pytest.approx(3, abs=4 * (96 / 40_000) ** 0.5)


def test_gaussian_noise_scales_with_the_deviation_only() -> None:
    one, three = (gaussian_noise(2, 3, 8, std=std, seed=4, stream=9) for std in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)


def test_gaussian_noise_is_seeded_and_leaves_the_global_state() -> None:
    state = torch.get_rng_state()
    first, again = (gaussian_noise(4, 2, 16, std=1.0, seed=7, stream=3) for _ in range(2))
    assert first.equal(again)
    assert torch.get_rng_state().equal(state)


def test_gaussian_noise_of_other_seeds_and_streams_is_independent() -> None:
    draws = [
        gaussian_noise(10, 2, 500, std=1.0, seed=seed, stream=stream).flatten()
        for seed in (0, 1)
        for stream in (0, 1, 2**32 - 1)
    ]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(6)
    assert correlations.abs().max() < 5 / 10_000**0.5


def test_gaussian_noise_tells_large_and_negative_seeds_apart() -> None:
    draws = [
        gaussian_noise(1, 1, 4, std=1.0, seed=seed).flatten().tolist()
        for seed in (123_456_789, -1, 0)
    ]
    assert len({tuple(draw) for draw in draws}) == 3


def test_more_samples_begin_with_the_same_ones(tiny_llama: LanguageModel) -> None:
    for text in ("e3", "u2", "m", "t5"):
        rule = noise_rule(
            text, tiny_llama, corpus=lambda: ["The area of a square is the side times the side."]
        )
        few, many = (rule.draw(n, 3, 32, seed=2, stream=5) for n in (2, 7))
        assert few.equal(many[:2]), text


# Noise rules.


def test_explicit_spans_are_words_of_the_prompt(tiny_llama: LanguageModel) -> None:
    encoding = tiny_llama.encode("The area of a square is the side times the side")
    texts = [text.strip() for text in tiny_llama.token_texts(encoding)]
    positions = phrase_positions(encoding, ["Side", "square"])
    assert [texts[p] for p in positions] == ["square", "side", "side"]
    with pytest.raises(ValueError, match=r"'cube' not found in the prompt 'The area of a square"):
        phrase_positions(encoding, ["side", "cube"])


def test_scales_of_noise_rules(tiny_llama: LanguageModel) -> None:
    table = tiny_llama.parameters["model.embed_tokens.weight"].detach().numpy().astype(np.float64)
    assert noise_rule("e3", tiny_llama).std == pytest.approx(3 * table.std(), rel=1e-4)
    subjects = ["circle", "square", "circle"]
    ids = [i for subject in subjects[:2] for i in tiny_llama.encode(subject).ids]
    # ROME: torch's unbiased deviation over all entries of all tokens of all subjects.
    assert noise_rule("s2", tiny_llama, subjects).std == pytest.approx(
        2 * table[ids].std(ddof=1), rel=1e-4
    )
    assert noise_rule("0.25", tiny_llama).std == 0.25
    assert noise_rule("u2", tiny_llama).std == pytest.approx(2 / 3**0.5)


def test_uniform_noise_fills_its_interval(tiny_llama: LanguageModel) -> None:
    draws = noise_rule("u2", tiny_llama).draw(50, 4, 100, seed=0)
    assert -2 <= draws.min() < -1.99 and 1.99 < draws.max() <= 2
    assert draws.mean().item() == pytest.approx(0, abs=4 * 2 / 3**0.5 / 20_000**0.5)


TEXT = [
    "The area of a square is the side times the side. The volume of a cube with side 3 is 27. What"
    " is it? It is 16."
]


@pytest.mark.parametrize("text", ["m", "t6"])
def test_multivariate_noise_has_the_mean_and_covariance_of_running_text(
    text: str, tiny_llama: LanguageModel
) -> None:
    table = tiny_llama.parameters["model.embed_tokens.weight"].detach().double()
    vectors = table[list(tiny_llama.encode(TEXT[0]).ids)]
    rule = noise_rule(text, tiny_llama, corpus=lambda: TEXT)
    draws = rule.draw(20_000, 1, 32, seed=3)[:, 0].double()
    covariance = torch.cov(vectors.T)
    deviations = covariance.diagonal().sqrt()
    assert ((draws.mean(0) - vectors.mean(0)).abs() / deviations).max() < 5 / 20_000**0.5
    off = (torch.cov(draws.T) - covariance).abs() / deviations.outer(deviations)
    assert off.max() < 0.1
    whitened = (draws - vectors.mean(0)) @ torch.linalg.pinv(covariance) * (draws - vectors.mean(0))
    lengths = whitened.sum(1)  # chi-squared, or F-distributed for t: its tail is heavier
    rank = int(torch.linalg.matrix_rank(covariance))
    assert (lengths.var() > 4 * rank) == (text == "t6")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x3", "noise 'x3': give e3, s3, m, t5, u2"),
        ("s3", "takes its scale from the rules' subjects, and there is none"),
        ("t2", "only above 2 degrees of freedom"),
        ("m", "take their covariance from running text, and there is none"),
    ],
)
def test_noise_rules_that_cannot_be_made_say_why(
    text: str, message: str, tiny_llama: LanguageModel
) -> None:
    with pytest.raises(ValueError, match=message):
        noise_rule(text, tiny_llama)


# Counterfactual prompts.

SQUARE = "The area of a square is"


def twins_of(*pairs: tuple[str, str]) -> list[Twin]:
    return [Twin(rule="another", prompt=prompt, answer=answer) for prompt, answer in pairs]


def test_the_first_twin_that_aligns_is_taken(tiny_llama: LanguageModel) -> None:
    encoding = tiny_llama.encode(SQUARE)
    roles = token_roles(encoding, "square", ["area"])
    twins = [
        ("The area of a very big circle is", "x"),
        ("The area of a circle is", "pi times"),
        (SQUARE, "y"),
    ]
    case, prompt = counterfactual(tiny_llama, encoding, (3, 4), twins_of(*twins), roles)
    assert prompt == "The area of a circle is"
    texts = [text.strip() for text in tiny_llama.token_texts(encoding)]
    assert [texts[p] for p in case.positions] == ["square"] and case.samples == 1
    assert case.counterfactual == tiny_llama.encode(prompt).ids
    assert case.alternative == tiny_llama.encode_continuation("pi times") and case.answer == (3, 4)


def test_twins_that_do_not_align_say_why(tiny_llama: LanguageModel) -> None:
    encoding = tiny_llama.encode(SQUARE)
    roles = token_roles(encoding, "square", ["area"])
    twins = [
        ("The area of a very big circle is", "x"),
        (SQUARE, "y"),
        ("The area of the square is", "z"),
    ]
    with pytest.raises(ValueError) as caught:
        counterfactual(tiny_llama, encoding, (3,), twins_of(*twins), roles)
    said = str(caught.value)
    assert "tokens, not" in said and "has the same tokens" in said
    assert "'The area of the square is' differs at no token that names the rule" in said
    with pytest.raises(ValueError, match="it has none"):
        counterfactual(tiny_llama, encoding, (3,), [], roles)


def test_a_twin_whose_tokens_stand_against_other_words_is_refused(
    tiny_llama: LanguageModel,
) -> None:
    encoding = tiny_llama.encode("The zebra of a square is")
    twin = "The square of a zebra is"
    assert (
        len(tiny_llama.encode(twin).ids) == len(encoding.ids) > 6
    )  # a zebra is several tokens, a square is one
    with pytest.raises(ValueError, match="has words of other lengths"):
        counterfactual(
            tiny_llama,
            encoding,
            (3,),
            twins_of((twin, "x")),
            token_roles(encoding, "square", ["zebra"]),
        )
