"""The figures step of `dmle`: every figure and table of a run folder, without a model."""

from interp.cli import Common, execute
from interp.steps import Context, Step


def figures(*, common: Common | None = None) -> None:
    """Draw every figure and table that the run folder's results allow; needs no model.

    What is current is not drawn again (figures/manifest.json says what came from which data); --overwrite draws all.

    For example:

        dmle figures --run runs/mine

        dmle figures --run runs/mine --overwrite
    """
    execute(["figures"], common, {})


def _figures(context: Context) -> str:
    from figures.paper import draw_all

    done = draw_all(context.run.path, overwrite=context.overwrite)
    places = f"{context.run.path / 'figures'} and {context.run.path / 'tables'}"
    current = f"{len(done.unchanged)} are current"
    lines = [f"{len(done.written)} files drawn, {current}: {places}"]
    if not done.written:
        lines = [f"nothing to draw: all {current}; --overwrite draws them again: {places}"]
    if done.removed:
        lines.append(f"removed, as the data have no place for them any more: {', '.join(p.name for p in done.removed)}")
    lines += [f"drawn in part: {what}" for what in done.left_out]
    return "\n".join(lines)


FIGURES = Step("figures", _figures, figures)
