"""From a layer profile to the layers to edit, with the evidence for the choice.

`select_layers` picks layers for each group of forms from the average indirect effect at the lookup
tokens, by one of these strategies (`select.strategy`; the array core is
`interp.selection.strategies`):

===============  =====================================  =====================================
strategy         layers                                 stability: over splits of the rules
                                                        into two halves
===============  =====================================  =====================================
``window``       the contiguous window with the         share in which both halves pick the
                 largest mean                           same window
``mass``         the fewest layers that hold a share    mean overlap (Jaccard index: common /
                 of the positive effect, contiguous or  either) of the layers picked from one
                 not                                    half and from the other
``changepoint``  the segment that is elevated, of any   mean overlap, as for mass
                 width
``groups``       windows, for groups of forms found     as for window
                 from the data: forms are merged
                 unless they differ
``adaptive``     windows; rule by rule                  as for window; for a rule, share of
                 (`select_for_rules`) from shrunk       draws from what is believed of its
                 profiles                               profile
``combined``     the window that is best by the effect  as for window
                 and by what `dmle evidence` says of
                 editing
``sweep``        the window at which edits succeed      as for window
                 best, no profile
                 (`interp.selection.from_sweep`)
===============  =====================================  =====================================

The default is ``changepoint``: on SmolLM2 edits at its layers did better than at windows of three
(docs/layers.md).

Stability says what other rules would give. Halves are disjoint, and resampled each: a bootstrap
resample shares most rules with the full sample whose choice it is compared with, and all splits are
of the same rules, so both promise more than they hold. In simulated profiles (`python -m
tests.benchmarks.stability`) the share of windows that as many other rules give again is about the
stability itself, and above it where it is high.

The result says how stable a choice is and whether the profile supports it at all; it never hides a
weak choice. A choice is supported if there is more than one rule, its interval lies above
`NEGLIGIBLE` of the total effect, the best pick stands out of the rule's own mean over layers more
than by chance (`interp.selection.strategies.chance`, level `select.level`: the interval alone
forgets that the best of many was taken) and it is as stable as `select.min_stability`. What is not
supported keeps the best guess, or gets the published layers (`select.fallback`), and is marked.

Reading: scores are averages of AIE over the chosen layers, in the profile's unit. Where windows of
blocks are restored (`mlp` and `attn`, see `interp.tracing.windows`), the effect of a layer is the
mean over the windows that hold it (less near the ends, `interp.selection.strategies.block_shares`):
the effect of a window is that of all its blocks, and a single block that carries the answer shows
as a plateau of as many layers as are restored, most of which are not that block. Layers whose
window holds one of the first `identity_blocks` blocks are no candidates and their windows are not
read: their effect is mostly that the corrupted word comes back.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interp.config import SelectConfig
from interp.errors import DmleError, InputError
from interp.results.display import selection_html, selection_markdown
from interp.results.files import damaged, read_json, write_json
from interp.rules.schema import explain
from interp.selection.exports import Method, easyedit_yaml
from interp.selection.profiles import resample_counts
from interp.selection.strategies import (
    Agreement,
    Choice,
    Comparison,
    Picker,
    block_shares,
    chance,
    choose,
    combined,
    mass_of,
    merge_forms,
    published_block,
    roughness_variance,
    segment_of,
    shrink,
    window_of,
)
from interp.tracing.windows import window
from interp.vocabulary import LOOKUP

SCHEMA = "dmle.selection/1"
RULES_SCHEMA = "dmle.selections/1"
WHAT = "layer selection"
EVIDENCE_SCHEMA = "dmle.evidence/1"
CONFIDENCE = 0.95
NEGLIGIBLE = 0.01
"""Share of the total effect below which an effect is taken for none: rounding can look
significant."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerGroup(_Frozen):
    """Forms that share an update, and the layers it goes to."""

    name: str
    forms: tuple[str, ...]
    layers: tuple[int, ...] = Field(min_length=1)
    score: float | None = None
    """Mean AIE over the layers (of the windows that hold them); None if the layers were given,
    not selected."""
    lower: float | None = None
    upper: float | None = None
    stability: float | None = None
    """How alike the choices of two halves of the rules are, from 0 to 1; by strategy, see the
    module."""
    p_value: float | None = None
    """How often the best pick would be as strong by chance (see
    `interp.selection.strategies.chance`)."""
    n_rules: int = 0
    supported: bool = True
    """Whether the layers' effect is distinguishable from zero, not negligible, and stable
    enough."""
    reason: str = ""


