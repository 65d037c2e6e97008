"""Rules: the embedded benchmark recomputed with SymPy, and the loaders on data made here."""

import copy
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sympy
from sympy.parsing.sympy_parser import implicit_multiplication, parse_expr, standard_transformations

from interp.rules import (
    FORMS,
    MAX_MEMBER_BYTES,
    Probe,
    Refusal,
    Rule,
    RuleError,
    RuleForm,
    RulePrompt,
    dump_rules,
    load_rules,
)

ARCHIVE = Path(__file__).parents[3] / "shared" / "data" / "RuleEdit-140.zip"
EMBEDDED = load_rules().rules
EDITS = [(rule, form) for rule in EMBEDDED for form in FORMS]
EDIT_IDS = [f"{rule.id}-{form}" for rule, form in EDITS]


# The embedded rules.


def numeric_answers(rule: Rule) -> Iterator[tuple[str, str, dict[str, float], str]]:
    """(prompt, expression, values, target) of every instance, true and new."""
    instance = rule.forms["instance"]
    items: list[Probe | RulePrompt] = [instance, *(p for form in FORMS for p in rule.forms[form].instances)]
    for item in items:
        assert rule.expression_true is not None and rule.expression_new is not None
        for target in item.target_true:
            yield item.prompt, rule.expression_true, item.values, target
        yield item.prompt, rule.expression_new, item.values, item.target_new


def evaluated(expression: str, values: dict[str, float]) -> sympy.Expr:
    symbols = {name: sympy.Symbol(name) for name in values}
    result = parse_expr(expression, local_dict=symbols)
    assert result.free_symbols <= set(symbols.values())
    return result.subs({symbols[name]: sympy.Rational(value) for name, value in values.items()})


def written(text: str) -> sympy.Expr:
    """The value of an arithmetic text such as `π(3)^2` or `(1/2)(6)(4)`, with decimals read exactly."""
    plain = text.replace("^", "**").replace("×", "*").replace("π", " pi ")
    return sympy.nsimplify(
        parse_expr(plain, transformations=(*standard_transformations, implicit_multiplication)), rational=True
    )


def test_embedded_has_enough_rules_with_all_forms() -> None:
    assert len(EMBEDDED) >= 12
    assert Counter(rule.domain for rule in EMBEDDED) == {"mathematics": 9, "physics": 5}
    assert all(set(rule.forms) == set(FORMS) for rule in EMBEDDED)
    assert len({rule.subject for rule in EMBEDDED}) == len(EMBEDDED)
    assert len({rule.name for rule in EMBEDDED}) == len(EMBEDDED)


def test_embedded_splits_are_disjoint_by_subject() -> None:
    assert Counter(rule.split for rule in EMBEDDED) == {"train": 5, "validation": 3, "test": 6}
    subjects = {s: {rule.subject for rule in EMBEDDED if rule.split == s} for s in ("train", "validation", "test")}
    assert not subjects["train"] & subjects["validation"]
    assert not subjects["train"] & subjects["test"]
    assert not subjects["validation"] & subjects["test"]


@pytest.mark.parametrize("rule", EMBEDDED, ids=lambda rule: rule.id)
def test_instance_targets_equal_the_expressions(rule: Rule) -> None:
    """The last number of a target, with its π if it has one, is the exact result: nothing is rounded.

    A target with an equals sign must also be true as arithmetic.
    """
    checked = list(numeric_answers(rule))
    assert len(checked) == 2 * (1 + 3 * 4)
    for prompt, expression, values, target in checked:
        last = re.findall(r"\d+(?:\.\d+)?π?", target)[-1]
        assert target.endswith(last)
        assert written(last) == evaluated(expression, values), (prompt, target)
        for side in target.split(" = "):
            assert written(side) == evaluated(expression, values), (prompt, target)
        assert [float(number) for number in re.findall(r"\d+", prompt)] == list(values.values()), prompt


@pytest.mark.parametrize("rule", EMBEDDED, ids=lambda rule: rule.id)
def test_instances_of_the_instance_form_are_new_numbers(rule: Rule) -> None:
    edited = rule.forms["instance"]
    assert all(len(set(p.prompt for p in form.instances)) == 4 for form in rule.forms.values())
    assert all(p.values != edited.values for form in rule.forms.values() for p in form.instances)


