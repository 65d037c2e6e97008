"""A Ray cluster of two nodes on this machine: one of them leaves in the middle."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from interp.errors import InputError
from interp.executors.ray_cluster import RayCluster
from interp.executors.tasks import Job

pytest.importorskip("ray")


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    yield nodes
    nodes.shutdown()


def test_a_node_that_leaves_is_survived(cluster: Any, tmp_path: Path) -> None:
    second = cluster.add_node(num_cpus=1)
    tasks = [str(n) for n in range(24)]
    job = Job("tests.unit.executor_jobs:files", {"folder": str(tmp_path), "seconds": 0.2})
    outcomes = []
    for outcome in RayCluster(2, cluster.address).run(job, tasks):
        outcomes.append(outcome)
        if len(outcomes) == 6:
            cluster.remove_node(second, allow_graceful=False)
    assert sorted((each.task, each.result) for each in outcomes) == sorted(
        (task, int(task) ** 2) for task in tasks
    )
    begun = sum(len(path.read_text()) for path in tmp_path.glob("*.begun"))
    assert begun <= len(tasks) + 1


def test_no_cluster_at_the_address() -> None:
    with pytest.raises(InputError, match="ray start --head"):
        list(RayCluster(1, "127.0.0.1:1").run(Job("tests.unit.executor_jobs:pids"), ["a"]))
