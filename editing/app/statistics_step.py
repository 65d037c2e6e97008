"""What `dmle covariance` does in a run folder: the statistics of keys that editors need."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from editing.app.edit_steps import edited_rules, fresh_selection, measured, places_of
from editing.config import CovarianceConfig, EditConfig
from interp.app.steps import Context, Step

if TYPE_CHECKING:
    from interp.planning.plan import Costs, Work


def _measure(context: Context) -> str:
    config = context.settings(EditConfig)
    places = places_of(context, config, edited_rules(context, config))
    layers = sorted({layer for place in places.values() for layer in place.statistics})
    if not layers:
        return f"no statistics are needed by {', '.join(config.editors)}"
    statistics = measured(context, layers)
    blocks = ", ".join(map(str, layers))
    return (
        f"statistics of blocks {blocks}, over {statistics.tokens} tokens:"
        f" {context.run.path / 'covariance'}"
    )


def _check(context: Context) -> None:
    edited_rules(context, context.settings(EditConfig))


def _plan(context: Context, costs: "Costs", note: Callable[[str], object]) -> "list[Work]":
    from editing.app.plan_works import Cells, arms_of, plan_statistics, statistics_of
    from editing.studies.counting import Asked

    config = context.settings(EditConfig)
    cells = Cells("covariance", edited_rules(context, config), config, Asked())
    layers = statistics_of(arms_of(context, costs.outline, note, cells))
    return plan_statistics(context, costs, layers)


COVARIANCE = Step(
    "covariance",
    _measure,
    {"covariance": CovarianceConfig, "edit": EditConfig},
    needs_model=True,
    check=_check,
    fresh=fresh_selection,
    settles=("covariance",),
    plan=_plan,
)