class LayerSelection(_Frozen):
    """Layers for each group of forms, with where they come from."""

    schema_: Literal["dmle.selection/1"] = Field(default=SCHEMA, alias="schema")
    strategy: str
    component: str
    role: str
    width: int
    """Layers of the widest group."""
    n_layers: int
    first_layer: int = 0
    """Layers before this one were no candidates."""
    last_layer: int | None = None
    """Layers after this one were no candidates; None: all were."""
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
        raise InputError(
            f"form {form!r} is in no group; groups are {[g.name for g in self.groups]}"
        )

    def to_dmle_config(self) -> list[dict[str, Any]]:
        """The published driver's config.json: `f_d` (formula and description), then `ins`
        (instance).

        Raises:
            ValueError: The groups do not map to these two stages.
        """
        held = {form: group.layers for group in self.groups for form in group.forms}
        if (
            set(held) != {"formula", "description", "instance"}
            or held["formula"] != held["description"]
        ):
            got = {group.name: list(group.layers) for group in self.groups}
            raise InputError(
                "the published driver has one stage for formula and description and one for"
                f" instance; the selection has {got}; select with --set 'select.groups=[[formula,"
                " description], [instance]]'"
            )
        return [
            {"name": "f_d", "layers": list(held["formula"])},
            {"name": "ins", "layers": list(held["instance"])},
        ]

    def to_easyedit_yaml(
        self, group: str, model_name: str, method: Method = "MEMIT", *, tied: bool = False
    ) -> str:
        """EasyEdit's settings for one group's layers as YAML text (see
        `interp.selection.exports.easyedit_yaml`).

        Args:
            group: Name of the group, or one of its forms.
            model_name: Hub name or folder of the model.
            method: Which of EasyEdit's editors.
            tied: Whether a model without published settings ties its embeddings.

        Raises:
            KeyError: There is no such group.
            ValueError: The named model has another depth than the selection's.
        """
        chosen = next((g for g in self.groups if g.name == group), None) or self.group_of(group)
        return easyedit_yaml(chosen.layers, self.n_layers, model_name, method, tied=tied)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return selection_html(self)

    def _repr_markdown_(self) -> str:
        """The same as Markdown."""
        return selection_markdown(self)

    def save(self, path: Path) -> None:
        """Write JSON with a checksum."""
        write_json(path, self.model_dump(mode="json", by_alias=True), indent=2)

    @classmethod
    def load(cls, path: Path) -> "LayerSelection":
        """Read JSON written by `save`.

        Raises:
            FileNotFoundError: There is no such file.
            DamagedError: It does not hold what `save` wrote.
        """
        return _selection_of(path, read_json(path, WHAT))


def first_candidate(component: str, restored: int, identity_blocks: int, n_layers: int) -> int:
    """First layer whose restored blocks are all behind the identity blocks; `n_layers` if there is
    none.

    >>> [first_candidate(*place, 30) for place in (("mlp", 6, 1), ("resid", 6, 1), ("mlp", 6, 0))]
    [4, 1, 0]
    """
    widths = (_restored(component, restored), n_layers)
    behind = (layer for layer in range(n_layers) if window(layer, *widths).start >= identity_blocks)
    return next(behind, n_layers)


def _restored(component: str, restored: int) -> int:
    """Blocks that a component restores together, where windows have `restored`: the stream and
    `…_single` have one.
    """
    return restored if component in ("mlp", "attn") else 1


