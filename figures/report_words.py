"""What the report says in words, and its tables that do not change."""

from collections.abc import Mapping
from typing import Any

import xarray as xr

from figures import style
from figures.report_data import mode_data
from figures.report_inputs import INPUTS, RunResults
from interp.results import effects as effects_schema
from interp.results import faithfulness
from interp.results.scores import modes_with_scores
from interp.selection.layers import LayerSelection
from interp.selection.reasons import layer_names

SUMMARY_MODES = ("token_accuracy", "exact")


def words(results: RunResults) -> dict[str, Any]:
    """What the page's template fills in besides data and scripts, by its name there."""
    inputs = {
        "effects.nc": results.effects,
        "profile.nc": results.profile,
        "selection.json": results.selection,
        "scores.nc": results.scores,
        "answers.json": results.answers,
    }
    attrs = _attrs({**inputs, "faithfulness.nc": results.faithfulness})
    selection = results.selection
    return {
        "absent": [(name, INPUTS[name]) for name, data in inputs.items() if data is None],
        "model": _model(results),
        "traced": None if results.effects is None else _traced(results.effects),
        "groups": [] if selection is None else [_group(group) for group in selection.groups],
        "selection": selection,
        "rule_groups": [
            (rule, _group(group))
            for rule, choice in results.rule_selections.items()
            for group in choice.groups
        ],
        "selected_on": None if selection is None else _selected_on(selection),
        "curves": None if results.faithfulness is None else _curves(results.faithfulness),
        "score_tables": [] if results.scores is None else _score_tables(results.scores),
        "attrs": attrs,
        "versions": _versions(attrs, results.provenance),
        "run_yaml": results.run_yaml,
        "has": {name.split(".")[0]: data is not None for name, data in inputs.items()},
    }


def _attrs(inputs: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """The attributes of each dataset, by its file, as text."""
    return {
        name: {str(key): str(value) for key, value in data.attrs.items()}
        for name, data in inputs.items()
        if isinstance(data, xr.Dataset)
    }


def _model(results: RunResults) -> str:
    """The model in words, from the first file that names it."""
    datasets = (results.effects, results.profile, results.scores, results.faithfulness)
    named: list[Mapping[Any, Any]] = [data.attrs for data in datasets if data is not None]
    if results.selection is not None:
        named.append(results.selection.provenance)
    for facts in named:
        if name := facts.get("model"):
            weights = facts.get("weight_hash")
            details = (facts.get("dtype"), weights and f"weights {weights}")
            known = ", ".join(str(detail) for detail in details if detail)
            return f"{name} ({known})" if known else str(name)
    return "not named in the files"


def _traced(effects: xr.Dataset) -> dict[str, Any]:
    """Numbers of prompts, and the total effect of each form, in the first metric."""
    maps = effects_schema.choose_metric(effects)
    te = effects_schema.total_effect(maps)
    traced = (maps["n_tokens"] > 0).transpose("form", "rule").values
    traceable = te["traceable"].transpose("form", "rule").values & traced
    values = te["total_effect"].transpose("form", "rule").values
    forms = []
    for number, form in enumerate(maps["form"].values):
        kept = values[number, traceable[number]]
        forms.append(
            {
                "form": str(form),
                "traced": int(traced[number].sum()),
                "traceable": int(traceable[number].sum()),
                "mean": f"{kept.mean():.2f}" if kept.size else "–",
                "range": f"{kept.min():.2f} to {kept.max():.2f}" if kept.size else "–",
            }
        )
    corruption = (
        "counterfactual prompts" if maps.attrs.get("corruption") == "counterfactual" else "noise"
    )
    return {
        "rules": maps.sizes["rule"],
        "prompts": int(traced.sum()),
        "traceable": int(traceable.sum()),
        "forms": forms,
        "unit": style.unit_name(str(maps.attrs["unit"])),
        "metric": str(maps.attrs.get("metric", "score")),
        "corruption": corruption,
        "span": str(maps.attrs.get("span", "not recorded")),
        "samples": maps.sizes["sample"],
        "noising": maps.attrs.get("direction") == "noise",
        "errors": f"{effects_schema.TRACEABLE_STANDARD_ERRORS:g}",
    }


def _group(group: Any) -> dict[str, Any]:
    """One group of a selection in words."""
    interval = (
        ""
        if group.lower is None or group.upper is None
        else f" [{group.lower:.3f}, {group.upper:.3f}]"
    )
    return {
        "name": group.name.replace("+", " + "),
        "layers": layer_names(group.layers),
        "score": "given, not selected" if group.score is None else f"{group.score:.3f}{interval}",
        "stability": "–" if group.stability is None else f"{group.stability:.2f}",
        "chance": "–" if group.p_value is None else f"{group.p_value:.3f}",
        "rules": group.n_rules,
        "supported": group.supported,
        "reason": group.reason,
    }


def _selected_on(selection: LayerSelection) -> str:
    component = style.COMPONENT_NAMES.get(selection.component, selection.component)
    return (
        f"{component}, {style.ROLE_NAMES.get(selection.role, selection.role)}"
        if selection.role
        else component
    )


def _curves(data: xr.Dataset) -> dict[str, Any]:
    """Areas under curves of faithfulness, and whether each ranking is at least as good as the
    next.
    """
    rows = []
    for component in map(str, data["component"].values):
        name = style.COMPONENT_NAMES.get(component, component)
        for method, cells in faithfulness.area_cells(data, component):
            rows.append((name, method, cells))
    return {
        "heads": ("Component", "Ranking", *faithfulness.AREA_HEADS),
        "rows": rows,
        "orders": [faithfulness.order(data, str(name)) for name in data["component"].values],
        "skipped": str(data.attrs.get("skipped", "")),
        "n_skipped": int(data.attrs.get("n_skipped", 0)),
    }


def _score_tables(scores: xr.Dataset) -> list[dict[str, Any]]:
    """Mean scores before → after of each editor, in the modes that the summary shows."""
    modes = modes_with_scores(scores)
    tables = []
    for mode in [m for m in SUMMARY_MODES if m in modes] or modes[:1]:
        data = mode_data(scores, mode)
        rows = [
            (editor, [_before_after(cell) for cell in of_editor])
            for editor, of_editor in zip(data["editors"], data["cells"], strict=True)
        ]
        tables.append({"label": data["label"], "metrics": data["metrics"], "rows": rows})
    return tables


def _before_after(cell: Mapping[str, Any]) -> str:
    if cell["after"] is None:
        return "–"
    after = f"{cell['after']:.2f}"
    return after if cell["before"] is None else f"{cell['before']:.2f} → {after}"


def _versions(
    attrs: Mapping[str, Mapping[str, str]], provenance: Mapping[str, Any]
) -> list[tuple[str, str, str]]:
    """Library, version when the traces were made, version of the last command."""

    def of(name: str, versions: Mapping[str, Any]) -> str:
        return str(versions.get(name) or "–")

    traced = attrs.get("effects.nc", {})
    names = dict.fromkeys(
        n for n in (*traced, *provenance) if n.startswith("version_") or n == "git_commit"
    )
    return [
        (name.removeprefix("version_").replace("_", " "), of(name, traced), of(name, provenance))
        for name in names
    ]
