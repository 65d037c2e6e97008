"""Heat maps of causal tracing: which token, at which layer, brings the answer back.

Rows are the prompt's tokens in reading order, columns are layers, colour is the indirect effect
(restored - corrupted; positive, red: restoring the clean value there helps the answer). The scale
is symmetric about zero. Corrupted tokens are bold and end in an asterisk. Only traced tokens have a
row, a dashed line marks tokens left out between two rows, and the caption counts them.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from figures import style
from interp.errors import InputError
from interp.results.effects import indirect_effect, select_map, total_effect
from interp.vocabulary import COMPONENTS

ROW_HEIGHT = 0.125
"""Height of a token's row, inches."""
LEAST_HEIGHT = 1.3
"""Least height of all rows of a figure together, inches: fewer tokens get higher rows."""
LONGEST_TOKEN = 16
"""Characters of a token's label; longer ones are cut, so that they leave room for the map."""
FEW_ROWS = 12
"""Maps with fewer rows have their colour bar below, where its label has room."""
# How `answer_source` of an effect map is said to a reader.
ANSWER_SOURCES = {
    "dataset": "true",
    "derived": "true, derived from the formula",
    "greedy": "the model's own",
    "given": "given",
}


def draw_effect_map(
    effects: xr.Dataset,
    component: str = "mlp",
    *,
    limit: float | None = None,
    colour_bar: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the effect map of one prompt and one component.

    Args:
        effects: Map of one prompt (see `interp.results.effects.select_map`).
        component: Which component's values were restored.
        limit: Largest absolute value of the colour scale; the map's own by default.
        colour_bar: Whether to draw the scale beside the map.
        ax: Axes to draw into; new ones, sized for the tokens, by default.

    Raises:
        ValueError: No position of the component was traced.
    """
    effect = _component(effects, component)
    rows = traced_positions(effect)
    if not rows.any():
        known = effects["component"].values.tolist()
        raise InputError(
            f"no token of {component!r} was traced; trace it, or choose another of {known}"
        )
    if ax is None:
        ax = style.new_axes(
            style.SINGLE_COLUMN, 1.35 + max(ROW_HEIGHT * int(rows.sum()), LEAST_HEIGHT)
        )
    limit = colour_limit(effect) if limit is None else limit
    _draw_cells(ax, effect, rows, limit)
    _label_tokens(ax, effects, rows)
    title = f"{_component_title(effects, component)}\n{textwrap.fill(_answer(effects, 52), 34)}"
    ax.set_title(title, loc="left", parse_math=False, color=_verdict_colour(effects))
    style.caption(ax, effect_caption(effects, rows))
    if colour_bar:
        location, aspect = ("bottom", 35) if rows.sum() < FEW_ROWS else ("right", 25)
        bar = ax.figure.colorbar(
            ax.collections[0], ax=ax, pad=0.02, location=location, aspect=aspect
        )
        _label_bar(bar, effect)
    return ax


@style.paper_style()
def effect_panel(effects: xr.Dataset, rule: str, components: Sequence[str] = COMPONENTS) -> Figure:
    """Draw all maps of one rule: forms as rows, components as columns, one colour scale.

    Args:
        effects: Joined maps (see `interp.results.effects.concat`).
        rule: The rule to show.
        components: Which components, among those that were traced.

    Raises:
        ValueError: The rule has no map, or nothing of it was traced.
    """
    maps = _maps_of(effects, rule)
    traced = {form: traced_positions(indirect_effect(one)) for form, one in maps.items()}
    components = [c for c in components if c in effects["component"].values]
    limit = max(
        colour_limit(indirect_effect(one).sel(component=components)) for one in maps.values()
    )
    counts = [int(rows.sum()) for rows in traced.values()]
    height = 0.75 + 0.72 * len(maps) + max(ROW_HEIGHT * sum(counts), LEAST_HEIGHT)
    fig = Figure(figsize=(style.DOUBLE_COLUMN, height), layout="constrained")
    axes = fig.subplots(len(maps), len(components), squeeze=False, height_ratios=counts)
    for row, (form, one) in zip(axes, maps.items(), strict=True):
        for ax, component in zip(row, components, strict=True):
            _draw_cells(ax, _component(one, component), traced[form], limit)
            _label_tokens(ax, one, traced[form], named=ax is row[0])
            # The empty lines keep room for the row's heading, which is wider than its axes.
            ax.set_title(f"\n\n\n{_component_title(one, component)}", loc="left")
        heading = f"{form}: {_answer(one, 60)}\n{effect_caption(one, traced[form])}"
        _row_heading(row[0], heading, _verdict_colour(one))
    for ax in axes[:-1].flat:
        ax.set_xlabel("")
    missing = [str(form) for form in effects["form"].values if form not in maps]
    note = f" (not traced: {', '.join(missing)})" if missing else ""
    fig.suptitle(f"Rule: {style.shorten(rule, 80)}{note}", x=0.01, ha="left", parse_math=False)
    bar = fig.colorbar(axes[0, 0].collections[0], ax=axes, pad=0.01, aspect=45, fraction=0.03)
    _label_bar(bar, indirect_effect(next(iter(maps.values()))))
    return fig


@style.paper_style()
def prompt_panel(effects: xr.Dataset) -> Figure:
    """Draw the map of one prompt: its components side by side, one colour scale; prompt and answer
    as the title.

    Args:
        effects: Map of one prompt and one metric.

    Raises:
        ValueError: Nothing was traced.
    """
    effect = indirect_effect(effects)
    rows, components = traced_positions(effect), [str(c) for c in effects["component"].values]
    if not rows.any():
        raise InputError("no token of this prompt was traced; trace it with trace.positions=all")
    title = textwrap.fill(f"“{style.shorten(str(effects['prompt'].item()), 240)}”", 95)
    heading = textwrap.fill(_answer(effects, 60), 95)
    lines = title.count("\n") + heading.count("\n")
    height = 1.45 + 0.14 * lines + max(ROW_HEIGHT * int(rows.sum()), LEAST_HEIGHT)
    fig = Figure(figsize=(style.DOUBLE_COLUMN, height), layout="constrained")
    axes = fig.subplots(1, len(components), squeeze=False)[0]
    limit = colour_limit(effect)
    for ax, component in zip(axes, components, strict=True):
        _draw_cells(ax, effect.sel(component=component), rows, limit)
        _label_tokens(ax, effects, rows, named=ax is axes[0])
        ax.set_title(_component_title(effects, component), loc="left")
    fig.suptitle(
        f"{title}\n{heading}",
        x=0.01,
        ha="left",
        parse_math=False,
        fontsize=mpl.rcParams["axes.titlesize"],
        color=_verdict_colour(effects),
    )
    style.figure_caption(fig, effect_caption(effects, rows))
    bar = fig.colorbar(axes[0].collections[0], ax=axes, pad=0.01, aspect=25, fraction=0.03)
    _label_bar(bar, effect)
    return fig


def save_prompt_panel(effects: xr.Dataset, path: Path) -> None:
    """Draw the map of one prompt into a PNG or PDF, as the file's name says."""
    style.save_as(prompt_panel(effects), path)


def traced_positions(effect: xr.DataArray) -> np.ndarray:
    """Which positions have a traced site, shape (pos,)."""
    return effect.notnull().any([d for d in effect.dims if d != "pos"]).values


def gaps(rows: np.ndarray) -> np.ndarray:
    """Row borders at which tokens between two shown rows are left out.

    >>> gaps(np.array([False, True, False, True, True]))
    array([1])
    """
    return np.flatnonzero(np.diff(np.flatnonzero(rows)) > 1) + 1


def colour_limit(effect: xr.DataArray) -> float:
    """Largest absolute effect; 1 where there is none, so that the scale has a length."""
    values = np.abs(effect.values[np.isfinite(effect.values)])
    return float(values.max()) if values.size and values.max() > 0 else 1.0


def effect_caption(effects: xr.Dataset, rows: np.ndarray) -> str:
    """What a reader must know beside one map: total effect, samples, tokens left out, marks."""
    te = total_effect(effects)
    samples = effects.sizes["sample"]
    value, error = float(te["total_effect"]), float(te["standard_error"])
    spread = f" ± {error:.2f}" if np.isfinite(error) else ""
    attrs = effects.attrs
    estimated = "exact" in effects and 1 - float(
        effects["exact"].values[effects["score"].notnull().values].mean()
    )
    return "; ".join(
        (
            *(
                ["noising: effect = what the clean run loses"]
                if attrs.get("direction") == "noise"
                else []
            ),
            *([f"{estimated:.0%} estimated"] if estimated else []),
            f"total effect {value:.2f}{spread} {style.unit_name(effects.attrs['unit'])}",
            f"{samples} sample{'s' if samples != 1 else ''}",
            (
                f"{int(rows.sum())} of {rows.size} tokens"
                f" traced{' (dashes: gaps)' if gaps(rows).size else ''}"
            ),
            "*\u00a0=\u00a0corrupted",
        )
    )


def _row_heading(ax: Axes, text: str, colour: str) -> None:
    """Two lines above the title of the row's first axes, left out of the layout."""
    title = float(FontProperties(size=mpl.rcParams["axes.titlesize"]).get_size_in_points())
    note = ax.annotate(
        text,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(0, 6 + 1.3 * title),
        textcoords="offset points",
        va="bottom",
        fontsize=0.85 * title,
        color=colour,
        parse_math=False,
        gid="heading",
    )
    note.set_in_layout(False)


def _draw_cells(ax: Axes, effect: xr.DataArray, rows: np.ndarray, limit: float) -> None:
    """Cells, layer ticks and the marks of omitted tokens."""
    cells = effect.transpose("pos", "layer").values[rows]
    ax.set_facecolor(style.UNTRACED_COLOUR)
    sns.heatmap(
        cells, vmin=-limit, vmax=limit, cmap=style.DIVERGING, mask=np.isnan(cells), cbar=False,
        xticklabels=False, yticklabels=False, rasterized=True, ax=ax,
    )  # fmt: skip
    layers = effect["layer"].values
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100) if len(layers) / step <= 9)
    shown = np.arange(0, len(layers), every)
    ax.set_xticks(shown + 0.5, [str(layers[i]) for i in shown], rotation=0)
    ax.set_xlabel("layer")
    ax.hlines(gaps(rows), 0, len(layers), colors="0.3", linestyles=(0, (4, 3)), linewidth=0.5)
    for spine in ax.spines.values():
        spine.set_visible(True)


