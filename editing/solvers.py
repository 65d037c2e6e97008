"""Closed forms of weight updates, on plain tensors; no model.

Conventions: W maps keys to values, v = W k, shape (d_out, d_in); keys and residuals are columns, K (d_in, n)
and R (d_out, n); an update is a pair of factors with ΔW = left @ right.T. Float64 inside.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """ΔW = left @ right.T."""

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "d_in rank"]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The update as a matrix."""
        return self.left @ self.right.T


def factorise(covariance: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Cholesky factor of a covariance, to be reused over updates.

    Raises:
        ValueError: It is not positive definite: fewer independent samples than dimensions.
    """
    factor, info = torch.linalg.cholesky_ex(covariance.double())
    if info.item():
        raise ValueError(
            f"the covariance ({len(covariance)} dimensions) is not positive definite; measure it over more tokens "
            f"(covariance.tokens, several times {len(covariance)})"
        )
    return factor


def ridge(
    residual: Float[Tensor, "d_out n"],
    keys: Float[Tensor, "d_in n"],
    factor: Float[Tensor, "d_in d_in"],
    weight: float,
) -> LowRank:
    """Least change, weighted by the covariance, that moves the outputs of the keys by the residual.

    ΔW = R Kᵀ (λC + K Kᵀ)⁻¹, the minimiser of ‖ΔW K − R‖² + λ tr(ΔW C ΔWᵀ).

    Computed as R (I + KᵀY)⁻¹ Yᵀ with Y = (λC)⁻¹K (Woodbury), so that a factorised C serves every edit.
    Two equal keys with different residuals get the same output, an average: look for them first.

    Args:
        residual: R, wanted change of the outputs.
        keys: K.
        factor: Lower Cholesky factor of C.
        weight: λ.

    Source: MEMIT eq. 14.
    """
    keys, residual = keys.double(), residual.double()
    y = torch.cholesky_solve(keys, factor) / weight
    n = keys.shape[1]
    inner = torch.eye(n, dtype=torch.float64, device=keys.device) + keys.T @ y
    right = torch.linalg.solve(inner.T, y.T).T
    return LowRank(residual, right)
