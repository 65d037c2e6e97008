"""Tables: what is escaped, and how columns and groups are set."""

import pytest

from interp.tables import escape_latex, escape_markdown, latex, markdown


def test_latex_specials_are_escaped_once() -> None:
    assert escape_latex(r"\{~^%&#_$<>") == (
        r"\textbackslash{}\{\textasciitilde{}\textasciicircum{}\%\&\#\_\$\textless{}\textgreater{}"
    )
    assert escape_latex("−0.5 → 1 – 2") == r"$-$0.5 $\to$ 1 -- 2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a_b", r"a\_b"), ("a|b", r"a\|b"), ("$x^2$", r"\$x^2\$"), ("one\r\ntwo\t", "one␍↵two⇥"), ("−1 [é]", r"−1 \[é\]")],
)
def test_markdown_cells_stay_in_one_cell(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


def test_markdown_sets_heads_apart() -> None:
    assert markdown(["a", "b"], [["1", "2"], ["3", "4"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"
    assert markdown(iter(["a"]), []) == "| a |\n| --- |\n"


def test_latex_sets_label_columns_left_and_rules_between_groups() -> None:
    got = latex(["Arm_1", "x", "y"], [[["a", "1", "2"]], [["b", "3", "4"], ["c", "5", "6%"]]], labels=1)
    assert got == (
        "\\begin{tabular}{lcc}\n\\toprule\nArm\\_1 & x & y \\\\\n\\midrule\n"
        "a & 1 & 2 \\\\\n\\midrule\nb & 3 & 4 \\\\\nc & 5 & 6\\% \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
    assert latex(["a", "b", "c"], [[["1", "2", "3"]]]).startswith("\\begin{tabular}{llc}\n")
