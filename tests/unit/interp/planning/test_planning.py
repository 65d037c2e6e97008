"""Plans by hand: times, memory that does not fit, and how they are written."""

from pathlib import Path
from typing import Any

import pytest

from interp.models.arithmetic import Pass
from interp.planning.advice import advice
from interp.planning.machine import Machine, peak_rss
from interp.planning.plan import Plan, Work, duration, size
from interp.planning.sampling import spread_out
from interp.planning.speed import Speed
from tests.observed_runs import small_shape

GIB = 2**30
SHAPE = small_shape()
SPEED = Speed(
    points=((1, 1.0), (11, 2.0), (21, 6.0)),
    context=0.01,
    run=100.0,
    step=200.0,
    logits=(0.5, 10.0),
    back=2.0,
)


def machine(memory: int, disk: int = 10 * GIB) -> Machine:
    return Machine(memory, memory, disk, 1)


@pytest.mark.parametrize(
    ("run", "seconds"),
    [
        # Three blocks with six tokens: halfway from 1 to 11.
        (Pass(2, 3, 3, 6, 2, 3), 3 * 1.5 + 100 + 10 + 2 * 0.5),
        # Beyond the last point, in proportion; a run without logits.
        (Pass(6, 7, 7, 18, 0, 3), 3 * 12.0 + 100),
        # A token more in a generation, with a context of 13: 13 − 1 tokens of it, two heads.
        (Pass(1, 1, 13, 3, 1, 3), 3 * (1 + 12 * 0.01 * 1 * 2) + 200 + 10 + 0.5),
        # Back through two of three blocks takes twice as long as through them.
        (Pass(1, 11, 11, 3, 4, 3, back_blocks=2), 3 * 2.0 + 2 * 2.0 * 2 + 100 + 2 * 12),
        # A batch that grows from one row to three: two rows on average.
        (Pass(3, 3, 3, 6, 0, 3), 3 * 1.5 + 100),
    ],
)
def test_time_of_a_run_by_hand(run: Pass, seconds: float) -> None:
    assert SPEED.seconds(run, SHAPE) == pytest.approx(seconds)
    assert SPEED.total([run, run], SHAPE) == pytest.approx(2 * seconds)


def test_nothing_is_advised_where_all_fits() -> None:
    works = [Work("trace", memory={"batches": GIB})]
    assert advice({"weights": 4 * GIB}, works, machine(6 * GIB), 4, {}) == []


def test_half_precision_is_advised_first() -> None:
    works = [Work("trace", memory={"batches": GIB})]
    lines = advice({"weights": 8 * GIB}, works, machine(6 * GIB), 4, {"batches": "--memory"})
    assert lines == ["--set model.dtype=bfloat16 (weights take 4.0 GiB)"]


def test_the_largest_part_is_advised_next() -> None:
    parts = {"batches": GIB, "statistics of keys": 5 * GIB}
    settings = {"batches": "--memory", "statistics of keys": "fewer blocks"}
    works = [Work("compare", memory=parts, blocks=10), Work("small", memory={"batches": 1})]
    lines = advice({"weights": 4 * GIB}, works, machine(6 * GIB), 2, settings)
    # Four GiB are too many: of five, one is left.
    assert lines == ["fewer blocks (compare: statistics of keys take 5.0 GiB): 2 of 10 blocks fit"]
    lines = advice({"weights": 4 * GIB}, works, machine(5 * GIB), 2, settings)
    assert lines == ["fewer blocks (compare: statistics of keys take 5.0 GiB): not one block fits"]


def test_a_model_that_never_fits_is_said_to() -> None:
    (first, second) = advice({"weights": 32 * GIB}, [Work("trace")], machine(8 * GIB), 4, {})
    assert "bfloat16" in first
    assert "16.0 GiB are needed" in second


def test_a_disk_that_is_full_is_named() -> None:
    works = [Work("compare", disk=3 * GIB)]
    assert advice({}, works, machine(GIB, 2 * GIB), 4, {}) == ["--run on a disk with 3.0 GiB free"]
    assert not Plan("compare", tuple(works), {}, machine(GIB, 2 * GIB)).fits


def test_the_peak_is_that_of_the_largest_work() -> None:
    works = (
        Work("statistics", 2, "block", seconds=1.5, memory={"statistics": 7}),
        Work("cells", 1, "cell", 3, 10, 200, 1e12, 2.0, True, {"batches": 3, "statistics": 2}),
    )
    plan = Plan("compare", works, {"weights": 10}, machine(100), ("less",), ("taken",))
    assert plan.memory == {"weights": 10, "statistics": 7}
    assert (plan.peak, plan.seconds) == (17, 3.5)
    text = plan.text()
    assert "≤ 1.00e+12" in text
    assert "to make it fit: less" in text
    assert "note: taken" in text
    assert plan.record()["works"][1]["memory"] == {"batches": 3, "statistics": 2}
    unknown = Plan("trace", (Work("trace", seconds=None), works[0]), {}, machine(100))
    assert unknown.seconds is None
    assert "not known" in unknown.text()


def test_words_of_sizes_and_times() -> None:
    assert [size(n) for n in (0, 1023, 1024, 2**40)] == ["0 B", "1023 B", "1.0 KiB", "1.0 TiB"]
    assert [duration(t) for t in (0.04, 59.96, 61, 86399, 90000)] == [
        "0.0 s",
        "60.0 s",
        "1 min 1 s",
        "23 h 59 min",
        "1 d 1 h",
    ]


def test_items_are_spread_over_all() -> None:
    assert spread_out(range(7), 7) == list(range(7))
    assert spread_out(range(10), 4) == [0, 2, 5, 7]


def test_this_machine_has_memory(tmp_path: Path) -> None:
    import torch

    here = Machine.here(torch.device("cpu"), tmp_path / "not" / "there")
    assert 0 < here.free <= here.memory
    assert here.disk > 0
    assert 0 < peak_rss() < here.memory


@pytest.mark.slow
def test_a_machine_is_timed(make_model: Any) -> None:
    """Times are positive, and more tokens take longer."""
    from interp.models.outline import Outline
    from interp.planning.speed import factor_seconds, measured, product_seconds

    model = make_model("llama", check=False)
    drawn = Outline(model.config, model.tokenizer, model.name)
    speed = measured(drawn)
    times = [seconds for _, seconds in speed.points]
    assert times == sorted(times)
    assert times[0] > 0
    assert speed.back >= 0.5
    assert product_seconds(lambda second, keys: second.add_(keys.T @ keys), 32, 8) > 0
    assert factor_seconds(32) > 0
