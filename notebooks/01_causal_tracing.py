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
rule_id = "rectangle-area"
samples = 2
positions = ("subject_last", "rule_word", "last")

# %%
import figures.accessors  # results show themselves: dataset.dmle
from interp.config import TraceConfig
from interp.models.loading import load
from interp.results.effects import total_effect
from interp.rules.sources import load_rules
from interp.tracing.prompt import trace_prompt

model = load()
rule = load_rules(ids=[rule_id]).rules[0]
{form: (prompt.prompt, prompt.target_true[0]) for form, prompt in rule.forms.items()}

# %% [markdown]
# **Run.** One form of the rule, its true answer, and the MLP outputs in windows of neighbouring layers (one layer
# alone is often too little to see). The result is a labelled xarray dataset.

# %%
config = TraceConfig(samples=samples, positions=positions, components=("mlp",))
effects = trace_prompt(model, rule, "instance", config)
effects

# %% [markdown]
# `effects.dmle` says what a reader needs of it: the answer that was scored, what the corruption costs, and each traced
# token's best layer.

# %%
effects.dmle

# %% [markdown]
# **Is there anything to trace?** The total effect is what the corruption costs. If it is not above two standard
# errors, the map means nothing, whatever its colours: nothing was lost that could come back.

# %%
total_effect(effects).to_pandas()

# %% [markdown]
# **How to read the picture.** Rows are tokens, columns are layers (the centre of the window whose MLP outputs are
# restored together). Red: the clean value brings the answer back; blue: it does harm. Corrupted tokens are bold, with
# an asterisk. Dashes mark tokens in between that were not traced.

# %%
effects.dmle.plot(component="mlp")

# %% [markdown]
# **What can go wrong.**
#
# - *The word itself comes back.* Restoring the first layers at a corrupted token undoes the corruption, so an effect
#   there says which word it is, not where the rule is kept. Layer selection leaves these layers out.
# - *Too few samples.* Two noise samples give a rough standard error; ROME uses ten. The cost is proportional.
# - *The wrong words.* The subject alone (`span="subject"`, as for facts) hardly moves a rule, which its rule words
#   name too. Look at the total effect before you look at the map.
# - *One prompt.* A map of one prompt is an anecdote. The next notebook averages.
