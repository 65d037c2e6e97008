"""Text with sentences of training rules: what is in it, and that no test rule is."""

from pathlib import Path

from editing.closed_form.covariance import measure
from editing.closed_form.rule_text import mixed, sentences
from editing.config import CovarianceConfig
from interp.models.loading import LanguageModel
from interp.rules.sources import Rule, load_rules


def test_sentences_are_prompts_with_true_answers(rule: Rule) -> None:
    found = sentences([rule])
    formula = rule.forms["formula"]
    assert f"{formula.prompt} {formula.target_true[0]}" in found
    assert len(found) == len(set(found))
    new = {form.target_new for form in rule.forms.values()} - {
        a for f in rule.forms.values() for a in f.target_true
    }
    assert new
    assert not any(text.endswith(f" {answer}") for text in found for answer in new)


def test_no_prompt_of_a_test_rule_is_in_the_training_text() -> None:
    found = sentences(load_rules("embedded", split="train").rules)
    asked = {
        form.prompt
        for rule in load_rules("embedded", split="test").rules
        for form in rule.forms.values()
    }
    assert not [text for text in found if any(text.startswith(prompt) for prompt in asked)]


def test_all_paragraphs_and_all_sentences_are_kept_in_order() -> None:
    both = list(mixed(["aaaa", "bbbb", "cccc"], ["1", "2222", "3"]))
    assert both == ["aaaa", "1", "2222", "bbbb", "3", "cccc"]


def test_statistics_of_text_with_rules_are_others(
    tiny_llama: LanguageModel, tmp_path: Path
) -> None:
    plain, more = (
        measure(tiny_llama, [0], CovarianceConfig(corpus=corpus, tokens=300), tmp_path)
        for corpus in ("embedded", "embedded+rules")
    )
    assert not plain.moment(0).equal(more.moment(0))
    assert more.about["corpus"].endswith("with training rules")
    assert more.about["corpus_sha256"] != plain.about["corpus_sha256"]
