"""The published driver's records and averages: made from rows whose values say where they came
from, by hand."""

import json
from typing import Any

import pytest

from editing.config import EvaluateConfig
from editing.edits.delta import EditDelta
from editing.evaluation.evaluate import evaluate_edit, unedited
from editing.evaluation.items import items_of
from editing.evaluation.reference_format import case_average, metrics_of, rule_average
from interp.models.loading import LanguageModel
from interp.rules.sources import LocalityProbe, Probe, Rule, RulePrompt


def rows_of(rule: Rule, editor: str = "a") -> list[dict[str, Any]]:
    """Rows as evaluation writes them; the value of row i is i/1000 before and i/1000 + 0.5
    after, all different."""
    rows = []
    for i, item in enumerate(items_of(rule)):
        row = {"editor": editor, "rule": rule.id, "form": item.form, "metric": item.metric}
        row |= {"prompt": item.question.prompt, "target_new": item.question.target}
        # Where both modes could be meant, they differ: exact is in ten-thousandths.
        row |= {"token_accuracy_before": i / 1000, "token_accuracy_after": i / 1000 + 0.5}
        row |= {"exact_before": i / 10_000, "exact_after": i / 10_000 + 0.5}
        rows.append(row)
    return rows


def after(
    rows: list[dict[str, Any]], form: str, metric: str, prompt: str, mode: str = "token_accuracy"
) -> float:
    (value,) = (
        row[f"{mode}_after"]
        for row in rows
        if (row["form"], row["metric"], row["prompt"]) == (form, metric, prompt)
    )
    return value


def probe(prompt: str) -> Probe:
    return Probe(prompt=prompt, target_new="12")


@pytest.fixture
def many() -> Rule:
    """Several of everything, verbatim and paraphrased probes in turn, and forms in an order of
    their own."""
    first, second = "The area of a square is", "The area of a square is A ="
    others = [LocalityProbe(prompt=f"other {i}", answer=f"gold {i}") for i in range(5)]
    formula = RulePrompt(
        prompt=second,
        subject="square",
        target_new="4 side",
        target_true=("side squared", "side times side"),
        rephrasings=("first rephrasing", "second rephrasing"),
        instances=(probe("instance 0"), probe("instance 1")),
        understanding=(probe("paraphrase 0"), probe(first), probe("paraphrase 1")),
        neighborhood=(others[0],),
        distracting=(others[1], others[2]),
    )
    instance = RulePrompt(
        prompt="A square with s = 4 has area",
        subject="square",
        target_new="16",
        target_true=("16",),
        target_true_source="derived",
        rephrasings=("rephrased",),
        understanding=(probe(first), probe("paraphrase 2"), probe(second)),
        neighborhood=(others[3], others[4]),
    )
    description = RulePrompt(
        prompt=first, subject="square", target_new="4 times the side", understanding=(probe("p"),)
    )
    forms = {"instance": instance, "formula": formula, "description": description}
    return Rule.model_validate(
        {"id": "many", "name": "area of a square", "subject": "square", "forms": forms}
    )


def test_records_are_in_the_order_of_forms_and_say_what_was_asked(many: Rule) -> None:
    records = metrics_of(many, rows_of(many))
    assert [list(record) for record in records] == [
        ["case_id", "requested_rewrite", "pre", "post"]
    ] * 3
    assert [record["case_id"] for record in records] == [0, 1, 2]
    formula, description, instance = (record["requested_rewrite"] for record in records)
    assert formula == {
        "prompt": "The area of a square is A =",
        "target_new": "4 side",
        "ground_truth": ["side squared", "side times side"],
        "portability": {
            "Instance": {"prompt": ["instance 0", "instance 1"], "ground_truth": ["12", "12"]},
            "Rule": {
                "prompt": ["paraphrase 0", "The area of a square is", "paraphrase 1"],
                "ground_truth": ["12", "12", "12"],
            },
        },
        "locality": {
            "neighborhood": {"prompt": ["other 0"], "ground_truth": ["gold 0"]},
            "distracting": {"prompt": ["other 1", "other 2"], "ground_truth": ["gold 1", "gold 2"]},
        },
        "subject": "square",
        "rephrase_prompt": ["first rephrasing", "second rephrasing"],
    }
    # One probe is a text, as in RuleEdit; what there is none of is not there.
    assert description["portability"] == {"Rule": {"prompt": "p", "ground_truth": "12"}}
    assert description["locality"] == {} and "rephrase_prompt" not in description
    # Worked out by us, so not in the data.
    assert instance["ground_truth"] == description["ground_truth"] == ""
    assert instance["rephrase_prompt"] == "rephrased"


