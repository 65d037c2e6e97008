"""Edits as they are planned: which there are, what each depends on, and whether a file holds one of
them.

`dmle edit` makes what is planned and not there yet, `dmle evaluate` scores what is planned and
nothing else. What an edit depends on is said without measuring or editing anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from editing.closed_form import covariance
from editing.config import CovarianceConfig, EditConfig, EditorSettings
from editing.editors.registry import editor, load_edit, needs
from editing.edits.requests import EditRequest, requests_of
from editing.edits.retention import retained
from interp.app.freshness import command, differences, settings_of
from interp.app.steps import Context
from interp.errors import StaleError
from interp.results.paths import inside
from interp.results.provenance import VERSIONS, fingerprint
from interp.rules.sources import Rule

if TYPE_CHECKING:
    from editing.edits.protocol import Edit
    from editing.studies.arms import Place
    from interp.models.loading import LanguageModel

ALL = "_all"
"""File name of an edit of all rules."""
RESOLVED = ("layers", "block", "memory")
"""Settings of an editor that the layers stand for, or that change no number."""


@dataclass(frozen=True)
class Planned:
    """One edit of one arm.

    Attributes:
        arm: Name of the arm.
        settings: How it edits.
        rules: Rules that it edits together.
        requests: What it changes.
        path: Its file.
        about: What it depends on.
        evaluated: Rules that are evaluated under it.
    """

    arm: str
    settings: EditorSettings
    rules: tuple[Rule, ...]
    requests: tuple[EditRequest, ...]
    path: Path
    about: Mapping[str, Any]
    evaluated: tuple[Rule, ...] = ()

    @property
    def fingerprint(self) -> str:
        """Changes with anything that the edit depends on."""
        return fingerprint(**self.about)

    @property
    def earlier(self) -> str:
        """Fingerprint of the edit before it in a sequence; "" for the first, and for an edit
        alone.
        """
        return self.about["earlier"]

    def kept(self) -> "Edit | None":
        """The edit, if its file is there and holds it.

        Raises:
            EditError: The file is damaged.
        """
        if not self.path.is_file():
            return None
        edit = load_edit(self.path)
        return edit if edit.report.fingerprint == self.fingerprint else None


def plan(
    context: Context,
    rules: Sequence[Rule],
    places: "Mapping[str, Place]",
    training: Sequence[Rule],
) -> dict[str, list[Planned]]:
    """The edits of every arm, in the order in which they are made.

    Args:
        context: Settings and model.
        rules: Rules that are edited.
        places: Where each arm edits.
        training: Rules that IKE demonstrates with, and that prompts are retained of.

    Raises:
        ValueError: A prompt has no place for an arm's lookup, the corpus of the statistics
            cannot be read, or fewer prompts can be retained than are asked for.
    """
    config = context.settings(EditConfig)
    arms = {name: config.settings_of(name) for name in places}
    closed = any(needs(settings, "statistics") for settings in arms.values())
    statistics = context.settings(CovarianceConfig)
    of_statistics = statistics_of(context.model, statistics) if closed else {}
    shown = [rule.id for rule in training]
    plans: dict[str, list[Planned]] = {}
    for name, settings in arms.items():
        shared = {
            "version": VERSIONS["edit"],
            "weights": context.model.weight_hash,
            "settings": _settings(settings),
            "statistics": of_statistics if needs(settings, "statistics") else {},
            "demonstrations": shown if needs(settings, "training rules") else [],
        }
        plans[name] = _plan_of_arm(context, name, rules, places[name], shared, training)
    return plans


def _plan_of_arm(
    context: Context,
    arm: str,
    rules: Sequence[Rule],
    place: "Place",
    shared: Mapping[str, Any],
    training: Sequence[Rule],
) -> list[Planned]:
    """The edits of one arm; `shared` is what all of them depend on."""
    config = context.settings(EditConfig)
    settings = config.settings_of(arm)
    planned: list[Planned] = []
    for group in [rules] if together(config, settings) else [[rule] for rule in rules]:
        requests = tuple(each for rule in group for each in requests_of(rule, settings.lookup))
        in_sequence = config.mode == "sequential" and planned
        # Each edit of a sequence is evaluated with all others in place.
        evaluated = tuple(group if config.mode == "single" else rules)
        kept = retained(settings, training, requests, evaluated) if settings.retained else []
        layers = place.layers_of(group[0].id)
        about = {
            **shared,
            "layers": {forms: list(each) for forms, each in layers.items()},
            "retained": [[each.rule, each.form] for each in kept],
            "requests": {rule.id: _digest(requests, rule) for rule in group},
            "earlier": planned[-1].fingerprint if in_sequence else "",
        }
        path = delta_path(context, arm, group[0] if len(group) == 1 else None)
        planned.append(Planned(arm, settings, tuple(group), requests, path, about, evaluated))
    return planned


def statistics_of(model: "LanguageModel", config: CovarianceConfig) -> dict[str, Any]:
    """What the statistics of keys depend on, by setting."""
    about = covariance.described(model, config)
    if not config.identity:
        about |= {"shrinkage": config.shrinkage}
    return {
        f"covariance.{name}": value
        for name, value in about.items()
        if name not in ("weights", "dtype")
    }


def together(config: EditConfig, settings: EditorSettings) -> bool:
    """Whether an arm edits all rules in one edit."""
    return config.mode == "batch" or (
        config.mode == "sequential" and editor(settings.editor).in_order
    )


def load_planned(context: Context, planned: Sequence[Planned]) -> "list[Edit]":
    """The edits of an arm, each as it is planned.

    Raises:
        RunError: One is missing.
        StaleError: One was made with other settings, rules, layers or statistics, of another model
            or in another mode.
        EditError: A file is damaged.
    """
    edits = []
    for wanted in planned:
        path = context.run.need(str(wanted.path.relative_to(context.run.path)), "edit")
        edit = load_edit(path)
        if edit.report.fingerprint != wanted.fingerprint:
            raise StaleError(
                f"{_difference(context, wanted, edit)}; run `{command(context, 'edit')}` first"
            )
        edits.append(edit)
    return edits


def delta_path(context: Context, arm: str, rule: Rule | None) -> Path:
    """File of one rule's edit, or of all rules' together."""
    return inside(context.run.path, "deltas", arm, f"{rule.id if rule else ALL}.safetensors")


def remove_others(context: Context, plans: Mapping[str, Sequence[Planned]]) -> None:
    """Delete edits that are not planned."""
    kept = {wanted.path for planned in plans.values() for wanted in planned}
    for path in (context.run.path / "deltas").glob("*/*.safetensors"):
        if path not in kept:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()


def _difference(context: Context, wanted: Planned, edit: "Edit") -> str:
    """In words, why a file does not hold the planned edit."""
    before, now = edit.report.made, wanted.about
    if not isinstance(before, Mapping) or before.get("version") != now["version"]:
        return (
            f"{wanted.path} was made by another version, which does not say what it was made with"
        )
    if before["weights"] != now["weights"]:
        return (
            f"{wanted.path} was made for another model ({before['weights']}; this one is"
            f" {now['weights']})"
        )
    settings = (
        {**before["settings"], **before["statistics"]},
        {**now["settings"], **now["statistics"]},
    )
    if difference := differences(str(wanted.path), *settings, {}):
        return difference
    if before["layers"] != now["layers"]:
        return (
            f"{wanted.path} writes {_plan_text(before['layers'])}; with the settings or the"
            f" selection now it would be {_plan_text(now['layers'])}"
        )
    if list(before["requests"]) != list(now["requests"]):
        return f"the edit of {wanted.arm} is of other rules than those to evaluate ({wanted.path})"
    if changed := [
        rule for rule, digest in now["requests"].items() if before["requests"][rule] != digest
    ]:
        return (
            f"{wanted.path} was made of another wording, subject or answer of the rule"
            f" {', '.join(changed)}"
        )
    if before["earlier"] != now["earlier"]:
        mode = context.settings(EditConfig).mode
        return f"the edits of {wanted.arm} were not made one after the other with edit.mode={mode}"
    return f"{wanted.path} was made with other training rules"


def _settings(settings: EditorSettings) -> dict[str, Any]:
    left_out = {f"edit.{name}" for name in RESOLVED}
    return {
        name: value for name, value in settings_of("edit", settings).items() if name not in left_out
    }


def _digest(requests: Sequence[EditRequest], rule: Rule) -> str:
    return fingerprint(
        requests=[request.record() for request in requests if request.rule == rule.id]
    )


def _plan_text(plan: Mapping[str, Sequence[int]]) -> str:
    return "; ".join(
        f"{group}: layers {', '.join(map(str, layers))}" for group, layers in plan.items()
    )
