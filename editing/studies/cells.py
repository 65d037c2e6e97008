"""Many arms × many rules × seeds, with equal requests for all; one file per cell.

An arm is a named `EditorSettings` (`editing.studies.arms`). A cell edits one rule alone on the
unedited model with one arm and one seed, and scores it at once; its file holds every raw answer, or
the error, if the arm failed: a failure is counted and is no score of zero. A cell whose settings,
rule, model or layers have changed is run again, and no other.

Several processes may work on one folder: each takes rules that no other is at, comes back to those
at the end, and has all cells then. Rules come one after the other with all their arms, so that the
unedited model's pass over a rule is shared by them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from editing.config import EvaluateConfig
from editing.editors.registry import edit, needs
from editing.edits.protocol import Edit, EditError
from editing.edits.remarks import remarks
from editing.edits.requests import of_forms, requests_of
from editing.evaluation import side_effects
from editing.evaluation.evaluate import evaluate_edit, unedited
from editing.studies.arms import Arm
from interp.errors import DamagedError, DmleError, MissingFileError, NotFiniteError
from interp.executors.tasks import Outcome, Spread, TaskError
from interp.models.loading import LanguageModel
from interp.results.checksums import read_json, write_json
from interp.results.paths import inside
from interp.results.provenance import VERSIONS, fingerprint
from interp.rules.sources import Rule

SCHEMA = "dmle.cell/1"


@dataclass(frozen=True)
class Cell:
    """One arm's edit of one rule with one seed: raw answers, or what went wrong."""

    arm: str
    rule: str
    seed: int
    key: str
    seconds: float = 0.0
    requests: int = 0
    """How many the arm was given."""
    answers: Sequence[Mapping[str, Any]] = ()
    side_effects: Mapping[str, float] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    error: str = ""
    layers: str = ""
    """Those that the arm writes, in words."""


_CELL = TypeAdapter(Cell)


def cell_key(
    model: LanguageModel, arm: Arm, seed: int, rule: Rule, evaluate: EvaluateConfig, probes: Any
) -> str:
    """What a cell's result depends on."""
    return fingerprint(
        **edit_origin(model, arm, seed, arm.layers_of(rule.id)),
        rule=rule.model_dump(mode="json"),
        evaluate=evaluate.about(),
        probes=probes,
    )


def edit_origin(
    model: LanguageModel, arm: Arm, seed: int, layers: Mapping[str, Sequence[int]]
) -> dict[str, Any]:
    """What an arm's edits depend on besides the rule. Contexts are sampled, so the model must be
    unedited.

    Args:
        model: The model.
        arm: The arm.
        seed: Its seed.
        layers: Layers that it writes, by group of forms.
    """
    settings, closed = arm.settings, needs(arm.settings, "statistics")
    bench = arm.bench.asked((), settings.model_copy(update={"seed": seed}))
    statistics = bench.statistics
    return {
        "version": VERSIONS["edit"],
        "weights": model.weight_hash,
        "layers": {name: list(each) for name, each in layers.items()},
        "settings": settings.model_dump(exclude={"layers", "block", "memory", "seed"}),
        "seed": seed,
        "forms": list(arm.forms),
        "contexts": list(bench.contexts) if closed else [],
        "covariance": statistics.origin if closed and statistics is not None else None,
        "demonstrations": (
            [each.id for each in bench.training_rules] if needs(settings, "training rules") else []
        ),
    }


def run_cells(
    model: LanguageModel,
    rules: Sequence[Rule],
    arms: Sequence[Arm],
    config: EvaluateConfig,
    folder: Path,
    *,
    probes: side_effects.Probes | None = None,
    advance: Callable[[int], object] = lambda n: None,
    spread: Spread | None = None,
) -> list[Cell]:
    """Run every cell that is missing or out of date; wait for those that another process is at.

    Args:
        model: The unedited model; unedited again on return.
        rules: Rules.
        arms: Arms, each with the rules it is run on.
        config: Scoring.
        folder: Where cells are kept.
        probes: Prompts and texts on which side effects and fluency are measured.
        advance: Called with the number of cells that are done, also before or by another process.
        spread: Runs rules elsewhere, by their ids (`cell_runner`); None: they are run here.

    Returns:
        All cells, rule by rule in the order of the arms and their seeds, none of other settings.
        Where the workers of a rule died, its cells say so, and are not kept.
    """
    worker = _Worker(model, config, folder, probes, advance)
    plans = {rule.id: _plan(model, rule, arms, config, probes) for rule in rules}
    done: dict[str, list[Cell]] = {}
    if spread is not None:
        done = worker.elsewhere([rule for rule in rules if plans[rule.id]], plans, spread)
    for blocking in (False, True):
        for rule in rules:
            if (
                rule.id not in done
                and (cells := worker.cells(rule, plans[rule.id], blocking=blocking)) is not None
            ):
                done[rule.id] = cells
    return [cell for rule in rules for cell in done[rule.id]]


