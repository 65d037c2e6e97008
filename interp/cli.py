"""The `dmle` command: one subcommand per step, and `dmle run` for the whole chain.

Settings come from the run folder's `run.yaml`, then a configuration file, then flags; later ones win. All of
them are checked before any work starts. Heavy imports happen inside the steps.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import yaml
from cyclopts import App, Parameter
from rich.console import Console
from tqdm import tqdm

from interp.config import ConfigError, CorruptedSpan, ProfileConfig, SelectConfig, TraceConfig, read_yaml
from interp.embedded import EmbeddedFileError
from interp.provenance import versions
from interp.rules import Rule, counted, dump_rules
from interp.rules_cli import app as rules_app
from interp.steps import CHAIN, Context, Step, load_steps, parse_settings
from interp.store import RunFolder

if TYPE_CHECKING:
    import xarray as xr

DEFAULT_RUN = Path("runs/default")
FAILED, STOPPED = 2, 130


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options that every step has."""

    run: Annotated[Path, Parameter(help="Run folder; every step reads and writes it.")] = DEFAULT_RUN
    config: Annotated[Path | None, Parameter(help="YAML file of settings, one mapping per section.")] = None
    model: Annotated[str | None, Parameter(help="Embedded name, Hugging Face folder, or hub name.")] = None
    rules: Annotated[str | None, Parameter(help="'embedded', a rules.json, or a RuleEdit folder or zip.")] = None
    limit: Annotated[int | None, Parameter(help="Use only the first rules, this many of each split.")] = None
    device: Annotated[str | None, Parameter(help="'auto', or a torch device.")] = None
    set: Annotated[
        tuple[str, ...],
        Parameter(help="Any setting: --set section.key=value (YAML value); repeat.", negative=()),
    ] = ()
    overwrite: Annotated[bool, Parameter(help="Replace results of other settings.", negative=())] = False


# -- steps of this package -----------------------------------------------------------------------------------


def trace(
    *,
    samples: Annotated[int | None, Parameter(help="Noise samples per prompt.")] = None,
    positions: Annotated[str | None, Parameter(help="'all', or token roles separated by commas.")] = None,
    span: Annotated[
        str | None, Parameter(help="Corrupted: subject, subject+rule, numbers, content, or words (commas).")
    ] = None,
    corruption: Annotated[str | None, Parameter(help="noise, or counterfactual (a twin prompt).")] = None,
    metrics: Annotated[str | None, Parameter(help="Scores, separated by commas: mean_log_prob, negative_kl, …")] = None,
    method: Annotated[str | None, Parameter(help="exact, attribution (gradients) or screen.")] = None,
    memory: Annotated[str | None, Parameter(help="Memory of a batch, such as 4GiB.")] = None,
    common: Common | None = None,
) -> None:
    """Trace each form of each rule: which layer and token carries the answer.

    Corrupts the tokens that name the rule, restores one state at a time, and scores the whole answer. Writes
    one effect map per prompt as it goes (a stopped trace continues) and `effects.nc` at the end.

    For example:

        dmle trace --run runs/mine --samples 4

        dmle trace --run runs/mine --positions subject_last,rule_word,last --limit 5

        dmle trace --run runs/twins --corruption counterfactual --metrics logit_difference,negative_kl

        dmle trace --run runs/screened --positions all --method screen --memory 1GiB

        dmle trace --run runs/llama --model meta-llama/Meta-Llama-3-8B --set model.dtype=bfloat16
    """
    flags = {
        "samples": samples,
        "positions": positions.split(",") if positions not in (None, "all") else positions,
        "span": span if span in (None, *get_args(CorruptedSpan)) else span.split(","),
        "corruption": corruption,
        "metrics": metrics and metrics.split(","),
        "method": method,
        "memory": memory,
    }
    execute(["trace"], common, {f"trace.{name}": value for name, value in flags.items()})


def profile(*, common: Common | None = None) -> None:
    """Average the effect maps into layer profiles with bootstrap intervals.

    For example:

        dmle profile --run runs/mine

        dmle profile --run runs/mine --set profile.confidence=0.9
    """
    execute(["profile"], common, {})


def select(
    *,
    width: Annotated[int | None, Parameter(help="Layers per group of forms.")] = None,
    component: Annotated[str | None, Parameter(help="mlp, attn or resid.")] = None,
    common: Common | None = None,
) -> None:
    """Choose the layers to edit, for each group of forms, with the evidence for the choice.

    For example:

        dmle select --run runs/mine

        dmle select --run runs/mine --width 5
    """
    execute(["select"], common, {"select.width": width, "select.component": component})


