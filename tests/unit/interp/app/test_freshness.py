"""Results know what they were made with: every setting that changes numbers is noticed, by the
files and in words."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from editing.app.planned import Planned, plan
from editing.config import EditConfig, EditorSettings
from editing.studies.arms import Place
from interp.app import freshness
from interp.app.freshness import RECORD, Made, check, made
from interp.app.steps import Context, load_steps, parse_settings
from interp.config import Section
from interp.errors import StaleError
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.results.run_folder import RunFolder
from interp.rules.sources import Rule, dump_rules
from interp.selection.layers import LayerGroup, LayerSelection, parse_layers
from interp.settings.registered import registries
from tests.unit.records import smallest

pytestmark = pytest.mark.slow

STEPS = load_steps()
SECTIONS: dict[str, type[Section]] = {
    name: cls
    for step in STEPS.values()
    for name, cls in step.sections.items()
    if name not in ("model", "rules")
}
OF_FILE = {
    "trace": ("profile.nc", "selection.json", "scores.nc"),
    "atlas": ("profile.nc",),
    "faithfulness": ("faithfulness.nc",),
    "profile": ("selection.json", "scores.nc", "regret.nc"),
    "select": ("scores.nc", "regret.nc"),
    "covariance": ("scores.nc", "evidence.nc", "sweep.nc", "tuning.nc"),
    "edit": ("scores.nc", "tuning.nc"),
    "evaluate": ("scores.nc",),
    "compare": ("scores.nc",),
    "sweep": ("sweep.nc", "regret.nc"),
    "tune": ("tuning.nc",),
    "sequence": ("sequence.nc",),
    "executor": ("profile.nc", "scores.nc", "sweep.nc", "tuning.nc"),
}
"""Files that show it when a setting of a section is changed."""


NEEDED: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("edit", "answer"): {"lookup": "last"},
    ("edit", "words_loss"): {"lookup": "last", "answer": "words"},
    ("executor", "workers"): {"kind": "processes"},
    ("executor", "address"): {"kind": "ray"},
}
"""Other settings without which a setting has one value only."""


def candidates(cls: type[Section], field: str) -> Iterator[Any]:
    """Values to try for a setting, the valid one of which is not known."""
    default, annotation = cls().model_dump()[field], cls.model_fields[field].annotation
    if isinstance(default, bool):
        yield not default
    elif isinstance(default, int | float):
        yield from (default + 1, default * 0.9)
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Literal:
            yield from get_args(part)
    for registry in registries(annotation, cls.model_fields[field].metadata):
        yield from registry.meanings()
    if isinstance(default, tuple):
        yield from (default[:1], default[::-1], default[1:])
    if isinstance(default, dict):
        for name, value in default.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield {name: value * 0.9}
                yield {name: value + 1}
    yield from ("4GiB", "0.1", "mean_log_prob", "embedded+rules", "1", "llama-3-8b", 1, 0.5, 5)
    yield from ("alphaedit", "memit")
    yield from (["memit"], ["reliability"], ["negative_kl"], [1, 2], ["validation", "test"])
    yield from ({"ridge": [0.5]}, {"early": {"editor": "memit"}}, {"locality": 0.5})


def changed(
    cls: type[Section], field: str, more: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Valid settings of a section of which one is not the default."""
    default = cls.model_validate(more or {})
    for value in candidates(cls, field):
        try:
            found = cls.model_validate({**(more or {}), field: value})
        except (ValueError, TypeError):  # types are checked in tests
            continue
        if getattr(found, field) != getattr(default, field):
            return {**(more or {}), field: value}
    raise AssertionError(f"no other value for {cls.__name__}.{field}")


