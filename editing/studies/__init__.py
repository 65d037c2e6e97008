"""Many edits compared: arms on rules, sweeps over layers, evidence, pairs, plans."""
