"""One self-contained HTML page of a run: what was traced, selected, edited and scored, to be
explored in a browser.

Reads what `figures.paper` reads, and ``selection-rules.json``, ``rules.json`` and ``run.yaml``
where they exist. The page asks for nothing from the network: styles, Plotly and data stand in the
file, and its content security policy lets no other script run than the two it brings, named by
their hashes. Text from data is escaped three times over: in HTML by Jinja2, in the JSON by Jinja2's
`tojson`, and in the labels of Plotly, which reads tags, by the script.

Arrays are packed as 16-bit integers (`pack`) and unpacked only when a map is shown. A file has at
most `LIMIT` bytes: answers get `ANSWERS_SHARE`, maps what is then left, in the order of the rules,
and what did not fit is named.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.colors import to_hex
from plotly.offline import get_plotlyjs

from figures import style
from figures.edit_scores import (
    CONFIDENCE,
    METRIC_NAMES,
    MODE_NAMES,
    SHARES,
    intervals_of,
    metrics_with_data,
)
from figures.effect_map import ANSWER_SOURCES
from figures.layer_profile import band_note, components_with_data, roles_with_data
from figures.paper import ANSWER_COLUMNS, read_answers
from figures.paper import INPUTS as PAPER_INPUTS
from interp.errors import InputError
from interp.results import effects as effects_schema
from interp.results.files import write_text
from interp.results.run_folder import RunFolder
from interp.results.scores import WITHOUT_FLOOR, modes_with_scores, per_rule
from interp.rules.sources import load_rules
from interp.selection.layers import LayerSelection, load_for_rules
from interp.selection.reasons import layer_names
from interp.settings.plain_yaml import load_yaml

INPUTS = {
    name: PAPER_INPUTS[name]
    for name in ("effects.nc", "profile.nc", "selection.json", "scores.nc", "answers.json")
}
"""Files shown, and the command that writes each."""
LIMIT = 14_900_000
"""Largest size of a page, bytes."""
ANSWERS_SHARE = 2_500_000
"""Largest size of the answers within it, bytes."""
LARGEST = 32767
MISSING = -32768
"""What stands for NaN among packed values."""
COLOURS = 33
"""Stops of the diverging scale."""
QUANTILE_STEPS = 100_000
SUMMARY_MODES = ("token_accuracy", "exact")
ANSWER_SCORES = ("token_accuracy", "exact")
"""Scores of single answers that are shown, where the file has them."""
_WHITE_SPACE = {"\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class RunResults:
    """What a run folder holds, read; None where a file is absent."""

    name: str
    effects: xr.Dataset | None = None
    profile: xr.Dataset | None = None
    selection: LayerSelection | None = None
    rule_selections: Mapping[str, LayerSelection] = field(default_factory=dict)
    scores: xr.Dataset | None = None
    answers: pd.DataFrame | None = None
    rule_names: Mapping[str, str] = field(default_factory=dict)
    """What a rule is of, in words, by its id."""
    run_yaml: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_report(run: Path) -> Path:
    """Write ``report.html`` of a run folder.

    Returns:
        Its path.

    Raises:
        ValueError: The folder holds none of the inputs, or one is damaged.
    """
    path = run / "report.html"
    write_text(path, page(read(run)))
    return path


def read(run: Path) -> RunResults:
    """Read what there is of a run.

    Raises:
        ValueError: The folder holds none of the inputs, or one is damaged.
    """
    present = {name: run / name for name in INPUTS if (run / name).is_file()}
    if not present:
        steps = ", ".join(dict.fromkeys(f"`{command}`" for command in INPUTS.values()))
        raise InputError(
            f"{run} holds none of {list(INPUTS)}; run {steps} on it first (or `dmle run` for all)"
        )
    held: dict[str, Any] = {
        name: effects_schema.load(present[f"{name}.nc"])
        for name in ("effects", "profile", "scores")
        if f"{name}.nc" in present
    }
    if "selection.json" in present:
        held["selection"] = LayerSelection.load(present["selection.json"])
    if (run / "selection-rules.json").is_file():
        held["rule_selections"] = load_for_rules(run / "selection-rules.json")
    if "answers.json" in present:
        held["answers"] = read_answers(present["answers.json"])
    if (run / "rules.json").is_file():
        held["rule_names"] = {rule.id: rule.name for rule in load_rules(run / "rules.json").rules}
    if (run / "run.yaml").is_file():
        held["run_yaml"], held["provenance"] = _read_settings(run)
    return RunResults(run.resolve().name, **held)


def page(results: RunResults) -> str:
    """The whole page as text."""
    scripts = (get_plotlyjs(), (_HERE / "report.js").read_text(encoding="utf-8"))
    data: dict[str, Any] = {
        "colours": _colours(results),
        "profile": (
            None if results.profile is None else profile_data(results.profile, results.selection)
        ),
        "scores": None if results.scores is None else score_data(results.scores),
        "names": dict(results.rule_names),
        "answers": None,
        "maps": None,
    }
    left_out: list[str] = []
    if results.answers is not None:
        data["answers"], skipped = answer_data(results.answers, ANSWERS_SHARE)
        left_out += _left_out("answers", skipped, "answers.csv")
    context = {
        "title": results.name,
        "policy": _policy(scripts),
        "css": Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        "scripts": [Markup(script) for script in scripts],
        **_static(results),
    }
    if results.effects is not None:
        rest = _render({**context, "data": data, "left_out": left_out})
        # Every rule that does not fit adds its name to the page.
        reserve = 4000 + sum(len(str(rule)) + 8 for rule in results.effects["rule"].values)
        data["maps"], skipped = map_data(results.effects, LIMIT - len(rest.encode()) - reserve)
        left_out += _left_out("effect maps", skipped, "effects.nc")
    return _render({**context, "data": data, "left_out": left_out})


# -- arrays --------------------------------------------------------------------------------------


def pack(values: np.ndarray) -> dict[str, Any]:
    """Values as base64 of little-endian 16-bit integers ``v`` times the step ``s``; -32768 is NaN.

    The error is at most half a step, a 65,534th of the largest absolute value.

    >>> pack(np.array([1.0, np.nan]))
    {'v': '/38AgA==', 's': 3.051850947599719e-05}
    """
    known = np.isfinite(values)
    peak = float(np.abs(values[known]).max(initial=0.0))
    step = peak / LARGEST if peak > 0 else 1.0
    whole = np.where(known, np.rint(np.where(known, values, 0.0) / step), MISSING).astype("<i2")
    return {"v": base64.b64encode(whole.tobytes()).decode("ascii"), "s": step}


def standard_error(effects: xr.Dataset) -> xr.DataArray:
    """Standard error of the indirect effect over noise samples; NaN with one sample, or where
    not traced.
    """
    noising = effects.attrs.get("direction") == "noise"
    change = effects["score"] if noising else effects["score"] - effects["corrupted"]
    samples = effects.sizes["sample"]
    if samples < 2:
        return change.isel(sample=0, drop=True) * np.nan
    return change.std("sample", ddof=1, skipna=False) / np.sqrt(samples)


def t_quantile(samples: int, confidence: float = CONFIDENCE) -> float | None:
    """Half-width of the two-sided t interval of a mean in standard errors; None with one sample.

    With t = √ν tan θ the density over θ goes as cos(θ)^(ν - 1), which is summed on a fine grid.

    >>> round(t_quantile(2), 2), round(t_quantile(10), 3)
    (12.71, 2.262)
    """
    freedom = samples - 1
    if freedom < 1:
        return None
    angle = np.linspace(0, np.pi / 2, QUANTILE_STEPS + 1)
    density = np.cos(angle) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return float(np.sqrt(freedom) * np.tan(np.interp(confidence * mass[-1], mass, angle)))


# -- data of the interactive parts ---------------------------------------------------------------


def map_data(effects: xr.Dataset, budget: int) -> tuple[dict[str, Any], list[str]]:
    """Effect maps, packed, of as many rules as fit.

    Args:
        effects: Joined maps (see `interp.results.effects.concat`).
        budget: Bytes of JSON.

    Returns:
        The data, and the rules whose maps did not fit.
    """
    metrics = [str(m) for m in effects["metric"].values] if "metric" in effects.dims else [None]
    chosen = [effects_schema.choose_metric(effects, metric) for metric in metrics]
    window = effects.attrs.get("window")
    components = [str(c) for c in effects["component"].values]
    data: dict[str, Any] = {
        "metrics": [
            {
                "name": str(one.attrs.get("metric", "score")),
                "unit": style.unit_name(str(one.attrs["unit"])),
            }
            for one in chosen
        ],
        "components": [
            {"name": c, "label": style.component_name(c, None if window is None else int(window))}
            for c in components
        ],
        "main": components.index("mlp") if "mlp" in components else 0,
        "forms": [str(form) for form in effects["form"].values],
        "layers": [int(layer) for layer in effects["layer"].values],
        "samples": effects.sizes["sample"],
        "quantile": t_quantile(effects.sizes["sample"]),
        "confidence": CONFIDENCE,
        "noising": effects.attrs.get("direction") == "noise",
        "rules": [],
    }
    spent, skipped = len(json.dumps(data)), []
    for at, rule in enumerate(effects["rule"].values):
        one = {"id": str(rule), "forms": _prompts([each.isel(rule=at) for each in chosen])}
        size = len(json.dumps(one))
        if skipped or spent + size > budget:
            skipped.append(str(rule))
            continue
        spent += size
        data["rules"].append(one)
    return data, skipped


def _prompts(metrics: Sequence[xr.Dataset]) -> dict[str, Any]:
    """The maps of one rule by form; `metrics` holds the rule's maps of every metric."""
    effect = [
        effects_schema.indirect_effect(one).transpose("form", "component", "layer", "pos")
        for one in metrics
    ]
    error = [standard_error(one).transpose("form", "component", "layer", "pos") for one in metrics]
    total = [effects_schema.total_effect(one) for one in metrics]
    first, prompts = metrics[0], {}
    for at, form in enumerate(first["form"].values):
        n = int(first["n_tokens"].values[at])
        values = np.stack([e.values[at, ..., :n] for e in effect])
        errors = np.stack([e.values[at, ..., :n] for e in error])
        if n == 0:
            continue
        rows = np.flatnonzero(np.isfinite(values).any((0, 1, 2)))
        one = first.isel(form=at, pos=slice(0, n))
        prompts[str(form)] = {
            "prompt": str(one["prompt"].item()),
            "answer": str(one["answer"].item()),
            "source": _answer_source(one),
            "tokens": [visible(str(token)) for token in one["token"].values],
            "roles": [style.ROLE_NAMES.get(str(role), str(role)) for role in one["role"].values],
            "corrupted": np.flatnonzero(one["is_corrupted"].values).tolist(),
            "rows": rows.tolist(),
            "total": [
                [
                    *_numbers(
                        np.array([te["total_effect"].values[at], te["standard_error"].values[at]])
                    ),
                    bool(te["traceable"].values[at]),
                ]
                for te in total
            ],
            "maps": [
                [
                    {
                        **pack(component[:, rows]),
                        **({"e": pack(spread[:, rows])} if np.isfinite(spread).any() else {}),
                    }
                    for component, spread in zip(of_metric, spreads, strict=True)
                ]
                for of_metric, spreads in zip(values, errors, strict=True)
            ],
            **_estimated(one, rows),
        }
    return prompts


