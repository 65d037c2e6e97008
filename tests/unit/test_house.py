"""What `make house` counts, on code of a few lines."""

import ast
from pathlib import Path

import pytest

from tests.benchmarks import house

MODULE = '''"""A module."""

import os  # a comment


def long(x):
    """Say so.

    And more.
    """
    # why
    if x and os:
        return [y for y in x if y]
    return None


class Open:
    def method(self): ...

    def _hidden(self): ...
'''


def write(root: Path, modules: dict[str, str]) -> house.House:
    for path in (*modules, "README.md", *(f"{name}/empty" for name in house.PACKAGES)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(modules.get(path, "one\ntwo\n"), encoding="utf-8")
    return house.House.read(root)


def test_sizes_of_one_module(tmp_path: Path) -> None:
    (module,) = write(tmp_path, {"interp/a.py": MODULE}).modules
    assert [module.text[number - 1] for number in module.code] == [
        "import os  # a comment",
        "def long(x):",
        "    if x and os:",
        "        return [y for y in x if y]",
        "    return None",
        "class Open:",
        "    def method(self): ...",
        "    def _hidden(self): ...",
    ]
    assert module.n_comments == 2
    assert module.undocumented() == ["interp/a.py:17 Open", "interp/a.py:18 method"]
    # One way, `if`, `and`, the comprehension and its `if`.
    assert next(module.functions()) == house.Function("interp/a.py:6 long", 9, 4, 5)


@pytest.mark.parametrize(
    ("body", "ways"),
    [
        ("pass", 1),
        ("assert x", 2),
        ("while x: pass\n else: pass", 3),
        ("for x in y: pass", 2),
        ("try: pass\n except A: pass\n except B: pass\n else: pass", 4),
        ("match x:\n  case 1: pass\n  case _: pass", 2),
        ("def g(): return 1 if x else 2", 3),
    ],
)
def test_complexity(body: str, ways: int) -> None:
    (function,) = ast.parse(f"def f():\n {body}").body
    assert isinstance(function, ast.FunctionDef)
    assert house.complexity(function) == ways


def test_a_long_run_is_one_duplicate(tmp_path: Path) -> None:
    run = "".join(f"x{i} = {i}\n" for i in range(8))
    held = write(tmp_path, {"interp/a.py": run, "tests/b.py": "y = 0\n\n# why\n" + run})
    assert house.duplicates([*held.modules, *held.tests]) == [("interp/a.py:1", "tests/b.py:4")]
    assert not house.duplicates(held.modules)


def test_equal_imports_are_no_duplicate(tmp_path: Path) -> None:
    imports = "from a import (\n" + "".join(f"    b{i},\n" for i in range(8)) + ")\nimport c\n"
    run = "".join(f"x{i} = {i}\n" for i in range(6))
    held = write(tmp_path, {"interp/a.py": imports + run, "interp/b.py": imports + "y = 0\n" + run})
    assert house.duplicates(held.modules) == [("interp/a.py:12", "interp/b.py:13")]


def test_the_table_names_what_is_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "def f():\n" + "    x = 1\n" * 61
    write(tmp_path, {"interp/a.py": MODULE, "figures/b.py": long})
    house.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "| functions > 40 / > 60 lines | 1 / 1 | ≤ 20 / 0 | missed |" in printed
    assert "| README, lines | 2 | ≤ 120 |  |" in printed
    assert "  figures/b.py:1 f, 62 lines" in printed


def test_the_architecture_has_every_row_and_takes_values() -> None:
    root = Path(house.__file__).parents[2]
    text = (root / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = house.table(house.House.read(root))
    for row in rows:
        assert f"| {row.name} | " in text
        assert f" | {row.aim} |\n" in text
    assert "| README, lines | 274 | 7 | ≤ 120 |\n" in house.with_values(
        text, [house.Row("README, lines", "7", "≤ 120")]
    )
    with pytest.raises(ValueError, match="no row 'doors'"):
        house.with_values(text, [house.Row("doors", "1", "")])
