"""Every notebook runs from top to bottom, shows a figure, and stays thin."""

import ast
import base64
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.py"))
SHARING = ("02_layer_profiles", "03_layer_selection", "05_paper_figures")
"""They read one another's traces where they find them: one folder, one after the other."""
LONG = NOTEBOOKS[1:]
"""They are run by `make golden`: each takes longer than most of the checks together."""
TWO_RULES = 'rule_ids, positions = ["circle-area", "cube-volume"], ["subject_last"]'
SMALLER = {
    "01_causal_tracing": 'positions = ("last",)',
    "02_layer_profiles": TWO_RULES,
    "03_layer_selection": TWO_RULES,
    "04_editing_a_rule": "steps = 3",
    "05_paper_figures": """
small["rules.ids"].remove("square-perimeter")
small |= {"trace.positions": ["subject_last"], "edit.steps": 3, "covariance.identity": True}
small |= {"evaluate.greedy": False}
""",
    "06_your_own_model_and_rules": "samples = 2",
}
"""Parameters with which a notebook does the same on fewer rules and tokens, or with fewer steps;
notebook 04 measures statistics."""
FIGURES = {
    "01_causal_tracing": 1,
    "02_layer_profiles": 3,
    "03_layer_selection": 1,
    "04_editing_a_rule": 2,
    "05_paper_figures": 3,
    "06_your_own_model_and_rules": 1,
}
PNG = b"\x89PNG\r\n\x1a\n"


def parsed(name: str) -> nbformat.NotebookNode:
    read: Any = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    return read


def images(notebook: nbformat.NotebookNode) -> list[bytes]:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [
        base64.b64decode(o["data"]["image/png"])
        for o in outputs
        if "image/png" in o.get("data", {})
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebooks")


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where a notebook runs: its own folder, or that of the notebooks that share results."""
    return (
        request.getfixturevalue("shared")
        if request.node.callspec.params["name"] in SHARING
        else tmp_path
    )


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all of them: to start it and to import everything takes as long as a notebook."""
    folders = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    manager = KernelManager()
    manager.start_kernel(env={**os.environ, "PYTHONPATH": folders})
    yield manager
    manager.shutdown_kernel(now=True)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.golden] * (name in LONG)) for name in NOTEBOOKS],
)
def test_a_notebook_runs_and_shows_its_figures(
    name: str, folder: Path, kernel: KernelManager
) -> None:
    notebook = parsed(name)
    given = next(i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(given + 1, nbformat.v4.new_code_cell(SMALLER.get(name, "")))
    # Nothing of the notebook before: no name, no folder.
    start = f"%reset -f\nimport os\nos.chdir({str(folder)!r})\ndel os"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(start))
    # On a busy machine a cell may take long: the time limit is that of the test.
    client = NotebookClient(notebook, km=kernel, timeout=None)
    try:
        client.execute()  # raises where a cell does
    finally:
        assert client.kc is not None
        client.kc.stop_channels()
    shown = images(notebook)
    assert len(shown) == FIGURES[name] and all(image.startswith(PNG) for image in shown)


def test_every_notebook_is_known_here() -> None:
    assert list(FIGURES) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_teaches_and_is_thin(name: str) -> None:
    notebook = parsed(name)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for heading in ("**Question.**", "**Method.**", "**What can go wrong.**"):
        assert heading in text
    assert "**How to read" in text
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code[0].metadata.get("tags") == ["parameters"]  # papermill puts other values behind it
    owned = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    trees = [ast.parse(cell.source) for cell in code]
    assert not [node for tree in trees for node in ast.walk(tree) if isinstance(node, owned)]
