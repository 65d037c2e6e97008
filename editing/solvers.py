"""Closed forms of weight updates, on plain tensors; no model.

Conventions: W maps keys to values, v = W k, shape (d_out, d_in); keys and residuals are columns, K (d_in, n)
and R (d_out, n); an update is a pair of factors with ΔW = left @ right.T. Float64 inside.

Keys that must not be touched, P (d_in, m), can be given to every solver but the rank-one: then ΔW P = 0
exactly. A request whose key lies in their span cannot be served; its column of ΔW K is zero.

All but the rank-one forms work in coordinates in which the penalty is the identity: C = L Lᵀ, K̃ = L⁻¹K. MEMIT's
ridge and EMMET's damped equality are then one family, R (K̃ᵀK̃ + λI)⁻¹ K̃ᵀ L⁻¹, with λ the weight of C or the
damping of the constraint.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NEGLIGIBLE = 1e-10
"""Singular values below this share of the largest are taken for zero."""


@dataclass(frozen=True)
class LowRank:
    """ΔW = left @ right.T."""

    left: Float[Tensor, "d_out rank"]
    right: Float[Tensor, "d_in rank"]

    def dense(self) -> Float[Tensor, "d_out d_in"]:
        """The update as a matrix."""
        return self.left @ self.right.T


def factorise(covariance: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Lower Cholesky factor of a covariance, to be reused over updates.

    Raises:
        ValueError: It is not positive definite: fewer independent samples than dimensions.
    """
    factor, info = torch.linalg.cholesky_ex(covariance.double())
    if info.item():
        raise ValueError(
            f"the covariance ({len(covariance)} dimensions) is not positive definite; measure it over more tokens "
            f"(--set covariance.tokens={4 * len(covariance)} or more), or take --set covariance.shrinkage=ledoit-wolf"
        )
    return factor


def ridge(
    residual: Float[Tensor, "d_out n"],
    keys: Float[Tensor, "d_in n"],
    factor: Float[Tensor, "d_in d_in"],
    weight: float,
    protected: Float[Tensor, "d_in m"] | None = None,
) -> LowRank:
    """Least change, weighted by the covariance, that moves the outputs of the keys by the residual.

    ΔW = R Kᵀ (λC + K Kᵀ)⁻¹, the minimiser of ‖ΔW K − R‖² + λ tr(ΔW C ΔWᵀ).

    By Woodbury's identity one factor of C serves every edit; what is solved has the size of the requests. Two
    equal keys with different residuals get the same output, an average: look for them first.

    Args:
        residual: R, wanted change of the outputs.
        keys: K.
        factor: Lower Cholesky factor of C.
        weight: λ.
        protected: P, keys whose outputs stay exactly as they are.

    Source: MEMIT eq. 14.
    """
    white = _whiten(keys, factor, protected)
    gram = white.T @ white + weight * torch.eye(white.shape[1], dtype=white.dtype, device=white.device)
    return LowRank(residual.double(), _unwhiten(torch.linalg.solve(gram, white.T).T, factor))


def equality(
    residual: Float[Tensor, "d_out n"],
    keys: Float[Tensor, "d_in n"],
    factor: Float[Tensor, "d_in d_in"],
    damping: float = 0.0,
    protected: Float[Tensor, "d_in m"] | None = None,
) -> LowRank:
    """Least change, weighted by the covariance, with ΔW K = R.

    ΔW = R (Kᵀ C⁻¹ K + damping·I)⁻¹ Kᵀ C⁻¹. Without damping the constraint is exact where it can be met, and met
    in the least-squares sense where equal keys want different outputs.

    Source: EMMET (Gupta et al. 2024, "A unified framework for model editing"), with its damping.
    """
    if damping:
        return ridge(residual, keys, factor, damping, protected)
    white = _whiten(keys, factor, protected)
    right = torch.linalg.pinv(white, rtol=NEGLIGIBLE).T
    return LowRank(residual.double(), _unwhiten(right, factor))


def null_space(
    residual: Float[Tensor, "d_out n"],
    keys: Float[Tensor, "d_in n"],
    projector: Float[Tensor, "d_in d_in"],
    l2: float,
    earlier: Float[Tensor, "d_in e"] | None = None,
    protected: Float[Tensor, "d_in m"] | None = None,
) -> LowRank:
    """Least change that acts only where plain text has (nearly) no keys.

    ΔW = R Kᵀ P (K Kᵀ P + K_e K_eᵀ P + l2·I)⁻¹ with P the projector, so that ΔW P = ΔW. Solved in the size of
    the requests: with A = P [K, K_e], ΔW = [R, 0] (AᵀA + l2·I)⁻¹ Aᵀ.

    Args:
        residual: R.
        keys: K.
        projector: P, on the directions of C with small eigenvalues.
        l2: Weight of ‖ΔW‖².
        earlier: K_e, keys of earlier edits, whose outputs should stay (softly, as in the source).
        protected: Keys whose outputs stay exactly.

    Source: AlphaEdit (Fang et al. 2025), eq. 14 and its code.
    """
    n, basis = keys.shape[1], projector.double()
    both = keys if earlier is None else torch.cat([keys, earlier], 1)
    free = basis @ both.double()
    if protected is not None:
        free = _without(free, basis @ protected.double())
    gram = free.T @ free + l2 * torch.eye(free.shape[1], dtype=free.dtype, device=free.device)
    return LowRank(residual.double(), torch.linalg.solve(gram, free.T).T[:, :n])


def rank_one(
    change: Float[Tensor, " d_out"],
    key: Float[Tensor, " d_in"],
    factor: Float[Tensor, "d_in d_in"],
    written: Float[Tensor, " d_in"] | None = None,
) -> LowRank:
    """Least change, weighted by the covariance, along one key: ΔW = change (C⁻¹k)ᵀ / (kᵀC⁻¹ · written).

    Args:
        change: Wanted change of the output of `written`.
        key: k, the direction that is written.
        factor: Lower Cholesky factor of C.
        written: The key whose output gets the change; `key` itself by default. ROME takes the bare prompt's here
            and an average for `key`, so that the denominator, and with it the update, can blow up; r-ROME takes
            one key for both.

    Source: ROME eq. 2; r-ROME (Gupta et al. 2024, "Rebuilding ROME").
    """
    u = torch.cholesky_solve(key.double().unsqueeze(1), factor)[:, 0]
    scale = u @ (key if written is None else written).double()
    return LowRank((change.double() / scale).unsqueeze(1), u.unsqueeze(1))


def _whiten(keys: Tensor, factor: Tensor, protected: Tensor | None) -> Tensor:
    white = torch.linalg.solve_triangular(factor, keys.double(), upper=False)
    if protected is None:
        return white
    return _without(white, torch.linalg.solve_triangular(factor, protected.double(), upper=False))


def _unwhiten(right: Tensor, factor: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(factor.T, right, upper=True)


def _without(vectors: Tensor, others: Tensor) -> Tensor:
    """The part of the columns that is orthogonal to the span of others."""
    basis, sizes, _ = torch.linalg.svd(others, full_matrices=False)
    basis = basis[:, sizes > NEGLIGIBLE * sizes.max()] if sizes.numel() else basis
    lengths = vectors.norm(dim=0)
    for _ in range(2):  # once more for what rounding left
        vectors = vectors - basis @ (basis.T @ vectors)
    # What is left of a vector inside the span is rounding, which a small λ would blow up.
    return torch.where(vectors.norm(dim=0) > 1e-6 * lengths, vectors, 0)
