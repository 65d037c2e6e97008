"""Where does a language model keep each form of a rule: tracing, profiles, layer selection."""
