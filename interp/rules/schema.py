"""What a rule is: its forms, what each form's edit asks for, and what evaluates that edit. No
torch.

A rule (the perimeter of a rectangle) is stored by a language model in three forms that must agree:
a *formula*, a *description* in words, and numeric *instances*. A `Rule` holds, for each form, the
prompt that is traced and edited, the answer that is true, the answer that an edit wants, and the
prompts that tell whether the edit worked and did nothing else.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from interp.errors import DmleError, InputError
from interp.rules.scripts import TextError, checked
from interp.rules.spans import missing, subject_spans
from interp.rules.words import content_words
from interp.settings.names import same_on_some_disks
from interp.vocabulary import RuleForm, Split

SCHEMA = "dmle.rules/1"
MAX_VALUES = 3_000_000
"""Values of a rule file, and commas in its texts."""


def _text(value: Any) -> Any:
    if isinstance(value, str) and not checked(value, "the text").strip():
        raise InputError(f"expected text that is not blank, got {value!r}")
    return value


Text = Annotated[str, BeforeValidator(_text)]
"""Unicode text that is not blank."""
Space = bool | None
"""Whether a space is between a prompt and its answer; None: as `interp.rules.joining` decides."""


class Frozen(BaseModel):
    """Data that are checked when made and never changed: unknown fields and infinities are
    errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Probe(Frozen):
    """A prompt whose answer an edit should change: an instance (IP) or an understanding item
    (RU).
    """

    prompt: Text
    target_new: Text
    """The answer under the edited rule."""
    space: Space = None
    target_true: tuple[Text, ...] = ()
    """Accepted answers under the true rule; the first is the canonical one."""
    wording: Literal["verbatim", "paraphrase"] | None = None
    """Understanding only: whether the prompt is one that is edited in the same run (`verbatim`)."""
    values: dict[str, float] = Field(default_factory=dict)
    """Instances only: the numbers of the prompt by the symbol of the rule's expression."""


class LocalityProbe(Frozen):
    """A prompt whose answer an edit must leave alone."""

    prompt: Text
    answer: Text
    space: Space = None
    rule: str | None = None
    """The rule of the same file that the prompt asks about, if it is one."""
    values: dict[str, float] = Field(default_factory=dict)
    """Instances only: the numbers of the prompt by the symbol of that rule's expression."""


class Twin(Frozen):
    """The same wording about another rule: the counterfactual prompt of activation patching."""

    rule: str
    """The rule that the prompt asks about."""
    prompt: Text
    answer: Text
    """The true answer to it."""
    space: Space = None


class Symbol(Frozen):
    """A quantity in the expressions of a rule."""

    name: Text
    unit: str = ""
    """As `interp.rules.units` reads it; empty for a pure number."""


class RulePrompt(Frozen):
    """One form of a rule: the edit it asks for, and what evaluates that edit."""

    prompt: Text
    subject: Text
    target_new: Text
    target_true: tuple[Text, ...] = ()
    target_true_source: Literal["dataset", "derived"] = "dataset"
    """`derived`: the data do not give it, and it was worked out from the rule's formula."""
    space: Space = None
    """Of the prompt and its rephrasings, with either answer."""
    rephrasings: tuple[Text, ...] = ()
    values: dict[str, float] = Field(default_factory=dict)
    instances: tuple[Probe, ...] = ()
    understanding: tuple[Probe, ...] = ()
    neighborhood: tuple[LocalityProbe, ...] = ()
    distracting: tuple[LocalityProbe, ...] = ()
    twins: tuple[Twin, ...] = ()
    """Closest first; which of them has as many tokens as the prompt depends on the model."""

    @model_validator(mode="after")
    def _subject_in_prompt(self) -> "RulePrompt":
        try:
            subject_spans(self.prompt, self.subject)
        except TextError:
            raise InputError(
                f"the subject {self.subject!r} is not in the prompt {self.prompt!r}; "
                "tracing and editing look it up there, so write it exactly as in the prompt"
            ) from None
        return self


