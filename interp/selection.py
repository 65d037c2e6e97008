"""From a layer profile to the layers to edit, with the evidence for the choice.

`select_layers` looks, for each group of forms, for the contiguous window of layers with the largest average
indirect effect at the lookup tokens. The result says how stable that choice is (how often the same window
wins when the rules are resampled) and whether the profile supports it at all; it never hides a weak choice.

Reading: window scores are averages of AIE over the window's layers, in the profile's unit. Layers whose
restored window (see `interp.windows`) holds one of the first `identity_blocks` blocks are no
candidates: their effect is mostly that the corrupted word comes back.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp.config import SelectConfig
from interp.profiles import LOOKUP, resample_counts
from interp.windows import window

SCHEMA = "dmle.selection/1"
CONFIDENCE = 0.95
NEGLIGIBLE = 0.01
"""Share of the total effect below which an effect is taken for none: rounding can look significant."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerGroup(_Frozen):
    """Forms that share an update, and the layers it goes to."""

    name: str
    forms: tuple[str, ...]
    layers: tuple[int, ...] = Field(min_length=1)
    score: float | None = None
    """Mean AIE over the layers; None if the layers were given, not selected."""
    lower: float | None = None
    upper: float | None = None
    stability: float | None = None
    """Share of bootstrap resamples of the rules in which this window wins."""
    n_rules: int = 0
    supported: bool = True
    """Whether the window's effect is distinguishable from zero and not negligible."""
    reason: str = ""


