"""RuleEdit folders and archives, read as rules.

A record that no repair makes whole is refused with the reason.
"""

import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from interp.rules.ruleedit.forms import (
    form_of,
    understanding_of_form,
    understanding_of_instance,
    with_truth,
)
from interp.rules.ruleedit.records import F_D, FILES, INS
from interp.rules.ruleedit.repairs import Mending
from interp.rules.schema import Refusal, Repair, Rule, RuleError, RulePrompt, explain
from interp.vocabulary import RuleForm

MAX_MEMBER_BYTES = 4 * 2**20
MAX_ARCHIVE_BYTES = 256 * 2**20
Members = Mapping[str, Mapping[str, bytes]]
"""Folder number, as it is written, to file name to content."""


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
        mending = Mending(f"ruleedit-{number}")
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


# From records to rules.


def _rule(mending: Mending, files: Mapping[str, bytes]) -> Rule:
    id_ = mending.id
    for name in FILES:
        if name not in files:
            raise _Refused(Refusal(f"{id_}/{name}", "this file is missing"))
    with _refusing(f"{id_}/f_d.json"):
        f_d = mending.records("f_d.json", mending.json("f_d.json", files["f_d.json"]))
        formula, description = F_D.validate_python(f_d)
    with _refusing(f"{id_}/ins.json"):
        ins = mending.records("ins.json", mending.json("ins.json", files["ins.json"]), siblings=f_d)
        (instance,) = INS.validate_python(ins)
    mending.settle(
        int(id_.rpartition("-")[2]), {"f_d.json": (formula, description), "ins.json": (instance,)}
    )
    edited = {record.prompt for record in (formula, description, instance)}
    with _refusing(f"{id_}/f_d.json"):
        forms: dict[RuleForm, RulePrompt] = {
            "formula": form_of(formula, understanding_of_form(formula.understanding, edited)),
            "description": form_of(
                description, understanding_of_form(description.understanding, edited)
            ),
        }
    with _refusing(f"{id_}/ins.json"):
        given = form_of(instance, understanding_of_instance(instance.understanding, edited))
        forms["instance"] = given if given.target_true else with_truth(given, formula)
        return Rule(id=id_, name=formula.rule, subject=formula.subject, forms=forms)


# Reading files.


def _folder_members(folder: Path) -> Members:
    paths = sorted(path for name in FILES for path in folder.resolve().rglob(name))
    named = [(PurePosixPath(path.parent.name, path.name), path) for path in paths if path.is_file()]
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
    except RuleError:
        raise
    # ValueError: a name is in no encoding, or an offset is negative.
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        OSError,
        ValueError,
    ) as error:
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
