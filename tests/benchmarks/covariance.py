"""Benchmark of the second moments of keys: all blocks in one pass, against a pass per block.

SmolLM2-135M, about 4000 tokens of the embedded corpus in the batches of the default settings
(float32):

(a) forward: every batch through all blocks, logits of one position
(b) one pass: moments of all 30 blocks
(b) one pass, with report: (b) and the convergence report, as
    `editing.closed_form.covariance.measure` has it
(c) a pass per block: as EasyEdit's layer_stats, up to the block, with our own products

Times are CPU-seconds of one thread in a process of its own: the machine may be shared, so read
ratios, not seconds. `python -m tests.benchmarks.covariance` prints the rows.
"""

import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from editing.closed_form import corpora, moments
from editing.config import CovarianceConfig
from interp.models.corpus import paragraphs
from interp.models.loading import LanguageModel, load
from interp.models.tokens import pad_right
from tests.benchmarks.apart import apart

TOKENS, QUICK_TOKENS = 4000, 400
CONFIG = CovarianceConfig()
TOGETHER = CONFIG.batch_size * CONFIG.max_length


def forward(model: LanguageModel, rows: list[Any]) -> None:
    for batch in moments._batches(rows, range(len(rows)), TOGETHER):
        ids, mask = pad_right([rows[i] for i in batch], model.device)
        with torch.no_grad():
            model.logits(ids, mask=mask, keep=1)


def one_pass(model: LanguageModel, rows: list[Any]) -> None:
    layers = range(model.n_layers)
    sums = moments._Sums(model, layers, n_probes=0)
    for batch in moments._batches(rows, range(len(rows)), TOGETHER):
        sums.add(model, layers, [rows[i] for i in batch], batch, skip_first=False)
    for layer in layers:
        sums.moments(layer, model)


def one_pass_with_report(model: LanguageModel, rows: list[Any]) -> None:
    moments.second_moments(model, range(model.n_layers), rows, together=TOGETHER)


def pass_per_block(model: LanguageModel, rows: list[Any]) -> None:
    for layer in range(model.n_layers):
        sums = moments._Sums(model, [layer], n_probes=0)
        for batch in moments._batches(rows, range(len(rows)), TOGETHER):
            sums.add(model, [layer], [rows[i] for i in batch], batch, skip_first=False)
        sums.moments(layer, model)


CASES: dict[str, Callable[[LanguageModel, list[Any]], None]] = {
    "(a) forward": forward,
    "(b) one pass": one_pass,
    "(b) one pass, with report": one_pass_with_report,
    "(c) a pass per block": pass_per_block,
}


def measure(name: str, tokens: int) -> dict[str, Any]:
    """Run one case in this process, with its peak memory."""
    torch.set_num_threads(1)
    model = load(device="cpu")
    rows = corpora.rows_of(model, paragraphs()[1], CovarianceConfig(tokens=tokens))
    # Warm: buffers of the largest batch are there in every case.
    forward(model, rows)
    loaded = _peak_mb()
    start = time.process_time()
    CASES[name](model, rows)
    seconds = time.process_time() - start
    return {
        "seconds": seconds,
        "peak_mb": _peak_mb(),
        "extra_mb": _peak_mb() - loaded,
        "n_layers": model.n_layers,
    }


def run(say: Callable[[dict[str, Any]], None], *, quick: bool = False) -> None:
    """All cases, each in a fresh process, as rows; `ratio` is (c)'s time over the row's,
    `of_forward` over (a)'s."""
    tokens = QUICK_TOKENS if quick else TOKENS
    found: dict[str, dict[str, Any]] = {name: apart(measure, name, tokens) for name in CASES}
    baseline = "(c) a pass per block"
    for name, values in found.items():
        row = {
            "name": name,
            "case": f"{tokens} tokens, {values.pop('n_layers')} blocks",
            **values,
            "ratio": found[baseline]["seconds"] / values["seconds"],
            "baseline": baseline,
            "of_forward": values["seconds"] / found["(a) forward"]["seconds"],
        }
        say(row)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe(row: dict[str, Any]) -> str:
    """One line about a row."""
    return (
        f"{row['name']:26} {row['case']}  {row['seconds']:7.1f} CPU-s  {row['ratio']:5.1f} x less"
        f" than (c)  {row['of_forward']:5.2f} x (a)  {row['extra_mb']:5.0f} MB more"
    )
