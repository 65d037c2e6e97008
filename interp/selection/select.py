"""From a layer profile to the layers to edit, with the evidence for the choice.

`select_layers` picks layers for each group of forms from the average indirect effect at the lookup
tokens, by a strategy (`select.strategy`): a file of `interp.selection.strategies`.

The default is ``changepoint``: on SmolLM2 edits at its layers did better than at windows of three
(docs/layers.md).

Stability says what other rules would give. Halves are disjoint, and resampled each: a bootstrap
resample shares most rules with the full sample whose choice it is compared with, and all splits are
of the same rules, so both promise more than they hold. In simulated profiles (`python -m
tests.benchmarks.stability`) the share of windows that as many other rules give again is about the
stability itself, and above it where it is high.

The result says how stable a choice is and whether the profile supports it at all; it never hides a
weak choice. A choice is supported if there is more than one rule, its interval lies above
`interp.selection.reasons.NEGLIGIBLE` of the total effect, the best pick stands out of the rule's
own mean over layers more than by chance (`interp.selection.support.chance`, level `select.level`:
the interval alone forgets that the best of many was taken) and it is as stable as
`select.min_stability`. What is not supported keeps the best guess, or gets the published layers
(`select.fallback`), and is marked, with what it takes to be supported.

Reading: scores are averages of AIE over the chosen layers, in the profile's unit. Where windows of
blocks are restored (`mlp` and `attn`, see `interp.tracing.windows`), the effect of a layer is the
mean over the windows that hold it (less near the ends, `interp.selection.pickers.block_shares`):
the effect of a window is that of all its blocks, and a single block that carries the answer shows
as a plateau of as many layers as are restored, most of which are not that block.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr

from interp.config import SelectConfig
from interp.errors import InputError, NotTraceableError
from interp.results.intervals import interval_of, resampled_means
from interp.selection import strategies
from interp.selection.candidates import (
    Bounds,
    candidates_of,
    effects_of,
    floor,
    mean_effects,
    untraceable,
)
from interp.selection.evidence import MEASURES, check_evidence, lacks_effects, measures_of
from interp.selection.layers import SCHEMA, LayerGroup, LayerSelection
from interp.selection.pickers import block_shares
from interp.selection.published import published_block
from interp.selection.reasons import (
    Finding,
    bounds_in_words,
    fallback_in_words,
    grouping_in_words,
    judged,
    objections,
    sentences,
)
from interp.selection.strategy import Strategy
from interp.selection.support import chance, choose

KEPT = (
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
"""Attributes of the profile that a selection keeps."""


@dataclass(frozen=True)
class Task:
    """What layers are chosen from, and how."""

    profile: xr.Dataset
    config: SelectConfig
    strategy: Strategy
    bounds: Bounds
    evidence: xr.Dataset | None = None

    @classmethod
    def of(
        cls, profile: xr.Dataset, config: SelectConfig, evidence: xr.Dataset | None = None
    ) -> "Task":
        """The task that settings describe.

        Raises:
            InputError: There is no such strategy, it reads something else, the profile lacks the
                tokens that it reads, or fewer layers are candidates than it needs.
        """
        strategy = strategies.chosen(config)
        if "sweep" in strategy.reads:
            raise InputError(
                f"the strategy {strategy.name} reads a sweep, not a profile:"
                " interp.selection.from_sweep.select_from_sweep"
            )
        if strategies.get(config.strategy).route and "evidence" not in strategy.reads:
            evidence = None  # what these edits do not need is no mistake of who gave it
        check_evidence(strategy, profile, evidence)
        if reason := lacks_effects(strategy, profile, config.component):
            raise InputError(f"the strategy {strategy.name} cannot choose: {reason}")
        bounds = candidates_of(profile, config, strategy)
        if strategy.measures and strategy.mix is None:
            bounds = replace(bounds, restored=1)  # a measure is of one block
        return cls(profile, config, strategy, bounds, evidence)

    @property
    def unit(self) -> str:
        """Unit of scores. Several measures in one have none: they are scaled over layers."""
        if self.strategy.mix is not None:
            return "standard deviations over layers"
        if self.strategy.measures:
            return MEASURES[self.strategy.measures[0]].unit
        return str(self.profile.attrs.get("unit", ""))

    def floor(self, forms: Sequence[str]) -> float:
        """What the interval of a score must lie above."""
        return 0.0 if self.strategy.measures else floor(self.profile, forms)

    @property
    def limits(self) -> str:
        """Which layers could be chosen, in words, where the settings narrow them."""
        bounds = self.bounds
        return bounds_in_words(bounds.first, bounds.last) if bounds.narrowed else ""


def select_layers(
    profile: xr.Dataset, config: SelectConfig | None = None, *, evidence: xr.Dataset | None = None
) -> LayerSelection:
    """Choose layers for each group of forms (see the module).

    Args:
        profile: Result of `interp.selection.profiles.layer_profile`.
        config: Strategy, component, bounds and groups.
        evidence: For strategies that read it: the measures of `dmle evidence`, dims ``rule form
            layer``. Rules without them are left out.

    Returns:
        The layers with the evidence. Of a strategy that chooses rule by rule: the choice for the
        population of rules.

    Raises:
        NotTraceableError: A group has no traceable rule.
        InputError: Fewer layers are candidates than are needed; or the evidence that the strategy
            asks for is missing, or of another model.
    """
    task = Task.of(profile, config or SelectConfig(), evidence)
    if task.strategy.grouping is None:
        return selection_of(task, [select_group(task, forms) for forms in task.config.groups])
    groups, compared = _groups_of_data(task)
    words = sentences(*compared) or "There is one form only."
    chosen = [select_group(task, forms) for forms in groups]
    return selection_of(
        task,
        [g.model_copy(update={"reason": sentences(g.reason, words)}) for g in chosen],
        {"grouping": compared},
    )


def select_group(task: Task, forms: tuple[str, ...]) -> LayerGroup:
    """The layers of one group of forms, with the evidence.

    Raises:
        NotTraceableError: No rule is traceable in any of the forms, or none of these has evidence.
    """
    config, strategy = task.config, task.strategy
    per_rule, candidates = _effects(task, forms)
    pick, n_rules = strategy.picker(config), len(candidates)
    draws, seed = config.bootstrap, config.seed
    choice = choose(candidates, pick, draws=draws, seed=seed, agreement=strategy.agreement)
    # The corrupted run is in all effects of a rule, and rules are kept for its being low: what all
    # layers share says nothing of a layer, and would be taken for an effect where there is none.
    level = candidates.mean(1, keepdims=True) if candidates.shape[1] > 1 else 0.0
    p_value = chance(candidates - level, pick, draws=draws, seed=seed)
    finding = Finding.of(choice, candidates, config, first=task.bounds.first, unit=task.unit)
    grounds = Grounds(finding, choice.stability, p_value, n_rules)
    group = judged_group(strategy, forms, grounds, floor=task.floor(forms), limits=task.limits)
    return with_fallback(task, group, per_rule)


@dataclass(frozen=True)
class Grounds:
    """What is known of the layers chosen for a group of forms."""

    finding: Finding
    stability: float
    p_value: float
    n_rules: int


def judged_group(
    strategy: Strategy,
    forms: tuple[str, ...],
    grounds: Grounds,
    *,
    floor: float | None = None,
    limits: str = "",
) -> LayerGroup:
    """A choice with what speaks for it and against it.

    Args:
        strategy: What the layers were chosen by.
        forms: The forms that they are for.
        grounds: What is known of them.
        floor: What the interval must lie above; None: nothing.
        limits: Which layers could be chosen, in words.
    """
    finding, config = grounds.finding, grounds.finding.config
    against = objections(
        n_rules=grounds.n_rules,
        stability=grounds.stability,
        config=config,
        min_rules=strategy.min_rules,
        lower=None if floor is None else finding.lower,
        floor=floor or 0.0,
        p_value=grounds.p_value,
    )
    verdict = judged(against, grounds.stability, grounds.n_rules, config, p_value=grounds.p_value)
    return LayerGroup(
        name="+".join(forms),
        forms=forms,
        layers=finding.layers,
        score=finding.score,
        lower=finding.lower,
        upper=finding.upper,
        stability=grounds.stability,
        p_value=grounds.p_value,
        n_rules=grounds.n_rules,
        supported=not against,
        objections=against,
        reason=sentences(strategy.explain(finding), verdict, limits),
    )


def with_fallback(task: Task, group: LayerGroup, per_rule: np.ndarray) -> LayerGroup:
    """A group with the fallback's layers if it is not supported and there is a fallback; scores are
    of the layers given.

    Args:
        task: The task.
        group: The chosen layers.
        per_rule: Effects of the rules, shape (rule, layer).
    """
    if group.supported or task.config.fallback == "none":
        return group
    n_layers = task.bounds.n_layers
    layers = published_block(n_layers)
    score: dict[str, float | None] = dict.fromkeys(("score", "lower", "upper"))
    if task.strategy.mix is None:  # which has no score outside its candidates
        # The published layers may be no candidates: every window counts.
        effects = per_rule @ block_shares(n_layers, task.bounds.restored).T
        draws = resampled_means(effects, draws=task.config.bootstrap, seed=task.config.seed)
        lower, upper = interval_of(draws[:, list(layers)].mean(1))
        score = {"score": float(effects[:, list(layers)].mean()), "lower": lower, "upper": upper}
    reason = fallback_in_words(n_layers, group.reason)
    return group.model_copy(update={"layers": layers, **score, "stability": None, "reason": reason})


def selection_of(
    task: Task, groups: Sequence[LayerGroup], more: Mapping[str, Any] | None = None
) -> LayerSelection:
    """Groups as a selection, with where they come from."""
    bounds, attrs = task.bounds, task.profile.attrs
    kept = {name: _plain(attrs[name]) for name in KEPT if name in attrs}
    return LayerSelection(
        schema=SCHEMA,
        strategy=task.config.strategy,
        component=task.config.component,
        role=task.strategy.role,
        width=max(len(group.layers) for group in groups),
        n_layers=bounds.n_layers,
        first_layer=bounds.first,
        last_layer=None if bounds.last == bounds.n_layers - 1 else bounds.last,
        groups=tuple(groups),
        provenance={**kept, **(more or {})},
    )


def _effects(task: Task, forms: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Values of the rules that count, shape (rule, layer), and what is picked from, shape (rule,
    candidate): effects, or the measure of a strategy that chooses by it alone.

    A rule counts if any of the forms is traceable for it, where effects are read, and if it has all
    measures that are.
    """
    strategy, bounds = task.strategy, task.bounds
    sources = [mean_effects(task.profile, forms, task.config.component, strategy.role)]
    if task.evidence is not None:
        rules = [str(rule) for rule in task.profile["rule"].values]
        measures = measures_of(task.evidence, strategy.measures, rules, forms)
        sources = [*sources, *measures] if strategy.mix is not None else measures
    known = ~np.isnan(sources).any((0, 2))
    if not known.any():
        raise _none_known(task, forms)
    first, *others = (each[known] for each in sources)
    candidates = bounds.of(first)
    if strategy.mix is not None:
        inside = slice(bounds.first, bounds.last + 1)
        candidates = strategy.mix([candidates, *(each[:, inside] for each in others)])
    return first, candidates


