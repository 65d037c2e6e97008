"""Make an entry of a profile: numbers and names alone are kept, and checked."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import xarray as xr
from pydantic import ValidationError

from interp.config import SelectConfig
from interp.errors import InputError
from interp.results import effects
from interp.results.files import atomic, write_text
from interp.results.tables import csv_text
from interp.rules.schema import explain
from interp.selection import form_order, strategies
from interp.selection.atlas.checks import ATTRIBUTES, check_entry, check_size, traced
from interp.selection.atlas.entry import (
    ABOUT,
    ENTRIES,
    FORM_ORDER,
    PROFILE,
    REGRET,
    SELECTION,
    About,
    AtlasEntry,
    GroupRegret,
)
from interp.selection.layers import LayerSelection, parse_layers
from interp.selection.select import select_layers
from interp.vocabulary import CorruptedSpan


def write_entry(
    folder: Path,
    profile: xr.Dataset,
    *,
    model: str,
    weights: str,
    rules: str,
    commands: Sequence[str],
    config: SelectConfig | None = None,
    regrets: xr.Dataset | None = None,
) -> AtlasEntry:
    """Write an entry whole or not at all, and check it.

    Args:
        folder: The entry's folder; its name is that of the entry. An entry there is replaced.
        profile: The layer profile (`interp.selection.profiles`).
        model: Name by which others find the model.
        weights: Which files weights and tokenizer are of, and how they were dequantised.
        rules: Which rules were traced.
        commands: What makes the profile again.
        config: How layers are selected; the strategy must read the profile alone.
        regrets: The content of `regret.nc`, if there is one.

    Returns:
        The entry.

    Raises:
        InputError: Something is missing or wrong.
        NotTraceableError: No rule is traceable.
    """
    config = config or SelectConfig()
    _check_before(folder, config)
    kept = without_texts(profile)
    selection = select_layers(kept, config)
    given = {
        "name": folder.name,
        "model": model,
        "weights": weights,
        "rules": rules,
        "commands": tuple(commands),
        "select": config.model_dump(mode="json"),
        "regret": () if regrets is None else regrets_of(regrets, selection),
    }
    about = _about(kept, given)
    with atomic(folder) as partial:
        made = AtlasEntry(partial, folder.name)
        _write(partial, kept, selection, about, regrets)
        check_entry(made)
        if folder.resolve().parent == ENTRIES.resolve():
            check_size(made)
        if folder.is_dir():
            shutil.rmtree(folder)
    return AtlasEntry(folder, folder.name)


def _check_before(folder: Path, config: SelectConfig) -> None:
    """See that the folder may be written, and that others can make the selection again.

    Raises:
        InputError: They cannot.
    """
    if folder.exists() and not (folder / ABOUT).is_file():
        raise InputError(
            f"{folder} is there and is no atlas entry, so that it is not replaced; give another"
            " --name or --out"
        )
    if strategies.chosen(config).reads != ("profile",):
        raise InputError(
            f"the strategy {config.strategy} reads more than the profile, so that nobody could make"
            " the selection of this entry again; give --set select.strategy=changepoint"
        )


def _about(kept: xr.Dataset, given: Mapping[str, Any]) -> About:
    """The provenance: what the profile says of itself, and what is given.

    Raises:
        InputError: Something is missing or wrong.
    """
    attrs = kept.attrs
    try:
        return About(
            schema="dmle.atlas/1",
            weight_hash=str(attrs.get("weight_hash", "")),
            dtype=str(attrs.get("dtype", "")),
            n_blocks=kept.sizes["layer"],
            n_rules=kept.sizes["rule"],
            n_prompts=int(attrs.get("n_prompts", 0)),
            traced=traced(kept),
            samples=int(attrs.get("samples", 1)),
            method=str(attrs.get("method", "")),
            version=str(attrs.get("version_dmle", "")),
            **given,
        )
    except ValidationError as error:
        raise InputError(f"the provenance of {given['name']}: {explain(error)}") from error


def without_texts(profile: xr.Dataset) -> xr.Dataset:
    """A profile with the attributes that an entry keeps: none holds a text of a rule, or says
    where files of one machine are.
    """
    attrs = {name: value for name, value in profile.attrs.items() if name in ATTRIBUTES}
    if attrs.get("span") not in get_args(CorruptedSpan):
        attrs.pop("span", None)  # words of the prompts
    kept = profile.copy()
    kept.attrs = attrs
    return kept


def regrets_of(regrets: xr.Dataset, selection: LayerSelection) -> tuple[GroupRegret, ...]:
    """What the selected layers lose, of `regret.nc`: groups whose layers were edited in a sweep.

    Raises:
        InputError: Its layers are not those of the selection.
    """
    rows = regrets.to_dataframe()
    known = []
    for row in rows[rows["strategy"] == selection.strategy].to_dict("records"):
        group = next((each for each in selection.groups if each.name == row["group"]), None)
        if group is None or np.isnan(row["regret"]):
            continue
        if parse_layers(str(row["layers"]), selection.n_layers).groups[0].layers != group.layers:
            raise InputError(
                f"regret.nc is of {row['layers']} for {group.name}, the selection of"
                f" {list(group.layers)}; run `dmle regret` again"
            )
        numbers = {name: float(row[name]) for name in ("regret", "lower", "upper")}
        known.append(GroupRegret(group=group.name, n_rules=int(row["n_rules"]), **numbers))
    return tuple(known)


def _write(
    folder: Path,
    profile: xr.Dataset,
    selection: LayerSelection,
    about: About,
    regrets: xr.Dataset | None,
) -> None:
    about.save(folder / ABOUT)
    effects.save(profile, folder / PROFILE)
    selection.save(folder / SELECTION)
    config = SelectConfig.model_validate(about.select)
    contrasts = form_order.compare_forms(form_order.depths(profile, config))
    write_text(folder / FORM_ORDER, form_order.table(contrasts).to_csv(index=False))
    if about.regret and regrets is not None:
        counts = dict.fromkeys(("rank", "n_windows", "n_rules"), "Int64")
        table = regrets.to_dataframe().astype(counts)
        write_text(folder / REGRET, csv_text(table, index=False))
