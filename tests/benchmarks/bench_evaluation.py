"""Benchmarks of evaluation: one edited rule, all metrics, teacher-forced, against one prompt at a
time.

One rule (three requests, 57 items that are 32 different questions), SmolLM2-135M:

(a) straight: a plain Hugging Face model; every item on its own, unpadded, all logits, before and
    after the edit. "each once" is the same, but for questions that several metrics ask: they are
    run once
(b) ours: `editing.evaluation.evaluate` with greedy answers off
(c) editors: four editors' edits with one pass over the unedited model, against that pass again for
    each
(d) in context: IKE's view with its demonstrations run once for all prompts, against running them
    for each

Times are CPU-seconds of one thread; all cases run in one process, after a warm-up; read ratios.
`score_error` is the largest difference of any score, or log-probability per token in (d), from the
baseline's; a larger one than `TOLERANCE` is an error. The cost does not depend on what the edit is;
(a) to (c) fine-tune one block for a few steps.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import xarray as xr
from torch import Tensor

from editing.config import EditorSettings, EvaluateConfig, FineTuneConfig
from editing.edits.protocol import Edit
from editing.edits.requests import requests_of
from editing.evaluation.evaluate import evaluate, evaluate_edit, unedited
from editing.evaluation.items import items_of
from editing.evaluation.scoring import Question, teacher_forced
from interp.models.loading import LanguageModel, load
from interp.rules.sources import Rule, load_rules
from tests.benchmarks.apart import apart
from tests.unit.editing_making import edit_with

RULE = "rectangle-perimeter"
SETTINGS = EditorSettings(ft=FineTuneConfig(steps=5))
CONFIG = EvaluateConfig(greedy=False)
LAYER, EDITORS = 12, 4
QUICK_EDITORS, QUICK_QUESTIONS = 2, 8
TOLERANCE = 1e-4

Scores = dict[tuple[str, str, str, str], float]
"""By form, metric, mode and phase."""


def straight(model: LanguageModel, rule: Rule, edit: Edit, *, once: bool = False) -> Scores:
    """(a)"""

    def ask_all() -> list[tuple[Tensor, Tensor]]:
        if not once:
            return [log_probs(model, plain, item.question) for item in items]
        known = {
            question: log_probs(model, plain, question)
            for question in dict.fromkeys(i.question for i in items)
        }
        return [known[item.question] for item in items]

    # The copy shares the parameters' memory, so the edit is in it too; but for that it is a model
    # without hooks.
    plain = model.clean_copy()
    items = items_of(rule)
    before = ask_all()
    with edit.edited(model):
        after = ask_all()
    values: dict[tuple[str, str, str, str], list[float]] = {}
    for item, (target, was), (_, now) in zip(items, before, after, strict=True):
        for phase, said in (("pre", was), ("post", now)):
            wanted = was.argmax(-1) if item.metric == "locality" else target
            right = said.argmax(-1) == wanted
            found = {"token_accuracy": right.float().mean().item(), "exact": float(right.all())}
            if item.metric == "locality":
                found["kl"] = (was.exp() * (was - said)).sum(-1).mean().item()
            else:
                found["log_prob"] = said.gather(-1, target[:, None]).mean().item()
            for mode, value in found.items():
                values.setdefault((item.form, item.metric, mode, phase), []).append(value)
    return {key: math.fsum(each) / len(each) for key, each in values.items()}


def log_probs(model: LanguageModel, plain: Any, question: Question) -> tuple[Tensor, Tensor]:
    """Tokens of a question's target, and log-probabilities where each is predicted."""
    prompt, target = model.encode(question.prompt).ids, model.encode_continuation(question.target)
    with torch.no_grad():
        logits = plain(torch.tensor([[*prompt, *target]])).logits[0]
    return torch.tensor(target), logits[len(prompt) - 1 : -1].log_softmax(-1)


def shared_floor(model: LanguageModel, rule: Rule, edit: Edit, editors: int) -> list[Any]:
    """(c): one unedited pass."""
    floor = unedited(model, rule, CONFIG)
    return [evaluate_edit(model, "editor", rule, edit, floor, CONFIG) for _ in range(editors)]


def floor_for_each(model: LanguageModel, rule: Rule, edit: Edit, editors: int) -> list[Any]:
    """(c): as many as editors."""
    return [
        evaluate_edit(model, "editor", rule, edit, unedited(model, rule, CONFIG), CONFIG)
        for _ in range(editors)
    ]


