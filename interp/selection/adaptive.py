"""Layers rule by rule: a window for each rule from its own profile.

A rule's deviation from the mean over rules is kept by the factor between / (between + noise), see
`interp.selection.shrinkage.shrink`. The noise is the square of the profile's ``effect_se`` (dims as
``effect``) where it stores one; without one it is estimated from the roughness of the rule's
profile over layers, which misses noise that layers share. What is believed of a rule is drawn from:
the population mean's resamples, and the noise that is left.

A rule is supported if its interval clears the floor, its stability suffices, and its group is
supported; one that is not traceable in a group's forms gets the population's layers.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from interp.config import SelectConfig
from interp.results.intervals import interval_of, mean_of_known, resampled_means
from interp.selection import strategies
from interp.selection.candidates import effects_of
from interp.selection.layers import LayerGroup, LayerSelection
from interp.selection.reasons import Finding, objections, own_window, percent, sentences
from interp.selection.select import Task, select_group, selection_of, with_fallback
from interp.selection.shrinkage import roughness_variance, shrink
from interp.selection.support import Choice, chance

STRATEGY = "adaptive"
MOSTLY = 0.5
"""Share of a rule's deviation from the mean that must be believed for layers of its own, where the
group of rules is not supported."""


@dataclass(frozen=True)
class _Population:
    """The rules of one group of forms, and what is believed of each. Arrays are of the rules that
    have a map.
    """

    task: Task
    group: LayerGroup
    """The choice for all rules together."""
    per_rule: np.ndarray
    """Effects, shape (rule, layer)."""
    effect: np.ndarray
    """Those of the windows that are read, shape (rule, window)."""
    shrunk: np.ndarray
    """What is believed of the candidates, shape (rule, candidate)."""
    factors: np.ndarray
    """Share of each rule's deviation that is kept, shape (rule,)."""
    left: np.ndarray
    """Variance that is left, shape (rule,)."""
    means: np.ndarray
    """Mean effects in resamples of the rules, shape (draw, window)."""
    noise_source: str
    differ: bool
    """Whether some rules have an effect somewhere, though they may not agree where."""


def select_for_rules(
    profile: xr.Dataset, config: SelectConfig | None = None
) -> dict[str, LayerSelection]:
    """Choose a window for each rule from its own profile, shrunk towards the population's by how
    noisy it is (see the module).

    Args:
        profile: Result of `interp.selection.profiles.layer_profile`.
        config: As for `interp.selection.select.select_layers`; a strategy that does not choose by
            rule is replaced by `adaptive`.

    Returns:
        For each rule of the profile, by its id, its selection.

    Raises:
        NotTraceableError: A group has no traceable rule.
        InputError: As for `select_layers`.
    """
    config = config or SelectConfig()
    if not strategies.get(config.strategy).by_rule:
        config = config.model_copy(update={"strategy": STRATEGY})
    task = Task.of(profile, config)
    by_forms = [_rule_groups(task, select_group(task, forms)) for forms in config.groups]
    rules = [str(rule) for rule in profile["rule"].values]
    return {
        rule: selection_of(task, groups, {"rule": rule})
        for rule, *groups in zip(rules, *by_forms, strict=True)
    }


def _rule_groups(task: Task, group: LayerGroup) -> list[LayerGroup]:
    """The group of one set of forms for every rule."""
    effects = effects_of(task.profile, group.forms, task.config.component)
    with_map = np.asarray(~np.isnan(mean_of_known(effects, 0)).any(axis=1))
    population = _population(task, group, effects, with_map)
    reason = f"This rule is not traceable here, so it gets the layers of all rules: {group.reason}"
    others = group.model_copy(update={"reason": reason})
    own = iter(range(int(with_map.sum())))
    return [_rule_group(population, next(own)) if known else others for known in with_map.tolist()]


