"""Evaluation: the schema, what must hold before the edit, and scores of models whose answers are
known."""

import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from editing.config import EvaluateConfig
from editing.editors.grace import Codebook
from editing.editors.ice import InContext
from editing.edits.delta import EditDelta
from editing.edits.low_rank import LowRank
from editing.edits.protocol import Edit
from editing.evaluation.answers import MARGIN
from editing.evaluation.equivalence import equivalent
from editing.evaluation.evaluate import COLUMNS, evaluate
from editing.evaluation.items import items_of
from editing.evaluation.scoring import Question
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.results.scores import METRICS, MODES, PHASES
from interp.rules.sources import LocalityProbe, Probe, Rule, RulePrompt, load_rules
from interp.vocabulary import FORMS
from tests.unit.editing_making import assert_unchanged, factors, snapshot

CONFIG = EvaluateConfig(batch_size=4, answer_tokens=3)
GREEDY = ("greedy_exact", "greedy_prefix", "equivalent")


def applies(mode: str, metric: str, target: str) -> bool:
    """Whether a mode has a value for an item; for locality "equivalent" hangs on the unedited
    answer."""
    if mode == "equivalent":
        return equivalent("", target) is not None
    return mode != ("log_prob" if metric == "locality" else "kl")


def empty(model: LanguageModel) -> EditDelta:
    return EditDelta({}, {}, model.weight_hash)


def random_delta(model: LanguageModel, seed: int = 0) -> EditDelta:
    name = model.down_projection(1).name
    generator = torch.Generator().manual_seed(seed)
    update = LowRank(
        torch.randn(32, 2, generator=generator) / 3, torch.randn(48, 2, generator=generator) / 3
    )
    return EditDelta({name: update}, {name: 1}, model.weight_hash)


def asking(answer: str) -> Rule:
    """A rule of one form with a question of every metric, to which the same answer is wanted."""

    def probe(prompt: str) -> Probe:
        return Probe(prompt=prompt, target_new=answer, target_true=("1",))

    prompt = "The area of a square is A ="
    form = RulePrompt(
        prompt=prompt,
        subject="square",
        target_new=answer,
        rephrasings=("The square's area is A =",),
        instances=(probe("A square with s = 3 has"),),
        understanding=(probe("The area of a square is"), probe(prompt)),
        neighborhood=(LocalityProbe(prompt="The area of a circle is", answer=answer),),
    )
    return Rule(id="asked", name="area of a square", subject="square", forms={"formula": form})


def score(
    scores: xr.Dataset, metric: str, mode: str, phase: str, rule: int = 0, form: str = "formula"
) -> float:
    return (
        scores["score"]
        .isel(editor=0, rule=rule)
        .sel(form=form, metric=metric, mode=mode, phase=phase)
        .item()
    )


def test_evaluate_gives_the_schema(tiny_llama: LanguageModel, rules: tuple[Rule, ...]) -> None:
    deltas = {
        editor: {rule.id: random_delta(tiny_llama, seed) for rule in rules}
        for seed, editor in enumerate(("a", "b"))
    }
    passes: list[int] = []
    scores, _ = evaluate(tiny_llama, rules, deltas, CONFIG, advance=passes.append)
    dims = ("editor", "rule", "form", "metric", "mode", "phase")
    for name in ("score", "n_items"):
        assert scores[name].dims == dims and scores[name].shape == (2, 2, 3, 7, 7, 2)
    labels = (("a", "b"), tuple(rule.id for rule in rules), FORMS, METRICS, MODES, PHASES)
    for dim, names in zip(dims, labels, strict=True):
        assert tuple(scores[dim].values) == names
    assert scores.attrs == {
        "schema": "dmle.scores/1",
        "model": tiny_llama.name,
        "weight_hash": tiny_llama.weight_hash,
    }
    assert scores["n_items"].dtype == np.int64
    assert sum(passes) == 2 * (1 + 2)


