"""Files that a run of the commands begins with, beside a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from interp.rules.sources import Rule, dump_rules

SENTENCES = [
    f"The {a} of a {b} is {n} times the side."
    for n in range(12)
    for a in "pqr"
    for b in ("cube", "square")
]


def write_corpus(path: Path) -> None:
    """A text of one sentence a line."""
    path.write_text("\n".join(SENTENCES), encoding="utf-8")


def write_inputs(folder: Path, rules: Sequence[Rule], settings: Mapping[str, Any]) -> None:
    """Rules, a corpus, and a configuration that names them and the folder's model.

    Settings of a section replace those that are written of themselves.
    """
    dump_rules(rules, folder / "rules.json")
    write_corpus(folder / "corpus.txt")
    covariance = {"corpus": str(folder / "corpus.txt"), "tokens": 600, "shrinkage": 0.05}
    values = {
        "model": {"name": str(folder / "model"), "device": "cpu"},
        "rules": {"source": str(folder / "rules.json")},
        "covariance": covariance,
        **settings,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
