"""Other people's implementations on the embedded model: EasyEdit's MEMIT and its metrics, number by
number.

The files are kept beside the repository; without them these tests are skipped. Those marked
`golden` take minutes, and `make golden` runs them. Requests, context templates, statistics and (for
the updates) targets are the reference's own, so that only our computation is compared.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.keys import find_keys, find_states
from editing.closed_form.moments import second_moments
from editing.closed_form.solvers import factorise, null_space, ridge
from editing.closed_form.targets import Targets, find_targets
from editing.config import EditConfig
from editing.edits.requests import EditRequest
from editing.evaluation.greedy import greedy_answers
from editing.evaluation.items import items_of
from editing.evaluation.scoring import Question, teacher_forced
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule, load_rules
from interp.selection.layers import parse_layers
from interp.vocabulary import FORMS
from tests.unit.editing_making import edit_with

SHARED = Path(__file__).parents[3] / "shared"
REFERENCE = SHARED / "reference"
ARCHIVE = SHARED / "data" / "RuleEdit-140.zip"
LAYERS = (4, 5, 6, 7, 8)
D_MLP = 1536

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not REFERENCE.is_dir(), reason="the reference numbers are not beside this repository"
    ),
]


def read_json(name: str) -> Any:
    return json.loads((REFERENCE / name).read_text(encoding="utf-8"))


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def parameter(layer: int) -> str:
    return f"model.layers.{layer}.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def run() -> dict[str, Any]:
    """Settings, requests, contexts and loss traces of EasyEdit's MEMIT on rule 0."""
    return read_json("memit_rule0.json")


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return load_file(REFERENCE / "memit_rule0.safetensors")


@pytest.fixture(scope="module")
def statistics(smol: LanguageModel) -> Covariances:
    loaded = load_file(REFERENCE / "covariance_layers4-8.safetensors")
    by_layer = {layer: loaded[parameter(layer).removesuffix(".weight")] for layer in LAYERS}
    return Covariances(by_layer, smol.weight_hash, 90_003, {"corpus": "reference"})


@pytest.fixture(scope="module")
def requests(run: dict[str, Any]) -> list[EditRequest]:
    return [
        EditRequest("0", form, r["prompt"], r["subject"], (), r["target_new"])
        for form, r in zip(FORMS, run["requests"], strict=True)
    ]


@pytest.fixture(scope="module")
def contexts(run: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        template.removesuffix("{}") for group in run["context_templates"] for template in group
    )


@pytest.fixture(scope="module")
def config(run: dict[str, Any]) -> EditConfig:
    given = run["hparams"]
    return EditConfig(
        steps=given["v_num_grad_steps"],
        learning_rate=given["v_lr"],
        weight_decay=given["v_weight_decay"],
        kl_factor=given["kl_factor"],
        clamp=given["clamp_norm_factor"],
        stop_loss=0.05,
        ridge=given["mom2_update_weight"] / D_MLP,
    )


def test_tokens_and_lookups_are_the_references(
    smol: LanguageModel, run: dict[str, Any], requests: list[EditRequest]
) -> None:
    from editing.closed_form.contexts import rows

    for request, saved in zip(requests, run["requests"], strict=True):
        (row,) = rows(smol, request, ("",), "subject_last")
        assert list(row.ids) == saved["prompt_ids"] and row.lookup == saved["lookup_token_index"]
        assert list(smol.encode_continuation(request.target_new)) == saved["target_ids"]


def test_keys_and_states_are_the_references(
    smol: LanguageModel,
    requests: list[EditRequest],
    contexts: tuple[str, ...],
    tensors: dict[str, Tensor],
) -> None:
    keys = find_keys(smol, requests, 4, contexts, "subject_last")
    states = find_states(smol, requests, smol.hook("resid", 8), "subject_last")
    for i in range(3):
        assert relative(keys[i], tensors["K.layer4"][:, i]) < 1e-4
        assert relative(states[i], tensors["cur_z.before_layer4"][:, i]) < 1e-4


