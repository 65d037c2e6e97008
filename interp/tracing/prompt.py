"""Causal tracing of one prompt: from one form of a rule to its effect map.

Method (noise restoration, "denoising"): corrupt the embeddings of the tokens that name the rule,
then give one state its clean value back and see how much of the answer returns. The result is a map
component × layer × token (see `interp.results.effects`). Scores are of the *whole* answer: the
first token of a formula or description is mostly format.

Source: ROME 2.1 (causal tracing); the corrupted span and whole-answer score follow the needs of
    rules.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from interp.config import TraceConfig
from interp.errors import ModelError, NotTraceableError, TooLongError
from interp.models.loading import Encoding, LanguageModel
from interp.models.tokens import token_roles
from interp.results import effects
from interp.results.provenance import versions
from interp.rules.sources import Rule
from interp.rules.spans import check_phrases
from interp.settings.sizes import parse_size
from interp.tracing import corruption
from interp.tracing.answers import Answer, given_answer, own_answer
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.corruption import NoiseRule, noise_of
from interp.tracing.fingerprint import config_text, trace_fingerprint
from interp.tracing.metrics import METRICS, first_difference
from interp.tracing.patching import SweepOptions
from interp.tracing.screening import ScoredSites, ScoringOptions, score_sites
from interp.tracing.windows import default_window, window
from interp.vocabulary import Component, Direction, RuleForm


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
    config: TraceConfig | None = None,
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
    config = config or TraceConfig()
    noise = noise or noise_of(model, config, [rule])
    ready = prepare(model, rule, form, config, noise, answer)
    width = config.window or default_window(model.n_layers)
    positions = traced_positions(ready, config)
    sites = sites_of(model, config, positions)
    result = score_sites(model, ready.case, sites, config.metrics, scoring_options(config), advance)
    attrs = {
        "rule_name": rule.name,
        "subject": rule.forms[form].subject,
        **_attributes(model, ready, config, noise, width),
        **result.about,
        "fingerprint": trace_fingerprint(model, rule, form, config, noise),
        **versions(),
    }
    return _map_of(model, ready, config, result, positions, attrs)


def sites_of(model: LanguageModel, config: TraceConfig, positions: Sequence[int]) -> list[Site]:
    """All sites of a map, at some positions, in the order of its grid."""
    width = config.window or default_window(model.n_layers)
    return [
        site(component, layer, position, width, model.n_layers)
        for component in config.components
        for layer in range(model.n_layers)
        for position in positions
    ]


def _map_of(
    model: LanguageModel,
    ready: Prepared,
    config: TraceConfig,
    result: ScoredSites,
    positions: Sequence[int],
    attrs: Mapping[str, Any],
) -> xr.Dataset:
    """Scores of the sites at the traced positions as an effect map."""
    grid = (len(config.components), model.n_layers, len(positions), ready.case.samples)
    score, exact = _on_all_tokens(ready, result, grid, positions, config.direction)
    clean, corrupted = result.clean.numpy(), result.corrupted.numpy().T
    several = len(config.metrics) > 1
    units = {name: METRICS[name].unit for name in config.metrics}
    return effects.effect_map(
        score if several else score[0],
        clean if several else clean.item(),
        corrupted if several else corrupted[0],
        components=config.components,
        tokens=model.token_texts(ready.encoding),
        roles=ready.roles,
        is_corrupted=[i in ready.case.positions for i in range(len(ready.roles))],
        prompt=ready.encoding.text,
        answer=ready.answer.text,
        metrics=units if several else None,
        exact=exact,
        attrs=attrs,
    )


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
        if any(METRICS[name].needs_alternative for name in config.metrics):
            first_difference(case.answer, case.alternative)
        return Prepared(encoding, roles, answer, case, twin)
    noise = noise or noise_of(model, config, [rule])
    case = _noisy(model, config, noise, encoding, roles, answer)
    return Prepared(encoding, roles, answer, case)


def _noisy(
    model: LanguageModel,
    config: TraceConfig,
    noise: NoiseRule,
    encoding: Encoding,
    roles: Sequence[str],
    answer: Answer,
) -> CorruptedPrompt:
    """A prompt whose corrupted runs have noise on the embeddings of the span."""
    if isinstance(config.span, str):
        corrupted = corruption.corrupted_positions(roles, config.span)
    else:
        corrupted = corruption.phrase_positions(encoding, config.span)
    stream = zlib.crc32(repr(encoding.ids).encode())
    draws = noise.draw(
        config.samples, len(corrupted), model.d_model, seed=config.seed, stream=stream
    )
    return CorruptedPrompt(encoding.ids, answer.ids, tuple(corrupted), draws, config.noise_replaces)


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


def roles_of(rule: Rule, form: RuleForm, encoding: Encoding) -> list[str]:
    """Token roles of a rule's prompt; the symbols of its instances count as numbers."""
    symbols = {symbol for prompt in rule.forms.values() for symbol in prompt.values}
    return token_roles(encoding, rule.forms[form].subject, rule.rule_words, sorted(symbols))


