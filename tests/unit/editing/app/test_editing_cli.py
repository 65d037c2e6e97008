"""`dmle edit` and `dmle evaluate`: every editor in one command, nothing done twice, and the
modes of editing."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tqdm import tqdm

from editing.closed_form.covariance import measure
from editing.config import CovarianceConfig, EditConfig
from editing.editors.grace import Codebook
from editing.editors.ice import InContext
from editing.editors.registry import load_edit
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.requests import requests_of
from editing.names import editor_names
from interp.app import commands as cli
from interp.models.loading import LanguageModel, load
from interp.results import effects
from interp.rules.sources import Rule, load_rules
from interp.selection.layers import parse_layers
from tests.unit.editing_making import MOVES, READS, edit_with

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str]]
ARMS = {
    "early": {"editor": "memit", "block": "0"},
    "joint": {"editor": "dmle", "protection": "joint"},
}
EDIT: dict[str, Any] = {
    "layers": "0/1,2",
    "lookup": "last",  # what the last of three blocks gives at an earlier token, nothing reads
    "steps": 2,
    "contexts": 1,
    "context_tokens": 4,
    "null_threshold": 0.5,
    "null_relative": True,
    "ridge": 0.01,
    "ft": {"steps": 2, "learning_rate": 1e-2},
    "lora": {"steps": 2, "rank": 2},
    "grace": {"steps": 2},
    "in_context": {"demonstrations": 1},
    # The published learning rate is for models of billions of weights.
    "arms": {**ARMS, "ultraedit": {"options": {"learning_rate": 1e-3}}},
}


@pytest.fixture(scope="module")
def inputs(make_inputs: Callable[..., Path], rules: tuple[Rule, ...]) -> Path:
    """A model with room for demonstrations, and two rules that are edited."""
    tested = [rule.model_copy(update={"split": "test"}) for rule in rules]
    settings = {"edit": EDIT, "evaluate": {"answer_tokens": 2}}
    return make_inputs(tested, settings, max_position_embeddings=2048)


@pytest.fixture
def start(inputs: Path, tmp_path: Path) -> tuple[str | Path, ...]:
    """Options of a new run."""
    return "--run", tmp_path / "run", "--config", inputs / "config.yaml"


@pytest.fixture(scope="module")
def model(inputs: Path) -> LanguageModel:
    return load(str(inputs / "model"), device="cpu")


def times(run: Path, of: str = "deltas") -> dict[str, int]:
    return {
        str(p.relative_to(run)): p.stat().st_mtime_ns for p in (run / of).rglob("*") if p.is_file()
    }


def redone(run: Path, before: Mapping[str, int]) -> set[str]:
    return {name for name, time in times(run).items() if before.get(name) != time}


def delta_of(run: Path, editor: str, rule: str) -> EditDelta:
    return EditDelta.load(run / "deltas" / editor / f"{rule}.safetensors")


# All editors.


@pytest.fixture(scope="module")
def finished(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every editor and two arms, edited and evaluated, each by one command."""
    run = tmp_path_factory.mktemp("runs") / "all"
    names = ",".join([*editor_names(), *ARMS])
    cli.main(
        ["edit", "--run", str(run), "--config", str(inputs / "config.yaml"), "--editors", names]
    )
    cli.main(["evaluate", "--run", str(run)])
    return run


def test_one_command_runs_every_editor_and_arm_and_one_scores_them_all(
    finished: Path, rules: tuple[Rule, ...]
) -> None:
    names = [*editor_names(), *ARMS]
    files = {f"deltas/{name}/{rule.id}.safetensors" for name in names for rule in rules}
    assert set(times(finished)) == files
    kinds = {"grace": Codebook, "ice": InContext, "ike": InContext}
    for name in names:
        found = load_edit(finished / "deltas" / name / "square-area.safetensors")
        assert type(found) is kinds.get(name, EditDelta)
        assert found.report.editor == ARMS.get(name, {"editor": name})["editor"]
        assert [r["form"] for r in found.report.requests] == [
            "formula",
            "description",
            "instance",
        ]
    scores = effects.load(finished / "scores.nc")["score"]
    assert scores["editor"].values.tolist() == names
    assert scores["rule"].values.tolist() == [rule.id for rule in rules]
    log_prob = scores.sel(metric="reliability", mode="log_prob", rule="square-area")
    assert np.isfinite(log_prob.values).all()
    # All start from the same model, and every one that edits leaves another.
    moving = [name for name in names if name in {*MOVES, *READS, *ARMS}]
    pre, post = log_prob.sel(phase="pre").values, log_prob.sel(phase="post", editor=moving).values
    assert (pre == pre[0]).all() and len({tuple(row) for row in post}) == len(moving)
    assert (np.abs(post - pre[0]).max(axis=1) > 1e-4).all()
    answers = pd.read_csv(finished / "answers.csv", keep_default_na=False)
    assert set(answers["editor"]) == set(names)


