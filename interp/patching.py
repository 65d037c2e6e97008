"""The patching engine: restore clean states in a corrupted run and score the answer.

For a prompt whose embeddings are corrupted at some tokens, a *site* names states (a component of some
blocks, at one position) that get their clean value back. The score of the answer at each site, against the
corrupted and the clean run, says how much of the answer those states carry (denoising).

Cost. Three routes give the same numbers:

- `sweep_reference` is the definition: one full forward pass per site and noise sample, no sharing.
- `sweep_generic` puts sites and samples along the batch axis; hooks only, so it serves any TransformerLens model.
- `sweep` shares what sites have in common. Before the restored position, states are those of the corrupted run in
  every block, so their keys and values are computed once per position and only the tokens from the restored one on
  are run. Before the first restored block, states are those of the corrupted run too, so a site joins the batch only
  at that block: the batch grows from block to block. Logits are computed only where the answer is predicted. It is
  taken where the model's self-check shows that it holds.

Source: Meng et al. 2022 (ROME), causal tracing; Zhang & Nanda 2024 for the vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.metrics import Metric
from interp.model import LanguageModel, NamedHook


@dataclass(frozen=True)
class Site:
    """States to restore: one component's output in some blocks, at one token."""

    component: str
    position: int
    layers: range


@dataclass(frozen=True)
class CorruptedPrompt:
    """A prompt with its answer and the noise on its embeddings."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    positions: tuple[int, ...]
    """Corrupted tokens, ascending."""
    noise: Float[Tensor, "sample corrupted d_model"]

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and answer without the answer's last token: it predicts nothing."""
        return (*self.prompt, *self.answer[:-1])

    @property
    def samples(self) -> int:
        """Number of noise samples."""
        return len(self.noise)


@dataclass(frozen=True)
class SweepResult:
    """Scores of one prompt, in the metric's unit."""

    clean: float
    corrupted: Float[Tensor, " sample"]
    restored: Float[Tensor, "site sample"]


