"""Causal tracing of rules: from a rule's prompt to its effect map, and from many rules to a run
folder.

Method (noise restoration, "denoising"): corrupt the embeddings of the tokens that name the rule,
then give one state its clean value back and see how much of the answer returns. Per prompt the
result is a map component × layer × token (see `interp.results.effects`). Scores are of the *whole*
answer: the first token of a formula or description is mostly format.

Source: ROME 2.1 (causal tracing); the corrupted span and whole-answer score follow the needs of
rules.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp.config import Component, TraceConfig
from interp.errors import DmleError, ModelError, NotTraceableError, StaleError, TooLongError
from interp.models import corpus
from interp.models.loading import Encoding, LanguageModel
from interp.models.tokens import token_roles
from interp.results import effects
from interp.results.files import inside
from interp.results.provenance import fingerprint, versions
from interp.rules.joining import SAID, join
from interp.rules.sources import Rule, RuleForm, RulePrompt
from interp.rules.spans import check_phrases
from interp.settings.sizes import parse_size
from interp.tracing import corruption, screening
from interp.tracing.answers import Answer, given_answer, own_answer
from interp.tracing.corruption import NoiseRule
from interp.tracing.metrics import METRICS, first_difference
from interp.tracing.patching import CorruptedPrompt, Site
from interp.tracing.windows import default_window, window


@dataclass(frozen=True)
class Skipped:
    """A prompt that could not be traced, and why."""

    rule: str
    form: str
    reason: str


class StaleTraceError(StaleError):
    """A trace in the run folder was made with other settings."""


@dataclass(frozen=True)
class Prepared:
    """One form of a rule, ready to be traced."""

    encoding: Encoding
    roles: list[str]
    answer: Answer
    case: CorruptedPrompt
    counterfactual: str = ""
    """The counterfactual prompt, if one corrupts."""


def trace_prompt(
    model: LanguageModel,
    rule: Rule,
    form: RuleForm,
    config: TraceConfig,
    *,
    noise: NoiseRule | None = None,
    answer: Answer | None = None,
    advance: Callable[[float], object] = lambda share: None,
) -> xr.Dataset:
    """The effect map of one form of a rule.

    Args:
        model: The model.
        rule: The rule.
        form: Which of its forms.
        config: Corruption, sites, samples and metrics.
        noise: The run's noise rule. Default: that of this rule alone (see `noise_of`).
        answer: The answer to score. Default: as `config.answer` says.
        advance: Called with the share of the work done since the last call; the shares sum to 1.

    Returns:
        An effect map (see `interp.results.effects`). Positions before the first corrupted token are
        exactly zero effect (nothing there differs); positions that `config.positions` leaves out
        are NaN.

    Raises:
        ValueError: The prompt has no token to corrupt, no answer to score, or no counterfactual
            prompt.
    """
    noise = noise or noise_of(model, config, [rule])
    ready = prepare(model, rule, form, config, noise, answer)
    encoding, roles, answer, case = ready.encoding, ready.roles, ready.answer, ready.case
    width = config.window or default_window(model.n_layers)
    positions = _traced_positions(roles, case.positions[0], config)
    if not positions:
        raise DmleError(
            f"no token to trace: trace.positions is {', '.join(config.positions)}; from the first"
            f" corrupted token on {encoding.text!r} has"
            f" {', '.join(dict.fromkeys(roles[case.positions[0] :]))}; set trace.positions=all"
        )
    sites = [
        site(component, layer, position, width, model.n_layers)
        for component in config.components
        for layer in range(model.n_layers)
        for position in positions
    ]
    result = screening.score_sites(
        model,
        case,
        sites,
        config.metrics,
        method=config.method,
        direction=config.direction,
        route=config.route,
        steps=config.gradient_steps,
        share=config.screen_share,
        tolerance=config.tolerance,
        seed=config.seed,
        memory=None if config.memory is None else parse_size(config.memory),
        batch_size=config.batch_size,
        advance=advance,
    )
    # The scores of a site come last there, metrics first in a map: (metric, component, layer, pos,
    # sample).
    grid = (len(config.components), model.n_layers, len(positions), case.samples)
    corrupted = result.corrupted.numpy().T
    base = (
        corrupted
        if config.direction == "denoise"
        else np.broadcast_to(result.clean.numpy()[:, None], corrupted.shape)
    )
    score = np.full((len(config.metrics), *grid[:2], len(roles), case.samples), np.nan, np.float32)
    score[..., : case.positions[0], :] = base[:, None, None, None]
    score[..., positions, :] = np.moveaxis(result.restored.numpy(), -1, 0).reshape(-1, *grid)
    exact = None
    if result.exact is not None:
        exact = np.zeros(score.shape[1:], bool)
        exact[..., : case.positions[0], :] = True  # nothing differs there
        exact[..., positions, :] = result.exact.numpy().reshape(grid)
    units = {name: METRICS[name].unit for name in config.metrics}
    several = len(units) > 1
    how: dict[str, Any] = (
        {} if several else {"metric": config.metrics[0], "unit": units[config.metrics[0]]}
    )
    if config.corruption == "counterfactual":
        how |= {"counterfactual": ready.counterfactual}
    else:
        how |= {
            "span": config.span if isinstance(config.span, str) else " ".join(config.span),
            "noise": noise.text,
            "noise_std": noise.std,
            "noise_replaces": int(config.noise_replaces),
        }
    return effects.effect_map(
        score if several else score[0],
        result.clean.numpy() if several else result.clean.item(),
        corrupted if several else corrupted[0],
        components=config.components,
        tokens=model.token_texts(encoding),
        roles=roles,
        is_corrupted=[i in case.positions for i in range(len(roles))],
        prompt=encoding.text,
        answer=answer.text,
        metrics=units if several else None,
        exact=exact,
        attrs={
            "rule_name": rule.name,
            "subject": rule.forms[form].subject,
            "answer_source": answer.source,
            "answer_joint": answer.joint,
            **_typed(model, encoding),
            "corruption": config.corruption,
            "direction": config.direction,
            **how,
            "embedding_std": model.embedding_std(),
            "samples": case.samples,
            "seed": config.seed,
            "window": width,
            "positions": (
                config.positions
                if isinstance(config.positions, str)
                else " ".join(config.positions)
            ),
            "method": config.method,
            "engine": engine(model, config, len(case.ids)),
            **result.about,
            "model": model.name,
            "weight_hash": model.weight_hash,
            "dtype": str(model.dtype).removeprefix("torch."),
            "fingerprint": trace_fingerprint(model, rule, form, config, noise),
            "config": _config_text(config),
            **versions(),
        },
    )


def engine(model: LanguageModel, config: TraceConfig, length: int = 0) -> str:
    """Which route runs the sites of a prompt with its answer, of so many tokens (0: of short
    ones), and why.
    """
    if config.route == "generic":
        return "generic (as asked for)"
    if model.takes_fast_route(length):
        return "fast (self-check passed)"
    switches = model.lengths.switches(length)
    if model.has_entry and model.has_prefix_cache and switches:
        return f"generic (the self-check does not allow the fast route above {switches[-1]} tokens)"
    return "generic (the self-check does not allow the fast route)"


def site(component: Component, layer: int, position: int, width: int, n_layers: int) -> Site:
    """The states that a component of an effect map names at a layer and position.

    The stream after a block holds everything before it, so one state is enough; one MLP or
    attention output is often too little to see, so `mlp` and `attn` are windows of blocks.
    """
    base, _, kind = component.partition("_")
    if base == "resid":
        return Site(
            "resid", position, range(layer, layer + 1), kind.removesuffix("_frozen") or None
        )
    return Site(base, position, range(layer, layer + 1) if kind else window(layer, width, n_layers))


def noise_of(model: LanguageModel, config: TraceConfig, rules: Iterable[Rule]) -> NoiseRule:
    """The noise rule of a run; its scale may depend on the subjects of all its rules. None for
    counterfactual prompts.

    Raises:
        ValueError: It needs subjects or text that are not there.
    """
    if config.corruption == "counterfactual":
        return NoiseRule("none", 0.0)
    subjects = [prompt.subject for rule in rules for prompt in rule.forms.values()]
    return corruption.noise_rule(config.noise, model, subjects, lambda: corpus.paragraphs()[1])


def prepare(
    model: LanguageModel,
    rule: Rule,
    form: RuleForm,
    config: TraceConfig,
    noise: NoiseRule | None = None,
    answer: Answer | None = None,
) -> Prepared:
    """One form of a rule as tokens, their roles, the answer to score, and the corruption.

    Raises:
        ValueError: The prompt has no token to corrupt, no answer to score, or no counterfactual
            prompt that aligns; the prompt with its answer is longer than the model's positions; the
            subject holds a special token.
    """
    if typed := model.special_texts(rule.forms[form].subject):
        raise ModelError(
            f"the subject {rule.forms[form].subject!r} holds {typed[0]!r}, which is a special token"
            f" of {model.name}; leave it out of the subject"
        )
    if reason := too_long(model, rule, form, config):
        raise TooLongError(reason)
    encoding = model.encode(rule.forms[form].prompt)
    roles = roles_of(rule, form, encoding)
    if not isinstance(config.span, str) and config.corruption == "noise":
        check_phrases(encoding.text, config.span)
    answer = answer or find_answer(model, rule, form, config, encoding)
    if config.corruption == "counterfactual":
        case, twin = corruption.counterfactual(
            model, encoding, answer.ids, rule.forms[form].twins, roles
        )
        if set(config.metrics) & {
            name for name, metric in METRICS.items() if metric.needs_alternative
        }:
            first_difference(case.answer, case.alternative)
        return Prepared(encoding, roles, answer, case, twin)
    if isinstance(config.span, str):
        corrupted = corruption.corrupted_positions(roles, config.span)
    else:
        corrupted = corruption.phrase_positions(encoding, config.span)
    rule_of_noise = noise or noise_of(model, config, [rule])
    stream = zlib.crc32(repr(encoding.ids).encode())
    draws = rule_of_noise.draw(
        config.samples, len(corrupted), model.d_model, seed=config.seed, stream=stream
    )
    case = CorruptedPrompt(encoding.ids, answer.ids, tuple(corrupted), draws, config.noise_replaces)
    return Prepared(encoding, roles, answer, case)


def trace_rules(
    model: LanguageModel,
    rules: Sequence[Rule],
    config: TraceConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    advance: Callable[[float], object] = lambda prompts: None,
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

    Returns:
        Prompts that could not be traced, with reasons.

    Raises:
        StaleTraceError: A file of other settings is there and `overwrite` is off; raised before any
            run.
    """
    every = prompts(rules)
    noise = noise_of(model, config, rules)
    reasons = {(rule.id, form): too_long(model, rule, form, config) for rule, form in every}
    skipped = [Skipped(rule, form, reason) for (rule, form), reason in reasons.items() if reason]
    todo: list[tuple[Rule, RuleForm]] = [
        (rule, form)
        for rule, form in every
        if not reasons[rule.id, form]
        and not _is_done(model, rule, form, config, noise, folder, overwrite)
    ]
    advance(len(every) - len(todo))
    for rule, form in todo:
        told: list[float] = []

        def tell(share: float, told: list[float] = told) -> None:
            told.append(share)
            advance(share)

        try:
            item = trace_prompt(model, rule, form, config, noise=noise, advance=tell)
        except DmleError as error:
            skipped.append(Skipped(rule.id, form, str(error)))
        else:  # a full disk is no property of the prompt
            effects.save(item, trace_path(folder, rule.id, form))
        advance(1 - sum(told))
    return skipped


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
    listed = "; ".join(f"{s.rule}/{s.form}: {s.reason}" for s in skipped)
    present = {key: path for key, path in paths.items() if path.is_file() and key not in left_out}
    for key, path in present.items():
        if fingerprints is not None and _attrs_of(path).get("fingerprint") != fingerprints[key]:
            raise StaleTraceError(
                f"{path} has changed while it was read: another program writes there; trace again"
            )
    effects.join(present, target, {"n_skipped": len(skipped), "skipped": listed, **(attrs or {})})


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


