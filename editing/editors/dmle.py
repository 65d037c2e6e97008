"""DMLE: distributed multi-layer editing of a rule, by groups of forms, over any closed form.

Formula and description share an update in their layers (early ones in the paper), instances get
their own (middle ones). What keeps the groups apart is a choice:

- ``staged``: one stage after the other, as in the published driver. Targets, keys and residuals of
  a stage are those of the model with the earlier stages' edits in place, and nothing protects
  these.
- ``protected``: staged, and a later stage leaves the output of every token of the earlier stages'
  prompts and answers exactly as it is. A request whose lookup token has the same text before it as
  an edited prompt has the same key, and then cannot be served at all: use another lookup.
- ``joint``: one problem per layer over all forms. Targets are searched on the unedited model, each
  at the last of its group's layers, and at layers of other groups a request takes part with the
  wish to stay.

Statistics are always of the unedited model.

Source: arXiv 2604.08284 and its published driver (MEMIT, staged); the other solvers and protections
are ours.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from editing.closed_form.covariance import Covariances
from editing.closed_form.spreading import (
    Others,
    check_model,
    described,
    edit_block,
    site_of,
    spread,
)
from editing.closed_form.targets import Targets, find_targets
from editing.config import EditorSettings
from editing.editors import alphaedit, emmet, memit
from editing.edits.delta import EditDelta, merge
from editing.edits.requests import EditRequest, of_forms
from interp.models.loading import LanguageModel
from interp.selection.layers import LayerSelection

SOLVERS = {"memit": memit.solver, "alphaedit": alphaedit.solver, "emmet": emmet.solver}


def edit(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    selection: LayerSelection,
    covariances: Covariances,
    contexts: Sequence[str],
    settings: EditorSettings,
    *,
    earlier: Sequence[EditRequest] = (),
) -> EditDelta:
    """Edit the groups of forms of a selection; the model is as before on return, and on error.

    Args:
        model: The model, edited or not: the update is for it as it is now.
        requests: What to change. Groups without a request are passed over.
        selection: Layers of each group of forms.
        covariances: Second moments of the unedited model at (at least) these layers.
        contexts: See `editing.closed_form.contexts`.
        settings: Solver, protection and the rest.
        earlier: Requests of earlier edits in a sequence, for solvers that have a term for them.

    Raises:
        KeyError: A request's form is in no group of the selection.
        DeltaError: The covariances are of another model, or the model's blocks do not allow it.
    """
    for request in requests:
        selection.group_of(request.form)
    check_model(model, covariances)
    solve = SOLVERS[settings.solver](covariances, settings)
    about: dict[str, Any] = {
        "editor": "dmle",
        "layers": {group.name: list(group.layers) for group in selection.groups},
        **described(requests, contexts, settings),
        "covariance": covariances.about,
    }
    if settings.protection == "joint":
        plan = [selection.layers_of(request.form) for request in requests]
        targets = _joint_targets(model, requests, plan, contexts, settings)
        parts, found = spread(
            model,
            requests,
            plan,
            targets,
            contexts,
            settings,
            solve,
            others=Others(earlier=earlier),
        )
        return merge(parts, {**about, **found})
    stages: list[EditDelta] = []
    edited: list[EditRequest] = []
    with ExitStack() as stack:
        for group in selection.groups:
            if not (chosen := of_forms(requests, group.forms)):
                continue
            others = Others(tuple(edited) if settings.protection == "protected" else (), earlier)
            stage = edit_block(
                settings.solver,
                model,
                chosen,
                group.layers,
                covariances,
                contexts,
                settings,
                solve,
                others=others,
            )
            stack.enter_context(stage.applied(model))
            stages.append(stage)
            edited += chosen
    return merge(stages, {**about, "stages": [dict(stage.about) for stage in stages]})


def _joint_targets(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    plan: Sequence[Sequence[int]],
    contexts: Sequence[str],
    settings: EditorSettings,
) -> Targets:
    """Targets of all requests on the model as it is, each at the last of its own layers."""
    site = site_of(model, plan)
    found: dict[int, tuple[torch.Tensor, torch.Tensor, tuple[float, ...]]] = {}
    for layer in sorted({layers[-1] for layers in plan}):
        at = [i for i, layers in enumerate(plan) if layers[-1] == layer]
        part = find_targets(model, [requests[i] for i in at], layer, contexts, settings, site=site)
        found |= {i: (part.z[j], part.initial[j], part.losses[j]) for j, i in enumerate(at)}
    z, initial, losses = zip(*(found[i] for i in range(len(requests))), strict=True)
    return Targets(torch.stack(z), torch.stack(initial), losses)
