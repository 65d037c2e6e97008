"""The commands `dmle atlas …`: list the models of the atlas, draw them, and add one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from interp.errors import InputError
from interp.results.plots import check_plot, find_plot
from interp.results.printing import command, say

if TYPE_CHECKING:
    from interp.app.steps import Context
    from interp.selection.atlas.entry import AtlasEntry

PLOT = "atlas"
COMMANDS_OF = {"trace": ("model", "rules", "trace"), "profile": ("profile",)}
"""Commands that make a profile, and the sections of settings that each depends on."""

app = App(name="atlas", help="List the models whose layers are known without a trace, or add one.")


@app.default
def show(
    *,
    figure: Annotated[
        Path | None,
        Parameter(help="Draw all profiles by relative depth into this .png or .pdf."),
    ] = None,
) -> None:
    """List the models whose layers are known without a trace.

    Depth is block / (blocks - 1). Layers are supported if the profile speaks for them; stability is
    how alike the layers of two halves of the rules are. Regret is what edits at these layers lose
    against the best window of layers, where that was measured.

    For example:

        dmle atlas

        dmle atlas --figure atlas.png
    """
    from interp.selection.atlas.entry import entries

    if figure is not None:
        check_plot(PLOT, figure, "--figure")
    known = entries()
    for entry in known.values():
        say("\n".join(lines_of(entry)), to_stdout=True)
    say(f"Layers of one of them, without a trace: {command('dmle', 'select', '--from-atlas')}")
    if figure is not None:
        find_plot(PLOT).load()({name: entry.profile for name, entry in known.items()}, figure)
        say(f"figure: {figure}")


def lines_of(entry: "AtlasEntry") -> Iterator[str]:
    """An entry in words: a line for the model, and one for each group of forms."""
    from interp.selection.reasons import runs

    about = entry.about
    regrets = {each.group: each for each in about.regret}
    counts = ", ".join(f"{form} {count}" for form, count in about.traced.items())
    yield f"{entry.name}: {about.n_blocks} blocks; traced prompts: {counts}"
    for group in entry.selection.groups:
        layers = ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in runs(group.layers))
        ends = (layer / max(about.n_blocks - 1, 1) for layer in (group.layers[0], group.layers[-1]))
        parts = [
            f"layers {layers}",
            f"depth {' to '.join(f'{end:.2f}' for end in ends)}",
            "supported" if group.supported else "not supported",
            *([] if group.stability is None else [f"stability {group.stability:.2f}"]),
        ]
        if regret := regrets.get(group.name):
            parts.append(f"regret {regret.regret:.3f} [{regret.lower:.3f}, {regret.upper:.3f}]")
        yield f"  {group.name}: {', '.join(parts)}"


@app.command
def add(
    run: Annotated[Path, Parameter(help="Run folder with a profile of `dmle profile`.")],
    *,
    weights: Annotated[
        str,
        Parameter(help="Which files weights and tokenizer are of, and how they were dequantised."),
    ],
    name: Annotated[
        str | None, Parameter(help="Name of the entry. Default: the last part of the model's name.")
    ] = None,
    model: Annotated[
        str | None,
        Parameter(help="Name by which others find the model. Default: that of the run."),
    ] = None,
    out: Annotated[
        Path | None,
        Parameter(help="Folder of entries. Default: that of the package, in a checkout of it."),
    ] = None,
    overwrite: Annotated[bool, Parameter(help="Replace the entry.", negative=())] = False,
) -> None:
    """Write an entry from a run folder, and check it.

    The entry has the profile, the layers that the run's settings select from it, the test of the
    order of forms, the regret if `dmle regret` was run, and where it comes from. It holds names of
    rules and none of their texts.

    For example:

        dmle atlas add runs/mine --weights "safetensors of the hub, as they are" --out my-atlas

        dmle atlas add runs/qwen --name qwen2.5-0.5b --model Qwen/Qwen2.5-0.5B --weights "as on hub"
    """
    from interp.app.run import Run
    from interp.config import ModelConfig
    from interp.selection.atlas.entry import ENTRIES

    context = Run(run, progress=None).context
    public = model or context.settings(ModelConfig).name
    folder = (out or _package()) / (name or public.rpartition("/")[2].lower())
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} is there; give another --name, or --overwrite replaces it")
    entry = entry_from(context, folder, public, weights)
    size = sum(path.stat().st_size for path in folder.iterdir())
    say(f"entry of {public}, checked: {entry.folder} ({size / 1e3:.0f} kB)")
    if folder.parent.resolve() == ENTRIES.resolve():
        say(
            "Next: `python -m pytest tests/unit/interp/selection/test_atlas.py`, then a pull"
            " request with the folder (CONTRIBUTING.md, Add a model to the atlas)"
        )
    else:
        say(
            f"Next: {command('dmle', 'select', '--from-atlas', entry.folder)}; to share it, copy"
            " the folder to interp/selection/atlas/entries/ of a checkout"
        )


def entry_from(context: "Context", folder: Path, model: str, weights: str) -> "AtlasEntry":
    """Write an entry of the profile of a run folder.

    Args:
        context: The run and its settings.
        folder: The entry's folder.
        model: Name by which others find the model.
        weights: Which files weights and tokenizer are of.

    Raises:
        DmleError: The run lacks a profile, it is stale or of the atlas, or the entry fails a check.
    """
    from interp.app import freshness
    from interp.config import SelectConfig
    from interp.results import effects
    from interp.selection.atlas.writing import write_entry

    path, regret = context.run.need("profile.nc", "profile"), context.run.path / "regret.nc"
    record = freshness.record_of(path)
    if record is not None and record.step == "atlas":
        raise InputError(f"{path} came from the atlas; trace the model in a new run folder")
    freshness.check(context, "profile.nc", *(["regret.nc"] if regret.is_file() else []))
    return write_entry(
        folder,
        effects.load(path),
        model=model,
        weights=weights,
        rules=rules_in_words(context),
        commands=commands_of(context, model),
        config=context.settings(SelectConfig),
        regrets=effects.load(regret) if regret.is_file() else None,
    )


def rules_in_words(context: "Context") -> str:
    """Which rules a run has traced; of a file, its name alone."""
    from interp.config import RulesConfig, TraceConfig

    config = context.settings(RulesConfig)
    splits = [config.split] if config.split else context.settings(TraceConfig).splits
    embedded = config.source == "embedded"
    parts = [
        "the embedded rulebook" if embedded else Path(config.source).name,
        f"split {' and '.join(splits)}",
        *([f"the first {config.limit} of each split"] if config.limit else []),
        *([f"{len(config.ids)} rules by name"] if config.ids else []),
    ]
    return ", ".join(parts)


def commands_of(context: "Context", model: str) -> list[str]:
    """What makes a run's profile again elsewhere: names in place of paths of this machine."""
    from interp.app.run import flat, options

    public = {"model.name": model}
    source = context.given.get("rules", {}).get("source")
    if source is not None:
        public["rules.source"] = Path(str(source)).name
    lines = []
    for step, sections in COMMANDS_OF.items():
        given = flat({name: context.given[name] for name in sections if context.given.get(name)})
        pairs = [(key, public.get(key, value)) for key, value in given if key != "model.device"]
        flags = (part for option in options(None, pairs) for part in option)
        lines.append(command("dmle", step, *flags))
    return lines


def _package() -> Path:
    """The folder of entries of a checkout.

    Raises:
        InputError: The package is installed, so that nobody would see the entry.
    """
    from interp.selection.atlas.entry import ENTRIES

    if not (ENTRIES.parents[3] / "pyproject.toml").is_file():
        raise InputError("give a folder for the entry with --out; this is no checkout of dmle")
    return ENTRIES
