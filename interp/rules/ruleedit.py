"""RuleEdit data: numbered folders, each with `f_d.json` = [formula, description] and `ins.json` =
[instance].

The published data have faults (invalid JSON, lists out of step, subjects that are not in their
prompt). Each kind that can be mended is mended by a repair that has a name, is applied only where
its condition holds, and is reported; a record that no repair makes whole is refused with the
reason. Nothing is dropped or cut silently.
"""

import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, model_validator

from interp.errors import InputError
from interp.results.files import atomic, write_text
from interp.rules.schema import (
    Frozen,
    LocalityProbe,
    Probe,
    Refusal,
    Repair,
    Rule,
    RuleError,
    RulePrompt,
    explain,
    parse_json,
)
from interp.rules.words import STOP_WORDS
from interp.vocabulary import FORMS, RuleForm

FILES = ("f_d.json", "ins.json")
MAX_MEMBER_BYTES = 4 * 2**20
MAX_ARCHIVE_BYTES = 256 * 2**20
REPAIRS = {
    "closed_brace": "a closing brace is missing; it is put in where reading stopped",
    "renamed_key": "a key is misspelt; it is given the name that it must have",
    "reused_targets": (
        "prompts are a multiple of the answers and repeat the same numbers; each set gets the"
        " answers"
    ),
    "removed_target": (
        "there is one answer too many, which belongs to a prompt of the other file; it is taken out"
    ),
    "stripped_space": (
        "text begins or ends with a space, or has one before its full stop; it is taken out"
    ),
    "subject_case": "the subject is in the prompt in another case; it is written as there",
    "subject_from_name": (
        "the subject is not in the prompt; the last word of the rule's name that is becomes it"
    ),
    "name_of_formula": "the forms name the rule differently; the formula's name is taken",
    "subject_per_form": (
        "the forms have different subjects; each keeps its own, the rule has the formula's"
    ),
    "folder_number": "case_id is not the folder's number; the folder's number is the id",
}
_MISSPELT = {"ground_university": "ground_truth"}

Members = Mapping[str, Mapping[str, bytes]]
"""Folder number, as it is written, to file name to content."""
Texts = Annotated[tuple[str, ...], Field(min_length=1)]


class _Strings(Frozen):
    """Prompts in step with their answers."""

    prompt: Texts

    @model_validator(mode="after")
    def _same_lengths(self) -> "_Strings":
        lengths = {name: len(values) for name, values in self if values is not None}
        if len(set(lengths.values())) > 1:
            counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
            raise InputError(
                f"lists of different lengths ({counts}); each prompt needs its own answer"
            )
        return self


class _InstanceItems(_Strings):
    target_new: Texts


class _LocalityItems(_Strings):
    ground_truth: Texts


class _UnderstandingItems(_Strings):
    target_new: Texts
    ground_truth: Texts


class _UnderstandingItem(Frozen):
    prompt: str
    target_new: str
    ground_truth: Texts
    rephrase_prompt: str | None = None


class _Locality(Frozen):
    neighborhood: _LocalityItems
    distracting: _LocalityItems


class _Record(Frozen):
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


@dataclass
class Reading:
    """What was made of the folders of a source."""

    rules: list[Rule] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)
    repairs: list[Repair] = field(default_factory=list)


def read_ruleedit(path: Path, *, strict: bool = False) -> Reading:
    """Read a RuleEdit folder or zip archive; an archive is read in memory and never unpacked.

    Args:
        path: The folder or archive; numbered folders may lie at any depth.
        strict: Refuse what would need a repair.

    Raises:
        RuleError: If the source as a whole cannot be read, or holds no RuleEdit data.
    """
    members = _folder_members(path) if path.is_dir() else _zip_members(path)
    if not members:
        raise RuleError(
            f"{path} holds no RuleEdit data; "
            f"needed are numbered folders with {' and '.join(FILES)}, such as 83/f_d.json"
        )
    reading = Reading()
    for number in sorted(members, key=int):
        mending = _Mending(f"ruleedit-{number}")
        try:
            rule = _rule(mending, members[number])
        except _Refused as error:
            reading.refused.append(error.refusal)
            continue
        if strict and mending.repairs:
            needed = "; ".join(f"{repair.name}: {repair.detail}" for repair in mending.repairs)
            reading.refused.append(Refusal(mending.repairs[0].where, f"needs repair ({needed})"))
            continue
        reading.rules.append(rule)
        reading.repairs += mending.repairs
    return reading


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
        raise _Refused(Refusal(where, explain(error))) from error