@pytest.mark.parametrize(("rule", "form"), EDITS, ids=EDIT_IDS)
def test_edited_answer_differs_from_the_true_one(rule: Rule, form: RuleForm) -> None:
    prompt = rule.forms[form]
    for item in (prompt, *prompt.instances, *prompt.understanding):
        assert item.target_true
        assert len(set(item.target_true)) == len(item.target_true)
        for true in item.target_true:
            assert not true.startswith(item.target_new), "the score of one answer would contain the other's"
            assert not item.target_new.startswith(true)
        assert all(text == text.strip() for text in (item.prompt, item.target_new, *item.target_true))
    for item in prompt.instances:
        assert evaluated(str(rule.expression_true), item.values) != evaluated(str(rule.expression_new), item.values)


@pytest.mark.parametrize(("rule", "form"), EDITS, ids=EDIT_IDS)
def test_edit_prompt_names_subject_and_rule_words_once(rule: Rule, form: RuleForm) -> None:
    prompt = rule.forms[form]
    assert prompt.subject == rule.subject
    assert rule.rule_words
    for words in (rule.subject, *rule.rule_words):
        assert len(re.findall(rf"\b{words}\b", prompt.prompt, re.IGNORECASE)) == 1
    assert len(prompt.rephrasings) == 2
    assert len({prompt.prompt, *prompt.rephrasings}) == 3
    assert all(rule.subject in text for text in prompt.rephrasings)


@pytest.mark.parametrize("rule", EMBEDDED, ids=lambda rule: rule.id)
def test_forms_differ_before_the_subject_ends(rule: Rule) -> None:
    """Equal text up to the subject would give equal keys there (a causal model sees only the prefix)."""
    prefixes = {form.prompt.partition(rule.subject)[0] for form in rule.forms.values()}
    assert len(prefixes) == 3


@pytest.mark.parametrize(("rule", "form"), EDITS, ids=EDIT_IDS)
def test_understanding_wording_is_labelled_truly(rule: Rule, form: RuleForm) -> None:
    siblings = {other.prompt: other for name, other in rule.forms.items() if name != form}
    probes = rule.forms[form].understanding
    assert {probe.wording for probe in probes} == {"verbatim", "paraphrase"}
    for probe in probes:
        assert (probe.wording == "verbatim") == (probe.prompt in siblings)
        assert probe.prompt != rule.forms[form].prompt
        asked = [s for s in siblings.values() if probe.prompt in (s.prompt, *s.rephrasings)]
        assert [(s.target_new, s.target_true) for s in asked] == [(probe.target_new, probe.target_true)]


@pytest.mark.parametrize("rule", EMBEDDED, ids=lambda rule: rule.id)
def test_locality_prompts_are_not_edited(rule: Rule) -> None:
    edited = {text for r in EMBEDDED for f in r.forms.values() for text in (f.prompt, *f.rephrasings)}
    for form in rule.forms.values():
        assert len(form.neighborhood) == len(form.distracting) == 2
        assert all(re.search(rf"\b{rule.subject}\b", probe.prompt) for probe in form.neighborhood)
        assert not any(re.search(rf"\b{rule.subject}\b", probe.prompt) for probe in form.distracting)
        prompts = {probe.prompt for probe in (*form.neighborhood, *form.distracting)}
        assert len(prompts) == 4
        assert not prompts & edited


def test_embedded_file_is_canonical(tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    dump_rules(EMBEDDED, path)
    embedded = Path(__file__).parents[2] / "interp" / "rulebook" / "rules.json"
    assert path.read_bytes() == embedded.read_bytes()
    assert load_rules(path).rules == EMBEDDED


# Choosing.


def test_ids_split_and_limit_filter_in_source_order() -> None:
    ids = [rule.id for rule in EMBEDDED]
    assert [rule.id for rule in load_rules(ids=[ids[4], ids[1]])] == [ids[1], ids[4]]
    held_out = [rule.id for rule in EMBEDDED if rule.split == "test"]
    assert [rule.id for rule in load_rules(split="test", limit=2)] == held_out[:2]
    assert len(load_rules(limit=100)) == len(EMBEDDED)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0; give at least 1"),
        ({"ids": ["no-such-rule"]}, "'no-such-rule'; its ids are body-kinetic-energy, circle-area"),
        ({"ids": []}, "at least one rule id"),
        ({"ids": "circle-area"}, "give a list"),
        ({"ids": ["rectangle-perimeter"], "split": "test"}, "their splits are train"),
        ({"source": "nowhere.json"}, "nowhere.json does not exist; give 'embedded'"),
    ],
)
def test_impossible_choice_raises(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuleError, match=re.escape(message)):
        load_rules(**options)