def roles_of(rule: Rule, form: RuleForm, encoding: Encoding) -> list[str]:
    """Token roles of a rule's prompt; the symbols of its instances count as numbers."""
    symbols = {symbol for prompt in rule.forms.values() for symbol in prompt.values}
    return token_roles(encoding, rule.forms[form].subject, rule.rule_words, sorted(symbols))


def find_answer(
    model: LanguageModel, rule: Rule, form: RuleForm, config: TraceConfig, encoding: Encoding
) -> Answer:
    """The answer to score, as `config.answer` says.

    Raises:
        ValueError: "truth" was asked for and the rule has none, or the model's own answer is empty.
    """
    prompt = rule.forms[form]
    truths = prompt.target_true
    if config.answer == "truth" and not truths:
        raise NotTraceableError(
            f"rule {rule.id!r} has no true answer for its {form}; use answer: auto or greedy"
        )
    if truths and config.answer != "greedy":
        source, n_tokens = prompt.target_true_source, config.answer_tokens
        return given_answer(model, encoding, truths[0], source, n_tokens, space=prompt.space)
    return own_answer(model, encoding, config.answer_tokens)


def too_long(
    model: LanguageModel, rule: Rule, form: RuleForm, config: TraceConfig, least: int = 1
) -> str:
    """Why a prompt with its answer does not fit into the model's positions; "" if it does. Nothing
    is run.

    The answer counts as at least so many tokens.
    """
    prompt = rule.forms[form]
    n_prompt = len(model.encode(prompt.prompt).ids)
    if prompt.target_true and config.answer != "greedy":
        n_answer = len(
            model.encode_continuation(prompt.target_true[0], prompt.prompt, prompt.space)
        )
    else:
        n_answer = config.answer_tokens
    n_answer = max(n_answer, least)
    if (n_tokens := n_prompt + n_answer - 1) <= model.context_length:
        return ""
    return (
        f"the prompt {prompt.prompt[:60]!r} ({n_prompt} tokens) with its answer ({n_answer}) takes"
        f" {n_tokens} tokens, {model.name} was made for {model.context_length}; shorten the prompt"
        " or use a model with a longer context"
    )


