# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Causal tracing of a rule
#
# **Question.** Which layer and which token of this prompt carry the answer?
#
# **Method.** Add noise to the embeddings of the words that name the rule (here *area* and *rectangle*):
# the answer becomes unlikely. Then give one state its clean value back and see how much of the answer returns.
# The gain is the *indirect effect* of that state, in nats per answer token; positive means that it helps.

# %% tags=["parameters"]
samples = 2
positions = ("subject_last", "rule_word", "last")

# %%
from figures.effect_map import draw_effect_map
from interp.config import TraceConfig
from interp.effects import total_effect
from interp.model import load
from interp.rules import load_rules
from interp.tracing import trace_prompt

model = load()
rule = load_rules(ids=["rectangle-area"]).rules[0]
rule.forms["instance"].prompt, rule.forms["instance"].target_true

# %%
effects = trace_prompt(model, rule, "instance", TraceConfig(samples=samples, positions=positions, components=("mlp",)))
effects

# %% [markdown]
# **Is there anything to trace?** The total effect is what the corruption costs. If it is not clearly above its
# standard error, the map means nothing.

# %%
total_effect(effects)

# %% [markdown]
# **How to read the map.** Rows are tokens, columns are layers (the centre of a window of layers whose MLP outputs
# are restored together); corrupted tokens are marked.

# %%
draw_effect_map(effects, component="mlp").figure

# %% [markdown]
# **What can go wrong.** Restoring the residual stream at a corrupted token in the first layers brings the word
# itself back, so an effect there is the token's identity, not where the rule is kept. Few noise samples make noisy
# maps: ROME uses ten.