def _none_known(task: Task, forms: tuple[str, ...]) -> NotTraceableError:
    """The error of forms that no rule counts in."""
    if task.evidence is None:
        return untraceable(forms)
    names = " or ".join(forms)
    why = (
        f"no rule with evidence is traceable in its {names} form"
        if task.strategy.mix is not None
        else f"no rule of the profile has {task.strategy.measures[0]} in its {names} form"
    )
    return NotTraceableError(f"{why}; run `dmle evidence` on the profile's rules")


def _groups_of_data(task: Task) -> tuple[list[tuple[str, ...]], list[str]]:
    """Groups of forms by their profiles, and the comparisons made, in words.

    A form that no rule is traceable in has no profile to compare; it goes where the given grouping
    has it.
    """
    config, known = task.config, task.profile["form"].values
    forms = [form for group in config.groups for form in group if form in known]
    effects = {
        form: task.bounds.of(effects_of(task.profile, (form,), config.component)[0])
        for form in forms
    }
    traced = [form for form in forms if not np.isnan(effects[form]).any(1).all()]
    if not traced:
        raise untraceable(forms)
    assert task.strategy.grouping is not None
    alike, comparisons = task.strategy.grouping(
        np.stack([effects[form] for form in traced]), config
    )

    def named(indices: Sequence[int]) -> list[str]:
        return [traced[i] for i in indices]

    groups = _with_untraced([named(indices) for indices in alike], config.groups)
    return groups, [grouping_in_words(named(c.first), named(c.second), c) for c in comparisons]


def _with_untraced(
    groups: Sequence[list[str]], given: Iterable[Sequence[str]]
) -> list[tuple[str, ...]]:
    """Groups of traced forms with the other forms, each beside a form that it is given with.

    Raises:
        NotTraceableError: No form that it is given with is traced.
    """
    traced = {form for group in groups for form in group}
    for forms in given:
        untraced = [form for form in forms if form not in traced]
        partner = next((form for form in forms if form in traced), None)
        if untraced and partner is None:
            raise untraceable(tuple(untraced[:1]))
        for group in groups:
            if partner in group:
                group += untraced
    return [tuple(group) for group in groups]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
