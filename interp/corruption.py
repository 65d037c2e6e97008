"""Corruptions: how the prompt is damaged so that restoring one state can show where the rule is kept."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.config import CorruptedSpan

SPAN_ROLES: dict[str, tuple[str, ...]] = {
    "subject": ("subject_first", "subject_middle", "subject_last"),
    "subject+rule": ("subject_first", "subject_middle", "subject_last", "rule_word"),
    "numbers": ("number",),
    "content": ("subject_first", "subject_middle", "subject_last", "rule_word", "number"),
}


def corrupted_positions(roles: Sequence[str], span: CorruptedSpan) -> list[int]:
    """Positions of the tokens that a span names, by their roles.

    Raises:
        ValueError: The prompt has no such token.
    """
    positions = [i for i, role in enumerate(roles) if role in SPAN_ROLES[span]]
    if not positions:
        raise ValueError(
            f"no token to corrupt: span {span!r} needs a role of {SPAN_ROLES[span]}, "
            f"the prompt has {sorted(set(roles))}"
        )
    return positions


def gaussian_noise(
    samples: int, n_tokens: int, d_model: int, *, std: float, seed: int, stream: int = 0
) -> Float[Tensor, "sample corrupted d_model"]:
    """Additive Gaussian noise for the embeddings of the corrupted tokens.

    The same draws serve every site of a prompt (common random numbers), so differences between sites are
    not differences in noise, whatever the batching.

    Args:
        samples: Number of noise samples.
        n_tokens: Number of corrupted tokens.
        d_model: Width of the embeddings.
        std: Standard deviation of each entry, in embedding units.
        seed: The user's seed.
        stream: Distinguishes prompts, so that their draws are independent.

    Source: ROME, causal tracing (3 embedding standard deviations, 10 samples).
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + stream) % 2**63)
    return std * torch.randn(samples, n_tokens, d_model, generator=generator)
