"""Traces against direct sweeps, and run folders that were stopped, changed, or written over."""

import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from interp.app.run import Run
from interp.config import TraceConfig
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.rules.schema import Twin
from interp.rules.sources import Rule, dump_rules
from interp.settings.assignments import read_assignment
from interp.tracing import fingerprint
from interp.tracing import trace as tracing
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.corruption import gaussian_noise
from interp.tracing.metrics import METRICS
from interp.tracing.prompt import trace_prompt
from interp.tracing.reference import sweep_reference
from interp.tracing.trace import Skipped, StaleTraceError, trace_path, trace_rules
from interp.tracing.windows import window
from interp.vocabulary import COMPONENTS, Direction, RuleForm

DEADLINE = 120.0
# Scores of about 7 in float32, where neighbours are 5e-7 apart: other batches add up in another
# order.
SAME: dict[str, Any] = {"rtol": 1e-6, "atol": 2e-6}


def settings(**changes: Any) -> TraceConfig:
    chosen: dict[str, Any] = {"samples": 2, "positions": "all", "window": 2, "seed": 5, **changes}
    return TraceConfig(**chosen)


def words(model: LanguageModel, item: xr.Dataset) -> list[str]:
    assert "".join(item["token"].values) == item["prompt"].item()
    return [token.strip() for token in item["token"].values]


# One prompt.


@pytest.mark.parametrize("metric", ["mean_log_prob", "first_token_prob"])
def test_trace_prompt_equals_the_definition_site_by_site(
    metric: str, tiny_llama: LanguageModel, rule: Rule
) -> None:
    config = settings(metrics=(metric,), noise="e2", span="subject")
    item = trace_prompt(tiny_llama, rule, "formula", config)
    encoding = tiny_llama.encode("The area of a square is A =")
    at = words(tiny_llama, item).index("square")
    noise = gaussian_noise(
        2,
        1,
        32,
        std=2.0 * tiny_llama.embedding_std(),
        seed=5,
        stream=zlib.crc32(repr(encoding.ids).encode()),
    )
    case = CorruptedPrompt(
        encoding.ids, tiny_llama.encode_continuation("side squared"), (at,), noise
    )
    assert len(case.answer) > 1
    last = len(encoding.ids) - 1
    places = [
        (c, layer, pos)
        for c in ("resid", "mlp", "attn")
        for layer in range(3)
        for pos in (at, at + 1, last)
    ]
    some = [
        Site(c, pos, range(layer, layer + 1) if c == "resid" else window(layer, 2, 3))
        for c, layer, pos in places
    ]
    expected = sweep_reference(tiny_llama, case, some, METRICS[metric][0])
    assert item["clean"].item() == pytest.approx(float(expected.clean), abs=1e-5)
    np.testing.assert_allclose(item["corrupted"], expected.corrupted, atol=1e-5)
    for (component, layer, pos), scores in zip(places, expected.restored, strict=True):
        got = item["score"].sel(component=component, layer=layer).isel(pos=pos)
        np.testing.assert_allclose(got, scores, atol=1e-5)
    assert effects.indirect_effect(item).isel(pos=slice(at, None)).std() > 1e-3
    assert item.attrs["unit"] == METRICS[metric][1]


def test_trace_prompt_labels_its_tokens(tiny_llama: LanguageModel, rule: Rule) -> None:
    item = trace_prompt(tiny_llama, rule, "instance", settings())
    text = words(tiny_llama, item)
    assert item["prompt"].item() == rule.forms["instance"].prompt
    corrupted = [t for t, flag in zip(text, item["is_corrupted"].values, strict=True) if flag]
    assert corrupted == ["area", "square"]
    numbers = [t for t, role in zip(text, item["role"].values, strict=True) if role == "number"]
    assert numbers == ["s", "4"]
    assert item["role"].values[-1] == "last"
    wanted = {
        "rule_name": "area of a square",
        "subject": "square",
        "answer_source": "dataset",
        "window": 2,
    }
    assert {name: item.attrs[name] for name in wanted} == wanted
    assert item.attrs["embedding_std"] == pytest.approx(tiny_llama.embedding_std())
    assert item.attrs["weight_hash"] == tiny_llama.weight_hash


