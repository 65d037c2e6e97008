"""Steps as packages register them, and what a step gets to work with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from interp.app.steps import CHAIN, COMMON, Context, load_steps, parse_settings
from interp.config import ConfigError, ModelConfig, RulesConfig, SelectConfig, TraceConfig
from interp.results.run_folder import RunFolder
from interp.rules.sources import Rule, dump_rules


def split_rules(rules: Sequence[Rule], splits: Sequence[str | None]) -> list[Rule]:
    """One rule per entry, with that split."""
    return [
        rules[0].model_copy(update={"id": f"r{i}", "split": split})
        for i, split in enumerate(splits)
    ]


def context(tmp_path: Path, rules: Sequence[Rule], **settings: Any) -> Context:
    dump_rules(rules, tmp_path / "rules.json")
    config = RulesConfig(source=str(tmp_path / "rules.json"), **settings)
    return Context(RunFolder(tmp_path / "run"), {"model": ModelConfig(), "rules": config})


def test_the_chain_is_registered_in_order() -> None:
    steps = load_steps()
    assert tuple(steps) == (
        *CHAIN,
        "atlas",
        "compare",
        "covariance",
        "evidence",
        "faithfulness",
        "regret",
        "sequence",
        "sweep",
        "tune",
    )
    for name, step in steps.items():
        assert step.name == name
    assert [name for name, step in steps.items() if step.needs_model] == [
        "trace", "edit", "evaluate", "atlas", "compare", "covariance", "evidence", "faithfulness",
        "sequence", "sweep", "tune",
    ]  # fmt: skip


def test_no_two_steps_mean_different_settings_by_one_section() -> None:
    seen: dict[str, type] = dict(COMMON)
    for step in load_steps().values():
        for name, section in step.sections.items():
            assert seen.setdefault(name, section) is section


def test_every_default_setting_is_valid() -> None:
    parsed = parse_settings(load_steps(), {})
    assert {"model", "rules", "trace", "profile", "select", "edit", "evaluate"} <= set(parsed)
    for section in parsed.values():
        assert type(section).model_validate(section.model_dump(mode="json")) == section


def test_parse_settings_keeps_what_is_given() -> None:
    parsed = parse_settings(load_steps(), {"trace": {"samples": 9}, "select": {"width": 2}})
    assert parsed["trace"] == TraceConfig(samples=9) and parsed["select"] == SelectConfig(width=2)


def test_parse_settings_names_the_nearest_section() -> None:
    with pytest.raises(ConfigError, match=r"unknown section 'tarce': did you mean 'trace'\?"):
        parse_settings(load_steps(), {"tarce": {}})
    with pytest.raises(ConfigError, match="unknown section 'xyz': valid are model, rules, trace"):
        parse_settings(load_steps(), {"xyz": {}})


def test_context_gives_settings_by_their_class(tmp_path: Path) -> None:
    sections = parse_settings(load_steps(), {"trace": {"seed": 4}})
    assert Context(RunFolder(tmp_path), sections).settings(TraceConfig).seed == 4
    with pytest.raises(KeyError, match="TraceConfig"):
        Context(RunFolder(tmp_path), {}).settings(TraceConfig)


@pytest.mark.parametrize(
    ("settings", "ids"),
    [
        ({}, ["r0", "r1", "r2", "r3", "r4", "r5"]),
        ({"limit": 1}, ["r0", "r1", "r3"]),  # the first of each split
        ({"limit": 2}, ["r0", "r1", "r2", "r3", "r5"]),
        ({"split": "train"}, ["r0", "r2", "r4"]),
        ({"split": "train", "limit": 2}, ["r0", "r2"]),
        ({"ids": ("r4", "r1")}, ["r1", "r4"]),
    ],
)
def test_context_chooses_the_rules(
    settings: dict[str, Any], ids: list[str], rules: Sequence[Rule], tmp_path: Path
) -> None:
    chosen = split_rules(rules, ["train", "test", "train", None, "train", "test"])
    assert [rule.id for rule in context(tmp_path, chosen, **settings).rules] == ids


def test_rules_of_takes_the_splits_and_rules_without_one(
    rules: Sequence[Rule], tmp_path: Path
) -> None:
    found = context(tmp_path, split_rules(rules, ["train", "test", None, "validation"]))
    assert [rule.id for rule in found.rules_of(("train", "validation"), "trace.splits")] == [
        "r0",
        "r2",
        "r3",
    ]


def test_rules_of_says_which_setting_leaves_none(rules: Sequence[Rule], tmp_path: Path) -> None:
    found = context(tmp_path, split_rules(rules, ["test", "test"]))
    message = (
        "no rule left: trace.splits is train, validation, but the run's rules are of split test"
    )
    with pytest.raises(ValueError, match=message):
        found.rules_of(("train", "validation"), "trace.splits")