def every_setting() -> list[tuple[str, str]]:
    return [(name, field) for name, cls in SECTIONS.items() for field in cls.model_fields]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, rules: tuple[Rule, ...]) -> Path:
    """A run folder with every kind of result, made with the defaults; the results are as small
    as can be."""
    folder = tmp_path_factory.mktemp("runs") / "all"
    folder.mkdir()
    dump_rules(rules, folder.parent / "rules.json")
    now = context(folder)
    plain = ["edit", "covariance", "evaluate"]
    save(now, "effects.nc", made(now, "trace", ["trace"], rules=["trace"]))
    save(now, "faithfulness.nc", made(now, "faithfulness", ["faithfulness"], rules=["trace"]))
    save(now, "profile.nc", made(now, "profile", ["profile"], inputs=["effects.nc"]))
    save(now, "selection.json", made(now, "select", ["select"], inputs=["profile.nc"]))
    save(
        now,
        "evidence.nc",
        made(
            now,
            "evidence",
            ["covariance"],
            rules=["evidence"],
            more={"edit.lookup": "subject_last"},
        ),
    )
    save(now, "sweep.nc", made(now, "sweep", ["covariance", "sweep"], rules=["sweep"]))
    save(now, "regret.nc", made(now, "regret", ["select"], inputs=["sweep.nc", "profile.nc"]))
    save(now, "tuning.nc", made(now, "tune", [*plain, "tune"], rules=["edit"]))
    save(now, "sequence.nc", made(now, "sequence", [*plain, "sequence"], rules=["edit"]))
    save(
        now,
        "scores.nc",
        made(now, "compare", [*plain, "compare"], inputs=["selection.json"], rules=["edit"]),
    )
    return folder


def context(folder: Path, **settings: Mapping[str, Any]) -> Context:
    given = {"rules": {"source": str(folder.parent / "rules.json")}, **settings}
    return Context(RunFolder(folder), parse_settings(STEPS, given), given=given)


def save(now: Context, name: str, record: Made) -> None:
    path = now.run.path / name
    if path.suffix == ".nc":
        effects.save(smallest(name).assign_attrs({RECORD: record.text()}), path)
        return
    group = LayerGroup(name="all", forms=("formula", "description", "instance"), layers=(1,))
    provenance = {RECORD: record.model_dump(mode="json")}
    parse_layers("1", 3).model_copy(
        update={"strategy": "window", "groups": (group,), "provenance": provenance}
    ).save(path)


@pytest.mark.parametrize(("section", "field"), every_setting())
def test_every_setting_is_noticed_by_what_depends_on_it_or_is_neutral(
    section: str, field: str, run: Path
) -> None:
    more = NEEDED.get((section, field))
    now = context(run, **{section: changed(SECTIONS[section], field, more)})
    for name in OF_FILE[section]:
        if field in SECTIONS[section].neutral:
            if field not in ("splits", "limit"):  # they say which rules, which is another matter
                check(now, name)
            continue
        with pytest.raises(
            StaleError, match=rf"{section}\.{field}\b.* was .* when .* was made, it is .* now"
        ) as told:
            check(now, name)
        maker = freshness.record_of(run / name)
        assert maker is not None and f"dmle {maker.step} --run {run}" in str(told.value)


def test_what_nothing_changed_is_fresh(run: Path) -> None:
    check(context(run), *OF_FILE["sweep"], *OF_FILE["edit"], "evidence.nc", "selection.json")
    other = context(
        run,
        model={"device": "cpu"},
        trace={"batch_size": 3},
        rules={"source": str(run.parent / "rules.json")},
    )
    check(other, "scores.nc")


def test_the_commands_that_mend_are_all_of_the_chain_with_the_settings_in_force(run: Path) -> None:
    now = replace(
        context(run, trace={"samples": 9}),
        options=[("--set", "trace.samples=9"), ("--set", "edit.ridge=2")],
    )
    with pytest.raises(StaleError) as told:
        check(now, "selection.json")
    assert (
        f"trace.samples was 4 when {run / 'effects.nc'} was made, it is 9 now; run `dmle trace"
        f" --run {run} --set trace.samples=9 --overwrite`, then `dmle profile --run {run}`, then"
        f" `dmle select --run {run}`" in str(told.value)
    )


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"prompt": "The area of a square: A ="}, "profile.nc", "changed: square-area"),
        ({"target_new": "5 side"}, "scores.nc", "changed: square-area"),
        ({"rephrasings": ("What?",)}, "scores.nc", "changed: square-area"),
        ({"target_new": "5 side"}, "profile.nc", ""),  # a trace does not read what is edited in
        ({"rephrasings": ()}, "selection.json", ""),
    ],
)
def test_other_rules_are_noticed_where_they_are_read(
    change: dict[str, Any], name: str, said: str, run: Path, rules: tuple[Rule, ...], tmp_path: Path
) -> None:
    formula = rules[0].forms["formula"].model_copy(update=change)
    one = rules[0].model_copy(update={"forms": {**rules[0].forms, "formula": formula}})
    dump_rules([one, *rules[1:]], tmp_path / "rules.json")
    now = context(run, rules={"source": str(tmp_path / "rules.json")})
    if not said:
        check(now, name)
        return
    with pytest.raises(StaleError, match=said):
        check(now, name)


