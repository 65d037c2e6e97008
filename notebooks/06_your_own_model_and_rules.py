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
# # Your own model and your own rules
#
# **Question.** How do I trace and edit what I am interested in, and see early that it cannot work?
#
# **Method.** A prompt of your own needs no more than its subject. Rules of your own are one JSON file that is checked
# before anything runs. A model of your own is checked at load: its hooks have to mean what tracing and editing assume.

# %% tags=["parameters"]
model_name = (  # embedded; or a Hugging Face folder, or a hub name such as "Qwen/Qwen2.5-7B"
    "smollm2-135m"
)
prompt, subject = "The capital of France is", "France"
samples = 4

# %%
import json
from pathlib import Path
from tempfile import mkdtemp
from time import process_time

import pandas as pd

import figures.accessors  # results show themselves: dataset.dmle
from interp.config import TraceConfig
from interp.models.loading import ModelError, find, load
from interp.rules.checks import check_rules
from interp.rules.sources import RuleError, load_rules
from interp.tracing.one_prompt import PromptRequest, report, trace_one
from interp.tracing.prompt import engine, trace_prompt

folder = Path(mkdtemp())

# %% [markdown]
# ## The model, and what its self-check says
#
# At load the wrapped model is compared with the Hugging Face model (logits), block by block
# (`resid_pre + attn_out + mlp_out = resid_post`), and at the place that editors write (key × weights = MLP output).
# The numbers are relative errors. A model that fails is refused, because tracing and editing it would be silently
# wrong. If only the shortcuts fail (the cache of a prefix, entering at a later block), the slower route is taken.

# %%
pd.set_option("display.max_colwidth", None)
model = load(model_name)
print(model.name, model.n_layers, "layers,", model.d_model, "wide,", model.dtype)
print(model.check)
print(engine(model, TraceConfig()))

# %% [markdown]
# A folder as `save_pretrained` writes it works like a name. Here the model itself is written and found again; a hub
# name is downloaded by `load` (`dtype="bfloat16"` and a GPU for 7B models). A mistyped name fails with a reason.

# %%
model.export(folder / "my-model")
print(find(str(folder / "my-model")) == str(folder / "my-model"))
try:
    find(str(folder / "no-model"))
except ModelError as error:
    print("ModelError:", str(error).replace(str(folder), "…"))

# %% [markdown]
# ## A prompt of your own
#
# On the command line: `dmle trace --prompt "The capital of France is" --subject France --plot map.png`.

# %%
request = PromptRequest(prompt, subject)
config = TraceConfig(samples=samples, positions=("subject_last", "after", "last"), answer_tokens=4)
effects = trace_one(model, request, config)
print("\n".join(report(effects)))

# %%
effects.dmle.plot()

# %% [markdown]
# **How to read it.** At the subject, early: the corrupted word comes back. At the last token, late: the answer is
# being written, which attention reads from the subject. In between, the MLPs at the subject are where the fact would be
# looked up. Windows that hold the first layers show the word, not the fact; what remains behind them is the finding.
#
# ## Rules of your own
#
# A rule is a prompt, a subject that stands in it, the true and the wanted answer, for each form. The rest
# (rephrasings, instances, prompts that must not change) only serves the evaluation, and may be absent.

# %%
rule = {
    "id": "dog-years",
    "name": "human age of a dog",
    "subject": "dog",
    "forms": {
        "formula": {
            "prompt": "The human age of a dog of age y is h =",
            "subject": "dog",
            "target_true": ["7y"],
            "target_new": "9y",
            "rephrasings": ["Formula for the human age of a dog of age y: h ="],
        },
        "instance": {
            "prompt": "For a dog of age 3, the human age is h =",
            "subject": "dog",
            "target_true": ["7 × 3 = 21"],
            "target_new": "9 × 3 = 27",
            "values": {"y": 3},
        },
    },
}
path = folder / "my_rules.json"
path.write_text(json.dumps({"schema": "dmle.rules/1", "rules": [rule]}), encoding="utf-8")
mine = load_rules(path)
mine.rules[0].rule_words

# %% [markdown]
# `check_rules` (`dmle rules check my_rules.json`) looks for what makes an evaluation meaningless: results that do not
# follow from the formula, items that cannot show an edit, prompts that contradict each other. These rules are clean;
# with a slip in the arithmetic they are not.

# %%
check_rules(mine) or "nothing found"

# %%
path.write_text(path.read_text(encoding="utf-8").replace("= 27", "= 28"), encoding="utf-8")
pd.DataFrame(check_rules(load_rules(path)))

# %% [markdown]
# Mistakes are said in words, with the place. Here: a subject that is not in the prompt, a mistyped key, no answer.

# %%
wrong = json.loads(json.dumps(rule))
wrong["forms"]["formula"]["subject"] = "cat"
wrong["forms"]["instance"]["target_neu"] = wrong["forms"]["instance"].pop("target_new")
path.write_text(json.dumps({"schema": "dmle.rules/1", "rules": [wrong]}), encoding="utf-8")
try:
    load_rules(path)
except RuleError as error:
    print("RuleError:", str(error).replace(str(folder), "…"))

# %% [markdown]
# **Can it be traced?** Ask the cheapest question first: few samples, few tokens, and only the total effect. A rule
# that the model does not know has nothing that a corruption could take away.

# %%
quick = TraceConfig(samples=samples, positions=("subject_last", "rule_word"), components=("mlp",))
start = process_time()
traced = trace_prompt(model, mine.rules[0], "instance", quick)
seconds = process_time() - start
traced.dmle

# %% [markdown]
# ## What it costs
#
# A sweep runs every site (component × layer × traced token) for every noise sample. On a CPU the cost grows with
# sites × samples × length of prompt and answer × size of the model. From the prompt above, in CPU-seconds on this
# machine, for one prompt of the same length:

# %%
runs = len(traced.dmle.table()) * model.n_layers * samples  # one component
plans = pd.DataFrame(
    {"tokens": [2, 2, 2, 12], "components": [1, 1, 3, 3], "samples": [2, 10, 4, 10]},
    index=["the demo", "ROME's samples", "default components and samples", "every token"],
)
plans["runs"] = plans.prod(axis=1) * model.n_layers
plans["CPU-seconds, about"] = (plans["runs"] * seconds / runs).round()
plans

# %% [markdown]
# A 7B model has fifty times the parameters and as many layers: use a GPU, bfloat16, and `method="screen"`, which runs
# a share of the sites exactly and estimates the rest from gradients, with its error stated.
#
# **What can go wrong.**
#
# - *Untraceable prompts.* If the total effect is within two standard errors, take more samples, corrupt more words
#   (`span="content"`), or accept that this model does not know the rule. Do not read the map.
# - *The true answer is not how this model would say it.* Low scores before any corruption leave nothing to lose; let
#   the model's own answer be scored (`answer="greedy"`), and say so: the map then tells where *its* answer comes from.
# - *A subject of many tokens, or one that stands twice.* All its tokens are corrupted; look at the asterisks.
# - *Half precision.* bfloat16 models are checked against a wider tolerance, and small edits can round away; an edit's
#   own report says what share of it was lost in the cast.
