"""Rules: what is known, in which forms, and what each form's edit and its evaluation ask.

A rule (the perimeter of a rectangle) is stored by a language model in three forms that must agree: a
*formula*, a *description* in words, and numeric *instances*. Here a `Rule` holds, for each form, the
prompt that is traced and edited, the answer that is true, the answer that an edit wants, and the prompts
that tell whether the edit worked and did nothing else.

Two sources are read: files of this project (`rules.json`, schema `dmle.rules/1`) and RuleEdit folders or
zip archives (`<number>/f_d.json`, `<number>/ins.json`), without unpacking. Nothing is dropped silently:
records that cannot be used are listed in `RuleSet.refused` with the reason.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

RuleForm = Literal["formula", "description", "instance"]
FORMS: tuple[RuleForm, ...] = get_args(RuleForm)
SCHEMA = "dmle.rules/1"
Split = Literal["train", "validation", "test"]

# Words of a rule's name that name nothing: they are never corrupted or looked up.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a across an and as at between by can for from has have in into is it its law of on or per rule "
        "that the theorem through to with",
    )
)
MAX_MEMBER_BYTES = 4 * 2**20
LINE_WIDTH = 160
RULEEDIT_FILES = ("f_d.json", "ins.json")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Probe(_Frozen):
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


class LocalityProbe(_Frozen):
    """A prompt whose answer an edit must leave alone."""

    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class RulePrompt(_Frozen):
    """One form of a rule: the edit it asks for, and what evaluates that edit."""

    prompt: str = Field(min_length=1)
    subject: str = Field(min_length=1)
    target_new: str = Field(min_length=1)
    target_true: tuple[str, ...] = ()
    rephrasings: tuple[str, ...] = ()
    values: dict[str, float] = Field(default_factory=dict)
    instances: tuple[Probe, ...] = ()
    understanding: tuple[Probe, ...] = ()
    neighborhood: tuple[LocalityProbe, ...] = ()
    distracting: tuple[LocalityProbe, ...] = ()

    @model_validator(mode="after")
    def _subject_in_prompt(self) -> "RulePrompt":
        if self.subject not in self.prompt:
            raise ValueError(
                f"the subject {self.subject!r} is not in the prompt {self.prompt!r}; "
                "tracing and editing look it up there, so write it exactly as in the prompt"
            )
        return self


class Rule(_Frozen):
    """A rule in its forms. `id` is unique in a set and safe as a file name."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    name: str = Field(min_length=1)
    """What the rule is of, in words: "perimeter of a rectangle"."""
    subject: str = Field(min_length=1)
    domain: str | None = None
    split: Split | None = None
    expression_true: str | None = None
    """The true result as an expression in the symbols of `values`, SymPy syntax: "2*(l + w)"."""
    expression_new: str | None = None
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


class RuleFile(_Frozen):
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


class RuleError(ValueError):
    """A rule source cannot be used: says which file or folder, what is wrong with it, and how to mend it."""


class Refusal(NamedTuple):
    """A record that was not used."""

    where: str
    """Rule id and file: "ruleedit-145/ins.json"."""
    reason: str


@dataclass(frozen=True)
class RuleSet:
    """The rules that were chosen from a source, and the records of that source that nothing can be made of.

    `refused` lists the whole source, whatever `ids`, `split` and `limit` chose among the usable rules.
    """

    rules: tuple[Rule, ...]
    source: str
    refused: tuple[Refusal, ...] = ()

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)


def load_rules(
    source: str | Path = "embedded",
    *,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
    split: Split | None = None,
) -> RuleSet:
    """Read rules from the embedded benchmark, a rule file, or RuleEdit data.

    Args:
        source: "embedded", a `.json` file of schema `dmle.rules/1`, or a RuleEdit folder or `.zip` (numbered
            folders at any depth; an archive is read in memory and never unpacked).
        limit: Take the first so many of the rules that `ids` and `split` leave, in the order of the source.
        ids: Take only these rules.
        split: Take only the rules of this split.

    Raises:
        RuleError: If the source cannot be read, an id does not exist, or no rule is left.
    """
    if limit is not None and limit < 1:
        raise RuleError(f"limit is {limit}; give at least 1, or None for every rule")
    rules, refused = _read_source(source)
    chosen = _with_ids(rules, refused, ids, str(source))
    if split is not None:
        chosen = _with_split(chosen, split, str(source))
    return RuleSet(rules=tuple(chosen[:limit]), source=str(source), refused=refused)


