"""`dmle export`: selected layers as settings of other people's editors."""

import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from interp.app.command_line import DEFAULT_RUN
from interp.results.files import write_text
from interp.results.printing import say
from interp.results.run_folder import RunFolder

if TYPE_CHECKING:
    from interp.selection.layers import LayerSelection

Driver = Literal["dmle", "easyedit"]


def export(
    *,
    driver: Annotated[
        Driver,
        Parameter(
            name="--for",
            help="dmle (the published driver's config.json) or easyedit (a folder of EasyEdit's"
            " MEMIT and AlphaEdit settings, a file for each group of forms).",
        ),
    ],
    out: Annotated[Path, Parameter(help="The file, or the folder of EasyEdit's settings.")],
    run: Annotated[Path, Parameter(help="Run folder whose selection is exported.")] = DEFAULT_RUN,
    atlas: Annotated[
        str | None,
        Parameter(help="Export this entry of the atlas (`dmle atlas`) in place of a run's layers."),
    ] = None,
    model: Annotated[
        str | None,
        Parameter(help="Name of the model for EasyEdit. Default: that of the selection."),
    ] = None,
) -> None:
    """Write selected layers as ready settings for other people's editors.

    Needs no model: only the layers are ours, all other values are those that the editors publish.

    For example:

        dmle export --run runs/mine --for dmle --out data/config.json

        dmle export --run runs/mine --for easyedit --out hparams

        dmle export --atlas smollm2-135m --for easyedit --out hparams
    """
    from interp.selection.atlas.entry import atlas as entry
    from interp.selection.layers import LayerSelection

    if atlas is None:
        selection = LayerSelection.load(RunFolder(run).need("selection.json", "select"))
    else:
        selection = entry(atlas).selection
    for path in export_selection(selection, driver, out, model):
        say(f"exported: {path}")


def export_selection(
    selection: "LayerSelection", driver: Driver, out: Path, model: str | None = None
) -> list[Path]:
    """Write selected layers into the files of another driver.

    Args:
        selection: The layers.
        driver: Whose files.
        out: The published driver's config.json, or the folder of EasyEdit's settings, one file for
            each method and group.
        model: Name of the model; that of the selection by default.

    Returns:
        The files.

    Raises:
        DmleError: A group has no place in a file.
    """
    from interp.selection.exports import METHODS

    name = model or str(selection.provenance.get("model", "unknown"))
    if driver == "dmle":
        texts = {out: json.dumps(selection.to_dmle_config(), indent=2) + "\n"}
    else:
        texts = {
            out / f"{method}-{group.name.replace('+', '-')}.yaml": selection.to_easyedit_yaml(
                group.name, name, method
            )
            for method, group in product(METHODS, selection.groups)
        }
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)