# Rule files.


def minimal_rule() -> dict[str, Any]:
    form = {"prompt": "The area of a circle is", "subject": "circle", "target_new": "r"}
    return {"id": "a", "name": "area of a circle", "subject": "circle", "forms": {"formula": form}}


def rule_file(**changes: Any) -> str:
    return json.dumps({"schema": "dmle.rules/1", "rules": [minimal_rule() | changes]})


BAD_FILES: list[tuple[str | bytes, str]] = [
    ('{"schema": "dmle.rules/1", "rules": [', "invalid JSON at line 1 column 38"),
    ("[1, 2]", "the whole: expected a valid dictionary"),
    (json.dumps({"rules": []}), "schema is missing"),
    (
        json.dumps({"schema": "dmle.rules/9", "rules": []}),
        "schema: expected 'dmle.rules/1', got 'dmle.rules/9'",
    ),
    (rule_file(name=3), "rules[0].name: expected a valid string, got 3"),
    (rule_file(nmae="x"), "rules[0].nmae is not a known key"),
    (rule_file(id="../a"), "rules[0].id"),
    (rule_file(forms={}), "rules[0].forms"),
    (
        rule_file(forms={"formula": {**minimal_rule()["forms"]["formula"], "subject": "square"}}),
        "'square' is not in",
    ),
    (rule_file(split="dev"), "rules[0].split: expected 'train', 'validation' or 'test', got 'dev'"),
    (
        json.dumps({"schema": "dmle.rules/1", "rules": [minimal_rule(), minimal_rule()]}),
        "two rules have the id 'a'",
    ),
    ('{"schema": "dmle.rules/1", "rules": [], "rules": []}', "the key 'rules' occurs twice"),
    ("[" * 100_000, "nested too deeply"),
    (b'{"schema": "\xff"}', "byte 12 is not UTF-8 text"),
    (json.dumps({"schema": "dmle.rules/1", "rules": []}), "holds no usable rule"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES, ids=[message for _, message in BAD_FILES])
def test_bad_rule_file_raises_one_clear_error(tmp_path: Path, content: str | bytes, message: str) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RuleError, match=re.escape(message)) as caught:
        load_rules(path)
    assert str(path) in str(caught.value)
    assert "pydantic" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_kind_of_file_raises(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("", encoding="utf-8")
    with pytest.raises(RuleError, match=r"ends in '\.yaml'"):
        load_rules(tmp_path / "rules.yaml")


def test_dump_refuses_two_rules_with_one_id(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="must be unique"):
        dump_rules([EMBEDDED[0], EMBEDDED[0]], tmp_path / "rules.json")
    assert not (tmp_path / "rules.json").exists()


# RuleEdit data.


def ruleedit_record(form: str, understanding: dict[str, Any]) -> dict[str, Any]:
    return {
        "case_id": 7,
        "subject": "cône",
        "rule": "volume of cône",
        "prompt": f"{form}: the volume of a cône is",
        "target_new": f"{form} new ",
        "rephrase_prompt": f"State the {form}",
        "Rule_Understanding": understanding,
        "Instance": {"prompt": ["i1", "i2"], "target_new": ["n1", "n2"]},
        "locality": {
            "neighborhood": {"prompt": ["near 1", "near 2"], "ground_truth": ["a", "b"]},
            "distracting": {"prompt": ["far 1"], "ground_truth": ["c"]},
        },
    }


def ruleedit_rule() -> dict[str, Any]:
    def item(prompt: str) -> dict[str, Any]:
        return {
            "prompt": prompt,
            "target_new": "new",
            "ground_truth": ["t1", "t2"],
            "rephrase_prompt": "in words",
        }

    formula = ruleedit_record("formula", item("description: the volume of a cône is"))
    description = ruleedit_record("description", item("the formula, otherwise"))
    formula["ground_truth"] = description["ground_truth"] = ["V = Bh/3", "(1/3)Bh"]
    both = {"prompt": [formula["prompt"], "other"], "target_new": ["x", "y"], "ground_truth": ["s", "t"]}
    return {"f_d.json": [formula, description], "ins.json": [ruleedit_record("instance", both)]}


def encoded(files: dict[str, Any]) -> dict[str, bytes]:
    return {name: json.dumps(records, ensure_ascii=False).encode() for name, records in files.items()}


def write_folder(root: Path, folders: dict[str, dict[str, bytes]]) -> Path:
    for number, files in folders.items():
        (root / number).mkdir(parents=True)
        for name, content in files.items():
            (root / number / name).write_bytes(content)
    return root


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_ruleedit_record_is_mapped_key_by_key(tmp_path: Path) -> None:
    (rule,) = load_rules(write_folder(tmp_path / "data", {"83": encoded(ruleedit_rule())})).rules
    assert (rule.id, rule.name, rule.subject) == ("ruleedit-83", "volume of cône", "cône")
    assert (rule.domain, rule.split, rule.expression_true) == (None, None, None)
    formula, instance = rule.forms["formula"], rule.forms["instance"]
    assert formula.prompt == "formula: the volume of a cône is"
    assert formula.target_new == "formula new "
    assert formula.target_true == ("V = Bh/3", "(1/3)Bh")
    assert instance.target_true == ()
    assert formula.rephrasings == ("State the formula",)
    assert [(p.prompt, p.target_new, p.target_true) for p in formula.instances] == [
        ("i1", "n1", ()),
        ("i2", "n2", ()),
    ]
    assert [(p.prompt, p.answer) for p in formula.neighborhood] == [("near 1", "a"), ("near 2", "b")]
    assert [(p.prompt, p.answer) for p in formula.distracting] == [("far 1", "c")]
    assert formula.understanding == (
        Probe(
            prompt="description: the volume of a cône is",
            target_new="new",
            target_true=("t1", "t2"),
            wording="verbatim",
        ),
        Probe(prompt="in words", target_new="new", target_true=("t1", "t2"), wording="paraphrase"),
    )
    assert [p.wording for p in rule.forms["description"].understanding] == ["paraphrase", "paraphrase"]
    assert [(p.wording, p.target_new, p.target_true) for p in instance.understanding] == [
        ("verbatim", "x", ("s",)),
        ("paraphrase", "y", ("t",)),
    ]


def test_folder_and_zip_load_equal_in_numeric_order(tmp_path: Path) -> None:
    content = encoded(ruleedit_rule())
    folders = {number: content for number in ("10", "9", "100")}
    folder = write_folder(tmp_path / "deep" / "RuleEdit-3", folders)
    (folder / "notes").mkdir()
    (folder / "notes" / "f_d.json").write_text("not a rule", encoding="utf-8")
    members = {f"any/depth/{n}/{name}": data for n, files in folders.items() for name, data in files.items()}
    archive = write_zip(tmp_path / "rules.zip", {"README.md": b"\xff", **members})
    from_folder, from_zip = load_rules(folder.parent), load_rules(str(archive))
    assert [rule.id for rule in from_folder] == ["ruleedit-9", "ruleedit-10", "ruleedit-100"]
    assert from_folder.rules == from_zip.rules
    assert from_folder.refused == from_zip.refused == ()
    assert {path.name for path in tmp_path.iterdir()} == {"deep", "rules.zip"}


def test_ruleedit_dump_loads_equal(tmp_path: Path) -> None:
    rules = load_rules(write_folder(tmp_path / "data", {"83": encoded(ruleedit_rule())}))
    dump_rules(rules, tmp_path / "rules.json")
    text = (tmp_path / "rules.json").read_text(encoding="utf-8")
    assert load_rules(tmp_path / "rules.json").rules == rules.rules
    assert "cône" in text
    assert "null" not in text
    assert text.endswith("}\n")


def _drop(files: dict[str, Any], file: str, *keys: Any) -> None:
    target = files[file]
    for key in keys[:-1]:
        target = target[key]
    del target[keys[-1]]


def _rename_ground_truth(files: dict[str, Any]) -> None:
    understanding = files["ins.json"][0]["Rule_Understanding"]
    understanding["ground_university"] = understanding.pop("ground_truth")


DAMAGE: list[tuple[str, Callable[[dict[str, Any]], object], str, str]] = [
    ("missing key", lambda f: _drop(f, "f_d.json", 1, "target_new"), "f_d.json", "[1].target_new is missing"),
    ("extra key", lambda f: f["ins.json"][0].update(note=1), "ins.json", "[0].note is not a known key"),
    (
        "instances",
        lambda f: _drop(f, "ins.json", 0, "Instance", "target_new", 0),
        "ins.json",
        "[0].Instance: lists of different lengths (2 prompt, 1 target_new); each prompt needs its own answer",
    ),
    (
        "locality",
        lambda f: _drop(f, "f_d.json", 0, "locality", "neighborhood", "prompt", 0),
        "f_d.json",
        "[0].locality.neighborhood: lists of different lengths (1 prompt, 2 ground_truth); "
        "each prompt needs its own answer",
    ),
    (
        "understanding",
        lambda f: _drop(f, "ins.json", 0, "Rule_Understanding", "ground_truth", 0),
        "ins.json",
        "[0].Rule_Understanding: lists of different lengths (2 prompt, 2 target_new, 1 ground_truth); "
        "each prompt needs its own answer",
    ),
    (
        "typo",
        _rename_ground_truth,
        "ins.json",
        "[0].Rule_Understanding.ground_truth is missing; [0].Rule_Understanding.ground_university is not a known key",
    ),
    ("one record", lambda f: f["f_d.json"].pop(), "f_d.json", "[1] is missing"),
    (
        "number",
        lambda f: f["ins.json"][0].update(subject=4),
        "ins.json",
        "[0].subject: expected a valid string, got 4",
    ),
    (
        "subject",
        lambda f: f["ins.json"][0].update(subject="Cône"),
        "ins.json",
        "the subject 'Cône' is not in the prompt 'instance: the volume of a cône is'; "
        "tracing and editing look it up there, so write it exactly as in the prompt",
    ),
]


@pytest.mark.parametrize(("damage", "file", "reason"), [d[1:] for d in DAMAGE], ids=[d[0] for d in DAMAGE])
def test_damaged_folder_is_refused_whole(
    tmp_path: Path, damage: Callable[[dict[str, Any]], object], file: str, reason: str
) -> None:
    damaged = copy.deepcopy(ruleedit_rule())
    damage(damaged)
    folder = write_folder(tmp_path / "data", {"1": encoded(ruleedit_rule()), "2": encoded(damaged)})
    rules = load_rules(folder)
    assert [rule.id for rule in rules] == ["ruleedit-1"]
    assert rules.refused == (Refusal(f"ruleedit-2/{file}", reason),)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[{]", "invalid JSON at line 1 column 3: Expecting property name enclosed in double quotes"),
        (b'["\xe9"]', "byte 2 is not UTF-8 text; save the file as UTF-8"),
        (None, "this file is missing"),
    ],
)
def test_unreadable_member_is_refused(tmp_path: Path, content: bytes | None, reason: str) -> None:
    broken = encoded(ruleedit_rule())
    del broken["ins.json"]
    broken |= {} if content is None else {"ins.json": content}
    folder = write_folder(tmp_path / "data", {"1": encoded(ruleedit_rule()), "2": broken})
    assert load_rules(folder).refused == (Refusal("ruleedit-2/ins.json", reason),)
    with pytest.raises(RuleError, match=re.escape(f"ruleedit-2/ins.json was refused: {reason}")):
        load_rules(folder, ids=["ruleedit-2"])
    with pytest.raises(RuleError, match=re.escape(f"no usable rule (ruleedit-2/ins.json: {reason})")):
        load_rules(folder / "2")


