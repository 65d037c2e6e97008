"""Many rules edited into one model: the schema of ``sequence.nc``, and what readers need of it.

========== ================================ ====================================================
``score``  arm order edits rule metric mode of one rule, mean over its forms; NaN where not scored
``effect`` arm order edits measure          what the edits did elsewhere (`MEASURES`)
``failed`` arm order edits                  rules whose edit could not be made; the model is
                                            as it was before them
========== ================================ ====================================================

`order` is ``sequence`` or ``batch``; a batch is scored once, with all rules. `edits` is the number
of rules edited so far, and `rule` is in the order of the edits. An arm that could not be scored is
NaN; ``attrs["errors"]`` says why (JSON, by arm and order).
"""

from typing import Any

import numpy as np
import xarray as xr

SCHEMA = "dmle.sequence/1"
DIMS = {
    "score": ("arm", "order", "edits", "rule", "metric", "mode"),
    "effect": ("arm", "order", "edits", "measure"),
    "failed": ("arm", "order", "edits"),
}
MODES = ("token_accuracy", "exact", "log_prob")
MEASURES = (
    "perplexity_ratio",
    "perplexity_before",
    "perplexity_after",
    "side_agreement",
    "side_kl",
    "side_accuracy_before",
    "side_accuracy_after",
)
"""As in `editing.evaluation.side_effects`; the ratio is after / before."""
LAST = 10
"""Rules that were edited last, which are also shown by themselves."""
RECENT = "reliability_recent"
"""Reliability of these."""


def sequence_means(data: xr.Dataset, mode: str = "token_accuracy") -> list[dict[str, Any]]:
    """Means over rules, and what happened elsewhere: a row for each arm, order and number of edits.

    Args:
        data: Content of ``sequence.nc``.
        mode: Scoring mode.

    Returns:
        ``arm order edits failed``, the metrics, `RECENT` and `MEASURES`. Rows without any value are
        left out, but for those that failed.
    """
    rows: list[dict[str, Any]] = []
    means = data["score"].sel(mode=mode).mean("rule", skipna=True)
    for arm in data["arm"].values:
        for order in data["order"].values:
            for edits in data["edits"].values:
                at = {"arm": str(arm), "order": str(order), "edits": int(edits)}
                failed = int(data["failed"].sel(at))
                values = {
                    str(m): float(means.sel({**at, "metric": m})) for m in data["metric"].values
                }
                values[RECENT] = _recent(data["score"].sel({**at, "mode": mode}), at["edits"])
                values |= {
                    str(m): float(data["effect"].sel({**at, "measure": m}))
                    for m in data["measure"].values
                }
                if failed or not np.isnan(list(values.values())).all():
                    rows.append({**at, "failed": failed, **values})
    return rows


def _recent(score: xr.DataArray, edits: int) -> float:
    """Mean reliability of the `LAST` rules among the first so many."""
    last = score.sel(metric="reliability").values[max(0, edits - LAST) : edits]
    return float(np.mean(last[~np.isnan(last)])) if (~np.isnan(last)).any() else float("nan")
