"""The documentation builds without a warning, its generated pages are the code's, and what it shows
works.

Every `dmle` line of the README and of `docs/` is checked against the real command line; its
configuration is loaded and its settings are checked, also as the steps check them that need neither
a model nor files for that. Those of `RUN` are also run; the rest is not, for the reasons in
`ONLY_PARSED`.
"""

import inspect
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import reproduce

ROOT = Path(__file__).parents[2]
TOP = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = (("rules", "build"), ("rules", "check", "my_rules.json"))
"""Beginnings of the commands that are run, on the rule of `docs/rules.md`."""
ONLY_PARSED = {
    "trace": "loads a model, for minutes",
    "trace-prompt": "loads a model; the command's tests run some",
    "faithfulness": "loads a model, for minutes",
    "plan": "times the machine; tests/unit/editing/app/test_plans.py runs some",
    "covariance": "loads a model, for minutes",
    "edit": "loads a model, for minutes",
    "evaluate": "loads a model, for minutes",
    "compare": "loads a model, for hours",
    "sweep": "loads a model, for hours",
    "tune": "loads a model, for hours",
    "sequence": "loads a model, for hours",
    "run": "the whole chain, for minutes; tests/integration/test_chain.py runs one",
    "profile": "needs the maps of a long trace",
    "evidence": "loads a model, for minutes",
    "select": "needs the profile of a long trace",
    "export": "needs a selection; tests/unit/interp/selection/test_exports.py runs it",
    "atlas": "tests/unit/interp/app/test_atlas_commands.py runs it",
    "atlas add": "needs the profile of a long trace",
    "regret": "needs a long sweep",
    "figures": "needs the results of a long run",
    "report": "needs the results of a long run",
    "setup": "writes into the user's cache",
    "rules check": "the embedded rules and RuleEdit take minutes",
    "rules export": "needs RuleEdit",
    "rules stats": "loads a model, for minutes",
}


def blocks(*languages: str) -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for language, text in FENCE.findall(page.read_text(encoding="utf-8")):
            if language in languages:
                yield page, text


