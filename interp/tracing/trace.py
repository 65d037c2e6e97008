"""Causal tracing of many rules: maps in memory, or in a folder where a stopped trace goes on."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm.auto import tqdm

from interp.config import TraceConfig
from interp.errors import DmleError, NotTraceableError, StaleError
from interp.executors.tasks import Spread
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.results.paths import inside
from interp.rules.sources import Rule
from interp.settings.section import with_settings
from interp.tracing.corruption import NoiseRule, noise_of
from interp.tracing.fingerprint import config_text, trace_fingerprint
from interp.tracing.prompt import too_long, trace_prompt
from interp.vocabulary import RuleForm


@dataclass(frozen=True)
class Skipped:
    """A prompt that could not be traced, and why."""

    rule: str
    form: str
    reason: str


class StaleTraceError(StaleError):
    """A trace in the run folder was made with other settings."""


def trace(
    model: LanguageModel,
    rules: Rule | Iterable[Rule],
    config: TraceConfig | None = None,
    *,
    progress: bool = True,
    **settings: Any,
) -> xr.Dataset:
    """Effect maps of every form of rules, in memory.

    Args:
        model: The model.
        rules: One rule or several.
        config: Corruption, sites, samples and metrics; by default those of `TraceConfig()`.
        progress: Show a progress bar where there is a terminal or a notebook.
        **settings: Single settings of `TraceConfig`, in place of those of `config`: `samples=4`.

    Returns:
        Maps with dims ``rule form component layer pos sample`` (see `interp.results.effects`), in
        nats per answer token unless another metric is chosen. Prompts that could not be traced are
        counted and listed in the attributes `n_skipped` and `skipped`.

    Raises:
        NotTraceableError: No prompt could be traced; names the reasons.
        ConfigError: There is no such setting, or it has no such value.
    """
    config = with_settings("trace", TraceConfig, config, settings)
    every = prompts([rules] if isinstance(rules, Rule) else list(rules))
    noise = noise_of(model, config, list({rule.id: rule for rule, _ in every}.values()))
    maps: dict[tuple[str, str], xr.Dataset] = {}
    skipped: list[Skipped] = []
    with tqdm(
        total=len(every), desc="trace", unit="prompt", disable=None if progress else True
    ) as bar:
        for rule, form in every:
            try:
                maps[rule.id, str(form)] = trace_prompt(model, rule, form, config, noise=noise)
            except DmleError as error:
                skipped.append(Skipped(rule.id, form, str(error)))
            bar.update()
    if not maps:
        raise NotTraceableError(
            f"no prompt could be traced: {listing(skipped) or 'there is no rule'}"
        )
    joined = effects.concat(maps)
    return joined.assign_attrs(n_skipped=len(skipped), skipped=listing(skipped))


def listing(skipped: Sequence[Skipped]) -> str:
    """Skipped prompts with their reasons, in a line."""
    return "; ".join(f"{prompt.rule}/{prompt.form}: {prompt.reason}" for prompt in skipped)


def trace_rules(
    model: LanguageModel,
    rules: Sequence[Rule],
    config: TraceConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    advance: Callable[[float], object] = lambda prompts: None,
    spread: Spread | None = None,
) -> list[Skipped]:
    """Trace every form of every rule into `folder`, one file per prompt, written as soon as it is
    done.

    A prompt whose file is there with the same fingerprint is not run again, so a stopped trace
    continues.

    Args:
        model: The model.
        rules: The rules.
        config: Settings of the trace.
        folder: Where `<rule>-<form>.nc` files go.
        overwrite: Replace files made with other settings instead of refusing.
        advance: Called with the number of prompts done, found, or skipped since the last call, in
            fractions.
        spread: Runs prompts elsewhere, by the names that `tracer` knows; None: they are traced
            here.

    Returns:
        Prompts that could not be traced, with reasons; those whose workers died are among them.

    Raises:
        StaleTraceError: A file of other settings is there and `overwrite` is off; raised before any
            run.
    """
    noise = noise_of(model, config, rules)
    todo: list[tuple[Rule, RuleForm]] = []
    skipped: list[Skipped] = []
    for rule, form in prompts(rules):
        if reason := too_long(model, rule, form, config):
            skipped.append(Skipped(rule.id, form, reason))
        elif not _is_done(model, rule, form, config, noise, folder, overwrite):
            todo.append((rule, form))
    advance(len(prompts(rules)) - len(todo))
    if spread is not None:
        skipped += _traced_elsewhere(todo, spread, advance)
        return skipped
    for rule, form in todo:
        reason = _trace_into(model, rule, form, config, noise, folder, advance)
        if reason:
            skipped.append(Skipped(rule.id, form, reason))
    return skipped


def tracer(
    model: LanguageModel, rules: Sequence[Rule], config: TraceConfig, folder: Path
) -> Callable[[str], str]:
    """What traces a prompt into `folder`, given its name (`task_name`), in a worker of
    `trace_rules`; it returns why the prompt cannot be traced, or an empty text.
    """
    noise = noise_of(model, config, rules)
    every = {task_name(rule, form): (rule, form) for rule, form in prompts(rules)}

    def work(task: str) -> str:
        rule, form = every[task]
        return _trace_into(model, rule, form, config, noise, folder, lambda share: None)

    return work


def task_name(rule: Rule, form: RuleForm) -> str:
    """Name of one prompt's trace."""
    return f"{form}: {rule.id}"


