"""`dmle figures` and `dmle report`: what is drawn of a run folder, without a model."""

from collections.abc import Iterable

from interp.app.command_line import Common, execute
from interp.app.steps import Context, Step


def figures(*, common: Common | None = None) -> None:
    """Draw every figure and table that the run folder's results allow; needs no model.

    Draws only what has changed (figures/manifest.json records the data of each file); --overwrite
    draws all.

    For example:

        dmle figures --run runs/mine

        dmle figures --run runs/mine --overwrite
    """
    execute(["figures"], common)


def report(*, common: Common | None = None) -> None:
    """Write report.html: the run on one page with interactive maps, for a browser; needs no network
    and no model.

    For example:

        dmle report --run runs/mine
    """
    execute(["report"], common)


def _figures(context: Context) -> str:
    from figures.paper import ONLY_ON_REQUEST, draw_all
    from interp.app import freshness

    folder = context.run.path
    # What no step of the chain makes is not needed for the rest.
    objections = {name: freshness.objection(context, name) for name in ONLY_ON_REQUEST}
    stale = {name: objection for name, objection in objections.items() if objection}
    done = draw_all(folder, overwrite=context.overwrite, without=stale)
    places = f"{folder / 'figures'} and {folder / 'tables'}"
    current = f"{len(done.unchanged)} are current"
    lines = [f"{len(done.written)} files drawn, {current}: {places}"]
    if not done.written:
        lines = [f"nothing to draw: all {current}; --overwrite draws them again: {places}"]
    if done.removed:
        names = ", ".join(path.name for path in done.removed)
        lines.append(f"removed, as the data have no place for them any more: {names}")
    lines += [f"drawn in part: {what}" for what in done.left_out]
    lines += [f"not drawn: {objection}" for objection in stale.values()]
    return "\n".join(lines)


def _fresh_figures(context: Context) -> None:
    from figures.paper import INPUTS, ONLY_ON_REQUEST

    _check_fresh(context, (name for name in INPUTS if name not in ONLY_ON_REQUEST))


def _report(context: Context) -> str:
    from figures.report import write_report
    from figures.report_inputs import STUDIES
    from interp.app import freshness

    objections = {name: freshness.objection(context, name) for name in STUDIES}
    stale = {name: objection for name, objection in objections.items() if objection}
    path = write_report(context.run.path, without=stale)
    line = f"report: {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser"
    return "\n".join([line, *(f"not shown: {objection}" for objection in stale.values())])


def _fresh_report(context: Context) -> None:
    from figures.report_inputs import INPUTS

    _check_fresh(context, INPUTS)


def _check_fresh(context: Context, names: Iterable[str]) -> None:
    """See that the results that are there and say what they were made with are of what is in
    force.

    Raises:
        StaleError: One is not.
    """
    from interp.app import freshness

    there = [name for name in names if (context.run.path / name).is_file()]
    freshness.check(context, *(name for name in there if name in freshness.MAKERS))


FIGURES = Step("figures", _figures, fresh=_fresh_figures, settles=())
REPORT = Step("report", _report, fresh=_fresh_report, settles=())