def candidate_windows(profile: xr.Dataset, config: SelectConfig) -> dict[int, range]:
    """By layer within the bounds whose window is behind the identity blocks: the blocks that are
    restored there.

    Raises:
        ValueError: There is none, or the profile has no such component.
    """
    bounds = _candidates(profile, config.model_copy(update={"strategy": "mass", "min_width": 1}))
    return {
        layer: window(layer, bounds.restored, bounds.n_layers)
        for layer in range(bounds.first, bounds.last + 1)
    }


def select_layers(
    profile: xr.Dataset, config: SelectConfig | None = None, *, evidence: xr.Dataset | None = None
) -> LayerSelection:
    """Choose layers for each group of forms (see the module).

    Args:
        profile: Result of `interp.selection.profiles.layer_profile`.
        config: Strategy, component, bounds and groups.
        evidence: For the strategy `combined`: the measures of `dmle evidence`, dims ``rule form
            layer``. Rules without them are left out.

    Returns:
        The layers with the evidence. Of the strategy `adaptive`: the choice for the population of
        rules.

    Raises:
        ValueError: A group has no traceable rule, or fewer layers are candidates than are needed;
            or the evidence that the strategy asks for is missing, or of another model.
    """
    config = config or SelectConfig()
    if (config.strategy == "combined") != (evidence is not None):
        raise InputError(
            "the strategy combined, and no other, reads evidence of edits (evidence.nc of `dmle"
            " evidence`)"
        )
    if evidence is not None:
        _check_evidence(evidence, profile)
    if config.strategy == "sweep":
        raise InputError(
            "the strategy sweep reads a sweep, not a profile:"
            " interp.selection.from_sweep.select_from_sweep"
        )
    bounds = _candidates(profile, config)
    groups, found = config.groups, {}
    if config.strategy == "groups":
        groups, comparisons = _found_groups(profile, config, bounds)
        found = {"grouping": [_in_words(comparison) for comparison in comparisons]}
    chosen = tuple(_select_group(profile, forms, config, bounds, evidence) for forms in groups)
    if found:
        why = "; ".join(found["grouping"]) or "there is one form"
        chosen = tuple(
            g.model_copy(update={"reason": f"{g.reason}; forms compared: {why}"}) for g in chosen
        )
    return _selection(profile, config, bounds, chosen, found)


def select_for_rules(
    profile: xr.Dataset, config: SelectConfig | None = None
) -> dict[str, LayerSelection]:
    """Choose a window for each rule from its own profile, shrunk towards the population's by how
    noisy it is.

    A rule's deviation from the mean over rules is kept by the factor between / (between + noise),
    see `interp.selection.strategies.shrink`. The noise is the square of the profile's ``effect_se``
    (dims as ``effect``) where it stores one; without one it is estimated from the roughness of the
    rule's profile over layers, which misses noise that layers share. What is believed of a rule is
    drawn from: the population mean's resamples, and the noise that is left. A rule is supported if
    its interval clears the floor, its stability suffices, and its group is supported; one that is
    not traceable in a group's forms gets the population's layers.

    Args:
        profile: Result of `interp.selection.profiles.layer_profile`.
        config: As for `select_layers`; the strategy is taken for `adaptive`.

    Returns:
        For each rule of the profile, by its id, its selection.

    Raises:
        ValueError: As `select_layers`.
    """
    config = (config or SelectConfig()).model_copy(update={"strategy": "adaptive"})
    bounds = _candidates(profile, config)
    of_rules: dict[str, list[LayerGroup]] = {str(rule): [] for rule in profile["rule"].values}
    for forms in config.groups:
        population = _select_group(profile, forms, config, bounds)
        own = _rule_groups(profile, population, config, bounds)
        for rule, groups in of_rules.items():
            groups.append(own[rule])
    return {
        rule: _selection(profile, config, bounds, tuple(groups), {"rule": rule})
        for rule, groups in of_rules.items()
    }


def save_for_rules(selections: Mapping[str, LayerSelection], path: Path) -> None:
    """Write the selections of many rules as one JSON file, by rule."""
    content = {
        rule: selection.model_dump(mode="json", by_alias=True)
        for rule, selection in selections.items()
    }
    write_json(path, {"schema": RULES_SCHEMA, "selections": content}, indent=1)


