"""The commands of the atlas on a tiny model: an entry is added, listed, drawn and selected from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import xarray as xr

from interp.app import freshness
from interp.app.atlas_commands import commands_of, rules_in_words
from interp.app.run import Run
from interp.errors import DmleError, InputError, StaleError
from interp.results import effects
from interp.rules.sources import Rule, dump_rules
from interp.selection.atlas.entry import AtlasEntry, atlas
from interp.selection.layers import LayerSelection

CommandLine = Callable[..., tuple[int, str, str]]
WEIGHTS = ("--weights", "drawn at random")


@pytest.fixture(scope="module")
def settings(
    model_folder: Path, rules: Sequence[Rule], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("rules") / "rules.json"
    dump_rules(rules[:1], path)
    return {
        "model": {"name": str(model_folder), "device": "cpu"},
        "rules.source": str(path),
        "trace": {"samples": 8, "span": "content", "answer": "greedy", "components": ["mlp"]},
        "trace.answer_tokens": 3,
        "profile.bootstrap": 10,
        "select.bootstrap": 10,
        "select.identity_blocks": 0,
    }


@pytest.fixture(scope="module")
def traced(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a profile and a selection."""
    folder = tmp_path_factory.mktemp("runs") / "traced"
    Run(folder, settings=settings, progress=None)("trace", "profile", "select")
    return folder


@pytest.fixture(scope="module")
def entry(traced: Path, tmp_path_factory: pytest.TempPathFactory) -> AtlasEntry:
    """An entry of that run, as the command writes it."""
    from interp.app.commands import main

    out = tmp_path_factory.mktemp("atlas")
    main(["atlas", "add", str(traced), "--model", "some/Tiny", "--out", str(out), *WEIGHTS])
    return atlas(out / "tiny")


def chosen(selection: LayerSelection) -> dict[str, tuple[int, ...]]:
    return {group.name: group.layers for group in selection.groups}


# Listing and drawing.


