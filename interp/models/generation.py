"""Texts that a model continues: greedily, or sampled with a seed."""

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from interp.errors import ModelError
from interp.models.finite import require_finite
from interp.models.runs import Hook, ModelRuns, NamedHook


class ModelGeneration(ModelRuns):
    """Continuations of prompts."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: int,
        *,
        hooks: Sequence[NamedHook] = (),
        prefix: DynamicCache | None = None,
        stop: Callable[[tuple[int, ...]], bool] | None = None,
    ) -> list[tuple[int, ...]]:
        """Greedy continuations of exactly up to `n_tokens` tokens each; ends at the model's
        end-of-text token.

        Hooks act in the pass over the prompts and in no later one. Prompts are padded on the left,
        so the last token of each is in the last column there. What may not be padded together
        (`groups`) runs apart.

        Args:
            prompts: Token ids; with a prefix, with the tokens of the prefix, and at least one more.
            n_tokens: Largest number of tokens of an answer.
            hooks: (hook name, function) pairs.
            prefix: Keys and values of one row of tokens that all prompts begin with (see
                `prefix_cache`); left as it is. Prompts of different length then need a model
                without sliding windows: padding stands behind the prefix, where it counts as
                distance.
            stop: Whether a continuation so far is enough. Its row then ends; behind the place where
                this was first so, the row may hold tokens without a meaning.

        Raises:
            NotFiniteError: A prediction is NaN or infinite, so that no token is the most likely
                one.
            ModelError: There are hooks, and the prompts cannot run together.
        """
        groups = self.groups([len(prompt) for prompt in prompts], n_tokens)
        if hooks and len(groups) > 1:
            raise ModelError(
                f"{self.name}: prompts with hooks run together, and these cannot (see `groups`)"
            )
        out: list[tuple[int, ...]] = [()] * len(prompts)
        for rows in groups:
            some = [prompts[row] for row in rows]
            # Without keys and values that are kept, each pass is one over the prompt, too.
            whole = self._grows_past(max(map(len, some)) + n_tokens)
            acting = [(name, hook if whole else _once(hook)) for name, hook in hooks]
            options: dict[str, Any] = {"do_sample": False}
            if stop is not None:
                width = max(map(len, some))
                options["stopping_criteria"] = StoppingCriteriaList([_Enough(stop, width)])
            with self.bridge.hooks(fwd_hooks=acting):
                answers = self._generate(some, n_tokens, prefix, **options)
            for row, answer in zip(rows, answers, strict=True):
                out[row] = answer
        return out

    def groups(self, lengths: Sequence[int], n_tokens: int) -> list[list[int]]:
        """Which of some prompts, by their lengths, may be continued together, in the order given.

        All of them, if the model can be padded on the left at such lengths; else those of equal
        length. Prompts that grow past a length at which positions are encoded anew are apart from
        the others.
        """
        grows = [self._grows_past(length + n_tokens) for length in lengths]
        # Those that do not grow so far, padded to the longest of them.
        width = (
            max((n for n, more in zip(lengths, grows, strict=True) if not more), default=0)
            + n_tokens
        )
        windows = self.check is not None and bool(self.lengths.switches(width))
        padded = self.pads_left and (len(set(lengths)) == 1 or not windows or self.shares(width))
        groups: dict[tuple[bool, int], list[int]] = {}
        for row, (length, more) in enumerate(zip(lengths, grows, strict=True)):
            groups.setdefault((more, length if more or not padded else 0), []).append(row)
        return list(groups.values())

    def _grows_past(self, length: int) -> bool:
        return self.lengths.kind(length) != 0

    def sample(
        self, prompt: Sequence[int], n_tokens: int, *, top_k: int, seed: int
    ) -> tuple[int, ...]:
        """One seeded random continuation; the global random state is left as it was.

        Raises:
            NotFiniteError: A prediction is NaN or infinite.
        """
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self._generate(
                [prompt], n_tokens, do_sample=True, top_k=top_k, temperature=1.0, top_p=1.0
            )[0]

    def _generate(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: int,
        prefix: DynamicCache | None = None,
        **options: Any,
    ) -> list[tuple[int, ...]]:
        width = max(len(p) for p in prompts)
        out = self._continued(prompts, n_tokens, prefix, **options)
        return [_until(row, self.ends) for row in out[:, width:].tolist()]

    def continued_logits(
        self, prompts: Sequence[Sequence[int]], n_tokens: int
    ) -> tuple[Float[Tensor, "row d_vocab"], ...]:
        """Logits of each step in which prompts are continued greedily together, padded on the
        left.
        """
        settings: dict[str, Any] = {
            "do_sample": False,
            "output_logits": True,
            "return_dict_in_generate": True,
        }
        return self._continued(prompts, n_tokens, **settings).logits

    def _continued(
        self,
        prompts: Sequence[Sequence[int]],
        n_tokens: int,
        prefix: DynamicCache | None = None,
        **options: Any,
    ) -> Any:
        """What Hugging Face's generation returns; prompts of one group (see `groups`)."""
        grows = self._grows_past(max(len(p) for p in prompts) + n_tokens)
        self.lengths.forget()
        n_prefix = 0
        if prefix is not None:
            if grows:
                raise ModelError(
                    f"{self.name}: no prefix holds for texts of more than {self.lengths.rope}"
                    " tokens"
                )
            n_prefix = prefix.get_seq_length()
            rows = torch.zeros(len(prompts), dtype=torch.long, device=self.device)
            options["past_key_values"] = self.rows_of_cache(prefix, rows)
        ids, mask, pad = self._padded_left(prompts, n_prefix)
        # Keys of the beginning are not those of a text that has grown past such a length.
        options["use_cache"] = not grows

        def finite(ids: Tensor, scores: Tensor) -> Tensor:
            require_finite(scores, "a prediction", self)
            return scores

        with torch.no_grad():
            return self._hf_model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=n_tokens,
                pad_token_id=pad,
                logits_processor=LogitsProcessorList([finite]),
                **options,
            )

    def _padded_left(
        self, prompts: Sequence[Sequence[int]], n_prefix: int
    ) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"], int]:
        """Ids, mask, and the padding token. Generation appends on the right, so the padding is on
        the left, behind the prefix; the mask hides it.
        """
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        pad = (end or 0) if pad is None else pad
        width, n = max(len(p) for p in prompts), n_prefix
        ids = [[*p[:n], *[pad] * (width - len(p)), *p[n:]] for p in prompts]
        mask = [[1] * n + [0] * (width - len(p)) + [1] * (len(p) - n) for p in prompts]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device), pad


def _once(act: Hook) -> Hook:
    """A hook that acts the first time only."""
    done = False

    def first(value: Tensor, hook: Any) -> Tensor | None:
        nonlocal done
        if done:
            return None
        done = True
        return act(value, hook)

    return first


class _Enough(StoppingCriteria):
    """Ends each row where its continuation is enough."""

    def __init__(self, stop: Callable[[tuple[int, ...]], bool], width: int) -> None:
        self.stop, self.width = stop, width

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Whether each row is to end."""
        rows = input_ids[:, self.width :].tolist()
        return torch.tensor([self.stop(tuple(row)) for row in rows], device=input_ids.device)


def _until(ids: list[int], ends: Sequence[int]) -> tuple[int, ...]:
    return tuple(takewhile(lambda token: token not in ends, ids))
