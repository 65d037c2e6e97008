"""Change a rule in all its forms, and nothing else: editors, edits as values, evaluation."""
