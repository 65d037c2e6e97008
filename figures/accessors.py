"""Results that show themselves in a notebook: ``import figures.accessors``, then ``dataset.dmle``.

=================  =======================================  ======================================
dataset            ``.dmle.plot(...)``                      ``.dmle.table(...)``: one row for each
=================  =======================================  ======================================
map of one prompt  all its components (``metric``), or one  token: its best layer in each
                   (``component``)                          component
joined maps        the panel of a ``rule`` (default: the    prompt: its total effect, and whether
                   clearest), or of one form (``form``)     it is traceable
layer profile      every role and component; one ``role``   form and component: the peak
                   and ``component``; or the layers of a    (``role``)
                   ``selection`` on it
edit scores        before and after in a ``mode``, or the   editor and metric: before and after
                   trade-off ``against`` locality           (``mode``)
=================  =======================================  ======================================

``dataset.dmle`` alone, as the last expression of a cell, shows the table with what a reader must
know beside it. Which of these a dataset is, its attribute ``schema`` says. Figures are those of
this package, sized for print; here they get a resolution for the screen.

Importing this module is all the set-up there is: it registers the accessor with xarray and, inside
a notebook, lets IPython show figures, which it otherwise does only for those of pyplot. Nothing
else of the project imports it, so commands and scripts stay as they are.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from figures import edit_scores, effect_map, layer_profile, layer_selection, style, trade_off
from figures.paper import example_rule
from interp.errors import InputError
from interp.results import display
from interp.results.effects import (
    TRACEABLE_STANDARD_ERRORS,
    choose_metric,
    select_map,
    total_effect,
)
from interp.results.scores import WITHOUT_FLOOR, per_rule
from interp.selection import shown
from interp.selection.layers import LayerSelection
from interp.vocabulary import LOOKUP

SCREEN_DPI = 150
"""Pixels per inch on a screen: type of 7 points is small at the usual 100."""


@xr.register_dataset_accessor("dmle")
class ResultAccessor:
    """Figure and table of an effect map, joined maps, a layer profile or edit scores (see the
    module).
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def plot(self, **options: Any) -> Figure:
        """The figure of this kind of result; options are those of the kind (see the module).

        Raises:
            ValueError: The dataset is no result of these packages, or an option names what it does
                not hold.
            TypeError: An option is not one of this kind.
        """
        kind = kind_of(self._dataset)
        _check_options(kind.name, kind.plot, options)
        with style.paper_style():
            figure = kind.plot(self._dataset, **options)
        figure.set_dpi(SCREEN_DPI)
        return figure

    def table(self, **options: Any) -> pd.DataFrame:
        """The numbers of this kind of result as a data frame (see the module).

        Raises:
            ValueError, TypeError: As `plot`.
        """
        kind = kind_of(self._dataset)
        _check_options(kind.name, kind.table, options)
        return kind.table(self._dataset, **options)

    def _repr_html_(self) -> str:
        kind = kind_of(self._dataset)
        title, note = kind.words(self._dataset)
        return display.frame_html(kind.table(self._dataset), title=title, note=note)


@dataclass(frozen=True)
class Kind:
    """How one schema is shown."""

    name: str
    plot: Callable[..., Figure]
    table: Callable[..., pd.DataFrame]
    words: Callable[[xr.Dataset], tuple[str, str]]
    """Title and note."""


def kind_of(dataset: xr.Dataset) -> Kind:
    """What a dataset is, by the schema in its attributes.

    Raises:
        ValueError: It is none of the kinds that can be shown.
    """
    schema = dataset.attrs.get("schema")
    name = str(schema).partition("/")[0]
    if name == "dmle.effects":
        name += " (joined)" if "rule" in dataset.dims else ""
    if name not in KINDS:
        known = ", ".join(dict.fromkeys(each.partition(" ")[0] for each in KINDS))
        raise InputError(
            f"this dataset has the schema {schema!r}; effect maps, layer profiles and edit scores"
            f" can be shown, with attrs['schema'] from {known}: load one with"
            " interp.results.effects.load, and keep its attributes"
            " (xr.set_options(keep_attrs=True)) in what you compute"
        )
    return KINDS[name]


def score_frame(scores: xr.Dataset, *, mode: str = "token_accuracy") -> pd.DataFrame:
    """Mean over rules of each editor and metric, before and after; NaN before for locality,
    which has no floor.
    """
    rules = per_rule(scores, mode)
    mean, n = rules.mean("rule", skipna=True), rules.sel(phase="post").notnull().sum("rule")
    rows = []
    for editor in rules["editor"].values:
        for metric in edit_scores.metrics_with_data(rules):
            at = {"editor": editor, "metric": metric}
            if int(n.sel(at)):
                before = (
                    float("nan")
                    if metric in WITHOUT_FLOOR
                    else float(mean.sel(at).sel(phase="pre"))
                )
                row = {"editor": str(editor), "metric": metric, "before": before}
                rows.append(
                    {**row, "after": float(mean.sel(at).sel(phase="post")), "rules": int(n.sel(at))}
                )
    return pd.DataFrame(rows)


