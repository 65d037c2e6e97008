"""Windows by two kinds of evidence with the same weight: the profile, and what `dmle evidence` says
of editing there.
"""

from collections.abc import Sequence

import numpy as np

from interp.selection.pickers import ROUNDING, window_of
from interp.selection.reasons import Finding
from interp.selection.strategy import Strategy
from interp.selection.support import same


def mixed(sources: Sequence[np.ndarray]) -> np.ndarray:
    """Several measures of the same rules and layers as one, shape (rule, layer), all with the same
    weight.

    Of each source the rule's mean over layers is taken off, and what is left is divided by the
    standard deviation over layers of its mean over rules: what all rules share over depth has size
    one, and a rule that says more says more. A source that is flat over layers says nothing, and
    adds nothing.

    >>> mixed([np.array([[1.0, 3.0]]), np.array([[5.0, 5.0]])])
    array([[-0.5,  0.5]])
    """
    scaled = []
    for source in sources:
        own = source - source.mean(1, keepdims=True)
        spread = float(own.mean(0).std())
        scaled.append(
            own / spread if spread > ROUNDING * float(np.abs(source).max()) else np.zeros_like(own)
        )
    return np.mean(scaled, axis=0)


def explain(finding: Finding) -> str:
    """How far the mean of the measures is above the mean of all layers."""
    return (
        f"{finding.names} are best by two measures together: the {finding.effect}, and what"
        f" `dmle evidence` measured. Their mean is above that of all candidates"
        f" ({finding.measured})."
    )


STRATEGY = Strategy(
    summary="windows, by the profile and by what `dmle evidence` says of editing there",
    picker=lambda config: window_of(config.width),
    explain=explain,
    agreement=same,
    reads=("profile", "evidence"),
    measures=("separability", "reach"),
    mix=mixed,
)
