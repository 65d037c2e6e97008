"""What runs of a model cost: floating-point operations and bytes, from the model's sizes alone.

One multiplication with one addition counts as two operations. Counted are the linear maps of the
blocks, the two products of attention, and the unembedding. Attention counts over the whole context:
the eager one also computes what the mask hides. Norms, softmax and activations are left out: they
are a small part of the operations.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class RowSizes:
    """Sizes that say how much memory a row takes."""

    d_model: int
    d_mlp: int
    heads: int
    vocabulary: int


@dataclass(frozen=True)
class ModelShape(RowSizes):
    """Sizes of a model, in numbers, not in bytes."""

    n_layers: int
    d_head: int
    block_matrix: int
    """Entries of a block's matrices; the mean over the blocks."""
    parameters: int
    """Of the whole model, what is tied counted once."""

    @classmethod
    def of(cls, hf_model: nn.Module, config: Any) -> "ModelShape":
        """Read off a Hugging Face model, which may be without numbers (on `meta`)."""
        text = config.get_text_config()
        blocks = blocks_of(hf_model)
        matrices = [list(matrices_of(block)) for block in blocks]
        d_model, heads = int(text.hidden_size), int(text.num_attention_heads)
        d_head = getattr(text, "head_dim", None) or d_model // heads
        # The down-projection is the widest of those maps whose output has the stream's width.
        d_mlp = max(read for read, written in matrices[0] if written == d_model)
        return cls(
            n_layers=len(blocks),
            d_model=d_model,
            d_mlp=d_mlp,
            heads=heads,
            d_head=int(d_head),
            vocabulary=int(text.vocab_size),
            block_matrix=sum(a * b for block in matrices for a, b in block) // len(blocks),
            parameters=sum(parameter.numel() for parameter in hf_model.parameters()),
        )


def blocks_of(hf_model: nn.Module) -> Sequence[nn.Module]:
    """The blocks of a Hugging Face model: its longest list of modules.

    A list inside a block may be as long (experts); the outer one comes first.
    """
    lists = [module for module in hf_model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len))


def matrices_of(block: nn.Module) -> Iterator[tuple[int, int]]:
    """Inputs and outputs of each linear map of a block."""
    for module in block.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.ndim == 2:
            first, second = weight.shape
            yield (first, second) if type(module).__name__ == "Conv1D" else (second, first)


@dataclass(frozen=True)
class Pass:
    """One run of some rows through some of the blocks.

    Attributes:
        rows: How many there are at the end.
        tokens: Tokens of a row that are run.
        context: Tokens that they attend to.
        row_blocks: Rows, summed over the blocks that are run.
        kept: Positions whose logits are computed, in all rows together.
        blocks: How many blocks are run.
        back_blocks: The same of those through which gradients of states go back. Gradients of
            weights are left out: few blocks need them.
    """

    rows: int
    tokens: int
    context: int
    row_blocks: int
    kept: int
    blocks: int
    back_blocks: int = 0

    def flops(self, shape: ModelShape) -> int:
        """All operations."""
        forward = self.row_blocks * block_flops(shape, self.tokens, self.context)
        logits = self.kept * kept_flops(shape)
        if not self.back_blocks:
            return forward + logits
        # Attention is a product of two states, both of which have gradients.
        back = block_flops(shape, self.tokens, self.context, attention=2)
        return forward + self.back_blocks * back + 2 * logits


def block_flops(shape: ModelShape, tokens: int, context: int, attention: int = 1) -> int:
    """Operations of some tokens of a row in one block, attending to a context.

    Args:
        shape: The model's sizes.
        tokens: Tokens that are run.
        context: Tokens that they attend to.
        attention: How often attention counts.
    """
    products = 4 * tokens * context * shape.heads * shape.d_head
    return 2 * tokens * shape.block_matrix + attention * products


def kept_flops(shape: ModelShape) -> int:
    """Operations of the logits of one position."""
    return 2 * shape.d_model * shape.vocabulary


def total_flops(passes: Iterable[Pass], shape: ModelShape) -> int:
    """Operations of several runs."""
    return sum(each.flops(shape) for each in passes)


def row_bytes(sizes: RowSizes, size: int, tokens: int, context: int, kept: int) -> int:
    """An estimate from above of the memory that one more row takes in a run without gradients.

    Args:
        sizes: The model's sizes.
        size: Bytes of a number.
        tokens: Tokens of the row that are run.
        context: Tokens that they attend to.
        kept: Positions whose logits are computed.
    """
    d_model, d_mlp = sizes.d_model, sizes.d_mlp
    # Stream, its normalised copy, queries and outputs; keys and values of the whole context,
    # repeated for each head; scores and their softmax (in float32); the MLP's inner states,
    # where the block is at its widest.
    attention = 6 * tokens * d_model + 4 * context * d_model
    scores = sizes.heads * tokens * context * (size + 8)
    inner = size * (3 * tokens * d_model + 3 * tokens * d_mlp)
    logits = kept * sizes.vocabulary * (size + 12)
    return max(size * attention + scores, inner, logits) + size * tokens * d_model


def gradient_bytes(sizes: RowSizes, blocks: int) -> int:
    """Memory per token that a run through some blocks keeps for its gradients (float32)."""
    # What a block keeps: streams, norms, queries, keys, values and the MLP's inner states.
    return blocks * (12 * sizes.d_model + 5 * sizes.d_mlp) * 4
