"""Files: written whole, with usual modes; read back only as they were written; never outside a
folder."""

import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5netcdf
import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

from editing.closed_form import moment_files
from editing.closed_form.moments import Moments
from editing.editors.grace import Codebook
from editing.editors.ice import InContext
from editing.editors.registry import load_edit
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.report import EditReport
from editing.studies.cells import Cell, cell_path, read_cell
from editing.studies.cells import _write_cell as write_cell
from interp.errors import DamagedError, DmleError, MissingFileError, WriteError
from interp.results import effects
from interp.results.checksums import read_json, seal, write_json
from interp.results.files import PARTIAL, atomic, partial_path, sweep, write_bytes, write_text
from interp.results.paths import check_links, inside
from interp.results.records import load_records, save_records
from interp.results.tensor_files import read_tensors, write_tensors
from interp.selection.layers import LayerSelection, load_for_rules, parse_layers, save_for_rules

DAY = 24 * 3600


def one_map(seed: int = 0) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    return effects.effect_map(
        rng.normal(size=(1, 3, 4, 2)),
        0.0,
        rng.normal(size=2),
        components=["mlp"],
        tokens=["a", "b", "π", "d"],
        roles=["prefix", "subject_last", "after", "last"],
        is_corrupted=[False, True, False, False],
        prompt="a b π d",
        answer="e",
    )


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if ".partial" in path.name]


# Writing.


def test_modes_are_those_of_any_other_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        (tmp_path / "plain").touch()
        write_text(tmp_path / "text", "x")
        write_tensors(tmp_path / "tensors", {"a": torch.ones(2)}, {})
        effects.save(one_map(), tmp_path / "map.nc")
        effects.join({("r", "formula"): tmp_path / "map.nc"}, tmp_path / "effects.nc")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}


def test_threads_and_processes_that_write_one_file_never_meet(tmp_path: Path) -> None:
    path = tmp_path / "one"
    errors: list[Exception] = []

    def work(letter: str) -> None:
        try:
            for _ in range(30):
                write_bytes(path, letter.encode() * 10_000)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 10_000 and len(set(content)) == 1
    assert errors == [] and left_over(tmp_path) == []


def ended_process() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    mine = partial_path(tmp_path / "mine")
    machine = PARTIAL.fullmatch(mine.name)
    assert machine is not None
    dead, here = ended_process(), machine[1]
    names = {
        "dead": f".x.dmle-{here}-{dead}-00000000.partial",
        "alive": f".x.dmle-{here}-{os.getppid()}-00000000.partial",
        "elsewhere": f".x.dmle-ffffffff-{dead}-00000000.partial",
        "elsewhere, long ago": f".x.dmle-ffffffff-{dead}-11111111.partial",
        "alive, long ago": f".x.dmle-{here}-{os.getppid()}-11111111.partial",
        "somebody's": ".x.partial",
    }
    for name in (*names.values(), mine.name):
        (tmp_path / name).write_text("half")
    folder = tmp_path / f".y.dmle-{here}-{dead}-22222222.partial"
    (folder / "deep").mkdir(parents=True)
    old = time.time() - 2 * DAY
    for what in ("elsewhere, long ago", "alive, long ago", "somebody's"):
        os.utime(tmp_path / names[what], (old, old))
    write_text(tmp_path / "new", "x")
    stay = {names["alive"], names["elsewhere"], names["somebody's"], mine.name, "new"}
    assert {path.name for path in tmp_path.iterdir()} == stay
    sweep(tmp_path / "none")  # nothing to do, and no error


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("folder", "a folder of that name is in the way"),
        ("file/below", "a file is in the place of one of its folders"),
        ("x" * 300, "give a shorter one"),
        ("π" * 140, "give a shorter one"),
    ],
)
def test_what_cannot_be_written_is_named_with_the_remedy(
    name: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "folder" / "full").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    for write in (
        lambda path: write_text(path, "x"),
        lambda path: effects.save(one_map(), path),
        lambda path: write_tensors(path, {}, {}),
        lambda path: save_records(path, ["a"], []),
    ):
        with pytest.raises(WriteError, match=said) as caught:
            write(tmp_path / name)
        assert name in str(caught.value)
    assert left_over(tmp_path) == []


