"""A run folder from Python: what `dmle run` does, without ending the process or printing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from interp.app.run import Run, flat, options, raw_settings
from interp.app.steps import known_sections, load_steps, parse_settings
from interp.config import ConfigError, TraceConfig
from interp.errors import DmleError, InputError, StaleError
from interp.results import effects
from interp.results.run_folder import RunError
from interp.rules.sources import Rule, dump_rules
from interp.settings.assignments import read_assignment


@pytest.fixture
def settings(model_folder: Path, rules: Sequence[Rule], tmp_path: Path) -> dict[str, Any]:
    dump_rules(rules[:1], tmp_path / "rules.json")
    return {
        "model": {"name": str(model_folder), "device": "cpu"},
        "rules.source": str(tmp_path / "rules.json"),
        "trace": {"samples": 8, "span": "content", "answer": "greedy", "components": ["mlp"]},
        "trace.answer_tokens": 3,
        "profile.bootstrap": 10,
        "select.bootstrap": 10,
        "select.identity_blocks": 0,
    }


def test_steps_run_one_by_one_or_together_print_nothing_and_load_the_model_once(
    settings: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path / "run", settings=settings, progress=None)
    assert "3 prompts traced" in run.step("trace")
    said = run("profile", "select")
    assert list(said) == ["profile", "select"] and "selection: " in said["select"]
    assert capfd.readouterr() == ("", "")
    model = run.model
    assert run("trace")["trace"].startswith("3 prompts traced") and run.model is model
    profile = run.load("profile.nc")
    assert profile.sizes["layer"] == model.n_layers == run.selection.n_layers
    # Another run of the folder goes on with its settings.
    again = Run(tmp_path / "run", progress=None)
    assert again.context.settings(TraceConfig).samples == 8
    np.testing.assert_array_equal(
        again.load("effects.nc")["score"], run.load("effects.nc")["score"]
    )


def test_progress_is_told_to_whoever_asks(settings: dict[str, Any], tmp_path: Path) -> None:
    bars: list[str] = []
    done: list[float] = []

    class Bar:
        def __init__(self, *, total: float, desc: str, **options: Any) -> None:
            bars.append(f"{desc} {total}")

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: object) -> None: ...

        def update(self, n: float) -> None:
            done.append(n)

    Run(tmp_path / "run", settings=settings, progress=Bar)("trace")
    assert bars == ["trace 3"] and sum(done) == pytest.approx(3)


def test_what_is_wrong_is_raised(
    settings: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(ConfigError, match=r"unknown setting 'trace\.sample': did you mean"):
        Run(folder, settings={"trace.sample": 3})
    with pytest.raises(ConfigError, match="section 'trace' holds 3"):
        Run(folder, settings={"trace": 3})
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        Run(folder, config=tmp_path / "none.yaml")
    assert not folder.exists()
    run = Run(folder, settings=settings, progress=None)
    with pytest.raises(InputError, match="there is no step 'traces': did you mean 'trace'"):
        run("traces")
    with pytest.raises(RunError, match=r"run `dmle trace --run .*` first"):
        run("profile")
    with pytest.raises(RunError, match=r"run `dmle select --run .*` first"):
        _ = run.selection
    run("trace")
    other = Run(folder, settings={"trace.samples": 9}, progress=None)
    with pytest.raises(StaleError, match=r"trace\.samples was 8 .* --set trace\.samples=9"):
        other("profile")
    with pytest.raises(DmleError, match="no rule left"):
        Run(folder, settings={"rules.split": "test", "rules.source": "embedded"})("trace")
    assert capfd.readouterr() == ("", "")


def test_a_fault_of_the_code_is_no_error_of_the_user(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.app import commands

    def fails(*names: object, **more: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("interp.tracing.trace.trace_rules", fails)
    flags = [f"--set={key}={value}" for key, value in flat(settings) if key != "trace.components"]
    with pytest.raises(ValueError, match="a bug"):
        commands.main(["trace", "--run", str(tmp_path / "run"), *flags])


def test_options_give_the_settings_back(tmp_path: Path) -> None:
    given = {
        "model.name": "-m",
        "model.device": "cpu",
        "rules.limit": 3,
        "rules.ids": ["a, b", "1"],
        "rules.split": None,
        "trace": {"span": "numbers", "noise": "1.10", "tolerance": 0.5, "metrics": ["negative_kl"]},
        "edit.arms": {"early": {"editor": "memit", "block": "2-4"}},
        "edit.arms.early.ridge": "0.3",
        "edit.preset": "null",
    }
    pairs = flat(given)
    short = {"--model": "model.name", "--limit": "rules.limit", "--device": "model.device"}
    read = [
        read_assignment(value) if flag == "--set" else read_assignment(f"{short[flag]}={value}")
        for flag, value in options(None, pairs)
    ]
    assert raw_settings({}, settings=read) == raw_settings({}, settings=pairs)
    assert options(tmp_path / "c.yaml", []) == [("--config", str(tmp_path / "c.yaml"))]


SETTINGS = [
    (name, key) for name, cls in known_sections(load_steps()).items() for key in cls.model_fields
]


@pytest.mark.parametrize(("section", "key"), SETTINGS, ids=[".".join(each) for each in SETTINGS])
def test_null_clears_every_setting_of_every_section(section: str, key: str, tmp_path: Path) -> None:
    held = {section: {key: "something", "other": 1}}
    path = tmp_path / "held.yaml"
    path.write_text(yaml.safe_dump(held), encoding="utf-8")
    clear = [read_assignment(f"{section}.{key}=null")]
    for raw in (
        raw_settings(held, settings=clear),
        raw_settings({}, config=path, settings=clear),
        raw_settings({}, settings=[(f"{section}.{key}", "something"), *clear]),
    ):
        assert key not in raw[section]
    default = parse_settings(load_steps(), {})[section]
    cleared = parse_settings(load_steps(), raw_settings({}, settings=clear))[section]
    assert cleared == default


def test_null_in_a_command_line_clears_what_the_run_has(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    Run(folder, settings=settings | {"rules.ids": ["square-area"]}, progress=None)("trace")
    run = Run(folder, settings={"rules.ids": None, "trace.window": None}, progress=None)
    run("profile")
    kept = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))["settings"]
    assert "ids" not in run.context.given["rules"] and kept["trace"]["samples"] == 8
    assert effects.load(folder / "profile.nc").attrs["bootstrap"] == 10
