"""Every figure and table that a run folder's files allow.

Reads ``effects.nc``, ``profile.nc``, ``selection.json``, ``scores.nc`` and ``answers.csv`` where they
exist and writes ``figures/*.pdf``, ``figures/*.png``, ``tables/*.md`` and ``tables/*.tex`` beside them.
No model is loaded, so this runs anywhere, in a few seconds per figure.
"""

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure, SubFigure

from figures import edit_scores, effect_map, layer_profile, layer_selection, style, trade_off
from interp import effects as effects_schema
from interp.profiles import LOOKUP
from interp.selection import LayerSelection

log = logging.getLogger(__name__)

INPUTS = {
    "effects.nc": "dmle trace",
    "profile.nc": "dmle profile",
    "selection.json": "dmle select",
    "scores.nc": "dmle evaluate",
    "answers.csv": "dmle evaluate",
}
"""Files read, and the command that writes each."""
TRADE_OFF_ARMS = 3
"""Fewer arms than this make no curve."""
MAIN_COMPONENT = "mlp"
PANELS = {"": effects_schema.COMPONENTS[:3], "-single-and-frozen": effects_schema.COMPONENTS[3:]}
"""Components that are drawn together; more columns than four are too narrow to read."""
"""Component of the main figures: the one that selection reads and editors write."""


def draw_all(run: Path, *, max_rules: int | None = None) -> list[Path]:
    """Draw every figure and write every table that the run folder allows.

    Args:
        run: The run folder.
        max_rules: Draw the effect panels of at most so many rules, in the order of the file; all by default.

    Returns:
        The paths written.

    Raises:
        ValueError: The folder holds none of the inputs.
    """
    present = [name for name in INPUTS if (run / name).is_file()]
    if not present:
        steps = ", ".join(dict.fromkeys(f"`{command}`" for command in INPUTS.values()))
        raise ValueError(f"{run} holds none of {list(INPUTS)}; run {steps} on it first (or `dmle run` for all)")
    for name in INPUTS.keys() - set(present):
        log.info("no %s in %s: its figures are left out; `%s` writes it", name, run, INPUTS[name])
    written: list[Path] = []
    with style.paper_style():
        for stem, figure in _figures(run, set(present), max_rules):
            written += style.save(figure, run / "figures" / stem)
    for name, text in _tables(run, set(present)):
        written.append(_write(run / "tables" / name, text))
    return written


def example_rule(effects: xr.Dataset) -> str:
    """The rule whose weakest form has the largest total effect: clear in every form that was traced."""
    weakest = effects_schema.total_effect(effects)["total_effect"].min("form", skipna=True)
    return str(weakest["rule"].values[int(weakest.argmax("rule"))])


def _figures(run: Path, present: set[str], max_rules: int | None) -> Iterator[tuple[str, Figure]]:
    if "effects.nc" in present:
        yield from _effect_figures(effects_schema.choose_metric(effects_schema.load(run / "effects.nc")), max_rules)
    if "profile.nc" in present:
        profile = effects_schema.load(run / "profile.nc")
        yield from _profile_figures(profile)
        if "selection.json" in present:
            selection = LayerSelection.load(run / "selection.json")
            yield "layer-selection", layer_selection.selection_panel(profile, selection)
    if "scores.nc" in present:
        scores = effects_schema.load(run / "scores.nc")
        for mode in modes_with_scores(scores):
            yield f"edit-scores-{slug(mode)}", _figure(edit_scores.draw_edit_scores(scores, mode))
        points = trade_off.points_of(scores)
        for gain in trade_off.GAINS:
            if len(points) >= TRADE_OFF_ARMS and any(np.isfinite(one[gain]) for one in points.values()):
                yield f"trade-off-{slug(gain)}", _figure(trade_off.draw_trade_off(points, gain))


def _effect_figures(effects: xr.Dataset, max_rules: int | None) -> Iterator[tuple[str, Figure]]:
    rules = [str(rule) for rule in effects["rule"].values]
    if max_rules is not None and len(rules) > max_rules:
        log.info("drawing the effect panels of %d of %d rules", max_rules, len(rules))
    for rule in rules[:max_rules]:
        for suffix, components in PANELS.items():
            if set(components) & set(effects["component"].values):
                panel = effect_map.effect_panel(effects, rule, components)
                yield f"effect-panel-{slug(rule)}{suffix}", panel
    rule = example_rule(effects)
    for form in (str(f) for f in effects["form"].values if int(effects["n_tokens"].sel(rule=rule, form=f)) > 0):
        one = effects_schema.select_map(effects, rule, form)
        ax = effect_map.draw_effect_map(one, _main_component(effects))
        reason = "clearest in all its forms" if len(rules) > 1 else "the only one traced"
        ax.set_title(
            f"{form}, rule: {style.shorten(rule, 36)}\n({reason})\n{ax.get_title(loc='left')}",
            loc="left",
            parse_math=False,
        )
        yield f"effect-map-{slug(form)}", _figure(ax)


def _profile_figures(profile: xr.Dataset) -> Iterator[tuple[str, Figure]]:
    roles = layer_profile.roles_with_data(profile)
    if not roles:
        log.warning("the profile has no traceable rule: its figures are left out")
        return
    yield "profile-panel", layer_profile.profile_panel(profile)
    role = LOOKUP if LOOKUP in roles else roles[-1]
    yield "layer-profile", _figure(layer_profile.draw_layer_profile(profile, _main_component(profile), role))


def _tables(run: Path, present: set[str]) -> Iterator[tuple[str, str]]:
    if "scores.nc" in present:
        scores = effects_schema.load(run / "scores.nc")
        for mode in modes_with_scores(scores):
            for suffix, each_rule in (("", True), ("-mean", False)):
                table = edit_scores.score_table(scores, mode, each_rule=each_rule)
                yield f"scores-{slug(mode)}{suffix}.md", table.markdown
                yield f"scores-{slug(mode)}{suffix}.tex", table.latex
    if "answers.csv" in present:
        # Answers such as "NA" or "12" are text: no guessing of types or of missing values.
        answers = pd.read_csv(run / "answers.csv", dtype=str, keep_default_na=False, encoding="utf-8")
        # locality_correctness asks the same questions as locality.
        yield "before-after.md", edit_scores.before_after_table(answers.query("metric != 'locality_correctness'"))


def modes_with_scores(scores: xr.Dataset) -> list[str]:
    """Scoring modes that hold at least one score after an edit."""
    after = scores["score"].sel(phase="post")
    return [str(mode) for mode in scores["mode"].values if bool(after.sel(mode=mode).notnull().any())]


def slug(name: str) -> str:
    """A name as part of a file name; different names stay different.

    >>> slug("2"), slug("rule 7/a")
    ('2', 'rule+20+7+2f+a')
    """
    return re.sub(r"[^A-Za-z0-9._-]", lambda match: f"+{ord(match[0]):x}+", name)


def _main_component(data: xr.Dataset) -> str:
    known = [str(component) for component in data["component"].values]
    return MAIN_COMPONENT if MAIN_COMPONENT in known else known[0]


def _figure(ax: object) -> Figure:
    figure = getattr(ax, "figure", None)
    if isinstance(figure, SubFigure) or not isinstance(figure, Figure):
        raise TypeError(f"expected axes of a whole figure, got {ax!r}")
    return figure


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
