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
# # Layer selection: which layers should an edit write, and how sure is that?
#
# **Question.** Which layers to edit for formula and description, and which for instances?
#
# **Method.** Take, for each group of forms, the contiguous window with the largest mean effect at the lookup tokens
# (or another strategy). Then ask what speaks for it: the interval of its score, how far other rules would give the same
# window (stability), and how often the best of all windows would be as strong by chance.

# %% tags=["parameters"]
rule_ids = ["circle-area", "cube-volume", "square-perimeter"]
samples = 2
positions = ["subject_last", "rule_word"]
width = 3
folder = "runs/notebooks"

# %%
import pandas as pd

import figures.accessors  # results show themselves: dataset.dmle
from interp.app.run import Run
from interp.config import SelectConfig
from interp.selection.select import select_layers

# %% [markdown]
# **Run.** A `Run` is a run folder with the steps of the `dmle` command: this is `dmle trace` and `dmle profile`. Maps
# that notebook 02 left in the folder are not run again.

# %%
settings = {
    "rules.ids": rule_ids,
    "trace.samples": samples,
    "trace.positions": positions,
    "trace.components": ["mlp"],
}
run = Run(folder, settings=settings, overwrite=True)
reports = run("trace", "profile")

# %%
profile = run.load("profile.nc")
selection = select_layers(profile, SelectConfig(strategy="window", width=width))
selection.save(run.folder / "selection.json")
selection

# %% [markdown]
# **How to read the picture.** Shaded: the chosen layers. Dotted: layers that were no candidates, because restoring
# them brings the corrupted word itself back. Hatched, with a heading in red: the profile does not support the choice,
# and the heading says why. It is still the best guess, and an edit will use it, but it is a guess.

# %%
profile.dmle.plot(selection=selection)

# %% [markdown]
# **Would another strategy choose otherwise?** `changepoint`, the default of `dmle select`, takes the whole elevated
# segment, however wide. If `window`, `mass` and `changepoint` agree, the profile has one clear peak. If they do not,
# its shape is not what the window assumes.

# %%
chosen = {
    strategy: (
        select_layers(profile, SelectConfig(strategy=strategy, width=width, max_width=6)).groups
    )
    for strategy in ("window", "mass", "changepoint")
}
pd.DataFrame(
    {
        name: {g.name: f"{list(g.layers)} ({g.stability:.0%})" for g in groups}
        for name, groups in chosen.items()
    }
)

# %% [markdown]
# **Do the forms differ at all?** The strategy `groups` merges forms unless the data tell them apart, which few rules
# cannot do; the reason in words says what was compared.

# %%
select_layers(profile, SelectConfig(strategy="groups", width=width))

# %% [markdown]
# **For other drivers.** The same layers as the published driver's `config.json`.

# %%
selection.to_dmle_config()

# %% [markdown]
# **What can go wrong.**
#
# - *The best of many windows is always large.* That is what the p-value accounts for; with three rules no choice can
#   pass at 5 % (½³ = 12.5 %), and the selection says so.
# - *Stability without support, or the reverse.* Few rules can agree on a window that none of them needs: read score,
#   stability and p-value together.
# - *Selecting on the rules that are edited.* By default training and validation rules are traced and test rules are
#   edited. Keep it so, or the comparison with a fixed block flatters the selection.
# - *Tracing is no promise for editing.* That an effect passes through these layers does not mean that writing there
#   works best. Compare with fixed blocks (`dmle compare`), and with every window where that can be afforded.
