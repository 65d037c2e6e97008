"""Causal tracing of rules: from a rule's prompt to its effect map, and from many rules to a run folder.

Method (noise restoration, "denoising"): corrupt the embeddings of the tokens that name the rule, then give
one state its clean value back and see how much of the answer returns. Per prompt the result is a map
component × layer × token (see `interp.effects`). Scores are of the *whole* answer: the first token of a
formula or description is mostly format.

Source: ROME §2.1 (causal tracing); the corrupted span and whole-answer score follow the needs of rules.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from interp import effects
from interp.config import TraceConfig
from interp.corruption import corrupted_positions, gaussian_noise
from interp.metrics import METRICS
from interp.model import Encoding, LanguageModel
from interp.patching import CorruptedPrompt, Site, sweep
from interp.provenance import fingerprint, versions
from interp.rules import Rule, RuleForm
from interp.tokens import token_roles
from interp.windows import default_window, window


@dataclass(frozen=True)
class Answer:
    """The answer that is scored, and whose it is.

    `source` is "dataset" or "derived" for the rule's true answer, given or worked out from its formula, and
    "greedy" for the model's own.
    """

    ids: tuple[int, ...]
    text: str
    source: str


@dataclass(frozen=True)
class Skipped:
    """A prompt that could not be traced, and why."""

    rule: str
    form: str
    reason: str


class StaleTraceError(ValueError):
    """A trace in the run folder was made with other settings."""


def trace_prompt(
    model: LanguageModel,
    rule: Rule,
    form: RuleForm,
    config: TraceConfig,
    *,
    advance: Callable[[int], object] = lambda n: None,
) -> xr.Dataset:
    """The effect map of one form of a rule.

    Args:
        model: The model.
        rule: The rule.
        form: Which of its forms.
        config: Corruption, sites, samples and metric.
        advance: Called with the number of sites done.

    Returns:
        An effect map (see `interp.effects`). Positions before the first corrupted token are exactly zero
        effect (nothing there differs); positions that `config.positions` leaves out are NaN.

    Raises:
        ValueError: The prompt has no token to corrupt, or no answer to score.
    """
    encoding, roles, answer, case = prepare(model, rule, form, config)
    corrupted, std = case.positions, model.embedding_std()
    width = config.window or default_window(model.n_layers)
    positions = _traced_positions(roles, corrupted[0], config)
    sites = [
        Site(component, position, _restored(component, layer, width, model.n_layers))
        for component in config.components
        for layer in range(model.n_layers)
        for position in positions
    ]
    metric, unit = METRICS[config.metric]
    result = sweep(model, case, sites, metric, batch_size=config.batch_size, advance=advance)

    shape = (len(config.components), model.n_layers, len(positions), config.samples)
    score = np.full((*shape[:2], len(roles), config.samples), np.nan, np.float32)
    score[:, :, : corrupted[0]] = result.corrupted.numpy()
    score[:, :, positions] = result.restored.numpy().reshape(shape)
    return effects.effect_map(
        score,
        result.clean,
        result.corrupted.numpy(),
        components=config.components,
        tokens=model.token_texts(encoding),
        roles=roles,
        is_corrupted=[i in corrupted for i in range(len(roles))],
        prompt=encoding.text,
        answer=answer.text,
        attrs={
            "rule_name": rule.name,
            "subject": rule.forms[form].subject,
            "answer_source": answer.source,
            "metric": config.metric,
            "unit": unit,
            "span": config.span,
            "noise_level": config.noise_level,
            "embedding_std": std,
            "samples": config.samples,
            "seed": config.seed,
            "window": width,
            "positions": config.positions if isinstance(config.positions, str) else " ".join(config.positions),
            "engine": "suffixes in growing batches"
            if model.has_entry and model.has_prefix_cache
            else "whole sequences",
            "model": model.name,
            "weight_hash": model.weight_hash,
            "dtype": str(model.dtype).removeprefix("torch."),
            "fingerprint": trace_fingerprint(model, rule, form, config),
            **versions(),
        },
    )


def prepare(
    model: LanguageModel, rule: Rule, form: RuleForm, config: TraceConfig
) -> tuple[Encoding, list[str], Answer, CorruptedPrompt]:
    """One form of a rule as tokens, their roles, the answer to score, and the corruption.

    Raises:
        ValueError: The prompt has no token to corrupt, or no answer to score.
    """
    encoding = model.encode(rule.forms[form].prompt)
    roles = roles_of(rule, form, encoding)
    answer = find_answer(model, rule, form, config, encoding)
    corrupted = corrupted_positions(roles, config.span)
    noise = gaussian_noise(
        config.samples,
        len(corrupted),
        model.d_model,
        std=config.noise_level * model.embedding_std(),
        seed=config.seed,
        stream=zlib.crc32(repr(encoding.ids).encode()),
    )
    return encoding, roles, answer, CorruptedPrompt(encoding.ids, answer.ids, tuple(corrupted), noise)


def trace_rules(
    model: LanguageModel,
    rules: Sequence[Rule],
    config: TraceConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    advance: Callable[[int], object] = lambda n: None,
) -> list[Skipped]:
    """Trace every form of every rule into `folder`, one file per prompt, written as soon as it is done.

    A prompt whose file is there with the same fingerprint is not run again, so a stopped trace continues.

    Args:
        model: The model.
        rules: The rules.
        config: Settings of the trace.
        folder: Where `<rule>-<form>.nc` files go.
        overwrite: Replace files made with other settings instead of refusing.
        advance: Called with 1 for each prompt done, found, or skipped.

    Returns:
        Prompts that could not be traced, with reasons.

    Raises:
        StaleTraceError: A file of other settings is there and `overwrite` is off; raised before any run.
    """
    every = prompts(rules)
    todo: list[tuple[Rule, RuleForm]] = [
        (rule, form) for rule, form in every if not _is_done(model, rule, form, config, folder, overwrite)
    ]
    advance(len(every) - len(todo))
    skipped = []
    for rule, form in todo:
        try:
            effects.save(trace_prompt(model, rule, form, config), trace_path(folder, rule.id, form))
        except ValueError as error:
            skipped.append(Skipped(rule.id, form, str(error)))
        advance(1)
    return skipped


def collect(rules: Sequence[Rule], folder: Path, skipped: Sequence[Skipped]) -> xr.Dataset:
    """Join the traces of the given rules; what was skipped is counted and listed in the attributes."""
    paths = {(rule.id, str(form)): trace_path(folder, rule.id, form) for rule, form in prompts(rules)}
    joined = effects.concat({key: effects.load(path) for key, path in paths.items() if path.is_file()})
    listed = "; ".join(f"{s.rule}/{s.form}: {s.reason}" for s in skipped)
    return joined.assign_attrs(n_skipped=len(skipped), skipped=listed)


def prompts(rules: Sequence[Rule]) -> list[tuple[Rule, RuleForm]]:
    """Every (rule, form) in order."""
    return [(rule, form) for rule in rules for form in rule.forms]


def trace_path(folder: Path, rule: str, form: str) -> Path:
    """File of one prompt's map."""
    return folder / f"{rule}-{form}.nc"


