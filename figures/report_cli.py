"""The report step of `dmle`: one HTML page of a run folder, without a model."""

from interp.app.commands import Common, execute
from interp.app.steps import Context, Step


def report(*, common: Common | None = None) -> None:
    """Write report.html: the run as one page with interactive maps, to open in a browser; needs no
    network, no model.

    For example:

        dmle report --run runs/mine
    """
    execute(["report"], common, {})


def _fresh(context: Context) -> None:
    from figures.report import INPUTS
    from interp.app import freshness

    read = [name for name in INPUTS if name in freshness.MAKERS]
    freshness.check(context, *(name for name in read if (context.run.path / name).is_file()))


def _report(context: Context) -> str:
    from figures.report import write_report

    path = write_report(context.run.path)
    return f"report: {path} ({path.stat().st_size / 1e6:.1f} MB); open it in a browser"


REPORT = Step("report", _report, report, fresh=_fresh, settles=())
