"""What tests must know of strategies of selection by name."""

FIXED: frozenset[str] = frozenset()
"""Strategies that pick the same layers whatever the effects are."""
