"""Our rows in the published driver's format, beside what EasyEdit's scoring in the driver's logic
recorded.

The files are kept beside the repository; without them these tests are skipped. The edit is one that
changes nothing, so that the scores are of the embedded model as it is.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from editing.config import EvaluateConfig
from editing.edits.delta import EditDelta
from editing.evaluation.evaluate import evaluate_edit, unedited
from editing.evaluation.reference_format import case_average, metrics_of, rule_average
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule, load_rules

SHARED = Path(__file__).parents[3] / "shared"
REFERENCE = SHARED / "reference"
ARCHIVE = SHARED / "data" / "RuleEdit-140.zip"
CONFIG = EvaluateConfig(batch_size=16, greedy=False)
NUMBERS = (0, pytest.param(1, marks=pytest.mark.golden))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not REFERENCE.is_dir(), reason="the reference numbers are not beside this repository"
    ),
    pytest.mark.skipif(
        not ARCHIVE.is_file(), reason="the RuleEdit archive is not beside this repository"
    ),
]


Scored = Callable[[int], tuple[Rule, list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def scored(smol: LanguageModel) -> Scored:
    """Rule 0 or 1 with its rows, the same before and after."""

    @cache
    def rows(number: int) -> tuple[Rule, list[dict[str, Any]]]:
        (rule,) = load_rules(ARCHIVE, ids=[f"ruleedit-{number}"]).rules
        edit = EditDelta({}, {}, smol.weight_hash)
        before = unedited(smol, rule, CONFIG)
        return rule, evaluate_edit(smol, "none", rule, edit, before, CONFIG)

    return rows


def read_json(name: str) -> Any:
    return json.loads((REFERENCE / name).read_text(encoding="utf-8"))


def recorded(number: int) -> list[dict[str, Any]]:
    return read_json(f"dmle_two_metrics_rule{number}.json")


def accuracies(phase: dict[str, Any]) -> dict[str, list[float]]:
    """Every list of a phase but for locality, by name."""
    lists = {**phase, **phase["portability"]}
    return {name: lists[name] for name in lists if name.endswith("_acc")}


@pytest.mark.parametrize("number", NUMBERS)
def test_what_is_asked_is_what_the_driver_asks(number: int, scored: Scored) -> None:
    ours = metrics_of(*scored(number), only_published=True)
    for record, reference in zip(ours, recorded(number), strict=True):
        assert record["case_id"] == reference["case_id"]
        assert record["requested_rewrite"] == reference["requested_rewrite"]


@pytest.mark.parametrize("number", NUMBERS)
def test_accuracies_before_the_edit_are_the_references_item_by_item(
    number: int, scored: Scored
) -> None:
    ours = metrics_of(*scored(number), only_published=True)
    for record, reference in zip(ours, recorded(number), strict=True):
        assert set(reference["pre"]) - set(record["pre"]) == {"metric_meta"}
        got, expected = accuracies(record["pre"]), accuracies(reference["pre"])
        assert (
            set(got) == set(expected) == {"rewrite_acc", "rephrase_acc", "Instance_acc", "Rule_acc"}
        )
        for name, values in expected.items():
            assert got[name] == pytest.approx(values, abs=1e-9), name


@pytest.mark.parametrize("number", NUMBERS)
def test_all_probes_are_the_references_and_the_rephrased_ones_after_them(
    number: int, scored: Scored
) -> None:
    ours = metrics_of(*scored(number))
    for record, reference, more in zip(ours, recorded(number), (1, 1, 0), strict=True):
        got, expected = accuracies(record["pre"]), accuracies(reference["pre"])
        n = len(expected["Rule_acc"])
        assert len(got["Rule_acc"]) == n + more
        assert {**got, "Rule_acc": got["Rule_acc"][:n]} == {
            name: pytest.approx(v) for name, v in expected.items()
        }


@pytest.mark.parametrize("number", NUMBERS)
def test_locality_of_the_unedited_model_is_the_references_in_both_kinds(
    number: int, scored: Scored
) -> None:
    ours = metrics_of(*scored(number), only_published=True)
    extra = read_json(f"dmle_two_extra_rule{number}.json")["pre"]
    for record, published, reference in zip(ours, recorded(number), extra, strict=True):
        got = record["post"]["locality"]
        # The published names, but for the token ids.
        assert set(got) == {
            name for name in published["post"]["locality"] if not name.endswith("_output")
        }
        for kind, items in reference["locality"].items():
            assert got[f"{kind}_acc"] == [item["tf_exact"] for item in items]


@pytest.mark.golden
def test_averages_before_the_edit_are_those_of_the_references_records(scored: Scored) -> None:
    ours = [metrics_of(*scored(number), only_published=True) for number in (0, 1)]
    theirs = [recorded(number) for number in (0, 1)]
    assert case_average(ours)["pre"] == pytest.approx(case_average(theirs)["pre"])
    assert rule_average(ours)["pre"] == pytest.approx(rule_average(theirs)["pre"])
