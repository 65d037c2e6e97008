"""What a rule is: its forms, what each form's edit asks for, and what evaluates that edit. No torch.

A rule (the perimeter of a rectangle) is stored by a language model in three forms that must agree: a
*formula*, a *description* in words, and numeric *instances*. A `Rule` holds, for each form, the prompt that is
traced and edited, the answer that is true, the answer that an edit wants, and the prompts that tell whether the
edit worked and did nothing else.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from interp.errors import DmleError

RuleForm = Literal["formula", "description", "instance"]
FORMS: tuple[RuleForm, ...] = get_args(RuleForm)
SCHEMA = "dmle.rules/1"
MAX_VALUES = 3_000_000
"""Values of a rule file, and commas in its texts."""
Split = Literal["train", "validation", "test"]

# Words of a rule's name that name nothing: they are never corrupted or looked up.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a across an and as at between by can for from has have in into is it its law of on or per rule "
        "that the theorem through to with",
    )
)


class Frozen(BaseModel):
    """Data that are checked when made and never changed: unknown fields and infinities are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Probe(Frozen):
    """A prompt whose answer an edit should change: an instance (IP) or an understanding item (RU)."""

    prompt: str = Field(min_length=1)
    target_new: str = Field(min_length=1)
    """The answer under the edited rule."""
    target_true: tuple[str, ...] = ()
    """Accepted answers under the true rule; the first is the canonical one."""
    wording: Literal["verbatim", "paraphrase"] | None = None
    """Understanding only: whether the prompt is one that is edited in the same run (`verbatim`)."""
    values: dict[str, float] = Field(default_factory=dict)
    """Instances only: the numbers of the prompt by the symbol of the rule's expression."""


class LocalityProbe(Frozen):
    """A prompt whose answer an edit must leave alone."""

    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    rule: str | None = None
    """The rule of the same file that the prompt asks about, if it is one."""
    values: dict[str, float] = Field(default_factory=dict)
    """Instances only: the numbers of the prompt by the symbol of that rule's expression."""


class Twin(Frozen):
    """The same wording about another rule: the counterfactual prompt of activation patching."""

    rule: str
    """The rule that the prompt asks about."""
    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    """The true answer to it."""


class Symbol(Frozen):
    """A quantity in the expressions of a rule."""

    name: str = Field(min_length=1)
    unit: str = ""
    """As `interp.units` reads it; empty for a pure number."""


class RulePrompt(Frozen):
    """One form of a rule: the edit it asks for, and what evaluates that edit."""

    prompt: str = Field(min_length=1)
    subject: str = Field(min_length=1)
    target_new: str = Field(min_length=1)
    target_true: tuple[str, ...] = ()
    target_true_source: Literal["dataset", "derived"] = "dataset"
    """`derived`: the data do not give it, and it was worked out from the rule's formula."""
    rephrasings: tuple[str, ...] = ()
    values: dict[str, float] = Field(default_factory=dict)
    instances: tuple[Probe, ...] = ()
    understanding: tuple[Probe, ...] = ()
    neighborhood: tuple[LocalityProbe, ...] = ()
    distracting: tuple[LocalityProbe, ...] = ()
    twins: tuple[Twin, ...] = ()
    """Closest first; which of them has as many tokens as the prompt depends on the model."""

    @model_validator(mode="after")
    def _subject_in_prompt(self) -> "RulePrompt":
        if self.subject not in self.prompt:
            raise ValueError(
                f"the subject {self.subject!r} is not in the prompt {self.prompt!r}; "
                "tracing and editing look it up there, so write it exactly as in the prompt"
            )
        return self


class Rule(Frozen):
    """A rule in its forms. `id` is unique in a set and safe as a file name."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    name: str = Field(min_length=1)
    """What the rule is of, in words: "perimeter of a rectangle"."""
    subject: str = Field(min_length=1)
    domain: str | None = None
    topic: str | None = None
    split: Split | None = None
    expression_true: str | None = None
    """The true result as an expression in the symbols of `values`, as `interp.expressions` reads it: "2*(l + w)"."""
    expression_new: str | None = None
    result: Symbol | None = None
    """The quantity that the expressions give."""
    symbols: tuple[Symbol, ...] = ()
    """The quantities that the expressions are made of."""
    forms: dict[RuleForm, RulePrompt] = Field(min_length=1)

    @property
    def rule_words(self) -> tuple[str, ...]:
        """Content words of the name outside the subject, lower case, in order of appearance.

        >>> form = RulePrompt(prompt="The area of a circle is", subject="circle", target_new="3")
        >>> Rule(id="a", name="area of a circle", subject="circle", forms={"formula": form}).rule_words
        ('area',)
        """
        outside = set(re.findall(r"\w+", self.subject.lower()))
        words = re.findall(r"\w+", self.name.lower())
        return tuple(dict.fromkeys(w for w in words if w not in outside | STOP_WORDS and len(w) > 1))


class RuleFile(Frozen):
    """The content of a `rules.json`."""

    schema_: Literal["dmle.rules/1"] = Field(alias="schema")
    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _unique_ids(self) -> "RuleFile":
        seen: set[str] = set()
        for rule in self.rules:
            if rule.id in seen:
                raise ValueError(f"two rules have the id {rule.id!r}; ids must be unique")
            seen.add(rule.id)
        return self


class RuleError(DmleError):
    """A rule source cannot be used: says which file or folder, what is wrong with it, and how to mend it."""


class Refusal(NamedTuple):
    """A record that was not used."""

    where: str
    """Rule id and file: "ruleedit-145/ins.json"."""
    reason: str


class Repair(NamedTuple):
    """A fault of a record that was mended, or a contradiction in it that was settled, by a rule with a name."""

    where: str
    """Rule id and file: "ruleedit-145/ins.json"."""
    name: str
    """One of `interp.ruleedit.REPAIRS`."""
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
        raise ValueError(f"it has more than {MAX_VALUES} values; split it into several files")
    return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            said = key if len(key) <= 60 else key[:57] + "..."
            raise ValueError(f"the key {said!r} occurs twice in one object; keep one of the two")
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
