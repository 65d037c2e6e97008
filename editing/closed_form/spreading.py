"""Write targets into blocks: the loop that MEMIT, AlphaEdit, EMMET and DMLE share. They differ in
the closed form.

Block by block, each on the model with the earlier blocks already updated: what a request still
lacks at the last of its blocks is divided by the number of blocks it has left, and the block's
down-projection is changed so that the requests' keys give their share.

Where a block normalises the MLP's output before adding it (Gemma 3), a change of that output is not
a change of the stream, and shares do not add up. There the target is the output of the
down-projection itself, in one block per request.

With `edit.targets=replayed` every block has targets of its own, and writes its whole residual (see
`editing.closed_form.replay`).

Source: Meng et al. 2023 (MEMIT), algorithm 1. Layers are 0-based.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from editing.closed_form.covariance import Covariances
from editing.closed_form.keys import KeysInTurn, find_keys, find_states, keys_of_prompts
from editing.closed_form.replay import replayed_targets
from editing.closed_form.target_batches import Site
from editing.closed_form.targets import Targets, find_targets, state_hook
from editing.closed_form.workbench import Workbench
from editing.config import EditorSettings
from editing.edits.delta import EditDelta, merge
from editing.edits.low_rank import LowRank
from editing.edits.precision import as_tensor, together
from editing.edits.protocol import EditError
from editing.edits.report import EditReport
from editing.edits.requests import EditRequest
from interp.models.loading import LanguageModel
from interp.settings.sizes import parse_size

COLLINEAR = 0.999
NO_CHANGE = 1e-6
"""A target nearer to the state than this share of the state's norm is the state."""


@dataclass(frozen=True)
class Problem:
    """One block's problem: which update gives the keys the change of output that is wanted?

    Attributes:
        layer: Block.
        residual: R, wanted change of the output of each key.
        keys: K, one column per request.
        covariances: Statistics of (at least) this block.
        settings: Settings of the editor.
        protected: Keys whose outputs must stay exactly as they are.
        earlier: Keys of earlier edits, whose outputs stay as far as the form can.
    """

    layer: int
    residual: Float[Tensor, "d_model n"]
    keys: Float[Tensor, "d_mlp n"]
    covariances: Covariances
    settings: EditorSettings
    protected: Float[Tensor, "d_mlp m"] | None = None
    earlier: Float[Tensor, "d_mlp e"] | None = None


Report = Callable[[Covariances, Sequence[int], EditorSettings], Mapping[str, Any]]


def nothing_to_say(
    covariances: Covariances, layers: Sequence[int], settings: EditorSettings
) -> Mapping[str, Any]:
    """The report of a closed form that has none."""
    return {}


@dataclass(frozen=True)
class ClosedForm:
    """How a block's problem is solved.

    Attributes:
        name: Name of the editor that is nothing but this closed form.
        solve: Problem → update.
        report: What else there is to say of an edit of some blocks.
    """

    name: str
    solve: Callable[[Problem], LowRank]
    report: Report = nothing_to_say


def site_of(model: LanguageModel, plan: Sequence[Sequence[int]]) -> Site:
    """Where targets are: the output of a block, or of its down-projection for models with a norm
    behind the MLP.

    Raises:
        EditError: Such a model, and a request is spread over several blocks.
    """
    if model.check is None or not model.check.post_norm:
        return "resid"
    if any(len(layers) > 1 for layers in plan):
        middle, later = model.n_layers // 3, 2 * model.n_layers // 3
        raise EditError(
            f"{model.name} normalises the MLP output before adding it to the stream, so a residual"
            " cannot be spread over layers there; give one layer per request (--set"
            f" edit.block={middle}, or --set edit.layers={middle}/{later} for DMLE), or take"
            " --editors rome"
        )
    return "mlp"


def edit_block(bench: Workbench, form: ClosedForm, *, targets: Targets | None = None) -> EditDelta:
    """All requests into the same blocks; the model is as before on return, and on error.

    Args:
        bench: Model, requests, statistics and settings; `layers` are the blocks, ascending.
        form: The closed form.
        targets: Targets to write, if they are known already.

    Raises:
        EditError: The covariances are of another model, or the model's blocks do not allow it.
    """
    covariances = bench.covariances(bench.layers)
    plan = [bench.layers] * len(bench.requests)
    if targets is None:
        targets = find_targets(
            bench.model,
            bench.requests,
            _searched(bench.layers, bench.settings),
            bench.contexts,
            bench.settings,
            site=site_of(bench.model, plan),
        )
    report = bench.report(
        editor=form.name,
        contexts=list(bench.contexts),
        covariance=covariances.about,
        own=form.report(covariances, bench.layers, bench.settings),
    )
    return spread(bench, form, plan, targets, report)