@pytest.mark.parametrize("layer", LAYERS)
def test_the_solver_gives_the_references_update_from_its_keys_and_states(
    layer: int, tensors: dict[str, Tensor], statistics: Covariances
) -> None:
    z = torch.stack([tensors[f"z.{i}"] for i in range(3)], dim=1)
    residual = (z - tensors[f"cur_z.before_layer{layer}"]) / (9 - layer)
    update = ridge(
        residual, tensors[f"K.layer{layer}"], factorise(statistics.by_layer[layer]), 15000.0
    )
    expected = tensors[f"resid.{parameter(layer)}"] @ tensors[f"adj_k.{parameter(layer)}"].T
    assert relative(update.dense(), expected) < 1e-6


def test_memit_from_the_references_targets_gives_its_updates(
    smol: LanguageModel,
    requests: list[EditRequest],
    contexts: tuple[str, ...],
    config: EditConfig,
    tensors: dict[str, Tensor],
    statistics: Covariances,
) -> None:
    before = {layer: smol.parameters[parameter(layer)].detach().clone() for layer in LAYERS}
    z = torch.stack([tensors[f"z.{i}"] for i in range(3)])
    targets = Targets(
        z, find_states(smol, requests, smol.hook("resid", 8), config.lookup), ((), (), ())
    )
    delta = edit_with(
        "memit", smol, requests, LAYERS, statistics, contexts, config, targets=targets
    )
    for layer in LAYERS:
        expected = tensors[f"resid.{parameter(layer)}"] @ tensors[f"adj_k.{parameter(layer)}"].T
        assert relative(delta.updates[parameter(layer)].dense(), expected) < 1e-4
        assert torch.equal(smol.parameters[parameter(layer)], before[layer])
    # Formula and instance share the text up to the subject in this rule.
    pairs = {(pair["layer"], *pair["forms"]) for pair in delta.report.collinear_keys}
    assert {(layer, "formula", "instance") for layer in LAYERS} <= pairs


@pytest.mark.golden
def test_the_target_search_follows_the_references_trace(
    smol: LanguageModel,
    run: dict[str, Any],
    requests: list[EditRequest],
    contexts: tuple[str, ...],
    config: EditConfig,
    tensors: dict[str, Tensor],
) -> None:
    got = find_targets(smol, requests, 8, contexts, config)
    for i in range(3):
        saved = [evaluation[0] for evaluation in run["loss_traces"][i]]
        assert len(got.losses[i]) == len(saved) == 23
        for ours, theirs in zip(got.losses[i], saved, strict=True):
            assert ours == pytest.approx(theirs, abs=2e-3)  # theirs is rounded to 3 decimals
        assert relative(got.z[i], tensors[f"z.{i}"]) < 1e-3


# Statistics, and the two-stage driver.

with_all_statistics = pytest.mark.xdist_group("statistics of the reference")
"""They are measured once, on one worker, while another searches targets."""
STAGES = {"two": "3,4,5/12,13,14", "block": "4-8"}


@pytest.fixture(scope="module")
def all_statistics(smol: LanguageModel) -> Covariances:
    """Ours of every layer that the reference runs edit, over its corpus."""
    layers = sorted({*LAYERS, 3, 12, 13, 14})
    corpus = numpy.load(REFERENCE / "corpus_ids.npz")
    ends = corpus["lengths"].cumsum()
    rows = [
        corpus["ids"][end - n : end].tolist()
        for end, n in zip(ends, corpus["lengths"], strict=True)
    ]
    found = second_moments(smol, layers, rows)
    by_layer = {layer: moments.second for layer, moments in found.items()}
    return Covariances(by_layer, smol.weight_hash, 90_003, {"corpus": "reference"})


@pytest.mark.golden
@with_all_statistics
@pytest.mark.parametrize("layer", LAYERS)
def test_covariances_are_the_references(
    layer: int, all_statistics: Covariances, statistics: Covariances
) -> None:
    assert relative(all_statistics.by_layer[layer], statistics.by_layer[layer]) < 1e-5


