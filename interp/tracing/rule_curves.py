"""Curves of faithfulness of the forms of rules, in a folder where a stopped study goes on."""

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from interp.config import FaithfulnessConfig, TraceConfig
from interp.errors import DmleError, InputError, NotTraceableError
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.results.faithfulness import SCHEMA, dataset, joined
from interp.results.provenance import fingerprint, versions
from interp.rules.sources import Rule
from interp.tracing.cases import Site
from interp.tracing.corruption import NoiseRule, noise_of
from interp.tracing.faithfulness import (
    area_under,
    linear_area_under,
    numbers_of_sites,
    ranking,
    recovered,
    restore_together,
)
from interp.tracing.fingerprint import config_text, trace_fingerprint
from interp.tracing.metrics import METRICS
from interp.tracing.prompt import Prepared, prepare, scoring_options, site, traced_positions
from interp.tracing.screening import ScoringOptions, score_sites
from interp.tracing.trace import Skipped, listing, prompts
from interp.tracing.windows import default_window
from interp.vocabulary import Method, RuleForm

Advance = Callable[[float], object]
WORK = {"exact": 12, "screen": 4, "attribution": 1, "random": 0}
"""What a ranking takes to make, next to the runs of its curve (`CURVE_WORK`): for the progress."""
CURVE_WORK = 2
PARTS = 1024
"""Of a prompt's work that progress is told in: a power of 2, so that they add up exactly."""


def rule_curves(
    model: LanguageModel,
    rules: Sequence[Rule],
    trace: TraceConfig,
    config: FaithfulnessConfig,
    folder: Path,
    *,
    only: bool = False,
    advance: Advance = lambda prompts: None,
) -> tuple[xr.Dataset, list[Skipped]]:
    """The curves of every form of rules: the content of `faithfulness.nc`.

    Args:
        model: The model.
        rules: The rules.
        trace: Corruption, positions, samples and metric (the first one).
        config: Components, rankings, and how many sites are restored together.
        folder: One file per prompt is kept here: what is there is not run again.
        only: Delete all other files there.
        advance: Called with the number of prompts done or skipped since the last call, in
            fractions.

    Returns:
        The curves, and the prompts that have none, with reasons; these are counted and listed in
        the attributes, too.

    Raises:
        NotTraceableError: No prompt has a curve; names the reasons.
        InputError: The settings of the trace are none that curves can be made with.
    """
    check_settings(trace)
    trace = _as_read(trace, config)
    noise = noise_of(model, trace, rules)
    folder.mkdir(exist_ok=True)
    paths: dict[tuple[str, str], Path] = {}
    skipped: list[Skipped] = []
    for rule, form in prompts(rules):
        path = folder / f"{_key(model, rule, form, trace, config, noise)}.nc"
        counter = _Counter(advance)
        try:
            item = None
            if not path.is_file():
                item = prompt_curves(model, rule, form, trace, config, noise=noise, advance=counter)
        except DmleError as error:
            skipped.append(Skipped(rule.id, form, str(error)))
        else:  # a full disk is no property of the prompt
            if item is not None:
                effects.save(item, path)
            paths[rule.id, str(form)] = path
        counter.end()
    if not paths:
        reasons = listing(skipped) or "there is no rule"
        raise NotTraceableError(f"no prompt has a curve: {reasons}")
    curves = joined({key: effects.load(path) for key, path in paths.items()})
    for path in folder.glob("*.nc") if only else ():
        if path not in paths.values():
            path.unlink()
    attrs = _attributes(model, trace, config, noise)
    skips = {"n_skipped": len(skipped), "skipped": listing(skipped)}
    return curves.assign_attrs({**attrs, **skips, **versions()}), skipped


@dataclass
class _Counter:
    """Tells of the work of a prompt that is done, in parts whose sum is 1 without rounding.

    A sum above the number of prompts is more than a progress bar takes.
    """

    advance: Advance
    done: float = 0.0
    told: float = 0.0

    def __call__(self, share: float) -> None:
        self.done = min(1.0, self.done + share)
        told = floor(self.done * PARTS) / PARTS
        self.advance(told - self.told)
        self.told = told

    def end(self) -> None:
        self.advance(1 - self.told)


