"""Ground truth: what is written into one block is found there by tracing and selection, and nothing
where nothing is.

The full measurement is `make planted`; here are one tiny model and two depths.
"""

import pytest

from tests.benchmarks.planted import (
    STRATEGIES,
    cases,
    planted_depths,
    tables,
    tiny_model,
    tiny_setting,
)

LAYERS = 8
pytestmark = [pytest.mark.slow, pytest.mark.golden, pytest.mark.xdist_group("planted")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder = tmp_path_factory.mktemp("planted")
    model = tiny_model(0, LAYERS)
    before = model.current_hash()
    layers = planted_depths(LAYERS, 2)
    assert layers == [2, 5]
    found = list(
        cases(model, tiny_setting(folder / "corpus.txt"), 0, layers, folder, bystanders=[5])
    )
    assert model.current_hash() == before
    return found


def test_planted_associations_are_answered(rows: list[dict]) -> None:
    assert all(row["answered"] > 0.5 for row in rows if row["layer"] is not None)
    assert all(row["answered"] < 0.1 for row in rows if row["layer"] is None)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("component", ["mlp", "mlp_single"])
def test_the_planted_block_is_selected_at_every_depth(
    rows: list[dict], component: str, strategy: str
) -> None:
    chosen = [
        row
        for row in rows
        if row["reading"] in ("plain", "difference")
        and (row["component"], row["strategy"]) == (component, strategy)
    ]
    assert {row["layer"] for row in chosen} == {2, 5}
    missed = [row for row in chosen if not (row["found"] and row["supported"])]
    assert not missed
    assert all(len(row["layers"]) <= LAYERS // 2 for row in chosen)


def test_nothing_is_mostly_undecided_where_nothing_was_planted(rows: list[dict]) -> None:
    # One model gives a few dependent cases, too few for a rate: that is what `make planted` is for.
    rates = [row["false_alarms"] for row in tables(rows) if "false_alarms" in row]
    assert len(rates) == 24  # two components, six ways, unedited and bystander
    assert sum(rates) / len(rates) <= 0.2
