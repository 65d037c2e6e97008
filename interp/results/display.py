"""What a notebook shows of results: short HTML and data frames, in which text from data is only
ever text.

Pure functions from values to text or tables. `EditDelta` shows itself by these; datasets do by
``dataset.dmle`` once ``figures.accessors`` is imported. Selections and profiles have
`interp.selection.shown`.

HTML here is built from escaped cells alone, carries no script and no style sheet, and asks MathJax
to leave it alone: a prompt with dollar signs is a prompt.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from interp.results.effects import choose_metric, indirect_effect, total_effect
from interp.results.tables import MISSING

_PLAIN = 'class="tex2jax_ignore mathjax_ignore"'
_LEFT = 'style="text-align:left;vertical-align:top"'


class Update(NamedTuple):
    """One update of an edit, as it is shown."""

    parameter: str
    layer: int
    shape: tuple[int, int]
    """(d_out, d_in)."""
    rank: int | None
    """Columns of its factors; None: a whole matrix."""


def html_table(
    heads: Iterable[str], rows: Iterable[Iterable[str]], *, title: str = "", note: str = ""
) -> str:
    """An HTML table of plain text, escaped here, with a title above and a note below."""
    return cell_table(
        heads, ([html.escape(cell) for cell in row] for row in rows), title=title, note=note
    )


# -- edits ---------------------------------------------------------------------------------------


def delta_html(
    updates: Sequence[Update],
    norms: Mapping[int, float],
    about: Mapping[str, Any],
    *,
    model_hash: str = "",
) -> str:
    """An edit of weights: what was asked, how far each request got, and what is written where.

    Args:
        updates: What is changed.
        norms: Frobenius norm of the change of each block.
        about: What the edit says of itself (see `editing.edits.delta.EditDelta`); anything may be
            missing.
        model_hash: Weights that it is for.
    """
    editor = str(about.get("editor", "edit"))
    rules = ", ".join(dict.fromkeys(str(request["rule"]) for request in about.get("requests", ())))
    title = f"{editor}: {rules}" if rules else editor
    asked = html_table(
        ("rule", "form", "prompt", "wanted answer", "way to the target left"),
        _request_rows(about),
        title=title,
    )
    rows = [
        (
            u.parameter,
            str(u.layer),
            f"{u.shape[0]} × {u.shape[1]}",
            MISSING if u.rank is None else str(u.rank),
        )
        for u in updates
    ]
    blocks = "; ".join(f"layer {layer}: {norm:.2f}" for layer, norm in sorted(norms.items()))
    note = f"Norm of the change: {blocks or 'nothing is changed'}."
    if lost := about.get("cast_loss"):
        note += f" Lost in the model's number format: {max(lost.values()):.1%} at most."
    if model_hash:
        note += f" For the model with weights {model_hash}."
    return asked + html_table(("parameter", "layer", "shape", "rank"), rows, note=note)


# -- datasets ------------------------------------------------------------------------------------


def map_table(effects: xr.Dataset) -> pd.DataFrame:
    """One row for each token of one map that was traced: its role, and each component's best layer
    and effect there.

    Tokens before the first corrupted one are left out: nothing differs there.

    Args:
        effects: Map of one prompt (see `interp.results.effects`); of several metrics the first is
            read.
    """
    effects = choose_metric(effects)
    effect = indirect_effect(effects)
    behind = np.cumsum(effects["is_corrupted"].values) > 0
    traced = np.flatnonzero(effect.notnull().any(["component", "layer"]).values & behind)
    columns: dict[str, Any] = {
        "token": effects["token"].values[traced],
        "role": effects["role"].values[traced],
        "corrupted": effects["is_corrupted"].values[traced],
    }
    for component in map(str, effects["component"].values):
        one = effect.sel(component=component).isel(pos=traced).transpose("pos", "layer").values
        # Without a value everywhere the best layer is that of the values there are.
        known = np.asarray(~np.isnan(one).all(axis=1))
        best = np.where(np.isnan(one), -np.inf, one).argmax(1)
        columns[f"{component}: best layer"] = pd.array(
            [
                int(effects["layer"].values[b]) if k else None
                for b, k in zip(best, known.tolist(), strict=True)
            ],
            dtype="Int64",
        )
        columns[f"{component}: effect"] = np.where(known, one[np.arange(len(one)), best], np.nan)
    return pd.DataFrame(columns)


def maps_table(effects: xr.Dataset) -> pd.DataFrame:
    """One row for each prompt of joined maps: the answer, the total effect, and whether it can
    be traced at all.
    """
    effects = choose_metric(effects)
    te = total_effect(effects)
    rows = []
    for rule in effects["rule"].values:
        for form in effects["form"].values:
            at = {"rule": rule, "form": form}
            if int(effects["n_tokens"].sel(at)):
                rows.append(
                    {
                        "rule": str(rule),
                        "form": str(form),
                        "prompt": str(effects["prompt"].sel(at).item()),
                        "answer": str(effects["answer"].sel(at).item()),
                        "total effect": float(te["total_effect"].sel(at)),
                        "standard error": float(te["standard_error"].sel(at)),
                        "traceable": bool(te["traceable"].sel(at)),
                    }
                )
    return pd.DataFrame(rows)


def frame_html(frame: pd.DataFrame, *, title: str = "", note: str = "") -> str:
    """A data frame as HTML: numbers with two decimals, a dash for what is missing."""
    rows = ([_shown(value) for value in row] for row in frame.itertuples(index=False))
    return html_table(map(str, frame.columns), rows, title=title, note=note)


# -- pieces --------------------------------------------------------------------------------------


def _request_rows(about: Mapping[str, Any]) -> list[list[str]]:
    """What was asked, with the share of the way to its target that is left, where the edit says
    so.
    """
    left: dict[tuple[str, str, str], float] = {}
    for part in (about, *about.get("stages", ())):
        shares = part.get("residual_left", ())
        for request, share in zip(part.get("requests", ()), shares, strict=False):
            left[request["rule"], request["form"], request["prompt"]] = share
    rows = []
    for request in about.get("requests", ()):
        name = (request["rule"], request["form"], request["prompt"])
        rows.append(
            [
                *name,
                request["target_new"],
                f"{left[name]:.0%}" if np.isfinite(left.get(name, np.nan)) else MISSING,
            ]
        )
    return rows


def _shown(value: Any) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
        return MISSING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def cell_table(
    heads: Iterable[str], rows: Iterable[Iterable[str]], *, title: str, note: str
) -> str:
    """A table of cells that are HTML already; heads, title and note are text."""
    head = "".join(f"<th {_LEFT}>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td {_LEFT}>{cell}</td>' for cell in row)}</tr>" for row in rows
    )
    above = f"<p><b>{html.escape(title)}</b></p>" if title else ""
    below = f"<p><small>{html.escape(note)}</small></p>" if note else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div {_PLAIN}>{above}{table}{below}</div>"