def commands() -> list[tuple[str, list[str]]]:
    """Page and words of each `dmle` line, without comments; continued lines are one."""
    found = []
    for page, text in blocks("sh", "bash", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words[:1] == ["dmle"]:
                found.append((page.name, words[1:]))
    return found


def inline_settings() -> list[tuple[str, str]]:
    """Page and assignment of every `--set section.key=value` in the text of a page."""
    found = []
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for code in re.findall(r"`([^`]+)`", text):
            words = code.replace("\n", " ").split(" --set ") if "--set " in code else []
            found += [(page.name, word.split(" ")[0]) for word in words[1:]]
            if code.startswith("--set "):
                found.append((page.name, code.replace("\n", " ").removeprefix("--set ")))
    return [(page, word) for page, word in found if "section.key" not in word]


def help_lines() -> list[tuple[str, list[str]]]:
    """Command and words of each example in the help texts."""
    from importlib.metadata import entry_points

    from interp.app import atlas_commands as atlas
    from interp.app import commands as cli
    from interp.app.rules_commands import build, check, export, stats

    functions = [
        cli.trace,
        cli.trace_prompt,
        cli.faithfulness,
        cli.profile,
        cli.select,
        cli.run,
        cli.setup,
    ]
    functions += [point.load() for point in entry_points(group="dmle.commands")]
    functions += [build, check, export, stats, cli.export, atlas.show, atlas.add]
    lines = []
    for function in functions:
        for part in (inspect.getdoc(function) or "").split("\n\n"):  # a long line is broken
            if part.strip().startswith("dmle "):
                words = shlex.split(part.partition(" > ")[0])
                lines.append((f"{function.__name__} --help", words[1:]))
    return lines


def reproduced() -> list[tuple[str, list[str]]]:
    """The lines of `make reproduce`, for the embedded model and for one of other depth."""
    lines = []
    for name, n_layers in (("smollm2-135m", 30), ("gemma3-270m", 18)):
        for line in reproduce.LINES if n_layers == 30 else reproduce.LINES[-2:]:
            out = Path(tempfile.gettempdir()) / "dmle-reproduce" / name
            words = reproduce.words_of(line, out, name, Path("RuleEdit-200.zip"), None, n_layers)
            lines.append((f"make reproduce, {name}", words))
    return lines


COMMANDS = commands()
LINES = [*COMMANDS, *help_lines(), *reproduced()]


def is_run(words: list[str]) -> bool:
    return any(tuple(words[: len(start)]) == start for start in RUN)


def test_there_are_commands_and_each_is_run_or_only_parsed_for_a_reason() -> None:
    assert len(COMMANDS) > 15
    for _, words in COMMANDS:
        assert is_run(words) or words[0] in ONLY_PARSED or " ".join(words[:2]) in ONLY_PARSED, words


WITHOUT_SETTINGS = ("rules_commands", "atlas_commands", "export_command")
"""Modules of commands that take no settings."""
CHECKED = ("trace", "faithfulness", "edit", "evaluate", "compare", "tune", "sweep", "sequence")
"""Steps whose check needs rules and settings alone."""


class Reached(Exception):
    """The command has its settings, and would begin to work."""


def settings_of(words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any] | None:
    """The checked settings of a command line, its flags included; None for commands without
    settings.

    The command's own function is called up to where the work would begin.
    """
    from editing.app.prompt_edit import PromptEdit
    from editing.config import EditorSettings
    from interp.app import commands as cli
    from interp.app.run import Run
    from interp.app.steps import checked_steps
    from interp.config import RulesConfig
    from interp.results.run_folder import RunFolder
    from interp.tracing.one_prompt import PromptRequest

    reached: list[dict[str, Any]] = []

    def check(run: Run, *names: str) -> None:
        reached.append(dict(run.context.sections))
        if run.context.settings(RulesConfig).source == "embedded":
            for step in checked_steps(names):
                if step.name in CHECKED:
                    step.check(run.context)
        raise Reached

    def check_prompt(request: PromptRequest, config: Any, *, overwrite: bool = False) -> None:
        request._check_text(config)
        reached.append({"trace": config})
        raise Reached

    def check_edit(edit: PromptEdit, config: EditorSettings, *, overwrite: bool) -> None:
        assert edit.prompt and edit.new
        reached.append({"edit": config})
        raise Reached

    command, bound, _ = cli.application().parse_args(words, exit_on_error=False, print_error=False)
    if command is cli.setup or command.__module__.removeprefix("interp.app.") in WITHOUT_SETTINGS:
        return None
    monkeypatch.setattr(Run, "check", check)
    monkeypatch.setattr(Run, "plan", check)
    monkeypatch.setattr(RunFolder, "settings", {})  # a folder of this name may be here
    monkeypatch.setattr(RunFolder, "known", True)
    monkeypatch.setattr(PromptRequest, "check", check_prompt)
    monkeypatch.setattr(PromptEdit, "check", check_edit)
    with pytest.raises(Reached):
        command(*bound.args, **bound.kwargs)
    (settings,) = reached
    return settings


@pytest.mark.parametrize(
    ("page", "words"), LINES, ids=[f"{page}: {' '.join(words)[:50]}" for page, words in LINES]
)
def test_every_command_line_parses_with_valid_settings(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # configuration files are named from there
    if "--help" in words:
        words = [word for word in words if word != "--help"]
    settings = settings_of(words, monkeypatch)
    if settings is not None and "--editors" in words:
        assert settings["edit"].editors == tuple(words[words.index("--editors") + 1].split(","))


def test_every_command_that_the_text_names_is_there() -> None:
    from interp.app import commands as cli

    app, texts = cli.application(), [*PAGES, ROOT / "CHANGELOG.md"]
    named = set()
    for page in [*texts, *sorted((ROOT / "notebooks").glob("*.py"))]:
        named |= set(re.findall(r"`dmle\s+([\w-]+)", page.read_text(encoding="utf-8")))
    assert len(named) > 10
    for name in named:
        assert app[name]


@pytest.mark.parametrize(("page", "assignment"), inline_settings())
def test_every_setting_in_the_text_is_valid(page: str, assignment: str) -> None:
    from interp.app.run import raw_settings
    from interp.app.steps import load_steps, parse_settings
    from interp.settings.assignments import read_assignment

    parse_settings(load_steps(), raw_settings({}, settings=[read_assignment(assignment)]))


def test_a_wrong_line_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from cyclopts import CycloptsError

    from interp.config import ConfigError

    with pytest.raises(CycloptsError):
        settings_of(["trace", "--sample", "4"], monkeypatch)
    with pytest.raises(ConfigError, match=r"unknown setting 'trace\.sample'"):
        settings_of(["trace", "--set", "trace.sample=4"], monkeypatch)
    with pytest.raises(ConfigError, match=r"cannot read the configuration none\.yaml"):
        settings_of(["tune", "--config", "none.yaml"], monkeypatch)


def test_rule_of_the_pages_is_built_and_checked_as_they_say(
    tmp_path: Path, dmle: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (rules,) = [
        text
        for page, text in blocks("yaml")
        if page.name == "rules.md" and text.startswith("domain:")
    ]
    (tmp_path / "my_rules.yaml").write_text(rules, encoding="utf-8")
    ran = [words for page, words in COMMANDS if is_run(words) and page == "rules.md"]
    assert [words[:2] for words in ran] == [["rules", "build"], ["rules", "check"]]
    for words in ran:
        code, said = dmle(*words)
        assert code == 0, said


def test_settings_shown_as_yaml_are_valid() -> None:
    from interp.app.steps import load_steps, parse_settings
    from interp.settings.plain_yaml import load_yaml

    shown = [text for _, text in blocks("yaml") if not text.startswith("domain:")]
    assert shown
    for text in shown:
        parse_settings(load_steps(), load_yaml(text))


def test_python_of_the_schemas_runs() -> None:
    ran = [text for page, text in blocks("python") if page.name == "schemas.md"]
    assert len(ran) == 2
    names: dict[str, Any] = {}
    for text in ran:
        exec(compile(text, "schemas.md", "exec"), names)
    assert names["effect"].sizes == {"component": 1, "layer": 2, "pos": 3}
    assert float(names["effect"].mean()) == pytest.approx(1.45)


def test_python_of_the_published_format_runs(rules: Any) -> None:
    from editing.evaluation.evaluate import COLUMNS
    from editing.evaluation.items import items_of

    (text,) = [text for page, text in blocks("python") if page.name == "reference-format.md"]
    rows = {}
    for rule in rules:
        filled: dict[str, Any] = dict.fromkeys(COLUMNS, 0.5) | {"editor": "dmle", "rule": rule.id}
        rows[rule.id] = [
            {
                **filled, "form": item.form, "metric": item.metric, "prompt": item.question.prompt,
                "target_new": item.question.target, "target_true": item.target_true,
            }
            for item in items_of(rule)
        ]  # fmt: skip
    *first, last = text.strip().splitlines()
    names: dict[str, Any] = {"rules": rules, "rows": rows}
    exec(compile("\n".join(first), "reference-format.md", "exec"), names)
    percent = eval(compile(last.partition("#")[0].strip(), "reference-format.md", "eval"), names)
    assert percent["Edit_Succ"] == pytest.approx(
        50
    )  # half of the tokens of every answer were right


def test_every_python_block_has_a_test_that_runs_it() -> None:
    known = {
        "README.md": "tests/integration/test_readme.py",
        "python.md": "tests/integration/test_readme.py",
        "CONTRIBUTING.md": "test_own_strategy.py, test_contributing.py, test_own_check.py",
        "schemas.md": "here",
        "reference-format.md": "here",
    }
    assert {page.name for page, _ in blocks("python")} <= set(known)


def test_links_lead_to_files_and_headings() -> None:
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for link in re.findall(r"\]\(((?!http)[^)\s]+)\)", text):
            path, _, heading = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            if heading:
                assert heading in headings(target), f"{page.name}: {link}"


def headings(page: Path) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_page_is_listed_by_a_question() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "index.md" or f"]({name})" in text, name


def test_make_targets_and_modules_of_the_pages_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for words in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
            assert words in targets, f"{page.name}: make {words}"
        for module in re.findall(r"python -m (tests\.[\w.]+)", text):
            path = ROOT / module.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), f"{page.name}: {module}"


def test_references_name_every_setting_and_every_option() -> None:
    from interp.app.command_line import Common, TraceOptions

    made = runpy.run_path(str(ROOT / "docs" / "reference.py"))
    text = made["configuration_reference"]()
    for name, section in made["sections"]().items():
        part = text.split(f"## {name}\n", 1)[1].split("\n## ", 1)[0]
        assert set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE)) == set(section.model_fields)
    assert "| `samples` | `int` | `4` | Noise samples. ROME uses 10;" in text
    assert (
        "| `steps` | `int` | `25` | Gradient evaluations of the target search;" in text
    )  # inherited by edit
    said = made["cli_reference"]()
    for option in fields(TraceOptions) + fields(Common):
        assert f"--{option.name.replace('_', '-')}" in said
    for command in ("trace", "trace-prompt", "figures", "rules check"):
        assert f"## dmle {command}\n" in said


