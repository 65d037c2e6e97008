"""What a notebook shows of results: short HTML and data frames, in which text from data is only
ever text.

Pure functions from values to text or tables. `LayerSelection` and `EditDelta` show themselves by
these; datasets do by ``dataset.dmle`` once ``figures.accessors`` is imported.

HTML here is built from escaped cells alone, carries no script and no style sheet, and asks MathJax
to leave it alone: a prompt with dollar signs is a prompt.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from interp.results.effects import choose_metric, indirect_effect, total_effect
from interp.results.tables import MISSING, escape_markdown, markdown
from interp.vocabulary import LOOKUP

if TYPE_CHECKING:
    from interp.selection.select import (
        LayerGroup,
        LayerSelection,
    )  # which shows itself by this module

CELL = 9
"""Width of a layer in the strip of a selection, pixels."""
STRIP_HEIGHT = 14
_CHOSEN, _UNSUPPORTED, _CANDIDATE, _EXCLUDED = "#0173b2", "#a33b00", "#e3e3e3", "#ffffff"
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
    return _table(
        heads, ([html.escape(cell) for cell in row] for row in rows), title=title, note=note
    )


# -- layer selections ----------------------------------------------------------------------------


def selection_html(selection: "LayerSelection") -> str:
    """A selection as a strip of the model's layers and a table of the evidence, one row per
    group of forms.
    """
    heads = ("forms", "layers", f"0 … {selection.n_layers - 1}", *_EVIDENCE)
    rows = []
    for group in selection.groups:
        names, layers, *evidence = (html.escape(cell) for cell in _group_cells(group))
        rows.append([names, layers, _strip(group, selection), *evidence])
    return _table(heads, rows, title=_selection_title(selection), note=_selection_note(selection))


def selection_markdown(selection: "LayerSelection") -> str:
    """The same without the strip, as a Markdown table."""
    rows = [[escape_markdown(cell) for cell in _group_cells(group)] for group in selection.groups]
    table = markdown(("forms", "layers", *_EVIDENCE), rows)
    title, note = (
        escape_markdown(_selection_title(selection)),
        escape_markdown(_selection_note(selection)),
    )
    return f"**{title}**\n\n{table}\n{note}\n"


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


def profile_table(profile: xr.Dataset, role: str | None = None) -> pd.DataFrame:
    """One row for each form and component: the layer where the mean effect is largest, with its
    interval.

    Args:
        profile: Layer profile (see `interp.selection.profiles`).
        role: Token role; where editors look a rule up by default.
    """
    part = profile.sel(role=LOOKUP if role is None else role)
    rows = []
    for form in part["form"].values:
        for component in part["component"].values:
            line = part.sel(form=form, component=component)
            row = {"form": str(form), "component": str(component), "rules": int(line["n"])}
            if bool(line["aie"].notnull().any()):
                top = line.isel(layer=int(line["aie"].argmax("layer")))
                row |= {
                    "peak layer": int(top["layer"]),
                    "effect there": float(top["aie"]),
                    "lower": float(top["lower"]),
                    "upper": float(top["upper"]),
                }
            rows.append({**row, "total effect": float(part["te"].sel(form=form))})
    columns = [
        "form",
        "component",
        "rules",
        "peak layer",
        "effect there",
        "lower",
        "upper",
        "total effect",
    ]
    return pd.DataFrame(rows).reindex(columns=columns).astype({"peak layer": "Int64"})


def frame_html(frame: pd.DataFrame, *, title: str = "", note: str = "") -> str:
    """A data frame as HTML: numbers with two decimals, a dash for what is missing."""
    rows = ([_shown(value) for value in row] for row in frame.itertuples(index=False))
    return html_table(map(str, frame.columns), rows, title=title, note=note)


# -- pieces --------------------------------------------------------------------------------------

_EVIDENCE = ("score", "stability", "p", "rules", "supported", "reason")


def _group_cells(group: "LayerGroup") -> list[str]:
    """A group in words: forms, layers, then `_EVIDENCE`."""
    interval = (
        ""
        if group.lower is None or group.upper is None
        else f" [{group.lower:.2f}, {group.upper:.2f}]"
    )
    return [
        group.name.replace("+", " + "),
        ", ".join(map(str, group.layers)),
        MISSING if group.score is None else f"{group.score:.2f}{interval}",
        MISSING if group.stability is None else f"{group.stability:.0%}",
        MISSING if group.p_value is None else f"{group.p_value:.3f}",
        str(group.n_rules) if group.n_rules else MISSING,
        "yes" if group.supported else "NO",
        group.reason or MISSING,
    ]


def _selection_title(selection: "LayerSelection") -> str:
    model = selection.provenance.get("model")
    return (
        f"Layers of {model or 'a model'} ({selection.n_layers} blocks), strategy"
        f" {selection.strategy}"
    )


def _selection_note(selection: "LayerSelection") -> str:
    last = selection.n_layers - 1 if selection.last_layer is None else selection.last_layer
    unit = selection.provenance.get("unit")
    where = (
        f"{selection.component} at {selection.role} tokens"
        if selection.role
        else selection.component
    )
    return (
        f"Score: mean effect of {where} over the layers{f', in {unit}' if unit else ''}, with its"
        " interval over rules. Stability: how far other rules would give the same layers."
        f" Candidates: layers {selection.first_layer} to {last}."
    )


def _strip(group: "LayerGroup", selection: "LayerSelection") -> str:
    """The layers as cells: chosen ones coloured, those that were no candidates empty."""
    last = selection.n_layers - 1 if selection.last_layer is None else selection.last_layer
    cells = []
    for layer in range(selection.n_layers):
        fill = _CANDIDATE if selection.first_layer <= layer <= last else _EXCLUDED
        if layer in group.layers:
            fill = _CHOSEN if group.supported else _UNSUPPORTED
        cells.append(
            f'<rect x="{layer * CELL}" width="{CELL - 1}" height="{STRIP_HEIGHT}" fill="{fill}"'
            f' stroke="#bbbbbb" stroke-width="0.5"><title>layer {layer}</title></rect>'
        )
    width = selection.n_layers * CELL
    return f'<svg width="{width}" height="{STRIP_HEIGHT}" role="img">{"".join(cells)}</svg>'


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


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]], *, title: str, note: str) -> str:
    """A table of cells that are HTML already; heads, title and note are text."""
    head = "".join(f"<th {_LEFT}>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td {_LEFT}>{cell}</td>' for cell in row)}</tr>" for row in rows
    )
    above = f"<p><b>{html.escape(title)}</b></p>" if title else ""
    below = f"<p><small>{html.escape(note)}</small></p>" if note else ""
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div {_PLAIN}>{above}{table}{below}</div>"
