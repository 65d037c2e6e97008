"""Run folders: what is kept, and what is said when something is in the way or missing."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from interp.results.files import write_text
from interp.results.run_folder import RunError, RunFolder


def test_create_makes_the_folder_and_leaves_nothing_in_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b")
    run.create()
    run.create()
    assert run.path.is_dir() and list(run.path.iterdir()) == []


def test_create_removes_what_a_process_left_that_was_killed_in_it(tmp_path: Path) -> None:
    killed = """
import os, signal, sys
from pathlib import Path
from interp.results.run_folder import RunFolder
Path.unlink = lambda path: os.kill(os.getpid(), signal.SIGKILL)
RunFolder(Path(sys.argv[1])).create()
"""
    ended = subprocess.run([sys.executable, "-c", killed, tmp_path], check=False)
    assert ended.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    RunFolder(tmp_path).create()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", ["", "deeper"])
def test_create_refuses_a_path_where_a_file_is(inside: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(
        RunError, match=r"cannot write to the run folder .*file.*; give another with --run"
    ):
        RunFolder(tmp_path / "file" / inside).create()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_create_refuses_a_folder_that_is_read_only(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="Permission denied; give another with --run"):
        RunFolder(tmp_path).create()


def test_need_names_the_command_that_makes_what_is_missing(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(
        RunError, match=rf"profile\.nc is missing; run `dmle profile --run {tmp_path}` first"
    ):
        run.need("profile.nc", "profile")
    (tmp_path / "profile.nc").touch()
    assert run.need("profile.nc", "profile") == tmp_path / "profile.nc"


def make(
    run: RunFolder, step: str, settled: set[str], settings: dict[str, Any], fails: bool = False
) -> None:
    """A step that ends well, or not."""
    with run.making(step, settled, settings, settings, {"version_torch": "2"}, run.lock()):
        if fails:
            raise ValueError("no")


def test_settings_come_back_as_they_were_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert run.settings == {}
    settings = {
        "trace": {"samples": 3, "positions": ["last"]},
        "rules": {"source": "ä π.json", "limit": None},
    }
    make(run, "trace", {"trace", "rules"}, settings)
    assert run.settings == settings
    text = (tmp_path / "run.yaml").read_text(encoding="utf-8")
    assert "ä π.json" in text and "version_torch" in text
    make(run, "trace", {"trace", "rules"}, {})
    assert run.settings == {}


def test_settings_are_kept_of_what_has_ended_well(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(ValueError, match="no"):
        make(run, "trace", {"trace"}, {"trace": {"samples": 3}}, fails=True)
    assert not (tmp_path / "run.yaml").exists()
    make(run, "trace", {"trace"}, {"trace": {"samples": 3}, "edit": {"ridge": 0.3}})
    before = (tmp_path / "run.yaml").read_bytes()
    with pytest.raises(ValueError, match="no"):
        make(run, "trace", {"trace"}, {"trace": {"samples": 4}, "edit": {"ridge": 0.5}}, fails=True)
    assert (tmp_path / "run.yaml").read_bytes() == before
    # What made results stays until others are made; what has made none is as it was last said.
    make(run, "edit", {"edit"}, {"trace": {"samples": 4}, "edit": {"ridge": 0.5}})
    assert run.settings == {"trace": {"samples": 3}, "edit": {"ridge": 0.5}}
    make(run, "profile", {"profile"}, {"edit": {"ridge": 1.0}, "profile": {"seed": 1}})
    assert run.settings == {"trace": {"samples": 3}, "edit": {"ridge": 0.5}, "profile": {"seed": 1}}


def test_an_interrupt_leaves_what_a_first_step_goes_on_with_and_no_settings_of_other_results(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path)

    def stopped(settings: dict[str, Any]) -> None:
        with run.making("trace", {"trace"}, settings, settings, {}, run.lock()):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped({"trace": {"samples": 3}})
    assert run.settings == {"trace": {"samples": 3}}
    make(run, "trace", {"trace"}, {"trace": {"samples": 3}})
    with pytest.raises(KeyboardInterrupt):
        stopped({"trace": {"samples": 9}})
    assert run.settings == {"trace": {"samples": 3}}


@pytest.mark.parametrize("text", ["", "{}", None])
@pytest.mark.parametrize("result", ["effects.nc", "scores.nc", "sweep.nc"])
def test_results_without_settings_are_refused(
    text: str | None, result: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    assert RunFolder(tmp_path).settings == {}
    (tmp_path / result).touch()
    with pytest.raises(
        RunError,
        match=rf"run\.yaml is .* \({result} are there\); put it back, or go on with --overwrite",
    ):
        _ = RunFolder(tmp_path).settings


@pytest.mark.parametrize("name", ["traces", "deltas/memit", "locks/run.lock"])
def test_a_link_that_leads_out_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    run, place = RunFolder(tmp_path / "run"), tmp_path / "run" / name
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "other")
    with pytest.raises(RunError, match="outside the run folder"):
        run.create()
    place.unlink()
    (tmp_path / "run" / "inside").mkdir()
    place.symlink_to(tmp_path / "run" / "inside")
    run.create()


def test_a_lock_is_entered_again_by_who_has_it_and_waits_for_others(tmp_path: Path) -> None:
    run, said = RunFolder(tmp_path), []
    first, second = run.lock(), run.lock()
    second.tell = said.append
    entered = threading.Event()

    def wait() -> None:
        with second:
            entered.set()

    with first, first:
        thread = threading.Thread(target=wait)
        thread.start()
        assert not entered.wait(0.3)
    thread.join(timeout=10)
    assert entered.is_set() and len(said) == 1 and "waiting for another process" in said[0]


def test_settings_of_an_empty_file_are_empty(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").touch()
    assert RunFolder(tmp_path).settings == {}


def test_settings_that_are_not_those_written_are_refused(tmp_path: Path) -> None:
    run, path = RunFolder(tmp_path), tmp_path / "run.yaml"
    make(run, "trace", {"trace"}, {"trace": {"samples": 3}})
    content = path.read_bytes()
    assert run.settings == {"trace": {"samples": 3}}
    for damage in (
        content.replace(b"samples: 3", b"samples: 7"),
        content[: len(content) // 2],
        content[:-1],
    ):
        path.write_bytes(damage)
        with pytest.raises(
            RunError, match=r"run\.yaml .*; if somebody changed it by hand, delete its first line"
        ):
            _ = run.settings
    path.write_text("settings: {trace: {samples: 4}}\n", encoding="utf-8")  # by hand
    assert run.settings == {"trace": {"samples": 4}}


def test_a_folder_with_a_link_that_leads_out_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    run = RunFolder(tmp_path / "run")
    run.create()
    for name in ("traces", "deltas/memit"):
        link = run.path / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tmp_path / "out")
        with pytest.raises(RunError, match=f"{name} is a link to .*/out, outside the run folder"):
            run.create()
        link.unlink()
    run.create()


@pytest.mark.parametrize(
    "content", ["- a\n- b\n", "settings: [1, 2]\n", "settings: {", "just words"]
)
def test_settings_of_a_damaged_file_name_the_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(
        RunError, match=r"(?s)run\.yaml is damaged .*; if somebody changed it by hand"
    ):
        _ = RunFolder(tmp_path).settings


def test_write_text_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "text.txt"
    write_text(path, "long text\n" * 100)
    (path.parent / "link").hardlink_to(path)
    write_text(path, "é\n")
    assert path.read_bytes() == "é\n".encode()
    assert (
        path.parent / "link"
    ).read_bytes() == b"long text\n" * 100  # nothing was written into the old file
    assert {file.name for file in path.parent.iterdir()} == {"text.txt", "link"}


def test_write_text_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
