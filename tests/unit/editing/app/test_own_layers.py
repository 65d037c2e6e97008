"""`edit.layers=adaptive`: each rule is edited in layers of its own, and what speaks against it."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import editing
from editing.closed_form.covariance import Covariances
from editing.config import CovarianceConfig, EditConfig
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.studies.arms import Selected, make_arms
from editing.studies.sequence import edit_many
from interp.errors import DamagedError, InputError
from interp.models.loading import LanguageModel, load
from interp.results.checksums import write_json
from interp.rules.sources import Rule
from interp.selection.layers import (
    LayerSelection,
    load_for_rules,
    load_layers,
    parse_layers,
    save_for_rules,
)

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str]]
OWN = {"square-area": "0/2", "cube-volume": "1,2/0"}
"""Layers of each rule's own; the cube has no instances."""
FILE = "selection-rules.json"
SETTINGS: dict[str, Any] = {
    "edit": {
        "editors": ["dmle"],
        "layers": "adaptive",
        "lookup": "last",
        "steps": 2,
        "contexts": 1,
        "context_tokens": 4,
        "ridge": 0.01,
        "arms": {
            "population": {"editor": "dmle", "layers": "auto"},
            **{rule: {"editor": "dmle", "layers": layers} for rule, layers in OWN.items()},
        },
    },
    "evaluate": {"answer_tokens": 2, "greedy": False},
    "compare": {"bystanders": 0, "resamples": 100},
    "sequence": {"orders": ["sequence"], "bystanders": 0, "text_tokens": 0, "sample": 1},
}


@pytest.fixture(scope="module")
def inputs(make_inputs: Callable[..., Path], rules: tuple[Rule, ...]) -> Path:
    return make_inputs([rule.model_copy(update={"split": "test"}) for rule in rules], SETTINGS)


