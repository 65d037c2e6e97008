"""The `dmle` command: one subcommand per step, and `dmle run` for the whole chain.

Settings come from the run folder's `run.yaml`, then a configuration file, then flags; later ones
win. All of them are checked before any work starts. Heavy imports happen inside the steps.

Errors end here: only a `DmleError`, an error of the system and Ctrl-C become one line and an exit
code. Anything else is a traceback, since it is a fault of the code.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Annotated

from cyclopts import App, Parameter

from interp.app.atlas_commands import app as atlas_app
from interp.app.atlas_step import AUTO
from interp.app.command_line import (
    LAYERS_HELP,
    Common,
    ExecutorOptions,
    TraceOptions,
    execute,
    split,
)
from interp.app.export_command import export
from interp.app.plan_command import plan_command
from interp.app.prompt_command import trace_prompt
from interp.app.rules_commands import app as rules_app
from interp.app.steps import CHAIN
from interp.config import ConfigError
from interp.errors import DmleError
from interp.results.printing import one_line, say
from interp.selection import strategies

FAILED, STOPPED = 2, 130


def trace(
    *,
    corruption: Annotated[
        str | None, Parameter(help="noise, or counterfactual (a prompt about another rule).")
    ] = None,
    tracing: TraceOptions | None = None,
    executing: ExecutorOptions | None = None,
    common: Common | None = None,
) -> None:
    """Trace each form of each rule: which layers and tokens carry the answer.

    Corrupts the tokens that name the rule, restores one state at a time, and scores the whole
    answer. Writes one effect map per prompt, and `effects.nc` at the end. A stopped trace
    continues. For a prompt of your own, use `dmle trace-prompt`.

    For example:

        dmle trace --run runs/mine --samples 4

        dmle trace --run runs/mine --positions subject_last,rule_word,last --limit 5

        dmle trace --run runs/two --corruption counterfactual --metrics logit_difference,negative_kl

        dmle trace --run runs/screened --positions all --method screen --memory 1GiB

        dmle trace --run runs/mine --executor processes --workers 4

        dmle trace --run runs/llama --model meta-llama/Meta-Llama-3-8B --set model.dtype=bfloat16
    """
    settings = {
        **(tracing or TraceOptions()).settings(),
        **(executing or ExecutorOptions()).settings(),
    }
    execute(["trace"], common, {**settings, "trace.corruption": corruption})


def faithfulness(
    *,
    components: Annotated[
        str | None, Parameter(help="What is restored, each by itself (commas): resid, mlp, attn, …")
    ] = None,
    methods: Annotated[
        str | None, Parameter(help="Rankings (commas): exact, screen, attribution, random.")
    ] = None,
    common: Common | None = None,
) -> None:
    """Measure what the best sites of effect maps bring back together, for each way to rank them.

    Ranks the sites of each prompt, restores the first ones together, and reports the recovered
    share of the total effect and the area under its curve. Corruption, samples and positions are
    those of `trace`. A stopped study continues.

    For example:

        dmle faithfulness --run runs/mine

        dmle faithfulness --run runs/mine --components mlp --methods exact,random --limit 5
    """
    flags = {"faithfulness.components": split(components), "faithfulness.methods": split(methods)}
    execute(["faithfulness"], common, flags)


def profile(*, common: Common | None = None) -> None:
    """Average the effect maps into layer profiles with bootstrap intervals, and compare the depths
    of the forms.

    For example:

        dmle profile --run runs/mine

        dmle profile --run runs/mine --set profile.confidence=0.9
    """
    execute(["profile"], common)


def select(
    *,
    strategy: Annotated[
        str | None,
        Parameter(help=f"One of {', '.join(strategies.names())}."),
    ] = None,
    width: Annotated[int | None, Parameter(help="Number of layers of a window.")] = None,
    component: Annotated[str | None, Parameter(help="Profile to read: mlp, attn or resid.")] = None,
    from_atlas: Annotated[
        bool | str | None,
        Parameter(
            help="Take the profile from the atlas (`dmle atlas`), not from a trace: the entry of"
            " the run's model, or the one that is named.",
            negative=(),
        ),
    ] = None,
    common: Common | None = None,
) -> None:
    """Select the layers to edit for each group of forms, and give the reason.

    A strategy that chooses rule by rule also writes `selection-rules.json`, which edits with
    layers: adaptive read. With `--from-atlas` no trace is needed, if the atlas has the model.
    `dmle export` writes settings for other editors.

    For example:

        dmle select --run runs/mine

        dmle select --run runs/mine --strategy window --width 5

        dmle select --run runs/mine --strategy adaptive

        dmle select --run runs/mine --strategy auto --set select.lookup=mention_last

        dmle select --run runs/mine --set select.max_width=6

        dmle select --run runs/mine --from-atlas

        dmle select --run runs/gemma --model gemma3-270m --from-atlas gemma3-270m --strategy window
    """
    flags = {"select.strategy": strategy, "select.width": width, "select.component": component}
    if not from_atlas:
        execute(["select"], common, flags)
        return
    entry = AUTO if from_atlas is True else from_atlas
    execute(["atlas", "select"], common, {**flags, "atlas.entry": entry})


def run(
    *,
    samples: Annotated[int | None, Parameter(help="Noise samples per prompt.")] = None,
    layers: Annotated[str | None, Parameter(help=LAYERS_HELP)] = None,
    preset: Annotated[
        str | None,
        Parameter(
            help="Published settings of edits: gpt-j-6b, qwen2.5-7b, qwen2-7b or llama-3-8b;"
            " 'paper' takes those of the name of --model."
        ),
    ] = None,
    executing: ExecutorOptions | None = None,
    common: Common | None = None,
) -> None:
    """Run the whole chain: trace, profile, select, edit, evaluate, figures.

    The same command continues a stopped run.

    For example:

        dmle run --run runs/mine

        dmle run --rules RuleEdit-200.zip --limit 3 --run runs/ruleedit

        dmle run --config demo.yaml --run runs/demo

        dmle run --model EleutherAI/gpt-j-6b --preset paper --run runs/gpt-j
    """
    settings = (executing or ExecutorOptions()).settings()
    settings |= {"trace.samples": samples, "edit.layers": layers}
    if preset is not None:
        settings["edit.preset"] = published(preset, (common or Common()).model)
    execute(CHAIN, common, settings)


def published(preset: str, model: str | None) -> str:
    """The preset of a name; that of a model's name for `paper`.

    >>> published("paper", "meta-llama/Meta-Llama-3-8B"), published("gpt-j-6b", None)
    ('llama-3-8b', 'gpt-j-6b')

    Raises:
        ConfigError: No model is named.
    """
    if preset != "paper":
        return preset
    if model is None:
        raise ConfigError(
            "--preset paper takes the published settings of a model's name: give --model, such as"
            " --model EleutherAI/gpt-j-6b, or name the settings, such as --preset gpt-j-6b"
        )
    return model.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")


def setup() -> None:
    """Prepare the embedded model and corpus once, in the user's cache.

    For example:

        dmle setup
    """
    from interp.models import corpus
    from interp.models import loading as model

    say(f"embedded model: {model.find(model.EMBEDDED)}")
    source, texts = corpus.paragraphs()
    say(f"embedded corpus: {source.name}, {len(texts)} paragraphs")


def main(tokens: Sequence[str] | None = None) -> None:
    """Entry point of `dmle`; the tokens are those of the command line unless they are given."""
    try:
        application()(tokens)
    except KeyboardInterrupt as stop:
        say(str(stop) or "stopped", style="yellow")
        sys.exit(STOPPED)
    except (DmleError, OSError) as error:
        say(f"error: {one_line(error)}", style="red")
        sys.exit(FAILED)


def application() -> App:
    """All commands, also those of other packages (entry points `dmle.commands`)."""
    app = App(
        name="dmle",
        help=(
            "Trace where a language model keeps each form of a rule, select the layers, and edit"
            " the rule there. Begin with `dmle run` or `dmle trace-prompt`."
        ),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    own = (trace, trace_prompt, faithfulness, profile, select, atlas_app, export, run, setup)
    for command in (*own, rules_app):
        app.command(command)
    app.command(plan_command(application), name="plan")
    for point in entry_points(group="dmle.commands"):
        app.command(point.load(), name=point.name)
    return app


if __name__ == "__main__":
    main()
