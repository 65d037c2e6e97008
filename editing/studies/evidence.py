"""What a model says about where a rule could be edited, without editing: the evidence of the
strategy `combined`.

For each rule, form and block, at the lookup token of the bare prompt, from one forward and one
backward pass and one pass over the rule's locality prompts:

- ``separability``, a share from 0 to 1: 1 − max over the tokens t of the locality prompts of
  abs(kₜᵀC⁻¹k) / kᵀC⁻¹k. It is how much of an update for the key k no such token gets (C: the second
  moments of keys).
- ``reach``, in nats per token: ‖∂L/∂m‖ · ‖h‖, with L the mean log-probability of the new answer, m
  the MLP's output, h the stream behind the block. It is what a change as large as the stream could
  bring, to first order.

Both are larger where an edit should be cleaner or easier. Neither knows where the rule is kept:
that is what tracing is for.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.closed_form.precision import together, triangular
from editing.edits.requests import EditRequest, requests_of
from interp.models.loading import LanguageModel, NamedHook
from interp.models.tokens import pad_right, token_positions
from interp.rules.sources import Rule
from interp.selection.select import EVIDENCE_SCHEMA
from interp.vocabulary import FORMS

MEASURES = ("separability", "reach")


def evidence_of(
    model: LanguageModel, rule: Rule, lookup: str, statistics: Covariances
) -> np.ndarray:
    """The measures of one rule, shape (measure, form, layer), forms in the order of `FORMS`.

    NaN for a form that the rule lacks, and for the separability of one without locality prompts.

    Raises:
        ValueError: A prompt has no place for the lookup.
        KeyError: A block has no statistics.
    """
    out = np.full((len(MEASURES), len(FORMS), model.n_layers), np.nan)
    for request in requests_of(rule, lookup):
        form = rule.forms[request.form]
        prompts = [item.prompt for item in (*form.neighborhood, *form.distracting)]
        at = FORMS.index(request.form)
        keys, out[1, at] = _at_lookup(model, request, lookup)
        if prompts:
            out[0, at] = _separability(model, keys, prompts, statistics)
    return out


def evidence_dataset(by_rule: Mapping[str, np.ndarray], attrs: Mapping[str, object]) -> xr.Dataset:
    """Measures of many rules, dims ``rule form layer``, one variable a measure."""
    held = np.stack(list(by_rule.values()))
    coords = {"rule": list(by_rule), "form": list(FORMS), "layer": np.arange(held.shape[-1])}
    variables = {name: (("rule", "form", "layer"), held[:, i]) for i, name in enumerate(MEASURES)}
    return xr.Dataset(variables, coords, {"schema": EVIDENCE_SCHEMA, **attrs})


def _at_lookup(
    model: LanguageModel, request: EditRequest, lookup: str
) -> tuple[list[Tensor], np.ndarray]:
    """Key of each block, and its reach."""
    prompt = model.encode(request.prompt)
    target = model.encode_continuation(request.target_new, request.prompt, request.space)
    at = token_positions(prompt, request.lookup_span(lookup))[-1]
    ids = torch.tensor([[*prompt.ids, *target[:-1]]], device=model.device)
    layers = range(model.n_layers)
    names = [name(layer) for layer in layers for name in (model.key_hook, model.value_hook)]
    names += [model.hook("resid", layer) for layer in layers]
    held: dict[str, Tensor] = {}

    def embed(value: Tensor, hook: object) -> Tensor:
        return value.detach().requires_grad_()

    def keep(value: Tensor, hook: object, name: str) -> Tensor:
        held[name] = value
        # Given back, so that the run goes on with this tensor where a hook sees a view (OPT).
        return value

    hooks: list[NamedHook] = [(model.embedding_hook, embed)]
    hooks += [(name, lambda value, hook, name=name: keep(value, hook, name)) for name in names]
    with torch.enable_grad():
        logits = model.logits(ids, keep=len(target), hooks=hooks)[0]
        wanted = torch.tensor(target, device=model.device)[:, None]
        score = logits.float().log_softmax(-1).gather(-1, wanted).mean()
        gradients = torch.autograd.grad(score, [held[model.value_hook(layer)] for layer in layers])
    stream = torch.stack(
        [held[model.hook("resid", layer)][0, at].detach().float().norm() for layer in layers]
    )
    slope = torch.stack([gradient[0, at].float().norm() for gradient in gradients])
    keys = [held[model.key_hook(layer)][0, at].detach().float() for layer in layers]
    return keys, (slope * stream).cpu().numpy()


def _separability(
    model: LanguageModel, keys: Sequence[Tensor], prompts: Sequence[str], statistics: Covariances
) -> np.ndarray:
    ids, mask = pad_right([model.encode(prompt).ids for prompt in prompts], model.device)
    names = [model.key_hook(layer) for layer in range(model.n_layers)]
    seen = model.capture(ids, names, mask=mask)
    out = []
    for layer, key in enumerate(keys):
        others, one, factor = together(
            seen[names[layer]][mask.bool()], key, statistics.factor(layer)
        )
        read = triangular(factor, triangular(factor, one[:, None]), transposed=True)[:, 0]
        out.append(1 - float(abs(others @ read).max() / (one @ read)))
    return np.clip(out, 0, 1)
