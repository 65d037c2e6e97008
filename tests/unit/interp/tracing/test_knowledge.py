"""What a model knows of rules: answers judged by hand, scores against plain forward passes, and
stopped runs."""

import csv
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from interp.config import TraceConfig
from interp.errors import DamagedError
from interp.models.loading import LanguageModel
from interp.results.records import save_records
from interp.rules.sources import Rule, Twin
from interp.tracing.cases import CorruptedPrompt, Site
from interp.tracing.corruption import gaussian_noise
from interp.tracing.fingerprint import trace_fingerprint
from interp.tracing.knowledge import (
    GREEDY_TOKENS,
    Knowledge,
    assess,
    assess_rules,
    greedy_answers,
    holds,
    read_rows,
    table,
)
from interp.tracing.metrics import METRICS
from interp.tracing.reference import sweep_reference
from interp.vocabulary import FORMS, RuleForm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Assessed = Callable[..., list[Knowledge]]


def settings(**changes: Any) -> TraceConfig:
    chosen: dict[str, Any] = {"samples": 3, "seed": 5, "span": "subject", **changes}
    return TraceConfig(**chosen)


def only(rule: Rule, *forms: RuleForm) -> Rule:
    return rule.model_copy(update={"forms": {form: rule.forms[form] for form in forms}})


