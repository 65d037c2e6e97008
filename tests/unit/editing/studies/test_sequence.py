"""`dmle sequence`: many edits in one model, against edits applied one by one and plain runs."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from editing.closed_form.workbench import Workbench
from editing.config import CovarianceConfig, EditConfig, EvaluateConfig
from editing.editors.registry import edit
from editing.edits.delta import EditDelta, stack
from editing.edits.requests import requests_of
from editing.evaluation.evaluate import evaluate_edit, unedited
from editing.studies import sequence as studies
from editing.studies.arms import Arm, make_arms
from editing.studies.config import SequenceConfig
from editing.studies.sequence import (
    ManyEdits,
    drawn,
    edit_many,
    read_checkpoint,
    write_many,
)
from editing.studies.sequence_scores import held_out
from editing.studies.sequence_states import read_progress
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.rules.sources import Rule
from tests.unit.editing.conftest import CONTEXTS, LINES

pytestmark = pytest.mark.slow

ARMS = {
    "ft": {"editor": "ft", "block": "1", "ft": {"steps": 4, "learning_rate": 3e-3}},
    "alphaedit": {
        "editor": "alphaedit",
        "block": "0-1",
        "lookup": "last",
        "steps": 3,
        "null_relative": True,
        "null_threshold": 0.5,
    },
}
TEXTS = [
    "The perimeter of a rectangle is twice the sum of the length and the width.",
    "A circle has a radius, a square has a side; both have an area.",
    "What is the volume of a cube?",
]


@pytest.fixture(scope="module")
def many(rules: tuple[Rule, ...]) -> list[Rule]:
    """Five rules, some of which ask the same of other ids."""
    return [rules[i % len(rules)].model_copy(update={"id": f"rule-{i}"}) for i in range(5)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join([*LINES, *TEXTS]), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def config(corpus: str) -> SequenceConfig:
    return SequenceConfig(checkpoints=(1, 3), sample=2, bystanders=0, corpus=corpus, text_tokens=30)


@pytest.fixture(scope="module")
def arms(
    tiny_llama: LanguageModel, make_bench: Callable[..., Workbench], many: list[Rule]
) -> list[Arm]:
    edits = EditConfig.model_validate({"editors": list(ARMS), "arms": ARMS})
    bench = make_bench(tiny_llama)
    statistics: Any = bench.statistics
    made = make_arms(tiny_llama, edits, many, statistics=lambda layers: statistics)
    return [replace(arm, bench=replace(arm.bench, given_contexts=CONTEXTS)) for arm in made]


@pytest.fixture(autouse=True)
def unedited_afterwards(tiny_llama: LanguageModel) -> Iterator[None]:
    before = {name: value.detach().clone() for name, value in tiny_llama.parameters.items()}
    yield
    assert all(tiny_llama.parameters[name].equal(value) for name, value in before.items())


@pytest.fixture(scope="module")
def run(
    tiny_llama: LanguageModel,
    many: list[Rule],
    arms: list[Arm],
    config: SequenceConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ManyEdits, Path, list[int]]:
    folder, steps = tmp_path_factory.mktemp("study"), []
    study = edit_many(tiny_llama, many, arms, folder, config=config, advance=steps.append)
    return study, folder, steps


def one_by_one(model: LanguageModel, arm: Arm, ordered: list[Rule]) -> list[EditDelta]:
    """Each edit on the model as the earlier deltas leave it, from the unedited model."""
    deltas: list[EditDelta] = []
    for place, rule in enumerate(ordered):
        earlier = [r for old in ordered[:place] for r in requests_of(old, arm.settings.lookup)]
        requests = requests_of(rule, arm.settings.lookup)
        with stack(deltas, model):
            made = edit(arm.bench.asked(requests, arm.settings, earlier=earlier))
        assert isinstance(made, EditDelta)
        deltas.append(made)
    return deltas


@pytest.mark.parametrize("name", ARMS)
def test_weights_and_scores_are_those_of_deltas_applied_one_by_one(
    name: str,
    run: tuple[ManyEdits, Path, list[int]],
    tiny_llama: LanguageModel,
    make_hf: Callable[..., Any],
    many: list[Rule],
    arms: list[Arm],
    config: SequenceConfig,
) -> None:
    study, folder, _ = run
    (arm,) = (each for each in arms if each.name == name)
    ordered, _ = drawn(many, config.seed)
    deltas = one_by_one(tiny_llama, arm, ordered)
    texts = held_out(tiny_llama, config, None)
    state = studies.state_path(folder / name, "sequence", 3)
    progress = read_progress(state)
    assert progress is not None and progress.done == 3 and not progress.failed
    tensors, _ = studies_tensors(state)
    with stack(deltas[:3], tiny_llama):
        assert tensors and all(tiny_llama.parameters[k].equal(v) for k, v in tensors.items())
        after = plain_perplexity(tiny_llama, make_hf("llama"), texts)
    ratio = after / plain_perplexity(tiny_llama, make_hf("llama"), texts)
    at = {"arm": name, "order": "sequence", "edits": 3}
    assert float(study.data["effect"].sel({**at, "measure": "perplexity_ratio"})) == pytest.approx(
        ratio, rel=1e-4
    )
    assert_scores(study, tiny_llama, ordered, deltas, at, config)


def studies_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from interp.results.tensor_files import read_tensors

    return read_tensors(path, "state")


def plain_perplexity(model: LanguageModel, hf: Any, texts: Sequence[str]) -> float:
    """Of texts, by Hugging Face's own model; the first word predicts only."""
    nll: list[float] = []
    hf.load_state_dict(dict(model.parameters), strict=False)
    for text in texts:
        first = len(model.tokenizer(text.split()[0])["input_ids"])
        ids = torch.tensor(model.tokenizer(text)["input_ids"])
        with torch.no_grad():
            log_probs = hf(ids[None]).logits[0].double().log_softmax(-1)
        nll += [-log_probs[i - 1, ids[i]].item() for i in range(first, len(ids))]
    return math.exp(math.fsum(nll) / len(nll))


