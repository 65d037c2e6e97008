"""A run folder through the commands: what is stale is refused, what mends it works, and
processes share a folder."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from interp.app.run import Run
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.rules.sources import Rule, dump_rules
from interp.selection.layers import LayerSelection, load_for_rules

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str]]
SETTINGS: dict[str, Any] = {
    "trace": {
        "samples": 8,
        "span": "content",
        "answer": "greedy",
        "answer_tokens": 3,
        "components": ["mlp"],
        "window": 1,
    },
    "profile": {"bootstrap": 10},
    "select": {"strategy": "window", "width": 1, "identity_blocks": 0, "bootstrap": 10},
    "covariance": {"identity": True},
    "edit": {
        "editors": ["dmle", "ft"],
        "lookup": "last",
        "steps": 2,
        "contexts": 0,
        "ft": {"steps": 1},
    },
    "evaluate": {"answer_tokens": 2, "greedy": False},
    "compare": {"bystanders": 0, "resamples": 100},
}
STEPS = ("trace", "profile", "select", "edit", "evaluate")


@pytest.fixture(scope="module")
def inputs(
    make_inputs: Callable[..., Path], make_model: Callable[..., LanguageModel], rule: Rule
) -> Path:
    """Two models, rules, the same with other answers, and settings."""
    square = rule.model_copy(update={"split": None})
    folder = make_inputs([square, square.model_copy(update={"id": "again"})], SETTINGS)
    make_model("llama", check=False, num_hidden_layers=4).export(folder / "deeper")
    make_model("llama", check=False, seed=1).export(folder / "twin")
    forms = {
        name: form.model_copy(update={"target_new": "7"}) for name, form in square.forms.items()
    }
    other = square.model_copy(update={"forms": forms})
    dump_rules([other, other.model_copy(update={"id": "again"})], folder / "others.json")
    return folder


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every step of the chain up to the scores."""
    run = tmp_path_factory.mktemp("runs") / "all"
    Run(run, config=inputs / "config.yaml")(*STEPS)
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def contents(run: Path) -> dict[str, bytes]:
    """Every file but locks."""
    return {
        str(p.relative_to(run)): p.read_bytes()
        for p in sorted(run.rglob("*"))
        if p.is_file() and p.suffix != ".lock"
    }


def follow(dmle: Command, said: str) -> None:
    """Run the commands that an error advises."""
    lines = re.findall(r"`(dmle [^`]*)`", " ".join(said.split()))
    assert lines, said
    for line in lines:
        code, told = dmle(*shlex.split(line)[1:])
        assert code == 0, f"{line}: {told}"


CHANGES = [
    ("profile", ["--set", "trace.samples=9"], "trace.samples was 8 when"),
    (
        "select",
        ["--set", "profile.lookup_roles=[last]"],
        'profile.lookup_roles was ["subject_last", "rule_word"] when',
    ),
    ("edit", ["--set", "select.width=2"], "select.width was 1 when"),
    (
        "evaluate",
        ["--set", "edit.ridge=0.01", "--set", "edit.lookup=subject_last"],
        "edit.ridge was 1.0 when",
    ),
    (
        "evaluate",
        ["--rules", "{inputs}/others.json"],
        "was made of another wording, subject or answer of the rule",
    ),
    (
        "evaluate",
        ["--set", "covariance.identity=false", "--set", "covariance.tokens=300"],
        "covariance.identity was true",
    ),
    ("evaluate", ["--set", "edit.layers=0/1"], "writes formula+description: layers"),
    ("figures", ["--set", "evaluate.answer_tokens=3"], "evaluate.answer_tokens was 2 when"),
    ("report", ["--set", "edit.ft={{steps: 2}}"], "edit.ft.steps was 1 when"),
    ("compare", ["--set", "profile.confidence=0.9"], "profile.confidence was 0.95 when"),
    ("edit", ["--model", "{inputs}/twin"], "was made for another model"),
    ("edit", ["--model", "{inputs}/deeper"], "was made for another model"),
]


