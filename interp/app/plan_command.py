"""`dmle plan`: what a command will take, before it is run."""

from collections.abc import Callable, Sequence
from typing import Annotated

from cyclopts import App, Parameter

from interp.app.plans import with_plans
from interp.config import nearest
from interp.errors import InputError

DRY = "--dry-run"


def plan_command(application: Callable[[], App]) -> Callable[..., None]:
    """The command `plan` of an application that has all others.

    Args:
        application: Makes the application.
    """

    def plan(
        *command: Annotated[
            str, Parameter(help="A command with its flags.", allow_leading_hyphen=True)
        ],
    ) -> None:
        """Say what a command will take on this machine, and do nothing.

        Prints tasks, runs of the model, tokens, floating-point operations, the expected time,
        memory and disk, what is done already in the run folder, and what would not fit, with the
        setting that makes it fit. Weights are not loaded: of a model on the hub only `config.json`
        and the tokenizer are needed. The machine is timed for a few seconds on blocks of the
        model's shape.

        Plans are of trace, covariance, edit, evaluate, compare, tune, sweep and run. With `--json`
        a plan is JSON.

        For example:

            dmle plan trace --run runs/mine --samples 10

            dmle plan compare --preset paper --rules RuleEdit-200.zip --run runs/compare

            dmle plan run --model Qwen/Qwen2.5-7B --set model.dtype=bfloat16

            dmle plan covariance --editors memit --set covariance.tokens=1000000 --json
        """
        application()(planned_line(command))

    return plan


def planned_line(command: Sequence[str]) -> list[str]:
    """The command line that says what another one will take.

    Raises:
        InputError: It names no command that has a plan.
    """
    able = [*with_plans(), "run"]
    name = command[0] if command else ""
    if name not in able:
        raise InputError(
            f"dmle plan: there is no plan of {name!r}: {nearest(name, able)}"
            if name
            else f"dmle plan needs a command with its flags: one of {', '.join(able)}"
        )
    return [*command, *(() if DRY in command else (DRY,))]
