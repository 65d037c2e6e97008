"""MEMIT: write the targets of all requests into a range of blocks by the ridge closed form.

Source: Meng et al. 2023 (MEMIT), algorithm 1 and eq. 14; the loop is
`editing.closed_form.spreading`.
"""

from editing.closed_form.solvers import ridge
from editing.closed_form.spreading import Problem
from editing.editors.registry import closed_form
from editing.edits.low_rank import LowRank


@closed_form("memit", blocks=(4, 5, 6, 7, 8))  # of Qwen2.5-7B and LLaMA-3-8B
def solve(problem: Problem) -> LowRank:
    """ΔW = R Kᵀ (λC + K Kᵀ)⁻¹ with λ = `ridge` · d_mlp. Keys of earlier edits have no term of
    their own.
    """
    return ridge(
        problem.residual,
        problem.keys,
        problem.covariances.factor(problem.layer),
        problem.settings.ridge * len(problem.keys),
        problem.protected,
    )
