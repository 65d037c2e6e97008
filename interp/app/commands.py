"""The `dmle` command: one subcommand per step, and `dmle run` for the whole chain.

Settings come from the run folder's `run.yaml`, then a configuration file, then flags; later ones
win. All of them are checked before any work starts. Heavy imports happen inside the steps.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import App, Parameter
from tqdm import tqdm

from interp.app.rules_commands import app as rules_app
from interp.app.steps import (
    CHAIN,
    COMMON,
    Context,
    Step,
    known_sections,
    load_steps,
    parse_settings,
)
from interp.config import ConfigError, ProfileConfig, SelectConfig, TraceConfig, read_yaml
from interp.errors import DmleError
from interp.results.files import write_text
from interp.results.printing import command, heading, one_line, say
from interp.results.provenance import versions
from interp.results.run_folder import RunFolder
from interp.rules.sources import Rule, counted, dump_rules
from interp.selection import strategies
from interp.settings.assignments import assign, merge, read_assignment
from interp.tracing.one_prompt import DEFAULTS as ONE_PROMPT_DEFAULTS
from interp.tracing.one_prompt import PromptRequest, find_plot, report, trace_one
from interp.vocabulary import CorruptedSpan

if TYPE_CHECKING:
    import xarray as xr

DEFAULT_RUN = Path("runs/default")
FAILED, STOPPED = 2, 130
TEXT = Parameter(allow_leading_hyphen=True)
"""Flags whose value is text, which may begin with a hyphen: --prompt "-5 + 2 ="."""


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """Options that every step has."""

    run: Annotated[Path, Parameter(help="Run folder; every step reads and writes it.")] = (
        DEFAULT_RUN
    )
    config: Annotated[
        Path | None, Parameter(help="YAML file of settings, one mapping per section.")
    ] = None
    model: Annotated[
        str | None, Parameter(help="Embedded name, Hugging Face folder, or hub name.")
    ] = None
    rules: Annotated[
        str | None, Parameter(help="'embedded', a rules.json, or a RuleEdit folder or zip.")
    ] = None
    limit: Annotated[
        int | None, Parameter(help="Use only the first rules, this many of each split.")
    ] = None
    device: Annotated[str | None, Parameter(help="'auto', or a torch device.")] = None
    set: Annotated[
        tuple[str, ...],
        Parameter(
            help="Any setting: --set section.key=value (YAML; null: its default); repeat.",
            negative=(),
        ),
    ] = ()
    overwrite: Annotated[
        bool, Parameter(help="Replace results of other settings.", negative=())
    ] = False


# -- steps of this package -----------------------------------------------------------------------


def trace(
    *,
    samples: Annotated[int | None, Parameter(help="Noise samples per prompt.")] = None,
    positions: Annotated[
        str | None, Parameter(help="'all', or token roles separated by commas.")
    ] = None,
    span: Annotated[
        str | None,
        TEXT,
        Parameter(help="Corrupted: subject, subject+rule, numbers, content, or words (commas)."),
    ] = None,
    corruption: Annotated[
        str | None, Parameter(help="noise, or counterfactual (a twin prompt).")
    ] = None,
    metrics: Annotated[
        str | None, Parameter(help="Scores, separated by commas: mean_log_prob, negative_kl, …")
    ] = None,
    method: Annotated[
        str | None, Parameter(help="exact, attribution (gradients) or screen.")
    ] = None,
    memory: Annotated[str | None, Parameter(help="Memory of a batch, such as 4GiB.")] = None,
    prompt: Annotated[
        str | None, TEXT, Parameter(help="Trace this prompt instead of rules; needs --subject.")
    ] = None,
    subject: Annotated[
        str | None, TEXT, Parameter(help="What the prompt is about, as it stands there: corrupted.")
    ] = None,
    answer: Annotated[
        str | None, TEXT, Parameter(help="Answer to score. Default: the model's own greedy answer.")
    ] = None,
    space: Annotated[
        bool | None,
        Parameter(help="Whether a space is between prompt and answer. Default: as in the text."),
    ] = None,
    words: Annotated[
        str | None, TEXT, Parameter(help="Further words of the prompt to corrupt (commas).")
    ] = None,
    plot: Annotated[
        Path | None, Parameter(help="Draw the prompt's effect map into this .png or .pdf.")
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(
            help="NetCDF file of the prompt's effect map. Default: beside the plot, or map.nc."
        ),
    ] = None,
    common: Common | None = None,
) -> None:
    """Trace each form of each rule, or a prompt of your own: which layer and token carries the
    answer.

    Corrupts the tokens that name the rule, restores one state at a time, and scores the whole
    answer. Writes one effect map per prompt as it goes (a stopped trace continues) and `effects.nc`
    at the end. A prompt of your own (--prompt) uses no rules and no run folder.

    For example:

        dmle trace --prompt "The capital of France is" --subject France --plot map.png

        dmle trace --run runs/mine --samples 4

        dmle trace --run runs/mine --positions subject_last,rule_word,last --limit 5

        dmle trace --run runs/two --corruption counterfactual --metrics logit_difference,negative_kl

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
    settings = {f"trace.{name}": value for name, value in flags.items()}
    own = {
        "subject": subject,
        "answer": answer,
        "space": space,
        "words": words,
        "plot": plot,
        "out": out,
    }
    if prompt is not None or any(value is not None for value in own.values()):
        _trace_own({"prompt": prompt, **own}, common or Common(), settings)
    else:
        execute(["trace"], common, settings)


