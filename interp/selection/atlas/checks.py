"""What is checked of an entry before it is shipped, or taken from somebody."""

import re
from collections.abc import Iterator
from typing import get_args

import numpy as np
import xarray as xr

from interp.config import SelectConfig
from interp.errors import InputError
from interp.results.netcdf import KINDS
from interp.results.provenance import LIBRARIES
from interp.selection.atlas.entry import (
    ABOUT,
    ENTRIES,
    FORM_ORDER,
    PROFILE,
    REGRET,
    SELECTION,
    AtlasEntry,
)
from interp.selection.select import KEPT, select_layers
from interp.vocabulary import LOOKUP, CorruptedSpan

NEEDED = (ABOUT, PROFILE, SELECTION, FORM_ORDER)
ATLAS_BYTES = 2_000_000
"""Of all entries together: each copy of the package carries them."""
ENTRY_BYTES = 700_000
RULE_ID = re.compile(r"[\w.+:-]{1,80}")
"""A name, which is no text of a rule: it has no spaces."""
TEXT_LENGTH = 120
CONTENT = KINDS["profile.nc"]
ATTRIBUTES = frozenset(
    [
        *("answer_source", "audited_sites", "bootstrap", "bootstrap_seed", "confidence"),
        *("corruption", "direction", "dtype", "embedding_std", "engine", "git_commit"),
        *("lookup_roles", "method", "metric", "model", "n_prompts", "n_skipped", "n_untraceable"),
        *("noise", "noise_replaces", "noise_std", "positions", "samples", "schema", "seed"),
        *("sign", "span", "unit", "weight_hash", "window"),
        *(f"version_{name.replace('-', '_')}" for name in LIBRARIES),
    ]
)
"""What an entry keeps of a profile's attributes; none of them holds a text of a rule."""


def check_entry(entry: AtlasEntry) -> None:
    """See that an entry is whole and true: its files, numbers, texts, provenance and size.

    The selection is made again from the profile, which takes some seconds.

    Raises:
        InputError: Something is wrong with it; says what.
        DamagedError: A file is not as it was written.
    """
    if fault := next(_faults(entry), ""):
        raise InputError(f"the atlas entry {entry.name}: {fault}")


def check_size(entry: AtlasEntry) -> None:
    """See that the entries of this package are small enough together.

    Args:
        entry: One that is among them, or is to take the place of one of its name.

    Raises:
        InputError: They are not.
    """
    files = [*entry.folder.iterdir()]
    others = (path for path in ENTRIES.iterdir() if not path.name.startswith("."))
    files += [path for other in others if other.name != entry.name for path in other.iterdir()]
    if (size := sum(path.stat().st_size for path in files)) > ATLAS_BYTES:
        raise InputError(
            f"the atlas has {size} bytes with {entry.name}, more than {ATLAS_BYTES}; make it of"
            " fewer rules (--limit of `dmle trace`)"
        )


def _faults(entry: AtlasEntry) -> Iterator[str]:
    """What is wrong, the first fault first: later checks rely on earlier ones."""
    yield from _files(entry)
    yield from _provenance(entry)
    yield from _texts(entry)
    yield from _numbers(entry.profile)
    yield from _choice(entry)


def _files(entry: AtlasEntry) -> Iterator[str]:
    names = {path.name: path for path in entry.folder.iterdir()}
    if missing := [name for name in NEEDED if name not in names]:
        yield f"it lacks {', '.join(missing)}"
    if foreign := sorted(names.keys() - {*NEEDED, REGRET}):
        yield f"{', '.join(foreign)} is no file of an entry"
    size = sum(path.stat().st_size for path in names.values())
    if size > ENTRY_BYTES:
        yield (
            f"it has {size} bytes, more than {ENTRY_BYTES}; make it of fewer rules (--limit of"
            " `dmle trace`)"
        )


