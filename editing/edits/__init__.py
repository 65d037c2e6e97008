"""Edits as values: what every edit can do, edits of weights, and what an edit is asked for."""