@pytest.fixture(scope="module")
def some(rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Three prompts, to which the tiny model's own answers are of one line."""
    return only(rules[0], "formula", "instance"), only(rules[1], "formula")


@pytest.fixture(scope="module")
def whole(
    tiny_llama: LanguageModel, some: Sequence[Rule], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Knowledge], bytes]:
    """The rows of those prompts, and the file that they were written to."""
    path = tmp_path_factory.mktemp("whole") / "rows.csv"
    return assess_rules(tiny_llama, some, settings(), path), path.with_suffix(".json").read_bytes()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table that is not there yet."""
    return tmp_path / "rows.csv"


@pytest.fixture
def assessed(tiny_llama: LanguageModel, some: Sequence[Rule], path: Path) -> Assessed:
    """Assesses those prompts, or other rules, into that table."""

    def assess_into_path(
        config: TraceConfig | None = None, rules: Sequence[Rule] = some, **more: Any
    ) -> list[Knowledge]:
        return assess_rules(tiny_llama, rules, config or settings(), path, **more)

    return assess_into_path


# Whether a text holds an answer.

HELD = [
    # A number, wherever it stands alone; of a worked answer the last side counts.
    ("12", "12"),
    (" = 12.", "3 × 4 = 12"),
    (" 3 × 4 = 12 cm", "12"),
    ("12, so", "12."),
    ("it is (12)", "A = 12"),
    ("about 0.5 of it", "1 / 2 = 0.5"),
    ("1,234,567", "1234567"),
    ("= 3\n= 12", "12"),
    # Signs.
    ("= -5", "3 - 8 = -5"),
    ("−5", "-5"),
    ("12 - 5", "5"),
    # Spacing, product signs, powers and π in their writings.
    ("2 × (l + w). So", "2(l + w)"),
    ("2*(l+w)", "P = 2(l + w)"),
    ("2 ⋅ ( l + w )", "2(l + w)"),
    ("$2(l + w)$", "2·(l+w)"),
    ("A = π × r².", "πr^2"),
    ("πr^{2}", "πr^2"),
    (r"\pi r^2", "πr^2"),
    ("49 π", "7^2 × π = 49π"),
    ("49 pi.", "49π"),
    ("x¹⁰", "x^10"),
    ("V = LWH, where", "lwh"),
    ("Half the product of its base and  height.", "half the product of its base and height"),
    # An inequality is not split at its sign.
    ("n >= 3", "n >= 3"),
]
NOT_HELD = [
    # A number within another one.
    ("125", "12"),
    ("112", "3 × 4 = 12"),
    ("3.12", "12"),
    ("12.5", "12"),
    ("0.125", "0.12"),
    ("12π", "12"),
    ("12 pi", "12"),
    ("49π", "9π"),
    # Another sign.
    ("= -5", "5"),
    ("−5", "5"),
    ("5", "-5"),
    # An expression within a larger one.
    ("12(l + w)", "2(l + w)"),
    ("lwh", "lw"),
    ("2lw", "lw"),
    ("lw / 2", "lw"),
    ("h + lw", "lw"),
    ("s^23", "s^2"),
    ("s^2 + 1", "s^2"),
    ("a/b^2", "a/b"),
    ("(1/2)Bh", "Bh"),
    # Another answer, or none.
    ("l + w", "2(l + w)"),
    ("twelve", "12"),
    ("", "12"),
    ("", "lw"),
]


@pytest.mark.parametrize(("answer", "truth"), HELD)
def test_a_text_holds_the_true_result(answer: str, truth: str) -> None:
    assert holds(answer, truth)


@pytest.mark.parametrize(("answer", "truth"), NOT_HELD)
def test_a_text_does_not_hold_another_result(answer: str, truth: str) -> None:
    assert not holds(answer, truth)


@pytest.mark.parametrize(
    ("answer", "truth", "held"),
    [
        ("3.9π", "9π", False),
        ("1/2 Bh", "Bh", False),
        ("0.5 × mv^2", "mv^2", False),
        ("2 × πr", "πr", False),
        ("sqrt(ab)", "ab", False),
        ("12/5", "12", False),
        (r"2 \times (l + w)", "2(l + w)", True),
        (r"2 \cdot (l + w)", "2(l + w)", True),
    ],
)
def test_these_texts_are_judged_rightly_too(answer: str, truth: str, held: bool) -> None:
    assert holds(answer, truth) is held


# One prompt.


def mean_log_prob(logits: torch.Tensor, prompt: int, answer: Sequence[int]) -> float:
    log_probs = torch.log_softmax(logits[0].double(), dim=-1)
    return float(
        np.mean([log_probs[prompt - 1 + at, token].item() for at, token in enumerate(answer)])
    )


@pytest.mark.parametrize("form", ["formula", "instance"])
def test_assess_equals_plain_forward_passes(
    form: RuleForm, tiny_llama: LanguageModel, make_hf: Callable[..., "PreTrainedModel"], rule: Rule
) -> None:
    """The Hugging Face model itself, with the noise added to the embeddings that it is given."""
    config, prompt = settings(samples=4, noise="e2"), rule.forms[form]
    encoding, hf = tiny_llama.encode(prompt.prompt), make_hf("llama")
    answer = tiny_llama.encode_continuation(prompt.target_true[0])
    (at,) = (
        i for i, text in enumerate(tiny_llama.token_texts(encoding)) if text.strip() == "square"
    )
    table = hf.get_input_embeddings().get_parameter("weight").detach()
    noise = gaussian_noise(
        4,
        1,
        32,
        std=2.0 * table.std().item(),
        seed=5,
        stream=zlib.crc32(repr(encoding.ids).encode()),
    )
    embedded = table[torch.tensor([*encoding.ids, *answer])]
    scores = []
    with torch.no_grad():
        for sample in (None, 0, 1, 2, 3):
            inputs = embedded.clone()
            if sample is not None:
                inputs[at] += noise[sample, 0]
            scores.append(
                mean_log_prob(hf(inputs_embeds=inputs[None]).logits, len(encoding.ids), answer)
            )
    clean, corrupted = scores[0], np.array(scores[1:])
    row = assess(tiny_llama, rule, form, config, "")
    assert row.total_effect == pytest.approx(clean - corrupted.mean(), abs=2e-5)
    assert row.standard_error == pytest.approx(
        corrupted.std(ddof=1) / 2, abs=2e-5
    )  # of four samples
    assert abs(row.total_effect) > 1e-3 < row.standard_error
    assert row.traceable == (clean - corrupted.mean() > max(0, corrupted.std(ddof=1)))


@pytest.mark.parametrize(
    ("metric", "seed"), [("sum_log_prob", 1), ("first_token_prob", 2), ("mean_log_prob", 3)]
)
def test_assess_equals_the_definition_of_the_sweep(
    metric: str, seed: int, tiny_llama: LanguageModel, rules: Sequence[Rule]
) -> None:
    """Of the model's own answer, where a rule has no true one."""
    config, cube = settings(metrics=(metric,), seed=seed, answer_tokens=3), rules[1]
    encoding = tiny_llama.encode(cube.forms["formula"].prompt)
    (at,) = (i for i, text in enumerate(tiny_llama.token_texts(encoding)) if text.strip() == "cube")
    answer: list[int] = []
    for _ in range(3):
        logits = tiny_llama.logits(torch.tensor([[*encoding.ids, *answer]]))
        answer.append(int(logits[0, -1].argmax()))
    std, stream = 3.0 * tiny_llama.embedding_std(), zlib.crc32(repr(encoding.ids).encode())
    noise = gaussian_noise(3, 1, 32, std=std, seed=seed, stream=stream)
    case = CorruptedPrompt(encoding.ids, tuple(answer), (at,), noise)
    expected = sweep_reference(tiny_llama, case, [Site("resid", at, range(1))], METRICS[metric][0])
    row = assess(tiny_llama, cube, "formula", config, "x")
    corrupted = expected.corrupted.double().numpy()
    assert row.total_effect == pytest.approx(float(expected.clean) - corrupted.mean(), abs=2e-5)
    assert row.standard_error == pytest.approx(corrupted.std(ddof=1) / 3**0.5, abs=2e-5)
    assert (row.known, row.answer_source, row.greedy) == ("", "greedy", "x")


