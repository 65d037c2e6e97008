"""`dmle evidence`: what the model says about where the profile's rules could be edited, without
editing them.
"""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from editing.app.commands import measured
from editing.config import CovarianceConfig, EditConfig, EvaluateConfig
from interp.app.commands import Common, execute
from interp.app.steps import Context, Step
from interp.errors import InputError
from interp.rules.sources import Rule

if TYPE_CHECKING:
    import xarray as xr


def evidence(*, common: Common | None = None) -> None:
    """Measure where edits can expect to reach the answer and to leave other prompts alone; edits
    nothing.

    For the rules of the run folder's `profile.nc`, by form and layer: `evidence.nc`. The selection
    strategy `combined` reads it beside the profile, and `dmle regret` says how well it ranks
    layers. One file per rule: a stopped run continues.

    For example:

        dmle evidence --run runs/mine

        dmle select --run runs/mine --strategy combined
    """
    execute(["evidence"], common, {})


def _rules(context: Context, profile: "xr.Dataset") -> list[Rule]:
    wanted = {str(rule) for rule in profile["rule"].values}
    rules = [rule for rule in context.rules.rules if rule.id in wanted]
    if missing := sorted(wanted - {rule.id for rule in rules}):
        raise InputError(
            f"{len(missing)} rules of profile.nc are not among this run's rules (the first:"
            f" {missing[0]}); give the rules, split and limit of the trace"
        )
    return rules


def _evidence(context: Context) -> str:
    from editing.studies.evidence import evidence_dataset, evidence_of
    from editing.studies.lengths import check_rules
    from interp.app import freshness
    from interp.results import effects

    model, run = context.model, context.run
    rules = _rules(context, effects.load(run.need("profile.nc", "profile")))
    check_rules(model, rules, EvaluateConfig(greedy=False))
    lookup = context.settings(EditConfig).settings_of("dmle").lookup
    statistics = measured(context, range(model.n_layers))
    attrs = {"model": model.name, "weight_hash": model.weight_hash, "lookup": lookup}
    folder = run.path / "evidence"
    folder.mkdir(exist_ok=True)
    found, kept = {}, set()
    for rule in tqdm(rules, desc="evidence", unit="rule"):
        path = folder / f"{_key(rule, attrs, statistics.origin)}.nc"
        if not path.is_file():
            one = evidence_dataset({rule.id: evidence_of(model, rule, lookup, statistics)}, attrs)
            effects.save(one, path)
        kept.add(path)
        held = effects.load(path)
        found[rule.id] = (
            held.to_dataarray("measure").isel(rule=0).transpose("measure", "form", "layer").values
        )
    record = freshness.made(
        context, "evidence", ["covariance"], rules=["evidence"], more={"edit.lookup": lookup}
    )
    effects.save(
        evidence_dataset(found, {**attrs, freshness.RECORD: record.text()}),
        run.path / "evidence.nc",
    )
    if context.overwrite:
        for path in folder.glob("*.nc"):
            if path not in kept:
                path.unlink()
    return f"evidence of {len(found)} rules: {run.path / 'evidence.nc'}"


def _key(rule: Rule, attrs: dict[str, Any], origin: dict[str, Any]) -> str:
    """Changes with anything that the measures depend on."""
    text = json.dumps([rule.model_dump(mode="json"), attrs, origin], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _check(context: Context) -> None:
    from editing.edits.requests import requests_of
    from interp.results import effects

    lookup = context.settings(EditConfig).settings_of("dmle").lookup
    for rule in _rules(context, effects.load(context.run.need("profile.nc", "profile"))):
        requests_of(rule, lookup)


def _fresh(context: Context) -> None:
    from interp.app import freshness

    freshness.check(context, "profile.nc")


EVIDENCE = Step(
    "evidence",
    _evidence,
    evidence,
    {"covariance": CovarianceConfig, "edit": EditConfig},
    needs_model=True,
    check=_check,
    fresh=_fresh,
)
