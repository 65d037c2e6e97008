"""Second moments of keys, C = E[k kᵀ], over plain text: what an edit should leave alone.

All requested blocks are measured in one pass over the corpus, always on the unedited model, from
float32 products per batch that are summed in float64. A file per block, in a folder named by
everything that C depends on. A long measurement saves its running sums from time to time and goes
on from there when it is started again.

Memory: see `editing.closed_form.moments`; measure the blocks of a large model in several calls if
they do not fit together.

Source: ROME/MEMIT layer_stats (uncentred, every token counts, special tokens included).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from editing.closed_form.corpora import Corpus, counted, longest, open_corpus, rows_of
from editing.closed_form.moment_files import read, read_output, save, save_output
from editing.closed_form.moments import ledoit_wolf, second_moments, width
from editing.closed_form.output_moments import output_moments
from editing.closed_form.solvers import factorise
from editing.config import CovarianceConfig
from editing.edits.precision import as_tensor, eigen, exact, triangular, with_diagonal
from interp.errors import InputError, NotFiniteError
from interp.models.loading import LanguageModel
from interp.results.provenance import fingerprint

CHECKPOINT = "unfinished.safetensors"
OF_BLOCKS = ("shrinkage_shares", "convergence")
"""What is said of single blocks."""


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
        outputs: Block → G, the second moment of output gradients, float32
            (`editing.closed_form.output_moments`), where `covariance.output_tokens` asks for it.
    """

    by_layer: dict[int, Float[Tensor, "d_mlp d_mlp"]]
    model_hash: str
    tokens: int
    about: dict[str, Any]
    convergence: dict[int, float | None] = field(default_factory=dict)
    outputs: dict[int, Float[Tensor, "d_model d_model"]] = field(default_factory=dict)
    _computed: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def origin(self) -> dict[str, Any]:
        """What they were measured on, without what `about` says of single blocks: the same for
        any choice of blocks.
        """
        return {name: value for name, value in self.about.items() if name not in OF_BLOCKS}

    def need(self, layers: Sequence[int]) -> "Covariances":
        """These, if all of some blocks are there.

        Raises:
            InputError: A block was not measured.
        """
        for layer in layers:
            self.moment(layer)
        return self

    def joined(self, other: "Covariances") -> "Covariances":
        """With the blocks of another measurement of the same model and settings."""
        about = {**self.about, **other.about}
        for name in OF_BLOCKS:
            if name in self.about:
                about[name] = {**self.about[name], **other.about[name]}
        joined = Covariances(
            {**self.by_layer, **other.by_layer},
            self.model_hash,
            self.tokens,
            about,
            {**self.convergence, **other.convergence},
            {**self.outputs, **other.outputs},
        )
        joined._computed.update(self._computed)
        return joined

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

    def whitening(self, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
        """L⁻¹ in float64, computed once: keys k become L⁻¹k, whose second moment is the identity.

        Raises:
            As `factor`.
        """
        factor = self.factor(layer)
        if ("whitening", layer) not in self._computed:
            lower = exact(factor)
            identity = with_diagonal(0 * lower, 1.0)
            self._computed["whitening", layer] = as_tensor(triangular(lower, identity))
        return self._computed["whitening", layer]

    def output_whitening(self, layer: int, damping: float) -> Float[Tensor, "d_model d_model"]:
        """M⁻ᵀ in float64, with M Mᵀ = (1−s) G / g + s I, g = tr(G)/d_model the mean eigenvalue
        of G.

        Args:
            layer: Block.
            damping: s, the share of the identity.

        Raises:
            InputError: There is no G of the block.
        """
        if layer not in self.outputs:
            raise InputError(
                f"there are no moments of the outputs of block {layer}: set"
                " covariance.output_tokens, for example --set covariance.output_tokens=10000"
            )
        moment = exact(self.outputs[layer])
        mean = as_tensor(moment).diagonal().mean().item()
        damped = with_diagonal(moment * ((1 - damping) / mean if mean > 0 else 0.0), damping)
        lower = factorise(as_tensor(damped))
        identity = with_diagonal(0 * damped, 1.0)
        return as_tensor(triangular(exact(lower), identity)).T

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
    _check(model, layers, config)
    if config.identity:
        return _identities(model, layers)
    corpus = open_corpus(config.corpus)
    about = _described(model, config, corpus)
    outputs = _outputs(model, layers, config, corpus, folder, advance)
    place = folder / fingerprint(**about)
    paths = {layer: place / f"layer_{layer}.safetensors" for layer in layers}
    if missing := [layer for layer, path in paths.items() if not path.is_file()]:
        checkpoint = place / CHECKPOINT
        measured = second_moments(
            model,
            missing,
            _texts(model, corpus, config),
            together=config.batch_size * config.max_length,
            skip_first=config.skip_first,
            checkpoint=checkpoint,
            advance=advance,
        )
        for layer, moments in measured.items():
            save(paths[layer], moments, layer, about)
        checkpoint.unlink(missing_ok=True)
    return _assemble(paths, config, model.weight_hash, about, outputs)


def _outputs(
    model: LanguageModel,
    layers: Sequence[int],
    config: CovarianceConfig,
    corpus: Corpus,
    folder: Path,
    advance: Callable[[int], object],
) -> dict[int, Tensor]:
    """G of the blocks over the first `output_tokens` tokens: read, or measured in one pass and
    written; none where they are not asked for.

    Raises:
        As `measure`.
    """
    if not config.output_tokens:
        return {}
    shorter = config.model_copy(update={"tokens": config.output_tokens, "skip_first": False})
    about = {**_described(model, shorter, corpus), "of": "output gradients"}
    place = folder / fingerprint(**about)
    paths = {layer: place / f"layer_{layer}.safetensors" for layer in layers}
    if missing := [layer for layer, path in paths.items() if not path.is_file()]:
        rows = _texts(model, corpus, shorter, setting="output_tokens")
        for layer, moment in output_moments(model, missing, rows, advance=advance).items():
            save_output(paths[layer], moment, layer, about)
    return {layer: read_output(path, layer, about) for layer, path in paths.items()}


def _check(model: LanguageModel, layers: Sequence[int], config: CovarianceConfig) -> None:
    """Refuse blocks that there are not, and a shrinkage that is no share."""
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


def _texts(
    model: LanguageModel, corpus: Corpus, config: CovarianceConfig, setting: str = "tokens"
) -> Sequence[Sequence[int]]:
    """Token ids of the texts that are to be run.

    Raises:
        InputError: The model is edited, or the corpus has fewer tokens than asked for.
    """
    if model.current_hash() != model.weight_hash:
        raise InputError(
            f"{model.name} is edited at the moment; covariances are those of the unedited model:"
            " revert the edit (leave its `with` block) and measure before"
        )
    rows = rows_of(model, corpus.texts, config)
    if (tokens := counted(rows, config.skip_first)) < config.tokens:
        raise InputError(
            f"the corpus {corpus.name} has {tokens} tokens, covariance.{setting} asks for"
            f" {config.tokens}; lower it or give a longer text with covariance.corpus"
        )
    return rows


def described(model: LanguageModel, config: CovarianceConfig) -> dict[str, Any]:
    """What the moments of every block depend on, before shrinkage; nothing is measured.

    Raises:
        As `measure`, of a corpus that cannot be read.
    """
    if config.identity:
        return {"weights": model.weight_hash, "identity": True}
    about = _described(model, config, open_corpus(config.corpus))
    return about | _of_outputs(config)


def _of_outputs(config: CovarianceConfig) -> dict[str, int]:
    return {"output_tokens": config.output_tokens} if config.output_tokens else {}


def _described(model: LanguageModel, config: CovarianceConfig, corpus: "Corpus") -> dict[str, Any]:
    return {
        "weights": model.weight_hash,
        "dtype": str(model.dtype),
        "corpus": corpus.name,
        **corpus.version,
        "tokens": config.tokens,
        "max_length": longest(model, config),
        "skip_first": config.skip_first,
        # What the tokenizer puts around every text, such as a BOS token.
        "added_tokens": list(model.encode("").ids),
    }


def _assemble(
    paths: Mapping[int, Path],
    config: CovarianceConfig,
    model_hash: str,
    about: Mapping[str, Any],
    outputs: dict[int, Tensor],
) -> Covariances:
    """What the files hold, shrunk as the settings say."""
    by_layer: dict[int, Tensor] = {}
    convergence: dict[int, float | None] = {}
    shares: dict[str, float] = {}
    half = 0
    for layer, path in paths.items():
        second, fourth, convergence[layer], half = read(path, layer, about)
        share = _share(config.shrinkage, second, fourth, config.tokens)
        by_layer[layer], shares[str(layer)] = _shrink(second, share), share
    more = {
        "shrinkage": config.shrinkage,
        "shrinkage_shares": shares,
        "convergence": {str(layer): change for layer, change in convergence.items()},
        "convergence_from_tokens": half,
        **_of_outputs(config),
    }
    about = {**about, **more}
    return Covariances(by_layer, model_hash, config.tokens, about, convergence, outputs)


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
        {layer: torch.eye(width(model, layer)) for layer in layers}, model.weight_hash, 0, about
    )
