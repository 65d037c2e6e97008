"""What a model knows of rules: does its own answer hold the true one, and does corruption take it
away?

Cheap next to tracing (no site is restored): a greedy answer, one clean run and the corrupted runs
per prompt. Results are rows of a table, written as they come, so that a stopped run goes on.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from interp.config import TraceConfig
from interp.errors import DmleError, NotFiniteError, TooLongError
from interp.models.loading import LanguageModel
from interp.results.checksums import BLOCK, damaged, regular
from interp.results.effects import TRACEABLE_STANDARD_ERRORS
from interp.results.files import write_text
from interp.results.records import load_records, save_records
from interp.results.tables import csv_cell
from interp.rules.schema import explain
from interp.rules.scripts import in_word, plain_digits, unspaced
from interp.rules.sources import Rule
from interp.tracing.fingerprint import trace_fingerprint
from interp.tracing.metrics import METRICS
from interp.tracing.patching import sweep
from interp.tracing.prompt import prepare, too_long
from interp.tracing.trace import prompts
from interp.vocabulary import FORMS, RuleForm

GREEDY_TOKENS = 16
BATCH = 16
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")


@dataclass(frozen=True)
class Knowledge:
    """One prompt: whether the model knows its answer, and whether a trace of it would mean
    anything.
    """

    rule: str
    form: str
    split: str
    greedy: str
    """The model's own answer."""
    known: str
    """"yes" if it holds the true one, "no" if not; empty where the rule has no true answer to
    compare with."""
    answer_source: str
    """Whose answer is scored: dataset, derived, greedy; none if there is none to score."""
    total_effect: float
    """Clean minus corrupted score of that answer, in nats per answer token."""
    standard_error: float
    traceable: bool
    """Total effect above two standard errors of the noise samples."""
    twin: int
    """Which of the prompt's twins is the first with as many tokens; 0 if none has."""
    fingerprint: str


COLUMNS = tuple(field.name for field in fields(Knowledge))
_ROW = TypeAdapter(Knowledge)


def holds(answer: str, truth: str) -> bool:
    """Whether a text holds the true result: its last side, whole, in any spacing and with any
    product sign.

    A number must stand alone, and an expression must not be part of a larger one.

    >>> holds(" 2 × (l + w). So", "2(l + w)"), holds(" = 125", "12"), holds("= 12.", "3 × 4 = 12")
    (True, False, True)
    >>> holds(" (b^2 + bh)", "bh"), holds(" (1/2)Bh.", "Bh"), holds(" s³.", "s^3")
    (False, False, True)
    >>> holds("答えは東京です。", "東京"), holds("１２です", "12")
    (True, True)
    >>> holds("=١٢", "12"), holds("112です", "12")
    (True, False)
    """
    answer, truth = plain_digits(answer), plain_digits(truth)
    result = re.split(r"(?<![<>!])=", truth.strip().rstrip("."))[-1].strip()
    if re.fullmatch(r"-?\d+(\.\d+)?", result):
        before = r"(?<![\d.])(?<!\d-)(?<!^-)(?<![\s(=]-)"
        behind = r"(?!\.?\d|\s*[/^]|\s*(?:π|\\?pi\b))"
        alone = f"{before}{re.escape(result)}{behind}"
        return re.search(alone, answer.replace(",", "").replace("−", "-")) is not None
    between = r"[\s*×·⋅$\\{}]*"  # what may stand between the parts of a product
    letters = between.join(
        re.escape(c) for c in re.sub(between, "", _plain_powers(result)).casefold()
    )
    text = _plain_powers(answer).casefold()
    for found in re.finditer(letters, text):
        before, after = text[: found.start()], text[found.end() :]
        # Part of a word or number, after an operator or a factor, or the argument of a function.
        inside = re.search(
            r"(\d\.|[-+/^)×*·⋅√]\s*|\d\s+|(sqrt|sin|cos|tan|ln|log|exp)\()[$\\{]*$", before
        )
        joined = _joined(before.rstrip("$\\{")[-1:], text[found.start()]) or _joined(
            after[:1], text[found.end() - 1]
        )
        if not inside and not joined and not re.match(r"\s*[-+*/^(×·⋅]\s*\S", after):
            return True
    return False