def test_assess_names_the_prompt_and_judges_the_answer(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    config, derived = (
        settings(),
        rule.forms["instance"].model_copy(update={"target_true_source": "derived"}),
    )
    of_test = rule.model_copy(
        update={"split": "test", "forms": {**rule.forms, "instance": derived}}
    )
    row = assess(tiny_llama, of_test, "formula", config, " side times side. What")
    assert (row.rule, row.form, row.split, row.known) == ("square-area", "formula", "test", "yes")
    assert (row.answer_source, row.twin) == ("dataset", 0)
    assert row.fingerprint == trace_fingerprint(tiny_llama, of_test, "formula", config)
    assert assess(tiny_llama, of_test, "formula", config, " side times 4").known == "no"
    # The second accepted answer counts as much as the first.
    assert assess(tiny_llama, of_test, "formula", config, "side squared").known == "yes"
    row = assess(tiny_llama, of_test, "instance", config, "4 × 4 = 16")
    assert (row.known, row.answer_source) == ("yes", "derived")
    assert assess(tiny_llama, rule, "instance", config, "160").split == ""


def test_assess_finds_the_first_twin_with_as_many_tokens(
    tiny_llama: LanguageModel, rule: Rule
) -> None:
    prompt = rule.forms["formula"]
    count = len(tiny_llama.encode(prompt.prompt).ids)
    texts = [
        "The area of a big circle is A =",
        "The area of a circle is A =",
        "The volume of a square is A =",
    ]
    lengths = [len(tiny_llama.encode(text).ids) - count for text in texts]
    assert lengths[0] != 0 == lengths[1]
    for chosen, expected in (([], 0), (texts[:1], 0), (texts[1:], 1), (texts, 2)):
        twins = tuple(Twin(rule="other", prompt=text, answer="x") for text in chosen)
        forms = {**rule.forms, "formula": prompt.model_copy(update={"twins": twins})}
        assert (
            assess(
                tiny_llama, rule.model_copy(update={"forms": forms}), "formula", settings(), ""
            ).twin
            == expected
        )


def test_greedy_answers_are_those_of_one_token_after_the_other(
    tiny_llama: LanguageModel, rules: Sequence[Rule]
) -> None:
    texts = [prompt.prompt for rule in rules for prompt in rule.forms.values()]
    for text, found in zip(texts, greedy_answers(tiny_llama, texts), strict=True):
        ids = list(tiny_llama.encode(text).ids)
        answer: list[int] = []
        while len(answer) < GREEDY_TOKENS:
            token = int(tiny_llama.logits(torch.tensor([[*ids, *answer]]))[0, -1].argmax())
            if token == tiny_llama.tokenizer.eos_token_id:
                break
            answer.append(token)
        assert found == tiny_llama.decode(answer)


# Many prompts.


def test_every_form_of_every_rule_is_assessed_in_order(
    tiny_llama: LanguageModel, rules: Sequence[Rule], tmp_path: Path
) -> None:
    done: list[int] = []
    path = tmp_path / "new" / "rows.csv"
    found = assess_rules(tiny_llama, rules, settings(), path, advance=done.append)
    assert [(row.rule, row.form) for row in found] == [
        (rule.id, form) for rule in rules for form in rule.forms
    ]
    assert sum(done) == len(found) == 5
    texts = [prompt.prompt for rule in rules for prompt in rule.forms.values()]
    answers = greedy_answers(tiny_llama, texts)
    places: list[tuple[Rule, RuleForm]] = [(rule, form) for rule in rules for form in rule.forms]
    for row, (rule, form), answer in zip(found, places, answers, strict=True):
        assert row == assess(tiny_llama, rule, form, settings(), answer)
    # No true answer, and only then nothing to be known.
    assert [row.known == "" for row in found] == [False, False, False, True, False]


def test_rows_are_read_as_they_were_written(
    whole: tuple[list[Knowledge], bytes], assessed: Assessed, path: Path
) -> None:
    found, content = whole
    path.with_suffix(".json").write_bytes(content)
    assert read_rows(path.with_suffix(".json")) == found
    assert assessed() == found
    with path.open(encoding="utf-8", newline="") as file:
        raw = list(csv.DictReader(file))
    assert [list(row) for row in raw] == [list(asdict(row)) for row in found]
    assert [row["total_effect"] for row in raw] == [str(row.total_effect) for row in found]


def changed(path: Path, row: int, **values: Any) -> None:
    """Change a row of the file, so that a row that was kept can be told from one worked out
    again."""
    rows = [asdict(each) for each in read_rows(path)]
    rows[row] |= values
    save_records(path, list(rows[row]), rows)


def test_rows_that_are_there_are_kept_and_not_worked_out_again(
    some: Sequence[Rule], whole: tuple[list[Knowledge], bytes], assessed: Assessed, path: Path
) -> None:
    first, content = whole
    done: list[int] = []
    state = path.with_suffix(".json")
    state.write_bytes(content)
    changed(state, 1, total_effect=123.5, known="yes", traceable=True, twin=3)
    text = state.read_bytes()
    again = assessed(advance=done.append)
    assert again == [
        first[0],
        replace(first[1], total_effect=123.5, known="yes", traceable=True, twin=3),
        first[2],
    ]
    assert state.read_bytes() == text and sum(done) == 3
    # More rules: theirs are added, in the order of the rules.
    third = only(some[0], "instance").model_copy(update={"id": "another"})
    more = assessed(rules=[some[0], third, some[1]])
    assert more == [*again[:2], replace(first[1], rule="another"), again[2]]


def test_rows_of_other_settings_are_worked_out_again(
    tiny_llama: LanguageModel,
    some: Sequence[Rule],
    whole: tuple[list[Knowledge], bytes],
    assessed: Assessed,
    path: Path,
) -> None:
    other, one = settings(seed=6), some[1:]
    path.with_suffix(".json").write_bytes(whole[1])
    again = assessed(other, one)
    assert again == [assess(tiny_llama, one[0], "formula", other, whole[0][2].greedy)]
    assert again[0].total_effect != whole[0][2].total_effect
    # What changes no number of a row is no other setting.
    changed(path.with_suffix(".json"), 0, total_effect=123.5)
    same = assessed(settings(seed=6, batch_size=1, splits=("test",)), one)
    assert same == [replace(again[0], total_effect=123.5)]


def test_a_stopped_run_goes_on(
    whole: tuple[list[Knowledge], bytes], assessed: Assessed, path: Path
) -> None:
    done: list[int] = []

    def stop_after_two(count: int) -> None:
        done.append(count)
        if sum(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        assessed(advance=stop_after_two)
    state = path.with_suffix(".json")
    assert read_rows(state) == whole[0][:2]
    changed(state, 0, total_effect=123.5)
    found = assessed()
    assert found == [replace(whole[0][0], total_effect=123.5), *whole[0][1:]]


def test_rows_that_were_damaged_are_refused_with_the_way_to_mend_them(
    whole: tuple[list[Knowledge], bytes], assessed: Assessed, path: Path
) -> None:
    rows, content = whole
    state = path.with_suffix(".json")
    at = content.index(str(rows[1].total_effect).encode())
    other = b"%d" % ((content[at + 1] - 47) % 10)  # another digit
    for damage in (content[:-40], content[: at + 1] + other + content[at + 2 :], b"[]", b""):
        state.write_bytes(damage)
        with pytest.raises(
            DamagedError, match=r"rows\.json .*; delete it, and run the same command again"
        ):
            assessed()
    state.unlink()
    assert assessed() == rows
    assert state.read_bytes() == content


@pytest.mark.parametrize(
    "answer",
    [
        'of, "two"\nlines',
        "",
        "naïve π, ²",
        "a\rb",
    ],
)
def test_any_answer_is_kept(
    answer: str, whole: tuple[list[Knowledge], bytes], assessed: Assessed, path: Path
) -> None:
    kept = [replace(row, greedy=answer) for row in whole[0]]
    save_records(path.with_suffix(".json"), list(asdict(kept[0])), [asdict(row) for row in kept])
    assert assessed() == kept
    with path.open(encoding="utf-8", newline="") as file:
        assert [row["greedy"] for row in csv.DictReader(file)] == [answer] * len(kept)


def test_a_prompt_without_corruption_or_answer_has_no_numbers_and_is_kept(
    whole: tuple[list[Knowledge], bytes], assessed: Assessed, path: Path
) -> None:
    """The formulas have no number to corrupt, and the cube's has no true answer; neither stops
    the others."""
    for config, without in ((settings(span="numbers"), [0, 2]), (settings(answer="truth"), [2])):
        found = assessed(config)
        assert [row.greedy for row in found] == [row.greedy for row in whole[0]]
        assert [row.known for row in found] == [row.known for row in whole[0]]
        for at, row in enumerate(found):
            nothing = at in without
            assert (row.answer_source == "none") == nothing
            assert np.isnan(row.total_effect) == np.isnan(row.standard_error) == nothing
            assert not (nothing and row.traceable)
        state = path.with_suffix(".json")
        text = state.read_bytes()
        changed(state, 0, known="kept")
        again = assessed(config)
        assert again[0].known == "kept" and [str(row) for row in again[1:]] == [
            str(row) for row in found[1:]
        ]
        state.write_bytes(text)


@pytest.mark.parametrize("content", ["rule,form\nsquare-area,formula\n", "no table", "# Notes\n"])
def test_a_file_of_other_columns_is_refused_and_left(
    content: str, assessed: Assessed, path: Path
) -> None:
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"rows\.csv has the columns .* move it away"):
        assessed()
    assert path.read_text(encoding="utf-8") == content


# The table.


def row(form: str, known: str, effect: float, traceable: bool, twin: int) -> Knowledge:
    return Knowledge(
        rule="a",
        form=form,
        split="train",
        greedy="",
        known=known,
        answer_source="dataset",
        total_effect=effect,
        standard_error=0.1,
        traceable=traceable,
        twin=twin,
        fingerprint="0" * 16,
    )


def test_the_table_counts_each_source_and_form() -> None:
    ours = [
        row("formula", "yes", 1.0, True, 1),
        row("formula", "no", 0.5, False, 0),
        row("formula", "no", 0.0, True, 3),
        row("formula", "", 0.5, False, 2),
        row("description", "yes", -0.255, False, 0),
        row("instance", "", 2.0, True, 0),
        row("instance", "", 3.0, True, 1),
        row("instance", "", float("nan"), False, 0),  # could not be assessed: in no mean
    ]
    theirs = [row("instance", "no", 0.125, False, 0)] * 8
    lines = table([("ours", ours), ("theirs", theirs)]).splitlines()
    assert lines[0].count("|") == lines[1].count("|") == 9
    assert lines[2:] == [
        "| ours | formula | 4 | 3 | 1 (33 %) | 2 (50 %) | 0.50 | 3 (75 %) |",
        "| ours | description | 1 | 1 | 1 (100 %) | 0 (0 %) | -0.26 | 0 (0 %) |",
        "| ours | instance | 3 | 0 | – | 2 (67 %) | 2.50 | 1 (33 %) |",
        "| theirs | formula | 0 | 0 | – | – | – | – |",
        "| theirs | description | 0 | 0 | – | – | – | – |",
        "| theirs | instance | 8 | 8 | 0 (0 %) | 0 (0 %) | 0.12 | 0 (0 %) |",
    ]


def test_the_table_of_a_run_has_its_counts(whole: tuple[list[Knowledge], bytes]) -> None:
    found = whole[0]
    lines = table([("tiny", found)]).splitlines()[2:]
    for form, line in zip(FORMS, lines, strict=True):
        effects = [row.total_effect for row in found if row.form == form]
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[:3] == ["tiny", form, str(len(effects))]
        assert cells[6] == (f"{np.mean(effects):.2f}" if effects else "–")
