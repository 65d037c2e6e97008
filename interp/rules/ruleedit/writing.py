"""Rules, written as RuleEdit folders."""

import json
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from interp.results.files import atomic, write_text
from interp.rules.schema import Rule, RuleError
from interp.vocabulary import FORMS, RuleForm


def write_ruleedit(rules: Iterable[Rule], folder: str | Path) -> list[str]:
    """Write rules as RuleEdit folders, numbered from 0 in the order given.

    RuleEdit has one rephrasing for each form, understanding of the one other form for formula and
    description and of both for the instance, and no values, expressions, twins or splits.

    Returns:
        What RuleEdit has no place for, one line a kind with its count.

    Raises:
        RuleError: If a rule lacks a form or an item that RuleEdit needs, or the folder holds data
            already.
    """
    rules, folder = list(rules), Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise RuleError(f"{folder} is not empty; give a new folder")
    written = [_folder_of(number, rule) for number, rule in enumerate(rules)]
    # A new folder is there as a whole or not at all, so that a killed export can be given again.
    with nullcontext(folder) if folder.is_dir() else atomic(folder) as place:
        for number, files in enumerate(written):
            for name, records in files.items():
                text = json.dumps(records, ensure_ascii=False, indent=2) + "\n"
                write_text(place / str(number) / name, text)
    return [f"{name}: {count}" for name, count in _lost(rules).items() if count > 0]


def _lost(rules: Sequence[Rule]) -> dict[str, int]:
    """How many there are of each kind that RuleEdit has no place for."""
    forms = [form for rule in rules for form in rule.forms.values()]
    return {
        "rephrasings beyond the first": sum(len(form.rephrasings) - 1 for form in forms),
        "understanding items of other wordings or forms": (
            sum(len(form.understanding) for form in forms) - sum(4 + 2 for _ in rules)
        ),
        "twins": sum(len(form.twins) for form in forms),
        "expressions": sum(rule.expression_true is not None for rule in rules),
        "splits": sum(rule.split is not None for rule in rules),
        "words that name a rule": sum(rule.words is not None for rule in rules),
        "said spaces before answers": sum(form.space is not None for form in forms),
    }


def _folder_of(number: int, rule: Rule) -> dict[str, list[dict[str, Any]]]:
    missing = [form for form in FORMS if form not in rule.forms]
    if missing:
        raise RuleError(
            f"{rule.id} has no {' and no '.join(missing)}; a RuleEdit folder needs all three forms"
        )
    formula, description, instance = (_record_of(number, rule, form) for form in FORMS)
    formula["Rule_Understanding"] = _asked(rule, "formula", "description")
    description["Rule_Understanding"] = _asked(rule, "description", "formula")
    both = [_asked(rule, "instance", form) for form in ("formula", "description")]
    instance["Rule_Understanding"] = {
        "prompt": [item["prompt"] for item in both],
        "target_new": [item["target_new"] for item in both],
        "ground_truth": [item["ground_truth"][0] for item in both],
    }
    return {"f_d.json": [formula, description], "ins.json": [instance]}


def _record_of(number: int, rule: Rule, form: RuleForm) -> dict[str, Any]:
    prompt = rule.forms[form]
    if not (prompt.rephrasings and prompt.instances and prompt.neighborhood and prompt.distracting):
        raise RuleError(
            f"{rule.id} {form} lacks rephrasings, instances or locality, which RuleEdit needs"
        )
    if form != "instance" and not prompt.target_true:
        raise RuleError(f"{rule.id} {form} has no true answer, which RuleEdit needs")
    kinds = {"neighborhood": prompt.neighborhood, "distracting": prompt.distracting}
    return {
        "case_id": number,
        "subject": prompt.subject,
        "rule": rule.name,
        "prompt": prompt.prompt,
        "target_new": prompt.target_new,
        "rephrase_prompt": prompt.rephrasings[0],
        "ground_truth": list(prompt.target_true),
        "locality": {
            kind: {"prompt": [p.prompt for p in probes], "ground_truth": [p.answer for p in probes]}
            for kind, probes in kinds.items()
        },
        "Instance": {
            "prompt": [probe.prompt for probe in prompt.instances],
            "target_new": [probe.target_new for probe in prompt.instances],
        },
    }


def _asked(rule: Rule, form: RuleForm, about: RuleForm) -> dict[str, Any]:
    """The understanding item of one form that asks for another form, verbatim and in other
    words.
    """
    other = rule.forms[about]
    rephrased = [
        probe.prompt
        for probe in rule.forms[form].understanding
        if probe.wording == "paraphrase" and probe.target_new == other.target_new
    ]
    item = {
        "prompt": other.prompt,
        "target_new": other.target_new,
        "ground_truth": list(other.target_true),
    }
    return {**item, "rephrase_prompt": rephrased[0]} if rephrased else item