def cell_runner(
    model: LanguageModel,
    rules: Sequence[Rule],
    arms: Sequence[Arm],
    config: EvaluateConfig,
    folder: Path,
    *,
    probes: side_effects.Probes | None = None,
) -> Callable[[str], None]:
    """What runs all cells of a rule, given its id, in a worker of `run_cells`."""
    worker = _Worker(model, config, folder, probes, lambda n: None)
    by_id = {rule.id: rule for rule in rules}

    def work(task: str) -> None:
        rule = by_id[task]
        worker.cells(rule, _plan(model, rule, arms, config, probes), blocking=True)

    return work


@dataclass(frozen=True)
class _Planned:
    """A cell as it is wanted."""

    arm: Arm
    seed: int
    key: str


def _plan(
    model: LanguageModel,
    rule: Rule,
    arms: Sequence[Arm],
    config: EvaluateConfig,
    probes: side_effects.Probes | None,
) -> list[_Planned]:
    """All cells of a rule."""
    about = asdict(probes) if probes else None
    return [
        _Planned(arm, seed, cell_key(model, arm, seed, rule, config, about))
        for arm in arms
        if rule.id in arm.rules
        for seed in arm.seeds
    ]


class _Worker:
    """What one process does in a folder of cells."""

    def __init__(
        self,
        model: LanguageModel,
        config: EvaluateConfig,
        folder: Path,
        probes: side_effects.Probes | None,
        advance: Callable[[int], object],
    ) -> None:
        self.model, self.config, self.folder = model, config, folder
        self.probes, self.advance = probes, advance
        self.before: side_effects.Answers | None = None

    def elsewhere(
        self, rules: Sequence[Rule], plans: Mapping[str, Sequence[_Planned]], spread: Spread
    ) -> dict[str, list[Cell]]:
        """Let other processes run what is missing; the cells of the rules that they ran."""
        by_id = {rule.id: rule for rule in rules}
        missing = [
            rule.id
            for rule in rules
            if any(self._kept(rule, wanted) is None for wanted in plans[rule.id])
        ]
        done: dict[str, list[Cell]] = {}
        for outcome in spread(missing):
            rule, plan = by_id[outcome.task], plans[outcome.task]
            done[rule.id] = [
                self._kept(rule, wanted) or _lost(rule, wanted, outcome) for wanted in plan
            ]
            self.advance(len(plan))
        return done

    def cells(self, rule: Rule, plan: Sequence[_Planned], *, blocking: bool) -> list[Cell] | None:
        """All cells of a rule, those that are missing run now; None if another process is at it
        and nobody waits.
        """
        cells = [self._kept(rule, wanted) for wanted in plan]
        if None in cells:
            lock = self._lock(rule)
            try:
                lock.acquire(blocking=blocking)
            except Timeout:
                return None
            try:
                return self._run(rule, plan)
            finally:
                lock.release()
        self.advance(len(plan))
        return [cell for cell in cells if cell is not None]

    def _run(self, rule: Rule, plan: Sequence[_Planned]) -> list[Cell]:
        """With the rule's lock. Another process may have been faster before it was free: cells
        are read again.
        """
        floor, cells = None, []
        for wanted in plan:
            cell = self._kept(rule, wanted)
            if cell is None:
                if floor is None:
                    floor = unedited(self.model, rule, self.config)
                cell = self._edited(rule, wanted, floor)
                _write_cell(self.folder, cell)
            cells.append(cell)
            self.advance(1)
        return cells

    def _edited(self, rule: Rule, wanted: _Planned, floor: Any) -> Cell:
        """Edit a rule and score the edit.

        Args:
            rule: The rule.
            wanted: The arm and its seed.
            floor: What the unedited model answers.
        """
        self._ask_before()
        arm, started = wanted.arm, time.process_time()
        settings = arm.settings.model_copy(update={"seed": wanted.seed})
        layers = arm.layers_text(rule.id)
        cell = Cell(arm.name, rule.id, wanted.seed, wanted.key, layers=layers)
        try:
            requests = of_forms(requests_of(rule, settings.lookup), arm.forms)
            cell = replace(cell, requests=len(requests))
            made = edit(arm.bench.asked(requests, settings, evaluated=[rule]))
            cell = replace(cell, seconds=time.process_time() - started)
            answers = evaluate_edit(
                self.model, arm.name, rule, made, floor.of(arm.forms), self.config
            )
            side, notes = self._side_effects(made)
        except (DmleError, torch.linalg.LinAlgError) as error:
            # A failure of this arm is a result; Ctrl-C and errors of the system are not.
            spent = cell.seconds or time.process_time() - started
            return replace(cell, seconds=spent, error=f"{type(error).__name__}: {error}")
        notes = [*remarks(made.report), *notes]
        return replace(cell, answers=answers, side_effects=side, remarks=notes)

    def _ask_before(self) -> None:
        """Ask the unedited model what side effects are measured against, once."""
        if self.probes is not None and self.before is None:
            size = self.config.batch_size
            self.before = side_effects.ask(self.model, self.probes, batch_size=size)

    def _side_effects(self, made: Edit) -> tuple[dict[str, float], list[str]]:
        """Side effects of an edit, and what to say of them.

        Raises:
            NotFiniteError: What the edit did to other prompts is no number, so that what was
                measured on its own is none to compare.
        """
        if self.probes is None or self.before is None:
            return {}, []
        try:
            with made.edited(self.model) as view:
                after = side_effects.ask(view, self.probes, batch_size=self.config.batch_size)
                return side_effects.compare(self.before, after, overlaps=self.config.overlap), []
        except NotFiniteError:
            raise
        except EditError as error:
            # Too long for the model behind what an in-context edit puts before it: the scores
            # hold without.
            return {}, [f"no side effects: {error}"]

    def _kept(self, rule: Rule, wanted: _Planned) -> Cell | None:
        cell = read_cell(cell_path(self.folder, wanted.arm.name, rule.id, wanted.seed))
        return cell if cell is not None and cell.key == wanted.key else None

    def _lock(self, rule: Rule) -> BaseFileLock:
        path = self.folder / "locks" / f"{rule.id}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)


