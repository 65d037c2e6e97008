"""Many rules edited into one model: one after the other, and all in one edit.

After some of the rules (checkpoints) the model is asked the edited rules, other rules and plain
text (`editing.studies.sequence_scores`). For example, in a notebook:

    config = EditConfig(editors=("memit", "ft"))
    arms = make_arms(model, config, rules, statistics=lambda layers: measure(model, layers))
    study = edit_many(model, rules, arms, Path("runs/mine/sequence"))
    study.table.query("order == 'sequence'")[["arm", "edits", "reliability", "perplexity_ratio"]]

A stopped study goes on: the weights are kept after every rule (`editing.studies.sequence_states`),
the scores of every checkpoint in a file of their own. An edit that fails leaves the model as it was
before, and is counted; the next rule is tried. An arm of which every edit failed, or whose model
says what is no number, has no scores.
"""

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from pydantic import TypeAdapter, ValidationError

from editing.config import CovarianceConfig, EvaluateConfig
from editing.editors.registry import edit, needs
from editing.edits.delta import EditDelta
from editing.edits.requests import EditRequest, of_forms, requests_of
from editing.studies.arms import Arm
from editing.studies.cells import edit_origin
from editing.studies.config import SequenceConfig
from editing.studies.sequence_checks import check_arms
from editing.studies.sequence_scores import (
    Exam,
    Floor,
    effects_of,
    exam_of,
    floor_of,
    held_out,
    scores_of,
)
from editing.studies.sequence_states import (
    RUNNING,
    EditedWeights,
    Progress,
    edited_weights,
    latest,
    state_path,
)
from interp.errors import DamagedError, DmleError, MissingFileError
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.results.checksums import read_json, write_json
from interp.results.files import write_text
from interp.results.paths import inside
from interp.results.provenance import fingerprint
from interp.results.sequences import DIMS, MEASURES, MODES, SCHEMA, sequence_means
from interp.results.tables import csv_text
from interp.rules.sources import Rule

CELL_SCHEMA = "dmle.sequence-cell/1"
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Checkpoint:
    """An arm after so many rules: scores, or what went wrong.

    Attributes:
        key: Fingerprint of everything that the scores depend on.
        edits: Number of rules.
        seconds: CPU seconds of their edits.
        failed: Rules whose edit could not be made, each with the reason.
        scores: Rows of rule, metric, mode and score.
        effects: What the edits did elsewhere.
        error: Why there are no scores.
    """

    key: str
    edits: int
    seconds: float = 0.0
    failed: Mapping[str, str] = field(default_factory=dict)
    scores: Sequence[Mapping[str, Any]] = ()
    effects: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


_CHECKPOINT = TypeAdapter(Checkpoint)


@dataclass(frozen=True)
class ManyEdits:
    """What came of many edits.

    Attributes:
        data: The content of `sequence.nc` (`interp.results.sequences`).
        table: Means over rules, with the CPU seconds of the edits until then.
        errors: What went wrong first, by arm and order.
    """

    data: xr.Dataset
    table: pd.DataFrame
    errors: Mapping[str, str]


def edit_many(
    model: LanguageModel,
    rules: Sequence[Rule],
    arms: Sequence[Arm],
    folder: Path,
    *,
    config: SequenceConfig | None = None,
    evaluate: EvaluateConfig | None = None,
    covariance: CovarianceConfig | None = None,
    advance: Advance = lambda n: None,
) -> ManyEdits:
    """Edit all rules with every arm, in sequence and in a batch, and score the model on the way.

    Args:
        model: The unedited model; unedited again on return, bit for bit, and on error.
        rules: The rules; they are edited in an order that is drawn.
        arms: The arms (`editing.studies.arms.make_arms`), of editors that change weights.
        folder: Where weights and scores are kept, to go on from there.
        config: Orders, checkpoints, samples.
        evaluate: Of it, the batch size.
        covariance: How statistics of keys are measured: that text is not used for perplexity.
        advance: Called with the number of rules that are edited, of each arm and order.

    Raises:
        InputError: An arm does not change weights, or has layers of each rule's own for a batch; or
            the plain text is too short.
        DmleError: The rules do not fit the model.
    """
    config, evaluate = config or SequenceConfig(), evaluate or EvaluateConfig()
    by_rule = [arm.name for arm in arms if arm.bench.of_rules is not None]
    check_arms({arm.name: arm.settings for arm in arms}, config, by_rule)
    ordered, priority = drawn(rules, config.seed)
    texts = held_out(model, config, covariance)
    exam = exam_of(ordered, priority, config, texts, evaluate.batch_size)
    places = [*(each for each in config.checkpoints if each < len(rules)), len(rules)]
    floor = cache(lambda: floor_of(model, exam, places))
    lines = [
        _Line(model, arm, order, exam, places if order == "sequence" else places[-1:], folder)
        for arm in arms
        for order in config.orders
        if order == "sequence" or arm.name not in config.without_batch
    ]
    every = [(line, line.checkpoints(floor, advance)) for line in lines]
    return _study(model, [arm.name for arm in arms], exam, every)


