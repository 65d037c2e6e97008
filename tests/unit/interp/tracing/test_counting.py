"""Counts of a trace are those of the real runs, to the last token."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from interp.config import TraceConfig
from interp.rules.sources import load_rules
from tests.observed_runs import counted, observed

if TYPE_CHECKING:
    from interp.models.loading import LanguageModel
    from interp.models.outline import Outline

CASES: dict[str, dict[str, Any]] = {
    "exact": {},
    "exact in small batches": {"batch_size": 7, "samples": 3},
    "exact, all tokens, by little memory": {"positions": "all", "memory": "64KiB", "samples": 2},
    "generic route": {"route": "generic", "components": ("mlp",), "positions": ("last",)},
    "clean runs are changed": {"direction": "noise", "positions": ("subject_last", "last")},
    "frozen": {"components": ("resid", "resid_mlp_frozen"), "positions": ("last",)},
    "scale of the subjects": {"noise": "s3", "positions": ("last",)},
    "attribution": {"method": "attribution"},
    "attribution, integrated": {"method": "attribution", "gradient_steps": 3, "samples": 2},
    "screen, all sites": {"method": "screen", "screen_share": 1.0},
}


@pytest.fixture(scope="module")
def deep(make_model: Callable[..., "LanguageModel"]) -> "LanguageModel":
    """Eight blocks: lines of sites have something between their ends."""
    return make_model("llama", num_hidden_layers=8)


def outline_of(model: "LanguageModel") -> "Outline":
    from interp.models.outline import Outline

    return Outline(model.config, model.tokenizer, model.name)


def both(model: "LanguageModel", n_rules: int = 2, **settings: Any) -> tuple[Any, Any, Any]:
    """What a trace runs, what is counted, and the count."""
    from interp.tracing.corruption import noise_of
    from interp.tracing.counting import count_trace
    from interp.tracing.prompt import trace_prompt
    from interp.tracing.trace import prompts

    rules = load_rules("embedded", split="train").rules[:n_rules]
    config = TraceConfig(**{"answer": "greedy", "answer_tokens": 3, **settings})
    model.__dict__.pop("_embedding_std", None)  # measured once for each model
    with observed(model) as seen:
        noise = noise_of(model, config, rules)
        for rule, form in prompts(rules):
            trace_prompt(model, rule, form, config, noise=noise)
    count = count_trace(outline_of(model), rules, prompts(rules), config)
    return seen, counted(count.passes), count


@pytest.mark.parametrize("case", CASES)
def test_a_trace_runs_what_is_counted(deep: "LanguageModel", case: str) -> None:
    seen, wanted, count = both(deep, **CASES[case])
    assert seen == wanted
    assert (count.prompts, count.skipped) == (6, 0)


def test_a_screen_runs_as_many_rows(deep: "LanguageModel") -> None:
    """Which sites it looks at hangs on numbers; how many does not, nor does a row's length here."""
    seen, wanted, _ = both(deep, method="screen", positions=("last",), samples=4, answer_tokens=1)
    assert seen.passes == wanted.passes
    assert seen.kept == wanted.kept


def test_more_samples_of_a_screen_are_counted_from_above(deep: "LanguageModel") -> None:
    seen, wanted, _ = both(deep, method="screen", positions=("last",), samples=9)
    assert seen.kept <= wanted.kept <= 3 * seen.kept


def test_counterfactual_prompts_are_counted(deep: "LanguageModel") -> None:
    settings = {"corruption": "counterfactual", "metrics": ("log_prob_difference", "negative_kl")}
    from interp.tracing.counting import count_trace
    from interp.tracing.prompt import trace_prompt
    from interp.tracing.trace import prompts
    from interp.errors import DmleError

    rules = load_rules("embedded", split="train").rules[:6]
    config = TraceConfig(answer="greedy", answer_tokens=3, **settings)
    traced = 0
    with observed(deep) as seen:
        for rule, form in prompts(rules):
            try:
                trace_prompt(deep, rule, form, config)
                traced += 1
            except DmleError:
                pass
    count = count_trace(outline_of(deep), rules, prompts(rules), config)
    assert count.prompts == traced > 0
    generated = 3 * count.skipped  # an answer is generated before it is seen that no prompt aligns
    assert abs(seen.passes - counted(count.passes).passes) in (0, generated)


def test_a_prompt_that_does_not_fit_is_skipped(make_model: Callable[..., Any]) -> None:
    from interp.tracing.counting import count_trace
    from interp.tracing.trace import prompts

    model = make_model("llama", check=False, max_position_embeddings=8)
    rules = load_rules("embedded", split="train").rules[:1]
    count = count_trace(outline_of(model), rules, prompts(rules), TraceConfig())
    assert (count.prompts, count.skipped) == (0, 3)
