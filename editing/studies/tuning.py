"""Settings of one editor, chosen on training rules: every combination of a grid is tried as an arm.

The setting with the best mean over `tune.metrics` is chosen among those that reach `tune.floors`
and fail on no rule. The evidence of all others is kept beside it.

For example, in a notebook:

    config = TuneConfig(editor="ft", grid={"block": ("4", "8", "12")})
    arms = make_arms(model, trial_config(EditConfig(), config), rules, statistics=measured)
    tune(model, rules, arms, Path("runs/mine/cells"), config=config).chosen
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import yaml

from editing.config import EvaluateConfig
from editing.evaluation.evaluate import edit_scores
from editing.studies.arms import Arm
from editing.studies.cells import run_cells
from editing.studies.comparison import bystanders as bystanders_of
from editing.studies.config import TuneConfig
from editing.studies.grid import trials
from interp.errors import InputError
from interp.executors.tasks import Spread
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.results.files import write_text
from interp.results.scores import per_rule
from interp.rules.sources import Rule


@dataclass(frozen=True)
class Tuning:
    """What a grid search chose, and why.

    Attributes:
        config: What was tried.
        rules: Ids of the rules that it was tried on.
        evidence: One record for each setting, the chosen one first: its ``settings``, the mean of
            each metric, their mean (``objective``, None if it was not judged), what it ``lacks``
            of the floors in sum, and on how many rules it ``failed``.
        scores: EditScores of all settings.
    """

    config: TuneConfig
    rules: tuple[str, ...]
    evidence: tuple[Mapping[str, Any], ...]
    scores: xr.Dataset

    @property
    def chosen(self) -> dict[str, Any]:
        """The editor and its chosen settings."""
        return {"editor": self.config.editor, **self.evidence[0]["settings"]}

    @property
    def lacks(self) -> float | int:
        """What the chosen setting lacks of the floors, in sum; 0 if it reaches all of them."""
        return self.evidence[0]["lacks"]

    @property
    def objective(self) -> str:
        """What was maximised, in words."""
        metrics = ", ".join(self.config.metrics)
        return f"mean of {metrics} ({self.config.mode}) over {len(self.rules)} training rules"

    def record(self) -> dict[str, Any]:
        """The content of `tuned.yaml`."""
        return {
            "chosen": self.chosen,
            "objective": self.objective,
            "floors": dict(self.config.floors),
            "floors_reached": self.lacks == 0,
            "rules": list(self.rules),
            "evidence": [dict(each) for each in self.evidence],
        }


def tune(
    model: LanguageModel,
    rules: Sequence[Rule],
    arms: Sequence[Arm],
    folder: Path,
    *,
    config: TuneConfig,
    evaluate: EvaluateConfig | None = None,
    bystanders: int = 0,
    advance: Callable[[int], object] = lambda n: None,
    spread: Spread | None = None,
) -> Tuning:
    """Try every arm on some rules and choose among them.

    Args:
        model: The unedited model; unedited again on return.
        rules: Training rules: whoever tunes on them does not evaluate on them.
        arms: An arm for each trial, of `editing.studies.grid.trial_config`.
        folder: Where cells are kept: what is there of these settings is not run again.
        config: The grid, and how a setting is judged.
        evaluate: How edits are scored.
        bystanders: Other rules that side effects are measured on.
        advance: Called with the number of cells that are done.
        spread: Runs rules elsewhere (`editing.studies.cells.run_cells`).

    Raises:
        InputError: Every setting failed on some rule, or a metric has no scores.
    """
    probes = bystanders_of(rules, bystanders)
    evaluate = evaluate or EvaluateConfig()
    cells = run_cells(
        model, rules, arms, evaluate, folder, probes=probes, advance=advance, spread=spread
    )
    failed = Counter(cell.arm for cell in cells if cell.error)
    # A setting that failed somewhere is not chosen, however good the rest is.
    if len(failed) == len(arms):
        error = next(cell.error for cell in cells if cell.error)
        raise InputError(f"every setting of the grid failed on some rule; one error: {error}")
    names, ids = [arm.name for arm in arms], [rule.id for rule in rules]
    scores = edit_scores([row for cell in cells for row in cell.answers], names, ids, model)
    evidence = judged(scores, config, failed)
    if evidence[0]["objective"] is None:
        empty = [metric for metric in config.metrics if not np.isfinite(evidence[0][metric])]
        raise InputError(
            f"no prompt of these rules is scored for {', '.join(empty)}; take it out of"
            " tune.metrics"
        )
    return Tuning(config, tuple(ids), tuple(evidence), scores)


def judged(
    scores: xr.Dataset, config: TuneConfig, failed: Mapping[str, int]
) -> list[dict[str, Any]]:
    """The evidence for each trial, best first (see `Tuning`).

    Args:
        scores: EditScores of the trials.
        config: The grid, metrics and floors.
        failed: On how many rules each trial failed.
    """
    tried = trials(config)
    means = per_rule(scores, config.mode).sel(phase="post", metric=list(config.metrics))
    # One that failed on all rules has no scores.
    means = means.mean("rule").reindex(editor=[trial.name for trial in tried])
    evidence = []
    for trial in tried:
        of_trial = means.sel(editor=trial.name)
        of = {metric: float(of_trial.sel(metric=metric)) for metric in config.metrics}
        objective = float(np.mean(list(of.values())))
        count = failed.get(trial.name, 0)
        evidence.append(
            {
                "settings": dict(trial.values),
                **{metric: round(value, 4) for metric, value in of.items()},
                "objective": None if count or not np.isfinite(objective) else round(objective, 4),
                "lacks": sum(max(0.0, least - of[name]) for name, least in config.floors.items()),
                "failed": count,
            }
        )
    return sorted(evidence, key=_place)


def write_tuning(tuning: Tuning, folder: Path) -> Path:
    """Write `tuning.nc`, and `tuned.yaml` with the chosen settings and the evidence; the latter."""
    effects.save(tuning.scores, folder / "tuning.nc")
    path = folder / "tuned.yaml"
    write_text(path, yaml.safe_dump(tuning.record(), sort_keys=False, allow_unicode=True))
    return path


def _place(evidence: Mapping[str, Any]) -> tuple[bool, float | int, float]:
    """Order of the evidence: judged, then by what the floors lack, then by the mean."""
    objective = evidence["objective"]
    return objective is None, evidence["lacks"], -(objective or 0.0)