def check_settings(trace: TraceConfig) -> None:
    """See that curves can be made with the settings of a trace.

    Raises:
        InputError: They cannot.
    """
    if trace.direction != "denoise":
        raise InputError(
            f"trace.direction is {trace.direction}, but curves of faithfulness restore clean states"
            " in the corrupted run; set trace.direction=denoise"
        )
    if METRICS[trace.metrics[0]].contrast:
        raise InputError(
            f"trace.metrics begins with {trace.metrics[0]}, which takes a second sweep; curves of"
            " faithfulness read the first metric alone: name another one first"
        )


def prompt_curves(
    model: LanguageModel,
    rule: Rule,
    form: RuleForm,
    trace: TraceConfig,
    config: FaithfulnessConfig,
    *,
    noise: NoiseRule | None = None,
    advance: Advance = lambda share: None,
) -> xr.Dataset:
    """The curves of one form of a rule, with the dims of `interp.results.faithfulness`.

    Args:
        model: The model.
        rule: The rule.
        form: Which of its forms.
        trace: See `rule_curves`.
        config: See `rule_curves`.
        noise: The run's noise rule. Default: that of this rule alone.
        advance: Called with the share of the work done since the last call; the shares sum to 1.

    Raises:
        NotTraceableError: The corruption does not move the score by more than chance, ….
    """
    trace = _as_read(trace, config)
    noise = noise or noise_of(model, trace, [rule])
    ready = prepare(model, rule, form, trace, noise)
    clean, corrupted = _traceable_scores(model, ready, trace)
    sites = _sites(model, ready, trace)
    numbers = numbers_of_sites(len(sites[0]), config.shares)
    curve_work = CURVE_WORK * len(config.methods) / len(sites)
    work = sum(WORK[method] for method in config.methods) + curve_work * len(sites)
    orders = _orders(model, ready, sites, trace, config, lambda done: advance(done / work))
    curves = np.stack(
        [
            _curves(
                model, ready, own, trace, of_own, numbers, lambda s: advance(s * curve_work / work)
            )
            for own, of_own in zip(sites, orders, strict=True)
        ]
    )
    values = {
        "recovered": curves,
        "area": area_under(curves, numbers),
        "linear_area": linear_area_under(curves, numbers),
        "k": np.array(numbers),
        "n_sites": np.array(len(sites[0])),
        "clean": np.array(clean),
        "corrupted": np.array(corrupted),
    }
    labels = {
        "rule": [rule.id],
        "form": [str(form)],
        "component": config.components,
        "ranking": config.methods,
        "share": (0.0, *config.shares, 1.0),
    }
    about = {"prompt": ready.encoding.text, "answer": ready.answer.text}
    attrs = {**_attributes(model, trace, config, noise), **about}
    return dataset({name: each[None, None] for name, each in values.items()}, labels, attrs)


def _as_read(trace: TraceConfig, config: FaithfulnessConfig) -> TraceConfig:
    """The settings of a trace as curves read them: their own components, and one metric."""
    own = {"components": config.components, "metrics": trace.metrics[:1], "method": "exact"}
    return trace.model_copy(update=own)


def _key(
    model: LanguageModel,
    rule: Rule,
    form: RuleForm,
    trace: TraceConfig,
    config: FaithfulnessConfig,
    noise: NoiseRule,
) -> str:
    """Changes with everything that the curves of a prompt depend on."""
    traced = trace_fingerprint(model, rule, form, trace, noise)
    settings = config.model_dump(mode="json")
    return fingerprint(schema=SCHEMA, rule=rule.id, form=form, trace=traced, settings=settings)


def _traceable_scores(
    model: LanguageModel, ready: Prepared, trace: TraceConfig
) -> tuple[float, float]:
    """Scores of the clean and corrupted run (mean over samples), before anything is restored.

    Raises:
        NotTraceableError: They do not differ by more than chance, so there is no share to recover.
    """
    scores = score_sites(model, ready.case, [], trace.metrics, _options(trace, "exact"))
    runs = xr.Dataset(
        {"clean": scores.clean[0].item(), "corrupted": ("sample", scores.corrupted[:, 0].numpy())}
    )
    total = effects.total_effect(runs)
    if not bool(total["traceable"]):
        raise NotTraceableError(
            f"not traceable: the total effect {float(total['total_effect']):.3f} is not above"
            f" {effects.TRACEABLE_STANDARD_ERRORS:g} standard errors"
            f" ({float(total['standard_error']):.3f}), so there is nothing to recover"
        )
    return float(runs["clean"]), float(runs["corrupted"].mean())


