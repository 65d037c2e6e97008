"""The size and shape of the code, as the table of ARCHITECTURE.md has them.

`make house` prints the table and the worst places. It needs no package but Python, so that it can
measure an older checkout, too:

    python tests/benchmarks/house.py [ROOT] [--worst 5] [--write]

How things are counted: the modules are those of `interp`, `editing` and `figures`. A function is a
`def`, nested or not, from its first line to its last. Complexity is McCabe's, with the rules of
radon: one, and one for each `if`, conditional expression, `assert`, loop, `else` of a loop or
`try`, handler, case, further operand of `and` and `or`, and comprehension with each of its `if`s.
Unlike radon, a function contains the complexity of what is nested in it, since its reader meets
both. A code line is neither blank nor a comment nor in a docstring; its characters are counted
without the indentation. A duplicate pair is a run of at least six code lines that stands in two
places, tests included; imports are left out, since two files that need the same names say so
in the same words.
"""

import argparse
import ast
import io
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

PACKAGES = ("interp", "editing", "figures")
TESTS = "tests"
MAX_COLUMNS = 100
MAX_FILE_LINES = 400
LONG_FUNCTION, TOO_LONG_FUNCTION = 40, 60
DUPLICATE_LINES = 6
FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """One `def` with its sizes in lines."""

    place: str
    lines: int
    code_lines: int
    complexity: int


@dataclass(frozen=True)
class Module:
    """One file: its text, its tree, and which of its lines are code."""

    path: str
    text: tuple[str, ...]
    tree: ast.Module
    code: tuple[int, ...]
    """Line numbers, from 1."""
    n_comments: int

    @classmethod
    def read(cls, path: Path, root: Path) -> "Module":
        """Parse a file; its name is relative to the root."""
        source = path.read_text(encoding="utf-8")
        tree, text = ast.parse(source), tuple(source.splitlines())
        without = _docstring_lines(tree)
        code = [
            number
            for number, line in enumerate(text, 1)
            if number not in without and line.strip() and not line.strip().startswith("#")
        ]
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        comments = sum(token.type == tokenize.COMMENT for token in tokens)
        return cls(str(path.relative_to(root)), text, tree, tuple(code), comments)

    def functions(self) -> Iterator[Function]:
        """Every `def` of the file, nested ones as well."""
        code = set(self.code)
        for node in ast.walk(self.tree):
            if isinstance(node, FunctionNode):
                span = range(node.lineno, _end(node) + 1)
                place = f"{self.path}:{node.lineno} {node.name}"
                n_code = len(code.intersection(span))
                yield Function(place, len(span), n_code, complexity(node))

    def without_imports(self) -> list[int]:
        """Numbers of the code lines that import nothing."""
        imports = {
            number
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        return [number for number in self.code if number not in imports]

    def undocumented(self) -> list[str]:
        """Public classes and functions, and the module, that say nothing about themselves."""
        names = [] if ast.get_docstring(self.tree) else [self.path]
        for node in _public(self.tree.body):
            stub = any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)
            if not stub and not ast.get_docstring(node):
                names.append(f"{self.path}:{node.lineno} {node.name}")
        return names


@dataclass(frozen=True)
class Row:
    """One line of the table: what is counted, how much there is, and the aim."""

    name: str
    value: str
    aim: str
    is_reached: bool = True


@dataclass(frozen=True)
class House:
    """All files that are measured."""

    modules: tuple[Module, ...]
    tests: tuple[Module, ...]
    readme_lines: int

    @classmethod
    def read(cls, root: Path) -> "House":
        """Read the packages, the tests and the README below a root."""
        modules = [m for package in PACKAGES for m in _modules(root / package, root)]
        readme = (root / "README.md").read_text(encoding="utf-8").splitlines()
        return cls(tuple(modules), tuple(_modules(root / TESTS, root)), len(readme))

    def functions(self) -> list[Function]:
        """The functions of all packages."""
        return [function for module in self.modules for function in module.functions()]


def complexity(function: FunctionNode) -> int:
    """McCabe's complexity: ways through a function.

    >>> complexity(ast.parse("def f(x): return [y for y in x if y or not x] if x else 0").body[0])
    5
    """
    return 1 + sum(_decisions(node) for node in ast.walk(function) if node is not function)


