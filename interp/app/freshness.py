"""What a result was made with, kept in the result, and whether that is still what is in force.

Every result that a later step reads holds a `Made`: the step and its version, the model, the
settings and rules that its numbers depend on, its own and those of all steps before, and which
inputs it was made of. A step that reads it compares that with the settings, rules and model in
force now (`check`). What differs is an error that names the difference and the commands that make
the result again.

Settings that change memory or speed only are `neutral` in their section and are no part of a
record. The git commit is none either: `VERSIONS` counts the changes of a step that change its
numbers.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from interp.app.rule_digests import digests
from interp.app.steps import COMMON, Context, known_sections, load_steps
from interp.config import Section
from interp.errors import DmleError, StaleError
from interp.results.provenance import VERSIONS, fingerprint

RECORD = "made"
"""Attribute of a NetCDF file, key of a selection's provenance and of what is said of an edit."""
MAKERS = {
    "effects.nc": "trace",
    "faithfulness.nc": "faithfulness",
    "profile.nc": "profile",
    "selection.json": "select",
    "selection-rules.json": "select",
    "evidence.nc": "evidence",
    "scores.nc": "evaluate",
    "sweep.nc": "sweep",
    "regret.nc": "regret",
    "sequence.nc": "sequence",
    "tuning.nc": "tune",
}
"""Files with a record, and the step that makes each."""
COMMANDS = {"atlas": ("select", "--from-atlas")}
"""Commands of the steps that are not called like them."""
BY_RULE = "selection-rules.json"
SHOWN = 3
"""Differences that are named."""
_NONE = object()


