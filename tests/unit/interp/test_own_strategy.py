"""What CONTRIBUTING says of a new strategy and a new metric works as written, and alone."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from interp.config import SelectConfig, TraceConfig
from interp.errors import InputError
from interp.selection import strategies
from interp.selection.adaptive import select_for_rules
from interp.selection.select import select_layers
from interp.tracing import metrics
from interp.tracing.metrics import METRICS, Target
from interp.vocabulary import LOOKUP

ROOT = Path(__file__).parents[3]
FORMS = ["formula", "description", "instance"]


def example(heading: str) -> str:
    """The Python code under a heading of CONTRIBUTING."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("CONTRIBUTING*.md"))]
    (section,) = [text.split(heading)[1] for text in texts if heading in text]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def profile(layers: tuple[int, ...]) -> xr.Dataset:
    """Eight rules with an effect of 1 in some of ten layers."""
    effect = 0.1 * np.random.default_rng(0).normal(size=(8, 3, 1, 1, 10))
    effect[..., list(layers)] += 1
    dims = ("rule", "form", "component", "role", "layer")
    return xr.Dataset(
        {"effect": (dims, effect), "te": ("form", np.full(3, 2.0))},
        {
            "rule": [f"rule{i}" for i in range(8)],
            "form": FORMS,
            "component": ["mlp"],
            "role": [LOOKUP],
            "layer": np.arange(10),
        },
        {"window": 1, "unit": "nats per answer token"},
    )


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example as one more file of the room."""
    (tmp_path / "top.py").write_text(example("## Add a selection strategy"), encoding="utf-8")
    monkeypatch.setattr(strategies, "__path__", [*strategies.__path__, str(tmp_path)])
    yield
    sys.modules.pop("interp.selection.strategies.top", None)
    if hasattr(strategies, "top"):
        delattr(strategies, "top")


@pytest.mark.usefixtures("top")
def test_a_new_file_is_a_new_strategy() -> None:
    assert "top" in strategies.names()
    config = SelectConfig(strategy="top", width=3)
    group = select_layers(profile((2, 6, 9)), config).group_of("formula")
    assert group.layers == (2, 6, 9) and group.supported and group.stability == 1
    assert group.reason.startswith("Layers 2, 6, 9 have the highest mean MLP effect (1.0")
    assert group.p_value == 0.5**8 and "Significant: p = 0.004 with 8 rules." in group.reason
    with pytest.raises(InputError, match="width is 12, but only 9 of the model"):
        select_layers(profile((2, 6, 9)), SelectConfig(strategy="top", width=12))
    assert set(select_for_rules(profile((2,)), config)) == {f"rule{i}" for i in range(8)}


def test_without_the_file_there_is_no_such_strategy() -> None:
    with pytest.raises(ValueError, match="no such strategy; valid are adaptive, auto, changepoint"):
        SelectConfig(strategy="top")
    with pytest.raises(InputError, match="no such strategy 'windw'; did you mean 'window'"):
        strategies.get("windw")


def test_a_new_function_is_a_new_metric() -> None:
    before = dict(METRICS)
    try:
        names = dict(vars(metrics))
        exec(example("## Add a metric of tracing"), names)
        assert TraceConfig(metrics=("least_token_prob",)).metrics == ("least_token_prob",)
        logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]]))
        scored = METRICS["least_token_prob"].function(logits, Target(torch.tensor([1, 1])))
        torch.testing.assert_close(scored, torch.tensor([0.25]))
        assert METRICS["least_token_prob"].unit == "probability"
    finally:
        METRICS.clear()
        METRICS.update(before)
    with pytest.raises(ValueError, match="no such metric"):
        TraceConfig(metrics=("least_token_prob",))
