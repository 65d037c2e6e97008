"""The report in a real browser: nothing from the network, nothing run from data, and the right
numbers on show."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from figures.report import write_report
from interp.results import effects
from interp.results.records import save_records
from interp.rules.sources import Rule, dump_rules
from interp.selection.layers import LayerSelection
from interp.selection.profiles import layer_profile

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.slow

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
EVIL = "<script>alert(1)</script>"
RULES = ("plain", EVIL, "</script><img src=x onerror=alert(2)>")
FORMS = ("formula", "instance")
TOKENS = (
    "The",
    " <b>area</b>",
    "\n",
    "$x_1$",
    "<a href='https://example.org'>of</a>",
    " &lt;%{x}",
    " =",
)
TRACED = (1, 3, 6)
ROLES = ("prefix", "rule_word", "after", "subject_last", "after", "after", "last")
LAYERS, SAMPLES = 6, 4
PATIENCE = 240_000  # milliseconds, for busy machines
METRICS = {"mean_log_prob": "nats per answer token", "logit_difference": "logits"}


def joined() -> xr.Dataset:
    """Maps of two metrics; only the tokens `TRACED` were traced, and the last rule has one form."""
    rng, maps = np.random.default_rng(0), {}
    for rule in RULES:
        for form in FORMS if rule != RULES[-1] else FORMS[:1]:
            corrupted = -3 + 0.1 * rng.standard_normal((len(METRICS), SAMPLES))
            score = corrupted[:, None, None, None] + rng.standard_normal(
                (2, 3, LAYERS, len(TOKENS), SAMPLES)
            )
            score[..., [t for t in range(len(TOKENS)) if t not in TRACED], :] = np.nan
            maps[rule, form] = effects.effect_map(
                score,
                np.array([-1.0, -0.5]),
                corrupted,
                components=("resid", "mlp", "attn"),
                tokens=TOKENS,
                roles=ROLES,
                is_corrupted=[t in (1, 3) for t in range(len(TOKENS))],
                prompt="".join(TOKENS),
                answer=f" {EVIL} $2^3$",
                attrs={"model": EVIL, "window": 3, "metric": "mean_log_prob"},
                metrics=METRICS,
            )
    return effects.concat(maps)


def selection() -> LayerSelection:
    groups = [
        {
            "name": "formula",
            "forms": ["formula"],
            "layers": [1, 2],
            "score": 0.2,
            "reason": EVIL,
            "n_rules": 3,
        }
    ]
    return LayerSelection.model_validate(
        {
            "strategy": "window",
            "component": "mlp",
            "role": "lookup",
            "width": 2,
            "n_layers": LAYERS,
            "groups": groups,
        }
    )


def scores() -> xr.Dataset:
    names = {
        "editor": ["dmle", EVIL],
        "rule": list(RULES),
        "form": list(FORMS),
        "metric": ["reliability", "locality"],
        "mode": ["token_accuracy", "kl"],
        "phase": ["pre", "post"],
    }
    values = np.random.default_rng(1).random([len(each) for each in names.values()])
    return xr.Dataset(
        {"score": (list(names), values), "n_items": (list(names), values.astype(int))}, coords=names
    )


def answers() -> pd.DataFrame:
    rows = [
        {
            "editor": editor,
            "rule": rule,
            "form": "formula",
            "metric": metric,
            "prompt": f"{EVIL} of {rule} is",
            "target_new": "12",
            "target_true": "9",
            "before": "NA",
            "after": EVIL,
            "exact_before": 0.0,
            "exact_after": 1.0,
            "token_accuracy_before": 0.25,
            "token_accuracy_after": "",
        }
        for rule in RULES
        for metric in ("reliability", "locality")
        for editor in ("dmle", EVIL)
    ]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose names, tokens and answers are markup."""
    run = tmp_path_factory.mktemp("run")
    maps = joined()
    effects.save(maps, run / "effects.nc")
    effects.save(layer_profile(maps), run / "profile.nc")
    selection().save(run / "selection.json")
    effects.save(scores(), run / "scores.nc")
    rows = answers()
    save_records(run / "answers.json", list(rows.columns), rows.to_dict("records"))
    form = {"prompt": "The x is", "subject": "x", "target_new": "1"}
    dump_rules(
        [
            Rule.model_validate(
                {"id": "plain", "name": EVIL, "subject": "x", "forms": {"formula": form}}
            )
        ],
        run / "rules.json",
    )
    (run / "run.yaml").write_text(
        f"settings: {{}}\nprovenance: {{version_dmle: '{EVIL}'}}\n", encoding="utf-8"
    )
    write_report(run)
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(browser: "Browser", run: Path) -> Iterator["Page"]:
    """The report, open; after the tests, nothing may have gone wrong or been asked for."""
    yield from opened(browser, run / "report.html")


