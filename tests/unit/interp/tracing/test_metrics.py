"""Scores against log-softmax written out in NumPy double precision."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from interp.tracing.metrics import (
    METRICS,
    Target,
    answer_log_probs,
    first_difference,
    first_token_prob,
    logit_difference,
    mean_log_prob,
    metric,
    negative_kl,
    several,
    sum_log_prob,
)

# One row, two answer places, three tokens; exponentials are whole numbers, so probabilities are
# fractions.
LOGITS = torch.log(torch.tensor([[[1.0, 2.0, 5.0], [3.0, 4.0, 9.0]]]))
ANSWER = torch.tensor([2, 1])  # probabilities 5/8 and 4/16
TARGET = Target(ANSWER)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def random_case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Sequence[int]]:
    logits = 3 * torch.randn(4, 3, 11, generator=torch.Generator().manual_seed(0))
    return logits.to(dtype), (7, 0, 10)


def test_metrics_of_a_hand_worked_answer() -> None:
    assert answer_log_probs(LOGITS, ANSWER)[0].exp().tolist() == pytest.approx([5 / 8, 1 / 4])
    assert sum_log_prob(LOGITS, TARGET).item() == pytest.approx(np.log(5 / 32))
    assert mean_log_prob(LOGITS, TARGET).item() == pytest.approx(np.log(5 / 32) / 2)
    assert first_token_prob(LOGITS, TARGET).item() == pytest.approx(5 / 8)


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match="another metric has the name mean_log_prob"):
        metric("nats")(mean_log_prob)


def test_metrics_equal_numpy_row_by_row() -> None:
    logits, answer = random_case()
    expected = np.array(
        [[log_softmax(row.numpy())[i, t] for i, t in enumerate(answer)] for row in logits]
    )
    ids = torch.tensor(answer)
    np.testing.assert_allclose(answer_log_probs(logits, ids), expected, rtol=1e-5)
    np.testing.assert_allclose(
        METRICS["mean_log_prob"][0](logits, Target(ids)), expected.mean(1), rtol=1e-5
    )
    np.testing.assert_allclose(
        METRICS["sum_log_prob"][0](logits, Target(ids)), expected.sum(1), rtol=1e-5
    )
    np.testing.assert_allclose(
        METRICS["first_token_prob"][0](logits, Target(ids)), np.exp(expected[:, 0]), rtol=1e-5
    )


def test_metrics_do_not_round_as_the_model_does() -> None:
    logits, answer = random_case(torch.bfloat16)
    got = mean_log_prob(logits, Target(torch.tensor(answer)))
    expected = [
        np.mean([log_softmax(row.float().numpy())[i, t] for i, t in enumerate(answer)])
        for row in logits
    ]
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_metrics_bear_logits_whose_exponential_overflows() -> None:
    logits = torch.tensor([[[1000.0, 999.0], [-1000.0, 0.0]]])
    expected = [-np.log1p(np.exp(-1)), -1000.0]
    # Numbers near 1000 have steps of 6e-5 in single precision.
    assert answer_log_probs(logits, torch.tensor([0, 0]))[0].tolist() == pytest.approx(
        expected, abs=2e-4
    )


def test_first_token_prob_does_not_see_later_tokens() -> None:
    other = LOGITS.clone()
    other[:, 1] = 0
    assert first_token_prob(other, TARGET).equal(first_token_prob(LOGITS, TARGET))


def test_metrics_name_their_units() -> None:
    assert {name: metric.unit for name, metric in METRICS.items()} == {
        "mean_log_prob": "nats per answer token",
        "sum_log_prob": "nats",
        "first_token_prob": "probability",
        "logit_difference": "logits",
        "log_prob_difference": "nats per answer token",
        "negative_kl": "nats per answer token",
    }


def test_logit_difference_is_taken_at_the_first_token_that_tells_the_answers_apart() -> None:
    # Both answers begin with token 2; then 1 against 0, whose logits are log 4 and log 3.
    target = Target(ANSWER, torch.tensor([2, 0, 2]))
    assert logit_difference(LOGITS, target).item() == pytest.approx(np.log(4 / 3))
    assert logit_difference(LOGITS, Target(ANSWER, torch.tensor([0]))).item() == pytest.approx(
        np.log(5)
    )


def test_negative_kl_of_hand_worked_distributions() -> None:
    halves = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]]))
    places = [
        [(0.5, 1 / 8), (0.25, 2 / 8), (0.25, 5 / 8)],
        [(0.25, 3 / 16), (0.5, 4 / 16), (0.25, 9 / 16)],
    ]
    expected = -np.mean([sum(p * np.log(p / q) for p, q in place) for place in places])
    assert negative_kl(LOGITS, Target(ANSWER, None, halves)).item() == pytest.approx(
        expected, rel=1e-5
    )
    same = LOGITS[0].log_softmax(-1)
    assert negative_kl(LOGITS, Target(ANSWER, None, same)).item() == pytest.approx(0, abs=1e-6)


def test_several_metrics_stand_side_by_side() -> None:
    logits, answer = random_case()
    target = Target(torch.tensor(answer))
    both = several([sum_log_prob, first_token_prob])(logits, target)
    assert both.shape == (4, 2)
    assert both[:, 0].equal(sum_log_prob(logits, target)) and both[:, 1].equal(
        first_token_prob(logits, target)
    )


@pytest.mark.parametrize(
    ("alternative", "message"),
    [(None, "counterfactual answer is needed"), ([2, 1, 0], "do not differ"), ([2], "do not")],
)
def test_answers_that_cannot_be_told_apart_are_refused(
    alternative: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        first_difference([2, 1], alternative)


def test_negative_kl_without_a_clean_run_is_refused() -> None:
    with pytest.raises(ValueError, match="holds none"):
        negative_kl(LOGITS, TARGET)
