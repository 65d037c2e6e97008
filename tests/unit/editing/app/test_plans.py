"""`dmle plan` and --dry-run: what they say, and that they do nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from interp.app.run import Run
from tests.unit.run_inputs import write_corpus

CONFIGS = Path(__file__).parents[3] / "data" / "configs"
PARAMETERS = {"gpt-j-6b": 6_050_882_784, "llama-3-8b": 8_030_261_248}


@pytest.fixture
def settings(model_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings of a small run, with a model of which there are no weights."""
    folder = tmp_path / "outline"
    shutil.copytree(model_folder, folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()
    write_corpus(tmp_path / "corpus.txt")
    return {
        "model.name": str(folder),
        "model.device": "cpu",
        "rules.limit": 1,
        "trace.samples": 2,
        "covariance.corpus": str(tmp_path / "corpus.txt"),
        "covariance.tokens": 300,
        "compare.bystanders": 0,
        "edit.contexts": 0,
        "edit.steps": 2,
        "edit.block": "0-1",
        "edit.splits": ["train"],
        "edit.editors": ["memit", "ft"],
    }


def works(run: Run, *names: str) -> dict[str, Any]:
    """Works of a plan without times, by name."""
    return {work.name: work for work in run.plan(*names, timed=False).works}


def test_a_plan_needs_no_weights_and_writes_nothing(
    settings: dict[str, Any], command_line: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    flags = [f"--set={key}={json.dumps(value)}" for key, value in settings.items()]
    place = tmp_path / "run"
    code, told, said = command_line("plan", "trace", "--run", place, "--json", *flags)
    assert code == 0, said
    plan = json.loads(told)
    (work,) = plan["works"]
    assert (plan["command"], work["tasks"], work["done"]) == ("trace", 6, 0)
    assert work["passes"] > 6
    assert plan["seconds"] > 0
    assert plan["peak_bytes"] == sum(plan["memory"].values())
    assert plan["fits"]
    code, table, said = command_line("compare", "--dry-run", "--run", place, *flags)
    assert code == 0, said
    assert "2 cells" in table
    assert "fits" in table
    assert not place.exists()


def test_what_is_done_is_not_planned_again(
    settings: dict[str, Any], model_folder: Path, tmp_path: Path
) -> None:
    more = {"trace.components": ["resid"], "trace.positions": ["last"], "rules.split": "train"}
    real = {**settings, **more, "model.name": str(model_folder), "covariance.shrinkage": 0.1}
    done = Run(tmp_path / "run", settings={**real, "edit.editors": ["memit"]}, progress=None)
    done("trace", "covariance")
    traced = works(done, "trace")["trace (exact)"]
    assert (traced.tasks, traced.done, traced.passes) == (0, 3, 0)
    other = Run(tmp_path / "run", settings={"trace.samples": 3}, progress=None)
    assert works(other, "trace")["trace (exact)"].tasks == 3
    measured = works(done, "covariance")["statistics of keys"]
    assert (measured.tasks, measured.done, measured.passes) == (0, 2, 0)
    done("compare")
    cells = works(done, "compare")["compare"]
    assert (cells.tasks, cells.done, cells.passes) == (0, 1, 0)


@pytest.mark.parametrize("name", ["covariance", "edit", "compare", "sweep", "tune", "run"])
def test_each_command_has_a_plan(settings: dict[str, Any], tmp_path: Path, name: str) -> None:
    more = {"sweep.width": 1, "sweep.splits": ["train"], "tune.grid": {"ridge": [0.5, 1.0]}}
    run = Run(tmp_path / "run", settings={**settings, **more, "edit.solver": "memit"})
    names = () if name == "run" else (name,)
    planned = works(run, *names)
    expected = {
        "covariance": {"statistics of keys"},
        "edit": {"statistics of keys", "edit"},
        "compare": {"statistics of keys", "compare"},
        "sweep": {"statistics of keys", "sweep"},
        "tune": {"statistics of keys", "tune"},
        "run": {"trace (exact)", "statistics of keys", "edit", "evaluate"},
    }
    assert set(planned) == expected[name]
    assert all(work.passes and work.flops and work.files for work in planned.values())
    assert planned["trace (exact)" if name == "run" else next(iter(planned))].tasks > 0


def test_layers_that_are_not_selected_yet_are_taken_for_some(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", settings={**settings, "edit.editors": ["dmle"]})
    plan = run.plan("compare", timed=False)
    assert any("no layers are selected yet" in note for note in plan.notes)


def test_many_rules_are_counted_on_some(settings: dict[str, Any], tmp_path: Path) -> None:
    run = Run(
        tmp_path / "run",
        settings={**settings, "rules.limit": 9, "edit.editors": ["ice"], "edit.mode": "single"},
    )
    plan = run.plan("edit", timed=False)
    assert plan.works[-1].tasks == 9
    assert any("counted on 8 of 9 rules" in note for note in plan.notes)


@pytest.mark.parametrize("name", ["llama-3-8b", pytest.param("gpt-j-6b", marks=pytest.mark.golden)])
def test_models_of_the_paper_are_planned_at_full_size(
    settings: dict[str, Any], tmp_path: Path, name: str, tokenizer: Any
) -> None:
    folder = tmp_path / name
    shutil.copytree(CONFIGS / name, folder)
    tokenizer.save_pretrained(folder)
    own = {**settings, "model.name": str(folder), "edit.editors": ["memit"], "edit.block": "3-8"}
    plan = Run(tmp_path / "run", settings=own).plan("compare", timed=False)
    width = {"gpt-j-6b": 16384, "llama-3-8b": 14336}[name]
    assert plan.base["weights"] == 4 * PARAMETERS[name]
    statistics = plan.works[0].memory["statistics of keys"]
    assert statistics == (6 + 2) * width**2 * 8
    half = Run(tmp_path / "run", settings={**own, "model.dtype": "bfloat16"})
    assert half.plan("trace", timed=False).base["weights"] == 2 * PARAMETERS[name]


def test_commands_without_a_plan_are_named(dmle: Callable[..., tuple[int, str]]) -> None:
    code, said = dmle("plan", "profile")
    assert code == 2
    assert "no plan of 'profile'" in said
    code, said = dmle("plan")
    assert code == 2
    assert "trace" in said
    code, said = dmle("trace", "--json")
    assert code == 2
    assert "--dry-run" in said
    code, said = dmle("edit", "--dry-run", "--prompt", "a", "--new", "b")
    assert code == 2
    assert "no plan" in said
