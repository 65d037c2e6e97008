"""Raw answers as the published DMLE driver writes them, and the two averages that its scripts take
of them.

For putting our results beside published ones; `editing.evaluation.evaluate` has the scores to use.
See `docs/reference-format.md` for what the numbers leave out.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import Any

from editing.evaluation.evaluate import PHASES
from editing.evaluation.items import items_of
from interp.errors import InputError
from interp.results.scores import METRICS
from interp.rules.sources import Rule
from interp.vocabulary import FORMS, RuleForm

ASKED: Mapping[RuleForm, int] = {"formula": 1, "description": 1, "instance": 2}
"""Understanding probes that the driver asks of a record: RuleEdit's own prompts, without their
rephrasing."""

Row = Mapping[str, Any]
Lists = Mapping[str, list[float]]


def metrics_of(
    rule: Rule, answers: Sequence[Row], *, only_published: bool = False
) -> list[dict[str, Any]]:
    """One rule's records, as in the driver's `metrics_rule_<id>.json`: formula, description,
    instance.

    `*_acc` are token accuracies, but for locality: there the driver asks a language model whether
    the edited model's answer is right, and here it is 1 where every token of the gold answer is the
    most likely one, else 0. As in the driver, locality is only after the edit. `*_output` (token
    ids, which rows do not have) and `metric_meta` are left out. So is every list that has no items,
    or one without a value: absent, never zero.

    Args:
        rule: The edited rule.
        answers: Its rows of one editor (`editing.evaluation.evaluate.COLUMNS`), in the order of
            `items_of(rule)`.
        only_published: Keep the probes that the driver asks: the first rephrasing, and of
            understanding the first probe of formula and description and the first two of the
            instance. Otherwise all of them, verbatim and paraphrased, in the order of the rule.

    Raises:
        ValueError: The rows are not those of this rule, or of several editors.
    """
    answers = [row for row in answers if row["metric"] in METRICS]  # the driver asks no others
    _check(rule, answers)
    forms: list[RuleForm] = [form for form in FORMS if form in rule.forms]
    return [_record(case, rule, form, answers, only_published) for case, form in enumerate(forms)]


def case_average(records: Sequence[list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """The average of the published `cal_avg.py`: the mean of each case's list, then the mean over
    all cases.

    Unlike ours, the mean over rules of means over forms:

    - each case counts the same, so a rule with fewer forms counts less;
    - `Portability` is the mean of `Instance_acc` and `Rule_acc` put together, so it is not instance
      portability; `RuleUnd` is of `Rule_acc` alone;
    - `Locality` is of right answers, ours of unchanged ones (`locality_correctness` is of right
      ones).

    Args:
        records: What `metrics_of` gives, for each rule.

    Returns:
        Phase (`pre`, `post`) → metric → mean between 0 and 1; without the metrics that no case has.
        The script has the phase `post` alone, and prints 0 for a metric that no case has.
    """
    cases = list(chain.from_iterable(records))
    return {phase: _average(cases, phase, _of_cases) for phase in PHASES}


def rule_average(records: Sequence[list[dict[str, Any]]]) -> dict[str, dict[str, float]]:
    """The driver's grand average: the mean over each rule's cases, then the mean over rules, times
    100.

    Unlike ours, though it is taken over rules as well:

    - `Edit_Succ` and `Generality` are of the first prompt alone, ours of all;
    - `Locality` is the mean of the means of neighbourhood and distracting prompts, which count the
      same however many they are, and of right answers;
    - `Portability` is instance portability, unlike in `case_average`; `Rule_Logic` puts verbatim
      and paraphrased probes together.

    Args:
        records: What `metrics_of` gives, for each rule.

    Returns:
        Phase (`pre`, `post`) → metric → mean in percent. Cases and rules without a metric are left
        out of its mean; the driver, which has the phase `post` alone, counts them as 0 but for
        locality, where a case is left out and a rule is 0.
    """
    averages: dict[str, dict[str, float]] = {}
    for phase in PHASES:
        rules = [_average(cases, phase, _of_driver) for cases in records]
        averages[phase] = {name: 100 * value for name, value in _means(rules).items()}
    return averages


def _check(rule: Rule, answers: Sequence[Row]) -> None:
    if foreign := {row["rule"] for row in answers} - {rule.id}:
        raise InputError(
            f"answers of {sorted(foreign)} among those of {rule.id!r}; give the rows of one rule"
        )
    if len(editors := {row["editor"] for row in answers}) > 1:
        raise InputError(f"answers of several editors, {sorted(editors)}; give the rows of one")
    asked = [
        (item.form, item.metric, item.question.prompt, item.question.target)
        for item in items_of(rule)
    ]
    given = [(row["form"], row["metric"], row["prompt"], row["target_new"]) for row in answers]
    if given != asked:
        same = [a == b for a, b in zip(given, asked, strict=False)]
        at = same.index(False) if False in same else len(same)
        raise InputError(
            f"the {len(given)} answers are not to the {len(asked)} questions of {rule.id!r}: they"
            f" differ from row {at} on; give all of its rows, in the order in which they were"
            " written"
        )


def _record(
    case: int, rule: Rule, form: RuleForm, answers: Sequence[Row], only_published: bool
) -> dict[str, Any]:
    asked = _by_probe(rule, form, [row for row in answers if row["form"] == form], only_published)
    prompt = rule.forms[form]
    truth = prompt.target_true if prompt.target_true_source == "dataset" else ()
    portability = _questions(asked, ("Instance", "Rule"))
    if form != "instance" and len(asked["Rule"]) == 1:
        # RuleEdit gives one text here, and lists everywhere else.
        portability["Rule"] = {name: text for name, (text,) in portability["Rule"].items()}
    request = {
        "prompt": prompt.prompt,
        "target_new": prompt.target_new,
        "ground_truth": (
            list(truth) or ""
        ),  # the driver's stand-in for a truth that the data do not give
        "portability": portability,
        "locality": _questions(asked, ("neighborhood", "distracting")),
        "subject": prompt.subject,
    }
    if rephrasings := [row["prompt"] for row in asked["rephrase"]]:
        request["rephrase_prompt"] = rephrasings[0] if len(rephrasings) == 1 else rephrasings
    phases = {
        phase: _phase(asked, when, with_locality=phase == "post")
        for phase, when in zip(PHASES, ("before", "after"), strict=True)
    }
    return {"case_id": case, "requested_rewrite": request, **phases}


def _by_probe(
    rule: Rule, form: RuleForm, rows: Sequence[Row], only_published: bool
) -> dict[str, list[Row]]:
    """A form's rows by the driver's names of what they ask."""

    def of(*metrics: str) -> list[Row]:
        return [row for row in rows if row["metric"] in metrics]

    # Rows say that a prompt is other, not in what way; neighbours come first.
    n_neighbours = len(rule.forms[form].neighborhood)
    others = of("locality_correctness")
    asked = {
        "rewrite": of("reliability"),
        "rephrase": of("generality"),
        "Instance": of("instance_portability"),
        "Rule": of("rule_understanding_verbatim", "rule_understanding_paraphrase"),
        "neighborhood": others[:n_neighbours],
        "distracting": others[n_neighbours:],
    }
    if only_published:
        asked["rephrase"] = asked["rephrase"][:1]
        asked["Rule"] = asked["Rule"][: ASKED[form]]
    return asked


def _questions(
    asked: Mapping[str, Sequence[Row]], names: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Prompts and wanted answers; the driver calls the latter `ground_truth` also where they are
    the edit's.
    """
    return {
        name: {
            "prompt": [row["prompt"] for row in rows],
            "ground_truth": [row["target_new"] for row in rows],
        }
        for name in names
        if (rows := asked[name])
    }


