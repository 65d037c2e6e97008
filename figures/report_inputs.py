"""What the report shows of a run folder, read.

It shows what `figures.paper` reads, and ``selection-rules.json``, ``rules.json`` and ``run.yaml``
where they exist.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr
import yaml

from figures.answers import read_answers
from figures.paper import INPUTS as PAPER_INPUTS
from interp.errors import InputError
from interp.results import effects as effects_schema
from interp.results.run_folder import RunFolder
from interp.rules.sources import load_rules
from interp.selection.layers import LayerSelection, load_for_rules
from interp.settings.plain_yaml import load_yaml

INPUTS = {
    name: PAPER_INPUTS[name]
    for name in ("effects.nc", "profile.nc", "selection.json", "scores.nc", "answers.json")
}
"""Files shown, and the command that writes each."""
STUDIES = ("faithfulness.nc",)
"""Files that are shown where they are, and that a whole run does not have."""


@dataclass(frozen=True)
class RunResults:
    """What a run folder holds, read; None where a file is absent."""

    name: str
    effects: xr.Dataset | None = None
    profile: xr.Dataset | None = None
    selection: LayerSelection | None = None
    rule_selections: Mapping[str, LayerSelection] = field(default_factory=dict)
    scores: xr.Dataset | None = None
    faithfulness: xr.Dataset | None = None
    answers: pd.DataFrame | None = None
    rule_names: Mapping[str, str] = field(default_factory=dict)
    """What a rule is of, in words, by its id."""
    run_yaml: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)


def read(run: Path, without: Collection[str] = ()) -> RunResults:
    """Read what there is of a run.

    Args:
        run: The run folder.
        without: Files that are taken for absent.

    Raises:
        ValueError: The folder holds none of the inputs, or one is damaged.
    """
    wanted = [name for name in (*INPUTS, *STUDIES) if name not in without]
    present = {name: run / name for name in wanted if (run / name).is_file()}
    if not present:
        steps = ", ".join(dict.fromkeys(f"`{command}`" for command in INPUTS.values()))
        raise InputError(
            f"{run} holds none of {list(INPUTS)}; run {steps} on it first (or `dmle run` for all)"
        )
    content: dict[str, Any] = {
        name: effects_schema.load(present[f"{name}.nc"])
        for name in ("effects", "profile", "scores", "faithfulness")
        if f"{name}.nc" in present
    }
    if "selection.json" in present:
        content["selection"] = LayerSelection.load(present["selection.json"])
    if (run / "selection-rules.json").is_file():
        content["rule_selections"] = load_for_rules(run / "selection-rules.json")
    if "answers.json" in present:
        content["answers"] = read_answers(present["answers.json"])
    if (run / "rules.json").is_file():
        rules = load_rules(run / "rules.json").rules
        content["rule_names"] = {rule.id: rule.name for rule in rules}
    if (run / "run.yaml").is_file():
        content["run_yaml"], content["provenance"] = _read_settings(run)
    return RunResults(run.resolve().name, **content)


def _read_settings(run: Path) -> tuple[str, Mapping[str, Any]]:
    """What ``run.yaml`` says of settings and versions, as text, and of versions alone."""
    _ = RunFolder(run).settings  # a damaged file is an error that says how to mend it
    settings = load_yaml((run / "run.yaml").read_text(encoding="utf-8")) or {}
    # Not which steps have ended: the page is the same when it is written again.
    shown = {name: values for name, values in settings.items() if name not in ("settled", "steps")}
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
    return text, settings.get("provenance") or {}
