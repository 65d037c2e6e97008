"""Windows by layer gradient analysis: where a step for the edited prompts is a step for other
prompts of the same rule (`dmle evidence`).

Source: Golden Layers and Where to Find Them (arXiv 2602.20207), which chooses layers by gradients
on a proxy set. What of the measure is theirs and what is ours: `editing.studies.evidence`.
"""

from interp.selection.evidence import window_by

STRATEGY = window_by(
    "lga", "windows, by how far a step for the edited prompts is one for the rule's other prompts"
)
