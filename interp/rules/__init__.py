"""Rules in three forms: their schema, sources, checks, and how their text is read. No torch."""