def test_the_list_has_every_model_with_layers_depth_support_and_regret(
    command_line: CommandLine, tmp_path: Path
) -> None:
    figure = tmp_path / "atlas.png"
    code, out, said = command_line("atlas", "--figure", figure)
    assert code == 0 and f"figure: {figure}" in said
    lines = out.splitlines()
    counts = "formula 69, description 87, instance 71"
    assert f"smollm2-135m: 30 blocks; traced prompts: {counts}" in lines
    assert (
        "  instance: layers 4-10, depth 0.14 to 0.34, supported, stability 0.93,"
        " regret 0.003 [-0.012, 0.021]" in lines
    )
    assert "  instance: layers 3-6, depth 0.18 to 0.35, supported, stability 0.65" in lines
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("name", "words"),
    [("atlas.jpeg", "ends in '.jpeg'; give a file"), ("none/atlas.png", "there is no folder")],
)
def test_a_figure_that_cannot_be_drawn_is_refused_first(
    name: str, words: str, dmle: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, said = dmle("atlas", "--figure", tmp_path / name)
    assert code == 2 and "--figure" in said and words in said


# Adding.


def test_an_entry_says_where_it_comes_from_in_names_that_hold_elsewhere(
    entry: AtlasEntry, traced: Path, rules: Sequence[Rule]
) -> None:
    about = entry.about
    assert (about.name, about.model, about.weights) == ("tiny", "some/Tiny", WEIGHTS[1])
    assert about.rules == "rules.json, split train and validation" and about.n_rules == 1
    trace, profile = about.commands
    assert trace.startswith("dmle trace --model some/Tiny --rules rules.json ")
    assert "--set trace.samples=8" in trace and "/tmp" not in trace and "--device" not in trace
    assert profile == "dmle profile --set profile.bootstrap=10"
    assert about.select["identity_blocks"] == 0
    kept = LayerSelection.load(traced / "selection.json")
    assert chosen(entry.selection) == chosen(kept)
    xr.testing.assert_equal(entry.profile, effects.load(traced / "profile.nc"))
    assert freshness.RECORD not in entry.profile.attrs
    texts = [part.prompt for rule in rules for part in rule.forms.values()]
    for path in entry.folder.iterdir():
        assert not any(text.encode() in path.read_bytes() for text in texts), path


def test_rules_and_commands_of_the_defaults(tmp_path: Path) -> None:
    context = Run(tmp_path, settings={"rules.limit": 3, "rules.split": "train"}).context
    assert rules_in_words(context) == (
        "the embedded rulebook, split train, the first 3 of each split"
    )
    trace = "dmle trace --limit 3 --set rules.split=train"
    assert commands_of(context, "smollm2-135m") == [trace, "dmle profile"]


def test_adding_says_what_to_do_next_and_replaces_on_request_only(
    traced: Path, dmle: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    line = ("atlas", "add", traced, "--model", "tiny", "--out", tmp_path, *WEIGHTS)
    code, said = dmle(*line)
    assert code == 0 and f"dmle select --from-atlas {tmp_path / 'tiny'}; to share it" in said
    code, said = dmle(*line)
    assert code == 2 and "is there; give another --name, or --overwrite replaces it" in said
    code, said = dmle(*line, "--overwrite")
    assert code == 0 and "entry of tiny, checked" in said
    # Another folder is no entry, whatever is asked for.
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "results.txt").write_text("precious", encoding="utf-8")
    code, said = dmle(*line, "--name", "mine", "--overwrite")
    assert code == 2 and "is there and is no atlas entry, so that it is not replaced" in said
    assert (tmp_path / "mine" / "results.txt").read_text(encoding="utf-8") == "precious"


def test_a_folder_of_this_machine_is_no_name_of_a_model(
    traced: Path, dmle: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, said = dmle("atlas", "add", traced, "--out", tmp_path, *WEIGHTS)
    assert code == 2 and "is a folder of one machine; name the model (--model)" in said
    assert not list(tmp_path.iterdir())


def test_a_checkout_has_a_place_for_entries_and_an_installed_package_has_none(
    traced: Path,
    dmle: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = tmp_path / "interp" / "selection" / "atlas" / "entries"
    entries.mkdir(parents=True)
    for module in ("entry", "checks", "writing"):
        monkeypatch.setattr(f"interp.selection.atlas.{module}.ENTRIES", entries)
    line = ("atlas", "add", traced, "--model", "tiny", *WEIGHTS)
    code, said = dmle(*line)
    assert code == 2 and "give a folder for the entry with --out" in said
    (tmp_path / "pyproject.toml").touch()
    code, said = dmle(*line)
    assert code == 0 and "test_atlas.py" in said and (entries / "tiny" / "about.json").is_file()


# Selecting.


@pytest.fixture
def run(settings: dict[str, Any], entry: AtlasEntry, tmp_path: Path) -> Run:
    own = {key: value for key, value in settings.items() if not key.startswith("trace")}
    return Run(tmp_path / "run", settings={**own, "atlas.entry": str(entry.folder)}, progress=None)


def test_a_run_takes_profile_and_layers_from_the_atlas(
    run: Run, traced: Path, entry: AtlasEntry
) -> None:
    said = run("atlas", "select")
    assert "profile of some/Tiny from the atlas, of rules.json" in said["atlas"]
    assert chosen(run.selection) == chosen(entry.selection)
    xr.testing.assert_equal(run.load("profile.nc"), effects.load(traced / "profile.nc"))
    # What comes next takes both, also with its own settings of a trace.
    later = Run(run.folder, settings={"trace.samples": 3}, progress=None)
    _ = later.model
    freshness.check(later.context, "profile.nc", "selection.json")
    # The layers follow the settings of the run; the entry's are of the entry.
    other = Run(run.folder, settings={"select.strategy": "window", "select.width": 2})
    assert other("select") and other.selection.strategy == "window"
    assert {len(layers) for layers in chosen(other.selection).values()} == {2}
    with pytest.raises(StaleError, match=r"select.strategy was .window. when"):
        freshness.check(run.context, "selection.json")


def test_the_command_needs_no_trace(
    settings: dict[str, Any],
    entry: AtlasEntry,
    dmle: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    model, source = settings["model"]["name"], settings["rules.source"]
    line = ("select", "--run", tmp_path / "run", "--model", model, "--rules", source)
    blocks = ("--set", "select.identity_blocks=0", "--set", "select.bootstrap=10")
    code, said = dmle(*line, *blocks, "--from-atlas", entry.folder)
    assert code == 0 and f"layer profile: {tmp_path / 'run' / 'profile.nc'}" in said
    assert chosen(LayerSelection.load(tmp_path / "run" / "selection.json")) == chosen(
        entry.selection
    )
    code, said = dmle(*line, "--from-atlas")
    assert code == 2 and "error: the atlas has no entry of " in said
    assert "it has gemma3-270m" in said


def test_an_unknown_entry_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", settings={"atlas.entry": "gpt2", "model.name": "nowhere"})
    with pytest.raises(InputError, match="the atlas has no entry 'gpt2'; it has gemma3-270m"):
        run.check("atlas")


def test_other_weights_are_refused_with_both_identities(
    run: Run, entry: AtlasEntry, tmp_path: Path
) -> None:
    half = Run(
        run.folder,
        settings={
            "model.name": run.model.name, "model.device": "cpu", "model.dtype": "bfloat16",
            "atlas.entry": str(entry.folder),
        },
        progress=None,
    )  # fmt: skip
    ours, other = entry.about.weight_hash, half.model.weight_hash
    with pytest.raises(StaleError, match=rf"{ours} \(float32\), .* \(bfloat16\) is {other}; run"):
        half("atlas")
    assert not (run.folder / "profile.nc").exists()
    # What was taken is held against the model later, too, with the command that takes it again.
    run("atlas", "select")
    with pytest.raises(StaleError, match=f"was made for another model .*{ours}") as told:
        freshness.check(half.context, "profile.nc")
    assert f"dmle select --from-atlas --run {run.folder}" in str(told.value)


def test_a_trace_of_ones_own_is_replaced_on_request_only(
    traced: Path, entry: AtlasEntry, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder, named = tmp_path / "run", {**settings, "atlas.entry": str(entry.folder)}
    own = Run(folder, settings=named, progress=None)
    own("trace", "profile")
    before = (folder / "profile.nc").read_bytes()
    with pytest.raises(InputError, match="is of a trace of this run; --overwrite replaces it"):
        own("atlas")
    assert (folder / "profile.nc").read_bytes() == before
    Run(folder, settings=named, progress=None, overwrite=True)("atlas")
    record = freshness.record_of(folder / "profile.nc")
    assert record is not None and record.step == "atlas"
    Run(folder, settings=named, progress=None)("atlas")  # its own it takes again


def test_what_came_from_the_atlas_is_no_new_entry(
    run: Run, dmle: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    run("atlas")
    code, said = dmle("atlas", "add", run.folder, "--model", "x", "--out", tmp_path, *WEIGHTS)
    assert code == 2 and "came from the atlas; trace the model in a new run folder" in said


def test_a_stale_profile_is_no_entry(
    traced: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    from interp.app.atlas_commands import entry_from

    context = Run(traced, settings={"trace.samples": 9}, progress=None).context
    with pytest.raises(DmleError, match=r"trace.samples was 8 when"):
        entry_from(context, tmp_path / "tiny", "tiny", "random")