def _joined(outside: str, edge: str) -> bool:
    """Whether a letter or digit outside belongs to what is at the edge of a result."""
    return in_word(outside) and not unspaced(outside) and not unspaced(edge)


def _plain_powers(text: str) -> str:
    text = re.sub(r"\\?\bpi\b|\\pi\b", "π", re.sub(r"\\(?:times|cdot)\b", "×", text))
    return re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda c: "^" + c[0].translate(_SUPERSCRIPTS), text)


def assess(
    model: LanguageModel, rule: Rule, form: RuleForm, config: TraceConfig, greedy: str | None = None
) -> Knowledge:
    """Knowledge of one form of a rule.

    Args:
        model: The model.
        rule: The rule.
        form: Which of its forms.
        config: Corruption, samples and metric.
        greedy: The model's own answer, if it was generated already.

    A prompt that has no token to corrupt, or no answer to score, counts as not traceable, without
    numbers.
    """
    if greedy is None:
        greedy = greedy_answers(model, [rule.forms[form].prompt])[0]
    te, se, source = _total_effect(model, rule, form, config)
    return Knowledge(
        rule=rule.id,
        form=form,
        split=rule.split or "",
        greedy=greedy,
        known=_known(greedy, rule.forms[form].target_true),
        answer_source=source,
        total_effect=round(te, 6),
        standard_error=round(se, 6),
        traceable=te > 0 and te > TRACEABLE_STANDARD_ERRORS * se,
        twin=_first_twin(model, rule, form),
        fingerprint=trace_fingerprint(model, rule, form, config),
    )


def _total_effect(
    model: LanguageModel, rule: Rule, form: RuleForm, config: TraceConfig
) -> tuple[float, float, str]:
    """Total effect, its standard error, and whose answer is scored; NaN and "none" if nothing can
    be corrupted or scored.
    """
    try:
        ready = prepare(model, rule, form, config)
    except NotFiniteError:
        raise  # no number is not the same as no effect
    except DmleError:
        return math.nan, math.nan, "none"
    result = sweep(model, ready.case, [], METRICS[config.metrics[0]].function)
    te = (result.clean - result.corrupted.mean()).item()
    return te, result.corrupted.std().item() / ready.case.samples**0.5, ready.answer.source


def _known(answer: str, truths: Sequence[str]) -> str:
    if not truths:
        return ""
    return "yes" if any(holds(answer, truth) for truth in truths) else "no"


def _first_twin(model: LanguageModel, rule: Rule, form: RuleForm) -> int:
    """Which twin, counted from 1, is the first with as many tokens; 0 if none has."""
    n_tokens = len(model.encode(rule.forms[form].prompt).ids)
    for number, twin in enumerate(rule.forms[form].twins, start=1):
        if len(model.encode(twin.prompt).ids) == n_tokens:
            return number
    return 0


def greedy_answers(model: LanguageModel, texts: Sequence[str]) -> list[str]:
    """The model's own answers, `GREEDY_TOKENS` long at most."""
    generated = model.generate([model.encode(text).ids for text in texts], GREEDY_TOKENS)
    return [model.decode_continuation(ids) for ids in generated]


def assess_rules(
    model: LanguageModel,
    rules: Sequence[Rule],
    config: TraceConfig,
    path: Path,
    *,
    advance: Callable[[int], object] = lambda n: None,
) -> list[Knowledge]:
    """Knowledge of every form of every rule, in a file that grows row by row; rows that are there
    are kept.

    Args:
        model: The model.
        rules: Rules.
        config: Corruption, samples and metric.
        path: CSV of the rows, for people. What is gone on from lies beside it, with the suffix
            ``.json``.
        advance: Called with the number of prompts done.

    Raises:
        DamagedError: The JSON file does not hold what was written.
        DmleError: There is a file of other columns in the place of the CSV.
        TooLongError: A prompt with an answer is longer than the model's positions; nothing is run
            then.
    """
    _check_replaceable(path)
    _check_lengths(model, rules, config)
    known = _known_rows(path.with_suffix(".json"))
    keys = {
        (rule.id, form): (rule.id, form, trace_fingerprint(model, rule, form, config))
        for rule, form in prompts(rules)
    }
    todo: list[tuple[Rule, RuleForm]] = [
        pair for pair in prompts(rules) if keys[pair[0].id, pair[1]] not in known
    ]
    advance(len(keys) - len(todo))
    # Rows that are of no use (of other settings) are not carried on.
    rows = [known[key] for key in keys.values() if key in known]
    _write(path, rows)
    for row in _assessed(model, todo, config):
        known[row.rule, row.form, row.fingerprint] = row
        rows.append(row)
        _write(path, rows)
        advance(1)
    return [known[key] for key in keys.values()]