def _estimated(one: xr.Dataset, rows: np.ndarray) -> dict[str, Any]:
    """Share of samples whose score was run, not estimated, of each component, where some were
    estimated.
    """
    if "exact" not in one:
        return {}
    share = (
        one["exact"].transpose("component", "layer", "pos", "sample").values[:, :, rows].mean(-1)
    )
    return {"exact": [pack(component) for component in share]}


def _answer_source(one: xr.Dataset) -> str:
    said = str(
        one["answer_source"].item()
        if "answer_source" in one.coords
        else one.attrs.get("answer_source", "")
    )
    return ANSWER_SOURCES.get(said, said)


def profile_data(profile: xr.Dataset, selection: LayerSelection | None) -> dict[str, Any]:
    """Every profile that has data, and the chosen layers that belong to it."""
    window = profile.attrs.get("window")
    components, roles = components_with_data(profile), roles_with_data(profile)
    forms = [str(form) for form in profile["form"].values]
    part = profile.sel(component=components, role=roles)
    held = {
        name: part[name].transpose("component", "role", "form", "layer").values
        for name in ("aie", "lower", "upper")
    }
    return {
        "components": [
            {"name": c, "label": style.component_name(c, None if window is None else int(window))}
            for c in components
        ],
        "roles": [{"name": role, "label": style.ROLE_NAMES.get(role, role)} for role in roles],
        "forms": forms,
        "layers": [int(layer) for layer in profile["layer"].values],
        "unit": style.unit_name(str(profile.attrs["unit"])),
        "n": part["n"].transpose("component", "role", "form").values.astype(int).tolist(),
        **{name: _numbers(values) for name, values in held.items()},
        "note": band_note(profile),
        "confidence": float(profile.attrs.get("confidence", 0.95)),
        "selection": (
            None
            if selection is None
            else {
                "component": selection.component,
                "role": selection.role,
                "first": selection.first_layer,
                "groups": [
                    {
                        "name": g.name,
                        "forms": list(g.forms),
                        "layers": list(g.layers),
                        "supported": g.supported,
                    }
                    for g in selection.groups
                ],
            }
        ),
    }


