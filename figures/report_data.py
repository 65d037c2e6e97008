"""Profiles, scores and answers of the report, as data that its script shows."""

import json
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.colors import to_hex

from figures import style
from figures.edit_scores import (
    CONFIDENCE,
    METRIC_NAMES,
    MODE_NAMES,
    SHARES,
    intervals_of,
    metrics_with_data,
)
from figures.faithfulness import caption_of, ranking_colours
from figures.layer_profile import band_note, components_with_data, roles_with_data
from figures.report_maps import component_labels
from figures.report_numbers import mean, number, numbers, pack
from interp.results.faithfulness import CONFIDENCE as CURVE_CONFIDENCE
from interp.results.faithfulness import mean_curves, methods_of
from interp.results.scores import ANSWER_COLUMNS, WITHOUT_FLOOR, modes_with_scores, per_rule
from interp.selection.layers import LayerSelection

ANSWER_SCORES = ("token_accuracy", "exact")
"""Scores of single answers that are shown, where the file has them."""


def profile_data(profile: xr.Dataset, selection: LayerSelection | None) -> dict[str, Any]:
    """Every profile that has data, and the chosen layers that belong to it."""
    components, roles = components_with_data(profile), roles_with_data(profile)
    part = profile.sel(component=components, role=roles)
    curves = {
        name: part[name].transpose("component", "role", "form", "layer").values
        for name in ("aie", "lower", "upper")
    }
    return {
        "components": component_labels(components, profile.attrs.get("window")),
        "roles": [{"name": role, "label": style.ROLE_NAMES.get(role, role)} for role in roles],
        "forms": [str(form) for form in profile["form"].values],
        "layers": [int(layer) for layer in profile["layer"].values],
        "unit": style.unit_name(str(profile.attrs["unit"])),
        "n": part["n"].transpose("component", "role", "form").values.astype(int).tolist(),
        **{name: numbers(values) for name, values in curves.items()},
        "note": band_note(profile),
        "confidence": float(profile.attrs.get("confidence", 0.95)),
        "selection": None if selection is None else _chosen(selection),
    }


def _chosen(selection: LayerSelection) -> dict[str, Any]:
    """The chosen layers of each group."""
    groups = [
        {
            "name": group.name,
            "forms": list(group.forms),
            "layers": list(group.layers),
            "supported": group.supported,
        }
        for group in selection.groups
    ]
    return {
        "component": selection.component,
        "role": selection.role,
        "first": selection.first_layer,
        "groups": groups,
    }


def faithfulness_data(data: xr.Dataset) -> dict[str, Any]:
    """Mean curves of every component and ranking, shape (component, ranking, share), without their
    beginning, where nothing is restored.
    """
    components, rankings = [str(name) for name in data["component"].values], methods_of(data)
    curves = np.array([[mean_curves(data, c, r)[1:] for r in rankings] for c in components])
    colours = ranking_colours()
    return {
        "components": component_labels(components, data.attrs.get("window")),
        "rankings": [{"name": name, "colour": to_hex(colours[name])} for name in rankings],
        "shares": numbers(data["share"].values[1:]),
        **{name: numbers(curves[:, :, i, 1:]) for i, name in enumerate(("mean", "lower", "upper"))},
        "notes": [caption_of(data, component) for component in components],
        "confidence": CURVE_CONFIDENCE,
    }


def score_data(scores: xr.Dataset) -> dict[str, Any]:
    """Scores of every mode: means over rules with the interval after the edit, and those of each
    rule, packed.
    """
    return {
        "editors": [str(editor) for editor in scores["editor"].values],
        "rules": [str(rule) for rule in scores["rule"].values],
        "confidence": CONFIDENCE,
        "modes": [mode_data(scores, mode) for mode in modes_with_scores(scores)],
    }


def mode_data(scores: xr.Dataset, mode: str) -> dict[str, Any]:
    """Scores in one mode: a cell for each editor and metric, and those of each rule, packed."""
    rules = per_rule(scores, mode).reindex(phase=["pre", "post"])
    metrics = metrics_with_data(rules)
    rules = rules.sel(metric=metrics).transpose("editor", "metric", "phase", "rule")
    values = rules.values.copy()
    values[:, [metric in WITHOUT_FLOOR for metric in metrics], 0] = np.nan
    means = intervals_of(rules.sel(phase="post")).transpose("editor", "metric")
    ends = np.stack([means["lower"].values, means["upper"].values], axis=-1)
    return {
        "name": mode,
        "label": MODE_NAMES.get(mode, mode),
        "share": mode in SHARES,
        "editors": [str(editor) for editor in rules["editor"].values],
        "metrics": [_line_name(metric) for metric in metrics],
        "cells": [list(map(_cell, *editor)) for editor in zip(values, ends, strict=True)],
        "each": pack(values),
    }


def _cell(scores: np.ndarray, ends: np.ndarray) -> dict[str, Any]:
    """Means over rules of scores, shape (phase, rule), and the ends of the interval after."""
    before, after = scores
    return {
        "before": number(mean(before)),
        "after": number(mean(after)),
        "interval": numbers(ends),
        "n": int(np.isfinite(after).sum()),
    }


def _line_name(metric: str) -> str:
    """Name of a metric in one line."""
    return METRIC_NAMES.get(metric, metric).replace("\n", " ")


def answer_data(answers: pd.DataFrame, budget: int) -> tuple[dict[str, Any], list[str]]:
    """Raw answers by rule, every text once, of as many rules as fit.

    Args:
        answers: The columns `ANSWER_COLUMNS`, and ``<score>_before`` and ``<score>_after`` of
            `ANSWER_SCORES`.
        budget: Bytes of JSON.

    Returns:
        The data, and the rules whose answers did not fit.
    """
    scores = [
        f"{name}_{when}"
        for name in ANSWER_SCORES
        for when in ("before", "after")
        if {f"{name}_before", f"{name}_after"} <= set(answers.columns)
    ]
    columns = [column for column in ANSWER_COLUMNS if column != "rule"]
    texts: dict[str, int] = {}
    rules: dict[str, list[list[Any]]] = {}
    spent, skipped = 0, []
    for rule, part in answers.groupby("rule", sort=False):
        n_known, rows = len(texts), []
        for row in part[[*columns, *scores]].itertuples(index=False):
            cells = list(map(str, row))
            words, values = cells[: len(columns)], cells[len(columns) :]
            rows.append([*(texts.setdefault(w, len(texts)) for w in words), *map(_score, values)])
        new = list(texts)[n_known:]
        spent += len(json.dumps([str(rule), rows, new]))
        if skipped or spent > budget:
            skipped.append(str(rule))
            for text in new:
                del texts[text]
            continue
        rules[str(rule)] = rows
    metrics = {str(name): _line_name(str(name)) for name in answers["metric"].unique()}
    return {"texts": list(texts), "rules": rules, "metrics": metrics, "scores": scores}, skipped


def _score(text: str) -> float | None:
    return number(float(text)) if text else None