@pytest.mark.parametrize(("step", "flags", "said"), CHANGES)
def test_what_is_stale_is_refused_changes_nothing_and_the_advice_mends_it(
    step: str, flags: Sequence[str], said: str, run: Path, inputs: Path, dmle: Command
) -> None:
    before = contents(run)
    line = [step, "--run", run, *(flag.format(inputs=inputs) for flag in flags)]
    code, told = dmle(*line)
    assert code == 2 and said in " ".join(told.split()), told
    assert contents(run) == before
    if (
        step not in ("figures", "report") and "--model" not in flags
    ):  # drawing takes longer than all else
        follow(dmle, told)
        code, told = dmle(*line)
        assert code == 0, told


def test_a_refused_trace_leaves_its_settings_and_names_what_differs(
    run: Path, dmle: Command
) -> None:
    before = contents(run)
    code, said = dmle("trace", "--run", run, "--set", "trace.samples=9", "--set", "edit.ridge=9")
    assert code == 2 and "(trace.samples was 8, it is 9 now)" in said and "--overwrite" in said
    assert contents(run) == before
    assert dmle("profile", "--run", run)[0] == 0
    # What another step made its results with is not taken over by the way.
    assert dmle("profile", "--run", run, "--set", "edit.ridge=9")[0] == 0
    held = yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))
    assert "ridge" not in held["settings"]["edit"] and held["resolved"]["edit"]["ridge"] == 1.0


@pytest.mark.parametrize("how", ["emptied", "deleted"])
def test_settings_that_are_lost_are_not_the_defaults(
    how: str, run: Path, inputs: Path, dmle: Command
) -> None:
    (run / "run.yaml").write_bytes(b"") if how == "emptied" else (run / "run.yaml").unlink()
    before = contents(run)
    code, said = dmle("select", "--run", run)
    assert code == 2 and "go on with --overwrite and the settings of this command" in said
    assert contents(run) == before
    assert (
        dmle("select", "--run", run, "--overwrite")[0] == 2
    )  # the defaults did not make these maps
    code, said = dmle("select", "--run", run, "--overwrite", "--config", inputs / "config.yaml")
    assert code == 0, said
    assert dmle("evaluate", "--run", run)[0] == 0


def test_layers_of_each_rule_are_selected_beside_those_of_all_and_edited_while_they_are_fresh(
    run: Path, dmle: Command
) -> None:
    named = "edit.arms={population: {editor: dmle, layers: auto}}"
    edit = ("edit", "--run", run, "--editors", "population,dmle", "--set", named)
    code, said = dmle(*edit, "--layers", "adaptive")
    assert code == 2 and "selection-rules.json is missing" in said
    follow(dmle, said)
    population = LayerSelection.load(run / "selection.json")
    own = load_for_rules(run / "selection-rules.json")
    assert population.strategy == "adaptive" and sorted(own) == ["again", "square-area"]
    code, said = dmle(*edit, "--layers", "adaptive")
    assert code == 0 and "dmle: each rule's own layers: " in said
    assert f"population: formula+description: layers {population.groups[0].layers[0]};" in said
    assert dmle("evaluate", "--run", run)[0] == 0
    # With other settings, or other inputs, it is refused, and what mends it works.
    code, said = dmle("evaluate", "--run", run, "--set", "select.width=2")
    assert code == 2 and "select.width was 1 when" in said
    code, said = dmle("evaluate", "--run", run, "--set", "select.strategy=window")
    assert code == 2 and 'select.strategy was "adaptive" when' in said
    assert dmle("profile", "--run", run, "--set", "profile.bootstrap=11")[0] == 0
    code, said = dmle("edit", "--run", run, "--editors", "dmle", "--set", "edit.steps=3")
    assert code == 2 and "selection-rules.json was made, it is 11 now" in said
    follow(dmle, said)
    assert dmle("edit", "--run", run, "--editors", "dmle", "--set", "edit.steps=3")[0] == 0
    # Another strategy takes them away: a run has one strategy in force.
    assert dmle("select", "--run", run, "--strategy", "window")[0] == 0
    code, said = dmle("edit", "--run", run)
    assert code == 2 and "selection-rules.json is missing" in said


