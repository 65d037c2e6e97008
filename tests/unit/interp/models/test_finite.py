"""A number is finite or it is not a number: runs, gradients, predictions, searches that overflow
are said as that."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from editing.closed_form.keys import find_keys, keys_of_prompts
from editing.closed_form.targets import TargetSearchError, find_targets
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings, EvaluateConfig
from editing.edits.protocol import View
from editing.edits.requests import requests_of
from editing.evaluation import side_effects
from editing.evaluation.greedy import greedy_ids
from editing.evaluation.scoring import Question, teacher_forced
from editing.studies.arms import Arm
from editing.studies.cells import run_cells
from interp.config import TraceConfig
from interp.errors import NotFiniteError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from interp.tracing.attribution import attribute
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.knowledge import assess
from interp.tracing.metrics import mean_log_prob
from interp.tracing.patching import SweepOptions, sweep
from interp.tracing.trace import trace_rules
from tests.unit.editing_making import edit_with

CAUSE = "float16 overflows in this model.*: use --set model.dtype=bfloat16 or float32"


@pytest.fixture(scope="module")
def hot(make_hf: Callable[..., Any], tokenizer: Any) -> LanguageModel:
    """A model that overflows float16 in its second block, loaded without the check that would
    refuse it."""
    hf = make_hf("llama")
    with torch.no_grad():
        for layer in hf.model.layers[1:]:
            for part in (layer.mlp.up_proj, layer.mlp.gate_proj, layer.mlp.down_proj):
                part.weight *= 60
    return LanguageModel(hf.half(), tokenizer, "hot", check=False)


def case(noise: float = 1.0) -> CorruptedPrompt:
    generator = torch.Generator().manual_seed(3)
    draws = noise * torch.randn(4, 2, 32, generator=generator)
    return CorruptedPrompt((5, 9, 17, 3, 8), (2, 7), (1, 2), draws)


SITES = [Site("mlp", 2, range(0, 1)), Site("resid", 4, range(1, 2))]


def test_runs_that_overflow_are_errors_with_their_cause(hot: LanguageModel) -> None:
    with pytest.raises(NotFiniteError, match=f"the clean run of hot is not finite .*: {CAUSE}"):
        sweep(hot, case(), SITES, mean_log_prob)
    with pytest.raises(NotFiniteError, match=f"the clean run of hot .*: {CAUSE}"):
        attribute(hot, case(), SITES, mean_log_prob)


@pytest.mark.parametrize("noise", [float("nan"), float("inf")])
def test_a_corruption_that_is_none_is_an_error(noise: float, tiny_llama: LanguageModel) -> None:
    with pytest.raises(
        NotFiniteError,
        match=r"a corrupted run of tiny-llama is not finite .*its weights are finite",
    ):
        sweep(tiny_llama, case(noise), SITES, mean_log_prob)


@pytest.mark.parametrize("route", ["fast", "generic"])
def test_patched_runs_and_gradients_that_are_none_are_errors(
    route: Any, tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def spoilt(logits: Tensor, target: Any) -> Tensor:
        calls.append(len(logits))
        scores = mean_log_prob(logits, target)
        return (
            scores * float("inf") if len(calls) > 2 else scores
        )  # the clean and the corrupted runs are sound

    with pytest.raises(NotFiniteError, match="a patched run of tiny-llama is not finite"):
        sweep(tiny_llama, case(), SITES, spoilt, SweepOptions(route=route))

    def edge(logits: Tensor, target: Any) -> Tensor:
        """Finite, with an infinite slope."""
        scores = mean_log_prob(logits, target)
        return scores + (scores - scores.detach()).abs().sqrt()

    with pytest.raises(NotFiniteError, match="a gradient of tiny-llama is not finite"):
        attribute(tiny_llama, case(), SITES, edge)


def test_a_trace_counts_what_overflows_with_the_reason(
    hot: LanguageModel, rule: Rule, tmp_path: Any
) -> None:
    config = TraceConfig(samples=2, noise="0.5", answer="truth")
    skipped = trace_rules(hot, [rule], config, tmp_path)
    assert len(skipped) == len(rule.forms) and not list(tmp_path.glob("*.nc"))
    assert all("of hot is not finite" in one.reason for one in skipped)
    assert all("model.dtype=bfloat16 or float32" in one.reason for one in skipped)


def test_knowledge_that_overflows_is_no_missing_effect(hot: LanguageModel, rule: Rule) -> None:
    config = TraceConfig(samples=2, noise="0.5", answer="greedy")
    with pytest.raises(NotFiniteError, match=CAUSE):
        assess(hot, rule, "formula", config, greedy="12")


def test_no_token_is_predicted_from_numbers_that_are_none(hot: LanguageModel) -> None:
    for run in (
        lambda: hot.generate([(5, 9), (3, 8, 2)], 3),
        lambda: hot.sample((5, 9), 3, top_k=5, seed=0),
        lambda: greedy_ids(hot, ["The area"], 3, batch_size=2),
        lambda: list(teacher_forced(hot, [Question("The area", "12")], batch_size=2)),
    ):
        with pytest.raises(NotFiniteError, match=f"a prediction of hot is not finite .*: {CAUSE}"):
            run()
    probes = side_effects.Probes(
        (Question("The area", "12"),), ("The area of a square.",), ("The",), 3
    )
    with pytest.raises(NotFiniteError, match=CAUSE):
        side_effects.ask(View(hot), probes, batch_size=2)


def test_keys_targets_and_training_that_overflow_are_errors(hot: LanguageModel, rule: Rule) -> None:
    requests = requests_of(rule, "subject_last")
    for run in (
        lambda: find_keys(hot, requests, 2, ("",), "subject_last"),
        lambda: keys_of_prompts(hot, requests, 2),
        lambda: find_targets(hot, requests, 1, ("",), EditorSettings(steps=2)),
    ):
        with pytest.raises(NotFiniteError, match=CAUSE):
            run()
    with pytest.raises(TargetSearchError, match=f"diverged at step 0 for .*: {CAUSE}"):
        find_targets(hot, requests, 0, ("",), EditorSettings(steps=2))
    for editor in ("ft", "grace"):
        with pytest.raises(ValueError, match=f"diverged at step 0: {CAUSE}"):
            edit_with(editor, hot, requests, [0])


def test_a_comparison_counts_what_overflows_as_failed(
    tiny_llama: LanguageModel, rule: Rule, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = Arm(
        "ice", EditorSettings(editor="ice"), Workbench(tiny_llama), (0,), {}, frozenset([rule.id])
    )
    probes = side_effects.Probes((Question("The area", "12"),), (), (), 2)
    asked: list[int] = []
    ask = side_effects.ask

    def later(model: Any, probes: Any, *, batch_size: int) -> Any:
        asked.append(1)
        if len(asked) > 1:  # the unedited model is sound
            raise NotFiniteError("a prediction is not finite")
        return ask(model, probes, batch_size=batch_size)

    monkeypatch.setattr(side_effects, "ask", later)
    cells = run_cells(
        tiny_llama, [rule], [arm], EvaluateConfig(greedy=False), tmp_path, probes=probes
    )
    assert len(cells) == 1
    assert cells[0].error == "NotFiniteError: a prediction is not finite" and not cells[0].answers
