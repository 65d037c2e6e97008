"""MEMIT: write the targets of all requests into a range of blocks by the ridge closed form.

Targets z are found once, at the last of the layers. Then block by block, each on the model with the earlier
blocks already updated: the residual that is still missing at the last layer is divided by the number of
blocks left, and the block's down-projection is changed so that the requests' keys give their share.

Source: Meng et al. 2023 (MEMIT), algorithm 1; `interp` conventions for layers (0-based).
"""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor

from editing.config import EditConfig
from editing.covariance import Covariances
from editing.delta import DeltaError, EditDelta, merge
from editing.keys import find_keys, find_states
from editing.requests import EditRequest
from editing.solvers import LowRank, factorise, ridge
from editing.targets import Targets, find_targets
from interp.model import LanguageModel

COLLINEAR = 0.999


def edit(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    covariances: Covariances,
    contexts: Sequence[str],
    config: EditConfig,
    *,
    targets: Targets | None = None,
) -> EditDelta:
    """MEMIT's update for the requests at the layers; the model is as before on return, and on error.

    Args:
        model: The model, edited or not: the update is for it as it is now.
        requests: What to change.
        layers: Blocks, ascending.
        covariances: Second moments of the *unedited* model at (at least) these blocks.
        contexts: See `editing.contexts`.
        config: Settings.
        targets: Targets to write, if they are known already.

    Raises:
        DeltaError: The covariances are of another model, or the block normalises the MLP's output, so that
            an update does not move the residual stream by itself.
    """
    if covariances.model_hash != model.weight_hash:
        raise DeltaError(
            f"the covariances are of weights {covariances.model_hash}, the model has {model.weight_hash}; "
            "measure them again"
        )
    if model.check is not None and model.check.post_norm:
        raise DeltaError(
            f"{model.name} normalises the MLP output before adding it to the stream, so MEMIT's spreading of the "
            "residual over layers does not hold there; edit a model without post-norms"
        )
    last = layers[-1]
    targets = targets or find_targets(model, requests, last, contexts, config)
    parts: list[EditDelta] = []
    notes: list[dict[str, object]] = []
    with ExitStack() as stack:
        for i, layer in enumerate(layers):
            keys = find_keys(model, requests, layer, contexts, config.lookup)
            residual = (targets.z - find_states(model, requests, last, config.lookup)) / (len(layers) - i)
            factor = factorise(covariances.by_layer[layer].to(keys.device))
            weight = config.ridge * keys.shape[1]
            part = _delta(model, layer, ridge(residual.T, keys.T, factor, weight))
            notes += [{"layer": layer, **pair} for pair in collinear_keys(keys, residual, requests)]
            parts.append(part)
            stack.enter_context(part.applied(model))
        remaining = (targets.z - find_states(model, requests, last, config.lookup)).norm(dim=-1)
    wanted = (targets.z - targets.initial).norm(dim=-1)
    about = {
        "editor": "memit",
        "layers": list(layers),
        "requests": [dataclasses.asdict(request) for request in requests],
        "contexts": list(contexts),
        "settings": config.model_dump(mode="json"),
        "covariance": covariances.about,
        "losses": [list(one) for one in targets.losses],
        "residual_left": (remaining / wanted.clamp_min(1e-12)).tolist(),
        "collinear_keys": notes,
    }
    return merge(parts, about)


def collinear_keys(
    keys: Float[Tensor, "n d_mlp"], residual: Float[Tensor, "n d_model"], requests: Sequence[EditRequest]
) -> list[dict[str, object]]:
    """Pairs of requests whose keys point the same way while they want different changes.

    One linear map cannot serve both: the closed form averages them. Another lookup or separate layers help.
    """
    unit = torch.nn.functional.normalize(keys, dim=-1)
    cosine = unit @ unit.T
    pairs = []
    for i in range(len(requests)):
        for j in range(i):
            if cosine[i, j] > COLLINEAR and not torch.allclose(residual[i], residual[j]):
                pairs.append({"forms": [requests[j].form, requests[i].form], "cosine": cosine[i, j].item()})
    return pairs


def _delta(model: LanguageModel, layer: int, update: LowRank) -> EditDelta:
    name = model.down_projection(layer).name
    # float32 factors: what is stored is what is applied, now and after loading.
    stored = LowRank(update.left.float(), update.right.float())
    return EditDelta({name: stored}, {name: layer}, model.weight_hash)
