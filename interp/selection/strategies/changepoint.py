"""The segment whose effect is above that of the other layers, of any width."""

from interp.selection.pickers import segment_of
from interp.selection.reasons import Finding, number
from interp.selection.strategy import Strategy
from interp.selection.support import overlap


def explain(finding: Finding) -> str:
    """How high the effect is inside and outside."""
    if finding.outside is None:
        return f"{finding.names} is the only candidate ({finding.effect} {finding.measured})."
    one = len(finding.layers) == 1
    return (
        f"{finding.names} {'has' if one else 'have'} a higher {finding.effect}"
        f" ({finding.measured}) than the other layers ({number(finding.outside)})."
    )


STRATEGY = Strategy(
    summary="the segment with a higher effect than the other layers, of any width",
    picker=lambda config: segment_of(config.min_width, config.max_width),
    explain=explain,
    agreement=overlap,
    size="min_width",
    needs_outside=True,
)
