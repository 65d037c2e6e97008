import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from figures.app import REPORT
from figures.report import LIMIT, page
from figures.report_data import answer_data, score_data
from figures.report_inputs import RunResults, read
from figures.report_maps import map_data, standard_error, t_quantile
from figures.report_numbers import pack
from interp.app.steps import Context
from interp.errors import DamagedError
from interp.results import effects as effects_schema
from interp.results.records import save_records
from interp.results.run_folder import RunFolder
from interp.results.scores import ANSWER_COLUMNS, ANSWER_NUMBERS
from interp.selection.layers import LayerSelection
from interp.selection.profiles import layer_profile
from tests.unit.records import window_selection

EVIL = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """What a browser would make of the page: scripts, addresses and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.data = self.text = self.policy = ""
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self._inside: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = dict(attrs)
        self._inside = held if tag == "script" else None
        if tag == "script" and held.get("type") != "application/json":
            self.scripts.append("")
        if held.get("http-equiv"):
            self.policy = str(held["content"])
        self.addresses += [
            str(held[name]) for name in ("src", "href", "action", "data") if name in held
        ]
        self.handlers += [name for name in held if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text += data
        elif self._inside.get("type") == "application/json":
            self.data += data
        else:
            self.scripts[-1] += data


def unpacked(packed: dict[str, Any]) -> np.ndarray:
    values = np.frombuffer(base64.b64decode(packed["v"]), "<i2").astype(float)
    return np.where(values == -32768, np.nan, values * packed["s"])


def maps(
    rules: int, *, layers: int = 5, tokens: int = 6, samples: int = 4, forms: int = 2
) -> xr.Dataset:
    """Random joined maps in which the second token was not traced."""
    rng = np.random.default_rng(0)
    shape = (rules, forms, 3, layers, tokens, samples)
    score = rng.standard_normal(shape).astype(np.float32)
    score[..., 1, :] = np.nan
    where = ("rule", "form")
    return xr.Dataset(
        {
            "score": ((*where, "component", "layer", "pos", "sample"), score),
            "clean": (where, np.full(shape[:2], 5, np.float32)),
            "corrupted": (
                (*where, "sample"),
                rng.standard_normal((*shape[:2], samples)).astype(np.float32),
            ),
        },
        coords={
            "rule": [f"rule-{i}" for i in range(rules)],
            "form": ["formula", "description", "instance"][:forms],
            "component": ["resid", "mlp", "attn"],
            "layer": np.arange(layers),
            "token": ((*where, "pos"), np.full((rules, forms, tokens), " token", dtype=object)),
            "role": ((*where, "pos"), np.full((rules, forms, tokens), "rule_word", dtype=object)),
            "is_corrupted": ((*where, "pos"), np.zeros((rules, forms, tokens), bool)),
            "n_tokens": (where, np.full(shape[:2], tokens)),
            "prompt": (where, np.full(shape[:2], "The token is", dtype=object)),
            "answer": (where, np.full(shape[:2], " so", dtype=object)),
        },
        attrs={
            "unit": "nats per answer token",
            "metric": "mean_log_prob",
            "model": "toy",
            "window": 3,
        },
    )


def answers(rules: int, **texts: str) -> pd.DataFrame:
    row = dict.fromkeys(ANSWER_COLUMNS, "x") | {
        "metric": "reliability",
        "exact_before": "0.0",
        "exact_after": "1.0",
    }
    return pd.DataFrame(
        [{**row, "rule": f"rule-{i}", "prompt": f"prompt {i}", **texts} for i in range(rules)]
    )


def scores(editors: int) -> xr.Dataset:
    names = {
        "editor": [f"arm {i}" for i in range(editors)],
        "rule": ["a", "b", "c"],
        "form": ["formula", "instance"],
        "metric": ["reliability", "locality", "generality"],
        "mode": ["exact", "kl"],
        "phase": ["pre", "post"],
    }
    values = np.random.default_rng(2).random([len(each) for each in names.values()])
    values[:, :, :, 2] = np.nan  # no items
    values[:, 0, 0, 0] = np.nan
    return xr.Dataset({"score": (list(names), values)}, coords=names, attrs={"model": "toy"})


def selection(**group: Any) -> LayerSelection:
    one = {
        "name": "formula",
        "forms": ["formula"],
        "layers": [1, 2],
        "stability": 0.8,
        "n_rules": 3,
        **group,
    }
    return window_selection(5, one)


def test_packing_loses_at_most_half_a_step_and_keeps_nan() -> None:
    values = np.random.default_rng(0).standard_normal(500)
    values[::7] = np.nan
    packed = pack(values)
    np.testing.assert_allclose(
        unpacked(packed), values, rtol=0, atol=1.001 * np.nanmax(abs(values)) / 65534
    )
    assert np.isnan(unpacked(pack(np.array([np.nan])))).all() and unpacked(
        pack(np.zeros(2))
    ).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("samples", "quantile"), [(2, 12.7062), (3, 4.3027), (4, 3.1824), (10, 2.2622), (61, 2.0003)]
)
def test_t_quantile_is_that_of_the_tables(samples: int, quantile: float) -> None:
    assert t_quantile(samples) == pytest.approx(quantile, abs=2e-4)
    assert t_quantile(1) is None


def test_standard_error_is_over_paired_samples_in_both_directions() -> None:
    one = maps(1)
    score, corrupted = (one[name].values for name in ("score", "corrupted"))
    paired = score - corrupted[:, :, None, None, None, :]
    for direction, change in (("denoise", paired), ("noise", score)):
        found = (
            standard_error(one.assign_attrs(direction=direction))
            .transpose("rule", "form", ...)
            .values
        )
        np.testing.assert_allclose(found, change.std(-1, ddof=1) / 2, rtol=1e-5)
    assert bool(standard_error(one.isel(sample=[0])).isnull().all())


def test_maps_hold_the_effects_of_the_traced_tokens() -> None:
    one = maps(2)
    data, skipped = map_data(one, 10**9)
    assert not skipped and [rule["id"] for rule in data["rules"]] == ["rule-0", "rule-1"]
    prompt = data["rules"][1]["forms"]["description"]
    assert prompt["rows"] == [0, 2, 3, 4, 5] and prompt["tokens"][0] == "token"
    held = one.isel(rule=1, form=1, component=2)
    effect = (held["score"] - held["corrupted"]).mean("sample", skipna=False).values
    found = unpacked(prompt["maps"][0][2]).reshape(5, 5)
    np.testing.assert_allclose(found, effect[:, prompt["rows"]], atol=1e-4)
    te = 5 - held["corrupted"].values
    assert prompt["total"][0] == pytest.approx([te.mean(), te.std(ddof=1) / 2, True], rel=1e-4)


def test_one_sample_has_no_error_and_an_untraced_form_no_map() -> None:
    one = maps(1, samples=1)
    one["n_tokens"].values[0, 0] = 0
    forms = map_data(one, 10**9)[0]["rules"][0]["forms"]
    assert list(forms) == ["description"] and "e" not in forms["description"]["maps"][0][0]


def test_two_hundred_rules_fit_into_a_page() -> None:
    large = maps(200, layers=30, tokens=25, forms=3)  # 24 of the tokens are traced
    text = page(RunResults("large", effects=large))
    assert len(text.encode()) < LIMIT < 15_000_000
    assert len(json.loads(Page(text).data)["maps"]["rules"]) == 200
    assert "are not in it" not in text


def test_what_does_not_fit_is_named() -> None:
    data, skipped = map_data(maps(4), 6_000)
    assert 0 < len(data["rules"]) < 4 and skipped == [
        f"rule-{i}" for i in range(len(data["rules"]), 4)
    ]
    assert len(json.dumps(data)) <= 6_000
    held, skipped = answer_data(answers(50), 1500)
    kept = len(held["rules"])
    assert 0 < kept < 50 and skipped == [f"rule-{i}" for i in range(kept, 50)]
    assert f"prompt {kept - 1}" in held["texts"] and f"prompt {kept}" not in held["texts"]


def test_markup_in_data_stays_text() -> None:
    effects = maps(1).assign_coords(rule=[EVIL]).assign_attrs(model=EVIL)
    effects["token"].values[...] = EVIL
    text = page(
        RunResults(
            EVIL,
            effects=effects,
            profile=layer_profile(effects),
            selection=selection(reason=EVIL),
            scores=scores(1).assign_coords(editor=[EVIL]),
            answers=answers(1, after=EVIL),
            rule_names={EVIL: EVIL},
            run_yaml=EVIL,
            provenance={"version_dmle": EVIL},
        )
    )
    seen = Page(text)
    assert len(seen.scripts) == 2 and not any("alert(1)" in script for script in seen.scripts)
    assert seen.text.count("alert(1)") >= 6 and not seen.handlers
    assert json.loads(seen.data)["maps"]["rules"][0]["id"] == EVIL  # strict JSON: NaN would fail
    assert all(address.startswith(("#", "data:,")) for address in seen.addresses)


def test_policy_allows_the_two_scripts_alone() -> None:
    seen = Page(page(RunResults("x", scores=scores(1))))
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in seen.scripts]
    allowed = next(part for part in seen.policy.split("; ") if part.startswith("script-src"))
    assert allowed.split()[1:] == [f"'sha256-{one}'" for one in hashes]
    assert seen.policy.startswith("default-src 'none';")


def test_scores_of_many_editors_are_means_over_rules_of_means_over_forms() -> None:
    held = scores(12)
    exact = next(mode for mode in score_data(held)["modes"] if mode["name"] == "exact")
    assert len(exact["editors"]) == 12
    assert exact["metrics"] == ["reliability (edited prompts)", "locality (unchanged behaviour)"]
    wanted = np.nanmean(np.nanmean(held["score"].values[7, :, :, 0, 0], axis=1), axis=0)
    cell = exact["cells"][7][0]
    assert (cell["before"], cell["after"], cell["n"]) == pytest.approx((*wanted, 3), rel=1e-4)
    assert cell["interval"][0] < cell["after"] < cell["interval"][1]
    assert exact["cells"][7][1]["before"] is None  # locality compares with the unedited model
    assert f"{wanted[0]:.2f} → {wanted[1]:.2f}" in page(RunResults("x", scores=held))


def test_summary_says_what_was_traced_and_selected() -> None:
    effects = maps(3)
    effects["corrupted"].values[0] = [4, 6, 4, 6]  # no total effect
    said = " ".join(
        Page(
            page(
                RunResults(
                    "x",
                    effects=effects,
                    selection=selection(supported=False, reason="It is strong."),
                )
            )
        ).text.split()
    )
    assert "6 prompts of 3 rules were traced: 4 traceable, 2 not" in said
    assert "formula: layers 1–2, not supported. It is strong." in said


def test_absent_inputs_are_named_with_their_command(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds none of .*effects.nc.*run `dmle trace`, `dmle profile`"
    ):
        read(tmp_path)
    effects_schema.save(scores(1), tmp_path / "scores.nc")
    said = " ".join(Page(page(read(tmp_path))).text.split())
    absent = said[said.index("Absent from the run folder") : said.index("left out.")]
    pairs = re.findall(r"([a-z]+\.[a-z]+) \(written by (dmle [a-z]+)\)", absent)
    assert pairs == [
        ("effects.nc", "dmle trace"),
        ("profile.nc", "dmle profile"),
        ("selection.json", "dmle select"),
        ("answers.json", "dmle evaluate"),
    ]


def test_damaged_inputs_say_how_to_mend_them(tmp_path: Path) -> None:
    path = tmp_path / "answers.json"
    save_records(path, ["editor", "rule"], [{"editor": "1", "rule": "2"}])
    with pytest.raises(
        DamagedError, match=r"answers.json .* it lacks the columns .*`dmle evaluate --run .*`"
    ):
        read(tmp_path)
    for content in ("", "[]", '{"schema": "dmle.records/1", "columns": [], "rows": []}'):
        path.write_text(content)
        with pytest.raises(DamagedError, match=r"answers.json .*`dmle evaluate --run .*`"):
            read(tmp_path)


def test_step_writes_the_page_beside_its_inputs(tmp_path: Path) -> None:
    rows = answers(2)
    numbers = rows.columns.intersection(list(ANSWER_NUMBERS))
    rows = rows.astype(object).assign(**{name: pd.to_numeric(rows[name]) for name in numbers})
    save_records(tmp_path / "answers.json", list(rows.columns), rows.to_dict("records"))
    said = REPORT.run(Context(RunFolder(tmp_path), {}))
    assert str(tmp_path / "report.html") in said and not REPORT.needs_model
    data = json.loads(Page((tmp_path / "report.html").read_text(encoding="utf-8")).data)
    assert list(data["answers"]["rules"]) == ["rule-0", "rule-1"] and data["maps"] is None
