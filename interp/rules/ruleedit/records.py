"""Records of RuleEdit: numbered folders, each with two files.

`f_d.json` is [formula, description] and `ins.json` is [instance].
"""

from typing import Annotated

from pydantic import Field, TypeAdapter, model_validator

from interp.errors import InputError
from interp.rules.schema import Frozen

FILES = ("f_d.json", "ins.json")
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


class InstanceItems(_Strings):
    """Questions with numbers, and what an edit makes of them."""

    target_new: Texts


class LocalityItems(_Strings):
    """Questions that an edit must leave alone, and their answers."""

    ground_truth: Texts


class UnderstandingItems(_Strings):
    """Understanding questions of an instance, as lists in step."""

    target_new: Texts
    ground_truth: Texts


class UnderstandingItem(Frozen):
    """The understanding question of a formula or a description."""

    prompt: str
    target_new: str
    ground_truth: Texts
    rephrase_prompt: str | None = None


class Locality(Frozen):
    """Both kinds of questions that an edit must leave alone."""

    neighborhood: LocalityItems
    distracting: LocalityItems


class Record(Frozen):
    """One form of a rule: what the two kinds of records have in common."""

    case_id: int
    subject: str
    rule: str
    prompt: str
    target_new: str
    rephrase_prompt: str
    ground_truth: tuple[str, ...] = ()
    instances: InstanceItems = Field(alias="Instance")
    locality: Locality


class FormRecord(Record):
    """A formula or a description."""

    understanding: UnderstandingItem = Field(alias="Rule_Understanding")


class InstanceRecord(Record):
    """An instance."""

    understanding: UnderstandingItems = Field(alias="Rule_Understanding")


F_D = TypeAdapter(tuple[FormRecord, FormRecord])
INS = TypeAdapter(tuple[InstanceRecord])