def dump_rules(rules: Iterable[Rule], path: str | Path) -> None:
    """Write rules as a rule file: `load_rules` reads back equal rules, and equal rules write equal text.

    Raises:
        RuleError: If two rules have the same id.
    """
    content = {
        "schema": SCHEMA,
        "rules": [rule.model_dump(mode="json", exclude_defaults=True) for rule in rules],
    }
    try:
        RuleFile.model_validate(content)
    except ValidationError as error:
        raise RuleError(f"these rules make no rule file: {_explain(error)}") from error
    Path(path).write_text(_layout(content) + "\n", encoding="utf-8", newline="\n")


def _layout(value: Any, indent: str = "") -> str:
    """JSON with an indent of 2, in which whatever fits on a line stays there: a probe is read at a glance."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or len(indent + line) <= LINE_WIDTH:
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key, ensure_ascii=False)}: {_layout(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + _layout(item, inner) for item in value) + f"\n{indent}]"


# Choosing among the rules of a source.


def _with_ids(
    rules: Sequence[Rule], refused: Sequence[Refusal], ids: Sequence[str] | None, source: str
) -> Sequence[Rule]:
    if not rules:
        listed = "; ".join(f"{where}: {reason}" for where, reason in refused[:3]) or "it has none"
        raise RuleError(f"{source} holds no usable rule ({listed})")
    if ids is None:
        return rules
    if isinstance(ids, str) or not ids:
        raise RuleError(f"ids is {ids!r}; give a list of at least one rule id, or None for every rule")
    reasons = {where.split("/")[0]: f"{where} was refused: {reason}" for where, reason in refused}
    known = {rule.id for rule in rules}
    unknown = [reasons.get(id_, repr(id_)) for id_ in dict.fromkeys(ids) if id_ not in known]
    if unknown:
        raise RuleError(f"{source} has no usable rule {', '.join(unknown)}; its ids are {_listing(known)}")
    return [rule for rule in rules if rule.id in ids]


def _with_split(rules: Sequence[Rule], split: Split, source: str) -> Sequence[Rule]:
    chosen = [rule for rule in rules if rule.split == split]
    if not chosen:
        found = sorted({rule.split for rule in rules if rule.split is not None})
        raise RuleError(
            f"{source}: none of the {len(rules)} chosen rules is in the split {split!r}; "
            f"their splits are {_listing(found) or 'not given'}"
        )
    return chosen


def _listing(names: Iterable[str], shown: int = 20) -> str:
    ordered = sorted(names, key=lambda name: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", name)])
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(ordered[:shown]) + more


# Sources. Each reader gives the usable rules and the refusals.


def _read_source(source: str | Path) -> tuple[tuple[Rule, ...], tuple[Refusal, ...]]:
    if source == "embedded":
        content = resources.files("interp.rulebook").joinpath("rules.json").read_bytes()
        return _parse_rule_file(content, "embedded"), ()
    path = Path(source)
    if path.is_dir():
        return _read_ruleedit(_folder_members(path), str(path))
    if not path.is_file():
        raise RuleError(f"{path} does not exist; give 'embedded', a rules .json file, or a RuleEdit folder or .zip")
    if path.suffix.lower() == ".json":
        return _parse_rule_file(path.read_bytes(), str(path)), ()
    if path.suffix.lower() == ".zip":
        return _read_ruleedit(_zip_members(path), str(path))
    raise RuleError(f"{path} ends in {path.suffix!r}; a rule source is a folder, a .json file or a .zip archive")


def _parse_rule_file(content: bytes, name: str) -> tuple[Rule, ...]:
    try:
        return RuleFile.model_validate(_parse_json(content)).rules
    except (ValueError, RecursionError) as error:
        raise RuleError(
            f"{name} is not a rule file of schema {SCHEMA}: {_explain(error)}. "
            "Mend the file there; RuleEdit data are given as their folder or .zip"
        ) from error


def _parse_json(content: bytes) -> Any:
    return json.loads(content.decode("utf-8-sig"), object_pairs_hook=_unique_keys)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {max(keys, key=keys.count)!r} occurs twice in one object; keep one of the two")
    return dict(pairs)


def _explain(error: Exception) -> str:
    """What is wrong, in one line of words."""
    if isinstance(error, ValidationError):
        details = [_explain_detail(detail) for detail in error.errors(include_url=False)]
        more = f"; and {len(details) - 3} more" if len(details) > 3 else ""
        return "; ".join(details[:3]) + more
    if isinstance(error, json.JSONDecodeError):
        return f"invalid JSON at line {error.lineno} column {error.colno}: {error.msg}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8 text; save the file as UTF-8"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deeply"
    return str(error)


def _explain_detail(detail: Mapping[str, Any]) -> str:
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


# RuleEdit: numbered folders, each with f_d.json = [formula, description] and ins.json = [instance].

Members = Mapping[str, Mapping[str, bytes]]
"""Folder number, as it is written, to file name to content."""


class _Strings(_Frozen):
    """Prompts in step with their answers."""

    prompt: tuple[str, ...]

    @model_validator(mode="after")
    def _same_lengths(self) -> "_Strings":
        lengths = {name: len(values) for name, values in self if values is not None}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise ValueError(f"lists of different lengths ({counts}); each prompt needs its own answer")
        return self


class _InstanceItems(_Strings):
    target_new: tuple[str, ...]


class _LocalityItems(_Strings):
    ground_truth: tuple[str, ...]


class _UnderstandingItems(_Strings):
    target_new: tuple[str, ...]
    ground_truth: tuple[str, ...]


class _UnderstandingItem(_Frozen):
    prompt: str
    target_new: str
    ground_truth: tuple[str, ...]
    rephrase_prompt: str | None = None


class _Locality(_Frozen):
    neighborhood: _LocalityItems
    distracting: _LocalityItems


class _Record(_Frozen):
    case_id: int
    subject: str
    rule: str
    prompt: str
    target_new: str
    rephrase_prompt: str
    ground_truth: tuple[str, ...] = ()
    instances: _InstanceItems = Field(alias="Instance")
    locality: _Locality


class _FormRecord(_Record):
    understanding: _UnderstandingItem = Field(alias="Rule_Understanding")


class _InstanceRecord(_Record):
    understanding: _UnderstandingItems = Field(alias="Rule_Understanding")


_F_D = TypeAdapter(tuple[_FormRecord, _FormRecord])
_INS = TypeAdapter(tuple[_InstanceRecord])


class _Refused(Exception):
    """Carries a refusal to the reader of the source."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise _Refused(Refusal(where, _explain(error))) from error


