"""Steps whose tasks are run by workers: the same results as in one process."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
import yaml

from editing.studies.cells import read_cell
from interp.app.run import Run
from interp.app.workers import open_step
from interp.executors.processes import Processes
from interp.executors.tasks import Job, Outcome
from interp.results import effects
from tests.robustness import tiny

STEPS = ("trace", "profile", "select", "compare", "tune", "sweep")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tiny.make_inputs(folder)
    path = folder / "config.yaml"
    values = yaml.safe_load(path.read_text())
    values["trace"]["splits"] = ["train", "validation", "test"]
    values["edit"]["splits"] = ["train", "validation", "test"]
    path.write_text(yaml.safe_dump(values))
    return folder


def made(inputs: Path, folder: Path, *steps: str, **executor: Any) -> Run:
    settings = {f"executor.{name}": value for name, value in executor.items()}
    run = Run(folder, config=inputs / "config.yaml", settings=settings, progress=None)
    run(*steps)
    return run


@pytest.fixture(scope="module")
def serial(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return made(inputs, tmp_path_factory.mktemp("serial") / "run", *STEPS)


def cells(run: Run) -> dict[Path, Any]:
    """Every cell, but for the seconds that it took."""
    return {
        path.relative_to(run.folder): replace(cell, seconds=0.0)
        for path in run.folder.glob("*/*/*.json")
        if (cell := read_cell(path)) is not None
    }


def assert_same(run: Run, other: Run) -> None:
    names = [path.name for path in sorted((other.folder / "traces").glob("*.nc"))]
    assert names == [path.name for path in sorted((run.folder / "traces").glob("*.nc"))] and names
    for name in names:
        ours, theirs = (effects.load(each.folder / "traces" / name) for each in (run, other))
        xr.testing.assert_identical(ours, theirs)
    assert cells(run) == cells(other)


@pytest.mark.golden
@pytest.mark.parametrize("kind", ["processes", "ray"])
def test_workers_find_what_one_process_finds(
    kind: str, inputs: Path, serial: Run, tmp_path: Path
) -> None:
    if kind == "ray":
        pytest.importorskip("ray")
    shutil.copytree(serial.folder, tmp_path / "run")
    for name in ("traces/*", "cells/*/*", "effects.nc", "scores.nc"):
        for path in (tmp_path / "run").glob(name):
            # Those of `dmle tune`, which is not run here, stay.
            if not path.parent.name.startswith("ft="):
                path.unlink()
    run = made(inputs, tmp_path / "run", "trace", "compare", kind=kind, workers=2)
    assert_same(run, serial)
    for name in ("effects.nc", "scores.nc"):
        xr.testing.assert_equal(run.load(name), serial.load(name))


@pytest.mark.parametrize(
    ("step", "file"),
    [
        ("trace", "traces/square-0-formula.nc"),
        ("compare", "cells/dmle/square-0@0.json"),
        ("tune", "cells/ft=*/square-0@0.json"),
        ("sweep", "sweep/*/square-1@0.json"),
    ],
)
def test_a_worker_runs_a_task_of_each_step(
    step: str, file: str, serial: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is missing is made again, as it was, by what a worker opens."""
    shutil.copytree(serial.folder, tmp_path / "run")
    victim = next((tmp_path / "run").glob(file))
    victim.unlink()
    sections = serial.context.sections
    monkeypatch.chdir(tmp_path)
    work = open_step(
        step,
        str(tmp_path / "run"),
        str(tmp_path),
        {name: each.model_dump(mode="json") for name, each in sections.items()},
        serial.context.given,
        overwrite=False,
    )
    work("formula: square-0" if step == "trace" else victim.stem.partition("@")[0])
    assert victim.is_file()
    if step != "trace":
        assert cells(Run(tmp_path / "run")) == cells(serial)


def test_a_rule_whose_workers_die_has_no_score(
    inputs: Path, serial: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted, and is kept nowhere, so that the next call runs it."""
    shutil.copytree(serial.folder, tmp_path / "run")
    for path in (tmp_path / "run" / "cells").glob("[!f]*/square-1*.json"):
        path.unlink()

    def dead(self: Processes, job: Job, tasks: Sequence[str]) -> Iterator[Outcome]:
        yield from (Outcome(task, failure="3 workers died at it") for task in tasks)

    monkeypatch.setattr(Processes, "run", dead)
    run = made(inputs, tmp_path / "run", "compare", kind="processes", workers=2)
    failed = run.load("scores.nc")["failed"]
    assert failed.sel(editor="ft").item() == 0 and failed.sel(editor="dmle").item() == 1
    assert not list((run.folder / "cells").glob("[!f]*/square-1*.json"))
