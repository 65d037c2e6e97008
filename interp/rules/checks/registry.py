"""The registry of checks: what a check is called, how bad a finding is, and what it reads.

A check is a function that yields findings. The decorator `of_rule` registers one that reads a rule
at a time, `across_rules` one that reads all rules together. Both name the findings that the
function may yield, each with its level and its meaning. Every module of this package is imported
with it, so that a new check is a new file and nothing else.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from interp.rules.sources import Rule, RuleSet

Level = Literal["error", "warning", "info"]
LEVELS: tuple[Level, ...] = ("error", "warning", "info")


class Finding(NamedTuple):
    """One thing that a check found."""

    level: Level
    check: str
    """One of `CHECKS`."""
    where: str
    """Rule id, form and field: "ruleedit-11/instance/instances[2]"."""
    found: str
    expected: str


RuleCheck = Callable[[Rule, Mapping[str, Rule]], Iterator[Finding]]
"""Takes a rule, and all rules of its source by id."""
SetCheck = Callable[[list[Rule]], Iterator[Finding]]

CHECKS: dict[str, tuple[Level, str]] = {
    "refused": ("error", "a record that cannot be used"),
    "repaired": ("warning", "a record that was mended while it was read"),
}
"""Level and meaning of every finding, by name."""
_OF_RULE: list[RuleCheck] = []
_ACROSS: list[SetCheck] = []


def of_rule(**findings: tuple[Level, str]) -> Callable[[RuleCheck], RuleCheck]:
    """Register a check that reads one rule at a time.

    Args:
        findings: Level and meaning of each finding that the function yields, by name.

    Raises:
        ValueError: Another check has the name.
    """

    def register(check: RuleCheck) -> RuleCheck:
        _declare(findings)
        _OF_RULE.append(check)
        return check

    return register


def across_rules(**findings: tuple[Level, str]) -> Callable[[SetCheck], SetCheck]:
    """Register a check that reads all rules together (see `of_rule`)."""

    def register(check: SetCheck) -> SetCheck:
        _declare(findings)
        _ACROSS.append(check)
        return check

    return register


def _declare(findings: Mapping[str, tuple[Level, str]]) -> None:
    if taken := set(findings) & set(CHECKS):
        raise ValueError(f"other checks have the names {sorted(taken)}")
    CHECKS.update(findings)


def finding(check: str, where: str, found: str, expected: str) -> Finding:
    """A finding of a registered check.

    Args:
        check: One of `CHECKS`.
        where: Rule id, form and field.
        found: What stands there.
        expected: What should.
    """
    return Finding(CHECKS[check][0], check, where, found, expected)


def check_rules(rules: RuleSet) -> list[Finding]:
    """All findings, in the order of the rules; checks across rules come last."""
    findings = [
        finding("refused", r.where, r.reason, "a record of the schema") for r in rules.refused
    ]
    findings += [
        finding("repaired", r.where, f"{r.name}: {r.detail}", "data that need no repair")
        for r in rules.repairs
    ]
    known = {rule.id: rule for rule in rules}
    for rule in rules:
        for check in _OF_RULE:
            findings += check(rule, known)
    for check in _ACROSS:
        findings += check(list(rules))
    return findings


def counts(findings: Iterable[Finding]) -> dict[tuple[Level, str], int]:
    """How many findings there are of each check, worst level first."""
    counted: Counter[tuple[Level, str]] = Counter((each.level, each.check) for each in findings)
    order = sorted(counted, key=lambda key: (LEVELS.index(key[0]), key[1]))
    return {key: counted[key] for key in order}
