"""Closed forms: against the formula written out, a least-squares solver, and identities."""

import pytest
import torch
from torch import Tensor

from editing.closed_form.solvers import equality, factorise, null_space, rank_one, ridge
from editing.edits.low_rank import LowRank
from interp.errors import NotFiniteError

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
        ridge(residual, keys, factorise(covariance), WEIGHT).dense(),
        expected,
        rtol=1e-9,
        atol=1e-12,
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
    sizes = [
        ridge(residual, keys, factor, weight).dense().norm().item()
        for weight in (1e-9, 1e-2, 1.0, 1e6)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-3 * sizes[0]
    # Fewer keys than dimensions and next to no weight: the residual is met exactly.
    torch.testing.assert_close(
        ridge(residual, keys, factor, 1e-9).dense() @ keys, residual, rtol=1e-6, atol=1e-6
    )


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
    with pytest.raises(
        ValueError, match=rf"\({D_IN} dimensions\) is not positive definite.*covariance\.tokens"
    ):
        factorise(few @ few.T)


def test_low_rank_dense_is_the_sum_of_outer_products() -> None:
    left, right = (
        torch.tensor([[1.0, 2.0], [0.0, -1.0]]),
        torch.tensor([[3.0, 1.0], [1.0, 0.0], [0.0, 2.0]]),
    )
    expected = torch.tensor([[5.0, 1.0, 4.0], [-1.0, 0.0, -2.0]])  # by hand
    assert torch.equal(LowRank(left, right).dense(), expected)


# Protected keys, equality, null space, rank one: against Lagrange's conditions written out as one
# linear system.


def constrained(
    residual: Tensor, keys: Tensor, metric: Tensor, weight: float, fixed: Tensor, wanted: Tensor
) -> Tensor:
    """argmin ‖ΔW K − R‖² + weight tr(ΔW C ΔWᵀ) subject to ΔW P = B: the saddle-point system, solved
    at once.

    A pseudo-inverse, so that constraints may repeat each other.
    """
    m = fixed.shape[1]
    hessian = keys @ keys.T + weight * metric
    system = torch.cat(
        [
            torch.cat([hessian, fixed], 1),
            torch.cat([fixed.T, torch.zeros(m, m, dtype=torch.float64)], 1),
        ]
    )
    right = torch.cat([keys @ residual.T, wanted.T])
    return (torch.linalg.pinv(system, rtol=1e-12) @ right)[: len(keys)].T


@pytest.mark.parametrize("kind", ["plain", "duplicate keys", "duplicate protected"])
def test_ridge_with_protected_keys_solves_the_constrained_problem(kind: str) -> None:
    residual, keys, covariance = problem(3, seed=5)
    protected = problem(2, seed=6)[1]
    if kind == "duplicate keys":
        keys[:, 1] = keys[:, 0]
    if kind == "duplicate protected":
        protected = protected[:, [0, 1, 0]]
    got = ridge(residual, keys, factorise(covariance), WEIGHT, protected).dense()
    expected = constrained(
        residual,
        keys,
        covariance,
        WEIGHT,
        protected,
        torch.zeros(D_OUT, protected.shape[1], dtype=torch.float64),
    )
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(
        got @ protected, torch.zeros_like(got @ protected), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("solver", ["ridge", "equality", "null space"])
def test_a_key_in_the_span_of_the_protected_ones_is_not_served(solver: str) -> None:
    residual, keys, covariance = problem(2, seed=7)
    protected = problem(2, seed=8)[1]
    keys[:, 0] = protected @ torch.tensor([0.3, -2.0], dtype=torch.float64)
    factor = factorise(covariance)
    got = {
        "ridge": lambda: ridge(residual, keys, factor, 1e-9, protected),
        "equality": lambda: equality(residual, keys, factor, 0.0, protected),
        "null space": lambda: null_space(
            residual, keys, torch.eye(D_IN, dtype=torch.float64), 1e-9, protected=protected
        ),
    }[solver]().dense()
    moved = got @ keys
    torch.testing.assert_close(
        moved[:, 0], torch.zeros(D_OUT, dtype=torch.float64), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(moved[:, 1], residual[:, 1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [1, 3])
def test_equality_is_the_least_change_that_meets_the_constraint(n: int) -> None:
    residual, keys, covariance = problem(n, seed=9)
    got = equality(residual, keys, factorise(covariance)).dense()
    nothing = torch.zeros(D_IN, 0, dtype=torch.float64)
    expected = constrained(
        torch.zeros(D_OUT, 0, dtype=torch.float64), nothing, covariance, 1.0, keys, residual
    )
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got @ keys, residual, rtol=1e-8, atol=1e-8)


def test_equality_of_equal_keys_meets_the_average() -> None:
    residual, keys, covariance = problem(3, seed=10)
    keys[:, 2] = keys[:, 0]
    moved = equality(residual, keys, factorise(covariance)).dense() @ keys
    both = (residual[:, 0] + residual[:, 2]) / 2
    torch.testing.assert_close(
        moved, torch.stack([both, residual[:, 1], both], 1), rtol=1e-8, atol=1e-8
    )


def test_equality_of_more_keys_than_dimensions_is_least_squares() -> None:
    residual, keys, covariance = problem(20, seed=11)
    got = equality(residual, keys, factorise(covariance)).dense()
    expected = torch.linalg.lstsq(keys.T, residual.T).solution.T
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_damped_equality_is_emmets_formula() -> None:
    residual, keys, covariance = problem(3, seed=12)
    inverse = torch.linalg.inv(covariance)
    inner = torch.linalg.inv(keys.T @ inverse @ keys + 0.1 * torch.eye(3, dtype=torch.float64))
    expected = residual @ inner @ keys.T @ inverse
    torch.testing.assert_close(
        equality(residual, keys, factorise(covariance), 0.1).dense(), expected, rtol=1e-8, atol=1e-8
    )


def projector(rank: int) -> Tensor:
    """On the last `rank` axes, turned."""
    turn = torch.linalg.qr(problem(D_IN, seed=13)[1]).Q
    return turn[:, -rank:] @ turn[:, -rank:].T


@pytest.mark.parametrize("kind", ["plain", "earlier", "duplicate keys"])
def test_null_space_is_alphaedits_formula(kind: str) -> None:
    residual, keys, _ = problem(3, seed=14)
    earlier = problem(4, seed=15)[1] if kind == "earlier" else None
    if kind == "duplicate keys":
        keys[:, 2] = keys[:, 1]
    p, cache = projector(5), torch.zeros(D_IN, D_IN, dtype=torch.float64)
    if earlier is not None:
        cache = earlier @ earlier.T
    # As its code has it: solve (P (K Kᵀ + C_p) + L2 I) X = P K Rᵀ.
    system = p @ (keys @ keys.T + cache) + 0.7 * torch.eye(D_IN, dtype=torch.float64)
    expected = torch.linalg.solve(system, p @ keys @ residual.T).T
    got = null_space(residual, keys, p, 0.7, earlier).dense()
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(got @ p, got, rtol=1e-8, atol=1e-8)


def test_null_space_with_protected_keys_solves_the_constrained_problem() -> None:
    residual, keys, _ = problem(3, seed=16)
    protected, p = problem(2, seed=17)[1], projector(5)
    got = null_space(residual, keys, p, 0.7, protected=protected).dense()
    identity = torch.eye(D_IN, dtype=torch.float64)
    # Nothing outside the projector's range, and nothing at the protected keys.
    fixed = torch.cat([identity - p, protected], 1)
    expected = constrained(
        residual,
        keys,
        identity,
        0.7,
        fixed,
        torch.zeros(D_OUT, fixed.shape[1], dtype=torch.float64),
    )
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def test_rank_one_is_the_equality_constraint_of_one_key() -> None:
    residual, keys, covariance = problem(1, seed=18)
    factor = factorise(covariance)
    got = rank_one(residual[:, 0], keys[:, 0], factor)
    assert got.left.shape == (D_OUT, 1) and got.right.shape == (D_IN, 1)
    torch.testing.assert_close(
        got.dense(), equality(residual, keys, factor).dense(), rtol=1e-8, atol=1e-8
    )


def test_rank_one_with_protected_keys_is_the_constraint_beside_them() -> None:
    residual, keys, covariance = problem(1, seed=18)
    protected, factor = problem(3, seed=19)[1], factorise(covariance)
    got = rank_one(residual[:, 0], keys[:, 0], factor, protected=protected).dense()
    nothing = torch.zeros(D_OUT, 0, dtype=torch.float64)
    fixed, wanted = torch.cat([protected, keys], 1), torch.zeros(D_OUT, 4, dtype=torch.float64)
    wanted[:, 3] = residual[:, 0]
    expected = constrained(
        nothing, torch.zeros(D_IN, 0, dtype=torch.float64), covariance, 1.0, fixed, wanted
    )
    torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)
    with pytest.raises(NotFiniteError, match=r"edit.retained"):
        rank_one(residual[:, 0], protected[:, 1], factor, protected=protected)


def test_rank_one_with_another_written_key_moves_that_one() -> None:
    residual, keys, covariance = problem(2, seed=19)
    got = rank_one(residual[:, 0], keys[:, 0], factorise(covariance), keys[:, 1]).dense()
    torch.testing.assert_close(got @ keys[:, 1], residual[:, 0], rtol=1e-8, atol=1e-8)
    # Its direction is the first key's: C⁻¹k spans the rows.
    direction = torch.linalg.solve(covariance, keys[:, 0])
    torch.testing.assert_close(
        got, torch.outer(residual[:, 0], direction) / (direction @ keys[:, 1])
    )
