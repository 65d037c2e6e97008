"""Settings as a person writes them: what is taken, what is refused, and that every advice works
when it is followed."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from editing.closed_form.spreading import site_of
from editing.config import EditConfig, EditorSettings
from interp.app.run import raw_settings
from interp.app.steps import load_steps, parse_settings
from interp.config import ConfigError, Section
from interp.settings.assignments import read_assignment


def parsed(*assignments: str, held: dict[str, Any] | None = None) -> dict[str, Section]:
    return parse_settings(
        load_steps(), raw_settings(held or {}, settings=map(read_assignment, assignments))
    )


def value_of(assignment: str, held: dict[str, Any] | None = None) -> Any:
    section, *path = assignment.partition("=")[0].split(".")
    found: Any = parsed(assignment, held=held)[section]
    for name in path:
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    return found


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        # A number is a name where a name is needed.
        ("edit.block=6", "6"),
        ("edit.layers=5", "5"),
        ("rules.ids=7", ("7",)),
        ("rules.ids=1.10", ("1.10",)),
        ("model.name=2020-01-01", "2020-01-01"),
        ("trace.noise=0.10", "0.10"),
        ("trace.noise=1e-3", "0.001"),
        # A number written as text is a number where a number is needed.
        ("edit.ft.learning_rate=1e-3", 0.001),
        ("trace.samples='8'", 8),
        ("covariance.tokens=60_000", 60_000),
        ("covariance.shrinkage=1e-1", 0.1),
        ("trace.samples=1e3", 1000),
        ("select.level=.05", 0.05),
        # One value is a list of one, and names may be separated by commas.
        ("edit.editors=memit", ("memit",)),
        ("edit.editors=memit,ft", ("memit", "ft")),
        ("trace.components=mlp", ("mlp",)),
        ("compare.seeds=3", (3,)),
        ("sweep.groups=formula", (("formula",),)),
        ("tune.grid.ridge=0.1", (0.1,)),
        ("tune.grid.layers=3,4/12", ("3,4/12",)),
        ("trace.positions=all", "all"),
        ("trace.span=subject", "subject"),
        ("trace.span=France, capital", ("France", "capital")),
        ("edit.lora.targets=q", ("q",)),
        ("edit.layers=[3, 4, 5]", "3,4,5"),
        ("edit.layers=[[3, 4], [12]]", "3,4/12"),
        ("edit.block=[4, 5]", "4,5"),
        # Every part is reached.
        ("edit.ft.steps=3", 3),
        ("edit.arms.mine.ridge=1", 1),
        ("edit.arms.mine.ft.steps=3", 3),
        ("edit.arms={1: {}}", {"1": {}}),
        ("tune.floors.locality=0.9", 0.9),
        ("trace.noise_replaces=yes", True),
        ("trace.seed=9223372036854775807", 2**63 - 1),
    ],
)
def test_a_value_is_what_a_person_means(assignment: str, value: Any) -> None:
    assert value_of(assignment) == value


TRUTH = "are truth values in YAML, and .* is needed here"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("trace.samples=yes", TRUTH),
        ("model.device=off", TRUTH),
        ("trace.memory=no", TRUTH),
        ("compare.seeds=on", TRUTH),
        ("rules.split=no", TRUTH),
        ("trace.noise=yes", TRUTH),
        ("edit.editors=[yes]", TRUTH),
        ("covariance.shrinkage=on", TRUTH),
        ("tune.floors.locality=yes", TRUTH),
        ("edit.arms={on: {editor: ft}}", "the key True is no text"),
        ("trace.samples=010", "begins with 0"),
        ("trace.samples=12:30", "valid integer"),
        ("edit.ridge=2020-01-01", "valid number"),
        ("trace.tolerance=.inf", "valid number"),
        ("trace.tolerance=nan", "finite"),
        ("edit.ridge=1e999", "finite"),
        ("trace.seed=20000000000000000000", "integers from"),
        ("trace.seed=2e19", "integers from"),
        ("trace.seed=-1", "or equal to 0"),
        ("compare.seeds=[1, -2]", "or equal to 0"),
        ("edit.seed=99999999999999999999", "integers from"),
        ("trace.samples=1000000000000", "less than or equal"),
        ("profile.bootstrap=1e12", "less than or equal"),
        ("trace.answer_tokens=1000000000000", "less than or equal"),
        ("compare.resamples=1000000000000", "less than or equal"),
        ("rules.limit.x=3", "rules.limit has no part 'x'"),
        ("edit.ft=3", "valid dictionary"),
        # The nearest that is there, at its level.
        ("edit.ft.stps=3", r"unknown setting 'edit.ft.stps': did you mean 'edit.ft.steps'\?"),
        ("edit.fft.steps=3", r"did you mean 'edit.ft.steps'\?"),
        ("edit.norm_constraint=1", r"did you mean 'edit.ft.norm_constraint'\?"),
        ("edit.lora.rnk=4", r"did you mean 'edit.lora.rank'\?"),
        ("edit.arms.mine.rdige=1", r"did you mean 'edit.arms.mine.ridge'\?"),
        ("edit.ft.stps=null", r"did you mean 'edit.ft.steps'\?"),
        ("trace.smaples=null", r"did you mean 'samples'\?"),
        # Names that become folders.
        (
            "edit.arms={../../out: {editor: memit}}",
            "cannot be used: it has '/'; a name has letters",
        ),
        ("edit.arms={'a\\b': {}}", "cannot be used"),
        ("edit.arms={'..': {}}", "a dot first"),
        ("edit.arms={'x[red]': {}}", r"it has '\['"),
        ("edit.arms={CON: {}}", "Windows"),
        ("edit.arms={'': {}}", "empty"),
        (f"edit.arms={{{'a' * 151}: {{}}}}", "151 bytes"),
        ("edit.arms={A: {}, a: {}}", "differ in upper and lower case only"),
        ("edit.arms={memit: {editor: ft}}", "name of an editor"),
        ("edit.editors=[memit, memit]", "names one twice"),
        ('model.name="a\\0b"', "U.0000"),
        ("trace.samples={a: 1, a: 2}", "twice"),
    ],
)
def test_what_has_no_one_meaning_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parsed(assignment)
    assert len(str(caught.value)) < 900


def test_null_takes_a_setting_back_to_its_default() -> None:
    held = {
        "trace": {"window": 4, "samples": 9},
        "edit": {"ft": {"steps": 3, "learning_rate": 0.1}},
        "rules": {"ids": ["a"]},
    }
    assert value_of("trace.window=null", held) is None
    assert value_of("trace.samples=null", held) == 4
    assert value_of("rules.ids=null", held) is None
    after = parsed("edit.ft.steps=null", held=held)["edit"]
    assert isinstance(after, EditConfig)
    assert (after.ft.steps, after.ft.learning_rate) == (25, 0.1)
    raw = raw_settings(held, settings=[("trace.window", None)])
    assert raw["trace"] == {"samples": 9} and held["trace"]["window"] == 4


def test_a_file_changes_what_it_says_and_no_more(tmp_path: Any) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("trace:\nedit: {ft: {steps: 3}, ridge: null, arms: {b: {}}}\n")
    held = {
        "trace": {"samples": 9},
        "edit": {"ridge": 5, "ft": {"learning_rate": 0.1}, "arms": {"a": {}}},
    }
    raw = raw_settings(held, config=path)
    assert raw == {
        "trace": {"samples": 9},
        "edit": {"ft": {"learning_rate": 0.1, "steps": 3}, "arms": {"b": {}}},
    }


def test_an_arm_differs_from_the_shared_settings_only_where_it_says_so() -> None:
    shared = {
        "ridge": 5,
        "ft": {"steps": 7, "learning_rate": 0.5},
        "arms": {"mine": {"editor": "ft", "ft": {"steps": "3"}, "ridge": None}},
    }
    settings = EditConfig.model_validate({**shared, "editors": "mine"}).settings_of("mine")
    assert (settings.ft.steps, settings.ft.learning_rate, settings.ridge) == (3, 0.5, 1.0)
    assert (
        EditConfig.model_validate({"arms": {"memit": {"ridge": 3}}}).settings_of("memit").editor
        == "memit"
    )


# Advice: what provokes an error, and what it tells to do instead, which is then done.

ADVICE = re.compile(r"--set (\S+?=(?:\[[^\]]*\]|[^\s,;)']+))|did you mean '([\w.]+)'")
"""An assignment in a message, or the name of a setting."""


@pytest.mark.parametrize(
    "wrong",
    [
        ("trace.metrics=logit_difference",),
        ("edit.answer=words",),
        ("trace.samples",),
        ("samples=4",),
        ("edit.ft.stps=3",),
        ("edit.fft.steps=3",),
        ("edit.norm_constraint=1",),
        ("edit.in_context.demonstration=2",),
        ("trace.sampls=4",),
        ("edit.arms.mine.rdige=1",),
        ("select.witdh=2",),
    ],
)
def test_advice_of_a_wrong_setting_is_accepted(wrong: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(*wrong)
    whole, name = ADVICE.findall(str(caught.value))[-1]
    if whole:
        parsed(*(each for each in wrong if "=" in each and "." in each), whole)
        return
    section = wrong[0].partition(".")[0]
    name = name if name.startswith(f"{section}.") else f"{section}.{name}"
    parsed(f"{name}={wrong[0].partition('=')[2]}")


def test_advice_for_a_model_with_a_norm_behind_its_mlp_is_accepted(
    make_model: Callable[..., Any],
) -> None:
    from editing.editors.registry import block_of
    from editing.studies.arms import resolve

    model = make_model("gemma3_text")
    with pytest.raises(ValueError) as caught:
        site_of(model, [(0, 1)])
    found = [whole for whole, _ in ADVICE.findall(str(caught.value))]
    assert [each.partition("=")[0] for each in found] == ["edit.block", "edit.layers"]
    settings = parsed(*found)["edit"]
    assert isinstance(settings, EditorSettings)
    assert site_of(model, [block_of(settings, model.n_layers)]) == "mlp"
    assert site_of(model, list(resolve(model, settings).layers.values())) == "mlp"


def test_advice_of_statistics_of_too_few_tokens_is_accepted() -> None:
    import torch

    from editing.closed_form.solvers import factorise

    with pytest.raises(ValueError) as caught:
        factorise(torch.zeros(4, 4))
    found = [whole for whole, _ in ADVICE.findall(str(caught.value))]
    assert found == ["covariance.tokens=16", "covariance.shrinkage=ledoit-wolf"]
    parsed(*found)
