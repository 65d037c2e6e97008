"""`dmle compare` with challenges, free answers and overlaps: tables of their own, and the others as
they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from figures.edit_scores import MODE_NAMES, draw_edit_scores
from interp.app import commands as cli
from interp.results import effects
from interp.results.scores import METRICS, MODES
from interp.rules.sources import load_rules

pytestmark = pytest.mark.slow

SETTINGS: dict[str, Any] = {
    "edit": {
        "lookup": "last",
        "block": "1",
        "editors": ["weak", "strong"],
        "arms": {
            "weak": {"editor": "ft", "ft": {"steps": 1, "learning_rate": 1e-9}},
            "strong": {"editor": "ft", "ft": {"steps": 10, "learning_rate": 3e-2}},
        },
    },
    "evaluate": {"greedy": False},
    "compare": {"bystanders": 0, "reference": "weak", "resamples": 200},
}
ON_TOP = ("--set", "evaluate.free_tokens=4", "--set", "evaluate.overlap=true")
KINDS = ("--set", "evaluate.challenges=fact_check,distractor,multi_step")


@pytest.fixture(scope="module")
def run(
    make_inputs: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    rules = [
        rule.model_copy(update={"split": "test"})
        for rule in load_rules(ids=["square-area", "cuboid-volume"])
    ]
    inputs = make_inputs(rules, SETTINGS, max_position_embeddings=512)

    def compare(*more: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        config = str(inputs / "config.yaml")
        cli.main(["compare", "--config", config, "--run", str(folder), *more])
        return folder

    return compare


@pytest.fixture(scope="module")
def plain(run: Callable[..., Path]) -> Path:
    return run()


@pytest.fixture(scope="module")
def asked(run: Callable[..., Path]) -> Path:
    return run(*ON_TOP)


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "tables").glob("*.md")}


def test_other_ways_of_asking_leave_the_tables_as_they_were(asked: Path, plain: Path) -> None:
    scores = effects.load(plain / "scores.nc")
    assert tuple(scores["mode"].values) == MODES and tuple(scores["metric"].values) == METRICS
    more = asked
    for path in (plain / "tables").glob("*-*.md"):
        assert (more / "tables" / path.name).read_bytes() == path.read_bytes(), path.name
    added = {
        f"{kind}-{mode}.md"
        for kind in ("comparison", "pairs")
        for mode in ("free", "free_gap", "top_5", "top_10")
    }
    assert names(more) - names(plain) == added
    answers = pd.read_csv(more / "answers.csv")
    assert {"free_answer_before", "free_answer_after", "free_after"} <= set(answers.columns)
    own = effects.load(more / "scores.nc")["score"].sel(phase="post", metric="reliability")
    gap = own.sel(mode="token_accuracy") - own.sel(mode="free")
    assert own.sel(mode="free_gap").values == pytest.approx(gap.values)


def test_challenges_are_metrics_of_the_same_tables(run: Callable[..., Path], plain: Path) -> None:
    more = run(*KINDS)
    scores, before = effects.load(more / "scores.nc"), effects.load(plain / "scores.nc")
    same = scores["score"].sel(metric=list(METRICS), mode=list(MODES))
    assert same.values == pytest.approx(before["score"].values, rel=1e-5, abs=1e-6, nan_ok=True)
    items = scores["n_items"].sel(editor="strong", phase="post").sum(["form", "rule"])
    counts = {
        name: int(items.sel(metric=name, mode="exact")) for name in ("distractor", "multi_step")
    }
    assert counts == {"distractor": 2 * 3, "multi_step": 2 * 6}
    text = (more / "tables" / "comparison-exact.md").read_text("utf-8")
    assert "Distr." in text and "Steps" in text and "Fact" not in text
    # The tiny tokenizer has no token for yes or no.
    assert "comparison-yes_no.md" not in names(more)
    published = sorted(path.name for path in (plain / "published").rglob("*.json"))
    assert sorted(path.name for path in (more / "published").rglob("*.json")) == published


def test_figures_show_the_added_modes(asked: Path) -> None:
    scores = effects.load(asked / "scores.nc")
    for mode in ("free", "free_gap", "top_5", "top_10"):
        axes = draw_edit_scores(scores, mode=mode)
        assert MODE_NAMES[mode] in axes.get_ylabel() + axes.get_xlabel() + axes.get_title("left")