def _lost(rule: Rule, wanted: _Planned, outcome: Outcome) -> Cell:
    """A cell that no worker has run.

    Raises:
        TaskError: The workers say that they have.
    """
    if not outcome.failure:
        raise TaskError(f"the workers wrote no cell of {wanted.arm.name} and {rule.id}")
    return Cell(wanted.arm.name, rule.id, wanted.seed, wanted.key, error=outcome.failure)


def remove_others(folder: Path, rules: Sequence[Rule], arms: Sequence[Arm]) -> None:
    """Delete cells of other arms, rules and seeds."""
    kept = {
        cell_path(folder, arm.name, rule.id, seed)
        for arm in arms
        for rule in rules
        for seed in arm.seeds
        if rule.id in arm.rules
    }
    for path in folder.glob("*/*.json"):
        if path not in kept:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()


def read_cell(path: Path) -> Cell | None:
    """One cell; None if there is none, or none of this schema (a damaged one is run again)."""
    try:
        return _CELL.validate_python(read_json(path, "cell", schema=SCHEMA).get("cell"))
    except (MissingFileError, DamagedError, ValidationError):
        return None


def cell_path(folder: Path, arm: str, rule: str, seed: int) -> Path:
    """File of one cell."""
    return inside(folder, arm, f"{rule}@{seed}.json")


def _write_cell(folder: Path, cell: Cell) -> None:
    write_json(
        cell_path(folder, cell.arm, cell.rule, cell.seed), {"schema": SCHEMA, "cell": asdict(cell)}
    )
