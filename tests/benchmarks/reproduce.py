"""`make reproduce`: the runs behind docs/results.md, made anew, in hours; a stopped run goes on.

python -m tests.benchmarks.reproduce [--model NAME] [--rules RuleEdit-200.zip] [--plan] [--limit N]

First it prints what `dmle plan` says of each long command. Then it runs them, in order. Where
docs/data/results has the numbers of a run, it says how far the new ones are from them.

The settings are those that training rules of SmolLM2-135M chose. For another model, blocks are
those at the same relative depth. Its own training rules may choose others (`dmle tune`).
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
EMBEDDED = "smollm2-135m"
LAYERS = 30
"""Blocks of the embedded model, to which the settings' numbers belong."""
BLOCKS = re.compile(r"\d+")
MAIN = "import sys; from interp.app.commands import main; main(sys.argv[1:])"


@dataclass(frozen=True)
class Line:
    """One command.

    Attributes:
        run: The run folder's name.
        words: The command and its flags.
        config: File in docs, without its suffix; "": none.
        long: Whether it takes long, so that it has a plan.
        ruleedit: Whether it needs RuleEdit.
        data: File in docs/data/results with the numbers of its tables, without its suffix.
        before: Files of other runs that it needs, by path in the folder of all runs.
    """

    run: str
    words: str
    config: str = ""
    long: bool = False
    ruleedit: bool = False
    data: str = ""
    before: tuple[str, ...] = ()


TRACED = "--method screen --samples 2 --positions subject_last,rule_word --set rules.split=train"
LINES = (
    Line("profile", f"trace --limit 98 {TRACED}", long=True),
    Line("profile", "profile"),
    Line("profile", "select"),
    Line("profile", "evidence --set edit.lookup=mention_last --set covariance.tokens=60000"),
    Line(
        "sweep",
        "sweep",
        "sweep",
        long=True,
        before=("profile/profile.nc", "profile/evidence.nc"),
    ),
    Line("sweep", "regret"),
    Line("sweep", "figures"),
    Line(
        "whitened-rulebook",
        "compare --limit 24 --set edit.splits=[test]",
        "whitened-rulebook",
        long=True,
        data="whitened-rulebook",
    ),
    Line("many", "sequence", "sequence"),
    Line(
        "whitened",
        "compare --editors whitened,ft,dmle-words,whitened-apart,whitened-swapped",
        "whitened-ruleedit",
        long=True,
        ruleedit=True,
        data="whitened-ruleedit",
    ),
    Line(
        "wordings",
        "compare",
        "wordings-ruleedit",
        long=True,
        ruleedit=True,
        data="wordings-ruleedit",
    ),
    Line("steps", "compare", "steps-ruleedit", long=True, ruleedit=True, data="steps-ruleedit"),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the plan, and run the commands."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.reproduce")
    parser.add_argument("--model", default=EMBEDDED, help="as for dmle")
    parser.add_argument("--rules", type=Path, help="RuleEdit-200, as it was published")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="run folders")
    parser.add_argument("--limit", type=int, help="so many rules, to try it")
    parser.add_argument("--plan", action="store_true", help="print the plan alone")
    given = parser.parse_args(arguments)
    lines = [line for line in LINES if given.rules is not None or not line.ruleedit]
    n_layers = LAYERS if given.model == EMBEDDED else _n_layers(given.model)
    out = given.out / re.sub(r"[^\w.-]+", "-", given.model)
    for line in lines:
        if line.long:
            words = words_of(line, out, given.model, given.rules, given.limit, n_layers)
            _dmle([*words, "--dry-run"])
    for line in [] if given.plan else lines:
        for path in line.before:
            (out / line.run).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(out / path, out / line.run / Path(path).name)
        _dmle(words_of(line, out, given.model, given.rules, given.limit, n_layers))
        if line.data and given.model == EMBEDDED and given.limit is None:
            told = pd.read_csv(DOCS / "data" / "results" / f"{line.data}.csv")
            found = pd.read_csv(out / line.run / "tables" / "comparison.csv")
            sys.stdout.write(f"{line.run}: {difference(told, found)}\n")


def words_of(
    line: Line, out: Path, model: str, rules: Path | None, limit: int | None, n_layers: int
) -> list[str]:
    """The words of a `dmle` command; settings for another model are written beside its run."""
    text = line.words if limit is None else re.sub(r"--limit \d+", "", line.words)
    words = [*shlex.split(text), "--run", str(out / line.run)]
    if line.config:
        config = DOCS / f"{line.config}.yaml"
        if n_layers != LAYERS:
            settings = yaml.safe_load(config.read_text(encoding="utf-8"))
            config = out / f"{line.config}.yaml"
            config.parent.mkdir(parents=True, exist_ok=True)
            made = yaml.safe_dump(scaled(settings, n_layers), allow_unicode=True)
            config.write_text(made, encoding="utf-8")
        words += ["--config", str(config)]
    if model != EMBEDDED:
        words += ["--set", f"model.name={model}"]
    if line.ruleedit:
        words += ["--set", f"rules.source={rules}"]
    if limit is not None and words[0] != "figures":
        words += ["--set", f"rules.limit={limit}"]
    return words


def scaled(settings: Any, n_layers: int) -> Any:
    """Settings with blocks at the same relative depth of a model of so many.

    >>> scaled({"arms": {"a": {"block": "18-22", "ridge": 1}}, "layers": "14-20/4,9"}, 18)
    {'arms': {'a': {'block': '11-13', 'ridge': 1}}, 'layers': '8-12/2,5'}
    """
    if isinstance(settings, list):
        return [scaled(each, n_layers) for each in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        key: moved(str(value), n_layers)
        if key in ("block", "layers") and not isinstance(value, list | dict)
        else scaled(value, n_layers)
        for key, value in settings.items()
    }


def moved(blocks: str, n_layers: int) -> str:
    """Numbers of blocks at the same relative depth."""
    last = n_layers - 1
    return BLOCKS.sub(lambda number: str(round(int(number[0]) * last / (LAYERS - 1))), blocks)


def difference(told: pd.DataFrame, found: pd.DataFrame) -> str:
    """How far the means of two tables are apart, in words."""
    keys = ["arm", "metric", "mode"]
    both = told.merge(found, on=keys, suffixes=("_told", "_found"))
    apart = (both["mean_told"] - both["mean_found"]).abs()
    return (
        f"{len(both)} of {len(told)} means found again; {apart.max():.4f} apart at most,"
        f" {apart.mean():.4f} on average"
    )


def _n_layers(model: str) -> int:
    from interp.models.outline import outline

    return outline(model).n_layers


def _dmle(words: Sequence[str]) -> None:
    sys.stdout.write(f"\ndmle {shlex.join(words)}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-c", MAIN, *words], check=True)


if __name__ == "__main__":
    main()
