"""ROME and r-ROME: one rank-one update of one block per request, one request after the other.

The value v* is searched at the output of the down-projection (so that blocks with a norm behind the
MLP are served too) and W k = v* is imposed with the least change, weighted by the covariance.
`rome_keys`:

``consistent`` (r-ROME)
    One key everywhere, the average over contexts: ΔW k̄ = δ.
``original``
    The direction is from the averaged key, the constraint at the bare prompt's: ΔW k_p = δ. If the
    two are far apart the update explodes ("disabling edits").

Requests are not solved together: a later one with the same key undoes an earlier one.

Source: Meng et al. 2022 (ROME); Gupta et al. 2024 (Rebuilding ROME).
"""

from contextlib import ExitStack

from editing.closed_form.keys import find_keys
from editing.closed_form.solvers import rank_one
from editing.closed_form.spreading import block_delta, protected_keys
from editing.closed_form.targets import Targets, find_targets
from editing.closed_form.workbench import Workbench
from editing.editors.registry import EXTRAS, register
from editing.edits.delta import EditDelta, merge
from interp.settings.sizes import parse_size


@register("rome", needs=("statistics", "lookup"), blocks=(5,), one_block=True, honours=EXTRAS)
def edit(bench: Workbench, *, targets: Targets | None = None) -> EditDelta:
    """ROME's updates for the requests at a block; the model is as before on return, and on error.

    Args:
        bench: Model, requests in order, statistics and settings.
        targets: Values v* of all requests, if they are known already; else each is searched on the
            model with the earlier requests' updates.

    Raises:
        EditError: The covariances are of another model.
    """
    model, settings, (layer,) = bench.model, bench.settings, bench.layers
    covariances, contexts = bench.covariances([layer]), bench.contexts
    lookup, memory = settings.lookup, parse_size(settings.memory)
    # Keys of this block, which its updates do not change.
    kept = protected_keys(bench, layer)
    parts: list[EditDelta] = []
    losses: list[list[float]] = []
    with ExitStack() as stack:
        for i, request in enumerate(bench.requests):
            found = targets or find_targets(model, [request], layer, contexts, settings, site="mlp")
            row = i if targets else 0
            key = find_keys(model, [request], layer, contexts, lookup, "mean", memory)[0]
            bare = find_keys(model, [request], layer, ("",), lookup, memory=memory)[0]
            written = key if settings.rome_keys == "consistent" else bare
            change = found.z[row] - found.initial[row]
            update = rank_one(change, key, covariances.factor(layer), written, kept)
            part = block_delta(model, layer, update)
            parts.append(part)
            losses.append(list(found.losses[row]))
            stack.enter_context(part.applied(model))
    return merge(
        parts,
        bench.report(contexts=list(contexts), covariance=covariances.about, losses=losses),
    )
