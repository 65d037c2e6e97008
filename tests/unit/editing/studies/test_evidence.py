"""Evidence of edits: each measure against its definition, the selection that reads it, and the
command."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from editing.closed_form.covariance import Covariances, measure
from editing.config import CovarianceConfig
from editing.edits.requests import requests_of
from editing.studies.evidence import MEASURES, evidence_dataset, evidence_of
from interp import vocabulary
from interp.config import SelectConfig
from interp.models.loading import LanguageModel
from interp.models.tokens import token_positions
from interp.results import effects
from interp.rules.sources import Rule
from interp.selection.select import select_layers
from interp.vocabulary import FORMS, ROLES
from tests.unit.records import known, recorded, with_means

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str]]
LOOKUP = "subject_last"


@pytest.fixture(scope="module")
def statistics(tiny_llama: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Covariances:
    folder = tmp_path_factory.mktemp("statistics")
    (folder / "corpus.txt").write_text(
        "\n".join(
            f"The {a} of a {b} is {n}."
            for n in range(30)
            for a in "pqr"
            for b in ("cube", "square")
        ),
        encoding="utf-8",
    )
    about = CovarianceConfig(corpus=str(folder / "corpus.txt"), tokens=600, shrinkage=0.05)
    return measure(tiny_llama, range(tiny_llama.n_layers), about, folder)


def states(model: LanguageModel, text: str, hook: str) -> Tensor:
    return model.capture(torch.tensor([model.encode(text).ids]), [hook])[hook][0].double()


def test_separability_is_one_less_the_largest_share_that_another_token_gets(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...], statistics: Covariances
) -> None:
    rule = rules[0]
    found = evidence_of(tiny_llama, rule, LOOKUP, statistics)[MEASURES.index("separability")]
    some = 0
    for request in requests_of(rule, LOOKUP):
        form = rule.forms[request.form]
        prompts = [probe.prompt for probe in (*form.neighborhood, *form.distracting)]
        at = token_positions(tiny_llama.encode(request.prompt), request.lookup_span(LOOKUP))[-1]
        for layer in range(tiny_llama.n_layers):
            got = found[FORMS.index(request.form), layer]
            if not prompts:
                assert math.isnan(got)
                continue
            hook = tiny_llama.key_hook(layer)
            key = states(tiny_llama, request.prompt, hook)[at]
            inverse = torch.linalg.inv(statistics.moment(layer).double())
            shares = [
                float(abs(other @ inverse @ key) / (key @ inverse @ key))
                for prompt in prompts
                for other in states(tiny_llama, prompt, hook)
            ]
            assert got == pytest.approx(max(0, 1 - max(shares)), abs=1e-5)
            some += got > 0
    assert some  # not all tokens of all prompts share their keys


def test_reach_is_the_steepest_slope_of_the_answer_times_the_size_of_the_stream(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...], statistics: Covariances
) -> None:
    """Against differences of the score along every axis, which are the entries of the gradient."""
    model, request = tiny_llama, requests_of(rules[0], LOOKUP)[0]
    found = evidence_of(model, rules[0], LOOKUP, statistics)[
        MEASURES.index("reach"), FORMS.index(request.form)
    ]
    prompt, target = model.encode(request.prompt), model.encode_continuation(request.target_new)
    at = token_positions(prompt, request.lookup_span(LOOKUP))[-1]
    ids = torch.tensor([[*prompt.ids, *target[:-1]]])

    def score(layer: int, change: Tensor) -> float:
        def add(value: Tensor, hook: Any) -> Tensor:
            out = value.clone()
            out[0, at] += change
            return out

        with torch.no_grad():
            logits = model.logits(ids, keep=len(target), hooks=[(model.value_hook(layer), add)])[
                0
            ].double()
        said = logits.log_softmax(-1).gather(-1, torch.tensor(target)[:, None])
        return float(said.mean())

    for layer in range(model.n_layers):
        step = 3e-3
        basis = torch.eye(model.d_model)
        slopes = [(score(layer, step * e) - score(layer, -step * e)) / (2 * step) for e in basis]
        stream = states(model, request.prompt, model.hook("resid", layer))[at].norm().item()
        assert found[layer] == pytest.approx(
            float(np.linalg.norm(slopes) * stream), rel=2e-2, abs=1e-4
        )


def profile(n_layers: int = 12, rules: int = 10) -> xr.Dataset:
    """A slight effect in layers 3-5 in every rule, among noise."""
    effect = 0.02 * np.random.default_rng(0).normal(size=(rules, 3, 1, 1, n_layers))
    effect[..., 3:6] += 0.3
    dims = ("rule", "form", "component", "role", "layer")
    coords = {
        "rule": [f"r{i}" for i in range(rules)],
        "form": list(FORMS),
        "component": ["mlp"],
        "role": ["lookup"],
        "layer": range(n_layers),
    }
    traced = np.ones((rules, 3), dtype=bool)
    return xr.Dataset(
        {
            "effect": (dims, effect),
            "te": ("form", np.full(3, 2.0)),
            "total_effect": (("rule", "form"), 2.0 * traced),
            "traceable": (("rule", "form"), traced),
        },
        coords,
        {"window": 1, "weight_hash": "0123"},
    )


def evidence(peak: int, n_layers: int = 12, rules: int = 10, **attrs: str) -> xr.Dataset:
    """Both measures largest in three layers from `peak` on, in all rules but for noise."""
    rng = np.random.default_rng(1)
    held = {}
    for rule in range(rules):
        values = 0.5 + 0.01 * rng.normal(size=(len(MEASURES), len(FORMS), n_layers))
        values[..., peak : peak + 3] += 0.2
        held[f"r{rule}"] = values
    return evidence_dataset(held, {"weight_hash": "0123", **attrs})


def test_combined_follows_what_two_of_three_say() -> None:
    config = SelectConfig(strategy="combined", width=3, identity_blocks=0, bootstrap=100)
    assert select_layers(profile(), config, evidence=evidence(3)).layers_of("formula") == (3, 4, 5)
    found = select_layers(profile(), config, evidence=evidence(8))
    assert found.layers_of("instance") == (8, 9, 10)
    first = found.groups[0]
    assert first.supported and first.stability == 1 and first.n_rules == 10
    assert "standard deviations" in first.reason
    # One peak of three layers among twelve is √3 standard deviations high, and all others 1/√3 low,
    # in each source.
    assert first.score == pytest.approx((2 * 3**0.5 - 3**-0.5) / 3, abs=0.05)


def test_combined_leaves_out_rules_without_evidence_and_needs_some() -> None:
    config = SelectConfig(strategy="combined", width=3, identity_blocks=0, bootstrap=50)
    some = evidence(3).isel(rule=slice(4))
    assert select_layers(profile(), config, evidence=some).groups[0].n_rules == 4
    with pytest.raises(ValueError, match="no rule with evidence is traceable"):
        select_layers(profile(), config, evidence=some.assign_coords(rule=["a", "b", "c", "d"]))


def test_noise_in_all_sources_is_not_supported() -> None:
    rng = np.random.default_rng(5)
    flat = profile()
    flat["effect"][:] = rng.normal(size=flat["effect"].shape)
    held = {f"r{i}": rng.normal(size=(len(MEASURES), len(FORMS), 12)) for i in range(10)}
    config = SelectConfig(strategy="combined", width=3, identity_blocks=0, bootstrap=200)
    found = select_layers(flat, config, evidence=evidence_dataset(held, {}))
    assert not found.groups[0].supported and not found.groups[1].supported


def test_the_published_fallback_has_no_combined_score() -> None:
    config = SelectConfig(
        strategy="combined",
        width=3,
        identity_blocks=0,
        bootstrap=50,
        min_stability=1,
        fallback="published",
    )
    held = evidence(8).isel(rule=slice(1))
    group = select_layers(profile(), config, evidence=held).groups[0]
    assert not group.supported and group.score is None and "published" in group.reason


@pytest.mark.parametrize(
    ("strategy", "held", "message"),
    [
        ("combined", None, "reads evidence of edits .* and none was given"),
        ("window", evidence(3), "does not read it; what reads evidence is combined"),
        ("combined", profile(), "expected evidence of edits"),
        ("combined", evidence(3, n_layers=9), "another model"),
        ("combined", evidence(3).assign_attrs(weight_hash="4567"), "another model"),
    ],
)
def test_evidence_that_is_missing_or_does_not_fit_is_refused(
    strategy: Any, held: xr.Dataset | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        select_layers(profile(), SelectConfig(strategy=strategy, identity_blocks=0), evidence=held)


def test_the_command_measures_the_profile_s_rules_once_and_select_reads_it(
    make_inputs: Callable[..., Path], rules: tuple[Rule, ...], dmle: Command, tmp_path: Path
) -> None:
    select = {"width": 1, "identity_blocks": 0, "bootstrap": 20, "level": 1}
    config, run = make_inputs(rules, {"select": select}) / "config.yaml", tmp_path / "run"
    common = ("--config", config, "--run", run)
    code, said = dmle("evidence", *common)
    assert code != 0 and "dmle profile" in said
    ids = [rule.id for rule in rules]
    made = profile(3, len(rules)).assign_coords(rule=ids).assign_attrs(weight_hash="")
    made = recorded(with_means(made), "profile", "profile").reindex(
        role=[*ROLES, vocabulary.LOOKUP]
    )
    known(run)
    effects.save(made, run / "profile.nc")
    assert dmle("select", "--strategy", "combined", *common)[0] != 0
    code, said = dmle("evidence", *common)
    assert code == 0, said
    held = effects.load(run / "evidence.nc")
    assert held["rule"].values.tolist() == ids and held.sizes["layer"] == 3
    times = {path: path.stat().st_mtime_ns for path in (run / "evidence").iterdir()}
    assert len(times) == len(ids)
    assert dmle("evidence", *common)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "evidence").iterdir()} == times
    code, said = dmle("select", "--strategy", "combined", *common)
    assert code == 0, said
    effects.save(made.assign_coords(rule=["other", *ids[1:]]), run / "profile.nc")
    code, said = dmle("evidence", *common)
    assert code != 0 and "not among this run's rules" in said
