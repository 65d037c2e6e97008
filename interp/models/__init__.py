"""A language model as token ids in, logits and hook values out: loading, checks, tokens, corpus."""
