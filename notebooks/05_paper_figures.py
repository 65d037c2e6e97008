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
# # Figures and tables for a paper
#
# **Question.** How do I get every figure and table of a run, and choose among them?
#
# **Method.** A run folder holds all results as labelled data. Figures read these files alone: no model is loaded, so
# this also works on another machine, long after the run.

# %% tags=["parameters"]
run = (  # a run folder of yours, such as runs/demo; empty: a small one is made first, which does need the model
    ""
)
folder = "runs/notebooks"  # where the small one is
small = {
    "rules.ids": ["circle-area", "cube-volume", "square-perimeter", "rectangle-area"],
    "trace.samples": 2,
    "trace.positions": ["subject_last", "rule_word"],
    "trace.components": ["mlp"],
    "covariance.tokens": 3000,
    "edit.editors": ["dmle"],
    "edit.contexts": 1,
    "edit.steps": 10,
    "edit.lookup": "mention_last",
    "evaluate.answer_tokens": 8,
}

# %% [markdown]
# The small run: three rules traced, one edited, nothing tuned. It is what the command
# `dmle run --config small.yaml --run runs/notebooks` does with these settings in `small.yaml`, and it reuses what the
# other notebooks left in that folder. A finished step is not run again.

# %%
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

import figures.accessors  # results show themselves: dataset.dmle
from figures.paper import draw_all
from figures.score_tables import before_after_table, score_table
from figures.style import save
from interp.app.run import Run
from interp.results import effects
from interp.selection.layers import LayerSelection

pd.set_option("display.max_colwidth", None)
if not run:
    Run(folder, settings=small, overwrite=True)("trace", "profile", "select", "edit", "evaluate")
run_folder = Path(run or folder)

# %% [markdown]
# **Run.** One call draws everything that the folder's files allow, as PDF (fonts embedded, text searchable) and PNG,
# and writes the tables in Markdown and LaTeX. It is `dmle figures --run …`.

# %%
draw_all(run_folder)
pd.Series(sorted(path.stem for path in run_folder.glob("figures/*.pdf")), name="figures").to_frame()

# %% [markdown]
# **One figure at a time.** The same figures from the data, with your choice of what to show.

# %%
maps = effects.load(run_folder / "effects.nc")
profile = effects.load(run_folder / "profile.nc")
scores = effects.load(run_folder / "scores.nc")
selection = LayerSelection.load(run_folder / "selection.json")
maps.dmle.plot()

# %%
profile.dmle.plot(selection=selection)

# %%
figure = scores.dmle.plot(mode="exact")
save(figure, run_folder / "my-scores")
figure

# %% [markdown]
# **Tables.** As Markdown here; `score_table(...).latex` is the same for LaTeX (package booktabs).

# %%
Markdown(score_table(scores, each_rule=False).markdown)

# %% [markdown]
# What the model said, question by question. Text is shown literally: a line break is ↵, a star is a star.

# %%
answers = pd.read_csv(run_folder / "answers.csv", dtype=str, keep_default_na=False)
Markdown(before_after_table(answers[answers["metric"] == "reliability"]))

# %% [markdown]
# **How to read them.** Every figure says in its caption what a reader must know: number of rules, what the bands are,
# what was left out. Figures are sized for print (one or two columns), so do not scale them in the paper.
#
# **What can go wrong.**
#
# - *One rule has no interval over rules*, and the captions say that. Dots without bars are no precise dots.
# - *Results of other settings in the same folder.* Each step checks what it finds there and says which command makes
#   what is missing; `run.yaml` has the settings of the last run.
# - *Colours.* Scales are symmetric about zero and differ between figures unless they share a panel: compare numbers,
#   not shades of two figures.
