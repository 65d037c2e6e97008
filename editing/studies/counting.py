"""What edits, their evaluation and statistics of keys run, counted by the code that does it
(`interp.models.outline`).

The texts, their batches and the questions are those of the work. How soon a search or a training is
done only numbers could tell: every step that the settings allow is counted, so that edits are
counted from above. In-context edits are made, and asked, as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from editing.closed_form.chosen_layers import with_layers
from editing.closed_form.corpora import open_corpus, rows_of
from editing.closed_form.keys import find_keys, find_states, keys_of_prompts
from editing.closed_form.moments import batches_of as texts_together
from editing.closed_form.moments import half_of, run_to_last
from editing.closed_form.target_batches import Batch, Site, batches_of
from editing.closed_form.targets import state_hook
from editing.closed_form.workbench import Workbench
from editing.config import CovarianceConfig, EvaluateConfig
from editing.editors.registry import block_of, edit, needs, options_of
from editing.edits.protocol import View
from editing.edits.requests import EditRequest, of_forms, requests_of
from editing.evaluation import side_effects
from editing.evaluation.answers import answers_to
from editing.evaluation.evaluate import unedited
from editing.evaluation.greedy import greedy_ids
from editing.evaluation.scoring import ask, teacher_forced
from editing.evaluation.training import lessons, trained_question
from editing.studies.arms import Arm
from interp.errors import DmleError
from interp.models.loading import LanguageModel
from interp.models.outline import Outline
from interp.models.tokens import pad_right
from interp.rules.sources import Rule
from interp.settings.sizes import parse_size

TRAINED = ("ft", "ft_whitened", "lora")
"""Editors that train all requests together; GRACE trains them one by one."""


def count_statistics(outline: Outline, layers: Sequence[int], config: CovarianceConfig) -> int:
    """Count the runs that measure second moments of some blocks; the number of texts."""
    if config.identity or not layers:
        return 0
    rows = rows_of(outline, open_corpus(config.corpus).texts, config)
    together, half = config.batch_size * config.max_length, half_of(rows, config.skip_first)
    hooks = [(outline.key_hook(layer), _look) for layer in layers]
    first, rest = texts_together(outline, rows, together, half)
    for batch in (*first, *rest):
        ids, mask = pad_right([rows[i] for i in batch], outline.device)
        run_to_last(outline, layers, ids, mask, hooks)
    if config.output_tokens:
        count_outputs(outline, layers, config)
    return len(rows)


def count_outputs(outline: Outline, layers: Sequence[int], config: CovarianceConfig) -> None:
    """Count the runs for gradients of outputs, one text at a time."""
    shorter = config.model_copy(update={"tokens": config.output_tokens, "skip_first": False})
    for row in rows_of(outline, open_corpus(config.corpus).texts, shorter):
        ids, _ = pad_right([row], outline.device)
        outline.logits(ids, hooks=[(outline.value_hook(min(layers)), _needs_gradient)])


@dataclass(frozen=True)
class Asked:
    """What of a cell is counted.

    Attributes:
        edits: Whether edits are made.
        evaluate: How they are scored; None: they are not.
        probes: What side effects are measured on, if they are.
        is_done: Whether a cell, by arm, rule and seed, is done.
    """

    edits: bool = True
    evaluate: EvaluateConfig | None = None
    probes: side_effects.Probes | None = None
    is_done: Callable[[str, str, int], bool] = lambda arm, rule, seed: False


def count_cells(
    outline: Outline, rules: Sequence[Rule], arms: Sequence[Arm], asked: Asked
) -> tuple[int, list[str]]:
    """Count the runs of every arm on every rule (`editing.studies.cells`), each cell that is not
    done.

    Returns:
        The number of cells, and why some were not counted whole: an arm's failure there would be
        one of the work, and is no reason to stop.
    """
    cells, failed, config = 0, [], asked.evaluate
    if asked.probes is not None and config is not None:
        _ask(outline, asked.probes, config)
    for rule in rules:
        floor = None
        for arm, seed in _cells(rule, arms, asked):
            cells += 1
            if config is not None and floor is None:
                floor = unedited(outline, rule, config)
            try:
                view = count_edit(outline, arm, rule, seed) if asked.edits else View.of(outline)
                if config is not None and floor is not None:
                    answers_to(view, floor.of(arm.forms).items, config)
            except DmleError as error:
                failed.append(f"{arm.name}, {rule.id}: {error}")
                continue
            if config is not None and asked.probes is not None:
                _ask(view, asked.probes, config)
    return cells, failed


def _cells(rule: Rule, arms: Sequence[Arm], asked: Asked) -> list[tuple[Arm, int]]:
    """Arms and seeds of a rule that are not done."""
    every = [(arm, seed) for arm in arms if rule.id in arm.rules for seed in arm.seeds]
    return [(arm, seed) for arm, seed in every if not asked.is_done(arm.name, rule.id, seed)]


def count_edit(outline: Outline, arm: Arm, rule: Rule, seed: int) -> View:
    """Count the runs of one edit, from above; what the edited model is asked through."""
    settings = arm.settings.model_copy(update={"seed": seed})
    requests = of_forms(requests_of(rule, settings.lookup), arm.forms)
    bench = arm.bench.asked(requests, settings, evaluated=[rule])
    bench = replace(bench, options=options_of(settings))
    if needs(settings, "groups"):
        bench = with_layers(bench)
    elif not bench.layers and not (block := block_of(settings, outline.n_layers)):
        made = edit(bench)  # in context: nothing is run
        with made.edited(outline) as view:
            return View.of(view)
    elif not bench.layers:
        bench = replace(bench, layers=block)
    kind = settings.solver if needs(settings, "groups") else settings.editor
    bench = bench.as_trained(solved=needs(settings, "lookup"))
    for layers, some in _parts(bench):
        if kind in TRAINED or kind == "grace":
            _trained(outline, bench, kind, layers, some)
        else:
            # ROME writes one request after the other, into the down-projection's output.
            parts = [[each] for each in some] if kind == "rome" else [some]
            for part in parts * settings.rounds:
                _solved(outline, bench, layers, part, "mlp" if kind == "rome" else "resid")
    return View.of(outline)


def _parts(bench: Workbench) -> list[tuple[Sequence[int], list[EditRequest]]]:
    """Blocks, with the requests that are written there."""
    if bench.selection is None:
        return [(bench.layers, list(bench.requests))]
    parts = [(g.layers, of_forms(bench.requests, g.forms)) for g in bench.selection.groups]
    return [(layers, some) for layers, some in parts if some]


def _solved(
    outline: Outline,
    bench: Workbench,
    layers: Sequence[int],
    requests: Sequence[EditRequest],
    site: Site,
) -> None:
    """A closed form: targets are searched, and each block is written."""
    settings, contexts = bench.settings, bench.contexts
    layer = layers[0] if settings.targets == "replayed" else layers[-1]
    memory, hook = parse_size(settings.memory), state_hook(outline, site, layer)
    find_states(outline, requests, hook, settings.lookup, memory)
    for batch in batches_of(outline, requests, layer, contexts, settings, site):
        for step in range(settings.steps):
            _step(outline, batch, hook, last=step == settings.steps - 1)
    kept = [*bench.protected, *bench.retained]
    for block in layers:
        find_keys(outline, requests, block, contexts, settings.lookup, memory=memory)
        find_states(outline, requests, hook, settings.lookup, memory)
        if kept:
            keys_of_prompts(outline, kept, block, memory)
    find_states(outline, requests, hook, settings.lookup, memory)


def _step(outline: LanguageModel, batch: Batch, hook: str, *, last: bool) -> None:
    """One evaluation of a search; the last one needs no gradient."""
    change = (lambda value, hook: value) if last else _needs_gradient
    hooks: list[Any] = [(hook, change)]
    joins: list[tuple[int, Tensor]] = []
    if batch.state is not None:
        hooks, joins = [], [(batch.entry, change(batch.state.clone(), None))]
    outline.logits(
        batch.ids, mask=batch.mask, prefix=batch.prefix, hooks=hooks, joins=joins, only=batch.places
    )


def _trained(
    outline: Outline,
    bench: Workbench,
    kind: str,
    layers: Sequence[int],
    requests: Sequence[EditRequest],
) -> None:
    """An editor that trains on the answers."""
    settings, contexts, size = bench.settings, [""], None
    if kind == "ft_whitened":
        contexts = list(bench.contexts[: bench.options.prefixes + 1])
        steps, size = bench.options.steps, bench.options.batch_size
    elif kind == "ft":
        steps, size = settings.ft.steps, settings.ft.batch_size
    else:
        steps = settings.grace.steps if kind == "grace" else settings.lora.steps
    # LoRA's adapters are in every block.
    first = 0 if kind == "lora" else min(layers)
    hooks = [(outline.value_hook(first), _needs_gradient)]
    if kind == "grace":
        size = 1
        for request in requests:
            asked = ask(outline, [trained_question(outline, request)])
            outline.capture(asked.ids, [outline.key_hook(first)], mask=asked.mask)
    parts = lessons(outline, requests, bench.retained, contexts, size=size, seed=settings.seed)
    for lesson in parts:
        for _ in range(steps):
            asked = lesson.asked
            outline.logits(asked.ids, mask=asked.mask, only=lesson.places, hooks=hooks)


def _ask(view: LanguageModel | View, probes: side_effects.Probes, config: EvaluateConfig) -> None:
    """What `side_effects.ask` runs."""
    size, texts = config.batch_size, side_effects.text_questions(probes.texts)
    for questions in (probes.questions, texts):
        for _ in teacher_forced(view, questions, batch_size=size):
            pass
    greedy_ids(view, probes.prompts, probes.answer_tokens, batch_size=size)


def _look(value: Tensor, hook: Any) -> None:
    """A hook that only looks."""


def _needs_gradient(value: Tensor, hook: Any) -> Tensor:
    return value.requires_grad_()
