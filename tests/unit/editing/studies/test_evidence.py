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
from editing.config import CovarianceConfig, EditConfig
from editing.editors.registry import editor
from editing.edits.requests import requests_of
from editing.studies import evidence as evidence_module
from editing.studies.config import SweepConfig
from editing.studies.evidence import (
    MEASURES,
    Pass,
    evidence_dataset,
    evidence_of,
    inner_products,
)
from editing.studies.regret import choices, placed
from interp import vocabulary
from interp.config import SelectConfig
from interp.errors import NotTraceableError
from interp.models.loading import LanguageModel
from interp.models.tokens import token_positions
from interp.results import effects
from interp.rules.sources import Rule
from interp.selection.select import select_layers
from interp.selection.strategies import auto
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


def products_of(model: LanguageModel, rule: Rule) -> dict[str, np.ndarray]:
    """The rule's inner products by form, where it has them; asks for no locality prompts, whose
    measure reads statistics."""
    bare = {
        form: each.model_copy(update={"neighborhood": (), "distracting": ()})
        for form, each in rule.forms.items()
    }
    none: Any = None
    found = evidence_of(model, rule.model_copy(update={"forms": bare}), LOOKUP, none)
    rows = zip(FORMS, found[MEASURES.index("lga")], strict=True)
    return {form: row for form, row in rows if not np.isnan(row).any()}


def test_inner_products_by_hand() -> None:
    """Two tokens against one, in two blocks: Σ (g · g') (k · k')."""
    one = Pass(
        keys=[torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])],
        slopes=[torch.tensor([[1.0], [3.0]]), torch.tensor([[-1.0], [1.0]])],
        streams=[],
    )
    other = Pass(
        keys=[torch.tensor([[4.0, 1.0]]), torch.tensor([[1.0, 1.0]])],
        slopes=[torch.tensor([[2.0]]), torch.tensor([[5.0]])],
        streams=[],
    )
    # (1·2)(4 + 2) + (3·2)(1), and (-1·5)(1) + (1·5)(2).
    np.testing.assert_array_equal(inner_products(one, other), [18, 5])
    np.testing.assert_array_equal(inner_products(other, one), [18, 5])
    # With itself: the squared norm of [1, 2] + 3 · [0, 1], the matrix written out.
    assert inner_products(one, one)[0] == 1 + 5**2


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_lga_is_the_mean_inner_product_of_full_weight_gradients(
    make_model: Callable[..., LanguageModel], rules: tuple[Rule, ...], architecture: str
) -> None:
    model, rule = make_model(architecture, check=False), rules[0]
    weights = [model.down_projection(layer).weight for layer in range(model.n_layers)]

    def gradients(text: str, answer: str) -> tuple[Tensor, ...]:
        prompt, target = model.encode(text), model.encode_continuation(answer, text)
        with torch.enable_grad():
            logits = model.logits(torch.tensor([[*prompt.ids, *target[:-1]]]), keep=len(target))[0]
            chosen = logits.log_softmax(-1).gather(-1, torch.tensor(target)[:, None])
            return torch.autograd.grad(-chosen.mean(), weights)

    prompts = {form: (each.prompt, each.target_new) for form, each in rule.forms.items()}
    others = {
        form: [
            *((text, each.target_new) for text in each.rephrasings),
            *(pair for name, pair in prompts.items() if name != form),
        ]
        for form, each in rule.forms.items()
    }
    for weight in weights:
        weight.requires_grad_(True)
    expected = {
        form: [
            [float((a * b).sum()) for a, b in zip(gradients(*prompts[form]), far, strict=True)]
            for far in (gradients(*other) for other in others[form])
        ]
        for form in prompts
    }
    for weight in weights:
        weight.requires_grad_(False)
    found = products_of(model, rule)
    assert len(expected) == 3 and all(len(each) == 3 for each in expected.values())
    for form, rows in expected.items():
        scale = np.abs(rows).max()
        np.testing.assert_allclose(found[form], np.mean(rows, 0), rtol=1e-5, atol=1e-5 * scale)
        assert (found[form] != 0).all()


