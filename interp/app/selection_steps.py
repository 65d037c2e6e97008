"""What `dmle profile` and `dmle select` do in a run folder; neither needs a model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from interp.app.steps import Context, Step
from interp.config import ProfileConfig, SelectConfig
from interp.errors import DmleError
from interp.results.files import write_text
from interp.selection import strategies

if TYPE_CHECKING:
    import xarray as xr

    from interp.selection.layers import LayerSelection


def _profile(context: Context) -> str:
    from interp.app import freshness
    from interp.results import effects
    from interp.selection.profiles import layer_profile

    record = freshness.made(context, "profile", ["profile"], inputs=["effects.nc"])
    with effects.opened(context.run.need("effects.nc", "trace")) as maps:
        profile = layer_profile(maps, context.settings(ProfileConfig))
    profile.attrs[freshness.RECORD] = record.text()
    path = context.run.path / "profile.nc"
    effects.save(profile, path)
    of_forms = zip(profile["form"].values, profile["te"].values, strict=True)
    te = ", ".join(f"{form} {value:.2f}" for form, value in of_forms)
    lines = [
        (
            f"mean total effect ({profile.attrs['unit']}): {te}; {profile.attrs['n_untraceable']}"
            f" of {profile.attrs['n_prompts']} prompts left out as not traceable"
        ),
        *_order_of_forms(context, profile),
        f"layer profile: {path}",
    ]
    return "\n".join(lines)


def _order_of_forms(context: Context, profile: "xr.Dataset") -> list[str]:
    """Write `form_order.csv`, which reads the selection's component and bounds, and say what it
    says.
    """
    from interp.selection import form_order

    path = context.run.path / "form_order.csv"
    try:
        of_rules = form_order.depths(profile, context.settings(SelectConfig))
        contrasts = form_order.compare_forms(of_rules)
        write_text(path, form_order.table(contrasts).to_csv(index=False))
    except DmleError as error:
        # The profile is whole even so: the selection may read another component.
        path.unlink(missing_ok=True)  # of other maps
        return [f"order of the forms: not compared, {error}"]
    return [*form_order.report(of_rules, contrasts), f"order of the forms: {path}"]


def _read_by_select(context: Context) -> tuple[str, ...]:
    """Files that the selection's strategy reads."""
    strategy = strategies.chosen(context.settings(SelectConfig))
    return tuple(f"{source}.nc" for source in strategy.reads)


def _fresh(context: Context, names: Sequence[str]) -> None:
    """See that what a step reads is there, and was made with what is in force."""
    from interp.app import freshness

    for name in names:
        context.run.need(name, freshness.MAKERS[name])
    freshness.check(context, *names)


def _selected(context: Context) -> "tuple[LayerSelection, dict[str, LayerSelection] | None]":
    """The selection of the run, and one for each rule by a strategy that makes them."""
    from interp.results import effects
    from interp.selection.adaptive import select_for_rules
    from interp.selection.from_sweep import select_from_sweep
    from interp.selection.select import select_layers

    config, run = context.settings(SelectConfig), context.run
    strategy = strategies.chosen(config)
    read = {name: effects.load(run.need(f"{name}.nc", name)) for name in strategy.reads}
    if "sweep" in read:
        return select_from_sweep(read["sweep"], config), None
    profile = read["profile"]
    _order_of_forms(context, profile)  # of this selection's component
    selection = select_layers(profile, config, evidence=read.get("evidence"))
    return selection, select_for_rules(profile, config) if strategy.by_rule else None


def _select(context: Context) -> str:
    from interp.app import freshness
    from interp.selection.layers import save_for_rules
    from interp.selection.reasons import layer_names

    config, folder = context.settings(SelectConfig), context.run.path
    selection, of_rules = _selected(context)
    record = freshness.made(context, "select", ["select"], inputs=_read_by_select(context))
    made = {freshness.RECORD: record.model_dump(mode="json")}
    selection = selection.model_copy(update={"provenance": {**selection.provenance, **made}})
    lines = []
    for group in selection.groups:
        lines += [f"{group.name}: {layer_names(group.layers)}", f"  {group.reason}"]
    path = folder / "selection-rules.json"
    if of_rules is None:
        path.unlink(missing_ok=True)  # of another strategy's run
    else:
        save_for_rules(of_rules, path, made)
        lines.append(f"selections rule by rule: {path}")
    selection.save(folder / "selection.json")
    if "width" in config.model_fields_set and strategies.chosen(config).size != "width":
        lines.append(
            f"select.width = {config.width} is not read by the strategy {config.strategy}, which"
            " sets its own"
        )
    return "\n".join([*lines, f"selection: {folder / 'selection.json'}"])


PROFILE = Step(
    "profile",
    _profile,
    {"profile": ProfileConfig, "select": SelectConfig},
    fresh=lambda context: _fresh(context, ["effects.nc"]),
    settles=("profile",),
)
SELECT = Step(
    "select",
    _select,
    {"select": SelectConfig},
    fresh=lambda context: _fresh(context, _read_by_select(context)),
)
