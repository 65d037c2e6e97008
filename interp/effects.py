"""Effect maps: the labelled result of causal tracing, in memory and on disk.

An effect map of one prompt has dims ``component layer pos sample``:

=============  =======================  ==========================================================
``score``      component layer pos      score of the answer in the *restored* run: corrupted, but with the
               sample                   clean value at (layer, pos); NaN where the site was not traced
``clean``      (scalar)                 score of the clean run
``corrupted``  sample                   score of the corrupted run
=============  =======================  ==========================================================

with coords ``token`` (text), ``role`` and ``is_corrupted`` along ``pos``. ``component`` is one of `COMPONENTS`;
``layer`` is the 0-based block whose output is restored (the centre of the window for `mlp` and `attn`).
Scores are in the unit of ``attrs["unit"]`` (nats per answer token by default).

Many prompts (`concat`) add leading dims ``rule form``; shorter prompts are padded with NaN and an empty token,
``n_tokens`` says how long each is (0: no map for that rule and form), and nothing is cut.

Signs: total effect TE = clean - corrupted, indirect effect IE = restored - corrupted. Both are positive
when the clean value helps the answer (denoising). Averaged over rules, IE is the average indirect effect (AIE).
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

COMPONENTS = ("resid", "mlp", "attn")
ROLES = (
    "prefix",
    "subject_first",
    "subject_middle",
    "subject_last",
    "rule_word",
    "number",
    "after",
    "last",
)
SCHEMA = "dmle.effects/1"
TRACEABLE_STANDARD_ERRORS = 2.0


def effect_map(
    score: np.ndarray,
    clean: float,
    corrupted: np.ndarray,
    *,
    components: Sequence[str],
    tokens: Sequence[str],
    roles: Sequence[str],
    is_corrupted: Sequence[bool],
    prompt: str,
    answer: str,
    attrs: dict[str, str | int | float] | None = None,
) -> xr.Dataset:
    """Label the arrays of one traced prompt.

    Args:
        score: Restored scores, shape (component, layer, pos, sample).
        clean: Score of the clean run.
        corrupted: Scores of the corrupted run, shape (sample,).
        components: Names along the first axis, from `COMPONENTS`.
        tokens: Token texts, one per position.
        roles: Token roles, one per position, from `ROLES`.
        is_corrupted: Whether the corruption changes the token.
        prompt: The prompt's text.
        answer: The scored answer's text.
        attrs: Provenance; plain numbers and strings only, so that NetCDF can hold them.

    Raises:
        ValueError: The lengths disagree, or a name is unknown.
    """
    expected = (len(components), score.shape[1], len(tokens), len(corrupted))
    if score.shape != expected:
        raise ValueError(
            f"score has shape {score.shape}, but the labels give (component, layer, pos, sample) = {expected}"
        )
    if not len(tokens) == len(roles) == len(is_corrupted):
        raise ValueError(
            f"got {len(tokens)} tokens, {len(roles)} roles, {len(is_corrupted)} corruption flags; "
            "need one of each per position"
        )
    for name, known in ((components, COMPONENTS), (roles, ROLES)):
        if unknown := set(name) - set(known):
            raise ValueError(f"unknown label {sorted(unknown)}; known are {known}")
    return xr.Dataset(
        {
            "score": (("component", "layer", "pos", "sample"), score.astype(np.float32)),
            "clean": ((), np.float32(clean)),
            "corrupted": (("sample",), corrupted.astype(np.float32)),
        },
        coords={
            "component": np.array(components, dtype=object),
            "layer": np.arange(score.shape[1]),
            "token": ("pos", np.array(tokens, dtype=object)),
            "role": ("pos", np.array(roles, dtype=object)),
            "is_corrupted": ("pos", np.array(is_corrupted, dtype=bool)),
            "prompt": ((), prompt),
            "answer": ((), answer),
        },
        attrs={
            "schema": SCHEMA,
            "sign": "positive = restoring the clean value helps",
            "unit": "nats",
            **(attrs or {}),
        },
    )


def indirect_effect(effects: xr.Dataset) -> xr.DataArray:
    """IE = restored - corrupted, averaged over noise samples; NaN where not traced."""
    effect = (effects["score"] - effects["corrupted"]).mean("sample", skipna=False)
    return effect.rename("indirect_effect").assign_attrs(unit=effects.attrs["unit"], long_name="indirect effect")


def total_effect(effects: xr.Dataset) -> xr.Dataset:
    """TE = clean - corrupted with its standard error over noise samples, and whether it stands out.

    Returns:
        Dataset of ``total_effect``, ``standard_error`` and ``traceable``: TE is positive and above
        `TRACEABLE_STANDARD_ERRORS` standard errors. A map of a prompt that is not traceable means nothing.
    """
    samples = effects.sizes["sample"]
    te = (effects["clean"] - effects["corrupted"]).mean("sample", skipna=False)
    se = effects["corrupted"].std("sample", ddof=1, skipna=False) / np.sqrt(samples)
    traceable = (te > 0) & (te > TRACEABLE_STANDARD_ERRORS * se)
    return xr.Dataset({"total_effect": te, "standard_error": se, "traceable": traceable}, attrs=effects.attrs)


def normalised_recovery(effects: xr.Dataset) -> xr.DataArray:
    """IE / TE: 0 = as corrupted, 1 = as clean. NaN where the prompt is not traceable."""
    te = total_effect(effects)
    recovery = indirect_effect(effects) / te["total_effect"]
    return (
        recovery.where(te["traceable"])
        .rename("normalised_recovery")
        .assign_attrs(unit="fraction of total effect", long_name="normalised recovery")
    )


def concat(maps: dict[tuple[str, str], xr.Dataset]) -> xr.Dataset:
    """Join maps of single prompts, keyed by (rule, form), into one padded dataset.

    Rules and forms keep the order of first appearance. Attributes that all maps share are kept; those
    that differ (the prompt's own) become coords of dims ``rule form``, so no provenance is lost.

    Raises:
        ValueError: No maps, or maps with different layers, components or samples.
    """
    if not maps:
        raise ValueError("no effect maps to join; trace at least one prompt first")
    rules = list(dict.fromkeys(rule for rule, _ in maps))
    forms = list(dict.fromkeys(form for _, form in maps))
    first = next(iter(maps.values()))
    for key, item in maps.items():
        for dim in ("component", "layer", "sample"):
            if item.sizes[dim] != first.sizes[dim] or not item.get_index(dim).equals(first.get_index(dim)):
                raise ValueError(
                    f"map {key} has {item.sizes[dim]} along {dim}, others have {first.sizes[dim]} or other labels; "
                    "join maps of one configuration only"
                )
    shape = (len(rules), len(forms))
    length = max(item.sizes["pos"] for item in maps.values())
    components, layers, samples = (first.sizes[d] for d in ("component", "layer", "sample"))
    score = np.full((*shape, components, layers, length, samples), np.nan, np.float32)
    clean = np.full(shape, np.nan, np.float32)
    corrupted = np.full((*shape, samples), np.nan, np.float32)
    token = np.full((*shape, length), "", dtype=object)
    role = np.full((*shape, length), "", dtype=object)
    is_corrupted = np.zeros((*shape, length), dtype=bool)
    n_tokens = np.zeros(shape, dtype=np.int64)
    texts = {name: np.full(shape, "", dtype=object) for name in ("prompt", "answer")}
    common, varying = _split_attrs([item.attrs for item in maps.values()])
    own = {name: np.full(shape, "", dtype=object) for name in varying}
    for (rule, form), item in maps.items():
        at = rules.index(rule), forms.index(form)
        n = item.sizes["pos"]
        score[at][..., :n, :] = item["score"].values
        clean[at], corrupted[at], n_tokens[at] = item["clean"].item(), item["corrupted"].values, n
        token[at][:n], role[at][:n], is_corrupted[at][:n] = (
            item["token"].values,
            item["role"].values,
            item["is_corrupted"].values,
        )
        for name, values in texts.items():
            values[at] = item[name].item()
        for name, values in own.items():
            values[at] = str(item.attrs.get(name, ""))
    where = ("rule", "form")
    return xr.Dataset(
        {
            "score": ((*where, "component", "layer", "pos", "sample"), score),
            "clean": (where, clean),
            "corrupted": ((*where, "sample"), corrupted),
        },
        coords={
            "rule": np.array(rules, dtype=object),
            "form": np.array(forms, dtype=object),
            "component": first["component"].values.astype(object),
            "layer": first["layer"].values,
            "token": ((*where, "pos"), token),
            "role": ((*where, "pos"), role),
            "is_corrupted": ((*where, "pos"), is_corrupted),
            "n_tokens": (where, n_tokens),
            **{name: (where, values) for name, values in {**texts, **own}.items()},
        },
        attrs=common,
    )


def select_map(effects: xr.Dataset, rule: str, form: str) -> xr.Dataset:
    """The map of one prompt from a joined dataset, without its padding.

    Raises:
        ValueError: There is no map for that rule and form.
    """
    known = rule in effects["rule"].values and form in effects["form"].values
    if not known or int(effects["n_tokens"].sel(rule=rule, form=form)) == 0:
        raise ValueError(
            f"no map for rule {rule!r}, form {form!r}; "
            f"rules: {effects['rule'].values.tolist()}, forms: {effects['form'].values.tolist()}"
        )
    one = effects.sel(rule=rule, form=form)
    return one.isel(pos=slice(0, int(one["n_tokens"])))


def save(dataset: xr.Dataset, path: Path) -> None:
    """Write NetCDF4 atomically: a killed run leaves the old file or the new one, never a torn one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    encoding = {
        name: {"zlib": True, "complevel": 4}
        for name, data in dataset.data_vars.items()
        if data.ndim and data.dtype.kind in "fiub"
    }
    try:
        dataset.to_netcdf(partial, engine="h5netcdf", encoding=encoding)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> xr.Dataset:
    """Read a dataset written by `save` fully into memory.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; run the command that writes it first")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            return dataset.load()
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{path} is not a readable NetCDF file ({error}); delete it and run the command that writes it again"
        ) from error


def _split_attrs(attrs: list[dict]) -> tuple[dict, list[str]]:
    """Attributes equal in all maps, and the names of those that are not."""
    names = list(dict.fromkeys(name for item in attrs for name in item))
    common = {n: attrs[0][n] for n in names if all(n in a and a[n] == attrs[0][n] for a in attrs)}
    return common, [n for n in names if n not in common]