def own_layers(layers: Mapping[str, str] = OWN, n_layers: int = 3) -> dict[str, LayerSelection]:
    return {rule: parse_layers(text, n_layers) for rule, text in layers.items()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with layers of all rules and of each, given by hand."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_for_rules(own_layers(), folder / FILE)
    parse_layers("1/1", 3).save(folder / "selection.json")
    return folder


@pytest.fixture
def start(inputs: Path, run: Path) -> tuple[str | Path, ...]:
    return "--run", run, "--config", inputs / "config.yaml"


def delta_of(run: Path, arm: str, rule: str) -> EditDelta:
    return EditDelta.load(run / "deltas" / arm / f"{rule}.safetensors")


def same(one: EditDelta, other: EditDelta) -> bool:
    """Whether two edits are equal bit for bit."""
    assert one.updates.keys() == other.updates.keys() and one.layers == other.layers
    pairs = [(one.updates[name], other.updates[name]) for name in one.updates]
    assert any(dense(update).any() for update in one.updates.values())
    return all(torch.equal(dense(a), dense(b)) for a, b in pairs)


def dense(update: LowRank | torch.Tensor) -> torch.Tensor:
    return update.dense() if isinstance(update, LowRank) else update


def test_a_rule_is_edited_in_its_own_layers_as_if_they_were_given_as_numbers(
    dmle: Command, start: tuple[str | Path, ...], run: Path
) -> None:
    code, said = dmle("edit", *start, "--editors", ",".join(["dmle", "population", *OWN]))
    assert code == 0
    assert (
        "dmle: each rule's own layers: square-area (formula+description: layers 0; instance:"
        " layers 2), cube-volume (formula+description: layers 1, 2; instance: layers 0)" in said
    )
    assert "population: formula+description: layers 1; instance: layers 1" in said
    written = {"square-area": {0, 2}, "cube-volume": {1, 2}}
    for rule in OWN:
        adaptive, numbers = delta_of(run, "dmle", rule), delta_of(run, rule, rule)
        assert set(adaptive.layers.values()) == written[rule] and same(adaptive, numbers)
        assert set(delta_of(run, "population", rule).layers.values()) == {1}
        assert adaptive.report.own == {"own_layers_of": rule} and numbers.report.own == {}
        assert adaptive.report.layers == numbers.report.layers
        assert adaptive.report.settings is not None
        assert adaptive.report.settings["layers"] == "adaptive"
    assert dmle("evaluate", "--run", run)[0] == 0


def test_a_change_of_one_rule_s_layers_edits_that_rule_again(
    dmle: Command, start: tuple[str | Path, ...], run: Path
) -> None:
    assert dmle("edit", *start)[0] == 0
    before = {rule: delta_of(run, "dmle", rule).report.fingerprint for rule in OWN}
    save_for_rules(own_layers({**OWN, "cube-volume": "2/2"}), run / FILE)
    code, said = dmle("evaluate", "--run", run)
    assert code == 2 and "cube-volume.safetensors writes" in said and "layers 2" in said
    assert dmle("edit", "--run", run)[0] == 0
    after = {rule: delta_of(run, "dmle", rule).report.fingerprint for rule in OWN}
    assert [rule for rule in OWN if before[rule] != after[rule]] == ["cube-volume"]


def test_one_rule_after_the_other_each_has_its_own_layers(
    dmle: Command, start: tuple[str | Path, ...], run: Path
) -> None:
    assert dmle("edit", *start, "--set", "edit.mode=sequential")[0] == 0
    written = [set(delta_of(run, "dmle", rule).layers.values()) for rule in OWN]
    assert written == [{0, 2}, {1, 2}]
    assert dmle("evaluate", "--run", run)[0] == 0


def test_a_file_may_be_named_in_place_of_the_run_s(
    dmle: Command, start: tuple[str | Path, ...], run: Path, tmp_path: Path
) -> None:
    (run / FILE).rename(tmp_path / "mine.json")
    assert dmle("edit", *start, "--layers", tmp_path / "mine.json")[0] == 0
    delta = delta_of(run, "dmle", "square-area")
    assert set(delta.layers.values()) == {0, 2}
    assert delta.report.own == {"own_layers_of": "square-area"}


def test_cells_of_a_comparison_are_kept_by_the_rule_s_own_layers(
    dmle: Command, start: tuple[str | Path, ...], run: Path
) -> None:
    def times() -> dict[str, int]:
        cells = (run / "cells").glob("*/*.json")
        return {f"{cell.parent.name}/{cell.stem}": cell.stat().st_mtime_ns for cell in cells}

    arms = ",".join(["population", "dmle", "square-area"])
    reference = ("--set", "compare.reference=population")
    code, said = dmle("compare", *start, "--editors", arms, *reference)
    assert code == 0 and "dmle: each rule's own layers: square-area (" in said
    rows = pd.read_csv(run / "cells.csv").set_index(["arm", "rule"])["layers"]
    assert rows["dmle", "square-area"] == (
        "formula+description: layers 0; instance: layers 2 (the rule's own)"
    )
    assert rows["population", "square-area"] == "formula+description: layers 1; instance: layers 1"
    # The rule's own layers as numbers give the same scores.
    answers = pd.read_csv(run / "answers.csv").drop(columns="seed")
    answers = answers[answers["rule"] == "square-area"]
    own, numbers = (
        answers[answers["editor"] == name].drop(columns="editor").reset_index(drop=True)
        for name in ("dmle", "square-area")
    )
    pd.testing.assert_frame_equal(own, numbers)
    before = times()
    assert dmle("compare", "--run", run)[0] == 0 and times() == before
    save_for_rules(own_layers({**OWN, "square-area": "2/2"}), run / FILE)
    assert dmle("compare", "--run", run)[0] == 0
    after = times()
    assert {name for name in after if after[name] != before[name]} == {"dmle/square-area@0"}


def test_many_edits_take_each_rule_s_own_layers_and_a_batch_is_refused(
    dmle: Command, start: tuple[str | Path, ...], run: Path
) -> None:
    code, said = dmle("sequence", *start, "--set", "sequence.orders=[sequence,batch]")
    assert code == 2 and "the order batch is one edit of all rules by dmle" in said
    assert "--set sequence.without_batch=[dmle]" in said and not (run / "sequence").exists()
    code, said = dmle("sequence", *start)
    assert code == 0 and "dmle: each rule's own layers" in said
    files = sorted((run / "sequence").rglob("sequence-*"))
    kept = {path: path.stat().st_mtime_ns for path in files}
    assert kept and dmle("sequence", "--run", run)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in files} == kept
    save_for_rules(own_layers({**OWN, "cube-volume": "2/2"}), run / FILE)
    assert dmle("sequence", "--run", run)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in files} != kept


# What is refused, before any work.


def refused(dmle: Command, run: Path, *arguments: str | Path) -> str:
    code, said = dmle(*arguments)
    assert code == 2
    assert not any((run / name).exists() for name in ("deltas", "cells", "covariance"))
    return " ".join(said.split())


@pytest.mark.parametrize("command", ["edit", "compare", "sequence"])
def test_a_rule_without_layers_of_its_own_is_named_with_the_remedy(
    command: str, dmle: Command, start: tuple[str | Path, ...], run: Path
) -> None:
    save_for_rules(own_layers({"square-area": "0/2"}), run / FILE)
    said = refused(dmle, run, command, *start)
    assert "there are no layers of its own for cube-volume" in said
    assert "`dmle select --strategy adaptive`" in said and "edit.layers=auto" in said
    (run / FILE).unlink()
    said = refused(dmle, run, command, *start)
    assert f"{FILE} is missing; run `dmle select --run {run} --strategy adaptive` first" in said


def test_only_rules_that_are_edited_need_layers_of_their_own(
    dmle: Command, start: tuple[str | Path, ...], run: Path
) -> None:
    save_for_rules(own_layers({"square-area": "0/2"}), run / FILE)
    assert dmle("edit", *start, "--set", "edit.limit=1")[0] == 0
    files = {path.name for path in (run / "covariance").rglob("layer_*")}
    assert files == {"layer_0.safetensors", "layer_2.safetensors"}


