"""A model without weights: its configuration, its sizes and its tokenizer, for plans.

An outline goes where a model goes. It tokenises like the model. Its runs compute nothing: they
note how many rows, tokens and blocks the model would run, and hand states of width 1 through the
hooks. So the code that does the work also counts it, and a plan cannot differ from it by a formula.

What depends on numbers is not known: where a generation ends (it is counted to its longest), and
how soon a search is done.
"""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from interp.models.arithmetic import ModelShape, Pass, RowSizes
from interp.models.budget import ACCELERATOR_SHARE, HOST_BUDGET, default_budget
from interp.models.language_model import LanguageModel
from interp.models.lengths import Lengths
from interp.models.loading import SMALL_FILES, chosen_device, find, named_dtype
from interp.models.prefixes import longest
from interp.models.quiet import quiet
from interp.models.refusals import AGAIN, refusal
from interp.models.runs import NamedHook
from interp.models.self_check.basis import check_ids

SAID = (" and", " it", "z")
"""What an outline answers: hardly a true answer begins so, and most tokenizers have it whole."""
FILLER = 0.02
"""Bound of the random numbers in a block that is timed."""


@dataclass
class Prefix:
    """Keys and values of some tokens, by their number alone."""

    length: int

    def get_seq_length(self) -> int:
        """How many tokens they are of."""
        return self.length


