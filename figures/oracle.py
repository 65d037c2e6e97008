"""What selection is worth: the profile beside the edit success that was measured at every window of
layers.

The sweep (``sweep.nc``) has dims ``group rule window`` with coords ``start`` (first layer) and
``width`` along ``window``, and data ``score``: success of edits there, from 0 to 1, NaN where not
run. A rule counts if it was run at every window of its group. The oracle is the window with the
best mean over those rules.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures import style
from figures.layer_profile import has_data
from interp.errors import InputError
from interp.results.intervals import bootstrap_mean
from interp.selection.reasons import runs
from interp.vocabulary import LOOKUP

RESAMPLES = 2000
CONFIDENCE = 0.95
SUCCESS_COLOUR = "black"
PROFILE_COLOUR = "#0173b2"
ORACLE_COLOUR = "#de8f05"
CHOSEN_COLOUR = "0.8"


def whole_rules(sweep: xr.Dataset, group: str) -> np.ndarray:
    """Scores of the rules that were run at every window of a group, shape (rule, window).

    Raises:
        ValueError: The sweep has no such group, or no rule of it was run at every window.
    """
    groups = sweep["group"].values.tolist()
    if group not in groups:
        raise InputError(f"the sweep has no group {group!r}; choose from {groups}")
    scores = sweep["score"].sel(group=group).transpose("rule", "window").values
    scores = scores[~np.isnan(scores).any(1)]
    if not len(scores):
        raise InputError(
            f"no rule was run at every window of group {group!r}; run the sweep to its end"
        )
    return scores


def draw_oracle(
    sweep: xr.Dataset,
    profile: xr.Dataset,
    group: str,
    chosen: Sequence[int] = (),
    component: str = "mlp",
    role: str = LOOKUP,
    *,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw edit success by window (left axis) over the profile of the group's forms (right axis).

    A window's dot stands at its middle layer, its bar is the bootstrap interval over rules; windows
    of one width are joined.

    Args:
        sweep: Edit success, dims ``group rule window`` (see the module).
        profile: Layer profile of the same model.
        group: Name of the group, its forms joined by "+".
        chosen: Layers that selection chose, shaded; none by default.
        component: Which component's profile to show.
        role: Which role's profile to show.
        legend: Whether to name the marks.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: As `whole_rules`.
    """
    scores = whole_rules(sweep, group)
    ax = style.new_axes(style.SINGLE_COLUMN, 2.6) if ax is None else ax
    layers = [int(layer) for layer in profile["layer"].values]
    starts, widths = sweep["start"].values, sweep["width"].values
    mean, lower, upper = bootstrap_mean(scores, draws=RESAMPLES, confidence=CONFIDENCE, seed=0)
    middles = starts + (widths - 1) / 2
    for width in np.unique(widths):
        order = np.flatnonzero(widths == width)
        _draw_success(ax, order[np.argsort(starts[order])], middles, mean, lower, upper)
    best = int(mean.argmax())
    _mark(ax, range(int(starts[best]), int(starts[best] + widths[best])), "oracle")
    _mark(ax, chosen, "chosen")
    look: Any = {"markersize": 7, "markerfacecolor": "none", "color": ORACLE_COLOUR}
    ax.plot(middles[best], mean[best], "o", gid="best", **look)
    # Room above the highest dot, so that the legend hides none.
    low, high = float(np.nanmin([mean, lower])), float(np.nanmax([mean, upper]))
    margin = max(0.02, 0.08 * (high - low))
    ax.set_ylim(low - margin, high + margin)
    style.layer_axis(ax, layers)
    ax.set_ylabel("edit success")
    ax.set_title(_title(group, scores, mean, best, sweep, chosen), loc="left", parse_math=False)
    right = _draw_profile(ax, profile, group, component, role)
    sns.despine(ax=ax, right=right is None)
    if legend:
        ax.legend(
            handles=handles(chosen=bool(chosen), profile=right is not None), loc="upper center",
            bbox_to_anchor=(0.5, -0.2), ncols=2,
        )  # fmt: skip
    return ax