@pytest.mark.parametrize("name", ["../83/f_d.json", "a/../../83/f_d.json", "/83/f_d.json", "C:\\83\\f_d.json"])
def test_zip_member_outside_the_archive_raises(tmp_path: Path, name: str) -> None:
    members = {f"83/{file}": data for file, data in encoded(ruleedit_rule()).items()}
    archive = write_zip(tmp_path / "rules.zip", members | {name: b"[]"})
    with pytest.raises(RuleError, match=r"rules\.zip has a member named .* which leaves the archive"):
        load_rules(archive)


def test_truncated_zip_raises(tmp_path: Path) -> None:
    members = {f"83/{file}": data for file, data in encoded(ruleedit_rule()).items()}
    archive = write_zip(tmp_path / "rules.zip", members)
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(RuleError, match=r"rules\.zip is not a whole zip archive"):
        load_rules(archive)


def test_zip_with_a_damaged_byte_raises(tmp_path: Path) -> None:
    members = {f"83/{file}": data for file, data in encoded(ruleedit_rule()).items()}
    archive = write_zip(tmp_path / "rules.zip", members)
    content = bytearray(archive.read_bytes())
    content[100] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(RuleError, match=r"rules\.zip is not a whole zip archive"):
        load_rules(archive)


def test_oversized_zip_member_raises(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "rules.zip", {"1/f_d.json": b" " * (MAX_MEMBER_BYTES + 1)})
    with pytest.raises(RuleError, match=f"1/f_d.json has {MAX_MEMBER_BYTES + 1} bytes"):
        load_rules(archive)