def _read_ruleedit(members: Members, source: str) -> tuple[tuple[Rule, ...], tuple[Refusal, ...]]:
    if not members:
        raise RuleError(
            f"{source} holds no RuleEdit data; "
            f"needed are numbered folders with {' and '.join(RULEEDIT_FILES)}, such as 83/f_d.json"
        )
    rules: list[Rule] = []
    refused: list[Refusal] = []
    for number in sorted(members, key=int):
        try:
            rules.append(_ruleedit_rule(f"ruleedit-{number}", members[number]))
        except _Refused as error:
            refused.append(error.refusal)
    return tuple(rules), tuple(refused)


def _ruleedit_rule(id_: str, files: Mapping[str, bytes]) -> Rule:
    for name in RULEEDIT_FILES:
        if name not in files:
            raise _Refused(Refusal(f"{id_}/{name}", "this file is missing"))
    with _refusing(f"{id_}/f_d.json"):
        formula, description = _F_D.validate_python(_parse_json(files["f_d.json"]))
    with _refusing(f"{id_}/ins.json"):
        (instance,) = _INS.validate_python(_parse_json(files["ins.json"]))
    edited = {record.prompt for record in (formula, description, instance)}
    with _refusing(f"{id_}/f_d.json"):
        forms: dict[RuleForm, RulePrompt] = {
            "formula": _ruleedit_form(formula, _understanding(formula.understanding, edited)),
            "description": _ruleedit_form(description, _understanding(description.understanding, edited)),
        }
    with _refusing(f"{id_}/ins.json"):
        forms["instance"] = _ruleedit_form(instance, _understanding_list(instance.understanding, edited))
        return Rule(id=id_, name=formula.rule, subject=formula.subject, forms=forms)


