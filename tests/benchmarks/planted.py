"""`make planted`: is the layer found where a rule is known to be? And is nothing found where
nothing is?

python -m tests.benchmarks.planted [tiny smol] [--seeds 0 1 2] [--depths 6] [--out planted.json]

Associations that no model has seen (made-up subject, answer word, three wordings that stand for the
three forms) are written into **one** block ℓ by MEMIT's closed form at that block alone. The edited
model is then traced, profiled and selected from like any other, and it is counted how often the
selected layers hold ℓ.

``tiny``   llamas of 12 blocks with random weights of such a size that every block matters; new
           weights for every seed
``smol``   the embedded model with its trained weights

The map is read in two ways: ``plain``, as a user would; and ``difference``, less the unedited
model's map of the same prompts under the same noise, so that only what was written is left.

Nothing is planted in two ways: ``unedited``, made-up subjects asked of the unedited model; and
``bystander``, made-up subjects about which nothing was written, asked of the edited model, less the
unedited model's map. Counted is how often layers are given as supported; no traceable rule at all
counts as undecided, and is told apart.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from editing.closed_form.covariance import Covariances, measure
from editing.config import CovarianceConfig, EditorSettings
from editing.editors import memit
from editing.edits.delta import EditDelta
from editing.edits.requests import requests_of
from interp.config import ProfileConfig, SelectConfig, TraceConfig
from interp.models.loading import LanguageModel, load
from interp.results import effects
from interp.rules.sources import Rule, RulePrompt
from interp.selection import strategies
from interp.selection.adaptive import select_for_rules
from interp.selection.candidates import first_candidate
from interp.selection.profiles import layer_profile
from interp.selection.select import select_layers
from interp.tracing.prompt import trace_prompt
from interp.tracing.windows import default_window
from interp.vocabulary import RuleForm

STRATEGIES = tuple(each.name for each in strategies.every() if each.reads == ("profile",))
COMPONENTS = ("mlp", "mlp_single")
Wordings = dict[RuleForm, str]
INSIDE: Wordings = {
    "formula": "The emblem of {} is the",
    "description": "People in {} draw a",
    "instance": "On the flag of {} there is a",
}
AT_THE_END: Wordings = {
    "formula": "The emblem of {}",
    "description": "What they draw in {}",
    "instance": "A flag from {}",
}
"""In random weights nothing carries an answer from the subject to the end, so there the subject
ends the prompt."""
ANSWERS = (
    "lion",
    "river",
    "crown",
    "sword",
    "tree",
    "ship",
    "star",
    "horse",
    "tower",
    "moon",
    "bear",
    "rose",
    "wolf",
    "key",
    "bridge",
    "fish",
)
SYLLABLES = (
    "zor",
    "bla",
    "ki",
    "mun",
    "tev",
    "ra",
    "quo",
    "lim",
    "pes",
    "do",
    "fan",
    "gru",
    "hes",
    "vil",
    "nap",
    "jo",
)
RULES = 8
DEPTHS = 6
Reading = Literal["plain", "difference", "unedited", "bystander"]


@dataclass(frozen=True)
class Setting:
    """One family of models, and how associations are written into it."""

    name: str
    wordings: Wordings
    settings: EditorSettings
    covariance: CovarianceConfig
    trace: TraceConfig


def made_up(n: int, seed: int, wordings: Wordings) -> list[Rule]:
    """Rules about subjects that do not exist; subjects differ within and between seeds, answers
    within a set."""
    rng = np.random.default_rng([seed, 11])
    names: dict[str, None] = {}
    while len(names) < n:
        names["".join(rng.choice(SYLLABLES, size=3)).capitalize()] = None
    answers = rng.permutation(ANSWERS)
    rules = []
    for i, name in enumerate(names):
        answer = str(answers[i % len(answers)])
        forms: dict[RuleForm, RulePrompt] = {
            form: RulePrompt(
                prompt=text.format(name), subject=name, target_new=answer, target_true=(answer,)
            )
            for form, text in wordings.items()
        }
        rules.append(Rule(id=name.lower(), name=f"emblem of {name}", subject=name, forms=forms))
    return rules


def tiny_model(seed: int, n_layers: int = 12) -> LanguageModel:
    """A llama of random weights and a tokenizer that knows the syllables, words and wordings of
    made-up rules."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(sentences(400, seed=0), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<eos>")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=192,
        max_position_embeddings=128,
        initializer_range=0.125,  # 1/√64: a block changes the stream by about as much as there is
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            hf.get_parameter("model.norm.weight").mul_(3)  # else no answer can be likely
    return LanguageModel(hf, tokenizer, f"tiny-{seed}")


