"""What commands say: text stays text, on the terminal and in a shell."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from interp.app.command_line import _next
from interp.results.printing import command, say, visible
from interp.settings.names import name_fault, safe_name

HOSTILE = [
    "run[red]7",
    "run[/7]",
    "[bold]",
    "a:heart:b",
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "a\u202egpj.exe",
    "\x9b31m",
    "a\rb",
    "\x08\x08x",
    "\u2066x\u2069",
    "\udcff",
    "$(true)",
    "it's",
    "a b;c",
    "\\[x]",
]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_text_is_printed_as_text(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    say(f"<{text}>")
    said = capfd.readouterr().err
    assert said == f"<{visible(text)}>\n"
    assert not set(said) & {"\x1b", "\x07", "\x08", "\r", "\x9b", "\u202e", "\u2066", "\u2069"}


def test_letters_of_all_scripts_stay_as_they_are() -> None:
    for text in ("Zoë", "北京は", "नमस्ते", "می\u200cخواهم", "👩\u200d🔬", "a\tb\n"):
        assert visible(text) == text


@pytest.mark.parametrize(
    "folder", ["run[red]7", "run[/7]", "a b", "it's", "$HOME", "a;b", ":heart:"]
)
def test_the_next_command_can_be_copied(
    folder: str, tmp_path: Path, dmle: Callable[..., tuple[int, str]]
) -> None:
    path = tmp_path / folder
    (line,) = [line for line in _next("trace", path).split(". ") if line.startswith("Next: ")]
    assert shlex.split(line.removeprefix("Next: ")) == ["dmle", "profile", "--run", str(path)]
    assert shlex.split(command("dmle", "--run", path)) == ["dmle", "--run", str(path)]
    code, said = dmle("profile", "--run", path)  # nothing was traced: says what to run
    assert code == 2 and command("dmle", "trace", "--run", path) in said


def test_hostile_settings_of_a_run_end_in_one_line(
    tmp_path: Path, dmle: Callable[..., tuple[int, str]]
) -> None:
    for at, text in enumerate(
        [
            "[" * 50_000,
            "a: &a [*a]",
            "settings: {trace: {seed: 0x1}}",
            "settings: {x: !!set {a}}",
            "\x00",
        ]
    ):
        run = tmp_path / str(at)
        run.mkdir()
        (run / "run.yaml").write_text(text)
        code, said = dmle("profile", "--run", run)
        assert code == 2 and said.count("error: ") == 1 and "Traceback" not in said
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump({"edit": {"arms": {"\x1b[31mred": {}}}}))
    code, said = dmle("profile", "--run", tmp_path / "x", "--config", config)
    assert code == 2 and "\x1b" not in said


@pytest.mark.parametrize(
    "name", ["memit", "ridge=0.3 lookup=last", "formula+description@3,4", "a.b-c_d (2)", "早期"]
)
def test_names_of_arms_that_are_safe(name: str) -> None:
    assert name_fault(name) is None and safe_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        " a",
        "a ",
        "a  b",
        "../x",
        "a/b",
        "a\\b",
        "..",
        ".a",
        "a.",
        "a\nb",
        "a\x1bb",
        "nul",
        "COM1.txt",
        "x" * 151,
        "é" * 76,
        "e\u0301",
        "a:b",
        "a*",
        "[a]",
    ],
)
def test_names_of_arms_that_are_not(name: str) -> None:
    assert name_fault(name)
