"""The editor of CONTRIBUTING.md, as a new file in the room of the editors."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import editing.editors
from editing.config import EditConfig
from editing.doors import Recipe, edit
from editing.editors import registry
from editing.edits.delta import EditDelta
from editing.names import editor_names
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule

ROOT = Path(__file__).parents[4]


CONTRACT = "tests/unit/editing/editors/test_contract.py"
PLUGIN = """
def pytest_collection(session):
    import editing.editors

    editing.editors.__path__.append({folder!r})
"""


def example() -> str:
    """The editor as it is printed."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## Add an editor")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


@pytest.fixture
def noop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example as a file beside the others, for a while."""
    (tmp_path / "noop.py").write_text(example(), encoding="utf-8")
    monkeypatch.setattr(editing.editors, "__path__", [*editing.editors.__path__, str(tmp_path)])
    yield
    registry._EDITORS.pop("noop", None)
    sys.modules.pop("editing.editors.noop", None)


@pytest.mark.usefixtures("noop")
def test_the_editor_of_the_guide_is_there_with_one_file(
    tiny_llama: LanguageModel, rule: Rule, tmp_path: Path
) -> None:
    assert "noop" in editor_names()
    settings = EditConfig(editors=("noop", "two"), arms={"two": {"editor": "noop", "block": "0-1"}})
    assert settings.settings_of("two").editor == "noop"
    made = edit(tiny_llama, rule, Recipe.of("noop", [0, 2], options={"rank": 2}))
    assert isinstance(made, EditDelta) and sorted(made.layers.values()) == [0, 2]
    assert set(made.rank().values()) == {2} and set(made.norms().values()) == {0.0}
    assert (made.report.editor, made.report.layers) == ("noop", [0, 2])
    ids = torch.tensor([tiny_llama.encode("The area of a square is").ids])
    before = tiny_llama.logits(ids)
    made.save(tmp_path / "noop.safetensors")
    loaded = registry.load_edit(tmp_path / "noop.safetensors")
    with loaded.edited(tiny_llama) as view:
        assert torch.equal(view.model.logits(ids), before)
    # 5 of 30 blocks is the first of 3 (0.5 is rounded to an even number).
    assert edit(tiny_llama, rule, Recipe.of("noop")).report.layers == [0]
    with pytest.raises(InputError, match=r"edit\.options\.rnk.*did you mean.*rank"):
        edit(tiny_llama, rule, Recipe.of("noop", options={"rnk": 2}))


def test_without_the_file_it_is_no_editor() -> None:
    assert "noop" not in editor_names()
    with pytest.raises(InputError, match="there is no editor 'noop'"):
        Recipe.of("noop")


@pytest.mark.slow
def test_the_contract_holds_for_it(tmp_path: Path) -> None:
    """In a process of its own: the contract lists the editors when it is collected."""
    room = tmp_path / "room"
    room.mkdir()
    (room / "noop.py").write_text(example(), encoding="utf-8")
    (tmp_path / "one_more.py").write_text(PLUGIN.format(folder=str(room)), encoding="utf-8")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    options = ["-o", "addopts=", "-p", "one_more", "-k", "noop"]
    said = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *options, CONTRACT],
        cwd=ROOT,
        env={**own, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0 and " passed" in said.stdout, said.stdout + said.stderr


def test_an_editor_has_the_name_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "copied.py").write_text(example(), encoding="utf-8")
    monkeypatch.setattr(editing.editors, "__path__", [*editing.editors.__path__, str(tmp_path)])
    try:
        with pytest.raises(ValueError, match=r"copied\.py registers no editor 'copied'"):
            registry.editor("copied")
    finally:
        registry._EDITORS.pop("noop", None)
        sys.modules.pop("editing.editors.copied", None)