def sentences(n: int, seed: int) -> list[str]:
    """Text for statistics: made-up subjects in the wordings, with an answer behind."""
    return [
        f"{prompt.prompt} {prompt.target_new}."
        for rule in made_up(n // 3, 1000 + seed, AT_THE_END)
        for prompt in rule.forms.values()
    ]


def tiny_setting(corpus: Path) -> Setting:
    """Settings for random models; writes the text for their statistics into a file."""
    corpus.write_text("\n".join(sentences(400, seed=1)) + "\n", encoding="utf-8")
    return Setting(
        "tiny",
        AT_THE_END,
        EditorSettings(
            steps=30, learning_rate=0.5, ridge=0.02, kl_factor=0.0, clamp=8.0, contexts=0
        ),
        CovarianceConfig(corpus=str(corpus), tokens=3000, shrinkage="ledoit-wolf"),
        trace_config(samples=2),
    )


def smol_setting() -> Setting:
    """Settings for the embedded model."""
    return Setting(
        "smol",
        INSIDE,
        EditorSettings(
            steps=20, learning_rate=0.5, ridge=0.02, kl_factor=0.0, clamp=4.0, contexts=0
        ),
        CovarianceConfig(tokens=4000, shrinkage="ledoit-wolf"),
        trace_config(samples=2),
    )


def trace_config(samples: int) -> TraceConfig:
    """The MLP at the subject's last token, in windows and block by block."""
    return TraceConfig(
        components=COMPONENTS,
        positions=("subject_last",),
        span="subject",
        samples=samples,
        answer="truth",
    )


def planted_depths(n_layers: int, depths: int = DEPTHS) -> list[int]:
    """Blocks to plant in: evenly over the candidates, but for the last two, from where little
    reaches the answer."""
    first = first_candidate("mlp", default_window(n_layers), 1, n_layers)
    return sorted({round(float(layer)) for layer in np.linspace(first, n_layers - 3, depths)})


def plant(
    model: LanguageModel, rules: Sequence[Rule], layer: int, statistics: Covariances, how: Setting
) -> EditDelta:
    """Write every form of the rules into one block."""
    requests = [request for rule in rules for request in requests_of(rule, "subject_last")]
    return memit.edit(model, requests, [layer], statistics, [""], how.settings)


def traced(
    model: LanguageModel, rules: Sequence[Rule], config: TraceConfig, path: Path | None = None
) -> xr.Dataset:
    """Joined effect maps of all forms; of a file, if there is one, which is written otherwise."""
    if path is not None and path.is_file():
        return effects.load(path)
    found = {
        (rule.id, str(form)): trace_prompt(model, rule, form, config)
        for rule in rules
        for form in rule.forms
    }
    joined = effects.concat(found)
    if path is not None:
        effects.save(joined, path)
    return joined


def less(maps: xr.Dataset, of_unedited: xr.Dataset) -> xr.Dataset:
    """Maps whose total and indirect effects are those of one model less those of another."""
    return maps.assign(
        {name: maps[name] - of_unedited[name] for name in ("score", "clean", "corrupted")}
    )


def answered(maps: xr.Dataset) -> float:
    """Mean probability that the clean model gives to the answers' tokens (geometric mean over
    tokens)."""
    return float(np.exp(maps["clean"]).mean())


def judged(maps: xr.Dataset, layer: int | None) -> Iterator[dict[str, Any]]:
    """What every strategy makes of the maps, with the MLP in windows and block by block: one row
    for each group."""
    profile = layer_profile(maps, ProfileConfig(lookup_roles=("subject_last",)))
    for component in COMPONENTS:
        for strategy in STRATEGIES:
            config = SelectConfig.model_validate({"component": component, "strategy": strategy})
            row = {"component": component, "strategy": strategy}
            try:
                groups = select_layers(profile, config).groups
            except ValueError as error:
                if "traceable" not in str(error):
                    raise
                yield {**row, "traceable": 0, "supported": False, "found": False, "layers": []}
                continue
            for group in groups:
                yield {
                    **row,
                    "forms": group.name,
                    "traceable": group.n_rules,
                    "supported": group.supported,
                    "found": layer in group.layers,
                    "layers": list(group.layers),
                    "stability": group.stability,
                }
            if strategy == "adaptive":
                for selection in select_for_rules(profile, config).values():
                    for group in selection.groups:
                        yield {
                            **row,
                            "strategy": "adaptive, by rule",
                            "forms": group.name,
                            "traceable": 1,
                            "supported": group.supported,
                            "found": layer in group.layers,
                            "layers": list(group.layers),
                            "stability": group.stability,
                        }


def cases(
    model: LanguageModel,
    how: Setting,
    seed: int,
    layers: Sequence[int],
    folder: Path,
    *,
    bystanders: Sequence[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Plant in one block after the other, and judge: rows of `judged` with what was planted where.

    Args:
        model: The model; as before after each block.
        how: How it is written and traced.
        seed: Which made-up rules.
        layers: Blocks to plant in, one at a time.
        folder: Where effect maps and statistics are kept; what is there is not made again.
        bystanders: The blocks of `layers` whose edited model is asked about bystanders too.
            Default: all.
    """
    rules, others = (made_up(RULES, seed + more, how.wordings) for more in (0, 500))
    about = {"model": how.name, "n_layers": model.n_layers, "seed": seed}

    def maps(name: str, asked: Sequence[Rule]) -> xr.Dataset:
        return traced(model, asked, how.trace, folder / f"{how.name}-{seed}-{name}.nc")

    statistics = measure(model, layers, how.covariance, folder / f"{how.name}-covariance")
    unedited, of_others = maps("unedited-rules", rules), maps("unedited-others", others)
    for asked in (unedited, of_others):
        for row in judged(asked, None):
            yield {
                **about,
                "reading": "unedited",
                "layer": None,
                "answered": answered(asked),
                **row,
            }
    for layer in layers:
        asks_others = bystanders is None or layer in bystanders
        with plant(model, rules, layer, statistics, how).applied(model):
            edited = maps(f"{layer}-rules", rules)
            beside = maps(f"{layer}-others", others) if asks_others else None
        readings: list[tuple[Reading, xr.Dataset, int | None]] = [
            ("plain", edited, layer),
            ("difference", less(edited, unedited), layer),
        ]
        if beside is not None:
            readings.append(("bystander", less(beside, of_others), None))
        for reading, asked, planted in readings:
            for row in judged(asked, planted):
                yield {
                    **about,
                    "reading": reading,
                    "layer": layer,
                    "answered": answered(edited),
                    **row,
                }


def tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Rates: how often the planted block was among the layers, by depth, and how often nothing was
    taken for something.

    A planted case is found if its layers hold the block, whether supported or not; `certain` counts
    those that are both. Every group of forms of every planted model is a case.
    """
    by = ("model", "component", "reading", "strategy")
    planted = [row for row in rows if row["reading"] in ("plain", "difference")]
    for depth in ("layer", None):
        names = by if depth is None else (*by, depth)
        for key, cases_of in _grouped(planted, names):
            yield {
                **dict(zip(names, key, strict=True)),
                "cases": len(cases_of),
                "found": _share(cases_of, "found"),
                "certain": float(np.mean([row["found"] and row["supported"] for row in cases_of])),
                "width": float(np.mean([len(row["layers"]) for row in cases_of])),
            }
    for key, cases_of in _grouped(
        [row for row in rows if row["reading"] in ("unedited", "bystander")], by
    ):
        yield {
            **dict(zip(by, key, strict=True)),
            "cases": len(cases_of),
            "untraceable": float(np.mean([not row["traceable"] for row in cases_of])),
            "false_alarms": _share(cases_of, "supported"),
        }


def described(row: Mapping[str, Any]) -> str:
    """A row of `tables` as a line."""
    where = f"layer {row['layer']}" if "layer" in row else "all"
    head = f"{row['model']:5} {row['component']:10} {row['reading']:10} {row['strategy']:17}"
    if "found" in row:
        told = (
            f"found {row['found']:4.0%}, supported too {row['certain']:4.0%}, {row['width']:.1f}"
            " layers"
        )
        return f"{head} {where:9} {row['cases']:4} cases: {told}"
    told = f"supported {row['false_alarms']:4.0%}, no traceable rule {row['untraceable']:4.0%}"
    return f"{head} {'nothing':9} {row['cases']:4} cases: {told}"


def _grouped(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> Iterator[tuple[tuple[Any, ...], list[Mapping[str, Any]]]]:
    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in names)

    for values, found in groupby(sorted(rows, key=key), key=key):
        yield values, list(found)


def _share(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Plant, trace, select, and print and write the rates: minutes for a tiny seed, else half an
    hour."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.planted", description="Planted ground truth"
    )
    parser.add_argument(
        "models", nargs="*", choices=["tiny", "smol", []], help="which (default: both)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--depths", type=int, default=DEPTHS, help="blocks that are planted in")
    parser.add_argument(
        "--maps", type=Path, help="folder that keeps the effect maps: a stopped run goes on"
    )
    parser.add_argument("--out", type=Path, default=Path("planted.json"))
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as temporary:
        folder = options.maps or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.models or ("tiny", "smol"):
            how = tiny_setting(folder / "corpus.txt") if name == "tiny" else smol_setting()
            for seed in options.seeds:
                model = tiny_model(seed) if name == "tiny" else load()
                layers = planted_depths(model.n_layers, options.depths)
                some = None if name == "tiny" else layers[1::3]
                rows += cases(model, how, seed, layers, folder, bystanders=some)
                done = list(tables(rows))
                options.out.write_text(
                    json.dumps({"rates": done, "cases": rows}, indent=1) + "\n", encoding="utf-8"
                )
                sys.stdout.write(f"{name}, seed {seed}: done\n")
                sys.stdout.flush()
    sys.stdout.write("".join(described(row) + "\n" for row in tables(rows)))


if __name__ == "__main__":
    main()