def drawn(rules: Sequence[Rule], seed: int) -> tuple[list[Rule], list[int]]:
    """Rules in the order of their edits, and the place of each in the draw of samples."""
    draw = random.Random(seed)
    order = draw.sample(range(len(rules)), len(rules))
    return [rules[i] for i in order], draw.sample(range(len(rules)), len(rules))


class _Line:
    """One arm in one order."""

    def __init__(
        self,
        model: LanguageModel,
        arm: Arm,
        order: str,
        exam: Exam,
        places: Sequence[int],
        folder: Path,
    ) -> None:
        self.model, self.arm, self.order, self.exam = model, arm, order, exam
        self.places, self.folder = places, folder / arm.name
        self.keys = _keys(model, arm, order, exam.rules)

    def checkpoints(self, floor: Callable[[], Floor], advance: Advance) -> list[Checkpoint]:
        """The arm at every checkpoint; what is not there yet is made now.

        Args:
            floor: What the unedited model says; asked for while the model is unedited.
            advance: Called with the number of rules that are edited.
        """
        done = {edits: self._kept(edits) for edits in self.places}
        missing = [edits for edits, kept in done.items() if kept is None]
        before, last = 0, max(missing, default=0)
        if missing:
            answers = floor()
            self._prepare()
            with edited_weights(self.model) as weights:
                progress = Progress(self.keys[0])
                for edits in missing:
                    for step in self._edited(weights, progress, edits):
                        advance(step.done - before)
                        progress, before = step, step.done
                    done[edits] = self._scored(progress, answers)
        advance(self.places[-1] - last)
        return [checkpoint for checkpoint in done.values() if checkpoint is not None]

    def _prepare(self) -> None:
        """Measure statistics, if that is still to do, while the model is unedited."""
        settings = self.arm.settings
        if needs(settings, "statistics"):
            of_rules = [self.arm.layers_of(rule.id).values() for rule in self.exam.rules]
            layers = sorted({layer for groups in of_rules for each in groups for layer in each})
            self.arm.bench.asked((), settings).covariances(layers)

    def _edited(self, weights: EditedWeights, progress: Progress, edits: int) -> Iterator[Progress]:
        """Bring the model to so many rules, from what is kept or from where it is; each step."""
        kept = latest(self.folder, self.order, self.keys, edits)
        if kept is not None and kept[1].done > progress.done:
            path, progress = kept
            weights.resume(path)
            yield progress
        running = state_path(self.folder, self.order, RUNNING)
        while progress.done < edits:
            progress = self._next(weights, progress)
            end = progress.done == edits
            path = state_path(self.folder, self.order, edits) if end else running
            weights.save(path, progress)
            yield progress
        running.unlink(missing_ok=True)

    def _next(self, weights: EditedWeights, progress: Progress) -> Progress:
        """Edit the next rule, or all of a batch."""
        done, rules = progress.done, self.exam.rules
        now = rules if self.order == "batch" else rules[done : done + 1]
        earlier = [
            request
            for rule in rules[:done]
            if rule.id not in progress.failed
            for request in self._requests(rule)
        ]
        failed, started = dict(progress.failed), time.process_time()
        try:
            requests = [request for rule in now for request in self._requests(rule)]
            made = edit(self.arm.bench.asked(requests, self.arm.settings, earlier=earlier))
            assert isinstance(made, EditDelta)
            weights.apply(made)
        except (DmleError, torch.linalg.LinAlgError) as error:
            # A failure of this arm is a result; Ctrl-C and errors of the system are not.
            failed |= {rule.id: f"{type(error).__name__}: {error}" for rule in now}
        seconds = progress.seconds + time.process_time() - started
        done += len(now)
        return Progress(self.keys[done], done, seconds, failed)

    def _requests(self, rule: Rule) -> list[EditRequest]:
        return of_forms(requests_of(rule, self.arm.settings.lookup), self.arm.forms)

    def _scored(self, progress: Progress, floor: Floor) -> Checkpoint:
        """Score the model as it is, and keep the scores."""
        edits = progress.done
        checkpoint = Checkpoint(self._key(edits), edits, progress.seconds, progress.failed)
        if len(progress.failed) == edits:
            checkpoint = replace(checkpoint, error=next(iter(progress.failed.values())))
        else:
            try:
                checkpoint = replace(
                    checkpoint,
                    scores=scores_of(self.model, self.exam, edits, floor),
                    effects=effects_of(self.model, self.exam, floor),
                )
            except DmleError as error:
                checkpoint = replace(checkpoint, error=f"{type(error).__name__}: {error}")
        entries = {"schema": CELL_SCHEMA, "checkpoint": asdict(checkpoint)}
        write_json(checkpoint_path(self.folder, self.order, edits), entries)
        return checkpoint

    def _key(self, edits: int) -> str:
        return fingerprint(weights=self.keys[edits], **self.exam.about(edits))

    def _kept(self, edits: int) -> Checkpoint | None:
        checkpoint = read_checkpoint(checkpoint_path(self.folder, self.order, edits))
        return checkpoint if checkpoint and checkpoint.key == self._key(edits) else None


