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
# # Layer profiles: where is each form of a rule kept, on average?
#
# **Question.** Do formula, description and instances of a rule live in the same layers?
#
# **Method.** Trace each form of several rules, average each map over tokens of the same role (last subject token,
# rule words, …), then over rules. What is left is one curve over layers for each form: the *average indirect effect*.
# Intervals come from resampling *rules*: tokens of one prompt are no independent evidence.

# %% tags=["parameters"]
rule_ids = [
    "circle-area",
    "cube-volume",
    "square-perimeter",
]  # of the training and validation splits
samples = 2
positions = ["subject_last", "rule_word"]
folder = "runs/notebooks"  # what was traced is kept here; notebooks 03 and 05 read it

# %%
from pathlib import Path

import figures.accessors  # results show themselves: dataset.dmle
from interp.config import TraceConfig
from interp.models.loading import load
from interp.results import effects
from interp.rules.sources import load_rules
from interp.selection.profiles import layer_profile
from interp.tracing.trace import collect, trace_rules

run = Path(folder)
model = load()
rules = load_rules(ids=rule_ids).rules
config = TraceConfig(samples=samples, positions=positions, components=("mlp",))

# %% [markdown]
# **Run.** Every map is a file that is written as soon as it is done, so a stopped trace continues. What cannot be
# traced at all (no token to corrupt, no answer) is listed, never dropped in silence.

# %%
skipped = trace_rules(model, rules, config, run / "traces", overwrite=True)
collect(rules, run / "traces", skipped, run / "effects.nc")
skipped

# %%
maps = effects.load(run / "effects.nc")
maps.dmle

# %% [markdown]
# **First look at the total effects.** A prompt within noise is marked and left out of the profile, because nothing
# was lost that could come back. On a small model this happens often, mostly to prompts that it cannot answer anyway.

# %%
maps.dmle.plot(component="mlp")

# %%
profile = layer_profile(maps)
effects.save(profile, run / "profile.nc")
profile.dmle

# %% [markdown]
# **How to read the picture.** One curve for each form, at the tokens where editors look a rule up. The dots above
# show at which layer each single rule peaks: a mean of curves that peak in different places has no peak worth editing.

# %%
profile.dmle.plot(component="mlp", role="lookup")

# %% [markdown]
# Lookup tokens are the subject's last token and the rule's own words together. Here the subject's token alone: the two
# need not agree, and where an editor looks a rule up decides which of them it meets.

# %%
profile.dmle.plot(component="mlp", role="subject_last")

# %% [markdown]
# **What can go wrong.**
#
# - *Few rules.* With three rules the interval is hardly one: resamples of three values have few means. Read the
#   number of rules (n) before the band. Dozens are needed before two forms can be said to differ.
# - *The rise at the left edge* is the corrupted word itself coming back (notebook 01), the same for all forms.
# - *Selection by traceability.* Only prompts that the corruption hurts are averaged. If one form loses many prompts,
#   the forms are averages over different rules.
# - *A window is wider than a layer.* The curve at layer ℓ restores several blocks around ℓ, so it cannot place
#   anything more sharply than that (`attrs["window"]`).

# %%
{name: int(profile.attrs[name]) for name in ("window", "n_untraceable", "n_prompts")}