def test_long_names_that_fit_are_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "π" * 127):
        write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"


FULL = """
import os, resource, sys
from pathlib import Path
import torch
from interp.results import effects
from interp.errors import WriteError
from interp.results.records import save_records
from interp.results.tensor_files import write_tensors

folder, paths = Path(sys.argv[1]), {(f"r{i}", "formula"): Path(sys.argv[2]) for i in range(6)}
work = {
    "effects.nc": lambda path: effects.join(paths, path),
    "map.nc": lambda path: effects.save(effects.load(paths["r0", "formula"]), path),
    "edit.safetensors": lambda path: write_tensors(path, {"a": torch.ones(3000)}, {}),
    "answers.json": lambda path: save_records(path, ["a"], [{"a": "x" * 9000}]),
}
for name, write in work.items():
    write(folder / name)
    size = (folder / name).stat().st_size
    whole = (folder / name).read_bytes()
    for limit in [0, 1, *range(100, size, size // 8), size - 1]:
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            try:
                write(folder / name)
            except WriteError as error:
                os._exit(7 if f"{folder / name}: File too large" in str(error) else 8)
            os._exit(9)
        ended = os.waitpid(child, 0)[1]
        assert os.waitstatus_to_exitcode(ended) == 7, (name, limit, ended)
        assert (folder / name).read_bytes() == whole, (name, limit)
        assert len(list(folder.iterdir())) == list(work).index(name) + 1
"""


@pytest.mark.golden
@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and limits of file sizes")
def test_no_room_is_a_clear_line_at_every_point_and_the_old_file_stays(tmp_path: Path) -> None:
    effects.save(one_map(), tmp_path / "one.nc")
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", FULL, str(tmp_path / "run"), str(tmp_path / "one.nc")]
    subprocess.run(command, check=True, timeout=300, cwd=Path(__file__).parents[4])


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and os.geteuid() == 0
    if (
        not mounted
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=False
        ).returncode
    ):
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_named_and_room_mends_it(small_disk: Path, tmp_path: Path) -> None:
    effects.save(one_map(), tmp_path / "one.nc")
    paths = {(f"r{i}", "formula"): tmp_path / "one.nc" for i in range(4)}
    (small_disk / "big").write_bytes(bytes(56_000))
    for write in (
        lambda: effects.join(paths, small_disk / "effects.nc"),
        lambda: write_tensors(small_disk / "delta.safetensors", {"a": torch.ones(9000)}, {}),
        lambda: write_text(small_disk / "text", "x" * 20_000),
    ):
        with pytest.raises(WriteError, match="No space left on device; make room there"):
            write()
        assert [path.name for path in small_disk.iterdir()] == ["big"]
    (small_disk / "big").unlink()
    effects.join(paths, small_disk / "effects.nc")
    xr.testing.assert_identical(
        effects.load(small_disk / "effects.nc"), effects.concat({key: one_map() for key in paths})
    )


# Reading.


def test_other_readers_open_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "map.nc"
    effects.save(one_map(), path)
    for engine in ("h5netcdf", None):
        with xr.open_dataset(path, engine=engine) as found:
            xr.testing.assert_identical(found.load(), one_map())
    with h5py.File(path) as file:
        np.testing.assert_array_equal(np.asarray(file["score"]), one_map()["score"].values)
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor(1.5, dtype=torch.float64),
        "c": torch.zeros(0, 4),
    }
    tensors |= {
        "d": torch.ones(3, dtype=torch.bfloat16),
        "e": torch.tensor([True]),
        "f": torch.arange(5).int(),
    }
    write_tensors(tmp_path / "t.safetensors", tensors, {"π": 1})
    found, header = read_tensors(tmp_path / "t.safetensors", "file")
    assert header == {"π": 1}
    for held in (load_file(tmp_path / "t.safetensors"), found):
        assert set(held) == set(tensors)
        assert all(torch.equal(held[n], v) and held[n].dtype == v.dtype for n, v in tensors.items())


def a_cell() -> Cell:
    return Cell(
        "memit",
        "rule",
        0,
        "key",
        0.1,
        1,
        [{"metric": "reliability", "before": "4"}],
        {"kl": 0.5},
        ["said"],
    )


