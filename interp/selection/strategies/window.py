"""The contiguous window of `select.width` layers with the largest mean effect."""

from interp.selection.pickers import window_of
from interp.selection.reasons import highest_window
from interp.selection.strategy import Strategy
from interp.selection.support import same

STRATEGY = Strategy(
    summary="the contiguous window with the largest mean effect",
    picker=lambda config: window_of(config.width),
    explain=highest_window,
    agreement=same,
)
