"""`dmle compare` and `dmle tune`: cells, resuming, failures, equal requests, and what is chosen
from a grid."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from filelock import FileLock
from pydantic import ValidationError

from editing.closed_form.workbench import Workbench
from editing.config import EditConfig, EvaluateConfig
from editing.studies.arms import Arm
from editing.studies.cells import cell_path, read_cell, run_cells
from editing.studies.config import TuneConfig
from editing.studies.grid import trials
from interp.app import commands as cli
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.results.provenance import VERSIONS
from interp.rules.sources import Rule, dump_rules

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str]]
ARMS: dict[str, Any] = {
    "weak": {"editor": "ft", "ft": {"steps": 1, "learning_rate": 1e-9}},
    "strong": {"editor": "ft", "ft": {"steps": 30, "learning_rate": 3e-2}},
    "again": {"editor": "ft", "ft": {"steps": 30, "learning_rate": 3e-2}},
}
SETTINGS: dict[str, Any] = {
    "edit": {
        "lookup": "last",
        "block": "1",
        "contexts": 0,
        "steps": 2,
        "editors": list(ARMS),
        "arms": ARMS,
    },
    "evaluate": {"answer_tokens": 2, "greedy": False},
    "compare": {"bystanders": 0, "reference": "weak", "resamples": 200},
}


@pytest.fixture(scope="module")
def inputs(make_inputs: Callable[..., Path], rules: tuple[Rule, ...]) -> Path:
    """A rule to tune on, and two to compare on."""
    split = [
        rule.model_copy(update={"split": s})
        for rule, s in zip(rules, ("train", "test"), strict=False)
    ]
    return make_inputs([*split, split[1].model_copy(update={"id": "other"})], SETTINGS)


@pytest.fixture(scope="module")
def compared(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("compared")
    cli.main(["compare", "--config", str(inputs / "config.yaml"), "--run", str(run)])
    return run


def test_scores_are_those_of_the_rows_and_equal_arms_tie(compared: Path) -> None:
    scores = effects.load(compared / "scores.nc")
    assert list(scores["editor"].values) == list(ARMS)
    assert int(scores["failed"].sum()) == 0
    rows = pd.read_csv(compared / "answers.csv")
    groups: Any = rows.groupby(["editor", "rule", "form", "metric"])
    for (editor, rule, form, metric), group in groups:
        one = scores.sel(editor=editor, rule=rule, form=form, metric=metric, mode="token_accuracy")
        assert one["score"].sel(phase="post").item() == pytest.approx(
            group["token_accuracy_after"].mean()
        )
        assert one["n_items"].sel(phase="post").item() == len(group)
    reliability = (
        scores["score"]
        .sel(metric="reliability", mode="token_accuracy", phase="post")
        .mean(["rule", "form"])
    )
    assert reliability.sel(editor="strong") > reliability.sel(editor="weak")
    assert reliability.sel(editor="strong") == reliability.sel(editor="again")


def test_every_arm_gets_the_same_requests(compared: Path) -> None:
    assert len(set(pd.read_csv(compared / "cells.csv")["requests"])) == 1


def test_tables_are_in_both_formats(compared: Path) -> None:
    table = (compared / "tables" / "comparison-token_accuracy.md").read_text()
    assert "| strong |" in table
    assert "unedited" in table
    assert r"\toprule" in (compared / "tables" / "comparison-token_accuracy.tex").read_text()
    numbers = pd.read_csv(compared / "tables" / "comparison.csv")
    row = numbers[(numbers["metric"] == "reliability") & (numbers["mode"] == "token_accuracy")]
    assert f"| {row['mean'].iloc[0]:.2f} " in table.splitlines()[2]
    lines = (compared / "tables" / "pairs-token_accuracy.md").read_text().splitlines()
    strong, again = (
        next(line.split("|")[2:] for line in lines if f"| {name} |" in line)
        for name in ("strong", "again")
    )
    assert strong == again  # the same edit under two names
    assert "2/0/0" in strong[0]  # both rules are served better than by the weak arm
    assert not (
        compared / "tables" / "comparison-equivalent.md"
    ).exists()  # greedy answers were not asked for


def test_published_files_are_written(compared: Path) -> None:
    record = json.loads(next((compared / "published" / "strong").glob("*.json")).read_text())
    assert {"requested_rewrite", "pre", "post"} <= set(record[0])
    averages = pd.read_csv(compared / "tables" / "published-averages.csv")
    assert set(averages["average"]) == {"cal_avg", "driver"}


def test_a_second_run_does_nothing_and_a_damaged_cell_is_run_again(
    compared: Path, inputs: Path, dmle: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(compared, run)
    paths = sorted((run / "cells").glob("*/*.json"))
    damaged = paths[0]
    whole = json.loads(damaged.read_text())
    damaged.write_text(damaged.read_text()[:100])
    before = {path: path.stat().st_mtime_ns for path in paths}
    assert dmle("compare", "--config", inputs / "config.yaml", "--run", run)[0] == 0
    changed = [path for path in paths if path.stat().st_mtime_ns != before[path]]
    assert changed == [damaged]
    assert json.loads(damaged.read_text())["cell"]["answers"] == whole["cell"]["answers"]


def test_cells_of_another_version_of_edits_are_run_again(
    compared: Path, inputs: Path, dmle: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(compared, run := tmp_path / "run")
    paths = sorted((run / "cells").glob("*/*.json"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    monkeypatch.setitem(VERSIONS, "edit", VERSIONS["edit"] + 1)
    assert dmle("compare", "--config", inputs / "config.yaml", "--run", run)[0] == 0
    assert all(path.stat().st_mtime_ns != before[path] for path in paths)


def test_an_arm_of_other_settings_is_run_again_and_no_other(
    compared: Path, inputs: Path, dmle: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(compared, run)
    paths = sorted((run / "cells").glob("*/*.json"))
    before = {path: path.stat().st_mtime_ns for path in paths}
    arms = json.dumps({**ARMS, "weak": {"editor": "ft", "ft": {"steps": 2}}})
    assert (
        dmle(
            "compare",
            "--config",
            inputs / "config.yaml",
            "--run",
            run,
            "--set",
            f"edit.arms={arms}",
        )[0]
        == 0
    )
    assert {path.parent.name for path in paths if path.stat().st_mtime_ns != before[path]} == {
        "weak"
    }


def test_a_failed_arm_is_counted_and_is_no_zero(
    compared: Path, inputs: Path, dmle: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(compared, run)
    # One training rule of the rulebook as a demonstration takes more tokens than this model was
    # made for.
    arms = json.dumps({**ARMS, "ike": {"editor": "ike"}})
    code, said = dmle(
        "compare", "--config", inputs / "config.yaml", "--run", run, "--set", f"edit.arms={arms}",
        "--editors", "weak,ike",
    )  # fmt: skip
    assert code == 0, said
    assert "edits of ike failed and have no score" in said
    scores = effects.load(run / "scores.nc")
    assert scores["failed"].sel(editor="ike").item() == scores.sizes["rule"]
    assert np.isnan(scores["score"].sel(editor="ike")).all()
    assert (
        pd.read_csv(run / "cells.csv")
        .query("arm == 'ike'")["error"]
        .str.startswith("EditError")
        .all()
    )
    assert read_cell(cell_path(run / "cells", "ike", "other", 0)) is not None


def test_few_arms_run_on_few_rules(
    compared: Path, inputs: Path, dmle: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(compared, run)
    shutil.rmtree(run / "cells" / "strong")
    few = ("--set", "compare.few=[strong]", "--set", "compare.few_rules=1")
    assert dmle("compare", "--config", inputs / "config.yaml", "--run", run, *few)[0] == 0
    assert len(list((run / "cells" / "strong").glob("*.json"))) == 1
    assert np.isnan(
        effects.load(run / "scores.nc")["score"].sel(editor="strong", rule="other")
    ).all()


def test_a_rule_that_another_process_is_at_is_waited_for(
    tiny_llama: LanguageModel, rule: Rule, tmp_path: Path
) -> None:
    settings = EditConfig.model_validate(
        {"arms": ARMS, "editors": ["weak"], "block": "1"}
    ).settings_of("weak")
    later = rule.model_copy(update={"id": "later"})
    arm = Arm(
        "weak",
        settings,
        Workbench(tiny_llama),
        (0,),
        {"all": [1]},
        frozenset([rule.id, later.id]),
    )
    config, order = EvaluateConfig(greedy=False), []
    (tmp_path / "locks").mkdir()
    lock = FileLock(tmp_path / "locks" / f"{rule.id}.lock", thread_local=False)
    lock.acquire()

    def advance(n: int) -> None:
        order.append([path.stem for path in tmp_path.glob("weak/*.json")])
        if lock.is_locked:  # the other process ends when this one has done what it can
            lock.release()

    cells = run_cells(tiny_llama, [rule, later], [arm], config, tmp_path, advance=advance)
    assert [cell.rule for cell in cells] == [rule.id, "later"]  # as given, whichever was first
    assert order[0] == ["later@0"] and len(order) == 2
    # A cell of other settings is no result of these.
    other = EvaluateConfig(greedy=False, answer_tokens=3)
    again, _ = run_cells(tiny_llama, [rule, later], [arm], other, tmp_path)
    assert again.key != cells[0].key
    cell = read_cell(cell_path(tmp_path, "weak", rule.id, 0))
    assert cell is not None
    assert not cell.error


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--set", "compare.few=[nobody]"), "compare.few names nobody"),
        (("--set", "compare.reference=nobody"), "compare.reference names nobody"),
        (("--set", "compare.seeds=[1, 1]"), "names a seed twice"),
        (("--preset", "book"), "no preset 'book'"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    inputs: Path, dmle: Command, tmp_path: Path, more: tuple[str, ...], message: str
) -> None:
    code, said = dmle(
        "compare", "--config", inputs / "config.yaml", "--run", tmp_path / "run", *more
    )
    assert code != 0
    assert message in said
    assert not (tmp_path / "run" / "cells").exists()


def test_tune_chooses_the_setting_with_the_best_mean(
    inputs: Path, dmle: Command, tmp_path: Path
) -> None:
    grid = json.dumps({"ft": [ARMS["weak"]["ft"], ARMS["strong"]["ft"]]})
    run = tmp_path / "run"
    code, said = dmle(
        "tune", "--config", inputs / "config.yaml", "--run", run, "--set", "tune.editor=ft",
        "--set", f"tune.grid={grid}", "--set", "tune.metrics=[reliability]",
    )  # fmt: skip
    assert code == 0, said
    held = yaml.safe_load((run / "tuned.yaml").read_text())
    assert held["chosen"] == {"editor": "ft", "ft": ARMS["strong"]["ft"]}
    assert len(held["rules"]) == 1  # the training rule alone
    best, worst = (each["objective"] for each in held["evidence"])
    assert best > worst
    assert best == held["evidence"][0]["reliability"]


def test_floors_of_tune_come_before_the_mean(inputs: Path, dmle: Command, tmp_path: Path) -> None:
    grid = json.dumps({"ft": [ARMS["weak"]["ft"], ARMS["strong"]["ft"]]})

    def tuned(floor: float) -> tuple[dict[str, Any], str]:
        code, said = dmle(
            "tune",
            "--config",
            inputs / "config.yaml",
            "--run",
            tmp_path / "run",
            "--set",
            "tune.editor=ft",
            "--set",
            f"tune.grid={grid}",
            "--set",
            "tune.metrics=[reliability, rule_understanding_verbatim, locality]",
            "--set",
            f"tune.floors={{locality: {floor}}}",
        )
        assert code == 0, said
        return yaml.safe_load((tmp_path / "run" / "tuned.yaml").read_text()), said

    free, said = tuned(0.0)
    of: dict[int, Any] = {each["settings"]["ft"]["steps"]: each for each in free["evidence"]}
    weak, strong = (of[ARMS[name]["ft"]["steps"]] for name in ("weak", "strong"))
    # The premise: the strong setting has the better mean and the worse locality.
    assert strong["objective"] > weak["objective"]
    assert weak["locality"] > strong["locality"]
    assert free["chosen"]["ft"]["steps"] == ARMS["strong"]["ft"]["steps"]
    assert free["floors_reached"]
    between, _ = tuned((weak["locality"] + strong["locality"]) / 2)
    assert between["chosen"]["ft"]["steps"] == ARMS["weak"]["ft"]["steps"]
    assert between["floors_reached"]
    out_of_reach, said = tuned(2.0)
    assert out_of_reach["chosen"]["ft"]["steps"] == ARMS["weak"]["ft"]["steps"]  # lacks least
    assert out_of_reach["evidence"][0]["lacks"] == pytest.approx(2 - weak["locality"], abs=1e-4)
    assert not out_of_reach["floors_reached"]
    assert "no setting reaches {'locality': 2.0}" in said


def test_floors_of_metrics_that_are_not_judged_are_refused() -> None:
    with pytest.raises(ValidationError, match="floors names fluency"):
        TuneConfig(floors={"fluency": 1.0})


def test_tune_refuses_rules_without_a_split(
    inputs: Path, dmle: Command, rules: tuple[Rule, ...], tmp_path: Path
) -> None:
    dump_rules([rule.model_copy(update={"split": None}) for rule in rules], tmp_path / "rules.json")
    common = (
        "tune",
        "--config",
        inputs / "config.yaml",
        "--run",
        tmp_path / "run",
        "--rules",
        tmp_path / "rules.json",
    )
    code, said = dmle(*common)
    assert code == 2
    assert "name those to tune on in rules.ids" in said


def test_trials_are_all_combinations() -> None:
    found = trials(TuneConfig(grid={"ridge": (1, 2), "lookup": ("last", "mention_last")}))
    assert [dict(trial.values) for trial in found] == [
        {"ridge": 1, "lookup": "last"},
        {"ridge": 1, "lookup": "mention_last"},
        {"ridge": 2, "lookup": "last"},
        {"ridge": 2, "lookup": "mention_last"},
    ]


def test_several_grids_are_tried_one_after_the_other_and_what_they_share_once() -> None:
    found = trials(
        TuneConfig(grid=({"ridge": (1, 2)}, {"ridge": (2,)}, {"layers": ("3/4",), "ridge": (1,)}))
    )
    assert [trial.name for trial in found] == ["ridge=1", "ridge=2", "layers=3+4 ridge=1"]
    assert dict(found[-1].values) == {"layers": "3/4", "ridge": 1}


def test_a_setting_without_values_is_refused_in_any_grid() -> None:
    with pytest.raises(ValidationError, match="rounds has no values"):
        TuneConfig(grid=({"ridge": (1,)}, {"rounds": ()}))


def test_names_of_trials_are_safe_short_and_different() -> None:
    from interp.settings.names import MAX_NAME_BYTES, name_fault

    grid = {"layers": ("3/4", "3+4"), "preset": ("A", "a"), "targets": (["q", "v"], "../../x" * 40)}
    names = [trial.name for trial in trials(TuneConfig(grid=grid))]
    assert len({name.casefold() for name in names}) == 8
    assert (
        names[0] == "layers=3+4 preset=A targets=q+v"
        and names[2] == "layers=3+4 preset=a targets=q+v (2)"
    )
    assert not any(map(name_fault, names)) and max(map(len, names)) <= MAX_NAME_BYTES
    with pytest.raises(ValueError, match="10000 are tried"):
        trials(TuneConfig(grid={name: tuple(range(100)) for name in ("a", "b", "c")}))
