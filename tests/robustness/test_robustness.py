"""`make fuzz` and `make kills` in small: they notice what is wrong, and find nothing wrong.

All of it runs as one process of its own, which forks: importing torch takes longer than the tests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.robustness import mutate
from tests.robustness.commands import COMMANDS, differences
from tests.robustness.kills import plan

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("robustness")]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("robustness") / "found.json"
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "agg",
    }
    command = [sys.executable, "-m", "tests.robustness", "--out", str(out)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.golden
def test_every_kind_of_fault_is_noticed(found: dict[str, Any]) -> None:
    noticed = found["noticed"]
    assert noticed.pop("refuses") == []
    assert noticed == {kind: [kind] for kind in noticed} and len(noticed) == 6


@pytest.mark.golden
def test_no_reader_fails(found: dict[str, Any]) -> None:
    assert not found["fuzz"]["failures"], found["report"]
    assert all(reader["cases"] for reader in found["fuzz"]["readers"])
    assert found["fuzz"]["cases"] > 1000


@pytest.mark.golden
def test_killed_commands_resume_to_the_same_files(found: dict[str, Any]) -> None:
    assert sum(each["kills"] for each in found["kills"]) >= 6
    failures = [line for each in found["kills"] for line in each["failures"]]
    assert not failures, "\n".join(failures)
    (pair,) = (each for each in found["kills"] if each["pairs"])
    assert pair["command"] == "compare" and not pair["refused"]


def test_a_plan_has_every_command_and_both_ways_to_end_it() -> None:
    events = {command.name: 3 + 10 * n for n, command in enumerate(COMMANDS)}
    points = plan(events, 200)
    assert sum(map(len, points.values())) == 200 and points.keys() == events.keys()
    for name, chosen in points.items():
        assert len(set(chosen)) == len(chosen)
        assert all(1 <= point.event <= events[name] for point in chosen)
    assert {point.how for chosen in points.values() for point in chosen} == {"kill", "torn"}
    assert {1, events["run"]} <= {point.event for point in points["run"]}


def test_the_guide_names_every_command() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    listed = text.partition(f"All {len(COMMANDS)} commands that write files")[2].partition(".")[0]
    assert all(f"`{command.name}`" in listed for command in COMMANDS)


def test_folders_differ_by_what_is_missing_left_over_or_other(tmp_path: Path) -> None:
    for folder, texts in (
        ("found", {"a": "1", "b": "2", "c": "3"}),
        ("wanted", {"a": "1", "b": "x", "d": "4"}),
    ):
        (tmp_path / folder).mkdir()
        for name, text in texts.items():
            (tmp_path / folder / name).write_text(text, encoding="utf-8")
    assert differences(tmp_path / "found", tmp_path / "wanted") == [
        "differs: b",
        "left over: c",
        "missing: d",
    ]


def test_seconds_of_an_edit_are_no_difference(tmp_path: Path) -> None:
    for folder, seconds in (("found", 1.0), ("wanted", 2.0)):
        (tmp_path / folder / "run").mkdir(parents=True)
        text = f"arm,cpu_seconds,error\nmemit,{seconds},\n"
        (tmp_path / folder / "run" / "cells.csv").write_text(text, encoding="utf-8")
    assert differences(tmp_path / "found", tmp_path / "wanted") == []


@pytest.mark.parametrize(
    "damage", [*mutate.BYTES, mutate.changed_json, mutate.changed_yaml], ids=lambda d: d.__name__
)
def test_the_same_seed_gives_the_same_damage_and_others_give_other(damage: Any) -> None:
    from random import Random

    content = json.dumps(
        {"schema": "dmle.x/1", "values": list(range(300)), "text": "a b c"}
    ).encode()
    made = [
        damage(content, Random(seed), [b"another file" * 9])[0] for seed in (*range(20), *range(20))
    ]
    assert made[:20] == made[20:]
    assert len(set(made)) > 2
