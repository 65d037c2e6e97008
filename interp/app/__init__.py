"""The `dmle` command: steps, commands, what is fresh. Commands parse, call and print."""
