"""Our engine against ROME's own causal tracing on the same model and noise: five maps of two
RuleEdit rules.

A single layer of the two short prompts by default. `make golden` compares every cell of all five,
with `DMLE_GOLDEN_STRIDE=1` (about ten minutes).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

REFERENCE = Path(__file__).parents[3] / "shared" / "reference"
NAMES = ("r0_formula", "r0_description", "r0_instance", "r1_formula", "r1_description")
STRIDE = int(os.environ.get("DMLE_GOLDEN_STRIDE", "30"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "at",
    [
        pytest.param(i, id=name, marks=() if "description" in name else pytest.mark.golden)
        for i, name in enumerate(NAMES)
    ],
)
@pytest.mark.skipif(
    not REFERENCE.is_dir(), reason="the stored ROME runs are not beside this checkout"
)
def test_sweep_gives_romes_map_of_first_token_probabilities(at: int, smol: Any) -> None:
    import torch

    from interp.tracing.cases import CorruptedPrompt, Site
    from interp.tracing.metrics import first_token_prob
    from interp.tracing.patching import sweep

    stored = np.load(REFERENCE / f"trace_{NAMES[at]}.npz", allow_pickle=False)
    first, last = stored["subject_range"]
    ids = tuple(int(i) for i in stored["input_ids"])
    assert smol.encode(str(stored["prompt"])).ids == ids
    noise = torch.tensor(stored["noise_added"], dtype=torch.float32)
    case = CorruptedPrompt(ids, (int(stored["answer_id"]),), tuple(range(first, last)), noise)
    positions, layers = range(first, len(ids)), range(at % STRIDE, smol.n_layers, STRIDE)
    sites = [Site("resid", p, range(layer, layer + 1)) for p in positions for layer in layers]
    result = sweep(smol, case, sites, first_token_prob)

    assert float(result.clean) == pytest.approx(float(stored["high_score"]), abs=1e-5)
    assert result.corrupted.mean().item() == pytest.approx(float(stored["low_score"]), abs=1e-5)
    restored = result.restored.mean(1).view(len(positions), len(layers)).numpy()
    np.testing.assert_allclose(restored, stored["scores"][first:, layers], atol=1e-5)
    # Nothing before the first corrupted token differs from the clean run, so restoring there
    # changes nothing.
    np.testing.assert_allclose(stored["scores"][:first], float(stored["low_score"]), atol=1e-5)