def test_items_of_counts_every_question_of_a_rule(rule: Rule) -> None:
    got = Counter((item.form, item.metric) for item in items_of(rule))
    assert got == {
        ("formula", "reliability"): 1,
        ("formula", "generality"): 1,
        ("formula", "instance_portability"): 1,
        ("formula", "rule_understanding_verbatim"): 1,  # it asks what the description's edit asks
        ("formula", "locality"): 2,
        ("formula", "locality_correctness"): 2,
        ("description", "reliability"): 1,
        ("description", "generality"): 1,
        ("description", "rule_understanding_verbatim"): 1,
        ("description", "locality"): 1,
        ("description", "locality_correctness"): 1,
        ("instance", "reliability"): 1,
        ("instance", "generality"): 1,
        ("instance", "locality"): 1,
        ("instance", "locality_correctness"): 1,
    }


def test_items_of_takes_the_wording_from_the_prompts_that_are_edited() -> None:
    rule = asking("12")
    wording = {
        item.question.prompt: item.metric
        for item in items_of(rule)
        if "understanding" in item.metric
    }
    assert wording == {
        "The area of a square is": "rule_understanding_paraphrase",
        "The area of a square is A =": "rule_understanding_verbatim",
    }


def test_items_of_the_embedded_rules_classify_understanding_as_the_rules_say() -> None:
    seen: Counter[str] = Counter()
    for rule in load_rules().rules:
        said = [probe.wording for form in rule.forms.values() for probe in form.understanding]
        got = [
            item.metric.rpartition("_")[2]
            for item in items_of(rule)
            if "understanding" in item.metric
        ]
        assert got == said
        seen.update(got)
    assert set(seen) == {"verbatim", "paraphrase"}


@pytest.mark.parametrize("target", ["4 side", "2s", "12."])
def test_n_items_are_the_questions_and_metrics_without_one_are_nan(
    tiny_llama: LanguageModel, target: str
) -> None:
    rule = asking(target)
    scores, _ = evaluate(tiny_llama, [rule], {"a": {rule.id: empty(tiny_llama)}}, CONFIG)
    counts = Counter(
        (item.form, item.metric, mode)
        for item in items_of(rule)
        for mode in MODES
        if applies(mode, item.metric, item.question.target)
    )
    assert counts["formula", "reliability", "equivalent"] == (target != "4 side")
    for form in FORMS:
        for metric in METRICS:
            for mode in MODES:
                if (metric, mode) == ("locality", "equivalent"):
                    continue  # its target is what the unedited model says
                expected = counts[(form, metric, mode)]
                where = {"form": form, "metric": metric, "mode": mode}
                assert (
                    scores["n_items"].isel(editor=0, rule=0).sel(where).values == expected
                ).all(), where
                assert (
                    np.isnan(scores["score"].isel(editor=0, rule=0).sel(where).values)
                    == (expected == 0)
                ).all()