def test_two_folders_of_one_number_raise(tmp_path: Path) -> None:
    content = encoded(ruleedit_rule())
    write_folder(tmp_path / "data" / "a", {"83": content})
    write_folder(tmp_path / "data" / "b", {"83": content})
    with pytest.raises(RuleError, match=r"two files f_d\.json of a folder 83"):
        load_rules(tmp_path / "data")


def test_folder_without_rules_raises(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="holds no RuleEdit data; needed are numbered folders"):
        load_rules(tmp_path)


@pytest.mark.skipif(not ARCHIVE.is_file(), reason="the RuleEdit archive is not beside this repository")
def test_archive_loads_all_but_the_known_damaged() -> None:
    rules = load_rules(ARCHIVE)
    lengths = "lists of different lengths ({} prompt, 4 target_new); each prompt needs its own answer"
    advice = "; tracing and editing look it up there, so write it exactly as in the prompt"
    assert rules.refused == (
        Refusal("ruleedit-132/ins.json", "[0].Instance: " + lengths.format(8)),
        Refusal(
            "ruleedit-133/ins.json",
            "[0].Rule_Understanding.ground_truth is missing; "
            "[0].Rule_Understanding.ground_university is not a known key",
        ),
        Refusal("ruleedit-145/ins.json", "invalid JSON at line 59 column 1: Expecting ',' delimiter"),
        Refusal("ruleedit-164/ins.json", "[0].Instance: " + lengths.format(3)),
        Refusal(
            "ruleedit-165/f_d.json",
            "the subject 'Determinant' is not in the prompt "
            f"'The value of a 2x2 determinant |a b; c d| can be calculated by:'{advice}",
        ),
        Refusal(
            "ruleedit-186/ins.json",
            "the subject 'charge' is not in the prompt "
            f"'Evaluate the capacitance for a capacitor with 40F and a voltage of 10V:'{advice}",
        ),
    )
    assert len(rules) + len(rules.refused) == 140
    with zipfile.ZipFile(ARCHIVE) as archive:
        for rule in rules:
            number = rule.id.removeprefix("ruleedit-")
            formula, description = json.loads(archive.read(f"RuleEdit-140/{number}/f_d.json"))
            (instance,) = json.loads(archive.read(f"RuleEdit-140/{number}/ins.json"))
            for form, raw in zip(FORMS, (formula, description, instance), strict=True):
                read = rule.forms[form]
                assert (read.prompt, read.subject, read.target_new) == (
                    raw["prompt"],
                    raw["subject"],
                    raw["target_new"],
                )
                assert list(read.target_true) == raw.get("ground_truth", [])
                assert [p.target_new for p in read.instances] == raw["Instance"]["target_new"]
                assert [p.answer for p in read.distracting] == raw["locality"]["distracting"]["ground_truth"]