def _sites(model: LanguageModel, ready: Prepared, trace: TraceConfig) -> list[list[Site]]:
    """The sites of each component, layer by layer."""
    width = trace.window or default_window(model.n_layers)
    places = list(product(range(model.n_layers), traced_positions(ready, trace)))
    return [
        [site(component, layer, position, width, model.n_layers) for layer, position in places]
        for component in trace.components
    ]


def _orders(
    model: LanguageModel,
    ready: Prepared,
    sites: Sequence[Sequence[Site]],
    trace: TraceConfig,
    config: FaithfulnessConfig,
    advance: Advance,
) -> list[list[list[np.ndarray]]]:
    """Rankings of the sites of each component: for each method one, or of the random one several.

    Each is a permutation of the sites, shape (site,). `advance` is called with units of `WORK`.
    """
    every, stream = list(chain(*sites)), zlib.crc32(repr(ready.encoding.ids).encode())
    orders: list[list[list[np.ndarray]]] = [[] for _ in sites]
    for method in config.methods:
        if method == "random":
            for i, own in enumerate(sites):
                draws = (np.random.default_rng([seed, stream, i]) for seed in config.seeds)
                orders[i].append([draw.permutation(len(own)) for draw in draws])
            continue
        scores = score_sites(
            model,
            ready.case,
            every,
            trace.metrics,
            _options(trace, method),
            lambda share, work=WORK[method]: advance(share * work),
        )
        effect = (scores.restored - scores.corrupted).mean(1)[:, 0].numpy()
        for own, values in zip(orders, effect.reshape(len(sites), -1), strict=True):
            own.append([ranking(values)])
    return orders


def _options(trace: TraceConfig, method: Method) -> ScoringOptions:
    return replace(scoring_options(trace), method=method)


def _curves(
    model: LanguageModel,
    ready: Prepared,
    sites: Sequence[Site],
    trace: TraceConfig,
    orders: Sequence[Sequence[np.ndarray]],
    numbers: Sequence[int],
    advance: Advance,
) -> np.ndarray:
    """Recovered shares by real runs, shape (method, number of sites).

    Args:
        model: The model.
        ready: The prompt.
        sites: The sites of one component.
        trace: Settings: metric, memory and batches.
        orders: Rankings of these sites by method; the mean is taken over those of one method.
        numbers: How many sites are restored together.
        advance: Called with the share of the work done since the last call.
    """
    options = scoring_options(trace).sweep
    result = restore_together(
        model,
        ready.case,
        [[sites[i] for i in order[:k]] for order in chain(*orders) for k in numbers],
        METRICS[trace.metrics[0]].function,
        memory=options.memory,
        batch_size=options.batch_size,
        advance=advance,
    )
    shares = recovered(
        result.restored.double().numpy(), float(result.clean), result.corrupted.double().numpy()
    )
    each = iter(shares.reshape(-1, len(numbers)))
    return np.stack([np.mean([next(each) for _ in own], axis=0) for own in orders])


def _attributes(
    model: LanguageModel, trace: TraceConfig, config: FaithfulnessConfig, noise: NoiseRule
) -> dict[str, Any]:
    """What the curves say of their making."""
    metric, span, positions = trace.metrics[0], trace.span, trace.positions
    noisy = trace.corruption == "noise"
    return {
        "metric": metric,
        "unit": METRICS[metric].unit,
        "corruption": trace.corruption,
        **({"noise": noise.text, "noise_std": noise.std} if noisy else {}),
        "span": span if isinstance(span, str) else " ".join(span),
        "samples": trace.samples if noisy else 1,
        "seed": trace.seed,
        "window": trace.window or default_window(model.n_layers),
        "positions": positions if isinstance(positions, str) else " ".join(positions),
        "model": model.name,
        "weight_hash": model.weight_hash,
        "dtype": str(model.dtype).removeprefix("torch."),
        "config": config_text(trace),
        "settings": json.dumps(config.model_dump(mode="json")),
    }
