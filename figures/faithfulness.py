"""What the first sites of a ranking bring back together, over the share of sites."""

from typing import Any

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from figures import style
from interp.errors import InputError
from interp.results.faithfulness import CONFIDENCE, Interval, areas, mean_curves, methods_of
from interp.vocabulary import RANKINGS

LOOKS: dict[str, dict[str, Any]] = {
    "exact": {"marker": "o", "linestyle": "-"},
    "screen": {"marker": "s", "linestyle": "--"},
    "attribution": {"marker": "^", "linestyle": "-."},
    "random": {"marker": "D", "linestyle": ":"},
}
BAND = 0.15
"""Opacity of the intervals."""


def ranking_colours() -> dict[str, Any]:
    """Colour of each ranking."""
    return dict(zip(RANKINGS, sns.color_palette("colorblind"), strict=False))


def draw_faithfulness(data: xr.Dataset, component: str = "mlp", *, ax: Axes | None = None) -> Axes:
    """Draw the recovered share over the share of sites restored, a line with its interval for each
    ranking.

    The axis of shares is logarithmic, as the areas in the legend take it; none restored recovers
    nothing, and is left out.

    Args:
        data: Content of `faithfulness.nc`.
        component: What was restored.
        ax: Axes to draw into; new ones by default.

    Raises:
        InputError: There is no such component, or it has no curve.
    """
    known = [str(name) for name in data["component"].values]
    if component not in known:
        raise InputError(f"there are no curves of {component!r}; choose from {known}")
    if not data["area"].sel(component=component).notnull().any():
        raise InputError(f"no prompt has a curve of {component!r}")
    ax = style.new_axes(style.SINGLE_COLUMN, 2.6) if ax is None else ax
    colours, by_method = ranking_colours(), areas(data, component)
    for end in (0, 1):
        ax.axhline(end, color="0.6", linewidth=0.6, zorder=0)
    for method in methods_of(data):
        shares, mean, lower, upper = (values[1:] for values in mean_curves(data, component, method))
        colour, area = colours[method], Interval.of(by_method[method])
        if np.isfinite(lower).any():
            ax.fill_between(shares, lower, upper, color=colour, alpha=BAND, linewidth=0)
        label = f"{method}, area {area.mean:.2f}"
        look: Any = {**LOOKS[method], "color": colour, "label": label, "gid": method}
        ax.plot(shares, mean, markersize=3, **look)
    _name_axes(ax, data, component)
    return ax


def _name_axes(ax: Axes, data: xr.Dataset, component: str) -> None:
    shares = data["share"].values[1:]
    ax.set_xscale("log")
    ax.set_xticks(shares)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
    ax.minorticks_off()
    ax.set_xlabel("share of sites restored together (%)")
    ax.set_ylabel("recovered share of the total effect")
    ax.set_title(style.component_name(component, data.attrs.get("window")), loc="left")
    ax.legend(loc="best")
    style.caption(ax, caption_of(data, component))
    sns.despine(ax=ax)


def caption_of(data: xr.Dataset, component: str) -> str:
    """What a reader needs to know of the curves of a component."""
    curves = data["n_sites"] > 0
    n_rules, n_prompts = int(curves.any("form").sum()), int(curves.sum())
    rules = f"{n_rules} rule{'s' if n_rules != 1 else ''}"
    band = (
        f"Bands: {CONFIDENCE:.0%} bootstrap interval over rules."
        if n_rules > 1
        else "One rule, so no interval."
    )
    skipped = int(data.attrs.get("n_skipped", 0))
    left_out = f", {skipped} left out" if skipped else ""
    return (
        f"Means over {rules} ({n_prompts} prompts{left_out}). {band} Areas are over this"
        " logarithmic axis."
    )
