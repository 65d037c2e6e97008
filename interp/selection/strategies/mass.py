"""The fewest layers that hold a share of the positive effect, contiguous or not."""

from interp.selection.pickers import mass_of
from interp.selection.reasons import Finding, percent
from interp.selection.strategy import Strategy
from interp.selection.support import overlap


def explain(finding: Finding) -> str:
    """What share of the positive effect the layers hold."""
    one, config = len(finding.layers) == 1, finding.config
    fewest = (
        f"select.min_width asks for {config.min_width} layers."
        if len(finding.layers) == config.min_width > 1
        else f"No smaller set of layers holds {percent(config.share)}."
    )
    return (
        f"{finding.names} {'holds' if one else 'hold'} {percent(finding.share)} of the positive"
        f" {finding.effect} (mean {finding.measured}). {fewest}"
    )


STRATEGY = Strategy(
    summary="the fewest layers that hold a share of the positive effect, contiguous or not",
    picker=lambda config: mass_of(config.share, config.min_width, config.max_width),
    explain=explain,
    agreement=overlap,
    size="min_width",
)
