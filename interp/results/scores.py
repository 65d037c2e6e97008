"""Edit scores: their schema, and what every reader of them needs.

``scores.nc`` has dims ``editor rule form metric mode phase(pre|post)`` and holds ``score`` (mean
over items; NaN where a rule and form have none) and ``n_items``. `editor` is an editor or a named
arm. Higher is better, except in the modes of `LOWER_IS_BETTER`.
"""

import xarray as xr

from interp.errors import InputError
from interp.vocabulary import CHALLENGES

METRICS = (
    "reliability",
    "generality",
    "instance_portability",
    "rule_understanding_verbatim",
    "rule_understanding_paraphrase",
    "locality",
    "locality_correctness",
)
MODES = ("token_accuracy", "exact", "greedy_exact", "greedy_prefix", "equivalent", "log_prob", "kl")
ADDED_METRICS: tuple[str, ...] = CHALLENGES
"""Metrics that scores have only where they were asked for (`evaluate.challenges`)."""
ADDED_MODES = ("yes_no", "free", "free_gap", "top_5", "top_10")
"""Modes that scores have only where they were asked for (`evaluate.challenges`, `free_tokens`,
`overlap`)."""
PHASES = ("pre", "post")
LOWER_IS_BETTER = ("kl", "free_gap")
"""Modes in which the lower value wins."""
WITHOUT_FLOOR = ("locality",)
"""Metrics that compare with the unedited model: their value before the edit is fixed by
definition."""
ANSWER_COLUMNS = (
    "editor",
    "rule",
    "form",
    "metric",
    "prompt",
    "target_new",
    "target_true",
    "before",
    "after",
)
"""Columns of raw answers that hold texts and that every reader needs."""
ANSWER_NUMBERS = tuple(f"{mode}_{when}" for mode in MODES for when in ("before", "after"))
"""Columns of raw answers that hold numbers, where they are."""
ADDED_ANSWER_COLUMNS = (
    "free_answer_before",
    "free_answer_after",
    *(f"{mode}_{when}" for mode in ADDED_MODES for when in ("before", "after")),
)
"""Columns of raw answers that are there only where they were asked for."""
REGRET_NUMBERS = ("regret", "lower", "upper", "rank", "n_windows", "n_rules")
"""Columns of a table of regret that say what a choice of layers costs."""


def per_rule(scores: xr.Dataset, mode: str) -> xr.DataArray:
    """Scores of one mode, averaged over the forms that a rule has items for; dims editor metric
    phase rule.

    Editors without a score after the edit in this mode are left out.

    Raises:
        ValueError: The mode is unknown or has no scores.
    """
    modes = scores["mode"].values.tolist()
    if mode not in modes:
        raise InputError(f"the scores have no mode {mode!r}; choose from {modes}")
    rules = scores["score"].sel(mode=mode).mean("form", skipna=True)
    scored = rules.sel(phase="post").notnull().any(["rule", "metric"]).values
    if not scored.any():
        raise InputError(f"mode {mode!r} has no scores; choose another of {modes}")
    return rules.isel(editor=scored).transpose("editor", "metric", "phase", "rule")


def modes_with_scores(scores: xr.Dataset) -> list[str]:
    """Scoring modes that hold at least one score after an edit."""
    after = scores["score"].sel(phase="post")
    return [
        str(mode) for mode in scores["mode"].values if bool(after.sel(mode=mode).notnull().any())
    ]
