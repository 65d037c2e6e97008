"""Effect maps: the labelled result of causal tracing, in memory and on disk.

An effect map of one prompt has dims ``component layer pos sample``:

=============  ===================  ==============================================================
``score``      component layer pos  score of the answer in the *restored* run: corrupted, with the
               sample               clean value at (layer, pos); NaN where the site was not traced
``clean``      (scalar)             score of the clean run
``corrupted``  sample               score of the corrupted run
``exact``      component layer pos  only in maps that were not traced exactly throughout: whether
               sample               that score was run, or estimated from gradients
=============  ===================  ==============================================================

with coords ``token`` (text), ``role`` and ``is_corrupted`` along ``pos``. ``component`` is one of
`COMPONENTS`; ``layer`` is the 0-based block whose output is restored (the centre of the window for
`mlp` and `attn`). Scores are in the unit of ``attrs["unit"]`` (nats per answer token by default). A
trace of several metrics has a leading dim ``metric`` with a coord ``unit``; `choose_metric` gives
the map of one of them.

Many prompts (`concat`) add leading dims ``rule form``; shorter prompts are padded with NaN and an
empty token, ``n_tokens`` says how long each is (0: no map for that rule and form), and nothing is
cut.

Signs: total effect TE = clean - corrupted, indirect effect IE = restored - corrupted. Both are
positive when the clean value helps the answer (denoising). Averaged over rules, IE is the average
indirect effect (AIE). Where ``attrs["direction"]`` is `noise`, the score is that of the clean run
with the corrupted value, and IE = clean - score: positive, again, where the clean value helps.
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
from interp.results.netcdf import Growing, content_of, load, opened, save
from interp.vocabulary import COMPONENTS, ROLES

__all__ = [
    "COMPONENTS",
    "ROLES",
    "SCHEMA",
    "TRACEABLE_STANDARD_ERRORS",
    "choose_metric",
    "concat",
    "effect_map",
    "indirect_effect",
    "join",
    "load",
    "normalised_recovery",
    "opened",
    "save",
    "select_map",
    "total_effect",
]
SCHEMA = "dmle.effects/2"
TRACEABLE_STANDARD_ERRORS = 2.0


def effect_map(
    score: np.ndarray,
    clean: float | np.ndarray,
    corrupted: np.ndarray,
    *,
    components: Sequence[str],
    tokens: Sequence[str],
    roles: Sequence[str],
    is_corrupted: Sequence[bool],
    prompt: str,
    answer: str,
    attrs: Mapping[str, str | int | float] | None = None,
    metrics: Mapping[str, str] | None = None,
    exact: np.ndarray | None = None,
) -> xr.Dataset:
    """Label the arrays of one traced prompt.

    Args:
        score: Restored scores, shape (component, layer, pos, sample); with a leading axis if there
            are `metrics`.
        clean: Score of the clean run; one of each metric.
        corrupted: Scores of the corrupted run, shape (sample,) or (metric, sample).
        components: Names along the first axis, from `COMPONENTS`.
        tokens: Token texts, one per position.
        roles: Token roles, one per position, from `ROLES`.
        is_corrupted: Whether the corruption changes the token.
        prompt: The prompt's text.
        answer: The scored answer's text.
        attrs: Provenance; plain numbers and strings only, so that NetCDF can hold them.
        metrics: Names and units of several metrics, in the order of the leading axis.
        exact: Which scores were run, not estimated, shape (component, layer, pos, sample).

    Raises:
        ValueError: The lengths disagree, or a name is unknown.
    """
    lead = () if metrics is None else ("metric",)
    n_layers = score.shape[len(lead) + 1]
    expected = (
        *(len(metrics or ()) for _ in lead),
        len(components),
        n_layers,
        len(tokens),
        corrupted.shape[-1],
    )
    if score.shape != expected:
        raise InputError(
            f"score has shape {score.shape}, but the labels give "
            f"({', '.join((*lead, 'component', 'layer', 'pos', 'sample'))}) = {expected}"
        )
    if not len(tokens) == len(roles) == len(is_corrupted):
        raise InputError(
            f"got {len(tokens)} tokens, {len(roles)} roles, {len(is_corrupted)} corruption flags; "
            "need one of each per position"
        )
    for name, known in ((components, COMPONENTS), (roles, ROLES)):
        if unknown := set(name) - set(known):
            raise InputError(f"unknown label {sorted(unknown)}; known are {known}")
    sites = ("component", "layer", "pos", "sample")
    data: dict[str, Any] = {
        "score": ((*lead, *sites), score.astype(np.float32)),
        "clean": (lead, np.float32(clean)),
        "corrupted": ((*lead, "sample"), corrupted.astype(np.float32)),
    }
    coords: dict[str, Any] = {
        "component": np.array(components, dtype=object),
        "layer": np.arange(n_layers),
        "token": ("pos", np.array(tokens, dtype=object)),
        "role": ("pos", np.array(roles, dtype=object)),
        "is_corrupted": ("pos", np.array(is_corrupted, dtype=bool)),
        "prompt": ((), prompt),
        "answer": ((), answer),
    }
    if exact is not None:
        data["exact"] = (sites, exact)
    if metrics is not None:
        coords["metric"] = np.array(list(metrics), dtype=object)
        coords["unit"] = ("metric", np.array(list(metrics.values()), dtype=object))
    sign = "positive = restoring the clean value helps"
    return xr.Dataset(
        data, coords, {"schema": SCHEMA, "sign": sign, "unit": "nats", **(attrs or {})}
    )


def choose_metric(effects: xr.Dataset, metric: str | None = None) -> xr.Dataset:
    """The map of one metric; the first, if none is named.

    Raises:
        ValueError: The map has no such metric.
    """
    have = (
        [str(m) for m in effects["metric"].values]
        if "metric" in effects.dims
        else [effects.attrs.get("metric")]
    )
    name = have[0] if metric is None else metric
    if name not in have:
        raise InputError(
            f"the effect map has no metric {name!r}, only {have}; trace it with trace.metrics"
        )
    if "metric" not in effects.dims:
        return effects
    one = effects.sel(metric=name)
    return one.drop_vars(["metric", "unit"]).assign_attrs(metric=name, unit=str(one["unit"].item()))


def indirect_effect(effects: xr.Dataset) -> xr.DataArray:
    """IE averaged over noise samples, positive where the clean value helps (see the module); NaN
    where not traced.
    """
    if effects.attrs.get("direction") == "noise":
        effect = (effects["clean"] - effects["score"]).mean("sample", skipna=False)
    else:
        effect = (effects["score"] - effects["corrupted"]).mean("sample", skipna=False)
    return effect.rename("indirect_effect").assign_attrs(
        unit=effects.attrs["unit"], long_name="indirect effect"
    )


def total_effect(effects: xr.Dataset) -> xr.Dataset:
    """TE = clean - corrupted with its standard error over noise samples, and whether it stands out.

    Returns:
        Dataset of ``total_effect``, ``standard_error`` and ``traceable``: TE is positive and above
        `TRACEABLE_STANDARD_ERRORS` standard errors. A map of a prompt that is not traceable means
        nothing. One sample (a counterfactual prompt) has no error.
    """
    samples = effects.sizes["sample"]
    te = (effects["clean"] - effects["corrupted"]).mean("sample", skipna=False)
    se = effects["corrupted"].std("sample", ddof=min(1, samples - 1), skipna=False) / np.sqrt(
        samples
    )
    traceable = (te > 0) & (te > TRACEABLE_STANDARD_ERRORS * se)
    return xr.Dataset(
        {"total_effect": te, "standard_error": se, "traceable": traceable}, attrs=effects.attrs
    )


def normalised_recovery(effects: xr.Dataset) -> xr.DataArray:
    """IE / TE: 0 = as corrupted, 1 = as clean. NaN where the prompt is not traceable."""
    te = total_effect(effects)
    recovery = indirect_effect(effects) / te["total_effect"]
    return (
        recovery.where(te["traceable"])
        .rename("normalised_recovery")
        .assign_attrs(unit="fraction of total effect", long_name="normalised recovery")
    )


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
    rules = list(dict.fromkeys(rule for rule, _ in maps))
    forms = list(dict.fromkeys(form for _, form in maps))
    small, large = {}, set()
    for key, get in maps.items():
        item = get()
        large.add(tuple(name for name in _EMPTY if name in item))
        small[key] = item.drop_vars(_EMPTY, errors="ignore")
    first = next(iter(small.values()))
    shared = [dim for dim in ("metric", "component", "layer", "sample") if dim in first.sizes]
    for key, item in small.items():
        for dim in shared:
            if item.sizes.get(dim) != first.sizes[dim] or not item.get_index(dim).equals(
                first.get_index(dim)
            ):
                raise InputError(
                    f"map {key} has {item.sizes.get(dim)} along {dim}, others have"
                    f" {first.sizes[dim]} or other labels; join maps of one configuration only"
                )
    if len(large) > 1 or len({"metric" in item.sizes for item in small.values()}) > 1:
        raise InputError(
            "some maps have several metrics or estimated sites, others not; join one configuration"
            " only"
        )
    shape, length = (len(rules), len(forms)), max(item.sizes["pos"] for item in small.values())
    where, lead = ("rule", "form"), tuple(dim for dim in shared if dim == "metric")
    metrics = tuple(first.sizes[dim] for dim in lead)
    common, varying = _split_attrs([item.attrs for item in small.values()])
    arrays: dict[str, np.ndarray] = {
        "clean": np.full((*shape, *metrics), np.nan, np.float32),
        "corrupted": np.full((*shape, *metrics, first.sizes["sample"]), np.nan, np.float32),
        "token": np.full((*shape, length), "", dtype=object),
        "role": np.full((*shape, length), "", dtype=object),
        "is_corrupted": np.zeros((*shape, length), dtype=bool),
        "n_tokens": np.zeros(shape, dtype=np.int64),
        **{name: np.full(shape, "", dtype=object) for name in ("prompt", "answer", *varying)},
    }
    for (rule, form), item in small.items():
        at, n = (rules.index(rule), forms.index(form)), item.sizes["pos"]
        arrays["n_tokens"][at] = n
        for name in ("token", "role", "is_corrupted"):
            arrays[name][at][:n] = item[name].values
        for name in ("clean", "corrupted"):
            arrays[name][at] = item[name].values
        for name in ("prompt", "answer"):
            arrays[name][at] = item[name].item()
        for name in varying:
            arrays[name][at] = str(item.attrs.get(name, ""))
    dims = {
        "clean": (*where, *lead),
        "corrupted": (*where, *lead, "sample"),
        **dict.fromkeys(("token", "role", "is_corrupted"), (*where, "pos")),
    }
    labelled = {name: (dims.get(name, where), values) for name, values in arrays.items()}
    joined = xr.Dataset(
        {name: labelled.pop(name) for name in ("clean", "corrupted")},
        coords={
            "rule": np.array(rules, dtype=object),
            "form": np.array(forms, dtype=object),
            "component": first["component"].values.astype(object),
            "layer": first["layer"].values,
            **{name: first[name].astype(object) for name in ("metric", "unit") if lead},
            **labelled,
        },
        attrs=common,
    )
    site = ("component", "layer", "pos", "sample")
    of_sites = {"score": (*where, *lead, *site), "exact": (*where, *site)}
    return joined, {name: of_sites[name] for name in next(iter(large))}


def _write_padded(
    target: Any, joined: xr.Dataset, rule: str, form: str, values: np.ndarray
) -> None:
    """Write one map's array into the joined one, leaving the padding behind its last token."""
    at = joined.get_index("rule").get_loc(rule), joined.get_index("form").get_loc(form)
    target[(*at, ..., slice(0, values.shape[-2]), slice(None))] = values


def _split_attrs(attrs: list[dict]) -> tuple[dict, list[str]]:
    """Attributes equal in all maps, and the names of those that are not."""
    names = list(dict.fromkeys(name for item in attrs for name in item))
    common = {n: attrs[0][n] for n in names if all(n in a and a[n] == attrs[0][n] for a in attrs)}
    return common, [n for n in names if n not in common]
