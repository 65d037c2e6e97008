"""The commands of `dmle` that edit: they parse, call and print."""
