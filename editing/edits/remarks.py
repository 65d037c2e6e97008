"""What a reader of an edit should know, in plain words: once, and only where an answer is wrong.

An update that stops halfway to its target, or two requests with one key, often serve the answer all
the same. So the answers of such requests are asked for after the edit (`doubtful` says which those
are), and a request whose new answer is given needs no remark.
"""

from collections.abc import Iterator, Mapping
from typing import Any

Asked = tuple[str, str]
"""Rule and form."""

UNANSWERED = "unanswered"
"""Where the header of an edit says which of its doubtful requests are not answered as wanted."""
WEAK = 0.5
"""A request is in doubt if more than this share of the way to its target is left; an update, if
more than this share of it is lost in the number format."""


def doubtful(about: Mapping[str, Any]) -> set[Asked]:
    """Requests that the edit may not serve: far from their target, or with the key of another."""
    weak = {
        (request["rule"], request["form"])
        for part in _parts(about)
        for request, left in zip(
            part.get("requests", ()), part.get("residual_left", ()), strict=False
        )
        if left > WEAK
    }
    return weak | {asked for pair in _collisions(about) for asked in pair}


def remarks(about: Mapping[str, Any]) -> list[str]:
    """Requests whose new answer is not given, with the likely reason, and losses in the number
    format.
    """
    lines: list[str] = []
    unanswered = [(rule, form) for rule, form in about.get(UNANSWERED, ())]
    collisions = _collisions(about)
    for rule, form in unanswered:
        others = [
            f"{other[0]} {other[1]}"
            for pair in collisions
            if (rule, form) in pair
            for other in pair
            if other != (rule, form)
        ]
        lines.append(
            f"{rule} {form}: the edited model does not give the new answer."
            + (
                f" The edit reads it at the same place as {' and '.join(others)}; try"
                " edit.lookup=rule_word_last or last, or other layers."
                if others
                else " The update is too weak; try a smaller edit.ridge, edit.rounds=3, or other"
                " layers."
            )
        )
    for name, lost in about.get("cast_loss", {}).items():
        if lost > WEAK:
            lines.append(
                f"{name}: {lost:.0%} of the update is lost in the model's number format; use"
                " model.dtype=float32"
            )
    return lines


def _parts(about: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """An edit and its stages."""
    yield about
    yield from about.get("stages", ())


def _collisions(about: Mapping[str, Any]) -> set[frozenset[Asked]]:
    """Pairs of requests with one key."""
    return {
        frozenset(zip(pair["rules"], pair["forms"], strict=True))
        for part in _parts(about)
        for pair in part.get("collinear_keys", ())
    }
