"""All models of the atlas by relative depth: does a form sit at the same share of the depth?

Layers of models of different depth are made comparable by block / (blocks − 1). Effects of
different models have different sizes, so that each line is divided by its own maximum.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style
from interp.errors import InputError
from interp.vocabulary import FORMS, LOOKUP

HEIGHT = 2.4
"""Of the figure, inches."""
DASHES = ("-", "--", "-.", ":")


@style.paper_style()
def atlas_panel(profiles: Mapping[str, xr.Dataset], component: str = "mlp") -> Figure:
    """Draw a panel for each form, with a line for each model.

    Args:
        profiles: Layer profiles by model.
        component: The restored component.

    Raises:
        InputError: There is no profile with an effect at the lookup tokens.
    """
    lines = {
        form: {
            name: line
            for name, profile in profiles.items()
            if (line := relative_profile(profile, form, component)) is not None
        }
        for form in FORMS
    }
    drawn = [form for form in FORMS if lines[form]]
    if not drawn:
        raise InputError(f"no model of the atlas has a profile of {component!r} at lookup tokens")
    fig = Figure(figsize=(style.DOUBLE_COLUMN, HEIGHT), layout="constrained")
    axes = fig.subplots(1, len(drawn), squeeze=False, sharex=True, sharey=True)[0]
    colours = dict(zip(profiles, sns.color_palette("colorblind", len(profiles)), strict=True))
    for ax, form in zip(axes, drawn, strict=True):
        _draw_form(ax, form, lines[form], colours, list(profiles))
    axes[0].set_ylabel("effect / its maximum")
    handles = {str(line.get_label()): line for ax in axes for line in ax.get_lines()}
    shown = [handles[style.visible(name)] for name in profiles if style.visible(name) in handles]
    legend = fig.legend(handles=shown, loc="outside upper left", ncols=4)
    for text in legend.get_texts():
        text.set_parse_math(False)
    words = style.component_name(component, None)
    style.figure_caption(
        fig,
        f"Average indirect effect of the {words} at the lookup tokens, mean over rules. At the"
        " left, windows hold the first block: the clean value restores the corrupted word itself.",
    )
    return fig


def relative_profile(
    profile: xr.Dataset, form: str, component: str = "mlp"
) -> tuple[np.ndarray, np.ndarray] | None:
    """Depths from 0 to 1 and effects with a maximum of 1, each of shape (layer,).

    None without an effect, or without a positive one.
    """
    has_labels = form in profile["form"].values and component in profile["component"].values
    if not has_labels:
        return None
    effect = profile["aie"].sel(form=form, component=component, role=LOOKUP).values
    highest = np.nanmax(effect) if not np.isnan(effect).all() else 0.0
    if highest <= 0:
        return None
    layers = profile["layer"].values
    return layers / max(int(layers[-1]), 1), effect / highest


def save_atlas_panel(profiles: Mapping[str, xr.Dataset], path: Path) -> None:
    """Draw the models of the atlas into a PNG or PDF, as the file's name says."""
    style.save_as(atlas_panel(profiles), path)


def _draw_form(
    ax: Axes,
    form: str,
    lines: Mapping[str, tuple[np.ndarray, np.ndarray]],
    colours: Mapping[str, tuple[float, float, float]],
    names: list[str],
) -> None:
    ax.axhline(0, color="0.6", linewidth=0.6, zorder=0, label="_zero")
    for name, (depth, effect) in lines.items():
        dashes = DASHES[names.index(name) % len(DASHES)]
        ax.plot(depth, effect, dashes, color=colours[name], label=style.visible(name))
    ax.set_title(form, loc="left")
    ax.set_xlabel("block / (blocks − 1)")
    sns.despine(ax=ax)
