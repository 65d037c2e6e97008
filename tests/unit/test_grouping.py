"""Tests that share an expensive fixture run on one worker: where pytest-xdist stops doing so, it
says nothing."""

import pytest


@pytest.mark.xdist_group("grouping")
def test_workers_see_the_groups(request: pytest.FixtureRequest) -> None:
    if not hasattr(request.config, "workerinput"):
        pytest.skip("one process")
    assert request.node.nodeid.endswith("@grouping")