def _typed(model: LanguageModel, encoding: Encoding) -> dict[str, str]:
    """Special tokens that are written out in a prompt, as an attribute: they are tokens there,
    not text.
    """
    typed = model.special_texts(encoding.text)
    return {"typed_tokens": " ".join(typed)} if typed else {}


def trace_fingerprint(
    model: LanguageModel,
    rule: Rule,
    form: RuleForm,
    config: TraceConfig,
    noise: NoiseRule | None = None,
) -> str:
    """Changes with everything that determines the numbers of a trace, and with nothing else."""
    prompt = rule.forms[form]
    noise = noise or noise_of(model, config, [rule])
    by_noise = config.corruption == "noise"
    return fingerprint(
        schema=effects.SCHEMA,
        weights=model.weight_hash,
        dtype=str(model.dtype),
        config=config.model_dump(exclude=set(config.neutral)),
        # The scale depends on the other rules of a run; rounding keeps it the same on every
        # machine.
        noise=f"{noise.std:.4g}" if by_noise else "",
        prompt=[prompt.prompt, prompt.subject, prompt.target_true, sorted(prompt.values)],
        twins=[] if by_noise else [(twin.prompt, twin.answer) for twin in prompt.twins],
        rule_words=rule.rule_words,
        **_joints(prompt, by_noise),
    )


