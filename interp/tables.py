"""Tables of text in Markdown and in LaTeX (booktabs), and the short names of metrics in their heads."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

SHORT_METRIC_NAMES = {
    "reliability": "Rel.",
    "generality": "Gen.",
    "instance_portability": "IP",
    "rule_understanding_verbatim": "RU (verb.)",
    "rule_understanding_paraphrase": "RU (para.)",
    "locality": "Loc.",
    "locality_correctness": "Loc. (corr.)",
}
MISSING = "–"
"""What a cell without a value shows."""


class Table(NamedTuple):
    """One table in both formats."""

    markdown: str
    latex: str


def escape_markdown(text: str) -> str:
    r"""Text that a Markdown table cell shows literally.

    >>> escape_markdown("a|b *c*\n")
    'a\\|b \\*c\\*↵'
    """
    text = "".join("\\" + c if c in "\\`*_{}[]<>|$~#" else c for c in text)
    return text.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥")


def escape_latex(text: str) -> str:
    r"""Text that LaTeX prints literally.

    >>> escape_latex("50% of a_b & $x^2$")
    '50\\% of a\\_b \\& \\$x\\textasciicircum{}2\\$'
    """
    special = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "→": r"$\to$",
        "–": "--", "−": "$-$", "<": r"\textless{}", ">": r"\textgreater{}", **{c: f"\\{c}" for c in "&%$#_{}"},
    }  # fmt: skip
    return "".join(special.get(c, c) for c in text)


def markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    r"""A Markdown table of cells that are Markdown already (see `escape_markdown`).

    >>> markdown(["a", "b"], [["1", "2"]])
    '| a | b |\n| --- | --- |\n| 1 | 2 |\n'
    """
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(heads: Sequence[str], groups: Iterable[Iterable[Iterable[str]]], *, labels: int = 2) -> str:
    """A booktabs tabular (LaTeX package booktabs) of plain text, which is escaped here.

    Args:
        heads: Heads of the columns.
        groups: Rows in groups, with a rule between groups.
        labels: How many columns, from the left, hold labels and are set to the left; the others are centred.
    """

    def line(cells: Iterable[str]) -> str:
        return " & ".join(escape_latex(c) for c in cells) + r" \\"

    blocks = ["\n".join(line(row) for row in group) for group in groups]
    columns = "l" * labels + "c" * (len(heads) - labels)
    body = "\n\\midrule\n".join(blocks)
    top = f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(heads)}\n\\midrule\n"
    return f"{top}{body}\n\\bottomrule\n\\end{{tabular}}\n"