def test_every_delta_writes_where_its_settings_say(finished: Path) -> None:
    layers = {
        **{
            "dmle": {0, 1, 2},
            "joint": {0, 1, 2},
            "early": {0},
            "memit": {0, 1, 2},
            "alphaedit": {0, 1, 2},
        },
        **{"emmet": {0, 1, 2}, "rome": {0}, "ft": {2}, "lora": {0, 1, 2}},
    }
    for name, expected in layers.items():
        assert set(delta_of(finished, name, "square-area").layers.values()) == expected
    for name in layers:
        found = delta_of(finished, name, "cube-volume")
        assert set(found.report.cast_loss or ()) == set(found.updates)


def test_running_again_redoes_nothing(finished: Path, dmle: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = times(run) | times(run, "covariance")
    code, said = dmle("edit", "--run", run)
    assert code == 0 and times(run) | times(run, "covariance") == before
    n_editors = len(editor_names()) + len(ARMS)
    assert (
        f"2 rules × {n_editors} editors (single)" in said and "ice: in context, no layers" in said
    )
    # Another order and fewer of them are the same edits.
    assert dmle("edit", "--run", run, "--editors", "ft,lora,early,ike,rome")[0] == 0
    assert times(run) | times(run, "covariance") == before


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (
            (
                "edit.arms={early: {editor: memit, block: '1'}, joint: {editor: dmle, protection:"
                " joint}}"
            ),
            ["early"],
        ),
        (
            (
                "edit.arms={early: {editor: memit, block: '0'}, joint: {editor: dmle, protection:"
                " protected}}"
            ),
            ["joint"],
        ),
        (
            (
                "edit.arms={early: {editor: memit, block: '0', ridge: 0.5}, joint: {editor: dmle,"
                " protection: joint}}"
            ),
            ["early"],
        ),
        ("edit.wordings=1", ["dmle", "memit", "ft", "grace", "early", "joint"]),
        ("edit.end_token=true", ["dmle", "memit", "ft", "grace", "early", "joint"]),
        ("edit.layers=0/1-2", []),  # the same layers, written otherwise
        ("edit.layers=0/2", ["dmle", "joint"]),
    ],
)
def test_a_change_redoes_the_arms_that_it_concerns(
    change: str, names: list[str], finished: Path, dmle: Command, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = times(run)
    code, said = dmle(
        "edit", "--run", run, "--editors", "dmle,memit,ft,grace,early,joint", "--set", change
    )
    assert code == 0, said
    expected = {
        f"deltas/{name}/{rule}.safetensors"
        for name in names
        for rule in ("square-area", "cube-volume")
    }
    assert redone(run, before) == expected


def test_other_wordings_and_retained_prompts_are_other_edits(
    dmle: Command, start: tuple[str | Path, ...], tmp_path: Path
) -> None:
    run, kept = tmp_path / "run", ("--set", "edit.retained=2")
    assert dmle("edit", *start, "--editors", "ft,grace")[0] == 0
    code, said = dmle("evaluate", "--run", run, "--set", "edit.wordings=2")
    assert code == 2 and "edit.wordings was 0 when" in said and "it is 2 now" in said
    before = times(run)
    # GRACE cannot, and nothing is edited for the others before that is said.
    code, said = dmle("edit", "--run", run, *kept)
    assert code == 2 and "edit.retained: grace cannot honour it" in said
    assert redone(run, before) == set()
    code, said = dmle("edit", "--run", run, "--editors", "ft", *kept)
    assert code == 0, said
    assert redone(run, before) == {
        f"deltas/ft/{rule}.safetensors" for rule in ("square-area", "cube-volume")
    }
    report = delta_of(run, "ft", "square-area").report
    assert report.made is not None and report.settings is not None
    assert report.made["retained"] == list(report.retained) and len(report.retained) == 2
    assert report.settings["retained"] == 2
    before = times(run)
    assert dmle("edit", "--run", run, "--editors", "ft", *kept)[0] == 0
    assert redone(run, before) == set()
    code, said = dmle("evaluate", "--run", run, "--set", "edit.editors=[ft]", *kept)
    assert code == 0, said


def test_editors_beside_it_and_their_blocks_do_not_concern_an_edit(
    dmle: Command, start: tuple[str | Path, ...], tmp_path: Path
) -> None:
    # Alone, with other statistics at hand, and after an editor that needs contexts.
    lines = (["ft"], ["ft", "rome"], ["rome", "ft"], ["memit", "rome", "ft", "grace"])
    before: dict[str, int] = {}
    for editors in lines:
        assert dmle("edit", *start, "--limit", "1", "--editors", ",".join(editors))[0] == 0
        now = times(tmp_path / "run")
        assert all(now[name] == time for name, time in before.items())
        before = now
    assert set(before) == {f"deltas/{name}/square-area.safetensors" for name in lines[-1]}


def test_another_corpus_redoes_the_closed_forms_alone(
    dmle: Command, start: tuple[str | Path, ...], tmp_path: Path
) -> None:
    options = (*start, "--limit", "1", "--editors", "rome,ft")
    assert dmle("edit", *options)[0] == 0
    before = times(tmp_path / "run")
    assert dmle("edit", *options, "--set", "covariance.tokens=550")[0] == 0
    assert redone(tmp_path / "run", before) == {"deltas/rome/square-area.safetensors"}


def test_an_interrupted_edit_goes_on_where_it_was(
    dmle: Command, start: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, options = tmp_path / "run", (*start, "--editors", "rome,memit")
    count, update = [0], tqdm.update

    def stops(bar: Any, n: int = 1) -> Any:
        count[0] += bar.desc == "edit"
        if count[0] == 3:  # the first rule of the second editor is written by then
            raise KeyboardInterrupt
        return update(bar, n)

    with monkeypatch.context() as patched:
        patched.setattr(tqdm, "update", stops)
        code, said = dmle("edit", *options)
    assert code == 130 and "stopped in edit; run the same command again to continue" in said
    before = times(run)
    assert set(before) == {
        *(f"deltas/rome/{rule}.safetensors" for rule in ("square-area", "cube-volume")),
        "deltas/memit/square-area.safetensors",
    }
    code, said = dmle("evaluate", "--run", run)
    assert (
        code == 2
        and f"memit/cube-volume.safetensors is missing; run `dmle edit --run {run}` first" in said
    )
    assert dmle("edit", *options)[0] == 0
    assert redone(run, before) == {"deltas/memit/cube-volume.safetensors"}
    assert dmle("evaluate", "--run", run)[0] == 0


# Modes.


def reliability(run: Path, editor: str) -> dict[tuple[str, str], float]:
    """(rule, form) → log-probability of the new answer after the edit."""
    scores = effects.load(run / "scores.nc")["score"].sel(
        editor=editor, metric="reliability", mode="log_prob", phase="post"
    )
    return {
        (rule, form): value
        for rule in scores["rule"].values
        for form in scores["form"].values
        if np.isfinite(value := scores.sel(rule=rule, form=form).item())
    }


@pytest.fixture
def by_hand(
    make_hf: Callable[..., Any], tokenizer: Any, rules: tuple[Rule, ...]
) -> Callable[..., dict[tuple[str, str], float]]:
    """The same on a plain model that deltas are written into, one unpadded run per prompt."""

    def score(*deltas: EditDelta) -> dict[tuple[str, str], float]:
        hf, values = make_hf("llama", max_position_embeddings=2048), {}
        with torch.no_grad():
            for delta in deltas:
                for name, update in delta.updates.items():
                    hf.get_parameter(name).add_(dense(update))
            for rule in rules:
                for form, prompt in rule.forms.items():
                    ids = tokenizer(prompt.prompt)["input_ids"]
                    target = tokenizer(" " + prompt.target_new, add_special_tokens=False)
                    answer = target["input_ids"]
                    logits = hf(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
                    each = logits.log_softmax(-1)[range(len(answer)), answer]
                    values[rule.id, form] = each.mean().item()
        return values

    return score


def test_a_sequence_is_evaluated_with_all_its_deltas_in_order(
    dmle: Command, start: tuple[str | Path, ...], tmp_path: Path, by_hand: Any, rules: Any
) -> None:
    run, options = tmp_path / "run", (*start, "--editors", "memit,ft,grace,ice")
    assert dmle("edit", *options)[0] == 0
    alone = {name: delta_of(run, name, "cube-volume") for name in ("memit", "ft")}
    before = times(run)
    code, said = dmle("edit", *options, "--set", "edit.mode=sequential")
    assert code == 0 and "2 rules × 4 editors (sequential)" in said
    # The first edit of a sequence is the edit alone; editors that take requests one by one make one
    # edit of all.
    assert redone(run, before) == {
        "deltas/memit/cube-volume.safetensors",
        "deltas/ft/cube-volume.safetensors",
        "deltas/grace/_all.safetensors",
        "deltas/ice/_all.safetensors",
    }
    assert dmle("evaluate", "--run", run)[0] == 0
    for name in ("memit", "ft"):
        later = delta_of(run, name, "cube-volume")
        parameter, *_ = later.updates
        changed, first = dense(later.updates[parameter]), dense(alone[name].updates[parameter])
        assert (changed - first).norm() > 1e-3 * first.norm()
        deltas = [delta_of(run, name, rule.id) for rule in rules]
        assert reliability(run, name) == pytest.approx(by_hand(*deltas), abs=1e-4)
    before = times(run)
    assert dmle("edit", "--run", run)[0] == 0 and redone(run, before) == set()
    # The second delta is made anew on the same model, with the first one in place.
    (run / "deltas" / "memit" / "cube-volume.safetensors").unlink()
    kept = delta_of(run, "memit", "square-area")
    assert dmle("edit", "--run", run)[0] == 0
    assert redone(run, before) == {"deltas/memit/cube-volume.safetensors"}
    assert (
        reliability(run, "memit")
        and kept.report.fingerprint == delta_of(run, "memit", "square-area").report.fingerprint
    )


def test_edits_of_another_mode_or_of_other_rules_are_not_evaluated(
    dmle: Command, start: tuple[str | Path, ...], tmp_path: Path
) -> None:
    run, sequential, batch = tmp_path / "run", "edit.mode=sequential", "edit.mode=batch"
    assert dmle("edit", *start, "--editors", "ft")[0] == 0
    code, said = dmle("evaluate", "--run", run, "--set", sequential)
    assert (
        code == 2
        and "edits of ft were not made one after the other with edit.mode=sequential" in said
    )
    assert dmle("edit", "--run", run, "--set", sequential)[0] == 0
    code, said = dmle("evaluate", "--run", run, "--set", "edit.mode=single")
    assert (
        code == 2 and "edits of ft were not made one after the other with edit.mode=single" in said
    )
    assert dmle("edit", "--run", run, "--set", batch, "--set", "edit.editors=[ft]")[0] == 0
    (run / "deltas" / "ft" / "_all.safetensors").rename(
        run / "deltas" / "ft" / "cube-volume.safetensors"
    )
    code, said = dmle("evaluate", "--run", run, "--set", "rules.ids=[cube-volume]")
    assert code == 2 and "the edit of ft is of other rules than those to evaluate" in said
    assert not (run / "scores.nc").exists()


def dense(update: Any) -> torch.Tensor:
    return update.dense() if isinstance(update, LowRank) else update


def test_alphaedit_in_a_sequence_keeps_what_earlier_rules_wrote(
    dmle: Command,
    start: tuple[str | Path, ...],
    tmp_path: Path,
    inputs: Path,
    model: LanguageModel,
) -> None:
    run = tmp_path / "run"
    options = (
        *start,
        "--editors",
        "alphaedit",
        "--set",
        "edit.mode=sequential",
        "--set",
        "edit.block='1'",
    )
    assert dmle("edit", *options)[0] == 0
    first, second = (delta_of(run, "alphaedit", rule) for rule in ("square-area", "cube-volume"))
    settings = EditConfig(**(EDIT | {"editors": ("alphaedit",), "block": "1"})).settings_of(
        "alphaedit"
    )
    config = CovarianceConfig(corpus=str(inputs / "corpus.txt"), tokens=600, shrinkage=0.05)
    statistics, contexts = measure(model, [1], config, run / "covariance"), second.report.contexts
    rules = load_rules(inputs / "rules.json").rules
    earlier, requests = (requests_of(rule, "last") for rule in rules)
    with first.applied(model):
        with_them, without = (
            edit_with(
                "alphaedit", model, requests, [1], statistics, contexts, settings, earlier=others
            )
            for others in (earlier, ())
        )
    (name,) = second.updates
    expected, other = with_them.updates[name].dense(), without.updates[name].dense()
    torch.testing.assert_close(dense(second.updates[name]), expected, rtol=1e-4, atol=1e-5)
    assert (expected - other).norm() > 1e-3 * other.norm()


def test_a_batch_is_one_edit_of_all_rules_that_every_rule_is_evaluated_under(
    dmle: Command, start: tuple[str | Path, ...], tmp_path: Path, by_hand: Any, rules: Any
) -> None:
    run = tmp_path / "run"
    code, said = dmle("edit", *start, "--editors", "memit,dmle,ike", "--set", "edit.mode=batch")
    assert code == 0 and "2 rules × 3 editors (batch)" in said
    assert set(times(run)) == {
        f"deltas/{name}/_all.safetensors" for name in ("memit", "dmle", "ike")
    }
    assert dmle("evaluate", "--run", run)[0] == 0
    delta = delta_of(run, "memit", "_all")
    assert [(r["rule"], r["form"]) for r in delta.report.requests] == [
        (rule.id, form) for rule in rules for form in rule.forms
    ]
    assert reliability(run, "memit") == pytest.approx(by_hand(delta), abs=1e-4)
    before = times(run)
    assert dmle("edit", "--run", run)[0] == 0 and redone(run, before) == set()


# Mistakes, and what is said.


def test_automatic_layers_without_a_selection_name_the_command_that_makes_one(
    dmle: Command, start: tuple[str | Path, ...], tmp_path: Path
) -> None:
    code, said = dmle("edit", *start, "--editors", "memit,dmle", "--layers", "auto")
    assert (
        code == 2
        and f"selection.json is missing; run `dmle select --run {tmp_path / 'run'}` first" in said
    )
    assert (
        not (tmp_path / "run" / "deltas").exists()
        and not (tmp_path / "run" / "covariance").exists()
    )
    # Without DMLE nothing is missing, and with a selection DMLE takes it.
    assert dmle("edit", *start, "--editors", "ft", "--layers", "auto", "--limit", "1")[0] == 0
    parse_layers("2/0", 3).save(tmp_path / "run" / "selection.json")
    code, said = dmle("edit", *start, "--editors", "dmle", "--layers", "auto", "--limit", "1")
    assert code == 0 and "dmle: formula+description: layers 2; instance: layers 0" in said
    assert delta_of(tmp_path / "run", "dmle", "square-area").report.layers == {
        "formula+description": [2],
        "instance": [0],
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--editors", "memit,grce"], "no editor or arm 'grce': did you mean 'grace'?"),
        (
            ["--set", "edit.arms={odd: {editor: ft, blok: 1}}", "--editors", "odd"],
            "did you mean 'edit.arms.odd.block'?",
        ),
        (["--set", "edit.preset=llama-4"], "no preset for 'llama-4'"),
        (
            ["--editors", "rome,ft", "--set", "edit.block='7'"],
            "layers '7': ascending layers within 0 to 2 are needed",
        ),
        (
            ["--editors", "ft,rome", "--set", "edit.block=0-1"],
            "rome writes one block, edit.block gives [0, 1]",
        ),
        (
            ["--editors", "ft,dmle", "--layers", "0/3"],
            "layers '3': ascending layers within 0 to 2 are needed",
        ),
        (
            ["--editors", "rome", "--set", "covariance.tokens=100000"],
            "covariance.tokens asks for 100000",
        ),
    ],
)
def test_a_mistake_is_told_before_any_edit(
    flags: list[str], message: str, dmle: Command, start: tuple[str | Path, ...], tmp_path: Path
) -> None:
    code, said = dmle("edit", *start, *flags)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "run" / "deltas").exists()


def test_a_wrong_block_of_the_last_arm_does_not_wait_for_the_others(
    dmle: Command, start: tuple[str | Path, ...], tmp_path: Path
) -> None:
    arms = "edit.arms={deep: {editor: ft, block: '30'}}"
    code, said = dmle("edit", *start, "--editors", "rome,deep", "--set", arms)
    assert code == 2 and "layers '30': ascending layers within 0 to 2 are needed" in said
    assert (
        not (tmp_path / "run" / "deltas").exists()
        and not (tmp_path / "run" / "covariance").exists()
    )


def test_the_report_says_what_collides_and_what_the_number_format_loses(
    dmle: Command, start: tuple[str | Path, ...], tmp_path: Path
) -> None:
    small = ["--set", "model.dtype=bfloat16", "--set", "edit.ft={steps: 1, learning_rate: 1.0e-7}"]
    small += ["--set", "edit.lookup=subject_last", "--set", "edit.block='1'"]
    code, said = dmle("edit", *start, "--editors", "memit,ft", "--limit", "1", *small)
    assert code == 0
    assert "memit: square-area formula: the edited model does not give the new answer." in said
    assert "at the same place as square-area description; try edit.lookup=rule_word_last" in said
    lost = delta_of(tmp_path / "run", "ft", "square-area").report.cast_loss
    assert lost is not None
    (name,) = lost
    assert lost[name] > 0.9
    assert (
        f"ft: {name}: {lost[name]:.0%} of the update is lost in the model's number format" in said
    )
    # Said again when nothing is redone.
    assert f"ft: {name}" in dmle("edit", *start, "--editors", "memit,ft", "--limit", "1", *small)[1]
