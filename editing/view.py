"""What an edit is to the rest: a value that shows a model as it leaves it, for a while.

Editors of weights, codebooks and contexts differ in how they act on a model. Scoring sees none of that: it asks
a `View`, which says how a prompt is put to the model.

with edit.edited(model) as view:        # the model is as before on leaving, also by an exception
    teacher_forced(view, questions, batch_size=8)
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.errors import DmleError
from interp.model import LanguageModel, NamedHook

HEADER = "dmle"


class EditError(DmleError):
    """An edit cannot be made, does not fit the model, or its file is damaged."""


def no_hooks(ends: Int[Tensor, " batch"]) -> Sequence[NamedHook]:
    """The hooks of a view that needs none."""
    return ()


@dataclass(frozen=True)
class View:
    """A model as an edit leaves it: how prompts are asked of it.

    Attributes:
        model: The model, with whatever the edit wrote into its weights.
        before: Text put before every prompt; the two are encoded as one text.
        hooks: Column of the last prompt token of each row of a run → hooks of that run. In generation they act in
            the pass over the prompts only.
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
                f"the prompt {prompt!r}{more} and its answer take {len(ids) + n_more} tokens, {self.model.name} was "
                f"made for {limit}; use a shorter prompt, fewer demonstrations (in_context.demonstrations), or a "
                "model with a longer context"
            )
        return ids


@runtime_checkable
class Edit(Protocol):
    """An edit as a value, whatever it changes."""

    @property
    def model_hash(self) -> str:
        """Hash of the model that the edit was made for."""
        ...

    @property
    def about(self) -> Mapping[str, Any]:
        """Editor, settings, requests, seeds; anything JSON can hold."""
        ...

    def edited(self, model: LanguageModel) -> AbstractContextManager[View]:
        """The edited model inside a `with` block; as before on leaving it, also by an exception."""
        ...

    def with_about(self, **more: Any) -> "Edit":
        """The same edit with more said about it."""
        ...

    def save(self, path: Path) -> None:
        """Write the edit as one `.safetensors` file."""
        ...


def check_model(model: LanguageModel, model_hash: str, what: str) -> None:
    """Refuse a model that an edit was not made for.

    Raises:
        EditError: Its weights as loaded are others.
    """
    if model.weight_hash != model_hash:
        raise EditError(
            f"this {what} is for a model with weights {model_hash}, {model.name!r} has {model.weight_hash}; "
            "load the model that was edited"
        )


def write_file(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Write an edit: safetensors with a JSON header, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    # Copies: safetensors refuses tensors that share memory.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(own, partial, metadata={HEADER: json.dumps(dict(header), ensure_ascii=False)})
    partial.replace(path)


def read_file(path: Path, what: str, schema: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of an edit that `write_file` wrote.

    Args:
        path: The file.
        what: What it should be, for the error.
        schema: The schema that is needed; None: any, and the header alone is read.

    Raises:
        EditError: The file is missing, damaged, or of another schema.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()[HEADER])
            if not isinstance(header, dict) or "schema" not in header:
                raise ValueError("its header names no schema")
            if schema is None:
                return {}, header
            if header["schema"] != schema:
                raise ValueError(f"its schema is {header['schema']!r}, {schema!r} is needed")
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise EditError(f"{path} is not a readable {what}: {error}") from error