@pytest.mark.golden
@with_all_statistics
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", STAGES)
def test_staged_dmle_gives_the_drivers_answers(
    kind: str, number: int, smol: LanguageModel, config: EditConfig, all_statistics: Covariances
) -> None:
    """EasyEdit's accuracies and every locality prediction after the edit, by the published
    driver's logic."""
    extra, metrics = (
        read_json(f"dmle_{kind}_{part}_rule{number}.json") for part in ("extra", "metrics")
    )
    contexts = tuple(
        template.removesuffix("{}") for group in extra["templates"] for template in group
    )
    asked = [record["requested_rewrite"] for record in metrics]
    requests = [
        EditRequest(str(number), form, r["prompt"], r["subject"], (), r["target_new"])
        for form, r in zip(FORMS, asked, strict=True)
    ]
    selection = parse_layers(STAGES[kind], smol.n_layers)
    assert [list(group.layers) for group in selection.groups] == [
        stage["layers"] for stage in extra["stages"]
    ]
    delta = edit_with("dmle", smol, requests, selection, all_statistics, contexts, config)
    recorded = list(recorded_accuracies(number, kind, "post"))
    local = recorded_locality(number, kind, "post")
    with delta.applied(smol):
        questions = [Question(prompt, target) for prompt, target, _ in recorded]
        got = [result.token_accuracy for result in teacher_forced(smol, questions, batch_size=16)]
        questions = [Question(item["prompt"], item["ground_truth"]) for item in local]
        said = [list(result.said) for result in teacher_forced(smol, questions, batch_size=16)]
    assert got == pytest.approx([accuracy for _, _, accuracy in recorded], abs=1e-9)
    assert said == [item["tf_output_ids"] for item in local]


# AlphaEdit: the same requests with its own settings.


@pytest.fixture(scope="module")
def alpha() -> tuple[dict[str, Any], dict[str, Tensor], EditConfig]:
    run = read_json("alphaedit_rule0.json")
    given = run["hparams"]
    config = EditConfig(
        steps=given["v_num_grad_steps"],
        learning_rate=given["v_lr"],
        weight_decay=given["v_weight_decay"],
        kl_factor=given["kl_factor"],
        clamp=given["clamp_norm_factor"],
        null_threshold=given["nullspace_threshold"],
        l2=given["L2"],
    )
    return run, load_file(REFERENCE / "alphaedit_rule0.safetensors"), config


@pytest.mark.parametrize("layer", LAYERS)
def test_the_null_space_solver_gives_alphaedits_update_from_its_keys_and_states(
    layer: int, alpha: tuple[dict[str, Any], dict[str, Tensor], EditConfig], statistics: Covariances
) -> None:
    _, tensors, config = alpha
    z = torch.stack([tensors[f"z.{i}"] for i in range(3)], dim=1)
    residual = (z - tensors[f"cur_z.before_layer{layer}"]) / (9 - layer)
    projector = statistics.null_space(layer, config.null_threshold, relative=False)
    update = null_space(residual, tensors[f"K.layer{layer}"], projector, config.l2)
    # The reference decomposes and solves in float32; its own update, recomputed in float64, differs
    # by 1.1e-5.
    assert relative(update.dense(), tensors[f"delta.{parameter(layer)}"]) < 1e-4


@pytest.mark.golden
def test_alphaedit_gives_the_references_targets_and_updates(
    smol: LanguageModel,
    requests: list[EditRequest],
    contexts: tuple[str, ...],
    alpha: tuple[dict[str, Any], dict[str, Tensor], EditConfig],
    statistics: Covariances,
) -> None:
    run, tensors, config = alpha
    targets = find_targets(smol, requests, 8, contexts, config)
    for i in range(3):
        assert [pytest.approx(e[0], abs=2e-3) for e in run["loss_traces"][i]] == list(
            targets.losses[i]
        )
        assert relative(targets.z[i], tensors[f"z.{i}"]) < 1e-3
    delta = edit_with(
        "alphaedit", smol, requests, LAYERS, statistics, contexts, config, targets=targets
    )
    for layer in LAYERS:
        assert (
            relative(delta.updates[parameter(layer)].dense(), tensors[f"delta.{parameter(layer)}"])
            < 1e-3
        )
    # Keys on the edited model: what the reference keeps of an edit for later ones.
    with delta.applied(smol):
        for layer in LAYERS:
            keys = find_keys(smol, requests, layer, contexts, config.lookup)
            assert relative(keys.T, tensors[f"K_after.layer{layer}"]) < 1e-3


# ROME, as EasyEdit ships it: the first request alone, identity statistics, the original's two
# different keys.


