"""Causal tracing: corruption, patching, scores, and from a rule's prompt to its effect map."""