def _joints(prompt: RulePrompt, by_noise: bool) -> dict[str, list[str]]:
    """How answers continue their prompts where it is not by a space, which goes without saying."""
    pairs = [(prompt.prompt, truth, prompt.space) for truth in prompt.target_true[:1]]
    pairs += [] if by_noise else [(twin.prompt, twin.answer, twin.space) for twin in prompt.twins]
    joints = [join(*pair).said for pair in pairs]
    return {"joints": joints} if set(joints) - {SAID[" "]} else {}


def _traced_positions(roles: Sequence[str], first: int, config: TraceConfig) -> list[int]:
    wanted = set(roles) if config.positions == "all" else set(config.positions)
    return [i for i, role in enumerate(roles) if i >= first and role in wanted]


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
    held = _attrs_of(path)
    if held.get("fingerprint") == trace_fingerprint(model, rule, form, config, noise):
        return True
    if overwrite:
        return False
    raise StaleTraceError(
        f"{path} was traced with other settings, another model or another wording"
        f" ({_change(held, model, config)}); use another run folder, or --overwrite to trace it"
        " again"
    )


def _attrs_of(path: Path) -> dict[str, Any]:
    with effects.opened(path) as found:
        return dict(found.attrs)


def _change(held: Mapping[str, Any], model: LanguageModel, config: TraceConfig) -> str:
    """What differs from a trace's attributes, in words."""
    if held.get("weight_hash") != model.weight_hash:
        return f"the model was {held.get('weight_hash')}, it is {model.weight_hash} now"
    before, now = (json.loads(text) for text in (held.get("config", "{}"), _config_text(config)))
    changed = [
        f"trace.{key} was {json.dumps(before.get(key))}, it is {json.dumps(now[key])} now"
        for key in now
        if before and before.get(key) != now[key]
    ]
    return "; ".join(changed) or "the wording of the prompt, its answer, or the scale of the noise"


def _config_text(config: TraceConfig) -> str:
    return json.dumps(config.model_dump(mode="json", exclude=set(config.neutral)))
