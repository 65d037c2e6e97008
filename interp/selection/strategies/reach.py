"""Windows by the *reach* of edits alone: how far a block could move the new answer, to first order
(`dmle evidence`).
"""

from interp.selection.evidence import window_by

STRATEGY = window_by("reach", "windows, by how far an edit there could move the new answer")