def edit_jointly(
    bench: Workbench, plan: Sequence[Sequence[int]], report: EditReport, *, form: ClosedForm
) -> EditDelta:
    """Requests that each have blocks of their own, as one problem per block.

    Args:
        bench: Model, requests, statistics and settings.
        plan: Blocks of each request, ascending.
        report: What made the edit.
        form: The closed form.
    """
    return spread(bench, form, plan, _joint_targets(bench, plan), report)


def _joint_targets(bench: Workbench, plan: Sequence[Sequence[int]]) -> Targets:
    """Targets of all requests on the model as it is, each at the last of its own layers, or at the
    first if they are replayed.
    """
    site, settings = site_of(bench.model, plan), bench.settings
    found: dict[int, tuple[torch.Tensor, torch.Tensor, tuple[float, ...]]] = {}
    for layer in sorted({_searched(layers, settings) for layers in plan}):
        rows = [i for i, layers in enumerate(plan) if _searched(layers, settings) == layer]
        requests = [bench.requests[i] for i in rows]
        part = find_targets(bench.model, requests, layer, bench.contexts, settings, site=site)
        found |= {i: (part.z[j], part.initial[j], part.losses[j]) for j, i in enumerate(rows)}
    z, initial, losses = zip(*(found[i] for i in range(len(plan))), strict=True)
    return Targets(torch.stack(z), torch.stack(initial), losses)


def spread(
    bench: Workbench,
    form: ClosedForm,
    plan: Sequence[Sequence[int]],
    targets: Targets,
    report: EditReport,
) -> EditDelta:
    """One update per block that is in the plan of any request, as one edit.

    Args:
        bench: Model, requests, statistics and settings.
        form: The closed form.
        plan: Blocks of each request, ascending; its target is at the last of them, or at the first
            if they are replayed. At a block that is not in its plan a request takes part with a
            residual of zero: its output there should stay.
        targets: Targets of all requests.
        report: What made the edit. Its losses, shares that are left and served, and colliding keys
            are filled in.
    """
    model, requests, settings = bench.model, bench.requests, bench.settings
    memory, site = parse_size(settings.memory), site_of(model, plan)
    layers = sorted({layer for blocks in plan for layer in blocks})
    covariances = bench.covariances(layers)
    wanted = _wanted(bench, plan, targets, site)
    lasts = [blocks[-1] for blocks in plan]
    parts: list[EditDelta] = []
    collinear: list[dict[str, object]] = []
    served: dict[str, list[float]] = {}

    def states(places: Sequence[int]) -> Float[Tensor, "n d_model"]:
        hooks = [state_hook(model, site, place) for place in places]
        return _states(model, requests, hooks, settings.lookup, memory)

    def missing(places: Sequence[int]) -> Float[Tensor, "n d_model"]:
        return _at(wanted, places) - states(places)

    replayed = settings.targets == "replayed"
    initial = states(lasts) if replayed else targets.initial
    earlier = _earlier_keys(bench)
    with ExitStack() as stack:
        for layer in layers:
            share = torch.tensor([_share(blocks, layer, settings) for blocks in plan])
            # What is missing where the request's target for this block is.
            places = [layer if replayed and layer in blocks else blocks[-1] for blocks in plan]
            problem = _problem(bench, layer, covariances, partial(missing, places), share, earlier)
            update = form.solve(problem)
            collinear += _collinear(problem, requests)
            served[str(layer)] = _served(problem, update)
            parts.append(block_delta(model, layer, update))
            stack.enter_context(parts[-1].applied(model))
        left = missing(lasts).norm(dim=-1)
    filled = report.with_values(
        losses=[list(losses) for losses in targets.losses],
        residual_left=_shares_left(_at(wanted, lasts), initial, left),
        served=served,
        collinear_keys=collinear,
    )
    return merge(parts, filled)


def _problem(
    bench: Workbench,
    layer: int,
    covariances: Covariances,
    missing: Callable[[], Float[Tensor, "n d_model"]],
    share: Float[Tensor, " n"],
    earlier: KeysInTurn | None,
) -> Problem:
    """One block's problem on the model as it is now: each request's share of what it lacks."""
    keys = _keys(bench, layer)
    residual = missing()
    residual = residual * share.to(residual.device).unsqueeze(1)
    return Problem(
        layer,
        residual.T,
        keys.T,
        covariances,
        bench.settings,
        protected=protected_keys(bench, layer),
        earlier=None if earlier is None else earlier.at(layer).T,
    )


def _shares_left(
    ends: Float[Tensor, "n d_model"], initial: Float[Tensor, "n d_model"], left: Float[Tensor, " n"]
) -> list[float]:
    """What is left of the way to each target, as a share of the way."""
    wanted = (ends - initial).norm(dim=-1)
    # A request that is served already wants no change, and there is no way of which a share could
    # be left.
    wants = wanted > NO_CHANGE * initial.norm(dim=-1)
    return torch.where(wants, left / wanted, torch.nan).tolist()


