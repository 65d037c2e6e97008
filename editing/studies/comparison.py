"""Arms compared: every rule edited with every arm, scored, and set beside a reference.

For example, in a notebook:

    config = EditConfig(editors=("memit", "ft"))
    arms = make_arms(model, config, rules, statistics=lambda layers: measure(model, layers))
    comparison = compare(model, rules, arms, Path("runs/mine/cells"))
    comparison.scores.sel(metric="reliability", mode="exact")
    comparison.tables()["exact"]["comparison"].markdown
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xarray as xr

from editing.config import EvaluateConfig
from editing.evaluation.evaluate import edit_scores
from editing.evaluation.items import check_challenges
from editing.evaluation.side_effects import Probes, probes_of
from editing.studies.arms import Arm
from editing.studies.cells import Cell, run_cells
from editing.studies.config import CompareConfig
from editing.studies.paired import comparison_table, numbers, pair_table, pairs
from interp.executors.tasks import Spread
from interp.models import corpus
from interp.models.loading import LanguageModel
from interp.results.scores import ADDED_MODES
from interp.results.tables import Table
from interp.rules.sources import Rule, load_rules

MODES = ("token_accuracy", "exact", "greedy_prefix", "equivalent", "kl", *ADDED_MODES)
"""Modes that get a table."""
BYSTANDER_TEXTS = 2
BYSTANDER_TOKENS = 20
"""Tokens of each free generation of the fluency scores."""


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Attributes:
        arms: Names of the arms.
        rules: The rules.
        cells: One for each arm, rule and seed.
        scores: EditScores (`editing.evaluation.evaluate`), means over the seeds; ``failed`` counts
            the edits of each arm that have none.
        config: How the arms are compared.
    """

    arms: tuple[str, ...]
    rules: tuple[Rule, ...]
    cells: tuple[Cell, ...]
    scores: xr.Dataset
    config: CompareConfig

    @property
    def answers(self) -> list[dict[str, Any]]:
        """Every raw answer, with its seed."""
        return [{**row, "seed": cell.seed} for cell in self.cells for row in cell.answers]

    @property
    def failed(self) -> Counter[str]:
        """Edits that failed, by arm."""
        return Counter(cell.arm for cell in self.cells if cell.error)

    @property
    def errors(self) -> dict[str, str]:
        """The first error of each arm, with its rule."""
        first: dict[str, str] = {}
        for cell in self.cells:
            if cell.error:
                first.setdefault(cell.arm, f"{cell.rule}: {cell.error}")
        return first

    def numbers(self) -> list[dict[str, Any]]:
        """The numbers of all tables as rows (`editing.studies.paired.numbers`)."""
        return numbers(self.scores, self.modes, self.reference, **self._options)

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.config.reference or self.arms[0]

    @property
    def modes(self) -> list[str]:
        """Modes that have a table: those with scores."""
        there = [mode for mode in MODES if mode in self.scores["mode"].values]
        return [mode for mode in there if self.scores["n_items"].sel(mode=mode).any()]

    @property
    def _options(self) -> dict[str, Any]:
        return {"resamples": self.config.resamples, "confidence": self.config.confidence}

    def tables(self) -> dict[str, dict[str, Table]]:
        """Tables by mode and kind: ``comparison`` of the arms for each mode with scores, and
        ``pairs`` where the reference and another arm have scores.
        """
        options, reference = self._options, self.reference
        made: dict[str, dict[str, Table]] = {}
        for mode in self.modes:
            items = self.scores["n_items"].sel(mode=mode)
            table = comparison_table(self.scores, mode, self.failed, **options)
            made[mode] = {"comparison": table}
            scored = items.sum(["rule", "form", "metric", "phase"])
            if scored.sel(editor=reference) and int((scored > 0).sum()) > 1:
                differences = pairs(self.scores, mode, reference, **options)
                made[mode]["pairs"] = pair_table(differences, mode)
        return made


def compare(
    model: LanguageModel,
    rules: Sequence[Rule],
    arms: Sequence[Arm],
    folder: Path,
    *,
    config: CompareConfig | None = None,
    evaluate: EvaluateConfig | None = None,
    advance: Callable[[int], object] = lambda n: None,
    spread: Spread | None = None,
) -> Comparison:
    """Edit every rule alone with every arm and seed, score each edit, and compare the arms.

    Args:
        model: The unedited model; unedited again on return.
        rules: The rules.
        arms: The arms (`editing.studies.arms.make_arms`), each with the rules it is run on.
        folder: Where cells are kept: what is there of these settings is not run again.
        config: How the arms are compared.
        evaluate: How edits are scored.
        advance: Called with the number of cells that are done.
        spread: Runs rules elsewhere (`editing.studies.cells.run_cells`).

    Raises:
        DmleError: The rules do not fit the model. A failure of one arm is counted instead.
    """
    config, evaluate = config or CompareConfig(), evaluate or EvaluateConfig()
    check_challenges(rules, evaluate.challenges)
    probes = bystanders(rules, config.bystanders)
    cells = run_cells(
        model, rules, arms, evaluate, folder, probes=probes, advance=advance, spread=spread
    )
    names, ids = [arm.name for arm in arms], [rule.id for rule in rules]
    scores = edit_scores([row for cell in cells for row in cell.answers], names, ids, model)
    failed = Counter(cell.arm for cell in cells if cell.error)
    scores["failed"] = ("editor", [failed[name] for name in names])
    scores.attrs["seeds"] = list(config.seeds)
    return Comparison(tuple(names), tuple(rules), tuple(cells), scores, config)


def bystanders(rules: Sequence[Rule], n: int) -> Probes | None:
    """What side effects are measured on: validation rules of the embedded rulebook that are not
    edited, and plain text.

    Args:
        rules: The rules that are edited.
        n: How many others; 0 measures none.
    """
    if not n:
        return None
    _, texts = corpus.paragraphs()
    # From the end: the statistics of the keys are measured from the beginning.
    probes = probes_of(other_rules(rules, n), texts[-BYSTANDER_TEXTS:])
    return replace(probes, answer_tokens=BYSTANDER_TOKENS)


def other_rules(rules: Sequence[Rule], n: int) -> list[Rule]:
    """At most `n` validation rules of the embedded rulebook that are not among some rules, spread
    over the rulebook.
    """
    edited = {rule.id for rule in rules}
    others = [
        rule for rule in load_rules("embedded", split="validation").rules if rule.id not in edited
    ]
    return others[:: max(1, len(others) // n)][:n] if n else []


def side_effect_rows(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cost, error and side effects of each cell."""
    return [
        {
            "arm": cell.arm,
            "rule": cell.rule,
            "seed": cell.seed,
            "cpu_seconds": round(cell.seconds, 3),
            "requests": cell.requests,
            "layers": cell.layers,
            "error": cell.error,
            **cell.side_effects,
        }
        for cell in cells
    ]


def answers_of(
    answers: Sequence[Mapping[str, Any]], arm: str, rule: str, seed: int
) -> list[Mapping[str, Any]]:
    """The answers to the questions of one rule, edited by one arm with one seed."""
    wanted = (arm, rule, seed)
    return [row for row in answers if (row["editor"], row["rule"], row["seed"]) == wanted]
