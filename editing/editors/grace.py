"""GRACE: a codebook at one block, consulted at the last token of every prompt; weights stay as they
are.

The codebook stands around the block's down-projection. Its input at the prompt's last token is the
query; if the nearest key (Euclidean distance) is no farther than that key's radius, the
down-projection's output at that token is replaced by the key's value. Requests are added one after
the other:

- no ball around a key meets the ball of radius ε around the query: the query becomes a key with
  radius ε;
- the nearest key has the same target: its ball grows to contain the query, and its value is trained
  further;
- the nearest key has another target: the query becomes a key, and both radii are cut to half the
  distance.

The value starts at uniform random numbers in [0, 1) ("cold") and is trained by Adam for a number of
steps on −(1/n) Σ log p(target token).

Source: Hartvigsen et al. 2023; EasyEdit's GRACE (val_init cold, val_train sgd, replace_last,
coverage). Differences:

- The token is always the prompt's last. EasyEdit takes the index left over from the last training
  prompt, wherever that falls in another prompt, and sets it to the last token of what is fed in
  generation.
- In generation the codebook acts in the pass over the prompt; EasyEdit also consults it at every
  generated token.
- Targets are compared as texts; EasyEdit compares the mean of the label ids, padding and prompt
  length included.
- Radii are only ever cut in a conflict; EasyEdit sets them to half the distance, which can make
  them larger.
- A query equal to a key with another target takes its place, so that the later request holds; in
  EasyEdit neither would, as both radii become zero or less.
- A grown radius is larger than the distance by a margin for rounding, a cut one smaller.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.editors.registry import register
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
from editing.evaluation.scoring import Asked, ask
from editing.evaluation.training import trained_question
from interp.errors import NotFiniteError
from interp.models.budget import one_batch
from interp.models.finite import cause
from interp.models.loading import LanguageModel, NamedHook

MARGIN = 1e-4
"""Relative; runs of another batch give keys that differ by less."""


@dataclass(frozen=True)
class Codebook:
    """Keys, values and radii at one block, in the order in which they were added.

    Attributes:
        layer: Block whose down-projection it stands around.
        keys: Inputs of the down-projection.
        values: Outputs that take its place.
        radii: Euclidean distance up to which a key answers.
        labels: Target of each key.
        model_hash: Hash of the model it was made for.
        report: What made it: settings, requests, losses.
    """

    schema: ClassVar[str] = "dmle.codebook/1"
    layer: int
    keys: Float[Tensor, "n d_mlp"]
    values: Float[Tensor, "n d_model"]
    radii: Float[Tensor, " n"]
    labels: tuple[str, ...]
    model_hash: str
    report: EditReport = field(default_factory=EditReport)

    def __post_init__(self) -> None:
        """Refuse what are no numbers.

        Raises:
            NotFiniteError: A key, value or radius is NaN or infinite.
        """
        for what in ("keys", "values", "radii"):
            if not bool(getattr(self, what).isfinite().all()):
                raise NotFiniteError(
                    f"the codebook's {what} are not finite; make the edit again with a smaller"
                    " grace.learning_rate, or model.dtype=float32"
                )

    def nearest(
        self, query: Float[Tensor, "batch d_mlp"]
    ) -> tuple[Float[Tensor, " batch"], Int[Tensor, " batch"]]:
        """Distance to the nearest key, and which it is (the first of equals)."""
        keys = self.keys.to(query)
        # Exact differences: the matrix product of torch.cdist loses small distances between large
        # keys.
        distance = torch.stack(
            [torch.linalg.vector_norm(query - key, dim=-1) for key in keys], dim=-1
        )
        return distance.min(-1)

    @contextmanager
    def edited(self, model: LanguageModel) -> Iterator[View]:
        """The model with the codebook, as every edit gives it (see `editing.edits.protocol`).

        Raises:
            EditError: It was made for another model.
        """
        check_model(model, self.model_hash, "codebook")

        def hooks(ends: Int[Tensor, " batch"]) -> Sequence[NamedHook]:
            return self._hooks(model, ends)

        yield View(model, hooks=hooks)

    def with_report(self, **changes: Any) -> "Codebook":
        """The same edit with other values in its report."""
        return replace(self, report=self.report.with_values(**changes))

    def save(self, path: Path) -> None:
        """Write safetensors with a JSON header."""
        header = {
            "schema": self.schema,
            "model_hash": self.model_hash,
            "layer": self.layer,
            "labels": list(self.labels),
            "about": self.report.to_json(),
        }
        write_file(path, {"keys": self.keys, "values": self.values, "radii": self.radii}, header)

    @classmethod
    def load(cls, path: Path) -> "Codebook":
        """Read a codebook written by `save`.

        Raises:
            EditError: The file is missing, damaged, or no codebook.
        """
        what = "codebook"
        tensors, header = read_file(path, what, cls.schema)
        keys, values, radii = (
            tensors.get(name, torch.zeros(0)) for name in ("keys", "values", "radii")
        )
        labels, layer = header.get("labels"), header.get("layer")
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise damaged_edit(path, what, "its header has no labels")
        n = len(labels)
        if type(layer) is not int or (keys.ndim, values.ndim, radii.ndim) != (2, 2, 1):
            raise damaged_edit(path, what, "it lacks the layer, keys, values or radii")
        if not len(keys) == len(values) == len(radii) == n:
            raise damaged_edit(
                path,
                what,
                f"it has {len(keys)} keys, {len(values)} values, {len(radii)} radii for {n}",
            )
        try:
            return cls(
                layer, keys, values, radii, tuple(labels), header["model_hash"], report_of(header)
            )
        except NotFiniteError as error:
            raise damaged_edit(path, what, error) from error

    def _hooks(self, model: LanguageModel, ends: Int[Tensor, " batch"]) -> list[NamedHook]:
        if not self.labels:
            return []
        rows, queries = torch.arange(len(ends), device=ends.device), list[Tensor]()

        def read(value: Tensor, hook: Any) -> None:
            queries[:] = [value[rows, ends].to(self.keys.dtype)]

        def write(value: Tensor, hook: Any) -> Tensor:
            distance, which = self.nearest(queries.pop())
            hit = distance <= self.radii.to(distance)[which]
            new = torch.where(hit[:, None], self.values.to(value)[which], value[rows, ends])
            return value.index_put((rows, ends), new)

        return [(model.key_hook(self.layer), read), (model.value_hook(self.layer), write)]


# EasyEdit writes the 18th of 28 blocks of Qwen2.5-7B.
@register(
    "grace",
    makes=Codebook,
    blocks=(19,),
    one_block=True,
    in_order=True,
    honours=("end_token", "wordings"),
)
@one_batch("use shorter prompts, another device, or model.dtype=bfloat16")
def edit(bench: Workbench) -> Codebook:
    """Add every request to an empty codebook, one after the other; the model is not changed.

    Args:
        bench: Model, block and requests; a later request wins where prompts are equal. Under
            `grace` radius, steps and learning rate, and the seed of the values' first numbers.

    Returns:
        A codebook in float32 (float64 for a float64 model), on the CPU.

    Raises:
        EditError: The loss became NaN or infinite.
    """
    model, settings, (layer,) = bench.model, bench.settings, bench.layers
    config, dtype = settings.grace, torch.promote_types(model.dtype, torch.float32)
    generator = torch.Generator().manual_seed(settings.seed)
    down = model.down_projection(layer)
    empty = torch.zeros(0, dtype=dtype)
    keys, values = (empty.view(0, d) for d in (down.weight.numel() // model.d_model, model.d_model))
    book = Codebook(layer, keys, values, empty, (), model.weight_hash)
    losses: list[list[float]] = []
    for request in bench.requests:
        asked = ask(model, [trained_question(model, request)])
        name = model.key_hook(layer)
        query = model.capture(asked.ids, [name], mask=asked.mask)[name][0, asked.ends].to(
            "cpu", dtype
        )
        cold = torch.rand(model.d_model, generator=generator, dtype=dtype)
        book, index = _placed(book, query, request.target_new.strip(), cold, config.epsilon)
        value, course = _train(model, layer, asked, book.values[index], settings)
        losses.append(course)
        book = replace(
            book, values=torch.cat([book.values[:index], value[None], book.values[index + 1 :]])
        )
    return replace(book, report=bench.report(losses=losses))


def _placed(
    book: Codebook,
    query: Float[Tensor, "1 d_mlp"],
    label: str,
    cold: Float[Tensor, " d_model"],
    epsilon: float,
) -> tuple[Codebook, int]:
    """The codebook with a place for a request, and which it is (see the module)."""
    radii, labels, radius = book.radii.clone(), list(book.labels), epsilon
    if labels:
        found, at = book.nearest(query)
        distance, nearest = found.item(), int(at)
        if distance <= epsilon + radii[nearest].item():
            same = labels[nearest] == label
            if same or distance == 0:
                radii[nearest] = max(radii[nearest].item(), distance * (1 + MARGIN))
                labels[nearest] = label
                values = book.values.clone()
                if not same:
                    values[nearest] = cold
                return replace(book, radii=radii, labels=tuple(labels), values=values), nearest
            radius = min(epsilon, distance / 2)
            radii[nearest] = min(radii[nearest].item(), distance / 2 * (1 - MARGIN))
    return (
        replace(
            book,
            keys=torch.cat([book.keys, query]),
            values=torch.cat([book.values, cold[None]]),
            radii=torch.cat([radii, torch.tensor([radius], dtype=radii.dtype)]),
            labels=(*labels, label),
        ),
        len(labels),
    )


def _train(
    model: LanguageModel,
    layer: int,
    asked: Asked,
    start: Float[Tensor, " d_model"],
    settings: EditorSettings,
) -> tuple[Float[Tensor, " d_model"], list[float]]:
    """The trained value on the CPU, and the loss before each step."""
    config = settings.grace
    value = start.to(model.device).clone().requires_grad_()
    optimiser = torch.optim.Adam([value], lr=config.learning_rate)
    losses: list[float] = []

    def write(out: Tensor, hook: Any) -> Tensor:
        row = torch.zeros_like(asked.ends)
        return out.index_put((row, asked.ends), value[None].to(out.dtype))

    for step in range(config.steps):
        with torch.enable_grad():
            hooks = [(model.value_hook(layer), write)]
            logits = model.logits(asked.ids, mask=asked.mask, keep=asked.kept, hooks=hooks)
            loss = asked.nll(logits).mean()
        if not loss.isfinite():
            why = (
                "use a smaller grace.learning_rate, or model.dtype=float32"
                if step
                else cause(model)
            )
            raise EditError(f"GRACE diverged at step {step}: {why}")
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return value.detach().cpu(), losses