def _decisions(node: ast.AST) -> int:
    match node:
        case ast.If() | ast.IfExp() | ast.Assert() | ast.FunctionDef() | ast.AsyncFunctionDef():
            return 1
        case ast.For() | ast.AsyncFor() | ast.While():
            return 1 + bool(node.orelse)
        case ast.Try() | ast.TryStar():
            return len(node.handlers) + bool(node.orelse)
        case ast.BoolOp():
            return len(node.values) - 1
        case ast.comprehension():
            return 1 + len(node.ifs)
        case ast.Match():
            return len(node.cases) - any(_matches_all(case.pattern) for case in node.cases)
    return 0


def _matches_all(pattern: ast.pattern) -> bool:
    return isinstance(pattern, ast.MatchAs) and pattern.pattern is None and pattern.name is None


def duplicates(modules: Iterable[Module], n_lines: int = DUPLICATE_LINES) -> list[tuple[str, str]]:
    """Pairs of places that begin the same run of at least `n_lines` code lines."""
    windows: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)
    measured = [(module, module.without_imports()) for module in modules]
    for index, (module, numbers) in enumerate(measured):
        text = [module.text[number - 1].strip() for number in numbers]
        for start in range(len(text) - n_lines + 1):
            windows[tuple(text[start : start + n_lines])].append((index, start))
    pairs = {pair for places in windows.values() for pair in combinations(places, 2)}

    def place(index: int, start: int) -> str:
        module, numbers = measured[index]
        return f"{module.path}:{numbers[start]}"

    # A run of eight lines is one pair, not three: only where it begins is counted.
    begins = [
        (first, second)
        for first, second in sorted(pairs)
        if ((first[0], first[1] - 1), (second[0], second[1] - 1)) not in pairs
    ]
    return [(place(*first), place(*second)) for first, second in begins]


def table(house: House) -> list[Row]:
    """The rows of ARCHITECTURE.md."""
    return [*_function_rows(house.functions()), *_line_rows(house), *_file_rows(house)]


def _function_rows(functions: Sequence[Function]) -> list[Row]:
    lines = [function.lines for function in functions]
    branches = [function.complexity for function in functions]
    dense = 100 * sum(branches) / sum(function.code_lines for function in functions)
    median, tail, longest = statistics.median(lines), percentile(lines, 0.95), max(lines)
    long, too_long = (sum(n > limit for n in lines) for limit in (LONG_FUNCTION, TOO_LONG_FUNCTION))
    p95, most = percentile(branches, 0.95), max(branches)
    return [
        Row(
            "function length, median / p95 / max",
            f"{median:.0f} / {tail:.0f} / {longest}",
            f"max {TOO_LONG_FUNCTION}",
            longest <= TOO_LONG_FUNCTION,
        ),
        Row(
            f"functions > {LONG_FUNCTION} / > {TOO_LONG_FUNCTION} lines",
            f"{long} / {too_long}",
            "≤ 20 / 0",
            long <= 20 and not too_long,
        ),
        Row(
            "cyclomatic complexity, p95 / max",
            f"{p95:.0f} / {most}",
            "10 / 15",
            p95 <= 10 and most <= 15,
        ),
        Row("complexity per 100 code lines of functions", f"{dense:.0f}", "≤ 32", dense <= 32),
    ]


def _line_rows(house: House) -> list[Row]:
    numbered = [(m, number) for m in house.modules for number in m.code]
    lengths = [len(module.text[number - 1]) for module, number in numbered]
    characters = statistics.mean(len(m.text[number - 1].strip()) for m, number in numbered)
    wide = 100 * sum(length > MAX_COLUMNS for length in lengths) / len(lengths)
    filled = sum(bool(line.strip()) for module in house.modules for line in module.text)
    comments = 100 * sum(module.n_comments for module in house.modules) / filled
    return [
        Row("characters per code line", f"{characters:.1f}", "≤ 36", characters <= 36),
        Row(f"code lines > {MAX_COLUMNS} characters", f"{wide:.2g} %", "0", not wide),
        Row("comments per 100 lines", f"{comments:.1f}", "say why"),
    ]