def profile(*, common: Common | None = None) -> None:
    """Average the effect maps into layer profiles with bootstrap intervals, and compare the depths
    of the forms.

    For example:

        dmle profile --run runs/mine

        dmle profile --run runs/mine --set profile.confidence=0.9
    """
    execute(["profile"], common, {})


def select(
    *,
    strategy: Annotated[
        str | None,
        Parameter(help=f"One of {', '.join(strategies.names())}."),
    ] = None,
    width: Annotated[int | None, Parameter(help="Layers of strategies that take windows.")] = None,
    component: Annotated[str | None, Parameter(help="mlp, attn or resid.")] = None,
    export_dmle: Annotated[
        Path | None, Parameter(help="Also write the published driver's config.json here.")
    ] = None,
    export_easyedit: Annotated[
        Path | None,
        Parameter(help="Also write EasyEdit's MEMIT and AlphaEdit settings into this folder."),
    ] = None,
    common: Common | None = None,
) -> None:
    """Choose the layers to edit, for each group of forms, with the evidence for the choice.

    A strategy that chooses rule by rule also writes `selection-rules.json`.

    For example:

        dmle select --run runs/mine

        dmle select --run runs/mine --strategy window --width 5

        dmle select --run runs/mine --set select.max_width=6

        dmle select --run runs/mine --export-dmle data/config.json --export-easyedit hparams
    """
    flags = {"select.strategy": strategy, "select.width": width, "select.component": component}
    execute(["select"], common, flags)
    if export_dmle or export_easyedit:
        _export((common or Common()).run / "selection.json", export_dmle, export_easyedit)


def _export(path: Path, dmle: Path | None, easyedit: Path | None) -> None:
    """Write a selection into the files of other drivers."""
    from interp.selection.exports import METHODS
    from interp.selection.layers import LayerSelection

    try:
        selection = LayerSelection.load(path)
        model = str(selection.provenance.get("model", "unknown"))
        files: dict[Path, str] = {}
        if dmle:
            files[dmle] = json.dumps(selection.to_dmle_config(), indent=2) + "\n"
        if easyedit:
            for method in METHODS:
                for group in selection.groups:
                    name = f"{method}-{group.name.replace('+', '-')}.yaml"
                    files[easyedit / name] = selection.to_easyedit_yaml(group.name, model, method)
        for target, text in files.items():
            write_text(target, text)
            say(f"exported: {target}")
    except (DmleError, OSError) as error:
        _fail(error)


def _trace(context: Context) -> str:
    from interp.app import freshness
    from interp.results import effects
    from interp.tracing import prompt
    from interp.tracing import trace as tracing

    config = context.settings(TraceConfig)
    rules, folder = traced_rules(context), context.run.path / "traces"
    shape = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} prompts [{elapsed}<{remaining}]"
    with tqdm(total=len(tracing.prompts(rules)), desc="trace", bar_format=shape) as bar:
        skipped = tracing.trace_rules(
            context.model, rules, config, folder, overwrite=context.overwrite, advance=bar.update
        )
    path = context.run.path / "effects.nc"
    record = freshness.made(context, "trace", ["trace"], rules=["trace"])
    wanted = tracing.fingerprints(context.model, rules, config)
    tracing.collect(
        rules, folder, skipped, path, fingerprints=wanted, attrs={freshness.RECORD: record.text()}
    )
    if context.overwrite:
        tracing.remove_others(rules, folder)
    with effects.opened(path) as joined:
        te = effects.total_effect(effects.choose_metric(joined))
        traced = int((joined["n_tokens"] > 0).sum())
        estimated = _estimated(joined)
    positions = "all" if config.positions == "all" else " ".join(config.positions)
    noisy = config.corruption == "noise"
    corruption = f"{config.samples} noise samples" if noisy else "counterfactual prompts"
    lines = [
        (
            f"{traced} prompts traced, {int(te['traceable'].sum())} of them traceable (total effect"
            f" above two standard errors); {len(skipped)} skipped"
        ),
        (
            f"self-check: {context.model.check}; route: {prompt.engine(context.model, config)};"
            f" method: {config.method}"
        ),
        f"{corruption}; positions: {positions}",
        *estimated,
        *(f"skipped {s.rule}/{s.form}: {s.reason}" for s in skipped),
        f"effect maps: {path}",
    ]
    return "\n".join(lines)


