"""Every figure and table that a run folder's files allow.

Reads the files of `INPUTS` where they exist and writes ``figures/*.pdf``, ``figures/*.png``,
``tables/*.md`` and ``tables/*.tex`` beside them. No model is loaded, so this runs anywhere, in
about a second per figure. What is drawn together from the same inputs is a part;
``figures/manifest.json`` records how each part was drawn (`figures.manifest`), and a part that is
current is not drawn again.

What a page or a reader cannot take is left out, and said: effect panels of more than `MOST_PANELS`
rules, dumbbells of more than `MOST_EDITORS` editors.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure, SubFigure

from figures import (
    before_after,
    edit_scores,
    effect_map,
    faithfulness,
    layer_profile,
    layer_selection,
    oracle,
    score_tables,
    sequence,
    style,
    trade_off,
)
from figures.answers import read_answers
from figures.manifest import Manifest, Record, digests, drawing_version, holds, output
from figures.regret import draw_regret
from interp.errors import InputError
from interp.results import effects as effects_schema
from interp.results.files import write_text
from interp.results.scores import modes_with_scores, per_rule
from interp.selection.layers import LayerSelection
from interp.vocabulary import COMPONENTS, LOOKUP

log = logging.getLogger(__name__)

INPUTS = {
    "effects.nc": "dmle trace",
    "faithfulness.nc": "dmle faithfulness",
    "profile.nc": "dmle profile",
    "selection.json": "dmle select",
    "scores.nc": "dmle evaluate",
    "answers.json": "dmle evaluate",
    "sweep.nc": "dmle sweep",
    "regret.nc": "dmle regret",
    "sequence.nc": "dmle sequence",
    "tuning.nc": "dmle tune",
}
"""Files read, and the command that writes each."""
ONLY_ON_REQUEST = ("faithfulness.nc", "sweep.nc", "regret.nc", "sequence.nc", "tuning.nc")
"""Inputs that a whole run does not have."""
TRADE_OFF_ARMS = 3
"""Fewer arms than this make no curve."""
MOST_PANELS = 12
"""Rules whose effect panels are drawn, if no other number is asked for."""
MOST_EDITORS = 8
"""Editors whose scores are drawn rule by rule."""
MAIN_MODE = "token_accuracy"
"""Mode of the figures that show one mode only, where it has scores."""
MAIN_COMPONENT = "mlp"
"""Component of the main figures: the one that selection reads and editors write."""
PANELS = {"": COMPONENTS[:3], "-single-and-frozen": COMPONENTS[3:]}
"""Components that are drawn together; more columns than four are too narrow to read."""

Note = Callable[[str], None]
Drawing = tuple[str, Figure | str]
"""A path below the run folder, without the suffix if it is a figure; and the figure or text."""


@dataclass(frozen=True)
class Part:
    """Figures or tables that are drawn together."""

    name: str
    needs: tuple[str, ...]
    draw: "Callable[[Path, int, Note], Iterator[Drawing]]"
    """Takes the run folder, the number of rules that have panels, and where to say what is left
    out."""
    uses: tuple[str, ...] = ()
    """Inputs that are shown too, if they are there."""


@dataclass
class Drawn:
    """What `draw_all` did."""

    written: list[Path] = field(default_factory=list)
    unchanged: list[Path] = field(default_factory=list)
    """Files that are current, and were not drawn again."""
    removed: list[Path] = field(default_factory=list)
    """Files of an earlier drawing that the data have no place for any more."""
    left_out: list[str] = field(default_factory=list)
    """What was not drawn of the parts that were, in words."""


def draw_all(
    run: Path,
    *,
    max_rules: int = MOST_PANELS,
    overwrite: bool = False,
    without: Collection[str] = (),
) -> Drawn:
    """Draw every figure and write every table that the run folder allows and that is not current.

    Figures of inputs that are not there any more are removed.

    Args:
        run: The run folder.
        max_rules: Draw the effect panels of at most so many rules, in the order of the file.
        overwrite: Draw also what is current.
        without: Inputs that are taken for absent.

    Raises:
        ValueError: The folder holds none of the inputs.
    """
    present = _present(run, without)
    manifest, done, hashes = Manifest.load(run), Drawn(), digests(run, present)
    settings: dict[str, int | float | str] = {"max_rules": max_rules, "png_dpi": style.PNG_DPI}
    for part in PARTS:
        if not set(part.needs) <= set(present):
            if (gone := manifest.parts.pop(part.name, None)) is not None:
                done.removed += _remove_others(run, gone, {})
                manifest.save(run)
            continue
        inputs = {name: hashes[name] for name in (*part.needs, *part.uses) if name in hashes}
        wanted = Record(inputs=inputs, settings=settings, version=drawing_version())
        earlier = manifest.parts.get(part.name)
        if earlier is not None and not overwrite and earlier.current(wanted, run):
            done.unchanged += [run / name for name in earlier.outputs]
            continue
        paths = _draw(part, run, max_rules, done.left_out.append)
        outputs = digests(run, (path.relative_to(run).as_posix() for path in paths))
        done.written += paths
        done.removed += _remove_others(run, earlier, outputs)
        # Saved after each part: a stopped drawing goes on with the next one.
        manifest.parts[part.name] = wanted.model_copy(update={"outputs": outputs})
        manifest.save(run)
    return done


def _present(run: Path, without: Collection[str]) -> list[str]:
    """The inputs that the folder holds.

    Raises:
        InputError: There are none.
    """
    present = [name for name in INPUTS if (run / name).is_file() and name not in without]
    if not present:
        commands = dict.fromkeys(INPUTS[name] for name in INPUTS if name not in ONLY_ON_REQUEST)
        steps = ", ".join(f"`{command}`" for command in commands)
        raise InputError(
            f"{run} holds none of {list(INPUTS)}; run {steps} on it first (or `dmle run` for all)"
        )
    for name in INPUTS.keys() - set(present):
        log.info("no %s in %s: its figures are left out; `%s` writes it", name, run, INPUTS[name])
    return present


def _draw(part: Part, run: Path, max_rules: int, note: Note) -> list[Path]:
    """Draw one part; the paths written."""
    written: list[Path] = []
    with style.paper_style():
        for name, content in part.draw(run, max_rules, note):
            if isinstance(content, Figure):
                written += style.save(content, run / name)
            else:
                write_text(run / name, content)
                written.append(run / name)
    return written


def _remove_others(run: Path, held: Record | None, outputs: dict[str, str]) -> list[Path]:
    """Delete what the part wrote before and not now, such as a rule's panel; but no file that
    somebody changed.
    """
    stale = held.outputs.items() if held is not None else ()
    removed = [
        output(run, name)
        for name, digest in stale
        if name not in outputs and holds(run / name, digest)
    ]
    for path in removed:
        path.unlink()
    return removed


def example_rule(effects: xr.Dataset) -> str:
    """The rule whose weakest form has the largest total effect: clear in every form that was
    traced.
    """
    weakest = effects_schema.total_effect(effects)["total_effect"].min("form", skipna=True)
    return str(weakest["rule"].values[int(weakest.argmax("rule"))])


def _effect_figures(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    effects = effects_schema.choose_metric(effects_schema.load(run / "effects.nc"))
    rules = [str(rule) for rule in effects["rule"].values]
    if len(rules) > max_rules:
        note(f"effect panels of {max_rules} of {len(rules)} rules")
        log.info("drawing the effect panels of %d of %d rules", max_rules, len(rules))
    for rule in rules[:max_rules]:
        for suffix, components in PANELS.items():
            if set(components) & set(effects["component"].values):
                panel = effect_map.effect_panel(effects, rule, components)
                yield f"figures/effect-panel-{slug(rule)}{suffix}", panel
    rule = example_rule(effects)
    for form in (
        str(f)
        for f in effects["form"].values
        if int(effects["n_tokens"].sel(rule=rule, form=f)) > 0
    ):
        one = effects_schema.select_map(effects, rule, form)
        ax = effect_map.draw_effect_map(one, _main_component(effects))
        reason = "clearest in all its forms" if len(rules) > 1 else "the only one traced"
        ax.set_title(
            f"{form}, rule: {style.shorten(rule, 36)}\n({reason})\n{ax.get_title(loc='left')}",
            loc="left",
            parse_math=False,
        )
        yield f"figures/effect-map-{slug(form)}", _figure(ax)


def _faithfulness_figures(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    data = effects_schema.load(run / "faithfulness.nc")
    if not data["area"].notnull().any():
        note("faithfulness: no curve")
        return
    for component in map(str, data["component"].values):
        ax = faithfulness.draw_faithfulness(data, component)
        yield f"figures/faithfulness-{slug(component)}", _figure(ax)


def _profile_figures(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    profile = effects_schema.load(run / "profile.nc")
    roles = layer_profile.roles_with_data(profile)
    if not roles:
        note("profiles: no traceable rule")
        return
    yield "figures/profile-panel", layer_profile.profile_panel(profile)
    role = LOOKUP if LOOKUP in roles else roles[-1]
    ax = layer_profile.draw_layer_profile(profile, _main_component(profile), role)
    yield "figures/layer-profile", _figure(ax)


def _selection_figure(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    profile, selection = (
        effects_schema.load(run / "profile.nc"),
        LayerSelection.load(run / "selection.json"),
    )
    yield "figures/layer-selection", layer_selection.selection_panel(profile, selection)


def _oracle_figure(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    sweep, profile = effects_schema.load(run / "sweep.nc"), effects_schema.load(run / "profile.nc")
    if not oracle.groups_with_rules(sweep):
        note("oracle: no rule was run at every window yet")
        return
    selected = run / "selection.json"
    groups = LayerSelection.load(selected).groups if selected.is_file() else ()
    chosen = {group.name: group.layers for group in groups}
    yield "figures/oracle", oracle.oracle_panel(sweep, profile, chosen, _main_component(profile))


def _regret_figure(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    regret = effects_schema.load(run / "regret.nc").to_dataframe()
    if regret.empty:
        note("regret: no strategy yet")
        return
    yield "figures/regret", _figure(draw_regret(regret))


def _sequence_figure(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    data = effects_schema.load(run / "sequence.nc")
    if not data["score"].notnull().any():
        note("sequence: no scores")
        return
    yield "figures/sequence", sequence.sequence_panel(data)


def _score_figures(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    scores = effects_schema.load(run / "scores.nc")
    for mode in modes_with_scores(scores):
        arms = per_rule(scores, mode).sizes["editor"]
        many = arms > edit_scores.MOST_COLOURS
        yield (
            f"figures/edit-scores-{slug(mode)}",
            (
                edit_scores.scores_panel(scores, mode)
                if many
                else _figure(edit_scores.draw_edit_scores(scores, mode))
            ),
        )
        if arms > 1:
            yield (
                f"figures/edit-differences-{slug(mode)}",
                edit_scores.difference_panel(scores, mode),
            )


def _rule_figures(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    scores = effects_schema.load(run / "scores.nc")
    if (mode := _main_mode(scores)) is None:
        note("before and after: no scores")
        return
    editors = [str(editor) for editor in per_rule(scores, mode)["editor"].values]
    if len(editors) > MOST_EDITORS:
        note(f"before and after, rule by rule, of {MOST_EDITORS} of {len(editors)} editors")
        log.info("drawing the scores rule by rule of %d of %d editors", MOST_EDITORS, len(editors))
    for editor in editors[:MOST_EDITORS]:
        yield (
            f"figures/before-after-{slug(editor)}",
            before_after.before_after_panel(scores, editor, mode),
        )


def _trade_offs(path: Path, name: str) -> Iterator[Drawing]:
    scores = effects_schema.load(path)
    if (mode := _main_mode(scores)) is None:
        return
    points = trade_off.points_of(scores, mode)
    for gain in trade_off.GAINS:
        both = [
            one for one in points.values() if np.isfinite([one[gain], one[trade_off.COST]]).all()
        ]
        if len(points) >= TRADE_OFF_ARMS and both:
            yield (
                f"figures/{name}-{slug(gain)}",
                _figure(trade_off.draw_trade_off(points, gain, mode)),
            )


def _score_tables(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    scores = effects_schema.load(run / "scores.nc")
    for mode in modes_with_scores(scores):
        for suffix, each_rule in (("", True), ("-mean", False)):
            table = score_tables.score_table(scores, mode, each_rule=each_rule)
            yield f"tables/scores-{slug(mode)}{suffix}.md", table.markdown
            yield f"tables/scores-{slug(mode)}{suffix}.tex", table.latex


def _answer_table(run: Path, max_rules: int, note: Note) -> Iterator[Drawing]:
    answers = read_answers(run / "answers.json")
    # locality_correctness asks the same questions as locality.
    table = score_tables.before_after_table(answers.query("metric != 'locality_correctness'"))
    yield "tables/before-after.md", table


PARTS = (
    Part("effects", ("effects.nc",), _effect_figures),
    Part("faithfulness", ("faithfulness.nc",), _faithfulness_figures),
    Part("profile", ("profile.nc",), _profile_figures),
    Part("selection", ("profile.nc", "selection.json"), _selection_figure),
    Part("oracle", ("sweep.nc", "profile.nc"), _oracle_figure, uses=("selection.json",)),
    Part("regret", ("regret.nc",), _regret_figure),
    Part("sequence", ("sequence.nc",), _sequence_figure),
    Part("scores", ("scores.nc",), _score_figures),
    Part("rules", ("scores.nc",), _rule_figures),
    Part("trade-off", ("scores.nc",), lambda run, *_: _trade_offs(run / "scores.nc", "trade-off")),
    Part("tuning", ("tuning.nc",), lambda run, *_: _trade_offs(run / "tuning.nc", "tuning")),
    Part("score-tables", ("scores.nc",), _score_tables),
    Part("answers", ("answers.json",), _answer_table),
)


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


def _main_mode(scores: xr.Dataset) -> str | None:
    modes = modes_with_scores(scores)
    return MAIN_MODE if MAIN_MODE in modes else next(iter(modes), None)