def _traced_elsewhere(
    todo: Sequence[tuple[Rule, RuleForm]], spread: Spread, advance: Callable[[float], object]
) -> list[Skipped]:
    """Prompts that could not be traced, in their order."""
    reasons: dict[str, str] = {}
    for outcome in spread([task_name(rule, form) for rule, form in todo]):
        reasons[outcome.task] = outcome.failure or outcome.result
        advance(1)
    return [
        Skipped(rule.id, form, reason)
        for rule, form in todo
        if (reason := reasons[task_name(rule, form)])
    ]


def _trace_into(
    model: LanguageModel,
    rule: Rule,
    form: RuleForm,
    config: TraceConfig,
    noise: NoiseRule,
    folder: Path,
    advance: Callable[[float], object],
) -> str:
    """Trace a prompt and write its map; why it cannot be traced, or an empty text."""
    shares: list[float] = []

    def count(share: float) -> None:
        shares.append(share)
        advance(share)

    reason = ""
    try:
        item = trace_prompt(model, rule, form, config, noise=noise, advance=count)
    except DmleError as error:
        reason = str(error)
    else:  # a full disk is no property of the prompt
        effects.save(item, trace_path(folder, rule.id, form))
    advance(1 - sum(shares))
    return reason


def collect(
    rules: Sequence[Rule],
    folder: Path,
    skipped: Sequence[Skipped],
    target: Path,
    *,
    fingerprints: Mapping[tuple[str, str], str] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> None:
    """Join the traces of the given rules in one file; what was skipped is counted and listed in its
    attributes.

    One trace at a time is in memory, however many there are.

    Args:
        rules: The rules.
        folder: Where the traces are.
        skipped: Prompts without a trace. A file of such a prompt is of other settings, and is left
            out.
        target: The file to write.
        fingerprints: What each trace must be of (see `fingerprints`); not looked at if not given.
        attrs: Further attributes.

    Raises:
        StaleTraceError: A trace is of other settings.
    """
    left_out = {(s.rule, str(s.form)) for s in skipped}
    paths = {
        (rule.id, str(form)): trace_path(folder, rule.id, form) for rule, form in prompts(rules)
    }
    present = {key: path for key, path in paths.items() if path.is_file() and key not in left_out}
    for key, path in present.items():
        if fingerprints is not None and _attrs_of(path).get("fingerprint") != fingerprints[key]:
            raise StaleTraceError(
                f"{path} has changed while it was read: another program writes there; trace again"
            )
    effects.join(
        present, target, {"n_skipped": len(skipped), "skipped": listing(skipped), **(attrs or {})}
    )


def fingerprints(
    model: LanguageModel, rules: Sequence[Rule], config: TraceConfig
) -> dict[tuple[str, str], str]:
    """What every trace of the rules depends on, by rule and form (see `trace_fingerprint`)."""
    noise = noise_of(model, config, rules)
    return {
        (rule.id, str(form)): trace_fingerprint(model, rule, form, config, noise)
        for rule, form in prompts(rules)
    }


def remove_others(rules: Sequence[Rule], folder: Path) -> None:
    """Delete traces of other rules and forms."""
    kept = {trace_path(folder, rule.id, form) for rule, form in prompts(rules)}
    for path in folder.glob("*.nc"):
        if path not in kept:
            path.unlink()


def prompts(rules: Sequence[Rule]) -> list[tuple[Rule, RuleForm]]:
    """Every (rule, form) in order."""
    return [(rule, form) for rule in rules for form in rule.forms]


def trace_path(folder: Path, rule: str, form: str) -> Path:
    """File of one prompt's map."""
    return inside(folder, f"{rule}-{form}.nc")


def _is_done(
    model: LanguageModel,
    rule: Rule,
    form: RuleForm,
    config: TraceConfig,
    noise: NoiseRule,
    folder: Path,
    overwrite: bool,
) -> bool:
    path = trace_path(folder, rule.id, form)
    if not path.is_file():
        return False
    attrs = _attrs_of(path)
    if attrs.get("fingerprint") == trace_fingerprint(model, rule, form, config, noise):
        return True
    if overwrite:
        return False
    raise StaleTraceError(
        f"{path} was traced with other settings, another model or another wording"
        f" ({_change(attrs, model, config)}); use another run folder, or --overwrite to trace it"
        " again"
    )


def _attrs_of(path: Path) -> dict[str, Any]:
    with effects.opened(path) as item:
        return dict(item.attrs)


def _change(attrs: Mapping[str, Any], model: LanguageModel, config: TraceConfig) -> str:
    """What differs from a trace's attributes, in words."""
    if attrs.get("weight_hash") != model.weight_hash:
        return f"the model was {attrs.get('weight_hash')}, it is {model.weight_hash} now"
    before, now = (json.loads(text) for text in (attrs.get("config", "{}"), config_text(config)))
    changed = [
        f"trace.{key} was {json.dumps(before.get(key))}, it is {json.dumps(now[key])} now"
        for key in now
        if before and before.get(key) != now[key]
    ]
    return "; ".join(changed) or "the wording of the prompt, its answer, or the scale of the noise"
