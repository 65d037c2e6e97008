"""What a reader of an edit is told: wrong answers with the likely reason, and nothing else."""

from collections.abc import Callable
from typing import Any

from editing.closed_form.workbench import Workbench
from editing.editors.registry import edit
from editing.edits.remarks import doubtful, remarks
from editing.edits.report import EditReport
from editing.edits.requests import requests_of
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule
from tests.unit.editing_making import settings_of

FORMS = ("formula", "description", "instance")
REQUESTS = [{"rule": "square", "form": form} for form in FORMS]
FORMULA, DESCRIPTION, INSTANCE = (("square", form) for form in FORMS)


def test_requests_far_from_their_target_and_those_with_one_key_are_in_doubt() -> None:
    pair = {"rules": ["square", "square"], "forms": ["formula", "description"]}
    values: dict[str, Any] = {"requests": REQUESTS, "residual_left": [0.2, 0.5, 0.873]}
    assert doubtful(EditReport(**values)) == {INSTANCE}
    assert doubtful(EditReport(**values, collinear_keys=[{"layer": 3, **pair}])) == {
        FORMULA,
        DESCRIPTION,
        INSTANCE,
    }
    # Stages speak of their own requests; one that wants no change has no share left.
    stages = [
        EditReport(requests=REQUESTS[:2], residual_left=[0.1, 0.9]),
        EditReport(requests=REQUESTS[2:], residual_left=[float("nan")]),
    ]
    assert doubtful(EditReport(stages=stages)) == {DESCRIPTION}
    assert doubtful(EditReport()) == doubtful(EditReport("ice", requests=REQUESTS)) == set()


def test_remarks_are_of_answers_that_are_wrong_and_of_lost_updates() -> None:
    pair = {"rules": ["square", "square"], "forms": ["formula", "description"]}
    values: dict[str, Any] = {
        "requests": REQUESTS,
        "collinear_keys": [{"layer": layer, **pair, "cosine": 0.9999} for layer in (3, 4)],
        "residual_left": [0.9, 0.9, 0.9],
        "unanswered": [list(FORMULA), list(INSTANCE)],
        "cast_loss": {"a.weight": 0.51, "b.weight": 0.49},
    }
    assert remarks(EditReport(**values)) == [
        (
            "square formula: the edited model does not give the new answer. The edit reads it at"
            " the same place as square description; try edit.lookup=rule_word_last or last, or"
            " other layers."
        ),
        (
            "square instance: the edited model does not give the new answer. The update is too"
            " weak; try a smaller edit.ridge, edit.rounds=3, or other layers."
        ),
        "a.weight: 51% of the update is lost in the model's number format; use model.dtype=float32",
    ]
    # However far a target is: a right answer needs no remark.
    assert remarks(EditReport(**(values | {"unanswered": [], "cast_loss": {}}))) == []
    assert remarks(EditReport()) == []


def test_an_answer_is_asked_for_before_it_is_remarked_on(
    tiny_llama: LanguageModel, make_bench: Callable[..., Workbench], rule: Rule
) -> None:
    bench, requests = make_bench(tiny_llama), [requests_of(rule, "last")[0]]
    weak = edit(bench.asked(requests, settings_of("memit", ridge=1e6)))
    assert doubtful(weak.report) and weak.report.unanswered == [("square-area", "formula")]
    assert remarks(weak.report)[0].startswith("square-area formula: the edited model does not give")
    strong = edit(bench.asked(requests, settings_of("memit", steps=20)))
    assert not doubtful(strong.report) and remarks(strong.report) == []
