"""Effect maps of many prompts, joined into one padded dataset, in memory or in a file.

`interp.results.effects` says what such a dataset holds.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5netcdf
import numpy as np
import xarray as xr

from interp.errors import InputError
from interp.results import foreign_files
from interp.results.checksums import seal
from interp.results.files import atomic
from interp.results.netcdf import Growing, content_of, load

SITE = ("component", "layer", "pos", "sample")
"""Dims of the scores of one prompt."""


def concat(maps: Mapping[tuple[str, str], xr.Dataset]) -> xr.Dataset:
    """Join maps of single prompts, keyed by (rule, form), into one padded dataset, in memory.

    Rules and forms keep the order of first appearance. Attributes that all maps share are kept;
    those that differ (the prompt's own) become coords of dims ``rule form``, so no provenance is
    lost.

    Raises:
        ValueError: No maps, or maps with different layers, components, metrics or samples.
    """
    joined, sites = _frame({key: lambda item=item: item for key, item in maps.items()})
    for name, dims in sites.items():
        value, dtype = _EMPTY[name]
        shape = [joined.sizes[dim] for dim in dims]
        joined[name] = (dims, np.full(shape, value, bool if dtype is np.int8 else dtype))
    for (rule, form), item in maps.items():
        for name in sites:
            _write_padded(joined[name].values, joined, rule, form, item[name].values)
    return joined


def join(
    paths: Mapping[tuple[str, str], Path], target: Path, attrs: Mapping[str, Any] | None = None
) -> None:
    """`concat` of files into a file, atomically, with one map in memory at a time.

    Args:
        paths: Files of single maps, by (rule, form).
        target: The file to write.
        attrs: Further attributes.

    Raises:
        ValueError: As `concat`, or a file is damaged.
        WriteError: The disk is full, the folder cannot be written, ….
    """
    joined, sites = _frame({key: lambda path=path: load(path) for key, path in paths.items()})
    joined = joined.assign_attrs(attrs or {})
    with atomic(target) as partial, partial.open("x+b", buffering=0) as raw:
        file = Growing(raw)
        file.write(content_of(joined))
        with h5netcdf.File(file, "r+") as written:
            for name, dims in sites.items():
                variable = _sites_variable(written, name, dims, joined)
                for (rule, form), path in paths.items():
                    file.check()
                    _write_padded(variable, joined, rule, form, load(path)[name].values)
        file.check()
        sha256 = seal(raw)
    foreign_files.remember(sha256)


def _sites_variable(
    file: h5netcdf.File, name: str, dims: tuple[str, ...], joined: xr.Dataset
) -> h5netcdf.Variable:
    """A new variable with an entry per site, in pieces of one map."""
    value, dtype = _EMPTY[name]
    chunks = tuple(1 if dim in ("rule", "form") else joined.sizes[dim] for dim in dims)
    # A fill value that is also a value would be read as missing; unwritten integers are 0 without
    # one.
    fill = value if dtype is np.float32 else None
    variable = file.create_variable(
        name, dims, dtype, fillvalue=fill, chunks=chunks, compression="gzip", compression_opts=4
    )
    if dtype is np.int8:
        variable.attrs["dtype"] = "bool"  # as xarray writes it
    return variable


def select_map(effects: xr.Dataset, rule: str, form: str) -> xr.Dataset:
    """The map of one prompt from a joined dataset, without its padding.

    Raises:
        ValueError: There is no map for that rule and form.
    """
    known = rule in effects["rule"].values and form in effects["form"].values
    if not known or int(effects["n_tokens"].sel(rule=rule, form=form)) == 0:
        raise InputError(
            f"no map for rule {rule!r}, form {form!r}; "
            f"rules: {effects['rule'].values.tolist()}, forms: {effects['form'].values.tolist()}"
        )
    one = effects.sel(rule=rule, form=form)
    return one.isel(pos=slice(0, int(one["n_tokens"])))


_EMPTY: dict[str, tuple[Any, type]] = {"score": (np.nan, np.float32), "exact": (False, np.int8)}
"""The arrays with an entry per site, which are large: what fills them where nothing is, and
their type on disk."""


def _frame(
    maps: Mapping[tuple[str, str], Callable[[], xr.Dataset]],
) -> tuple[xr.Dataset, dict[str, tuple[str, ...]]]:
    """Everything of a joined dataset but the large arrays, and those arrays' dims."""
    if not maps:
        raise InputError("no effect maps to join; trace at least one prompt first")
    small, large = {}, {}
    for key, get in maps.items():
        item = get()
        large[key] = tuple(name for name in _EMPTY if name in item)
        small[key] = item.drop_vars(_EMPTY, errors="ignore")
    _check_alike(small, large)
    first = next(iter(small.values()))
    lead = ("metric",) if "metric" in first.sizes else ()
    common, varying = _split_attrs([item.attrs for item in small.values()])
    rules = list(dict.fromkeys(rule for rule, _ in maps))
    forms = list(dict.fromkeys(form for _, form in maps))
    arrays = _padded(small, rules, forms, varying)
    joined = xr.Dataset(
        {name: arrays.pop(name) for name in ("clean", "corrupted")},
        coords={
            "rule": np.array(rules, dtype=object),
            "form": np.array(forms, dtype=object),
            "component": first["component"].values.astype(object),
            "layer": first["layer"].values,
            **{name: first[name].astype(object) for name in ("metric", "unit") if lead},
            **arrays,
        },
        attrs=common,
    )
    sites = {"score": ("rule", "form", *lead, *SITE), "exact": ("rule", "form", *SITE)}
    return joined, {name: sites[name] for name in next(iter(large.values()))}


def _check_alike(
    maps: Mapping[tuple[str, str], xr.Dataset], large: Mapping[tuple[str, str], tuple[str, ...]]
) -> None:
    """See that all maps have the labels and the large arrays of the first one.

    Raises:
        InputError: One has others.
    """
    first = next(iter(maps.values()))
    shared = [dim for dim in ("metric", "component", "layer", "sample") if dim in first.sizes]
    for key, item in maps.items():
        for dim in shared:
            if item.sizes.get(dim) != first.sizes[dim] or not item.get_index(dim).equals(
                first.get_index(dim)
            ):
                raise InputError(
                    f"map {key} has {item.sizes.get(dim)} along {dim}, others have"
                    f" {first.sizes[dim]} or other labels; join maps of one configuration only"
                )
    metrics = {"metric" in item.sizes for item in maps.values()}
    if len(set(large.values())) > 1 or len(metrics) > 1:
        raise InputError(
            "some maps have several metrics or estimated sites, others not; join one configuration"
            " only"
        )


def _padded(
    maps: Mapping[tuple[str, str], xr.Dataset],
    rules: Sequence[str],
    forms: Sequence[str],
    varying: Sequence[str],
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Dims and values of the small arrays of all maps, with leading dims `rule form`.

    Args:
        maps: Maps of single prompts, without the arrays of sites.
        rules: Labels along `rule`.
        forms: Labels along `form`.
        varying: Attributes that become arrays.
    """
    sizes = {**next(iter(maps.values())).sizes, "rule": len(rules), "form": len(forms)}
    sizes["pos"] = max(item.sizes["pos"] for item in maps.values())
    arrays = _empty_arrays(sizes, varying)
    for (rule, form), item in maps.items():
        place, n_tokens = (rules.index(rule), forms.index(form)), item.sizes["pos"]
        for name, value in _small_values(item, varying).items():
            dims, values = arrays[name]
            if "pos" in dims:
                values[place][:n_tokens] = value
            else:
                values[place] = value
    return arrays


def _empty_arrays(
    sizes: Mapping[Any, int], varying: Sequence[str]
) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """Dims and values of the small arrays before any map is in them."""
    lead = ("metric",) if "metric" in sizes else ()

    def empty(dims: tuple[str, ...], value: Any, dtype: type) -> Any:
        dims = ("rule", "form", *dims)
        return dims, np.full([sizes[dim] for dim in dims], value, dtype)

    return {
        "clean": empty(lead, np.nan, np.float32),
        "corrupted": empty((*lead, "sample"), np.nan, np.float32),
        "token": empty(("pos",), "", object),
        "role": empty(("pos",), "", object),
        "is_corrupted": empty(("pos",), False, bool),
        "n_tokens": empty((), 0, np.int64),
        **{name: empty((), "", object) for name in ("prompt", "answer", *varying)},
    }


def _small_values(item: xr.Dataset, varying: Sequence[str]) -> dict[str, Any]:
    """What one map gives to the small arrays."""
    arrays = ("clean", "corrupted", "token", "role", "is_corrupted")
    return {
        "n_tokens": item.sizes["pos"],
        **{name: item[name].values for name in arrays},
        **{name: item[name].item() for name in ("prompt", "answer")},
        **{name: str(item.attrs.get(name, "")) for name in varying},
    }


def _write_padded(
    target: Any, joined: xr.Dataset, rule: str, form: str, values: np.ndarray
) -> None:
    """Write one map's array into the joined one, leaving the padding behind its last token."""
    place = joined.get_index("rule").get_loc(rule), joined.get_index("form").get_loc(form)
    target[(*place, ..., slice(0, values.shape[-2]), slice(None))] = values


def _split_attrs(attrs: list[dict]) -> tuple[dict, list[str]]:
    """Attributes equal in all maps, and the names of those that are not."""
    names = list(dict.fromkeys(name for item in attrs for name in item))
    common = {n: attrs[0][n] for n in names if all(n in a and a[n] == attrs[0][n] for a in attrs)}
    return common, [n for n in names if n not in common]
