"""Executors: what becomes of every task, with workers that die, refuse, fail and are stopped."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from interp.errors import NotTraceableError
from interp.executors.processes import Processes
from interp.executors.ray_cluster import RayCluster
from interp.executors.serial import Serial
from interp.executors.tasks import Job, Outcome, TaskError
from interp.executors.threads import cores, room, threads_each

JOBS = "tests.unit.executor_jobs"
TASKS = [str(n) for n in range(12)]


@pytest.mark.parametrize(
    "kind", ["serial", "processes", pytest.param("ray", marks=pytest.mark.golden)]
)
def test_every_task_is_run_once(kind: str, tmp_path: Path) -> None:
    if kind == "ray":
        pytest.importorskip("ray")
    executor = {"serial": Serial, "processes": lambda: Processes(2), "ray": lambda: RayCluster(2)}
    job = Job(f"{JOBS}:files", {"folder": str(tmp_path)})
    outcomes = list(executor[kind]().run(job, TASKS))
    assert sorted(outcomes, key=lambda each: int(each.task)) == [
        Outcome(task, int(task) ** 2) for task in TASKS
    ]
    assert {path.read_text() for path in tmp_path.glob("*.begun")} == {"x"}


def test_workers_are_processes_of_their_own() -> None:
    told = [outcome.result for outcome in Processes(2).run(Job(f"{JOBS}:pids"), TASKS[:4])]
    assert len({pid for pid, _ in told} - {os.getpid()}) == 2
    assert {threads for _, threads in told} == {threads_each(2)}


def test_a_task_that_kills_its_workers_fails_alone() -> None:
    job = Job(f"{JOBS}:deadly", {"victim": "5"})
    outcomes = {outcome.task: outcome for outcome in Processes(2).run(job, TASKS)}
    assert outcomes.keys() == set(TASKS)
    assert outcomes["5"].failure.startswith("3 workers died at it; the last one: ")
    assert all(outcomes[task] == Outcome(task, task) for task in TASKS if task != "5")


@pytest.mark.parametrize(
    ("when", "tasks"), [("opening", ["a"]), ("refused", ["a", "refused"])], ids=["opening", "task"]
)
def test_a_refusal_is_raised_as_it_is(when: str, tasks: list[str]) -> None:
    with pytest.raises(NotTraceableError, match="give another rule"):
        list(Processes(2).run(Job(f"{JOBS}:refusing", {"when": when}), tasks))


def test_a_fault_comes_with_the_workers_traceback() -> None:
    with pytest.raises(TaskError, match="ZeroDivisionError: a fault"):
        list(Processes(2).run(Job(f"{JOBS}:refusing", {"when": ""}), ["faulty"]))


def workers_of(pid: int) -> set[int]:
    """Worker processes of a process."""
    pattern = ["pgrep", "-P", str(pid), "-f", "interp.executors.worker"]
    said = subprocess.run(pattern, capture_output=True, text=True, check=False)
    return {int(each) for each in said.stdout.split()}


def test_killed_workers_lose_nothing(tmp_path: Path) -> None:
    """Ten kills at random moments; only tasks in flight are begun again."""
    tasks = [str(n) for n in range(60)]
    job = Job(f"{JOBS}:files", {"folder": str(tmp_path), "seconds": 0.05})
    draws, kills, is_over = random.Random(0), list[int](), threading.Event()

    def kill() -> None:
        while len(kills) < 10 and not is_over.wait(draws.uniform(0.1, 0.5)):
            alive = sorted(workers_of(os.getpid()))
            if alive:
                kills.append(draws.choice(alive))
                os.kill(kills[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    outcomes = list(Processes(2).run(job, tasks))
    is_over.set()
    killer.join()
    assert len(kills) >= 5
    failed = {outcome.task for outcome in outcomes if outcome.failure}
    assert Counter(outcome.task for outcome in outcomes) == Counter(tasks)
    assert {path.stem for path in tmp_path.glob("*.txt")} >= set(tasks) - failed
    begun = sum(len(path.read_text()) for path in tmp_path.glob("*.begun"))
    assert begun <= len(tasks) + len(kills)


def test_ctrl_c_ends_the_workers(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from interp.executors.processes import Processes\n"
        # In the background of a shell it is ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from interp.executors.tasks import Job\n"
        f"job = Job('{JOBS}:files', {{'folder': sys.argv[1], 'seconds': 30}})\n"
        "list(Processes(2).run(job, ['1', '2']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE, text=True
    ) as process:
        while len(workers := workers_of(process.pid)) < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    deadline = time.monotonic() + 10
    while (left := [pid for pid in workers if is_running(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]
    except FileNotFoundError:
        return False


def test_room() -> None:
    assert room(None, 100) == cores()
    assert room(100 * cores(), 100 * cores()) == cores()
    assert room(2, 1) == room(1, 5) == 1
    assert threads_each(1) == cores() and threads_each(2 * cores()) == 1
