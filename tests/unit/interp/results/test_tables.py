"""Tables: what is escaped, and how columns and groups are set."""

import pandas as pd
import pytest

from interp.results.tables import csv_cell, csv_text, escape_latex, escape_markdown, latex, markdown


def test_latex_specials_are_escaped_once() -> None:
    assert escape_latex(r"\{~^%&#_$<>") == (
        r"\textbackslash{}\{\textasciitilde{}\textasciicircum{}\%\&\#\_\$"
        r"\textless{}\textgreater{}"
    )
    assert escape_latex("−0.5 → 1 – 2") == r"$-$0.5 $\to$ 1 -- 2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a_b", r"a\_b"),
        ("a|b", r"a\|b"),
        ("$x^2$", r"\$x^2\$"),
        ("one\r\ntwo\t", "one␍↵two⇥"),
        ("−1 [é]", r"−1 \[é\]"),
    ],
)
def test_markdown_cells_stay_in_one_cell(text: str, shown: str) -> None:
    assert escape_markdown(text) == shown


def test_markdown_sets_heads_apart() -> None:
    assert (
        markdown(["a", "b"], [["1", "2"], ["3", "4"]])
        == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 | 4 |\n"
    )
    assert markdown(iter(["a"]), []) == "| a |\n| --- |\n"


def test_latex_sets_label_columns_left_and_rules_between_groups() -> None:
    got = latex(
        ["Arm_1", "x", "y"], [[["a", "1", "2"]], [["b", "3", "4"], ["c", "5", "6%"]]], labels=1
    )
    assert (
        got == "\\begin{tabular}{lcc}\n\\toprule\nArm\\_1 & x & y \\\\\n\\midrule\n"
        "a & 1 & 2 \\\\\n\\midrule\nb & 3 & 4 \\\\\nc & 5 & 6\\% \\\\\n"
        "\\bottomrule\n\\end{tabular}\n"
    )
    assert latex(["a", "b", "c"], [[["1", "2", "3"]]]).startswith("\\begin{tabular}{llc}\n")


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        ("=1+1", "'=1+1"),
        (" =cmd|x", "' =cmd|x"),
        ("+a", "'+a"),
        ("-x", "'-x"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\tx", "'\tx"),
        ("＝1", "'＝1"),
        ("'=1", "''=1"),
        ("-5", "-5"),
        ("+1.5e3", "+1.5e3"),
        ("a=b", "a=b"),
        ("'tis", "'tis"),
        ("", ""),
        (-5, -5),
        (None, None),
    ],
)
def test_a_cell_is_no_formula(value: object, cell: object) -> None:
    assert csv_cell(value) == cell


def test_csv_neutralises_texts_heads_and_labels_and_no_number() -> None:
    frame = pd.DataFrame({"=a": [1.5, -2.0], "b": ["=1", "-3"]}, index=["@x", "y"])
    assert csv_text(frame) == ",'=a,b\n'@x,1.5,'=1\ny,-2.0,-3\n"
    assert csv_text(frame, index=False, quote_text=True) == '"\'=a","b"\n1.5,"\'=1"\n-2.0,"-3"\n'
    assert frame.columns.tolist() == ["=a", "b"]


def test_latex_rows_begin_with_no_argument_of_the_line_before() -> None:
    got = latex(["[1]"], [[["*"], ["[x]"]]], labels=1)
    assert "\n{[}1{]} \\\\" in got and "\n{*} \\\\" in got and "\n{[}x{]} \\\\" in got
    assert (
        escape_latex('a--b\x1b|\n"`')
        == r"a-{}-b\textbackslash{}x1b\textbar{}\textbackslash{}n\textquotedbl{}{`}"
    )
    assert escape_markdown("&lt; \x1b \u202e") == r"\&lt; \x1b \u202e"


def test_a_row_without_a_head_is_a_fault() -> None:
    with pytest.raises(ValueError, match="2 heads has rows of other lengths"):
        markdown(["a", "b"], [["1", "2"], ["1", "2", "3"]])
