"""The README's chain and what `docs/python.md` adds to it run as they are printed."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHAIN = """\
import interp, editing

model = interp.load_model()
rules = interp.load_rules(split="train", limit=8)
maps = interp.trace(model, rules)
profile = interp.layer_profile(maps)
layers = interp.select_layers(profile)
edit = editing.edit(model, rules[0], editing.DMLE(layers))
scores = editing.evaluate(model, rules[:1], edit)
"""
STATISTICS = """\
from editing.closed_form.statistics import Statistics
from editing.config import CovarianceConfig
statistics = Statistics(model, CovarianceConfig(identity=True), folder / "statistics")
"""
SMALLER = {
    "limit=8": "limit=1",
    "trace(model, rules)": (
        'trace(model, rules, samples=2, positions=["rule_word"], components=["mlp"])'
    ),
    "DMLE(layers))": "DMLE(layers, steps=2, contexts=1), statistics=statistics)",
    "rules[:1], edit)": "rules[:1], edit, greedy=False)",
}
"""What is changed where the chain is run, for it takes many minutes else: fewer rules, samples,
sites, steps, texts and tokens, and no statistics (notebook 04 measures some)."""


def python_of(page: str) -> str:
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL
    )
    return block


def test_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120


def test_readme_has_the_chain_word_for_word() -> None:
    assert re.sub(r" +#.*", "", python_of("README.md")) == CHAIN


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_chain_edits_exports_and_reverts(tmp_path: Path) -> None:
    from editing.edits.delta import EditDelta
    from interp.models.loading import load
    from interp.selection.select import LayerSelection

    chain = python_of("README.md")
    for whole, smaller in SMALLER.items():
        assert chain.count(whole) == 1
        chain = chain.replace(whole, smaller)
    chain = chain.replace("rules = ", f"{STATISTICS}\nrules = ", 1)
    names: dict = {"folder": tmp_path}
    exec(compile(chain, "README.md", "exec"), names)
    assert names["scores"].sizes["rule"] == 1

    exec(compile(python_of("docs/python.md"), "docs/python.md", "exec"), names)
    exported = load(str(tmp_path / "edited"), check=False)
    original, layers = names["model"], names["layers"]
    name = original.down_projection(layers.groups[0].layers[0]).name
    assert not exported.parameters[name].equal(original.parameters[name])
    assert LayerSelection.load(tmp_path / "selection.json") == layers
    assert EditDelta.load(tmp_path / "edit.safetensors").model_hash == original.weight_hash
    fresh = load(check=False)
    assert fresh.weight_hash == original.weight_hash
    assert original.parameters[name].equal(fresh.parameters[name])  # reverted


def test_readme_names_existing_files() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (ROOT / path).exists(), path
