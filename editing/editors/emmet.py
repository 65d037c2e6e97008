"""EMMET: the batched form of ROME's equality constraint, spread over blocks as MEMIT does.

Its closed form is MEMIT's with λ equal to the damping (see `editing.closed_form.solvers`);
published settings differ in practice by writing one block with a constraint that is nearly exact.

Source: Gupta et al. 2024 (A unified framework for model editing).
"""

from collections.abc import Sequence

from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.solvers import LowRank, equality
from editing.closed_form.spreading import Others, Solve, edit_block
from editing.closed_form.targets import Targets
from editing.config import EditorSettings
from editing.edits.delta import EditDelta
from editing.edits.requests import EditRequest
from interp.models.loading import LanguageModel


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
    """EMMET's update for the requests at the layers (see
    `editing.closed_form.spreading.edit_block`).
    """
    solve = solver(covariances, settings)
    return edit_block(
        "emmet",
        model,
        requests,
        layers,
        covariances,
        contexts,
        settings,
        solve,
        targets=targets,
        others=others,
    )


def solver(covariances: Covariances, settings: EditorSettings) -> Solve:
    """ΔW = R (Kᵀ C⁻¹ K + damping·I)⁻¹ Kᵀ C⁻¹."""

    def solve(
        layer: int, residual: Tensor, keys: Tensor, protected: Tensor | None, earlier: Tensor | None
    ) -> LowRank:
        return equality(residual, keys, covariances.factor(layer), settings.damping, protected)

    return solve
