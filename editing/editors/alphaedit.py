"""AlphaEdit: MEMIT's loop with updates confined to directions in which plain text has (nearly) no
keys.

Differences from the published code: the state of earlier edits (its `cache_c`) is no hidden
variable but the keys of the requests in `others.earlier`, read on the model as it is now;
projectors are by layer, of this model.

Source: Fang et al. 2025 (AlphaEdit) and its code; the loop is `editing.closed_form.spreading`.
"""

from collections.abc import Sequence

from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.precision import exact, frobenius
from editing.closed_form.solvers import LowRank, null_space
from editing.closed_form.spreading import Others, Solve, edit_block
from editing.closed_form.targets import Targets
from editing.config import EditorSettings
from editing.edits.delta import EditDelta
from editing.edits.requests import EditRequest
from interp.errors import InputError
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
    """AlphaEdit's update for the requests at the layers; the header says how many directions
    were free.
    """
    solve = solver(covariances, settings)
    delta = edit_block(
        "alphaedit",
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
    return delta.with_about(
        free_directions={str(layer): free(covariances, layer, settings) for layer in layers}
    )


def solver(covariances: Covariances, settings: EditorSettings) -> Solve:
    """ΔW = R Kᵀ P (K Kᵀ P + K_e K_eᵀ P + l2·I)⁻¹.

    Raises (when solving):
        ValueError: No direction, or every one, is below the threshold.
    """

    def solve(
        layer: int, residual: Tensor, keys: Tensor, protected: Tensor | None, earlier: Tensor | None
    ) -> LowRank:
        n_free = free(covariances, layer, settings)
        if n_free in (0, len(keys)):
            raise InputError(
                f"{n_free} of {len(keys)} directions of the covariance of layer {layer} are below"
                f" edit.null_threshold={settings.null_threshold}; choose one between its smallest"
                " and largest eigenvalue, or take --set edit.null_relative=true"
            )
        projector = covariances.null_space(layer, settings.null_threshold, settings.null_relative)
        return null_space(residual, keys, projector, settings.l2, earlier, protected)

    return solve


def free(covariances: Covariances, layer: int, settings: EditorSettings) -> int:
    """Number of directions that the projector leaves free to write."""
    # The squares of a projector's entries sum to its trace.
    return round(
        frobenius(
            exact(covariances.null_space(layer, settings.null_threshold, settings.null_relative))
        )
        ** 2
    )