def _plot_map(
    effects: xr.Dataset, *, metric: str | None = None, component: str | None = None
) -> Figure:
    one = choose_metric(effects, metric)
    if component is None:
        return effect_map.prompt_panel(one)
    return _figure(effect_map.draw_effect_map(one, component))


def _plot_maps(
    effects: xr.Dataset,
    *,
    rule: str | None = None,
    form: str | None = None,
    metric: str | None = None,
    component: str | None = None,
) -> Figure:
    maps = choose_metric(effects, metric)
    rule = example_rule(maps) if rule is None else rule
    if form is not None:
        return _plot_map(select_map(maps, rule, form), component=component)
    if component is not None:
        return effect_map.effect_panel(maps, rule, (component,))
    return effect_map.effect_panel(maps, rule, [str(c) for c in maps["component"].values])


def _plot_profile(
    profile: xr.Dataset,
    *,
    component: str | None = None,
    role: str | None = None,
    selection: LayerSelection | None = None,
) -> Figure:
    if selection is not None:
        if component is not None or role is not None:
            raise InputError(
                "a selection says itself which component and role it read; leave these two out"
            )
        return layer_selection.selection_panel(profile, selection)
    if component is None and role is None:
        return layer_profile.profile_panel(profile)
    known = [str(c) for c in profile["component"].values]
    component = component or ("mlp" if "mlp" in known else known[0])
    return _figure(layer_profile.draw_layer_profile(profile, component, role or LOOKUP))


def _plot_scores(
    scores: xr.Dataset,
    *,
    mode: str = "token_accuracy",
    against: Literal["instance_portability", "rule_understanding_paraphrase"] | None = None,
) -> Figure:
    if against is not None:
        return _figure(trade_off.draw_trade_off(trade_off.points_of(scores, mode), against, mode))
    editors = per_rule(scores, mode).sizes["editor"]
    if editors > edit_scores.MOST_COLOURS:
        return edit_scores.scores_panel(scores, mode)
    return _figure(edit_scores.draw_edit_scores(scores, mode))


def _map_words(effects: xr.Dataset) -> tuple[str, str]:
    one = choose_metric(effects)
    te = total_effect(one)
    unit = style.unit_name(one.attrs["unit"])
    verdict = (
        ""
        if bool(te["traceable"])
        else " NOT TRACEABLE: the effect is within noise, and the map means nothing."
    )
    return (
        f"{one['prompt'].item()} → {one['answer'].item()}",
        (
            f"Total effect of the corruption {float(te['total_effect']):.2f} ±"
            f" {float(te['standard_error']):.2f} {unit} (standard error over {one.sizes['sample']}"
            f" samples). Effects: indirect, in the same unit.{verdict}"
        ),
    )


def _maps_words(effects: xr.Dataset) -> tuple[str, str]:
    one = choose_metric(effects)
    traced = int((one["n_tokens"] > 0).sum())
    traceable = int((total_effect(one)["traceable"] & (one["n_tokens"] > 0)).sum())
    return (
        f"Effect maps of {traced} prompts, {traceable} of them traceable",
        (
            f"Total effect in {style.unit_name(one.attrs['unit'])}, with its standard error over"
            f" {one.sizes['sample']} samples; traceable: above {TRACEABLE_STANDARD_ERRORS:g}"
            " standard errors. Other maps mean nothing."
        ),
    )


def _profile_words(profile: xr.Dataset) -> tuple[str, str]:
    return (
        (
            f"Layer profile of {profile.sizes['rule']} rules at lookup tokens"
            f" ({profile.attrs['lookup_roles']})"
        ),
        (
            f"Effects in {style.unit_name(profile.attrs['unit'])}, means over rules."
            f" {layer_profile.band_note(profile)}"
        ),
    )


def _scores_words(scores: xr.Dataset) -> tuple[str, str]:
    return (
        f"Edit scores: {edit_scores.MODE_NAMES['token_accuracy']}",
        (
            "Means over rules of each rule's mean over forms. Locality is agreement with the"
            " unedited model, so it has no before."
        ),
    )


KINDS = {
    "dmle.effects": Kind("an effect map", _plot_map, display.map_table, _map_words),
    "dmle.effects (joined)": Kind(
        "joined effect maps", _plot_maps, display.maps_table, _maps_words
    ),
    "dmle.profile": Kind("a layer profile", _plot_profile, shown.profile_table, _profile_words),
    "dmle.scores": Kind("edit scores", _plot_scores, score_frame, _scores_words),
}
"""Schema, without its version, → how it is shown."""


def _check_options(what: str, function: Callable[..., object], options: dict[str, Any]) -> None:
    known = list(inspect.signature(function).parameters)[1:]
    if unknown := [name for name in options if name not in known]:
        raise TypeError(
            f"no option {', '.join(map(repr, unknown))} for {what}; there are"
            f" {', '.join(known) or 'none'}"
        )


def _figure(ax: Any) -> Figure:
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure


def _show_figures() -> None:
    """Let IPython, if this runs in it, show figures that pyplot does not know, as `%matplotlib
    inline` does.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        from IPython.core.pylabtools import select_figure_formats

        select_figure_formats(shell, {"png"})


_show_figures()
