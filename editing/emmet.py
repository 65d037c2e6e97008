"""EMMET: the batched form of ROME's equality constraint, spread over blocks as MEMIT does.

Its closed form is MEMIT's with λ equal to the damping (see `editing.solvers`); published settings differ in
practice by writing one block with a constraint that is nearly exact.

Source: Gupta et al. 2024 (A unified framework for model editing).
"""

from collections.abc import Sequence

from torch import Tensor

from editing.config import EditorSettings
from editing.covariance import Covariances
from editing.delta import EditDelta
from editing.requests import EditRequest
from editing.solvers import LowRank, equality
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
    """EMMET's update for the requests at the layers (see `editing.spreading.edit_block`)."""
    solve = solver(covariances, settings)
    return edit_block(
        "emmet", model, requests, layers, covariances, contexts, settings, solve, targets=targets, others=others
    )


def solver(covariances: Covariances, settings: EditorSettings) -> Solve:
    """ΔW = R (Kᵀ C⁻¹ K + damping·I)⁻¹ Kᵀ C⁻¹."""

    def solve(layer: int, residual: Tensor, keys: Tensor, protected: Tensor | None, earlier: Tensor | None) -> LowRank:
        return equality(residual, keys, covariances.factor(layer), settings.damping, protected)

    return solve
