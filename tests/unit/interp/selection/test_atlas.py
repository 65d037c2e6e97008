"""The atlas of models: every shipped entry is checked, and each check notices its fault."""

import os
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import interp
from interp.config import SelectConfig
from interp.errors import DamagedError, InputError
from interp.results import effects
from interp.selection.atlas import checks, writing
from interp.selection.atlas.checks import check_entry, check_size
from interp.selection.atlas.entry import ENTRIES, About, AtlasEntry, atlas, entries, entry_of
from interp.selection.atlas.writing import regrets_of, without_texts, write_entry
from interp.selection.layers import LayerSelection, parse_layers
from interp.selection.select import select_layers

ROOT = Path(__file__).parents[4]
DATA = ROOT / "docs" / "data"
NAMES = atlas()
SMALL = "gemma3-270m"
MEASURED = {"smollm2-135m": "smollm2", "gemma3-270m": "gemma3"}
"""Entries, and the end of the names of the files in `docs/data` that they are of."""

# What ships.


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_entry_passes_the_checks(name: str) -> None:
    check_entry(atlas(name))


def test_the_shipped_entries_are_small_together() -> None:
    assert {"smollm2-135m", "gemma3-270m"} <= set(NAMES)
    check_size(atlas(NAMES[0]))


@pytest.mark.parametrize(("name", "end"), MEASURED.items())
def test_an_entry_has_the_numbers_of_the_documentation(name: str, end: str) -> None:
    entry, profile = atlas(name), effects.load(DATA / f"profile-{end}.nc")
    xr.testing.assert_equal(entry.profile, profile)
    changed = {key for key, value in profile.attrs.items() if entry.profile.attrs.get(key) != value}
    assert changed == {"skipped", "weight_hash"}  # an identity was of the weights alone then
    assert profile.attrs["weight_hash"] in entry.about.weights
    order = (entry.folder / "form_order.csv").read_text(encoding="utf-8")
    assert order == (DATA / f"form-order-{end}.csv").read_text(encoding="utf-8")
    kept = select_layers(profile).groups
    assert [group.layers for group in entry.selection.groups] == [g.layers for g in kept]


def test_regret_is_what_was_measured_at_the_selected_layers() -> None:
    both, instance = atlas("smollm2-135m").about.regret
    assert (both.group, instance.group) == ("formula+description", "instance")
    assert both.regret == pytest.approx(0.0138426, abs=1e-7) and both.n_rules == 14
    assert instance.regret == pytest.approx(0.0034984, abs=1e-7)
    text = (ENTRIES / "smollm2-135m" / "regret.csv").read_text(encoding="utf-8")
    assert text == (DATA / "regret-smollm2.csv").read_text(encoding="utf-8")
    assert not atlas("gemma3-270m").about.regret


def test_entries_are_data_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resources.files("interp.selection.atlas").joinpath("entries")
    for name in NAMES:
        assert folder.joinpath(name, "profile.nc").is_file()
        assert b"dmle.atlas/1" in folder.joinpath(name, "about.json").read_bytes()
    # The same of what `pip install .` copies.
    pytest.importorskip("setuptools")
    from setuptools import Distribution
    from setuptools.config.pyprojecttoml import apply_configuration

    monkeypatch.chdir(ROOT)
    built: Any = Distribution()
    apply_configuration(built, "pyproject.toml")
    command = built.get_command_obj("build_py")
    command.finalize_options()
    copied = {
        Path(place, name)
        for _, place, _, names in command.get_data_files_without_manifest()
        for name in names
    }
    shipped = {path.relative_to(ROOT) for path in ENTRIES.rglob("*") if path.is_file()}
    assert len(shipped) >= 9 and shipped <= copied


# Reading.


def test_the_public_function_gives_names_and_entries() -> None:
    assert interp.atlas() == NAMES
    entry = interp.atlas("smollm2-135m")
    assert not set(vars(entry)) & {"about", "profile", "selection"}  # nothing is read yet
    assert entry.selection.layers_of("formula") == (4, 5, 6, 7, 8, 9)
    assert entry.about.n_blocks == entry.profile.sizes["layer"] == 30
    assert entry.about.traced == {"formula": 69, "description": 87, "instance": 71}


def test_a_folder_is_an_entry_too_and_what_is_none_is_refused_with_the_names(
    copy: AtlasEntry,
) -> None:
    assert atlas(copy.folder).about == atlas(str(copy.folder)).about == atlas(SMALL).about
    with pytest.raises(InputError, match=r"no entry 'gpt2'; it has gemma3-270m, .*`dmle trace`"):
        atlas("gpt2")