def collinear_keys(
    keys: Float[Tensor, "n d_mlp"],
    residual: Float[Tensor, "n d_model"],
    requests: Sequence[EditRequest],
) -> list[dict[str, object]]:
    """Pairs of requests whose keys point the same way while they want different changes.

    One linear map cannot serve both: the closed form averages them. Another lookup or separate
    layers help.
    """
    unit = normalize(keys, dim=-1)
    cosine = unit @ unit.T
    pairs: list[dict[str, Any]] = []
    for i, second in enumerate(requests):
        for j, first in enumerate(requests[:i]):
            if cosine[i, j] > COLLINEAR and not torch.allclose(residual[i], residual[j]):
                pairs.append(
                    {
                        "rules": [first.rule, second.rule],
                        "forms": [first.form, second.form],
                        "cosine": cosine[i, j].item(),
                    }
                )
    return pairs


def _states(
    model: LanguageModel,
    requests: Sequence[EditRequest],
    hooks: Sequence[str],
    lookup: str,
    memory: int,
) -> Float[Tensor, "n d_model"]:
    found: dict[str, Tensor] = {
        hook: find_states(model, requests, hook, lookup, memory) for hook in sorted(set(hooks))
    }
    return torch.stack([found[hook][i] for i, hook in enumerate(hooks)])


def _share(layers: Sequence[int], layer: int, settings: EditorSettings) -> float:
    """Share of what is missing that a block writes."""
    if layer not in layers:
        return 0.0
    return 1.0 if settings.targets == "replayed" else 1 / sum(other >= layer for other in layers)


def _searched(layers: Sequence[int], settings: EditorSettings) -> int:
    """Block at which targets are searched."""
    return layers[0] if settings.targets == "replayed" else layers[-1]


def _at(
    wanted: Mapping[int, Float[Tensor, "n d_model"]], places: Sequence[int]
) -> Float[Tensor, "n d_model"]:
    """The target of each request at a block of its own."""
    return torch.stack([wanted[place][i] for i, place in enumerate(places)])


def _wanted(
    bench: Workbench, plan: Sequence[Sequence[int]], targets: Targets, site: Site
) -> Mapping[int, Float[Tensor, "n d_model"]]:
    """Block → targets of the requests that have one there."""
    settings = bench.settings
    if settings.targets == "replayed" and site == "resid":
        memory = parse_size(settings.memory)
        return replayed_targets(
            bench.model, bench.requests, plan, targets.z, settings.lookup, memory
        )
    return {blocks[-1]: targets.z for blocks in plan}


def _keys(bench: Workbench, layer: int) -> Float[Tensor, "n d_mlp"]:
    """Keys of the requests on the model as it is now."""
    lookup, memory = bench.settings.lookup, parse_size(bench.settings.memory)
    return find_keys(bench.model, bench.requests, layer, bench.contexts, lookup, memory=memory)


def _earlier_keys(bench: Workbench) -> KeysInTurn | None:
    """Keys of earlier edits' requests; None without any."""
    lookup, memory = bench.settings.lookup, parse_size(bench.settings.memory)
    if not bench.earlier:
        return None
    return KeysInTurn(bench.model, bench.earlier, bench.contexts, lookup, memory)


def protected_keys(bench: Workbench, layer: int) -> Float[Tensor, "d_mlp m"] | None:
    """Keys of every token of the protected and retained prompts and answers; None if there are
    none.
    """
    if not (kept := [*bench.protected, *bench.retained]):
        return None
    return keys_of_prompts(bench.model, kept, layer, parse_size(bench.settings.memory)).T


def _collinear(problem: Problem, requests: Sequence[EditRequest]) -> list[dict[str, object]]:
    """Pairs of requests that collide at a block (see `collinear_keys`)."""
    pairs = collinear_keys(problem.keys.T, problem.residual.T, requests)
    return [{"layer": problem.layer, **pair} for pair in pairs]


def _served(problem: Problem, update: LowRank) -> list[float]:
    """What a block's update gives each request of its share; NaN where no change was wanted."""
    residual = problem.residual.T
    left, right, read = together(update.left, update.right, problem.keys.T)
    given = as_tensor((left @ (right.T @ read.T)).T).to(residual.dtype).to(residual.device)
    size = residual.square().sum(-1)
    along = (given * residual).sum(-1) / size.clamp_min(1e-30)
    return torch.where(size > 0, along, torch.nan).tolist()


def block_delta(model: LanguageModel, layer: int, update: LowRank) -> EditDelta:
    """An update of one block's down-projection as a delta."""
    name = model.down_projection(layer).name
    # float32 factors: what is stored is what is applied, now and after loading.
    stored = LowRank(update.left.float(), update.right.float())
    return EditDelta({name: stored}, {name: layer}, model.weight_hash)
