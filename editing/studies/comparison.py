"""Many arms × many rules × seeds, with equal requests for all; one file per cell.

An arm is a named `EditorSettings`. A cell edits one rule alone on the unedited model with one arm
and one seed, and scores it at once; its file holds every raw answer, or the error, if the arm
failed: a failure is counted and is no score of zero. A cell whose settings, rule, model or layers
have changed is run again, and no other.

Several processes may work on one folder: each takes rules that no other is at, comes back to those
at the end, and has all cells then. Rules come one after the other with all their arms, so that the
unedited model's pass over a rule is shared by them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock, Timeout
from pydantic import TypeAdapter, ValidationError

from editing.config import EditorSettings, EvaluateConfig
from editing.editors.registry import CLOSED_FORM, Resources, edit, remarks
from editing.edits.protocol import Edit, EditError
from editing.edits.requests import of_forms, requests_of
from editing.evaluation import side_effects
from editing.evaluation.evaluate import evaluate_edit, unedited
from interp.errors import DamagedError, DmleError, MissingFileError, NotFiniteError
from interp.models.loading import LanguageModel
from interp.results.files import inside, read_json, write_json
from interp.results.provenance import fingerprint
from interp.rules.sources import Rule
from interp.vocabulary import FORMS, RuleForm

SCHEMA = "dmle.cell/1"


@dataclass(frozen=True)
class Arm:
    """One way to edit, as it is compared."""

    name: str
    settings: EditorSettings
    resources: Mapping[int, Resources]
    """Of each seed."""
    layers: Mapping[str, Sequence[int]]
    """Layers it writes, for the record and to know whether a cell is of the same."""
    rules: frozenset[str]
    """Rules it is run on."""
    forms: tuple[RuleForm, ...] = FORMS
    """Forms that it edits, and is scored on. Arms that are compared have the same."""


@dataclass(frozen=True)
class Cell:
    """One arm's edit of one rule with one seed: raw answers, or what went wrong."""

    arm: str
    rule: str
    seed: int
    key: str
    seconds: float
    requests: int
    """How many the arm was given."""
    answers: Sequence[Mapping[str, Any]]
    side_effects: Mapping[str, float]
    remarks: Sequence[str]
    error: str = ""


_CELL = TypeAdapter(Cell)


def cell_key(
    model: LanguageModel, arm: Arm, seed: int, rule: Rule, evaluate: EvaluateConfig, probes: Any
) -> str:
    """What a cell's result depends on."""
    resources, closed = arm.resources[seed], arm.settings.editor in CLOSED_FORM
    return fingerprint(
        weights=model.weight_hash,
        layers={name: list(layers) for name, layers in arm.layers.items()},
        settings=arm.settings.model_dump(exclude={"layers", "block", "memory", "seed"}),
        seed=seed,
        rule=rule.model_dump(mode="json"),
        forms=list(arm.forms),
        contexts=list(resources.contexts) if closed else [],
        covariance=resources.covariances.origin if closed and resources.covariances else None,
        demonstrations=(
            [each.id for each in resources.training_rules] if arm.settings.editor == "ike" else []
        ),
        evaluate=evaluate.model_dump(exclude={"batch_size"}),
        probes=probes,
    )


