"""The chosen layers on the profile they were chosen from.

One panel per group of forms: the group's profile, its chosen layers shaded, and what speaks for the
choice in words. A choice that the profile does not support is hatched, and the title says what it
takes.
"""

import textwrap

import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from figures.layer_profile import band_note, draw_layer_profile, has_data
from interp.errors import InputError
from interp.selection.layers import LayerGroup, LayerSelection
from interp.selection.reasons import layer_names, rules_in_words, runs
from interp.vocabulary import LOOKUP

TITLE_CHARACTERS = 44
"""Longest line of a title in a panel of half the page."""
OBJECTION_CHARACTERS = 140


def draw_layer_selection(
    profile: xr.Dataset, selection: LayerSelection, group: str, *, ax: Axes | None = None
) -> Axes:
    """Draw the profile of one group's forms with the group's chosen layers shaded.

    Forms that were not traced have no line; a group without any line is marked as such.

    Args:
        profile: The profile that the selection was made from.
        selection: The chosen layers.
        group: Name of the group to show.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: The selection has no such group.
    """
    chosen = _group(selection, group)
    ax = style.new_axes(style.SINGLE_COLUMN, 2.5) if ax is None else ax
    part = profile.sel(form=[form for form in chosen.forms if form in profile["form"].values])
    if has_data(part, selection.component, _role(selection)):
        draw_layer_profile(part, selection.component, _role(selection), peaks=False, ax=ax)
    else:
        ax.text(
            0.5, 0.5, "no profile", transform=ax.transAxes, ha="center", color=style.WARNING_COLOUR
        )
        style.layer_axis(ax, range(selection.n_layers))
        sns.despine(ax=ax)
    if selection.first_layer:
        ax.axvspan(
            -0.5,
            selection.first_layer - 0.5,
            facecolor="none",
            edgecolor="0.75",
            hatch="....",
            linewidth=0,
            zorder=0,
            gid="no candidates",
        )
    colour = "black" if chosen.supported else style.WARNING_COLOUR
    for first, last in runs(chosen.layers):
        ax.axvspan(
            first - 0.5,
            last + 0.5,
            facecolor="0.8" if chosen.supported else "none",
            edgecolor=colour,
            hatch=None if chosen.supported else "////",
            alpha=0.6,
            linewidth=0,
            zorder=0,
            gid="chosen",
        )
    ax.set_title(
        _title(chosen) + _without_data(profile, selection, chosen),
        loc="left",
        color=colour,
        parse_math=False,
    )
    return ax


@style.paper_style()
def selection_panel(profile: xr.Dataset, selection: LayerSelection) -> Figure:
    """Draw every group of a selection side by side on one scale."""
    n_groups = len(selection.groups)
    width = style.DOUBLE_COLUMN if n_groups > 1 else style.SINGLE_COLUMN
    fig = Figure(figsize=(width, 2.9), layout="constrained")
    axes = fig.subplots(1, n_groups, squeeze=False, sharey=True)[0]
    for ax, group in zip(axes, selection.groups, strict=True):
        draw_layer_selection(profile, selection, group.name, ax=ax)
        if ax is not axes[0]:
            ax.set_ylabel("")
    window = profile.attrs.get("window")
    component = style.component_name(selection.component, None if window is None else int(window))
    role = style.ROLE_NAMES.get(_role(selection), _role(selection))
    chosen = f"{component}, {role}. Shaded: chosen layers (strategy “{selection.strategy}”)."
    left_out = (
        " Dotted: no candidates (restoring them brings the word itself back)."
        if selection.first_layer
        else ""
    )
    style.figure_caption(fig, f"{chosen}{left_out} {band_note(profile)}")
    return fig


def _title(group: LayerGroup) -> str:
    """What was chosen, its score with interval, its stability, and whether the profile supports
    it.
    """
    lines = [f"{style.shorten(group.name.replace('+', ' + '), 36)}: {layer_names(group.layers)}"]
    if group.score is None:
        lines.append(textwrap.fill(style.shorten(group.reason or "no score", 90), TITLE_CHARACTERS))
    else:
        rules = rules_in_words(group.n_rules)
        lines.append(f"score {_number(group.score)}{_interval(group)} (n = {rules})")
    if group.stability is not None and group.n_rules > 1:
        lines.append(f"stability {group.stability:.2f} (between halves of the rules)")
    if not group.supported:
        lines.append(textwrap.fill(_objection(group), TITLE_CHARACTERS))
    return "\n".join(lines)


def _without_data(profile: xr.Dataset, selection: LayerSelection, group: LayerGroup) -> str:
    """A title line for the forms of a group that the profile has no line for."""
    known = profile["form"].values
    missing = [
        form
        for form in group.forms
        if form not in known
        or not has_data(profile.sel(form=[form]), selection.component, _role(selection))
    ]
    return f"\nno traceable rule: {', '.join(missing)}" if missing else ""


def _interval(group: LayerGroup) -> str:
    if (
        group.lower is None or group.upper is None or group.n_rules < 2
    ):  # one rule resamples to itself
        return ""
    return f" [{_number(group.lower)}, {_number(group.upper)}]"


def _objection(group: LayerGroup) -> str:
    """Why the profile does not support the choice, and what it takes."""
    against = " ".join(group.objections) or f"Not supported. {group.reason}".rstrip()
    return style.shorten(against, OBJECTION_CHARACTERS)


def _role(selection: LayerSelection) -> str:
    """Layers given by hand name no role; they are shown on the lookup profile."""
    return selection.role or LOOKUP


def _number(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _group(selection: LayerSelection, name: str) -> LayerGroup:
    for group in selection.groups:
        if group.name == name:
            return group
    raise InputError(
        f"the selection has no group {name!r}; choose from {[g.name for g in selection.groups]}"
    )
