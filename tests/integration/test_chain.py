"""The chain from the command line on a tiny model folder, what it leaves, and that it redoes
nothing."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from editing.closed_form.covariance import Covariances
from editing.config import EditorSettings
from editing.edits.delta import EditDelta
from editing.edits.requests import requests_of
from editing.evaluation.evaluate import COLUMNS
from editing.evaluation.items import items_of
from interp.app.run import Run
from interp.app.steps import CHAIN
from interp.models.loading import LanguageModel, load
from interp.results import effects
from interp.results.run_folder import RunError
from interp.rules.sources import Rule, dump_rules, load_rules
from interp.selection.layers import LayerSelection
from tests.unit.editing_making import edit_with

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("chain")]

SETTINGS = {
    "trace": {
        "samples": 8,
        "span": "content",
        "answer": "greedy",
        "answer_tokens": 3,
        "components": ["mlp"],
        "window": 1,
    },
    "profile": {"bootstrap": 20},
    "select": {"strategy": "window", "width": 1, "bootstrap": 20},
    "covariance": {"tokens": 2000, "max_length": 64},
    "edit": {"steps": 3, "contexts": 1, "ridge": 0.1},
    "evaluate": {"answer_tokens": 3},
}
FILES = (
    *(
        "effects.nc",
        "profile.nc",
        "selection.json",
        "scores.nc",
        "answers.csv",
        "run.yaml",
        "rules.json",
    ),
    *(f"deltas/{editor}/square-3.safetensors" for editor in ("dmle", "memit")),
    *(
        f"tables/scores-{mode}.{kind}"
        for mode in ("token_accuracy", "exact", "log_prob", "kl")
        for kind in ("md", "tex")
    ),
    "tables/before-after.md",
    *(f"figures/effect-map-{form}.pdf" for form in ("formula", "description", "instance")),
    *(
        f"figures/{name}.pdf"
        for name in ("layer-profile", "layer-selection", "edit-scores-token_accuracy")
    ),
)


@pytest.fixture(scope="module")
def inputs(
    make_model: Callable[..., LanguageModel], rule: Rule, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a Hugging Face model, three rules (train, validation, test), a corpus and a
    configuration."""
    folder = tmp_path_factory.mktemp("inputs")
    make_model("llama").export(folder / "model")
    splits = zip(("square-1", "square-2", "square-3"), ("train", "validation", "test"), strict=True)
    dump_rules(
        [rule.model_copy(update={"id": name, "split": split}) for name, split in splits],
        folder / "rules.json",
    )
    lines = [
        f"The {a} of a {b} is {n} times the side."
        for n in range(50)
        for a in "pqr"
        for b in ("cube", "square")
    ]
    (folder / "corpus.txt").write_text("\n".join(lines), encoding="utf-8")
    settings = {
        **SETTINGS,
        "model": {"name": str(folder / "model"), "device": "cpu"},
        "rules": {"source": str(folder / "rules.json")},
        "covariance": {**SETTINGS["covariance"], "corpus": str(folder / "corpus.txt")},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Run folder and standard error of `dmle run` as a process of its own."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    command = [
        sys.executable,
        "-m",
        "interp.app.commands",
        "run",
        "--config",
        inputs / "config.yaml",
        "--run",
        folder,
    ]
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return folder, done.stderr


