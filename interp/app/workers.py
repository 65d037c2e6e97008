"""Tasks of a step in other processes: what a worker opens, and who runs the tasks.

A worker has the run folder and the settings of the step that it works for, and a model of its own.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from interp.app.steps import Context, load_steps, parse_settings
from interp.config import ExecutorConfig
from interp.executors.processes import Processes
from interp.executors.tasks import Executor, Job, Outcome, Spread, Work
from interp.executors.threads import room
from interp.results.run_folder import RunFolder

OPENER = f"{__name__}:open_step"


def spread_of(context: Context, step: str) -> Spread | None:
    """What runs tasks of a step elsewhere; None where its settings say that they are run here.

    Raises:
        InputError: See `interp.executors.ray_cluster.RayCluster`.
    """
    config = context.settings(ExecutorConfig)
    if config.kind == "serial":
        return None
    return partial(_spread, context, step, config)


def _spread(
    context: Context, step: str, config: ExecutorConfig, tasks: Sequence[str]
) -> Iterator[Outcome]:
    if not tasks:
        return
    settings = {name: each.model_dump(mode="json") for name, each in context.sections.items()}
    arguments = {
        "step": step,
        "folder": str(context.run.path.absolute()),
        "place": str(Path.cwd()),
        "settings": settings,
        "given": dict(context.given),
        "overwrite": context.overwrite,
    }
    yield from _executor(config, len(tasks)).run(Job(OPENER, arguments), tasks)


def _executor(config: ExecutorConfig, tasks: int) -> Executor:
    if config.kind == "processes":
        return Processes(room(config.workers, tasks))
    from interp.executors.ray_cluster import RayCluster  # which imports ray

    if config.address is None:
        return RayCluster(room(config.workers, tasks))
    return RayCluster(min(config.workers or tasks, tasks), config.address)


def open_step(
    step: str,
    folder: str,
    place: str,
    settings: Mapping[str, Any],
    given: Mapping[str, Any],
    overwrite: bool,
) -> Work:
    """Get ready for the tasks of a step, in a process of its own.

    Args:
        step: Name of the step.
        folder: The run folder.
        place: Folder that relative paths of the settings start from.
        settings: All settings in force, by section.
        given: Those that were given for this run.
        overwrite: Replace results of other settings.
    """
    if Path(place).is_dir():  # another machine may lack it, and need no relative path
        os.chdir(place)
    steps = load_steps()
    context = Context(
        RunFolder(Path(folder)),
        parse_settings(steps, settings),
        overwrite,
        given,
        progress=partial(tqdm, disable=True),
    )
    worker = steps[step].worker
    assert worker is not None
    return worker(context)