def load_for_rules(path: Path) -> dict[str, LayerSelection]:
    """Read JSON written by `save_for_rules`.

    Raises:
        FileNotFoundError: There is no such file.
        DamagedError: It does not hold what `save_for_rules` wrote.
    """
    held = read_json(path, "file of layer selections by rule", schema=RULES_SCHEMA).get(
        "selections"
    )
    if not isinstance(held, dict):
        raise damaged(path, WHAT, "it has no selections by rule")
    return {rule: _selection_of(path, content) for rule, content in held.items()}


def _selection_of(path: Path, content: Any) -> LayerSelection:
    try:
        return LayerSelection.model_validate(content)
    except (ValidationError, RecursionError) as error:
        raise damaged(path, WHAT, explain(error)) from error


def parse_layers(text: str, n_layers: int) -> LayerSelection:
    """Layers given by hand: "3,4,5/12,13,14" (formula and description / instance) or "4-8" (all
    forms).

    Raises:
        ValueError: The text is not of that form, or a layer is outside the model.
    """
    forms = (
        (("formula", "description"), ("instance",))
        if "/" in text
        else (("formula", "description", "instance"),)
    )
    parts = text.split("/")
    if len(parts) != len(forms):
        raise DmleError(
            f"layers {text!r}: give one list, or two separated by '/', such as 3,4,5/12,13,14"
        )
    groups = tuple(
        LayerGroup(
            name="+".join(names),
            forms=names,
            layers=_layers(part, n_layers),
            reason="given by hand",
        )
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


@dataclass(frozen=True)
class _Bounds:
    """Candidate layers, both ends included."""

    first: int
    last: int
    n_layers: int
    restored: int
    """Blocks restored together."""
    behind: int
    """Windows around earlier layers are not read."""

    def of(self, effect: np.ndarray) -> np.ndarray:
        """Effects of the candidates, shape (…, candidate), from those of all layers' windows,
        shape (…, layer).
        """
        return self.of_read(effect[..., self.behind :])

    def of_read(self, effect: np.ndarray) -> np.ndarray:
        """The same from the effects of the windows that are read only."""
        shares = block_shares(self.n_layers, self.restored, self.behind)
        return effect @ shares[self.first : self.last + 1, self.behind :].T

    @property
    def words(self) -> str:
        end = "on" if self.last == self.n_layers - 1 else f"to {self.last}"
        return f"from layer {self.first} {end}"


def _candidates(profile: xr.Dataset, config: SelectConfig) -> _Bounds:
    n_layers = profile.sizes["layer"]
    restored = _restored(config.component, int(profile.attrs.get("window", 1)))
    behind = first_candidate(config.component, restored, config.identity_blocks, n_layers)
    first = max(config.first, behind)
    last = n_layers - 1 if config.last is None else min(config.last, n_layers - 1)
    windowed = config.strategy not in ("mass", "changepoint")
    name, needed = ("width", config.width) if windowed else ("min_width", config.min_width)
    have = max(0, last - first + 1)
    # A segment needs a layer beside it that is lower, unless there is one candidate alone.
    most = have - 1 if config.strategy == "changepoint" and have > 1 else have
    if needed > most:
        outside = " and a segment needs one outside it" if most < have else ""
        raise DmleError(
            f"select.{name} is {needed}, but only {have} of the model's {n_layers} layers are"
            f" candidates{outside} (blocks {restored} wide are restored, behind the first"
            f" {config.identity_blocks}; bounds {config.first} to {last}); lower select.{name},"
            " select.identity_blocks or trace.window, or widen select.first and select.last"
        )
    if config.component not in profile["component"].values:
        raise DmleError(
            f"the profile has no component {config.component!r}, only "
            f"{profile['component'].values.tolist()}; trace it first"
        )
    return _Bounds(first, last, n_layers, restored, behind)


def _selection(
    profile: xr.Dataset,
    config: SelectConfig,
    bounds: _Bounds,
    groups: tuple[LayerGroup, ...],
    found: Mapping[str, Any],
) -> LayerSelection:
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
        strategy=config.strategy,
        component=config.component,
        role=LOOKUP,
        width=max(len(group.layers) for group in groups),
        n_layers=bounds.n_layers,
        first_layer=bounds.first,
        last_layer=None if bounds.last == bounds.n_layers - 1 else bounds.last,
        groups=groups,
        provenance={
            **{name: _plain(profile.attrs[name]) for name in keep if name in profile.attrs},
            **found,
        },
    )


