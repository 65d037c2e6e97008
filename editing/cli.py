"""The editing steps of `dmle`: `edit` and `evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from tqdm import tqdm

from editing.config import CovarianceConfig, EditConfig, EvaluateConfig
from interp.cli import Common, execute
from interp.rules import Rule
from interp.steps import Context, Step

if TYPE_CHECKING:
    import xarray as xr

    from interp.selection import LayerSelection

# MEMIT's published block for models of 28 to 32 blocks (Qwen2.5-7B, LLaMA-3-8B): layers 4 to 8.
PUBLISHED_FIRST, PUBLISHED_WIDTH, PUBLISHED_DEPTH = 4, 5, 30
_SHOWN = (("wanted", "target_new"), ("before", "before"), ("after", "after"))


def edit(
    *,
    layers: Annotated[str | None, Parameter(help="auto, a selection.json, or 3,4,5/12,13,14.")] = None,
    editors: Annotated[str | None, Parameter(help="Editors separated by commas: dmle,memit.")] = None,
    common: Common | None = None,
) -> None:
    """Edit each rule in all its forms and keep every edit as a delta; the model itself is not changed.

    Every editor gets the same requests, contexts and statistics of the unedited model.

    For example:

        dmle edit --run runs/mine

        dmle edit --run runs/mine --layers 3,4,5/12,13,14

        dmle edit --run runs/mine --editors dmle --set edit.lookup=rule_word_last
    """
    execute(["edit"], common, {"edit.layers": layers, "edit.editors": editors.split(",") if editors else None})


def evaluate(*, common: Common | None = None) -> None:
    """Score every edit before and after: reliability, generality, locality, IP and RU.

    For example:

        dmle evaluate --run runs/mine
    """
    execute(["evaluate"], common, {})


def _edit(context: Context) -> str:
    from editing import covariance, dmle, memit
    from editing.contexts import sample_contexts
    from editing.requests import requests_of
    from interp.provenance import fingerprint

    config, model = context.settings(EditConfig), context.model
    selection = _selection(context, config)
    block = _memit_layers(config, model.n_layers)
    rules = edited_rules(context, config)
    requests = {rule.id: requests_of(rule, config.lookup) for rule in rules}
    needed = sorted({layer for group in selection.groups for layer in group.layers} | set(block))
    contexts = sample_contexts(model, config.contexts, config.context_tokens, config.seed)
    statistics = context.settings(CovarianceConfig)
    with tqdm(total=statistics.tokens, desc="covariance", unit="token") as bar:
        covariances = covariance.measure(model, needed, statistics, context.run.path / "covariance", advance=bar.update)
    lines = []
    with tqdm(total=len(rules) * len(config.editors), desc="edit", unit="edit") as bar:
        for rule in rules:
            for editor in config.editors:
                plan = selection.model_dump(include={"groups"}) if editor == "dmle" else list(block)
                settings = config.model_dump(exclude={"editors", "layers", "memit_layers", "splits", "limit"})
                key = fingerprint(
                    weights=model.weight_hash,
                    plan=plan,
                    settings=settings,
                    requests=requests[rule.id],
                    contexts=contexts,
                    covariance=covariances.about,
                )
                path = delta_path(context, editor, rule)
                if not _is_done(path, key):
                    if editor == "dmle":
                        delta = dmle.edit(model, requests[rule.id], selection, covariances, contexts, config)
                    else:
                        delta = memit.edit(model, requests[rule.id], block, covariances, contexts, config)
                    delta.with_about(fingerprint=key).save(path)
                bar.update(1)
    for group in selection.groups:
        lines.append(f"dmle {group.name}: layers {', '.join(map(str, group.layers))}")
    lines.append(f"memit: layers {', '.join(map(str, block))}")
    lines.append(f"{len(rules)} rules × {len(config.editors)} editors: {context.run.path / 'deltas'}")
    return "\n".join(lines)


def _evaluate(context: Context) -> str:
    import pandas as pd

    from editing.delta import EditDelta
    from editing.evaluation import COLUMNS, evaluate
    from interp import effects
    from interp.store import write_text

    config = context.settings(EditConfig)
    context.run.need("deltas", "edit")
    rules = edited_rules(context, config)
    deltas = {
        editor: {rule.id: EditDelta.load(context.run.need(str(_relative(editor, rule)), "edit")) for rule in rules}
        for editor in config.editors
    }
    with tqdm(total=len(rules) * (1 + len(deltas)), desc="evaluate", unit="pass") as bar:
        scores, answers = evaluate(context.model, rules, deltas, context.settings(EvaluateConfig), advance=bar.update)
    effects.save(scores, context.run.path / "scores.nc")
    table = pd.DataFrame(answers, columns=list(COLUMNS))
    write_text(context.run.path / "answers.csv", table.to_csv(index=False))
    return "\n".join(
        [
            score_text(scores),
            "",
            answer_text(answers),
            f"scores: {context.run.path / 'scores.nc'}; every answer: {context.run.path / 'answers.csv'}",
        ]
    )


def score_text(scores: "xr.Dataset") -> str:
    """One line for each rule and metric: before → after for every editor, mean over the forms."""
    editors = [str(name) for name in scores["editor"].values]
    lines = [f"{'rule':28}{'metric, mode':46}" + "".join(f"{name:>16}" for name in editors)]
    shown = [("token_accuracy", m) for m in scores["metric"].values] + [
        ("exact", "reliability"),
        ("kl", "locality"),
    ]
    for rule in scores["rule"].values:
        for mode, metric in shown:
            values = scores["score"].sel(rule=rule, metric=metric, mode=mode).mean("form", skipna=True)
            cells = [
                f"{values.sel(editor=e, phase='pre').item():.2f} → {values.sel(editor=e, phase='post').item():.2f}"
                for e in editors
            ]
            lines.append(f"{rule:28}{f'{metric}, {mode}':46}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def answer_text(answers: list[dict[str, object]]) -> str:
    """The edited prompts with the model's own answers before and after."""
    lines = []
    for row in answers:
        if row["metric"] == "reliability":
            lines.append(f"{row['editor']}, {row['rule']}, {row['form']}: {row['prompt']}")
            lines += [f"  {name:7} {row[key]!r}" for name, key in _SHOWN]
    return "\n".join(lines)