def score_data(scores: xr.Dataset) -> dict[str, Any]:
    """Scores of every mode: means over rules with the interval after the edit, and those of each
    rule, packed.
    """
    return {
        "editors": [str(editor) for editor in scores["editor"].values],
        "rules": [str(rule) for rule in scores["rule"].values],
        "confidence": CONFIDENCE,
        "modes": [_mode_data(scores, mode) for mode in modes_with_scores(scores)],
    }


def _mode_data(scores: xr.Dataset, mode: str) -> dict[str, Any]:
    rules = per_rule(scores, mode).reindex(phase=["pre", "post"])
    metrics = metrics_with_data(rules)
    rules = rules.sel(metric=metrics).transpose("editor", "metric", "phase", "rule")
    values = rules.values.copy()
    values[:, [metric in WITHOUT_FLOOR for metric in metrics], 0] = np.nan
    found = intervals_of(rules.sel(phase="post"))
    lower, upper = (found[end].transpose("editor", "metric").values for end in ("lower", "upper"))
    cells = [
        [
            {
                "before": _number(_mean(before)),
                "after": _number(_mean(after)),
                "interval": _numbers(np.array([lower[e, m], upper[e, m]])),
                "n": int(np.isfinite(after).sum()),
            }
            for m, (before, after) in enumerate(of_editor)
        ]
        for e, of_editor in enumerate(values)
    ]
    return {
        "name": mode,
        "label": MODE_NAMES.get(mode, mode),
        "share": mode in SHARES,
        "editors": [str(editor) for editor in rules["editor"].values],
        "metrics": [METRIC_NAMES.get(metric, metric).replace("\n", " ") for metric in metrics],
        "cells": cells,
        "each": pack(values),
    }


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
    texts: dict[str, int] = {}
    rules: dict[str, list[list[Any]]] = {}
    spent, skipped = 0, []
    for rule, part in answers.groupby("rule", sort=False):
        known, rows = len(texts), []
        for row in part[[*(c for c in ANSWER_COLUMNS if c != "rule"), *scores]].itertuples(
            index=False
        ):
            cells = [str(cell) for cell in row]
            words = cells[: len(cells) - len(scores)]
            rows.append(
                [
                    *(texts.setdefault(w, len(texts)) for w in words),
                    *map(_score, cells[len(words) :]),
                ]
            )
        new = list(texts)[known:]
        spent += len(json.dumps([str(rule), rows, new]))
        if skipped or spent > budget:
            skipped.append(str(rule))
            for text in new:
                del texts[text]
            continue
        rules[str(rule)] = rows
    names = [str(name) for name in answers["metric"].unique()]
    metrics = {name: METRIC_NAMES.get(name, name).replace("\n", " ") for name in names}
    return {"texts": list(texts), "rules": rules, "metrics": metrics, "scores": scores}, skipped