def assert_scores(
    study: ManyEdits,
    model: LanguageModel,
    ordered: list[Rule],
    deltas: list[EditDelta],
    at: dict[str, Any],
    config: SequenceConfig,
) -> None:
    """The same scores by `evaluate_edit` of one delta that does what the first three do."""
    from editing.edits.delta import merge
    from editing.edits.report import EditReport

    evaluate = EvaluateConfig(greedy=False)
    merged = merge(deltas[:3], EditReport())
    scores = study.data["score"].sel(at)
    sampled = 0
    for place, rule in enumerate(ordered):
        own = scores.sel(rule=rule.id)
        if place >= 3:
            assert own.isnull().all()
            continue
        rows = evaluate_edit(model, "", rule, merged, unedited(model, rule, evaluate), evaluate)
        asked = [str(m) for m in own["metric"].values if own.sel(metric=m).notnull().any()]
        assert "reliability" in asked
        sampled += len(asked) > 1
        for metric in asked:
            for mode in ("token_accuracy", "exact"):
                means = []
                for form in rule.forms:
                    values = [
                        row[f"{mode}_after"]
                        for row in rows
                        if (row["metric"], row["form"]) == (metric, form)
                    ]
                    means += [np.mean(values)] if values else []
                assert float(own.sel(metric=metric, mode=mode)) == pytest.approx(np.mean(means))
    assert sampled == config.sample


def test_a_batch_is_scored_once_with_all_rules(run: tuple[ManyEdits, Path, list[int]]) -> None:
    study, _, steps = run
    batch = study.table.query("order == 'batch'")
    assert list(batch["edits"]) == [5, 5]
    assert list(study.table.query("order == 'sequence' and arm == 'ft'")["edits"]) == [1, 3, 5]
    assert sum(steps) == 2 * 2 * 5


def test_a_batch_of_one_is_a_sequence_of_one(
    tiny_llama: LanguageModel,
    many: list[Rule],
    arms: list[Arm],
    config: SequenceConfig,
    tmp_path: Path,
) -> None:
    data = edit_many(tiny_llama, many[:1], arms, tmp_path, config=config).data
    assert list(data["edits"].values) == [1]
    for name in ("score", "effect", "failed"):
        one, other = (data[name].sel(order=order).values for order in ("sequence", "batch"))
        np.testing.assert_array_equal(one, other)
    assert float(data["effect"].sel(measure="perplexity_ratio").max()) != 1