def sweep(
    model: LanguageModel,
    case: CorruptedPrompt,
    sites: Sequence[Site],
    metric: Metric,
    *,
    batch_size: int = 32,
    advance: Callable[[int], object] = lambda n: None,
) -> SweepResult:
    """Score the clean run, the corrupted runs, and the corrupted runs restored at each site.

    Args:
        model: The model.
        case: The prompt, its answer and its noise.
        sites: What to restore, each alone.
        metric: Logits and answer ids → score per row.
        batch_size: Rows (site × sample) run together; changes the cost, not the result.
        advance: Called with the number of sites done.

    Raises:
        ValueError: A site is outside the prompt.
    """
    if bad := [s for s in sites if not 0 <= s.position < len(case.prompt)]:
        raise ValueError(f"site {bad[0]} is outside the prompt of {len(case.prompt)} tokens")
    if not (model.has_entry and model.has_prefix_cache):
        return sweep_generic(model, case, sites, metric, batch_size=batch_size, advance=advance)
    score = _scorer(model, case, metric)
    with torch.inference_mode():
        clean_values = _clean_values(model, case, sites)
        clean = score(1, 0, [])
        streams: dict[int, Tensor] = {}
        noise = _noise_hook(model, case, 0, case.samples)
        keep = [_keep(streams, layer, f"blocks.{layer}.hook_resid_pre") for layer in range(model.n_layers)]
        corrupted = score(case.samples, 0, [noise, *(keep if sites else [])])
        restored = torch.empty(len(sites), case.samples)
        blocks = [_first_block(site, model.n_layers) for site in sites]
        for position in sorted({s.position for s in sites}):
            here = sorted((i for i, s in enumerate(sites) if s.position == position), key=lambda i: blocks[i])
            prefix = _corrupted_prefix(model, case, position)
            for some in _chunks(here, max(1, batch_size // case.samples)):
                chosen = [sites[i] for i in some]
                joins = _joins(model, chosen, [blocks[i] for i in some], streams, clean_values)
                hooks = _restore_hooks(model, chosen, case.samples, clean_values, position, [blocks[i] for i in some])
                scores = score(1, position, hooks, prefix, joins)
                restored[some] = scores.view(len(some), -1).cpu()
                advance(len(some))
    return SweepResult(clean.item(), corrupted.cpu(), restored)


def sweep_generic(
    model: LanguageModel,
    case: CorruptedPrompt,
    sites: Sequence[Site],
    metric: Metric,
    *,
    batch_size: int = 32,
    advance: Callable[[int], object] = lambda n: None,
) -> SweepResult:
    """`sweep` for any model: whole sequences through all blocks, sites and samples along the batch axis."""
    score = _scorer(model, case, metric)
    with torch.inference_mode():
        clean_values = _clean_values(model, case, sites)
        clean = score(1, 0, [])
        corrupted = score(case.samples, 0, [_noise_hook(model, case, 0, case.samples)])
        restored = torch.empty(len(sites), case.samples)
        for position in sorted({s.position for s in sites}):
            here = [i for i, s in enumerate(sites) if s.position == position]
            for some in _chunks(here, max(1, batch_size // case.samples)):
                rows = len(some) * case.samples
                hooks = _restore_hooks(model, [sites[i] for i in some], case.samples, clean_values, 0)
                scores = score(rows, 0, [_noise_hook(model, case, 0, rows), *hooks])
                restored[some] = scores.view(len(some), -1).cpu()
                advance(len(some))
    return SweepResult(clean.item(), corrupted.cpu(), restored)


def sweep_reference(model: LanguageModel, case: CorruptedPrompt, sites: Sequence[Site], metric: Metric) -> SweepResult:
    """The same numbers the slow and obvious way: one whole forward pass per site and noise sample."""
    ids = torch.tensor([case.ids], device=model.device)
    answer = torch.tensor(case.answer, device=model.device)
    names = {model.hook(s.component, layer) for s in sites for layer in s.layers}
    clean_values = model.capture(ids, sorted(names))

    def run(sample: int | None, site: Site | None) -> float:
        def corrupt(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[0, list(case.positions)] += case.noise[sample].to(value)
            return value

        def restore(value: Tensor, hook: Any, name: str, position: int) -> Tensor:
            value = value.clone()
            value[0, position] = clean_values[name][0, position]
            return value

        hooks: list[NamedHook] = [] if sample is None else [(model.embedding_hook, corrupt)]
        if site is not None:
            for name in (model.hook(site.component, layer) for layer in site.layers):
                hooks.append((name, lambda v, hook, name=name, at=site.position: restore(v, hook, name, at)))
        with torch.no_grad():
            logits = model.logits(ids, hooks=hooks)
        return metric(logits[:, len(case.prompt) - 1 :], answer).item()

    samples = range(case.samples)
    return SweepResult(
        run(None, None),
        torch.tensor([run(s, None) for s in samples]),
        torch.tensor([[run(s, site) for s in samples] for site in sites]),
    )


def _scorer(model: LanguageModel, case: CorruptedPrompt, metric: Metric) -> Callable[..., Tensor]:
    """A function that runs `rows` copies of the tokens from `start` on and scores the answer in each."""
    answer = torch.tensor(case.answer, device=model.device)

    def score(rows: int, start: int, hooks: Sequence[NamedHook], prefix: Any = None, joins: Any = ()) -> Tensor:
        ids = torch.tensor(case.ids[start:], device=model.device).expand(rows, -1)
        return metric(model.logits(ids, keep=len(case.answer), hooks=hooks, prefix=prefix, joins=joins), answer)

    return score


def _keep(values: dict[int, Tensor], layer: int, name: str) -> NamedHook:
    def keep(value: Tensor, hook: Any) -> None:
        values[layer] = value

    return name, keep


def _first_block(site: Site, n_layers: int) -> int:
    """The first block that a restored run does not share with the corrupted one."""
    after = site.component == "resid" and site.layers.start + 1 < n_layers
    return site.layers.start + after


def _joins(
    model: LanguageModel,
    sites: Sequence[Site],
    blocks: Sequence[int],
    streams: dict[int, Tensor],
    clean: dict[str, Tensor],
) -> list[tuple[int, Tensor]]:
    """The states with which sites, ordered by their first block, join the batch there.

    Those of the corrupted run; a site that restores the stream before that block has its clean state already.
    """
    found: dict[int, list[Tensor]] = {}
    for site, block in zip(sites, blocks, strict=True):
        state = streams[block][:, site.position :]
        if block > site.layers.start:
            state = state.clone()
            state[:, 0] = clean[model.hook(site.component, site.layers.start)][site.position]
        found.setdefault(block, []).append(state)
    return [(block, torch.cat(states)) for block, states in found.items()]


def _clean_values(
    model: LanguageModel, case: CorruptedPrompt, sites: Sequence[Site]
) -> dict[str, Float[Tensor, "pos d"]]:
    names = sorted({model.hook(s.component, layer) for s in sites for layer in s.layers})
    ids = torch.tensor([case.ids], device=model.device)
    return {name: value[0] for name, value in model.capture(ids, names).items()}


def _noise_hook(
    model: LanguageModel, case: CorruptedPrompt, start: int, rows: int, end: int | None = None
) -> NamedHook:
    """Adds the noise to the embeddings of tokens start…end; rows run through the samples fastest."""
    inside = [i for i, p in enumerate(case.positions) if p >= start and (end is None or p < end)]
    columns = [case.positions[i] - start for i in inside]
    noise = case.noise[:, inside].repeat(rows // case.samples, 1, 1)

    def add(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, columns] += noise.to(value)
        return value

    return model.embedding_hook, add


def _restore_hooks(
    model: LanguageModel,
    sites: Sequence[Site],
    samples: int,
    clean: dict[str, Tensor],
    start: int,
    blocks: Sequence[int] | None = None,
) -> list[NamedHook]:
    """One hook per (component, block) that any site restores; site i has rows i·samples … (i+1)·samples.

    With `blocks`, what lies before a site's block is restored already.
    """
    rows_of: dict[str, list[int]] = {}
    for i, site in enumerate(sites):
        for layer in site.layers:
            if blocks is None or layer >= blocks[i]:
                rows_of.setdefault(model.hook(site.component, layer), []).extend(range(i * samples, (i + 1) * samples))
    position = sites[0].position

    def restore(value: Tensor, hook: Any, name: str) -> Tensor:
        value = value.clone()
        value[rows_of[name], position - start] = clean[name][position]
        return value

    return [(name, lambda value, hook, name=name: restore(value, hook, name)) for name in rows_of]


def _corrupted_prefix(model: LanguageModel, case: CorruptedPrompt, start: int) -> Any:
    """Keys and values of the tokens before `start` in the corrupted runs, one row per sample."""
    if start == 0:
        return None
    ids = torch.tensor(case.ids[:start], device=model.device).expand(case.samples, -1)
    return model.prefix_cache(ids, [_noise_hook(model, case, 0, case.samples, end=start)])


def _chunks(items: Sequence[int], size: int) -> Iterator[list[int]]:
    for at in range(0, len(items), size):
        yield list(items[at : at + size])
