"""AlphaEdit: MEMIT's loop with updates confined to directions in which plain text has (nearly) no
keys.

Differences from the published code: the state of earlier edits (its `cache_c`) is no hidden
variable but the keys of the requests in `Workbench.earlier`, read on the model as it is now;
projectors are by layer, of this model.

Source: Fang et al. 2025 (AlphaEdit) and its code; the loop is `editing.closed_form.spreading`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from editing.closed_form.covariance import Covariances
from editing.closed_form.solvers import null_space
from editing.closed_form.spreading import Problem
from editing.config import EditorSettings
from editing.editors.registry import closed_form
from editing.edits.low_rank import LowRank
from editing.edits.precision import exact, frobenius
from interp.errors import InputError


def report(
    covariances: Covariances, layers: Sequence[int], settings: EditorSettings
) -> Mapping[str, Any]:
    """How many directions were free to write, for the header."""
    return {"free_directions": {str(layer): free(covariances, layer, settings) for layer in layers}}


@closed_form("alphaedit", blocks=(4, 5, 6, 7, 8), report=report, needs=("earlier requests",))
def solve(problem: Problem) -> LowRank:
    """ΔW = R Kᵀ P (K Kᵀ P + K_e K_eᵀ P + l2·I)⁻¹.

    Raises:
        InputError: No direction, or every one, is below the threshold.
    """
    settings, layer = problem.settings, problem.layer
    n_free = free(problem.covariances, layer, settings)
    if n_free in (0, len(problem.keys)):
        raise InputError(
            f"{n_free} of {len(problem.keys)} directions of the covariance of layer {layer} are"
            f" below edit.null_threshold={settings.null_threshold}; choose one between its smallest"
            " and largest eigenvalue, or take --set edit.null_relative=true"
        )
    projector = problem.covariances.null_space(
        layer, settings.null_threshold, settings.null_relative
    )
    return null_space(
        problem.residual, problem.keys, projector, settings.l2, problem.earlier, problem.protected
    )


def free(covariances: Covariances, layer: int, settings: EditorSettings) -> int:
    """Number of directions that the projector leaves free to write."""
    projector = covariances.null_space(layer, settings.null_threshold, settings.null_relative)
    # The squares of a projector's entries sum to its trace.
    return round(frobenius(exact(projector)) ** 2)
