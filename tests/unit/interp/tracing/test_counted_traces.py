"""Counts of a trace are those of the real runs, to the last token."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from interp.config import TraceConfig
from interp.rules.sources import Rule, Twin, load_rules
from interp.vocabulary import RuleForm
from tests.observed_runs import counted, observed

if TYPE_CHECKING:
    from interp.models.loading import LanguageModel
    from interp.models.outline import Outline

LAST = {"positions": ("last",)}
CASES: dict[str, dict[str, Any]] = {
    "exact": {"samples": 2},
    "exact, small batches": {"batch_size": 7, "samples": 3, "components": ("mlp",)},
    "exact, little memory": {"positions": "all", "memory": "64KiB", "components": ("attn",)},
    "generic route": {"route": "generic", "components": ("mlp",), **LAST},
    "clean runs are changed": {"direction": "noise", **LAST},
    "frozen": {"components": ("resid_mlp_frozen",), **LAST},
    "scale of the subjects": {"noise": "s3", "components": ("resid",), **LAST},
    "attribution": {"method": "attribution"},
    "attribution, integrated": {"method": "attribution", "gradient_steps": 3, "samples": 2},
    "screen, all sites": {"method": "screen", "screen_share": 1.0, **LAST},
}


@pytest.fixture(scope="module")
def deep(make_model: Callable[..., "LanguageModel"]) -> "LanguageModel":
    """Eight blocks: lines of sites have something between their ends."""
    return make_model("llama", num_hidden_layers=8)


def outline_of(model: "LanguageModel") -> "Outline":
    from interp.models.outline import Outline

    return Outline(model.config, model.tokenizer, model.name)


def both(model: "LanguageModel", **settings: Any) -> tuple[Any, Any, Any]:
    """What a trace of two prompts runs, what is counted, and the count."""
    from interp.tracing.corruption import noise_of
    from interp.tracing.counting import count_trace
    from interp.tracing.prompt import trace_prompt
    from interp.tracing.trace import prompts

    rules = load_rules("embedded", split="train").rules[:1]
    some = prompts(rules)[:2]
    config = TraceConfig.model_validate({"answer": "greedy", "answer_tokens": 3, **settings})
    model.__dict__.pop("_embedding_std", None)  # measured once for each model
    with observed(model) as seen:
        noise = noise_of(model, config, rules)
        for rule, form in some:
            trace_prompt(model, rule, form, config, noise=noise)
    count = count_trace(outline_of(model), rules, some, config)
    return seen, counted(count.passes), count


@pytest.mark.parametrize("case", CASES)
def test_a_trace_runs_what_is_counted(deep: "LanguageModel", case: str) -> None:
    seen, wanted, count = both(deep, **CASES[case])
    assert seen == wanted
    assert (count.prompts, count.skipped) == (2, 0)


def test_a_screen_runs_as_many_rows(deep: "LanguageModel") -> None:
    """Which sites it looks at hangs on numbers; how many does not, nor does a row's length here."""
    seen, wanted, _ = both(deep, method="screen", positions=("last",), samples=4, answer_tokens=1)
    assert seen.passes == wanted.passes
    assert seen.kept == wanted.kept


def test_more_samples_of_a_screen_are_counted_from_above(deep: "LanguageModel") -> None:
    seen, wanted, _ = both(deep, method="screen", positions=("last",), samples=9)
    assert seen.kept <= wanted.kept <= 3 * seen.kept


def twin_of(rule: Rule, form: RuleForm, model: "LanguageModel") -> Rule:
    """The rule with a twin of as many tokens: another last letter of the subject."""
    prompt = rule.forms[form]
    length = len(model.encode(prompt.prompt).ids)
    for letter in "abcdefghijklmnopqrstuvwxyz":
        subject = prompt.subject[:-1] + letter
        text = prompt.prompt.replace(prompt.subject, subject)
        if subject != prompt.subject and len(model.encode(text).ids) == length:
            twin = Twin(rule="another", prompt=text, answer="another answer")
            changed = prompt.model_copy(update={"twins": (twin,)})
            return rule.model_copy(update={"forms": {form: changed}})
    raise AssertionError("no letter gives a twin")


def test_both_sweeps_of_a_contrast_are_counted(deep: "LanguageModel") -> None:
    from interp.tracing.counting import count_trace
    from interp.tracing.prompt import trace_prompt

    rule = load_rules("embedded", split="train").rules[0]
    form = next(iter(rule.forms))
    rule = twin_of(rule, form, deep)
    config = TraceConfig(
        corruption="counterfactual",
        metrics=("log_prob_difference", "negative_kl"),
        answer="greedy",
        answer_tokens=3,
    )
    deep.__dict__.pop("_embedding_std", None)
    with observed(deep) as seen:
        trace_prompt(deep, rule, form, config)
    count = count_trace(outline_of(deep), [rule], [(rule, form)], config)
    assert (count.prompts, count.skipped) == (1, 0)
    assert counted(count.passes) == seen


def test_a_prompt_that_does_not_fit_is_skipped(make_model: Callable[..., Any]) -> None:
    from interp.tracing.counting import count_trace
    from interp.tracing.trace import prompts

    model = make_model("llama", check=False, max_position_embeddings=8)
    rules = load_rules("embedded", split="train").rules[:1]
    count = count_trace(outline_of(model), rules, prompts(rules), TraceConfig())
    assert (count.prompts, count.skipped) == (0, 3)
