"""Windows of blocks that are restored together: one MLP or attention output alone is too little
to see.
"""

ROME_WINDOW, ROME_DEPTH = 10, 48


def window(layer: int, width: int, n_layers: int) -> range:
    """Blocks restored together around a block, clipped at the model's ends.

    >>> window(10, 4, 30), window(0, 10, 48), window(47, 10, 48)
    (range(8, 12), range(0, 5), range(42, 48))

    Source: ROME causal_trace.py.
    """
    return range(max(0, layer - width // 2), min(n_layers, layer + (width + 1) // 2))


def default_window(n_layers: int) -> int:
    """ROME's window of 10 blocks in 48, scaled to the depth, at least 1.

    >>> default_window(48), default_window(30), default_window(2)
    (10, 6, 1)
    """
    return max(1, round(n_layers * ROME_WINDOW / ROME_DEPTH))
