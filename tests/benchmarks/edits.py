"""Benchmarks of editing: MEMIT and DMLE on one rule, against a straightforward implementation.

One rule (three requests), settings of the reference (25 evaluations, five contexts of ten tokens),
SmolLM2-135M, C of a few thousand tokens:

(a) straight: plain Hugging Face modules and torch hooks; one request at a time, its rows padded and
    run whole through all blocks, all logits at every step; keys and states from whole runs; every
    layer solved afresh in float64
(b) ours: `editing.editors.memit` and `editing.editors.dmle`; MEMIT also with answers word by word
(c) further: solving the layers of one more rule with the factors of C at hand, against factorising
    afresh

Times are CPU-seconds of one thread in a process of its own; read ratios. `z_error` and
`update_error` are the largest relative differences of (b) from (a).
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from editing.closed_form.contexts import preservation_row, rows, sample_contexts
from editing.closed_form.covariance import Covariances, measure
from editing.closed_form.keys import find_keys
from editing.closed_form.solvers import ridge
from editing.closed_form.targets import find_targets
from editing.config import CovarianceConfig, EditorSettings
from editing.edits.requests import EditRequest, requests_of, words_of
from interp.models.loading import LanguageModel, load
from interp.models.tokens import pad_right
from interp.rules.sources import load_rules
from interp.selection.layers import parse_layers
from tests.benchmarks.apart import apart as in_process
from tests.unit.editing_making import edit_with

RULE = "rectangle-perimeter"
BLOCK, STAGES = (4, 5, 6, 7, 8), "3,4,5/12,13,14"
SETTINGS = EditorSettings()
WORDS = EditorSettings(lookup="last", answer="words")
CORPUS = CovarianceConfig(tokens=4000, shrinkage=0.1)
QUICK_STEPS = 2


class Case(NamedTuple):
    """What is edited with, the gradient evaluations of its target search, and whether only the
    first request is edited word by word."""

    editor: str
    steps: int
    quick: bool = False


class Straight:
    """MEMIT as one would write it first. `hf` is the same model, with its own copy of the
    parameters' values."""

    def __init__(self, model: LanguageModel, settings: EditorSettings) -> None:
        self.settings, self.model, self.hf = settings, model, model.clean_copy()
        self.layers = self.hf.model.layers

    def memit(
        self,
        requests: Sequence[EditRequest],
        block: Sequence[int],
        statistics: Covariances,
        contexts: Sequence[str],
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """Targets (n, d_model) and updates by layer; the updates are left in the weights."""
        z = torch.stack([self.target(request, block[-1], contexts) for request in requests])
        updates = {}
        for i, layer in enumerate(block):
            keys = torch.stack(
                [self.key(request, layer, contexts) for request in requests]
            ).double()
            now = torch.stack(
                [self.seen(self.layers[block[-1]], r, ("",), inputs=False)[0] for r in requests]
            ).double()
            residual = (z - now) / (len(block) - i)
            weight = (
                self.settings.ridge * keys.shape[1] * statistics.by_layer[layer].double()
                + keys.T @ keys
            )
            updates[layer] = residual.T @ torch.linalg.solve(weight, keys.T).T
            weights = self.layers[layer].mlp.down_proj.weight
            # The copy shares the model's parameters: replaced, not written.
            self.layers[layer].mlp.down_proj.weight = nn.Parameter(
                (weights + updates[layer]).float(), False
            )
        return z, updates

    def target(self, request: EditRequest, layer: int, contexts: Sequence[str]) -> Tensor:
        """z of one request."""
        model, target = self.model, self.model.encode_continuation(request.target_new)
        prompts = rows(model, request, contexts, self.settings.lookup)
        kept = preservation_row(model, request, self.settings.lookup)
        ids, mask = pad_right(
            [*((*row.ids, *target[:-1]) for row in prompts), kept.ids], model.device
        )
        lookup = torch.tensor([*(row.lookup for row in prompts), kept.lookup])
        which = torch.arange(len(ids))
        initial = self.seen(self.layers[layer], request, ("",), inputs=False)[0]
        delta = torch.zeros_like(initial, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=self.settings.learning_rate)
        base: Tensor | None = None

        def add(module: nn.Module, args: Any, out: Any) -> Any:
            value = out[0] if isinstance(out, tuple) else out
            value = value.index_put((which, lookup), value[which, lookup] + delta)
            return (value, *out[1:]) if isinstance(out, tuple) else value

        for step in range(self.settings.steps):
            with hooked(self.layers[layer].register_forward_hook(add)):
                said = self.hf(ids, attention_mask=mask).logits.log_softmax(-1)
            nll = torch.zeros(())
            for i, row in enumerate(prompts):
                at = torch.arange(len(row.ids) - 1, len(row.ids) - 1 + len(target))
                nll = nll - said[i, at, list(target)].mean() / len(prompts)
            now = said[-1, kept.lookup]
            base = now.detach() if base is None else base
            kl = (now.exp() * (now - base)).sum()
            loss = (
                nll
                + self.settings.kl_factor * kl
                + self.settings.weight_decay * delta.norm() / initial.norm() ** 2
            )
            if loss.item() < self.settings.stop_loss or step == self.settings.steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            with torch.no_grad():
                delta *= (self.settings.clamp * initial.norm() / delta.norm()).clamp(max=1)
        return initial + delta.detach()

    def key(self, request: EditRequest, layer: int, contexts: Sequence[str]) -> Tensor:
        """Averaged over contexts, the bare prompt counting one half."""
        seen = self.seen(self.layers[layer].mlp.down_proj, request, contexts, inputs=True)
        return (seen[0] + seen[1:].mean(0)) / 2

    def seen(
        self, module: nn.Module, request: EditRequest, contexts: Sequence[str], *, inputs: bool
    ) -> Tensor:
        """What a module reads or gives at the lookup token, (context, d)."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: Any, out: Any) -> None:
            value = args[0] if inputs else (out[0] if isinstance(out, tuple) else out)
            found.append(value.detach().clone())

        built = rows(self.model, request, contexts, self.settings.lookup)
        ids, mask = pad_right([row.ids for row in built], self.model.device)
        with torch.no_grad(), hooked(module.register_forward_hook(keep)):
            self.hf(ids, attention_mask=mask)
        return found[0][torch.arange(len(built)), [row.lookup for row in built]]


@contextmanager
def hooked(handle: Any) -> Iterator[None]:
    """Remove a torch hook on leaving."""
    try:
        yield
    finally:
        handle.remove()


def straight(
    case: Case, model: LanguageModel, statistics: Covariances, contexts: Sequence[str]
) -> dict[str, Any]:
    """(a)"""
    requests, plain = requests_of_rule(case), Straight(model, settings_of(case))
    if case.editor != "dmle":
        z, updates = plain.memit(requests, BLOCK, statistics, contexts)
        return {"z": z, "updates": updates}
    z, updates = plain.memit(requests[:2], (3, 4, 5), statistics, contexts)
    more, later = plain.memit(requests[2:], (12, 13, 14), statistics, contexts)
    return {"z": torch.cat([z, more]), "updates": {**updates, **later}}


def ours(
    case: Case, model: LanguageModel, statistics: Covariances, contexts: Sequence[str]
) -> dict[str, Any]:
    """(b)"""
    requests, settings = requests_of_rule(case), settings_of(case)
    if case.editor != "dmle":
        delta = edit_with("memit", model, requests, BLOCK, statistics, contexts, settings)
    else:
        delta = edit_with(
            "dmle",
            model,
            requests,
            parse_layers(STAGES, model.n_layers),
            statistics,
            contexts,
            settings,
        )
    return {
        "updates": {delta.layers[name]: update.dense() for name, update in delta.updates.items()}
    }


def targets(
    case: Case, model: LanguageModel, statistics: Covariances, contexts: Sequence[str]
) -> dict[str, Any]:
    """The targets of (b), for the comparison; MEMIT's alone, since DMLE's second stage is on an
    edited model."""
    return {
        "z": (find_targets(model, requests_of_rule(case), BLOCK[-1], contexts, settings_of(case)).z)
    }


def further(
    case: Case, model: LanguageModel, statistics: Covariances, contexts: Sequence[str]
) -> dict[str, Any]:
    """(c): seconds of solving five layers, the factors at hand or not."""
    requests = requests_of_rule(case)
    keys = {layer: find_keys(model, requests, layer, contexts, SETTINGS.lookup) for layer in BLOCK}
    residual = torch.ones(model.d_model, len(requests))
    spent: dict[str, float] = {}

    def solve(layer: int) -> None:
        ridge(
            residual, keys[layer].T, statistics.factor(layer), SETTINGS.ridge * keys[layer].shape[1]
        )

    def afresh(layer: int) -> None:
        k = keys[layer].double()
        weight = SETTINGS.ridge * k.shape[1] * statistics.by_layer[layer].double() + k.T @ k
        torch.linalg.solve(weight, k.T)

    for name, one in (("first", solve), ("at hand", solve), ("afresh", afresh)):
        start = time.process_time()
        for layer in BLOCK:
            one(layer)
        spent[name] = time.process_time() - start
    return spent


def settings_of(case: Case) -> EditorSettings:
    """Settings of a case."""
    settings = WORDS if case.editor == "memit-words" else SETTINGS
    return settings.model_copy(update={"steps": case.steps})


def requests_of_rule(case: Case) -> list[EditRequest]:
    """The three requests of the rule that is edited, or their words."""
    settings = settings_of(case)
    requests = requests_of(load_rules("embedded", ids=[RULE]).rules[0], settings.lookup)
    if settings.answer != "words":
        return requests
    return [word for one in requests[: 1 if case.quick else None] for word in words_of(one)]


def measured(part: str, case: Case, folder: str, contexts: Sequence[str]) -> dict[str, Any]:
    """One part in this process, with one thread."""
    torch.set_num_threads(1)
    model = load()
    statistics = measure(model, range(3, 15), CORPUS, Path(folder))
    start = time.process_time()
    result = globals()[part](case, model, statistics, contexts)
    return {**result, "seconds": time.process_time() - start}


def run(say: Callable[[dict[str, Any]], None], *, quick: bool = False) -> None:
    """All parts, each in a process of its own; rows as in bench.json."""
    steps = QUICK_STEPS if quick else SETTINGS.steps

    def add(**row: Any) -> None:
        say(row)

    with tempfile.TemporaryDirectory() as folder:
        model = load()
        contexts = sample_contexts(model, SETTINGS.contexts, SETTINGS.context_tokens, SETTINGS.seed)
        measure(model, range(3, 15), CORPUS, Path(folder))

        def apart(part: str, editor: str) -> dict[str, Any]:
            return in_process(measured, part, Case(editor, steps, quick), folder, contexts)

        for editor in ("memit", "dmle", "memit-words"):
            slow, fast = apart("straight", editor), apart("ours", editor)
            add(
                name="edit",
                case=f"{editor}, straight",
                seconds=slow["seconds"],
                ratio=1.0,
                baseline="straight",
            )
            errors = {
                "update_error": max(
                    error(fast["updates"][i], slow["updates"][i]) for i in slow["updates"]
                )
            }
            if editor != "dmle":
                z = apart("targets", editor)["z"]
                errors["z_error"] = max(
                    error(one, other) for one, other in zip(z, slow["z"], strict=True)
                )
            ratio = slow["seconds"] / fast["seconds"]
            add(
                name="edit",
                case=f"{editor}, ours",
                seconds=fast["seconds"],
                ratio=ratio,
                baseline="straight",
                **errors,
            )
        spent = apart("further", "memit")
        for case in ("afresh", "first", "at hand"):
            ratio = spent["afresh"] / spent[case]
            add(
                name="solve five layers",
                case=case,
                seconds=spent[case],
                ratio=ratio,
                baseline="afresh",
            )


def error(got: Tensor, expected: Tensor) -> float:
    """Relative difference."""
    return ((got.double() - expected.double()).norm() / expected.double().norm()).item()


def describe(row: dict[str, Any]) -> str:
    """One line about a row."""
    text = f"{row['name']:18} {row['case']:16} {row['seconds']:8.2f} CPU-s"
    text += f"  {row['ratio']:6.1f} x less than {row['baseline']}"
    return text + "".join(
        f"  {name} {row[name]:.1e}" for name in ("z_error", "update_error") if name in row
    )
