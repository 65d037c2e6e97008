"""Slow references of the editing tests: plain Hugging Face modules and torch hooks, one prompt at a
time, unpadded.

Nothing of `editing` is used but the request's fields; positions come from the tokenizer's own
`char_to_token`, never from `interp.models.tokens`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from editing.edits.requests import EditRequest

SUBJECT = "subject_last"
Solve = Callable[[str, int, Tensor, Tensor], Tensor]
"""Parameter, layer, keys and residuals to the update of a block (see `updates_by_block`)."""


def place(request: EditRequest, lookup: str = SUBJECT) -> int:
    """Character of the prompt at whose token the edit looks the rule up, found with `str`
    methods."""
    text = request.prompt
    if lookup == "last":
        return len(text.rstrip()) - 1
    if lookup == "rule_word_last":
        return (
            max(text.lower().rindex(w) + len(w) for w in request.rule_words if w in text.lower())
            - 1
        )
    return text.index(request.subject) + len(request.subject) - 1


def tokens_and_place(tokenizer: Any, text: str, character: int) -> tuple[Tensor, int]:
    """Token ids (1, pos) of a text, and the token that holds a character."""
    encoded = tokenizer(text)
    return torch.tensor([encoded["input_ids"]]), encoded.char_to_token(character)


def block_of(hf: nn.Module, parameter: str, layer: int) -> nn.Module:
    """The block that holds a parameter, by the parameter's name."""
    return hf.get_submodule(parameter.split(f".{layer}.")[0] + f".{layer}")


def projection_of(hf: nn.Module, parameter: str) -> nn.Module:
    return hf.get_submodule(parameter.removesuffix(".weight"))


def matrix_of(hf: nn.Module, parameter: str) -> Tensor:
    """The down-projection as (d_model, d_mlp), a view of the parameter."""
    module = projection_of(hf, parameter)
    weight = module.get_parameter("weight")
    return weight.T if isinstance(module, _conv1d()) else weight


def inputs_of(hf: nn.Module, module: nn.Module, ids: Tensor) -> Tensor:
    """What a module reads, (pos, d)."""
    seen: list[Tensor] = []
    with _hooked(
        module.register_forward_pre_hook(lambda m, args: seen.append(args[0][0].detach().clone()))
    ):
        _run(hf, ids)
    return seen[0]


def outputs_of(hf: nn.Module, module: nn.Module, ids: Tensor) -> Tensor:
    """What a module gives, (pos, d)."""
    seen: list[Tensor] = []
    with _hooked(
        module.register_forward_hook(
            lambda m, args, out: seen.append(_first(out)[0].detach().clone())
        )
    ):
        _run(hf, ids)
    return seen[0]


def key(
    hf: nn.Module, tokenizer: Any, request: EditRequest, parameter: str, context: str, lookup: str
) -> Tensor:
    ids, at = tokens_and_place(
        tokenizer, context + request.prompt, len(context) + place(request, lookup)
    )
    return inputs_of(hf, projection_of(hf, parameter), ids)[at]


def state(
    hf: nn.Module,
    tokenizer: Any,
    request: EditRequest,
    parameter: str,
    layer: int,
    lookup: str = SUBJECT,
) -> Tensor:
    ids, at = tokens_and_place(tokenizer, request.prompt, place(request, lookup))
    return outputs_of(hf, block_of(hf, parameter, layer), ids)[at]


def averaged_key(
    hf: nn.Module,
    tokenizer: Any,
    request: EditRequest,
    parameter: str,
    contexts: Sequence[str],
    lookup: str = SUBJECT,
) -> Tensor:
    """The bare prompt counts one half, the others share the other half (methods.md 2.1)."""
    each = [key(hf, tokenizer, request, parameter, context, lookup) for context in contexts]
    if len(each) == 1:
        return each[0]
    weights = [0.5, *[0.5 / (len(each) - 1)] * (len(each) - 1)]
    return torch.stack([w * k for w, k in zip(weights, each, strict=True)]).sum(0)