@style.paper_style()
def oracle_panel(
    sweep: xr.Dataset,
    profile: xr.Dataset,
    chosen: Mapping[str, Sequence[int]],
    component: str = "mlp",
    role: str = LOOKUP,
) -> Figure:
    """Draw every group of a sweep that has a whole rule side by side.

    Args:
        sweep: Edit success, dims ``group rule window`` (see the module).
        profile: Layer profile of the same model.
        chosen: Layers that selection chose, by group; groups may be missing.
        component: Which component's profile to show.
        role: Which role's profile to show.

    Raises:
        ValueError: No rule was run at every window of any group.
    """
    groups = groups_with_rules(sweep)
    if not groups:
        raise InputError("no rule was run at every window of any group; run the sweep to its end")
    width = style.DOUBLE_COLUMN if len(groups) > 1 else style.SINGLE_COLUMN
    fig = Figure(figsize=(width, 2.8), layout="constrained")
    axes = fig.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    limits = []
    for ax, group in zip(axes, groups, strict=True):
        draw_oracle(
            sweep, profile, group, chosen.get(group, ()), component, role, legend=False, ax=ax
        )
        limits.append(ax.get_ylim())
        if ax is not axes[0]:
            ax.set_ylabel("")
    axes[0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    profiles = [ax for ax in fig.axes if ax not in axes]
    _share_scale(profiles)
    fig.legend(
        handles=handles(chosen=bool(chosen), profile=bool(profiles)),
        loc="outside lower center",
        ncols=4,
    )
    return fig


def groups_with_rules(sweep: xr.Dataset) -> list[str]:
    """Groups of which at least one rule was run at every window."""
    whole = sweep["score"].notnull().all("window").any("rule")
    return [str(group) for group in sweep["group"].values if bool(whole.sel(group=group))]


def handles(*, chosen: bool, profile: bool) -> list[Any]:
    """Legend entries of `draw_oracle`."""
    marks: list[Any] = [
        Line2D(
            [],
            [],
            color=SUCCESS_COLOUR,
            marker="o",
            markersize=2.5,
            linewidth=0.8,
            label=f"edit success ({100 * CONFIDENCE:.0f} % interval)",
        ),
        *(
            [Line2D([], [], color=PROFILE_COLOUR, linestyle="--", label="profile (right)")]
            if profile
            else []
        ),
        Patch(
            facecolor="none",
            edgecolor=ORACLE_COLOUR,
            hatch="////",
            linewidth=0,
            label="oracle window",
        ),
        *([Patch(facecolor=CHOSEN_COLOUR, label="chosen layers")] if chosen else []),
    ]
    return marks


def _draw_success(
    ax: Axes,
    windows: np.ndarray,
    middles: np.ndarray,
    mean: np.ndarray,
    lower: np.ndarray,
    upper: np.ndarray,
) -> None:
    """Dots with intervals, joined, of the windows with these numbers."""
    colour: Any = {"color": SUCCESS_COLOUR}
    line: Any = {"markersize": 2.5, "linewidth": 0.8, "gid": "success", **colour}
    ax.plot(middles[windows], mean[windows], "o-", **line)
    ax.vlines(middles[windows], lower[windows], upper[windows], linewidth=0.6, alpha=0.6, **colour)


def _mark(ax: Axes, layers: Sequence[int], gid: str) -> None:
    """Shade layers: chosen ones in grey, the oracle's hatched, so that both show where they
    overlap.
    """
    for first, last in runs(list(layers)) if len(layers) else ():
        look: Any = (
            {"facecolor": CHOSEN_COLOUR, "alpha": 0.7, "zorder": -1}
            if gid == "chosen"
            else {"facecolor": "none", "edgecolor": ORACLE_COLOUR, "hatch": "////", "zorder": 0}
        )
        ax.axvspan(first - 0.5, last + 0.5, linewidth=0, gid=gid, **look)


def _share_scale(profiles: list[Axes]) -> None:
    """One scale for the profiles of all groups, named beside the last."""
    limits = [ax.get_ylim() for ax in profiles]
    for ax in profiles:
        ax.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
        if ax is not profiles[-1]:
            ax.set_ylabel("")
            ax.tick_params(axis="y", labelright=False)


def _forms(profile: xr.Dataset, group: str) -> list[str]:
    return [form for form in group.split("+") if form in profile["form"].values]


def _has_profile(profile: xr.Dataset, group: str, component: str, role: str) -> bool:
    return has_data(profile.sel(form=_forms(profile, group)), component, role)


def _draw_profile(
    ax: Axes, profile: xr.Dataset, group: str, component: str, role: str
) -> Axes | None:
    """The mean profile of the group's forms on axes of its own; None if it has none."""
    if not _has_profile(profile, group, component, role):
        return None
    right = ax.twinx()
    aie = (
        profile["aie"]
        .sel(form=_forms(profile, group), component=component, role=role)
        .mean("form", skipna=True)
    )
    right.plot(
        aie["layer"].values,
        aie.values,
        color=PROFILE_COLOUR,
        linestyle="--",
        linewidth=1,
        gid="profile",
    )
    right.set_ylabel(
        f"average indirect effect\n({style.unit_name(profile.attrs['unit'])})", color=PROFILE_COLOUR
    )
    right.tick_params(axis="y", colors=PROFILE_COLOUR)
    sns.despine(ax=right, left=True, right=False)
    return right


def _title(
    group: str,
    scores: np.ndarray,
    mean: np.ndarray,
    best: int,
    sweep: xr.Dataset,
    chosen: Sequence[int],
) -> str:
    """The group, the oracle's layers with their score, the chosen layers with theirs, and n."""
    starts, widths = sweep["start"].values, sweep["width"].values
    held = {tuple(range(s, s + w)): float(m) for s, w, m in zip(starts, widths, mean, strict=True)}
    rules = f"{len(scores)} rule{'s' if len(scores) != 1 else ''}"
    lines = [
        f"{style.shorten(group.replace('+', ' + '), 36)} (n = {rules})",
        (
            f"oracle: {_named(tuple(range(starts[best], starts[best] + widths[best])))}, success"
            f" {mean[best]:.2f}"
        ),
    ]
    if chosen:
        layers = tuple(sorted(chosen))
        lines.append(
            f"chosen: {_named(layers)}"
            + (f", success {held[layers]:.2f}" if layers in held else "")
        )
    return "\n".join(lines)


def _named(layers: tuple[int, ...]) -> str:
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs(list(layers)))