def in_context_scores(
    model: LanguageModel, questions: Sequence[Question], edit: Edit
) -> list[float]:
    """(d): log-probability of every question's target."""
    with edit.edited(model) as view:
        return [
            one.log_prob for one in teacher_forced(view, questions, batch_size=CONFIG.batch_size)
        ]


def measured(*, quick: bool) -> list[dict[str, Any]]:
    """All cases in this process, with one thread."""
    torch.set_num_threads(1)
    # Unchecked, a model is not known to have a prefix cache, and nothing is shared.
    model, unshared = load(device="cpu"), load(device="cpu", check=False)
    rule = load_rules("embedded", ids=[RULE]).rules[0]
    requests = requests_of(rule, SETTINGS.lookup)
    edit = edit_with("ft", model, requests, [LAYER], settings=SETTINGS)
    training = load_rules("embedded", split="train").rules
    context = edit_with("ike", model, requests, settings=SETTINGS, given_rules=training)
    questions = list(dict.fromkeys(item.question for item in items_of(rule)))
    about = f"{len(requests)} requests, {len(items_of(rule))} items, {len(questions)} questions"
    editors = QUICK_EDITORS if quick else EDITORS
    asked = questions[:QUICK_QUESTIONS] if quick else questions
    rows: list[dict[str, Any]] = []

    def compared(name: str, about: str, **cases: Callable[[], Any]) -> list[Any]:
        """Time the cases; the first is the baseline."""
        results, first = [], len(rows)
        for label, one in cases.items():
            start = time.process_time()
            results.append(one())
            rows.append({"name": name, "case": label.replace("_", " "), "about": about})
            rows[-1]["seconds"] = time.process_time() - start
            rows[-1]["ratio"] = rows[first]["seconds"] / rows[-1]["seconds"]
            rows[-1]["baseline"] = rows[first]["case"]
        return results

    def agreed(error: float) -> None:
        if not error <= TOLERANCE:
            raise RuntimeError(
                f"{rows[-1]['name']}: results differ by {error:.1e}, allowed {TOLERANCE:.0e}"
            )
        rows[-1]["score_error"] = error

    def ours() -> xr.Dataset:
        return evaluate(model, [rule], {"ft": {rule.id: edit}}, CONFIG)[0]

    ours()  # warm
    expected, _, got = compared(
        "evaluate a rule",
        about,
        straight=lambda: straight(model, rule, edit),
        straight_each_once=lambda: straight(model, rule, edit, once=True),
        ours=ours,
    )
    agreed(difference(expected, got))
    each, one = compared(
        f"evaluate {editors} editors",
        about,
        floor_for_each=lambda: floor_for_each(model, rule, edit, editors),
        one_floor=lambda: shared_floor(model, rule, edit, editors),
    )
    agreed(0.0 if each == one else math.inf)
    whole, cut = compared(
        "evaluate in context",
        f"{len(asked)} questions behind {len(model.encode(context.before).ids)} tokens",
        whole_rows=lambda: in_context_scores(unshared, asked, context),
        shared_beginning=lambda: in_context_scores(model, asked, context),
    )
    agreed(max(abs(a - b) for a, b in zip(whole, cut, strict=True)))
    return rows


def difference(expected: Mapping[tuple[str, str, str, str], float], got: xr.Dataset) -> float:
    """Largest difference of any score; infinite if one side has a score that the other lacks."""
    scores = got["score"].isel(editor=0, rule=0)
    if int(scores.notnull().sum()) != len(expected):
        return math.inf
    dims = ("form", "metric", "mode", "phase")
    errors = [
        abs(scores.sel(dict(zip(dims, key, strict=True))).item() - value)
        for key, value in expected.items()
    ]
    return math.inf if any(map(math.isnan, errors)) else max(errors)


def run(say: Callable[[dict[str, Any]], None], *, quick: bool = False) -> None:
    """All cases, in a process of their own; rows as in bench.json."""
    for row in apart(measured, quick=quick):
        say(row)


def describe(row: dict[str, Any]) -> str:
    """One line about a row."""
    text = f"{row['name']:20} {row['case']:18} {row['seconds']:7.2f} CPU-s"
    text += f"  {row['ratio']:5.1f} x less than {row['baseline']}"
    text += f" ({row['about']})"
    return text + (f"  score_error {row['score_error']:.1e}" if "score_error" in row else "")