@pytest.fixture
def page(report: "Page") -> "Page":
    """The open report with its first map on show."""
    for name in ("rule", "metric", "scale"):
        report.locator(f"#map-{name}").evaluate("select => { select.selectedIndex = 0; }")
    report.select_option("#map-rule", "0")
    report.select_option("#map-component", "1")
    report.select_option("#map-form", "formula")
    return report


def opened(browser: "Browser", report: Path, **options: Any) -> Iterator["Page"]:
    chosen: dict[str, Any] = {"viewport": {"width": 1200, "height": 900}, **options}
    context = browser.new_context(**chosen)
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    said: list[str] = []
    page.on("console", lambda message: said.append(f"console {message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))

    def dismiss(dialog: Any) -> None:
        said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    page.on("dialog", dismiss)
    page.on("request", lambda request: said.append(f"request: {request.url[:200]}"))
    page.goto(report.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    yield page
    context.close()
    assert [one for one in said if not one.startswith("request: data:")] == [
        f"request: {report.as_uri()}"
    ]


def heat(page: "Page") -> dict[str, Any]:
    """What the map shows: rows of cells, and its title."""
    read = "plot => plot.data[0].z.map(row => Array.from(row, v => isFinite(v) ? v : null))"
    return {
        "z": page.locator("#map-plot").evaluate(read),
        "title": page.locator("#map-title").inner_text(),
    }


def hover(page: "Page", layer: int, token: int) -> str:
    """Move the mouse onto a cell; the lines of the label that appears."""
    plot = page.locator("#map-plot")
    plot.scroll_into_view_if_needed()
    x, y = plot.evaluate(
        """(plot, [layer, token]) => {
          const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
          return [
            box.left + xaxis._offset + xaxis.l2p(layer), box.top + yaxis._offset + yaxis.l2p(token)
          ];
        }""",
        [layer, token],
    )
    label = page.locator("#map-plot .hoverlayer .hovertext .nums")
    # The label of the cell before goes first: Plotly draws a new one only after a while.
    page.mouse.move(1, 1)
    label.wait_for(state="hidden")
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    label.wait_for()
    return "\n".join(label.locator("tspan.line").all_text_contents())


def chosen(
    maps: xr.Dataset, rule: str, form: str, component: str, metric: str = "mean_log_prob"
) -> xr.Dataset:
    return maps.sel(rule=rule, form=form, component=component, metric=metric)


def test_selecting_rule_form_component_and_metric_shows_that_map(page: "Page", run: Path) -> None:
    maps = effects.load(run / "effects.nc")
    for rule, form, component, metric in (
        ("plain", "formula", "mlp", "mean_log_prob"),
        (EVIL, "instance", "resid", "logit_difference"),
        (EVIL, "instance", "attn", "mean_log_prob"),
    ):
        page.select_option("#map-rule", str(RULES.index(rule)))
        page.select_option("#map-form", form)
        page.select_option("#map-component", str(("resid", "mlp", "attn").index(component)))
        page.select_option("#map-metric", str(list(METRICS).index(metric)))
        one = chosen(maps, rule, form, component, metric)
        wanted = (one["score"].values - one["corrupted"].values).mean(-1).T
        shown = np.array(heat(page)["z"], dtype=float)
        np.testing.assert_allclose(shown, wanted, atol=2e-4)  # NaN where not traced, in both
    assert np.isnan(shown).any(1).sum() == len(TOKENS) - len(TRACED)


def test_scale_is_centred_on_zero_and_shared_by_a_rules_maps_unless_asked(
    page: "Page", run: Path
) -> None:
    maps = effects.load(run / "effects.nc").sel(rule="plain", metric="mean_log_prob")
    effect = abs((maps["score"] - maps["corrupted"]).mean("sample", skipna=False))
    trace = "plot => [plot.data[0].zmin, plot.data[0].zmax]"
    low, high = page.locator("#map-plot").evaluate(trace)
    assert low == -high == pytest.approx(-float(effect.max()), rel=1e-4)
    own = effect.max(["layer", "pos"])
    component = int(own.sel(form="formula").argmin("component"))
    page.select_option("#map-component", str(component))
    page.select_option("#map-scale", "map")
    weakest = float(own.sel(form="formula").isel(component=component))
    assert page.locator("#map-plot").evaluate(trace)[1] == pytest.approx(weakest, rel=1e-4)
    assert weakest < high


def test_the_first_map_on_show_is_of_a_rule_that_is_traceable(
    browser: "Browser", tmp_path: Path
) -> None:
    maps = joined()
    maps["corrupted"].loc[{"rule": "plain"}] = maps["clean"].sel(rule="plain")  # no total effect
    effects.save(maps, tmp_path / "effects.nc")
    for page in opened(browser, write_report(tmp_path)):
        assert page.locator("#map-rule").input_value() == "1"
        assert "Not traceable" not in page.locator("#map-title").inner_text()
        page.select_option("#map-rule", "0")
        assert "Not traceable" in page.locator("#map-title").inner_text()


def test_hover_shows_the_numbers_of_the_file(page: "Page", run: Path) -> None:
    one = chosen(effects.load(run / "effects.nc"), "plain", "formula", "mlp").isel(layer=4, pos=3)
    change = one["score"].values - one["corrupted"].values
    error = change.std(ddof=1) / np.sqrt(SAMPLES)
    text = hover(page, 4, 3).replace("−", "-")
    assert "token “$x_1$” (corrupted), last subject token" in text
    assert "layer 4" in text
    found = re.search(
        r"effect (-?[\d.]+) ± ([\d.]+) \(standard error\) nats per answer token", text
    )
    assert found and (float(found[1]), float(found[2])) == pytest.approx(
        (change.mean(), error), abs=1e-3
    )
    found = re.search(r"95 % interval (-?[\d.]+) to (-?[\d.]+) \(4 samples\)", text)
    half = 3.1824 * error  # Student's t with three degrees of freedom
    assert found and [float(x) for x in found.groups()] == pytest.approx(
        [change.mean() - half, change.mean() + half], abs=2e-3
    )
    assert "not traced" in hover(page, 2, 0)


def test_markup_in_data_is_shown_and_not_run(page: "Page") -> None:
    page.select_option("#map-rule", "1")
    assert page.locator("#map-rule option").all_text_contents() == [f"plain: {EVIL}", *RULES[1:]]
    assert EVIL in heat(page)["title"]
    assert EVIL in page.locator("#summary").inner_text()
    assert EVIL in page.locator("#answer-list").inner_text()
    ticks = page.locator("#map-plot .ytick text").all_text_contents()
    assert ticks == [
        "The",
        "<b>area</b>*",
        "↵",
        "$x_1$*",
        "<a href='https://exam…",
        "&lt;%{x}",
        "=",
    ]
    assert "token “<a href='https://example.org'>of</a>”" in hover(page, 1, 4)
    assert "token “&lt;%{x}”" in hover(page, 1, 5)
    assert (
        page.locator("#map-plot a, #score-plot a[href^=http], main img, main script").count() == 0
    )


def test_the_policy_refuses_other_scripts(browser: "Browser", run: Path, tmp_path: Path) -> None:
    text = (run / "report.html").read_text(encoding="utf-8")
    (tmp_path / "forged.html").write_text(
        text.replace("<main>", "<main><script>window.ran = 1</script>"), "utf-8"
    )
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto((tmp_path / "forged.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    assert page.evaluate("window.ran") is None
    context.close()


def test_keyboard_reaches_the_selectors_and_the_cells(page: "Page", run: Path) -> None:
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    page.locator("h1").click()
    seen: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id"))
        if seen[-1] == "map-rule":
            before = heat(page)
            page.keyboard.press("ArrowDown")
            assert page.locator("#map-rule").input_value() == "1"
            assert heat(page)["z"] != before["z"]
        if seen[-1] == "map-plot":
            break
    assert [s for s in seen if s.startswith("map-")] == [
        "map-rule", "map-form", "map-component", "map-metric", "map-scale", "map-plot",
    ]  # fmt: skip
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    one = chosen(effects.load(run / "effects.nc"), EVIL, "formula", "mlp").isel(layer=1, pos=1)
    said = page.locator("#map-readout").inner_text().replace("−", "-")
    found = re.search(r"layer 1; effect (-?[\d.]+)", said)
    assert found and float(found[1]) == pytest.approx(
        float((one["score"] - one["corrupted"]).mean()), abs=1e-3
    )


def test_a_phone_needs_no_sideways_scrolling(browser: "Browser", run: Path) -> None:
    phone = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
    for page in opened(browser, run / "report.html", **phone):
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        page.locator("#map-values td").first.wait_for()
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            widths = page.evaluate("[document.scrollingElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1] == 360


def test_profile_scores_and_answers_follow_their_selectors(page: "Page", run: Path) -> None:
    profile = effects.load(run / "profile.nc")
    page.select_option("#profile-component", "0")
    roles = page.locator("#profile-role option").all_text_contents()
    page.select_option("#profile-role", label="rule words")
    assert "lookup tokens" in roles and "before the subject" not in roles
    lines = page.locator("#profile-plot").evaluate(
        "plot => plot.data.filter(t => t.name).map(t => Array.from(t.y))"
    )
    wanted = profile["aie"].sel(component="resid", role="rule_word").values
    np.testing.assert_allclose(np.array(lines, dtype=float), wanted, rtol=1e-4)

    held = effects.load(run / "scores.nc")["score"].mean(["form", "rule"])
    page.select_option("#score-mode", label="KL divergence from the unedited model (nats)")
    dots = page.locator("#score-plot").evaluate("plot => plot.data.map(t => Array.from(t.x))")
    np.testing.assert_allclose(
        np.array(dots[1::2], dtype=float), held.sel(mode="kl", phase="post").values, rtol=1e-4
    )
    row = page.locator("#score-table tbody tr").nth(0).inner_text()
    values = held.sel(editor="dmle", mode="kl", metric="reliability")
    assert f"{float(values[0]):.2f} → {float(values[1]):.2f}" in row

    page.select_option("#answer-rule", RULES[2])
    shown = page.locator("#answer-list").inner_text()
    assert f"{EVIL} of {RULES[2]} is" in shown and "of plain is" not in shown
    assert "NA (tokens right 25 %)" in shown and f"{EVIL} (exact)" in shown
    page.select_option("#answer-editor", "dmle")
    assert f"after {EVIL}" not in page.locator("#answer-list").inner_text()


def test_dark_and_print_have_readable_colours(page: "Page") -> None:
    paper = "document.getElementById('map-plot')._fullLayout.paper_bgcolor"
    body = "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        text, back = (
            sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in page.evaluate(body)
        )
        assert abs(text - back) > 500 and (text < back) == (scheme == "light")
        # The plot is drawn again when the browser tells of the change.
        sign = "===" if scheme == "light" else "!=="
        page.wait_for_function(f"{paper} {sign} '#ffffff'")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(paper) == "#ffffff"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(paper) != "#ffffff"
    page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("name", ["effects.nc", "scores.nc"])
def test_one_file_alone_makes_a_page(
    browser: "Browser", run: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(run / name, tmp_path / name)
    for page in opened(browser, write_report(tmp_path)):
        assert page.locator(".js-plotly-plot").count() == 1
        absent = page.locator("#summary .absent").inner_text()
        assert name not in absent and len(re.findall(r"written by dmle \w+", absent)) == 4


def test_curves_of_faithfulness_are_drawn_by_component(browser: "Browser", tmp_path: Path) -> None:
    from figures.report_data import faithfulness_data
    from interp.results.faithfulness import dataset

    rng = np.random.default_rng(2)
    dims = {"rule": list(RULES), "form": ["formula"], "component": ["resid", "mlp"]}
    dims |= {"ranking": ["exact", "random"], "share": [0.0, 0.1, 0.5, 1.0]}
    values = {
        "recovered": rng.random([len(each) for each in dims.values()]),
        "area": rng.random((3, 1, 2, 2)),
        "linear_area": rng.random((3, 1, 2, 2)),
        "k": np.tile([0, 2, 10, 20], (3, 1, 1)),
        "n_sites": np.full((3, 1), 20),
        "clean": np.full((3, 1), -1.0),
        "corrupted": np.full((3, 1), -3.0),
    }
    data = dataset(values, dims, {"n_skipped": 1, "skipped": EVIL, "model": EVIL})
    effects.save(data, tmp_path / "faithfulness.nc")
    expected = np.array(faithfulness_data(data)["mean"])
    write_report(tmp_path)
    for page in opened(browser, tmp_path / "report.html"):
        plot = page.locator("#faithfulness-plot")
        for i in (1, 0):  # the MLP is shown first
            page.select_option("#faithfulness-component", str(i))
            read = "plot => plot.data.filter(one => one.hovertemplate).map(one => one.y)"
            np.testing.assert_allclose(np.array(plot.evaluate(read), float), expected[i])
        assert len(page.locator("#faithfulness tbody tr").all()) == 4
        page.locator("#faithfulness summary").click()
        assert EVIL in page.locator("#faithfulness details").inner_text()
