"""Which rules a section of settings chooses, and a fingerprint of what is read of each."""

from typing import Any

from interp.app.steps import Context
from interp.results.provenance import fingerprint
from interp.rules.sources import Rule

TRAINING = ("train",)
UNTRACED = (
    "target_new",
    "rephrasings",
    "instances",
    "understanding",
    "neighborhood",
    "distracting",
)
"""What a form of a rule holds for editing and evaluation."""


def digests(context: Context, section: str) -> dict[str, str]:
    """Fingerprints of the rules that a section chooses, by id: of what tracing reads of them, or
    of all.
    """
    return {
        rule.id: _traced(rule) if section == "trace" else _whole(rule)
        for rule in rules_in_force(context, section)
    }


def rules_in_force(context: Context, section: str) -> list[Rule]:
    """The rules that a section chooses: `evidence` those that are traced, `tune` training rules."""
    config: Any = context.sections["trace" if section == "evidence" else section]
    limit = getattr(context.sections["edit"] if section == "tune" else config, "limit", None)
    return context.rules_of(getattr(config, "splits", TRAINING), f"{section}.splits")[:limit]


def _traced(rule: Rule) -> str:
    """Of all but what a trace never reads: what is edited in, and what evaluates an edit."""
    values = rule.model_dump(mode="json", exclude={"expression_true", "expression_new", "split"})
    forms = {
        form: {k: v for k, v in each.items() if k not in UNTRACED}
        for form, each in values.pop("forms").items()
    }
    return fingerprint(rule=values, forms=forms)


def _whole(rule: Rule) -> str:
    return fingerprint(rule=rule.model_dump(mode="json"))
