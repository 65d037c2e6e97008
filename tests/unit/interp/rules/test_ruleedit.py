"""RuleEdit folders and archives: made-up ones with one fault each, the published ones, and what
we write."""

import copy
import json
import math
import re
import struct
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from interp.rules.ruleedit.reading import MAX_ARCHIVE_BYTES, MAX_MEMBER_BYTES, read_ruleedit
from interp.rules.ruleedit.repairs import REPAIRS
from interp.rules.ruleedit.writing import write_ruleedit
from interp.rules.sources import (
    Probe,
    Refusal,
    Repair,
    Rule,
    RuleError,
    RuleSet,
    counted,
    dump_rules,
    load_rules,
)
from interp.vocabulary import FORMS

ARCHIVE = Path(__file__).parents[5] / "shared" / "data" / "RuleEdit-140.zip"
Files = dict[str, Any]


# A made-up folder that needs no repair, and ways to write it.


def record(form: str, understanding: Files, number: int) -> Files:
    return {
        "case_id": number,
        "subject": "cône",
        "rule": "volume of cône",
        "prompt": f"{form}: the volume of a cône is",
        "target_new": f"{form} new",
        "rephrase_prompt": f"State the {form}",
        "Rule_Understanding": understanding,
        "Instance": {"prompt": ["h = 1", "h = 2"], "target_new": ["n1", "n2"]},
        "locality": {
            "neighborhood": {"prompt": ["near 1", "near 2"], "ground_truth": ["a", "b"]},
            "distracting": {"prompt": ["far 1"], "ground_truth": ["c"]},
        },
    }


def made_up(number: int = 7) -> Files:
    """Formula and description ask for each other, the instance for both, as in the published
    data."""
    truths = {"formula": ["V = Bh/3", "(1/3)Bh"], "description": ["a third of B times h"]}

    def item(form: str) -> Files:
        prompt = {
            "prompt": f"{form}: the volume of a cône is",
            "rephrase_prompt": f"the {form}, otherwise",
        }
        return {**prompt, "target_new": f"{form} new", "ground_truth": truths[form]}

    formula, description = (
        record("formula", item("description"), number),
        record("description", item("formula"), number),
    )
    formula["ground_truth"], description["ground_truth"] = truths["formula"], truths["description"]
    both = {
        "prompt": [formula["prompt"], "describe it"],
        "target_new": ["formula new", "description new"],
        "ground_truth": ["V = Bh/3", "a third of B times h"],
    }
    instance = record("instance", both, number)
    instance["Instance"] = {"prompt": ["h = 3", "h = 4"], "target_new": ["n3", "n4"]}
    return {"f_d.json": [formula, description], "ins.json": [instance]}


def encoded(files: Files) -> dict[str, bytes]:
    return {
        name: (
            content
            if isinstance(content, bytes)
            else json.dumps(content, ensure_ascii=False).encode()
        )
        for name, content in files.items()
    }


def write_folder(root: Path, folders: dict[str, Files]) -> Path:
    for number, files in folders.items():
        (root / number).mkdir(parents=True)
        for name, content in encoded(files).items():
            (root / number / name).write_bytes(content)
    return root


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def archive_of(path: Path, number: int = 7) -> Path:
    return write_zip(
        path, {f"{number}/{name}": data for name, data in encoded(made_up(number)).items()}
    )


def clean_rule(tmp_path: Path, number: int = 7) -> Rule:
    (rule,) = read_ruleedit(write_folder(tmp_path / "clean", {str(number): made_up(number)})).rules
    return rule


# Reading what needs no repair.


def test_a_record_is_mapped_key_by_key(tmp_path: Path) -> None:
    reading = read_ruleedit(write_folder(tmp_path / "data", {"7": made_up()}), strict=True)
    (rule,) = reading.rules
    assert reading.refused == reading.repairs == []
    assert (rule.id, rule.name, rule.subject) == ("ruleedit-7", "volume of cône", "cône")
    assert (rule.domain, rule.split, rule.expression_true, rule.symbols) == (None, None, None, ())
    assert tuple(rule.forms) == FORMS
    formula, instance = rule.forms["formula"], rule.forms["instance"]
    assert formula.prompt == "formula: the volume of a cône is"
    assert formula.target_new == "formula new"
    assert formula.target_true == ("V = Bh/3", "(1/3)Bh")
    assert (instance.target_true, instance.target_true_source) == ((), "dataset")
    assert formula.rephrasings == ("State the formula",)
    assert [(p.prompt, p.target_new, p.target_true) for p in formula.instances] == [
        ("h = 1", "n1", ()),
        ("h = 2", "n2", ()),
    ]
    assert [(p.prompt, p.target_new) for p in instance.instances] == [
        ("h = 3", "n3"),
        ("h = 4", "n4"),
    ]
    assert [(p.prompt, p.answer) for p in formula.neighborhood] == [
        ("near 1", "a"),
        ("near 2", "b"),
    ]
    assert [(p.prompt, p.answer) for p in formula.distracting] == [("far 1", "c")]
    asked: dict[str, Any] = {
        "target_new": "description new",
        "target_true": ("a third of B times h",),
    }
    assert formula.understanding == (
        Probe(prompt="description: the volume of a cône is", wording="verbatim", **asked),
        Probe(prompt="the description, otherwise", wording="paraphrase", **asked),
    )
    assert [p.wording for p in rule.forms["description"].understanding] == [
        "verbatim",
        "paraphrase",
    ]
    assert [(p.wording, p.target_new, p.target_true) for p in instance.understanding] == [
        ("verbatim", "formula new", ("V = Bh/3",)),
        ("paraphrase", "description new", ("a third of B times h",)),
    ]


def test_folder_and_zip_load_equal_in_numeric_order(tmp_path: Path) -> None:
    folders = {number: made_up(int(number)) for number in ("10", "9", "100")}
    folder = write_folder(tmp_path / "deep" / "RuleEdit-3", folders)
    (folder / "notes").mkdir()
    (folder / "notes" / "f_d.json").write_text("not a rule", encoding="utf-8")
    members = {
        f"any/depth/{n}/{name}": data
        for n, files in folders.items()
        for name, data in encoded(files).items()
    }
    archive = write_zip(tmp_path / "rules.zip", {"README.md": b"\xff", **members})
    from_folder, from_zip = load_rules(folder.parent), load_rules(str(archive))
    assert [rule.id for rule in from_folder] == ["ruleedit-9", "ruleedit-10", "ruleedit-100"]
    assert from_folder.rules == from_zip.rules
    assert from_folder.refused == from_zip.refused == from_folder.repairs == from_zip.repairs == ()
    assert {path.name for path in tmp_path.iterdir()} == {
        "deep",
        "rules.zip",
    }  # nothing is unpacked


