"""Benchmarks: `make bench` prints them and writes bench.json.

Each case is compared with a straightforward baseline in the same run, in CPU-seconds on one thread, because
the machine may be shared: read the ratios, not the seconds.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from interp import corruption, metrics, tokens
from interp.model import LanguageModel, load
from interp.patching import CorruptedPrompt, Site, SweepResult, sweep, sweep_reference
from interp.windows import window

PROMPT = "A rectangle has a length of x and a width of y. Its perimeter can be calculated by the formula:"
ANSWER = "P = 2 * (x + y)."
SAMPLES, LAYERS = 4, (3, 15, 27)


def main() -> None:
    """Run every benchmark."""
    torch.set_num_threads(1)
    model = load()
    rows = tracing(model)
    Path("bench.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    for row in rows:
        sys.stdout.write(
            f"{row['name']:10} {row['case']:46} {row['seconds']:8.2f} CPU-s, "
            f"{row['ratio']:5.2f} times less than {row['baseline']}\n"
        )


def tracing(model: LanguageModel) -> list[dict[str, object]]:
    """The batched sweep with a cached prefix against one forward pass per site and sample; equal numbers."""
    encoding = model.encode(PROMPT)
    roles = tokens.token_roles(encoding, "rectangle", ["perimeter"])
    positions = corruption.corrupted_positions(roles, "subject+rule")
    noise = corruption.gaussian_noise(SAMPLES, len(positions), model.d_model, std=3 * model.embedding_std(), seed=0)
    case = CorruptedPrompt(encoding.ids, model.encode_continuation(ANSWER), tuple(positions), noise)
    sites = [
        Site("mlp", position, window(layer, 6, model.n_layers))
        for position in range(positions[0], len(encoding.ids))
        for layer in LAYERS
    ]
    slow, slow_s = _timed(lambda: sweep_reference(model, case, sites, metrics.mean_log_prob))
    fast, fast_s = _timed(lambda: sweep(model, case, sites, metrics.mean_log_prob))
    difference = (slow.restored - fast.restored).abs().max().item()
    if difference > 1e-4:
        raise SystemExit(f"the sweep differs from the reference by {difference:.2g} nats")
    case_name = f"{len(sites)} sites x {SAMPLES} samples, {len(encoding.ids)} tokens"
    reference = "one run per site and sample"
    return [
        _row("tracing", case_name + ", reference", slow_s, 1.0, reference),
        _row("tracing", case_name + ", sweep", fast_s, slow_s / fast_s, reference),
    ]


def _timed(work: Callable[[], SweepResult]) -> tuple[SweepResult, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def _row(name: str, case: str, seconds: float, ratio: float, baseline: str) -> dict[str, object]:
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "name": name, "case": case, "seconds": seconds, "peak_mb": peak_mb, "ratio": ratio, "baseline": baseline,
    }  # fmt: skip


if __name__ == "__main__":
    main()
