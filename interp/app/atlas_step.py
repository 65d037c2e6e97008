"""The step `atlas`: a profile from the atlas of models in place of a trace of one's own."""

from typing import TYPE_CHECKING

from interp.app.steps import Context, Step
from interp.config import AtlasConfig, ModelConfig
from interp.errors import InputError, StaleError

if TYPE_CHECKING:
    from interp.selection.atlas.entry import AtlasEntry

AUTO = "auto"


def _named(context: Context) -> "AtlasEntry | None":
    """The entry that the settings name; None if it is that of the model.

    Raises:
        InputError: There is no such entry.
    """
    from interp.selection.atlas.entry import atlas

    name = context.settings(AtlasConfig).entry
    return None if name == AUTO else atlas(name)


def _atlas(context: Context) -> str:
    from interp.app import freshness
    from interp.results import effects
    from interp.selection.atlas.entry import entry_of

    model = context.model
    entry = _named(context) or entry_of(model.name, model.weight_hash)
    about = entry.about
    if about.weight_hash != model.weight_hash:
        dtype = context.settings(ModelConfig).dtype
        raise StaleError(
            f"the atlas entry {entry.name} is of the weights {about.weight_hash} ({about.dtype}),"
            f" but {model.name} as it is now ({dtype}) is {model.weight_hash}; run"
            f" `{freshness.command(context, 'trace')}` and `dmle profile`, or give the model that"
            f" the entry is of: --model {about.model} --set model.dtype={about.dtype}"
        )
    record = freshness.made(context, "atlas", [])
    path = context.run.path / "profile.nc"
    effects.save(entry.profile.assign_attrs({freshness.RECORD: record.text()}), path)
    # Of another profile.
    (context.run.path / "form_order.csv").unlink(missing_ok=True)
    traced = ", ".join(f"{form} {count}" for form, count in about.traced.items())
    return (
        f"profile of {about.model} from the atlas, of {about.rules}; traceable prompts: {traced}\n"
        f"layer profile: {path}"
    )


def _fresh(context: Context) -> None:
    """See that no profile of the run's own is replaced.

    Raises:
        InputError: There is one, and nobody said to replace it.
    """
    from interp.app import freshness

    path = context.run.path / "profile.nc"
    if context.overwrite or not path.is_file():
        return
    record = freshness.record_of(path)
    if record is None or record.step != "atlas":
        raise InputError(
            f"{path} is of a trace of this run; --overwrite replaces it by that of the atlas, or"
            " give another folder with --run"
        )


ATLAS = Step("atlas", _atlas, {"atlas": AtlasConfig}, needs_model=True, check=_named, fresh=_fresh)