def _phase(asked: Mapping[str, Sequence[Row]], when: str, *, with_locality: bool) -> dict[str, Any]:
    def accuracies(mode: str, *names: str) -> dict[str, list[float]]:
        # A list with gaps is left out whole: its values could no longer be told apart.
        lists = {f"{name}_acc": [row[f"{mode}_{when}"] for row in asked[name]] for name in names}
        return {name: values for name, values in lists.items() if values and "" not in values}

    phase: dict[str, Any] = accuracies("token_accuracy", "rewrite", "rephrase")
    if portability := accuracies("token_accuracy", "Instance", "Rule"):
        phase["portability"] = portability
    if with_locality and (locality := accuracies("exact", "neighborhood", "distracting")):
        phase["locality"] = locality
    return phase


def _of_cases(phase: Mapping[str, Any]) -> Lists:
    """What `cal_avg.py` takes the mean of, for one case."""
    portability, locality = phase.get("portability", {}), phase.get("locality", {})
    rule = portability.get("Rule_acc", [])
    return {
        "Rewrite": phase.get("rewrite_acc", []),
        "Rephrase": phase.get("rephrase_acc", []),
        "Locality": [*locality.get("neighborhood_acc", []), *locality.get("distracting_acc", [])],
        "Portability": [*portability.get("Instance_acc", []), *rule],
        "RuleUnd": rule,
    }


def _of_driver(phase: Mapping[str, Any]) -> Lists:
    """What the driver's grand average takes the mean of, for one case."""
    portability, locality = phase.get("portability", {}), phase.get("locality", {})
    return {
        "Edit_Succ": phase.get("rewrite_acc", [])[:1],
        "Generality": phase.get("rephrase_acc", [])[:1],
        "Locality": [fmean(values) for name, values in locality.items() if name.endswith("_acc")],
        "Portability": portability.get("Instance_acc", []),
        "Rule_Logic": portability.get("Rule_acc", []),
    }


def _average(
    cases: Sequence[Mapping[str, Any]], phase: str, lists_of: Callable[[Mapping[str, Any]], Lists]
) -> dict[str, float]:
    """The mean over cases of the mean of each list that is not empty."""
    lists = [lists_of(case[phase]) for case in cases]
    return _means(
        [{name: fmean(values) for name, values in each.items() if values} for each in lists]
    )


def _means(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each name over those that have it, names in order of appearance."""
    names = dict.fromkeys(chain.from_iterable(each))
    return {name: fmean(values[name] for values in each if name in values) for name in names}
