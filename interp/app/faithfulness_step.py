"""What `dmle faithfulness` does in a run folder: curves of what a map's best sites bring back."""

from typing import TYPE_CHECKING

from interp.app.steps import Context, Step
from interp.app.trace_step import BAR, traced_rules
from interp.config import FaithfulnessConfig, TraceConfig
from interp.results.files import write_text

if TYPE_CHECKING:
    from interp.app.freshness import Made

CURVES = "faithfulness"
NOT_READ = ("components", "direction", "method", "metrics")
"""Settings of traces that curves have of their own, or of which they take one value alone."""


def _faithfulness(context: Context) -> str:
    from interp.results import effects
    from interp.results.faithfulness import faithfulness_table
    from interp.tracing.rule_curves import rule_curves
    from interp.tracing.trace import prompts

    run, rules = context.run.path, traced_rules(context)
    total = len(prompts(rules))
    with context.progress(total=total, desc="faithfulness", bar_format=BAR) as bar:
        curves, skipped = rule_curves(
            context.model,
            rules,
            context.settings(TraceConfig),
            context.settings(FaithfulnessConfig),
            run / CURVES,
            only=context.overwrite,
            advance=bar.update,
        )
    path = run / "faithfulness.nc"
    effects.save(curves.assign_attrs(_record(context)), path)
    table = faithfulness_table(curves)
    write_text(run / "tables" / "faithfulness.md", table.markdown)
    write_text(run / "tables" / "faithfulness.tex", table.latex)
    lines = [
        f"{total - len(skipped)} of {total} prompts have curves, {len(skipped)} are skipped",
        *(f"skipped {each.rule}/{each.form}: {each.reason}" for each in skipped),
        table.markdown,
        f"curves: {path}",
    ]
    return "\n".join(lines)


def _record(context: Context) -> dict[str, str]:
    """What the curves are made with: of the settings of traces, those that they read."""
    from interp.app import freshness

    trace = context.settings(TraceConfig)
    settings = freshness.settings_of("trace", trace)
    more = {key: value for key, value in settings.items() if key.split(".")[1] not in NOT_READ}
    made: Made = freshness.made(
        context, "faithfulness", ["faithfulness"], rules=["trace"], more=more
    )
    return {freshness.RECORD: made.text()}


def _check(context: Context) -> None:
    from interp.tracing.rule_curves import check_settings

    check_settings(context.settings(TraceConfig))
    traced_rules(context)


FAITHFULNESS = Step(
    "faithfulness",
    _faithfulness,
    {"trace": TraceConfig, "faithfulness": FaithfulnessConfig},
    needs_model=True,
    check=_check,
    settles=("faithfulness",),
)
