"""The window at which edits of `dmle sweep` succeed best; reads no profile.

What is picked from are windows, not layers (see `interp.selection.from_sweep`).
"""

from interp.selection.pickers import window_of
from interp.selection.reasons import Finding, number
from interp.selection.strategy import Strategy
from interp.selection.support import same


def explain(finding: Finding) -> str:
    """How good edits are at the window, and at all windows."""
    return (
        f"Edits of {finding.names.lower()} have the highest mean score of"
        f" {finding.candidates} windows ({finding.measured}). The mean over all windows is"
        f" {number(finding.mean)}."
    )


STRATEGY = Strategy(
    summary="the window at which edits of `dmle sweep` succeed best, without a profile",
    picker=lambda config: window_of(1),
    explain=explain,
    agreement=same,
    reads=("sweep",),
    size=None,
)