@pytest.mark.parametrize("stop", range(1, 12, 3))
def test_a_stopped_study_goes_on_to_the_same_file(
    stop: int,
    run: tuple[ManyEdits, Path, list[int]],
    tiny_llama: LanguageModel,
    many: list[Rule],
    arms: list[Arm],
    config: SequenceConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, whole, _ = run
    made: list[str] = []

    def counting(bench: Workbench) -> Any:
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append(bench.settings.editor)
        return edit(bench)

    monkeypatch.setattr(studies, "edit", counting)
    with pytest.raises(KeyboardInterrupt):
        edit_many(tiny_llama, many, arms, tmp_path, config=config)
    stop = 10**6
    again = edit_many(tiny_llama, many, arms, tmp_path, config=config)
    assert len(made) == 2 * (5 + 1)  # no rule is edited twice
    assert again.data.identical(study.data)
    write_many(study, whole.parent)
    first = (whole.parent / "sequence.nc").read_bytes()
    write_many(again, whole.parent)
    assert (whole.parent / "sequence.nc").read_bytes() == first
    names = [
        sorted(str(p.relative_to(f)) for f in [root] for p in f.rglob("*.*"))
        for root in (tmp_path, whole)
    ]
    assert names[0] == names[1]


def test_a_damaged_checkpoint_is_scored_again_without_an_edit(
    run: tuple[ManyEdits, Path, list[int]],
    tiny_llama: LanguageModel,
    many: list[Rule],
    arms: list[Arm],
    config: SequenceConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, folder, _ = run
    path = studies.checkpoint_path(folder / "ft", "sequence", 3)
    whole = read_checkpoint(path)
    path.write_text(path.read_text()[:200])

    def never(bench: Workbench) -> Any:
        raise AssertionError("nothing is to be edited")

    monkeypatch.setattr(studies, "edit", never)
    again = edit_many(tiny_llama, many, arms, folder, config=config)
    assert again.data.identical(study.data)
    assert read_checkpoint(path) == whole
    # More of the same sample is scored from the same weights.
    larger = config.model_copy(update={"sample": 3})
    more = edit_many(tiny_llama, many, arms, folder, config=larger).data
    assert int(more["score"].notnull().sum()) > int(study.data["score"].notnull().sum())
    edit_many(tiny_llama, many, arms, folder, config=config)


def test_an_edit_that_diverges_is_counted_and_other_arms_go_on(
    tiny_llama: LanguageModel,
    many: list[Rule],
    arms: list[Arm],
    config: SequenceConfig,
    tmp_path: Path,
) -> None:
    broken = {"steps": 9, "learning_rate": 1e37}
    settings = EditConfig.model_validate({"arms": {"x": {**ARMS["ft"], "ft": broken}}})
    wild = replace(arms[0], name="wild", settings=settings.settings_of("x"))
    study = edit_many(tiny_llama, many[:3], [wild, arms[0]], tmp_path, config=config)
    data = study.data
    assert data["failed"].sel(arm="wild", order="sequence").values.tolist() == [1, 3]
    assert data["failed"].sel(arm="ft").values.max() == 0
    assert data["score"].sel(arm="wild").isnull().all()
    assert data["effect"].sel(arm="wild").isnull().all()
    assert "diverged" in study.errors["wild, sequence"]
    assert json.loads(data.attrs["errors"]) == study.errors
    assert data["score"].sel(arm="ft", order="batch", edits=3, metric="reliability").notnull().all()


def test_bystanders_are_rules_that_are_not_edited(
    tiny_llama: LanguageModel, many: list[Rule], arms: list[Arm], config: SequenceConfig,
    tmp_path: Path,
) -> None:  # fmt: skip
    asked = config.model_copy(update={"bystanders": 1, "text_tokens": 0, "checkpoints": (5,)})
    data = edit_many(tiny_llama, many[:2], arms[:1], tmp_path, config=asked).data
    got = data["effect"].sel(arm="ft", order="sequence", edits=2)
    assert 0 <= float(got.sel(measure="side_agreement")) <= 1
    assert math.isnan(float(got.sel(measure="perplexity_ratio")))
    assert data.attrs["questions"] == 3


def test_text_that_statistics_have_read_is_left_out(tiny_llama: LanguageModel, corpus: str) -> None:
    config = SequenceConfig(corpus=corpus, text_tokens=40)
    assert held_out(tiny_llama, config, None)[0] == TEXTS[-1]
    statistics = CovarianceConfig(corpus=corpus, tokens=10**6)
    with pytest.raises(InputError, match="0 tokens of the corpus"):
        held_out(tiny_llama, config, statistics)
    some = CovarianceConfig(corpus=corpus, tokens=100)
    everything = config.model_copy(update={"text_tokens": 10**6})
    with pytest.raises(InputError, match="lower it") as caught:
        held_out(tiny_llama, everything, some)
    total = sum(len(tiny_llama.encode(text).ids) for text in [*LINES, *TEXTS])
    left = int(str(caught.value).split("and ")[1].split(" ")[0])
    assert total - 100 - 60 < left <= total - 100


def test_an_editor_that_changes_no_weights_is_refused(
    tiny_llama: LanguageModel, many: list[Rule], arms: list[Arm], tmp_path: Path
) -> None:
    settings = EditConfig(editors=("ice",)).settings_of("ice")
    with pytest.raises(InputError, match=r"ice \(ice\) changes no weights"):
        edit_many(tiny_llama, many, [replace(arms[0], name="ice", settings=settings)], tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoints": (5, 2)}, "they start at 1 and ascend"),
        ({"checkpoints": (0,)}, "they start at 1"),
        ({"metrics": ("fluency",)}, "sequence.metrics names fluency"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SequenceConfig(**settings)


def test_the_file_is_read_back(run: tuple[ManyEdits, Path, list[int]], tmp_path: Path) -> None:
    study, _, _ = run
    path = write_many(study, tmp_path)
    assert effects.load(path).identical(study.data)
    assert "cpu_seconds" in (tmp_path / "sequence.csv").read_text().splitlines()[0]
