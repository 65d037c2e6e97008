"""ROME and r-ROME: one rank-one update of one block per request, one request after the other.

The value v* is searched at the output of the down-projection (so that blocks with a norm behind the
MLP are served too) and W k = v* is imposed with the least change, weighted by the covariance.
`rome_keys`:

- ``consistent`` (r-ROME): one key everywhere, the average over contexts: ΔW k̄ = δ.
- ``original``: direction from the averaged key, constraint at the bare prompt's: ΔW k_p = δ. If the
  two are far apart the update explodes ("disabling edits").

Requests are not solved together: a later one with the same key undoes an earlier one.

Source: Meng et al. 2022 (ROME); Gupta et al. 2024 (Rebuilding ROME).
"""

from collections.abc import Sequence
from contextlib import ExitStack

from editing.closed_form.covariance import Covariances
from editing.closed_form.keys import find_keys
from editing.closed_form.solvers import rank_one
from editing.closed_form.spreading import block_delta, check_model, described
from editing.closed_form.targets import Targets, find_targets
from editing.config import EditorSettings
from editing.edits.delta import EditDelta, merge
from editing.edits.requests import EditRequest
from interp.models.loading import LanguageModel
from interp.settings.sizes import parse_size


def edit(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    layer: int,
    covariances: Covariances,
    contexts: Sequence[str],
    settings: EditorSettings,
    *,
    targets: Targets | None = None,
) -> EditDelta:
    """ROME's updates for the requests at a layer; the model is as before on return, and on error.

    Args:
        model: The model, edited or not: the update is for it as it is now.
        requests: What to change, in order.
        layer: Block.
        covariances: Second moments of the *unedited* model at this block.
        contexts: See `editing.closed_form.contexts`.
        settings: Settings.
        targets: Values v* of all requests, if they are known already; else each is searched on the
            model with the earlier requests' updates.

    Raises:
        DeltaError: The covariances are of another model.
    """
    check_model(model, covariances)
    memory = parse_size(settings.memory)
    parts: list[EditDelta] = []
    losses: list[list[float]] = []
    with ExitStack() as stack:
        for i, request in enumerate(requests):
            found = targets or find_targets(model, [request], layer, contexts, settings, site="mlp")
            at = i if targets else 0
            key = find_keys(model, [request], layer, contexts, settings.lookup, "mean", memory)[0]
            bare = find_keys(model, [request], layer, ("",), settings.lookup, memory=memory)[0]
            written = key if settings.rome_keys == "consistent" else bare
            factor = covariances.factor(layer)
            part = block_delta(
                model, layer, rank_one(found.z[at] - found.initial[at], key, factor, written)
            )
            parts.append(part)
            losses.append(list(found.losses[at]))
            stack.enter_context(part.applied(model))
    about = {
        "editor": "rome",
        "layers": [layer],
        **described(requests, contexts, settings),
        "covariance": covariances.about,
        "losses": losses,
    }
    return merge(parts, about)