class Outline(LanguageModel):
    """A model without weights, which counts.

    Attributes:
        shape: The model's sizes.
        passes: The runs so far.
        work_bytes: Most memory that one of them would take, by the estimate that cuts batches.
    """

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        name: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        """Wrap a configuration. No weight is made.

        Args:
            config: Of the Hugging Face model.
            tokenizer: Its tokenizer.
            name: What the user called it.
            dtype: Number format that the model would have.
            device: Where the model would be.
        """
        with (
            refusal(f"{name}: config.json does not describe a model", AGAIN),
            init_empty_weights(include_buffers=False),
        ):
            hf_model: Any = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), dtype=dtype, attn_implementation="eager"
            )
        self.name, self.tokenizer, self.config = name, tokenizer, config
        self.folder: Path | None = None
        hf_model.tie_weights()
        self.shape = ModelShape.of(hf_model, config)
        self.lengths, self.check, self.ends = Lengths.of(hf_model), None, []
        self.weight_hash, self.parameters = "", {}
        self.number, self.place = dtype, device or torch.device("cpu")
        self.bridge = SimpleNamespace(
            blocks=[None] * self.shape.n_layers, cfg=SimpleNamespace(d_model=1), hooks=_no_hooks
        )
        self.passes: list[Pass] = []
        self.work_bytes = 0
        self._said = _some_token(tokenizer)

    # -- what the model is -----------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """Number format that the model would have."""
        return self.number

    @property
    def device(self) -> torch.device:
        """Where states of width 1 are."""
        return torch.device("cpu")

    @property
    def row_sizes(self) -> RowSizes:
        """The model's own: states of width 1 are cut into the batches that it would run."""
        return self.shape

    def budget(self) -> int:
        """That of the place where the model would be, with the weights there."""
        budget = default_budget(self.place)
        if self.place.type == "cpu":
            return budget
        weights = self.shape.parameters * self.dtype.itemsize
        return max(HOST_BUDGET, int(budget - weights * ACCELERATOR_SHARE))

    @property
    def has_prefix_cache(self) -> bool:
        """Taken for granted: only numbers could tell."""
        return True

    @property
    def has_entry(self) -> bool:
        """Taken for granted: only numbers could tell."""
        return True

    @property
    def pads_left(self) -> bool:
        """Taken for granted: only numbers could tell."""
        return True

    def shares(self, length: int) -> bool:
        """Taken for granted: only numbers could tell."""
        return True

    def current_hash(self) -> str:
        """No weights, no hash."""
        return self.weight_hash

    def embedding_std(self) -> float:
        """1, after the run that measures it."""
        if not hasattr(self, "_std"):
            self.capture(check_ids(self), [self.embedding_hook])
            self._std = 1.0
        return self._std

    # -- runs ------------------------------------------------------------------------------------

    def note(self, run: Pass) -> None:
        """Count a run, and the memory that it would take."""
        kept = -(-run.kept // max(1, run.rows))
        size = self.row_bytes(run.tokens, run.context, kept)
        if run.back_blocks:
            through = run.row_blocks // max(1, run.rows)
            size += self.step_bytes(self.n_layers - through) * run.tokens
        self.work_bytes = max(self.work_bytes, run.rows * size)
        self.passes.append(run)

    def _whole(self, rows: int, tokens: int, context: int) -> Pass:
        """A run through all blocks, with the logits of the last position of each row."""
        return Pass(rows, tokens, context, rows * self.n_layers, rows, self.n_layers)

    def logits(
        self,
        ids: Tensor,
        *,
        mask: Tensor | None = None,
        keep: int | Tensor = 0,
        hooks: Sequence[NamedHook] = (),
        prefix: Any = None,
        joins: Sequence[tuple[int, Tensor]] = (),
        only: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """As a model's, of width 1: a score may hang on every state that a hook sees."""
        tokens, before = ids.shape[1], 0 if prefix is None else prefix.get_seq_length()
        stream, row_blocks, back = self._through(ids, hooks, joins, self.n_layers)
        if isinstance(keep, int):
            keep = torch.arange(tokens - keep if keep else 0, tokens)
        kept = stream[only].unsqueeze(0) if only is not None else stream[:, keep]
        places, first = kept.shape[0] * kept.shape[1], joins[0][0] if joins else 0
        whole = before + tokens
        self.note(Pass(len(stream), tokens, whole, row_blocks, places, self.n_layers - first, back))
        return kept

    def _through(
        self,
        ids: Tensor,
        hooks: Sequence[NamedHook],
        joins: Sequence[tuple[int, Tensor]],
        stop: int,
    ) -> tuple[Tensor, int, int]:
        """A stream of width 1 behind a block, and the rows that went through each, summed: all,
        and those with gradients.
        """
        by_block: dict[int, list[NamedHook]] = defaultdict(list)
        stream = torch.zeros(*ids.shape, 1)
        for name, hook in hooks:
            if name.startswith("blocks."):
                by_block[int(name.split(".")[1])].append((name, hook))
            elif name == self.embedding_hook:
                stream = _seen(stream, hook)
        joining, first = dict(joins), joins[0][0] if joins else 0
        row_blocks = back = 0
        for block in range(first, stop):
            if block in joining:
                more = joining[block]
                stream = more if block == first else torch.cat([stream, more])
            for _, hook in by_block.get(block, ()):
                # The stream depends on what the hook sees, and keeps its value.
                stream = stream + 0 * _seen(stream, hook)
            row_blocks += len(stream)
            back += len(stream) if stream.requires_grad else 0
        return stream, row_blocks, back

    def watch(
        self,
        ids: Tensor,
        hooks: Sequence[NamedHook],
        *,
        mask: Tensor | None = None,
        entry: tuple[int, Tensor] | None = None,
    ) -> None:
        """As a model's: blocks behind the last one with a hook are not run."""
        stop = 1 + max(
            (int(name.split(".")[1]) for name, _ in hooks if name.startswith("blocks.")), default=0
        )
        with torch.no_grad():
            stream, row_blocks, _ = self._through(ids, hooks, [entry] if entry else (), stop)
        rows, tokens = ids.shape
        kept = len(stream) if stop == self.n_layers else 0
        self.note(Pass(rows, tokens, tokens, row_blocks, kept, stop))

    def prefix_cache(
        self,
        ids: Tensor,
        hooks: Sequence[NamedHook] = (),
        cache: Any = None,
        *,
        mask: Tensor | None = None,
    ) -> Any:
        """The number of tokens of which keys and values would be kept."""
        rows, tokens = ids.shape
        context = tokens + (0 if cache is None else cache.get_seq_length())
        self.note(self._whole(rows, tokens, context))
        return Prefix(context)

    def prefixes(self, texts: Sequence[Sequence[int]]) -> tuple[Any, Tensor]:
        """As a model's: a text with which another begins is not run."""
        kept, _ = longest([tuple(text) for text in texts])
        cache = self._padded_cache(kept)
        return cache, self._pad_left(texts)[1]

    def rows_of_cache(self, cache: Any, rows: Tensor) -> Any:
        """Rows cost nothing here."""
        return cache

    def _continued(
        self, prompts: Sequence[Sequence[int]], n_tokens: int, prefix: Any = None, **options: Any
    ) -> Tensor:
        """Prompts continued to the longest: one run of them, and one for each further token."""
        width, rows = max(map(len, prompts)), len(prompts)
        before = 0 if prefix is None else prefix.get_seq_length()
        self.note(self._whole(rows, width - before, width))
        for step in range(1, n_tokens):
            self.note(self._whole(rows, 1, width + step))
        return torch.full((rows, width + n_tokens), self._said)

    # -- blocks to time --------------------------------------------------------------------------

    def short_model(self, blocks: int, entries: int) -> LanguageModel:
        """A model of a few blocks of the outline's own shape, with random numbers and a vocabulary
        of at most so many embedding entries; on the device that the outline was given.

        Raises:
            ModelError: The Hugging Face class makes no such model.
        """
        config = copy.deepcopy(self.config)
        text = config.get_text_config()
        text.num_hidden_layers = blocks
        for name in ("layer_types", "attention_layers"):
            if isinstance(kinds := getattr(text, name, None), list):
                setattr(text, name, kinds[:blocks])
        text.vocab_size = max(16, min(self.shape.vocabulary, entries // self.shape.d_model))
        text.pad_token_id = None
        what = f"{self.name}: a few blocks cannot be made, to be timed"
        with quiet(), refusal(what, "leave the time out"), torch.random.fork_rng():
            torch.manual_seed(0)
            with init_empty_weights(include_buffers=False):
                hf_model: Any = AutoModelForCausalLM.from_config(
                    config, dtype=self.number, attn_implementation="eager"
                )
            _fill(hf_model, self.number)
            hf_model.tie_weights()
            hf_model.to(self.place)
            return LanguageModel(hf_model, self.tokenizer, self.name, check=False)


@contextmanager
def _no_hooks(fwd_hooks: Sequence[NamedHook] = ()) -> Iterator[None]:
    yield


def _seen(stream: Tensor, hook: Any) -> Tensor:
    """What a hook makes of a state, which is its own copy."""
    value = stream.clone()
    changed = hook(value, None)
    return value if changed is None else changed


def _some_token(tokenizer: Any) -> int:
    """A token that an outline says."""
    for text in SAID:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids and tokenizer.decode(ids[-1:], skip_special_tokens=True).strip():
            return int(ids[-1])
    return 0


def _fill(hf_model: nn.Module, dtype: torch.dtype) -> None:
    """Put random numbers where a model has none."""
    for module in hf_model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            numbers = torch.empty(parameter.shape, dtype=dtype).uniform_(-FILLER, FILLER)
            module.register_parameter(name, nn.Parameter(numbers, requires_grad=False))


def outline(name: str, *, device: str = "cpu", dtype: str = "float32") -> Outline:
    """The outline of a model: `config.json` and the tokenizer are read, and no weight is.

    Args:
        name: As for `interp.models.loading.load`; of a folder, these files are enough. Of a model
            on the hub only small files are downloaded.
        device: Where the model would be.
        dtype: Number format that it would have.

    Raises:
        ModelError: There is no such model, or its files do not describe one.
    """
    number, place = named_dtype(dtype), find(name)
    with quiet():
        folder = Path(place)
        if not folder.is_dir():
            with refusal(f"cannot get the files of {name!r} from the hub", AGAIN):
                folder = Path(snapshot_download(place, allow_patterns=SMALL_FILES))
        with refusal(f"{folder}: config.json does not describe a model", AGAIN):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with refusal(f"{folder}: its tokenizer cannot be read", AGAIN):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return Outline(config, tokenizer, name, dtype=number, device=chosen_device(device))