def _picker(config: SelectConfig) -> tuple[Picker, Agreement]:
    if config.strategy == "mass":
        return mass_of(config.share, config.min_width, config.max_width), "overlap"
    if config.strategy == "changepoint":
        return segment_of(config.min_width, config.max_width), "overlap"
    return window_of(config.width), "same"


def _effects(
    profile: xr.Dataset, forms: tuple[str, ...], component: str, name: str = "effect"
) -> np.ndarray:
    """Shape (form, rule, layer), of the forms that the profile has; NaN where a rule is not
    traceable in a form.
    """
    known = [form for form in forms if form in profile["form"].values]
    values = profile[name].sel(form=known, component=component, role=LOOKUP)
    return values.transpose("form", "rule", "layer").values


def _mean_of_forms(effects: np.ndarray) -> np.ndarray:
    """Mean over the forms that a rule is traceable in, shape (rule, layer); NaN if there is
    none.
    """
    present = ~np.isnan(effects)
    count = present.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, np.where(present, effects, 0.0).sum(0) / count, np.nan)


def _floor(profile: xr.Dataset, forms: tuple[str, ...]) -> float:
    known = [form for form in forms if form in profile["form"].values]
    return NEGLIGIBLE * float(profile["te"].sel(form=known).mean())


def _untraceable(forms: tuple[str, ...]) -> ValueError:
    return ValueError(
        f"no rule is traceable in its {' or '.join(forms)} form (total effect above two standard"
        " errors); use more noise samples, a wider corrupted span, or rules that the model knows"
    )


def _check_evidence(evidence: xr.Dataset, profile: xr.Dataset) -> None:
    if evidence.attrs.get("schema") != EVIDENCE_SCHEMA:
        got = evidence.attrs.get("schema")
        raise DmleError(
            f"expected evidence of edits ({EVIDENCE_SCHEMA}), got {got!r}; `dmle evidence`"
            " writes it"
        )
    both = [str(each.attrs.get("weight_hash", "")) for each in (profile, evidence)]
    if evidence.sizes["layer"] != profile.sizes["layer"] or (all(both) and both[0] != both[1]):
        raise DmleError(
            "the evidence is of another model than the profile; run `dmle evidence` in this run"
            " folder"
        )


def _measures(
    evidence: xr.Dataset, rules: Sequence[str], forms: tuple[str, ...]
) -> list[np.ndarray]:
    """Each measure, mean over forms, shape (rule, layer); NaN for rules that are not in it."""
    known = evidence.sel(form=[form for form in forms if form in evidence["form"].values]).reindex(
        rule=list(rules)
    )
    return [
        _mean_of_forms(values.transpose("form", "rule", "layer").values)
        for values in known.data_vars.values()
    ]


