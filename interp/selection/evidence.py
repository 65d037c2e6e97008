"""The evidence of edits (`dmle evidence`, file ``evidence.nc``), as strategies read it.

A strategy names the measures that it reads (`Strategy.measures`). One that mixes them with the
profile says how (`Strategy.mix`); one that chooses by a single measure is made by `window_by`. A
file of an earlier version may lack a measure: `lacks` says so, and everything else reads as before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.results.intervals import mean_of_known
from interp.selection import strategies
from interp.selection.pickers import window_of
from interp.selection.reasons import highest_window
from interp.selection.strategy import Strategy
from interp.selection.support import same
from interp.vocabulary import LOOKUP

EVIDENCE_SCHEMA = "dmle.evidence/1"


@dataclass(frozen=True)
class Measure:
    """What a number of each rule, form and layer is (definition: `editing.studies.evidence`)."""

    words: str
    """What its mean is called in a sentence."""
    unit: str


MEASURES: Mapping[str, Measure] = {
    "separability": Measure("mean separability of edits", ""),
    "reach": Measure("mean reach of edits", "nats per answer token"),
    "lga": Measure("mean inner product of gradients", "nats per answer token at learning rate 1"),
}
"""By the variable of the file. Larger is better in each."""


def window_by(measure: str, summary: str) -> Strategy:
    """A strategy that takes the window of `select.width` layers with the largest mean of one
    measure over rules and layers.

    The profile says which rules and layers are candidates, and nothing else. The measure of a
    window is its mean over layers, not their sum: both choose the same window, since all have one
    width, and the mean is in the unit of a layer.
    """
    return Strategy(
        summary=summary,
        picker=lambda config: window_of(config.width),
        explain=lambda finding: highest_window(finding, MEASURES[measure].words),
        agreement=same,
        reads=("profile", "evidence"),
        measures=(measure,),
    )


def lacks(strategy: Strategy, evidence: xr.Dataset | None) -> str:
    """Why a strategy cannot choose by this evidence, and what to do; "" if it can."""
    if "evidence" not in strategy.reads:
        return ""
    if evidence is None:
        return "no evidence of edits was given; `dmle evidence` measures it (evidence.nc)"
    missing = [name for name in strategy.measures if name not in evidence.data_vars]
    if not missing:
        return _of_another_token(strategy, evidence)
    return (
        f"the evidence has no {' and no '.join(missing)}, since an earlier version wrote it; run"
        " `dmle evidence` again, which measures it"
    )


def _of_another_token(strategy: Strategy, evidence: xr.Dataset) -> str:
    """Why measures are not of the token that edits look up; "" if they are, or say no token."""
    token = str(evidence.attrs.get("lookup", "")) or strategy.lookup
    if strategy.lookup in (None, token):
        return ""
    return (
        f"the evidence is of the token {token}, and the edits look up {strategy.lookup}"
        f" (select.lookup); run `dmle evidence --set edit.lookup={strategy.lookup}`"
    )


def lacks_effects(strategy: Strategy, profile: xr.Dataset, component: str) -> str:
    """Why a strategy that reads other tokens than those of lookups cannot choose by this profile,
    and what to do; "" if it can.
    """
    role = strategy.role
    if role == LOOKUP or component not in profile["component"].values:
        return ""
    if role in profile["role"].values:
        effect = profile["effect"].sel(role=role, component=component)
        if bool(effect.notnull().any()):
            return ""
    return (
        f"the profile has no effects of tokens of role {role}; run `dmle trace --positions"
        f" subject_last,rule_word,{role}`, then `dmle profile`"
    )


def check_evidence(strategy: Strategy, profile: xr.Dataset, evidence: xr.Dataset | None) -> None:
    """See that a strategy gets the evidence that it reads, of the profile's model, and no other.

    Raises:
        InputError: It does not.
    """
    if evidence is None:
        if reason := lacks(strategy, evidence):
            raise InputError(f"the strategy {strategy.name} reads evidence, and {reason}")
        return
    if "evidence" not in strategy.reads:
        readers = [each.name for each in strategies.every() if "evidence" in each.reads]
        raise InputError(
            f"evidence of edits was given, and the strategy {strategy.name} does not read it; what"
            f" reads evidence is {', '.join(readers)}"
        )
    if evidence.attrs.get("schema") != EVIDENCE_SCHEMA:
        got = evidence.attrs.get("schema")
        raise InputError(
            f"expected evidence of edits ({EVIDENCE_SCHEMA}), got {got!r}; `dmle evidence`"
            " writes it"
        )
    both = [str(each.attrs.get("weight_hash", "")) for each in (profile, evidence)]
    if evidence.sizes["layer"] != profile.sizes["layer"] or (all(both) and both[0] != both[1]):
        raise InputError(
            "the evidence is of another model than the profile; run `dmle evidence` in this run"
            " folder"
        )
    if reason := lacks(strategy, evidence):
        raise InputError(f"the strategy {strategy.name} cannot choose: {reason}")


def measures_of(
    evidence: xr.Dataset, names: Sequence[str], rules: Sequence[str], forms: Sequence[str]
) -> list[np.ndarray]:
    """Each measure, mean over forms, shape (rule, layer); NaN for rules that are not in it."""
    measured = [form for form in forms if form in evidence["form"].values]
    known = evidence[list(names)].sel(form=measured).reindex(rule=list(rules))
    return [
        mean_of_known(known[name].transpose("form", "rule", "layer").values, 0) for name in names
    ]
