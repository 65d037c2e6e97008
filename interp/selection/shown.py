"""What a notebook shows of layer selections and profiles: short HTML, Markdown and data frames."""

import html
from typing import TYPE_CHECKING

import pandas as pd
import xarray as xr

from interp.results.display import cell_table
from interp.results.tables import MISSING, escape_markdown, markdown
from interp.vocabulary import LOOKUP

if TYPE_CHECKING:
    from interp.selection.layers import LayerGroup, LayerSelection  # which show themselves by this

CELL = 9
"""Width of a layer in the strip of a selection, pixels."""
STRIP_HEIGHT = 14
_CHOSEN, _UNSUPPORTED, _CANDIDATE, _EXCLUDED = "#0173b2", "#a33b00", "#e3e3e3", "#ffffff"
_EVIDENCE = ("score", "stability", "p", "rules", "supported", "reason")


def selection_html(selection: "LayerSelection") -> str:
    """A selection as a strip of the model's layers and a table of the evidence, one row per
    group of forms.
    """
    heads = ("forms", "layers", f"0 … {selection.n_layers - 1}", *_EVIDENCE)
    rows = []
    for group in selection.groups:
        names, layers, *evidence = (html.escape(cell) for cell in _group_cells(group))
        rows.append([names, layers, _strip(group, selection), *evidence])
    return cell_table(
        heads, rows, title=_selection_title(selection), note=_selection_note(selection)
    )


def selection_markdown(selection: "LayerSelection") -> str:
    """The same without the strip, as a Markdown table."""
    rows = [[escape_markdown(cell) for cell in _group_cells(group)] for group in selection.groups]
    table = markdown(("forms", "layers", *_EVIDENCE), rows)
    title, note = (
        escape_markdown(_selection_title(selection)),
        escape_markdown(_selection_note(selection)),
    )
    return f"**{title}**\n\n{table}\n{note}\n"


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
        MISSING if group.stability is None else f"{group.stability:.2f}",
        MISSING if group.p_value is None else f"{group.p_value:.3f}",
        str(group.n_rules) if group.n_rules else MISSING,
        "yes" if group.supported else "no",
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
