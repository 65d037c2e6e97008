"""Edit success by layer, measured: the oracle that layer selection is held against.

A layer sweep edits every group of forms alone, in every window of layers, and scores each edit on
its own questions: that is DMLE's stage without the other. Two groups in different layers touch each
other little, so that the success of a pair of windows is close to what its parts say; whole pairs
are what `dmle compare` runs.

The success of an edit is the plain mean of some metrics (`sweep.metrics`), each the mean over the
group's forms. `editing.studies.regret` compares choices of layers with the best window.

Scores have shape (rule, window), NaN where a cell is missing.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings, EvaluateConfig
from editing.evaluation.evaluate import edit_scores
from editing.studies.arms import Arm, Statistics
from editing.studies.cells import Cell, run_cells
from editing.studies.config import SweepConfig
from interp.errors import DamagedError, InputError
from interp.executors.tasks import Spread
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.results.files import write_text
from interp.results.tables import csv_text
from interp.rules.sources import Rule
from interp.selection.from_sweep import SWEEP_SCHEMA
from interp.vocabulary import RuleForm

ARM_LABELS = {"arm_group": "group", "arm_layers": "layers"}
"""Coords of the arms of a layer sweep, and what they hold."""


@dataclass(frozen=True)
class Block:
    """Layers at which a group of forms is edited alone."""

    forms: tuple[RuleForm, ...]
    layers: tuple[int, ...]

    @property
    def group(self) -> str:
        """Name of the group."""
        return group_name(self.forms)

    @property
    def name(self) -> str:
        """Name of the arm that edits there."""
        return f"{self.group}@{layers_text(self.layers)}"


@dataclass(frozen=True)
class LayerSweep:
    """What a layer sweep measured.

    Attributes:
        success: The content of `sweep.nc`: ``score`` of each window (`sweep_dataset`), and
            ``arm_score`` of every block, dims ``arm rule``, with coords ``arm_group`` and
            ``arm_layers``.
        table: One row for each block and rule: group, layers, rule, score, and each metric.
        cells: The edits.
    """

    success: xr.Dataset
    table: pd.DataFrame
    cells: tuple[Cell, ...]


def group_name(forms: Sequence[str]) -> str:
    """Name of a group of forms."""
    return "+".join(forms)


def windows(n_layers: int, width: int, step: int) -> list[tuple[int, ...]]:
    """Windows of `width` layers, every `step`-th from the first, and the last one that fits.

    >>> windows(8, 3, 2)
    [(0, 1, 2), (2, 3, 4), (4, 5, 6), (5, 6, 7)]

    Raises:
        ValueError: No window fits.
    """
    last = n_layers - width
    if last < 0:
        raise InputError(f"sweep.width is {width}, but the model has {n_layers} layers; lower it")
    starts = list(range(0, last + 1, step))
    return [
        tuple(range(start, start + width))
        for start in (starts if starts[-1] == last else [*starts, last])
    ]


def layers_text(layers: Sequence[int]) -> str:
    """Layers as the settings write them.

    >>> layers_text((4, 5, 6)), layers_text((7,)), layers_text((1, 4, 5))
    ('4-6', '7', '1,4,5')
    """
    if len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def success(
    scores: xr.Dataset, forms: Sequence[str], metrics: Sequence[str], mode: str
) -> xr.DataArray:
    """Success of every arm: mean over forms, then over metrics; dims editor rule.

    NaN where an arm has no score in one of the metrics that any arm has for the rule: a mean of
    fewer metrics would be a mean of other things.
    """
    after = (
        scores["score"]
        .sel(form=list(forms), metric=list(metrics), mode=mode, phase="post")
        .mean("form", skipna=True)
    )
    asked = after.notnull().any("editor")
    whole = (after.notnull() | ~asked).all("metric") & asked.any("metric")
    return after.mean("metric", skipna=True).where(whole).transpose("editor", "rule")


def blocks(n_layers: int, config: SweepConfig, more: Iterable[Block] = ()) -> list[Block]:
    """Every window of every group, and more blocks, each once.

    Raises:
        InputError: No window fits.
    """
    by_name: dict[str, Block] = {}
    for forms in config.groups:
        for layers in windows(n_layers, config.width, config.step):
            block = Block(forms, layers)
            by_name[block.name] = block
    for block in more:
        by_name.setdefault(block.name, block)
    return list(by_name.values())


def block_arms(
    model: LanguageModel,
    rules: Sequence[Rule],
    places: Sequence[Block],
    dmle: EditorSettings,
    statistics: Statistics,
) -> list[Arm]:
    """An arm for each block: DMLE's stage as an editor of that block.

    Args:
        model: The unedited model.
        rules: Rules to edit.
        places: The blocks.
        dmle: DMLE's settings; its solver edits.
        statistics: Gives the statistics of the blocks.
    """
    settings = dmle.model_copy(update={"editor": dmle.solver})
    needed = sorted({layer for block in places for layer in block.layers})
    bench = Workbench(model, statistics=statistics(needed))
    every = frozenset(rule.id for rule in rules)
    return [
        Arm(
            block.name,
            settings,
            replace(bench, layers=block.layers),
            (dmle.seed,),
            {block.group: block.layers},
            every,
            block.forms,
        )
        for block in places
    ]


def sweep_layers(
    model: LanguageModel,
    rules: Sequence[Rule],
    places: Sequence[Block],
    arms: Sequence[Arm],
    folder: Path,
    *,
    config: SweepConfig,
    evaluate: EvaluateConfig | None = None,
    advance: Callable[[int], object] = lambda n: None,
    spread: Spread | None = None,
) -> LayerSweep:
    """Edit every rule at every block, and score each edit.

    Args:
        model: The unedited model; unedited again on return.
        rules: The rules.
        places: The blocks: all windows of `config` (`blocks`), and more.
        arms: The arms of these blocks (`block_arms`).
        folder: Where cells are kept: what is there of these settings is not run again.
        config: Windows, groups and metrics.
        evaluate: How edits are scored; without greedy answers, if not given.
        advance: Called with the number of cells that are done.
        spread: Runs rules elsewhere (`editing.studies.cells.run_cells`).
    """
    evaluate = evaluate or EvaluateConfig(greedy=False)
    cells = run_cells(model, rules, arms, evaluate, folder, advance=advance, spread=spread)
    ids = [rule.id for rule in rules]
    spans = windows(model.n_layers, config.width, config.step)
    by_group: dict[str, np.ndarray] = {}
    tables = []
    for forms in config.groups:
        group = group_name(forms)
        own = {block.name: block for block in places if block.group == group}
        rows = [row for cell in cells if cell.arm in own for row in cell.answers]
        scores = edit_scores(rows, list(own), ids, model)
        mean = success(scores, forms, config.metrics, config.mode)
        names = [Block(forms, span).name for span in spans]
        by_group[group] = mean.sel(editor=names).transpose("rule", "editor").values
        tables.append(_table(scores, mean, own, config))
    table = pd.concat(tables, ignore_index=True)
    data = with_arms(sweep_dataset(by_group, ids, spans), table)
    attrs = {
        "model": model.name,
        "weight_hash": model.weight_hash,
        "n_layers": model.n_layers,
        "metrics": " ".join(config.metrics),
        "mode": config.mode,
    }
    return LayerSweep(data.assign_attrs(attrs), table, tuple(cells))


def _table(
    scores: xr.Dataset, mean: xr.DataArray, own: Mapping[str, Block], config: SweepConfig
) -> pd.DataFrame:
    """A row for each block of a group and each rule."""
    parts = scores["score"].sel(mode=config.mode, phase="post").mean("form", skipna=True)
    rows = []
    for name, block in own.items():
        for rule in scores["rule"].values:
            of = parts.sel(editor=name, rule=rule)
            row = {"group": block.group, "layers": layers_text(block.layers), "rule": rule}
            row |= {"score": float(mean.sel(editor=name, rule=rule))}
            rows.append(row | {each: float(of.sel(metric=each)) for each in config.metrics})
    return pd.DataFrame(rows)


def with_arms(data: xr.Dataset, table: pd.DataFrame) -> xr.Dataset:
    """With every arm's score, also at layers that are no window: what regret reads. The CSV is for
    people.
    """
    arms = table.pivot(index=["group", "layers"], columns="rule", values="score")
    arms = arms.reindex(columns=list(data["rule"].values))
    labels = {
        name: ("arm", np.array(arms.index.get_level_values(level), object))
        for name, level in ARM_LABELS.items()
    }
    return data.assign(arm_score=(("arm", "rule"), arms.values)).assign_coords(labels)


def arm_table(swept: xr.Dataset) -> pd.DataFrame:
    """The score of every arm of a layer sweep: columns group, layers, rule, score.

    Raises:
        DamagedError: Two arms have the same layers.
    """
    flat = swept["arm_score"].to_dataframe().reset_index()
    table = flat.rename(columns={**ARM_LABELS, "arm_score": "score"})
    if table.duplicated(["group", "layers", "rule"]).any():
        raise DamagedError(
            "the sweep has two scores of one rule at the same layers; delete sweep.nc and run `dmle"
            " sweep` again"
        )
    return table.filter(["group", "layers", "rule", "score"])


def write_layer_sweep(sweep: LayerSweep, folder: Path) -> Path:
    """Write `sweep.nc`, and `sweep.csv` with every cell's score; the former."""
    effects.save(sweep.success, folder / "sweep.nc")
    write_text(folder / "sweep.csv", csv_text(sweep.table, index=False))
    return folder / "sweep.nc"


def sweep_dataset(
    by_group: Mapping[str, np.ndarray], rules: Sequence[str], spans: Sequence[Sequence[int]]
) -> xr.Dataset:
    """The measured success with labels.

    Args:
        by_group: For each group, success of shape (rule, window).
        rules: Ids.
        spans: Layers of each window.

    Returns:
        Dims ``group rule window``: ``score``; coords ``start`` and ``width`` of each window.
    """
    return xr.Dataset(
        {"score": (("group", "rule", "window"), np.stack(list(by_group.values())))},
        coords={
            "group": np.array(list(by_group), dtype=object),
            "rule": np.array(list(rules), dtype=object),
            "window": np.array([layers_text(span) for span in spans], dtype=object),
            "start": ("window", [span[0] for span in spans]),
            "width": ("window", [len(span) for span in spans]),
        },
        attrs={"schema": SWEEP_SCHEMA},
    )