def _select_group(
    profile: xr.Dataset,
    forms: tuple[str, ...],
    config: SelectConfig,
    bounds: _Bounds,
    evidence: xr.Dataset | None = None,
) -> LayerGroup:
    # A rule counts if any of the group's forms is traceable for it.
    per_rule = _mean_of_forms(_effects(profile, forms, config.component))
    measures = (
        []
        if evidence is None
        else _measures(evidence, [str(r) for r in profile["rule"].values], forms)
    )
    known = ~np.isnan([per_rule, *measures]).any((0, 2))
    per_rule = per_rule[known]
    if not len(per_rule):
        raise (
            _untraceable(forms)
            if evidence is None
            else ValueError(
                f"no rule with evidence is traceable in its {' or '.join(forms)} form; run `dmle"
                " evidence` on the profile's rules"
            )
        )
    pick, agreement = _picker(config)
    candidates = bounds.of(per_rule)
    if measures:
        within = slice(bounds.first, bounds.last + 1)
        candidates = combined([candidates, *(measure[known, within] for measure in measures)])
    choice = choose(candidates, pick, draws=config.bootstrap, seed=config.seed, agreement=agreement)
    # The corrupted run is in all effects of a rule, and rules are kept for its being low: what all
    # layers share says nothing of a layer, and would be taken for an effect where there is none.
    level = candidates.mean(1, keepdims=True) if candidates.shape[1] > 1 else 0.0
    p_value = chance(candidates - level, pick, draws=config.bootstrap, seed=config.seed)
    lower, upper = _interval(choice.draws)
    floor = _floor(profile, forms) if evidence is None else 0.0
    against = objections(choice, len(per_rule), config, floor=floor, p_value=p_value)
    reason = _reason(choice, candidates, config, bounds)
    group = LayerGroup(
        name="+".join(forms),
        forms=forms,
        layers=tuple(bounds.first + layer for layer in choice.layers),
        score=choice.score,
        lower=lower,
        upper=upper,
        stability=choice.stability,
        p_value=p_value,
        n_rules=len(per_rule),
        supported=not against,
        reason=f"{reason}; as strong by chance in {p_value:.1%} of cases",
    )
    return group if group.supported else _unsupported(group, against, config, bounds, per_rule)


def _interval(draws: np.ndarray) -> tuple[float, float]:
    tail = 100 * (1 - CONFIDENCE) / 2
    lower, upper = np.percentile(draws, [tail, 100 - tail])
    return float(lower), float(upper)


def objections(
    choice: Choice,
    n_rules: int,
    config: SelectConfig,
    *,
    floor: float | None = None,
    p_value: float | None = None,
) -> list[str]:
    """What speaks against a choice.

    Args:
        choice: The choice.
        n_rules: Rules that it was made from.
        config: Stability and level that are asked for.
        floor: What the interval must lie above, if anything; 0, or a share of the total effect.
        p_value: How often the choice would be as strong by chance, if that was tested.
    """
    against = []
    if n_rules < 2:
        against.append("there is only one rule")
    if floor is not None and not _interval(choice.draws)[0] > floor:
        against.append(
            f"the interval reaches {f'{NEGLIGIBLE:.0%} of the total effect' if floor else 'zero'}"
        )
    if choice.stability < config.min_stability:
        against.append(
            f"stability {choice.stability:.2f} is below select.min_stability ="
            f" {config.min_stability:g}"
        )
    if p_value is not None and p_value > config.level:
        least = f"; {n_rules} rules are too few" if 0.5**n_rules > config.level else ""
        against.append(f"not stronger than chance at select.level = {config.level:g}{least}")
    return against


def _reason(choice: Choice, candidates: np.ndarray, config: SelectConfig, bounds: _Bounds) -> str:
    lower, upper = _interval(choice.draws)
    said = f"{choice.score:.3f} ({CONFIDENCE:.0%} interval {lower:.3f} to {upper:.3f})"
    where = f"{bounds.words} over {len(candidates)} rules"
    if config.strategy == "mass":
        mean = candidates.mean(0)
        total = np.clip(mean, 0, None).sum()
        held = np.clip(mean[list(choice.layers)], 0, None).sum() / total if total > 0 else 0.0
        return (
            f"fewest layers for {config.share:.0%} of the positive mean {config.component} effect"
            f" {where}: {len(choice.layers)} hold {held:.0%}, mean effect {said}; halves of the"
            f" rules overlap by {choice.stability:.0%}"
        )
    if config.strategy == "changepoint":
        outside = np.delete(candidates.mean(0), choice.layers)
        beside = f"against {outside.mean():.3f} outside, " if len(outside) else ""
        return (
            f"elevated segment of the mean {config.component} effect {where}: {beside}{said}"
            f" inside; halves of the rules overlap by {choice.stability:.0%}"
        )
    if config.strategy == "combined":
        return (
            f"highest mean of the {config.component} effect and of what edits can expect {where},"
            f" each in standard deviations over layers: {said}; two halves of the rules pick the"
            f" same window in {choice.stability:.0%} of splits"
        )
    return (
        f"largest mean {config.component} effect {where}: {said}; "
        f"two halves of the rules pick the same window in {choice.stability:.0%} of splits"
    )


