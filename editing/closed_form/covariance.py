"""Second moments of keys, C = E[k kᵀ], over plain text: what an edit should leave alone.

All requested blocks are measured in one pass over the corpus, always on the unedited model, from
float32 products per batch that are summed in float64. A file per block, in a folder named by
everything that C depends on. A long measurement saves its running sums from time to time and goes
on from there when it is started again.

Memory: one float64 matrix of d_mlp × d_mlp per block (19 MB for d_mlp = 1536, 2.9 GB for 18944),
where the model is; measure the blocks of a large model in several calls if they do not fit
together. The convergence report adds two such matrices, whatever the number of blocks, and two
factorisations per block, whatever the number of tokens (as much time as some 2000 tokens take at
d_mlp = 1536).

Source: ROME/MEMIT layer_stats (uncentred, every token counts, special tokens included).
"""

import json
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editing.closed_form.precision import as_tensor, device_of_sums, eigen, exact
from editing.closed_form.rule_text import mixed, sentences
from editing.closed_form.solvers import factorise
from editing.config import CovarianceConfig
from interp.errors import DamagedError, InputError, NotFiniteError
from interp.models.budget import one_batch
from interp.models.corpus import paragraphs, paragraphs_sha256
from interp.models.finite import cause
from interp.models.loading import LanguageModel, NamedHook
from interp.models.tokens import pad_right
from interp.results.files import damaged
from interp.results.provenance import fingerprint
from interp.results.tensor_files import read_tensors, write_tensors
from interp.rules.sources import load_rules

WITH_RULES = "embedded+rules"
HUB = "hf:"
PROBES = 16
"""Texts whose last key the convergence report solves for."""
CHECKPOINT_SECONDS = 60.0
"""Least time between two savings of the running sums."""
CHECKPOINT_SHARE = 20
"""Savings take at most one part in so many of the time."""
CHECKPOINT = "unfinished.safetensors"
CHECKPOINT_SCHEMA = "dmle.covariance.unfinished/1"
# k kᵀ is symmetric: products of this many columns with the columns from there on do little more
# than half the work.
COLUMNS = 192