def scoring_options(config: TraceConfig) -> ScoringOptions:
    """The part of a trace's settings that says how sites are scored."""
    memory = None if config.memory is None else parse_size(config.memory)
    return ScoringOptions(
        method=config.method,
        steps=config.gradient_steps,
        share=config.screen_share,
        tolerance=config.tolerance,
        seed=config.seed,
        sweep=SweepOptions(config.direction, config.route, memory, config.batch_size),
    )


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


def _typed(model: LanguageModel, encoding: Encoding) -> dict[str, str]:
    """Special tokens that are written out in a prompt, as an attribute: they are tokens there,
    not text.
    """
    typed = model.special_texts(encoding.text)
    return {"typed_tokens": " ".join(typed)} if typed else {}


def traced_positions(ready: Prepared, config: TraceConfig) -> list[int]:
    """Positions from the first corrupted token on that have a role of `config.positions`.

    Raises:
        NotTraceableError: There is none.
    """
    roles, first = ready.roles, ready.case.positions[0]
    wanted = set(roles) if config.positions == "all" else set(config.positions)
    positions = [i for i, role in enumerate(roles) if i >= first and role in wanted]
    if not positions:
        raise NotTraceableError(
            f"no token to trace: trace.positions is {', '.join(config.positions)}; from the first"
            f" corrupted token on {ready.encoding.text!r} has"
            f" {', '.join(dict.fromkeys(roles[first:]))}; set trace.positions=all"
        )
    return positions


def _on_all_tokens(
    ready: Prepared,
    result: ScoredSites,
    grid: tuple[int, int, int, int],
    positions: Sequence[int],
    direction: Direction,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores of all tokens of the prompt, shape (metric, component, layer, pos, sample), and which
    of them were run, shape (component, layer, pos, sample), if not all were.

    Before the first corrupted token nothing differs: a site there has the score of the base run.

    Args:
        ready: The prompt.
        result: The scores; of a site they come last there.
        grid: Component, layer, traced position, sample: how many of each.
        positions: The traced positions; others are NaN.
        direction: Which run is the base.
    """
    first, n_tokens = ready.case.positions[0], len(ready.roles)
    corrupted = result.corrupted.numpy().T
    clean = np.broadcast_to(result.clean.numpy()[:, None], corrupted.shape)
    base = corrupted if direction == "denoise" else clean
    shape = (len(base), *grid[:2], n_tokens, grid[3])
    score = np.full(shape, np.nan, np.float32)
    score[..., :first, :] = base[:, None, None, None]
    score[..., positions, :] = np.moveaxis(result.restored.numpy(), -1, 0).reshape(-1, *grid)
    if result.exact is None:
        return score, None
    exact = np.zeros(shape[1:], bool)
    exact[..., :first, :] = True
    exact[..., positions, :] = result.exact.numpy().reshape(grid)
    return score, exact


def _attributes(
    model: LanguageModel, ready: Prepared, config: TraceConfig, noise: NoiseRule, width: int
) -> dict[str, Any]:
    """What an effect map says of its making."""
    metric, span, positions = config.metrics[0], config.span, config.positions
    metric_attrs = {"metric": metric, "unit": METRICS[metric].unit}
    noise_attrs = {
        "span": span if isinstance(span, str) else " ".join(span),
        "noise": noise.text,
        "noise_std": noise.std,
        "noise_replaces": int(config.noise_replaces),
    }
    by_twin = config.corruption == "counterfactual"
    return {
        "answer_source": ready.answer.source,
        "answer_joint": ready.answer.joint,
        **_typed(model, ready.encoding),
        "corruption": config.corruption,
        "direction": config.direction,
        **(metric_attrs if len(config.metrics) == 1 else {}),
        **({"counterfactual": ready.counterfactual} if by_twin else noise_attrs),
        "embedding_std": model.embedding_std(),
        "samples": ready.case.samples,
        "seed": config.seed,
        "window": width,
        "positions": positions if isinstance(positions, str) else " ".join(positions),
        "method": config.method,
        "engine": engine(model, config, len(ready.case.ids)),
        "model": model.name,
        "weight_hash": model.weight_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "config": config_text(config),
    }
