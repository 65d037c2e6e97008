"""The figure of many edits: its points are means of the data, and what failed is said."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes

from figures import paper
from figures.sequence import PANEL_NAMES, sequence_panel
from interp.results import effects
from interp.results.sequences import DIMS, LAST, MEASURES, MODES, SCHEMA, sequence_means

EDITS = (1, 10, 30)


def study() -> xr.Dataset:
    """Two arms; the second has failed in its batch, and its perplexity is infinite at the end."""
    labels = {
        "arm": ["ft", "wild $x$"],
        "order": ["sequence", "batch"],
        "edits": list(EDITS),
        "rule": [f"rule-{i}" for i in range(30)],
        "metric": ["reliability", "locality"],
        "mode": list(MODES),
        "measure": list(MEASURES),
    }
    values = {
        name: np.full([len(labels[dim]) for dim in dims], np.nan) for name, dims in DIMS.items()
    }
    values["failed"][:] = 0
    for place, n in enumerate(EDITS):
        # The first half of the rules is forgotten, the last rules are there.
        values["score"][:, 0, place, :n, 0] = (np.arange(n) >= n // 2)[None, :, None]
        values["score"][:, 0, place, 0, 1] = 0.9 - 0.1 * place
        values["effect"][:, 0, place] = 1 + place
    values["score"][0, 1, 2, :, 0] = 0.25
    values["effect"][1, 0, 2, 0] = np.inf
    values["failed"][1, 1, 2] = 30
    coords = {
        dim: np.array(each, dtype=np.int64 if dim == "edits" else object)
        for dim, each in labels.items()
    }
    attrs = {"schema": SCHEMA, "sample": 12, "questions": 60, "text_tokens": 5000}
    return xr.Dataset({n: (DIMS[n], v) for n, v in values.items()}, coords, attrs)


def panel(name: str) -> Axes:
    (ax,) = (ax for ax in sequence_panel(study()).axes if ax.get_title("left") == PANEL_NAMES[name])
    return ax


def points(ax: Axes, gid: str) -> list[list[list[float]]]:
    return [
        np.asarray(line.get_xydata()).tolist() for line in ax.get_lines() if line.get_gid() == gid
    ]


def test_lines_are_means_over_the_rules_that_were_scored() -> None:
    ax = panel("reliability")
    first, second = points(ax, "sequence: reliability")
    assert first == second == [[1, 1.0], [10, 0.5], [30, 0.5]]
    cross, none = points(ax, "batch: reliability")
    assert cross == [[30, 0.25]] and none == []
    assert ax.get_xscale() == "log"
    assert points(panel("locality"), "sequence: locality")[0] == [[1, 0.9], [10, 0.8], [30, 0.7]]


def test_the_last_rules_are_shown_by_themselves() -> None:
    line, _ = points(panel("reliability_recent"), "sequence: reliability_recent")
    assert LAST == 10 and line == [[1, 1.0], [10, 0.5], [30, 1.0]]


def test_what_is_no_number_is_left_out() -> None:
    ax = panel("perplexity_ratio")
    first, second = points(ax, "sequence: perplexity_ratio")
    assert first == [[1, 1], [10, 2], [30, 3]]
    assert second == [[1, 1], [10, 2]]


def test_the_caption_says_sample_and_failures() -> None:
    figure = sequence_panel(study())
    text = " ".join(figure.get_supxlabel().split())
    assert "at most 12 of them" in text and "60 questions" in text
    assert "wild $x$, batch: 30 edits failed." in text
    (legend,) = figure.legends
    assert [each.get_text() for each in legend.get_texts()] == ["ft", "wild $x$"]


def test_rows_are_of_what_was_measured_or_failed() -> None:
    rows = sequence_means(study())
    assert len(rows) == 2 * 3 + 2
    failed = rows[-1]
    assert (failed["arm"], failed["order"], failed["failed"]) == ("wild $x$", "batch", 30)
    assert np.isnan(failed["reliability"])


def test_nothing_to_draw_is_refused_and_noted(tmp_path: Path) -> None:
    empty = study().map(lambda values: values * np.nan if values.name != "failed" else values)
    with pytest.raises(ValueError, match="nothing was scored"):
        sequence_panel(empty.assign_attrs(study().attrs))
    with pytest.raises(ValueError, match="no mode 'kl'"):
        sequence_panel(study(), "kl")
    effects.save(empty.assign_attrs(study().attrs), tmp_path / "sequence.nc")
    assert paper.draw_all(tmp_path).left_out == ["sequence: no scores"]


def test_dmle_figures_draws_it(tmp_path: Path) -> None:
    effects.save(study(), tmp_path / "sequence.nc")
    names = {path.name for path in paper.draw_all(tmp_path).written}
    assert names == {"sequence.pdf", "sequence.png"}