@pytest.mark.slow
def test_documentation_builds_without_warnings(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    configuration = (tmp_path / "configuration.html").read_text(encoding="utf-8")
    assert "<!-- generated" not in configuration
    assert "noise_replaces" in configuration
    assert "--overwrite" in (tmp_path / "cli.html").read_text(encoding="utf-8")


PATH = re.compile(r"`((?:interp|editing|figures|tests|docs|notebooks)/(?:[\w./-]*(?:\.py|/))?)`")
DOTTED = re.compile(r"`((?:interp|editing|figures)(?:\.\w+)+)`")


def test_files_and_modules_of_the_pages_exist() -> None:
    """Paths as they stand, and names such as `interp.rules.schema` or one that such a file has.

    CONTRIBUTING.md also names files that its reader writes.
    """
    import interp

    for page in [*PAGES, ROOT / "SECURITY.md"]:
        if page.name == "CONTRIBUTING.md":
            continue
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for path in PATH.findall(text):
            assert (ROOT / path).exists(), f"{page.name}: {path}"
        for name in DOTTED.findall(text):
            assert is_module_or_name(name) or name.removeprefix("interp.") in interp.__all__, (
                f"{page.name}: {name}"
            )


def is_module_or_name(dotted: str) -> bool:
    """Whether a module has the name, or a module with all but the last part speaks of that part."""
    path = ROOT / dotted.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").exists():
        return True
    parent = path.parent.with_suffix(".py")
    return parent.exists() and path.name in parent.read_text(encoding="utf-8")