def test_a_rule_file_of_ruleedit_rules_loads_equal(tmp_path: Path) -> None:
    rules = load_rules(write_folder(tmp_path / "data", {"7": made_up()}))
    dump_rules(rules, tmp_path / "rules.json")
    text = (tmp_path / "rules.json").read_text(encoding="utf-8")
    assert load_rules(tmp_path / "rules.json").rules == rules.rules
    assert "cône" in text
    assert "null" not in text
    assert text.endswith("}\n")


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    files = {name: b"\xef\xbb\xbf" + content for name, content in encoded(made_up()).items()}
    reading = read_ruleedit(write_folder(tmp_path / "data", {"7": files}))
    assert reading.rules == [clean_rule(tmp_path)] and not reading.repairs


def test_the_true_answer_of_an_instance_is_derived_from_the_formula(tmp_path: Path) -> None:
    files = made_up()
    files["f_d.json"][0] |= {
        "target_new": "V = B + h.",
        "ground_truth": ["V = (1/3) * B * h.", "a third"],
    }
    files["ins.json"][0] |= {"target_new": "V = 9 + 4 = 13."}
    (rule,) = read_ruleedit(write_folder(tmp_path / "data", {"7": files})).rules
    form = rule.forms["instance"]
    assert (form.target_true_source, form.values) == ("derived", {"B": 9, "h": 4})
    assert form.target_true == ("V = 1/3 * 9 * 4 = 12.", "12")
    # An answer that the data give is taken, and nothing is derived.
    files["ins.json"][0]["ground_truth"] = ["V = 12."]
    (rule,) = read_ruleedit(write_folder(tmp_path / "given", {"7": files})).rules
    form = rule.forms["instance"]
    assert (form.target_true_source, form.values, form.target_true) == ("dataset", {}, ("V = 12.",))


# Repairs. Each case: a fault in the made-up folder 7, what is reported, and the rule that it must
# give.


class Mend(NamedTuple):
    damage: Callable[[Files], object]
    where: str
    detail: str
    expected: Callable[[Rule], Rule] = lambda clean: clean


def text_of(files: Files, file: str, old: str, new: str) -> None:
    """Change the JSON text of a file, which must hold the old text once."""
    text = json.dumps(files[file], ensure_ascii=False, indent=1)
    assert text.count(old) == 1
    files[file] = text.replace(old, new).encode()


def rename(node: Files, old: str, new: str) -> None:
    node[new] = node.pop(old)


def with_form(rule: Rule, form: Any, **changes: Any) -> Rule:
    return rule.model_copy(
        update={"forms": {**rule.forms, form: rule.forms[form].model_copy(update=changes)}}
    )


def reuse(files: Files) -> None:
    items = files["ins.json"][0]["Instance"]
    items["prompt"] += ["Now h = 3", "Now h = 4"]


MENDS: dict[str, Mend] = {
    "closed_brace": Mend(
        lambda f: text_of(f, "ins.json", "   }\n  }\n }\n]", "   }\n  }\n]"),
        "ins.json",
        "line 53 column 1",
    ),
    "renamed_key": Mend(
        lambda f: rename(
            f["ins.json"][0]["Rule_Understanding"], "ground_truth", "ground_university"
        ),
        "ins.json",
        "Rule_Understanding.ground_university to ground_truth",
    ),
    "reused_targets": Mend(
        reuse,
        "ins.json",
        "Instance: 4 prompts with 2 answers",
        lambda clean: with_form(
            clean,
            "instance",
            instances=tuple(
                Probe(prompt=prompt, target_new=target)
                for prompt, target in (
                    ("h = 3", "n3"),
                    ("h = 4", "n4"),
                    ("Now h = 3", "n3"),
                    ("Now h = 4", "n4"),
                )
            ),
        ),
    ),
    "removed_target": Mend(
        lambda f: f["ins.json"][0]["Instance"]["target_new"].insert(1, "n2"),
        "ins.json",
        "Instance: 2 prompts, answer 'n2' taken out",
    ),
    "stripped_space": Mend(
        lambda f: f["f_d.json"][1]["locality"]["distracting"]["prompt"].__setitem__(0, "\tfar 1  "),
        "f_d.json",
        "locality.distracting.prompt[0]: '\\tfar 1  '",
    ),
    "subject_case": Mend(
        lambda f: f["f_d.json"][0].update(subject="CÔNE"), "f_d.json", "'CÔNE' to 'cône'"
    ),
    "subject_from_name": Mend(
        lambda f: f["ins.json"][0].update(subject="kegel"),
        "ins.json",
        "'kegel' is not in 'instance: the volume of a cône is'; 'cône' is",
    ),
    "name_of_formula": Mend(
        lambda f: f["f_d.json"][1].update(rule="content of cône"),
        "f_d.json",
        "record 1: 'content of cône', and 'volume of cône' in the formula",
    ),
    "subject_per_form": Mend(
        lambda f: f["ins.json"][0].update(subject="volume"),
        "ins.json",
        "'volume', and 'cône' in the formula",
        lambda clean: with_form(clean, "instance", subject="volume"),
    ),
    "folder_number": Mend(
        lambda f: f["f_d.json"][0].update(case_id=8), "f_d.json", "record 0: case_id 8 in folder 7"
    ),
}


def test_every_repair_has_a_case() -> None:
    assert set(MENDS) == set(REPAIRS)


@pytest.mark.parametrize("name", list(MENDS))
def test_a_fault_is_mended_exactly_so_and_reported(name: str, tmp_path: Path) -> None:
    mend, damaged, clean = MENDS[name], made_up(), clean_rule(tmp_path)
    mend.damage(damaged)
    reading = read_ruleedit(write_folder(tmp_path / "data", {"7": damaged}))
    assert reading.refused == []
    assert reading.repairs == [Repair(f"ruleedit-7/{mend.where}", name, mend.detail)]
    assert reading.rules == [mend.expected(clean)]


@pytest.mark.parametrize("name", list(MENDS))
def test_strict_refuses_what_needs_a_repair(name: str, tmp_path: Path) -> None:
    mend, damaged = MENDS[name], made_up()
    mend.damage(damaged)
    folder = write_folder(tmp_path / "data", {"6": made_up(6), "7": damaged})
    reading = read_ruleedit(folder, strict=True)
    assert [rule.id for rule in reading.rules] == ["ruleedit-6"]
    assert reading.repairs == []
    reason = f"needs repair ({name}: {mend.detail})"
    assert reading.refused == [Refusal(f"ruleedit-7/{mend.where}", reason)]
    assert load_rules(folder, strict=True).refused == tuple(reading.refused)