def edited_rules(context: Context, config: EditConfig) -> list[Rule]:
    """Rules that are edited: those of `edit.splits` among rules with a split, and all without one.

    Raises:
        ValueError: There is none.
    """
    rules = context.rules_of(config.splits, "edit.splits")
    return rules[: config.limit]


def delta_path(context: Context, editor: str, rule: Rule) -> Path:
    """File of one edit."""
    return context.run.path / _relative(editor, rule)


def _relative(editor: str, rule: Rule) -> Path:
    return Path("deltas") / editor / f"{rule.id}.safetensors"


def _is_done(path: Path, key: str) -> bool:
    from editing.delta import EditDelta

    return path.is_file() and EditDelta.load(path).about.get("fingerprint") == key


def _selection(context: Context, config: EditConfig) -> "LayerSelection":
    from interp.selection import LayerSelection, parse_layers

    if config.layers == "auto":
        return LayerSelection.load(context.run.need("selection.json", "select"))
    if config.layers.endswith(".json"):
        return LayerSelection.load(Path(config.layers))
    return parse_layers(config.layers, context.model.n_layers)


def _memit_layers(config: EditConfig, n_layers: int) -> tuple[int, ...]:
    from interp.selection import parse_layers

    if config.memit_layers != "auto":
        return parse_layers(config.memit_layers, n_layers).groups[0].layers
    first = round(PUBLISHED_FIRST * n_layers / PUBLISHED_DEPTH)
    return tuple(range(min(first, n_layers - 1), min(first + PUBLISHED_WIDTH, n_layers)))


def _check_edit(context: Context) -> None:
    from editing.requests import requests_of

    config = context.settings(EditConfig)
    for rule in edited_rules(context, config):
        requests_of(rule, config.lookup)


EDIT = Step(
    "edit",
    _edit,
    edit,
    {"covariance": CovarianceConfig, "edit": EditConfig},
    needs_model=True,
    check=_check_edit,
)
EVALUATE = Step("evaluate", _evaluate, evaluate, {"evaluate": EvaluateConfig}, needs_model=True, check=_check_edit)
