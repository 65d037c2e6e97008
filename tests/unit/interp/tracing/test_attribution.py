"""Attribution patching against finite differences, the exact sweep at small noise, and its own
limits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from interp.models.loading import LanguageModel
from interp.tracing.attribution import attribute
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.metrics import Target, mean_log_prob
from interp.tracing.patching import sweep

pytestmark = pytest.mark.slow

PROMPT, ANSWER = (5, 9, 17, 3, 8, 2, 7), (11, 4)


def case(model: LanguageModel, scale: float = 0.03, samples: int = 2) -> CorruptedPrompt:
    noise = scale * torch.randn(
        samples, 2, model.d_model, generator=torch.Generator().manual_seed(1)
    )
    return CorruptedPrompt(PROMPT, ANSWER, (1, 3), noise)


def sites(model: LanguageModel, width: int = 1) -> list[Site]:
    return [
        Site(component, position, range(layer, min(layer + width, model.n_layers)))
        for component in ("resid", "mlp", "attn")
        for layer in range(model.n_layers)
        for position in (1, 3, 5, 6)
    ]


def finite_difference(
    model: LanguageModel, one: CorruptedPrompt, site: Site, step: float
) -> torch.Tensor:
    """Central difference of the score as the corrupted state moves towards the clean one, per
    sample."""
    (name,) = {model.hook(site.component, layer) for layer in site.layers}
    noise = one.noise
    assert noise is not None
    ids = torch.tensor([one.ids])
    clean = model.capture(ids, [name])[name][0, site.position]

    def run(sample: int, share: float) -> float:
        def corrupt(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[0, list(one.positions)] += noise[sample].to(value)
            return value

        def move(value: torch.Tensor, hook: Any) -> torch.Tensor:
            value = value.clone()
            value[0, site.position] += share * (clean - value[0, site.position])
            return value

        with torch.no_grad():
            logits = model.logits(
                ids, keep=len(ANSWER), hooks=[(model.embedding_hook, corrupt), (name, move)]
            )
        return mean_log_prob(logits, Target(torch.tensor(ANSWER))).item()

    return torch.tensor([(run(s, step) - run(s, -step)) / (2 * step) for s in range(one.samples)])


def test_effect_is_the_slope_towards_the_clean_state(
    architecture: str, make_model: Callable[..., Any]
) -> None:
    model = make_model(architecture)
    one, some = case(model), sites(model)
    got = attribute(model, one, some, mean_log_prob)
    effects = got.restored - got.corrupted
    for index in (0, 5, 13, 21, len(some) - 1):
        wanted = finite_difference(model, one, some[index], 1e-2)
        torch.testing.assert_close(effects[index], wanted, rtol=2e-2, atol=2e-4)


def test_error_falls_faster_than_the_noise(tiny_llama: LanguageModel) -> None:
    errors = []
    for scale in (0.04, 0.004):
        one, some = case(tiny_llama, scale), sites(tiny_llama)
        exact, guess = (
            sweep(tiny_llama, one, some, mean_log_prob),
            attribute(tiny_llama, one, some, mean_log_prob),
        )
        torch.testing.assert_close(guess.corrupted, exact.corrupted, rtol=0, atol=1e-5)
        assert float(guess.clean) == pytest.approx(float(exact.clean), abs=1e-5)
        errors.append((guess.restored - exact.restored).abs().mean().item())
    assert errors[1] < errors[0] / 30, (
        errors
    )  # second order: a tenth of the noise, a hundredth of the error


def test_integrated_gradients_come_closer_to_the_exact_map(tiny_llama: LanguageModel) -> None:
    one, some = case(tiny_llama, 0.1, samples=4), sites(tiny_llama)
    exact = sweep(tiny_llama, one, some, mean_log_prob).restored
    errors = [
        (attribute(tiny_llama, one, some, mean_log_prob, steps=steps).restored - exact).abs().mean()
        for steps in (1, 8)
    ]
    assert errors[1] < 0.85 * errors[0], errors


def test_window_is_the_sum_of_its_blocks(tiny_llama: LanguageModel) -> None:
    one = case(tiny_llama)
    parts = attribute(
        tiny_llama, one, [Site("mlp", 3, range(n, n + 1)) for n in range(3)], mean_log_prob
    )
    whole = attribute(tiny_llama, one, [Site("mlp", 3, range(3))], mean_log_prob)
    torch.testing.assert_close(
        whole.restored[0] - whole.corrupted, (parts.restored - parts.corrupted).sum(0)
    )


def test_sites_before_the_corruption_have_no_effect(tiny_llama: LanguageModel) -> None:
    got = attribute(tiny_llama, case(tiny_llama), [Site("mlp", 0, range(2))], mean_log_prob)
    assert torch.equal(got.restored[0], got.corrupted)


@pytest.mark.parametrize(
    ("position", "steps", "message"), [(9, 1, "outside the prompt"), (1, 0, "steps is 0")]
)
def test_wrong_requests_raise(
    position: int, steps: int, message: str, tiny_llama: LanguageModel
) -> None:
    with pytest.raises(ValueError, match=message):
        attribute(
            tiny_llama,
            case(tiny_llama),
            [Site("mlp", position, range(1))],
            mean_log_prob,
            steps=steps,
        )


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_memory_changes_no_number(direction: Any, tiny_llama: LanguageModel) -> None:
    one, some = case(tiny_llama, samples=5), sites(tiny_llama)
    options = {"direction": direction, "steps": 2}
    whole = attribute(tiny_llama, one, some, mean_log_prob, **options, memory=10**9)
    sizes: list[int] = []

    def watched(logits: torch.Tensor, target: Target) -> torch.Tensor:
        sizes.append(len(logits))
        return mean_log_prob(logits, target)

    singly = attribute(tiny_llama, one, some, watched, **options, memory=1)
    torch.testing.assert_close(singly.restored, whole.restored, rtol=0, atol=2e-6)
    assert sizes == [1] * 16  # the clean and five corrupted runs, then two steps of five samples


def test_noising_is_the_mirror_of_denoising(tiny_llama: LanguageModel) -> None:
    # The two prompts of a counterfactual case change places, and with them the run that is patched.
    other = (5, 9, 30, 3, 8, 2, 7)
    one, mirrored = (
        CorruptedPrompt(prompt, ANSWER, (2,), counterfactual=twin)
        for prompt, twin in ((PROMPT, other), (other, PROMPT))
    )
    some = sites(tiny_llama)
    denoised = attribute(tiny_llama, one, some, mean_log_prob, steps=2)
    noised = attribute(tiny_llama, mirrored, some, mean_log_prob, steps=2, direction="noise")
    torch.testing.assert_close(denoised.restored, noised.restored, rtol=0, atol=2e-6)
    assert (denoised.restored - denoised.corrupted).abs().max() > 1e-3
