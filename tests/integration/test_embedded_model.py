"""The embedded model with its trained weights: what tracing and editing rely on, and what is
known of it."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from interp.models.loading import LanguageModel, find
from interp.models.tokens import subject_spans, token_roles
from interp.rules.sources import load_rules
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.metrics import first_token_prob, mean_log_prob
from interp.tracing.patching import sweep
from interp.tracing.reference import sweep_reference
from interp.tracing.windows import default_window, window
from interp.vocabulary import ROLES

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"


def france(model: LanguageModel, answer: str, samples: int = 2) -> tuple[CorruptedPrompt, int]:
    """The prompt with noise of three embedding deviations on its subject, and the subject's
    position."""
    encoding = model.encode(PROMPT)
    at = [PROMPT[a:b].strip() for a, b in encoding.offsets].index("France")
    noise = torch.randn(samples, 1, model.d_model, generator=torch.Generator().manual_seed(0))
    case = CorruptedPrompt(
        encoding.ids, model.encode_continuation(answer), (at,), 3 * model.embedding_std() * noise
    )
    return case, at


def test_the_embedded_model_passes_its_check(smol: LanguageModel) -> None:
    assert smol.check is not None
    worst = max(
        smol.check.logits, smol.check.additivity, smol.check.projection, smol.check.prefix_cache
    )
    assert worst < 2e-5 and smol.has_prefix_cache and not smol.check.post_norm
    assert (smol.n_layers, smol.d_model) == (30, 576)
    assert smol.down_projection(29).weight.shape == (576, 1536)


def test_logits_equal_those_of_the_raw_model(smol: LanguageModel) -> None:
    raw = AutoModelForCausalLM.from_pretrained(
        find(smol.name), dtype=torch.float32, attn_implementation="eager"
    )
    ids = torch.tensor(
        [smol.encode("The area of a rectangle with length 4 and width 3 is 12.").ids]
    )
    with torch.no_grad():
        expected = raw.eval()(ids).logits
    torch.testing.assert_close(smol.logits(ids), expected, rtol=1e-5, atol=1e-4)
    table = raw.get_input_embeddings().get_parameter("weight").detach().numpy().astype(np.float64)
    assert smol.embedding_std() == pytest.approx(table.std(), rel=1e-4)


def test_the_model_knows_a_capital_and_goes_on_alike_in_a_batch(smol: LanguageModel) -> None:
    prompts = [
        smol.encode(text).ids
        for text in (PROMPT, "The perimeter of a square with side length 4 is equal to")
    ]
    batch = smol.generate(prompts, 4)
    assert smol.decode(batch[0]).startswith(" Paris")
    assert batch == [smol.generate([prompt], 4)[0] for prompt in prompts]


def test_every_answer_of_the_embedded_rules_continues_its_prompt(smol: LanguageModel) -> None:
    for rule in load_rules().rules:
        for form in rule.forms.values():
            prompt = smol.encode(form.prompt)
            for answer in (form.target_new, *form.target_true):
                whole = smol.encode(f"{form.prompt} {answer.strip()}").ids
                assert (*prompt.ids, *smol.encode_continuation(answer)) == whole


def test_every_token_of_the_embedded_prompts_has_a_role(smol: LanguageModel) -> None:
    for rule in load_rules().rules:
        for form in rule.forms.values():
            encoding = smol.encode(form.prompt)
            roles = token_roles(encoding, form.subject, rule.rule_words, sorted(form.values))
            assert len(roles) == len(encoding.ids) and set(roles) <= set(ROLES)
            assert roles.count("subject_last") == len(subject_spans(form.prompt, form.subject))
            spelt = smol.decode(
                [i for i, role in zip(encoding.ids, roles, strict=True) if "subject" in role]
            )
            assert form.subject in spelt


def test_sweep_equals_its_definition(smol: LanguageModel) -> None:
    case, at = france(smol, "Paris, a city")
    assert len(case.answer) == 4
    width = default_window(30)
    sites = [
        Site("resid", at, range(12, 13)),
        Site("mlp", at, window(4, width, 30)),
        Site("attn", len(case.prompt) - 1, window(20, width, 30)),
    ]
    got = sweep(smol, case, sites, mean_log_prob)
    expected = sweep_reference(smol, case, sites, mean_log_prob)
    assert float(got.clean) == pytest.approx(float(expected.clean), abs=1e-4)
    torch.testing.assert_close(got.corrupted, expected.corrupted, rtol=0, atol=1e-4)
    torch.testing.assert_close(got.restored, expected.restored, rtol=0, atol=1e-4)


def test_the_answer_moves_from_the_subject_to_the_last_token(smol: LanguageModel) -> None:
    # ROME's picture: early states carry the fact at the subject, late ones at the end of the
    # prompt.
    case, at = france(smol, "Paris", samples=4)
    end = len(case.prompt) - 1
    sites = [
        Site("resid", position, range(layer, layer + 1))
        for position in (at, end)
        for layer in (0, 29)
    ]
    result = sweep(smol, case, sites, first_token_prob)
    total = result.clean - result.corrupted.mean().item()
    assert result.clean > 0.3 and total > 0.5 * result.clean
    early_subject, late_subject, early_end, late_end = (
        (result.restored.mean(1) - result.corrupted.mean()) / total
    ).tolist()
    assert early_subject > 0.8 and abs(late_subject) < 1e-4
    assert abs(early_end) < 0.1 and late_end == pytest.approx(1, abs=1e-4)