class Made(BaseModel):
    """How a result was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: str
    version: int
    model: str = ""
    """Hash of the model; of a step without one, of the model behind its inputs."""
    settings: dict[str, Any] = {}
    """Values by ``section.key``, also of the steps before."""
    sections: tuple[str, ...] = ()
    """Sections that are there as a whole; of others single settings are."""
    rules: dict[str, dict[str, str]] = {}
    """Fingerprints by the section that says which rules, and their id."""
    inputs: dict[str, str] = {}
    """Fingerprints of the records of the files of the run folder that were read."""

    @property
    def fingerprint(self) -> str:
        """Changes with anything in it."""
        return fingerprint(**self.model_dump(mode="json"))

    def text(self) -> str:
        """As JSON, for attributes of files."""
        return self.model_dump_json()


def made(
    context: Context,
    step: str,
    sections: Iterable[str],
    *,
    inputs: Iterable[str] = (),
    rules: Iterable[str] = (),
    more: Mapping[str, Any] | None = None,
) -> Made:
    """The record of what a step makes now.

    Args:
        context: Settings, rules and model in force.
        step: The step.
        sections: Sections whose settings its numbers depend on.
        inputs: Files of the run folder that it reads, with records of their own.
        rules: Sections that say which rules it is about.
        more: Further settings by ``section.key``, such as single ones of other sections.
    """
    model = context.model.weight_hash if _has_model(context) else ""
    whole = dict.fromkeys(("model", *sections) if _has_model(context) else sections)
    settings: dict[str, Any] = {}
    digests_of: dict[str, dict[str, str]] = {}
    records = _records(context, inputs)
    for record in records.values():
        settings |= record.settings
        digests_of |= record.rules
        model = model or record.model
        whole |= dict.fromkeys(record.sections)
    for name in whole:
        settings |= settings_of(name, context.sections[name])
    return Made(
        step=step,
        version=VERSIONS[step],
        model=model,
        settings={**settings, **_plain(more or {})},
        sections=tuple(whole),
        rules={**digests_of, **{name: digests(context, name) for name in rules}},
        inputs={name: record.fingerprint for name, record in records.items()},
    )


def _records(context: Context, names: Iterable[str]) -> dict[str, Made]:
    """The records of files of the run folder, of those that have one."""
    records = {name: record_of(context.run.path / name) for name in names}
    return {name: record for name, record in records.items() if record is not None}


def settings_of(name: str, section: Section) -> dict[str, Any]:
    """Settings of a section that numbers depend on, by ``section.key``, inner sections flat."""
    values = section.model_dump(mode="json", exclude=set(section.neutral))
    return _plain(_flat(name, values))


def record_of(path: Path) -> Made | None:
    """The record in a NetCDF file or a file of layers; None if there is no file, or no record in it
    that this version can compare.

    Raises:
        DmleError: The file is damaged.
    """
    if not path.is_file():
        return None
    if path.suffix == ".json":
        from interp.selection.layers import load_layers, provenance_of

        layers = load_layers(path)
        selections = layers.values() if isinstance(layers, dict) else [layers]
        if all(each.strategy == "manual" for each in selections):
            # Layers given by hand are of no data.
            return Made(step="select", version=VERSIONS["select"])
        content: Any = provenance_of(path).get(RECORD)
    else:
        from interp.results.netcdf import attribute

        content = attribute(path, RECORD)
    try:
        if isinstance(content, str):
            record = Made.model_validate_json(content)
        else:
            record = Made.model_validate(content)
    except ValidationError:
        return None
    return record if _is_known(record) else None


def _is_known(record: Made) -> bool:
    """Whether there are the steps, settings and files that a record names."""
    sections = {*record.sections, *record.rules} - {"evidence"}  # of which `digests` knows rules
    sections |= {key.partition(".")[0] for key in record.settings}
    known = sections <= known_sections(load_steps()).keys()
    return known and record.step in VERSIONS and record.inputs.keys() <= MAKERS.keys()


def check(context: Context, *names: str) -> None:
    """See that files of the run folder were made with what is in force now, and of what lies beside
    them.

    Raises:
        StaleError: One was not: names the first difference, and the commands that make it again.
    """
    for name in names:
        if (stale := _stale(context, name)) is not None:
            steps, difference = stale
            as_it_is = (
                "; or --layers with its path takes it as it is" if steps[-1] == "select" else ""
            )
            remedy = remedy_of(context, steps, by_rule=name == BY_RULE)
            raise StaleError(f"{difference}; {remedy}{as_it_is}")


def objection(context: Context, name: str) -> str:
    """What is against a file of the run folder, as `check` says it; "" if nothing is, or there
    is no such file.
    """
    try:
        if (context.run.path / name).is_file():
            check(context, name)
    except StaleError as error:
        return str(error)
    return ""


def differences(
    name: str, before: Mapping[str, Any], now: Mapping[str, Any], defaults: Mapping[str, Any]
) -> str:
    """Differences of settings in words, "" if there is none.

    Args:
        name: What was made.
        before: Settings that it was made with.
        now: Those in force.
        defaults: What a setting was before it could be set.
    """
    lines = []
    for key in dict.fromkeys((*before, *now)):
        old, new = before.get(key, defaults.get(key, _NONE)), now.get(key, _NONE)
        if old != new:
            lines.append(f"{key} was {_word(old)} when {name} was made, it is {_word(new)} now")
    more = f", and {len(lines) - SHOWN} more settings" if len(lines) > SHOWN else ""
    return "; ".join(lines[:SHOWN]) + more


def remedy_of(context: Context, steps: Sequence[str], *, by_rule: bool = False) -> str:
    """The commands to run, with the settings of this command.

    Args:
        context: What is in force.
        steps: The steps, in order.
        by_rule: Whether layers are to be selected for each rule.
    """
    from interp.selection import strategies

    commands = {step: command(context, step) for step in steps}
    if by_rule:
        config: Any = context.sections["select"]
        chosen = strategies.get(config.strategy).by_rule
        commands["select"] += "" if chosen else " --strategy adaptive"
    lines = [f"`{each}`" for each in commands.values()]
    return f"run {', then '.join(lines)}, or give the settings that it was made with"


def command(context: Context, step: str) -> str:
    """A command line that runs a step on this run folder with the settings in force."""
    known = load_steps()
    parts = ["dmle", *COMMANDS.get(step, (step,)), "--run", str(context.run.path)]
    sections = {*COMMON, *known[step].sections}
    for flag, value in context.options:
        section, dot, _ = value.partition(".")
        if flag != "--set" or not dot or section in sections:
            parts += [flag, value]
    # Alone of all steps, a trace asks before it replaces what it finds.
    return shlex.join([*parts, *(["--overwrite"] if step == "trace" else [])])


def _stale(context: Context, name: str) -> tuple[list[str], str] | None:
    """Steps that make a file again, and why; those that make its inputs first."""
    path = context.run.path / name
    record = record_of(path)
    if record is None:
        why = (
            f"{path} does not say what it was made with (an older version wrote it, or it came by"
            " itself)"
        )
        return [MAKERS[name]], why
    current = VERSIONS.get(record.step)
    if record.version != current:
        why = f"{path} was made by version {record.version} of {record.step}, this is {current}"
        return [record.step], why
    present = [each for each in record.inputs if (context.run.path / each).is_file()]
    for each in present:
        if (stale := _stale(context, each)) is not None:
            return [*stale[0], record.step], stale[1]
    # A selection that was copied here has none of its inputs beside it: only what was said for this
    # run is against it.
    foreign = bool(record.inputs) and not present
    if difference := _difference(context, path, record, foreign=foreign):
        return [record.step], difference
    for each, source in _records(context, present).items():
        if source.fingerprint != record.inputs[each]:
            return [record.step], f"{each} was made anew after {path}"
    return None


def _difference(context: Context, path: Path, record: Made, *, foreign: bool) -> str:
    """In words, what a result was made with that is not in force; "" if nothing is.

    Args:
        context: What is in force.
        path: The result.
        record: What it was made with.
        foreign: It was copied here without its inputs, so that defaults of this run are not
            against it.
    """
    if difference := _model_difference(context, path, record):
        return difference
    before, now, defaults = _compared_settings(context, record)
    if foreign:
        given = {f"{name}.{key}" for name, values in context.given.items() for key in values or ()}
        before, now = ({k: v for k, v in each.items() if k in given} for each in (before, now))
    if difference := differences(str(path), before, now, defaults):
        return difference
    return "" if foreign else _rule_difference(context, path, record)


def _model_difference(context: Context, path: Path, record: Made) -> str:
    if not (_has_model(context) and record.model) or record.model == context.model.weight_hash:
        return ""
    model = context.model
    return (
        f"{path} was made for another model ({record.model}; {model.name} as it is now is"
        f" {model.weight_hash})"
    )


def _compared_settings(
    context: Context, record: Made
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Settings by ``section.key``: of a record, those in force, and the defaults of both."""
    now: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
    for name in dict.fromkeys(key.partition(".")[0] for key in record.settings):
        if name == "model" and _has_model(context):
            continue  # its hash says more than its name
        section = context.sections[name]
        defaults |= settings_of(name, type(section)())
        for key, value in settings_of(name, section).items():
            if key in record.settings or name in record.sections:
                now[key] = value
    before = {
        key: value
        for key, value in record.settings.items()
        if not (key.startswith("model.") and _has_model(context))
    }
    return before, now, defaults


def _rule_difference(context: Context, path: Path, record: Made) -> str:
    for section, before in record.rules.items():
        try:
            now = digests(context, section)
        except DmleError as error:
            return f"the rules that {path} was made of are not those of this run ({error})"
        parts = {
            "changed": [rule for rule in before if rule in now and now[rule] != before[rule]],
            "new": [rule for rule in now if rule not in before],
            "gone": [rule for rule in before if rule not in now],
        }
        words = "; ".join(f"{what}: {_few(ids)}" for what, ids in parts.items() if ids)
        if words:
            return f"the rules are not those that {path} was made of ({words})"
    return ""


def _has_model(context: Context) -> bool:
    return "model" in vars(context)


def _flat(prefix: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not values:
        return {prefix: values}
    pairs: dict[str, Any] = {}
    for name, value in values.items():
        pairs |= _flat(f"{prefix}.{name}", value)
    return pairs


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(values, default=str))


def _word(value: Any) -> str:
    if value is _NONE:
        return "not set"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:77] + "..."


def _few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")
