"""Windows for groups of forms that are found from the data: forms are merged unless they differ."""

from interp.selection.merging import merge_forms
from interp.selection.pickers import window_of
from interp.selection.reasons import highest_window
from interp.selection.strategy import Strategy
from interp.selection.support import same

STRATEGY = Strategy(
    summary="windows, for groups of forms found from the data",
    picker=lambda config: window_of(config.width),
    explain=highest_window,
    agreement=same,
    grouping=lambda effect, config: merge_forms(
        effect, level=config.level, draws=config.bootstrap, seed=config.seed
    ),
)
