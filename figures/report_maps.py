"""Effect maps of the report, packed, of as many rules as fit into the page."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from figures import style
from figures.edit_scores import CONFIDENCE
from figures.effect_map import ANSWER_SOURCES
from figures.report_numbers import numbers, pack
from interp.results import effects as effects_schema

QUANTILE_STEPS = 100_000


def map_data(effects: xr.Dataset, budget: int) -> tuple[dict[str, Any], list[str]]:
    """Effect maps, packed, of as many rules as fit.

    Args:
        effects: Joined maps (see `interp.results.effects.concat`).
        budget: Bytes of JSON.

    Returns:
        The data, and the rules whose maps did not fit.
    """
    names = [str(m) for m in effects["metric"].values] if "metric" in effects.dims else [None]
    metrics = [effects_schema.choose_metric(effects, name) for name in names]
    data = _axes(effects, metrics)
    spent, skipped = len(json.dumps(data)), []
    for number, rule in enumerate(effects["rule"].values):
        forms = _prompts([metric.isel(rule=number) for metric in metrics])
        entry = {"id": str(rule), "forms": forms}
        size = len(json.dumps(entry))
        if skipped or spent + size > budget:
            skipped.append(str(rule))
            continue
        spent += size
        data["rules"].append(entry)
    return data, skipped


def _axes(effects: xr.Dataset, metrics: Sequence[xr.Dataset]) -> dict[str, Any]:
    """What all rules share, with no rule yet."""
    components = [str(c) for c in effects["component"].values]
    return {
        "metrics": [
            {
                "name": str(metric.attrs.get("metric", "score")),
                "unit": style.unit_name(str(metric.attrs["unit"])),
            }
            for metric in metrics
        ],
        "components": component_labels(components, effects.attrs.get("window")),
        "main": components.index("mlp") if "mlp" in components else 0,
        "forms": [str(form) for form in effects["form"].values],
        "layers": [int(layer) for layer in effects["layer"].values],
        "samples": effects.sizes["sample"],
        "quantile": t_quantile(effects.sizes["sample"]),
        "confidence": CONFIDENCE,
        "noising": effects.attrs.get("direction") == "noise",
        "rules": [],
    }


def component_labels(components: Sequence[str], window: Any) -> list[dict[str, str]]:
    """Names of components as the files and as readers have them; `window` is the number of layers
    that are restored together, None where a file does not say.
    """
    layers = None if window is None else int(window)
    return [{"name": c, "label": style.component_name(c, layers)} for c in components]


def _prompts(metrics: Sequence[xr.Dataset]) -> dict[str, Any]:
    """The maps of one rule by form; `metrics` holds the rule's maps of every metric."""
    dims = ("form", "component", "layer", "pos")
    effects = [effects_schema.indirect_effect(metric).transpose(*dims).values for metric in metrics]
    errors = [standard_error(metric).transpose(*dims).values for metric in metrics]
    totals = [effects_schema.total_effect(metric) for metric in metrics]
    first, prompts = metrics[0], {}
    for number, form in enumerate(first["form"].values):
        n = int(first["n_tokens"].values[number])
        if n == 0:
            continue
        prompts[str(form)] = _map_of_form(
            first.isel(form=number, pos=slice(0, n)),
            np.stack([effect[number, ..., :n] for effect in effects]),
            np.stack([error[number, ..., :n] for error in errors]),
            [total.isel(form=number) for total in totals],
        )
    return prompts


def _map_of_form(
    prompt: xr.Dataset, effects: np.ndarray, errors: np.ndarray, totals: Sequence[xr.Dataset]
) -> dict[str, Any]:
    """One prompt with its maps of the rows that were traced.

    Args:
        prompt: Maps of the prompt in one metric, without padding.
        effects: Indirect effects, shape (metric, component, layer, token).
        errors: Their standard errors, of the same shape.
        totals: Total effect of the prompt in each metric.
    """
    rows = np.flatnonzero(np.isfinite(effects).any((0, 1, 2)))
    return {
        "prompt": str(prompt["prompt"].item()),
        "answer": str(prompt["answer"].item()),
        "source": _answer_source(prompt),
        "tokens": [visible(str(token)) for token in prompt["token"].values],
        "roles": [style.ROLE_NAMES.get(str(role), str(role)) for role in prompt["role"].values],
        "corrupted": np.flatnonzero(prompt["is_corrupted"].values).tolist(),
        "rows": rows.tolist(),
        "total": [_total(total) for total in totals],
        "maps": [
            list(map(_packed, of_metric, spreads))
            for of_metric, spreads in zip(effects[..., rows], errors[..., rows], strict=True)
        ],
        **_estimated(prompt, rows),
    }


def _total(total: xr.Dataset) -> list[Any]:
    """Total effect, its standard error, and whether the prompt is traceable."""
    values = np.array([total["total_effect"].values, total["standard_error"].values])
    return [*numbers(values), bool(total["traceable"].values)]


def _packed(effect: np.ndarray, error: np.ndarray) -> dict[str, Any]:
    """Effect of a component, shape (layer, row), with its standard error where there is one."""
    return {**pack(effect), **({"e": pack(error)} if np.isfinite(error).any() else {})}


def _estimated(prompt: xr.Dataset, rows: np.ndarray) -> dict[str, Any]:
    """Share of samples whose score was run, not estimated, of each component, where some were
    estimated.
    """
    if "exact" not in prompt:
        return {}
    exact = prompt["exact"].transpose("component", "layer", "pos", "sample").values
    share = exact[:, :, rows].mean(-1)
    return {"exact": [pack(component) for component in share]}


def _answer_source(prompt: xr.Dataset) -> str:
    if "answer_source" in prompt.coords:
        source = str(prompt["answer_source"].item())
    else:
        source = str(prompt.attrs.get("answer_source", ""))
    return ANSWER_SOURCES.get(source, source)


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


def visible(text: str) -> str:
    r"""A token as it is shown: white space visible, what cannot be printed as escapes, one leading
    space left out.

    >>> visible(" perimeter"), visible("\n"), visible("  "), visible("\x00")
    ('perimeter', '↵', '␣␣', '\\u0000')
    """
    text = text.removeprefix(" ") if text.strip() else text.replace(" ", "␣")
    return "".join(
        style.WHITE_SPACE.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text
    )