# Repairs. Each looks at one kind of fault in the JSON of a file, and notes what it did.


class _Mending:
    """The repairs of one folder."""

    def __init__(self, id_: str) -> None:
        self.id, self.repairs = id_, []

    def note(self, file: str, name: str, detail: str) -> None:
        """Report a repair."""
        assert name in REPAIRS
        self.repairs.append(Repair(f"{self.id}/{file}", name, detail))

    def json(self, file: str, content: bytes) -> Any:
        """Parse a file, with a missing brace put in if that is all it lacks."""
        try:
            return parse_json(content)
        except json.JSONDecodeError as error:
            text = content.decode("utf-8-sig")
            try:
                mended = parse_json((text[: error.pos] + "}" + text[error.pos :]).encode())
            except ValueError:
                raise error from None
            self.note(file, "closed_brace", f"line {error.lineno} column {error.colno}")
            return mended

    def records(self, file: str, records: Any, siblings: Any = None) -> Any:
        """Mend the records of a file, as far as they are what they should be."""
        if not isinstance(records, list):
            return records
        for record in records:
            if isinstance(record, dict):
                self._keys(file, record)
                self._spaces(file, record)
                self._targets(file, record, siblings)
                self._subject(file, record)
        return records

    def _keys(self, file: str, node: dict[str, Any], path: str = "") -> None:
        for key in list(node):
            if isinstance(node[key], dict):
                self._keys(file, node[key], f"{path}{key}.")
            if key in _MISSPELT and _MISSPELT[key] not in node:
                node[_MISSPELT[key]] = node.pop(key)
                self.note(file, "renamed_key", f"{path}{key} to {_MISSPELT[key]}")

    def _spaces(self, file: str, node: Any, path: str = "") -> Any:
        if isinstance(node, dict):
            for key, value in node.items():
                node[key] = self._spaces(file, value, f"{path}.{key}" if path else key)
        elif isinstance(node, list):
            node[:] = [self._spaces(file, value, f"{path}[{at}]") for at, value in enumerate(node)]
        elif isinstance(node, str) and (clean := re.sub(r"\s+\.$", ".", node.strip())) != node:
            self.note(file, "stripped_space", f"{path}: {node!r}")
            return clean
        return node

    def _targets(self, file: str, record: dict[str, Any], siblings: Any) -> None:
        items = record.get("Instance")
        if not isinstance(items, dict):
            return
        prompts: Any = items.get("prompt")
        targets: Any = items.get("target_new")
        if (
            not (_are_texts(prompts) and _are_texts(targets))
            or len(prompts) == len(targets)
            or not targets
        ):
            return
        sets = [prompts[at : at + len(targets)] for at in range(0, len(prompts), len(targets))]
        if len(prompts) % len(targets) == 0 and all(
            list(map(_numbers, s)) == list(map(_numbers, sets[0])) for s in sets
        ):
            items["target_new"] = targets * len(sets)
            self.note(
                file,
                "reused_targets",
                f"Instance: {len(prompts)} prompts with {len(targets)} answers",
            )
            return
        elsewhere = set(_answers_elsewhere(prompts, siblings))
        extra = [at for at, target in enumerate(targets) if target in elsewhere]
        if len(targets) == len(prompts) + 1 and len(extra) == 1:
            items["target_new"] = targets[: extra[0]] + targets[extra[0] + 1 :]
            self.note(
                file,
                "removed_target",
                f"Instance: {len(prompts)} prompts, answer {targets[extra[0]]!r} taken out",
            )

    def _subject(self, file: str, record: dict[str, Any]) -> None:
        subject, prompt, name = (record.get(key) for key in ("subject", "prompt", "rule"))
        if (
            not (isinstance(subject, str) and isinstance(prompt, str) and isinstance(name, str))
            or subject in prompt
        ):
            return
        at = prompt.lower().find(subject.lower())
        if at >= 0:
            record["subject"] = prompt[at : at + len(subject)]
            self.note(file, "subject_case", f"{subject!r} to {record['subject']!r}")
            return
        words = [
            word
            for word in re.findall(r"\w+", name)
            if word.lower() not in STOP_WORDS and len(word) > 2
        ]
        found = [word for word in words if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", prompt)]
        if found:
            record["subject"] = found[-1]
            self.note(
                file, "subject_from_name", f"{subject!r} is not in {prompt!r}; {found[-1]!r} is"
            )

    def settle(self, number: int, records: Mapping[str, Sequence[_Record]]) -> None:
        """Note where the records of a folder contradict one another, and what is taken."""
        formula = records["f_d.json"][0]
        for file, each in records.items():
            for at, record in enumerate(each):
                place, other = f"record {at}: " if len(each) > 1 else "", "in the formula"
                if record.case_id != number:
                    self.note(
                        file, "folder_number", f"{place}case_id {record.case_id} in folder {number}"
                    )
                if record.rule != formula.rule:
                    self.note(
                        file,
                        "name_of_formula",
                        f"{place}{record.rule!r}, and {formula.rule!r} {other}",
                    )
                if record.subject != formula.subject:
                    self.note(
                        file,
                        "subject_per_form",
                        f"{place}{record.subject!r}, and {formula.subject!r} in the formula",
                    )


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _numbers(text: str) -> set[str]:
    """The numbers of a prompt; the index of a symbol such as a1 is none."""
    return set(re.findall(r"(?<![\w.])\d+(?:\.\d+)?", text))


def _answers_elsewhere(prompts: Sequence[str], siblings: Any) -> Iterator[str]:
    """Answers that the records of the other file give to prompts that are not among these."""
    for record in siblings if isinstance(siblings, list) else ():
        items = record.get("Instance") if isinstance(record, dict) else None
        if (
            isinstance(items, dict)
            and _are_texts(items.get("prompt"))
            and _are_texts(items.get("target_new"))
        ):
            pairs = zip(items["prompt"], items["target_new"], strict=False)
            yield from (target for prompt, target in pairs if prompt not in prompts)


# From records to rules.


def _rule(mending: _Mending, files: Mapping[str, bytes]) -> Rule:
    id_ = mending.id
    for name in FILES:
        if name not in files:
            raise _Refused(Refusal(f"{id_}/{name}", "this file is missing"))
    with _refusing(f"{id_}/f_d.json"):
        f_d = mending.records("f_d.json", mending.json("f_d.json", files["f_d.json"]))
        formula, description = _F_D.validate_python(f_d)
    with _refusing(f"{id_}/ins.json"):
        ins = mending.records("ins.json", mending.json("ins.json", files["ins.json"]), siblings=f_d)
        (instance,) = _INS.validate_python(ins)
    mending.settle(
        int(id_.rpartition("-")[2]), {"f_d.json": (formula, description), "ins.json": (instance,)}
    )
    edited = {record.prompt for record in (formula, description, instance)}
    with _refusing(f"{id_}/f_d.json"):
        forms: dict[RuleForm, RulePrompt] = {
            "formula": _form(formula, _understanding(formula.understanding, edited)),
            "description": _form(description, _understanding(description.understanding, edited)),
        }
    with _refusing(f"{id_}/ins.json"):
        given = _form(instance, _understanding_list(instance.understanding, edited))
        forms["instance"] = given if given.target_true else _with_truth(given, formula)
        return Rule(id=id_, name=formula.rule, subject=formula.subject, forms=forms)


def _with_truth(instance: RulePrompt, formula: _Record) -> RulePrompt:
    """The instance with the true answer that follows from the formula, if one does."""
    from interp.rules.derivation import (
        instance_truth,
    )  # imports SymPy, which takes most of a second

    found = instance_truth(
        formula.prompt,
        formula.target_new,
        formula.ground_truth,
        instance.prompt,
        instance.target_new,
    )
    if found is None:
        return instance
    update = {"target_true": found.answers, "target_true_source": "derived", "values": found.values}
    return instance.model_copy(update=update)


def _form(record: _Record, understanding: tuple[Probe, ...]) -> RulePrompt:
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
    return tuple(
        _understanding_probe(p, item.target_new, item.ground_truth, edited) for p in prompts
    )


def _understanding_list(items: _UnderstandingItems, edited: set[str]) -> tuple[Probe, ...]:
    triples = zip(items.prompt, items.target_new, items.ground_truth, strict=True)
    return tuple(
        _understanding_probe(prompt, new, (true,), edited) for prompt, new, true in triples
    )


def _understanding_probe(prompt: str, new: str, true: tuple[str, ...], edited: set[str]) -> Probe:
    wording = "verbatim" if prompt in edited else "paraphrase"
    return Probe(prompt=prompt, target_new=new, target_true=true, wording=wording)


def _locality_probes(items: _LocalityItems) -> tuple[LocalityProbe, ...]:
    pairs = zip(items.prompt, items.ground_truth, strict=True)
    return tuple(LocalityProbe(prompt=prompt, answer=answer) for prompt, answer in pairs)


# Writing.


def write_ruleedit(rules: Iterable[Rule], folder: str | Path) -> list[str]:
    """Write rules as RuleEdit folders, numbered from 0 in the order given.

    RuleEdit has one rephrasing for each form, understanding of the one other form for formula and
    description and of both for the instance, and no values, expressions, twins or splits.

    Returns:
        What RuleEdit has no place for, one line a kind with its count.

    Raises:
        RuleError: If a rule lacks a form or an item that RuleEdit needs, or the folder holds data
            already.
    """
    rules, folder = list(rules), Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise RuleError(f"{folder} is not empty; give a new folder")
    written = [_folder_of(number, rule) for number, rule in enumerate(rules)]
    # A new folder is there as a whole or not at all, so that a killed export can be given again.
    with nullcontext(folder) if folder.is_dir() else atomic(folder) as place:
        for number, files in enumerate(written):
            for name, records in files.items():
                text = json.dumps(records, ensure_ascii=False, indent=2) + "\n"
                write_text(place / str(number) / name, text)
    forms = [form for rule in rules for form in rule.forms.values()]
    lost = {
        "rephrasings beyond the first": sum(len(form.rephrasings) - 1 for form in forms),
        "understanding items of other wordings or forms": (
            sum(len(form.understanding) for form in forms) - sum(4 + 2 for _ in rules)
        ),
        "twins": sum(len(form.twins) for form in forms),
        "expressions": sum(rule.expression_true is not None for rule in rules),
        "splits": sum(rule.split is not None for rule in rules),
        "words that name a rule": sum(rule.words is not None for rule in rules),
        "said spaces before answers": sum(form.space is not None for form in forms),
    }
    return [f"{name}: {count}" for name, count in lost.items() if count > 0]


def _folder_of(number: int, rule: Rule) -> dict[str, list[dict[str, Any]]]:
    missing = [form for form in FORMS if form not in rule.forms]
    if missing:
        raise RuleError(
            f"{rule.id} has no {' and no '.join(missing)}; a RuleEdit folder needs all three forms"
        )
    formula, description, instance = (_record_of(number, rule, form) for form in FORMS)
    formula["Rule_Understanding"] = _asked(rule, "formula", "description")
    description["Rule_Understanding"] = _asked(rule, "description", "formula")
    both = [_asked(rule, "instance", form) for form in ("formula", "description")]
    instance["Rule_Understanding"] = {
        "prompt": [item["prompt"] for item in both],
        "target_new": [item["target_new"] for item in both],
        "ground_truth": [item["ground_truth"][0] for item in both],
    }
    return {"f_d.json": [formula, description], "ins.json": [instance]}


def _record_of(number: int, rule: Rule, form: RuleForm) -> dict[str, Any]:
    prompt = rule.forms[form]
    if not (prompt.rephrasings and prompt.instances and prompt.neighborhood and prompt.distracting):
        raise RuleError(
            f"{rule.id} {form} lacks rephrasings, instances or locality, which RuleEdit needs"
        )
    if form != "instance" and not prompt.target_true:
        raise RuleError(f"{rule.id} {form} has no true answer, which RuleEdit needs")
    kinds = {"neighborhood": prompt.neighborhood, "distracting": prompt.distracting}
    return {
        "case_id": number,
        "subject": prompt.subject,
        "rule": rule.name,
        "prompt": prompt.prompt,
        "target_new": prompt.target_new,
        "rephrase_prompt": prompt.rephrasings[0],
        "ground_truth": list(prompt.target_true),
        "locality": {
            kind: {"prompt": [p.prompt for p in probes], "ground_truth": [p.answer for p in probes]}
            for kind, probes in kinds.items()
        },
        "Instance": {
            "prompt": [probe.prompt for probe in prompt.instances],
            "target_new": [probe.target_new for probe in prompt.instances],
        },
    }


def _asked(rule: Rule, form: RuleForm, about: RuleForm) -> dict[str, Any]:
    """The understanding item of one form that asks for another form, verbatim and in other
    words.
    """
    other = rule.forms[about]
    rephrased = [
        probe.prompt
        for probe in rule.forms[form].understanding
        if probe.wording == "paraphrase" and probe.target_new == other.target_new
    ]
    item = {
        "prompt": other.prompt,
        "target_new": other.target_new,
        "ground_truth": list(other.target_true),
    }
    return {**item, "rephrase_prompt": rephrased[0]} if rephrased else item


# Reading files.


def _folder_members(folder: Path) -> Members:
    found = sorted(path for name in FILES for path in folder.resolve().rglob(name))
    named = [(PurePosixPath(path.parent.name, path.name), path) for path in found if path.is_file()]
    return _by_number(((name, path.read_bytes()) for name, path in named), str(folder))


def _zip_members(path: Path) -> Members:
    try:
        with zipfile.ZipFile(path) as archive:
            named = [(_safe_name(info.filename, path), info) for info in archive.infolist()]
            wanted = [(name, info) for name, info in named if name.name in FILES]
            if (total := sum(info.file_size for _, info in wanted)) > MAX_ARCHIVE_BYTES:
                raise RuleError(
                    f"{path} unpacks to {total} bytes, more than the {MAX_ARCHIVE_BYTES} that are"
                    " read"
                )
            return _by_number(
                ((name, _read_member(archive, info, path)) for name, info in wanted), str(path)
            )
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        raise RuleError(
            f"{path} is not a whole zip archive ({error}); fetch or make it again, or give the"
            " folder"
        ) from error


def _safe_name(name: str, path: Path) -> PurePosixPath:
    safe = PurePosixPath(name.replace("\\", "/"))
    if safe.is_absolute() or ".." in safe.parts or re.match("[A-Za-z]:", name):
        raise RuleError(
            f"{path} has a member named {name!r}, which leaves the archive; make it again"
            " without it"
        )
    return safe


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise RuleError(
            f"{path}: {info.filename} is encrypted or not deflated; make the archive again without"
            " that"
        )
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
        if not re.fullmatch(r"[0-9]{1,9}", number):
            continue
        files = folders.setdefault(number, {})
        if written.setdefault(int(number), number) != number or name.name in files:
            raise RuleError(
                f"{source} has two files {name.name} of a folder {number}; each id must be unique"
            )
        files[name.name] = content
    return folders