def test_overwrite_leaves_no_old_piece(run: Path, dmle: Command) -> None:
    one = ("--run", run, "--set", "rules.ids=[again]", "--overwrite")
    assert dmle("trace", *one)[0] == 0
    assert {path.name for path in (run / "traces").iterdir()} == {
        f"again-{f}.nc" for f in ("formula", "description", "instance")
    }
    for step in ("profile", "select"):
        assert dmle(step, "--run", run)[0] == 0
    assert dmle("edit", *one, "--editors", "ft")[0] == 0
    assert [
        str(path.relative_to(run / "deltas")) for path in (run / "deltas").rglob("*.safetensors")
    ] == ["ft/again.safetensors"]


def test_a_map_of_other_settings_is_not_joined_for_a_prompt_that_is_skipped_now(
    run: Path, dmle: Command
) -> None:
    code, said = dmle("trace", "--run", run, "--set", "trace.span=numbers", "--overwrite")
    assert code == 0 and "skipped square-area/formula" in said
    assert set(effects.load(run / "effects.nc")["form"].values) == {"instance"}


def test_files_of_arms_that_are_not_compared_now_are_gone(run: Path, dmle: Command) -> None:
    assert dmle("compare", "--run", run, "--editors", "ft,dmle")[0] == 0
    first = LayerSelection.load(run / "selection.json")
    assert (
        (run / "published" / "dmle").is_dir()
        and list((run / "tables").glob("pairs-*.md"))
        and first
    )
    cells = {path for path in (run / "cells").glob("*/*.json")}
    assert dmle("compare", "--run", run, "--editors", "ft")[0] == 0
    assert not list((run / "published" / "dmle").glob("*")) and not list(
        (run / "tables").glob("pairs-*")
    )
    assert {path for path in (run / "cells").glob("*/*.json")} == cells  # kept to be used again
    assert dmle("compare", "--run", run, "--editors", "ft", "--overwrite")[0] == 0
    assert {path.parent.name for path in (run / "cells").glob("*/*.json")} == {"ft"}


def test_a_folder_that_leads_elsewhere_is_not_written(
    run: Path, dmle: Command, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept.nc").write_bytes(b"mine")
    shutil.rmtree(run / "traces")
    (run / "traces").symlink_to(tmp_path / "mine")
    code, said = dmle("trace", "--run", run, "--overwrite")
    assert code == 2 and "outside the run folder" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["kept.nc"]


# Two processes.


TOGETHER = """
import json, os, sys
import interp.models.loading
from interp.app.commands import main
children = {}
for output, line in json.loads(sys.argv[1]).items():
    child = os.fork()
    if not child:
        for stream in (1, 2):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        try:
            main(line)
        except SystemExit as end:
            os._exit(end.code or 0)
        os._exit(0)
    children[child] = output
ended = [os.wait() for _ in children]
print(json.dumps({children[child]: os.waitstatus_to_exitcode(code) for child, code in ended}))
"""
"""Commands as processes that begin together: what takes seconds to import was imported before."""


def together(folder: Path, *lines: Sequence[str | Path]) -> list[tuple[int, str]]:
    """Exit code and output of each command."""
    outputs = {str(folder / f"said-{i}"): list(map(str, line)) for i, line in enumerate(lines)}
    command = [sys.executable, "-c", TOGETHER, json.dumps(outputs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    codes = json.loads(done.stdout.splitlines()[-1])
    return [(codes[name], Path(name).read_text(encoding="utf-8")) for name in outputs]


@pytest.mark.golden
def test_two_traces_of_other_settings_leave_one_of_them(inputs: Path, tmp_path: Path) -> None:
    common = ("--run", tmp_path / "run", "--config", inputs / "config.yaml")
    lines = [("trace", *common, "--set", f"trace.samples={n}") for n in (2, 3)]
    done = together(tmp_path, *lines)
    assert sorted(code for code, _ in done) == [0, 2]
    (winner,) = (n for (code, _), n in zip(done, (2, 3), strict=True) if code == 0)
    (refused,) = (said for code, said in done if code == 2)
    assert "trace.samples was" in refused
    assert effects.load(tmp_path / "run" / "effects.nc").sizes["sample"] == winner
    held = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text(encoding="utf-8"))
    assert held["settings"]["trace"]["samples"] == winner
    samples = {
        effects.load(path).sizes["sample"] for path in (tmp_path / "run" / "traces").iterdir()
    }
    assert samples == {winner}
    assert json.loads((tmp_path / "run" / "rules.json").read_text(encoding="utf-8"))["rules"]
