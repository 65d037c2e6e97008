"""Checks of rules by machine: what in a rule source is wrong, contradicts itself, or tells an edit
less than it seems.

`check_rules` takes any `RuleSet` and gives findings with a name, a place, what was found and what
was expected. Levels: `error` (the data say something false, or a record cannot be used), `warning`
(a result would be distorted: contamination, conflicts, repairs), `info` (worth knowing when results
are read). CONTRIBUTING.md shows how to add a check.
"""

from importlib import import_module
from pkgutil import iter_modules

from interp.rules.checks.registry import (
    CHECKS,
    LEVELS,
    Finding,
    across_rules,
    check_rules,
    counts,
    finding,
    of_rule,
)

__all__ = [
    "CHECKS",
    "LEVELS",
    "Finding",
    "across_rules",
    "check_rules",
    "counts",
    "finding",
    "of_rule",
]


def import_all() -> None:
    """Import every module of this package, so that its checks register themselves."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


import_all()
