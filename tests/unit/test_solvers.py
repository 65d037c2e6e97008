"""Closed forms: against the formula written out, a least-squares solver, and identities."""

import pytest
import torch
from torch import Tensor

from editing.solvers import LowRank, factorise, ridge

D_OUT, D_IN = 5, 8
WEIGHT = 0.7


def problem(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """R (d_out, n), K (d_in, n) and a covariance (d_in, d_in) of unequal scales, float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    samples = draw(D_IN, 3 * D_IN) * torch.logspace(-1, 1, D_IN, dtype=torch.float64).unsqueeze(-1)
    return draw(D_OUT, n), draw(D_IN, n), samples @ samples.T / samples.shape[1]


@pytest.mark.parametrize("n", [1, 3, 20])
def test_ridge_equals_the_formula_with_an_explicit_inverse(n: int) -> None:
    residual, keys, covariance = problem(n)
    expected = residual @ keys.T @ torch.linalg.inv(WEIGHT * covariance + keys @ keys.T)
    got = ridge(residual, keys, factorise(covariance), WEIGHT)
    assert got.left.shape == (D_OUT, n) and got.right.shape == (D_IN, n)
    torch.testing.assert_close(got.dense(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n", [1, 3, 20])
def test_ridge_is_the_least_squares_solution_of_the_augmented_system(n: int) -> None:
    # ‖ΔW K − R‖² + λ tr(ΔW C ΔWᵀ) = ‖[Kᵀ; √λ Lᵀ] ΔWᵀ − [Rᵀ; 0]‖² with C = L Lᵀ.
    residual, keys, covariance = problem(n, seed=1)
    root = torch.linalg.cholesky(covariance)
    left_side = torch.cat([keys.T, WEIGHT**0.5 * root.T])
    right_side = torch.cat([residual.T, torch.zeros(D_IN, D_OUT, dtype=torch.float64)])
    expected = torch.linalg.lstsq(left_side, right_side).solution.T
    torch.testing.assert_close(
        ridge(residual, keys, factorise(covariance), WEIGHT).dense(), expected, rtol=1e-9, atol=1e-12
    )


def test_ridge_gives_a_single_key_the_share_a_over_one_plus_a() -> None:
    residual, keys, covariance = problem(1, seed=2)
    a = (keys.T @ torch.linalg.solve(WEIGHT * covariance, keys)).item()
    moved = ridge(residual, keys, factorise(covariance), WEIGHT).dense() @ keys
    torch.testing.assert_close(moved, residual * a / (1 + a))


def test_ridge_averages_the_residuals_of_equal_keys() -> None:
    residual, keys, covariance = problem(2, seed=3)
    keys = keys[:, :1].repeat(1, 2)
    a = (keys[:, 0] @ torch.linalg.solve(WEIGHT * covariance, keys[:, 0])).item()
    moved = ridge(residual, keys, factorise(covariance), WEIGHT).dense() @ keys
    expected = (residual[:, :1] + residual[:, 1:]) * a / (1 + 2 * a)
    torch.testing.assert_close(moved, expected.repeat(1, 2))


def test_ridge_of_zero_keys_changes_nothing() -> None:
    residual, keys, covariance = problem(2)
    update = ridge(residual, torch.zeros_like(keys), factorise(covariance), WEIGHT)
    assert torch.equal(update.dense(), torch.zeros(D_OUT, D_IN, dtype=torch.float64))


def test_ridge_leaves_outputs_alone_as_the_weight_grows() -> None:
    residual, keys, covariance = problem(3)
    factor = factorise(covariance)
    sizes = [ridge(residual, keys, factor, weight).dense().norm().item() for weight in (1e-9, 1e-2, 1.0, 1e6)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-3 * sizes[0]
    # Fewer keys than dimensions and next to no weight: the residual is met exactly.
    torch.testing.assert_close(ridge(residual, keys, factor, 1e-9).dense() @ keys, residual, rtol=1e-6, atol=1e-6)


def test_ridge_computes_in_float64_from_float32_input() -> None:
    residual, keys, covariance = problem(3, seed=4)
    single = [part.float() for part in (residual, keys, covariance)]
    got = ridge(single[0], single[1], factorise(single[2]), WEIGHT).dense()
    exact = [part.double() for part in single]
    expected = exact[0] @ exact[1].T @ torch.linalg.inv(WEIGHT * exact[2] + exact[1] @ exact[1].T)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_factorise_gives_the_lower_cholesky_factor() -> None:
    covariance = problem(1)[2]
    factor = factorise(covariance.float())
    assert torch.equal(factor, factor.tril())
    torch.testing.assert_close(factor @ factor.T, covariance.float().double())


def test_factorise_refuses_a_singular_covariance_and_says_how_to_mend_it() -> None:
    few = torch.randn(D_IN, D_IN - 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=rf"\({D_IN} dimensions\) is not positive definite.*covariance\.tokens"):
        factorise(few @ few.T)


def test_low_rank_dense_is_the_sum_of_outer_products() -> None:
    left, right = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[3.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    expected = torch.tensor([[5.0, 1.0, 4.0], [-1.0, 0.0, -2.0]])  # by hand
    assert torch.equal(LowRank(left, right).dense(), expected)
