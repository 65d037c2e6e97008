"""DMLE: distributed multi-layer editing of a rule, by groups of forms, over any solver: a closed
form, or fine-tuning in whitened coordinates.

Formula and description share an update in their layers (early ones in the paper), instances get
their own (middle ones). What keeps the groups apart is a choice:

``staged``
    One stage after the other, as in the published driver: targets, keys and residuals of a stage
    are those of the model with the earlier stages' edits in place, and nothing protects these.
``protected``
    Staged, and a later stage leaves the output of every token of the earlier stages' prompts and
    answers exactly as it is. A request whose lookup token has the same text before it as an edited
    prompt has the same key, and then cannot be served at all: use another lookup.
``joint``
    One problem per layer over all forms: targets are searched on the unedited model, each at the
    last of its group's layers, and at layers of other groups a request takes part with the wish to
    stay.

A solver that trains has no keys and no targets. Protected, it keeps the answers of earlier stages
in its loss; joint, it trains all layers at once, each on the loss of its own group.

Statistics are always of the unedited model.

Source: arXiv 2604.08284 and its published driver (MEMIT, staged); the other solvers and protections
    are ours.
"""

from contextlib import ExitStack
from dataclasses import replace

from editing.closed_form.workbench import Workbench
from editing.editors.registry import register, solver
from editing.edits.delta import EditDelta, merge
from editing.edits.requests import EditRequest, of_forms
from interp.selection.layers import LayerSelection


@register("dmle", needs=("groups",))
def edit(bench: Workbench) -> EditDelta:
    """Edit the groups of forms of a selection; the model is as before on return, and on error.

    Groups without a request are passed over.

    Raises:
        InputError: A request's form is in no group of the selection.
        EditError: The covariances are of another model, or the model's blocks do not allow it.
    """
    selection = bench.selection
    _, edit_jointly = solver(bench.settings.solver)
    assert selection is not None
    for request in bench.requests:
        selection.group_of(request.form)
    # Here, since statistics and contexts are of the model before any stage.
    layers = sorted({layer for group in selection.groups for layer in group.layers})
    report = bench.report(
        layers={group.name: list(group.layers) for group in selection.groups},
        contexts=list(bench.contexts),
        covariance=bench.covariances(layers).about,
        own=_own_layers(bench),
    )
    if bench.settings.protection == "joint":
        plan = [selection.layers_of(request.form) for request in bench.requests]
        return edit_jointly(bench, plan, report)
    stages = _stages(bench, selection)
    return merge(stages, report.with_values(stages=[stage.report for stage in stages]))


def _own_layers(bench: Workbench) -> dict[str, str]:
    """Whose the layers are, where they are of one rule alone."""
    return {} if bench.of_rules is None else {"own_layers_of": bench.requests[0].rule}


def _stages(bench: Workbench, selection: LayerSelection) -> list[EditDelta]:
    """One edit for each group of forms, each on the model as the ones before leave it."""
    edit_group, _ = solver(bench.settings.solver)
    stages: list[EditDelta] = []
    edited: list[EditRequest] = []
    with ExitStack() as stack:
        for group in selection.groups:
            if not (requests := of_forms(bench.requests, group.forms)):
                continue
            protected = tuple(edited) if bench.settings.protection == "protected" else ()
            stage = edit_group(
                replace(bench, requests=requests, layers=group.layers, protected=protected)
            )
            stack.enter_context(stage.applied(bench.model))
            stages.append(stage)
            edited += requests
    return stages