def run_cells(
    model: LanguageModel,
    rules: Sequence[Rule],
    arms: Sequence[Arm],
    config: EvaluateConfig,
    folder: Path,
    *,
    probes: side_effects.Probes | None = None,
    advance: Callable[[int], object] = lambda n: None,
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

    Returns:
        All cells, rule by rule in the order of the arms and their seeds, none of other settings.
    """
    worker = _Worker(model, config, folder, probes, advance)
    about = asdict(probes) if probes else None
    plans = {
        rule.id: [
            _Planned(arm, seed, cell_key(model, arm, seed, rule, config, about))
            for arm in arms
            if rule.id in arm.rules
            for seed in arm.resources
        ]
        for rule in rules
    }
    done: dict[str, list[Cell]] = {}
    for blocking in (False, True):
        for rule in rules:
            if (
                rule.id not in done
                and (cells := worker.cells(rule, plans[rule.id], blocking=blocking)) is not None
            ):
                done[rule.id] = cells
    return [cell for rule in rules for cell in done[rule.id]]


@dataclass(frozen=True)
class _Planned:
    """A cell as it is wanted."""

    arm: Arm
    seed: int
    key: str


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

    def cells(self, rule: Rule, plan: Sequence[_Planned], *, blocking: bool) -> list[Cell] | None:
        """All cells of a rule, those that are missing run now; None if another process is at it
        and nobody waits.
        """
        held = [self._held(rule, one) for one in plan]
        if None in held:
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
        return [cell for cell in held if cell is not None]

    def _run(self, rule: Rule, plan: Sequence[_Planned]) -> list[Cell]:
        """With the rule's lock. Another process may have been faster before it was free: cells
        are read again.
        """
        floor, cells = None, []
        for one in plan:
            cell = self._held(rule, one)
            if cell is None:
                if self.probes and self.before is None:
                    self.before = side_effects.ask(
                        self.model, self.probes, batch_size=self.config.batch_size
                    )
                if floor is None:
                    floor = unedited(self.model, rule, self.config)
                cell = _cell(
                    self.model,
                    one.arm,
                    one.seed,
                    one.key,
                    rule,
                    floor,
                    self.config,
                    self.probes,
                    self.before,
                )
                _write(self.folder, cell)
            cells.append(cell)
            self.advance(1)
        return cells

    def _held(self, rule: Rule, one: _Planned) -> Cell | None:
        return _done(self.folder, one.arm.name, rule.id, one.seed, one.key)

    def _lock(self, rule: Rule) -> BaseFileLock:
        path = self.folder / "locks" / f"{rule.id}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(path)


def remove_others(folder: Path, rules: Sequence[Rule], arms: Sequence[Arm]) -> None:
    """Delete cells of other arms, rules and seeds."""
    kept = {
        cell_path(folder, arm.name, rule.id, seed)
        for arm in arms
        for rule in rules
        for seed in arm.resources
        if rule.id in arm.rules
    }
    for path in folder.glob("*/*.json"):
        if path not in kept:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()


def _cell(
    model: LanguageModel,
    arm: Arm,
    seed: int,
    key: str,
    rule: Rule,
    floor: Any,
    config: EvaluateConfig,
    probes: side_effects.Probes | None,
    side_before: side_effects.Answers | None,
) -> Cell:
    started = time.process_time()
    settings = arm.settings.model_copy(update={"seed": seed})
    requests, made = [], None
    try:
        requests = of_forms(requests_of(rule, settings.lookup), arm.forms)
        made = edit(model, requests, settings, arm.resources[seed])
        seconds = time.process_time() - started
        answers = evaluate_edit(model, arm.name, rule, made, floor.of(arm.forms), config)
    except (DmleError, torch.linalg.LinAlgError) as error:
        # A failure of this arm is a result; Ctrl-C and errors of the system are not.
        spent = time.process_time() - started
        return Cell(
            arm.name,
            rule.id,
            seed,
            key,
            spent,
            len(requests),
            (),
            {},
            (),
            f"{type(error).__name__}: {error}",
        )
    said = remarks(made.about)
    try:
        side = _side(model, made, probes, side_before, config)
    except NotFiniteError as error:
        # What the edit did to other prompts is no number, so what was measured on its own is none
        # to compare.
        return Cell(
            arm.name,
            rule.id,
            seed,
            key,
            seconds,
            len(requests),
            (),
            {},
            (),
            f"{type(error).__name__}: {error}",
        )
    except EditError as error:
        # Too long for the model behind what an in-context edit puts before it: the scores hold
        # without.
        side, said = {}, [*said, f"no side effects: {error}"]
    return Cell(arm.name, rule.id, seed, key, seconds, len(requests), answers, side, said)


def _side(
    model: LanguageModel,
    made: Edit,
    probes: side_effects.Probes | None,
    before: side_effects.Answers | None,
    config: EvaluateConfig,
) -> dict[str, float]:
    if probes is None or before is None:
        return {}
    with made.edited(model) as view:
        return side_effects.compare(
            before, side_effects.ask(view, probes, batch_size=config.batch_size)
        )


def read_cell(path: Path) -> Cell | None:
    """One cell; None if there is none, or none of this schema (a damaged one is run again)."""
    try:
        return _CELL.validate_python(read_json(path, "cell", schema=SCHEMA).get("cell"))
    except (MissingFileError, DamagedError, ValidationError):
        return None


def cell_path(folder: Path, arm: str, rule: str, seed: int) -> Path:
    """File of one cell."""
    return inside(folder, arm, f"{rule}@{seed}.json")


def _done(folder: Path, arm: str, rule: str, seed: int, key: str) -> Cell | None:
    cell = read_cell(cell_path(folder, arm, rule, seed))
    return cell if cell is not None and cell.key == key else None


def _write(folder: Path, cell: Cell) -> None:
    write_json(
        cell_path(folder, cell.arm, cell.rule, cell.seed), {"schema": SCHEMA, "cell": asdict(cell)}
    )