def _trace_own(own: Mapping[str, Any], common: Common, flags: Mapping[str, Any]) -> None:
    """Trace one prompt of the user's own, without a run folder."""
    try:
        request, context = _own_prompt(own, common, flags)
        config = context.settings(TraceConfig)
        request.check(config, overwrite=common.overwrite)
        model = context.model
        from interp.results import effects

        shape = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
        with tqdm(total=1, desc="trace", bar_format=shape) as bar:
            # Shares sum to 1 but for rounding, which tqdm would warn of.
            traced = trace_one(
                model, request, config, advance=lambda share: bar.update(min(share, 1 - bar.n))
            )
        effects.save(traced, request.map_path)
        one = effects.choose_metric(traced)
        lines = [*report(one), *_estimated(traced), f"effect map: {request.map_path}"]
        if request.plot is not None:
            find_plot().load()(one, request.plot)
            lines.append(f"figure: {request.plot}")
        say("\n".join(lines))
    except KeyboardInterrupt:
        say("stopped; nothing was written", style="yellow")
        sys.exit(STOPPED)
    except (DmleError, OSError) as error:
        _fail(error)


def _own_prompt(
    own: Mapping[str, Any], common: Common, flags: Mapping[str, Any]
) -> tuple[PromptRequest, Context]:
    """The prompt of the command line, and the settings in force.

    Raises:
        ValueError: Flags are missing or do not go together.
    """
    if own["prompt"] is None:
        given = ", ".join(f"--{name}" for name, value in own.items() if value is not None)
        raise ConfigError(
            f"{given} needs --prompt, the text to trace; leave it out to trace the run's rules"
        )
    if own["subject"] is None:
        raise ConfigError(
            "--prompt needs --subject, the words of the prompt that it is about, such as --subject"
            " France"
        )
    unused = {"--run": common.run != DEFAULT_RUN, "--rules": common.rules, "--limit": common.limit}
    if wrong := [flag for flag, value in unused.items() if value]:
        raise ConfigError(
            f"{', '.join(wrong)} does not go with --prompt, which has no rules and no run folder;"
            " leave it out, give settings by --config or --set, and the file of the map by --out"
        )
    raw = _raw_settings({}, common, flags)
    trace = raw.get("trace") or {}
    if isinstance(trace, dict):
        raw["trace"] = {**ONE_PROMPT_DEFAULTS, **trace}
    words = tuple(word.strip() for word in (own["words"] or "").split(",") if word.strip())
    return PromptRequest(**{**own, "words": words}), Context(
        RunFolder(common.run), parse_settings(load_steps(), raw)
    )


def _estimated(joined: "xr.Dataset") -> list[str]:
    """What a method that does less than the exact sweep says of its saving and its error, over
    all prompts.
    """
    import numpy as np

    def every(name: str) -> Any:
        # One value for all prompts is an attribute, different ones are a coordinate of texts.
        held = (
            joined[name].values.ravel() if name in joined.coords else [joined.attrs.get(name, "")]
        )
        return np.array([float(value) for value in held if value != ""])

    shares, missed = every("exact_share"), every("missed_mass")
    if not shares.size:
        return []
    said = f"run exactly: {shares.mean():.0%} of the site and sample runs of the exact sweep"
    if missed.size:
        said += (
            f"; absolute effects wrong by (audit): {missed.mean():.0%} on average,"
            f" {missed.max():.0%} at most"
        )
    return [said]


def traced_rules(context: Context) -> list[Rule]:
    """Rules that are traced (`trace.splits`)."""
    return context.rules_of(context.settings(TraceConfig).splits, "trace.splits")