# -- what is said in words, and tables that do not change ----------------------------------------


def visible(text: str) -> str:
    r"""A token as it is shown: white space visible, what cannot be printed as escapes, one leading
    space left out.

    >>> visible(" perimeter"), visible("\n"), visible("  "), visible("\x00")
    ('perimeter', '↵', '␣␣', '\\u0000')
    """
    text = text.removeprefix(" ") if text.strip() else text.replace(" ", "␣")
    return "".join(_WHITE_SPACE.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)


def _static(results: RunResults) -> dict[str, Any]:
    absent = {
        "effects.nc": results.effects,
        "profile.nc": results.profile,
        "selection.json": results.selection,
        "scores.nc": results.scores,
        "answers.json": results.answers,
    }
    attrs = {
        name: {str(key): str(value) for key, value in held.attrs.items()}
        for name, held in (("effects.nc", results.effects), ("profile.nc", results.profile),
                           ("scores.nc", results.scores))
        if held is not None
    }  # fmt: skip
    return {
        "absent": [(name, INPUTS[name]) for name, held in absent.items() if held is None],
        "model": _model(results),
        "traced": None if results.effects is None else _traced(results.effects),
        "groups": (
            []
            if results.selection is None
            else [_group(group) for group in results.selection.groups]
        ),
        "selection": results.selection,
        "rule_groups": [
            (rule, _group(group))
            for rule, one in results.rule_selections.items()
            for group in one.groups
        ],
        "selected_on": None if results.selection is None else _selected_on(results.selection),
        "score_tables": [] if results.scores is None else _score_tables(results.scores),
        "attrs": attrs,
        "versions": _versions(attrs, results.provenance),
        "run_yaml": results.run_yaml,
        "has": {name.split(".")[0]: held is not None for name, held in absent.items()},
    }