@pytest.mark.parametrize("named", ["adaptive", "mine.json"])
def test_a_batch_has_one_plan_of_layers(
    named: str, dmle: Command, start: tuple[str | Path, ...], run: Path, tmp_path: Path
) -> None:
    shutil.copy(run / FILE, tmp_path / "mine.json")
    layers = named if named == "adaptive" else tmp_path / named
    batch = ("--set", "edit.mode=batch", "--layers", layers)
    said = refused(dmle, run, "edit", *start, *batch)
    assert "edit.mode=batch is one edit of all rules, and each rule has layers of its own" in said
    assert "edit.mode=single or sequential" in said
    # Arms that know no groups do not read these layers.
    assert dmle("edit", *start, *batch, "--editors", "ft")[0] == 0


def test_layers_of_another_model_are_refused(
    dmle: Command, start: tuple[str | Path, ...], run: Path
) -> None:
    save_for_rules(own_layers(n_layers=30), run / FILE)
    assert "is of a model of 30 layers" in refused(dmle, run, "edit", *start)
    for name, each in (own := own_layers()).items():
        own[name] = each.model_copy(update={"provenance": {"weight_hash": "0123"}})
    save_for_rules(own, run / FILE)
    assert "was made for another model (0123;" in refused(dmle, run, "edit", *start)


def test_a_file_that_does_not_say_what_it_was_made_with_is_refused(
    dmle: Command, start: tuple[str | Path, ...], run: Path
) -> None:
    own = {
        rule: each.model_copy(update={"strategy": "adaptive"})
        for rule, each in own_layers().items()
    }
    save_for_rules(own, run / FILE)
    said = refused(dmle, run, "edit", *start)
    assert f"{FILE} does not say what it was made with" in said
    assert f"run `dmle select --run {run}" in said and "--strategy adaptive`" in said
    # Its path takes it as it is.
    assert dmle("edit", *start, "--layers", run / FILE)[0] == 0


# In Python.


QUICK = {"steps": 2, "contexts": 0, "lookup": "last"}


def test_the_rule_s_id_decides_in_python(inputs: Path, rules: tuple[Rule, ...], run: Path) -> None:
    model = load(str(inputs / "model"), device="cpu")
    square, cube = rules
    statistics = editing.Statistics(model, small(inputs), run / "statistics")

    def edited(rule: Rule, layers: Any) -> EditDelta:
        made = editing.edit(model, rule, editing.DMLE(layers, **QUICK), statistics=statistics)
        assert isinstance(made, EditDelta)
        return made

    for rule in (square, cube):
        numbers = edited(rule, OWN[rule.id])
        assert same(edited(rule, own_layers()), numbers)
        assert same(edited(rule, str(run / FILE)), numbers)
    _refused_in_python(model, rules, run)


def small(inputs: Path) -> CovarianceConfig:
    return CovarianceConfig(corpus=str(inputs / "corpus.txt"), tokens=600, shrinkage=0.05)


def _refused_in_python(model: LanguageModel, rules: tuple[Rule, ...], run: Path) -> None:
    square, cube = rules
    own = editing.DMLE(own_layers(), **QUICK)
    with pytest.raises(InputError, match=r"these requests are of 2 rules, and each rule has"):
        editing.edit(model, [square, cube], own)
    with pytest.raises(InputError, match=r"no layers of its own for other"):
        editing.edit(model, square.model_copy(update={"id": "other"}), own)
    with pytest.raises(InputError, match=r"layers: adaptive needs layers selected for each rule"):
        editing.edit(model, square, editing.DMLE("adaptive", **QUICK))
    deep = editing.DMLE(own_layers({"square-area": "0/7"}, 8), **QUICK)
    with pytest.raises(InputError, match=r"edit.layers has layers \[7\]"):
        editing.edit(model, square, deep)
    with pytest.raises(InputError, match=r"memit knows no groups of forms"):
        editing.MEMIT(own_layers())


def test_an_arm_of_a_few_rules_needs_layers_and_statistics_of_these_alone(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...], statistics: Covariances, tmp_path: Path
) -> None:
    asked: list[Sequence[int]] = []

    def measured(layers: Sequence[int]) -> Covariances:
        asked.append(layers)
        return statistics

    config = EditConfig.model_validate({"editors": ["dmle"], "layers": "adaptive", "contexts": 0})
    of_rules = own_layers({"square-area": "0/2"})
    options: Any = {"statistics": measured, "selected": Selected(of_rules=of_rules)}
    arms = make_arms(tiny_llama, config, rules, few=["dmle"], few_rules=1, **options)
    assert asked == [[0, 2]] and arms[0].rules == {"square-area"}
    with pytest.raises(InputError, match="no layers of its own for cube-volume"):
        make_arms(tiny_llama, config, rules, **options)
    with pytest.raises(InputError, match="the order batch is one edit of all rules by dmle"):
        edit_many(tiny_llama, rules[:1], arms, tmp_path)


def test_a_file_of_layers_is_of_either_kind(run: Path, tmp_path: Path) -> None:
    assert load_layers(run / FILE) == load_for_rules(run / FILE) == own_layers()
    assert load_layers(run / "selection.json") == LayerSelection.load(run / "selection.json")
    write_json(tmp_path / "other.json", {"schema": "dmle.selections/1"})
    with pytest.raises(DamagedError, match="it has no selections by rule"):
        load_layers(tmp_path / "other.json")