class Rule(Frozen):
    """A rule in its forms. `id` is unique in a set and safe as a file name."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=150)
    name: Text
    """What the rule is of, in words: "perimeter of a rectangle"."""
    subject: Text
    words: tuple[Text, ...] | None = None
    """Words or phrases of every prompt that name the rule beside the subject. Default: those of
    the name."""
    domain: str | None = None
    topic: str | None = None
    split: Split | None = None
    expression_true: str | None = None
    """The true result as an expression in the symbols of `values`, as `interp.rules.expressions`
    reads it: "2*(l + w)"."""
    expression_new: str | None = None
    result: Symbol | None = None
    """The quantity that the expressions give."""
    symbols: tuple[Symbol, ...] = ()
    """The quantities that the expressions are made of."""
    forms: dict[RuleForm, RulePrompt] = Field(min_length=1)

    @property
    def rule_words(self) -> tuple[str, ...]:
        """Words that name the rule: `words`, or the content words of the name outside the subject.

        Lower case, in order of appearance. Those of the name need not be in a prompt; `words` must
        be in every one.

        >>> form = RulePrompt(prompt="The area of a circle is", subject="circle", target_new="3")
        >>> forms = {"formula": form}
        >>> Rule(id="a", name="area of a circle", subject="circle", forms=forms).rule_words
        ('area',)
        """
        if self.words is not None:
            return tuple(dict.fromkeys(word.strip().lower() for word in self.words))
        return content_words(self.name, self.subject)

    @model_validator(mode="after")
    def _words_in_prompts(self) -> "Rule":
        for form, prompt in self.forms.items():
            if lost := missing(prompt.prompt, [word.strip() for word in self.words or ()]):
                raise InputError(
                    f"words: {lost[0]!r} is not in the {form} prompt {prompt.prompt!r}; write it as"
                    " it stands there, or leave `words` out (the words of the name are then looked"
                    " up where they are)"
                )
        return self


class RuleFile(Frozen):
    """The content of a `rules.json`."""

    schema_: Literal["dmle.rules/1"] = Field(alias="schema")
    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _unique_ids(self) -> "RuleFile":
        seen: set[str] = set()
        for rule in self.rules:
            if rule.id in seen:
                raise InputError(f"two rules have the id {rule.id!r}; ids must be unique")
            seen.add(rule.id)
        if (pair := same_on_some_disks(rule.id for rule in self.rules)) is not None:
            raise InputError(
                f"the ids {pair[0]!r} and {pair[1]!r} differ in upper and lower case only, and some"
                " disks keep one file for both; rename one"
            )
        return self


class RuleError(DmleError):
    """A rule source cannot be used: says which file or folder, what is wrong with it, and how to
    mend it.
    """


class Refusal(NamedTuple):
    """A record that was not used."""

    where: str
    """Rule id and file: "ruleedit-145/ins.json"."""
    reason: str


class Repair(NamedTuple):
    """A fault of a record that was mended, or a contradiction in it that was settled, by a rule
    with a name.
    """

    where: str
    """Rule id and file: "ruleedit-145/ins.json"."""
    name: str
    """One of `interp.rules.ruleedit.repairs.REPAIRS`."""
    detail: str
    """What was found, and what was made of it."""


# Reading JSON, and saying what is wrong with it.


def parse_json(content: bytes) -> Any:
    """JSON in UTF-8, with or without a byte order mark, whose objects name each key once.

    Raises:
        ValueError: It is something else, or has more values than any rule file needs.
    """
    # Counted before anything is made of it: each value, and each fault of one, takes memory.
    if sum(content.count(sign) for sign in (b",", b"[", b"{")) > MAX_VALUES:
        raise InputError(f"it has more than {MAX_VALUES} values; split it into several files")
    return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            said = key if len(key) <= 60 else key[:57] + "..."
            raise InputError(f"the key {said!r} occurs twice in one object; keep one of the two")
        found[key] = value
    return found


def explain(error: Exception) -> str:
    """What is wrong, in one line of words."""
    if isinstance(error, ValidationError):
        details = [_detail(detail) for detail in error.errors(include_url=False)]
        more = f"; and {len(details) - 3} more" if len(details) > 3 else ""
        return "; ".join(details[:3]) + more
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON at line {error.lineno} column {error.colno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8 text; save the file as UTF-8"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    return str(error)


def _detail(detail: Mapping[str, Any]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
    place = "".join(parts).lstrip(".")
    if detail["type"] == "missing":
        return f"{place} is missing"
    if detail["type"] == "extra_forbidden":
        return f"{place} is not a known key"
    if detail["type"] == "value_error":
        return f"{place}: {detail['ctx']['error']}" if place else str(detail["ctx"]["error"])
    got = repr(detail["input"])
    got = got if len(got) <= 60 else got[:57] + "..."
    expected = detail["msg"].removeprefix("Input should be ")
    return f"{place or 'the whole'}: expected {expected}, got {got}"
