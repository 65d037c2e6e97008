"""Items that evaluate an edit: do they ask what they are thought to ask?"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence

from interp.rules.agreement import agree
from interp.rules.checks.answers import locality_of, plain, same_answer
from interp.rules.checks.registry import Finding, finding, of_rule
from interp.rules.derivation import expression_of, sides
from interp.rules.sources import Probe, Rule, RulePrompt
from interp.rules.spans import subject_spans
from interp.vocabulary import FORMS, RuleForm


@of_rule(
    understanding_target=(
        "warning",
        "an understanding item that wants another answer than the edit of its prompt",
    ),
    understanding_truth=(
        "warning",
        "an understanding item whose true answer is not that of the form it asks for",
    ),
    understanding_verbatim=(
        "info",
        "understanding prompts that are edited prompts of the same rule",
    ),
    contaminated=(
        "warning",
        "a rephrasing or paraphrase that is an edited prompt of the same rule",
    ),
)
def _understanding(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    edits = {prompt.prompt: (form, prompt) for form, prompt in rule.forms.items()}
    for form, prompt in rule.forms.items():
        where = f"{rule.id}/{form}"
        verbatim = 0
        for index, probe in enumerate(prompt.understanding):
            if probe.prompt in edits:
                verbatim += 1
                yield from _against_edit(
                    f"{where}/understanding[{index}]", probe, *edits[probe.prompt]
                )
        if verbatim:
            yield finding(
                "understanding_verbatim",
                f"{where}/understanding",
                f"{verbatim} of {len(prompt.understanding)}",
                "held-out wording",
            )
        paraphrases = [p.prompt for p in prompt.understanding if p.wording == "paraphrase"]
        yield from _contaminated(f"{where}/rephrasings", prompt.rephrasings, edits)
        yield from _contaminated(f"{where}/understanding", paraphrases, edits)


def _against_edit(where: str, probe: Probe, form: str, edit: RulePrompt) -> Iterator[Finding]:
    """An item against the edit of the same prompt."""
    if probe.target_new != edit.target_new:
        yield finding(
            "understanding_target",
            where,
            probe.target_new,
            f"{edit.target_new} (the {form} edit)",
        )
    if probe.target_true and edit.target_true and not _same_truth(probe, edit):
        yield finding(
            "understanding_truth",
            where,
            " | ".join(probe.target_true),
            " | ".join(edit.target_true),
        )


def _contaminated(where: str, texts: Sequence[str], edits: Container[str]) -> Iterator[Finding]:
    for index, text in enumerate(texts):
        if text in edits:
            yield finding("contaminated", f"{where}[{index}]", text, "a prompt that is not edited")


def _same_truth(probe: Probe, edit: RulePrompt) -> bool:
    """Whether an item's true answer is one of an edit's, as text or as an expression; words are
    not judged.
    """
    for written in (lambda text: text, lambda text: sides(text)[-1]):
        ours, theirs = (
            [_letters(written(text)) for text in each]
            for each in (probe.target_true, edit.target_true)
        )
        if any(a in b or b in a for a in ours for b in theirs):
            return True
    mine = [node for text in probe.target_true if (node := expression_of(text)) is not None]
    other = [node for text in edit.target_true if (node := expression_of(text)) is not None]
    return not mine or any(agree(a, b) for a in mine for b in other)


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).casefold()


@of_rule(
    instance_conflict=("warning", "one instance prompt with different answers within a rule"),
    instance_format=("info", "one instance prompt with the same answer written differently"),
    instance_repeated=("warning", "an instance prompt that one form asks twice"),
    instance_shared=("info", "instance prompts that the formula asks as well as the instance form"),
)
def _instances(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    yield from _repeated(rule)
    for text, places in _places_of_answers(rule).items():
        if len({plain(answer) for answer in places}) > 1:
            same = all(same_answer(answer, next(iter(places))) for answer in places)
            check = "instance_format" if same else "instance_conflict"
            given = "; ".join(f"{answer!r} in {place}" for answer, place in places.items())
            first = next(iter(places.values()))
            yield finding(check, f"{rule.id}/{first}", f"{text!r}: {given}", "one answer")
    if "instance" in rule.forms and "formula" in rule.forms:
        ours = {probe.prompt for probe in rule.forms["instance"].instances}
        shared = ours & {probe.prompt for probe in rule.forms["formula"].instances}
        if shared:
            yield finding(
                "instance_shared",
                f"{rule.id}/instance/instances",
                f"{len(shared)} of {len(ours)}",
                "its own",
            )


def _repeated(rule: Rule) -> Iterator[Finding]:
    for form, prompt in rule.forms.items():
        counts = Counter(probe.prompt for probe in prompt.instances)
        for text in (text for text, count in counts.items() if count > 1):
            yield finding(
                "instance_repeated", f"{rule.id}/{form}/instances", text, "each prompt once"
            )


def _places_of_answers(rule: Rule) -> dict[str, dict[str, str]]:
    """For each instance prompt of a rule, its answers, and where each is given first."""
    answers: dict[str, dict[str, str]] = defaultdict(dict)
    for form, prompt in rule.forms.items():
        for number, probe in enumerate(prompt.instances):
            answers[probe.prompt].setdefault(probe.target_new, f"{form}/instances[{number}]")
        if form == "instance":
            answers[prompt.prompt].setdefault(prompt.target_new, "instance")
    return answers


@of_rule(
    locality_is_edit=("warning", "a locality prompt that is an edited prompt of the same rule"),
    locality_wants_edit=(
        "warning",
        "a locality prompt whose gold answer is what an edit of the rule wants",
    ),
    locality_about_edit=("warning", "a locality prompt that presumes the edited rule"),
)
def _locality(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    edits = {prompt.prompt: form for form, prompt in rule.forms.items()}
    wanted = {plain(sides(prompt.target_new)[-1]) for prompt in rule.forms.values()}
    wanted |= {plain(prompt.target_new) for prompt in rule.forms.values()}
    for where, probe in locality_of(rule):
        if probe.prompt in edits:
            yield finding(
                "locality_is_edit", where, probe.prompt, f"not the {edits[probe.prompt]} edit"
            )
        if plain(probe.answer) in wanted:
            yield finding(
                "locality_wants_edit", where, probe.answer, "an answer that no edit wants"
            )
        if re.search(
            r"\b(this|the) (new |edited )?(rule|system)\b(?!-)|\bnew rule\b", probe.prompt.lower()
        ):
            yield finding(
                "locality_about_edit", where, probe.prompt, "a prompt about something else"
            )


@of_rule(
    key_collision=(
        "warning",
        "two forms whose prompts are the same up to the subject: subject-last keys coincide",
    ),
)
def _collisions(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    prefixes: dict[str, list[RuleForm]] = defaultdict(list)
    for form in FORMS:
        if form in rule.forms and (
            spans := subject_spans(rule.forms[form].prompt, rule.forms[form].subject)
        ):
            prefixes[rule.forms[form].prompt[: spans[-1][1]]].append(form)
    for prefix, forms in prefixes.items():
        if len(forms) > 1:
            yield finding(
                "key_collision",
                f"{rule.id}/{'+'.join(forms)}",
                prefix,
                "prompts that differ before the subject",
            )


@of_rule(
    encoding=(
        "info",
        "text that is not in composed form, or has control or replacement characters",
    ),
)
def _encoding(rule: Rule, known: Mapping[str, Rule]) -> Iterator[Finding]:
    text = "\n".join(_texts(rule.model_dump()))
    odd = sorted(
        {
            c
            for c in set(text) - {"\n"}
            if unicodedata.category(c) in ("Cc", "Cf", "Co", "Cn") or c == "\ufffd"
        }
    )
    combining = sorted({c for c in text if unicodedata.combining(c)})
    if odd or combining or unicodedata.normalize("NFC", text) != text:
        said = ", ".join(f"U+{ord(c):04X}" for c in [*odd, *combining])
        yield finding(
            "encoding", rule.id, said or "decomposed characters", "composed characters only"
        )


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