def test_trace_prompt_has_no_effect_before_the_first_corrupted_token(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    item = trace_prompt(tiny_llama, rule, "formula", settings())
    effect, first = effects.indirect_effect(item), words(tiny_llama, item).index("area")
    assert first == 1
    assert (effect.isel(pos=slice(None, first)) == 0).all()
    # In the last block, a state before the answer reaches nothing any more.
    assert (effect.isel(pos=slice(first, None), layer=0) != 0).all()


def test_trace_prompt_at_some_roles_equals_the_whole_trace_there(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    whole = trace_prompt(tiny_llama, rule, "formula", settings())
    some = trace_prompt(tiny_llama, rule, "formula", settings(positions=("subject_last", "last")))
    traced = np.isin(whole["role"].values, ["subject_last", "last"])
    assert traced.sum() == 2
    np.testing.assert_allclose(
        some["score"].values[:, :, traced], whole["score"].values[:, :, traced], **SAME
    )
    after = np.arange(len(traced)) >= 1  # the rule word is the first corrupted token
    assert np.isnan(some["score"].values[:, :, after & ~traced]).all()
    assert (effects.indirect_effect(some).values[:, :, ~after] == 0).all()


def test_trace_prompt_takes_the_components_asked_for(tiny_llama: LanguageModel, rule: Rule) -> None:
    whole = trace_prompt(tiny_llama, rule, "description", settings())
    some = trace_prompt(tiny_llama, rule, "description", settings(components=("attn",)))
    assert some["component"].values.tolist() == ["attn"]
    np.testing.assert_allclose(
        some["score"].sel(component="attn"), whole["score"].sel(component="attn"), **SAME
    )


def test_trace_prompt_tells_its_progress_in_shares(tiny_llama: LanguageModel, rule: Rule) -> None:
    done: list[float] = []
    trace_prompt(tiny_llama, rule, "description", settings(batch_size=4), advance=done.append)
    assert len(done) > 9 and sum(done) == pytest.approx(1)


def test_traces_of_two_seeds_differ_and_of_one_are_equal(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    first, again, other = (
        trace_prompt(tiny_llama, rule, "formula", settings(seed=s)) for s in (5, 5, 6)
    )
    assert first.equals(again)
    assert first["clean"].equals(other["clean"]) and not first["corrupted"].equals(
        other["corrupted"]
    )


# Other corruptions, directions and metrics.


def with_twins(rule: Rule, *twins: tuple[str, str]) -> Rule:
    named = tuple(Twin(rule="other", prompt=prompt, answer=answer) for prompt, answer in twins)
    forms = {**rule.forms, "formula": rule.forms["formula"].model_copy(update={"twins": named})}
    return rule.model_copy(update={"forms": forms})


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_counterfactual_trace_equals_the_definition(
    direction: Direction, tiny_llama: LanguageModel, rule: Rule
) -> None:
    twin = "The area of a circle is A ="
    twins = with_twins(rule, ("The area of a long word is A =", "no"), (twin, "pi times"))
    metrics = ("mean_log_prob", "logit_difference", "log_prob_difference", "negative_kl")
    config = settings(
        corruption="counterfactual",
        direction=direction,
        metrics=metrics,
        components=("resid", "mlp"),
    )
    item = trace_prompt(tiny_llama, twins, "formula", config)
    ids, other = tiny_llama.encode(rule.forms["formula"].prompt).ids, tiny_llama.encode(twin).ids
    (at,) = [i for i, (a, b) in enumerate(zip(ids, other, strict=True)) if a != b]
    answer, alternative = (
        tiny_llama.encode_continuation(text) for text in ("side squared", "pi times")
    )
    case = CorruptedPrompt(ids, answer, (at,), counterfactual=other, alternative=alternative)
    some = [Site("resid", at, range(1, 2)), Site("mlp", at + 1, window(1, 2, 3))]
    for name in metrics:
        got = effects.choose_metric(item, name)
        if name == "log_prob_difference":
            swapped = CorruptedPrompt(ids, alternative, (at,), counterfactual=other)
            both = [
                sweep_reference(tiny_llama, one, some, METRICS[name].function, direction=direction)
                for one in (case, swapped)
            ]
            wanted = both[0].restored - both[1].restored, both[0].clean - both[1].clean
        else:
            result = sweep_reference(
                tiny_llama, case, some, METRICS[name].function, direction=direction
            )
            wanted = result.restored, result.clean
        scores = (
            got["score"].sel(component="resid", layer=1).values[at],
            got["score"].sel(component="mlp", layer=1).values[at + 1],
        )
        np.testing.assert_allclose(np.stack(scores), wanted[0], atol=2e-5)
        assert got["clean"].item() == pytest.approx(float(wanted[1]), abs=2e-5)
        assert (effects.indirect_effect(got).values[..., :at] == 0).all()
    assert item.attrs["counterfactual"] == twin and item.attrs["direction"] == direction
    assert item.attrs["samples"] == 1 and "noise" not in item.attrs
    total = effects.total_effect(effects.choose_metric(item, "negative_kl"))
    assert total["total_effect"] > 0 and bool(total["traceable"])


def test_a_prompt_without_a_twin_is_skipped_and_counted(
    tiny_llama: LanguageModel, rules: Sequence[Rule], tmp_path: Path
) -> None:
    chosen = [with_twins(rules[0], ("The area of a circle is A =", "pi times")), rules[1]]
    skipped = trace_rules(
        tiny_llama, chosen, settings(corruption="counterfactual", **FAST), tmp_path
    )
    assert len(skipped) == 4 and all("no counterfactual prompt aligns" in s.reason for s in skipped)
    assert set(written(tmp_path)) == {"square-area-formula.nc"}


def test_all_components_of_a_map_are_their_sites(tiny_llama: LanguageModel, rule: Rule) -> None:
    item = trace_prompt(
        tiny_llama, rule, "description", settings(components=COMPONENTS, span=("square",))
    )
    assert item.attrs["span"] == "square" and item.attrs["window"] == 2
    score = item["score"]
    at = words(tiny_llama, item).index("square")
    assert [
        t for t, c in zip(words(tiny_llama, item), item["is_corrupted"].values, strict=True) if c
    ] == ["square"]
    # Windows of 2 at layer 0 hold block 0 alone; behind the last block nothing is left to freeze.
    for kind in ("mlp", "attn"):
        np.testing.assert_allclose(
            score.sel(component=kind, layer=0),
            score.sel(component=f"{kind}_single", layer=0),
            **SAME,
        )
        difference = np.abs(
            score.sel(component=kind, layer=1) - score.sel(component=f"{kind}_single", layer=1)
        )
        assert np.asarray(difference)[at:].max() > 1e-3
        frozen = score.sel(component=f"resid_{kind}_frozen")
        np.testing.assert_allclose(
            frozen.sel(layer=2), score.sel(component="resid", layer=2), **SAME
        )
        assert (
            np.asarray(np.abs(frozen.sel(layer=0) - score.sel(component="resid", layer=0)))[
                at
            ].max()
            > 1e-3
        )


def test_screened_and_attributed_maps_say_what_was_estimated(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    maps = {
        method: trace_prompt(tiny_llama, rule, "formula", settings(method=method, samples=6))
        for method in ("exact", "attribution", "screen")
    }
    assert "exact" not in maps["exact"] and not maps["attribution"]["exact"].values[:, :, 1:].any()
    screened = maps["screen"]
    ran = screened["exact"].values
    assert ran[:, :, 0].all()  # nothing differs before the first corrupted token
    assert 0 < ran.mean() < 1 and screened.attrs["missed_mass"] >= 0
    np.testing.assert_allclose(
        screened["score"].values[ran], maps["exact"]["score"].values[ran], **SAME
    )
    assert len({item.attrs["fingerprint"] for item in maps.values()}) == 3


# The answer.


@pytest.mark.parametrize(
    ("which", "form", "asked", "source"),
    [
        (0, "formula", "auto", "dataset"),
        (0, "formula", "truth", "dataset"),
        (0, "formula", "greedy", "greedy"),
        (1, "formula", "auto", "greedy"),
        (1, "description", "auto", "dataset"),
    ],
)
def test_answer_is_the_truth_or_what_the_model_says(
    which: int,
    form: RuleForm,
    asked: str,
    source: str,
    tiny_llama: LanguageModel,
    rules: Sequence[Rule],
) -> None:
    rule = rules[which]
    item = trace_prompt(tiny_llama, rule, form, settings(answer=asked, answer_tokens=3))
    assert item.attrs["answer_source"] == source
    prompt = tiny_llama.encode(rule.forms[form].prompt).ids
    if source == "dataset":
        answer = tiny_llama.encode_continuation(rule.forms[form].target_true[0])
        assert item["answer"].item() == rule.forms[form].target_true[0]
    else:
        answer = tiny_llama.generate([prompt], 3)[0]
        assert len(answer) == 3 and item["answer"].item() == tiny_llama.decode(answer)
    logits = tiny_llama.logits(torch.tensor([[*prompt, *answer]]))[0].double().log_softmax(-1)
    expected = np.mean(
        [logits[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)]
    )
    assert item["clean"].item() == pytest.approx(expected, abs=1e-5)


def test_the_greedy_answer_is_never_less_likely_than_others_at_its_first_token(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    config = {"metrics": ("first_token_prob",), "positions": ("last",), "components": ("resid",)}
    greedy, truth = (
        trace_prompt(tiny_llama, rule, "formula", settings(answer=a, **config))["clean"].item()
        for a in ("greedy", "truth")
    )
    assert greedy >= truth


def test_asking_for_a_truth_that_is_not_there_says_so(
    tiny_llama: LanguageModel, rules: Sequence[Rule]
) -> None:
    with pytest.raises(
        ValueError,
        match="rule 'cube-volume' has no true answer for its formula; use answer: auto or",
    ):
        trace_prompt(tiny_llama, rules[1], "formula", settings(answer="truth"))


# Many prompts.

FAST: dict[str, Any] = {"components": ("mlp",), "positions": ("subject_last",)}


def collected(rules: Sequence[Rule], folder: Path, skipped: Sequence[Skipped]) -> xr.Dataset:
    tracing.collect(rules, folder, skipped, folder / "joined" / "effects.nc")
    return effects.load(folder / "joined" / "effects.nc")


def written(folder: Path) -> dict[str, int]:
    """Files of a folder with the time at which each was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.nc")}


def test_trace_rules_writes_one_file_per_prompt(
    tiny_llama: LanguageModel, rules: Sequence[Rule], tmp_path: Path
) -> None:
    done: list[float] = []
    assert trace_rules(tiny_llama, rules, settings(**FAST), tmp_path, advance=done.append) == []
    assert set(written(tmp_path)) == {
        "square-area-formula.nc",
        "square-area-description.nc",
        "square-area-instance.nc",
        "cube-volume-formula.nc",
        "cube-volume-description.nc",
    }
    assert sum(done) == pytest.approx(5)
    one = trace_prompt(tiny_llama, rules[1], "formula", settings(**FAST))
    xr.testing.assert_identical(effects.load(trace_path(tmp_path, "cube-volume", "formula")), one)
    together = collected(rules, tmp_path, [])
    back = effects.select_map(together, "cube-volume", "formula")
    np.testing.assert_array_equal(back["score"], one["score"])
    assert together["n_tokens"].sel(rule="cube-volume", form="instance") == 0
    assert together.attrs["n_skipped"] == 0


def test_trace_rules_counts_what_it_skips_with_the_reason(
    tiny_llama: LanguageModel, rules: Sequence[Rule], tmp_path: Path
) -> None:
    done: list[float] = []
    skipped = trace_rules(
        tiny_llama, rules, settings(span="numbers", positions="all"), tmp_path, advance=done.append
    )
    assert [(s.rule, s.form) for s in skipped] == [
        ("square-area", "formula"),
        ("square-area", "description"),
        ("cube-volume", "formula"),
        ("cube-volume", "description"),
    ]
    assert all("no token to corrupt: span 'numbers'" in s.reason for s in skipped)
    assert set(written(tmp_path)) == {"square-area-instance.nc"} and sum(done) == pytest.approx(5)
    attrs = collected(rules, tmp_path, skipped).attrs
    assert attrs["n_skipped"] == 4 and attrs["skipped"].startswith(
        "square-area/formula: no token to corrupt"
    )


def test_trace_rules_runs_again_only_what_is_missing(
    tiny_llama: LanguageModel, rules: Sequence[Rule], tmp_path: Path
) -> None:
    trace_rules(tiny_llama, rules, settings(**FAST), tmp_path)
    before = written(tmp_path)
    old = effects.load(tmp_path / "square-area-instance.nc")
    (tmp_path / "square-area-instance.nc").unlink()
    # The size of batches does not change numbers, and so does not make a trace stale.
    trace_rules(tiny_llama, rules, settings(**FAST, batch_size=3), tmp_path)
    after = written(tmp_path)
    assert set(after) == set(before)
    assert [name for name in after if after[name] != before[name]] == ["square-area-instance.nc"]
    xr.testing.assert_allclose(effects.load(tmp_path / "square-area-instance.nc"), old, **SAME)


def test_trace_rules_refuses_other_settings_before_any_run(
    tiny_llama: LanguageModel, rules: Sequence[Rule], tmp_path: Path
) -> None:
    trace_rules(tiny_llama, rules, settings(**FAST), tmp_path)
    (
        tmp_path / "square-area-formula.nc"
    ).unlink()  # the first in order: would be run before the others are seen
    before = written(tmp_path)
    with pytest.raises(
        StaleTraceError,
        match=r"square-area-description\.nc was traced with other settings.*--overwrit",
    ):
        trace_rules(tiny_llama, rules, settings(**FAST, noise="e1"), tmp_path)
    assert written(tmp_path) == before


def test_trace_rules_overwrites_when_told(
    tiny_llama: LanguageModel, rules: Sequence[Rule], tmp_path: Path
) -> None:
    trace_rules(tiny_llama, rules, settings(**FAST), tmp_path)
    before = written(tmp_path)
    trace_rules(tiny_llama, rules, settings(**FAST, noise="e1"), tmp_path, overwrite=True)
    after = written(tmp_path)
    assert set(after) == set(before) and not set(after.items()) & set(before.items())
    joined = collected(rules, tmp_path, [])
    assert joined.attrs["noise"] == "e1"


@pytest.mark.parametrize(
    "change",
    [
        {"noise": "e1"},
        {"samples": 3},
        {"seed": 6},
        {"window": 1},
        {"span": "subject"},
        {"answer": "greedy"},
        {"metrics": ("sum_log_prob",)},
        {"corruption": "counterfactual"},
        {"direction": "noise"},
        {"noise_replaces": True},
        {"method": "screen"},
        {"positions": ("last",)},
        {"components": ("mlp",)},
    ],
)
def test_fingerprint_changes_with_every_setting_of_the_numbers(
    change: dict[str, Any], tiny_llama: LanguageModel, rule: Rule
) -> None:
    base = fingerprint.trace_fingerprint(tiny_llama, rule, "formula", settings())
    assert fingerprint.trace_fingerprint(tiny_llama, rule, "formula", settings(**change)) != base
    assert (
        fingerprint.trace_fingerprint(tiny_llama, rule, "formula", settings(batch_size=1)) == base
    )


def test_fingerprint_changes_with_weights_and_wording(
    make_model: Callable[..., LanguageModel], tiny_llama: LanguageModel, rule: Rule
) -> None:
    def print_of(model: LanguageModel, rule: Rule) -> str:
        return fingerprint.trace_fingerprint(model, rule, "formula", settings())

    def reworded(**changes: Any) -> Rule:
        forms = {**rule.forms, "formula": rule.forms["formula"].model_copy(update=changes)}
        return rule.model_copy(update={"forms": forms})

    variants = [
        rule,
        reworded(prompt="The area of a square is"),
        reworded(target_true=("side times side",)),
        rule.model_copy(update={"name": "big area of a square"}),
    ]
    prints = [print_of(tiny_llama, variant) for variant in variants]
    prints.append(print_of(make_model("llama", seed=1, check=False), rule))
    assert len(set(prints)) == len(prints)
    assert print_of(tiny_llama, reworded(target_new="other")) == prints[0]
    assert print_of(make_model("llama", check=False), rule) == prints[0]


def test_collect_refuses_an_empty_folder(rules: Sequence[Rule], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no effect maps to join; trace at least one prompt first"):
        collected(rules, tmp_path, [Skipped("square-area", "formula", "why")])


# A run that is killed.


@pytest.mark.golden
@pytest.mark.slow
def test_a_killed_trace_continues_to_the_same_numbers(
    model_folder: Path, rules: Sequence[Rule], tmp_path: Path
) -> None:
    dump_rules(rules, tmp_path / "rules.json")
    common = {"model": str(model_folder), "rules": str(tmp_path / "rules.json"), "device": "cpu"}
    # One site at a time, so that there is time to kill it between two prompts.
    chosen = (
        "trace.samples=2",
        "trace.positions=[subject_last, after, last]",
        "trace.batch_size=1",
        "trace.components=[mlp]",
    )
    settings = [
        ("model.name", common["model"]),
        ("rules.source", common["rules"]),
        ("model.device", "cpu"),
        *map(read_assignment, chosen),
    ]
    trace = Run(tmp_path / "whole", settings=settings)
    assert "5 prompts traced" in trace("trace")["trace"]

    killed = tmp_path / "killed"
    command = [sys.executable, "-m", "interp.app.commands", "trace", "--run", str(killed)]
    command += [f"--{name}={value}" for name, value in common.items()] + [
        f"--set={text}" for text in chosen
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + DEADLINE
        while not list(killed.glob("traces/*.nc")):
            assert process.poll() is None and time.monotonic() < end, (
                "the command ended before its first trace"
            )
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == -signal.SIGKILL
    left = {path.name: path.stat().st_mtime_ns for path in killed.glob("traces/*.nc")}
    assert 1 <= len(left) < 5 and not (killed / "effects.nc").exists()

    assert "5 prompts traced" in Run(killed, settings=settings)("trace")["trace"]
    now = {path.name: path.stat().st_mtime_ns for path in killed.glob("traces/*.nc")}
    assert len(now) == 5 and {name: now[name] for name in left} == left
    whole, continued = (
        effects.load(folder / "effects.nc") for folder in (tmp_path / "whole", killed)
    )
    xr.testing.assert_identical(continued, whole)
    assert (killed / "effects.nc").read_bytes() == (tmp_path / "whole" / "effects.nc").read_bytes()
