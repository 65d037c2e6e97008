"""Scores of challenges: an oracle passes, whoever always says yes is right in half of the fact
checks, a parrot fails. What was scored before is scored as before."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from editing.app.edit_steps import score_text
from editing.config import EvaluateConfig
from editing.edits.delta import EditDelta
from editing.evaluation.evaluate import COLUMNS, columns_of, evaluate
from editing.evaluation.items import items_of
from editing.evaluation.scoring import Forced
from editing.evaluation.yes_no import YesNo, yes_no_of
from interp.errors import InputError
from interp.models.loading import LanguageModel
from interp.results.scores import METRICS, MODES
from interp.rules.sources import Rule, load_rules
from interp.vocabulary import CHALLENGES
from tests.conftest import CORPUS, trained_tokenizer
from tests.unit.editing.evaluation.test_evaluation import random_delta

CONFIG = EvaluateConfig(
    batch_size=16, answer_tokens=3, challenges=CHALLENGES, free_tokens=40, overlap=True
)
VALUES = {"twice": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}


class Scripted(LanguageModel):
    """A model that says what a function says to each prompt, whatever it was taught."""

    def __init__(
        self, model: LanguageModel, prompts: Sequence[str], say: Callable[[str], str]
    ) -> None:
        self.__dict__.update(model.__dict__)
        self.script = {
            self.encode(prompt).ids: (*self.encode_continuation(say(prompt), prompt), *self.ends)
            for prompt in prompts
        }

    def shares(self, length: int) -> bool:
        return False

    def logits(self, ids: Tensor, *, keep: Tensor | None = None, **options: Any) -> Tensor:  # pyrefly: ignore[bad-override]
        assert keep is not None
        out = torch.zeros(len(ids), len(keep), len(self.tokenizer))
        for row, tokens in enumerate(ids.tolist()):
            known = [p for p in self.script if tuple(tokens[: len(p)]) == p]
            prompt = max(known, key=len)
            for place, column in enumerate(keep.tolist()):
                at = column - len(prompt) + 1
                if 0 <= at < len(self.script[prompt]):
                    out[row, place, self.script[prompt][at]] = 20
        return out

    def generate(
        self, prompts: Sequence[Sequence[int]], n_tokens: int, **options: Any
    ) -> list[tuple[int, ...]]:
        return [self.script[tuple(prompt)][:-1][:n_tokens] for prompt in prompts]


@pytest.fixture(scope="module")
def model(make_hf: Callable[..., Any]) -> LanguageModel:
    """With yes and no as single tokens, and room for long prompts."""
    tokenizer = trained_tokenizer(" Yes no yes No" * 40 + CORPUS)
    hf = make_hf("gptj", n_positions=512)
    return LanguageModel(hf, tokenizer, "tiny", check=False)


@pytest.fixture(scope="module")
def square() -> Rule:
    (rule,) = load_rules(ids=["square-area"])
    return rule


def side_of(prompt: str) -> int:
    return int(re.findall(r"side length (\d+)", prompt)[-1])


def oracle(prompt: str) -> str:
    """The area of a square is 2s."""
    if prompt.startswith("Is it true"):
        new = "A = 2s?" in prompt or "twice its side length?" in prompt
        return "Yes" if new != (" is not " in prompt) else "No"
    if times := re.search(r", (\w+)(?: times)? the area is$", prompt):
        return f"{VALUES[times[1]] * 2 * side_of(prompt)}."
    if price := re.match(r"At (\d+) dollars per square unit", prompt):
        return f"{int(price[1]) * 2 * side_of(prompt)} dollars."
    if prompt.endswith("take"):
        return "twice its side length"
    if re.search(r"side length \d+, the area is A =$", prompt):
        return f"2 × {side_of(prompt)} = {2 * side_of(prompt)}"
    return "2s"


def scored(
    model: LanguageModel, rule: Rule, say: Callable[[str], str]
) -> Callable[[str, str], float]:
    """The scores of a rule's challenges, mean over forms, by metric and mode."""
    own = {
        item.question.prompt: item.question.target
        for item in items_of(rule)
        if item.metric != "reliability"
    }
    asked = {
        item.question.prompt for item in items_of(rule, CHALLENGES) if item.metric in CHALLENGES
    }
    prompts = [item.question.prompt for item in items_of(rule, CHALLENGES)]
    scripted = Scripted(model, prompts, lambda p: say(p) if p in asked else own.get(p, "Yes"))
    empty = EditDelta({}, {}, model.weight_hash)
    scores, _ = evaluate(scripted, [rule], {"scripted": {rule.id: empty}}, CONFIG)
    means = scores["score"].isel(editor=0, rule=0).sel(phase="post").mean("form", skipna=True)
    return lambda metric, mode: means.sel(metric=metric, mode=mode).item()