def test_a_space_before_the_full_stop_is_taken_out(tmp_path: Path) -> None:
    damaged = made_up()
    damaged["ins.json"][0]["target_new"] = "x = 1 ."
    reading = read_ruleedit(write_folder(tmp_path / "data", {"7": damaged}))
    assert reading.rules[0].forms["instance"].target_new == "x = 1."
    assert reading.repairs == [
        Repair("ruleedit-7/ins.json", "stripped_space", "target_new: 'x = 1 .'")
    ]


def test_several_faults_are_each_reported_in_the_order_of_reading(tmp_path: Path) -> None:
    damaged = made_up()
    for name in ("folder_number", "subject_from_name", "stripped_space", "name_of_formula"):
        MENDS[name].damage(damaged)
    reading = read_ruleedit(write_folder(tmp_path / "data", {"7": damaged}))
    assert reading.rules == [clean_rule(tmp_path)]
    names = [repair.name for repair in reading.repairs]
    assert names == ["stripped_space", "subject_from_name", "folder_number", "name_of_formula"]
    (refused,) = read_ruleedit(tmp_path / "data", strict=True).refused
    assert refused.where == "ruleedit-7/f_d.json"
    assert [name for name in re.findall(r"(\w+): ", refused.reason) if name in REPAIRS] == names


def test_repairs_are_those_of_the_rules_chosen_and_refusals_those_of_the_source(
    tmp_path: Path,
) -> None:
    folders = {str(number): made_up(number) for number in (1, 2, 3, 4)}
    for number in ("1", "3"):
        folders[number]["ins.json"][0]["target_new"] += " "
    folders["3"]["f_d.json"][0]["target_new"] += " "
    folders["4"]["ins.json"] = b"[]"
    folder = write_folder(tmp_path / "data", folders)
    whole = load_rules(folder)
    assert [repair.where for repair in whole.repairs] == [
        f"ruleedit-{w}" for w in ("1/ins.json", "3/f_d.json", "3/ins.json")
    ]
    assert counted(whole.repairs) == "3 stripped_space"
    assert load_rules(folder, limit=2).repairs == whole.repairs[:1]
    assert load_rules(folder, ids=["ruleedit-2"]).repairs == ()
    third = load_rules(folder, ids=["ruleedit-3"])
    assert third.repairs == whole.repairs[1:] and third.refused == whole.refused
    assert whole.refused == (Refusal("ruleedit-4/ins.json", "[0] is missing"),)


# Faults just outside the condition of a repair: the folder is refused, with the reason.

LENGTHS = (
    "[0].Instance: lists of different lengths ({} prompt, {} target_new); each prompt needs its own"
    " answer"
)
NO_SUBJECT = "tracing and editing look it up there, so write it exactly as in the prompt"
NO_KEGEL = (
    f"the subject 'kegel' is not in the prompt 'instance: the volume of a cône is'; {NO_SUBJECT}"
)


def both_keys(files: Files) -> None:
    files["ins.json"][0]["Rule_Understanding"]["ground_university"] = [
        "V = Bh/3",
        "a third of B times h",
    ]


def instance_items(files: Files, prompt: list[Any], target_new: list[Any]) -> None:
    files["ins.json"][0]["Instance"] = {"prompt": prompt, "target_new": target_new}


def lost_subject(files: Files, name: str) -> None:
    files["ins.json"][0].update(subject="kegel", rule=name)


OUTSIDE: list[tuple[str, Callable[[Files], object], str, str]] = [
    (
        "closed_brace: two are missing",
        lambda f: text_of(f, "ins.json", "   }\n  }\n }\n]", "   }\n]"),
        "ins.json",
        "invalid JSON at line 52 column 1: Expecting ',' delimiter",
    ),
    (
        "closed_brace: a bracket is missing",
        lambda f: text_of(f, "ins.json", '    "n4"\n   ]\n  },', '    "n4"\n  },'),
        "ins.json",
        "invalid JSON at line 31 column 3: Expecting ',' delimiter",
    ),
    (
        "closed_brace: a comma is missing",
        lambda f: text_of(f, "ins.json", '    "n3",\n', '    "n3"\n'),
        "ins.json",
        "invalid JSON at line 30 column 5: Expecting ',' delimiter",
    ),
    (
        "closed_brace: where reading stopped, the record is another",
        lambda f: text_of(f, "ins.json", '    "n4"\n   ]\n  },', '    "n4"\n   ],'),
        "ins.json",
        "[0].Instance.locality is not a known key; [0].locality is missing",
    ),
    (
        "closed_brace: the file is cut",
        lambda f: f.update({"ins.json": encoded(f)["ins.json"][:-2]}),
        "ins.json",
        "invalid JSON at line 1 column",
    ),
    (
        "renamed_key: another misspelling",
        lambda f: rename(f["ins.json"][0]["Rule_Understanding"], "ground_truth", "ground_thruth"),
        "ins.json",
        (
            "[0].Rule_Understanding.ground_truth is missing; [0].Rule_Understanding.ground_thruth"
            " is not a known key"
        ),
    ),
    (
        "renamed_key: the right key is there too",
        both_keys,
        "ins.json",
        "[0].Rule_Understanding.ground_university is not a known key",
    ),
    (
        "reused_targets: other numbers",
        lambda f: instance_items(f, ["h = 3", "h = 4", "Now h = 3", "Now h = 5"], ["n3", "n4"]),
        "ins.json",
        LENGTHS.format(4, 2),
    ),
    (
        "reused_targets: the same numbers in another order",
        lambda f: instance_items(f, ["h = 3", "h = 4", "Now h = 4", "Now h = 3"], ["n3", "n4"]),
        "ins.json",
        LENGTHS.format(4, 2),
    ),
    (
        "reused_targets: no multiple",
        lambda f: instance_items(f, ["h = 3", "h = 3", "h = 3"], ["n3", "n4"]),
        "ins.json",
        LENGTHS.format(3, 2),
    ),
    (
        "removed_target: an answer of no other prompt",
        lambda f: instance_items(f, ["h = 3", "h = 4"], ["n3", "n9", "n4"]),
        "ins.json",
        LENGTHS.format(2, 3),
    ),
    (
        "removed_target: two that could be the one",
        lambda f: instance_items(f, ["h = 3", "h = 4"], ["n1", "n2", "n4"]),
        "ins.json",
        LENGTHS.format(2, 3),
    ),
    (
        "removed_target: two too many",
        lambda f: instance_items(f, ["h = 3"], ["n3", "n2", "n4"]),
        "ins.json",
        LENGTHS.format(1, 3),
    ),
    (
        "removed_target: the answer to a prompt that is here",
        lambda f: instance_items(f, ["h = 1", "h = 4"], ["n1", "n3", "n4"]),
        "ins.json",
        LENGTHS.format(2, 3),
    ),
    (
        "removed_target: no answer too many, but too few",
        lambda f: instance_items(f, ["h = 3", "h = 4", "h = 5"], ["n3"]),
        "ins.json",
        LENGTHS.format(3, 1),
    ),
    (
        "stripped_space: nothing is left",
        lambda f: f["ins.json"][0]["locality"]["distracting"].update(prompt=["  "]),
        "ins.json",
        "prompt: expected ",
    ),
    (
        "subject_case: other letters",
        lambda f: f["ins.json"][0].update(subject="cone", rule="law of nature"),
        "ins.json",
        (
            "the subject 'cone' is not in the prompt 'instance: the volume of a cône is';"
            f" {NO_SUBJECT}"
        ),
    ),
    (
        "subject_from_name: only stop words and short words of the name are in the prompt",
        lambda f: lost_subject(f, "law of a the of is"),
        "ins.json",
        NO_KEGEL,
    ),
    (
        "subject_from_name: only parts of words",
        lambda f: lost_subject(f, "ance of vol"),
        "ins.json",
        NO_KEGEL,
    ),
    (
        "subject_from_name: the name in another case",
        lambda f: lost_subject(f, "VOLUME OF CÔNE"),
        "ins.json",
        NO_KEGEL,
    ),
    (
        "name_of_formula: no name",
        lambda f: f["f_d.json"][1].update(rule=None),
        "f_d.json",
        "[1].rule: expected a valid string, got None",
    ),
    (
        "subject_per_form: no subject",
        lambda f: f["ins.json"][0].update(subject=["cône"]),
        "ins.json",
        "[0].subject: expected a valid string, got ['cône']",
    ),
    (
        "folder_number: no number",
        lambda f: f["ins.json"][0].update(case_id="seven"),
        "ins.json",
        "[0].case_id: expected a valid integer",
    ),
]


