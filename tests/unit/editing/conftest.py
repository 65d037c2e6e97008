"""What tests of editors share: requests, statistics of a few sentences, a workbench with contexts
and training rules, and the inputs of a run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from editing.closed_form.covariance import Covariances
    from editing.closed_form.workbench import Workbench
    from editing.edits.requests import EditRequest
    from interp.models.loading import LanguageModel
    from interp.rules.sources import Rule

CONTEXTS = ("", "The area of a square is 4. ")
LINES = [
    f"The {a} of a {b} with {c} is {d} times the {c}."
    for a in ("area", "volume", "perimeter")
    for b in ("square", "cube", "circle")
    for c, d in (("side", 3), ("length", 12), ("width", 27), ("sum", 9))
]


@pytest.fixture
def requests(rule: "Rule") -> "list[EditRequest]":
    """Formula, description and instance of the square, looked up at the subject."""
    from editing.edits.requests import requests_of

    return requests_of(rule, "subject_last")


@pytest.fixture(scope="session")
def statistics(tiny_llama: "LanguageModel", make_hf: Callable[..., Any]) -> "Iterator[Covariances]":
    """C of the shared llama, by the slow reference: whoever writes it must put it back."""
    from tests.unit.editing_making import measured

    moments = measured(tiny_llama, make_hf("llama"))
    before = {layer: moment.clone() for layer, moment in moments.by_layer.items()}
    yield moments
    assert moments.by_layer.keys() == before.keys()
    assert all(moments.by_layer[layer].equal(moment) for layer, moment in before.items())


@pytest.fixture(scope="session")
def make_inputs(
    make_model: Callable[..., "LanguageModel"], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`make_inputs(rules, settings, **sizes)`: a new folder with a llama in `model`, `rules.json`,
    `corpus.txt`, and `config.yaml` that names them."""
    from tests.unit.run_inputs import write_inputs

    def make(rules: "Sequence[Rule]", settings: dict[str, Any], **sizes: Any) -> Path:
        folder = tmp_path_factory.mktemp("inputs")
        make_model("llama", check=False, **sizes).export(folder / "model")
        write_inputs(folder, rules, settings)
        return folder

    return make


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