def roles_of(rule: Rule, form: RuleForm, encoding: Encoding) -> list[str]:
    """Token roles of a rule's prompt; the symbols of its instances count as numbers."""
    symbols = {symbol for prompt in rule.forms.values() for symbol in prompt.values}
    return token_roles(encoding, rule.forms[form].subject, rule.rule_words, sorted(symbols))


def find_answer(model: LanguageModel, rule: Rule, form: RuleForm, config: TraceConfig, encoding: Encoding) -> Answer:
    """The answer to score, as `config.answer` says.

    Raises:
        ValueError: "truth" was asked for and the rule has none, or the model's own answer is empty.
    """
    truths = rule.forms[form].target_true
    if config.answer == "truth" and not truths:
        raise ValueError(f"rule {rule.id!r} has no true answer for its {form}; use answer: auto or greedy")
    if truths and config.answer != "greedy":
        return Answer(model.encode_continuation(truths[0]), truths[0], rule.forms[form].target_true_source)
    ids = model.generate([encoding.ids], config.answer_tokens)[0]
    if not ids:
        raise ValueError(f"the model's own answer to {encoding.text!r} is empty")
    return Answer(ids, model.decode(ids), "greedy")


def trace_fingerprint(model: LanguageModel, rule: Rule, form: RuleForm, config: TraceConfig) -> str:
    """Changes with everything that determines the numbers of a trace, and with nothing else."""
    prompt = rule.forms[form]
    return fingerprint(
        weights=model.weight_hash,
        dtype=str(model.dtype),
        config=config.model_dump(exclude={"batch_size", "splits"}),
        prompt=[prompt.prompt, prompt.subject, prompt.target_true, sorted(prompt.values)],
        rule_words=rule.rule_words,
    )


def _restored(component: str, layer: int, width: int, n_layers: int) -> range:
    # The stream after a block holds everything before it, so one state is enough; one MLP or attention
    # output is too little to see.
    return range(layer, layer + 1) if component == "resid" else window(layer, width, n_layers)


def _traced_positions(roles: Sequence[str], first: int, config: TraceConfig) -> list[int]:
    wanted = set(roles) if config.positions == "all" else set(config.positions)
    return [i for i, role in enumerate(roles) if i >= first and role in wanted]


def _is_done(
    model: LanguageModel, rule: Rule, form: RuleForm, config: TraceConfig, folder: Path, overwrite: bool
) -> bool:
    path = trace_path(folder, rule.id, form)
    if not path.is_file():
        return False
    if effects.load(path).attrs.get("fingerprint") == trace_fingerprint(model, rule, form, config):
        return True
    if overwrite:
        return False
    raise StaleTraceError(
        f"{path} was traced with other settings, another model or another wording; "
        "use another run folder, or --overwrite to trace it again"
    )
