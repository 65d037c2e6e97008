"""A language model as a TransformerLens bridge: token ids in, logits and hook values out.

This module, `interp.models.loading` (which loads one), `interp.models.checkpoint` (which looks at
its files) and `interp.models.quiet` are the only ones that import TransformerLens or Hugging Face's
transformers. Everything else sees `LanguageModel`, with parameters by their Hugging Face names.

Weights stay those of the Hugging Face model (no folding, no centring: TransformerLens's
compatibility mode is never switched on), attention is the eager one, and the model is in evaluation
mode without gradients. At load a self-check verifies, with numbers, that the bridge gives the
Hugging Face logits, that ``resid_pre + attn_out + mlp_out = resid_post``, and that ``key @ W_out (+
bias)`` is the MLP output; a model that fails is refused, since tracing and editing it would be
silently wrong.

Importing this module takes seconds (TransformerLens), so command-line code imports it late.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import AutoModelForCausalLM, DynamicCache, GenerationConfig, LogitsProcessorList

from interp.errors import ModelError, TooLongError
from interp.models.bridge_repairs import repair
from interp.models.checkpoint import told
from interp.models.finite import require_finite
from interp.models.folder import GENERATION, copy_companions, replaced
from interp.models.identity import model_hash, settings_digest
from interp.models.lengths import Lengths
from interp.models.prefixes import longest
from interp.models.quiet import quiet
from interp.models.self_check import (
    SelfCheck,
    check_device,
    check_ids,
    check_long,
    check_rows,
    foreign_errors,
    self_check,
    tolerance,
)
from interp.rules.joining import join, without_last_space
from interp.rules.scripts import checked

EMBEDDED_TOGETHER = 128
NO_LIMIT = 2**31 - 1
"""Context length of models without one."""
AFTER_SPACED, AFTER_UNSPACED = ("a", "0", ".", ")", "x", "\n"), ("\n", "(", "[", "a", "0", "。")
"""Signs that an answer is tokenised behind, with a space before it and without."""
PARTS = {
    "q": "attn",
    "k": "attn",
    "v": "attn",
    "o": "attn",
    "in": "mlp",
    "gate": "mlp",
    "out": "mlp",
}
"""Linear maps of a block by our names, and the component that each belongs to."""

Hook = Callable[[Tensor, Any], Tensor | None]
NamedHook = tuple[str, Hook]


@dataclass(frozen=True)
class Encoding:
    """Token ids of a text, with the character range of each token (special tokens: empty
    ranges).
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class DownProjection:
    """The second MLP matrix of a block, the place that locate-and-edit methods write.

    `transposed` tells the orientation of `weight`: False for `torch.nn.Linear`, (d_model, d_mlp);
    True for GPT-2's Conv1D, (d_mlp, d_model). It is read off the module's type, never guessed from
    the shape.
    """

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    transposed: bool

    def orient(self, update: Float[Tensor, "d_model d_mlp"]) -> Tensor:
        """Give an update of shape (d_model, d_mlp) the orientation of the parameter."""
        return update.T if self.transposed else update


@dataclass(frozen=True)
class Projection:
    """A linear map of a block, of which a whole parameter is the matrix.

    `transposed` is read off the module's type as in `DownProjection`.
    """

    name: str
    weight: nn.Parameter
    transposed: bool
    layer: int
    part: str
    """One of `PARTS`."""

    def orient(self, update: Float[Tensor, "d_out d_in"]) -> Tensor:
        """Give an update of shape (d_out, d_in) the orientation of the parameter."""
        return update.T if self.transposed else update


