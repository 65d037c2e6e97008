"""Architectures whose blocks are built in other ways than those of `ARCHITECTURES`: used rightly,
or refused.

What is tested is what is used: logits, hooks read and written, the sweep's routes, keys,
generation, an edit, export.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from editing.closed_form.covariance import Covariances
from editing.closed_form.keys import find_states, keys_of_prompts
from editing.config import EditorSettings
from editing.edits.requests import requests_of
from editing.evaluation.greedy import greedy_ids
from editing.evaluation.scoring import Question, teacher_forced
from interp.config import TraceConfig
from interp.models.loading import LanguageModel, ModelError
from interp.rules.sources import Rule
from interp.tracing.attribution import attribute
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.metrics import mean_log_prob
from interp.tracing.patching import SweepOptions, sweep
from interp.tracing.prompt import engine
from interp.tracing.reference import sweep_reference
from tests.unit.editing_making import edit_with

pytestmark = pytest.mark.slow

CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}
LONG = 16
"""Beyond so many tokens some of the models below change what they do."""
# Blocks and down-projection of the raw models, and whether the fast route of patching holds.
KINDS: dict[str, tuple[str, str, bool]] = {
    "opt": ("model.decoder.layers.{}", "fc2", False),
    "falcon": ("transformer.h.{}", "mlp.dense_4h_to_h", True),
    "falcon-alibi": ("transformer.h.{}", "mlp.dense_4h_to_h", False),
    "falcon-new": ("transformer.h.{}", "mlp.dense_4h_to_h", True),
    "falcon-new-one-norm": ("transformer.h.{}", "mlp.dense_4h_to_h", True),
    "phi3-longrope": ("model.layers.{}", "mlp.down_proj", True),
    "llama-dynamic": ("model.layers.{}", "mlp.down_proj", True),
    "gemma2": ("model.layers.{}", "mlp.down_proj", True),
    "gpt_neo": ("transformer.h.{}", "mlp.c_proj", True),
    "bloom": ("transformer.h.{}", "mlp.dense_4h_to_h", False),
    "mpt": ("transformer.blocks.{}", "ffn.down_proj", True),
}
SWITCHED = ("phi3-longrope", "llama-dynamic")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str, make_model: Callable[..., LanguageModel]) -> LanguageModel:
    return make_model(kind)


@pytest.fixture(scope="module")
def raw(kind: str, make_hf: Callable[..., Any]) -> Any:
    """The same weights, never wrapped."""
    return make_hf(kind)


def random_ids(rows: int, tokens: int, seed: int = 1) -> Tensor:
    return torch.randint(2, 350, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def whole_logits(raw: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return raw(ids).logits


def fresh_logits(kind: str, raw: Any, make_hf: Callable[..., Any], ids: Tensor) -> Tensor:
    """Of a model that has run nothing before, where earlier runs leave something behind."""
    return whole_logits(make_hf(kind) if kind == "llama-dynamic" else raw, ids)


@pytest.mark.parametrize("tokens", [9, LONG + 8])
def test_logits_and_keys_are_the_raw_models(
    kind: str, tokens: int, model: LanguageModel, raw: Any, make_hf: Callable[..., Any]
) -> None:
    ids = random_ids(2, tokens)
    torch.testing.assert_close(model.logits(ids), fresh_logits(kind, raw, make_hf, ids), **CLOSE)
    for layer in range(3):
        down = model.down_projection(layer)
        block, name, _ = KINDS[kind]
        assert down.name == f"{block.format(layer)}.{name}.weight"
        seen: list[Tensor] = []
        handle = raw.get_submodule(down.name.removesuffix(".weight")).register_forward_hook(
            lambda module, args, out, seen=seen: seen.extend((args[0].clone(), out.clone()))
        )
        fresh = whole_logits(raw, random_ids(1, 9))
        handle.remove()
        got = model.capture(random_ids(1, 9), [model.key_hook(layer), model.value_hook(layer)])
        assert fresh.isfinite().all()
        torch.testing.assert_close(got[model.key_hook(layer)][0], seen[0].reshape(9, -1), **CLOSE)
        torch.testing.assert_close(
            got[model.value_hook(layer)][0].reshape(9, -1), seen[1].reshape(9, -1), **CLOSE
        )


def case(prompt: int, *, twin: bool = False) -> CorruptedPrompt:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(2, 350, (prompt + 3,), generator=generator).tolist()
    at = (2, 3, 5)
    if twin:
        other = tuple(
            (token + 17) % 340 if i in at else token for i, token in enumerate(ids[:prompt])
        )
        return CorruptedPrompt(tuple(ids[:prompt]), tuple(ids[prompt:]), at, counterfactual=other)
    return CorruptedPrompt(
        tuple(ids[:prompt]), tuple(ids[prompt:]), at, torch.randn(2, 3, 32, generator=generator)
    )


def some_sites(last: int) -> list[Site]:
    found = []
    for position in (3, last):
        found += [Site("resid", position, range(1, 2), frozen) for frozen in (None, "mlp", "attn")]
        for component in ("mlp", "attn"):
            found += [
                Site(component, position, layers) for layers in (range(0, 1), range(2), range(1, 3))
            ]
    return found


@pytest.mark.parametrize("prompt", [8, LONG + 4])
def test_every_route_that_is_offered_equals_the_definition(
    kind: str, prompt: int, model: LanguageModel
) -> None:
    length = prompt + 2
    allowed = KINDS[kind][2] and not (kind in SWITCHED and length > LONG)
    assert model.takes_fast_route(length) == allowed
    said = engine(model, TraceConfig(), length)
    assert (
        said.startswith("fast")
        if allowed
        else said.startswith("generic (the self-check does not allow")
    )
    for one in (case(prompt), case(prompt, twin=True)):
        expected = sweep_reference(model, one, some_sites(prompt - 1), mean_log_prob)
        for route in ("auto", "generic"):
            got = sweep(
                model,
                one,
                some_sites(prompt - 1),
                mean_log_prob,
                SweepOptions(route=route, batch_size=7),
            )
            torch.testing.assert_close(got.restored, expected.restored, rtol=0, atol=1e-4)
            torch.testing.assert_close(got.corrupted, expected.corrupted, rtol=0, atol=1e-4)
        assert (expected.restored - expected.corrupted).abs().max() > 1e-3


def test_gradients_are_those_of_small_changes(model: LanguageModel) -> None:
    one = case(8)
    assert one.noise is not None
    small = replace(one, noise=1e-3 * one.noise)
    some = [
        Site(c, p, range(n, n + 1))
        for c in ("resid", "mlp", "attn")
        for p in (3, 7)
        for n in range(3)
    ]
    expected = sweep_reference(model, small, some, mean_log_prob)
    got = attribute(model, small, some, mean_log_prob)
    size = (expected.restored - expected.corrupted).abs().max()
    assert (got.restored - expected.restored).abs().max() < 0.05 * size


def test_prompts_continued_together_are_continued_as_alone_and_as_by_whole_runs(
    kind: str, model: LanguageModel, raw: Any, make_hf: Callable[..., Any]
) -> None:
    # The last two grow past the length at which some models change what they do.
    prompts = [random_ids(1, n, n)[0].tolist() for n in (3, 9, 14, 20)]
    together = model.generate(prompts, 4)
    assert together == [model.generate([prompt], 4)[0] for prompt in prompts]
    for prompt, answer in zip(prompts, together, strict=True):
        text = list(prompt)
        for token in answer:
            assert (
                int(fresh_logits(kind, raw, make_hf, torch.tensor([text]))[0, -1].argmax()) == token
            )
            text.append(token)


def test_answers_are_scored_alike_in_any_company(model: LanguageModel) -> None:
    words = (
        "The area",
        "The area of a square is the side",
        "The perimeter of a rectangle is twice the sum of the length",
    )
    questions = [Question(text, "12 side") for text in words]
    together = list(teacher_forced(model, questions, batch_size=3))
    for question, got in zip(questions, together, strict=True):
        alone = next(iter(teacher_forced(model, [question], batch_size=1)))
        torch.testing.assert_close(got.log_probs, alone.log_probs, rtol=0, atol=1e-4)
    assert greedy_ids(model, words, [3, 4, 2], batch_size=3) == [
        greedy_ids(model, [text], n, batch_size=1)[0]
        for text, n in zip(words, (3, 4, 2), strict=True)
    ]


def test_an_edit_moves_the_state_to_its_target_and_is_gone_afterwards(
    kind: str, model: LanguageModel, rule: Rule, tmp_path: Path
) -> None:
    requests = [requests_of(rule, "last")[1]]
    settings = EditorSettings(editor="memit", block="1", steps=4, ridge=1e-4, lookup="last")
    d_mlp = keys_of_prompts(model, requests, 1).shape[1]
    identity = Covariances({1: torch.eye(d_mlp)}, model.weight_hash, 0, {})
    before = {name: value.detach().clone() for name, value in model.parameters.items()}
    made = edit_with("memit", model, requests, [1], identity, ("",), settings)
    assert made.report.residual_left[0] < 0.01
    ids = torch.tensor([model.encode("A circle is").ids])
    with made.applied(model):
        edited = model.logits(ids)
        model.export(tmp_path)
    assert all(value.equal(before[name]) for name, value in model.parameters.items())
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")(
            ids
        ).logits
    torch.testing.assert_close(loaded, edited, **CLOSE)
    assert find_states(model, requests, model.hook("resid", 1), "last").isfinite().all()


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (
            "opt-post-norm",
            (
                r"additivity is .*resid_pre \+ attn_out \+ mlp_out is not resid_post.*normalise the"
                r" sum, as OPT"
            ),
        ),
        ("openai-gpt", r"nothing is seen at blocks\.0\.hook_resid_post\. .*as GPT-1's, have none"),
        ("mixtral", "block 0 has no dense down-projection to edit, as an MLP of experts has none"),
    ],
)
def test_what_cannot_be_traced_is_refused_with_its_reason(
    refused: str, why: str, make_model: Callable[..., LanguageModel]
) -> None:
    with pytest.raises(ModelError, match=why):
        make_model(refused)


def test_what_an_earlier_run_leaves_behind_is_forgotten(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model("llama-dynamic")
    ids = random_ids(1, 20)
    first, whole = model.logits(ids[:, :LONG]), model.logits(ids)
    torch.testing.assert_close(model.logits(ids[:, :LONG]), first, rtol=0, atol=0)
    torch.testing.assert_close(
        model.logits(ids[:, :18]), make_model("llama-dynamic").logits(ids[:, :18]), rtol=0, atol=0
    )
    assert not torch.allclose(whole[:, :LONG], first, atol=1e-3)  # the lengths matter here


@pytest.mark.parametrize("switched", SWITCHED)
def test_rows_that_the_model_would_encode_by_the_longest_do_not_run_together(
    switched: str, make_model: Callable[..., LanguageModel]
) -> None:
    model = make_model(switched)
    ids, mask = random_ids(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[1, 9:] = 0
    with pytest.raises(
        ModelError,
        match="in texts of more than 16 tokens, so texts of 9 and 20 tokens cannot share a",
    ):
        model.logits(ids, mask=mask)
    with pytest.raises(ModelError, match="so texts of 10 and 20 tokens cannot share a run"):
        model.logits(ids[:1, 10:], prefix=model.prefix_cache(ids[:1, :10]))
