"""What an edit is to the rest: a value that shows a model as it leaves it, for a while.

Editors of weights, codebooks and contexts differ in how they act on a model. Scoring sees none of
that: it asks a `View`, which says how a prompt is put to the model.

with edit.edited(model) as view:        # the model is as before on leaving, also by an exception
    teacher_forced(view, questions, batch_size=8)
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from editing.edits.report import EditReport
from interp.errors import DamagedError, DmleError
from interp.models.loading import LanguageModel, NamedHook
from interp.results.checksums import damaged
from interp.results.tensor_files import read_tensors, write_tensors


class EditError(DmleError):
    """An edit cannot be made, does not fit the model, or its file is damaged."""


class DamagedEditError(EditError, DamagedError):
    """The file of an edit does not hold what was written."""


def no_hooks(ends: Int[Tensor, " batch"]) -> Sequence[NamedHook]:
    """The hooks of a view that needs none."""
    return ()


@dataclass(frozen=True)
class View:
    """A model as an edit leaves it: how prompts are asked of it.

    Attributes:
        model: The model, with whatever the edit wrote into its weights.
        before: Text put before every prompt; the two are encoded as one text.
        hooks: Column of the last prompt token of each row of a run → hooks of that run. In
            generation they act in the pass over the prompts only.
    """

    model: LanguageModel
    before: str = ""
    hooks: Callable[[Int[Tensor, " batch"]], Sequence[NamedHook]] = no_hooks

    @classmethod
    def of(cls, model: "LanguageModel | View") -> "View":
        """The plain view of a model; a view as it is."""
        return model if isinstance(model, View) else cls(model)

    def encode(self, prompt: str, n_more: int = 0) -> tuple[int, ...]:
        """Token ids of a prompt with what is put before it.

        Args:
            prompt: The prompt.
            n_more: Tokens that the run feeds after it.

        Raises:
            EditError: They are more tokens than the model was made for.
        """
        ids = self.model.encode(self.before + prompt).ids
        if len(ids) + n_more > (limit := self.model.context_length):
            more = f", with {len(self.before)} characters put before it," if self.before else ""
            raise EditError(
                f"the prompt {prompt!r}{more} and its answer take {len(ids) + n_more} tokens,"
                f" {self.model.name} was made for {limit}; use a shorter prompt, fewer"
                " demonstrations (in_context.demonstrations), or a model with a longer context"
            )
        return ids


@runtime_checkable
class Edit(Protocol):
    """An edit as a value, whatever it changes."""

    schema: ClassVar[str]
    """Format of its files."""

    @property
    def model_hash(self) -> str:
        """Hash of the model that the edit was made for."""
        ...

    @property
    def report(self) -> EditReport:
        """What made it, and how far it got."""
        ...

    def edited(self, model: LanguageModel) -> AbstractContextManager[View]:
        """The edited model inside a `with` block; as before on leaving it, also by an exception."""
        ...

    def with_report(self, **changes: Any) -> "Edit":
        """The same edit with other values in its report."""
        ...

    def save(self, path: Path) -> None:
        """Write the edit as one `.safetensors` file."""
        ...

    @classmethod
    def load(cls, path: Path) -> "Edit":
        """Read what `save` wrote."""
        ...


def check_model(model: LanguageModel, model_hash: str, what: str) -> None:
    """Refuse a model that an edit was not made for.

    Raises:
        EditError: Its weights as loaded are others.
    """
    if model.weight_hash != model_hash:
        raise EditError(
            f"this {what} is for a model with weights {model_hash}, {model.name!r} has"
            f" {model.weight_hash}; load the model that was edited"
        )


def write_file(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write an edit: safetensors with a JSON header and a checksum, whole or not at all."""
    write_tensors(path, tensors, header)


def read_file(
    path: Path, what: str, schema: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of an edit that `write_file` wrote.

    Args:
        path: The file.
        what: What it should be, for the error.
        schema: The schema that is needed; None: any, and the header alone is read.

    Raises:
        EditError: The file is missing.
        DamagedEditError: It is damaged, or of another schema.
    """
    try:
        tensors, header = read_tensors(path, what, names=schema is not None)
    except DamagedError as error:
        raise DamagedEditError(str(error)) from error
    except FileNotFoundError as error:
        raise EditError(
            f"{path} is not a readable {what}: it is missing; run `dmle edit` first"
        ) from error
    found = header.get("schema")
    if schema is not None and found != schema:
        raise damaged_edit(path, what, f"its schema is {found!r}, {schema!r} is needed")
    for name, kind in (("schema", str), ("model_hash", str), ("about", dict)):
        if not isinstance(header.get(name), kind):
            raise damaged_edit(path, what, f"its header has no {name}")
    try:
        report_of(header)
    except TypeError as error:
        raise damaged_edit(path, what, error) from error
    return tensors, header


def report_of(header: Mapping[str, Any]) -> EditReport:
    """The report in the header of a file."""
    return EditReport.from_json(header["about"])


def damaged_edit(path: Path, what: str, reason: object) -> DamagedEditError:
    """The error for a file of an edit that does not hold what was written."""
    return DamagedEditError(str(damaged(path, what, reason)))
