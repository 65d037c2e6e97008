"""The figures step of `dmle`: every figure and table of a run folder, without a model."""

from interp.app.commands import Common, execute
from interp.app.steps import Context, Step


def figures(*, common: Common | None = None) -> None:
    """Draw every figure and table that the run folder's results allow; needs no model.

    What is current is not drawn again (figures/manifest.json says what came from which data);
    --overwrite draws all.

    For example:

        dmle figures --run runs/mine

        dmle figures --run runs/mine --overwrite
    """
    execute(["figures"], common, {})


def _fresh(context: Context) -> None:
    from figures.paper import INPUTS, ONLY_ON_REQUEST
    from interp.app import freshness

    read = [name for name in INPUTS if name in freshness.MAKERS and name not in ONLY_ON_REQUEST]
    freshness.check(context, *(name for name in read if (context.run.path / name).is_file()))


def _figures(context: Context) -> str:
    from figures.paper import ONLY_ON_REQUEST, draw_all
    from interp.app import freshness

    # What no step of the chain makes is not needed for the rest.
    stale = {name: said for name in ONLY_ON_REQUEST if (said := freshness.objection(context, name))}
    done = draw_all(context.run.path, overwrite=context.overwrite, without=stale)
    places = f"{context.run.path / 'figures'} and {context.run.path / 'tables'}"
    current = f"{len(done.unchanged)} are current"
    lines = [f"{len(done.written)} files drawn, {current}: {places}"]
    if not done.written:
        lines = [f"nothing to draw: all {current}; --overwrite draws them again: {places}"]
    if done.removed:
        lines.append(
            "removed, as the data have no place for them any more:"
            f" {', '.join(p.name for p in done.removed)}"
        )
    lines += [f"drawn in part: {what}" for what in done.left_out]
    lines += [f"not drawn: {said}" for said in stale.values()]
    return "\n".join(lines)


FIGURES = Step("figures", _figures, figures, fresh=_fresh, settles=())
