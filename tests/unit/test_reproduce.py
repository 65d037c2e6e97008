"""`make reproduce`: settings for models of other depth, and how far new numbers are from old."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.benchmarks import reproduce
from tests.benchmarks.reproduce import DOCS, LINES, difference, moved, scaled, words_of

CONFIGS = sorted({line.config for line in LINES if line.config})


def test_blocks_move_to_the_same_relative_depth() -> None:
    assert moved("18-22", 18) == "11-13"  # 18 / 29 = 10.6 / 17, 22 / 29 = 12.9 / 17
    assert moved("0,29", 24) == "0,23"
    assert moved("14-20/4-9", 30) == "14-20/4-9"
    assert scaled({"edit": {"arms": {"a": {"block": "29", "steps": 15}}}}, 6) == {
        "edit": {"arms": {"a": {"block": "5", "steps": 15}}}
    }


@pytest.mark.parametrize("config", CONFIGS)
def test_nothing_but_blocks_is_changed(config: str) -> None:
    settings = yaml.safe_load((DOCS / f"{config}.yaml").read_text(encoding="utf-8"))
    assert scaled(settings, reproduce.LAYERS) == settings
    moved_text = yaml.safe_dump(scaled(settings, 18))
    for arm in (settings.get("edit") or {}).get("arms", {}).values():
        if "block" in arm:
            assert arm["block"] not in moved_text


def test_files_and_runs_that_lines_need_are_made_before() -> None:
    seen: set[str] = set()
    for line in LINES:
        assert not line.config or (DOCS / f"{line.config}.yaml").is_file()
        assert not line.data or (DOCS / "data" / "results" / f"{line.data}.csv").is_file()
        assert all(path.partition("/")[0] in seen for path in line.before)
        seen.add(line.run)


def test_settings_of_another_model_are_written_beside_its_runs(tmp_path: Path) -> None:
    (line,) = (line for line in LINES if line.run == "whitened-rulebook")
    words = words_of(line, tmp_path, "gemma3-270m", None, 2, 18)
    config = Path(words[words.index("--config") + 1])
    assert config.parent == tmp_path
    arms = yaml.safe_load(config.read_text(encoding="utf-8"))["edit"]["arms"]
    assert arms["whitened"]["block"] == "11-13"
    assert "model.name=gemma3-270m" in words and "--limit 24" not in " ".join(words)


def test_difference_says_how_many_means_are_there_and_how_far_they_are() -> None:
    keys = {"metric": ["m", "m", "m"], "mode": ["x", "x", "x"]}
    told = pd.DataFrame({"arm": ["a", "b", "c"], **keys, "mean": [0.5, 0.25, 1.0]})
    found = pd.DataFrame({"arm": ["a", "b", "d"], **keys, "mean": [0.5, 0.5, 0.0]})
    assert difference(told, found) == (
        "2 of 3 means found again; 0.2500 apart at most, 0.1250 on average"
    )