def _trace(context: Context) -> str:
    from interp import effects, tracing

    config = context.settings(TraceConfig)
    rules, folder = traced_rules(context), context.run.path / "traces"
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} prompts [{elapsed}<{remaining}]"
    with tqdm(total=len(tracing.prompts(rules)), desc="trace", bar_format=shape) as bar:
        skipped = tracing.trace_rules(
            context.model, rules, config, folder, overwrite=context.overwrite, advance=bar.update
        )
    path = context.run.path / "effects.nc"
    tracing.collect(rules, folder, skipped, path)
    with effects.opened(path) as joined:
        te = effects.total_effect(effects.choose_metric(joined))
        traced = int((joined["n_tokens"] > 0).sum())
        estimated = _estimated(joined)
    positions = "all" if config.positions == "all" else " ".join(config.positions)
    noisy = config.corruption == "noise"
    corruption = f"{config.samples} noise samples" if noisy else "counterfactual prompts"
    lines = [
        f"{traced} prompts traced, {int(te['traceable'].sum())} of them traceable (total effect above two standard "
        f"errors); {len(skipped)} skipped",
        f"self-check: {context.model.check}; route: {tracing.engine(context.model, config)}; method: {config.method}",
        f"{corruption}; positions: {positions}",
        *estimated,
        *(f"skipped {s.rule}/{s.form}: {s.reason}" for s in skipped),
        f"effect maps: {path}",
    ]
    return "\n".join(lines)


def _estimated(joined: "xr.Dataset") -> list[str]:
    """What a method that does less than the exact sweep says of its saving and its error, over all prompts."""
    import numpy as np

    def every(name: str) -> Any:
        # One value for all prompts is an attribute, different ones are a coordinate of texts.
        held = joined[name].values.ravel() if name in joined.coords else [joined.attrs.get(name, "")]
        return np.array([float(value) for value in held if value != ""])

    shares, missed = every("exact_share"), every("missed_mass")
    if not shares.size:
        return []
    said = f"run exactly: {shares.mean():.0%} of the site and sample runs of the exact sweep"
    if missed.size:
        said += f"; absolute effects wrong by (audit): {missed.mean():.0%} on average, {missed.max():.0%} at most"
    return [said]


def traced_rules(context: Context) -> list[Rule]:
    """Rules that are traced (`trace.splits`)."""
    return context.rules_of(context.settings(TraceConfig).splits, "trace.splits")


def _profile(context: Context) -> str:
    from interp import effects
    from interp.profiles import layer_profile

    with effects.opened(context.run.need("effects.nc", "trace")) as maps:
        result = layer_profile(maps, context.settings(ProfileConfig))
    path = context.run.path / "profile.nc"
    effects.save(result, path)
    te = ", ".join(
        f"{form} {value:.2f}" for form, value in zip(result["form"].values, result["te"].values, strict=True)
    )
    return (
        f"mean total effect ({result.attrs['unit']}): {te}; {result.attrs['n_untraceable']} of "
        f"{result.attrs['n_prompts']} prompts left out as not traceable\nlayer profile: {path}"
    )


def _select(context: Context) -> str:
    from interp import effects
    from interp.selection import select_layers

    profile = effects.load(context.run.need("profile.nc", "profile"))
    selection = select_layers(profile, context.settings(SelectConfig))
    path = context.run.path / "selection.json"
    selection.save(path)
    lines = [f"{g.name}: layers {', '.join(map(str, g.layers))} ({g.reason})" for g in selection.groups]
    return "\n".join([*lines, f"selection: {path}"])


TRACE = Step("trace", _trace, trace, {"trace": TraceConfig}, needs_model=True, check=traced_rules)
PROFILE = Step("profile", _profile, profile, {"profile": ProfileConfig})
SELECT = Step("select", _select, select, {"select": SelectConfig})


# -- the chain -----------------------------------------------------------------------------------------------


def run(
    *,
    samples: Annotated[int | None, Parameter(help="Noise samples per prompt.")] = None,
    layers: Annotated[str | None, Parameter(help="auto, a selection.json, or 3,4,5/12,13,14.")] = None,
    common: Common | None = None,
) -> None:
    """Run the whole chain: trace, profile, select, edit, evaluate, figures.

    A stopped run continues where it was.

    For example:

        dmle run --run runs/mine

        dmle run --rules RuleEdit-200.zip --limit 3 --run runs/ruleedit

        dmle run --config demo.yaml --run runs/demo
    """
    execute(list(CHAIN), common, {"trace.samples": samples, "edit.layers": layers})