class _RepeatedPrefix(DynamicCache):
    """Keys and values of a prefix that runs continue without changing them.

    A run may have several times as many rows as the prefix, and more in later blocks than in
    earlier ones: the prefix's rows are repeated to fit.
    """

    def __init__(self, prefix: DynamicCache) -> None:
        super().__init__()
        self.layers, self.layer_class_to_replicate = prefix.layers, None

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """The prefix's keys and values followed by the run's."""
        layer: Any = self.layers[layer_idx]
        times = (len(key_states) // len(layer.keys), 1, 1, 1)
        return (
            torch.cat([layer.keys.repeat(times), key_states], dim=-2),
            torch.cat([layer.values.repeat(times), value_states], dim=-2),
        )


class LanguageModel:
    """A causal language model with named hooks and named parameters.

    Attributes:
        name: What the user called it.
        weight_hash: The model's identity as loaded, 16 hex digits: it changes with everything that
            changes its numbers, that is parameters and persistent buffers (values and number
            format), configuration, tokenizer and the tokens that end a text; not with names,
            places, padding or sampling settings. See `interp.models.identity`.
        folder: Where it was loaded from, with all that came beside the weights; None for a model
            made in memory.
        parameters: Hugging Face parameter name → live parameter.
        check: The self-check's numbers; None if it was skipped.
        lengths: Lengths at which the model changes what it does.
        ends: Tokens that end a text.
    """

    def __init__(
        self,
        hf_model: Any,
        tokenizer: Any,
        name: str,
        *,
        check: bool = True,
        folder: Path | None = None,
    ) -> None:
        """Wrap a Hugging Face model (it is modified in place, as TransformerLens bridges do).

        Raises:
            ModelError: The weights are quantised, the tokenizer has no offsets, or the self-check
                fails.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"{name}: its tokenizer gives no character offsets; a fast tokenizer"
                " (tokenizer.json) is needed"
            )
        self.parameters: dict[str, nn.Parameter] = dict(hf_model.named_parameters())
        if bad := [
            n for n, p in self.parameters.items() if not p.is_floating_point() or p.itemsize < 2
        ]:
            raise ModelError(
                f"{name}: {len(bad)} quantised parameters (such as {bad[0]}); load the model"
                " unquantised, for example in bfloat16"
            )
        self.name, self.tokenizer, self.config = name, tokenizer, hf_model.config
        self.folder = folder
        self._buffers = _persistent_buffers(hf_model)
        # As they came, for export: both are changed below.
        self._generation, self._own_config = copy.deepcopy(
            (hf_model.generation_config, hf_model.config)
        )
        self.ends = _end_tokens(hf_model.generation_config, tokenizer)
        self._settings = settings_digest(self.config, tokenizer, self.ends)
        self.weight_hash = self.current_hash()
        hf_model.eval().requires_grad_(False)
        # A checkpoint's own settings (a repetition penalty, say) would make "greedy" something
        # else.
        hf_model.generation_config = GenerationConfig(eos_token_id=self.ends or None)
        self.lengths = Lengths.of(hf_model)
        self._long: dict[int, bool] = {}
        architecture = type(hf_model).__name__
        apart = 0.0
        expected: Tensor | None = None
        with (
            told(f"{name}: {architecture} cannot run a row of tokens", "use another model"),
            foreign_errors(name),
        ):
            ids = check_rows(self)
            if check:
                with torch.no_grad():
                    expected = hf_model(ids).logits
                assert expected is not None
                require_finite(expected, "a first run", self)
        if expected is not None:
            apart = check_device(self, hf_model, ids)
        # from_config leaves this empty, and the bridge looks the architecture up there.
        hf_model.config.architectures = [architecture]
        self._names = {id(p): n for n, p in self.parameters.items()}
        with told(f"{name}: TransformerLens cannot wrap {architecture}", "use another model"):
            self.bridge: Any = build_bridge_from_module(
                hf_model,
                architecture,
                hf_config=hf_model.config,
                tokenizer=None,
                post_adapter_hook=lambda adapter: repair(adapter, self.config.get_text_config()),
            )
        self._hf_model: Any = hf_model
        self.check: SelfCheck | None = None
        if expected is not None:
            self.check = replace(self_check(self, ids, expected), device=apart)

    # -- sizes ------------------------------------------------------------------------------------

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.bridge.blocks)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.bridge.cfg.d_model)

    @property
    def context_length(self) -> int:
        """Largest number of tokens in a row that the model was made for; `NO_LIMIT` if it has
        none (ALiBi, Mamba).
        """
        config = self.config.get_text_config()
        limits = [
            getattr(config, name, None)
            for name in ("max_position_embeddings", "n_positions", "max_seq_len")
        ]
        return next(
            (int(limit) for limit in limits if isinstance(limit, int) and limit > 0), NO_LIMIT
        )

    def need_room(self, tokens: int, what: str) -> None:
        """See that a row of so many tokens fits into the model's positions.

        Raises:
            TooLongError: It does not.
        """
        if tokens > self.context_length:
            raise TooLongError(
                f"{what} takes {tokens} tokens, {self.name} was made for {self.context_length}; use"
                " a shorter text or a model with a longer context"
            )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' type."""
        return next(iter(self.parameters.values())).dtype

    @property
    def has_prefix_cache(self) -> bool:
        """Whether keys and values of a common prefix can be computed once (verified at load)."""
        return self.check is not None and self.check.prefix_cache <= tolerance(self.dtype)

    @property
    def has_entry(self) -> bool:
        """Whether rows can join a batch at later blocks with given states (verified at load)."""
        return self.check is not None and self.check.entry <= tolerance(self.dtype)

    @property
    def pads_left(self) -> bool:
        """Whether texts of different length may be padded on the left and run together (verified
        at load).
        """
        return self.check is None or self.check.left_padding <= tolerance(self.dtype)

    def shares(self, length: int) -> bool:
        """Whether keys and values of a prefix hold for texts of so many tokens, prefix included.

        Verified at load for short texts. Beyond a length at which the model changes what it does
        (`interp.models.lengths`) it is verified when it is first asked for, by runs that are little
        longer than that length.
        """
        if not self.has_prefix_cache:
            return False
        switches = self.lengths.switches(length)
        if not switches:
            return True
        if switches[-1] not in self._long:
            self._long[switches[-1]] = check_long(self, switches[-1])
        return self._long[switches[-1]]

    def takes_fast_route(self, length: int) -> bool:
        """Whether the fast route of patching holds for texts of so many tokens."""
        return self.has_entry and self.shares(length)

    def current_hash(self) -> str:
        """The identity with the parameters as they are now; `weight_hash` unless an edit is in
        force.
        """
        return model_hash(self._settings, {**self._buffers, **self.parameters})

    # -- text -------------------------------------------------------------------------------------

    def encode(self, text: str) -> Encoding:
        """Token ids of a prompt as the model expects it (with a BOS token where its tokenizer adds
        one).

        Neither the last space of a prompt nor a token that the tokenizer appends (EOS) is among
        them: what continues the prompt begins there (see `interp.rules.joining`). A BOS that the
        text begins with is not added once more.

        Raises:
            TextError: The text is no Unicode text.
        """
        got = self.tokenizer(
            without_last_space(checked(text, "a text")), return_offsets_mapping=True
        )
        ids, offsets = got["input_ids"], got["offset_mapping"]
        before, after = self._added
        end = len(ids) - after
        first = (
            before
            if before and ids[:before] == ids[before : 2 * before] and 2 * before <= end
            else 0
        )
        return Encoding(
            text, tuple(ids[first:end]), tuple((int(a), int(b)) for a, b in offsets[first:end])
        )

    def encode_continuation(
        self, text: str, prompt: str | None = None, space: bool | None = None
    ) -> tuple[int, ...]:
        """Token ids of an answer as it continues a prompt (see `interp.rules.joining`), no special
        tokens.

        They are those of prompt and answer as one text. Where a token of that text would reach over
        their border, they are those that the answer has behind another sign, so that the prompt's
        tokens stay as they are.

        Args:
            text: The answer.
            prompt: The prompt. Default: any that ends in a letter of a script with spaces.
            space: Whether a space is between them. Default: as `interp.rules.joining` decides.

        Raises:
            ModelError: The tokenizer has no border there, whatever stands before, or the answer
                holds the text of a special token.
            TextError: The answer is blank or no Unicode text.
        """
        joined = join("a" if prompt is None else prompt, text, space)
        if typed := self.special_texts(joined.answer):
            raise ModelError(
                f"the answer {text!r} holds {typed[0]!r}, which is a special token of {self.name};"
                " leave it out"
            )
        if prompt is not None:
            head, whole = self.encode(joined.prompt).ids, self.encode(joined.text).ids
            if whole[: len(head)] == head and len(whole) > len(head):
                return whole[len(head) :]
        return self._in_a_text(joined.answer)

    def _in_a_text(self, answer: str) -> tuple[int, ...]:
        """Token ids of an answer that stands, with its leading space, behind some sign that it does
        not merge with.

        They are cut off an encoding that starts with that sign, so that tokenizers which treat the
        start of a text specially (SentencePiece) give what they would in the middle of a sentence.
        """
        spaced = answer[0].isspace()
        tried = []
        for sign in AFTER_SPACED if spaced else AFTER_UNSPACED:
            head, whole = (
                self.tokenizer(t, add_special_tokens=False)["input_ids"]
                for t in (sign, sign + answer)
            )
            if head and whole[: len(head)] == head and len(whole) > len(head):
                return tuple(whole[len(head) :])
            tried.append(whole)
        raise ModelError(
            f"{self.name}: cannot find where {answer.strip()!r} starts"
            f" {'after' if spaced else 'without'} a space; got tokens {tried[0]}"
        )

    @cached_property
    def _added(self) -> tuple[int, int]:
        """How many tokens the tokenizer puts before and behind every text."""
        core, whole = (
            self.tokenizer("a", add_special_tokens=special)["input_ids"]
            for special in (False, True)
        )
        for before in range(len(whole) - len(core) + 1):
            if whole[before : before + len(core)] == core:
                return before, len(whole) - len(core) - before
        return 0, 0

    def special_texts(self, text: str) -> list[str]:
        """Special tokens of the tokenizer that are written out in a text, in the order of the
        vocabulary.
        """
        return [name for name in self._special_texts if name in text]

    @cached_property
    def _special_texts(self) -> list[str]:
        unknown = getattr(self.tokenizer, "unk_token", None)
        tokens = sorted(self.tokenizer.added_tokens_decoder.items())
        names = [
            str(token.content)
            for _, token in tokens
            if token.special and str(token.content) != unknown
        ]
        # A sign alone or a line break may be both: some tokenizers end texts with one.
        return [name for name in names if len(name.strip()) > 1]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, exactly (no clean-up of spaces), special tokens left out."""
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def decode_continuation(self, ids: Iterable[int]) -> str:
        """Text of token ids as they continue a prompt: some tokenizers leave out a space at the
        start of a text.
        """
        head = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        before, whole = self.decode(head), self.decode([*head, *ids])
        return whole[len(before) :] if whole.startswith(before) else self.decode(ids)

    def token_texts(self, encoding: Encoding) -> list[str]:
        """What each token covers in the text; special tokens by their name."""
        names = self.tokenizer.convert_ids_to_tokens(list(encoding.ids))
        return [
            encoding.text[a:b] or str(name)
            for (a, b), name in zip(encoding.offsets, names, strict=True)
        ]

    # -- runs -------------------------------------------------------------------------------------

    def logits(
        self,
        ids: Int[Tensor, "batch pos"],
        *,
        mask: Int[Tensor, "batch all_pos"] | None = None,
        keep: int | Int[Tensor, " kept"] = 0,
        hooks: Sequence[NamedHook] = (),
        prefix: DynamicCache | None = None,
        joins: Sequence[tuple[int, Float[Tensor, "_ pos d_model"]]] = (),
        only: tuple[Int[Tensor, " place"], Int[Tensor, " place"]] | None = None,
    ) -> Float[Tensor, "row kept d_vocab"]:
        """Run the model.

        Args:
            ids: Token ids; pad on the right and give `mask`.
            mask: 1 for tokens, 0 for padding; with a prefix, of the prefix's tokens and then those
                of `ids`.
            keep: Compute logits of the last `keep` positions only (0: all), or of these positions.
            hooks: (hook name, function) pairs, called in order with (value, hook); what one returns
                replaces the value.
            prefix: Keys and values of tokens before `ids` (see `prefix_cache`). A batch that is a
                multiple of theirs repeats them; they are left as they are.
            joins: (block, residual streams before it), blocks ascending: a batch that grows. Its
                first rows enter at the first of these blocks and others join at later ones, after
                those that are there. Give `ids` in one row, for its length alone (or in as many as
                `mask` has); hooks on earlier blocks see nothing meaningful.
            only: Rows and positions whose logits are computed, one beside the other: the result has
                the shape (1, place, d_vocab). Where rows differ in the positions that matter, this
                saves most of the unembedding.
        """
        if only is not None:
            hooks = [*hooks, ("unembed.hook_in", lambda value, hook: value[only].unsqueeze(0))]
        if isinstance(keep, int) and keep:
            # As indices, not as a slice: a slice is not contiguous, and the unembedding then runs
            # once per row.
            keep = torch.arange(ids.shape[1] - keep, ids.shape[1], device=ids.device)
        options: dict[str, Any] = {"attention_mask": mask, "logits_to_keep": keep}
        self._prepare_run(ids, mask, prefix)
        if prefix is not None:
            options |= {"past_key_values": _RepeatedPrefix(prefix), "use_cache": True}
            if mask is not None:
                options["position_ids"] = _positions(mask)[:, -ids.shape[1] :]
        if not joins:
            return self.bridge.run_with_hooks(ids, fwd_hooks=list(hooks), **options)
        first, state = joins[0]
        grow = [(f"blocks.{first}.hook_resid_pre", lambda value, hook: state)]
        for block, more in joins[1:]:
            grow.append(
                (
                    f"blocks.{block}.hook_resid_pre",
                    lambda value, hook, more=more: torch.cat([value, more]),
                )
            )
        with self._without_blocks(first):
            return self.bridge.run_with_hooks(ids, fwd_hooks=[*grow, *hooks], **options)

    def _prepare_run(
        self, ids: Tensor, mask: Tensor | None, prefix: DynamicCache | None = None
    ) -> None:
        """Leave nothing of earlier runs, and refuse a batch whose rows the model would encode by
        the longest of them.

        Raises:
            ModelError: A row, or the prefix alone, has other rotary frequencies than the whole.
        """
        self.lengths.forget()
        before = 0 if prefix is None else prefix.get_seq_length()
        width = before + ids.shape[1]
        if (kind := self.lengths.kind(width)) == 0:
            return
        rows = [width] if mask is None else mask.sum(1).tolist()
        if before or any(self.lengths.kind(row) != kind for row in rows):
            raise ModelError(
                f"{self.name} encodes positions differently in texts of more than"
                f" {self.lengths.rope} tokens, so texts of {min([*rows, before or width])} and"
                f" {width} tokens cannot share a run; use shorter ones"
            )

    @contextmanager
    def _without_blocks(self, n: int) -> Iterator[None]:
        """The first `n` blocks hand their input on. The bridge's own start_at_layer runs them
        all.
        """
        blocks = [self.bridge.blocks[layer].original_component for layer in range(n)]
        forwards = [block.forward for block in blocks]

        def hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return hidden_states

        for block in blocks:
            block.forward = hand_on
        try:
            yield
        finally:
            for block, forward in zip(blocks, forwards, strict=True):
                block.forward = forward

    def capture(
        self,
        ids: Int[Tensor, "batch pos"],
        names: Sequence[str],
        *,
        mask: Int[Tensor, "batch pos"] | None = None,
    ) -> dict[str, Float[Tensor, "batch pos d"]]:
        """Values at hooks in one run without gradients, up to the last block that is asked for."""
        values: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any, name: str) -> None:
            values[name] = value.detach().clone()

        self.watch(
            ids,
            [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names],
            mask=mask,
        )
        return values

    def watch(
        self,
        ids: Int[Tensor, "batch pos"],
        hooks: Sequence[NamedHook],
        *,
        mask: Int[Tensor, "batch pos"] | None = None,
    ) -> None:
        """Run hooks for what they see, without gradients; blocks behind the last one with a hook
        are not run.
        """
        self._prepare_run(ids, mask)
        last = max(
            (int(name.split(".")[1]) for name, _ in hooks if name.startswith("blocks.")), default=0
        )
        with torch.no_grad():
            self.bridge.run_with_hooks(
                ids,
                fwd_hooks=list(hooks),
                attention_mask=mask,
                stop_at_layer=last + 1,
                logits_to_keep=1,
            )

    def prefix_cache(
        self,
        ids: Int[Tensor, "batch pos"],
        hooks: Sequence[NamedHook] = (),
        cache: DynamicCache | None = None,
        *,
        mask: Int[Tensor, "batch pos"] | None = None,
    ) -> DynamicCache:
        """Keys and values of `ids`, for runs that continue them; a given cache is continued, and
        changed.

        Prefixes of different length are padded on the *left*, with `mask`, so that what continues
        them is in line.
        """
        cache = DynamicCache(config=self.config) if cache is None else cache
        self._prepare_run(ids, mask, cache)
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if mask is not None:
            options |= {"attention_mask": mask, "position_ids": _positions(mask)}
        with torch.no_grad():
            self.bridge.run_with_hooks(ids, fwd_hooks=list(hooks), logits_to_keep=1, **options)
        return cache

    def prefixes(
        self, texts: Sequence[Sequence[int]]
    ) -> tuple[DynamicCache, Int[Tensor, "text pos"]]:
        """Keys and values of texts of different length, padded on the left, and the mask of real
        tokens.

        A text with which another begins is not run: its keys and values are the first of that
        other's.
        """
        kept, within = longest([tuple(text) for text in texts])
        cache = self._padded_cache(kept)
        _, mask = self._pad_left(texts)
        if len(kept) == len(texts):
            return cache, mask
        layers: list[Any] = cache.layers
        if not all(
            layer.is_initialized and layer.keys.shape[-2] == mask.shape[1] for layer in layers
        ):
            # A layer that looks back a few tokens only has forgotten those that a shorter text
            # still sees.
            return self._padded_cache(texts), mask
        shared = self.rows_of_cache(cache, torch.tensor(within, device=self.device))
        ahead = [len(kept[i]) - len(text) for i, text in zip(within, texts, strict=True)]
        at = torch.arange(mask.shape[1], device=self.device) - torch.tensor(
            ahead, device=self.device
        ).unsqueeze(1)
        at = at.clamp_min(0)[:, None, :, None]  # what comes before a text is padding
        layers = shared.layers
        for layer in layers:
            layer.keys = layer.keys.gather(2, at.expand_as(layer.keys))
            layer.values = layer.values.gather(2, at.expand_as(layer.values))
        return shared, mask

    def _padded_cache(self, texts: Sequence[Sequence[int]]) -> DynamicCache:
        ids, mask = self._pad_left(texts)
        return self.prefix_cache(ids, mask=mask)

    def _pad_left(
        self, texts: Sequence[Sequence[int]]
    ) -> tuple[Int[Tensor, "text pos"], Int[Tensor, "text pos"]]:
        width = max(len(text) for text in texts)
        ids = [[*[0] * (width - len(text)), *text] for text in texts]
        mask = [[0] * (width - len(text)) + [1] * len(text) for text in texts]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def rows_of_cache(self, cache: DynamicCache, rows: Int[Tensor, " row"]) -> DynamicCache:
        """Keys and values of some rows of a batch; the given cache is left as it is."""
        chosen = copy.copy(cache)
        chosen.layers = [copy.copy(layer) for layer in cache.layers]
        chosen.batch_select_indices(rows)
        return chosen

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: int,
        *,
        hooks: Sequence[NamedHook] = (),
        prefix: DynamicCache | None = None,
    ) -> list[tuple[int, ...]]:
        """Greedy continuations of exactly up to `n_tokens` tokens each; ends at the model's
        end-of-text token.

        Hooks act in the pass over the prompts and in no later one. Prompts are padded on the left,
        so the last token of each is in the last column there. What may not be padded together
        (`groups`) runs apart.

        Args:
            prompts: Token ids; with a prefix, with the tokens of the prefix, and at least one more.
            n_tokens: Largest number of tokens of an answer.
            hooks: (hook name, function) pairs.
            prefix: Keys and values of one row of tokens that all prompts begin with (see
                `prefix_cache`); left as it is. Prompts of different length then need a model
                without sliding windows: padding stands behind the prefix, where it counts as
                distance.

        Raises:
            NotFiniteError: A prediction is NaN or infinite, so that no token is the most likely
                one.
            ModelError: There are hooks, and the prompts cannot run together.
        """
        groups = self.groups([len(prompt) for prompt in prompts], n_tokens)
        if hooks and len(groups) > 1:
            raise ModelError(
                f"{self.name}: prompts with hooks run together, and these cannot (see `groups`)"
            )
        out: list[tuple[int, ...]] = [()] * len(prompts)
        for rows in groups:
            some = [prompts[row] for row in rows]
            # Without keys and values that are kept, each pass is one over the prompt, too.
            whole = self._grows_past(max(map(len, some)) + n_tokens)
            acting = [(name, hook if whole else _once(hook)) for name, hook in hooks]
            with self.bridge.hooks(fwd_hooks=acting):
                answers = self._generate(some, n_tokens, prefix, do_sample=False)
            for row, answer in zip(rows, answers, strict=True):
                out[row] = answer
        return out

    def groups(self, lengths: Sequence[int], n_tokens: int) -> list[list[int]]:
        """Which of some prompts, by their lengths, may be continued together, in the order given.

        All of them, if the model can be padded on the left at such lengths; else those of equal
        length. Prompts that grow past a length at which positions are encoded anew are apart from
        the others.
        """
        grows = [self._grows_past(length + n_tokens) for length in lengths]
        # Those that do not grow so far, padded to the longest of them.
        width = (
            max((n for n, more in zip(lengths, grows, strict=True) if not more), default=0)
            + n_tokens
        )
        windows = self.check is not None and bool(self.lengths.switches(width))
        padded = self.pads_left and (len(set(lengths)) == 1 or not windows or self.shares(width))
        found: dict[tuple[bool, int], list[int]] = {}
        for row, (length, more) in enumerate(zip(lengths, grows, strict=True)):
            found.setdefault((more, length if more or not padded else 0), []).append(row)
        return list(found.values())

    def _grows_past(self, length: int) -> bool:
        return self.lengths.kind(length) != 0

    def sample(
        self, prompt: Sequence[int], n_tokens: int, *, top_k: int, seed: int
    ) -> tuple[int, ...]:
        """One seeded random continuation; the global random state is left as it was.

        Raises:
            NotFiniteError: A prediction is NaN or infinite.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self._generate(
                [prompt], n_tokens, do_sample=True, top_k=top_k, temperature=1.0, top_p=1.0
            )[0]

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: int,
        prefix: DynamicCache | None = None,
        **options: Any,
    ) -> list[tuple[int, ...]]:
        width = max(len(p) for p in prompts)
        out = self._continued(prompts, n_tokens, prefix, **options)
        return [_until(row, self.ends) for row in out[:, width:].tolist()]

    def continued_logits(
        self, prompts: Sequence[Sequence[int]], n_tokens: int
    ) -> tuple[Float[Tensor, "row d_vocab"], ...]:
        """Logits of each step in which prompts are continued greedily together, padded on the
        left.
        """
        settings: dict[str, Any] = {
            "do_sample": False,
            "output_logits": True,
            "return_dict_in_generate": True,
        }
        return self._continued(prompts, n_tokens, **settings).logits

    def _continued(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: int,
        prefix: DynamicCache | None = None,
        **options: Any,
    ) -> Any:
        """What Hugging Face's generation returns; prompts of one group (see `groups`)."""
        pad = (
            self.tokenizer.pad_token_id
            if self.tokenizer.pad_token_id is not None
            else self.tokenizer.eos_token_id or 0
        )
        width = max(len(p) for p in prompts)
        self.lengths.forget()
        # Generation appends on the right, so prompts are padded on the left; the mask hides the
        # padding.
        n = 0
        if prefix is not None:
            if self._grows_past(width + n_tokens):
                raise ModelError(
                    f"{self.name}: no prefix holds for texts of more than {self.lengths.rope}"
                    " tokens"
                )
            n = prefix.get_seq_length()
            rows = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
            options["past_key_values"] = self.rows_of_cache(prefix, rows)
        ids = torch.tensor(
            [[*p[:n], *[pad] * (width - len(p)), *p[n:]] for p in prompts], device=self.device
        )
        mask = torch.tensor(
            [[1] * n + [0] * (width - len(p)) + [1] * (len(p) - n) for p in prompts],
            device=self.device,
        )
        # Keys of the beginning are not those of a text that has grown past such a length.
        options["use_cache"] = not self._grows_past(width + n_tokens)

        def finite(ids: Tensor, scores: Tensor) -> Tensor:
            require_finite(scores, "a prediction", self)
            return scores

        with torch.no_grad():
            return self._hf_model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=n_tokens,
                pad_token_id=pad,
                logits_processor=LogitsProcessorList([finite]),
                **options,
            )

    def row_bytes(self, tokens: int, context: int, kept: int) -> int:
        """An estimate from above of the memory that one more row takes in a run without gradients.

        Args:
            tokens: Tokens of the row that are run.
            context: Tokens that they attend to.
            kept: Positions whose logits are computed.
        """
        text, size = self.config.get_text_config(), self.dtype.itemsize
        d_mlp = self.down_projection(0).weight.numel() // self.d_model
        heads = text.num_attention_heads
        # Stream, its normalised copy, queries and outputs; keys and values of the whole context,
        # repeated for each head; scores and their softmax (in float32); the MLP's inner states,
        # where the block is at its widest.
        attention = 6 * tokens * self.d_model + 4 * context * self.d_model
        scores = heads * tokens * context * (size + 8)
        inner = size * (3 * tokens * self.d_model + 3 * tokens * d_mlp)
        logits = kept * text.vocab_size * (size + 12)
        return max(size * attention + scores, inner, logits) + size * tokens * self.d_model

    # -- parts ------------------------------------------------------------------------------------

    def hook(self, component: str, layer: int) -> str:
        """Hook name of what a component adds to the residual stream (`resid`: the stream after
        the block).
        """
        part = {"resid": "hook_resid_post", "mlp": "hook_mlp_out", "attn": "hook_attn_out"}[
            component
        ]
        return f"blocks.{layer}.{part}"

    def key_hook(self, layer: int) -> str:
        """Hook name of the input of the down-projection: the keys of locate-and-edit methods."""
        return f"blocks.{layer}.mlp.hook_post"

    def value_hook(self, layer: int) -> str:
        """Hook name of the output of the down-projection, before any norm that the block puts
        behind the MLP.
        """
        return f"blocks.{layer}.mlp.out.hook_out"

    @property
    def embedding_hook(self) -> str:
        """Hook name of the token embeddings (before positions are added)."""
        return "hook_embed"

    def down_projection(self, layer: int) -> DownProjection:
        """The second MLP matrix of a block.

        Raises:
            ModelError: The block's MLP has no single dense down-projection (a mixture of experts,
                say).
        """
        try:
            module = self.bridge.blocks[layer].mlp.out.original_component
        except AttributeError as error:
            raise ModelError(
                f"{self.name}: block {layer} has no dense down-projection to edit, as an MLP of"
                " experts has none; use a model whose blocks have one MLP each"
            ) from error
        name = self._names[id(module.weight)]
        return DownProjection(
            name, module.weight, getattr(module, "bias", None), type(module).__name__ == "Conv1D"
        )

    def projection(self, layer: int, part: str) -> Projection:
        """A linear map of a block, by our name for it (`PARTS`).

        Raises:
            ModelError: The block has none of that name, or it is fused with others into one matrix.
        """
        if (found := self._projections.get((layer, part))) is not None:
            return found
        have = [name for at, name in self._projections if at == layer]
        raise ModelError(
            f"{self.name}: block {layer} has no projection {part!r} with a matrix of its own; it"
            f" has {', '.join(have) or 'none'}. A model that fuses several into one matrix (GPT-2,"
            " GPT-NeoX: queries, keys and values) does not offer them one by one"
        )

    def linear(self, name: str) -> Projection:
        """A linear map of a block, by the Hugging Face name of its weight.

        Raises:
            ModelError: There is no such parameter, or it is not the whole matrix of one linear map
                of a block.
        """
        if name not in self.parameters:
            raise ModelError(
                f"{self.name} has no parameter {name!r}; its names are those of the Hugging Face"
                " model"
            )
        for projection in self._projections.values():
            if projection.name == name:
                return projection
        raise ModelError(
            f"{self.name}: {name} is not the matrix of one of the projections {', '.join(PARTS)} of"
            " a block; embeddings, norms, biases, experts and fused matrices cannot be written"
        )

    @cached_property
    def _projections(self) -> dict[tuple[int, str], Projection]:
        found: dict[tuple[int, str], Projection] = {}
        for layer, block in enumerate(self.bridge.blocks):
            for part, owner in PARTS.items():
                module = getattr(
                    getattr(getattr(block, owner, None), part, None), "original_component", None
                )
                # Fused matrices: the bridge runs on copies of their pieces, which have no Hugging
                # Face name.
                name = self._names.get(id(getattr(module, "weight", None)))
                if name is not None:
                    transposed = type(module).__name__ == "Conv1D"
                    found[layer, part] = Projection(
                        name, self.parameters[name], transposed, layer, part
                    )
        return found

    def embedding_std(self) -> float:
        """Standard deviation of all entries of the token embeddings as the first block's hook sees
        them.

        The table's own deviation, times the factor by which the model scales embeddings (Gemma:
        √d_model), measured at the hook, once: edits write no embeddings.
        """
        return self._embedding_std

    @cached_property
    def _embedding_std(self) -> float:
        ids = check_ids(self)
        table = self._hf_model.get_input_embeddings().weight
        seen = self.capture(ids, [self.embedding_hook])[self.embedding_hook]
        scale = (seen.float().norm() / table[ids].float().norm()).item()
        return table.float().std().item() * scale

    def embeddings(self, ids: Sequence[int]) -> Float[Tensor, "token d_model"]:
        """Embeddings of some tokens as the first block's hook sees them, in float32 on the CPU."""
        # In short pieces: the run goes through the first block, whose attention grows with the
        # square of the length.
        pieces = torch.tensor(list(ids), device=self.device).split(
            min(EMBEDDED_TOGETHER, self.context_length)
        )
        seen = [
            self.capture(piece[None], [self.embedding_hook])[self.embedding_hook][0]
            for piece in pieces
        ]
        return torch.cat(seen).float().cpu()

    # -- out --------------------------------------------------------------------------------------

    def export(self, folder: Path) -> None:
        """Write the model as it is now (edits applied) as a Hugging Face folder, with everything
        that came with it.

        Generation settings, chat template, tokenizer, processor files and licences are those of the
        folder it was loaded from, as they were. A model folder that is there is replaced.

        Args:
            folder: A new or empty folder, or one with an older export; not the one the model was
                loaded from.

        Raises:
            ModelError: The folder holds something else, or is the model's own.
        """
        folder = Path(folder)
        if (
            self.folder is not None
            and folder.exists()
            and self.folder.exists()
            and folder.samefile(self.folder)
        ):
            raise ModelError(
                f"{folder} is where {self.name} was loaded from, and would be lost; give another"
                " folder"
            )
        # Wrapping renames the modules, which breaks save_pretrained.
        clean = self.clean_copy()
        # Ours are written below: the writer refuses what many checkpoints have, a temperature
        # without sampling.
        clean.generation_config = GenerationConfig()
        with (
            replaced(folder) as partial,
            quiet(),
            told(f"cannot write {folder}", "make room, or give another folder"),
        ):
            clean.save_pretrained(partial)
            (partial / GENERATION).unlink(missing_ok=True)
            if self.folder is not None and self.folder.is_dir():
                copy_companions(self.folder, partial)
            else:
                self.tokenizer.save_pretrained(partial)
                if self._generation is not None:
                    self._generation.to_json_file(partial / GENERATION)

    def clean_copy(self) -> Any:
        """The Hugging Face model as it was before wrapping, without hooks, on the same memory.

        Its parameters are new objects without gradients that share the storage of ours: what writes
        one writes the other, and what is added to the module (adapters) leaves ours alone. In
        evaluation mode.

        Raises:
            ModelError: The configuration makes a model with other parameters than this one has.
        """
        config = copy.deepcopy(self._own_config)
        # Parameters without memory, but real buffers: most are not in the state.
        with torch.random.fork_rng(), init_empty_weights(include_buffers=False):
            clean: Any = AutoModelForCausalLM.from_config(
                config, dtype=self.dtype, attn_implementation="eager"
            )
        state = {name: parameter.detach() for name, parameter in self.parameters.items()}
        state |= {name: buffer.detach().clone() for name, buffer in self._buffers.items()}
        clean.load_state_dict(state, strict=False, assign=True)
        clean.tie_weights()
        missing = sorted(name for name, parameter in clean.named_parameters() if parameter.is_meta)
        if missing:
            raise ModelError(
                f"{self.name}: cannot be rebuilt, parameters without a value: {missing[:3]}"
            )
        return clean.to(self.device).eval().requires_grad_(False)


