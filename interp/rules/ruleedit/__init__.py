"""RuleEdit data: read with named repairs, and written."""