def _model(results: RunResults) -> str:
    """The model in words, from the first file that names it."""
    named: list[Mapping[Any, Any]] = [
        held.attrs
        for held in (results.effects, results.profile, results.scores)
        if held is not None
    ]
    if results.selection is not None:
        named.append(results.selection.provenance)
    for facts in named:
        if name := facts.get("model"):
            weights = facts.get("weight_hash")
            said = [
                str(fact) for fact in (facts.get("dtype"), weights and f"weights {weights}") if fact
            ]
            return f"{name} ({', '.join(said)})" if said else str(name)
    return "not named in the files"


def _traced(effects: xr.Dataset) -> dict[str, Any]:
    """Numbers of prompts, and the total effect of each form, in the first metric."""
    one = effects_schema.choose_metric(effects)
    te = effects_schema.total_effect(one)
    traced = (one["n_tokens"] > 0).transpose("form", "rule").values
    traceable = te["traceable"].transpose("form", "rule").values & traced
    values = te["total_effect"].transpose("form", "rule").values
    forms = []
    for at, form in enumerate(one["form"].values):
        kept = values[at, traceable[at]]
        forms.append(
            {
                "form": str(form),
                "traced": int(traced[at].sum()),
                "traceable": int(traceable[at].sum()),
                "mean": f"{kept.mean():.2f}" if kept.size else "–",
                "range": f"{kept.min():.2f} to {kept.max():.2f}" if kept.size else "–",
            }
        )
    corruption = (
        "counterfactual prompts" if one.attrs.get("corruption") == "counterfactual" else "noise"
    )
    return {
        "rules": one.sizes["rule"],
        "prompts": int(traced.sum()),
        "traceable": int(traceable.sum()),
        "forms": forms,
        "unit": style.unit_name(str(one.attrs["unit"])),
        "metric": str(one.attrs.get("metric", "score")),
        "corruption": corruption,
        "span": str(one.attrs.get("span", "not recorded")),
        "samples": one.sizes["sample"],
        "noising": one.attrs.get("direction") == "noise",
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


def _score_tables(scores: xr.Dataset) -> list[dict[str, Any]]:
    """Mean scores before → after of each editor, in the modes that the summary shows."""
    modes = modes_with_scores(scores)
    tables = []
    for mode in [m for m in SUMMARY_MODES if m in modes] or modes[:1]:
        data = _mode_data(scores, mode)
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

    def of(name: str, held: Mapping[str, Any]) -> str:
        return str(held.get(name) or "–")

    traced = attrs.get("effects.nc", {})
    names = dict.fromkeys(
        n for n in (*traced, *provenance) if n.startswith("version_") or n == "git_commit"
    )
    return [
        (name.removeprefix("version_").replace("_", " "), of(name, traced), of(name, provenance))
        for name in names
    ]


def _left_out(what: str, rules: Sequence[str], file: str) -> list[str]:
    if not rules:
        return []
    return [
        f"To keep this page below {LIMIT / 1e6:.0f} MB, the {what} of {len(rules)} rules are not in"
        f" it (all are in {file}): {', '.join(rules)}."
    ]


def _read_settings(run: Path) -> tuple[str, Mapping[str, Any]]:
    """What ``run.yaml`` says of settings and versions, as text, and of versions alone."""
    _ = RunFolder(run).settings  # a damaged file is an error that says how to mend it
    held = load_yaml((run / "run.yaml").read_text(encoding="utf-8")) or {}
    # Not which steps have ended: the page is the same when it is written again.
    shown = {name: values for name, values in held.items() if name not in ("settled", "steps")}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), held.get("provenance") or {}