def search_target(
    hf: nn.Module,
    tokenizer: Any,
    request: EditRequest,
    parameter: str,
    layer: int,
    contexts: Sequence[str],
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float,
    kl_factor: float,
    clamp: float,
    stop_loss: float,
    lookup: str = SUBJECT,
    reverse_kl: bool = False,
    squared_decay: bool = False,
) -> tuple[Tensor, Tensor, list[dict[str, float]]]:
    """z, the unchanged state h, and the parts of the loss at each evaluation; one forward pass per
    text.

    `reverse_kl` and `squared_decay` make it wrong on purpose, to show that a test would notice.
    """
    target = tokenizer(" " + request.target_new, add_special_tokens=False)["input_ids"]
    at_end = place(request, lookup)
    # The words looked up stand at the start of the preserved sentence.
    start = (
        request.prompt.index(request.subject)
        if lookup == SUBJECT
        else _word_start(request.prompt, at_end)
    )
    phrase = request.prompt[start : at_end + 1]
    kept_ids, kept_at = tokens_and_place(tokenizer, f"{phrase} is a", len(phrase) - 1)
    block = block_of(hf, parameter, layer)
    initial = state(hf, tokenizer, request, parameter, layer, lookup)
    delta = torch.zeros_like(initial, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=learning_rate)
    base: Tensor | None = None
    trace: list[dict[str, float]] = []

    def log_probs(ids: Tensor, at: int) -> Tensor:
        def add(module: nn.Module, args: Any, out: Any) -> Any:
            value = _first(out).clone()
            value[0, at] = value[0, at] + delta
            return (value, *out[1:]) if isinstance(out, tuple) else value

        with _hooked(block.register_forward_hook(add)):
            return hf(ids).logits[0].log_softmax(-1)

    for step in range(steps):
        nll = torch.zeros(())
        for context in contexts:
            ids, at = tokens_and_place(tokenizer, context + request.prompt, len(context) + at_end)
            length = ids.shape[1]
            said = log_probs(torch.cat([ids, torch.tensor([target])], 1), at)
            each = [said[length - 1 + j, token] for j, token in enumerate(target)]
            nll = nll - sum(each) / len(target) / len(contexts)
        now = log_probs(kept_ids, kept_at)[kept_at]
        base = now.detach() if base is None else base
        first, second = (now, base) if reverse_kl else (base, now)
        # kl_div(a, b) = Σ exp(b) (b − a): of what the edited model says, relative to what it said.
        kl = nn.functional.kl_div(first, second, log_target=True, reduction="sum")
        decay = delta.norm() / initial.norm() ** 2
        if squared_decay:
            decay = delta.norm() ** 2 / initial.norm() ** 2
        loss = nll + kl_factor * kl + weight_decay * decay
        trace.append(
            {"loss": loss.item(), "nll": nll.item(), "kl": kl.item(), "decay": decay.item()}
        )
        if loss.item() < stop_loss or step == steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            limit = clamp * initial.norm()
            if delta.norm() > limit:
                delta.copy_(delta * limit / delta.norm())
    return initial + delta.detach(), initial, trace


def updates_by_block(
    hf: nn.Module,
    tokenizer: Any,
    requests: Sequence[EditRequest],
    parameters: Sequence[str],
    layers: Sequence[int],
    z: Tensor,
    contexts: Sequence[str],
    solve: Solve,
    lookup: str = SUBJECT,
) -> dict[str, Tensor]:
    """Updates (d_model, d_mlp) of a closed form by parameter; they are left in the model's weights.

    `parameters` are those of the layers, in order. Each block takes an equal share of what is left
    to the targets: `solve(parameter, layer, K, R)` gives its update, with a column of K (d_mlp, n)
    and of R (d_model, n) for each request, in float64.
    """
    updates: dict[str, Tensor] = {}
    for i, (parameter, layer) in enumerate(zip(parameters, layers, strict=True)):
        keys = [averaged_key(hf, tokenizer, r, parameter, contexts, lookup) for r in requests]
        now = [state(hf, tokenizer, r, parameters[-1], layers[-1], lookup) for r in requests]
        residual = (z - torch.stack(now)).double() / (len(layers) - i)
        updates[parameter] = solve(parameter, layer, torch.stack(keys).double().T, residual.T)
        with torch.no_grad():
            matrix_of(hf, parameter).add_(updates[parameter].float())
    return updates


def memit(covariance: dict[int, Tensor], weight: float) -> Solve:
    """MEMIT's ΔW = R Kᵀ (λC + K Kᵀ)⁻¹ with an explicit inverse, for `updates_by_block`."""

    def solve(parameter: str, layer: int, k: Tensor, residual: Tensor) -> Tensor:
        return residual @ k.T @ torch.linalg.inv(weight * covariance[layer].double() + k @ k.T)

    return solve


def loss_of_answers(hf: nn.Module, tokenizer: Any, requests: Sequence[EditRequest]) -> Tensor:
    """Cross-entropy of the new answers: the mean over tokens, then over requests, one run each."""
    each = []
    for request in requests:
        prompt = tokenizer(request.prompt)["input_ids"]
        target = tokenizer(" " + request.target_new, add_special_tokens=False)["input_ids"]
        logits = hf(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        each.append(nn.functional.cross_entropy(logits, torch.tensor(target)))
    return torch.stack(each).mean()


def second_moment(hf: nn.Module, parameter: str, rows: Iterable[Sequence[int]]) -> Tensor:
    """Mean of k kᵀ over every token, one outer product at a time, in float64."""
    module = projection_of(hf, parameter)
    products = [
        torch.outer(k.double(), k.double())
        for row in rows
        for k in inputs_of(hf, module, torch.tensor([list(row)]))
    ]
    return torch.stack(products).mean(0)


def _run(hf: nn.Module, ids: Tensor) -> None:
    with torch.no_grad():
        hf(ids)


def _first(out: Any) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _word_start(text: str, end: int) -> int:
    """Start of the word that ends at a character, or the character itself where it ends no word."""
    start = end
    while start > 0 and text[end].isalnum() and text[start - 1].isalnum():
        start -= 1
    return start


def _conv1d() -> type[nn.Module]:
    from transformers.pytorch_utils import Conv1D

    return Conv1D


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
