"""The README's code runs as it is printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_readme_python_block_edits_exports_and_reverts(tmp_path):
    from editing.edits.delta import EditDelta
    from interp.models.loading import load

    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    names: dict = {"folder": tmp_path}
    exec(compile(block, "README.md", "exec"), names)

    exported = load(str(tmp_path / "edited"), check=False)
    original = names["model"]
    name = original.down_projection(4).name
    assert not exported.parameters[name].equal(original.parameters[name])
    assert EditDelta.load(tmp_path / "edit.safetensors").model_hash == original.weight_hash
    assert load().weight_hash == original.weight_hash
    assert original.parameters[name].equal(load().parameters[name])  # reverted


def test_readme_names_existing_files():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", text):
        assert (ROOT / path).exists(), path
