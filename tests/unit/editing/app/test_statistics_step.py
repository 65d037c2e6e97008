"""`dmle covariance`: the statistics that editors need, and no others."""

from collections.abc import Callable
from pathlib import Path

import pytest

from interp.app.run import Run
from tests.unit.run_inputs import write_corpus


@pytest.fixture
def flags(model_folder: Path, tmp_path: Path) -> list[str]:
    write_corpus(tmp_path / "corpus.txt")
    values = {
        "model.name": model_folder,
        "rules.limit": 1,
        "covariance.corpus": tmp_path / "corpus.txt",
        "covariance.tokens": 300,
        "edit.block": "0,2",
    }
    return [f"--set={key}={value}" for key, value in values.items()]


def test_it_measures_the_blocks_of_the_editors(
    dmle: Callable[..., tuple[int, str]], flags: list[str], tmp_path: Path
) -> None:
    code, said = dmle("covariance", "--run", tmp_path / "run", "--editors", "memit,ft", *flags)
    assert code == 0, said
    assert "statistics of blocks 0, 2, over 300 tokens" in said
    files = sorted(path.name for path in (tmp_path / "run" / "covariance").glob("*/*"))
    assert files == ["layer_0.safetensors", "layer_2.safetensors"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("run/covariance/*/*")}
    code, said = dmle("covariance", "--run", tmp_path / "run", "--editors", "memit,ft", *flags)
    assert code == 0, said
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_editors_without_statistics_need_none(
    dmle: Callable[..., tuple[int, str]], flags: list[str], tmp_path: Path
) -> None:
    code, said = dmle("covariance", "--run", tmp_path / "run", "--editors", "ft", *flags)
    assert code == 0, said
    assert "no statistics are needed by ft" in said
    assert not (tmp_path / "run" / "covariance").exists()


def test_layers_that_are_not_selected_are_asked_for(tmp_path: Path, model_folder: Path) -> None:
    from interp.errors import DmleError

    settings = {"model.name": str(model_folder), "edit.editors": ["dmle"], "rules.limit": 1}
    with pytest.raises(DmleError, match="select"):
        Run(tmp_path / "run", settings=settings, progress=None)("covariance")
