"""The check that CONTRIBUTING.md shows is one new file, and works as it is printed."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from interp.rules import checks
from interp.rules.checks import registry
from interp.rules.sources import RuleSet, load_rules

ROOT = Path(__file__).parents[4]
NAME = "interp.rules.checks.long_answers"


@pytest.fixture
def long_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The printed file beside the other checks, and registered as they are."""
    section = (ROOT / "CONTRIBUTING.md").read_text("utf-8").split("## Add a rule check\n")[1]
    (text,) = re.findall(r"```python\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    (tmp_path / "long_answers.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(checks, "__path__", [*checks.__path__, str(tmp_path)])
    monkeypatch.setattr(registry, "_OF_RULE", [])
    before = dict(registry.CHECKS)
    checks.import_all()
    yield
    registry.CHECKS.clear()
    registry.CHECKS.update(before)
    del sys.modules[NAME]
    delattr(checks, NAME.rpartition(".")[2])


@pytest.mark.usefixtures("long_answers")
def test_a_new_file_is_a_new_check() -> None:
    (rule,) = load_rules(ids=["circle-area"])
    answer = {"target_new": " ".join(["twice"] * 17)}
    forms = {**rule.forms, "description": rule.forms["description"].model_copy(update=answer)}
    other = rule.model_copy(update={"id": "other", "forms": forms})
    findings = checks.check_rules(RuleSet((rule, other), "here"))
    own = [finding for finding in findings if finding.check == "long_answer"]
    assert own == [
        ("info", "long_answer", "other/description/target_new", "17 words", "at most 16")
    ]
    assert checks.CHECKS["long_answer"][0] == "info"


def test_a_name_is_given_once() -> None:
    with pytest.raises(ValueError, match=r"other checks have the names \['words'\]"):
        checks.of_rule(words=("info", "again"))(lambda rule, known: iter(()))
