"""Our engine against ROME's own causal tracing on the same model and noise (one map, every third layer)."""

from pathlib import Path

import numpy as np
import pytest

STORED = Path(__file__).parents[3] / "shared" / "reference" / "trace_r0_description.npz"


@pytest.mark.slow
@pytest.mark.skipif(not STORED.is_file(), reason="the stored ROME run is not beside this checkout")
def test_sweep_gives_romes_map_of_first_token_probabilities(smol):
    import torch

    from interp.metrics import first_token_prob
    from interp.patching import CorruptedPrompt, Site, sweep

    stored = np.load(STORED, allow_pickle=False)
    first, last = stored["subject_range"]
    ids = tuple(int(i) for i in stored["input_ids"])
    assert smol.encode(str(stored["prompt"])).ids == ids
    noise = torch.tensor(stored["noise_added"], dtype=torch.float32)
    case = CorruptedPrompt(ids, (int(stored["answer_id"]),), tuple(range(first, last)), noise)
    positions, layers = range(first, len(ids)), range(0, smol.n_layers, 3)
    sites = [Site("resid", p, range(layer, layer + 1)) for p in positions for layer in layers]
    result = sweep(smol, case, sites, first_token_prob)

    assert result.clean == pytest.approx(float(stored["high_score"]), abs=1e-5)
    assert result.corrupted.mean().item() == pytest.approx(float(stored["low_score"]), abs=1e-5)
    restored = result.restored.mean(1).view(len(positions), len(layers)).numpy()
    np.testing.assert_allclose(restored, stored["scores"][first:, ::3], atol=1e-5)
    # Nothing before the first corrupted token differs from the clean run, so restoring there changes nothing.
    np.testing.assert_allclose(stored["scores"][:first], float(stored["low_score"]), atol=1e-5)