def _profile(context: Context) -> str:
    from interp.app import freshness
    from interp.results import effects
    from interp.selection.profiles import layer_profile

    record = freshness.made(context, "profile", ["profile"], inputs=["effects.nc"])
    with effects.opened(context.run.need("effects.nc", "trace")) as maps:
        result = layer_profile(maps, context.settings(ProfileConfig))
    result.attrs[freshness.RECORD] = record.text()
    path = context.run.path / "profile.nc"
    effects.save(result, path)
    said = _order_of_forms(context, result)
    te = ", ".join(
        f"{form} {value:.2f}"
        for form, value in zip(result["form"].values, result["te"].values, strict=True)
    )
    lines = [
        (
            f"mean total effect ({result.attrs['unit']}): {te}; {result.attrs['n_untraceable']} of "
            f"{result.attrs['n_prompts']} prompts left out as not traceable"
        ),
        *said,
        f"layer profile: {path}",
    ]
    return "\n".join(lines)


def _order_of_forms(context: Context, profile: "xr.Dataset") -> list[str]:
    """Write `form_order.csv`, which reads the selection's component and bounds, and say what it
    says.
    """
    from interp.results.files import write_text
    from interp.selection import form_order

    path = context.run.path / "form_order.csv"
    try:
        of_rules = form_order.depths(profile, context.settings(SelectConfig))
        contrasts = form_order.compare_forms(of_rules)
        write_text(path, form_order.table(contrasts).to_csv(index=False))
    except (
        DmleError
    ) as error:  # the profile is whole even so: the selection may read another component
        path.unlink(missing_ok=True)  # of other maps
        return [f"order of the forms: not compared, {error}"]
    return [*form_order.report(of_rules, contrasts), f"order of the forms: {path}"]


def _read_by_select(context: Context) -> tuple[str, ...]:
    """Files that the selection's strategy reads."""
    strategy = strategies.get(context.settings(SelectConfig).strategy)
    return tuple(f"{source}.nc" for source in strategy.reads)


def _fresh(context: Context, names: Sequence[str]) -> None:
    """See that what a step reads is there, and was made with what is in force."""
    from interp.app import freshness

    for name in names:
        context.run.need(name, freshness.MAKERS[name])
    freshness.check(context, *names)


def _select(context: Context) -> str:
    from interp.app import freshness
    from interp.results import effects
    from interp.selection.adaptive import select_for_rules
    from interp.selection.from_sweep import select_from_sweep
    from interp.selection.layers import save_for_rules
    from interp.selection.reasons import layer_names
    from interp.selection.select import select_layers

    config, run = context.settings(SelectConfig), context.run
    of_rules = run.path / "selection-rules.json"
    more, own = [], None
    strategy = strategies.get(config.strategy)
    read = {name: effects.load(run.need(f"{name}.nc", name)) for name in strategy.reads}
    if "sweep" in read:
        selection = select_from_sweep(read["sweep"], config)
    else:
        profile = read["profile"]
        _order_of_forms(context, profile)  # of this selection's component
        selection = select_layers(profile, config, evidence=read.get("evidence"))
        own = select_for_rules(profile, config) if strategy.by_rule else None
    made = freshness.made(
        context, "select", ["select"], inputs=_read_by_select(context)
    ).model_dump(mode="json")
    selection = selection.model_copy(
        update={"provenance": {**selection.provenance, freshness.RECORD: made}}
    )
    if own is None:
        of_rules.unlink(missing_ok=True)  # of another strategy's run
    else:
        save_for_rules(own, of_rules)
        more.append(f"selections rule by rule: {of_rules}")
    path = run.path / "selection.json"
    selection.save(path)
    if "width" in config.model_fields_set and strategy.size != "width":
        more.append(
            f"select.width = {config.width} is not read by the strategy {strategy.name}, which"
            " sets its own"
        )
    lines = []
    for group in selection.groups:
        lines += [f"{group.name}: {layer_names(group.layers)}", f"  {group.reason}"]
    return "\n".join([*lines, *more, f"selection: {path}"])


TRACE = Step("trace", _trace, trace, {"trace": TraceConfig}, needs_model=True, check=traced_rules)
PROFILE = Step(
    "profile",
    _profile,
    profile,
    {"profile": ProfileConfig, "select": SelectConfig},
    fresh=lambda context: _fresh(context, ["effects.nc"]),
    settles=("profile",),
)
SELECT = Step(
    "select",
    _select,
    select,
    {"select": SelectConfig},
    fresh=lambda context: _fresh(context, _read_by_select(context)),
)


# -- the chain -----------------------------------------------------------------------------------


