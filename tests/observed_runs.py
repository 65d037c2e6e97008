"""What a model really runs, seen by hooks of torch at its modules."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from interp.models.arithmetic import ModelShape, Pass
    from interp.models.loading import LanguageModel


def small_shape() -> "ModelShape":
    """Sizes of no model, for operations and times by hand."""
    from interp.models.arithmetic import ModelShape

    return ModelShape(
        d_model=4,
        d_mlp=8,
        heads=2,
        vocabulary=10,
        n_layers=3,
        d_head=2,
        block_matrix=100,
        parameters=1000,
    )


@dataclass
class Seen:
    """Sums over runs."""

    passes: int = 0
    """Runs: how often tokens were embedded."""
    block_tokens: int = 0
    """Tokens that went through a block, summed over blocks and rows."""
    kept: int = 0
    """Positions whose logits were computed."""


@contextmanager
def observed(model: "LanguageModel") -> Iterator[Seen]:
    """Sees all runs of a model while it is open."""
    seen = Seen()

    def embedded(*call: Any) -> None:
        seen.passes += 1

    def through(module: Any, given: Any, out: Any) -> None:
        seen.block_tokens += given[0].shape[:-1].numel()

    def unembedded(module: Any, given: Any, out: Any) -> None:
        seen.kept += given[0].shape[:-1].numel()

    whole: Any = model._hf_model
    with ExitStack() as stack:
        for module, look in (
            (whole.get_input_embeddings(), embedded),
            (whole.get_output_embeddings(), unembedded),
            *((block.mlp.out.original_component, through) for block in model.bridge.blocks),
        ):
            stack.callback(module.register_forward_hook(look).remove)
        yield seen


def counted(passes: "Iterable[Pass]") -> Seen:
    """The same sums of runs that are counted."""
    seen = Seen()
    for each in passes:
        seen.passes += 1
        seen.block_tokens += each.row_blocks * each.tokens
        seen.kept += each.kept
    return seen
