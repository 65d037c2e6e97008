"""A Ray cluster of two nodes on this machine: one of them leaves in the middle."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interp.errors import InputError, NotTraceableError
from interp.executors.ray_cluster import RayCluster
from interp.executors.tasks import Job, Outcome, TaskError

pytest.importorskip("ray")


JOBS = "tests.unit.executor_jobs"
TASKS = [str(n) for n in range(8)]


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[Any, Any]]:
    """The cluster, and its second node."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    yield nodes, nodes.add_node(num_cpus=1)
    nodes.shutdown()


@pytest.mark.golden
def test_a_task_that_kills_its_workers_fails_alone(cluster: tuple[Any, Any]) -> None:
    job = Job(f"{JOBS}:deadly", {"victim": "5"})
    outcomes = {each.task: each for each in RayCluster(2, cluster[0].address).run(job, TASKS)}
    assert outcomes.keys() == set(TASKS)
    assert outcomes["5"].failure.startswith("3 workers died at it; the last one: ")
    assert all(outcomes[task] == Outcome(task, task) for task in TASKS if task != "5")


@pytest.mark.golden
@pytest.mark.parametrize(
    ("task", "error"),
    [("refused", NotTraceableError), ("faulty", TaskError)],
    ids=["refusal", "fault"],
)
def test_errors_are_raised_here(
    task: str, error: type[Exception], cluster: tuple[Any, Any]
) -> None:
    with pytest.raises(error, match=r"give another rule|ZeroDivisionError: a fault"):
        list(RayCluster(1, cluster[0].address).run(Job(f"{JOBS}:refusing", {"when": ""}), [task]))


@pytest.mark.golden
def test_a_node_that_leaves_is_survived(cluster: tuple[Any, Any], tmp_path: Path) -> None:
    """The last test of the cluster: the node does not come back."""
    tasks = [str(n) for n in range(24)]
    job = Job(f"{JOBS}:files", {"folder": str(tmp_path), "seconds": 0.2})
    outcomes = []
    for outcome in RayCluster(2, cluster[0].address).run(job, tasks):
        outcomes.append(outcome)
        if len(outcomes) == 6:
            cluster[0].remove_node(cluster[1], allow_graceful=False)
    assert sorted((each.task, each.result) for each in outcomes) == sorted(
        (task, int(task) ** 2) for task in tasks
    )
    begun = sum(len(path.read_text()) for path in tmp_path.glob("*.begun"))
    assert begun <= len(tasks) + 1


def test_no_cluster_at_the_address() -> None:
    with pytest.raises(InputError, match="ray start --head"):
        list(RayCluster(1, "127.0.0.1:1").run(Job(f"{JOBS}:pids"), ["a"]))