@dataclass(frozen=True)
class Covariances:
    """C of some blocks of one model, with what editors compute from it, once per block.

    Attributes:
        by_layer: Block → C, float32, shrunk as the settings say.
        model_hash: Hash of the model's weights.
        tokens: Tokens in each mean; 0 if C is the identity by decree.
        about: What was measured: weights, corpus, settings, shrinkage, convergence; anything JSON
            can hold.
        convergence: Block → relative change ‖A − B‖ / ‖B‖ of the solutions C⁻¹K when the tokens
            double, A at the first texts that make half of the tokens, B at all of them, before
            shrinkage. K are the keys of the last tokens of the first 16 texts (fewer if the first
            half has fewer). None where there is nothing to compare: a single text, or C singular at
            half.
    """

    by_layer: dict[int, Float[Tensor, "d_mlp d_mlp"]]
    model_hash: str
    tokens: int
    about: dict[str, Any]
    convergence: dict[int, float | None] = field(default_factory=dict)
    _computed: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def origin(self) -> dict[str, Any]:
        """What they were measured on, without what `about` says of single blocks: the same for
        any choice of blocks.
        """
        return {
            name: value
            for name, value in self.about.items()
            if name not in ("shrinkage_shares", "convergence")
        }

    def moment(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """C of a block.

        Raises:
            KeyError: The block was not measured.
        """
        if layer not in self.by_layer:
            there = ", ".join(map(str, sorted(self.by_layer))) or "none"
            raise InputError(
                f"no covariance of block {layer}: there are those of {there}. Measure it with the"
                f" others, editing.closed_form.covariance.measure(model, [..., {layer}], config,"
                " folder), before any edit"
            )
        return self.by_layer[layer]

    def factor(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """Lower Cholesky factor of C in float64, computed once.

        Raises:
            KeyError: The block was not measured.
            ValueError: C is not positive definite.
        """
        moment = self.moment(layer)
        if ("factor", layer) not in self._computed:
            try:
                self._computed["factor", layer] = factorise(moment)
            except NotFiniteError as error:
                raise NotFiniteError(f"block {layer}: {error}") from error
            except InputError as error:
                raise InputError(f"block {layer}: {error}") from error
        return self._computed["factor", layer]

    def null_space(
        self, layer: int, threshold: float, relative: bool
    ) -> Float[Tensor, "d_mlp d_mlp"]:
        """P = U₀U₀ᵀ in float64, the projector on the directions that keys hardly use (AlphaEdit).

        U₀ are the eigenvectors of C with an eigenvalue (C being positive semi-definite: a singular
        value) below the threshold. The eigendecomposition is computed once per block, P once per
        threshold.

        Args:
            layer: Block.
            threshold: Eigenvalues below it count as none.
            relative: The threshold is in units of the mean eigenvalue, tr(C)/d_mlp.

        Raises:
            KeyError: The block was not measured.
        """
        moment = self.moment(layer)
        key = ("null space", layer, threshold, relative)
        if key not in self._computed:
            if ("eigen", layer) not in self._computed:
                self._computed["eigen", layer] = eigen(exact(moment))
            values, vectors = self._computed["eigen", layer]
            free = vectors[:, values < threshold * (values.mean() if relative else 1)]
            self._computed[key] = as_tensor(free @ free.T)
        return self._computed[key]


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


def measure(
    model: LanguageModel,
    layers: Sequence[int],
    config: CovarianceConfig,
    folder: Path,
    *,
    advance: Callable[[int], object] = lambda n: None,
) -> Covariances:
    """Load what `folder` has for these settings and measure the rest in one pass.

    A measurement that was interrupted goes on where its running sums were last saved, with the
    result, bit for bit, of one that was not, on the same machine with the same `batch_size`. It
    goes on for the blocks asked for now, and starts over if there are others among them.

    Args:
        model: The unedited model.
        layers: Blocks.
        config: Corpus, size and shrinkage. Only the corpus and what is read of it (`tokens`,
            `max_length`, `skip_first`) say which files fit; shrinkage is applied on loading. With
            `skip_first`, `tokens` counts the tokens in the mean, not those left out.
        folder: Where `<settings>/layer_<n>.safetensors` files are kept.
        advance: Called with the number of tokens run, first with those of the interrupted
            measurement.

    Raises:
        ValueError: The model is edited, the corpus has fewer tokens than asked for or cannot be
            read, the shrinkage is not a share, there is no such block, or a block's keys are not
            finite.
        FileNotFoundError: There is no such text file.
        ImportError: The corpus is a Hugging Face dataset, and `datasets` is not installed.
    """
    layers = list(dict.fromkeys(layers))
    if wrong := [layer for layer in layers if not 0 <= layer < model.n_layers]:
        raise InputError(
            f"no blocks {wrong} in {model.name}: it has {model.n_layers}, numbered from 0"
        )
    # Written so that NaN is refused too.
    if not isinstance(config.shrinkage, str) and not 0 <= config.shrinkage <= 1:
        raise InputError(
            f"covariance.shrinkage is {config.shrinkage}: a share from 0 (C as measured) to 1 (a"
            ' multiple of the identity) is needed, or "none", or "ledoit-wolf"'
        )
    if config.identity:
        return _identities(model, layers)
    corpus = _open(config.corpus)
    about = _described(model, config, corpus)
    place = folder / fingerprint(**about)
    paths = {layer: place / f"layer_{layer}.safetensors" for layer in layers}
    if missing := [layer for layer, path in paths.items() if not path.is_file()]:
        if model.current_hash() != model.weight_hash:
            raise InputError(
                f"{model.name} is edited at the moment; covariances are those of the unedited"
                " model: revert the edit (leave its `with` block) and measure before"
            )
        rows = _rows(model, corpus.texts, config)
        if (tokens := _counted(rows, config.skip_first)) < config.tokens:
            raise InputError(
                f"the corpus {corpus.name} has {tokens} tokens, covariance.tokens asks for"
                f" {config.tokens}; lower it or give a longer text with covariance.corpus"
            )
        checkpoint = place / CHECKPOINT
        found = second_moments(
            model,
            missing,
            rows,
            together=config.batch_size * config.max_length,
            skip_first=config.skip_first,
            checkpoint=checkpoint,
            advance=advance,
        )
        for layer, moments in found.items():
            _save(paths[layer], moments, layer, about)
        checkpoint.unlink(missing_ok=True)
    return _assemble(paths, config, model.weight_hash, about)


def described(model: LanguageModel, config: CovarianceConfig) -> dict[str, Any]:
    """What the moments of every block depend on, before shrinkage; nothing is measured.

    Raises:
        As `measure`, of a corpus that cannot be read.
    """
    if config.identity:
        return {"weights": model.weight_hash, "identity": True}
    return _described(model, config, _open(config.corpus))


def _described(model: LanguageModel, config: CovarianceConfig, corpus: "_Corpus") -> dict[str, Any]:
    return {
        "weights": model.weight_hash,
        "dtype": str(model.dtype),
        "corpus": corpus.name,
        **corpus.version,
        "tokens": config.tokens,
        "max_length": _longest(model, config),
        "skip_first": config.skip_first,
        # What the tokenizer puts around every text, such as a BOS token.
        "added_tokens": list(model.encode("").ids),
    }


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
    half = _half(rows, skip_first)
    first = _batches(rows, range(half), together, model.lengths.kind)
    batches = [*first, *_batches(rows, range(half, len(rows)), together, model.lengths.kind)]
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


# -- corpora -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Corpus:
    name: str
    version: Mapping[str, str]
    texts: Iterable[str]


def _open(corpus: str) -> _Corpus:
    if corpus.startswith(HUB):
        return _dataset(corpus)
    if corpus != WITH_RULES:
        source, texts = paragraphs(corpus)
        return _Corpus(source.name, {"corpus_sha256": source.sha256}, texts)
    source, texts = paragraphs()
    both = list(mixed(texts, sentences(load_rules("embedded", split="train").rules)))
    return _Corpus(
        f"{source.name}, with training rules", {"corpus_sha256": paragraphs_sha256(both)}, both
    )


def _dataset(corpus: str) -> _Corpus:
    """A Hugging Face dataset, "hf:NAME" or "hf:NAME@CONFIGURATION", read as it is needed."""
    name, _, configuration = corpus.removeprefix(HUB).partition("@")
    try:
        # Imported here: it is optional, and takes a second.
        from datasets import load_dataset_builder
    except ImportError as error:
        raise InputError(
            f"covariance.corpus {corpus!r} needs the package datasets: pip install datasets. Or"
            " give a text file"
        ) from error
    try:
        builder = load_dataset_builder(name, configuration or None)
        stream: Any = builder.as_streaming_dataset(split="train")
    except (
        Exception
    ) as error:  # the library has no common class for a missing name, configuration, split, network
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"covariance.corpus {corpus!r} cannot be read: {reason}. Write hf:NAME or"
            ' hf:NAME@CONFIGURATION, of a dataset with a split "train"; or give a text file'
        ) from error
    # The commit of a dataset on the hub; of a folder, a hash of its files.
    return _Corpus(corpus, {"corpus_revision": str(builder.hash)}, _column(corpus, stream))


def _column(corpus: str, stream: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for row in stream:
        text = row.get("text")
        if "text" not in row or not isinstance(text, str | None):
            raise InputError(
                f'covariance.corpus {corpus!r} has no column "text" of strings; its columns are'
                f" {', '.join(row)}"
            )
        if text and text.strip():
            yield text.strip()


def _rows(model: LanguageModel, texts: Iterable[str], config: CovarianceConfig) -> list[array]:
    """Token ids of the texts, cut at `max_length`: exactly `tokens` of them count, if the corpus
    has so many.
    """
    left, skipped, longest = config.tokens, int(config.skip_first), _longest(model, config)
    rows: list[array] = []
    for text in texts:
        ids = model.encode(text).ids[: min(longest, left + skipped)]
        if len(ids) > skipped:
            # Four bytes a token: a corpus may be long.
            rows.append(array("i", ids))
            left -= len(ids) - skipped
        if left == 0:
            break
    return rows


def _longest(model: LanguageModel, config: CovarianceConfig) -> int:
    """Tokens at which texts are cut: beyond its positions a model computes nothing that means
    anything.
    """
    return min(config.max_length, model.context_length)


def _counted(rows: Iterable[Sequence[int]], skip_first: bool) -> int:
    return sum(len(row) - skip_first for row in rows)


def _digest(rows: Iterable[Sequence[int]]) -> str:
    digest = sha256()
    for row in rows:
        digest.update(f"{len(row)} ".encode() + array("i", row).tobytes())
    return digest.hexdigest()


def _half(rows: Sequence[Sequence[int]], skip_first: bool) -> int:
    """How many texts, from the first, have half of the tokens."""
    total, count = _counted(rows, skip_first), 0
    for i, row in enumerate(rows, 1):
        count += len(row) - skip_first
        if 2 * count >= total:
            return i
    return len(rows)


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


# -- running sums --------------------------------------------------------------------------------


class _Sums:
    """Sums over the batches so far. Of the symmetric second moments only what `COLUMNS` gives is
    kept.
    """

    def __init__(self, model: LanguageModel, layers: Sequence[int], n_probes: int) -> None:
        self.n_probes = n_probes
        self.batches = self.tokens = self.half = 0
        device = device_of_sums(model.device)
        sizes = {layer: _width(model, layer) for layer in layers}

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
            self._run(model, layers, ids, mask, hooks)
        self.batches += 1
        self.tokens += len(kept)
        return len(kept)

    def _run(
        self,
        model: LanguageModel,
        layers: Sequence[int],
        ids: Tensor,
        mask: Tensor,
        hooks: Sequence[NamedHook],
    ) -> None:
        if max(layers) < model.n_layers - 1:
            model.watch(ids, hooks, mask=mask)
        else:
            # Nothing ends a run behind the last block, and the logits of every token take more than
            # several blocks.
            with torch.no_grad():
                model.logits(ids, mask=mask, keep=1, hooks=hooks)

    def _add(self, layer: int, keys: Tensor) -> None:
        width = keys.shape[1]
        second = self.second[layer]
        for start in range(0, width, COLUMNS):
            product = keys[:, start : start + COLUMNS].T @ keys[:, start:]
            second[start : start + COLUMNS, start:] += product.to(second.device)
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


# -- files ---------------------------------------------------------------------------------------


def _save(path: Path, moments: Moments, layer: int, about: Mapping[str, Any]) -> None:
    tensors = {
        "second_moment": moments.second.float(),
        "fourth_moment": torch.tensor(moments.fourth, dtype=torch.float64),
    }
    write_tensors(
        path,
        tensors,
        {"about": about, "layer": layer, "convergence": moments.convergence, "half": moments.half},
    )


def _assemble(
    paths: Mapping[int, Path], config: CovarianceConfig, model_hash: str, about: Mapping[str, Any]
) -> Covariances:
    """What the files hold, shrunk as the settings say."""
    by_layer: dict[int, Tensor] = {}
    convergence: dict[int, float | None] = {}
    shares: dict[str, float] = {}
    half = 0
    for layer, path in paths.items():
        second, fourth, convergence[layer], half = _read(path, layer, about)
        share = _share(config.shrinkage, second, fourth, config.tokens)
        by_layer[layer], shares[str(layer)] = _shrink(second, share), share
    more = {
        "shrinkage": config.shrinkage,
        "shrinkage_shares": shares,
        "convergence": {str(layer): change for layer, change in convergence.items()},
        "convergence_from_tokens": half,
    }
    return Covariances(by_layer, model_hash, config.tokens, {**about, **more}, convergence)


def _read(
    path: Path, layer: int, about: Mapping[str, Any]
) -> tuple[Tensor, float, float | None, int]:
    """C of one block as it was measured, E‖k kᵀ‖², the convergence report, and the tokens of its
    first half.

    Raises:
        DamagedError: The file does not hold what `_save` wrote for this block and these settings.
    """
    what, mend = "covariance", "delete it to measure it anew, and run the same command again"
    tensors, header = read_tensors(path, what, mend=mend)
    second, fourth = (
        tensors.get(name, torch.zeros(0)) for name in ("second_moment", "fourth_moment")
    )
    convergence, half = header.get("convergence"), header.get("half")
    if (header.get("about"), header.get("layer")) != (json.loads(json.dumps(about)), layer):
        raise damaged(path, what, "it was measured on another block, model or text", mend)
    if second.ndim != 2 or second.shape[0] != second.shape[1] or fourth.numel() != 1:
        raise damaged(path, what, "it holds no square matrix of second moments", mend)
    if (
        not second.isfinite().all()
        or type(half) is not int
        or not isinstance(convergence, float | int | None)
    ):
        raise damaged(path, what, "its moments are no finite numbers", mend)
    return second, fourth.item(), convergence, half


def _share(shrinkage: str | float, second: Tensor, fourth: float, samples: int) -> float:
    if shrinkage == "none":
        return 0.0
    return ledoit_wolf(second, fourth, samples) if shrinkage == "ledoit-wolf" else float(shrinkage)


def _shrink(second: Tensor, share: float) -> Tensor:
    """(1−s) C + s tr(C)/d I, in place."""
    if share:
        mean = second.diagonal().double().mean().item()
        second.mul_(1 - share).diagonal().add_(share * mean)
    return second


def _identities(model: LanguageModel, layers: Sequence[int]) -> Covariances:
    """The identity for every block, without a pass."""
    about = {"weights": model.weight_hash, "identity": True}
    return Covariances(
        {layer: torch.eye(_width(model, layer)) for layer in layers}, model.weight_hash, 0, about
    )


def _width(model: LanguageModel, layer: int) -> int:
    """d_mlp of a block."""
    return model.down_projection(layer).weight.numel() // model.d_model