def _file_rows(house: House) -> list[Row]:
    undocumented = sum(len(module.undocumented()) for module in house.modules)
    pairs = len(duplicates([*house.modules, *house.tests]))
    n_lines = sum(len(module.text) for module in house.modules)
    large = sum(len(module.text) > MAX_FILE_LINES for module in house.modules)
    return [
        Row("public names without docstring", str(undocumented), "0", not undocumented),
        Row(f"duplicate pairs of ≥ {DUPLICATE_LINES} lines", str(pairs), "≤ 20", pairs <= 20),
        Row("README, lines", str(house.readme_lines), "≤ 120", house.readme_lines <= 120),
        Row("modules / lines", f"{len(house.modules)} / {n_lines / 1000:.1f}k", "fewer lines"),
        Row(f"files > {MAX_FILE_LINES} lines", str(large), "0", not large),
    ]


def worst(house: House, n: int) -> dict[str, list[str]]:
    """The places to mend first, by what is wrong with them."""
    functions = house.functions()
    by_length = sorted(functions, key=lambda f: -f.lines)[:n]
    by_branches = sorted(functions, key=lambda f: -f.complexity)[:n]
    by_size = sorted(house.modules, key=lambda m: -len(m.text))[:n]
    pairs = duplicates([*house.modules, *house.tests])
    return {
        "longest functions": [f"{f.place}, {f.lines} lines" for f in by_length],
        "most complex functions": [f"{f.place}, complexity {f.complexity}" for f in by_branches],
        "longest files": [f"{m.path}, {len(m.text)} lines" for m in by_size],
        "duplicates": [f"{first} = {second}" for first, second in pairs[:n]],
        "without docstring": [name for m in house.modules for name in m.undocumented()][:n],
    }


def with_values(text: str, rows: Iterable[Row]) -> str:
    """ARCHITECTURE.md with the column *now* of its table brought up to date.

    Raises:
        ValueError: The table lacks a row.
    """
    lines = text.splitlines()
    cells = {line.split("|")[1].strip(): n for n, line in enumerate(lines) if line.startswith("|")}
    for row in rows:
        if row.name not in cells:
            raise ValueError(f"ARCHITECTURE.md has no row {row.name!r}")
        parts = lines[cells[row.name]].split("|")
        parts[3] = f" {row.value} "
        lines[cells[row.name]] = "|".join(parts)
    return "\n".join(lines) + "\n"


def percentile(values: Sequence[int], share: float) -> float:
    """A percentile, between two values where it falls there.

    >>> percentile([4, 1, 2, 3], 0.5)
    2.5
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _modules(folder: Path, root: Path) -> Iterator[Module]:
    for path in sorted(folder.rglob("*.py")):
        yield Module.read(path, root)


def _docstring_lines(tree: ast.Module) -> set[int]:
    """Lines of every text that stands alone: of modules, classes, functions and settings."""
    lines: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str())):
                lines.update(range(node.lineno, _end(node) + 1))
    return lines


def _public(body: Iterable[ast.stmt]) -> Iterator[ast.ClassDef | FunctionNode]:
    for node in body:
        if isinstance(node, ast.ClassDef | FunctionNode) and not node.name.startswith("_"):
            yield node
            yield from _public(node.body if isinstance(node, ast.ClassDef) else [])


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and the worst places."""
    parser = argparse.ArgumentParser(description="Measure the size and shape of the code.")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[2])
    parser.add_argument("--worst", type=int, default=5, help="how many of each are named")
    parser.add_argument("--write", action="store_true", help="put the values in ARCHITECTURE.md")
    given = parser.parse_args(arguments)
    house = House.read(given.root)
    if given.write:
        page = given.root / "ARCHITECTURE.md"
        page.write_text(with_values(page.read_text(encoding="utf-8"), table(house)), "utf-8")
    lines = ["| | now | to reach | |", "|---|---|---|---|"]
    for row in table(house):
        missed = "" if row.is_reached else "missed"
        lines.append(f"| {row.name} | {row.value} | {row.aim} | {missed} |")
    for name, places in worst(house, given.worst).items():
        lines += ["", f"{name}:", *(f"  {place}" for place in places or ["none"])]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