def _ruleedit_form(record: _Record, understanding: tuple[Probe, ...]) -> RulePrompt:
    instances = zip(record.instances.prompt, record.instances.target_new, strict=True)
    return RulePrompt(
        prompt=record.prompt,
        subject=record.subject,
        target_new=record.target_new,
        target_true=record.ground_truth,
        rephrasings=(record.rephrase_prompt,),
        instances=tuple(Probe(prompt=prompt, target_new=target) for prompt, target in instances),
        understanding=understanding,
        neighborhood=_locality_probes(record.locality.neighborhood),
        distracting=_locality_probes(record.locality.distracting),
    )


def _understanding(item: _UnderstandingItem, edited: set[str]) -> tuple[Probe, ...]:
    prompts = [item.prompt] if item.rephrase_prompt is None else [item.prompt, item.rephrase_prompt]
    return tuple(_understanding_probe(p, item.target_new, item.ground_truth, edited) for p in prompts)


def _understanding_list(items: _UnderstandingItems, edited: set[str]) -> tuple[Probe, ...]:
    triples = zip(items.prompt, items.target_new, items.ground_truth, strict=True)
    return tuple(_understanding_probe(prompt, new, (true,), edited) for prompt, new, true in triples)


def _understanding_probe(prompt: str, new: str, true: tuple[str, ...], edited: set[str]) -> Probe:
    wording = "verbatim" if prompt in edited else "paraphrase"
    return Probe(prompt=prompt, target_new=new, target_true=true, wording=wording)


def _locality_probes(items: _LocalityItems) -> tuple[LocalityProbe, ...]:
    pairs = zip(items.prompt, items.ground_truth, strict=True)
    return tuple(LocalityProbe(prompt=prompt, answer=answer) for prompt, answer in pairs)


def _folder_members(folder: Path) -> Members:
    found = sorted(path for name in RULEEDIT_FILES for path in folder.resolve().rglob(name))
    named = [(PurePosixPath(path.parent.name, path.name), path) for path in found if path.is_file()]
    return _by_number(((name, path.read_bytes()) for name, path in named), str(folder))


def _zip_members(path: Path) -> Members:
    try:
        with zipfile.ZipFile(path) as archive:
            named = [(_safe_name(info.filename, path), info) for info in archive.infolist()]
            wanted = [(name, info) for name, info in named if name.name in RULEEDIT_FILES]
            return _by_number(((name, _read_member(archive, info, path)) for name, info in wanted), str(path))
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise RuleError(
            f"{path} is not a whole zip archive ({error}); fetch or make it again, or give the folder"
        ) from error


def _safe_name(name: str, path: Path) -> PurePosixPath:
    safe = PurePosixPath(name.replace("\\", "/"))
    if safe.is_absolute() or ".." in safe.parts or re.match("[A-Za-z]:", name):
        raise RuleError(f"{path} has a member named {name!r}, which leaves the archive; make it again without it")
    return safe


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RuleError(f"{path}: {info.filename} is encrypted or not deflated; make the archive again without that")
    if info.file_size > MAX_MEMBER_BYTES:
        raise RuleError(
            f"{path}: {info.filename} has {info.file_size} bytes, more than the {MAX_MEMBER_BYTES} "
            "that a rule may have; it is not RuleEdit data, so take it out"
        )
    return archive.read(info)


def _by_number(members: Iterable[tuple[PurePosixPath, bytes]], source: str) -> Members:
    folders: dict[str, dict[str, bytes]] = {}
    written: dict[int, str] = {}
    for name, content in members:
        number = name.parent.name
        if not re.fullmatch(r"[0-9]+", number):
            continue
        files = folders.setdefault(number, {})
        if written.setdefault(int(number), number) != number or name.name in files:
            raise RuleError(f"{source} has two files {name.name} of a folder {number}; each id must be unique")
        files[name.name] = content
    return folders
