"""Curves of what sites bring back together: numbers worked by hand, the table, the figure, and the
section of the report."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from figures import paper
from figures.faithfulness import caption_of, draw_faithfulness
from figures.report import page
from figures.report_inputs import read
from interp.results import effects
from interp.results.faithfulness import (
    Step,
    areas,
    dataset,
    faithfulness_table,
    mean_curves,
    order,
    steps,
)

SHARES = (0.0, 0.1, 0.5, 1.0)
RANKED = ("random", "exact", "attribution")
AREAS = {"exact": 0.8, "attribution": 0.6, "random": 0.5}


def study(n_rules: int = 6, **better: float) -> xr.Dataset:
    """Rules of two forms; the second form of the first rule has no curve, the last rule only four
    sites. Areas of a ranking are its own and a little more for each rule, and what is `better`."""
    sizes = (n_rules, 2, 1, 3)
    area = np.full(sizes, np.nan)
    recovered = np.full((*sizes, 4), np.nan)
    k = np.tile(np.array([0, 2, 10, 20]), (n_rules, 2, 1))
    n_sites = np.full((n_rules, 2), 20)
    k[-1], n_sites[-1] = (0, 1, 2, 4), 4
    for rule in range(n_rules):
        for m, name in enumerate(RANKED):
            jitter = 0.01 * (rule * m % 3)
            area[rule, :, 0, m] = AREAS[name] + better.get(name, 0) + jitter
            recovered[rule, :, 0, m] = np.array([0, 0.5, 0.8, 1.0]) * (1 - 0.2 * (name == "random"))
    area[0, 1], recovered[0, 1], k[0, 1], n_sites[0, 1] = np.nan, np.nan, 0, 0
    values = {
        "recovered": recovered,
        "area": area,
        "linear_area": area / 2,
        "k": k,
        "n_sites": n_sites,
        "clean": np.where(n_sites > 0, -1.0, np.nan),
        "corrupted": np.where(n_sites > 0, -3.0, np.nan),
    }
    labels = {
        "rule": [f"rule-{i}" for i in range(n_rules)],
        "form": ["formula", "instance"],
        "component": ["mlp"],
        "ranking": RANKED,
        "share": SHARES,
    }
    attrs = {"n_skipped": 1, "skipped": "rule-0/instance: <no> effect", "window": 6, "model": "toy"}
    return dataset(values, labels, attrs)


def test_areas_are_means_over_the_forms_that_have_a_curve() -> None:
    data = study()
    data["area"][1, :, 0, 1] = [0.2, 0.6]
    found = areas(data, "mlp")
    assert list(found) == ["exact", "attribution", "random"]  # in the order that they should have
    assert found["exact"][:3].tolist() == pytest.approx([0.8, 0.4, 0.82])


def test_rankings_are_compared_with_the_next_rule_by_rule() -> None:
    first, second = steps(study(), "mlp")
    assert (first.better, first.worse, first.verdict) == ("exact", "attribution", "holds")
    assert first.difference.mean == pytest.approx(0.2, abs=0.02) and first.difference.n_rules == 6
    assert first.difference.lower <= first.difference.mean <= first.difference.upper
    assert second.difference.mean == pytest.approx(0.1, abs=0.02)
    assert order(study(), "mlp") == "mlp: exact ≥ attribution ≥ random holds"

    def verdicts(data: xr.Dataset) -> list[str]:
        return [step.verdict for step in steps(data, "mlp")]

    assert verdicts(study(attribution=0.4)) == ["fails", "holds"]
    assert order(study(attribution=0.4), "mlp").endswith("does not hold: exact ≥ attribution fails")
    near = study(attribution=0.2)
    assert verdicts(near) == ["open", "holds"]
    assert order(near, "mlp").endswith("is not decided: exact ≥ attribution is open")
    assert verdicts(study(1)) == ["open", "open"]  # one rule has no interval
    same = study()
    same["area"][:] = 0.5
    assert verdicts(same) == ["holds", "holds"]
    assert "nothing to compare" in order(study().sel(ranking=["exact"]), "mlp")
    assert isinstance(first, Step)


def test_curves_of_few_sites_are_straight_between_their_points() -> None:
    data = study(2)
    shares, mean, lower, upper = mean_curves(data, "mlp", "exact")
    assert shares.tolist() == list(SHARES)
    # At a tenth, rule 0 has 0.5 and rule 1, with 1 of 4 sites at 0.5, is at 0.4 of the way.
    assert mean.tolist() == pytest.approx([0, (0.5 + 0.2) / 2, 0.8, 1])
    assert lower[1] == pytest.approx(0.2) and upper[1] == pytest.approx(0.5)
    assert np.isnan(mean_curves(study(1), "mlp", "exact")[2]).all()


def test_the_table_says_areas_differences_and_the_order() -> None:
    table = faithfulness_table(study())
    rows = [line for line in table.markdown.splitlines() if line.startswith("| mlp")]
    assert [row.split(" | ")[1] for row in rows] == ["exact", "attribution", "random"]
    heads = table.markdown.splitlines()[0].split(" | ")
    assert heads[-2] == "Linear area" and len(heads) == len(rows[0].split(" | "))
    assert "| 0.810 \\[" in rows[0] and "| holds | 0.405 " in rows[0]
    assert "| – | – | 0.250 " in rows[-1] and rows[-1].endswith("| 6 |")
    assert "mlp: exact ≥ attribution ≥ random holds." in table.markdown
    assert "attribution & 0.6" in table.latex
    alone = faithfulness_table(study(1)).markdown
    assert "| exact | 0.800 | +0.200 | open | 0.400 | 1 |" in alone


def test_lines_are_the_mean_curves_without_their_beginning() -> None:
    ax = draw_faithfulness(study(), "mlp")
    lines = {str(line.get_gid()): line for line in ax.get_lines()}
    assert {"exact", "attribution", "random"} <= set(lines)
    _, mean, _, _ = mean_curves(study(), "mlp", "random")
    np.testing.assert_allclose(np.asarray(lines["random"].get_ydata()), mean[1:])
    assert np.asarray(lines["random"].get_xdata()).tolist() == list(SHARES[1:])
    legend = ax.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["exact, area 0.81", "attribution, area 0.61", "random, area 0.50"]
    assert len(ax.collections) == 3  # bands
    assert "MLP output (6 layers)" in ax.get_title(loc="left")
    assert "Means over 6 rules (11 prompts, 1 left out)" in caption_of(study(), "mlp")
    assert "no interval" in caption_of(study(1), "mlp")
    with pytest.raises(ValueError, match="no curves of 'attn'; choose from"):
        draw_faithfulness(study(), "attn")


def test_dmle_figures_draws_it_or_says_why_not(tmp_path: Path) -> None:
    effects.save(study(), tmp_path / "faithfulness.nc")
    names = {path.name for path in paper.draw_all(tmp_path).written}
    assert names == {"faithfulness-mlp.pdf", "faithfulness-mlp.png"}
    empty = study()
    empty["area"][:] = np.nan
    effects.save(empty, tmp_path / "faithfulness.nc")
    assert paper.draw_all(tmp_path).left_out == ["faithfulness: no curve"]
    with pytest.raises(ValueError, match="no prompt has a curve"):
        draw_faithfulness(empty, "mlp")


def test_the_report_has_a_section_where_the_file_is(tmp_path: Path) -> None:
    effects.save(study(), tmp_path / "faithfulness.nc")
    text = page(read(tmp_path))
    assert '<section id="faithfulness">' in text and 'href="#faithfulness"' in text
    assert "mlp: exact ≥ attribution ≥ random holds" in text
    assert "rule-0/instance: &lt;no&gt; effect" in text and "<no> effect" not in text
