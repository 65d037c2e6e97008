"""Layer profiles: the average indirect effect (AIE) of each layer, by rule form, with its interval.

Lines are means over rules, bands the bootstrap interval over rules that the profile holds. The
strip above shows what a mean hides: at which layer each single rule peaks.
"""

from typing import Any

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from figures import style
from interp.errors import InputError
from interp.vocabulary import COMPONENTS, LOOKUP, ROLES


def draw_layer_profile(
    profile: xr.Dataset,
    component: str = "mlp",
    role: str = "subject_last",
    *,
    peaks: bool = True,
    legend: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """Draw the AIE per layer, one line per form, for one component and token role.

    Args:
        profile: Layer profile, dims ``form component role layer`` (and ``rule`` for `peaks`).
        component: The restored component.
        role: The token role that was restored.
        peaks: Whether to show, above, the layer of each rule's largest effect, and a caption.
        legend: Whether to name the forms with their numbers of rules.
        ax: Axes to draw into; new ones by default.

    Raises:
        ValueError: The profile has no such component or role, or no data for them.
    """
    part = select(profile, component, role)
    forms = _forms_with_data(part)
    if not forms:
        raise InputError(
            f"no traceable rule has role {role!r} for {component!r}; choose from"
            f" {roles_with_data(profile)}"
        )
    ax = style.new_axes(style.SINGLE_COLUMN, 2.5) if ax is None else ax
    colours = style.form_colours(str(f) for f in profile["form"].values)
    ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    for form in forms:
        _draw_form(
            ax,
            part.sel(form=form),
            colours[form],
            style.FORM_STYLES.get(form, "-"),
            _label(part, form),
        )
    style.layer_axis(ax, (int(layer) for layer in part["layer"].values))
    ax.set_ylabel(f"average indirect effect\n({style.unit_name(profile.attrs['unit'])})")
    ax.set_title(
        f"{_component(profile, component)}, {style.ROLE_NAMES.get(role, role)}", loc="left"
    )
    if legend:
        _name_forms(ax)
    if peaks:
        draw_peaks(ax, part, forms)
        style.caption(
            ax, f"{band_note(part)} Dots: layer at which single rules peak; area: number of rules."
        )
    sns.despine(ax=ax)
    return ax


@style.paper_style()
def profile_panel(profile: xr.Dataset) -> Figure:
    """Draw every profile that has data: token roles as columns, components as rows, one scale per
    row.

    Raises:
        ValueError: The profile holds no traceable rule.
    """
    roles, components = roles_with_data(profile), components_with_data(profile)
    if not roles:
        raise InputError(
            "the profile has no traceable rule; trace rules that the model answers, then run `dmle"
            " profile`"
        )
    fig = Figure(figsize=(style.DOUBLE_COLUMN, 1.0 + 1.3 * len(components)), layout="constrained")
    axes = fig.subplots(len(components), len(roles), squeeze=False, sharex=True, sharey="row")
    for row, component in zip(axes, components, strict=True):
        for ax, role in zip(row, roles, strict=True):
            _draw_cell(ax, profile, component, role)
        row[0].set_ylabel(_component(profile, component).replace(" (", "\n("))
    for ax, role in zip(axes[0], roles, strict=True):
        heading = _two_lines(style.ROLE_NAMES.get(role, role))
        ax.set_title(f"{heading}\n{ax.get_title()}", fontsize=7, color="black")
    for ax in axes[-1]:
        ax.set_xlabel("layer")
    forms = [str(form) for form in profile["form"].values]
    colours = style.form_colours(forms)
    lines = [
        Line2D(
            [],
            [],
            color=colours[f],
            linestyle=style.FORM_STYLES.get(f, "-"),
            label=style.visible(f),
        )
        for f in forms
    ]
    fig.legend(handles=lines, loc="outside upper left", ncols=len(forms))
    fig.supylabel(
        f"average indirect effect\n({style.unit_name(profile.attrs['unit'])})", fontsize=7
    )
    style.figure_caption(
        fig, f"{band_note(profile)} n: rules per form, in the order of the legend."
    )
    return fig


def draw_peaks(ax: Axes, part: xr.Dataset, forms: list[str]) -> Axes:
    """Draw a strip above `ax` with the layer of each rule's largest effect; returns the strip's
    axes.
    """
    strip = ax.inset_axes((0, 1.02, 1, 0.055 * len(forms) + 0.02), sharex=ax)
    colours = style.form_colours(str(f) for f in part["form"].values)
    for height, form in enumerate(reversed(forms)):
        layers, counts = np.unique(peak_layers(part["effect"].sel(form=form)), return_counts=True)
        strip.scatter(
            layers,
            np.full(len(layers), height),
            s=7 * counts,
            color=[colours[form]],
            alpha=0.8,
            linewidths=0,
        )
    strip.set_ylim(-0.7, len(forms) - 0.3)
    strip.set_yticks([])
    strip.tick_params(axis="x", bottom=False, labelbottom=False)
    strip.set_ylabel(
        "peak of\neach rule", rotation=0, ha="right", va="center", fontsize=style.SMALL
    )
    strip.set_xlabel("")
    sns.despine(ax=strip, left=True, bottom=True)
    return strip


def peak_layers(effect: xr.DataArray) -> np.ndarray:
    """Layer of the largest effect of each rule that has one, shape (n_rules,); input dims ``rule
    layer``.
    """
    usable = effect.dropna("rule", how="any")
    return usable.idxmax("layer").values if usable.sizes["rule"] else np.array([])


def select(profile: xr.Dataset, component: str, role: str) -> xr.Dataset:
    """The profile of one component and role.

    Raises:
        ValueError: The profile does not have them.
    """
    for dim, name in (("component", component), ("role", role)):
        if name not in profile[dim].values:
            raise InputError(
                f"the profile has no {dim} {name!r}; choose from {profile[dim].values.tolist()}"
            )
    return profile.sel(component=component, role=role)


def has_data(profile: xr.Dataset, component: str, role: str) -> bool:
    """Whether any form has a mean for that component and role; also false where the profile
    lacks them.
    """
    if component not in profile["component"].values or role not in profile["role"].values:
        return False
    return bool(profile["aie"].sel(component=component, role=role).notnull().any())


def roles_with_data(profile: xr.Dataset) -> list[str]:
    """Roles with an effect in at least one form and component, in reading order, the pooled lookup
    last.

    Tokens before the corruption have an effect of exactly zero by construction; they are not shown.
    """
    has_data = (profile["aie"].fillna(0) != 0).any(["form", "component", "layer"])
    known = [role for role in (*ROLES, LOOKUP) if role in profile["role"].values]
    return [role for role in known if bool(has_data.sel(role=role))]


def components_with_data(profile: xr.Dataset) -> list[str]:
    """Components that at least one form and role has data for."""
    has_data = profile["aie"].notnull().any(["form", "role", "layer"])
    known = [component for component in COMPONENTS if component in profile["component"].values]
    return [component for component in known if bool(has_data.sel(component=component))]


def band_note(profile: xr.Dataset) -> str:
    """What the bands are, and how many prompts were left out, in words."""
    share = f"{100 * float(profile.attrs.get('confidence', 0.95)):.0f} %"
    known = bool(profile["lower"].notnull().any())
    note = (
        f"Bands: {share} bootstrap interval over rules."
        if known
        else "One rule, so no interval over rules."
    )
    if "n_untraceable" not in profile.attrs:
        return note
    left_out, traced = int(profile.attrs["n_untraceable"]), int(profile.attrs["n_prompts"])
    return f"{note} Left out as not traceable: {left_out} of {traced} prompts."


def _draw_form(ax: Axes, line: xr.Dataset, colour: Any, dashes: str, label: str) -> None:
    layers = line["layer"].values
    ax.plot(layers, line["aie"].values, color=colour, linestyle=dashes, label=label)
    ax.fill_between(
        layers, line["lower"].values, line["upper"].values, color=colour, alpha=0.18, linewidth=0
    )


def _draw_cell(ax: Axes, profile: xr.Dataset, component: str, role: str) -> None:
    part = select(profile, component, role)
    if _forms_with_data(part):
        draw_layer_profile(profile, component, role, peaks=False, legend=False, ax=ax)
    ax.set_title("", loc="left")
    ax.set_title(_counts(part), fontsize=5.5, color="0.35", pad=2)
    ax.set_xlabel("")
    ax.set_ylabel("")
    ax.locator_params(axis="x", nbins=3)
    sns.despine(ax=ax)


def _counts(part: xr.Dataset) -> str:
    """Numbers of rules, one per form."""
    return f"n = {'/'.join(str(int(n)) for n in part['n'].values)}"


def _forms_with_data(part: xr.Dataset) -> list[str]:
    return [
        str(form)
        for form in part["form"].values
        if bool(part["aie"].sel(form=form).notnull().any())
    ]


def _label(part: xr.Dataset, form: str) -> str:
    return f"{style.visible(form)} (n = {int(part['n'].sel(form=form))})"


def _name_forms(ax: Axes) -> None:
    legend = ax.legend(loc="best", handlelength=2.2)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _component(profile: xr.Dataset, component: str) -> str:
    window = profile.attrs.get("window")
    return style.component_name(component, None if window is None else int(window))


def _two_lines(name: str) -> str:
    """Break a role's name after its first word, for narrow columns."""
    return name.replace(" ", "\n", 1)