def test_lga_reads_no_prompt_of_another_rule_and_needs_another_of_its_own(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    run = evidence_module.pass_of
    monkeypatch.setattr(
        evidence_module,
        "pass_of",
        lambda model, request: (read.append(request.prompt), run(model, request))[1],
    )
    products_of(tiny_llama, rules[0])
    forms = rules[0].forms.values()
    assert sorted(read) == sorted(
        text for form in forms for text in (form.prompt, *form.rephrasings)
    )
    alone = rules[1].model_copy(update={"forms": {"formula": rules[1].forms["formula"]}})
    assert products_of(tiny_llama, alone) == {}


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
    """All measures largest in three layers from `peak` on, in all rules but for noise."""
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
        ("combined", None, "combined reads evidence, and no evidence of edits was given; `dmle ev"),
        ("lga", None, "lga reads evidence, and no evidence of edits was given; `dmle evidence`"),
        (
            "window",
            evidence(3),
            "what reads evidence is auto, combined, lga, reach",
        ),
        ("combined", profile(), "expected evidence of edits"),
        ("lga", evidence(3).drop_vars("lga"), "has no lga, since an .* run `dmle evidence` again"),
        ("combined", evidence(3, n_layers=9), "another model"),
        ("combined", evidence(3).assign_attrs(weight_hash="4567"), "another model"),
    ],
)
def test_evidence_that_is_missing_or_does_not_fit_is_refused(
    strategy: Any, held: xr.Dataset | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        select_layers(profile(), SelectConfig(strategy=strategy, identity_blocks=0), evidence=held)


@pytest.mark.parametrize("measure", ["reach", "lga"])
def test_a_strategy_follows_its_measure_alone(measure: Any) -> None:
    """The profile says 3-5, the other measures 8-10, and restored windows move no candidate."""
    config = SelectConfig(strategy=measure, width=3, identity_blocks=0, bootstrap=200)
    held, traced = evidence(8), profile().assign_attrs(window=4)
    held[measure] = evidence(1)[measure]
    first, second = select_layers(traced, config, evidence=held).groups
    for group in (first, second):
        assert group.layers == (1, 2, 3) and group.supported and group.n_rules == 10
    assert first.score == pytest.approx(held[measure][:, :2, 1:4].mean())
    words = {"reach": "mean reach of edits", "lga": "mean inner product of gradients"}[measure]
    assert f"Layers 1–3 are the window of 3 layers with the highest {words} (0." in first.reason
    assert "nats per token" in first.reason
    # Rules that have the measure count, also where they are not traceable.
    traced["effect"][2:] = np.nan
    assert select_layers(traced, config, evidence=held).groups[0].n_rules == 10
    held[measure][4:] = np.nan
    assert select_layers(traced, config, evidence=held).groups[0].n_rules == 4
    none = held.assign_coords(rule=[f"other{i}" for i in range(10)])
    with pytest.raises(NotTraceableError, match=f"no rule of the profile has {measure} in its"):
        select_layers(traced, config, evidence=none)


@pytest.mark.parametrize("strategy", ["reach", "lga"])
@pytest.mark.parametrize("level", [0.0, 3.0])
def test_noise_in_the_measure_is_undecided(strategy: Any, level: float) -> None:
    """Also where all layers have much of it, as of a norm, which is no reason for one of them."""
    config = SelectConfig(strategy=strategy, width=3, identity_blocks=0, bootstrap=20)
    supported = 0
    for seed in range(60):
        noise = level + np.random.default_rng(seed).normal(size=(10, 3, 3, 12))
        held = evidence_dataset({f"r{i}": each for i, each in enumerate(noise)}, {})
        found = select_layers(profile(), config, evidence=held)
        supported += sum(group.supported for group in found.groups)
    assert supported <= 11  # of 120 at level 0.05: 6 ± 2 standard deviations


def test_the_fallback_of_a_measure_has_its_score_at_the_published_layers() -> None:
    config = SelectConfig(strategy="reach", width=3, bootstrap=50, fallback="published")
    held = evidence(8).isel(rule=slice(1))
    group = select_layers(profile().assign_attrs(window=4), config, evidence=held).groups[0]
    assert not group.supported and "published" in group.reason
    assert group.score == pytest.approx(held["reach"][:, :2, list(group.layers)].mean())


def test_combined_reads_its_own_measures_of_a_file_with_more_or_with_no_others() -> None:
    config = SelectConfig(strategy="combined", width=3, identity_blocks=0, bootstrap=50)
    held = evidence(8)
    held["lga"] = evidence(1)["lga"]
    with_all, earlier = (
        select_layers(profile(), config, evidence=each) for each in (held, held.drop_vars("lga"))
    )
    assert with_all == earlier


def test_regret_chooses_by_every_measure_that_the_evidence_has() -> None:
    config, select = SweepConfig(width=3), SelectConfig(identity_blocks=0, bootstrap=20)
    made = with_means(profile())
    held = evidence(8)
    held["reach"] = evidence(1)["reach"]
    for read, names in ((held, {"combined", "reach", "lga"}), (held.drop_vars("lga"), {"reach"})):
        chosen = {each.strategy: each.layers for each in choices(made, config, select, read)}
        assert names <= set(chosen) and chosen["reach"] == (1, 2, 3)
        assert ("lga" in chosen) == ("lga" in read)
        assert chosen.get("lga", (8, 9, 10)) == (8, 9, 10)


def test_regret_lets_auto_choose_for_the_edits_of_the_sweep() -> None:
    config, select = SweepConfig(width=3), SelectConfig(identity_blocks=0, bootstrap=20)
    held = evidence(8, lookup="mention_last")
    held["reach"], held["lga"] = evidence(1)["reach"], evidence(5)["lga"]
    for solver, lookup, layers in (
        ("memit", "mention_last", (1, 2, 3)),
        ("ft_whitened", "subject_last", (5, 6, 7)),
        ("memit", "subject_last", None),  # the evidence is of another token
        ("memit", "last", None),  # the profile has not that token
    ):
        own = placed(select, {"solver": solver, "lookup": lookup})
        made = choices(with_means(profile()), config, own, held)
        chosen = {each.strategy: each.layers for each in made}
        assert chosen.get("auto") == layers and chosen["reach"] == (1, 2, 3)


def test_auto_knows_which_editors_look_a_token_up() -> None:
    config = SelectConfig()
    assert config.editor == "dmle" and config.lookup == EditConfig().lookup
    for name in (*auto.GRADIENT_EDITORS, *auto.AT_LAST_TOKEN, *auto.WITHOUT_LAYERS):
        assert not editor(name).needs & {"lookup", "groups"}
        assert bool(editor(name).blocks) == (name not in auto.WITHOUT_LAYERS)


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
    code, said = dmle("select", "--strategy", "auto", *common)
    assert code != 0 and "dmle evidence" in said
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
    code, said = dmle("select", "--strategy", "auto", *common)
    assert code == 0 and "The evidence for edits by dmle at subject_last is the reach" in said
    code, said = dmle("select", "--strategy", "auto", "--set", "select.lookup=last", *common)
    assert code != 0 and "`dmle trace --positions subject_last,rule_word,last`" in said
    effects.save(made.assign_coords(rule=["other", *ids[1:]]), run / "profile.nc")
    code, said = dmle("evidence", *common)
    assert code != 0 and "not among this run's rules" in said
