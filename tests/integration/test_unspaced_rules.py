"""Six rules in Chinese and Japanese through the whole chain, on a tiny model with a byte-level
tokenizer."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from editing.closed_form.contexts import preservation_row
from editing.edits.requests import requests_of, words_of
from editing.evaluation.items import items_of
from interp.models.loading import LanguageModel
from interp.results import effects
from interp.rules.sources import Rule, load_rules

pytestmark = pytest.mark.slow

RULES = Path(__file__).parents[1] / "data" / "cjk_rules.json"
FAST = [
    "covariance.identity=true",
    "edit.contexts=0",
    "edit.steps=3",
    "edit.block=1-2",
    "evaluate.answer_tokens=6",
    "trace.answer=greedy",
    "trace.positions=[last,rule_word]",
    "profile.bootstrap=10",
    "select.bootstrap=10",
    "select.identity_blocks=0",
    "select.strategy=window",
    "select.width=1",
    "trace.components=[mlp]",
]


@pytest.fixture(scope="module")
def rules() -> tuple[Rule, ...]:
    return load_rules(RULES).rules


def test_the_chain(
    dmle: Callable[..., tuple[int, str]],
    model_folder: Path,
    tmp_path: Path,
    rules: tuple[Rule, ...],
    tiny_llama: LanguageModel,
) -> None:
    run = tmp_path / "run"
    flags = [part for value in FAST for part in ("--set", value)]
    common = ["--run", run, "--model", model_folder, "--device", "cpu", "--rules", RULES, *flags]
    for step in (
        ["trace"],
        ["profile"],
        ["select"],
        ["edit", "--editors", "dmle,memit"],
        ["evaluate"],
    ):
        code, said = dmle(*step, *common)
        assert code == 0, said
    maps = effects.load(run / "effects.nc")
    assert int((maps["n_tokens"] > 0).sum()) == 18
    for rule in rules:
        for form, prompt in rule.forms.items():
            one = maps.sel(rule=rule.id, form=form)
            kept = one["is_corrupted"].values.astype(bool)[: int(one["n_tokens"])]
            encoding = tiny_llama.encode(prompt.prompt)
            # Every letter of every mention, found here by reading the text from left to right.
            wanted = np.zeros(len(prompt.prompt), bool)
            for phrase in (prompt.subject, *(rule.words or ())):
                for at in range(len(prompt.prompt)):
                    wanted[at : at + len(phrase)] |= prompt.prompt.startswith(phrase, at)
            assert kept.tolist() == [bool(wanted[a:b].any()) for a, b in encoding.offsets], (
                rule.id,
                form,
            )
    answers = pd.read_csv(run / "answers.csv")
    assert len(answers) == 2 * sum(len(items_of(rule)) for rule in rules)
    log_prob = answers["log_prob_before"].dropna()
    assert len(log_prob) and np.isfinite(log_prob).all()
    row = answers[answers["metric"] == "reliability"].iloc[0]
    by_hand = float(_log_prob(tiny_llama, row["prompt"] + row["target_new"], len(row["prompt"])))
    assert row["log_prob_before"] == pytest.approx(by_hand, abs=1e-4)


def _log_prob(model: LanguageModel, text: str, border: int) -> float:
    """Mean log-probability of the tokens of a text behind a border, from one run of the whole
    text."""
    import torch

    got = model.tokenizer(text, return_offsets_mapping=True)
    ids = torch.tensor([got["input_ids"]])
    said = model.logits(ids)[0].log_softmax(-1)
    places = [i for i, (first, _) in enumerate(got["offset_mapping"]) if first >= border]
    return float(np.mean([said[i - 1, ids[0, i]].item() for i in places]))


def test_no_stray_space_is_scored_or_edited_in(
    rules: tuple[Rule, ...], tiny_llama: LanguageModel
) -> None:
    for rule in rules:
        for item in items_of(rule):
            q = item.question
            ids = tiny_llama.encode_continuation(q.target, q.prompt, q.space)
            assert tiny_llama.decode(ids) == q.target
            assert (*tiny_llama.encode(q.prompt).ids, *ids) == tiny_llama.encode(
                q.prompt + q.target
            ).ids
        for request in requests_of(rule, "rule_word_last"):
            words = words_of(request)
            assert "".join(word.target_new for word in words) == request.target_new
            assert (
                words[-1].prompt
                == request.prompt + request.target_new[: -len(words[-1].target_new)]
            )
            kept = tiny_llama.decode(preservation_row(tiny_llama, request, "subject_last").ids)
            assert kept == f"{request.subject} is a"