def test_locality_before_the_edit_is_one_and_its_divergence_zero(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    deltas = {"a": {rule.id: random_delta(tiny_llama) for rule in rules}}
    scores, _ = evaluate(tiny_llama, rules, deltas, CONFIG)
    local = scores["score"].sel(metric="locality", rule="square-area").isel(editor=0)
    pre, post = local.sel(phase="pre"), local.sel(phase="post")
    assert (pre.sel(mode="token_accuracy") == 1).all() and (pre.sel(mode="exact") == 1).all()
    assert (pre.sel(mode="kl") == 0).all()
    assert (post.sel(mode="kl") > 0).all()
    assert (post.sel(mode="token_accuracy") < 1).any()


def test_an_empty_delta_changes_no_score(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    deltas = {"a": {rule.id: empty(tiny_llama) for rule in rules}}
    scores, answers = evaluate(tiny_llama, rules, deltas, CONFIG)
    np.testing.assert_array_equal(
        scores["score"].sel(phase="pre").values, scores["score"].sel(phase="post").values
    )
    assert all(row["before"] == row["after"] for row in answers)


def test_scores_equal_plain_means_over_single_questions(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    delta, hf, tokenizer = random_delta(tiny_llama), make_hf("llama"), tiny_llama.tokenizer
    scores, _ = evaluate(tiny_llama, [rule], {"a": {rule.id: delta}}, CONFIG)

    def said(question: Question) -> tuple[list[int], torch.Tensor]:
        prompt = tokenizer(question.prompt)["input_ids"]
        target = tokenizer(" " + question.target, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = hf(torch.tensor([prompt + target])).logits[0].double()
        return target, logits[len(prompt) - 1 : -1].log_softmax(-1)

    items = items_of(rule)
    runs = {"pre": {item.question: said(item.question) for item in items}}
    ((name, update),) = factors(delta).items()
    with torch.no_grad():
        hf.get_parameter(name).add_(update.dense())
    runs["post"] = {item.question: said(item.question) for item in items}
    for phase, run in runs.items():
        for form, metric in {(item.form, item.metric) for item in items}:
            asked = [item.question for item in items if (item.form, item.metric) == (form, metric)]
            values: dict[str, list[float]] = {mode: [] for mode in MODES}
            for q in asked:
                target, now = run[q]
                unedited = runs["pre"][q][1]
                wanted = unedited.argmax(-1) if metric == "locality" else torch.tensor(target)
                right = (now.argmax(-1) == wanted).double()
                values["token_accuracy"].append(right.mean().item())
                values["exact"].append(right.min().item())
                values["log_prob"].append(now[range(len(target)), target].mean().item())
                values["kl"].append((unedited.exp() * (unedited - now)).sum(-1).mean().item())
            for mode in ("token_accuracy", "exact", "log_prob", "kl"):
                if mode != ("log_prob" if metric == "locality" else "kl"):
                    expected = sum(values[mode]) / len(asked)
                    got = score(scores, metric, mode, phase, form=form)
                    assert got == pytest.approx(expected, rel=1e-4, abs=1e-5), (
                        phase,
                        form,
                        metric,
                        mode,
                    )


def test_a_model_that_answers_right_scores_one_and_one_that_does_not_zero(
    make_model: Callable[..., LanguageModel],
) -> None:
    model = make_model(
        "gptj"
    )  # its unembedding has a bias: with a large one it says the same word for ever
    (word,) = model.encode_continuation("side")
    with torch.no_grad():
        model.parameters["lm_head.bias"][word] += 1e4
    for target, expected in (("side", 1.0), ("side side", 1.0), ("cube", 0.0), ("cube cube", 0.0)):
        rule = asking(target)
        scores, answers = evaluate(model, [rule], {"none": {rule.id: empty(model)}}, CONFIG)
        for metric in METRICS:
            for mode in ("token_accuracy", "exact"):
                # The unedited model is right about itself whatever the answer is.
                right = 1.0 if metric == "locality" else expected
                assert score(scores, metric, mode, "post") == right, (metric, mode)
            assert score(scores, metric, "greedy_prefix", "post") == right, metric
            # It never ends its sentence.
            assert score(scores, metric, "greedy_exact", "post") == float(metric == "locality"), (
                metric
            )
            assert math.isnan(score(scores, metric, "equivalent", "post"))
        assert {row["after"] for row in answers} == {" side side side"}
    half = asking("side cube")
    scores, _ = evaluate(model, [half], {"none": {half.id: empty(model)}}, CONFIG)
    assert score(scores, "reliability", "token_accuracy", "post") == 0.5
    assert score(scores, "reliability", "exact", "post") == 0.0


def test_a_rule_without_a_delta_is_nan_for_that_editor_alone(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    square, cube = (rule.id for rule in rules)
    deltas = {
        "both": {square: empty(tiny_llama), cube: empty(tiny_llama)},
        "one": {cube: empty(tiny_llama)},
    }
    scores, answers = evaluate(tiny_llama, rules, deltas, CONFIG)
    missing = scores.sel(editor="one", rule=square)
    assert missing["score"].isnull().all() and (missing["n_items"] == 0).all()
    for editor, rule in (("both", square), ("both", cube), ("one", cube)):
        assert (
            not scores["score"]
            .sel(editor=editor, rule=rule, metric="reliability", mode="exact")
            .sel(form=["formula", "description"])
            .isnull()
            .any()
        )
    assert {(row["editor"], row["rule"]) for row in answers} == {
        ("both", square),
        ("both", cube),
        ("one", cube),
    }


def test_raw_answers_are_complete(tiny_llama: LanguageModel, rule: Rule) -> None:
    scores, answers = evaluate(
        tiny_llama, [rule], {"a": {rule.id: random_delta(tiny_llama)}}, CONFIG
    )
    items = items_of(rule)
    assert len(answers) == len(items)
    for row, item in zip(answers, items, strict=True):
        assert set(row) == set(COLUMNS)
        assert (row["editor"], row["rule"], row["form"], row["metric"]) == (
            "a",
            rule.id,
            item.form,
            item.metric,
        )
        assert (row["prompt"], row["target_new"]) == (item.question.prompt, item.question.target)
        for mode in MODES:
            target = row["target_new"]
            if (item.metric, mode) == ("locality", "equivalent"):
                target = row["answer_before"]
            for when in ("before", "after"):
                assert (row[f"{mode}_{when}"] != "") == applies(mode, item.metric, target), (
                    item,
                    mode,
                )
        for when in ("before", "after"):
            assert row[f"answer_{when}"].startswith(row[when])
    formula = answers[0]
    assert (formula["target_new"], formula["target_true"]) == ("4 side", "side squared")
    # The means of the rows are the scores.
    rows = [r for r in answers if (r["form"], r["metric"]) == ("formula", "locality")]
    mean = sum(r["kl_after"] for r in rows) / len(rows)
    assert score(scores, "locality", "kl", "post") == pytest.approx(mean)


def test_raw_answers_are_the_models_own_greedy_texts(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any], rule: Rule
) -> None:
    delta, hf = random_delta(tiny_llama), make_hf("llama")
    _, answers = evaluate(tiny_llama, [rule], {"a": {rule.id: delta}}, CONFIG)

    def greedy(prompt: str) -> str:
        ids = tiny_llama.tokenizer(prompt)["input_ids"]
        said: list[int] = []
        for _ in range(lengths[prompt]):
            with torch.no_grad():
                said.append(int(hf(torch.tensor([ids + said])).logits[0, -1].argmax()))
        return tiny_llama.tokenizer.decode(
            said, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    rows = [row for row in answers if row["metric"] in ("reliability", "locality")]
    lengths: dict[str, int] = {}
    for row in answers:
        known = len(tiny_llama.encode_continuation(row["target_new"] or row["target_true"]))
        lengths[row["prompt"]] = max(3, known, lengths.get(row["prompt"], 0))
    before = [greedy(row["prompt"]) for row in rows]
    ((name, update),) = factors(delta).items()
    with torch.no_grad():
        hf.get_parameter(name).add_(update.dense())
    after = [greedy(row["prompt"]) for row in rows]
    assert [row["before"] for row in rows] == before and [row["after"] for row in rows] == after
    assert before != after


def test_the_model_is_unedited_afterwards_also_after_an_error(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    before = snapshot(tiny_llama)
    delta = random_delta(tiny_llama)
    evaluate(tiny_llama, [rule], {"a": {rule.id: delta}}, CONFIG)
    assert_unchanged(tiny_llama, before)

    def stop(passes: int, seen: list[int] = []) -> None:  # noqa: B006
        seen.append(passes)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_llama, [rule], {"a": {rule.id: delta}}, CONFIG, advance=stop)
    assert_unchanged(tiny_llama, before)


def test_every_edit_is_scored_alone_on_the_unedited_model(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    deltas = {"a": {rule.id: random_delta(tiny_llama, i) for i, rule in enumerate(rules)}}
    together, _ = evaluate(tiny_llama, rules, deltas, CONFIG)
    for rule in rules:
        alone, _ = evaluate(tiny_llama, [rule], deltas, CONFIG)
        np.testing.assert_array_equal(
            together["score"].sel(rule=[rule.id]).values, alone["score"].values
        )


def test_log_probs_are_negative_and_finite(tiny_llama: LanguageModel, rule: Rule) -> None:
    scores, _ = evaluate(tiny_llama, [rule], {"a": {rule.id: empty(tiny_llama)}}, CONFIG)
    value = score(scores, "reliability", "log_prob", "pre")
    assert math.isfinite(value) and value < 0


def test_edits_of_every_kind_are_scored_side_by_side(tiny_llama: LanguageModel) -> None:
    rule = asking("12")
    at = torch.tensor([tiny_llama.encode("The area of a square is A =").ids])
    name = tiny_llama.key_hook(1)
    key = tiny_llama.capture(at, [name])[name][0, -1:]
    weights = tiny_llama.weight_hash
    edits: dict[str, Edit] = {
        "delta": random_delta(tiny_llama),
        "codebook": Codebook(
            1, key, torch.full((1, 32), 3.0), torch.tensor([1e-2]), ("12",), weights
        ),
        "context": InContext("New Fact: 12\nPrompt: ", weights),
        "none": InContext("", weights),
    }
    deltas = {kind: {rule.id: edit} for kind, edit in edits.items()}
    before = snapshot(tiny_llama)
    scores = {
        size: evaluate(
            tiny_llama, [rule], deltas, EvaluateConfig(batch_size=size, answer_tokens=3)
        )[0]["score"]
        for size in (1, 8)
    }
    assert_unchanged(tiny_llama, before)
    np.testing.assert_allclose(scores[1].values, scores[8].values, rtol=1e-4, atol=1e-4)
    for kind, edit in edits.items():
        alone, _ = evaluate(
            tiny_llama,
            [rule],
            {kind: {rule.id: edit}},
            EvaluateConfig(batch_size=8, answer_tokens=3),
        )
        np.testing.assert_array_equal(
            alone["score"].sel(editor=kind).values, scores[8].sel(editor=kind).values
        )
    post = scores[8].sel(phase="post", form="formula").isel(rule=0)
    kl = post.sel(metric="locality", mode="kl")
    assert (kl.sel(editor=["delta", "context"]) > 1e-3).all()
    assert (
        kl.sel(editor=["codebook", "none"]) < 1e-6
    ).all()  # the codebook holds the edited prompt alone
    edited = post.sel(metric="reliability", mode="log_prob")
    unedited = edited.sel(editor="none").item()
    for kind in ("delta", "codebook", "context"):
        assert abs(edited.sel(editor=kind).item() - unedited) > 1e-3, kind


@pytest.mark.parametrize(
    ("wanted", "mode"), [("5.", "equivalent"), ("5.", "greedy_exact"), ("s", "equivalent")]
)
def test_a_model_that_always_says_the_answer_scores_one_in_every_mode(
    wanted: str, mode: str, make_model: Callable[..., LanguageModel]
) -> None:
    model = saying(make_model, wanted)
    for target, expected in ((wanted, 1.0), ("7." if wanted == "5." else "2s", 0.0)):
        rule = asking(target)
        scores, answers = evaluate(model, [rule], {"none": {rule.id: empty(model)}}, CONFIG)
        assert {row["answer_after"].strip()[: len(wanted)] for row in answers} == {wanted}
        for metric in METRICS:
            if metric == "locality":
                continue
            for each in ("greedy_exact", "greedy_prefix", "equivalent", "token_accuracy", "exact"):
                got = score(scores, metric, each, "post")
                if expected == 0 and each == "token_accuracy":
                    assert got < 1
                else:
                    assert got == expected, (metric, each, answers[0])
        for each in (*GREEDY, "token_accuracy", "exact"):
            assert (
                score(scores, "locality", each, "pre")
                == score(scores, "locality", each, "post")
                == 1.0
            )
        assert (scores["n_items"].sel(form="formula", metric="reliability", mode=mode) == 1).all()


def saying(make_model: Callable[..., LanguageModel], text: str) -> LanguageModel:
    """A model that continues a prompt with a text and then with ends of lines: what comes next
    hangs on one token."""
    model = make_model("gptj")
    tokens = model.encode_continuation(text)
    (newline,) = model.tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert len(set(tokens)) == len(tokens)
    embedding, head = model.parameters["transformer.wte.weight"], model.parameters["lm_head.weight"]
    with torch.no_grad():
        for name, parameter in model.parameters.items():
            parameter.fill_(float(name == "transformer.ln_f.weight"))  # the blocks add nothing
        embedding[:, 0] = 1.0
        for place, (token, after) in enumerate(
            zip(tokens, (*tokens[1:], newline), strict=True), start=1
        ):
            embedding[token] = torch.eye(len(embedding[0]))[place]
            head[after, place] = 1.0
        embedding[newline] = embedding[tokens[-1]]
        head[tokens[0], 0] = 1.0
    return model


def test_greedy_answers_are_as_long_as_the_longest_target_and_a_margin(
    tiny_llama: LanguageModel, make_hf: Callable[..., Any]
) -> None:
    rule = asking("twice the sum of the length and the width of it")
    n = len(tiny_llama.encode_continuation("twice the sum of the length and the width of it"))
    _, answers = evaluate(tiny_llama, [rule], {"a": {rule.id: empty(tiny_llama)}}, CONFIG)
    hf, tokenizer = make_hf("llama"), tiny_llama.tokenizer
    for row in answers[:2]:
        ids = tokenizer(row["prompt"])["input_ids"]
        said: list[int] = []
        while len(said) < n + MARGIN:
            with torch.no_grad():
                said.append(int(hf(torch.tensor([ids + said])).logits[0, -1].argmax()))
            if said[-1] == tokenizer.eos_token_id:
                break
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        assert row["answer_after"] == tokenizer.decode(said, **options)
        assert row["after"] == tokenizer.decode(
            said[:n], **options
        )  # shown is what the target needs


def test_near_the_end_of_the_context_the_margin_gives_way(tiny_llama: LanguageModel) -> None:
    rule = asking("12")
    long = "A " * 200
    size = next(
        n
        for n in range(1, 200)
        if len(tiny_llama.encode(long[: 2 * n]).ids) == tiny_llama.context_length - 5
    )
    prompt = rule.forms["formula"].model_copy(
        update={"prompt": long[: 2 * size], "understanding": ()}
    )
    edge = rule.model_copy(update={"forms": {"formula": prompt}})
    _, answers = evaluate(tiny_llama, [edge], {"a": {rule.id: empty(tiny_llama)}}, CONFIG)
    assert len(answers[0]["answer_after"]) < len(answers[1]["answer_after"])


def test_the_batch_size_changes_no_score_and_no_answer(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    found = []
    for size in (1, 3, 32):
        config = EvaluateConfig(batch_size=size, answer_tokens=3)
        found.append(
            evaluate(tiny_llama, [rule], {"a": {rule.id: random_delta(tiny_llama)}}, config)
        )
    for scores, answers in found[1:]:
        np.testing.assert_allclose(
            scores["score"].values, found[0][0]["score"].values, rtol=1e-4, atol=1e-4
        )
        np.testing.assert_array_equal(scores["n_items"].values, found[0][0]["n_items"].values)
        for key in ("before", "after", "answer_before", "answer_after"):
            assert [row[key] for row in answers] == [row[key] for row in found[0][1]]


def test_scores_are_saved_and_read_back(
    tiny_llama: LanguageModel, rule: Rule, tmp_path: Path
) -> None:
    scores, _ = evaluate(tiny_llama, [rule], {"a": {rule.id: random_delta(tiny_llama)}}, CONFIG)
    effects.save(scores, tmp_path / "scores.nc")
    xr.testing.assert_identical(effects.load(tmp_path / "scores.nc"), scores)


def test_text_before_every_prompt_is_run_once_with_the_same_scores(
    rule: Rule, make_model: Callable[..., LanguageModel]
) -> None:
    for family in ("gpt2", "gpt_neox", "gemma3_text"):
        # Unchecked, a model is not known to have a prefix cache, and every row is run whole.
        model, whole = make_model(family), make_model(family, check=False)
        before = (
            "New Fact: The area of a square is 4 times the side\nPrompt: The area of a square is 4"
            " side\n\nPrompt: "
        )
        edit = InContext(before, model.weight_hash)
        columns = Counter[str]()

        def count(
            module: Any, inputs: Any, out: torch.Tensor, name: str, columns: Counter[str] = columns
        ) -> None:
            columns[name] += out.shape[0] * out.shape[1]

        found = []
        config = EvaluateConfig(greedy=False)
        for name, each in (("shared", model), ("whole", whole)):
            handle = each.bridge.embed.original_component.register_forward_hook(
                partial(count, name=name)
            )
            found.append(evaluate(each, [rule], {"context": {rule.id: edit}}, config)[0])
            handle.remove()
        xr.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-5)
        assert columns["shared"] < 0.75 * columns["whole"]