def test_the_entry_of_a_model_is_of_its_weights_or_else_of_its_name() -> None:
    known = entries()
    for name, entry in known.items():
        assert entry_of("any name", entry.about.weight_hash).name == name
        assert entry_of(name, "0" * 16).name == name
    with pytest.raises(InputError, match=r"no entry of gpt2 \(0{16}\); it has"):
        entry_of("gpt2", "0" * 16)


@pytest.mark.parametrize("file", ["about.json", "profile.nc", "selection.json"])
def test_a_damaged_entry_is_told_as_one(
    copy: AtlasEntry, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy.folder / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    part = file.partition(".")[0]
    with pytest.raises(
        DamagedError, match=r"the atlas entry .* is damaged: .*dmle atlas add"
    ) as told:
        getattr(copy, part)
    assert "dmle profile" not in str(told.value) and "delete it" not in str(told.value)
    monkeypatch.setattr("interp.selection.atlas.entry.ENTRIES", copy.folder.parent)
    path.unlink()
    with pytest.raises(DamagedError, match=f"it lacks {file}; install dmle again"):
        getattr(AtlasEntry(copy.folder, copy.name), part)


# Faults that the checks notice.


@pytest.fixture
def copy(tmp_path: Path) -> AtlasEntry:
    shutil.copytree(ENTRIES / SMALL, tmp_path / SMALL)
    return AtlasEntry(tmp_path / SMALL, SMALL)


def about(**changes: Any) -> Callable[[AtlasEntry], None]:
    def change(entry: AtlasEntry) -> None:
        path = entry.folder / "about.json"
        AtlasEntry(entry.folder, SMALL).about.model_copy(update=changes).save(path)

    return change


def profile(change: Callable[[xr.Dataset], xr.Dataset]) -> Callable[[AtlasEntry], None]:
    def save(entry: AtlasEntry) -> None:
        whole = AtlasEntry(entry.folder, SMALL).profile
        effects.save(change(whole), entry.folder / "profile.nc")

    return save


def selection(**changes: Any) -> Callable[[AtlasEntry], None]:
    def save(entry: AtlasEntry) -> None:
        kept = AtlasEntry(entry.folder, SMALL).selection
        kept.model_copy(update=changes).save(entry.folder / "selection.json")

    return save


def with_value(name: str, value: float) -> Callable[[xr.Dataset], xr.Dataset]:
    def change(data: xr.Dataset) -> xr.Dataset:
        values = data[name].values.copy()
        values.flat[-1] = value
        return data.assign({name: (data[name].dims, values)})

    return change


def named(data: xr.Dataset, rule: str) -> xr.Dataset:
    return data.assign_coords(rule=[rule, *data["rule"].values[1:]])


FAULTS: dict[str, tuple[Callable[[AtlasEntry], object], str]] = {
    "missing": (lambda e: (e.folder / "form_order.csv").unlink(), "lacks form_order.csv"),
    "foreign": (lambda e: (e.folder / "rules.json").touch(), "rules.json is no file of an entry"),
    "size": (
        lambda e: os.truncate(e.folder / "form_order.csv", checks.ENTRY_BYTES),
        "more than 700000; make it of fewer rules",
    ),
    "name": (about(name="gemma"), "about.json calls it 'gemma'"),
    "blank": (about(weights=" "), "its provenance is incomplete"),
    "path": (about(model="/home/me/gemma"), "is a folder of one machine"),
    "identity": (about(weight_hash="0" * 16), "weight_hash is 0000000000000000 in about.json"),
    "samples": (about(samples=4), "samples is 4 in about.json, 2 in profile.nc"),
    "counts": (about(n_blocks=17), "counts other blocks"),
    "traced": (about(traced={"formula": 22}), "counts other blocks, rules or traced"),
    "variable": (profile(lambda d: d.assign(text=0)), "text is no variable that an entry holds"),
    "label": (
        profile(lambda d: d.assign_coords(prompt=("rule", d["rule"].values))),
        "prompt is no label that an entry holds",
    ),
    "attribute": (
        profile(lambda d: d.assign_attrs(skipped="a prompt")),
        "skipped is no attribute that an entry holds",
    ),
    "rule": (
        profile(lambda d: named(d, "The area of a square is")),
        "'The area of a square is' is no name of a rule",
    ),
    "span": (profile(lambda d: d.assign_attrs(span="area square")), "words of prompts"),
    "length": (profile(lambda d: d.assign_attrs(engine="x" * 121)), "engine has more than 120"),
    "infinite": (profile(with_value("total_effect", np.inf)), "total_effect .* is infinite"),
    "not a number": (profile(with_value("aie", np.nan)), "aie of its profile is not a number"),
    "mean": (profile(with_value("aie", 0.5)), "aie of its profile is not the mean of the effects"),
    "strategy": (selection(strategy="window"), "selection.json is of window"),
    "layers": (
        selection(groups=parse_layers("3-5/3-6", 18).groups),
        "its selection is not what its profile and settings give",
    ),
    "provenance": (
        selection(provenance={"prompt": "x"}),
        "prompt is no provenance of its selection",
    ),
    "regret file": (lambda e: (e.folder / "regret.csv").touch(), "do not belong together"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_an_entry_is_noticed(fault: str, copy: AtlasEntry) -> None:
    make, words = FAULTS[fault]
    make(copy)
    with pytest.raises(InputError, match=f"the atlas entry {SMALL}: .*{words}"):
        check_entry(copy)


def test_a_large_atlas_is_refused(copy: AtlasEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ENTRIES", copy.folder.parent)
    size = sum(path.stat().st_size for path in copy.folder.iterdir())
    shutil.copytree(copy.folder, copy.folder.with_name("another"))
    # The new one takes the place of the one of its name.
    monkeypatch.setattr(checks, "ATLAS_BYTES", 2 * size)
    check_size(atlas(SMALL))
    monkeypatch.setattr(checks, "ATLAS_BYTES", 2 * size - 1)
    with pytest.raises(InputError, match=f"the atlas has {2 * size} bytes with {SMALL}"):
        check_size(atlas(SMALL))


# Writing.

GIVEN: dict[str, Any] = {
    "model": "some/model",
    "weights": "as they are on the hub",
    "rules": "the embedded rulebook",
    "commands": ["dmle trace"],
}


def test_an_entry_keeps_numbers_and_names_alone(tmp_path: Path) -> None:
    secrets = {"skipped": "square/formula: a prompt", "made": "{}", "span": "area square"}
    whole = atlas(SMALL).profile
    kept = without_texts(whole.assign_attrs(secrets))
    assert set(kept.attrs) == set(whole.attrs) - {"span"}
    assert whole.attrs["span"] == "subject+rule"  # the given one is as it was
    entry = write_entry(tmp_path / "tiny", whole.assign_attrs(secrets), **GIVEN)
    assert "made" not in entry.profile.attrs and entry.about.model == "some/model"
    assert entry.selection == atlas(SMALL).selection.model_copy(
        update={"provenance": entry.selection.provenance}
    )
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_an_entry_that_fails_a_check_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder of one machine; name the model"):
        write_entry(tmp_path / "tiny", atlas(SMALL).profile, **(GIVEN | {"model": "./model"}))
    with pytest.raises(InputError, match="the provenance of Tiny: name"):
        write_entry(tmp_path / "Tiny", atlas(SMALL).profile, **GIVEN)
    with pytest.raises(InputError, match="the strategy combined reads more than the profile"):
        config = SelectConfig(strategy="combined")
        write_entry(tmp_path / "tiny", atlas(SMALL).profile, config=config, **GIVEN)
    assert not list(tmp_path.iterdir())


def regrets(layers: str, strategy: str = "changepoint", regret: float = 0.25) -> xr.Dataset:
    texts = {"strategy": strategy, "group": "instance", "layers": layers}
    numbers = {"regret": regret, "lower": 0.125, "upper": 0.5, "n_rules": 7.0}
    values = {name: ("row", np.array([value], object)) for name, value in texts.items()}
    return xr.Dataset({**values, **{name: ("row", [value]) for name, value in numbers.items()}})


def test_regret_is_taken_for_the_selected_layers_alone() -> None:
    chosen: LayerSelection = atlas(SMALL).selection
    (measured,) = regrets_of(regrets("3-6"), chosen)
    assert (measured.group, measured.regret, measured.n_rules) == ("instance", 0.25, 7)
    assert regrets_of(regrets("3-6", "window"), chosen) == ()
    assert regrets_of(regrets("3-6", regret=np.nan), chosen) == ()  # no edits were made there
    with pytest.raises(InputError, match=r"regret.nc is of 4-6 for instance"):
        regrets_of(regrets("4-6"), chosen)


def test_a_replaced_entry_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tiny"
    write_entry(folder, atlas(SMALL).profile, **GIVEN)
    before = sorted(path.name for path in folder.iterdir())

    def fail(entry: AtlasEntry) -> None:
        raise InputError("no")

    monkeypatch.setattr(writing, "check_entry", fail)
    with pytest.raises(InputError, match="no"):
        write_entry(folder, atlas(SMALL).profile, **(GIVEN | {"model": "another"}))
    entry = AtlasEntry(folder, "tiny")
    assert entry.about.model == "some/model" and isinstance(entry.about, About)
    assert sorted(path.name for path in folder.iterdir()) == before