def _persistent_buffers(hf_model: Any) -> dict[str, Tensor]:
    """Buffers that a checkpoint stores; the others follow from the configuration."""
    stored = hf_model.state_dict().keys()
    return {name: buffer for name, buffer in hf_model.named_buffers() if name in stored}


def _positions(mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Position of each token among the real ones of its row."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def _end_tokens(settings: GenerationConfig | None, tokenizer: Any) -> list[int]:
    """Every token that ends a text: chat models name more than the tokenizer's one.

    Raises:
        ModelError: The generation settings name something that is no token id.
    """
    named = getattr(settings, "eos_token_id", None)
    ends = [*(named if isinstance(named, (list, tuple)) else [named]), tokenizer.eos_token_id]
    ends = [end for end in ends if end is not None]
    if bad := [end for end in ends if not isinstance(end, int) or isinstance(end, bool) or end < 0]:
        raise ModelError(
            f"generation_config.json names {bad[0]!r} as eos_token_id; token ids are needed (0 or"
            " above)"
        )
    return sorted(set(ends))


def _once(act: Hook) -> Hook:
    """A hook that acts the first time only."""
    done = False

    def first(value: Tensor, hook: Any) -> Tensor | None:
        nonlocal done
        if done:
            return None
        done = True
        return act(value, hook)

    return first


def _until(ids: list[int], ends: Sequence[int]) -> tuple[int, ...]:
    return tuple(takewhile(lambda token: token not in ends, ids))
