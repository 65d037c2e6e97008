"""Benchmarks of editing: what one rule costs with every editor, in one run.

One rule (three requests) of the rulebook, on SmolLM2-135M, C of a few thousand tokens. Every editor
has the settings that it has without any; `words` is MEMIT word by word, and `whitened` and
`whitened-large` fine-tuning in whitened coordinates, with the settings of docs/words.yaml,
docs/wordings-ruleedit.yaml and docs/steps-ruleedit.yaml. What
an edit makes once, such as the factors of C, is counted in it; the statistics are not.

Times are CPU-seconds of one thread; read ratios. `exact` is the share of
the edited prompts that are answered exactly after it, under teacher forcing.
"""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from editing.closed_form.statistics import Statistics
from editing.closed_form.workbench import Workbench
from editing.config import CovarianceConfig, EditorSettings
from editing.editors import registry
from editing.edits.requests import requests_of
from editing.evaluation.scoring import question_of, teacher_forced
from editing.names import editor_names
from interp.models.loading import load
from interp.rules.sources import load_rules
from tests.benchmarks.apart import apart

RULE = "rectangle-perimeter"
CORPUS = CovarianceConfig(tokens=4000, shrinkage=0.1)
BASELINE = "memit"
ARMS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"editor": name} for name in editor_names()},
    "dmle": {"editor": "dmle", "layers": "3,4,5/12,13,14"},
    "words": {
        "editor": "memit",
        "block": "14-20",
        "lookup": "last",
        "answer": "words",
        "steps": 15,
        "rounds": 2,
        "ridge": 6,
        "contexts": 1,
    },
    "whitened": {"editor": "ft_whitened", "options": {"stop_loss": 0.05}, "contexts": 1},
    "whitened-large": {
        "editor": "ft_whitened",
        "options": {"stop_loss": 0.05, "learning_rate": 3e-4},
        "contexts": 1,
    },
}
QUICK: Mapping[str, Any] = {
    "steps": 2,
    "contexts": 1,
    "context_tokens": 2,
    **{name: {"steps": 2} for name in ("ft", "lora", "grace")},
}


def measured(folder: str, *, quick: bool) -> dict[str, dict[str, float]]:
    """Seconds of every arm, and the share of exact answers, with one thread."""
    torch.set_num_threads(1)
    model, rule = load(), load_rules("embedded", ids=[RULE]).rules[0]
    found: dict[str, dict[str, float]] = {}
    for arm, given in ARMS.items():
        settings = EditorSettings.model_validate({**given, **(QUICK if quick else {})})
        requests = requests_of(rule, settings.lookup)
        statistics = Statistics(model, CORPUS, Path(folder))
        bench = Workbench(model, requests, settings, statistics=statistics)
        registry.ready(bench)  # measures what statistics are not in the folder, samples the texts
        start = time.process_time()
        made = registry.edit(bench)
        seconds = time.process_time() - start
        with made.edited(model) as view:
            answers = list(
                teacher_forced(view, [question_of(each) for each in requests], batch_size=3)
            )
        exact = sum(answer.exact for answer in answers) / len(answers)
        found[arm] = {"seconds": seconds, "exact": exact}
    return found


def run(say: Callable[[dict[str, Any]], None], *, quick: bool = False) -> None:
    """All arms in one process; rows as in bench.json."""
    with tempfile.TemporaryDirectory() as folder:
        found = apart(measured, folder, quick=quick)
    for arm, row in found.items():
        ratio = found[BASELINE]["seconds"] / row["seconds"]
        say({"name": "cost of a rule", "case": arm, **row, "ratio": ratio, "baseline": BASELINE})


def describe(row: dict[str, Any]) -> str:
    """One line about a row."""
    text = f"{row['name']:18} {row['case']:16} {row['seconds']:8.2f} CPU-s"
    return f"{text}  {row['ratio']:6.1f} x less than {row['baseline']}  exact {row['exact']:.2f}"
