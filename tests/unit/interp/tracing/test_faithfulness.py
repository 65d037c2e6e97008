"""Sites restored together against torch hooks on raw models, and curves with numbers worked by
hand."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp.config import FaithfulnessConfig, TraceConfig
from interp.errors import InputError, NotTraceableError
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.tracing import rule_curves as curves_of_rules
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.faithfulness import (
    area_under,
    linear_area_under,
    numbers_of_sites,
    restore_together,
)
from interp.tracing.metrics import mean_log_prob, negative_kl
from interp.tracing.patching import SweepResult, sweep
from interp.tracing.prompt import prepare
from interp.tracing.rule_curves import check_settings, prompt_curves, rule_curves
from interp.tracing.trace import trace
from interp.tracing.windows import window
from tests.tiny_rules import tiny_rules

pytestmark = pytest.mark.slow

MODULES = {
    "llama": ("model.layers.{}", "mlp", "self_attn"),
    "gpt2": ("transformer.h.{}", "mlp", "attn"),
}
PROMPT_LENGTH, N_LAYERS = 8, 3
HERE = [range(layer, layer + 1) for layer in range(N_LAYERS)]
SETS: dict[str, list[Site]] = {
    "none": [],
    "one": [Site("mlp", 3, HERE[1])],
    "resid, two layers of one token": [Site("resid", 3, HERE[0]), Site("resid", 3, HERE[2])],
    "resid, the same in the other order": [Site("resid", 3, HERE[2]), Site("resid", 3, HERE[0])],
    "resid, several tokens": [Site("resid", p, HERE[p % 3]) for p in (2, 4, 5, 7)],
    "mlp windows that overlap": [Site("mlp", 3, window(layer, 2, 3)) for layer in range(3)],
    "attn windows of several tokens": [Site("attn", p, window(1, 3, 3)) for p in (3, 5, 7)],
    "single blocks": [Site("attn", 4, HERE[0]), Site("attn", 5, HERE[2]), Site("attn", 4, HERE[1])],
    "all kinds": [Site("attn", 4, HERE[1]), Site("mlp", 6, HERE[0]), Site("resid", 2, HERE[0])],
    "everything": [Site("resid", p, HERE[layer]) for p in range(8) for layer in range(3)],
}


def noisy(samples: int = 3) -> CorruptedPrompt:
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(2, 350, (PROMPT_LENGTH + 3,), generator=generator).tolist()
    draws = torch.randn(samples, 3, 32, generator=generator)
    return CorruptedPrompt(tuple(ids[:8]), tuple(ids[8:]), (2, 3, 5), draws)


def twin() -> CorruptedPrompt:
    one = noisy()
    other = [(token + 17) % 340 if i in (2, 3, 5) else token for i, token in enumerate(one.prompt)]
    return CorruptedPrompt(one.prompt, one.answer, (2, 3, 5), counterfactual=tuple(other))


@contextmanager
def hooked(module: nn.Module, function: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """`function` sees, and may replace, the (first) output of a raw module."""

    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        new = function(out[0] if isinstance(out, tuple) else out)
        if new is None:
            return None
        return (new, *out[1:]) if isinstance(out, tuple) else new

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def raw_runs(
    hf: Any, architecture: str, case: CorruptedPrompt, sets: Sequence[Sequence[Site]]
) -> SweepResult:
    """The definition with nothing of `interp`: one run per set and sample, the mean log-probability
    in double precision."""
    block, mlp, attn = MODULES[architecture]
    parts = {"resid": "", "mlp": f".{mlp}", "attn": f".{attn}"}
    clean_ids = torch.tensor([[*case.prompt, *case.answer]])
    other_ids = torch.tensor([[*(case.counterfactual or case.prompt), *case.answer]])
    modules = {
        (part, layer): hf.get_submodule(block.format(layer) + name)
        for part, name in parts.items()
        for layer in range(N_LAYERS)
    }

    def score(ids: Tensor) -> float:
        with torch.no_grad():
            logits = hf(ids).logits[0].numpy().astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        at = len(case.prompt) - 1
        return float(np.mean([log_probs[at + i, token] for i, token in enumerate(case.answer)]))

    def corrupt(value: Tensor, sample: int) -> Tensor:
        value = value.clone()
        for at, noise in zip(case.positions, case.noise[sample], strict=True):  # pyrefly: ignore
            value[0, at] += noise
        return value

    def restore(value: Tensor, at: Sequence[int], clean: Tensor) -> Tensor:
        value = value.clone()
        value[0, at] = clean[0, at]
        return value

    states: dict[tuple[str, int], Tensor] = {}
    with ExitStack() as stack:
        for key, module in modules.items():
            keep = lambda value, key=key: states.__setitem__(key, value.clone())  # noqa: E731
            stack.enter_context(hooked(module, keep))
        clean = score(clean_ids)

    def run(sites: Sequence[Site], sample: int) -> float:
        places: dict[tuple[str, int], list[int]] = {}
        for site in sites:
            for layer in site.layers:
                places.setdefault((site.component, layer), []).append(site.position)
        with ExitStack() as stack:
            if case.noise is not None:
                noise = lambda value: corrupt(value, sample)  # noqa: E731
                stack.enter_context(hooked(hf.get_input_embeddings(), noise))
            for key, at in places.items():
                put = lambda value, key=key, at=at: restore(value, at, states[key])  # noqa: E731
                stack.enter_context(hooked(modules[key], put))
            return score(other_ids)

    samples = range(case.samples)
    return SweepResult(
        torch.tensor(clean),
        torch.tensor([run([], sample) for sample in samples]),
        torch.tensor([[run(sites, sample) for sample in samples] for sites in sets]),
    )


@pytest.mark.parametrize("case", [noisy(), twin()], ids=["noise", "counterfactual"])
@pytest.mark.parametrize("kind", list(MODULES))
def test_sets_equal_torch_hooks_on_the_raw_model(
    kind: str,
    case: CorruptedPrompt,
    make_model: Callable[..., LanguageModel],
    make_hf: Callable[..., Any],
) -> None:
    sets = list(SETS.values())
    expected = raw_runs(make_hf(kind), kind, case, sets)
    for batch_size in (None, 4):
        got = restore_together(make_model(kind), case, sets, mean_log_prob, batch_size=batch_size)
        assert float(got.clean) == pytest.approx(float(expected.clean), abs=1e-5)
        torch.testing.assert_close(got.corrupted, expected.corrupted, rtol=0, atol=1e-5)
        torch.testing.assert_close(got.restored, expected.restored, rtol=0, atol=1e-5)
    assert (got.restored[2:] - got.corrupted).abs().mean(1).min() > 1e-3  # something is restored


def test_identities(tiny_llama: LanguageModel) -> None:
    """None is the corrupted run, all is the clean one, and one alone is what the sweep gives."""
    got = restore_together(tiny_llama, noisy(), list(SETS.values()), mean_log_prob)
    by_name = dict(zip(SETS, got.restored, strict=True))
    assert torch.equal(by_name["none"], got.corrupted)
    # Behind the prompt, the first block's attention still reads the corrupted embeddings.
    assert (by_name["everything"] - got.clean).abs().min() > 1e-3
    short = replace(noisy(), answer=noisy().answer[:1])
    whole = restore_together(tiny_llama, short, [SETS["everything"]], mean_log_prob)
    torch.testing.assert_close(whole.restored[0], whole.clean.expand(3), rtol=0, atol=1e-5)
    two = "resid, two layers of one token", "resid, the same in the other order"
    assert torch.equal(by_name[two[0]], by_name[two[1]])
    alone = sweep(tiny_llama, noisy(), SETS["one"], mean_log_prob)
    torch.testing.assert_close(by_name["one"], alone.restored[0], rtol=0, atol=1e-5)
    # Two blocks of a window, one by one or as the window.
    apart = [[Site("mlp", 3, HERE[0]), Site("mlp", 3, HERE[1])], [Site("mlp", 3, range(2))]]
    first, second = restore_together(tiny_llama, noisy(), apart, mean_log_prob).restored
    assert torch.equal(first, second)
    assert restore_together(tiny_llama, noisy(), [], mean_log_prob).restored.shape == (0, 3)


def test_sites_that_cannot_be_restored_together_are_refused(tiny_llama: LanguageModel) -> None:
    for site, reason in (
        (Site("mlp", 8, HERE[0]), "outside the prompt"),
        (Site("resid", 2, HERE[0], "mlp"), "keeps states of the corrupted run"),
    ):
        with pytest.raises(InputError, match=reason):
            restore_together(tiny_llama, noisy(), [[site]], mean_log_prob)


def test_numbers_of_sites_are_distinct_and_end_with_all() -> None:
    shares = FaithfulnessConfig().shares
    assert numbers_of_sites(1000, shares) == [0, 10, 20, 50, 100, 200, 500, 1000]
    assert numbers_of_sites(60, shares) == [0, 1, 2, 3, 6, 12, 30, 60]
    assert numbers_of_sites(9, shares) == [0, 1, 2, 4, 8, 9, 9, 9]
    assert numbers_of_sites(1, shares) == [0, *[1] * 7]
    assert numbers_of_sites(10, ()) == [0, 10]


def test_areas_are_means_over_their_axes() -> None:
    numbers, curve = [0, 1, 2, 8, 8], np.array([0.0, 0.4, 0.8, 1.0, 1.0])
    # One doubling at 0.6 and two at 0.9; on the linear axis widths of 1, 1 and 6 at 0.2, 0.6, 0.9.
    assert area_under(curve, numbers) == pytest.approx((0.6 + 2 * 0.9) / 3)
    assert linear_area_under(curve, numbers) == pytest.approx((0.2 + 0.6 + 6 * 0.9) / 8)
    assert area_under(np.array([0.0, 0.7]), [0, 1]) == 0.7


# Curves of prompts: the definition again, from the map and single sets.

# One token of answer: what is behind the prompt is no site. Minus the divergence of the clean run
# is a score that every corruption lowers.
TRACE = TraceConfig(
    samples=3,
    answer="greedy",
    answer_tokens=1,
    window=2,
    positions="all",
    metrics=("negative_kl", "mean_log_prob"),
)
CONFIG = FaithfulnessConfig(shares=(0.1, 0.3), components=("resid", "attn", "mlp_single"))


def test_curves_are_those_of_the_sites_with_the_largest_effects(tiny_llama: LanguageModel) -> None:
    rule = tiny_rules()[0]
    shares: list[float] = []
    data = prompt_curves(tiny_llama, rule, "formula", TRACE, CONFIG, advance=shares.append)
    assert sum(shares) == pytest.approx(1)
    case = prepare(tiny_llama, rule, "formula", TRACE).case
    config = TRACE.model_copy(update={"components": CONFIG.components, "metrics": ("negative_kl",)})
    n = int(data["n_sites"].squeeze())
    k = data["k"].values.ravel().tolist()
    assert k == numbers_of_sites(n, CONFIG.shares) and k[-1] == n
    for method in ("exact", "attribution", "screen"):
        whole = config.model_copy(update={"method": method})
        found = effects.indirect_effect(trace(tiny_llama, rule, whole, progress=False))
        found = found.sel(rule=rule.id, form="formula").transpose("component", "layer", "pos")
        for component in CONFIG.components:
            first = case.positions[0]
            values = found.sel(component=component).values[:, first : len(case.prompt)]
            assert values.size == n
            best = np.argsort(-values.ravel(), kind="stable")[: k[2]]
            sites = []
            for layer, at in zip(*np.unravel_index(best, values.shape), strict=True):
                base, single = component.split("_")[0], component not in ("attn",)
                here = range(layer, layer + 1) if single else window(int(layer), 2, N_LAYERS)
                sites.append(Site(base, first + int(at), range(int(here[0]), int(here[-1]) + 1)))
            run = restore_together(tiny_llama, case, [sites], negative_kl)
            base_score = float(run.corrupted.double().mean())
            share = (float(run.restored.double().mean()) - base_score) / (
                float(run.clean) - base_score
            )
            curve = data["recovered"].sel(component=component, ranking=method).values.ravel()
            assert curve[2] == pytest.approx(share, abs=1e-4), (method, component)
    ends = data["recovered"].squeeze().transpose("component", "share", "ranking")
    np.testing.assert_allclose(ends[:, 0], 0, atol=1e-6)
    # All sites are the same sites in every ranking, and the whole stream is the clean run.
    np.testing.assert_allclose(ends[:, -1] - ends[:, -1, :1], 0, atol=1e-6)
    np.testing.assert_allclose(ends.sel(component="resid")[-1], 1, atol=1e-4)
    recovered = data["recovered"].values
    np.testing.assert_allclose(data["area"].values, area_under(recovered, k))
    np.testing.assert_allclose(data["linear_area"].values, linear_area_under(recovered, k))


def test_the_random_curve_is_the_mean_over_its_seeds(tiny_llama: LanguageModel) -> None:
    def curve(*seeds: int) -> np.ndarray:
        config = CONFIG.model_copy(update={"methods": ("random",), "seeds": seeds})
        data = prompt_curves(tiny_llama, tiny_rules()[0], "formula", TRACE, config)
        assert data["ranking"].values.tolist() == ["random"]
        return data["recovered"].values

    np.testing.assert_allclose(curve(3, 8), (curve(3) + curve(8)) / 2, atol=1e-6)
    assert np.abs(curve(3) - curve(8)).max() > 1e-3


def test_a_folder_of_rules_is_continued_and_skips_are_counted(
    tiny_llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules, folder = tiny_rules(), tmp_path / "faithfulness"
    trace_config = TRACE.model_copy(update={"answer": "truth"})  # one form has none
    advanced: list[float] = []

    def run() -> Any:
        return rule_curves(tiny_llama, rules, trace_config, CONFIG, folder, advance=advanced.append)

    data, skipped = run()
    assert sum(advanced) == 5  # without rounding, which a progress bar would not take
    assert data.sizes["rule"] == 2 and data.attrs["n_skipped"] == len(skipped) >= 1
    assert int((data["n_sites"] > 0).sum()) == 5 - len(skipped)
    assert "cube-volume/formula: rule 'cube-volume' has no true answer" in data.attrs["skipped"]
    gone = data.sel(rule="cube-volume", form="formula")
    assert gone["area"].isnull().all() and int(gone["k"].sum()) == 0
    whole = data["n_sites"] > 0
    assert bool((data["recovered"].notnull() == whole).all())

    files = sorted(folder.glob("*.nc"))
    assert len(files) == 5 - len(skipped)
    files[0].unlink()
    calls: list[str] = []

    def counted(*args: Any, **more: Any) -> Any:
        calls.append(args[2])
        return prompt_curves(*args, **more)

    monkeypatch.setattr(curves_of_rules, "prompt_curves", counted)
    again, _ = run()
    assert len(calls) == 1 + len(skipped)  # what is skipped is tried again
    assert again.identical(data)
    (folder / "other.nc").write_bytes(b"")
    rule_curves(tiny_llama, rules, trace_config, CONFIG, folder, only=True)
    assert sorted(folder.glob("*.nc")) == files


def test_what_is_not_traceable_is_skipped_with_its_reason(
    tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    # This random model likes the true answer better after noise.
    other = TRACE.model_copy(update={"answer": "truth", "metrics": ("mean_log_prob",)})
    square = tiny_rules()[0]
    reason = "not traceable: the total effect -.* is not above 2 standard errors"
    with pytest.raises(NotTraceableError, match=reason):
        prompt_curves(tiny_llama, square, "description", other, CONFIG)
    alone = square.model_copy(update={"forms": {"description": square.forms["description"]}})
    with pytest.raises(NotTraceableError, match=f"no prompt has a curve: square-area/.*{reason}"):
        rule_curves(tiny_llama, [alone], other, CONFIG, tmp_path / "none")


def test_settings_that_curves_cannot_be_made_with_are_refused() -> None:
    with pytest.raises(InputError, match=r"set trace\.direction=denoise"):
        check_settings(TraceConfig(direction="noise"))
    twins = TraceConfig(corruption="counterfactual", metrics=("log_prob_difference",))
    with pytest.raises(InputError, match="second sweep"):
        check_settings(twins)
    for wrong, reason in (
        ({"components": ("resid_mlp_frozen",)}, "keep states"),
        ({"components": ("mlp", "mlp")}, "named once"),
        ({"shares": (0.5, 0.1)}, "ascending"),
        ({"shares": (0.0,)}, "greater than 0"),
        ({"seeds": ()}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=reason):
            FaithfulnessConfig.model_validate(wrong)
