"""Sources of rules: the embedded rulebook, rule files, and RuleEdit data.

Nothing is dropped silently: `RuleSet.refused` lists the records that could not be used with the
reason, and `RuleSet.repairs` what was mended in those that are.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, overload

from pydantic import ValidationError

from interp.errors import InputError
from interp.results.checksums import CHECKSUM, checksum
from interp.results.files import write_text
from interp.rules.ruleedit.reading import Reading, read_ruleedit
from interp.rules.schema import (
    SCHEMA,
    LocalityProbe,
    Probe,
    Refusal,
    Repair,
    Rule,
    RuleError,
    RuleFile,
    RulePrompt,
    Symbol,
    Twin,
    explain,
    parse_json,
)
from interp.rules.words import STOP_WORDS
from interp.vocabulary import FORMS, RuleForm, Split

__all__ = [
    "FORMS",
    "SCHEMA",
    "STOP_WORDS",
    "LocalityProbe",
    "Probe",
    "Refusal",
    "Repair",
    "Rule",
    "RuleError",
    "RuleFile",
    "RuleForm",
    "RulePrompt",
    "RuleSet",
    "Split",
    "Symbol",
    "Twin",
    "dump_rules",
    "load_rules",
]
LINE_WIDTH = 160


@dataclass(frozen=True)
class RuleSet(Sequence[Rule]):
    """The rules that were chosen from a source, and the records of that source that nothing can be
    made of.

    `refused` lists the whole source, whatever `ids`, `split` and `limit` chose among the usable
    rules.
    """

    rules: tuple[Rule, ...]
    source: str
    refused: tuple[Refusal, ...] = ()
    repairs: tuple[Repair, ...] = ()
    """What was mended in the rules chosen."""

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    @overload
    def __getitem__(self, which: int) -> Rule: ...
    @overload
    def __getitem__(self, which: slice) -> tuple[Rule, ...]: ...
    def __getitem__(self, which: int | slice) -> Rule | tuple[Rule, ...]:
        return self.rules[which]


def load_rules(
    source: str | Path = "embedded",
    *,
    limit: int | None = None,
    ids: Sequence[str] | None = None,
    split: Split | None = None,
    strict: bool = False,
) -> RuleSet:
    """Read rules from the embedded benchmark, a rule file, or RuleEdit data.

    Args:
        source: "embedded", a `.json` file of schema `dmle.rules/1`, or a RuleEdit folder or `.zip`
            (numbered folders at any depth; an archive is read in memory and never unpacked).
        limit: Take the first so many of the rules that `ids` and `split` leave, in the order of the
            source.
        ids: Take only these rules.
        split: Take only the rules of this split.
        strict: Refuse a faulty RuleEdit record where otherwise a named repair would mend it.

    Raises:
        RuleError: If the source cannot be read, an id does not exist, or no rule is left.
    """
    if limit is not None and limit < 1:
        raise RuleError(f"limit is {limit}; give at least 1, or None for every rule")
    reading = _read_source(source, strict)
    chosen = _with_ids(reading.rules, reading.refused, ids, str(source))
    if split is not None:
        chosen = _with_split(chosen, split, str(source))
    kept = {rule.id for rule in chosen[:limit]}
    repairs = tuple(repair for repair in reading.repairs if repair.where.split("/")[0] in kept)
    return RuleSet(tuple(chosen[:limit]), str(source), tuple(reading.refused), repairs)


def counted(repairs: Iterable[Repair]) -> str:
    """Repairs in one line: how many of each name."""
    return ", ".join(
        f"{count} {name}"
        for name, count in Counter(repair.name for repair in repairs).most_common()
    )


def dump_rules(rules: Iterable[Rule], path: str | Path, *, sealed: bool = False) -> None:
    """Write rules as a rule file: `load_rules` reads back equal rules, and equal rules write equal
    text.

    Args:
        rules: The rules.
        path: The file.
        sealed: Add a checksum, so that no change of the file goes unseen: for records, not for
            files to be edited.

    Raises:
        RuleError: If two rules have the same id.
        WriteError: The file cannot be written.
    """
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "rules": [rule.model_dump(mode="json", exclude_defaults=True) for rule in rules],
    }
    try:
        RuleFile.model_validate(content)
    except ValidationError as error:
        raise RuleError(f"these rules make no rule file: {explain(error)}") from error
    if sealed:
        content[CHECKSUM] = checksum(json.loads(json.dumps(content)))
    write_text(Path(path), _layout(content) + "\n")


def _layout(value: Any, indent: str = "") -> str:
    """JSON with an indent of 2, in which whatever fits on a line stays there: a probe is read at
    a glance.
    """
    line = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if not isinstance(value, dict | list) or len(indent + line) <= LINE_WIDTH:
        return line
    inner = indent + "  "
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(key, ensure_ascii=False)}: {_layout(item, inner)}"
            for key, item in value.items()
        ]
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
        raise RuleError(
            f"ids is {ids!r}; give a list of at least one rule id, or None for every rule"
        )
    reasons = {where.split("/")[0]: f"{where} was refused: {reason}" for where, reason in refused}
    known = {rule.id for rule in rules}
    unknown = [reasons.get(id_, repr(id_)) for id_ in dict.fromkeys(ids) if id_ not in known]
    if unknown:
        raise RuleError(
            f"{source} has no usable rule {', '.join(unknown)}; its ids are {_listing(known)}"
        )
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
    ordered = sorted(
        names, key=lambda name: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", name)]
    )
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ", ".join(ordered[:shown]) + more


# Sources.


def _read_source(source: str | Path, strict: bool) -> Reading:
    if source == "embedded":
        content = resources.files("interp.rules.rulebook").joinpath("rules.json").read_bytes()
        return Reading(rules=_parse_rule_file(content, "embedded"))
    path = Path(source)
    if path.is_dir():
        return read_ruleedit(path, strict=strict)
    if not path.is_file():
        raise RuleError(
            f"{path} does not exist; give 'embedded', a rules .json file, or a RuleEdit folder or"
            " .zip"
        )
    if path.suffix.lower() == ".json":
        return Reading(rules=_parse_rule_file(path.read_bytes(), str(path)))
    if path.suffix.lower() == ".zip":
        return read_ruleedit(path, strict=strict)
    raise RuleError(
        f"{path} ends in {path.suffix!r}; a rule source is a folder, a .json file or a .zip archive"
    )


def _parse_rule_file(content: bytes, name: str) -> list[Rule]:
    try:
        held = parse_json(content)
        if isinstance(held, dict) and CHECKSUM in held and held.pop(CHECKSUM) != checksum(held):
            raise InputError(f"it was changed; if on purpose, take its entry {CHECKSUM!r} out")
        return list(RuleFile.model_validate(held).rules)
    except (ValueError, RecursionError) as error:
        raise RuleError(
            f"{name} is not a rule file of schema {SCHEMA}: {explain(error)}. "
            "Mend the file there; RuleEdit data are given as their folder or .zip"
        ) from error
