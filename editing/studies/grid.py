"""The combinations of a grid of settings, each as an arm of its own."""

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from editing.config import EditConfig
from editing.studies.config import TuneConfig
from interp.config import ConfigError
from interp.results.provenance import fingerprint
from interp.settings.names import name_fault, safe_name

MAX_TRIALS = 10_000
"""Combinations of a grid."""


@dataclass(frozen=True)
class Trial:
    """One combination of the grid."""

    name: str
    values: Mapping[str, Any]


def trials(config: TuneConfig) -> list[Trial]:
    """Every combination of the values of a grid, for each grid; what two grids share is tried
    once.

    Raises:
        ConfigError: There are more than `MAX_TRIALS`.
    """
    combinations: dict[str, dict[str, Any]] = {}
    for grid in config.grids:
        _check_count(math.prod(map(len, grid.values())))
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            combinations.setdefault(json.dumps(chosen, default=str), chosen)
    _check_count(len(combinations))
    named: dict[str, Trial] = {}
    taken: set[str] = set()
    for chosen in combinations.values():
        name = _free_name(_trial_name(chosen), taken)
        taken.add(name.casefold())
        named[name] = Trial(name, chosen)
    return list(named.values())


def trial_config(edit: EditConfig, config: TuneConfig) -> EditConfig:
    """Settings of edits with an arm for each trial, on training rules.

    Raises:
        ConfigError: The grid has too many combinations.
        ValidationError: A setting of the grid is wrong.
    """
    shared = edit.model_dump(include=edit.model_fields_set - {"arms", "editors"})
    arms = {trial.name: {"editor": config.editor, **trial.values} for trial in trials(config)}
    return EditConfig.model_validate(
        {**shared, "arms": arms, "editors": list(arms), "splits": ["train"]}
    )


def _check_count(count: int) -> None:
    if count > MAX_TRIALS:
        raise ConfigError(f"tune.grid has {count} combinations; at most {MAX_TRIALS} are tried")


def _free_name(name: str, taken: set[str]) -> str:
    """The name, with a number if another is the same up to case."""
    numbered = (f"{name} ({i})" for i in itertools.count(2))
    return next(n for n in itertools.chain((name,), numbered) if n.casefold() not in taken)


def _trial_name(chosen: Mapping[str, Any]) -> str:
    """The values in words, as a name of a folder."""
    parts = []
    for key, value in chosen.items():
        written = "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        parts.append(f"{key}={written}")
    name = safe_name(" ".join(" ".join(parts).split()))
    if name_fault(name) is None:
        return name
    return f"{name[:60].strip('. ')}-{fingerprint(chosen=dict(chosen))}"