@pytest.mark.parametrize(
    ("limit", "said"),
    [({"limit": 1}, "gone: cube-volume"), ({"ids": ["cube-volume"]}, "gone: square")],
)
def test_fewer_rules_are_other_rules(limit: dict[str, Any], said: str, run: Path) -> None:
    now = context(run, rules={"source": str(run.parent / "rules.json"), **limit})
    with pytest.raises(StaleError, match=said):
        check(now, "profile.nc")


def test_a_result_without_a_record_of_another_version_or_of_inputs_made_anew_is_stale(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (tmp_path / "rules.json").write_bytes((run.parent / "rules.json").read_bytes())
    now = context(folder)
    effects.save(smallest("effects.nc"), folder / "effects.nc")
    with pytest.raises(
        StaleError,
        match=r"does not say what it was made with .*; run `dmle trace --run .* --overwrite`",
    ):
        check(now, "effects.nc")
    record = made(now, "trace", ["trace"], rules=["trace"])
    save(now, "effects.nc", record.model_copy(update={"version": 0}))
    with pytest.raises(
        StaleError, match="was made by version 0 of trace, this is 1; run `dmle trace"
    ):
        check(now, "effects.nc")
    save(now, "effects.nc", record)
    save(now, "profile.nc", made(now, "profile", ["profile"], inputs=["effects.nc"]))
    check(now, "profile.nc")
    save(now, "effects.nc", record.model_copy(update={"model": "another"}))
    with pytest.raises(
        StaleError, match=r"effects.nc was made anew after .*profile.nc; run `dmle profile"
    ):
        check(now, "profile.nc")


@pytest.mark.parametrize(
    "foreign",
    [
        {"step": "dream"},
        {"settings": {"dream.depth": 1}},
        {"sections": ("dream",)},
        {"rules": {"dream": {}}},
        {"inputs": {"dream.nc": "0"}},
    ],
    ids=lambda foreign: next(iter(foreign)),
)
def test_a_record_of_what_this_version_does_not_have_is_none(
    foreign: dict[str, Any], run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (tmp_path / "rules.json").write_bytes((run.parent / "rules.json").read_bytes())
    now = context(folder)
    record = made(now, "trace", ["trace"], rules=["trace"])
    save(now, "effects.nc", record.model_copy(update=foreign))
    with pytest.raises(StaleError, match="does not say what it was made with"):
        check(now, "effects.nc")


def test_a_setting_that_did_not_exist_then_had_its_default(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (tmp_path / "rules.json").write_bytes((run.parent / "rules.json").read_bytes())
    record = made(context(folder), "trace", ["trace"], rules=["trace"])
    older = {key: value for key, value in record.settings.items() if key != "trace.gradient_steps"}
    save(context(folder), "effects.nc", record.model_copy(update={"settings": older}))
    check(context(folder), "effects.nc")
    with pytest.raises(StaleError, match=r"trace.gradient_steps was 1 when"):
        check(context(folder, trace={"gradient_steps": 2}), "effects.nc")


def test_a_selection_that_was_copied_is_held_against_what_is_said_for_its_new_run(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (tmp_path / "rules.json").write_bytes((run.parent / "rules.json").read_bytes())
    selection = LayerSelection.load(run / "selection.json")
    held = Made.model_validate(selection.provenance[RECORD])
    held = held.model_copy(update={"settings": {**held.settings, "trace.samples": 20}})
    save(context(folder), "selection.json", held)
    check(
        context(folder, rules={"source": str(tmp_path / "rules.json"), "limit": 1}),
        "selection.json",
    )
    with pytest.raises(StaleError, match=r"trace.samples was 20 .* it is 4 now"):
        check(context(folder, trace={"samples": 4}), "selection.json")


def test_another_model_is_noticed_where_there_is_one(
    run: Path, tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    now = context(run)
    vars(now)["model"] = tiny_llama
    check(now, "selection.json")  # the defaults' records were made without a model
    folder = tmp_path / "all"
    folder.mkdir()
    (tmp_path / "rules.json").write_bytes((run.parent / "rules.json").read_bytes())
    own = context(folder, model={"name": "elsewhere"})
    vars(own)["model"] = tiny_llama
    record = made(own, "trace", ["trace"], rules=["trace"])
    save(own, "effects.nc", record)
    check(own, "effects.nc")
    with pytest.raises(
        StaleError, match=r"model.name was .elsewhere. when .* it is .smollm2-135m. now"
    ):
        check(
            context(folder), "effects.nc"
        )  # no model is loaded: its name and number format stand for it
    with pytest.raises(StaleError, match=r"model.dtype was .float32. when"):
        check(context(folder, model={"name": "elsewhere", "dtype": "bfloat16"}), "effects.nc")
    save(own, "effects.nc", record.model_copy(update={"model": "0123"}))
    with pytest.raises(
        StaleError, match=rf"was made for another model \(0123; .* is {tiny_llama.weight_hash}\)"
    ):
        check(own, "effects.nc")


# Edits.

EDIT = {"editors": ["memit"], "block": "1", "lookup": "last"}


def planned(folder: Path, model: LanguageModel, **settings: Mapping[str, Any]) -> Planned:
    """The edit of the first rule as settings have it."""
    corpus = {"corpus": str(folder.parent / "corpus.txt")}
    now = context(
        folder, **{**settings, "covariance": {**corpus, **settings.get("covariance", {})}}
    )
    vars(now)["model"] = model
    first = now.rules.rules[0]
    (arm,) = now.settings(EditConfig).editors
    return plan(now, [first], {arm: Place({"all": (1,)})}, [])[arm][0]


@pytest.fixture(scope="module")
def corpus(run: Path) -> Path:
    path = run.parent / "corpus.txt"
    path.write_text("The area of a square is the side squared.\n" * 20, encoding="utf-8")
    (run.parent / "other.txt").write_text(
        "The area of a square is twice the side.\n" * 20, encoding="utf-8"
    )
    return path


# `retained` needs more rules: tests/unit/editing/app/test_editing_cli.py.
OTHERS = ("editor", "block", "retained")


@pytest.mark.parametrize(
    "field", [name for name in EditorSettings.model_fields if name not in OTHERS]
)
def test_every_setting_of_an_editor_makes_another_edit_or_is_neutral(
    field: str, run: Path, corpus: Path, tiny_llama: LanguageModel
) -> None:
    needed = NEEDED.get(("edit", field), {})
    other = changed(EditorSettings, field, needed)
    before, after = (
        planned(run, tiny_llama, edit={**EDIT, **each}) for each in (needed, {**needed, **other})
    )
    # Layers are held as they are: the plan's, which the test gives.
    assert (before.fingerprint == after.fingerprint) == (field in ("memory", "layers"))


@pytest.mark.parametrize("field", list(SECTIONS["covariance"].model_fields))
def test_every_setting_of_the_statistics_makes_another_edit_or_is_neutral(
    field: str, run: Path, corpus: Path, tiny_llama: LanguageModel
) -> None:
    # A length above the model's positions is that of its positions.
    special = {
        "corpus": {"corpus": str(run.parent / "other.txt")},
        "max_length": {"max_length": 64},
    }
    other = special.get(field) or changed(SECTIONS["covariance"], field)
    before, after = (planned(run, tiny_llama, edit=EDIT, covariance=each) for each in ({}, other))
    assert (before.fingerprint == after.fingerprint) == (field == "batch_size")
    # What statistics are not read does not matter.
    ft = {**EDIT, "editors": ["ft"]}
    before, after = (planned(run, tiny_llama, edit=ft, covariance=each) for each in ({}, other))
    assert before.fingerprint == after.fingerprint