def run(
    *,
    samples: Annotated[int | None, Parameter(help="Noise samples per prompt.")] = None,
    layers: Annotated[
        str | None, Parameter(help="auto, a selection.json, or 3,4,5/12,13,14.")
    ] = None,
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
    try:
        from interp.models import corpus
        from interp.models import loading as model

        say(f"embedded model: {model.find(model.EMBEDDED)}")
        source, texts = corpus.paragraphs()
        say(f"embedded corpus: {source.name}, {len(texts)} paragraphs")
    except (DmleError, OSError) as error:
        _fail(error)


def execute(
    names: Sequence[str],
    common: Common | None,
    flags: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
) -> None:
    """Check everything, then run the steps in order; what is done stays when a later one fails.

    Flags may be a function that reads them: its errors are then told like those of any setting.
    """
    common = common or Common()
    started: list[str] = []
    try:
        steps = load_steps()
        folder = RunFolder(common.run)
        given = flags() if callable(flags) else flags
        held = {} if common.overwrite and not folder.known else folder.settings
        raw = _raw_settings(held, common, given)
        options = _options(common, {} if callable(flags) else given)
        context = Context(folder, parse_settings(steps, raw), common.overwrite, raw, options)
        context.lock.tell = lambda line: say(line, style="yellow")
        folder.create()
        _check(context, [steps[name] for name in names])
        for refusal in context.rules.refused:
            say(f"rule refused, {refusal.where}: {refusal.reason}")
        if context.rules.repairs:
            say(f"rules mended: {counted(context.rules.repairs)}")
        for name in names:
            started.append(name)
            heading(name)
            say(_run_step(context, steps[name]))
    except KeyboardInterrupt:
        at = started[-1] if started else "set-up"
        say(f"stopped in {at}; run the same command again to continue", style="yellow")
        sys.exit(STOPPED)
    except (DmleError, OSError) as error:
        _fail(error)
    say(_next(names[-1], common.run), style="bold")


def _run_step(context: Context, step: Step) -> str:
    """Run one step, alone in the run folder unless it shares the work, and keep `run.yaml` and
    `rules.json` true.
    """
    resolved = {name: section.model_dump(mode="json") for name, section in context.sections.items()}
    settled = {
        *(COMMON if step.needs_model else ()),
        *(step.sections if step.settles is None else step.settles),
    }
    alone = nullcontext() if step.shares else context.lock
    with alone:
        step.fresh(context)
        with context.run.making(
            step.name, settled, context.given, resolved, versions(), context.lock
        ):
            said = step.run(context)
            with context.lock:
                dump_rules(context.rules.rules, context.run.path / "rules.json", sealed=True)
    return said


def main(tokens: Sequence[str] | None = None) -> None:
    """Entry point of `dmle`; the tokens are those of the command line unless they are given."""
    _app()(tokens)


def _app() -> App:
    app = App(
        name="dmle",
        help=(
            "Trace where a language model keeps each form of a rule, select the layers, and edit"
            " the rule there."
        ),
        result_action="return_value",
    )
    for step in load_steps().values():
        app.command(step.command, name=step.name)
    app.command(run, name="run")
    app.command(setup, name="setup")
    app.command(rules_app)
    return app


def _raw_settings(
    held: Mapping[str, Any], common: Common, flags: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings by section, unchecked: the run's own, then the file's, then the flags' (see
    `interp.settings.assignments`).
    """
    known, raw = known_sections(load_steps()), {}
    merge(raw, held, known)
    merge(raw, read_yaml(common.config) if common.config else {}, known)
    short = {"model.name": common.model, "rules.source": common.rules, "rules.limit": common.limit}
    for key, value in {**short, "model.device": common.device, **flags}.items():
        if value is not None:
            assign(raw, key, value, known)
    for key, value in map(read_assignment, common.set):
        assign(raw, key, value, known)
    return raw


def _options(common: Common, flags: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The flags that give settings, as a command line takes them."""
    short = {
        "--config": common.config,
        "--model": common.model,
        "--rules": common.rules,
        "--limit": common.limit,
    }
    found = [
        (flag, str(value))
        for flag, value in {**short, "--device": common.device}.items()
        if value is not None
    ]
    found += [
        ("--set", f"{key}={json.dumps(value)}") for key, value in flags.items() if value is not None
    ]
    return found + [("--set", text) for text in common.set]


def _check(context: Context, steps: Sequence[Step]) -> None:
    """Bad input shows before the first step: the rules are read and the model is looked up."""
    for step in steps:
        step.check(context)
    if any(step.needs_model for step in steps):
        _ = context.model


def _next(name: str, folder: Path) -> str:
    if name not in CHAIN:
        return f"Done. Look at {folder}."
    if name == CHAIN[-1]:
        return f"Done. Open {folder / 'report.html'}; figures and tables are beside it."
    return f"Done. Next: {command('dmle', CHAIN[CHAIN.index(name) + 1], '--run', folder)}"


def _fail(error: BaseException) -> None:
    say(f"error: {one_line(error)}", style="red")
    sys.exit(FAILED)


if __name__ == "__main__":
    main()
