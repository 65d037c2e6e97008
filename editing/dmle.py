"""DMLE: distributed multi-layer editing of a rule, one stage per group of forms.

Formula and description share an update in their layers (early ones in the paper), instances get their own
(middle ones). Stages follow each other: targets, keys and residuals of a stage are those of the model with
the earlier stages' edits in place, as in the published driver. Statistics are of the unedited model.

Source: arXiv 2604.08284 and its published driver, which runs MEMIT once per stage.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack

from editing import memit
from editing.config import EditConfig
from editing.covariance import Covariances
from editing.delta import EditDelta, merge
from editing.requests import EditRequest, of_forms
from interp.model import LanguageModel
from interp.selection import LayerSelection


def edit(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    selection: LayerSelection,
    covariances: Covariances,
    contexts: Sequence[str],
    config: EditConfig,
) -> EditDelta:
    """Edit the groups of forms of a selection one after the other; the model is as before on return.

    Groups without a request are passed over; a request whose form is in no group is an error.

    Raises:
        KeyError: A request's form is in no group of the selection.
    """
    for request in requests:
        selection.group_of(request.form)
    stages: list[EditDelta] = []
    with ExitStack() as stack:
        for group in selection.groups:
            chosen = of_forms(requests, group.forms)
            if not chosen:
                continue
            stage = memit.edit(model, chosen, group.layers, covariances, contexts, config)
            stack.enter_context(stage.applied(model))
            stages.append(stage)
    about = {
        "editor": "dmle",
        "layers": {group.name: list(group.layers) for group in selection.groups},
        "requests": [dataclasses.asdict(request) for request in requests],
        "contexts": list(contexts),
        "settings": config.model_dump(mode="json"),
        "stages": [dict(stage.about) for stage in stages],
    }
    return merge(stages, about)
