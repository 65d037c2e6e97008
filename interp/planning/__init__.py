"""Plans: what a command will take, before it is run."""
