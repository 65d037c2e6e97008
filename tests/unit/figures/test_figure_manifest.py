"""The manifest: current figures are not drawn again, and whatever changes is."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from editing.studies.regret import regret_dataset
from figures import app, manifest, paper
from interp.app.steps import Context
from interp.results import effects as effects_schema
from interp.results.records import save_records
from interp.results.run_folder import RunFolder
from interp.results.scores import ANSWER_COLUMNS


def write_regret(run: Path, regret: float) -> None:
    row = {
        "strategy": "window",
        "group": "instance",
        "layers": "4-6",
        "score": 0.5,
        "oracle": 0.5 + regret,
    }
    more = {"regret": regret, "lower": 0.0, "upper": 0.2, "rank": 2, "n_windows": 9, "n_rules": 4}
    effects_schema.save(regret_dataset(pd.DataFrame([{**row, **more}])), run / "regret.nc")


def write_scores(run: Path, editors: list[str]) -> None:
    dims = ("editor", "rule", "form", "metric", "mode", "phase")
    score = np.random.default_rng(0).uniform(size=(len(editors), 2, 1, 1, 1, 2))
    names = (editors, ["a", "b"], ["formula"], ["reliability"], ["exact"], ["pre", "post"])
    coords = {dim: np.array(each, dtype=object) for dim, each in zip(dims, names, strict=True)}
    effects_schema.save(xr.Dataset({"score": (dims, score)}, coords), run / "scores.nc")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one figure and one table."""
    write_regret(tmp_path, 0.1)
    row: dict[str, str] = dict.fromkeys(ANSWER_COLUMNS, "x")
    save_records(tmp_path / "answers.json", ANSWER_COLUMNS, [row])
    return tmp_path


def names(paths: list[Path]) -> set[str]:
    return {path.name for path in paths}


def test_manifest_says_which_file_came_from_which_data(run: Path) -> None:
    done = paper.draw_all(run)
    parts = json.loads((run / "figures" / "manifest.json").read_text(encoding="utf-8"))["parts"]
    outputs = {name: digest for part in parts.values() for name, digest in part["outputs"].items()}
    assert {run / name for name in outputs} == set(done.written)
    for name, digest in outputs.items():
        assert hashlib.sha256((run / name).read_bytes()).hexdigest() == digest
    regret = parts["regret"]
    assert set(regret["outputs"]) == {"figures/regret.pdf", "figures/regret.png"}
    assert regret["inputs"] == {
        "regret.nc": hashlib.sha256((run / "regret.nc").read_bytes()).hexdigest()
    }
    assert set(parts["answers"]["outputs"]) == {"tables/before-after.md"}
    assert regret["settings"]["max_rules"] == paper.MOST_PANELS
    assert set(regret["version"]) == {"code", *manifest.LIBRARIES}


def test_second_time_nothing_is_drawn_and_then_only_what_changed(run: Path) -> None:
    first = paper.draw_all(run)
    times = {path: path.stat().st_mtime_ns for path in first.written}
    second = paper.draw_all(run)
    assert second.written == []
    assert set(second.unchanged) == set(first.written)
    assert {path: path.stat().st_mtime_ns for path in first.written} == times
    write_regret(run, 0.2)
    assert names(paper.draw_all(run).written) == {"regret.pdf", "regret.png"}
    (run / "tables" / "before-after.md").unlink()
    assert names(paper.draw_all(run).written) == {"before-after.md"}
    (run / "figures" / "regret.png").write_bytes(b"torn")
    assert names(paper.draw_all(run).written) == {"regret.pdf", "regret.png"}
    assert set(paper.draw_all(run, overwrite=True).written) == set(first.written)


def test_other_code_or_settings_draw_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = paper.draw_all(run)
    assert set(paper.draw_all(run, max_rules=3).written) == set(first.written)
    assert paper.draw_all(run, max_rules=3).written == []
    other = {**manifest.drawing_version(), "matplotlib": "0"}
    monkeypatch.setattr(paper, "drawing_version", lambda: other)
    assert set(paper.draw_all(run, max_rules=3).written) == set(first.written)


def test_figures_without_data_any_more_are_removed_but_not_those_that_somebody_changed(
    run: Path,
) -> None:
    write_scores(run, ["dmle", "memit"])
    paper.draw_all(run)
    (run / "figures" / "before-after-memit.pdf").write_bytes(b"edited by hand")
    write_scores(run, ["dmle"])
    removed = names(paper.draw_all(run).removed)
    assert "before-after-memit.png" in removed
    assert "edit-differences-exact.pdf" in removed  # one editor has no difference
    assert (run / "figures" / "before-after-memit.pdf").read_bytes() == b"edited by hand"
    assert (run / "figures" / "before-after-dmle.pdf").is_file()


def test_unreadable_manifest_draws_everything(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = paper.draw_all(run)
    (run / "figures" / "manifest.json").write_text('{"parts": 3}', encoding="utf-8")
    assert set(paper.draw_all(run).written) == set(first.written)
    assert "cannot be used" in caplog.text


def test_the_step_says_what_it_drew(run: Path) -> None:
    first = app.FIGURES.run(Context(RunFolder(run), {}))
    n = len(list((run / "figures").glob("*.p*"))) + len(list((run / "tables").iterdir()))
    assert first.startswith(f"{n} files drawn, 0 are current: ")
    assert app.FIGURES.run(Context(RunFolder(run), {})).startswith(
        f"nothing to draw: all {n} are current; --overwrite"
    )
    assert app.FIGURES.run(Context(RunFolder(run), {}, overwrite=True)).startswith(
        f"{n} files drawn"
    )


@pytest.mark.parametrize(
    "name", ["../victim", "{victim}", "figures/../../victim", "figures/link/victim", "victim"]
)
def test_a_manifest_deletes_nothing_outside_the_figures(name: str, run: Path) -> None:
    """A run folder may come from somebody else; its manifest names files that are there, with
    their digests."""
    inner, outside = run / "inner", run / "outside"
    inner.mkdir()
    outside.mkdir()
    for file in ("regret.nc", "answers.json"):
        (run / file).rename(inner / file)
    run = inner
    victims = [run.parent / "victim", run / "victim", outside / "victim"]
    for path in victims:
        path.write_text("precious", encoding="utf-8")
    paper.draw_all(run)
    (run / "figures" / "link").symlink_to(outside)
    held = manifest.Manifest.load(run)
    outputs = {name.format(victim=victims[0]): hashlib.sha256(b"precious").hexdigest()}
    held.parts["regret"] = held.parts["regret"].model_copy(update={"outputs": outputs})
    held.save(run)
    write_regret(run, 0.3)
    assert paper.draw_all(run).removed == []
    assert all(path.read_text(encoding="utf-8") == "precious" for path in victims)
    assert set(manifest.Manifest.load(run).parts["regret"].outputs) == {
        "figures/regret.pdf",
        "figures/regret.png",
    }
