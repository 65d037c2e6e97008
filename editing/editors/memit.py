"""MEMIT: write the targets of all requests into a range of blocks by the ridge closed form.

Source: Meng et al. 2023 (MEMIT), algorithm 1 and eq. 14; the loop is
`editing.closed_form.spreading`.
"""

from collections.abc import Sequence

from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.solvers import LowRank, ridge
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
    """MEMIT's update for the requests at the layers (see
    `editing.closed_form.spreading.edit_block`).
    """
    solve = solver(covariances, settings)
    return edit_block(
        "memit",
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
    """ΔW = R Kᵀ (λC + K Kᵀ)⁻¹ with λ = `ridge` · d_mlp. Keys of earlier edits have no term of
    their own.
    """

    def solve(
        layer: int, residual: Tensor, keys: Tensor, protected: Tensor | None, earlier: Tensor | None
    ) -> LowRank:
        factor = covariances.factor(layer)
        return ridge(residual, keys, factor, settings.ridge * len(keys), protected)

    return solve
