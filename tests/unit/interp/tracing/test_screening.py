"""Screening against the exact sweep: equal where it was run, honest about the rest."""

from typing import Any

import numpy as np
import pytest
import torch

from interp.models.loading import LanguageModel
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.metrics import mean_log_prob
from interp.tracing.patching import SweepOptions, sweep
from interp.tracing.screening import ScoredSites, ScoringOptions, score_sites
from interp.tracing.windows import window
from interp.vocabulary import Direction, Method

pytestmark = pytest.mark.slow

PROMPT = (5, 9, 17, 3, 8, 2, 7)


@pytest.fixture(scope="module")
def model(make_model: Any) -> LanguageModel:
    return make_model("llama", num_hidden_layers=14)


def noisy(samples: int = 6, scale: float = 0.3) -> CorruptedPrompt:
    noise = scale * torch.randn(samples, 2, 32, generator=torch.Generator().manual_seed(3))
    return CorruptedPrompt(PROMPT, (11, 4), (1, 3), noise)


def twin() -> CorruptedPrompt:
    return CorruptedPrompt(
        PROMPT, (11, 4), (3,), counterfactual=(5, 9, 17, 30, 8, 2, 7), alternative=(12, 4)
    )


def grid(n_layers: int) -> list[Site]:
    return [
        Site(
            component,
            position,
            range(layer, layer + 1) if component == "resid" else window(layer, 3, n_layers),
        )
        for component in ("resid", "mlp", "attn")
        for position in (1, 3, 5, 6)
        for layer in range(n_layers)
    ]


def effect(found: ScoredSites) -> np.ndarray:
    return (found.restored - found.corrupted).mean(1)[:, 0].numpy()


def test_exact_scores_are_those_of_the_sweep(model: LanguageModel) -> None:
    some = grid(model.n_layers)[::5]
    found = score_sites(model, noisy(2), some, ["mean_log_prob", "first_token_prob"])
    expected = sweep(model, noisy(2), some, mean_log_prob)
    torch.testing.assert_close(found.restored[..., 0], expected.restored)
    torch.testing.assert_close(found.clean[0], expected.clean)
    assert found.exact is None and found.restored.shape == (len(some), 2, 2)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_screen_is_exact_where_it_says_so(direction: Direction, model: LanguageModel) -> None:
    some, case = grid(model.n_layers), noisy()
    found = score_sites(
        model,
        case,
        some,
        ["mean_log_prob"],
        ScoringOptions(method="screen", share=0.4, sweep=SweepOptions(direction=direction)),
    )
    expected = sweep(model, case, some, mean_log_prob, SweepOptions(direction=direction))
    assert found.exact is not None
    ran = found.exact.numpy()
    difference = np.abs(found.restored[..., 0].numpy() - expected.restored.numpy())
    assert difference[ran].max() < 2e-5 < difference[~ran].max()
    assert found.about["exact_share"] == pytest.approx(ran.mean())
    # 0.4 of the sites and the audit, the ones with small errors in four of six samples only.
    assert 0.4 * 4 / 6 <= ran.mean() <= 0.4 + 12 / len(some) + 1e-6
    assert ran.any(1).sum() == round(0.4 * len(some) + 0.49) + 12


def test_screen_is_closer_than_gradients_and_more_exact_sites_come_closer_still(
    model: LanguageModel,
) -> None:
    some, case = grid(model.n_layers), noisy()
    exact = effect(score_sites(model, case, some, ["mean_log_prob"]))

    def error(**options: Any) -> float:
        how = ScoringOptions(steps=3, **options)
        got = effect(score_sites(model, case, some, ["mean_log_prob"], how))
        return float(np.abs(got - exact).sum() / np.abs(exact).sum())

    gradients, few, many = (
        error(method="attribution"),
        error(method="screen"),
        error(method="screen", share=0.7),
    )
    assert many < few < 0.7 * gradients, (gradients, few, many)
    assert error(method="screen", share=1.0, tolerance=1e-9) < 1e-4


@pytest.mark.golden
def test_the_audit_estimates_the_missed_mass(model: LanguageModel) -> None:
    some, case = grid(model.n_layers), noisy()
    exact = effect(score_sites(model, case, some, ["mean_log_prob"]))
    told, true = [], []
    for seed in range(12):
        found = score_sites(
            model,
            case,
            some,
            ["mean_log_prob"],
            ScoringOptions(method="screen", share=0.25, seed=seed),
        )
        told.append(found.about["missed_mass"])
        true.append(np.abs(effect(found) - exact).sum() / np.abs(exact).sum())
    # The same sites are run whatever the seed, so the true error hardly varies; the audits scatter
    # around it.
    scatter = np.std(told, ddof=1) / len(told) ** 0.5
    assert np.std(true) < 0.2 * np.mean(true)
    assert abs(np.mean(told) - np.mean(true)) < 3 * scatter + 0.15 * np.mean(true), (told, true)


def test_log_prob_difference_is_that_of_two_sweeps(model: LanguageModel) -> None:
    some, case = grid(model.n_layers)[::7], twin()
    found = score_sites(
        model, case, some, ["mean_log_prob", "log_prob_difference", "logit_difference"]
    )
    other = CorruptedPrompt(PROMPT, (12, 4), (3,), counterfactual=case.counterfactual)
    first, second = (sweep(model, one, some, mean_log_prob) for one in (case, other))
    for name in ("clean", "corrupted", "restored"):
        wanted = getattr(first, name) - getattr(second, name)
        torch.testing.assert_close(getattr(found, name)[..., 1], wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            getattr(found, name)[..., 0], getattr(first, name), rtol=0, atol=1e-5
        )
    # The answers differ in their first token, so the difference of logits is that of
    # log-probabilities there.
    ids = torch.tensor([PROMPT])
    logits = model.logits(ids)[0, -1]
    assert float(found.clean[2]) == pytest.approx(float(logits[11] - logits[12]), abs=1e-5)


def test_progress_adds_up(model: LanguageModel) -> None:
    methods: tuple[tuple[Method, CorruptedPrompt, list[str]], ...] = (
        ("exact", twin(), ["log_prob_difference"]),
        ("attribution", noisy(2), ["mean_log_prob"]),
        ("screen", noisy(2), ["mean_log_prob"]),
    )
    for method, case, metrics in methods:
        told: list[float] = []
        some = grid(model.n_layers)[::3]
        score_sites(model, case, some, metrics, ScoringOptions(method=method), advance=told.append)
        assert sum(told) == pytest.approx(1) and len(told) >= 1


@pytest.mark.parametrize(
    ("case", "metrics", "method", "message"),
    [
        (
            noisy(),
            ["logit_difference"],
            "exact",
            r"\['logit_difference'\] compare with the answer to a counterfactual",
        ),
        (
            twin(),
            ["log_prob_difference"],
            "screen",
            "takes a second sweep, which method screen has not",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(
    case: CorruptedPrompt, metrics: list[str], method: Any, message: str, model: LanguageModel
) -> None:
    with pytest.raises(ValueError, match=message):
        score_sites(model, case, grid(model.n_layers)[:3], metrics, ScoringOptions(method=method))
