"""The figure of all families of editors: locality against generality, from docs/data/results.

python docs/frontier.py docs/images/frontier.png
"""

import sys
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from figures import draw_trade_off, style
from figures.trade_off import COST, GAINS

DATA = Path(__file__).parent / "data" / "results"
# Panel → (file, arm, label). All settings are of training rules. Arms of 12 rules say so: these
# are the first half of the others' 24.
PANELS = {
    "RuleEdit, 24 held-out rules": [
        ("whitened-ruleedit", "whitened", "whitened, 3e-5"),
        ("wordings-ruleedit", "whitened", "whitened, 1e-4"),
        ("wordings-ruleedit", "whitened-wordings", "whitened, 1e-4, wordings"),
        ("steps-ruleedit", "whitened-large", "whitened, 3e-4"),
        ("steps-ruleedit", "whitened-large-wordings", "whitened, 3e-4, wordings"),
        ("whitened-ruleedit", "whitened-apart", "whitened, 3e-5, layers apart"),
        ("whitened-ruleedit", "whitened-swapped", "whitened, 3e-5, layers swapped"),
        ("whitened-ruleedit", "ft", "fine-tuning"),
        ("whitened-ruleedit", "dmle-words", "DMLE word by word"),
        ("words-ruleedit-first", "memit-words", "MEMIT word by word (12)"),
        ("whole-ruleedit", "memit-best", "MEMIT, whole answers (12)"),
        ("whole-ruleedit", "dmle-best", "DMLE, whole answers (12)"),
        ("whole-ruleedit", "memit", "MEMIT as published (12)"),
        ("whole-ruleedit", "rome", "ROME (12)"),
    ],
    "Rulebook, 24 test rules": [
        ("whitened-rulebook", "whitened-small", "whitened, 3e-5"),
        ("whitened-rulebook", "whitened", "whitened, 1e-4"),
        ("whitened-rulebook", "whitened-large", "whitened, 3e-4"),
        ("words-rulebook", "ft", "fine-tuning (12)"),
        ("whitened-rulebook", "dmle-words", "DMLE word by word"),
        ("words-rulebook", "memit-words", "MEMIT word by word (12)"),
        ("whole-rulebook-best", "memit-best", "MEMIT, whole answers (12)"),
        ("whole-rulebook-best", "dmle-best", "DMLE, whole answers (12)"),
        ("whole-rulebook", "memit", "MEMIT as published (12)"),
        ("whole-rulebook", "alphaedit", "AlphaEdit as published (12)"),
        ("whole-rulebook", "rome", "ROME (12)"),
    ],
}


def points(arms: list[tuple[str, str, str]]) -> dict[str, dict[str, float]]:
    """Means of token accuracy by label and metric."""
    found = {}
    for file, arm, label in arms:
        data = pd.read_csv(DATA / f"{file}.csv")
        rows = data[(data["arm"] == arm) & (data["mode"] == "token_accuracy")]
        means = rows.set_index("metric")["mean"]
        found[label] = {metric: float(means[metric]) for metric in (COST, *GAINS)}
    return found


@style.paper_style()
def frontier() -> Figure:
    """One panel for each benchmark."""
    fig = Figure(figsize=(style.DOUBLE_COLUMN * 0.85, 5.0), layout="constrained")
    for ax, (title, arms) in zip(fig.subplots(len(PANELS)), PANELS.items(), strict=True):
        draw_trade_off(points(arms), "generality", ax=ax)
        ax.set_title(title, loc="left")
    return fig


if __name__ == "__main__":
    style.save_as(frontier(), Path(sys.argv[1]))