def setup() -> None:
    """Prepare the embedded model and corpus (once; they go to the user's cache).

    For example:

        dmle setup
    """
    console = Console(stderr=True)
    try:
        from interp import corpus, model

        console.print(f"embedded model: {model.find(model.EMBEDDED)}", soft_wrap=True, highlight=False)
        source, texts = corpus.paragraphs()
        console.print(f"embedded corpus: {source.name}, {len(texts)} paragraphs", highlight=False)
    except (EmbeddedFileError, OSError) as error:
        _fail(console, error)


def execute(names: Sequence[str], common: Common | None, flags: Mapping[str, Any]) -> None:
    """Check everything, then run the steps in order; what is done stays when a later one fails."""
    console = Console(stderr=True)
    common = common or Common()
    started: list[str] = []
    try:
        steps = load_steps()
        folder = RunFolder(common.run)
        raw = _raw_settings(folder, common, flags)
        context = Context(folder, parse_settings(steps, raw), common.overwrite)
        folder.create()
        _check(context, [steps[name] for name in names])
        resolved = {name: section.model_dump(mode="json") for name, section in context.sections.items()}
        folder.write_settings(raw, resolved, versions())
        dump_rules(context.rules.rules, folder.path / "rules.json")
        for refusal in context.rules.refused:
            console.print(f"rule refused, {refusal.where}: {refusal.reason}", highlight=False, markup=False)
        if context.rules.repairs:
            console.print(f"rules mended: {counted(context.rules.repairs)}", highlight=False, markup=False)
        for name in names:
            started.append(name)
            console.rule(name)
            console.print(steps[name].run(context), soft_wrap=True, highlight=False, markup=False)
    except KeyboardInterrupt:
        at = started[-1] if started else "set-up"
        console.print(f"stopped in {at}; run the same command again to continue", style="yellow")
        sys.exit(STOPPED)
    except (ValueError, OSError, EmbeddedFileError) as error:
        _fail(console, error)
    console.print(_next(names[-1], common.run), style="bold", soft_wrap=True, highlight=False)


def main(tokens: Sequence[str] | None = None) -> None:
    """Entry point of `dmle`; the tokens are those of the command line unless they are given."""
    _app()(tokens)


def _app() -> App:
    app = App(
        name="dmle",
        help="Trace where a language model keeps each form of a rule, select the layers, and edit the rule there.",
        result_action="return_value",
    )
    for step in load_steps().values():
        app.command(step.command, name=step.name)
    app.command(run, name="run")
    app.command(setup, name="setup")
    app.command(rules_app)
    return app


def _raw_settings(folder: RunFolder, common: Common, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by section, unchecked: the run's own, then the file's, then the flags'."""
    raw: dict[str, Any] = {}
    for source in (folder.settings, read_yaml(common.config) if common.config else {}):
        for section, values in source.items():
            raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    short = {"model.name": common.model, "rules.source": common.rules, "rules.limit": common.limit}
    given = {**short, "model.device": common.device, **flags, **dict(map(_assignment, common.set))}
    for key, value in given.items():
        if value is not None:
            section, _, name = key.partition(".")
            held = raw.get(section) or {}
            if isinstance(held, dict):  # else the section itself is wrong, which its check says
                raw[section] = {**held, name: value}
    return raw


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or "." not in key:
        raise ConfigError(f"--set {text}: section.key=value is needed, such as --set trace.samples=4")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: {value!r} is not a YAML value; quote it if it is text") from error


def _check(context: Context, steps: Sequence[Step]) -> None:
    """Bad input shows before the first step: the rules are read and the model is looked up."""
    for step in steps:
        step.check(context)
    if any(step.needs_model for step in steps):
        _ = context.model


def _next(name: str, folder: Path) -> str:
    if name == CHAIN[-1]:
        return f"Done. Look at {folder / 'figures'} and {folder / 'tables'}."
    return f"Done. Next: dmle {CHAIN[CHAIN.index(name) + 1]} --run {folder}"


def _fail(console: Console, error: BaseException) -> None:
    # One line: a YAML or validation error has several.
    text = " ".join(str(error).split())
    console.print(f"error: {text}", style="red", soft_wrap=True, highlight=False, markup=False)
    sys.exit(FAILED)


if __name__ == "__main__":
    main()
