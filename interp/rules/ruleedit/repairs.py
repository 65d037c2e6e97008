"""Repairs of RuleEdit data, which have faults as published.

The faults are invalid JSON, lists out of step, subjects that are not in their prompt. Each kind
that can be mended is mended by a repair that has a name, is applied only where its condition
holds, and is reported. Nothing is dropped or cut silently.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from interp.rules.ruleedit.records import Record
from interp.rules.schema import Repair, parse_json
from interp.rules.words import STOP_WORDS

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


class Mending:
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

    def settle(self, number: int, records: Mapping[str, Sequence[Record]]) -> None:
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
