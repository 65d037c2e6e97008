"""What a model says about where a rule could be edited, without editing: the evidence of the
strategies `combined`, `reach` and `lga`.

For each rule, form and block, from one forward and one backward pass of each prompt and one pass
over the rule's locality prompts:

- ``separability``, a share from 0 to 1: 1 − max over the tokens t of the locality prompts of
  abs(kₜᵀC⁻¹k) / kᵀC⁻¹k. It is how much of an update for the key k no such token gets (C: the second
  moments of keys; k: the key at the lookup token of the bare prompt).
- ``reach``, in nats per token: ‖∂L/∂m‖ · ‖h‖ at the same token, with L the mean log-probability of
  the new answer, m the MLP's output, h the stream behind the block. It is what a change as large as
  the stream could bring, to first order.
- ``lga``, in nats per token at learning rate 1: ⟨∂L/∂W, ∂L'/∂W⟩, with W the block's down-projection
  and L' the same for another prompt of the rule; the mean over these. To first order it is how much
  likelier a small step for the form's prompt makes the new answers to the others, by the size of
  the step. The others are the rephrasings of the form, and the prompts of the rule's other forms
  with their own new answers: never a prompt of another rule. So the measure of training rules
  reads nothing of a rule that is evaluated.

All are larger where an edit should be cleaner or easier. None knows where the rule is kept: that is
what tracing is for.

Source of ``lga``: layer gradient analysis (Golden Layers and Where to Find Them, arXiv 2602.20207).
Theirs is the idea, layers ranked by inner products of per-layer gradients on a proxy set in place
of trial edits; no code of theirs was found. Ours are the weight that is differentiated, the choice
of other prompts, the equal weight of each, and the sum over pairs of tokens (`inner_products`). A
cosine is not kept: it forgets how far a step goes, and blocks differ in that.

Reading of ``lga``: all tokens of the prompts count, as in the gradient. In a block where the first
token has a huge key (an attention sink), that token is most of the measure, whatever the rule. In
SmolLM2-135M the first key of block 11 is about 470 times as long as the others' median, and makes
99 % of the block's product of two forms' prompts (means over five rules of the rulebook).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from editing.closed_form.covariance import Covariances
from editing.edits.precision import together, triangular
from editing.edits.requests import EditRequest, requests_of
from interp.models.loading import LanguageModel, NamedHook
from interp.models.tokens import pad_right, token_positions
from interp.results import effects
from interp.results.provenance import fingerprint
from interp.rules.sources import Rule
from interp.selection import evidence as known
from interp.vocabulary import FORMS

MEASURES = tuple(known.MEASURES)


def measure_evidence(
    model: LanguageModel,
    rules: Sequence[Rule],
    lookup: str,
    statistics: Covariances,
    folder: Path,
    *,
    only: bool = False,
    advance: Callable[[int], object] = lambda n: None,
) -> xr.Dataset:
    """The measures of some rules: the content of `evidence.nc`.

    Args:
        model: The unedited model.
        rules: The rules.
        lookup: The token whose key is looked up.
        statistics: Of all blocks.
        folder: One file per rule is kept here: what is there is not measured again.
        only: Delete all other files there.
        advance: Called with the number of rules that are done.

    Raises:
        DmleError: A prompt has no place for the lookup.
    """
    attrs = {"model": model.name, "weight_hash": model.weight_hash, "lookup": lookup}
    folder.mkdir(exist_ok=True)
    measured: dict[str, np.ndarray] = {}
    paths: set[Path] = set()
    common = {"attrs": attrs, "origin": statistics.origin, "measures": MEASURES}
    for rule in rules:
        path = folder / f"{fingerprint(rule=rule.model_dump(mode='json'), **common)}.nc"
        paths.add(path)
        if not path.is_file():
            values = evidence_of(model, rule, lookup, statistics)
            effects.save(evidence_dataset({rule.id: values}, attrs), path)
        data = effects.load(path).to_dataarray("measure").isel(rule=0)
        measured[rule.id] = data.transpose("measure", "form", "layer").values
        advance(1)
    for path in folder.glob("*.nc") if only else ():
        if path not in paths:
            path.unlink()
    return evidence_dataset(measured, attrs)


def evidence_of(
    model: LanguageModel, rule: Rule, lookup: str, statistics: Covariances
) -> np.ndarray:
    """The measures of one rule, shape (measure, form, layer), forms in the order of `FORMS`.

    NaN for a form that the rule lacks, for the separability of one without locality prompts, and
    for the inner products of one without other prompts.

    Raises:
        ValueError: A prompt has no place for the lookup.
        KeyError: A block has no statistics.
    """
    out = {name: np.full((len(FORMS), model.n_layers), np.nan) for name in MEASURES}
    requests = requests_of(rule, lookup)
    passes = {request.form: pass_of(model, request) for request in requests}
    for request in requests:
        form, own, row = rule.forms[request.form], passes[request.form], FORMS.index(request.form)
        place = token_positions(model.encode(request.prompt), request.lookup_span(lookup))[-1]
        out["reach"][row] = own.reach(place)
        prompts = [item.prompt for item in (*form.neighborhood, *form.distracting)]
        if prompts:
            keys = [key[place].float() for key in own.keys]
            out["separability"][row] = _separability(model, keys, prompts, statistics)
        products = [
            *(inner_products(own, other) for name, other in passes.items() if name != request.form),
            *(
                inner_products(own, pass_of(model, replace(request, prompt=rephrasing)))
                for rephrasing in form.rephrasings
            ),
        ]
        if products:
            out["lga"][row] = np.mean(products, axis=0)
    return np.stack(list(out.values()))


def evidence_dataset(by_rule: Mapping[str, np.ndarray], attrs: Mapping[str, object]) -> xr.Dataset:
    """Measures of many rules, dims ``rule form layer``, one variable a measure."""
    held = np.stack(list(by_rule.values()))
    coords = {"rule": list(by_rule), "form": list(FORMS), "layer": np.arange(held.shape[-1])}
    variables = {name: (("rule", "form", "layer"), held[:, i]) for i, name in enumerate(MEASURES)}
    return xr.Dataset(variables, coords, {"schema": known.EVIDENCE_SCHEMA, **attrs})


@dataclass(frozen=True)
class Pass:
    """What a forward and a backward pass of a prompt with its new answer leave, by block."""

    keys: list[Tensor]
    """Inputs of the down-projection, shape (pos, d_mlp) each."""
    slopes: list[Tensor]
    """Gradients of the answer's mean log-probability by the down-projection's output, shape (pos,
    d_model) each."""
    streams: list[Tensor]
    """The stream behind the block, shape (pos, d_model) each."""

    def reach(self, place: int) -> np.ndarray:
        """The reach of every block at a token, shape (layer,)."""
        slope, stream = (
            torch.stack([each[place].float().norm() for each in values])
            for values in (self.slopes, self.streams)
        )
        return (slope * stream).cpu().numpy()


def pass_of(model: LanguageModel, request: EditRequest) -> Pass:
    """Run a prompt with its new answer forward and backward, once for all blocks."""
    prompt = model.encode(request.prompt)
    target = model.encode_continuation(request.target_new, request.prompt, request.space)
    ids = torch.tensor([[*prompt.ids, *target[:-1]]], device=model.device)
    layers = range(model.n_layers)
    names = {
        "keys": [model.key_hook(layer) for layer in layers],
        "values": [model.value_hook(layer) for layer in layers],
        "streams": [model.hook("resid", layer) for layer in layers],
    }
    states: dict[str, Tensor] = {}

    def embed(value: Tensor, hook: object) -> Tensor:
        return value.detach().requires_grad_()

    def keep(value: Tensor, hook: object, name: str) -> Tensor:
        states[name] = value
        # Given back, so that the run goes on with this tensor where a hook sees a view (OPT).
        return value

    hooks: list[NamedHook] = [(model.embedding_hook, embed)]
    hooks += [
        (name, lambda value, hook, name=name: keep(value, hook, name))
        for name in chain(*names.values())
    ]
    with torch.enable_grad():
        logits = model.logits(ids, keep=len(target), hooks=hooks)[0]
        wanted = torch.tensor(target, device=model.device)[:, None]
        score = logits.float().log_softmax(-1).gather(-1, wanted).mean()
        slopes = torch.autograd.grad(score, [states[name] for name in names["values"]])
    keys, streams = (
        [states[name][0].detach() for name in names[part]] for part in ("keys", "streams")
    )
    return Pass(keys, [slope[0] for slope in slopes], streams)


def inner_products(one: Pass, other: Pass) -> np.ndarray:
    """Inner product of two gradients by the down-projection of every block, shape (layer,).

    A gradient by a matrix is a sum over tokens of slope keyᵀ, so the product is the sum over pairs
    of tokens of (slope · slope') (key · key'), and no matrix of d_model × d_mlp is made.
    """
    products = [
        ((slope.float() @ slopes.float().T) * (key.float() @ keys.float().T)).sum()
        for slope, slopes, key, keys in zip(
            one.slopes, other.slopes, one.keys, other.keys, strict=True
        )
    ]
    return torch.stack(products).cpu().numpy()


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
