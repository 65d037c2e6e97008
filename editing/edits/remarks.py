"""What a reader of an edit should know, in plain words: once, and only where an answer is wrong.

An update that stops halfway to its target, or two requests with one key, often serve the answer all
the same. So the answers of such requests are asked for after the edit (`doubtful` says which those
are), and a request whose new answer is given needs no remark.
"""

from editing.edits.report import EditReport

Asked = tuple[str, str]
"""Rule and form."""

WEAK = 0.5
"""A request is in doubt if more than this share of the way to its target is left; an update, if
more than this share of it is lost in the number format."""


def doubtful(report: EditReport) -> set[Asked]:
    """Requests that the edit may not serve: far from their target, or with the key of another."""
    weak: set[Asked] = set()
    for part in report.parts():
        shares = zip(part.requests, part.residual_left, strict=False)
        weak |= {(request["rule"], request["form"]) for request, left in shares if left > WEAK}
    return weak | {asked for pair in _collisions(report) for asked in pair}


def remarks(report: EditReport) -> list[str]:
    """Requests whose new answer is not given, with the likely reason, and losses in the number
    format.
    """
    lines: list[str] = []
    collisions = _collisions(report)
    for rule, form in report.unanswered:
        likely = _reason(_sharing((rule, form), collisions))
        lines.append(f"{rule} {form}: the edited model does not give the new answer. {likely}")
    for name, lost in (report.cast_loss or {}).items():
        if lost > WEAK:
            lines.append(
                f"{name}: {lost:.0%} of the update is lost in the model's number format; use"
                " model.dtype=float32"
            )
    return lines


def _sharing(asked: Asked, collisions: set[frozenset[Asked]]) -> list[str]:
    """Names of the requests that have the key of another."""
    others = [other for pair in collisions if asked in pair for other in pair if other != asked]
    return [" ".join(other) for other in others]


def _reason(sharing: list[str]) -> str:
    if not sharing:
        return "The update is too weak; try a smaller edit.ridge, edit.rounds=3, or other layers."
    return (
        f"The edit reads it at the same place as {' and '.join(sharing)}; try"
        " edit.lookup=rule_word_last or last, or other layers."
    )


def _collisions(report: EditReport) -> set[frozenset[Asked]]:
    """Pairs of requests with one key."""
    pairs = [pair for part in report.parts() for pair in part.collinear_keys]
    return {frozenset(zip(pair["rules"], pair["forms"], strict=True)) for pair in pairs}