def test_values_are_those_of_their_probes_in_the_order_of_the_prompts(many: Rule) -> None:
    rows = rows_of(many)
    formula, _, instance = metrics_of(many, rows)
    post = formula["post"]
    assert post["rewrite_acc"] == [
        after(rows, "formula", "reliability", "The area of a square is A =")
    ]
    assert post["rephrase_acc"] == [
        after(rows, "formula", "generality", f"{which} rephrasing") for which in ("first", "second")
    ]
    assert post["portability"] == {
        "Instance_acc": [
            after(rows, "formula", "instance_portability", f"instance {i}") for i in range(2)
        ],
        "Rule_acc": [
            after(rows, "formula", "rule_understanding_paraphrase", "paraphrase 0"),
            after(rows, "formula", "rule_understanding_verbatim", "The area of a square is"),
            after(rows, "formula", "rule_understanding_paraphrase", "paraphrase 1"),
        ],
    }

    def right(form: str, i: int) -> float:
        return after(rows, form, "locality_correctness", f"other {i}", "exact")

    assert post["locality"] == {
        "neighborhood_acc": [right("formula", 0)],
        "distracting_acc": [right("formula", 1), right("formula", 2)],
    }
    assert instance["post"]["locality"] == {
        "neighborhood_acc": [right("instance", 3), right("instance", 4)]
    }
    # The same places before the edit, half a unit lower, and no locality there.
    assert set(formula["pre"]) == {"rewrite_acc", "rephrase_acc", "portability"}
    for name in ("Instance_acc", "Rule_acc"):
        expected = [value - 0.5 for value in post["portability"][name]]
        assert formula["pre"]["portability"][name] == pytest.approx(expected)


def test_only_published_keeps_the_probes_that_the_driver_asks(many: Rule) -> None:
    rows = rows_of(many)
    formula, description, instance = metrics_of(many, rows, only_published=True)
    full = metrics_of(many, rows)
    for record, whole, n in (
        (formula, full[0], 1),
        (description, full[1], 1),
        (instance, full[2], 2),
    ):
        for phase in ("pre", "post"):
            assert (
                record[phase]["portability"]["Rule_acc"]
                == whole[phase]["portability"]["Rule_acc"][:n]
            )
            assert record[phase].get("rephrase_acc", []) == whole[phase].get("rephrase_acc", [])[:1]
        assert record["post"].get("locality") == whole["post"].get("locality")
    asked = [record["requested_rewrite"] for record in (formula, instance)]
    assert asked[0]["rephrase_prompt"] == "first rephrasing"
    assert asked[0]["portability"]["Rule"] == {"prompt": "paraphrase 0", "ground_truth": "12"}
    assert asked[1]["portability"]["Rule"]["prompt"] == ["The area of a square is", "paraphrase 2"]


def test_what_has_no_items_or_no_value_is_absent_and_never_zero(
    many: Rule, rules: tuple[Rule, ...]
) -> None:
    _, description, instance = metrics_of(many, rows_of(many))
    assert set(description["post"]) == {"rewrite_acc", "portability"}
    assert set(description["post"]["portability"]) == {"Rule_acc"}
    assert set(instance["post"]["portability"]) == {"Rule_acc"}
    cube = rules[1]
    records = metrics_of(cube, rows_of(cube))
    assert [record["case_id"] for record in records] == [0, 1]
    assert [set(record["post"]) for record in records] == [
        {"rewrite_acc"},
        {"rewrite_acc", "rephrase_acc"},
    ]
    assert set(case_average([records])["post"]) == {"Rewrite", "Rephrase"}
    assert set(rule_average([records])["post"]) == {"Edit_Succ", "Generality"}
    rows = rows_of(many)
    next(row for row in rows if row["prompt"] == "instance 1")["token_accuracy_after"] = ""
    record = metrics_of(many, rows)[0]
    assert set(record["post"]["portability"]) == {"Rule_acc"}
    assert set(record["pre"]["portability"]) == {"Instance_acc", "Rule_acc"}