def _unsupported(
    group: LayerGroup,
    against: list[str],
    config: SelectConfig,
    bounds: _Bounds,
    per_rule: np.ndarray,
) -> LayerGroup:
    """A group marked as not supported, with the fallback's layers if there is one; scores are of
    the layers given.
    """
    reason = f"not supported by the profile ({'; '.join(against)}): {group.reason}"
    if config.fallback == "none":
        return group.model_copy(update={"supported": False, "reason": reason})
    layers = published_block(bounds.n_layers)
    # The published layers may be no candidates: every window counts.
    per_rule = per_rule @ block_shares(bounds.n_layers, bounds.restored).T
    resampled = (
        resample_counts(len(per_rule), config.bootstrap, config.seed) @ per_rule / len(per_rule)
    )
    lower, upper = _interval(resampled[:, list(layers)].mean(1))
    scored = {"score": float(per_rule[:, list(layers)].mean()), "lower": lower, "upper": upper}
    if config.strategy == "combined":  # has no score outside its candidates
        scored = dict.fromkeys(scored)
    return group.model_copy(
        update={
            "supported": False,
            "layers": layers,
            **scored,
            "stability": None,
            "reason": (
                "fallback, the published layers 4-8 of 28 to 32 blocks scaled to"
                f" {bounds.n_layers}, since the choice of layers"
                f" {', '.join(map(str, group.layers))} is {reason}"
            ),
        }
    )


def _found_groups(
    profile: xr.Dataset, config: SelectConfig, bounds: _Bounds
) -> tuple[tuple[tuple[str, ...], ...], list[tuple[tuple[str, ...], tuple[str, ...], Comparison]]]:
    """Groups of forms found from the data, and the comparisons made.

    A form that no rule is traceable in has no profile to compare; it goes where the given grouping
    has it.
    """
    forms = [form for group in config.groups for form in group if form in profile["form"].values]
    effects = {form: bounds.of(_effects(profile, (form,), config.component)[0]) for form in forms}
    traced = [form for form in forms if not np.isnan(effects[form]).any(1).all()]
    if not traced:
        raise _untraceable(tuple(forms))
    at, made = merge_forms(
        np.stack([effects[form] for form in traced]),
        level=config.level,
        draws=config.bootstrap,
        seed=config.seed,
    )
    groups = [[traced[i] for i in group] for group in at]
    for baseline in config.groups:
        for form in (form for form in baseline if form not in traced):
            partner = next((other for other in baseline if other in traced), None)
            if partner is None:
                raise _untraceable((form,))
            next(group for group in groups if partner in group).append(form)
    named = [
        (tuple(traced[i] for i in c.first), tuple(traced[i] for i in c.second), c) for c in made
    ]
    return tuple(tuple(group) for group in groups), named


def _in_words(named: tuple[tuple[str, ...], tuple[str, ...], Comparison]) -> str:
    first, second, made = named
    verdict = "merged" if made.merged else "kept apart"
    evidence = (
        f"correlation {made.correlation:.2f}, difference p = {made.p_value:.3f}, {made.n_rules}"
        " rules"
    )
    return f"{'+'.join(first)} and {'+'.join(second)} {verdict} ({evidence})"


