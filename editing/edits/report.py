"""What an edit says of itself: what made it, how far it got, and which run it belongs to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

NESTED = ("stages", "rounds")
"""Fields that hold reports of parts."""


@dataclass(frozen=True)
class EditReport:
    """What an editor reports beside its edit. A field that an editor has nothing to say of is None
    or (), and is not written; an empty list is.

    Values are as JSON has them, and fields stand in the order in which they are written.

    Attributes:
        editor: Name of the editor.
        layers: Blocks that it wrote; of an editor that knows groups, by the group's name.
        requests: What was asked (fields of `editing.edits.requests.EditRequest`).
        settings: Settings of the editor.
        contexts: Texts before the prompts.
        covariance: What the statistics of keys were measured on.
        losses: Loss before each step, nats per token: of a search for targets and of GRACE, by
            request; of training, of all requests together.
        residual_left: Share of the way to its target that is left at the end, by request; NaN where
            no change was wanted.
        served: Block → share of the wanted change there that its update gives, by request.
        collinear_keys: Pairs of requests with one key that want different changes.
        training_rules: Ids of the rules that are demonstrated.
        retained: Rule and form of the prompts that were retained.
        stages: Reports of DMLE's stages.
        own: What one editor alone says, such as AlphaEdit's `free_directions`, by name.
        rounds: Reports of the rounds before the last.
        unanswered: Rule and form of the doubtful requests that are not answered as wanted.
        cast_loss: Parameter → share of its update that is lost in the model's number format.
        fingerprint: Changes with anything that the edit depends on.
        earlier: Fingerprint of the edit before it in a sequence.
        made: What the edit depends on (see `editing.app.planned`).
    """

    editor: str | None = None
    layers: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    requests: Sequence[Mapping[str, Any]] = ()
    settings: Mapping[str, Any] | None = None
    contexts: Sequence[str] | None = None
    covariance: Mapping[str, Any] | None = None
    losses: Sequence[Any] = ()
    residual_left: Sequence[float] = ()
    served: Mapping[str, Sequence[float]] | None = None
    collinear_keys: Sequence[Mapping[str, Any]] = ()
    training_rules: Sequence[str] | None = None
    retained: Sequence[Sequence[str]] = ()
    stages: "Sequence[EditReport]" = ()
    own: Mapping[str, Any] = field(default_factory=dict)
    rounds: "Sequence[EditReport]" = ()
    unanswered: Sequence[Sequence[str]] = ()
    cast_loss: Mapping[str, float] | None = None
    fingerprint: str | None = None
    earlier: str | None = None
    made: Mapping[str, Any] | None = None

    def with_values(self, **changes: Any) -> "EditReport":
        """The same report with other values of some fields."""
        return replace(self, **changes)

    def parts(self) -> "Iterable[EditReport]":
        """This report and those of its stages: each speaks of its own requests."""
        return (self, *self.stages)

    def to_json(self) -> dict[str, Any]:
        """What is written: the fields that say something, with those of `own` among them."""
        content: dict[str, Any] = {}
        for name in _NAMES:
            value = getattr(self, name)
            if name == "own":
                content |= value
            elif value is not None and value != ():
                content[name] = [each.to_json() for each in value] if name in NESTED else value
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "EditReport":
        """The report that `to_json` gave.

        Raises:
            TypeError: The reports of its parts are no list of objects.
        """
        named: dict[str, Any] = {name: value for name, value in content.items() if name in _WRITTEN}
        own = {name: value for name, value in content.items() if name not in _WRITTEN}
        for name in NESTED:
            if name in named:
                named[name] = [cls.from_json(_mapping(each)) for each in _sequence(named[name])]
        return cls(**named, own=own)


_NAMES = tuple(each.name for each in fields(EditReport))
_WRITTEN = frozenset(_NAMES) - {"own"}


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"a report is an object, not {type(value).__name__}")
    return value


def _sequence(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise TypeError(f"reports are a list, not {type(value).__name__}")
    return value