def test_every_repair_has_a_fault_outside_it() -> None:
    assert {name.partition(":")[0] for name, *_ in OUTSIDE} == set(REPAIRS)


@pytest.mark.parametrize(
    ("damage", "file", "reason"), [d[1:] for d in OUTSIDE], ids=[d[0] for d in OUTSIDE]
)
def test_a_fault_outside_every_repair_is_refused(
    tmp_path: Path, damage: Callable[[Files], object], file: str, reason: str
) -> None:
    damaged = made_up(2)
    damage(damaged)
    reading = read_ruleedit(write_folder(tmp_path / "data", {"1": made_up(1), "2": damaged}))
    assert [rule.id for rule in reading.rules] == ["ruleedit-1"]
    assert reading.repairs == []  # what was tried on a refused folder is no repair
    (refused,) = reading.refused
    assert refused.where == f"ruleedit-2/{file}"
    assert refused.reason.startswith(reason) and "\n" not in refused.reason


# Malformed records: the folder is refused whole, the others are read.


def drop(files: Files, file: str, *keys: Any) -> None:
    target = files[file]
    for key in keys[:-1]:
        target = target[key]
    del target[keys[-1]]


DAMAGE: list[tuple[str, Callable[[Files], object], str, str]] = [
    (
        "missing key",
        lambda f: drop(f, "f_d.json", 1, "target_new"),
        "f_d.json",
        "[1].target_new is missing",
    ),
    (
        "extra key",
        lambda f: f["ins.json"][0].update(note=1),
        "ins.json",
        "[0].note is not a known key",
    ),
    (
        "instances",
        lambda f: drop(f, "ins.json", 0, "Instance", "target_new", 0),
        "ins.json",
        LENGTHS.format(2, 1),
    ),
    (
        "locality",
        lambda f: drop(f, "f_d.json", 0, "locality", "neighborhood", "prompt", 0),
        "f_d.json",
        (
            "[0].locality.neighborhood: lists of different lengths (1 prompt, 2 ground_truth); "
            "each prompt needs its own answer"
        ),
    ),
    (
        "understanding",
        lambda f: drop(f, "ins.json", 0, "Rule_Understanding", "ground_truth", 0),
        "ins.json",
        (
            "[0].Rule_Understanding: lists of different lengths (2 prompt, 2 target_new, 1"
            " ground_truth); each prompt needs its own answer"
        ),
    ),
    ("one record", lambda f: f["f_d.json"].pop(), "f_d.json", "[1] is missing"),
    (
        "three records",
        lambda f: f["f_d.json"].append(f["f_d.json"][0]),
        "f_d.json",
        "the whole: expected ",
    ),
    (
        "no list",
        lambda f: f.update({"ins.json": {"0": f["ins.json"][0]}}),
        "ins.json",
        "the whole: expected ",
    ),
    (
        "a text for a record",
        lambda f: f["ins.json"].__setitem__(0, "x"),
        "ins.json",
        "[0]: expected a valid dict",
    ),
    (
        "a number",
        lambda f: f["ins.json"][0].update(subject=4),
        "ins.json",
        "[0].subject: expected a valid string, got 4",
    ),
    (
        "a truth value",
        lambda f: f["ins.json"][0].update(prompt=True),
        "ins.json",
        "[0].prompt: expected a valid string",
    ),
    (
        "nothing",
        lambda f: f["f_d.json"][0].update(locality=None),
        "f_d.json",
        "[0].locality: expected a valid dict",
    ),
    (
        "a text for a list",
        lambda f: f["f_d.json"][0]["Instance"].update(prompt="h = 1"),
        "f_d.json",
        "[0].Instance.prompt: expected a valid tuple, got 'h = 1'",
    ),
    (
        "a number in a list",
        lambda f: f["f_d.json"][0]["Instance"].update(target_new=["n1", 13]),
        "f_d.json",
        "[0].Instance.target_new[1]: expected a valid string, got 13",
    ),
    (
        "empty instances",
        lambda f: instance_items(f, [], []),
        "ins.json",
        "[0].Instance.prompt: expected ",
    ),
    (
        "answers to no prompt",
        lambda f: instance_items(f, [], ["n3", "n4"]),
        "ins.json",
        "[0].Instance.prompt: expected ",
    ),
    (
        "empty locality",
        lambda f: f["f_d.json"][1]["locality"].update(
            distracting={"prompt": [], "ground_truth": []}
        ),
        "f_d.json",
        "[1].locality.distracting.prompt: expected ",
    ),
    (
        "empty truth",
        lambda f: f["f_d.json"][0]["Rule_Understanding"].update(ground_truth=[]),
        "f_d.json",
        "[0].Rule_Understanding.ground_truth: expected ",
    ),
    (
        "empty prompt",
        lambda f: f["ins.json"][0].update(prompt="", subject=""),
        "ins.json",
        "prompt: expected ",
    ),
    (
        "empty subject",
        lambda f: f["ins.json"][0].update(subject=""),
        "ins.json",
        "subject: expected ",
    ),
    (
        "two keys",
        lambda f: text_of(f, "ins.json", '"case_id": 2', '"case_id": 2, "case_id": 2'),
        "ins.json",
        "the key 'case_id' occurs twice in one object; keep one of the two",
    ),
    (
        "no JSON",
        lambda f: f.update({"ins.json": b"[{,]"}),
        "ins.json",
        "invalid JSON at line 1 column 3: Expecting property name",
    ),
    (
        "empty file",
        lambda f: f.update({"f_d.json": b""}),
        "f_d.json",
        "invalid JSON at line 1 column 1: Expecting value",
    ),
    (
        "deep",
        lambda f: f.update({"f_d.json": b"[" * 100_000}),
        "f_d.json",
        "its JSON is nested too deeply",
    ),
    (
        "Latin-1",
        lambda f: f.update({"ins.json": b'["\xe9"]'}),
        "ins.json",
        "byte 2 is not UTF-8 text; save the file as UTF-8",
    ),
    (
        "UTF-16",
        lambda f: f.update({"ins.json": json.dumps(f["ins.json"]).encode("utf-16")}),
        "ins.json",
        "byte 0 is not UTF-8 text",
    ),
    ("no file", lambda f: f.pop("ins.json"), "ins.json", "this file is missing"),
]