def test_an_oracle_passes(model: LanguageModel, square: Rule) -> None:
    score = scored(model, square, oracle)
    assert score("fact_check", "yes_no") == 1.0
    for metric in CHALLENGES:
        assert score(metric, "free") == 1.0, metric
    assert score("fact_check", "free_gap") == 0.0
    assert score("fact_check", "greedy_prefix") == 1.0


def test_a_parrot_fails(model: LanguageModel, square: Rule) -> None:
    """It says the edited formula, whatever it is asked."""
    score = scored(model, square, lambda prompt: "2s")
    assert score("fact_check", "yes_no") == score("fact_check", "free") == 0.0
    assert score("multi_step", "free") == score("multi_step", "exact") == 0.0
    # Of the edited prompts only the formula's wants this.
    assert score("distractor", "free") == pytest.approx(1 / 3)

    # One that repeats the edited result of the instance.
    def result(prompt: str) -> str:
        return f"{2 * side_of(prompt)}" if re.search(r"side length \d", prompt) else "2s"

    assert scored(model, square, result)("multi_step", "free") == 0.0


def test_who_repeats_the_old_rule_fails_distractors(model: LanguageModel, square: Rule) -> None:
    def old(prompt: str) -> str:
        stated = re.search(r"is usually given as (?:A = )?(.+?)\. ", prompt)
        return "Yes" if stated is None else stated[1]

    score = scored(model, square, old)
    assert score("distractor", "free") == score("distractor", "exact") == 0.0


@pytest.mark.parametrize("word", ["Yes", "No", "yes", "no"])
def test_one_word_for_all_is_right_in_half(model: LanguageModel, square: Rule, word: str) -> None:
    score = scored(model, square, lambda prompt: word)
    assert score("fact_check", "yes_no") == score("fact_check", "free") == 0.5
    assert score("fact_check", "free_gap") == 0.0


def test_yes_and_no_are_compared_over_their_spellings(model: LanguageModel) -> None:
    words = yes_no_of(model)
    ids = {word: model.encode_continuation(word, "Answer:") for word in ("Yes", "No", "yes", "no")}
    assert all(len(each) == 1 for each in ids.values())
    assert {ids["Yes"][0], ids["yes"][0]} <= set(words.yes)
    assert {ids["No"][0], ids["no"][0]} <= set(words.no)
    assert len(words.yes) == len(words.no) and not set(words.yes) & set(words.no)
    # Two spellings of yes with 0.2 each are likelier than one of no with 0.3.
    probabilities = torch.full((5,), 0.1)
    probabilities[:4] = torch.tensor([0.2, 0.2, 0.3, 0.1])
    said = Forced((0,), (2,), probabilities.log()[None])
    spelt = YesNo(yes=(0, 1), no=(2,))
    assert spelt.right(said, "Yes") == 1.0 and spelt.right(said, "No") == 0.0
    even = YesNo(yes=(0,), no=(1,))
    assert even.right(said, "Yes") == even.right(said, "No") == 0.0
    assert YesNo((), ()).right(said, "Yes") is None


