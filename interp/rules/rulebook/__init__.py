"""The embedded rules, as data (`rules.json`)."""
