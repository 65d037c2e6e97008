"""Running sums over the keys of a text, and what they come to: second moments by block.

All blocks are summed in one pass, from float32 products per batch, in float64. The sums are saved
from time to time, so that a pass that was stopped goes on where it was.

Memory: one float64 matrix of d_mlp × d_mlp per block (19 MB for d_mlp = 1536, 2.9 GB for 18944),
where the model is. The convergence report adds two such matrices, whatever the number of blocks,
and two factorisations per block, whatever the number of tokens (as much time as some 2000 tokens
take at d_mlp = 1536).
"""

import time
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editing.closed_form.corpora import counted
from editing.edits.precision import device_of_sums
from interp.errors import DamagedError, NotFiniteError
from interp.models.budget import one_batch
from interp.models.finite import cause
from interp.models.loading import LanguageModel, NamedHook
from interp.models.tokens import pad_right
from interp.results.tensor_files import read_tensors, write_tensors

PROBES = 16
"""Texts whose last key the convergence report solves for."""
CHECKPOINT_SECONDS = 60.0
"""Least time between two savings of the running sums."""
CHECKPOINT_SHARE = 20
"""Savings take at most one part in so many of the time."""
CHECKPOINT_SCHEMA = "dmle.covariance.unfinished/1"
# k kᵀ is symmetric: products of this many columns with the columns from there on do little more
# than half the work.
COLUMNS = 192


@dataclass(frozen=True)
class Moments:
    """What one pass finds for a block."""

    second: Float[Tensor, "d_mlp d_mlp"]
    """Mean of k kᵀ, float64."""
    fourth: float
    """Mean of (kᵀk)² = ‖k kᵀ‖²."""
    convergence: float | None
    """See `Covariances.convergence`."""
    half: int
    """Tokens of the first half."""


def second_moments(
    model: LanguageModel,
    layers: Sequence[int],
    rows: Sequence[Sequence[int]],
    *,
    together: int = 2048,
    skip_first: bool = False,
    checkpoint: Path | None = None,
    advance: Callable[[int], object] = lambda n: None,
) -> dict[int, Moments]:
    """Moments of the keys of some blocks over all tokens of the texts, in one pass up to the last
    of the blocks.

    Texts run with others of about their length, so that there is little padding; the first half of
    the texts (by tokens) runs before the second.

    Args:
        model: The unedited model.
        layers: Blocks.
        rows: Token ids of each text.
        together: Tokens in a batch, padding included; a longer text runs alone.
        skip_first: Leave the first token of each text out of the means.
        checkpoint: File for the running sums, read at the start if it fits and written from time to
            time.
        advance: Called with the number of tokens run.

    Raises:
        ValueError: A block's keys are not finite.
    """
    half = half_of(rows, skip_first)
    first, rest = batches_of(model, rows, together, half)
    batches = [*first, *rest]
    sums = _Sums(model, layers, n_probes=min(PROBES, half))
    plan = {
        "schema": CHECKPOINT_SCHEMA,
        "together": together,
        "skip_first": skip_first,
        "rows": _digest(rows),
    }
    if checkpoint is not None and sums.load(checkpoint, layers, plan, model.device):
        advance(sums.tokens)
    saved, took = time.monotonic(), 0.0
    for number, batch in enumerate(batches[sums.batches :], sums.batches + 1):
        advance(sums.add(model, layers, [rows[i] for i in batch], batch, skip_first))
        if number == len(first) < len(batches):
            sums.solve_half()
        now = time.monotonic()
        if checkpoint is not None and now - saved >= max(
            CHECKPOINT_SECONDS, CHECKPOINT_SHARE * took
        ):
            sums.save(checkpoint, layers, plan)
            saved = time.monotonic()
            took = saved - now
    return {layer: sums.moments(layer, model) for layer in layers}


def ledoit_wolf(second: Float[Tensor, "d d"], fourth: float, samples: int) -> float:
    """Share s of the identity in (1−s) C + s μ I that comes nearest to the true C, as far as the
    samples tell.

    With μ = tr(C)/d, the mean squared error over the sample is least, for independent samples, at

        s = min(b², δ²) / δ²,  δ² = ‖C − μI‖² = ‖C‖² − d μ²,  b² = (mean ‖k kᵀ‖² − ‖C‖²) / n.

    Tokens of one text are not independent, so that the best share is larger than this.

    Args:
        second: C, the mean of k kᵀ (the mean of k is not taken off).
        fourth: Mean of ‖k kᵀ‖² = (kᵀk)².
        samples: n.

    Source: O. Ledoit, M. Wolf, A well-conditioned estimator for large-dimensional covariance
    matrices, Journal of Multivariate Analysis 88 (2004) 365-411, lemmas 3.2 to 3.4, for a known
    mean of zero.
    """
    square = second.square().sum(dtype=torch.float64).item()
    trace = second.diagonal().sum(dtype=torch.float64).item()
    distance = square - trace**2 / len(second)
    error = (fourth - square) / samples
    # A multiple of the identity already: any share gives the same.
    return min(max(error / distance, 0.0), 1.0) if distance > 0 else 0.0