def _label_tokens(ax: Axes, effects: xr.Dataset, rows: np.ndarray, *, named: bool = True) -> None:
    tokens, corrupted = effects["token"].values[rows], effects["is_corrupted"].values[rows]
    labels = [
        style.shorten(str(t), LONGEST_TOKEN) + "*" * bool(c)
        for t, c in zip(tokens, corrupted, strict=True)
    ]
    ax.set_yticks(
        np.arange(len(labels)) + 0.5, labels if named else [""] * len(labels),
        rotation=0, fontsize=style.SMALL, parse_math=False,
    )  # fmt: skip
    ax.tick_params(axis="y", length=1.5)
    for label, bold in zip(ax.get_yticklabels(), corrupted, strict=True):
        label.set_fontweight("bold" if bold else "normal")


def _label_bar(bar: Colorbar, effect: xr.DataArray) -> None:
    bar.outline.set_linewidth(0.4)
    bar.set_label(f"indirect effect ({style.unit_name(effect.attrs['unit'])})")


def _component(effects: xr.Dataset, component: str) -> xr.DataArray:
    known = effects["component"].values.tolist()
    if component not in known:
        raise InputError(f"the map has no component {component!r}; choose from {known}")
    return indirect_effect(effects).sel(component=component)


def _component_title(effects: xr.Dataset, component: str) -> str:
    window = effects.attrs.get("window")
    return style.component_name(component, None if window is None else int(window))


