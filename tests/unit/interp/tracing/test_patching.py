"""The sweep against its slow definition, against raw Hugging Face models with torch hooks, and by
identities.

Conformance: every architecture, component, corruption and direction, fast and generic route.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp.models.loading import LanguageModel
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.metrics import (
    METRICS,
    Target,
    first_token_prob,
    mean_log_prob,
    several,
    sum_log_prob,
)
from interp.tracing.patching import SweepOptions, SweepResult, sweep
from interp.tracing.reference import sweep_reference
from interp.tracing.windows import window
from interp.vocabulary import Direction, Route

pytestmark = pytest.mark.slow

COMPONENTS = ("resid", "mlp", "attn")
CORRUPTED = (2, 3, 5)
PROMPT_LENGTH = 8
# Modules of the raw models whose output is the stream after a block, and what a block adds to the
# stream.
MODULES = {
    "llama": ("model.layers.{}", "mlp", "self_attn"),
    "qwen2": ("model.layers.{}", "mlp", "self_attn"),
    "qwen3": ("model.layers.{}", "mlp", "self_attn"),
    "mistral": ("model.layers.{}", "mlp", "self_attn"),
    "phi": ("model.layers.{}", "mlp", "self_attn"),
    "gpt2": ("transformer.h.{}", "mlp", "attn"),
    "gptj": ("transformer.h.{}", "mlp", "attn"),
    "gpt_neox": ("gpt_neox.layers.{}", "mlp", "attention"),
    "gemma3_text": ("model.layers.{}", "post_feedforward_layernorm", "post_attention_layernorm"),
}


def case(
    *, answer: int = 3, positions: Sequence[int] = CORRUPTED, samples: int = 3, noise: float = 1.0
) -> CorruptedPrompt:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(2, 350, (PROMPT_LENGTH + answer,), generator=generator).tolist()
    draws = noise * torch.randn(samples, len(positions), 32, generator=generator)
    return CorruptedPrompt(
        tuple(ids[:PROMPT_LENGTH]), tuple(ids[PROMPT_LENGTH:]), tuple(positions), draws
    )


def sites(
    positions: Sequence[int], *, layers: Sequence[int] = (0, 2), width: int = 2
) -> list[Site]:
    return [
        Site(
            component,
            position,
            range(layer, layer + 1) if component == "resid" else window(layer, width, 3),
        )
        for component in COMPONENTS
        for layer in layers
        for position in positions
    ]


def check_equal(got: SweepResult, expected: SweepResult, tolerance: float = 1e-5) -> None:
    assert float(got.clean) == pytest.approx(float(expected.clean), abs=tolerance)
    torch.testing.assert_close(got.corrupted, expected.corrupted, rtol=0, atol=tolerance)
    torch.testing.assert_close(got.restored, expected.restored, rtol=0, atol=tolerance)


# Against the raw model.


@contextmanager
def hooked(module: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """`function` sees, and may replace, the (first) output of a raw module."""

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        value = out[0] if isinstance(out, tuple) else out
        new = function(value)
        if new is None:
            return None
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def raw_sweep(
    hf: Any, architecture: str, one: CorruptedPrompt, some: Sequence[Site]
) -> SweepResult:
    """Causal tracing as it is defined, with nothing of `interp`: mean log-probability in NumPy
    double precision."""
    block, mlp, attn = MODULES[architecture]
    ids, drawn = torch.tensor([[*one.prompt, *one.answer]]), one.noise
    assert drawn is not None

    def module(component: str, layer: int) -> nn.Module:
        part = {"resid": "", "mlp": f".{mlp}", "attn": f".{attn}"}[component]
        return hf.get_submodule(block.format(layer) + part)

    def score() -> float:
        with torch.no_grad():
            logits = hf(ids).logits[0].numpy().astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return float(
            np.mean(
                [log_probs[len(one.prompt) - 1 + i, token] for i, token in enumerate(one.answer)]
            )
        )

    def corrupt(value: Tensor, sample: int) -> Tensor:
        value = value.clone()
        for at, noise in zip(one.positions, drawn[sample], strict=True):
            value[0, at] += noise
        return value

    def restore(value: Tensor, at: int, clean: Tensor) -> Tensor:
        value = value.clone()
        value[0, at] = clean[0, at]
        return value

    clean_values: dict[tuple[str, int], Tensor] = {}
    with ExitStack() as stack:
        for key in itertools.product(COMPONENTS, range(3)):
            keep = lambda value, key=key: clean_values.__setitem__(key, value.clone())  # noqa: E731
            stack.enter_context(hooked(module(*key), keep))
        clean = score()

    def run(sample: int, site: Site | None) -> float:
        with ExitStack() as stack:
            stack.enter_context(
                hooked(hf.get_input_embeddings(), lambda value: corrupt(value, sample))
            )
            if site is not None:
                at = site.position
                for key in itertools.product([site.component], site.layers):
                    put = lambda value, key=key: restore(value, at, clean_values[key])  # noqa: E731
                    stack.enter_context(hooked(module(*key), put))
            return score()

    samples = range(len(drawn))
    corrupted = torch.tensor([run(sample, None) for sample in samples])
    return SweepResult(
        torch.tensor(clean),
        corrupted,
        torch.tensor([[run(s, site) for s in samples] for site in some]),
    )


@pytest.fixture(scope="module")
def model(architecture: str, make_model: Callable[..., LanguageModel]) -> LanguageModel:
    return make_model(architecture)


def test_sweep_equals_torch_hooks_on_the_raw_model(
    model: LanguageModel, architecture: str, make_hf: Callable[..., Any]
) -> None:
    one, some = case(samples=2), sites((0, 3, 4, 7))
    got = sweep(model, one, some, mean_log_prob)
    check_equal(got, raw_sweep(make_hf(architecture), architecture, one, some))
    effects = got.restored - got.corrupted
    assert effects[[site.position > 2 for site in some]].abs().mean() > 0.01


def counterfactual_case() -> CorruptedPrompt:
    one = case()
    twin = [(token + 17) % 340 if i in CORRUPTED else token for i, token in enumerate(one.prompt)]
    return CorruptedPrompt(
        one.prompt, one.answer, CORRUPTED, counterfactual=tuple(twin), alternative=(9, 8)
    )


def every_kind_of_site(positions: Sequence[int]) -> list[Site]:
    """All components, windows and single blocks, clipped and whole, frozen and not, in every
    layer."""
    found = []
    for position in positions:
        for layer in range(3):
            here = range(layer, layer + 1)
            found += [Site("resid", position, here, frozen) for frozen in (None, "mlp", "attn")]
            found += [Site(component, position, here) for component in ("mlp", "attn")]
            found += [
                Site(component, position, window(layer, 2, 3)) for component in ("mlp", "attn")
            ]
    return found


CASES = {
    "noise": case(samples=2),
    "replaced": CorruptedPrompt(**(vars(case(samples=2)) | {"replace": True})),
    "counterfactual": counterfactual_case(),
}
BOTH = several([mean_log_prob, first_token_prob])


# What a replaced or counterfactual embedding does differently is the same in both directions.
@pytest.mark.parametrize(
    ("corruption", "direction"),
    [
        ("noise", "denoise"),
        ("noise", "noise"),
        ("counterfactual", "noise"),
        ("replaced", "denoise"),
    ],
)
def test_both_routes_equal_the_definition(
    corruption: str, direction: Direction, model: LanguageModel
) -> None:
    assert model.has_prefix_cache and model.has_entry
    # Before the corrupted tokens nothing differs: one site of each component is enough there.
    before = [Site(component, 1, range(1, 2)) for component in ("resid", "mlp", "attn")]
    last = [site for site in every_kind_of_site((7,)) if 1 in site.layers]
    one, some = CASES[corruption], [*before, *every_kind_of_site((3,)), *last]
    expected = sweep_reference(model, one, some, BOTH, direction=direction)
    for route in ("fast", "generic"):
        got = sweep(
            model,
            one,
            some,
            BOTH,
            SweepOptions(direction=direction, route=route, batch_size=13),
        )
        for name in ("clean", "corrupted", "restored"):
            # Log-probability within 1e-4 nats, probability within 1e-5.
            difference = (getattr(got, name) - getattr(expected, name)).abs().reshape(-1, 2).amax(0)
            assert difference[0] < 1e-4 and difference[1] < 1e-5, (route, name, difference)
    base = expected.corrupted if direction == "denoise" else expected.clean
    assert (expected.restored - base).abs().mean() > 1e-3


@pytest.mark.parametrize("family", ["mistral", "gemma3_text"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_both_routes_equal_the_definition_behind_a_sliding_window(
    direction: Direction, family: str, make_model: Callable[..., LanguageModel]
) -> None:
    # The prompt and answer of 10 tokens are longer than the window of 4; Gemma mixes local and
    # global layers.
    model = make_model(
        family,
        sliding_window=4,
        **({"sliding_window_pattern": 2} if family == "gemma3_text" else {}),
    )
    wide = make_model(family, sliding_window=64)
    one, some = case(samples=2), every_kind_of_site((2, 5, 7))
    expected = sweep_reference(model, one, some, sum_log_prob, direction=direction)
    for route in ("fast", "generic"):
        check_equal(
            sweep(
                model,
                one,
                some,
                sum_log_prob,
                SweepOptions(direction=direction, route=route),
            ),
            expected,
            1e-4,
        )
    assert (
        sweep(wide, one, [], sum_log_prob).clean - expected.clean
    ).abs() > 1e-3  # the window matters here


# Ways to run it.


def test_the_fast_route_is_refused_where_it_was_not_checked(
    make_model: Callable[..., LanguageModel],
) -> None:
    with pytest.raises(
        ValueError, match="tiny-llama: the self-check does not allow the fast route"
    ):
        sweep(
            make_model("llama", check=False),
            case(),
            sites((2,)),
            mean_log_prob,
            SweepOptions(route="fast"),
        )


@pytest.mark.parametrize("route", ["fast", "generic"])
def test_results_do_not_depend_on_the_memory(route: Route, tiny_llama: LanguageModel) -> None:
    some = every_kind_of_site((1, 4))
    results = [
        sweep(
            tiny_llama,
            case(),
            some,
            mean_log_prob,
            SweepOptions(route=route, memory=memory),
        )
        for memory in (1, 10**6, 10**9)
    ]
    for other in results[1:]:
        check_equal(other, results[0], tolerance=2e-6)


@pytest.mark.parametrize("route", ["fast", "generic"])
def test_batches_are_halved_when_memory_runs_out(route: Route, tiny_llama: LanguageModel) -> None:
    rows: list[int] = []

    def greedy(values: Tensor, target: Target) -> Tensor:
        rows.append(len(values))
        if len(values) > 6:
            raise torch.OutOfMemoryError("out of memory: tried to allocate a lot")
        return mean_log_prob(values, target)

    some = every_kind_of_site((2, 4))
    got = sweep(tiny_llama, case(), some, greedy, SweepOptions(route=route, batch_size=60))
    assert max(rows) == 60 and rows.count(60) <= 3
    check_equal(
        got,
        sweep(tiny_llama, case(), some, mean_log_prob, SweepOptions(batch_size=6)),
        tolerance=2e-6,
    )


def test_memory_that_does_not_even_take_one_site_is_an_error(tiny_llama: LanguageModel) -> None:
    calls: list[int] = []

    def full(values: Tensor, target: Target) -> Tensor:
        calls.append(len(values))
        if len(calls) > 2:  # the clean and the corrupted run fit
            raise torch.OutOfMemoryError("out of memory")
        return mean_log_prob(values, target)

    with pytest.raises(
        MemoryError,
        match=r"one item alone does not fit in memory \(out of memory\); use fewer noise",
    ):
        sweep(tiny_llama, case(), sites((2,)), full)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_sweep_without_a_prefix_cache_gives_the_same(
    family: str, make_model: Callable[..., LanguageModel]
) -> None:
    cached, uncached = make_model(family), make_model(family, check=False)
    assert cached.has_prefix_cache and not uncached.has_prefix_cache
    one, some = case(samples=2), sites((0, 2, 4, 7), layers=(1,))
    got = sweep(uncached, one, some, mean_log_prob)
    check_equal(got, sweep_reference(uncached, one, some, mean_log_prob))
    check_equal(got, sweep(cached, one, some, mean_log_prob))


@pytest.mark.parametrize(
    ("metric", "width"),
    [("mean_log_prob", 1), ("sum_log_prob", 2), ("first_token_prob", 3), ("mean_log_prob", 10)],
)
def test_sweep_equals_its_definition_for_every_metric_and_window(
    metric: str, width: int, tiny_llama: LanguageModel
) -> None:
    some = sites((2, 6), width=width)
    one, function = case(samples=2), METRICS[metric][0]
    check_equal(
        sweep(tiny_llama, one, some, function), sweep_reference(tiny_llama, one, some, function)
    )


@pytest.mark.parametrize("positions", [(0,), (7,), (0, 7), tuple(range(8))])
@pytest.mark.parametrize("answer", [1, 4])
def test_sweep_equals_its_definition_wherever_the_prompt_is_corrupted(
    positions: tuple[int, ...], answer: int, tiny_llama: LanguageModel
) -> None:
    one, some = case(positions=positions, answer=answer, samples=2), sites((0, 4, 7), layers=(1,))
    check_equal(
        sweep(tiny_llama, one, some, mean_log_prob),
        sweep_reference(tiny_llama, one, some, mean_log_prob),
    )


def test_sweep_does_not_depend_on_the_batch_size(tiny_llama: LanguageModel) -> None:
    some = sites((0, 2, 3, 7))
    results = [
        sweep(tiny_llama, case(), some, mean_log_prob, SweepOptions(batch_size=size))
        for size in (1, 7, 64, 1000)
    ]
    for other in results[1:]:
        check_equal(other, results[0], tolerance=2e-6)


def test_sweep_keeps_the_order_of_the_sites(tiny_llama: LanguageModel) -> None:
    some = sites((0, 2, 3, 6))
    order = np.random.default_rng(0).permutation(len(some))
    straight = sweep(tiny_llama, case(), some, mean_log_prob)
    mixed = sweep(tiny_llama, case(), [some[i] for i in order], mean_log_prob)
    torch.testing.assert_close(mixed.restored, straight.restored[order], rtol=0, atol=2e-6)


def test_sweep_tells_its_progress_site_by_site(tiny_llama: LanguageModel) -> None:
    done: list[int] = []
    some = sites((0, 2, 3))
    sweep(
        tiny_llama,
        case(),
        some,
        mean_log_prob,
        SweepOptions(batch_size=6),
        advance=done.append,
    )
    assert sum(done) == len(some) == 18
    assert max(done) == 2  # six rows are two sites of three samples


# Identities.


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("corruption", CASES)
def test_exchanging_nothing_leaves_the_base_run(
    corruption: str, direction: Direction, tiny_llama: LanguageModel
) -> None:
    one = CASES[corruption]
    nothing = [Site(component, 4, range(1, 1)) for component in COMPONENTS]
    result = sweep(
        tiny_llama,
        one,
        nothing,
        mean_log_prob,
        SweepOptions(direction=direction, route="generic"),
    )
    base = result.corrupted if direction == "denoise" else result.clean.expand(one.samples)
    torch.testing.assert_close(result.restored, base.expand(3, -1), rtol=0, atol=1e-6)


def test_restoring_everything_gives_the_clean_score(tiny_llama: LanguageModel) -> None:
    # All that differs at the first block's input is the only corrupted token: its stream there, and
    # all is clean.
    one = case(positions=(PROMPT_LENGTH - 1,), answer=1)
    everything = [
        Site("resid", PROMPT_LENGTH - 1, range(3)),
        Site("resid", PROMPT_LENGTH - 1, range(1)),
    ]
    result = sweep(tiny_llama, one, everything, mean_log_prob)
    np.testing.assert_allclose(result.restored, result.clean, atol=1e-5)


def test_a_frozen_stream_cannot_act_through_what_is_frozen(tiny_llama: LanguageModel) -> None:
    one = case(answer=1)
    some = [Site("resid", 3, range(0, 1), frozen) for frozen in (None, "mlp", "attn")]
    free, no_mlp, no_attn = (sweep(tiny_llama, one, some, mean_log_prob).restored).unbind(0)
    assert (free - no_mlp).abs().max() > 1e-3 and (free - no_attn).abs().max() > 1e-3
    last = [Site("resid", 3, range(2, 3), frozen) for frozen in (None, "mlp")]
    # No block is behind: nothing to freeze. With several threads rows of one batch round otherwise.
    at_end = sweep(tiny_llama, one, last, mean_log_prob).restored
    torch.testing.assert_close(at_end[0], at_end[1], rtol=0, atol=2e-6)


def test_the_two_directions_mirror_each_other(tiny_llama: LanguageModel) -> None:
    one = counterfactual_case()
    assert one.counterfactual is not None
    mirrored = CorruptedPrompt(one.counterfactual, one.answer, CORRUPTED, counterfactual=one.prompt)
    some = every_kind_of_site((2, 4, 7))
    denoised = sweep(tiny_llama, one, some, mean_log_prob)
    noised = sweep(tiny_llama, mirrored, some, mean_log_prob, SweepOptions(direction="noise"))
    torch.testing.assert_close(denoised.restored, noised.restored, rtol=0, atol=2e-6)
    torch.testing.assert_close(denoised.clean, noised.corrupted[0], rtol=0, atol=2e-6)


def test_restoring_without_noise_changes_nothing(tiny_llama: LanguageModel) -> None:
    result = sweep(tiny_llama, case(noise=0.0), sites(range(8)), mean_log_prob)
    np.testing.assert_allclose(result.corrupted, result.clean, atol=1e-5)
    np.testing.assert_allclose(result.restored, result.clean, atol=1e-5)


def test_restoring_before_the_first_corrupted_token_changes_nothing(
    tiny_llama: LanguageModel,
) -> None:
    result = sweep(tiny_llama, case(), sites((0, 1)), mean_log_prob)
    np.testing.assert_allclose(result.restored, result.corrupted.expand(12, -1), atol=1e-5)
    assert (result.corrupted - result.clean).abs().min() > 0.05


def test_restoring_the_last_state_of_the_last_token_gives_the_clean_score(
    tiny_llama: LanguageModel,
) -> None:
    one = case(answer=1)
    at_end = Site("resid", PROMPT_LENGTH - 1, range(2, 3))
    before = Site("resid", PROMPT_LENGTH - 1, range(1, 2))
    result = sweep(tiny_llama, one, [at_end, before], mean_log_prob)
    np.testing.assert_allclose(result.restored[0], result.clean, atol=1e-5)
    assert (result.restored[1] - result.clean).abs().max() > 0.01


def test_restoring_the_only_corrupted_token_at_the_end_gives_the_clean_score_in_every_block(
    tiny_llama: LanguageModel,
) -> None:
    last = PROMPT_LENGTH - 1
    some = [Site("resid", last, range(layer, layer + 1)) for layer in range(3)]
    short = sweep(tiny_llama, case(answer=1, positions=(last,)), some, mean_log_prob)
    np.testing.assert_allclose(short.restored, short.clean, atol=1e-5)
    assert (short.corrupted - short.clean).abs().min() > 0.05
    # Later answer tokens still see the corrupted token in the blocks below.
    long = sweep(tiny_llama, case(answer=3, positions=(last,)), some, mean_log_prob)
    assert (long.restored - long.clean).abs().max() > 0.01


def test_restoring_attn_and_mlp_of_an_early_window_is_less_than_the_stream(
    tiny_llama: LanguageModel,
) -> None:
    # The corrupted embedding itself stays in the stream, whatever MLPs and attention add.
    last = PROMPT_LENGTH - 1
    one = case(answer=1, positions=(last,))
    some = [Site(component, last, range(3)) for component in ("mlp", "attn")]
    result = sweep(tiny_llama, one, some, mean_log_prob)
    assert (result.restored - result.clean).abs().min() > 1e-3


def test_scores_of_one_noise_sample_do_not_depend_on_the_others(tiny_llama: LanguageModel) -> None:
    one, some = case(), sites((2, 4))
    every = sweep(tiny_llama, one, some, mean_log_prob)
    for sample in range(3):
        alone = one.take([sample])
        result = sweep(tiny_llama, alone, some, mean_log_prob)
        torch.testing.assert_close(
            result.restored[:, 0], every.restored[:, sample], rtol=0, atol=2e-6
        )


# What goes wrong.


class StoppedError(Exception):
    """Raised by a test in the middle of a sweep."""


def test_an_exception_in_the_middle_leaves_no_hook(tiny_llama: LanguageModel) -> None:
    one, some = case(), sites((2, 4, 7))
    ids = torch.tensor([one.prompt])
    logits, before = tiny_llama.logits(ids), sweep(tiny_llama, one, some, mean_log_prob)

    def stop(n: int) -> None:
        raise StoppedError

    calls: list[int] = []

    def stop_in_metric(values: Tensor, target: Target) -> Tensor:
        calls.append(len(values))
        if len(calls) == 4:
            raise StoppedError
        return mean_log_prob(values, target)

    with pytest.raises(StoppedError):
        sweep(tiny_llama, one, some, mean_log_prob, SweepOptions(batch_size=3), advance=stop)
    with pytest.raises(StoppedError):
        sweep(tiny_llama, one, some, stop_in_metric, SweepOptions(batch_size=3))
    assert len(calls) == 4
    assert tiny_llama.logits(ids).equal(logits)
    check_equal(sweep(tiny_llama, one, some, mean_log_prob), before, tolerance=0)


@pytest.mark.parametrize("position", [PROMPT_LENGTH, -1])
def test_a_site_outside_the_prompt_is_refused(position: int, tiny_llama: LanguageModel) -> None:
    with pytest.raises(
        ValueError, match=rf"position={position}, .* is outside the prompt of 8 tokens"
    ):
        sweep(tiny_llama, case(), [Site("mlp", position, range(1))], mean_log_prob)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": ()}, "the answer has no token"),
        ({"noise": None}, "exactly one of them corrupts"),
        ({"counterfactual": (1,) * 8}, "exactly one of them corrupts"),
        ({"positions": (3, 2, 5)}, "not ascending positions of a prompt of 8 tokens"),
        ({"positions": (2, 3, 8)}, "not ascending positions of a prompt of 8 tokens"),
        ({"positions": (2, 3)}, r"noise has shape \(3, 3, 32\), expected \(sample, 2, d_model\)"),
        (
            {"noise": None, "counterfactual": (1,) * 7},
            "counterfactual prompt has 7 tokens, the prompt 8",
        ),
        ({"noise": None, "counterfactual": (1,) * 8}, "are not where the prompts differ"),
    ],
)
def test_cases_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CorruptedPrompt(**{**vars(case()), **changes})