def _digest(rows: Iterable[Sequence[int]]) -> str:
    digest = sha256()
    for row in rows:
        digest.update(f"{len(row)} ".encode() + array("i", row).tobytes())
    return digest.hexdigest()


def half_of(rows: Sequence[Sequence[int]], skip_first: bool) -> int:
    """How many texts, from the first, have half of the tokens of all."""
    total, count = counted(rows, skip_first), 0
    for i, row in enumerate(rows, 1):
        count += len(row) - skip_first
        if 2 * count >= total:
            return i
    return len(rows)


def batches_of(
    model: LanguageModel, rows: Sequence[Sequence[int]], together: int, half: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Texts to run at once: of the first `half` texts, and of the others."""
    kind = model.lengths.kind
    return (
        _batches(rows, range(half), together, kind),
        _batches(rows, range(half, len(rows)), together, kind),
    )


def run_to_last(
    model: LanguageModel,
    layers: Sequence[int],
    ids: Tensor,
    mask: Tensor,
    hooks: Sequence[NamedHook],
) -> None:
    """Run hooks on some blocks for what they see, and no block behind the last of them."""
    if max(layers) < model.n_layers - 1:
        model.watch(ids, hooks, mask=mask)
        return
    # Nothing ends a run behind the last block, and the logits of every token take more than
    # several blocks.
    with torch.no_grad():
        model.logits(ids, mask=mask, keep=1, hooks=hooks)


def add_products(second: Float[Tensor, "d d"], keys: Float[Tensor, "token d"]) -> None:
    """Add Σ k kᵀ to the blocks of columns of a symmetric matrix, from the diagonal on."""
    for start in range(0, keys.shape[1], COLUMNS):
        product = keys[:, start : start + COLUMNS].T @ keys[:, start:]
        second[start : start + COLUMNS, start:] += product.to(second.device)


def _batches(
    rows: Sequence[Sequence[int]],
    which: Iterable[int],
    together: int,
    kind: Callable[[int], int] = lambda length: 0,
) -> list[list[int]]:
    """Texts to run at once, longest first, so that memory that does not suffice shows at the start.

    Texts of one batch are of one kind (`interp.models.lengths`).
    """
    batches: list[list[int]] = []
    for i in sorted(which, key=lambda i: -len(rows[i])):
        longest = len(rows[batches[-1][0]]) if batches else 0
        alike = kind(longest) == kind(len(rows[i]))
        if batches and alike and (len(batches[-1]) + 1) * longest <= together:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


class _Sums:
    """Sums over the batches so far. Of the symmetric second moments only what `COLUMNS` gives is
    kept.
    """

    def __init__(self, model: LanguageModel, layers: Sequence[int], n_probes: int) -> None:
        self.n_probes = n_probes
        self.batches = self.tokens = self.half = 0
        device = device_of_sums(model.device)
        sizes = {layer: width(model, layer) for layer in layers}

        # All at once before the first run, whose passing tensors would otherwise leave gaps between
        # them.
        def zeros(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        self.second = {layer: zeros(size, size) for layer, size in sizes.items()}
        self.fourth = {layer: zeros() for layer in layers}
        self.probes = {
            layer: zeros(n_probes, size, dtype=torch.float32) for layer, size in sizes.items()
        }
        self.solved: dict[int, Tensor] = {}

    def add(
        self,
        model: LanguageModel,
        layers: Sequence[int],
        rows: Sequence[Sequence[int]],
        numbers: Sequence[int],
        skip_first: bool,
    ) -> int:
        """Run a batch of texts, the `numbers`-th of the corpus; the number of tokens that count."""
        ids, mask = pad_right(rows, model.device)
        counts = mask.bool()
        if skip_first:
            counts[:, 0] = False
        kept = counts.flatten().nonzero()[:, 0]
        everything = len(kept) == mask.numel()
        probes = [
            (number, row, len(rows[row]) - 1)
            for row, number in enumerate(numbers)
            if number < self.n_probes
        ]

        def look(value: Tensor, hook: Any, layer: int) -> None:
            keys = value.flatten(0, 1)
            self._add(layer, (keys if everything else keys.index_select(0, kept)).float())
            for number, row, position in probes:
                self.probes[layer][number] = value[row, position]

        hooks = [
            (model.key_hook(layer), lambda value, hook, layer=layer: look(value, hook, layer))
            for layer in layers
        ]
        with one_batch(
            "use a smaller covariance.batch_size or covariance.max_length, or fewer layers at once"
        ):
            run_to_last(model, layers, ids, mask, hooks)
        self.batches += 1
        self.tokens += len(kept)
        return len(kept)

    def _add(self, layer: int, keys: Tensor) -> None:
        second = self.second[layer]
        add_products(second, keys)
        norms = torch.linalg.vector_norm(keys, dim=1).to(second.device)
        self.fourth[layer] += norms.double().pow(4).sum()

    def solve_half(self) -> None:
        """Note the solutions for the probes at half of the tokens."""
        self.half = self.tokens
        self.solved = {
            layer: found for layer in self.second if (found := self._solution(layer)) is not None
        }

    def _solution(self, layer: int) -> Tensor | None:
        """C⁻¹K, (d_mlp, probe); None if C is singular."""
        second = self.second[layer]
        # Rounding may hide that too few samples leave C singular.
        if self.tokens < len(second):
            return None
        factor, info = torch.linalg.cholesky_ex(second, upper=True)
        if info.item():
            return None
        return (
            torch.cholesky_solve(self.probes[layer].double().T, factor, upper=True).contiguous()
            * self.tokens
        )

    def moments(self, layer: int, model: LanguageModel) -> Moments:
        """What the sums come to at the end; they are used up."""
        fourth = self.fourth[layer].item() / self.tokens
        if not fourth < float("inf"):
            raise NotFiniteError(
                f"keys of block {layer} of {model.name} are not finite: {cause(model)}"
            )
        change = None
        if layer in self.solved and (end := self._solution(layer)) is not None:
            change = ((self.solved[layer] - end).norm() / end.norm()).item()
        second = self.second[layer]
        for start in range(0, len(second), COLUMNS):
            second[start + COLUMNS :, start : start + COLUMNS] = second[
                start : start + COLUMNS, start + COLUMNS :
            ].T
        return Moments(second.div_(self.tokens), fourth, change, self.half)

    def save(self, path: Path, layers: Sequence[int], plan: Mapping[str, Any]) -> None:
        """Write everything that another process needs to go on."""
        kinds = {
            "second": self.second,
            "fourth": self.fourth,
            "probes": self.probes,
            "solved": self.solved,
        }
        tensors = {
            f"{kind}.{layer}": value
            for kind, values in kinds.items()
            for layer, value in values.items()
        }
        numbers = {
            "batches": self.batches,
            "tokens": self.tokens,
            "half": self.half,
            "layers": list(layers),
        }
        write_tensors(path, tensors, {**plan, **numbers})

    def load(
        self, path: Path, layers: Sequence[int], plan: Mapping[str, Any], device: torch.device
    ) -> bool:
        """Take over what `save` wrote, if it is of the same texts and batches and has all the
        blocks.
        """
        if not path.is_file():
            return False
        place = str(device_of_sums(device))
        try:
            tensors, header = read_tensors(path, "checkpoint of covariances", device=place)
            if any(header.get(name) != value for name, value in plan.items()):
                return False
            if not set(layers) <= set(header["layers"]):
                return False
            found = [
                {
                    layer: tensors[f"{kind}.{layer}"]
                    for layer in layers
                    if f"{kind}.{layer}" in tensors
                }
                for kind in ("second", "fourth", "probes", "solved")
            ]
            numbers = header["batches"], header["tokens"], header["half"]
        except (DamagedError, KeyError, TypeError):  # nothing but time is lost
            return False
        if any(set(values) != set(layers) for values in found[:3]) or any(
            type(n) is not int for n in numbers
        ):
            return False
        self.second, self.fourth, self.probes, self.solved = found
        self.batches, self.tokens, self.half = numbers
        return True


def width(model: LanguageModel, layer: int) -> int:
    """d_mlp of a block."""
    return model.down_projection(layer).weight.numel() // model.d_model