def _provenance(entry: AtlasEntry) -> Iterator[str]:
    about, profile = entry.about, entry.profile
    if about.name != entry.name:
        yield f"about.json calls it {about.name!r}"
    texts = (about.model, about.weights, about.rules, about.method, about.version, *about.commands)
    if not all(text.strip() for text in texts):
        yield "its provenance is incomplete: a text of about.json is blank"
    if about.model.startswith(("/", ".", "~")) or "\\" in about.model:
        yield f"model {about.model!r} is a folder of one machine; name the model (--model)"
    said = {
        "weight_hash": about.weight_hash,
        "dtype": about.dtype,
        "samples": about.samples,
        "method": about.method,
        "version_dmle": about.version,
        "n_prompts": about.n_prompts,
    }
    for name, value in said.items():
        if str(profile.attrs.get(name)) != str(value):
            yield f"{name} is {value} in about.json, {profile.attrs.get(name)} in profile.nc"
    counts = (about.n_blocks, about.n_rules, about.traced)
    if counts != (profile.sizes["layer"], profile.sizes["rule"], traced(profile)):
        yield "about.json counts other blocks, rules or traced prompts than profile.nc has"


def _texts(entry: AtlasEntry) -> Iterator[str]:
    """Texts of rules may have another licence, and are not needed: only names are kept."""
    profile = entry.profile
    for kind, names, known in (
        ("variable", set(map(str, profile.data_vars)), CONTENT.variables),
        ("label", set(map(str, profile.coords)), CONTENT.dims),
        ("attribute", set(map(str, profile.attrs)), ATTRIBUTES),
        ("provenance of its selection", set(entry.selection.provenance), {*KEPT, "grouping"}),
    ):
        if foreign := sorted(names - known):
            yield f"{foreign[0]} is no {kind} that an entry holds"
    wrong = [name for name in profile["rule"].values if not RULE_ID.fullmatch(str(name))]
    if wrong:
        yield f"{str(wrong[0])[:40]!r} is no name of a rule (letters, digits, . + : - _)"
    if str(profile.attrs.get("span", "content")) not in get_args(CorruptedSpan):
        yield "its attribute span has words of prompts; trace a span that has a name"
    for name, value in profile.attrs.items():
        if len(str(value)) > TEXT_LENGTH:
            yield f"its attribute {name} has more than {TEXT_LENGTH} characters"


def _numbers(profile: xr.Dataset) -> Iterator[str]:
    for name in sorted(CONTENT.variables):
        if np.isinf(profile[name].values.astype(float)).any():
            yield f"{name} of its profile is infinite"
    effect, known = profile["effect"], profile["n"] > 0
    for name in ("aie", "lower", "upper"):
        # An interval needs more than one rule.
        counted = known if name == "aie" else profile["n"] > 1
        if bool((profile[name].isnull() & counted).any()):
            yield f"{name} of its profile is not a number where rules are counted"
    order = profile["aie"].dims
    mean = effect.mean("rule").transpose(*order).values
    if not np.allclose(mean, profile["aie"].values, rtol=1e-6, atol=1e-9, equal_nan=True):
        yield "aie of its profile is not the mean of the effects of its rules"
    if not bool(known.sel(role=LOOKUP).any()):
        yield "its profile has no effect at the lookup tokens"


def _choice(entry: AtlasEntry) -> Iterator[str]:
    config = SelectConfig.model_validate(entry.about.select)
    again, kept = select_layers(entry.profile, config), entry.selection
    if kept.strategy != config.strategy:
        yield f"selection.json is of {kept.strategy}, about.json of {config.strategy}"
    layers = {group.name: group.layers for group in kept.groups}
    if layers != {group.name: group.layers for group in again.groups}:
        yield "its selection is not what its profile and settings give"
    for each in entry.about.regret:
        if each.group not in layers:
            yield f"about.json has a regret of {each.group}, which the selection lacks"
        if not np.isfinite((each.regret, each.lower, each.upper)).all():
            yield f"the regret of {each.group} is not a number"
    if bool(entry.about.regret) != (entry.folder / REGRET).is_file():
        yield f"{REGRET} and the regret in about.json do not belong together"


def traced(profile: xr.Dataset) -> dict[str, int]:
    """Traceable prompts of each form."""
    counts = profile["traceable"].astype(int).sum("rule")
    return {str(form): int(counts.sel(form=form)) for form in profile["form"].values}