@pytest.mark.golden
def test_rome_gives_the_references_update(smol: LanguageModel) -> None:
    run, tensors = read_json("rome_rule0.json"), load_file(REFERENCE / "rome_rule0.safetensors")
    given, asked = run["hparams"], run["requests"][0]
    config = EditConfig(
        steps=given["v_num_grad_steps"],
        learning_rate=given["v_lr"],
        weight_decay=given["v_weight_decay"],
        kl_factor=given["kl_factor"],
        clamp=given["clamp_norm_factor"],
        rome_keys="original",
    )
    contexts = tuple(template.removesuffix("{}") for template in run["context_templates"])
    request = EditRequest(
        "0", "formula", asked["prompt"], asked["subject"], (), asked["target_new"]
    )
    (layer,) = given["layers"]
    identity = Covariances({layer: torch.eye(D_MLP)}, smol.weight_hash, 0, {"identity": True})
    delta = edit_with("rome", smol, [request], layer, identity, contexts, config)
    expected = torch.outer(tensors["v"], tensors["u"])
    assert relative(delta.updates[parameter(layer)].dense(), expected) < 1e-3
    saved = [evaluation[0] for evaluation in run["loss_traces"][0]]
    assert list(delta.report.losses[0]) == [pytest.approx(loss, abs=2e-3) for loss in saved]


# Scores of the unedited model.


def recorded_accuracies(
    number: int, kind: str = "two", phase: str = "pre"
) -> Iterator[tuple[str, str, float]]:
    """(prompt, target, EasyEdit's token accuracy before or after the edit) of every item with a
    target."""
    for record in read_json(f"dmle_{kind}_metrics_rule{number}.json"):
        asked, pre = record["requested_rewrite"], record[phase]
        yield asked["prompt"], asked["target_new"], pre["rewrite_acc"][0]
        yield asked["rephrase_prompt"], asked["target_new"], pre["rephrase_acc"][0]
        for name in ("Instance", "Rule"):
            items = asked["portability"][name]
            prompts, targets = (
                [value] if isinstance(value, str) else value
                for value in (items["prompt"], items["ground_truth"])
            )
            yield from zip(prompts, targets, pre["portability"][f"{name}_acc"], strict=True)


def recorded_locality(number: int, kind: str = "two", phase: str = "pre") -> list[dict[str, Any]]:
    """Every locality item: prompt, ground truth, what the model said, before or after the edit."""
    return [
        item
        for record in read_json(f"dmle_{kind}_extra_rule{number}.json")[phase]
        for items in record["locality"].values()
        for item in items
    ]


BEFORE = (0, pytest.param(1, marks=pytest.mark.golden))


@pytest.mark.parametrize("number", BEFORE)
def test_token_accuracies_before_the_edit_are_easyedits(number: int, smol: LanguageModel) -> None:
    recorded = list(recorded_accuracies(number))
    questions = [Question(prompt, target) for prompt, target, _ in recorded]
    got = [result.token_accuracy for result in teacher_forced(smol, questions, batch_size=16)]
    assert len(recorded) >= 20
    assert got == pytest.approx([accuracy for _, _, accuracy in recorded], abs=1e-9)


@pytest.mark.parametrize("number", BEFORE)
def test_locality_predictions_before_the_edit_are_easyedits(
    number: int, smol: LanguageModel
) -> None:
    recorded = recorded_locality(number)
    questions = [Question(item["prompt"], item["ground_truth"]) for item in recorded]
    for item, result in zip(recorded, teacher_forced(smol, questions, batch_size=16), strict=True):
        assert list(result.target) == item["gt_ids"]
        assert list(result.said) == item["tf_output_ids"]
        assert result.exact == item["tf_exact"] == item["greedy_startswith"]


def test_greedy_answers_before_the_edit_are_the_references(smol: LanguageModel) -> None:
    recorded = recorded_locality(0)
    answers = greedy_answers(smol, [item["prompt"] for item in recorded], 12, batch_size=12)
    for item, answer in zip(recorded, answers, strict=True):
        assert item["greedy_text"].startswith(answer) and answer.strip()


@pytest.mark.skipif(
    not ARCHIVE.is_file(), reason="the RuleEdit archive is not beside this repository"
)
def test_our_items_of_rule_0_are_the_references() -> None:
    rule: Rule = load_rules(ARCHIVE, ids=["ruleedit-0"]).rules[0]
    ours = {(item.question.prompt, item.question.target) for item in items_of(rule)}
    assert {(prompt, target) for prompt, target, _ in recorded_accuracies(0)} <= ours
    assert {(item["prompt"], item["ground_truth"]) for item in recorded_locality(0)} <= ours