def _assessed(
    model: LanguageModel, todo: Sequence[tuple[Rule, RuleForm]], config: TraceConfig
) -> Iterator[Knowledge]:
    """Rows of prompts, one after the other; answers are generated together."""
    for start in range(0, len(todo), BATCH):
        some = todo[start : start + BATCH]
        answers = greedy_answers(model, [rule.forms[form].prompt for rule, form in some])
        for (rule, form), greedy in zip(some, answers, strict=True):
            yield assess(model, rule, form, config, greedy)


def _known_rows(path: Path) -> dict[tuple[str, str, str], Knowledge]:
    """Rows of an earlier run by rule, form and fingerprint."""
    rows = read_rows(path) if path.exists() else []
    return {(row.rule, row.form, row.fingerprint): row for row in rows}


def _check_lengths(model: LanguageModel, rules: Sequence[Rule], config: TraceConfig) -> None:
    for rule, form in prompts(rules):
        if reason := too_long(model, rule, form, config, GREEDY_TOKENS):
            raise TooLongError(f"{rule.id}/{form}: {reason}")


def _check_replaceable(path: Path) -> None:
    """Rows may be replaced; another file is somebody's work."""
    if not path.exists():
        return
    with regular(path, "CSV file of rows", "move it away") as file:
        first = file.readline(BLOCK).decode(errors="replace")
    if (columns := next(csv.reader([first]), [])) != list(COLUMNS):
        raise DmleError(
            f"{path} has the columns {columns}; needed are {list(COLUMNS)}: move it away"
        )


def _write(path: Path, rows: Sequence[Knowledge]) -> None:
    """The rows as JSON to go on from, and as CSV to look at."""
    table = [asdict(row) for row in rows]
    save_records(path.with_suffix(".json"), COLUMNS, table)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for row in table:
        writer.writerow({name: csv_cell(value) for name, value in row.items()})
    write_text(path, text.getvalue())


def read_rows(path: Path) -> list[Knowledge]:
    """Rows of a JSON file that `assess_rules` wrote.

    Raises:
        DamagedError: It does not hold what was written.
    """
    what, mend = "file of measured prompts", "delete it, and run the same command again"
    rows = load_records(path, what, COLUMNS, mend=mend)
    try:
        return [_ROW.validate_python(row) for row in rows]
    except ValidationError as error:
        raise damaged(path, what, explain(error), mend) from error


def table(sources: Iterable[tuple[str, Sequence[Knowledge]]]) -> str:
    """A Markdown table: for each source and form, how much the model knows and how much can be
    traced.
    """
    lines = [
        (
            "| rules | form | prompts | true answer given | known | traceable | mean total effect |"
            " twin aligns |"
        ),
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, rows in sources:
        for form in FORMS:
            cells = (name, form, *_cells([row for row in rows if row.form == form]))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(rows: Sequence[Knowledge]) -> tuple[str, ...]:
    """What the table says of the rows of one form."""
    judged = [row for row in rows if row.known]
    return (
        str(len(rows)),
        str(len(judged)),
        _share(sum(row.known == "yes" for row in judged), len(judged)),
        _share(sum(row.traceable for row in rows), len(rows)),
        _mean([row.total_effect for row in rows if not math.isnan(row.total_effect)]),
        _share(sum(row.twin > 0 for row in rows), len(rows)),
    )


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f}" if values else "–"


def _share(count: int, of: int) -> str:
    return f"{count} ({100 * count / of:.0f} %)" if of else "–"