def _rule_groups(
    profile: xr.Dataset, population: LayerGroup, config: SelectConfig, bounds: _Bounds
) -> dict[str, LayerGroup]:
    """The group of one set of forms for every rule."""
    effects = _effects(profile, population.forms, config.component)
    per_rule = _mean_of_forms(effects)
    with_map = np.asarray(~np.isnan(per_rule).any(axis=1))
    # Noise is that of the windows' effects: those of blocks are means of the same windows, and
    # smooth.
    read = slice(bounds.behind, bounds.n_layers)
    effect = per_rule[with_map][:, read]
    if "effect_se" in profile:
        errors = _effects(profile, population.forms, config.component, "effect_se")[..., read]
        # The mean of f independent forms: the sum of their variances over f².
        count = (~np.isnan(effects[..., read])).sum(0)
        variance = (np.nansum(errors**2, axis=0)[with_map] / count[with_map] ** 2).mean(1)
        source = "its standard error"
    else:
        variance, source = roughness_variance(effect), "its roughness over layers"
    shrunk, factors = shrink(effect, variance)
    left = np.where(factors > 0, factors * np.where(factors > 0, variance, 0.0), 0.0)
    shrunk = bounds.of_read(shrunk)
    means = resample_counts(len(effect), config.bootstrap, config.seed) @ effect / len(effect)
    pick, _ = _picker(config)
    # Rules with layers of their own need not agree on any, as the group's test asks: an effect
    # somewhere is enough for those whose deviation from the mean is believed for the most part.
    anywhere = chance(bounds.of_read(effect), pick, draws=config.bootstrap, seed=config.seed)
    differ = len(effect) > 1 and anywhere <= config.level
    own = iter(range(len(effect)))
    groups: dict[str, LayerGroup] = {}
    for rule, known in zip(profile["rule"].values, with_map.tolist(), strict=True):
        if not known:
            reason = f"the rule is not traceable here, so the population's: {population.reason}"
            groups[str(rule)] = population.model_copy(update={"reason": reason})
            continue
        i = next(own)
        noise = np.random.default_rng([config.seed, 2, i]).standard_normal(means.shape)
        believed = bounds.of_read(
            (1 - factors[i]) * means + factors[i] * effect[i] + np.sqrt(left[i]) * noise
        )
        chosen = pick(shrunk[i][None])[0][0]
        layers = np.flatnonzero(chosen)
        choice = Choice(
            tuple(int(layer) for layer in layers),
            float(shrunk[i, layers].mean()),
            believed[:, layers].mean(1),
            float((pick(believed)[0] == chosen).all(1).mean()),
        )
        lower, upper = _interval(choice.draws)
        against = objections(choice, len(effect), config, floor=_floor(profile, population.forms))
        if not (population.supported or (differ and factors[i] >= 0.5)):
            against.append("the group of rules is not supported")
        group = population.model_copy(
            update={
                "layers": tuple(bounds.first + layer for layer in choice.layers),
                "score": choice.score,
                "lower": lower,
                "upper": upper,
                "stability": choice.stability,
                "n_rules": 1,
                "supported": not against,
                "reason": (
                    f"largest {config.component} effect {bounds.words} of the rule's own profile,"
                    f" of whose deviation from the mean over {len(effect)} rules {factors[i]:.0%}"
                    f" is kept by {source}: {choice.score:.3f} ({CONFIDENCE:.0%} interval"
                    f" {lower:.3f} to {upper:.3f}); the same window wins in {choice.stability:.0%}"
                    " of draws"
                ),
            }
        )
        groups[str(rule)] = (
            group
            if group.supported
            else _unsupported(group, against, config, bounds, per_rule[with_map][i : i + 1])
        )
    return groups


def _layers(text: str, n_layers: int) -> tuple[int, ...]:
    layers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            # Not written out before it is known to be within the model.
            layers += range(int(first), min(int(last or first), n_layers) + 1)
    except ValueError as error:
        raise DmleError(
            f"layers {text!r}: numbers and ranges separated by commas are needed, such as 3,4,5"
            " or 4-8"
        ) from error
    if not layers or layers != sorted(set(layers)) or not 0 <= layers[0] <= layers[-1] < n_layers:
        raise DmleError(f"layers {text!r}: ascending layers within 0 to {n_layers - 1} are needed")
    return tuple(layers)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
