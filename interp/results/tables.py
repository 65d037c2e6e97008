"""Tables of text in Markdown, LaTeX (booktabs) and CSV, and the short names of metrics in their
heads.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from interp.results.printing import visible

if TYPE_CHECKING:
    import pandas as pd

SHORT_METRIC_NAMES = {
    "reliability": "Rel.",
    "generality": "Gen.",
    "instance_portability": "IP",
    "rule_understanding_verbatim": "RU (verb.)",
    "rule_understanding_paraphrase": "RU (para.)",
    "locality": "Loc.",
    "locality_correctness": "Loc. (corr.)",
    "fact_check": "Fact",
    "distractor": "Distr.",
    "multi_step": "Steps",
}
# With the apostrophes before it that another cell may have been given already, so that one is
# always taken away.
_FORMULA = re.compile(r"'*(?:[\t\r\n]|\s*[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"\s*[+-]?(?:\d+(?:[.,]\d*)*|\.\d+)(?:[eE][+-]?\d+)?\s*%?")
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
    text = "".join("\\" + c if c in "\\`*_{}[]<>|$~#&" else c for c in text)
    return visible(text.replace("\r", "␍").replace("\n", "↵").replace("\t", "⇥"))


def escape_latex(text: str) -> str:
    r"""Text that LaTeX prints literally.

    Brackets and stars stand in braces: at the beginning of a row LaTeX would take them for an
    argument of the line before.

    >>> escape_latex("50% of a_b & $x^2$"), escape_latex("[1] ]")
    ('50\\% of a\\_b \\& \\$x\\textasciicircum{}2\\$', '{[}1{]} {]}')
    """
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "→": r"$\to$",
        "–": "--",
        "−": "$-$",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "[": "{[}",
        "]": "{]}",
        "*": "{*}",
        "`": "{`}",
        '"': r"\textquotedbl{}",
        "\0": "{}",
        **{c: f"\\{c}" for c in "&%$#_{}"},
    }
    return "".join(
        special.get(c, c) for c in visible(text, keep="").replace("--", "-\u200c-")
    ).replace("-\u200c-", "-{}-")


def csv_text(frame: "pd.DataFrame", *, quote_text: bool = False, **options: Any) -> str:
    """A data frame as CSV in which no text is a formula for a spreadsheet (see `csv_cell`); numbers
    stay numbers.

    Args:
        frame: The data; names of columns are texts, too.
        quote_text: Put quotes around every text.
        options: Of `DataFrame.to_csv`.
    """
    import pandas as pd

    plain = frame.rename(columns=csv_cell)
    for name in plain.columns[[not pd.api.types.is_numeric_dtype(kind) for kind in plain.dtypes]]:
        plain[name] = plain[name].map(csv_cell)
    if isinstance(plain.index, pd.Index) and not pd.api.types.is_numeric_dtype(plain.index):
        plain = plain.rename(index=csv_cell)
    return plain.to_csv(
        quoting=csv.QUOTE_NONNUMERIC if quote_text else csv.QUOTE_MINIMAL, **options
    )


def csv_cell(value: Any) -> Any:
    """A value as a cell of CSV: a text that a spreadsheet would compute gets an apostrophe before
    it.

    That is a text whose first character other than blanks is one of ``= + - @`` (also in full
    width), or that begins with a tab or a line end, and that is no number.

    >>> csv_cell("=1+1"), csv_cell(" -x"), csv_cell("-5"), csv_cell("a=b"), csv_cell(-5)
    ("'=1+1", "' -x", '-5', 'a=b', -5)
    """
    return (
        f"'{value}"
        if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value)
        else value
    )


def markdown(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    r"""A Markdown table of cells that are Markdown already (see `escape_markdown`).

    >>> markdown(["a", "b"], [["1", "2"]])
    '| a | b |\n| --- | --- |\n| 1 | 2 |\n'

    Raises:
        ValueError: A row has more or fewer cells than there are heads.
    """
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *map(list, rows)]
    if any(len(line) != len(heads) for line in lines):
        raise ValueError(f"a table of {len(heads)} heads has rows of other lengths")
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(
    heads: Sequence[str], groups: Iterable[Iterable[Iterable[str]]], *, labels: int = 2
) -> str:
    """A booktabs tabular (LaTeX package booktabs) of plain text, which is escaped here.

    Args:
        heads: Heads of the columns.
        groups: Rows in groups, with a rule between groups.
        labels: How many columns, from the left, hold labels and are set to the left; the others are
            centred.
    """

    def line(cells: Iterable[str]) -> str:
        return " & ".join(escape_latex(c) for c in cells) + r" \\"

    blocks = ["\n".join(line(row) for row in group) for group in groups]
    columns = "l" * labels + "c" * (len(heads) - labels)
    body = "\n\\midrule\n".join(blocks)
    top = f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{line(heads)}\n\\midrule\n"
    return f"{top}{body}\n\\bottomrule\n\\end{{tabular}}\n"