# -- the page ------------------------------------------------------------------------------------


def _colours(results: RunResults) -> dict[str, Any]:
    scale = mpl.colormaps[style.DIVERGING]
    forms = [
        str(f)
        for held in (results.effects, results.profile)
        if held is not None
        for f in held["form"].values
    ]
    editors = (
        []
        if results.scores is None
        else [str(editor) for editor in results.scores["editor"].values]
    )
    return {
        "diverging": [[float(x), to_hex(scale(float(x)))] for x in np.linspace(0, 1, COLOURS)],
        "untraced": to_hex(style.UNTRACED_COLOUR),
        "forms": {form: to_hex(colour) for form, colour in style.form_colours(forms).items()},
        "editors": {
            editor: to_hex(colour) for editor, colour in style.editor_colours(editors).items()
        },
    }


def _policy(scripts: Iterable[str]) -> str:
    """Content security policy: nothing from outside, and no script but these."""
    hashes = (
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    )
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )


def _render(context: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template("report.html.j2").render(context)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def _number(value: float) -> float | None:
    """Five digits; None, which JSON has, for NaN, which it has not."""
    return float(f"{value:.5g}") if np.isfinite(value) else None


def _numbers(values: np.ndarray) -> Any:
    if values.ndim == 1:
        return [_number(value) for value in values.tolist()]
    return [_numbers(part) for part in values]


def _score(text: str) -> float | None:
    return _number(float(text)) if text else None