def a_delta() -> EditDelta:
    draw = torch.Generator().manual_seed(0)
    update = LowRank(torch.randn(8, 2, generator=draw), torch.randn(6, 2, generator=draw))
    return EditDelta(
        {"a.weight": update, "b.weight": torch.ones(3, 4)},
        {"a.weight": 0, "b.weight": 1},
        "h",
        EditReport(own={"n": 1}),
    )


MOMENTS = Moments(torch.eye(6, dtype=torch.float64), 1.5, 0.1, 20)
CODEBOOK = Codebook(
    1, torch.ones(2, 5), torch.ones(2, 4), torch.ones(2), ("4", "π"), "h", EditReport(own={"n": 1})
)
SELECTION = parse_layers("3-5/12-14", 30)
Reader = tuple[str, Callable[[Path], Any], Callable[[Path], Any]]
READERS: list[Reader] = [
    (
        "traces/r-formula.nc",
        lambda p: effects.save(one_map(), p),
        lambda p: str(effects.load(p).to_dict()),
    ),
    (
        "effects.nc",
        lambda p: effects.save(effects.concat({("r", "formula"): one_map()}), p),
        lambda p: str(effects.load(p).to_dict()),
    ),
    ("deltas/memit/r.safetensors", lambda p: a_delta().save(p), lambda p: repr(load_edit(p))),
    ("deltas/grace/r.safetensors", lambda p: CODEBOOK.save(p), lambda p: repr(load_edit(p))),
    (
        "deltas/ice/r.safetensors",
        lambda p: InContext("New Fact", "h").save(p),
        lambda p: repr(load_edit(p)),
    ),
    (
        "covariance/x/layer_0.safetensors",
        lambda p: moment_files.save(p, MOMENTS, 0, {"n": [1]}),
        lambda p: repr(moment_files.read(p, 0, {"n": [1]})),
    ),
    (
        "covariance/y/layer_0.safetensors",
        lambda p: moment_files.save_output(p, torch.eye(2), 0, {"n": [1]}),
        lambda p: repr(moment_files.read_output(p, 0, {"n": [1]})),
    ),
    ("selection.json", lambda p: SELECTION.save(p), lambda p: LayerSelection.load(p)),
    ("selection-rules.json", lambda p: save_for_rules({"r": SELECTION}, p), load_for_rules),
    (
        "answers.json",
        lambda p: save_records(
            p, ["a", "b"], [{"a": "π", "b": 0.25}, {"a": "NA", "b": float("nan")}]
        ),
        lambda p: str(load_records(p, "table")),
    ),
]
NAMES = [name for name, _, _ in READERS]