@pytest.mark.parametrize(
    ("damage", "file", "reason"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE]
)
def test_a_malformed_folder_is_refused_whole(
    tmp_path: Path, damage: Callable[[Files], object], file: str, reason: str
) -> None:
    damaged = made_up(2)
    damage(damaged)
    folder = write_folder(tmp_path / "data", {"1": made_up(1), "2": damaged})
    rules = load_rules(folder)
    assert [rule.id for rule in rules] == ["ruleedit-1"]
    (refused,) = rules.refused
    assert refused.where == f"ruleedit-2/{file}"
    assert refused.reason.startswith(reason)
    assert "\n" not in refused.reason and "pydantic" not in refused.reason
    with pytest.raises(
        RuleError, match=re.escape(f"ruleedit-2/{file} was refused: {refused.reason}")
    ):
        load_rules(folder, ids=["ruleedit-2"])
    with pytest.raises(
        RuleError, match=re.escape(f"no usable rule (ruleedit-2/{file}: {refused.reason}")
    ):
        load_rules(folder / "2")


# Malformed archives: one clear error, and nothing is read.


@pytest.mark.parametrize(
    "name", ["../7/f_d.json", "a/../../7/f_d.json", "/7/f_d.json", "C:\\7\\f_d.json"]
)
def test_a_member_outside_the_archive_raises(tmp_path: Path, name: str) -> None:
    members = {f"7/{file}": data for file, data in encoded(made_up()).items()}
    archive = write_zip(tmp_path / "rules.zip", members | {name: b"[]"})
    with pytest.raises(
        RuleError, match=r"rules\.zip has a member named .* which leaves the archive"
    ):
        load_rules(archive)


@pytest.mark.parametrize("name", ["../f_d.json.txt", "..\\notes.md"])
def test_a_name_that_is_not_ours_may_not_leave_the_archive_either(
    tmp_path: Path, name: str
) -> None:
    members = {f"7/{file}": data for file, data in encoded(made_up()).items()}
    archive = write_zip(tmp_path / "rules.zip", members | {name: b"[]"})
    with pytest.raises(RuleError, match="which leaves the archive"):
        load_rules(archive)


