"""Windows, and for each rule a window from its own profile, shrunk towards that of all rules."""

from interp.selection.pickers import window_of
from interp.selection.reasons import highest_window
from interp.selection.strategy import Strategy
from interp.selection.support import same

STRATEGY = Strategy(
    summary="windows rule by rule, from profiles shrunk towards that of all rules",
    picker=lambda config: window_of(config.width),
    explain=highest_window,
    agreement=same,
    by_rule=True,
)
