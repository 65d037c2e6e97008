"""Closed forms of weight updates, on plain tensors; no model.

Conventions: W maps keys to values, v = W k, shape (d_out, d_in); keys and residuals are columns, K
(d_in, n) and R (d_out, n); an update is a pair of factors with ΔW = left @ right.T.

Editors call these functions; `editing.closed_form.spreading` has the loop over blocks. The numbers
are float64, on the device of the keys. A device without float64 leaves the work to the host
(`editing.edits.precision`). The update stays where it was computed.

Keys that must not be touched, P (d_in, m), can be given to every solver: then ΔW P = 0 exactly. A
request whose key lies in their span cannot be served; its column of ΔW K is zero.

All but the rank-one forms work in coordinates in which the penalty is the identity: C = L Lᵀ, K̃ =
L⁻¹K. MEMIT's ridge and EMMET's damped equality are then one family, R (K̃ᵀK̃ + λI)⁻¹ K̃ᵀ L⁻¹, with
λ the weight of C or the damping of the constraint.
"""

from jaxtyping import Float
from torch import Tensor

from editing.edits.low_rank import LowRank
from editing.edits.precision import (
    Exact,
    as_tensor,
    beside,
    cholesky,
    exact,
    finite,
    lengths,
    pseudo_inverse,
    solve,
    span,
    together,
    triangular,
    where_longer,
    with_diagonal,
)
from interp.errors import InputError, NotFiniteError

NEGLIGIBLE = 1e-10
"""Singular values below this share of the largest are taken for zero."""


