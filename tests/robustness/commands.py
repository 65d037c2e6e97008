"""The commands that are killed, started twice and compared: what each starts from, and what may
differ afterwards."""

import hashlib
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from tests.robustness import processes

RUN = "run"
"""The run folder, and all else that a command writes, below the working directory: paths are the
same in every run."""
IN = "../in"


@dataclass(frozen=True)
class Command:
    """A command line, and the command whose results it starts from."""

    name: str
    line: str
    after: str | None = None
    weight: float = 1.0
    """Share of the kills, relative to others: less for what takes long."""

    @property
    def arguments(self) -> list[str]:
        """The command line."""
        paths = {
            "run": RUN,
            "model": f"{IN}/model",
            "spec": f"{IN}/spec.yaml",
            "rules": f"{IN}/rules.json",
        }
        return shlex.split(self.line.format(**paths))


def _step(name: str, after: str | None = None, more: str = "", weight: float = 1.0) -> Command:
    return Command(name, f"{name} --run {{run}} --config {IN}/config.yaml {more}", after, weight)


COMMANDS = (
    _step("trace"),
    Command(
        "trace-prompt",
        "trace-prompt 'The area of a square is' --subject square --out=run/map.nc"
        " --plot=run/map.png --model={model} --samples=2 --set trace.answer_tokens=2",
    ),
    _step("faithfulness", more="--set faithfulness.shares=0.2", weight=0.7),
    _step("profile", "trace"),
    _step("select", "profile"),
    Command("export", "export --run {run} --for easyedit --out run/out/hparams", "select"),
    Command(
        "atlas add",
        "atlas add {run} --name tiny --model tiny --weights random --out run/atlas --overwrite",
        "profile",
    ),
    Command(
        "select --from-atlas",
        f"select --run {{run}} --config {IN}/config.yaml --from-atlas=run/atlas/tiny --overwrite",
        "atlas add",
    ),
    _step("covariance", "select"),
    _step("edit", "select"),
    _step("evaluate", "edit"),
    _step("compare", "select", weight=0.7),
    _step("tune", weight=0.7),
    _step("sweep", "profile", weight=0.7),
    _step("regret", "sweep"),
    _step(
        "sequence",
        more="--editors ft,memit --set edit.splits=[train,validation,test]",
        weight=0.7,
    ),
    _step("evidence", "profile"),
    _step("figures", "evaluate", weight=0.4),
    _step("report", "figures"),
    _step("run", more="--set edit.editors=[dmle]", weight=0.4),
    Command("rules build", "rules build {spec} --out run/built.json"),
    Command("rules export", "rules export run/exported --source {rules}"),
    Command("rules stats", "rules stats {rules} --model {model} --samples 2 --out run/stats.md"),
)
BY_NAME = {command.name: command for command in COMMANDS}


class States:
    """The folder as each command leaves it when nothing interrupts it, made when first asked for.

    Attributes:
        work: Working directory of all runs.
        kept: Where the states are kept, by command.
        inputs: See `tiny`.
    """

    def __init__(self, root: Path) -> None:
        self.work, self.kept, self.inputs = root / "work", root / "states", root / "in"
        self.kept.mkdir(parents=True, exist_ok=True)
        self.events: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def put(self, command: Command) -> None:
        """Make the working directory what the command starts from."""
        source = None if command.after is None else self.after(command.after)
        shutil.rmtree(self.work, ignore_errors=True)
        (self.work / RUN).mkdir(parents=True)
        if source is not None:
            shutil.copytree(source, self.work, dirs_exist_ok=True)

    def after(self, name: str) -> Path:
        """What a command leaves.

        Raises:
            RuntimeError: It fails without being interrupted.
        """
        place = self.kept / name.replace(" ", "_")
        if not place.is_dir():
            command = BY_NAME[name]
            self.put(command)
            began = time.monotonic()
            done = processes.run(self.work, command.arguments)
            if done.code != 0:
                raise RuntimeError(
                    f"`dmle {' '.join(command.arguments)}` ended with {done.code}:\n{done.said}"
                )
            self.events[name], self.seconds[name] = done.events, time.monotonic() - began
            shutil.copytree(self.work, place)
        return place


def differences(found: Path, wanted: Path) -> list[str]:
    """Files that are missing, left over or other than wanted, each with a word on how."""
    have, need = (_files(folder) for folder in (found, wanted))
    said = [f"missing: {name}" for name in need if name not in have]
    said += [f"left over: {name}" for name in have if name not in need]
    for name in need:
        if name in have and content(name, have[name]) != content(name, need[name]):
            said.append(f"differs: {name}")
    return sorted(said)


def content(name: str, path: Path) -> Any:
    """What is compared of a file: its bytes, less the seconds that an edit took (cells,
    `cells.csv`, side effects, and the same of a sequence)."""
    if path.suffix == ".csv" and path.name in ("cells.csv", "side-effects.csv", "sequence.csv"):
        return pd.read_csv(path).drop(columns="cpu_seconds").to_csv()
    if path.suffix == ".json" and name.startswith(("run/cells/", "run/sweep/")):
        from editing.studies.cells import read_cell

        cell = read_cell(path)
        return "unreadable" if cell is None else replace(cell, seconds=0.0)
    if name.startswith("run/sequence/"):
        return _of_sequence(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _of_sequence(path: Path) -> Any:
    """Scores or weights that a study of many edits goes on from."""
    from editing.studies.sequence import read_checkpoint
    from editing.studies.sequence_states import read_progress
    from interp.results.tensor_files import read_tensors

    if path.suffix == ".json":
        checkpoint = read_checkpoint(path)
        # As text: a value that was not measured is NaN, which equals nothing.
        return "unreadable" if checkpoint is None else repr(replace(checkpoint, seconds=0.0))
    progress = read_progress(path)
    if progress is None:
        return "unreadable"
    tensors, _ = read_tensors(path, "state")
    values = {name: value.tolist() for name, value in tensors.items()}
    return replace(progress, seconds=0.0), values


def _files(folder: Path) -> Mapping[str, Path]:
    return {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }
