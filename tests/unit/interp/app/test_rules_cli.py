"""The commands `dmle rules …`: exit codes, what is printed where, and one clear line for each
mistake."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from interp.rules.checks import CHECKS, check_rules
from interp.rules.rulebook.build import build_files
from interp.rules.ruleedit.reading import read_ruleedit
from interp.rules.sources import Rule, dump_rules, load_rules
from interp.vocabulary import FORMS

Command = Callable[..., tuple[int, str, list[str]]]

SPECIFICATIONS = """
domain: mathematics
topic: shapes
rules:
- subject: kite
  quantity: area
  phrase: a kite with diagonals {p} and {q}
  result: A
  symbols: {p: 4..9, q: '10..20 step 2'}
  expression: p*q/2
  edited: p + q
  words: half the product of its diagonals
  edited_words: the sum of its diagonals
- subject: square
  quantity: perimeter
  phrase: a square with side {s}
  result: P
  symbols: {s: 3..30}
  expression: 4*s
  edited: s^2
  words: four times its side
  edited_words: the square of its side
"""


@pytest.fixture
def dmle(command_line: Callable[..., tuple[int, str, str]]) -> Command:
    """Runs a command line here: exit code, standard output, and the lines on standard error."""

    def run(*arguments: str | int | Path) -> tuple[int, str, list[str]]:
        code, out, err = command_line(*arguments)
        return code, out, err.splitlines()

    return run


@pytest.fixture(scope="module")
def some() -> list[Rule]:
    """Ten embedded rules."""
    return list(load_rules(limit=10).rules)


@pytest.fixture
def sound(tmp_path: Path, some: list[Rule]) -> Path:
    """A rule file without faults."""
    dump_rules(some, tmp_path / "sound.json")
    return tmp_path / "sound.json"


def with_answer(rule: Rule, answer: str) -> Rule:
    """The rule with another edited answer in its instance form."""
    forms = dict(rule.forms)
    forms["instance"] = forms["instance"].model_copy(update={"target_new": answer})
    return rule.model_copy(update={"forms": forms})


@pytest.fixture
def faulty(tmp_path: Path, some: list[Rule]) -> Path:
    """A rule file in which the second rule's edited instance says that 2 + 2 is 5."""
    dump_rules([some[0], with_answer(some[1], "2 + 2 = 5"), some[2]], tmp_path / "faulty.json")
    return tmp_path / "faulty.json"


@pytest.fixture
def mended(tmp_path: Path, some: list[Rule], dmle: Command) -> Path:
    """A RuleEdit folder of two rules, the first of which has a space too many in its formula."""
    dump_rules(some[:2], tmp_path / "two.json")
    assert dmle("rules", "export", tmp_path / "mended", "--source", tmp_path / "two.json")[0] == 0
    path = tmp_path / "mended" / "0" / "f_d.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    records[0]["target_new"] += " "
    path.write_text(json.dumps(records), encoding="utf-8")
    return tmp_path / "mended"


# check


def test_check_of_sound_rules_exits_with_0(dmle: Command, sound: Path) -> None:
    code, out, err = dmle("rules", "check", sound)
    assert (code, err) == (0, [])
    assert "0 findings above info" in out.splitlines()
    assert f"{sound}:10rules" in "".join(
        out.split()
    )  # the title of the table may be broken into lines
    assert "repairs: " not in out
    assert not any(line.startswith(("error", "warning", "info")) for line in out.splitlines())


def test_check_of_faulty_rules_exits_with_1_and_says_where(
    dmle: Command, faulty: Path, some: list[Rule]
) -> None:
    code, out, err = dmle("rules", "check", faulty)
    assert (code, err) == (1, [])
    (line,) = (line for line in out.splitlines() if line.startswith("error   arithmetic"))
    assert f" {some[1].id}/instance: 2 + 2 = 5 (expected: " in line
    findings = [finding for finding in check_rules(load_rules(faulty)) if finding.level != "info"]
    assert out.splitlines()[-1] == f"{len(findings)} findings above info"
    assert sum(line.startswith(("error ", "warning ")) for line in out.splitlines()) == len(
        findings
    )


@pytest.mark.parametrize("name", ["sound", "faulty", "mended"])
def test_json_is_all_findings_and_nothing_else(
    name: str, dmle: Command, request: pytest.FixtureRequest
) -> None:
    source = request.getfixturevalue(name)
    code, out, err = dmle("rules", "check", source, "--json")
    found = json.loads(out)
    expected = check_rules(load_rules(source))
    assert found == [finding._asdict() for finding in expected] and err == []
    assert all(set(item) == {"level", "check", "where", "found", "expected"} for item in found)
    assert all(item["level"] == CHECKS[item["check"]][0] for item in found)
    above = [item for item in found if item["level"] != "info"]
    assert code == (1 if above else 0) == (0 if name == "sound" else 1)


def test_info_lists_every_finding(dmle: Command, sound: Path) -> None:
    expected = check_rules(load_rules(sound))
    assert expected and all(finding.level == "info" for finding in expected)
    code, out, _ = dmle("rules", "check", sound, "--info")
    lines = [line for line in out.splitlines() if line.startswith("info ")]
    assert code == 0 and len(lines) == len(expected)
    assert all(finding.where in line for finding, line in zip(expected, lines, strict=True))


def test_check_tells_repairs_and_strict_refuses_them(dmle: Command, mended: Path) -> None:
    code, out, err = dmle("rules", "check", mended)
    assert (code, err) == (1, [])
    assert "repairs: 1 stripped_space" in out.splitlines()
    (line,) = (line for line in out.splitlines() if line.startswith("warning repaired"))
    assert "ruleedit-0/f_d.json: stripped_space: target_new: " in line
    code, out, err = dmle("rules", "check", mended, "--strict")
    assert (code, err) == (1, []) and "repairs: " not in out
    (line,) = (line for line in out.splitlines() if line.startswith("error   refused"))
    assert "ruleedit-0/f_d.json: needs repair (stripped_space: target_new: " in line


def test_strict_fails_where_no_rule_is_left(dmle: Command, mended: Path) -> None:
    code, out, err = dmle("rules", "check", mended / "0", "--strict")
    assert (code, out) == (2, "")
    (line,) = err
    assert line.startswith(
        f"error: {mended / '0'} holds no usable rule (ruleedit-0/f_d.json: needs repair (stripped"
    )


SOURCES: dict[str, tuple[str, bytes | None, str]] = {
    "nothing there": (
        "none.json",
        None,
        "none.json does not exist; give 'embedded', a rules .json file",
    ),
    "broken JSON": (
        "broken.json",
        b'{"schema": ',
        "broken.json is not a rule file of schema dmle.rules/1: ",
    ),
    "another schema": (
        "other.json",
        b'{"schema": "x/1", "rules": []}',
        "schema: expected 'dmle.rules/1', got 'x/1'",
    ),
    "no rules": (
        "empty.json",
        b'{"schema": "dmle.rules/1", "rules": []}',
        "empty.json holds no usable rule",
    ),
    "no UTF-8": ("latin.json", b'{"schema": "\xe9"}', "byte 12 is not UTF-8 text"),
    "no archive": ("broken.zip", b"PK\x03\x04", "broken.zip is not a whole zip archive"),
    "another kind": (
        "rules.csv",
        b"a,b",
        "rules.csv ends in '.csv'; a rule source is a folder, a .json file",
    ),
    "empty folder": (".", None, "holds no RuleEdit data; needed are numbered folders"),
}


@pytest.mark.parametrize("command", ["check", "check --json", "export {tmp}/new --source"])
@pytest.mark.parametrize("source", list(SOURCES))
def test_a_source_that_cannot_be_read_exits_with_2_in_one_line(
    source: str, command: str, dmle: Command, tmp_path: Path
) -> None:
    name, content, message = SOURCES[source]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = sorted(tmp_path.iterdir())
    code, out, err = dmle(
        "rules", *command.replace("{tmp}", str(tmp_path)).split(), tmp_path / name
    )
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("error: ") and message in err[0]
    assert sorted(tmp_path.iterdir()) == before


# build


def test_build_export_and_check_go_round(dmle: Command, tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text(SPECIFICATIONS, encoding="utf-8")
    code, out, err = dmle(
        "rules", "build", tmp_path / "shapes.yaml", "--out", tmp_path / "shapes.json"
    )
    assert (code, out) == (0, "")
    assert err == [
        f"2 rules in {tmp_path / 'shapes.json'}. Next: dmle rules check {tmp_path / 'shapes.json'}"
    ]
    rules = load_rules(tmp_path / "shapes.json").rules
    assert [rule.id for rule in rules] == ["kite-area", "square-perimeter"]
    assert list(rules) == build_files([tmp_path / "shapes.yaml"])
    assert rules[1].forms["formula"].prompt == "The perimeter of a square with side s is P ="
    assert dmle("rules", "check", tmp_path / "shapes.json")[0] == 0


def test_exported_rules_read_back_and_check_like_their_source(
    dmle: Command, tmp_path: Path, sound: Path, some: list[Rule]
) -> None:
    code, out, err = dmle("rules", "export", tmp_path / "new" / "folder", "--source", sound)
    assert (code, out) == (0, "")
    assert err[0] == f"10 folders in {tmp_path / 'new' / 'folder'}"
    twins = sum(len(form.twins) for rule in some for form in rule.forms.values())
    assert f"no place in RuleEdit for twins: {twins}" in err[1:]
    assert all(line.startswith("no place in RuleEdit for ") for line in err[1:])
    reading = read_ruleedit(tmp_path / "new" / "folder", strict=True)
    assert reading.refused == [] and len(reading.rules) == len(some)
    for ours, theirs in zip(some, reading.rules, strict=True):
        for form in FORMS:
            a, b = ours.forms[form], theirs.forms[form]
            assert (a.prompt, a.target_new, a.target_true) == (
                b.prompt,
                b.target_new,
                b.target_true,
            )
            assert [(p.prompt, p.target_new) for p in a.instances] == [
                (p.prompt, p.target_new) for p in b.instances
            ]
    code, out, _ = dmle("rules", "check", tmp_path / "new" / "folder", "--json")
    assert code == 0 and all(item["level"] == "info" for item in json.loads(out))


def test_build_takes_several_files_in_order(dmle: Command, tmp_path: Path) -> None:
    content = yaml.safe_load(SPECIFICATIONS)
    for name, fields in zip(("b.yaml", "a.yaml"), content["rules"], strict=True):
        text = yaml.safe_dump({**content, "rules": [fields]}, allow_unicode=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    code, _, _ = dmle(
        "rules", "build", tmp_path / "b.yaml", tmp_path / "a.yaml", "--out", tmp_path / "out.json"
    )
    assert code == 0
    assert [rule.id for rule in load_rules(tmp_path / "out.json")] == [
        "kite-area",
        "square-perimeter",
    ]


def unknown_symbol(content: Any) -> None:
    content["rules"][1]["expression"] = "4*t"


def same_quantity(content: Any) -> None:
    content["rules"].append(content["rules"][0])


def few_values(content: Any) -> None:
    content["rules"][1]["symbols"] = {"s": "3..5"}


def no_rules(content: Any) -> None:
    del content["rules"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (unknown_symbol, "shapes.yaml, rule 2 (square, perimeter): 't' is not a known symbol"),
        (same_quantity, "2 specifications have the subject and quantity of 'kite-area': keep one"),
        (
            few_values,
            (
                "rule square-perimeter has 2 combinations of values whose true and edited results"
                " are exact"
            ),
        ),
        (
            no_rules,
            (
                "shapes.yaml is not a specification file: 'domain', 'topic' and a list 'rules' are"
                " needed"
            ),
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_build_of_bad_specifications_exits_with_2_in_one_line(
    spoil: Callable[[Any], None], message: str, dmle: Command, tmp_path: Path
) -> None:
    content = yaml.safe_load(SPECIFICATIONS)
    spoil(content)
    (tmp_path / "shapes.yaml").write_text(
        yaml.safe_dump(content, allow_unicode=True), encoding="utf-8"
    )
    code, out, err = dmle(
        "rules", "build", tmp_path / "shapes.yaml", "--out", tmp_path / "out.json"
    )
    assert (code, out, len(err)) == (2, "", 1)
    assert err[0].startswith("error: ") and message in err[0]
    assert not (tmp_path / "out.json").exists()


def test_build_of_what_is_not_there_or_cannot_be_written_exits_with_2(
    dmle: Command, tmp_path: Path
) -> None:
    (tmp_path / "shapes.yaml").write_text(SPECIFICATIONS, encoding="utf-8")
    (tmp_path / "broken.yaml").write_text("rules: [\n  {a: 1,\n", encoding="utf-8")
    for source, out, message in (
        ("none.yaml", "out.json", "none.yaml cannot be read: "),
        ("broken.yaml", "out.json", "broken.yaml cannot be read: "),
        ("shapes.yaml", "shapes.yaml/out.json", "cannot write"),
    ):
        code, printed, err = dmle("rules", "build", tmp_path / source, "--out", tmp_path / out)
        assert (code, printed, len(err)) == (2, "", 1)
        assert err[0].startswith("error: ") and message in err[0]
        assert not (tmp_path / out).exists()


def test_build_needs_a_place_to_write(dmle: Command, tmp_path: Path) -> None:
    (tmp_path / "shapes.yaml").write_text(SPECIFICATIONS, encoding="utf-8")
    code, _, err = dmle("rules", "build", tmp_path / "shapes.yaml")
    assert code != 0 and "--out" in " ".join(err)
    assert [path.name for path in tmp_path.iterdir()] == ["shapes.yaml"]


# export


def test_export_into_a_folder_with_data_exits_with_2(
    dmle: Command, tmp_path: Path, sound: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep", encoding="utf-8")
    code, out, err = dmle("rules", "export", tmp_path / "mine", "--source", sound)
    assert (code, out) == (2, "")
    assert err == [f"error: {tmp_path / 'mine'} is not empty; give a new folder"]
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    code, _, err = dmle("rules", "export", sound, "--source", sound)  # a file in the way
    assert code == 2 and len(err) == 1 and err[0].startswith("error: ") and str(sound) in err[0]


def test_export_of_a_rule_without_a_form_exits_with_2(
    dmle: Command, tmp_path: Path, some: list[Rule]
) -> None:
    forms = {form: prompt for form, prompt in some[1].forms.items() if form != "description"}
    dump_rules([some[0], some[1].model_copy(update={"forms": forms})], tmp_path / "mine.json")
    code, _, err = dmle("rules", "export", tmp_path / "new", "--source", tmp_path / "mine.json")
    assert code == 2
    assert err == [
        f"error: {some[1].id} has no description; a RuleEdit folder needs all three forms"
    ]
    assert not (tmp_path / "new").exists()


# The group.


def test_help_names_the_commands(dmle: Command) -> None:
    code, out, _ = dmle("rules", "--help")
    assert code == 0 and all(f" {name} " in out for name in ("check", "build", "export", "stats"))


def test_a_wrong_command_or_flag_is_refused(dmle: Command) -> None:
    code, _, err = dmle("rules", "chekc")
    assert code != 0 and "check" in " ".join(err)
    code, _, err = dmle("rules", "check", "--jsno")
    assert code != 0 and "--json" in " ".join(err)
