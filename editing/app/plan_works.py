"""What the steps that edit will do, as works of a plan."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from editing.closed_form.chosen_layers import ADAPTIVE, AUTO, RUN_FILES
from editing.closed_form.covariance import described
from editing.closed_form.moments import add_products
from editing.config import CovarianceConfig, EditConfig
from editing.editors.registry import needs
from editing.studies.arms import Arm, Place, Selected, file_read, make_arms, resolve
from editing.studies.cells import cell_path
from editing.studies.counting import Asked, count_cells, count_statistics
from editing.studies.layer_sweep import Block, block_arms
from interp.app.steps import Context
from interp.models.outline import Outline
from interp.planning.advice import STATISTICS
from interp.planning.plan import Costs, Work
from interp.planning.sampling import spread_out
from interp.planning.speed import factor_seconds, product_seconds
from interp.results.tensor_files import HEADER
from interp.rules.sources import Rule
from interp.selection.layers import LayerSelection, load_for_rules

MOST = 8
"""Rules whose edits are counted; of more, so many that are spread over all."""
CELL_BYTES = 60_000
"""Bytes of the file of a cell, or of an edit in factors, about."""
FLOAT32, FLOAT64 = 4, 8
EIGEN = 30.0
"""Time of the eigenvectors of a matrix, per time of its Cholesky factor (AlphaEdit)."""
Note = Callable[[str], object]


@dataclass(frozen=True)
class Cells:
    """Cells that a step will run.

    Attributes:
        name: What is done.
        rules: The rules.
        config: Editors and their settings.
        asked: What is counted of a cell; what is done is known by the files in `folder`.
        folder: Where cells are kept; None: nowhere.
        seeds: See `editing.studies.arms.make_arms`.
        few: See there.
        few_rules: See there.
        blocks: Windows of a sweep, in place of editors.
    """

    name: str
    rules: Sequence[Rule]
    config: EditConfig
    asked: Asked
    folder: Path | None = None
    seeds: Sequence[int] | None = None
    few: Collection[str] = ()
    few_rules: int = 0
    blocks: Sequence[Block] = field(default=())


def plan_cells(context: Context, costs: Costs, note: Note, cells: Cells) -> list[Work]:
    """Statistics of keys that are missing, and the cells that are left."""
    outline, asked = costs.outline, _asked(cells)
    arms = arms_of(context, outline, note, cells)
    layers = statistics_of(arms)
    statistics = plan_statistics(context, costs, layers)
    every, left = _listed(cells, arms, asked)
    some = _counted_rules(cells, left, note)
    outline.passes.clear()
    outline.work_bytes = 0
    counted, failed = count_cells(outline, some, arms, asked)
    if failed:
        note(f"{cells.name}: {len(failed)} of {counted} cells would fail: {failed[0]}")
    held: dict[str, int] = {}
    more = (0.0, 0.0)
    if asked.edits and left:
        note(f"{cells.name}: searches and trainings are counted with all steps that they may take")
        held, more = _held(outline, arms, layers), _solves(costs, arms, layers)
    work = costs.work(
        cells.name,
        list(outline.passes),
        scale=len(left) / counted if counted else 1.0,
        more=more,
        tasks=len(left),
        unit="cell",
        done=len(every) - len(left),
        at_most=asked.edits and bool(left),
        memory={"batches": outline.work_bytes, **held},
        blocks=len(layers),
        files=len(left),
        disk=len(left) * CELL_BYTES,
    )
    return [*statistics, work]


def _asked(cells: Cells) -> Asked:
    """What is counted, where cells whose files are there are done."""
    folder = cells.folder
    if folder is None:
        return cells.asked
    return replace(
        cells.asked, is_done=lambda arm, rule, seed: cell_path(folder, arm, rule, seed).is_file()
    )


def _listed(
    cells: Cells, arms: Sequence[Arm], asked: Asked
) -> tuple[list[tuple[str, str, int]], list[tuple[str, str, int]]]:
    """All cells by arm, rule and seed, and those that are left."""
    pairs = [(rule.id, arm) for rule in cells.rules for arm in arms if rule.id in arm.rules]
    every = [(arm.name, rule, seed) for rule, arm in pairs for seed in arm.seeds]
    return every, [cell for cell in every if not asked.is_done(*cell)]


def _counted_rules(cells: Cells, left: Sequence[tuple[str, str, int]], note: Note) -> list[Rule]:
    """Rules with cells that are left; of many, some."""
    ids = {rule for _, rule, _ in left}
    rules = [rule for rule in cells.rules if rule.id in ids]
    some = spread_out(rules, MOST)
    if len(some) < len(rules):
        note(f"{cells.name}: counted on {len(some)} of {len(rules)} rules")
    return some


def statistics_of(arms: Sequence[Arm]) -> list[int]:
    """Blocks whose statistics arms need."""
    layers: set[int] = set()
    for arm in arms:
        if needs(arm.settings, "statistics"):
            own = arm.bench.of_rules or {}
            groups = [group for each in own.values() for group in each.groups]
            layers |= {layer for each in arm.layers.values() for layer in each}
            layers |= {layer for group in groups for layer in group.layers}
    return sorted(layers)


def plan_statistics(context: Context, costs: Costs, layers: Sequence[int]) -> list[Work]:
    """The statistics of some blocks that are not there."""
    config, outline = context.settings(CovarianceConfig), costs.outline
    if not layers or config.identity:
        return []
    left = [layer for layer in layers if layer not in _measured(context, outline, config)]
    width = outline.shape.d_mlp
    outline.passes.clear()
    count_statistics(outline, left, config)
    tokens, cubes = config.tokens * len(left), 2 * len(left)
    flops = tokens * width**2 + cubes * width**3 / 3
    rows, seconds = min(config.batch_size * config.max_length, config.tokens), 0.0
    if left and costs.speed is not None:
        seconds = tokens * width**2 * product_seconds(add_products, width, rows)
        seconds += cubes * width**3 * factor_seconds(width)
    moments = (len(left) + (2 if left else 0)) * width**2 * FLOAT64
    return [
        costs.work(
            "statistics of keys",
            list(outline.passes),
            more=(flops, seconds),
            tasks=len(left),
            unit="block",
            done=len(layers) - len(left),
            memory={STATISTICS: moments, "batches": _largest(outline)},
            blocks=len(left),
            files=len(left),
            disk=len(left) * width**2 * FLOAT32,
        )
    ]


def _largest(outline: Outline) -> int:
    """Memory of the largest run, whose logits are those of a position of each row."""
    sizes = [each.rows * outline.row_bytes(each.tokens, each.context, 1) for each in outline.passes]
    return max(sizes, default=0)


def _measured(context: Context, outline: Outline, config: CovarianceConfig) -> set[int]:
    """Blocks that were measured with these settings; the weights are not compared."""
    wanted = {key: each for key, each in described(outline, config).items() if key != "weights"}
    wanted.pop("output_tokens", None)
    layers = set()
    for path in (context.run.path / "covariance").glob("*/layer_*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()[HEADER])
                about = {key: each for key, each in header["about"].items() if key != "weights"}
                if about == json.loads(json.dumps(wanted)):
                    layers.add(int(header["layer"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError):
            continue  # damaged: it is measured again
    return layers


def arms_of(context: Context, outline: Outline, note: Note, cells: Cells) -> list[Arm]:
    """The arms, without statistics."""
    config, rules = cells.config, cells.rules
    if cells.blocks:
        dmle = config.settings_of("dmle")
        return block_arms(outline, rules, cells.blocks, dmle, _none)
    return make_arms(
        outline,
        config,
        rules,
        statistics=_none,
        places=_places(context, outline, note, cells),
        seeds=cells.seeds,
        few=cells.few,
        few_rules=cells.few_rules,
    )


def _none(layers: Sequence[int]) -> None:
    """No statistics are measured."""


def _places(context: Context, outline: Outline, note: Note, cells: Cells) -> Mapping[str, Place]:
    """Where arms edit; layers that nothing has selected yet are taken for three blocks at a third
    and at two thirds of the depth.
    """
    config, ids, n = cells.config, [rule.id for rule in cells.rules], outline.n_layers
    places, selected = {}, _selected(context)
    for name in config.editors:
        settings = config.settings_of(name)
        file = file_read(settings)
        missing = (file == RUN_FILES[AUTO] and selected.population is None) or (
            file == RUN_FILES[ADAPTIVE] and selected.of_rules is None
        )
        if missing:
            text = "/".join(_three(share * n // 3, n) for share in (1, 2))
            note(f"{name}: no layers are selected yet; taken: {text}")
            settings = settings.model_copy(update={"layers": text})
        places[name] = resolve(outline, settings, selected, ids)
    return places


def _three(middle: int, n_layers: int) -> str:
    blocks = range(max(0, middle - 1), min(n_layers, middle + 2))
    return ",".join(map(str, blocks))


def _selected(context: Context) -> Selected:
    """What the run has selected; for which weights, is not compared."""
    selected = Selected()
    for name in RUN_FILES.values():
        path = context.run.path / name
        if not path.is_file():
            continue
        if name == RUN_FILES[AUTO]:
            selected = replace(selected, population=LayerSelection.load(path))
        else:
            selected = replace(selected, of_rules=load_for_rules(path))
    return selected


def _solves(costs: Costs, arms: Sequence[Arm], layers: Sequence[int]) -> tuple[float, float]:
    """Operations and seconds of factors of the statistics, which editors compute once a block."""
    if not layers:
        return 0.0, 0.0
    width = costs.outline.shape.d_mlp
    kinds = {(arm.settings.solver, arm.settings.editor) for arm in arms}
    times = 1.0 + sum(EIGEN for pair in kinds if "alphaedit" in pair)
    times += sum(3.0 for pair in kinds if "ft_whitened" in pair)
    flops = times * len(layers) * width**3 / 3
    if costs.speed is None:
        return flops, 0.0
    return flops, times * len(layers) * width**3 * factor_seconds(width)


def _held(outline: Outline, arms: Sequence[Arm], layers: Sequence[int]) -> dict[str, int]:
    """What cells keep: statistics in float32 with a factor in float64, and what editors train."""
    shape, held = outline.shape, {}
    if layers:
        held[STATISTICS] = len(layers) * shape.d_mlp**2 * (FLOAT32 + FLOAT64)
    kinds = {arm.settings.editor for arm in arms} | {arm.settings.solver for arm in arms}
    if kinds & {"ft", "ft_whitened"}:
        written = max((sum(map(len, arm.layers.values())) for arm in arms), default=0)
        # The change, its gradient, Adam's two means, and the weights in float32.
        held["what is trained"] = 5 * written * shape.d_model * shape.d_mlp * FLOAT32
    return held