def test_run_writes_every_file(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    missing = [name for name in FILES if not (folder / name).is_file()]
    assert not missing, sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
    drawn = {
        kind: {p.stem for p in (folder / "figures").glob(f"*.{kind}")} for kind in ("pdf", "png")
    }
    assert drawn["pdf"] == drawn["png"]
    assert not [p for p in folder.rglob("*") if "partial" in p.name or p.name.startswith(".")]
    assert not (
        folder / "deltas" / "dmle" / "square-1.safetensors"
    ).exists()  # a training rule is not edited


def test_run_reports_what_it_did_and_where_to_look(finished: tuple[Path, str]) -> None:
    folder, said = finished
    assert "6 prompts traced" in said and "1 rules × 2 editors" in said
    assert f"Done. Open {folder / 'report.html'}" in said


def test_run_traces_the_training_rules_and_selects_from_them(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    maps = effects.load(folder / "effects.nc")
    assert set(maps["rule"].values) == {"square-1", "square-2"}
    profile = effects.load(folder / "profile.nc")
    assert profile.sizes["layer"] == 3
    selection = LayerSelection.load(folder / "selection.json")
    assert [len(group.layers) for group in selection.groups] == [1, 1]
    for group in selection.groups:
        # The layer with the largest effect among those that may be chosen, read off the profile by
        # hand.
        values = (
            profile["effect"]
            .sel(form=list(group.forms), component="mlp", role="lookup")
            .mean("form", skipna=True)
        )
        effect = values.mean("rule", skipna=True).values
        allowed = range(selection.first_layer, 3)
        assert group.layers == (max(allowed, key=lambda layer: effect[layer]),)


def test_run_leaves_deltas_that_edit_the_model_of_the_folder(
    finished: tuple[Path, str], inputs: Path
) -> None:
    folder, _ = finished
    model = load(str(inputs / "model"), device="cpu")
    before = {name: p.detach().clone() for name, p in model.parameters.items()}
    selection = LayerSelection.load(folder / "selection.json")
    expected = {
        "dmle": sorted({layer for g in selection.groups for layer in g.layers}),
        "memit": [0, 1, 2],
    }
    for editor, layers in expected.items():
        delta = EditDelta.load(folder / "deltas" / editor / "square-3.safetensors")
        assert delta.report.editor == editor and sorted(delta.layers.values()) == layers
        with delta.applied(model):
            changed = {
                name for name, p in model.parameters.items() if not torch.equal(p, before[name])
            }
        assert changed == set(delta.updates)
        assert all(torch.equal(p, before[name]) for name, p in model.parameters.items())


def test_run_scores_equal_the_means_of_its_raw_answers(
    finished: tuple[Path, str], inputs: Path
) -> None:
    folder, _ = finished
    scores = effects.load(folder / "scores.nc")
    answers = pd.read_csv(folder / "answers.csv", keep_default_na=False)
    edited = load_rules(inputs / "rules.json", split="test").rules[0]
    assert list(answers.columns) == list(COLUMNS) and len(answers) == 2 * len(items_of(edited))
    groups: Any = answers.groupby(["editor", "form", "metric"])
    for (editor, form, metric), rows in groups:
        for mode in ("token_accuracy", "exact"):
            for phase, when in (("pre", "before"), ("post", "after")):
                where = {"editor": editor, "rule": "square-3", "form": form, "metric": metric}
                got = scores["score"].sel(where).sel(mode=mode, phase=phase).item()
                assert got == pytest.approx(rows[f"{mode}_{when}"].astype(float).mean())
    content = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    assert content["settings"]["edit"]["steps"] == 3 and content["provenance"]
    assert [
        r["id"] for r in json.loads((folder / "rules.json").read_text(encoding="utf-8"))["rules"]
    ] == [
        "square-1",
        "square-2",
        "square-3",
    ]


def test_running_the_steps_again_redoes_no_trace_no_statistic_and_no_edit(
    finished: tuple[Path, str],
) -> None:
    folder, _ = finished
    kept = [
        p
        for sub in ("traces", "covariance", "deltas")
        for p in (folder / sub).rglob("*")
        if p.is_file()
    ]
    assert len(kept) >= 6 + 3 + 2
    before = {path: path.stat().st_mtime_ns for path in kept}
    scores = effects.load(folder / "scores.nc")
    Run(folder)(*CHAIN[: CHAIN.index("figures")])  # settings come from the folder
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    np.testing.assert_array_equal(
        effects.load(folder / "scores.nc")["score"].values, scores["score"].values
    )


def test_another_setting_of_the_edit_redoes_the_edits_alone(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished[0], folder)
    deltas = sorted((folder / "deltas").rglob("*.safetensors"))
    before = {path: path.stat().st_mtime_ns for path in [*deltas, *(folder / "traces").iterdir()]}
    Run(folder, settings={"edit.editors": "memit", "edit": {"ridge": 0.2}})("edit")
    redone = {path for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert redone == {folder / "deltas" / "memit" / "square-3.safetensors"}


def test_evaluate_without_deltas_names_the_command_to_run(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "new", config=inputs / "config.yaml", progress=None)
    with pytest.raises(RunError) as raised:
        run("evaluate")
    said = str(raised.value)
    assert "deltas is missing" in said and f"run `dmle edit --run {tmp_path / 'new'}` first" in said
    assert not (tmp_path / "new" / "scores.nc").exists()
    assert capfd.readouterr() == ("", "")


def test_an_edit_of_the_embedded_model_reverts_bit_for_bit(smol: LanguageModel) -> None:
    rule = load_rules().rules[0]
    before = {name: p.detach().clone() for name, p in smol.parameters.items()}
    ids = torch.tensor([smol.encode(rule.forms["formula"].prompt).ids])
    with torch.no_grad():
        unedited = smol.logits(ids, keep=1)
    # Statistics and search are as cheap as can be: it is about the weights.
    statistics = Covariances({5: 0.01 * torch.eye(1536)}, smol.weight_hash, 0, {})
    requests = requests_of(rule, "subject_last")[:1]
    settings = EditorSettings(steps=2, ridge=0.01)
    delta = edit_with("memit", smol, requests, [5], statistics, ("",), settings)
    assert all(torch.equal(p, before[name]) for name, p in smol.parameters.items())
    with delta.applied(smol), torch.no_grad():
        assert (smol.logits(ids, keep=1) - unedited).abs().max() > 1e-3
    assert all(torch.equal(p, before[name]) for name, p in smol.parameters.items())
    with torch.no_grad():
        assert torch.equal(smol.logits(ids, keep=1), unedited)
