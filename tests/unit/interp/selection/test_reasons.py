"""The words of a choice: one idea a sentence, and what it takes where it is not supported."""

from pathlib import Path

import pytest

from interp.config import SelectConfig
from interp.results import effects
from interp.selection import reasons, strategies
from interp.selection.from_sweep import select_from_sweep
from interp.selection.layers import LayerSelection
from interp.selection.reasons import objections, significance
from interp.selection.select import select_layers
from interp.selection.strategy import Strategy
from tests.unit.selection_making import FIXED

DATA = Path(__file__).parents[4] / "docs/data"


def chosen(strategy: Strategy, **settings: object) -> LayerSelection:
    """What a strategy chooses from the stored results of the embedded model."""
    held_settings = {"strategy": strategy.name, "bootstrap": 200, "lookup": "mention_last"}
    config = SelectConfig.model_validate({**held_settings, **settings})
    held = {name: effects.load(DATA / f"{name}-smollm2.nc") for name in strategy.reads}
    if "evidence" in held:  # stands in for a measure that the stored file is too old to have
        names = {name: held["evidence"]["reach"] for name in strategy.measures}
        held["evidence"] = held["evidence"].assign({**names, **held["evidence"].data_vars})
    if "sweep" in held:
        return select_from_sweep(held["sweep"], config)
    return select_layers(held["profile"], config, evidence=held.get("evidence"))


@pytest.mark.parametrize("strategy", strategies.every(), ids=lambda each: each.name)
def test_every_strategy_says_its_choice_in_sentences(strategy: Strategy) -> None:
    assert strategy.summary and strategy.summary[-1] != "." and strategy.min_rules >= 2
    for group in chosen(strategy).groups:
        assert group.reason[0].isupper() and group.reason[-1] == "." and ";" not in group.reason
        names = reasons.layer_names(group.layers)
        assert names in group.reason.lower() and "95 % CI" in group.reason
        assert f"Stability {group.stability:.2f}." in group.reason
        if strategy.name not in FIXED:
            assert f"Stability {group.stability:.2f}. Significant: p " in group.reason
            assert group.supported and group.objections == ()
    if strategy.name in FIXED:  # its picks are all alike
        return
    for group in chosen(strategy, min_stability=1).groups:
        below = f"Stability {group.stability:.2f} is below select.min_stability = 1."
        assert group.objections == (below,) and below in group.reason and not group.supported


def test_the_sentences_of_four_rules_of_the_embedded_model() -> None:
    profile = effects.load(DATA / "profile-smollm2.nc").isel(rule=slice(0, 4))
    group = select_layers(profile).groups[0]
    assert group.reason == (
        "Layers 4–9 have a higher mean MLP effect (0.122 nats per token, 95 % CI 0.074–0.176) than"
        " the other layers (0.017). Stability 0.80. Not significant: p = 0.125 with 4 rules (at"
        " least 5 needed)."
    )
    assert group.objections == ("Not significant: p = 0.125 with 4 rules (at least 5 needed).",)


@pytest.mark.parametrize(
    ("p_value", "rules", "settings", "said"),
    [
        (0.0001, 20, {}, "Significant: p < 0.001 with 20 rules."),
        (0.5, 1, {}, "Not significant: p = 0.500 with 1 rule (at least 5 needed)."),
        (0.06, 30, {}, "Not significant: p = 0.060 with 30 rules."),
        (0.06, 30, {"level": 0.1}, "Significant at level 0.1: p = 0.060 with 30 rules."),
        (
            0.125,
            3,
            {"level": 0.1},
            "Not significant at level 0.1: p = 0.125 with 3 rules (at least 4 needed).",
        ),
        (
            0.01,
            30,
            {"level": 0.001, "bootstrap": 100},
            "Not significant at level 0.001: p = 0.010 with 30 rules.",
        ),
        (
            0.01,
            30,
            {"level": 0.0001},
            "Not significant at level 0.0001: p = 0.010 with 30 rules (more draws needed: raise"
            " select.bootstrap).",
        ),
        (0.5, 1, {"level": 1}, "Not tested (select.level = 1): p = 0.500 with 1 rule."),
    ],
)
def test_significance_says_what_it_takes(
    p_value: float, rules: int, settings: dict[str, float], said: str
) -> None:
    assert significance(p_value, rules, SelectConfig.model_validate(settings)) == said


def test_objections_are_a_sentence_each() -> None:
    config = SelectConfig(min_stability=0.5)
    assert objections(n_rules=8, stability=0.6, config=config, lower=0.1, p_value=0.01) == ()
    got = objections(n_rules=1, stability=0.2, config=config, lower=0.0, floor=0.02, p_value=0.5)
    assert got == (
        "There is only one rule.",
        "The interval reaches zero.",
        "Stability 0.20 is below select.min_stability = 0.5.",
        "Not significant: p = 0.500 with 1 rule (at least 5 needed).",
    )
    assert objections(n_rules=8, stability=0.6, config=config, lower=0.01, floor=0.02) == (
        "The interval reaches 1 % of the total effect.",
    )
    assert objections(n_rules=8, stability=0.6, config=config, min_rules=10) == (
        "There are only 8 rules, and 10 are needed.",
    )