def factorise(covariance: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Lower Cholesky factor of a covariance, to be reused over updates.

    Raises:
        NotFiniteError: It holds NaN or infinity.
        ValueError: It is not positive definite: fewer independent samples than dimensions.
    """
    if not bool(covariance.isfinite().all()):
        raise NotFiniteError(
            f"the covariance ({len(covariance)} dimensions) holds NaN or infinity; delete its file,"
            " and measure it again on a model whose keys are finite (model.dtype=float32 or"
            " bfloat16)"
        )
    factor = cholesky(exact(covariance))
    if factor is None:
        raise InputError(
            f"the covariance ({len(covariance)} dimensions) is not positive definite; measure it"
            f" over more tokens (--set covariance.tokens={4 * len(covariance)} or more), or take"
            " --set covariance.shrinkage=ledoit-wolf"
        )
    return as_tensor(factor)


def ridge(
    residual: Float[Tensor, "d_out n"],
    keys: Float[Tensor, "d_in n"],
    factor: Float[Tensor, "d_in d_in"],
    weight: float,
    protected: Float[Tensor, "d_in m"] | None = None,
) -> LowRank:
    """Least change, weighted by the covariance, that moves the outputs of the keys by the residual.

    ΔW = R Kᵀ (λC + K Kᵀ)⁻¹, the minimiser of ‖ΔW K − R‖² + λ tr(ΔW C ΔWᵀ).

    By Woodbury's identity one factor of C serves every edit; what is solved has the size of the
    requests. Two equal keys with different residuals get the same output, an average: look for them
    first.

    Args:
        residual: R, wanted change of the outputs.
        keys: K.
        factor: Lower Cholesky factor of C.
        weight: λ.
        protected: P, keys whose outputs stay exactly as they are.

    Source: MEMIT eq. 14.
    """
    wanted, read, lower, kept = together(residual, keys, factor, protected)
    white = _whiten(read, lower, kept)
    gram = with_diagonal(white.T @ white, weight)
    return _low_rank(wanted, triangular(lower, solve(gram, white.T).T, transposed=True))


def equality(
    residual: Float[Tensor, "d_out n"],
    keys: Float[Tensor, "d_in n"],
    factor: Float[Tensor, "d_in d_in"],
    damping: float = 0.0,
    protected: Float[Tensor, "d_in m"] | None = None,
) -> LowRank:
    """Least change, weighted by the covariance, with ΔW K = R.

    ΔW = R (Kᵀ C⁻¹ K + damping·I)⁻¹ Kᵀ C⁻¹. Without damping the constraint is exact where it can be
    met, and met in the least-squares sense where equal keys want different outputs.

    Source: EMMET (Gupta et al. 2024, "A unified framework for model editing"), with its damping.
    """
    if damping:
        return ridge(residual, keys, factor, damping, protected)
    wanted, read, lower, kept = together(residual, keys, factor, protected)
    right = pseudo_inverse(_whiten(read, lower, kept), NEGLIGIBLE).T
    return _low_rank(wanted, triangular(lower, right, transposed=True))


def null_space(
    residual: Float[Tensor, "d_out n"],
    keys: Float[Tensor, "d_in n"],
    projector: Float[Tensor, "d_in d_in"],
    l2: float,
    earlier: Float[Tensor, "d_in e"] | None = None,
    protected: Float[Tensor, "d_in m"] | None = None,
) -> LowRank:
    """Least change that acts only where plain text has (nearly) no keys.

    ΔW = R Kᵀ P (K Kᵀ P + K_e K_eᵀ P + l2·I)⁻¹ with P the projector, so that ΔW P = ΔW. Solved in
    the size of the requests: with A = P [K, K_e], ΔW = [R, 0] (AᵀA + l2·I)⁻¹ Aᵀ.

    Args:
        residual: R.
        keys: K.
        projector: P, on the directions of C with small eigenvalues.
        l2: Weight of ‖ΔW‖².
        earlier: K_e, keys of earlier edits, whose outputs should stay (softly, as in the source).
        protected: Keys whose outputs stay exactly.

    Source: AlphaEdit (Fang et al. 2025), eq. 14 and its code.
    """
    wanted, read, basis, before, kept = together(residual, keys, projector, earlier, protected)
    free = basis @ (read if before is None else beside(read, before))
    if kept is not None:
        free = _without(free, basis @ kept)
    return _low_rank(wanted, solve(with_diagonal(free.T @ free, l2), free.T).T[:, : keys.shape[1]])


def rank_one(
    change: Float[Tensor, " d_out"],
    key: Float[Tensor, " d_in"],
    factor: Float[Tensor, "d_in d_in"],
    written: Float[Tensor, " d_in"] | None = None,
    protected: Float[Tensor, "d_in m"] | None = None,
) -> LowRank:
    """Least change, weighted by the covariance, along one key: ΔW = change (C⁻¹k)ᵀ / (kᵀC⁻¹ ·
    written).

    Args:
        change: Wanted change of the output of `written`.
        key: k, the direction that is written.
        factor: Lower Cholesky factor of C.
        written: The key whose output gets the change; `key` itself by default. ROME takes the bare
            prompt's here and an average for `key`, so that the denominator, and with it the update,
            can blow up; r-ROME takes one key for both.
        protected: P, keys whose outputs stay exactly as they are.

    Source: ROME eq. 2; r-ROME (Gupta et al. 2024, "Rebuilding ROME").
    """
    both = key, key if written is None else written
    wanted, read, at, lower, kept = together(change, *both, factor, protected)
    u = triangular(lower, _whiten(read[:, None], lower, kept), transposed=True)
    return _low_rank((wanted / (u[:, 0] @ at))[:, None], u)


def _low_rank(left: Exact, right: Exact) -> LowRank:
    """An update from its two factors.

    Raises:
        NotFiniteError: A factor holds NaN or infinity: a residual or a key does, or the system is
            singular.
    """
    if not (finite(left) and finite(right)):
        raise NotFiniteError(
            "the update is not finite: a key or target is NaN or infinite, or a key is zero; use"
            " model.dtype=float32, other requests, a larger edit.ridge, or a smaller edit.retained"
        )
    return LowRank(as_tensor(left), as_tensor(right))


def _whiten(keys: Exact, factor: Exact, protected: Exact | None) -> Exact:
    white = triangular(factor, keys)
    return white if protected is None else _without(white, triangular(factor, protected))


def _without(vectors: Exact, others: Exact) -> Exact:
    """The part of the columns that is orthogonal to the span of others."""
    basis, before = span(others, NEGLIGIBLE), lengths(vectors)
    for _ in range(2):  # once more for what rounding left
        vectors = vectors - basis @ (basis.T @ vectors)
    # What is left of a vector inside the span is rounding, which a small λ would blow up.
    return where_longer(vectors, 1e-6 * before)
