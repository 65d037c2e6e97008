"""Forward passes: logits, values at hooks, keys and values of prefixes."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from interp.errors import ModelError
from interp.models.arithmetic import RowSizes, gradient_bytes, row_bytes
from interp.models.budget import default_budget
from interp.models.parts import ModelParts
from interp.models.prefixes import longest
from interp.models.self_check.basis import check_ids

EMBEDDED_TOGETHER = 128

Hook = Callable[[Tensor, Any], Tensor | None]
NamedHook = tuple[str, Hook]


class _RepeatedPrefix(DynamicCache):
    """Keys and values of a prefix that runs continue without changing them.

    A run may have several times as many rows as the prefix, and more in later blocks than in
    earlier ones: the prefix's rows are repeated to fit.
    """

    def __init__(self, prefix: DynamicCache) -> None:
        super().__init__()
        self.layers = prefix.layers
        self.layer_class_to_replicate = None

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


class ModelRuns(ModelParts):
    """Runs of a model on token ids."""

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

    def _beside_states(self) -> int | None:
        """How many values a block returns beside its states; None: it returns states alone."""
        if not self._returned:
            self.watch(torch.zeros((1, 1), dtype=torch.long, device=self.device), [])
        return self._returned[0]

    def _note_returned(self) -> None:
        """Let the first run note what a block returns."""
        self._returned: list[int | None] = []

        def note(module: Any, inputs: Any, output: Any) -> None:
            self._returned.append(len(output) - 1 if isinstance(output, tuple) else None)
            handle.remove()

        handle = self.bridge.blocks[0].original_component.register_forward_hook(note)

    @contextmanager
    def _without_blocks(self, n: int) -> Iterator[None]:
        """The first `n` blocks hand their input on. The bridge's own start_at_layer runs them
        all.
        """
        blocks = [self.bridge.blocks[layer].original_component for layer in range(n)]
        forwards = [block.forward for block in blocks]

        more = self._beside_states() if n else None

        def hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return hidden_states if more is None else (hidden_states, *[None] * more)

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
        entry: tuple[int, Float[Tensor, "batch pos d_model"]] | None = None,
    ) -> dict[str, Float[Tensor, "batch pos d"]]:
        """Values at hooks in one run without gradients, up to the last block that is asked for.

        Args:
            ids: Token ids; pad on the right and give `mask`.
            names: Hooks.
            mask: 1 for tokens, 0 for padding.
            entry: See `watch`.
        """
        values: dict[str, Tensor] = {}

        def keep(value: Tensor, hook: Any, name: str) -> None:
            values[name] = value.detach().clone()

        self.watch(
            ids,
            [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names],
            mask=mask,
            entry=entry,
        )
        return values

    def watch(
        self,
        ids: Int[Tensor, "batch pos"],
        hooks: Sequence[NamedHook],
        *,
        mask: Int[Tensor, "batch pos"] | None = None,
        entry: tuple[int, Float[Tensor, "batch pos d_model"]] | None = None,
    ) -> None:
        """Run hooks for what they see, without gradients; blocks behind the last one with a hook
        are not run.

        Args:
            ids: Token ids; pad on the right and give `mask`.
            hooks: As of `logits`.
            mask: 1 for tokens, 0 for padding.
            entry: A block and the residual streams before it, at which the run begins (see
                `has_entry`). Hooks before it see nothing meaningful.
        """
        self._prepare_run(ids, mask)
        first, stream = (0, None) if entry is None else entry
        if stream is not None:
            hooks = [(f"blocks.{first}.hook_resid_pre", lambda value, hook: stream), *hooks]
        last = max(
            (int(name.split(".")[1]) for name, _ in hooks if name.startswith("blocks.")), default=0
        )
        with torch.no_grad(), self._without_blocks(first):
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
        moved: list[Any] = shared.layers
        for layer in moved:
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

    def row_bytes(self, tokens: int, context: int, kept: int) -> int:
        """An estimate from above of the memory that one more row takes in a run without gradients.

        Args:
            tokens: Tokens of the row that are run.
            context: Tokens that they attend to.
            kept: Positions whose logits are computed.
        """
        return row_bytes(self.row_sizes, self.dtype.itemsize, tokens, context, kept)

    def budget(self) -> int:
        """Bytes that one chunk of work may take, if the user does not say."""
        return default_budget(self.device)

    def step_bytes(self, layer: int) -> int:
        """Memory per token that a run from a block on keeps for its gradients."""
        return gradient_bytes(self.row_sizes, self.n_layers - layer)

    @property
    def row_sizes(self) -> RowSizes:
        """The sizes that say how much memory a row takes."""
        text = self.config.get_text_config()
        d_mlp = self.down_projection(0).weight.numel() // self.d_model
        return RowSizes(self.d_model, d_mlp, text.num_attention_heads, text.vocab_size)

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


def _positions(mask: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch pos"]:
    """Position of each token among the real ones of its row."""
    return (mask.cumsum(-1) - 1).clamp_min(0)