def damages(content: bytes, seed: int) -> list[bytes]:
    """Flipped bits, zeroed blocks, cuts, and bytes too many."""
    rng = random.Random(seed)
    made = []
    for _ in range(60):
        at = rng.randrange(len(content))
        made.append(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
    for _ in range(15):
        at = rng.randrange(len(content))
        made.append((content[:at] + bytes(512) + content[at + 512 :])[: len(content)])
        made.append(content[: rng.randrange(len(content))])
    return [*made, content + b"x", content + content, b"", b"\0" * len(content)]


@pytest.mark.parametrize(("name", "write", "read"), READERS, ids=NAMES)
def test_damage_is_found_and_told_with_the_command_that_mends_it(
    name: str, write: Callable[[Path], Any], read: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    content, whole = path.read_bytes(), read(path)
    for damage in damages(content, seed=len(name)):
        path.write_bytes(damage)
        try:
            assert read(path) == whole
            assert name.endswith(".json") or damage == content  # of JSON: its white space
        except DamagedError as error:
            assert str(path) in str(error) and "delete it" in str(error) and "\n" not in str(error)
    path.unlink()
    write(path)
    assert read(path) == whole


def test_a_damaged_cell_is_as_good_as_none(tmp_path: Path) -> None:
    write_cell(tmp_path, a_cell())
    path = cell_path(tmp_path, "memit", "rule", 0)
    content = path.read_bytes()
    assert read_cell(path) == a_cell()
    for damage in damages(content, seed=3):
        path.write_bytes(damage)
        assert read_cell(path) in (None, a_cell())


@pytest.mark.parametrize(("name", "write", "read"), READERS, ids=NAMES)
def test_files_of_other_kinds_are_refused(
    name: str, write: Callable[[Path], Any], read: Callable[[Path], Any], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with pytest.raises(DmleError, match=r"does not exist|is missing"):
        read(path)
    png = b"\x89PNG\r\n\x1a\n" + bytes(300)
    deep = b"[" * 100_000 + b"]" * 100_000
    huge = (1 << 62).to_bytes(8, "little") + b'{"__metadata__":{"sha256":"' + b"0" * 64
    number = b'{"schema": ' + b"9" * 10_000 + b"}"
    for content in (
        b"text",
        png,
        deep,
        huge,
        number,
        b"{}",
        b"null",
        b'"\\ud800"',
        b'{"a": 1, "a": 2}',
        b"PK\x03\x04",
    ):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match="delete it"):
            read(path)
    others = tmp_path / "others"
    for other, make, _ in READERS:
        if other != name and not (other.startswith("deltas") and name.startswith("deltas")):
            make(others)
            shutil.copy(others, path)
            with pytest.raises(DamagedError, match="delete it"):
                read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedError, match="it is a folder"):
        read(path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(DamagedError, match="it is a pipe or a device"):
        read(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DamagedError, match="it is a pipe or a device"):
        read(path)


def test_a_file_that_asks_for_more_than_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "map.nc"
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"a": 1 << 24, "b": 1 << 24}
        file.create_variable("score", ("a", "b"), "f8", chunks=(1024, 1024), compression="gzip")
    with path.open("r+b") as file:
        seal(file)
    with pytest.raises(DamagedError, match=r"more than the \d+ there are"):
        effects.load(path)


def test_json_says_again_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    content = {
        "schema": "x/1",
        "texts": ["π", "\ud800", "a\nb"],
        "numbers": [0.1, 1e300, -0.0, 2**70],
        "none": None,
    }
    write_json(path, {**content, "pair": (1, 2)})
    assert read_json(path, "file", schema="x/1") == {**content, "pair": [1, 2]}
    write_json(path, {**content, "pair": (1, 2)}, indent=2)
    assert read_json(path, "file") == {**content, "pair": [1, 2]}
    held = json.loads(path.read_text())
    path.write_text(
        json.dumps(dict(reversed(held.items())))
    )  # laid out otherwise, with the same to say
    assert read_json(path, "file") == {**content, "pair": [1, 2]}
    held["none"] = 0
    path.write_text(json.dumps(held))
    with pytest.raises(DamagedError, match="does not fit its checksum"):
        read_json(path, "file")
    with pytest.raises(MissingFileError, match="does not exist"):
        read_json(tmp_path / "none.json", "file")


# Paths.


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "..",
        ".",
        "",
        "a/..",
        "a\0b",
        "..\\x",
        "link/x",
        "link/deep/x",
    ],
)
def test_names_that_leave_a_folder_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path / "out")
    with pytest.raises(DmleError):
        inside(tmp_path / "run", name)
    with pytest.raises(DmleError):
        inside(tmp_path / "run", "sub", f"../{name}")


def test_names_inside_a_folder_are_paths(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inside(tmp_path, "a", "b.nc") == tmp_path / "a" / "b.nc"
    assert inside(tmp_path, "link/x..y") == tmp_path / "link" / "x..y"  # a link that stays inside
    assert (
        inside(tmp_path / "link", "x") == tmp_path / "link" / "x"
    )  # the folder may be reached by a link
    check_links(tmp_path)
    (tmp_path / "real" / "out").symlink_to(tmp_path.parent)
    with pytest.raises(DmleError, match=r"real/out is a link to .*, outside the run folder"):
        check_links(tmp_path)


def test_a_folder_is_made_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(KeyError), atomic(tmp_path / "made") as partial:
        (partial / "deep").mkdir(parents=True)
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    with atomic(tmp_path / "made") as partial:
        (partial / "deep").mkdir(parents=True)
    assert (tmp_path / "made" / "deep").is_dir() and left_over(tmp_path) == []
