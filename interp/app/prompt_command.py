"""`dmle trace-prompt`: the effect map of one prompt, without rules and without a run folder."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from interp.app.command_line import TEXT, ModelOptions, Stopped, TraceOptions
from interp.app.run import raw_settings
from interp.app.steps import Context, load_steps, parse_settings
from interp.config import TraceConfig
from interp.results.plots import find_plot
from interp.results.printing import say
from interp.results.run_folder import RunFolder
from interp.tracing.one_prompt import DEFAULTS, PromptRequest, report, trace_one

BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"


def trace_prompt(
    prompt: Annotated[str, TEXT, Parameter(help="The text to trace.")],
    *,
    subject: Annotated[
        str, TEXT, Parameter(help="What the prompt is about, as written there. Is corrupted.")
    ],
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
    tracing: TraceOptions | None = None,
    options: ModelOptions | None = None,
) -> None:
    """Trace a prompt of your own: which layers and tokens carry the answer.

    Corrupts the subject, restores one state at a time, and scores the whole answer. It needs no
    rules and no run folder.

    For example:

        dmle trace-prompt "The capital of France is" --subject France --plot map.png

        dmle trace-prompt --prompt "The capital of France is" --subject France --answer Paris
    """
    phrases = [word.strip() for word in (words or "").split(",")]
    request = PromptRequest(prompt, subject, answer, tuple(filter(None, phrases)), plot, out, space)
    try:
        lines = _trace(request, tracing or TraceOptions(), options or ModelOptions())
    except KeyboardInterrupt as stop:
        raise Stopped("stopped; nothing was written") from stop
    say("\n".join(lines))


def prompt_context(tracing: TraceOptions, options: ModelOptions) -> Context:
    """The settings in force; of a single prompt some have other defaults.

    Raises:
        ConfigError: A setting is unknown or wrong.
    """
    raw = raw_settings({}, config=options.config, settings=options.settings(tracing.settings()))
    own = raw.get("trace") or {}
    if isinstance(own, dict):
        raw["trace"] = {**DEFAULTS, **own}
    return Context(RunFolder(Path()), parse_settings(load_steps(), raw), options.overwrite)


def _trace(request: PromptRequest, tracing: TraceOptions, options: ModelOptions) -> list[str]:
    context = prompt_context(tracing, options)
    config = context.settings(TraceConfig)
    request.check(config, overwrite=options.overwrite)
    model = context.model
    from interp.app.trace_step import estimates
    from interp.results import effects

    with context.progress(total=1, desc="trace", bar_format=BAR) as bar:
        # Shares sum to 1 but for rounding, which tqdm would warn of.
        traced = trace_one(
            model, request, config, advance=lambda share: bar.update(min(share, 1 - bar.n))
        )
    effects.save(traced, request.map_path)
    shown = effects.choose_metric(traced)
    lines = [*report(shown), *estimates(traced), f"effect map: {request.map_path}"]
    if request.plot is not None:
        find_plot("prompt").load()(shown, request.plot)
        lines.append(f"figure: {request.plot}")
    return lines
