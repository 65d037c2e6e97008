"""An edit as a value: which parameters change and by how much, apart from the model.

delta = editor(model, requests, …)      # the model is as it was
with delta.applied(model):              # edited inside
    ...
handle = delta.apply(model)             # or by hand
handle.revert()                         # every weight bit for bit as before
delta.save(path); EditDelta.load(path)
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from editing.solvers import LowRank
from interp.model import LanguageModel

SCHEMA = "dmle.delta/1"


class DeltaError(ValueError):
    """A delta does not fit the model, or its file is damaged."""


@dataclass(frozen=True)
class Applied:
    """A delta in force; `revert` puts the original weights back."""

    model: LanguageModel
    originals: Mapping[str, Tensor]

    def revert(self) -> None:
        """Restore the weights exactly as they were before `apply`."""
        for name, value in self.originals.items():
            _write(self.model.parameters[name], value)


@dataclass(frozen=True)
class EditDelta:
    """Low-rank updates of down-projections, by Hugging Face parameter name.

    Attributes:
        updates: Parameter name → update with shape (d_model, d_mlp), whatever the parameter's orientation.
        layers: Parameter name → block.
        model_hash: Hash of the model the edit was made for.
        about: Editor, settings, requests, contexts, seeds; anything JSON can hold.
    """

    updates: Mapping[str, LowRank]
    layers: Mapping[str, int]
    model_hash: str
    about: Mapping[str, Any] = field(default_factory=dict)

    def apply(self, model: LanguageModel) -> Applied:
        """Add the updates to the model's weights, in place.

        Raises:
            DeltaError: The model is not the one that the delta was made for, or an update does not fit its
                block; nothing is changed then.
        """
        if model.weight_hash != self.model_hash:
            raise DeltaError(
                f"this delta is for a model with weights {self.model_hash}, {model.name!r} has {model.weight_hash}; "
                "load the model that was edited"
            )
        originals: dict[str, Tensor] = {}
        handle = Applied(model, originals)
        try:
            for name, update in self.updates.items():
                down = model.down_projection(self.layers[name])
                change = down.orient(update.left.double() @ update.right.double().T).to(down.weight.device)
                if down.name != name or change.shape != down.weight.shape:
                    raise DeltaError(
                        f"the update of {name} with shape {tuple(change.shape)} does not fit block "
                        f"{self.layers[name]}, whose down-projection is {down.name} with shape "
                        f"{tuple(down.weight.shape)}"
                    )
                originals[name] = down.weight.detach().clone()
                _write(down.weight, (down.weight.double() + change).to(down.weight.dtype))
        except BaseException:
            handle.revert()
            raise
        return handle

    @contextmanager
    def applied(self, model: LanguageModel) -> Iterator[LanguageModel]:
        """The edited model inside a `with` block; reverted on leaving it, also by an exception."""
        handle = self.apply(model)
        try:
            yield model
        finally:
            handle.revert()

    def with_about(self, **more: Any) -> "EditDelta":
        """The same edit with more said about it."""
        return replace(self, about={**self.about, **more})

    def norms(self) -> dict[int, float]:
        """Frobenius norm of the update of each block."""
        return {
            self.layers[name]: torch.linalg.matrix_norm(u.left.double() @ u.right.double().T).item()
            for name, u in self.updates.items()
        }

    def save(self, path: Path) -> None:
        """Write safetensors (the factors) with a JSON header (everything else)."""
        tensors = {}
        for name, update in self.updates.items():
            tensors[f"{name}.left"] = update.left.contiguous().cpu()
            tensors[f"{name}.right"] = update.right.contiguous().cpu()
        header = {
            "schema": SCHEMA,
            "model_hash": self.model_hash,
            "layers": dict(self.layers),
            "about": dict(self.about),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        save_file(tensors, partial, metadata={"dmle": json.dumps(header, ensure_ascii=False)})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> "EditDelta":
        """Read a delta written by `save`.

        Raises:
            DeltaError: The file is missing, damaged, or no delta.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads(file.metadata()["dmle"])
                if header["schema"] != SCHEMA:
                    raise ValueError(f"its schema is {header['schema']!r}, {SCHEMA!r} is needed")
                updates = {
                    name: LowRank(file.get_tensor(f"{name}.left"), file.get_tensor(f"{name}.right"))
                    for name in header["layers"]
                }
            return cls(updates, header["layers"], header["model_hash"], header["about"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DeltaError(f"{path} is not a readable edit delta: {error}") from error


def merge(deltas: Sequence[EditDelta], about: Mapping[str, Any]) -> EditDelta:
    """One delta that does what the given ones do together; updates of the same parameter add up.

    Raises:
        DeltaError: They are for different models.
    """
    if len({delta.model_hash for delta in deltas}) != 1:
        raise DeltaError("cannot merge deltas that were made for different models")
    updates: dict[str, LowRank] = {}
    layers: dict[str, int] = {}
    for delta in deltas:
        layers |= delta.layers
        for name, new in delta.updates.items():
            old = updates.get(name)
            updates[name] = (
                new
                if old is None
                else LowRank(torch.cat([old.left, new.left], 1), torch.cat([old.right, new.right], 1))
            )
    return EditDelta(updates, layers, deltas[0].model_hash, about)


def _write(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