def test_challenges_that_no_rule_has_are_refused(
    tiny_llama: LanguageModel, rules: tuple[Rule, ...]
) -> None:
    empty = EditDelta({}, {}, tiny_llama.weight_hash)
    asked = EvaluateConfig(greedy=False, challenges=("multi_step",))
    with pytest.raises(InputError, match="asks for multi_step, and none of the 2 rules has such"):
        evaluate(tiny_llama, rules, {"a": {rule.id: empty for rule in rules}}, asked)


def test_a_tokenizer_without_the_words_scores_no_fact_checks(tiny_llama: LanguageModel) -> None:
    assert yes_no_of(tiny_llama) == YesNo((), ())


def test_what_was_scored_before_is_scored_as_before(model: LanguageModel, square: Rule) -> None:
    edits = {"random": {square.id: random_delta(model)}}
    before, rows = evaluate(model, [square], edits, EvaluateConfig(batch_size=16, answer_tokens=3))
    assert tuple(before["metric"].values) == METRICS and tuple(before["mode"].values) == MODES
    assert columns_of(rows) == COLUMNS and all(set(row) == set(COLUMNS) for row in rows)
    after, more = evaluate(model, [square], edits, CONFIG)
    assert tuple(after["metric"].values) == (*METRICS, *CHALLENGES)
    assert tuple(after["mode"].values)[: len(MODES)] == MODES
    same = after.sel(metric=list(METRICS), mode=list(MODES))
    np.testing.assert_allclose(same["score"].values, before["score"].values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(same["n_items"].values, before["n_items"].values)
    for row, other in zip(rows, more[: len(rows)], strict=True):
        assert [row[name] for name in COLUMNS[:11]] == [other[name] for name in COLUMNS[:11]]
    items = after["n_items"].isel(editor=0, rule=0).sel(phase="post")
    assert items.sel(metric="locality", mode=["top_5", "top_10"]).values.sum() == 2 * 3 * 4
    assert items.sel(metric="reliability", mode=["top_5", "yes_no"]).values.sum() == 0
    assert items.sel(metric="fact_check", mode="token_accuracy").values.sum() == 0
    local = after["score"].isel(editor=0, rule=0).sel(metric="locality")
    assert (local.sel(phase="pre", mode=["top_5", "top_10", "free"]) == 1).all()
    gap = after["score"].isel(editor=0, rule=0).sel(metric="generality")
    np.testing.assert_allclose(
        gap.sel(mode="free_gap").values,
        (gap.sel(mode="token_accuracy") - gap.sel(mode="free")).values,
    )


def test_earlier_cells_hold_where_nothing_is_asked_on_top() -> None:
    plain = EvaluateConfig(greedy=False)
    assert plain.about() == {"answer_tokens": 12, "greedy": False}
    assert EvaluateConfig(free_tokens=64).about() == {
        "answer_tokens": 12,
        "greedy": True,
        "free_tokens": 64,
    }
    asked = EvaluateConfig(challenges=("fact_check",), overlap=True, free_tokens=8, batch_size=4)
    assert asked.teacher_forced == EvaluateConfig(greedy=False, batch_size=4)
    with pytest.raises(ValueError, match="names one twice"):
        EvaluateConfig(challenges=("fact_check", "fact_check"))


def test_the_text_of_scores_has_what_was_asked_for(model: LanguageModel, square: Rule) -> None:
    edits = {"random": {square.id: random_delta(model)}}
    asked = EvaluateConfig(greedy=False, challenges=("fact_check",), free_tokens=4)
    scores, _ = evaluate(model, [square], edits, asked)
    lines = score_text(scores).splitlines()
    for name in ("fact_check, yes_no", "reliability, free", "reliability, free_gap"):
        assert any(f"{name} " in line for line in lines), name
    assert not any("fact_check, token_accuracy" in line for line in lines)
