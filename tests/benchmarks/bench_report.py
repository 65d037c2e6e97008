"""How large the report of a large run is, and how long a browser takes to open it.

Maps of 200 rules, three forms and three components of a 30-block model, made of random numbers:
what is measured is the page. It is opened in headless Chromium, from the request to the first maps,
profiles and tables on show.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from figures.report import write_report
from interp.results import effects
from interp.selection.profiles import layer_profile

RULES, LAYERS, SAMPLES = 200, 30, 4
FORMS = ("formula", "description", "instance")
COMPONENTS = ("resid", "mlp", "attn")
LENGTHS = (10, 24)
"""Shortest and longest prompt, in tokens."""
OPENINGS = 5
QUICK_RULES, QUICK_OPENINGS = 20, 1
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def joined(rules: int = RULES, seed: int = 0) -> xr.Dataset:
    """Maps of random numbers, every token traced."""
    rng, maps = np.random.default_rng(seed), {}
    for rule in range(rules):
        for form in FORMS:
            tokens = [f" w{i}" for i in range(rng.integers(LENGTHS[0], LENGTHS[1] + 1))]
            roles = [
                "prefix",
                "rule_word",
                "after",
                "subject_last",
                *["after"] * (len(tokens) - 5),
                "last",
            ]
            corrupted = -3 + 0.1 * rng.standard_normal(SAMPLES)
            score = corrupted + rng.standard_normal((len(COMPONENTS), LAYERS, len(tokens), SAMPLES))
            maps[f"rule-{rule}", form] = effects.effect_map(
                score,
                -0.5,
                corrupted,
                components=COMPONENTS,
                tokens=tokens,
                roles=roles,
                is_corrupted=[i in (1, 3) for i in range(len(tokens))],
                prompt="".join(tokens),
                answer=" 12",
                attrs={"model": "random numbers", "window": 3, "metric": "mean_log_prob"},
            )
    return effects.concat(maps)


def run(say: Callable[[dict[str, Any]], None], *, quick: bool = False) -> None:
    """Write the page and open it some times, each in a browser of its own."""
    rules, openings = (QUICK_RULES, QUICK_OPENINGS) if quick else (RULES, OPENINGS)
    maps = joined(rules)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        effects.save(maps, run / "effects.nc")
        effects.save(layer_profile(maps), run / "profile.nc")
        start = time.process_time()
        page = write_report(run)
        wrote = time.process_time() - start
        browser = next(filter(None, map(shutil.which, BROWSERS)), None)
        seconds = [] if browser is None else [opening(browser, page) for _ in range(openings)]
        size = page.stat().st_size
        say({"rules": rules, "bytes": size, "write_cpu_s": wrote, "open_s": seconds})


def opening(browser: str, page: Path) -> float:
    """Wall-clock seconds from the request for the page to everything on show."""
    from playwright.sync_api import sync_playwright

    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=browser) as opened,
    ):
        tab = opened.new_page()
        start = time.perf_counter()
        tab.goto(page.as_uri())
        tab.wait_for_selector("html[data-ready=yes]")
        return time.perf_counter() - start


def describe(row: dict[str, Any]) -> str:
    """One line for people."""
    seconds: Sequence[float] = row["open_s"]
    opened = (
        f"open in {min(seconds):.2f} to {max(seconds):.2f} s"
        if seconds
        else "no Chromium to open it"
    )
    return (
        f"report of {row['rules']} rules: {row['bytes'] / 1e6:.1f} MB, written in"
        f" {row['write_cpu_s']:.1f} CPU-s, {opened} (wall clock: on a quiet machine only)"
    )
