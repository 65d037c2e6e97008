"""What `dmle trace` does in a run folder: one effect map per prompt, and all in one file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from interp.app.steps import EXECUTOR, Context, Step
from interp.app.workers import spread_of
from interp.config import TraceConfig
from interp.rules.sources import Rule

if TYPE_CHECKING:
    import xarray as xr

    from interp.planning.plan import Costs, Work
    from interp.tracing.trace import Skipped

BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} prompts [{elapsed}<{remaining}]"


def traced_rules(context: Context) -> list[Rule]:
    """Rules that are traced (`trace.splits`)."""
    return context.rules_of(context.settings(TraceConfig).splits, "trace.splits")


def estimates(maps: "xr.Dataset") -> list[str]:
    """What a method that does less than the exact one says of its saving and its error, over all
    prompts.
    """
    shares, missed = _values(maps, "exact_share"), _values(maps, "missed_mass")
    if not shares.size:
        return []
    line = f"run exactly: {shares.mean():.0%} of the site and sample runs of the exact sweep"
    if missed.size:
        line += (
            f"; absolute effects wrong by (audit): {missed.mean():.0%} on average,"
            f" {missed.max():.0%} at most"
        )
    return [line]


def _values(maps: "xr.Dataset", name: str) -> np.ndarray:
    """A number that each prompt has."""
    # One value for all prompts is an attribute, different ones are a coordinate of texts.
    values = maps[name].values.ravel() if name in maps.coords else [maps.attrs.get(name, "")]
    return np.array([float(value) for value in values if value != ""])


def _trace(context: Context) -> str:
    from interp.app import freshness
    from interp.tracing import trace as tracing

    config, model = context.settings(TraceConfig), context.model
    rules, folder = traced_rules(context), context.run.path / "traces"
    total = len(tracing.prompts(rules))
    with context.progress(total=total, desc="trace", bar_format=BAR) as bar:
        skipped = tracing.trace_rules(
            model,
            rules,
            config,
            folder,
            overwrite=context.overwrite,
            advance=bar.update,
            spread=spread_of(context, "trace"),
        )
    path = context.run.path / "effects.nc"
    record = freshness.made(context, "trace", ["trace"], rules=["trace"])
    wanted = tracing.fingerprints(model, rules, config)
    tracing.collect(
        rules, folder, skipped, path, fingerprints=wanted, attrs={freshness.RECORD: record.text()}
    )
    if context.overwrite:
        tracing.remove_others(rules, folder)
    return _report(context, path, skipped)


def _tracer(context: Context) -> Callable[[str], str]:
    from interp.tracing.trace import tracer

    folder = context.run.path / "traces"
    return tracer(context.model, traced_rules(context), context.settings(TraceConfig), folder)


def _report(context: Context, path: Path, skipped: "list[Skipped]") -> str:
    from interp.results import effects
    from interp.tracing.prompt import engine

    config, model = context.settings(TraceConfig), context.model
    with effects.opened(path) as joined:
        te = effects.total_effect(effects.choose_metric(joined))
        traced = int((joined["n_tokens"] > 0).sum())
        estimated = estimates(joined)
    positions = "all" if config.positions == "all" else " ".join(config.positions)
    noisy = config.corruption == "noise"
    corruption = f"{config.samples} noise samples" if noisy else "counterfactual prompts"
    lines = [
        (
            f"{traced} prompts traced, {int(te['traceable'].sum())} of them traceable (total effect"
            f" above two standard errors); {len(skipped)} skipped"
        ),
        (f"self-check: {model.check}; route: {engine(model, config)}; method: {config.method}"),
        f"{corruption}; positions: {positions}",
        *estimated,
        *(f"skipped {each.rule}/{each.form}: {each.reason}" for each in skipped),
        f"effect maps: {path}",
    ]
    return "\n".join(lines)


def _plan(context: Context, costs: "Costs", note: Callable[[str], object]) -> "list[Work]":
    from interp.app.trace_plan import plan_trace

    return plan_trace(context, costs, note, traced_rules(context))


TRACE = Step(
    "trace",
    _trace,
    {"trace": TraceConfig, **EXECUTOR},
    needs_model=True,
    check=traced_rules,
    settles=("trace",),
    worker=_tracer,
    plan=_plan,
)
