"""A workbench for the tests of editors: statistics of a few sentences, contexts, training rules."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from editing.closed_form.workbench import Workbench
    from interp.models.loading import LanguageModel
    from interp.rules.sources import Rule

CONTEXTS = ("", "The area of a square is 4. ")
LINES = [
    f"The {a} of a {b} with {c} is {d} times the {c}."
    for a in ("area", "volume", "perimeter")
    for b in ("square", "cube", "circle")
    for c, d in (("side", 3), ("length", 12), ("width", 27), ("sum", 9))
]


@pytest.fixture(scope="session")
def make_bench(tmp_path_factory: pytest.TempPathFactory) -> "Callable[..., Workbench]":
    """`make_bench(model, training)`: a workbench with nothing asked of it."""
    from editing.closed_form.covariance import measure
    from editing.closed_form.workbench import Workbench
    from editing.config import CovarianceConfig

    corpus = tmp_path_factory.mktemp("corpus") / "lines.txt"
    corpus.write_text("\n".join(LINES), encoding="utf-8")
    config = CovarianceConfig(corpus=str(corpus), tokens=450, shrinkage=0.05)

    def make(model: "LanguageModel", training: "Sequence[Rule]" = ()) -> "Workbench":
        statistics = measure(model, range(3), config, tmp_path_factory.mktemp("covariance"))
        return Workbench(
            model, statistics=statistics, given_contexts=CONTEXTS, given_rules=training
        )

    return make
