"""Counts of statistics, edits and their evaluation: exact, or from above where numbers decide."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from editing.config import CovarianceConfig, EditConfig, EvaluateConfig
from interp.rules.sources import Rule, load_rules
from tests.observed_runs import counted, observed
from tests.unit.run_inputs import write_corpus

if TYPE_CHECKING:
    from interp.models.loading import LanguageModel
    from interp.models.outline import Outline

NEVER = {"stop_loss": 0.0, "ft": {"stop_loss": 0.0, "steps": 3}, "steps": 4}
"""Settings with which no search and no training is done early. LoRA trains a copy of the model,
whose runs are not seen here."""
EDITORS: dict[str, dict[str, Any]] = {
    "memit": {"contexts": 0},
    "alphaedit": {"contexts": 0},
    "rome": {"contexts": 0, "block": "1"},
    "ft": {},
    "grace": {"grace": {"steps": 3}, "block": "1"},
    "ice": {},
    "ft_whitened": {"contexts": 0, "options": {"steps": 3, "stop_loss": 0.0}},
    "dmle": {"contexts": 0, "layers": "0,1/2"},
}


def outline_of(model: "LanguageModel") -> "Outline":
    from interp.models.outline import Outline

    return Outline(model.config, model.tokenizer, model.name)


@pytest.fixture
def rules() -> Sequence[Rule]:
    return load_rules("embedded", split="train").rules[:2]


@pytest.mark.parametrize("layers", [(0, 1), (1, 2)])
@pytest.mark.parametrize("skip_first", [False, True])
def test_statistics_run_what_is_counted(
    tiny_llama: "LanguageModel", tmp_path: Path, layers: tuple[int, ...], skip_first: bool
) -> None:
    """Up to a block in the middle, and up to the last one, whose run has logits."""
    from editing.closed_form.covariance import measure
    from editing.studies.counting import count_statistics

    write_corpus(tmp_path / "corpus.txt")
    config = CovarianceConfig(
        corpus=str(tmp_path / "corpus.txt"),
        tokens=500,
        max_length=24,
        batch_size=3,
        skip_first=skip_first,
        output_tokens=60,
    )
    with observed(tiny_llama) as seen:
        measure(tiny_llama, layers, config, tmp_path / "kept")
    drawn = outline_of(tiny_llama)
    texts = count_statistics(drawn, layers, config)
    assert counted(drawn.passes) == seen
    assert texts > 10


def test_no_statistics_of_the_identity_are_run(tiny_llama: "LanguageModel") -> None:
    from editing.studies.counting import count_statistics

    drawn = outline_of(tiny_llama)
    assert count_statistics(drawn, [0], CovarianceConfig(identity=True)) == 0
    assert not drawn.passes


@pytest.mark.parametrize("greedy", [False, True])
def test_evaluation_runs_what_is_counted(
    tiny_llama: "LanguageModel", rules: Sequence[Rule], greedy: bool
) -> None:
    """The questions of the unedited model; greedy answers of it do not end early here."""
    from editing.evaluation.evaluate import unedited
    from editing.studies.arms import make_arms
    from editing.studies.counting import Asked, count_cells

    config = EvaluateConfig(greedy=greedy, batch_size=5, answer_tokens=4)
    with observed(tiny_llama) as seen:
        unedited(tiny_llama, rules[0], config)
    drawn = outline_of(tiny_llama)
    edits = EditConfig(editors=("ft",), block="1")
    arms = make_arms(drawn, edits, rules[:1], statistics=lambda layers: None)
    cells, failed = count_cells(drawn, rules[:1], arms, Asked(edits=False, evaluate=config))
    assert (cells, failed) == (1, [])
    half = len(drawn.passes) // 2
    first, second = drawn.passes[:half], drawn.passes[half:]
    assert first == second  # the edited model is asked as the unedited one was
    found = counted(first)
    if greedy:  # the model may end an answer before its longest
        assert seen.block_tokens <= found.block_tokens <= 1.3 * seen.block_tokens
    else:
        assert found == seen


@pytest.mark.parametrize("editor", EDITORS)
def test_an_edit_runs_at_most_what_is_counted(
    make_model: Callable[..., "LanguageModel"], rules: Sequence[Rule], editor: str
) -> None:
    import torch

    from editing.closed_form.covariance import Covariances
    from editing.editors.registry import edit
    from editing.edits.requests import requests_of
    from editing.studies.arms import make_arms
    from editing.studies.counting import count_edit

    model = make_model("llama", max_position_embeddings=1024)
    settings = {**NEVER, "editors": (editor,), "block": "0-1", **EDITORS[editor]}
    config = EditConfig.model_validate(settings)
    width = model.row_sizes.d_mlp

    def statistics(layers: Sequence[int]) -> Covariances:
        values = torch.ones(width)
        values[::2] = 0.01  # directions that AlphaEdit may write in
        by_layer = {layer: values.diag() for layer in layers}
        return Covariances(by_layer, model.weight_hash, 0, {})

    (arm,) = make_arms(model, config, rules[:1], statistics=statistics)
    requests = requests_of(rules[0], config.lookup)
    with observed(model) as seen:
        edit(arm.bench.asked(requests, arm.settings, evaluated=rules[:1]))
    drawn = outline_of(model)
    (same,) = make_arms(drawn, config, rules[:1], statistics=lambda layers: None)
    count_edit(drawn, same, rules[0], 0)
    found = counted(drawn.passes)
    assert seen.block_tokens <= found.block_tokens <= 1.2 * seen.block_tokens + 1
    assert abs(seen.passes - found.passes) <= 0.25 * seen.passes


def test_cells_that_are_done_are_not_counted(
    tiny_llama: "LanguageModel", rules: Sequence[Rule]
) -> None:
    from editing.studies.arms import make_arms
    from editing.studies.counting import Asked, count_cells

    drawn = outline_of(tiny_llama)
    config = EditConfig(editors=("ft", "ice"), block="1")
    arms = make_arms(drawn, config, rules, statistics=lambda layers: None)
    evaluate = EvaluateConfig(greedy=False)
    asked = Asked(evaluate=evaluate, is_done=lambda arm, rule, seed: rule == rules[0].id)
    cells, failed = count_cells(drawn, rules, arms, asked)
    # There is no room for demonstrations in this model's context.
    assert cells == 2 and [each.partition(",")[0] for each in failed] == ["ice"]
    every = Asked(evaluate=evaluate, is_done=lambda arm, rule, seed: True)
    drawn.passes.clear()
    assert count_cells(drawn, rules, arms, every) == (0, [])
    assert not drawn.passes


def test_cells_that_would_fail_are_named(
    tiny_llama: "LanguageModel", rules: Sequence[Rule]
) -> None:
    from editing.studies.arms import make_arms
    from editing.studies.counting import Asked, count_cells

    formula = rules[0].forms["formula"]
    long = formula.model_copy(update={"prompt": "The area " * 2000 + formula.prompt})
    rule = rules[0].model_copy(update={"forms": {"formula": long}})
    drawn = outline_of(tiny_llama)
    arms = make_arms(
        drawn, EditConfig(editors=("ft",), block="1"), [rule], statistics=lambda layers: None
    )
    cells, failed = count_cells(drawn, [rule], arms, Asked())
    assert cells == 1 and len(failed) == 1
    assert failed[0].startswith(f"ft, {rule.id}: ")
