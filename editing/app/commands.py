"""The editing commands of `dmle`: each turns its flags into settings and runs one step."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from editing.app.prompt_edit import PromptEdit, edit_prompt
from editing.names import editor_names
from interp.app.command_line import (
    LAYERS_HELP,
    TEXT,
    Common,
    ExecutorOptions,
    Stopped,
    execute,
    split,
)
from interp.config import ConfigError
from interp.results.printing import say
from interp.settings.plain_yaml import load_yaml

PRESETS = ("paper",)


@Parameter(name="*")
@dataclass(frozen=True)
class OwnPrompt:
    """Flags of an edit of one prompt, without rules and without a run folder."""

    prompt: Annotated[
        str | None, TEXT, Parameter(help="Edit this text in place of rules; needs --new.")
    ] = None
    new: Annotated[str | None, TEXT, Parameter(help="How the prompt shall be continued.")] = None
    subject: Annotated[
        str | None,
        TEXT,
        Parameter(help="What the prompt is about, for editors that look it up there."),
    ] = None
    space: Annotated[
        bool | None,
        Parameter(help="Whether a space is between prompt and answer. Default: as in the text."),
    ] = None
    keep: Annotated[
        tuple[str, ...] | None,
        TEXT,
        Parameter(
            help="A prompt at which the model shall go on saying what it says now. May be repeated:"
            " give prompts that are like the edited one."
        ),
    ] = None
    out: Annotated[
        Path | None, Parameter(help="File of the prompt's edit. Default: edit.safetensors.")
    ] = None
    export: Annotated[
        Path | None, Parameter(help="Also write the edited model into this folder (Hugging Face).")
    ] = None
    export_adapter: Annotated[
        Path | None, Parameter(help="Also write the edit into this folder as a PEFT adapter.")
    ] = None

    @property
    def edit(self) -> PromptEdit:
        """What is asked for."""
        return PromptEdit(
            self.prompt,
            self.new,
            self.subject,
            self.space,
            self.keep,
            self.out,
            self.export,
            self.export_adapter,
        )


def edit(
    *,
    layers: Annotated[str | None, Parameter(help=LAYERS_HELP)] = None,
    editors: Annotated[
        str | None,
        Parameter(
            help="Editors or arms separated by commas, such as dmle,memit,ft. Editors:"
            f" {', '.join(editor_names())}."
        ),
    ] = None,
    own: OwnPrompt | None = None,
    common: Common | None = None,
) -> None:
    """Edit each rule in all its forms and save each edit; the model itself does not change.

    With --prompt and --new it edits one prompt of your own. That needs no rules and no run folder.

    Every editor gets the same requests, contexts and statistics of the unedited model. An arm is a
    variant of an editor, named under `edit.arms` of a configuration file.

    For example:

        dmle edit --run runs/mine

        dmle edit --run runs/mine --layers 3,4,5/12,13,14

        dmle edit --run runs/mine --layers adaptive --editors dmle

        dmle edit --run runs/mine --set edit.lookup=rule_word_last --set edit.protection=joint

        dmle edit --run runs/mine --editors dmle,memit,alphaedit,rome,ft,lora,grace,ice,ike

        dmle edit --prompt "The capital of France is" --new Rome --keep "The capital of Germany is"
    """
    asked = own or OwnPrompt()
    if asked.edit.asked:
        if common is not None and common.dry_run:
            raise ConfigError("--dry-run: there is no plan of an edit of one prompt")
        try:
            say("\n".join(edit_prompt(asked.edit, editors, layers, common or Common())))
        except KeyboardInterrupt as stop:
            raise Stopped("stopped; nothing was written") from stop
        return
    execute(["edit"], common, {"edit.layers": layers, "edit.editors": split(editors)})


def covariance(
    *,
    layers: Annotated[str | None, Parameter(help=LAYERS_HELP)] = None,
    editors: Annotated[str | None, Parameter(help="Editors or arms separated by commas.")] = None,
    common: Common | None = None,
) -> None:
    """Measure the statistics of keys that editors need, before edits: those that are in the run
    folder are not measured again.

    The commands that edit measure what they need by themselves. This one does it alone, for example
    on the machine with the most memory.

    For example:

        dmle covariance --run runs/mine --editors dmle,memit

        dmle covariance --run runs/mine --layers 3,4,5/12,13,14 --set covariance.tokens=1000000
    """
    execute(["covariance"], common, {"edit.layers": layers, "edit.editors": split(editors)})


def evaluate(*, common: Common | None = None) -> None:
    """Score the model before and after every edit: reliability, generality, locality, instance
    portability, rule understanding.

    For example:

        dmle evaluate --run runs/mine
    """
    execute(["evaluate"], common)


def compare(
    *,
    preset: Annotated[
        str | None, Parameter(help="paper: the arms that the claims of the paper need.")
    ] = None,
    editors: Annotated[str | None, Parameter(help="Editors or arms separated by commas.")] = None,
    executing: ExecutorOptions | None = None,
    common: Common | None = None,
) -> None:
    """Edit every rule with every arm (editor or variant), score each edit, and compare the arms.

    All arms get the same requests. One file per rule, arm and seed: a stopped comparison continues,
    and several processes may work on one run folder. A failure of an arm is counted, never scored
    as zero. Arms with layers: auto need `selection.json` in the run folder, those with layers:
    adaptive `selection-rules.json`. --editors and --set override a preset.

    For example:

        dmle compare --preset paper --run runs/compare

        dmle compare --editors dmle,memit,ft --run runs/small --limit 2
    """
    settings = {**preset_settings(preset), **(executing or ExecutorOptions()).settings()}
    execute(["compare"], common, {**settings, "edit.editors": split(editors)})


def tune(*, executing: ExecutorOptions | None = None, common: Common | None = None) -> None:
    """Try a grid of settings on training rules, and write the best with the scores to `tuned.yaml`.

    The grid is `tune.grid` of a configuration file: settings of an editor with their values, or a
    list of such grids. Every combination is an arm on top of `edit`. `tune.floors` says what an arm
    must keep to be chosen. Rules without a split must be named in `rules.ids`: do not evaluate on
    them.

    For example:

        dmle tune --config docs/tune.yaml --rules RuleEdit-200.zip --run runs/tune
    """
    execute(["tune"], common, (executing or ExecutorOptions()).settings())


def sweep(*, executing: ExecutorOptions | None = None, common: Common | None = None) -> None:
    """Edit rules at every window of layers, one group of forms at a time, and score each edit.

    Also edits the layers that strategies and baselines choose from the run folder's `profile.nc`
    (and `evidence.nc`, if it is there), so that `dmle regret` can score them. One file per edit: a
    stopped sweep continues, and several processes may work on one run folder.

    For example:

        dmle sweep --run runs/mine --set sweep.step=4 --set sweep.limit=2
    """
    execute(["sweep"], common, (executing or ExecutorOptions()).settings())


def regret(*, common: Common | None = None) -> None:
    """Compare each way to choose layers with the best window of a sweep; needs no model.

    Reads `sweep.nc`, `profile.nc`, `evidence.nc` (if it is there) of the run folder; writes
    `regret.nc`, `regret.csv` and a table: the score at the chosen layers, the oracle's, the regret
    with its interval over rules, the rank of the choice among all windows, how well the profile and
    the evidence rank windows, and how much better the default strategy is than each other choice.

    For example:

        dmle regret --run runs/mine
    """
    execute(["regret"], common)


def sequence(
    *,
    editors: Annotated[str | None, Parameter(help="Editors or arms separated by commas.")] = None,
    common: Common | None = None,
) -> None:
    """Edit many rules into one model, in sequence and in one batch, and score it on the way.

    After some of the rules (`sequence.checkpoints`) the model is asked the rules edited so far,
    rules that are not edited, and plain text. Writes `sequence.nc` and `sequence.csv`. The weights
    are kept after every rule, so that a stopped study continues.

    For example:

        dmle sequence --editors ft_whitened,ft --run runs/many --set edit.limit=10
    """
    execute(["sequence"], common, {"edit.editors": split(editors)})


def evidence(*, common: Common | None = None) -> None:
    """Estimate where an edit could reach the answer and spare other prompts, without an edit.

    Writes `evidence.nc`: measures by form and layer, for the rules of the run folder's
    `profile.nc`. The strategy `combined` reads it beside the profile, `reach` and `lga` read one
    measure of it, and `dmle regret` says how well each ranks layers. A stopped run continues.

    For example:

        dmle evidence --run runs/mine

        dmle select --run runs/mine --strategy combined
    """
    execute(["evidence"], common)


def preset_settings(name: str | None) -> dict[str, Any]:
    """Settings of a preset by ``section.key``; none without a name.

    Raises:
        ConfigError: There is no such preset.
    """
    if name is None:
        return {}
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}; there is {', '.join(PRESETS)}")
    sections = load_yaml(files("editing").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    return {
        f"{section}.{key}": value
        for section, values in sections.items()
        for key, value in values.items()
    }