def test_a_zero_is_a_value(many: Rule) -> None:
    rows = [{**row, "token_accuracy_after": 0.0, "exact_after": 0.0} for row in rows_of(many)]
    assert metrics_of(many, rows)[0]["post"]["rewrite_acc"] == [0.0]
    averages = case_average([metrics_of(many, rows)])["post"]
    assert averages == dict.fromkeys(
        ("Rewrite", "Rephrase", "Locality", "Portability", "RuleUnd"), 0.0
    )


def case(**post: Any) -> dict[str, Any]:
    return {"case_id": 0, "requested_rewrite": {}, "pre": {"rewrite_acc": [0.25]}, "post": post}


# Two rules, of two cases and of one.
WORKED = [
    [
        case(
            rewrite_acc=[1.0],
            rephrase_acc=[1.0, 0.0],
            portability={"Instance_acc": [1.0, 1.0, 0.0, 1.0], "Rule_acc": [0.5]},
            locality={"neighborhood_acc": [1.0], "distracting_acc": [0.0, 0.0, 0.0]},
        ),
        case(rewrite_acc=[0.5], portability={"Rule_acc": [0.0, 1.0]}),
    ],
    [case(rewrite_acc=[0.0], rephrase_acc=[0.25], portability={"Instance_acc": [0.0]})],
]


def test_case_average_worked_by_hand() -> None:
    averages = case_average(WORKED)
    assert list(averages) == ["pre", "post"]
    assert averages["pre"] == {"Rewrite": 0.25}
    assert averages["post"] == pytest.approx(
        {
            "Rewrite": 0.5,  # (1 + 1/2 + 0) / 3 cases
            "Rephrase": 0.375,  # (1/2 + 1/4) / 2 cases that have one
            "Locality": 0.25,  # 1 of 4 prompts
            "Portability": 0.4,  # (3.5/5 + 1/2 + 0) / 3
            "RuleUnd": 0.5,  # (1/2 + 1/2) / 2
        }
    )


def test_rule_average_worked_by_hand() -> None:
    averages = rule_average(WORKED)
    assert averages["pre"] == {"Edit_Succ": 25.0}
    assert averages["post"] == pytest.approx(
        {
            "Edit_Succ": 37.5,  # ((1 + 1/2) / 2 + 0) / 2 rules
            "Generality": 62.5,  # (1, the first prompt, + 1/4) / 2
            "Locality": 50.0,  # (1 + 0) / 2 kinds
            "Portability": 37.5,  # (3/4 + 0) / 2
            "Rule_Logic": 50.0,  # (1/2 + 1/2) / 2 cases of the one rule
        }
    )


def test_averages_of_nothing_are_empty() -> None:
    assert case_average([]) == rule_average([]) == {"pre": {}, "post": {}}


def test_rows_of_evaluation_become_records_that_json_can_hold(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    config = EvaluateConfig(batch_size=4, greedy=False)
    edit = EditDelta({}, {}, tiny_llama.weight_hash)
    rows = evaluate_edit(tiny_llama, "none", rule, edit, unedited(tiny_llama, rule, config), config)
    records = metrics_of(rule, rows)
    assert json.loads(json.dumps(records)) == records
    for record in records:
        local = record["post"].pop("locality")
        assert record["post"] == record["pre"]
        assert {value for values in local.values() for value in values} <= {0.0, 1.0}


def test_answers_of_another_rule_editor_or_order_are_refused(many: Rule, rule: Rule) -> None:
    rows = rows_of(many)
    with pytest.raises(ValueError, match=r"answers of \['square-area'\] among those of 'many'"):
        metrics_of(many, rows_of(rule))
    with pytest.raises(ValueError, match=r"several editors, \['a', 'b'\]"):
        metrics_of(many, rows + rows_of(many, "b"))
    with pytest.raises(ValueError, match=rf"differ from row {len(rows) - 1} on"):
        metrics_of(many, rows[:-1])
    with pytest.raises(ValueError, match="differ from row 0 on"):
        metrics_of(many, [rows[1], rows[0], *rows[2:]])
