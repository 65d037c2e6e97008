"""Scores against log-softmax written out in NumPy double precision."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from interp.metrics import METRICS, answer_log_probs, first_token_prob, mean_log_prob, sum_log_prob

# One row, two answer places, three tokens; exponentials are whole numbers, so probabilities are fractions.
LOGITS = torch.log(torch.tensor([[[1.0, 2.0, 5.0], [3.0, 4.0, 9.0]]]))
ANSWER = torch.tensor([2, 1])  # probabilities 5/8 and 4/16


def log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def random_case(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, Sequence[int]]:
    logits = 3 * torch.randn(4, 3, 11, generator=torch.Generator().manual_seed(0))
    return logits.to(dtype), (7, 0, 10)


def test_metrics_of_a_hand_worked_answer() -> None:
    assert answer_log_probs(LOGITS, ANSWER)[0].exp().tolist() == pytest.approx([5 / 8, 1 / 4])
    assert sum_log_prob(LOGITS, ANSWER).item() == pytest.approx(np.log(5 / 32))
    assert mean_log_prob(LOGITS, ANSWER).item() == pytest.approx(np.log(5 / 32) / 2)
    assert first_token_prob(LOGITS, ANSWER).item() == pytest.approx(5 / 8)


def test_metrics_equal_numpy_row_by_row() -> None:
    logits, answer = random_case()
    expected = np.array([[log_softmax(row.numpy())[i, t] for i, t in enumerate(answer)] for row in logits])
    ids = torch.tensor(answer)
    np.testing.assert_allclose(answer_log_probs(logits, ids), expected, rtol=1e-5)
    np.testing.assert_allclose(METRICS["mean_log_prob"][0](logits, ids), expected.mean(1), rtol=1e-5)
    np.testing.assert_allclose(METRICS["sum_log_prob"][0](logits, ids), expected.sum(1), rtol=1e-5)
    np.testing.assert_allclose(METRICS["first_token_prob"][0](logits, ids), np.exp(expected[:, 0]), rtol=1e-5)


def test_metrics_do_not_round_as_the_model_does() -> None:
    logits, answer = random_case(torch.bfloat16)
    got = mean_log_prob(logits, torch.tensor(answer))
    expected = [np.mean([log_softmax(row.float().numpy())[i, t] for i, t in enumerate(answer)]) for row in logits]
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_metrics_bear_logits_whose_exponential_overflows() -> None:
    logits = torch.tensor([[[1000.0, 999.0], [-1000.0, 0.0]]])
    expected = [-np.log1p(np.exp(-1)), -1000.0]
    # Numbers near 1000 have steps of 6e-5 in single precision.
    assert answer_log_probs(logits, torch.tensor([0, 0]))[0].tolist() == pytest.approx(expected, abs=2e-4)


def test_first_token_prob_does_not_see_later_tokens() -> None:
    other = LOGITS.clone()
    other[:, 1] = 0
    assert first_token_prob(other, ANSWER).equal(first_token_prob(LOGITS, ANSWER))


def test_metrics_name_their_units() -> None:
    assert {name: unit for name, (_, unit) in METRICS.items()} == {
        "mean_log_prob": "nats per answer token",
        "sum_log_prob": "nats",
        "first_token_prob": "probability",
    }