class LayerSelection(_Frozen):
    """Layers for each group of forms, with where they come from."""

    schema_: Literal["dmle.selection/1"] = Field(default=SCHEMA, alias="schema")
    strategy: str
    component: str
    role: str
    width: int
    n_layers: int
    first_layer: int = 0
    """Layers before this one were no candidates."""
    groups: tuple[LayerGroup, ...]
    provenance: dict[str, Any] = Field(default_factory=dict)

    def layers_of(self, form: str) -> tuple[int, ...]:
        """Layers for a form.

        Raises:
            KeyError: No group has the form.
        """
        return self.group_of(form).layers

    def group_of(self, form: str) -> LayerGroup:
        """The group that a form belongs to."""
        for group in self.groups:
            if form in group.forms:
                return group
        raise KeyError(f"form {form!r} is in no group; groups are {[g.name for g in self.groups]}")

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(self.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "LayerSelection":
        """Read JSON written by `save`.

        Raises:
            ValueError: The file is missing or is no layer selection.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise ValueError(f"{path} is not a layer selection: {error}") from error


def windows(n_layers: int, width: int) -> np.ndarray:
    """Every contiguous window as a row of averaging weights, shape (n_layers - width + 1, n_layers).

    >>> windows(3, 2)
    array([[0.5, 0.5, 0. ],
           [0. , 0.5, 0.5]])
    """
    out = np.zeros((n_layers - width + 1, n_layers))
    for start in range(len(out)):
        out[start, start : start + width] = 1 / width
    return out


def best_window(
    effect: np.ndarray, width: int, *, draws: int, seed: int, first: int = 0
) -> tuple[int, np.ndarray, float]:
    """The window with the largest mean effect, and how firmly.

    Args:
        effect: Shape (rule, layer), no NaN.
        width: Layers per window.
        draws: Bootstrap resamples of the rules.
        seed: Seed of the resampling.
        first: First layer that a window may hold.

    Returns:
        First layer of the best window, its mean effect in each resample (shape (draws,)), and the share of
        resamples in which the same window is best.
    """
    scores = effect @ windows(effect.shape[1], width)[first:].T
    best = int(scores.mean(0).argmax())
    resampled = resample_counts(len(effect), draws, seed) @ scores / len(effect)
    return first + best, resampled[:, best], float((resampled.argmax(1) == best).mean())


def first_candidate(component: str, restored: int, identity_blocks: int, n_layers: int) -> int:
    """First layer whose restored blocks are all behind the identity blocks; `n_layers` if there is none.

    >>> first_candidate("mlp", 6, 1, 30), first_candidate("resid", 6, 1, 30), first_candidate("mlp", 6, 0, 30)
    (4, 1, 0)
    """
    widths = (1 if component == "resid" else restored, n_layers)
    behind = (layer for layer in range(n_layers) if window(layer, *widths).start >= identity_blocks)
    return next(behind, n_layers)


def select_layers(profile: xr.Dataset, config: SelectConfig | None = None) -> LayerSelection:
    """Choose the best contiguous window of layers for each group of forms.

    Args:
        profile: Result of `interp.profiles.layer_profile`.
        config: Component, width and groups.

    Raises:
        ValueError: A group has no traceable rule, or the model has fewer layers than a window.
    """
    config = config or SelectConfig()
    n_layers = profile.sizes["layer"]
    restored = int(profile.attrs.get("window", 1))
    first = first_candidate(config.component, restored, config.identity_blocks, n_layers)
    if config.width > n_layers - first:
        raise ValueError(
            f"select.width is {config.width}, but only {n_layers - first} of the model's {n_layers} layers are "
            f"candidates (blocks {restored} wide are restored, behind the first {config.identity_blocks}); "
            "lower select.width, select.identity_blocks or trace.window"
        )
    if config.component not in profile["component"].values:
        raise ValueError(
            f"the profile has no component {config.component!r}, only "
            f"{profile['component'].values.tolist()}; trace it first"
        )
    groups = tuple(_select_group(profile, forms, config, first) for forms in config.groups)
    keep = (
        "model",
        "weight_hash",
        "unit",
        "metric",
        "span",
        "noise",
        "samples",
        "window",
        "lookup_roles",
    )
    return LayerSelection(
        schema=SCHEMA,
        strategy="window",
        component=config.component,
        role=LOOKUP,
        width=config.width,
        n_layers=n_layers,
        first_layer=first,
        groups=groups,
        provenance={name: _plain(profile.attrs[name]) for name in keep if name in profile.attrs},
    )


def parse_layers(text: str, n_layers: int) -> LayerSelection:
    """Layers given by hand: "3,4,5/12,13,14" (formula and description / instance) or "4-8" (all forms).

    Raises:
        ValueError: The text is not of that form, or a layer is outside the model.
    """
    forms = (("formula", "description"), ("instance",)) if "/" in text else (("formula", "description", "instance"),)
    parts = text.split("/")
    if len(parts) != len(forms):
        raise ValueError(f"layers {text!r}: give one list, or two separated by '/', such as 3,4,5/12,13,14")
    groups = tuple(
        LayerGroup(name="+".join(names), forms=names, layers=_layers(part, n_layers), reason="given by hand")
        for names, part in zip(forms, parts, strict=True)
    )
    width = max(len(group.layers) for group in groups)
    return LayerSelection(
        schema=SCHEMA,
        strategy="manual",
        component="mlp",
        role="",
        width=width,
        n_layers=n_layers,
        groups=groups,
    )


def _select_group(profile: xr.Dataset, forms: tuple[str, ...], config: SelectConfig, first: int) -> LayerGroup:
    name = "+".join(forms)
    known = [form for form in forms if form in profile["form"].values]
    values = profile["effect"].sel(form=known, component=config.component, role=LOOKUP)
    # A rule counts if any of the group's forms is traceable for it.
    per_rule = values.mean("form", skipna=True).transpose("rule", "layer").values
    per_rule = per_rule[~np.isnan(per_rule).any(1)]
    if not len(per_rule):
        raise ValueError(
            f"no rule is traceable in its {' or '.join(forms)} form (total effect above two standard errors); "
            "use more noise samples, a wider corrupted span, or rules that the model knows"
        )
    start, draws, stability = best_window(per_rule, config.width, draws=config.bootstrap, seed=config.seed, first=first)
    tail = 100 * (1 - CONFIDENCE) / 2
    lower, upper = np.percentile(draws, [tail, 100 - tail])
    score = float((per_rule @ windows(per_rule.shape[1], config.width)[start]).mean())
    floor = NEGLIGIBLE * float(profile["te"].sel(form=known).mean())
    supported = bool(len(per_rule) > 1 and lower > floor)
    layers = tuple(range(start, start + config.width))
    reason = (
        f"largest mean {config.component} effect from layer {first} on over {len(per_rule)} rules: {score:.3f} "
        f"({CONFIDENCE:.0%} interval {lower:.3f} to {upper:.3f}); the same window wins in {stability:.0%} of resamples"
    )
    if not supported:
        why = f"the interval reaches {NEGLIGIBLE:.0%} of the total effect, or there is only one rule"
        reason = f"not supported by the profile ({why}): {reason}"
    return LayerGroup(
        name=name,
        forms=forms,
        layers=layers,
        score=score,
        lower=float(lower),
        upper=float(upper),
        stability=stability,
        n_rules=len(per_rule),
        supported=supported,
        reason=reason,
    )


def _layers(text: str, n_layers: int) -> tuple[int, ...]:
    layers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            layers += range(int(first), int(last or first) + 1)
    except ValueError as error:
        raise ValueError(
            f"layers {text!r}: numbers and ranges separated by commas are needed, such as 3,4,5 or 4-8"
        ) from error
    if not layers or layers != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < n_layers:
        raise ValueError(f"layers {text!r}: ascending layers within 0 to {n_layers - 1} are needed")
    return tuple(layers)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
