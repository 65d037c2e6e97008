"""EMMET: the batched form of ROME's equality constraint, spread over blocks as MEMIT does.

Its closed form is MEMIT's with λ equal to the damping (see `editing.closed_form.solvers`);
published settings differ in practice by writing one block with a constraint that is nearly exact.

Source: Gupta et al. 2024 (A unified framework for model editing).
"""

from editing.closed_form.solvers import equality
from editing.closed_form.spreading import Problem
from editing.editors.registry import closed_form
from editing.edits.low_rank import LowRank


@closed_form("emmet", blocks=(4, 5, 6, 7, 8))
def solve(problem: Problem) -> LowRank:
    """ΔW = R (Kᵀ C⁻¹ K + damping·I)⁻¹ Kᵀ C⁻¹."""
    return equality(
        problem.residual,
        problem.keys,
        problem.covariances.factor(problem.layer),
        problem.settings.damping,
        problem.protected,
    )
