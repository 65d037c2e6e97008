"""What a setting is and how its text is read: sections, YAML, `--set`, names, sizes. No torch."""
