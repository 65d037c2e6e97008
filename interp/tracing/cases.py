"""What is patched: a prompt with answer and corruption, sites of its states, and its two runs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import InputError
from interp.models.budget import chunked
from interp.models.loading import LanguageModel, NamedHook
from interp.tracing.metrics import Target


@dataclass(frozen=True)
class Site:
    """States to exchange: one component's output in some blocks, at one token."""

    component: str
    """`resid`, `mlp` or `attn`: the stream after the block, or what MLP or attention add to it."""
    position: int
    layers: range
    frozen: str | None = None
    """`mlp` or `attn`: the outputs of that component at this token stay those of the base run in
    all later blocks, so that the exchanged state cannot act through them (ROME, Fig. 3: severed MLP
    or attention)."""


@dataclass(frozen=True)
class CorruptedPrompt:
    """A prompt with its answer, and how its corrupted run differs from the clean one.

    Either `noise` on the embeddings of some tokens, or a `counterfactual` prompt.

    Raises:
        ValueError: Neither or both are given, or lengths or positions do not fit.
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    positions: tuple[int, ...]
    """Corrupted tokens, ascending; those that differ, for a counterfactual prompt."""
    noise: Float[Tensor, "sample corrupted d_model"] | None = None
    replace: bool = False
    """The noise takes the place of the embeddings instead of being added."""
    counterfactual: tuple[int, ...] | None = None
    """Tokens of the counterfactual prompt, as many as the prompt has."""
    alternative: tuple[int, ...] | None = None
    """The answer to the counterfactual prompt, for metrics that compare the two."""

    def __post_init__(self) -> None:
        n = len(self.prompt)
        if not self.answer:
            raise InputError("the answer has no token; there is nothing to score")
        if (self.noise is None) == (self.counterfactual is None):
            raise InputError("give noise or a counterfactual prompt: exactly one of them corrupts")
        if list(self.positions) != sorted({p for p in self.positions if 0 <= p < n}):
            raise InputError(
                f"positions {self.positions} are not ascending positions of a prompt of {n} tokens"
            )
        if self.noise is not None and self.noise.shape[1] != len(self.positions):
            raise InputError(
                f"noise has shape {tuple(self.noise.shape)}, expected (sample,"
                f" {len(self.positions)}, d_model): one vector per corrupted token"
            )
        if self.counterfactual is not None:
            self._check_counterfactual(self.counterfactual)

    def _check_counterfactual(self, other: tuple[int, ...]) -> None:
        n = len(self.prompt)
        if len(other) != n:
            raise InputError(
                f"the counterfactual prompt has {len(other)} tokens, the prompt"
                f" {n}; states of the two can only be exchanged where tokens stand at equal"
                " positions: choose another"
            )
        differing = [i for i in range(n) if self.prompt[i] != other[i]]
        if list(self.positions) != differing:
            raise InputError(
                f"positions {self.positions} are not where the prompts differ, which is {differing}"
            )

    @property
    def continuation(self) -> tuple[int, ...]:
        """The answer without its last token, which predicts nothing."""
        return self.answer[:-1]

    @property
    def ids(self) -> tuple[int, ...]:
        """Clean prompt and continuation."""
        return (*self.prompt, *self.continuation)

    @property
    def samples(self) -> int:
        """Number of corrupted runs."""
        return 1 if self.noise is None else len(self.noise)

    def take(self, samples: Sequence[int]) -> "CorruptedPrompt":
        """The same case with some of the noise samples."""
        return self if self.noise is None else replace(self, noise=self.noise[list(samples)])


def require_inside(case: CorruptedPrompt, sites: Iterable[Site]) -> None:
    """See that every site is a token of the prompt.

    Raises:
        InputError: One is not.
    """
    if bad := [site for site in sites if not 0 <= site.position < len(case.prompt)]:
        raise InputError(f"site {bad[0]} is outside the prompt of {len(case.prompt)} tokens")


def target(
    case: CorruptedPrompt, device: torch.device, clean_log_probs: Tensor | None = None
) -> Target:
    """What the runs of a case are scored against."""
    alternative = (
        None if case.alternative is None else torch.tensor(case.alternative, device=device)
    )
    return Target(torch.tensor(case.answer, device=device), alternative, clean_log_probs)


@dataclass
class Side:
    """One of the two runs of a case: its tokens, what is done to their embeddings, and its
    states.
    """

    ids: tuple[int, ...]
    """Prompt and continuation."""
    rows: int
    """How many runs there are: one per noise sample, or one."""
    positions: tuple[int, ...] = ()
    noise: Float[Tensor, "sample corrupted d_model"] | None = None
    replace: bool = False
    states: dict[str, Float[Tensor, "row pos d"]] = field(default_factory=dict)

    @classmethod
    def clean(cls, case: CorruptedPrompt) -> "Side":
        """The clean run."""
        return cls(case.ids, 1)

    @classmethod
    def corrupted(cls, case: CorruptedPrompt) -> "Side":
        """The corrupted runs."""
        ids = (*(case.counterfactual or case.prompt), *case.continuation)
        return cls(ids, case.samples, case.positions, case.noise, case.replace)

    def tokens(
        self, model: LanguageModel, rows: int, start: int = 0, end: int | None = None
    ) -> Tensor:
        """Token ids from `start` to `end`, in some rows."""
        return torch.tensor(self.ids[start:end], device=model.device).expand(rows, -1)

    def embedding_hooks(
        self, model: LanguageModel, rows: Sequence[int], start: int = 0, end: int | None = None
    ) -> list[NamedHook]:
        """What corrupts the embeddings of tokens `start`…`end`; `rows` names the noise sample of
        each row.
        """
        if self.noise is None:
            return []
        inside = [
            i for i, p in enumerate(self.positions) if p >= start and (end is None or p < end)
        ]
        columns = [self.positions[i] - start for i in inside]
        noise = self.noise[list(rows)][:, inside]

        def corrupt(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            value[:, columns] = (
                noise.to(value) if self.replace else value[:, columns] + noise.to(value)
            )
            return value

        return [(model.embedding_hook, corrupt)]

    def run(
        self,
        model: LanguageModel,
        names: Iterable[str],
        keep: int,
        score: Callable[[Tensor], Tensor],
        memory: int,
        together: int | None = None,
    ) -> Tensor:
        """Do the runs, in as many batches as the memory asks for, and keep their states.

        Args:
            model: The model.
            names: Hooks whose values are kept in `states`.
            keep: How many logits, from the end.
            score: Logits of some runs → what is returned of them, one row each.
            memory: Bytes that a batch may take (estimated).
            together: Runs of a batch, whatever the memory.
        """
        parts: list[Tensor] = []
        states: dict[str, list[Tensor]] = {name: [] for name in sorted(names)}

        def work(rows: list[int]) -> None:
            seen: dict[str, Tensor] = {}
            hooks = [*self.embedding_hooks(model, rows), *watch_hooks(states, seen)]
            parts.append(score(model.logits(self.tokens(model, len(rows)), keep=keep, hooks=hooks)))
            for name, value in seen.items():
                states[name].append(value)

        size = together or memory // model.row_bytes(len(self.ids), len(self.ids), keep)
        chunked(range(self.rows), max(1, size), work)
        self.states = {
            name: values[0] if len(values) == 1 else torch.cat(values)
            for name, values in states.items()
        }
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def take(self, name: str, samples: Sequence[int]) -> Float[Tensor, "sample pos d"]:
        """States at a hook, one row per noise sample."""
        states = self.states[name]
        if self.rows == 1:
            return states.expand(len(samples), -1, -1)
        return states if list(samples) == list(range(self.rows)) else states[list(samples)]

    def extend_cache(
        self, model: LanguageModel, samples: Sequence[int], cache: Any, start: int, end: int
    ) -> Any:
        """Keys and values of the tokens before `end`, given those before `start`; one row if all
        samples share it.
        """
        rows = samples if self.rows > 1 else [0]
        hooks = self.embedding_hooks(model, rows, start, end)
        return model.prefix_cache(self.tokens(model, len(rows), start, end), hooks, cache)


def watch_hooks(names: Iterable[str], into: dict[str, Tensor]) -> list[NamedHook]:
    """Keep the values at these hooks."""

    def keep(value: Tensor, hook: Any, name: str) -> None:
        into[name] = value

    return [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
