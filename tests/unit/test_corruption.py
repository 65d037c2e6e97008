"""Noise by its statistics, corrupted tokens by hand."""

import pytest
import torch

from interp.corruption import SPAN_ROLES, corrupted_positions, gaussian_noise
from interp.effects import ROLES

PROMPT = ("prefix", "rule_word", "after", "subject_first", "subject_middle", "subject_last", "number", "last")


@pytest.mark.parametrize(
    ("span", "positions"),
    [
        ("subject", [3, 4, 5]),
        ("subject+rule", [1, 3, 4, 5]),
        ("numbers", [6]),
        ("content", [1, 3, 4, 5, 6]),
    ],
)
def test_corrupted_positions_are_those_of_the_roles(span: str, positions: list[int]) -> None:
    assert corrupted_positions(PROMPT, span) == positions


def test_corrupted_positions_include_every_mention() -> None:
    roles = ("subject_last", "after", "subject_first", "subject_last", "last")
    assert corrupted_positions(roles, "subject") == [0, 2, 3]


def test_corrupted_positions_of_nothing_say_what_is_needed_and_there() -> None:
    with pytest.raises(ValueError, match=r"span 'numbers' needs a role of \('number',\).*\['last', 'subject_last'\]"):
        corrupted_positions(("subject_last", "last"), "numbers")


def test_span_roles_are_roles_and_never_the_last_token() -> None:
    assert {role for roles in SPAN_ROLES.values() for role in roles} <= set(ROLES) - {"last", "prefix", "after"}


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
    draws = [gaussian_noise(1, 1, 4, std=1.0, seed=seed).flatten().tolist() for seed in (123_456_789, -1, 0)]
    assert len({tuple(draw) for draw in draws}) == 3
