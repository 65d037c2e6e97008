"""A model on its way through many edits, and files from which it goes on.

The edits of a sequence are not kept one by one: a hundred whole matrices take gigabytes. A file
holds the edited parameters as they are after so many rules, bit for bit, with what was done until
then. There is one for each checkpoint, and one for the rules since the last.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from editing.edits.delta import EditDelta
from interp.errors import DamagedError
from interp.models.loading import LanguageModel
from interp.results.tensor_files import read_tensors, write_tensors

SCHEMA = "dmle.sequence-state/1"
WHAT = "state of a sequence of edits"
RUNNING = "running"
"""Name of the file between two checkpoints."""


@dataclass(frozen=True)
class Progress:
    """What was done until now.

    Attributes:
        key: Fingerprint of everything that the weights depend on.
        done: Number of rules.
        seconds: CPU seconds of their edits.
        failed: Rules whose edit could not be made, each with the reason.
    """

    key: str
    done: int = 0
    seconds: float = 0.0
    failed: Mapping[str, str] = field(default_factory=dict)


_PROGRESS = TypeAdapter(Progress)


class EditedWeights:
    """The parameters of a model that edits have changed, with their original values."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._originals: dict[str, Tensor] = {}

    def apply(self, delta: EditDelta) -> None:
        """Add a delta to the weights as they are.

        Raises:
            EditError: It does not fit; nothing is changed then.
        """
        self._remember(delta.updates)
        delta.apply(self.model)

    def restore(self) -> None:
        """Put the original values back, bit for bit."""
        self._write(self._originals)

    def save(self, path: Path, progress: Progress) -> None:
        """Write the changed parameters, and what was done until now."""
        header = {"schema": SCHEMA, "progress": _PROGRESS.dump_python(progress, mode="json")}
        write_tensors(path, {name: self._parameter(name) for name in self._originals}, header)

    def resume(self, path: Path) -> None:
        """Make the weights those of a file.

        Raises:
            DamagedError: It does not fit the model.
        """
        tensors, _ = read_tensors(path, WHAT)
        for name, value in tensors.items():
            parameter = self.model.parameters.get(name)
            fits = parameter is not None and (parameter.shape, parameter.dtype) == (
                value.shape,
                value.dtype,
            )
            if not fits or not bool(value.isfinite().all()):
                raise DamagedError(
                    f"{path}: {name} does not fit {self.model.name}; delete the file"
                )
        self.restore()
        self._remember(tensors)
        self._write(tensors)

    def _remember(self, names: Mapping[str, Any]) -> None:
        for name in names:
            if name not in self._originals:
                self._originals[name] = self._parameter(name).clone()

    def _parameter(self, name: str) -> Tensor:
        return self.model.parameters[name].detach()

    def _write(self, values: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, value in values.items():
                self.model.parameters[name].copy_(value)


@contextmanager
def edited_weights(model: LanguageModel) -> Iterator[EditedWeights]:
    """Weights that may be edited inside a `with` block; the original ones on leaving it, also by an
    exception.
    """
    weights = EditedWeights(model)
    try:
        yield weights
    finally:
        weights.restore()


def state_path(folder: Path, order: str, place: int | str) -> Path:
    """File after so many rules, or between two checkpoints."""
    return folder / f"{order}-{place}.safetensors"


def latest(
    folder: Path, order: str, keys: Sequence[str], most: int
) -> tuple[Path, Progress] | None:
    """The file with the most rules, at most so many, among those of the same edits.

    Args:
        folder: Where they are.
        order: ``sequence`` or ``batch``.
        keys: What the weights depend on after 0, 1, 2, … rules.
        most: Rules that it may have at most.
    """
    found = [(read_progress(path), path) for path in sorted(folder.glob(f"{order}-*.safetensors"))]
    fitting = [
        (progress, path)
        for progress, path in found
        if progress is not None
        and 0 < progress.done <= most
        and progress.key == keys[progress.done]
    ]
    if not fitting:
        return None
    progress, path = max(fitting, key=lambda each: each[0].done)
    return path, progress


def read_progress(path: Path) -> Progress | None:
    """What a file says of itself; None of one that is damaged: its edits are made again."""
    try:
        _, header = read_tensors(path, WHAT, names=False)
        if header.get("schema") != SCHEMA:
            return None
        return _PROGRESS.validate_python(header.get("progress"))
    except (DamagedError, ValidationError, FileNotFoundError):
        return None