def _answer(effects: xr.Dataset, characters: int) -> str:
    """The scored answer, where it comes from, and a warning if the map means nothing."""
    text = f"answer “{style.shorten(str(effects['answer'].item()), characters)}”"
    source = effects.attrs.get("answer_source") or effects.coords.get("answer_source", None)
    if source is not None:
        said = str(getattr(source, "values", source))
        text += f" ({ANSWER_SOURCES.get(said, style.shorten(said, 30))})"
    return (
        text
        if bool(total_effect(effects)["traceable"])
        else f"{text} NOT TRACEABLE: effect within noise"
    )


def _verdict_colour(effects: xr.Dataset) -> str:
    return "black" if bool(total_effect(effects)["traceable"]) else style.WARNING_COLOUR


def _maps_of(effects: xr.Dataset, rule: str) -> dict[str, xr.Dataset]:
    """The rule's maps by form, without the forms that were not traced."""
    if rule not in effects["rule"].values:
        raise InputError(
            f"no maps of rule {rule!r}; traced rules are {effects['rule'].values.tolist()}"
        )
    lengths = effects["n_tokens"].sel(rule=rule)
    forms = [str(form) for form in effects["form"].values if int(lengths.sel(form=form)) > 0]
    maps = {form: select_map(effects, rule, form) for form in forms}
    maps = {form: one for form, one in maps.items() if traced_positions(indirect_effect(one)).any()}
    if not maps:
        raise InputError(f"nothing of rule {rule!r} was traced; run `dmle trace` for it first")
    return maps
