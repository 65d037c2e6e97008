"""The layers that are published for other editors: a choice without a profile."""

PUBLISHED_BLOCK, PUBLISHED_DEPTH = (4, 5, 6, 7, 8), 30
"""Layers of MEMIT and AlphaEdit for LLaMA-3-8B and Qwen2.5-7B (EasyEdit), which have 28 to 32
blocks."""


def published_block(n_layers: int) -> tuple[int, ...]:
    """The published layers 4-8 of models of 28 to 32 blocks, their place scaled to the depth, their
    number kept.

    >>> published_block(30), published_block(48), published_block(5)
    ((4, 5, 6, 7, 8), (6, 7, 8, 9, 10), (1, 2, 3, 4))
    """
    first = min(round(PUBLISHED_BLOCK[0] * n_layers / PUBLISHED_DEPTH), n_layers - 1)
    return tuple(range(first, min(first + len(PUBLISHED_BLOCK), n_layers)))