def _keys(model: LanguageModel, arm: Arm, order: str, rules: Sequence[Rule]) -> list[str]:
    """What the weights depend on after 0, 1, 2, … rules."""
    origin = edit_origin(model, arm, arm.settings.seed, arm.layers)
    keys = [fingerprint(order=order, **origin)]
    for rule in rules:
        own = {} if arm.bench.of_rules is None else {"layers": arm.layers_of(rule.id)}
        keys.append(fingerprint(earlier=keys[-1], rule=rule.model_dump(mode="json"), **own))
    return keys


def checkpoint_path(folder: Path, order: str, edits: int) -> Path:
    """File of the scores after so many rules."""
    return inside(folder, f"{order}-{edits}.json")


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Scores of one checkpoint; None of one that is missing or damaged: it is scored again."""
    try:
        entries = read_json(path, "checkpoint of a sequence", schema=CELL_SCHEMA)
        return _CHECKPOINT.validate_python(entries.get("checkpoint"))
    except (MissingFileError, DamagedError, ValidationError):
        return None


def remove_others(folder: Path, arms: Sequence[str]) -> None:
    """Delete what is kept of other arms."""
    for path in folder.glob("*/*"):
        if path.parent.name not in arms:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()


def write_many(study: ManyEdits, folder: Path) -> Path:
    """Write `sequence.nc`, and `sequence.csv` for people; the former."""
    effects.save(study.data, folder / "sequence.nc")
    write_text(folder / "sequence.csv", csv_text(study.table, index=False))
    return folder / "sequence.nc"


def _study(
    model: LanguageModel,
    arms: Sequence[str],
    exam: Exam,
    every: Sequence[tuple[_Line, Sequence[Checkpoint]]],
) -> ManyEdits:
    """What was kept of all arms and orders, with labels."""
    named = {
        (line.arm.name, line.order, checkpoint.edits): checkpoint
        for line, kept in every
        for checkpoint in kept
    }
    errors: dict[str, str] = {}
    for (arm, order, _), each in named.items():
        if first := each.error or next(iter(each.failed.values()), ""):
            errors.setdefault(f"{arm}, {order}", first)
    data = _labelled(named, arms, exam).assign_attrs(
        {
            "schema": SCHEMA,
            "model": model.name,
            "weight_hash": model.weight_hash,
            "sample": exam.config.sample,
            "questions": len(exam.probes.questions),
            "text_tokens": exam.config.text_tokens,
            "errors": json.dumps(errors, ensure_ascii=False),
        }
    )
    table = pd.DataFrame(sequence_means(data))
    rows = table[["arm", "order", "edits"]].itertuples(index=False, name=None)
    table.insert(4, "cpu_seconds", [round(named[row].seconds, 1) for row in rows])
    return ManyEdits(data, table, errors)


def _labelled(
    named: Mapping[tuple[str, str, int], Checkpoint], arms: Sequence[str], exam: Exam
) -> xr.Dataset:
    """Arrays of all checkpoints, by arm, order and number of edits."""
    labels: dict[str, Sequence[Any]] = {
        "arm": arms,
        "order": exam.config.orders,
        "edits": sorted({edits for _, _, edits in named}),
        "rule": [rule.id for rule in exam.rules],
        "metric": list(dict.fromkeys(("reliability", *exam.config.metrics))),
        "mode": MODES,
        "measure": MEASURES,
    }
    values = {
        name: np.full([len(labels[dim]) for dim in dims], 0.0 if name == "failed" else np.nan)
        for name, dims in DIMS.items()
    }
    _fill(values, labels, named)
    coords = {
        dim: np.array(list(each), dtype=np.int64 if dim == "edits" else object)
        for dim, each in labels.items()
    }
    return xr.Dataset({name: (DIMS[name], value) for name, value in values.items()}, coords)


def _fill(
    values: Mapping[str, np.ndarray],
    labels: Mapping[str, Sequence[Any]],
    named: Mapping[tuple[str, str, int], Checkpoint],
) -> None:
    """Write each checkpoint to its place in the arrays."""
    where = {dim: {name: i for i, name in enumerate(each)} for dim, each in labels.items()}
    for name, checkpoint in named.items():
        place = tuple(where[dim][label] for dim, label in zip(DIMS["failed"], name, strict=True))
        values["failed"][place] = len(checkpoint.failed)
        for row in checkpoint.scores:
            inner = tuple(where[dim][row[dim]] for dim in ("rule", "metric", "mode"))
            values["score"][(*place, *inner)] = row["score"]
        for measure, value in checkpoint.effects.items():
            values["effect"][(*place, where["measure"][measure])] = value
