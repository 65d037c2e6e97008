"""Imports run one way: a room knows those below it in `ROOMS`, and no module is in a circle.

ARCHITECTURE.md says what each room is for. Imports inside functions count; so do those for types
alone, except for circles, which they cannot make.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("interp", "editing", "figures")
ROOMS = (
    "interp.errors",
    "interp.vocabulary",
    "interp.settings",
    "interp.results",
    "interp.rules",
    "interp.executors",
    "interp.config",
    "interp.models",
    "interp.planning",
    "interp.tracing",
    "interp.selection",
    "interp.app",
    "interp",
    "editing.names",
    "editing.presets",
    "editing.config",
    "editing.edits",
    "editing.closed_form",
    "editing.evaluation",
    "editing.editors",
    "editing.studies",
    "editing.doors",
    "editing.app",
    "editing",
    "figures",
)
"""From the lowest to the highest. A package's own name is its public API; `figures` is one room."""
UPWARD = {
    # The self-check runs the sweep that it is about.
    ("interp.models.self_check.routes", "interp.tracing.cases"),
    ("interp.models.self_check.routes", "interp.tracing.patching"),
    # A setting asks the folder of strategies, and the registry of metrics, for the valid names.
    ("interp.config", "interp.selection.strategies"),
    ("interp.config", "interp.tracing.metrics"),
}
"""Imports that run up: importer and imported. None may be added; one that is gone is deleted."""
LATE = {
    # A model is checked while it is loaded, and its prompts are tokenised for that.
    ("interp.models.self_check.routes", "interp.models.tokens"),
}
"""Imports within a room that would close a circle, and stand in a function for that reason."""
MODEL_LIBRARIES = {"transformer_lens", "transformers", "huggingface_hub", "accelerate"}
"""What reads models and runs them: known to interp/models alone."""


@dataclass(frozen=True)
class Import:
    """One module named by another."""

    importer: str
    imported: str
    is_for_types: bool

    def __str__(self) -> str:
        return f"{self.importer} -> {self.imported}"


def name_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    package, _, rest = module.partition(".")
    return package if package == "figures" or not rest else f"{package}.{rest.split('.')[0]}"


def named(node: ast.AST, modules: set[str]) -> list[str]:
    """Modules that an import statement names; of a package, the submodules that it takes."""
    match node:
        case ast.Import():
            return [alias.name for alias in node.names]
        case ast.ImportFrom(module=str(source)):
            parts = [f"{source}.{alias.name}" for alias in node.names]
            return [part if part in modules else source for part in parts]
    return []


def for_types(tree: ast.Module) -> set[ast.AST]:
    """Everything below `if TYPE_CHECKING`."""
    tests = (n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n))
    blocks = (n for n in tests if isinstance(n.test, ast.Name | ast.Attribute))
    return {inner for block in blocks for part in block.body for inner in ast.walk(part)}


def imports(root: Path) -> Iterator[Import]:
    """Every import of the packages, wherever it stands in a file."""
    files = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    modules = {name_of(path, root) for path in files}
    for path in files:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        types = for_types(tree)
        for node in ast.walk(tree):
            for imported in named(node, modules):
                yield Import(name_of(path, root), imported, node in types)


IMPORTS = tuple(imports(ROOT))
OURS = tuple(each for each in IMPORTS if each.imported.split(".")[0] in PACKAGES)


def test_every_module_is_in_a_room() -> None:
    homeless = {each.importer for each in IMPORTS if room_of(each.importer) not in ROOMS}
    assert not homeless, "give the room a place in ROOMS, and a line in ARCHITECTURE.md"


def test_imports_run_down() -> None:
    rank = {room: place for place, room in enumerate(ROOMS)}
    up = {
        (each.importer, each.imported)
        for each in OURS
        if rank[room_of(each.importer)] < rank[room_of(each.imported)]
    }
    assert not up - UPWARD, "imported from below; move what both need into the lower room"
    assert not UPWARD - up, "no longer imported: delete the exception"


def test_no_module_is_in_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for each in OURS:
        if not each.is_for_types and (each.importer, each.imported) not in UPWARD | LATE:
            below.setdefault(each.importer, set()).add(each.imported)
    assert not circle(below)
    assert {(each.importer, each.imported) for each in OURS} >= LATE, "delete the exception"


def circle(below: dict[str, set[str]]) -> list[str]:
    """Modules that remain when those are taken away, repeatedly, that import none of the rest or
    that none of the rest imports."""
    rest = set(below)
    while True:
        imported = {module for importer in rest for module in below[importer]}
        inner = {module for module in rest & imported if below[module] & rest}
        if inner == rest:
            return sorted(rest)
        rest = inner


def test_only_the_room_of_models_reads_models() -> None:
    outside = [
        str(each)
        for each in IMPORTS
        if each.imported.split(".")[0] in MODEL_LIBRARIES
        and room_of(each.importer) != "interp.models"
    ]
    assert not outside


def test_figures_need_no_model() -> None:
    hidden = {"interp.models", "interp.tracing"}
    drawn = [each for each in OURS if room_of(each.importer) == "figures"]
    assert drawn
    wrong = [str(each) for each in drawn if room_of(each.imported) in hidden]
    assert not wrong
    assert not [str(each) for each in drawn if each.imported.split(".")[0] == "editing"]


def test_the_architecture_names_every_room() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    folders = [
        path.parent.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).glob("*/__init__.py")
    ]
    assert folders
    assert not [folder for folder in folders if f"`{folder}/`" not in text]


def test_what_would_be_found(tmp_path: Path) -> None:
    for path, text in {
        "interp/rules/a.py": "def f():\n    from interp.models import b\n",
        "interp/models/b.py": "import interp.rules.a\n",
        "interp/models/c.py": "if TYPE_CHECKING:\n    from interp.models.d import D\n",
        "interp/models/d.py": "from interp.models.c import C\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    pairs = {(each.importer, each.imported): each for each in imports(tmp_path)}
    late = pairs[("interp.rules.a", "interp.models.b")]
    assert not late.is_for_types
    assert ROOMS.index(room_of(late.importer)) < ROOMS.index(room_of(late.imported))
    assert pairs[("interp.models.c", "interp.models.d")].is_for_types
    assert not pairs[("interp.models.d", "interp.models.c")].is_for_types


@pytest.mark.parametrize(
    ("below", "modules"),
    [
        ({"a": {"b"}, "b": {"c"}}, []),
        ({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}, ["b", "c"]),
    ],
)
def test_circle(below: dict[str, set[str]], modules: list[str]) -> None:
    assert circle(below) == modules