def test_a_truncated_archive_raises_wherever_it_is_cut(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "rules.zip")
    content = archive.read_bytes()
    for length in (0, 1, 30, len(content) // 2, len(content) - 40, len(content) - 1):
        archive.write_bytes(content[:length])
        with pytest.raises(RuleError, match=r"rules\.zip is not a whole zip archive") as caught:
            load_rules(archive)
        assert "\n" not in str(caught.value)


def test_no_damaged_byte_is_read_as_something_else(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "rules.zip")
    content, whole = archive.read_bytes(), read_ruleedit(archive).rules
    rng = np.random.default_rng(0)
    outcomes: Counter[str] = Counter()
    # Everywhere in the directory at the end, where sizes, flags and names stand, and now and then
    # before it.
    start = content.index(b"PK\x01\x02")
    for at in [*rng.choice(start, 60, replace=False), *range(start, len(content))]:
        damaged = bytearray(content)
        damaged[at] ^= 1 << int(rng.integers(8))
        archive.write_bytes(damaged)
        try:
            reading = read_ruleedit(archive)
            assert reading.rules == whole or (not reading.rules and reading.refused), at
            outcomes["read"] += 1
        except RuleError as error:
            assert str(archive) in str(error) and "\n" not in str(error)
            outcomes["refused"] += 1
    assert min(outcomes["read"], outcomes["refused"]) > 10


def patched(archive: Path, offset: int, value: bytes, *, members: int = 1) -> Path:
    """Overwrite a field in the directory entries of the first members."""
    content, at = bytearray(archive.read_bytes()), 0
    for _ in range(members):
        at = content.index(b"PK\x01\x02", at)
        content[at + offset : at + offset + len(value)] = value
        at += 46
    archive.write_bytes(content)
    return archive


FLAGS, SIZE = 8, 24  # places in a directory entry: general-purpose flags, uncompressed size


def test_a_header_that_claims_two_gigabytes_raises(tmp_path: Path) -> None:
    archive = patched(archive_of(tmp_path / "rules.zip"), SIZE, struct.pack("<I", 2 * 2**30))
    with pytest.raises(
        RuleError,
        match=rf"rules\.zip unpacks to 2147\d{{6}} bytes, more than the {MAX_ARCHIVE_BYTES}",
    ):
        load_rules(archive)


def test_a_header_that_claims_less_than_there_is_raises(tmp_path: Path) -> None:
    files = encoded(made_up())
    members = {"7/f_d.json": files["f_d.json"] + b" " * 10**7, "7/ins.json": files["ins.json"]}
    archive = patched(
        write_zip(tmp_path / "rules.zip", members), SIZE, struct.pack("<I", len(files["f_d.json"]))
    )
    with pytest.raises(RuleError, match=r"rules\.zip is not a whole zip archive \(Bad CRC-32"):
        load_rules(archive)


def test_an_oversized_member_raises(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "rules.zip", {"1/f_d.json": b" " * (MAX_MEMBER_BYTES + 1)})
    with pytest.raises(RuleError, match=f"1/f_d.json has {MAX_MEMBER_BYTES + 1} bytes"):
        load_rules(archive)


def test_too_much_in_all_raises(tmp_path: Path) -> None:
    count = MAX_ARCHIVE_BYTES // MAX_MEMBER_BYTES + 1
    archive = write_zip(tmp_path / "rules.zip", {f"{n}/f_d.json": b"[]" for n in range(count)})
    assert len(read_ruleedit(archive).refused) == count
    patched(archive, SIZE, struct.pack("<I", MAX_MEMBER_BYTES), members=count)
    with pytest.raises(
        RuleError,
        match=f"unpacks to {count * MAX_MEMBER_BYTES} bytes, more than the {MAX_ARCHIVE_BYTES}",
    ):
        load_rules(archive)


def test_a_big_member_that_is_not_ours_is_not_looked_at(tmp_path: Path) -> None:
    members = {f"7/{file}": data for file, data in encoded(made_up()).items()}
    archive = write_zip(tmp_path / "rules.zip", {"model.bin": b"", **members})
    patched(archive, SIZE, struct.pack("<I", 2 * 2**30))
    assert [rule.id for rule in load_rules(archive)] == ["ruleedit-7"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_exotic_compression_raises(tmp_path: Path, method: int) -> None:
    members = {f"7/{file}": data for file, data in encoded(made_up()).items()}
    archive = write_zip(tmp_path / "rules.zip", members, method)
    with pytest.raises(
        RuleError,
        match=r"rules\.zip: 7/f_d\.json is encrypted or not deflated; make the archive again",
    ):
        load_rules(archive)


def test_an_archive_with_a_name_that_is_no_text_raises(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "rules.zip")
    content = bytearray(archive.read_bytes())
    entry = content.index(b"PK\x01\x02")  # the first of the list of members
    content[entry + 9] |= 0x08  # its name is in UTF-8
    content[entry + 46] = 0xFF
    archive.write_bytes(content)
    with pytest.raises(RuleError, match=r"rules\.zip is not a whole zip archive \('utf-8' codec"):
        load_rules(archive)


def test_a_stored_archive_loads(tmp_path: Path) -> None:
    members = {f"7/{file}": data for file, data in encoded(made_up()).items()}
    assert load_rules(write_zip(tmp_path / "rules.zip", members, zipfile.ZIP_STORED)).rules == (
        clean_rule(tmp_path),
    )


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (FLAGS, 1, "is encrypted or not deflated"),
        (FLAGS, 0x20, r"is not a whole zip archive \(compressed patched data"),
        (FLAGS, 0x40, r"is not a whole zip archive \(strong encryption"),
        (6, 99, r"is not a whole zip archive \(zip file version 9\.9\)"),
    ],
)
def test_an_encrypted_or_unknown_archive_raises(
    tmp_path: Path, offset: int, value: int, message: str
) -> None:
    archive = patched(archive_of(tmp_path / "rules.zip"), offset, struct.pack("<H", value))
    with pytest.raises(RuleError, match=message):
        load_rules(archive)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00", b"PK\x05\x06"])
