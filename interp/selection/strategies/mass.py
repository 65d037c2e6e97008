"""The fewest layers that hold a share of the positive effect, contiguous or not."""

from interp.selection.pickers import mass_of
from interp.selection.reasons import Finding
from interp.selection.strategy import Strategy
from interp.selection.support import overlap


def explain(finding: Finding) -> str:
    """What share of the positive effect the layers hold."""
    one = len(finding.layers) == 1
    return (
        f"{finding.names} {'holds' if one else 'hold'} {finding.share:.0%} of the positive"
        f" {finding.effect}. No smaller set of layers holds {finding.config.share:.0%}. The mean"
        f" over {'it' if one else 'them'} is {finding.measured}."
    )


STRATEGY = Strategy(
    summary="the fewest layers that hold a share of the positive effect, contiguous or not",
    picker=lambda config: mass_of(config.share, config.min_width, config.max_width),
    explain=explain,
    agreement=overlap,
    size="min_width",
)