def _population(
    task: Task, group: LayerGroup, effects: np.ndarray, with_map: np.ndarray
) -> _Population:
    """What is believed of the rules that have a map.

    Args:
        task: The task.
        group: The choice for all rules together.
        effects: Of all rules, shape (form, rule, layer).
        with_map: Which rules have a map, shape (rule,).
    """
    config, bounds = task.config, task.bounds
    per_rule = mean_of_known(effects, 0)[with_map]
    # Noise is that of the windows' effects: those of blocks are means of the same windows, and
    # smooth.
    read = slice(bounds.behind, bounds.n_layers)
    effect = per_rule[:, read]
    if "effect_se" in task.profile:
        errors = effects_of(task.profile, group.forms, config.component, "effect_se")[..., read]
        # The mean of f independent forms: the sum of their variances over f².
        count = (~np.isnan(effects[..., read])).sum(0)
        variance = (np.nansum(errors**2, axis=0)[with_map] / count[with_map] ** 2).mean(1)
        source = "standard error"
    else:
        variance, source = roughness_variance(effect), "roughness over layers"
    shrunk, factors = shrink(effect, variance)
    # Rules with layers of their own need not agree on any, as the group's test asks: an effect
    # somewhere is enough for those whose deviation from the mean is believed for the most part.
    pick = task.strategy.picker(config)
    anywhere = chance(bounds.of_read(effect), pick, draws=config.bootstrap, seed=config.seed)
    return _Population(
        task=task,
        group=group,
        per_rule=per_rule,
        effect=effect,
        shrunk=bounds.of_read(shrunk),
        factors=factors,
        left=np.where(factors > 0, factors * np.where(factors > 0, variance, 0.0), 0.0),
        means=resampled_means(effect, draws=config.bootstrap, seed=config.seed),
        noise_source=source,
        differ=len(effect) > 1 and anywhere <= config.level,
    )


def _choice(population: _Population, i: int) -> Choice:
    """The layers of one rule; stability is how often they win among draws from what is believed of
    it.
    """
    task, factor = population.task, population.factors[i]
    pick = task.strategy.picker(task.config)
    noise = np.random.default_rng([task.config.seed, 2, i]).standard_normal(population.means.shape)
    believed = task.bounds.of_read(
        (1 - factor) * population.means
        + factor * population.effect[i]
        + np.sqrt(population.left[i]) * noise
    )
    chosen = pick(population.shrunk[i][None])[0][0]
    layers = np.flatnonzero(chosen)
    return Choice(
        tuple(int(layer) for layer in layers),
        float(population.shrunk[i, layers].mean()),
        believed[:, layers].mean(1),
        float((pick(believed)[0] == chosen).all(1).mean()),
    )


def _rule_group(population: _Population, i: int) -> LayerGroup:
    """The group of forms for one rule."""
    task, group, kept = population.task, population.group, float(population.factors[i])
    n_rules, choice = len(population.effect), _choice(population, i)
    lower, upper = interval_of(choice.draws)
    against = objections(
        n_rules=n_rules,
        stability=choice.stability,
        config=task.config,
        min_rules=task.strategy.min_rules,
        lower=lower,
        floor=task.floor(group.forms),
    )
    if not (group.supported or (population.differ and kept >= MOSTLY)):
        against = (*against, "The layers of all rules together are not supported.")
    finding = Finding.of(
        choice, population.shrunk[i][None], task.config, first=task.bounds.first, unit=task.unit
    )
    reason = sentences(
        own_window(finding, n_rules=n_rules, kept=kept, source=population.noise_source),
        f"The same layers win in {percent(choice.stability)} of draws.",
        *against,
        task.limits,
    )
    own = group.model_copy(
        update={
            "layers": finding.layers,
            "score": choice.score,
            "lower": lower,
            "upper": upper,
            "stability": choice.stability,
            "n_rules": 1,
            "supported": not against,
            "objections": against,
            "reason": reason,
        }
    )
    return with_fallback(task, own, population.per_rule[i : i + 1])
