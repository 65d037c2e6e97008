"""MEMIT: write the targets of all requests into a range of blocks by the ridge closed form.

Source: Meng et al. 2023 (MEMIT), algorithm 1 and eq. 14; the loop is `editing.spreading`.
"""

from collections.abc import Sequence

from torch import Tensor

from editing.config import EditorSettings
from editing.covariance import Covariances
from editing.delta import EditDelta
from editing.requests import EditRequest
from editing.solvers import LowRank, ridge
from editing.spreading import Others, Solve, edit_block
from editing.targets import Targets
from interp.model import LanguageModel


def edit(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    covariances: Covariances,
    contexts: Sequence[str],
    settings: EditorSettings,
    *,
    targets: Targets | None = None,
    others: Others | None = None,
) -> EditDelta:
    """MEMIT's update for the requests at the layers (see `editing.spreading.edit_block`)."""
    solve = solver(covariances, settings)
    return edit_block(
        "memit", model, requests, layers, covariances, contexts, settings, solve, targets=targets, others=others
    )


def solver(covariances: Covariances, settings: EditorSettings) -> Solve:
    """ΔW = R Kᵀ (λC + K Kᵀ)⁻¹ with λ = `ridge` · d_mlp. Keys of earlier edits have no term of their own."""

    def solve(layer: int, residual: Tensor, keys: Tensor, protected: Tensor | None, earlier: Tensor | None) -> LowRank:
        factor = covariances.factor(layer)
        return ridge(residual, keys, factor, settings.ridge * len(keys), protected)

    return solve
