"""An edit of weights as a value: which parameters change and by how much, apart from the model.

delta = editor(model, requests, …)      # the model is as it was
with delta.edited(model) as view:       # edited inside
    ...
handle = delta.apply(model)             # or by hand
handle.revert()                         # every weight bit for bit as before
delta.save(path); EditDelta.load(path)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from editing.edits.low_rank import LowRank
from editing.edits.precision import (
    Exact,
    as_tensor,
    exact,
    frobenius,
    rank,
    together,
    triangle,
)
from editing.edits.protocol import (
    EditError,
    View,
    check_model,
    damaged_edit,
    read_file,
    report_of,
    write_file,
)
from editing.edits.report import EditReport
from interp.errors import NotFiniteError
from interp.models.loading import LanguageModel, ModelError, Projection
from interp.results.display import Update, delta_html


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
    """Updates of linear maps of blocks, by Hugging Face parameter name.

    Attributes:
        updates: Parameter name → update with shape (d_out, d_in), whatever the parameter's
            orientation: two factors, or the whole matrix where an editor's update has no low rank.
        layers: Parameter name → block.
        model_hash: Hash of the model the edit was made for.
        report: What made it, and how far it got.
    """

    schema: ClassVar[str] = "dmle.delta/2"
    updates: Mapping[str, LowRank | Tensor]
    layers: Mapping[str, int]
    model_hash: str
    report: EditReport = field(default_factory=EditReport)

    def __post_init__(self) -> None:
        """Refuse updates that are no numbers, so that none is ever written, kept or applied.

        Raises:
            NotFiniteError: An update holds NaN or infinity.
        """
        for name, update in self.updates.items():
            parts = (update.left, update.right) if isinstance(update, LowRank) else (update,)
            if not all(bool(part.isfinite().all()) for part in parts):
                raise NotFiniteError(
                    f"the update of {name} is not finite; make the edit again with a smaller"
                    " learning rate, a larger edit.ridge, or model.dtype=float32"
                )

    def apply(self, model: LanguageModel) -> Applied:
        """Add the updates to the model's weights, in place.

        Raises:
            EditError: The model is not the one that the delta was made for, or an update does not
                fit its block; nothing is changed then.
            NotFiniteError: The edited weights are too large for the model's number format; nothing
                is changed.
        """
        check_model(model, self.model_hash, "delta")
        originals: dict[str, Tensor] = {}
        handle = Applied(model, originals)
        try:
            for name in self.updates:
                place, weight, change = self._placed(model, name)
                new = _rounded(weight + change, place.weight)
                if not bool(new.isfinite().all()):
                    raise NotFiniteError(
                        f"{name} with the edit is not finite in {new.dtype}; use"
                        " model.dtype=float32 or a smaller edit"
                    )
                originals[name] = place.weight.detach().clone()
                _write(place.weight, new)
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

    @contextmanager
    def edited(self, model: LanguageModel) -> Iterator[View]:
        """The edited model inside a `with` block, as every edit gives it (see
        `editing.edits.protocol`).
        """
        with self.applied(model):
            yield View(model)

    def with_report(self, **changes: Any) -> "EditDelta":
        """The same edit with other values in its report."""
        return replace(self, report=self.report.with_values(**changes))

    def norms(self) -> dict[int, float]:
        """Frobenius norm of the change of each block."""
        squares: dict[int, float] = {}
        for name, update in self.updates.items():
            squares[self.layers[name]] = squares.get(self.layers[name], 0.0) + _norm(update) ** 2
        return {layer: square**0.5 for layer, square in squares.items()}

    def rank(self) -> dict[str, int]:
        """Rank of each update, by parameter: of factors their columns, of a whole matrix its
        numerical rank.
        """
        return {name: _rank(update) for name, update in self.updates.items()}

    def cast_loss(self, model: LanguageModel) -> dict[str, float]:
        """Share of each update that is lost when the weights are stored in the model's type.

        ‖cast(W + Δ) − W − Δ‖ / ‖Δ‖ for the weights W as they are now. Small updates of bfloat16 and
        float16 models round away: at 1 nothing of the update arrives. 0 for an update that is zero.

        Raises:
            EditError: As in `apply`.
        """
        check_model(model, self.model_hash, "delta")
        lost = {}
        for name in self.updates:
            place, weight, change = self._placed(model, name)
            wanted = weight + change
            arrived = together(place.weight, _rounded(wanted, place.weight))[1]
            norm, missed = frobenius(change), frobenius(arrived - wanted)
            lost[name] = missed / norm if norm else 0.0
        return lost

    def export(self, model: LanguageModel, folder: Path) -> None:
        """Write the edited model as a Hugging Face folder; the model itself is unedited again on
        return.
        """
        with self.applied(model):
            model.export(folder)

    def save(self, path: Path) -> None:
        """Write safetensors (factors, or whole matrices) with a JSON header (everything else)."""
        tensors: dict[str, Tensor] = {}
        for name, update in self.updates.items():
            if isinstance(update, LowRank):
                tensors |= {f"{name}.left": update.left, f"{name}.right": update.right}
            else:
                tensors[f"{name}.dense"] = update
        header = {
            "schema": self.schema,
            "model_hash": self.model_hash,
            "layers": dict(self.layers),
            "about": self.report.to_json(),
        }
        write_file(path, tensors, header)

    @classmethod
    def load(cls, path: Path) -> "EditDelta":
        """Read a delta written by `save`.

        Raises:
            EditError: The file is missing, damaged, or no delta.
        """
        what = "edit delta"
        tensors, header = read_file(path, what, cls.schema)
        layers = header.get("layers")
        if not isinstance(layers, dict) or not all(type(layer) is int for layer in layers.values()):
            raise damaged_edit(path, what, "its header has no layers by parameter")
        updates = {name: _update_of(tensors, name, path, what) for name in layers}
        try:
            return cls(updates, layers, header["model_hash"], report_of(header))
        except NotFiniteError as error:
            raise damaged_edit(path, what, error) from error

    def _repr_html_(self) -> str:
        """What a notebook shows: what was asked, how far each request got, and what is written
        where.
        """
        shown = []
        for name, update in self.updates.items():
            low = isinstance(update, LowRank)  # the rank of a whole matrix takes a decomposition
            shape = (
                (len(update.left), len(update.right)) if low else (update.shape[0], update.shape[1])
            )
            shown.append(
                Update(name, self.layers[name], shape, update.left.shape[1] if low else None)
            )
        return delta_html(shown, self.norms(), self.report.to_json(), model_hash=self.model_hash)

    def _placed(self, model: LanguageModel, name: str) -> tuple[Projection, Exact, Exact]:
        """Where an update goes, the weights there and the update: float64, in the parameter's
        orientation.

        Raises:
            EditError: It does not fit.
        """
        update, layer = self.updates[name], self.layers[name]
        try:
            place = model.linear(name)
        except ModelError as error:
            raise EditError(f"the update of {name} has no place: {error}") from error
        factors = (update.left, update.right) if isinstance(update, LowRank) else (update, None)
        weight, left, right = together(place.weight, *factors)
        change = left if right is None else left @ right.T
        change = change.T if place.transposed else change
        if place.layer != layer or change.shape != place.weight.shape:
            raise EditError(
                f"the update of {name} with shape {tuple(change.shape)} does not fit block {layer}:"
                f" that parameter is of block {place.layer}, with shape {tuple(place.weight.shape)}"
            )
        return place, weight, change


def dense(update: LowRank | Tensor) -> Tensor:
    """An update as a float64 matrix, shape (d_out, d_in)."""
    return as_tensor(_matrix(update))


def _matrix(update: LowRank | Tensor) -> Exact:
    if not isinstance(update, LowRank):
        return exact(update)
    left, right = together(update.left, update.right)
    return left @ right.T


def merge(deltas: Sequence[EditDelta], report: EditReport) -> EditDelta:
    """One delta that does what the given ones do together; updates of the same parameter add up.

    Raises:
        EditError: They are for different models.
    """
    if len({delta.model_hash for delta in deltas}) != 1:
        raise EditError("cannot merge deltas that were made for different models")
    updates: dict[str, LowRank | Tensor] = {}
    layers: dict[str, int] = {}
    for delta in deltas:
        layers |= delta.layers
        for name, new in delta.updates.items():
            updates[name] = _sum(updates[name], new) if name in updates else new
    return EditDelta(updates, layers, deltas[0].model_hash, report)


@contextmanager
def stack(deltas: Sequence[EditDelta], model: LanguageModel) -> Iterator[View]:
    """The model with several deltas, each added to what the ones before it left (rounded in
    between, unlike `merge`).

    They are reverted in reverse order, so the model is as before bit for bit on leaving, also by an
    exception.
    """
    with ExitStack() as entered:
        for delta in deltas:
            entered.enter_context(delta.applied(model))
        yield View(model)


def _sum(old: LowRank | Tensor, new: LowRank | Tensor) -> LowRank | Tensor:
    if isinstance(old, LowRank) and isinstance(new, LowRank):
        return LowRank(torch.cat([old.left, new.left], 1), torch.cat([old.right, new.right], 1))
    whole = new if isinstance(old, LowRank) else old
    assert isinstance(whole, Tensor)
    return as_tensor(_matrix(old) + _matrix(new)).to(whole.dtype)


def _update_of(tensors: Mapping[str, Tensor], name: str, path: Path, what: str) -> LowRank | Tensor:
    """The update of one parameter among the tensors of a file."""
    whole, left, right = (tensors.get(f"{name}.{part}") for part in ("dense", "left", "right"))
    if whole is not None and whole.ndim == 2:
        return whole
    if (
        left is None
        or right is None
        or left.ndim != 2
        or right.ndim != 2
        or left.shape[1] != right.shape[1]
    ):
        raise damaged_edit(path, what, f"it has no update of {name} that fits together")
    return LowRank(left, right)


def _norm(update: LowRank | Tensor) -> float:
    if not isinstance(update, LowRank):
        return frobenius(exact(update))
    # ‖L Rᵀ‖ without the whole matrix: orthogonal factors leave it to the small triangles.
    left, right = (triangle(factor) for factor in together(update.left, update.right))
    return frobenius(left @ right.T)


def _rank(update: LowRank | Tensor) -> int:
    if isinstance(update, LowRank):
        return min(*update.left.shape, len(update.right))
    # Rounding of the type that the update is stored in makes no rank.
    tolerance = max(update.shape) * torch.finfo(update.dtype).eps
    return rank(exact(update), tolerance)


def _rounded(value: Exact, like: Tensor) -> Tensor:
    """Float64 numbers, rounded once to another's type, where that is."""
    return as_tensor(value).to(like.dtype).to(like.device)


def _write(parameter: nn.Parameter, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
