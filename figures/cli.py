"""The figures step of `dmle`: every figure and table of a run folder, without a model."""

from interp.cli import Common, execute
from interp.steps import Context, Step


def figures(*, common: Common | None = None) -> None:
    """Draw every figure and table that the run folder's results allow; needs no model.

    For example:

        dmle figures --run runs/mine
    """
    execute(["figures"], common, {})


def _figures(context: Context) -> str:
    from figures.paper import draw_all

    paths = draw_all(context.run.path)
    return f"{len(paths)} files in {context.run.path / 'figures'} and {context.run.path / 'tables'}"


FIGURES = Step("figures", _figures, figures)