def test_a_file_that_is_no_archive_raises(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rules.zip").write_bytes(content)
    with pytest.raises(
        RuleError, match=r"is not a whole zip archive .* fetch or make it again, or give the folder"
    ):
        load_rules(tmp_path / "rules.zip")


@pytest.mark.parametrize(
    "members", [[], ["README.md"], ["f_d.json", "ins.json"], ["a/f_d.json"], ["1/f_d.txt"]]
)
def test_an_archive_without_numbered_folders_raises(tmp_path: Path, members: list[str]) -> None:
    archive = write_zip(tmp_path / "rules.zip", dict.fromkeys(members, b"[]"))
    with pytest.raises(
        RuleError, match=r"rules\.zip holds no RuleEdit data; needed are numbered folders"
    ):
        load_rules(archive)


def test_a_folder_without_rules_raises(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="holds no RuleEdit data; needed are numbered folders"):
        load_rules(tmp_path)


@pytest.mark.parametrize("second", ["b/7", "a/07"])
def test_two_folders_of_one_number_raise(tmp_path: Path, second: str) -> None:
    write_folder(tmp_path / "data", {"a/7": made_up(), second: made_up()})
    with pytest.raises(
        RuleError, match=r"two files f_d\.json of a folder 0?7; each id must be unique"
    ):
        load_rules(tmp_path / "data")
    members = {
        f"{n}/{file}": data for n in ("a/7", second) for file, data in encoded(made_up()).items()
    }
    with pytest.raises(
        RuleError, match=r"two files f_d\.json of a folder 0?7; each id must be unique"
    ):
        load_rules(write_zip(tmp_path / "rules.zip", members))


# The published archive. Of its text only ids, names of fields and numbers are here.


@pytest.fixture(scope="module")
def published() -> RuleSet:
    if not ARCHIVE.is_file():
        pytest.skip("the RuleEdit archive is not beside this repository")
    return load_rules(ARCHIVE)


def test_the_archive_gives_every_rule_and_every_prompt(published: RuleSet) -> None:
    assert len(published) == 140 and published.refused == ()
    assert all(tuple(rule.forms) == FORMS for rule in published)
    kinds: Counter[str] = Counter()
    for form in (form for rule in published for form in rule.forms.values()):
        kinds["edits"] += 1
        kinds["rephrasings"] += len(form.rephrasings)
        kinds["instances"] += len(form.instances)
        kinds["neighbourhood"] += len(form.neighborhood)
        kinds["distracting"] += len(form.distracting)
        kinds.update(str(probe.wording) for probe in form.understanding)
    assert kinds == {
        "edits": 420,
        "rephrasings": 420,
        "instances": 1683,  # 12 a rule; folder 132 has 4 more, 164 one less
        "verbatim": 506,
        "paraphrase": 334,
        "neighbourhood": 840,
        "distracting": 842,  # 6 a rule; folder 147 has 2 more
    }


def test_the_archive_needs_these_repairs(published: RuleSet) -> None:
    assert Counter(repair.name for repair in published.repairs) == {
        "stripped_space": 15,
        "folder_number": 11,
        "name_of_formula": 7,
        "subject_per_form": 3,
        "closed_brace": 1,
        "renamed_key": 1,
        "reused_targets": 1,
        "removed_target": 1,
        "subject_case": 1,
        "subject_from_name": 1,
    }
    places = {repair.name: repair.where for repair in published.repairs}
    assert {name: places[name].removeprefix("ruleedit-") for name in list(MENDS)[:4]} == {
        "closed_brace": "145/ins.json",
        "renamed_key": "133/ins.json",
        "reused_targets": "132/ins.json",
        "removed_target": "164/ins.json",
    }
    assert (
        places["subject_case"] == "ruleedit-165/f_d.json"
        and places["subject_from_name"] == "ruleedit-186/ins.json"
    )


def test_the_archive_read_strictly_leaves_out_what_needs_a_repair(published: RuleSet) -> None:
    strict = load_rules(ARCHIVE, strict=True)
    mended = {repair.where.split("/")[0] for repair in published.repairs}
    assert len(mended) == 26 and strict.repairs == ()
    assert {refused.where.split("/")[0] for refused in strict.refused} == mended
    assert strict.rules == tuple(rule for rule in published if rule.id not in mended)


def raw_records(number: str) -> Iterator[tuple[Any, Files]]:
    with zipfile.ZipFile(ARCHIVE) as archive:
        f_d, ins = (
            json.loads(archive.read(f"RuleEdit-140/{number}/{name}"))
            for name in ("f_d.json", "ins.json")
        )
    return zip(FORMS, (*f_d, *ins), strict=True)


def test_the_archive_is_read_as_it_is_written(published: RuleSet) -> None:
    """Every text of every folder whose text no repair touches, against the JSON itself."""
    touched = {
        r.where.split("/")[0]
        for r in published.repairs
        if r.name not in ("folder_number", "name_of_formula")
    }
    compared = 0
    for rule in published:
        if rule.id in touched:
            continue
        for form, raw in raw_records(rule.id.removeprefix("ruleedit-")):
            read = rule.forms[form]
            assert (read.prompt, read.subject, read.target_new) == (
                raw["prompt"],
                raw["subject"],
                raw["target_new"],
            )
            assert read.rephrasings == (raw["rephrase_prompt"],)
            if read.target_true_source == "dataset":
                assert list(read.target_true) == raw.get("ground_truth", [])
            else:
                assert "ground_truth" not in raw
            items = raw["Instance"]
            assert [(p.prompt, p.target_new) for p in read.instances] == list(
                zip(*items.values(), strict=True)
            )
            for probes, kind in (
                (read.neighborhood, "neighborhood"),
                (read.distracting, "distracting"),
            ):
                pairs = zip(
                    raw["locality"][kind]["prompt"],
                    raw["locality"][kind]["ground_truth"],
                    strict=True,
                )
                assert [(p.prompt, p.answer) for p in probes] == list(pairs)
            asked = raw["Rule_Understanding"]
            prompts = (
                asked["prompt"]
                if form == "instance"
                else [asked["prompt"], asked["rephrase_prompt"]]
            )
            assert [p.prompt for p in read.understanding] == prompts
            compared += 1
    assert compared > 3 * 120


def test_the_archive_s_instances_get_their_true_answers(published: RuleSet) -> None:
    forms = {rule.id.removeprefix("ruleedit-"): rule.forms["instance"] for rule in published}
    given = [
        number
        for number, form in forms.items()
        if form.target_true and form.target_true_source == "dataset"
    ]
    derived = {
        number: form for number, form in forms.items() if form.target_true_source == "derived"
    }
    assert given == ["109", "110", "111"]
    assert len(derived) == 88 and sum(not form.target_true for form in forms.values()) == 49
    assert all(form.values and form.target_true for form in derived.values())
    # By hand: twice the sum of 3 and 14; 15 times 3; 12 over 3 is 12·11·10 / 6; π·5²·4.
    assert (derived["0"].target_true[-1], derived["0"].values) == ("34", {"x": 3, "y": 14})
    assert (derived["184"].target_true[-1], derived["184"].values) == ("45", {"k": 3, "Δx": 15})
    assert (derived["137"].target_true[-1], derived["137"].values) == ("220", {"n": 12, "m": 3})
    assert math.comb(12, 3) == 220
    assert (derived["61"].target_true[-1], derived["61"].values) == ("100π", {"r": 5, "h": 4})


# Writing.


def paths(node: Any, at: str = "") -> Iterator[str]:
    """Every key of a record with the keys above it."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{at}{key}"
            yield from paths(value, f"{at}{key}.")


LOCALITY = {
    f"locality.{kind}.{key}"
    for kind in ("neighborhood", "distracting")
    for key in ("prompt", "ground_truth")
}
COMMON = {
    "case_id",
    "subject",
    "rule",
    "prompt",
    "target_new",
    "rephrase_prompt",
    "locality",
    *LOCALITY,
}
COMMON |= {
    "locality.neighborhood",
    "locality.distracting",
    "Instance",
    "Instance.prompt",
    "Instance.target_new",
}
ASKED = {f"Rule_Understanding.{key}" for key in ("prompt", "target_new", "ground_truth")} | {
    "Rule_Understanding"
}
KEYS = {
    "formula": COMMON | ASKED | {"ground_truth", "Rule_Understanding.rephrase_prompt"},
    "description": COMMON | ASKED | {"ground_truth", "Rule_Understanding.rephrase_prompt"},
    "instance": COMMON | ASKED,  # and ground_truth, where there is one
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[RuleSet, Path, list[str]]:
    """The embedded rules, the folder that they were written to, and what had no place there."""
    rules, folder = load_rules(), tmp_path_factory.mktemp("export") / "new" / "rules"
    return rules, folder, write_ruleedit(rules, folder)


def read_json(folder: Path, number: int, name: str) -> Any:
    return json.loads((folder / str(number) / name).read_text(encoding="utf-8"))


def test_exported_rules_load_equal_without_repair(
    exported: tuple[RuleSet, Path, list[str]],
) -> None:
    rules, folder, _ = exported
    reading = read_ruleedit(folder, strict=True)
    assert reading.refused == reading.repairs == []
    assert [rule.id for rule in reading.rules] == [
        f"ruleedit-{number}" for number in range(len(rules))
    ]
    for ours, theirs in zip(rules, reading.rules, strict=True):
        assert (theirs.name, theirs.subject) == (ours.name, ours.subject)
        for form in FORMS:
            a, b = ours.forms[form], theirs.forms[form]
            assert (b.prompt, b.subject, b.target_new, b.target_true) == (
                a.prompt,
                a.subject,
                a.target_new,
                a.target_true,
            )
            assert b.rephrasings == a.rephrasings[:1] and b.target_true_source == "dataset"
            assert [(p.prompt, p.target_new) for p in b.instances] == [
                (p.prompt, p.target_new) for p in a.instances
            ]
            assert [(p.prompt, p.answer) for p in b.neighborhood] == [
                (p.prompt, p.answer) for p in a.neighborhood
            ]
            assert [(p.prompt, p.answer) for p in b.distracting] == [
                (p.prompt, p.answer) for p in a.distracting
            ]
            # What is asked is asked by us too, with the same answers, and the others are asked for.
            known = {(p.prompt, p.target_new, p.target_true[0], p.wording) for p in a.understanding}
            asked = {(p.prompt, p.target_new, p.target_true[0], p.wording) for p in b.understanding}
            assert len(asked) == 2 and asked <= known
            wanted = set(FORMS[:2]) - {form}
            assert {p.target_new for p in b.understanding} == {
                ours.forms[other].target_new for other in wanted
            }


def test_exported_records_have_the_keys_that_drivers_read(
    exported: tuple[RuleSet, Path, list[str]],
) -> None:
    rules, folder, _ = exported
    for number in range(len(rules)):
        formula, description = read_json(folder, number, "f_d.json")
        (instance,) = read_json(folder, number, "ins.json")
        records = {"formula": formula, "description": description, "instance": instance}
        assert {form: set(paths(r)) - {"ground_truth"} for form, r in records.items()} == {
            form: keys - {"ground_truth"} for form, keys in KEYS.items()
        }
        assert all(r["case_id"] == number and r["ground_truth"] for r in records.values())
        assert isinstance(instance["Rule_Understanding"]["prompt"], list)
        assert isinstance(formula["Rule_Understanding"]["prompt"], str)
    assert {path.name for path in folder.iterdir()} == {str(number) for number in range(len(rules))}
    assert {path.name for path in (folder / "0").iterdir()} == {"f_d.json", "ins.json"}


def types(node: Any) -> Any:
    """A record with its values replaced by their types; a list by the types in it."""
    if isinstance(node, dict):
        return {key: types(value) for key, value in node.items()}
    return (
        [type(node).__name__, *sorted({type(item).__name__ for item in node})]
        if isinstance(node, list)
        else type(node)
    )


def test_exported_records_are_shaped_like_the_published_ones(
    exported: tuple[RuleSet, Path, list[str]],
) -> None:
    if not ARCHIVE.is_file():
        pytest.skip("the RuleEdit archive is not beside this repository")
    _, folder, _ = exported
    ours = [*read_json(folder, 0, "f_d.json"), *read_json(folder, 0, "ins.json")]
    for mine, (form, theirs) in zip(ours, raw_records("0"), strict=True):
        assert set(paths(theirs)) == KEYS[form]
        assert types({key: value for key, value in mine.items() if key in theirs}) == types(theirs)
        assert set(mine) - set(theirs) <= {"ground_truth"}


def test_export_says_what_has_no_place(exported: tuple[RuleSet, Path, list[str]]) -> None:
    rules, _, lost = exported
    forms = [form for rule in rules for form in rule.forms.values()]
    assert lost == [
        (
            "rephrasings beyond the first:"
            f" {sum(len(form.rephrasings) for form in forms) - 3 * len(rules)}"
        ),
        (
            "understanding items of other wordings or forms:"
            f" {sum(len(f.understanding) for f in forms) - 6 * len(rules)}"
        ),
        f"twins: {sum(len(form.twins) for form in forms)}",
        f"expressions: {len(rules)}",
        f"splits: {len(rules)}",
    ]


def test_ruleedit_rules_are_written_as_they_were(tmp_path: Path) -> None:
    files = made_up(0)
    # The data name both forms in the instance's understanding; one of them in other words is not
    # kept.
    files["ins.json"][0]["Rule_Understanding"]["prompt"][1] = files["f_d.json"][1]["prompt"]
    rules = read_ruleedit(write_folder(tmp_path / "data", {"0": files})).rules
    assert write_ruleedit(rules, tmp_path / "again") == []
    close = {
        form: each.model_copy(update={"space": False}) for form, each in rules[0].forms.items()
    }
    named = rules[0].model_copy(update={"words": ("side",), "forms": close})
    lost = write_ruleedit([named, *list(rules)[1:]], tmp_path / "named")
    assert lost == ["words that name a rule: 1", "said spaces before answers: 3"]
    for name, records in files.items():
        again = read_json(tmp_path / "again", 0, name)
        assert [
            {**record, "ground_truth": record.get("ground_truth", [])} for record in records
        ] == again
    assert read_ruleedit(tmp_path / "again").rules == rules


def test_export_into_a_folder_with_data_is_refused(
    tmp_path: Path, exported: tuple[RuleSet, Path, list[str]]
) -> None:
    rules = exported[0].rules[:1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(RuleError, match=r"mine is not empty; give a new folder"):
        write_ruleedit(rules, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    (tmp_path / "empty").mkdir()
    write_ruleedit(rules, tmp_path / "empty")
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["0"]
    with pytest.raises(RuleError, match="is not empty"):
        write_ruleedit(rules, tmp_path / "empty")


def without_form(rule: Rule, *forms: str) -> Rule:
    return rule.model_copy(
        update={"forms": {f: prompt for f, prompt in rule.forms.items() if f not in forms}}
    )


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            lambda r: without_form(r, "instance"),
            "has no instance; a RuleEdit folder needs all three forms",
        ),
        (
            lambda r: without_form(r, "formula", "description"),
            "has no formula and no description; a RuleEdit folder",
        ),
        (
            lambda r: with_form(r, "description", rephrasings=()),
            "description lacks rephrasings, instances or locality",
        ),
        (
            lambda r: with_form(r, "formula", instances=()),
            "formula lacks rephrasings, instances or locality",
        ),
        (
            lambda r: with_form(r, "instance", distracting=()),
            "instance lacks rephrasings, instances or locality",
        ),
        (lambda r: with_form(r, "formula", target_true=()), "formula has no true answer"),
    ],
    ids=["a form", "two forms", "rephrasings", "instances", "locality", "truth"],
)
def test_export_of_a_rule_that_lacks_something_writes_nothing(
    tmp_path: Path,
    exported: tuple[RuleSet, Path, list[str]],
    broken: Callable[[Rule], Rule],
    message: str,
) -> None:
    first, second = exported[0].rules[:2]
    with pytest.raises(RuleError, match=re.escape(f"{second.id} {message}")):
        write_ruleedit([first, broken(copy.deepcopy(second))], tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_export_takes_the_forms_by_name_and_not_by_their_order(
    tmp_path: Path, exported: tuple[RuleSet, Path, list[str]]
) -> None:
    rules, folder, _ = exported
    turned = rules.rules[0].model_copy(
        update={"forms": dict(reversed(rules.rules[0].forms.items()))}
    )
    write_ruleedit([turned], tmp_path / "turned")
    for name in ("f_d.json", "ins.json"):
        assert read_json(tmp_path / "turned", 0, name) == read_json(folder, 0, name)
